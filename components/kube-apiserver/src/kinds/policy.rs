//! Disruption budgets.

use k8s_schema::Doc;
use serde_json::json;

use super::{Action, SPEC_AND_STATUS, Strategy, workload_status, workloads::int_or_percent};
use crate::validation::{ErrorList, FieldError, values};

pub const POD_DISRUPTION_BUDGET: Strategy = Strategy {
    unconditional_update: false,
    validate_create: budget,
    validate_update: |a, n, _, e| {
        if a == Action::Main {
            budget(n, e);
        } else if a == Action::Status {
            for f in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
                values::non_negative(n.at("status").get(f).int(), &format!("status.{f}"), e);
            }
            workload_status::conditions(n, e);
        }
    },
    ..SPEC_AND_STATUS
};

fn budget(d: &Doc, e: &mut ErrorList) {
    let (min, max) = (d.at("spec.minAvailable"), d.at("spec.maxUnavailable"));
    if min.exists() && max.exists() {
        let shown = json!({"MinAvailable": min.to_value(), "Selector": d.at("spec.selector").to_value(), "MaxUnavailable": max.to_value(),
            "UnhealthyPodEvictionPolicy": d.at("spec.unhealthyPodEvictionPolicy").to_value()});
        e.push(FieldError::invalid("spec", shown, "minAvailable and maxUnavailable cannot be both set"));
    }
    for (r, path) in [(min, "spec.minAvailable"), (max, "spec.maxUnavailable")] {
        let n = int_or_percent(r, path, e);
        if r.as_str().is_some() && n.is_some_and(|n| n > 100) {
            e.push(FieldError::invalid(path, r.to_value(), "must not be greater than 100%"));
        }
    }
    const POLICIES: &[&str] = &["AlwaysAllow", "IfHealthyBudget"];
    if let Some(p) = d.at("spec.unhealthyPodEvictionPolicy").as_str().filter(|p| !POLICIES.contains(p)) {
        e.push(FieldError::not_supported("spec.unhealthyPodEvictionPolicy", p, POLICIES));
    }
    values::label_selector(d.at("spec.selector"), "spec.selector", e);
}
