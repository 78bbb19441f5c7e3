//! Disruption budgets and autoscalers.

use k8s_schema::Doc;

use super::{Action, SPEC_AND_STATUS, Strategy};
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
pub const HORIZONTAL_POD_AUTOSCALER: Strategy = Strategy { generation: false, ..SPEC_AND_STATUS };

fn budget(d: &Doc, e: &mut ErrorList) {
    let (min, max) = (d.at("spec.minAvailable"), d.at("spec.maxUnavailable"));
    if min.exists() && max.exists() {
        e.push(FieldError::invalid("spec", d.at("spec").to_value(), "minAvailable and maxUnavailable cannot be both set"));
    }
    values::label_selector(d.at("spec.selector"), "spec.selector", e);
}
