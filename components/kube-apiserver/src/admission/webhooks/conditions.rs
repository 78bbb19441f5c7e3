//! Match conditions: expressions that say, after all rules and selectors, whether a request goes to a webhook.
//!
//! Nothing here evaluates CEL yet, so a webhook that has conditions is one whose conditions cannot be evaluated: with
//! `failurePolicy: Fail` the request is refused, with `Ignore` the webhook is left out, as upstream does on an error in them.

use super::hook::Hook;

/// Whether all conditions of a webhook hold.
pub fn met(hook: &Hook) -> Result<bool, String> {
    match hook.conditions.first() {
        None => Ok(true),
        Some(first) => Err(format!("expression '{first}' resulted in error: match conditions are not evaluated by this server yet")),
    }
}
