//! Match conditions: expressions that say, after all rules and selectors, whether a request goes to a webhook.
//!
//! Where one cannot be evaluated and none says no, `failurePolicy: Fail` refuses the request, and `Ignore` leaves the webhook out.

use k8s_schema::Ref;

use super::Call;
use crate::admission::{
    Attributes,
    policy::{self, Inputs},
};

pub use policy::Named;

/// The conditions of a webhook, compiled.
pub fn of(list: Ref<'_>) -> Vec<Named> {
    policy::conditions(list, &policy::environment(false, false))
}

/// Whether all conditions of a webhook hold for what it would see.
pub fn met(a: &Attributes<'_>, call: &Call<'_, '_>) -> Result<bool, String> {
    if call.hook.conditions.is_empty() {
        return Ok(true);
    }
    let inputs = Inputs::new(a, call.as_.as_deref().unwrap_or(a.res), call.object.as_deref(), call.old.as_deref());
    inputs.run(None, policy::CONDITIONS_BUDGET).conditions(&call.hook.conditions)
}
