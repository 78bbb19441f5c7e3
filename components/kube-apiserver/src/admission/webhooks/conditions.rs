//! Match conditions: expressions that say, after all rules and selectors, whether a request goes to a webhook.
//!
//! Where one cannot be evaluated and none says no, `failurePolicy: Fail` refuses the request, and `Ignore` leaves the webhook out.

use k8s_schema::{Doc, Ref};

use super::{Call, view};
use crate::{
    admission::{
        Attributes,
        policy::{self, Inputs},
    },
    http::ApiError,
};

pub use policy::Named;

/// The conditions of a webhook, compiled.
pub fn of(list: Ref<'_>) -> Vec<Named> {
    policy::conditions(list, &policy::environment(false, false))
}

/// Whether all conditions of a webhook hold for what it would see.
pub async fn met(a: &Attributes<'_>, call: &Call<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<Result<bool, String>, ApiError> {
    if call.hook.conditions.is_empty() {
        return Ok(Ok(true));
    }
    let seen = match doc {
        Some(d) => Some(view(a, call, d).await?),
        None => None,
    };
    let before = match old {
        Some(d) => Some(view(a, call, d).await?),
        None => None,
    };
    let inputs = Inputs::new(a, call.as_.as_deref().unwrap_or(a.res), seen.as_deref(), before.as_deref());
    Ok(inputs.run(None, policy::CONDITIONS_BUDGET).conditions(&call.hook.conditions))
}
