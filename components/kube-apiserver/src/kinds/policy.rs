//! Disruption budgets and autoscalers.

use k8s_schema::Doc;
use serde_json::json;

use super::{Action, SPEC_AND_STATUS, Strategy, workload_status, workloads::int_or_percent};
use crate::validation::{ErrorList, FieldError, child, names, values};

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
pub const HORIZONTAL_POD_AUTOSCALER: Strategy = Strategy {
    generation: false,
    validate_create: |d, e| autoscaler(d, None, e),
    validate_update: |a, n, o, e| {
        if a == Action::Main {
            autoscaler(n, Some(o), e);
        }
    },
    ..SPEC_AND_STATUS
};

/// What is scaled, and between which bounds.
fn autoscaler(d: &Doc, old: Option<&Doc>, e: &mut ErrorList) {
    let (min, max) = (d.at("spec.minReplicas"), d.at("spec.maxReplicas").int());
    if let Some(min) = min.as_i64().filter(|m| *m < 1) {
        e.push(FieldError::invalid("spec.minReplicas", min, "must be greater than or equal to 1"));
    }
    if max < 1 {
        e.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than 0"));
    }
    if min.as_i64().is_some_and(|min| max < min) {
        e.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than or equal to `minReplicas`"));
    }
    let target = d.at("spec.scaleTargetRef");
    for f in ["kind", "name"] {
        let path = child("spec.scaleTargetRef", f);
        match target.get(f).str() {
            "" => e.push(FieldError::required(path, "")),
            v => e.all_invalid(&path, v, names::path_segment(v, false)),
        }
    }
    let version = target.get("apiVersion").str();
    let path = "spec.scaleTargetRef.apiVersion";
    let groupless = |d: &Doc| !d.at(path).str().contains('/');
    if version.split('/').count() > 2 {
        e.push(FieldError::invalid(path, version, format!("unexpected GroupVersion string: {version}")));
    } else if groupless(d) && target.get("kind").str() != "ReplicationController" && !old.is_some_and(groupless) {
        e.push(FieldError::invalid(path, version, "apiVersion must specify API group"));
    }
}

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
