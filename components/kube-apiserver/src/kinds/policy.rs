//! Disruption budgets, network policies, ingresses and autoscalers.

use k8s_schema::Doc;

use super::{Action, GENERATION, SPEC_AND_STATUS, Strategy, warnings};
use crate::validation::{ErrorList, FieldError, values};

pub const POD_DISRUPTION_BUDGET: Strategy = Strategy {
    unconditional_update: false,
    validate_create: budget,
    validate_update: |a, n, _, e| {
        if a == Action::Main {
            budget(n, e);
        }
    },
    ..SPEC_AND_STATUS
};
pub const NETWORK_POLICY: Strategy =
    Strategy { validate_create: network_policy, validate_update: |_, n, _, e| network_policy(n, e), ..GENERATION };
pub const INGRESS: Strategy = Strategy { warnings: warnings::ingress, ..SPEC_AND_STATUS };
pub const INGRESS_CLASS: Strategy = GENERATION;
pub const HORIZONTAL_POD_AUTOSCALER: Strategy = Strategy { generation: false, ..SPEC_AND_STATUS };

fn budget(d: &Doc, e: &mut ErrorList) {
    let (min, max) = (d.at("spec.minAvailable"), d.at("spec.maxUnavailable"));
    if min.exists() && max.exists() {
        e.push(FieldError::invalid("spec", d.at("spec").to_value(), "minAvailable and maxUnavailable cannot be both set"));
    }
    values::label_selector(d.at("spec.selector"), "spec.selector", e);
}

fn network_policy(d: &Doc, e: &mut ErrorList) {
    values::label_selector(d.at("spec.podSelector"), "spec.podSelector", e);
    let n = d.at("spec.policyTypes").len();
    if n > 2 {
        e.push(FieldError::invalid("spec.policyTypes", d.at("spec.policyTypes").to_value(), "may not specify more than two policyTypes"));
        return;
    }
    for (i, t) in d.at("spec.policyTypes").iter().enumerate() {
        if !matches!(t.str(), "Ingress" | "Egress") {
            e.push(FieldError::not_supported(format!("spec.policyTypes[{i}]"), t.str(), &["Egress", "Ingress"]));
        }
    }
}
