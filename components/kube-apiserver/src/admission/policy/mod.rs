//! Admission policies: CEL expressions that judge requests here (ValidatingAdmissionPolicy) and change them in `mutate`.
//!
//! A policy says what it is about and what has to hold; a binding says where, with which parameters, and what a failure means: the
//! request is refused, the client is warned, or it is noted in the audit log. Policies and bindings themselves are never judged, so
//! that a bad one can be mended.

mod compiled;
mod constraints;
mod inputs;
mod mutate;
mod params;

use cel::Value;
use k8s_schema::Doc;

pub use cel::admission::environment;
use compiled::{Bound, Validation};
pub use compiled::{MutatingPolicy, Named, Policies, Policy, conditions, mutation_environment, variables as declare_variables};
pub use inputs::Inputs;
pub use mutate::mutate;

use super::{Attributes, matching};
use crate::http::{ApiError, Group, status::Cause};

/// One run of one expression stops here.
pub const CALL_LIMIT: u64 = 1_000_000;
/// What all expressions of a policy may cost for one request, and what its match conditions may.
const BUDGET: u64 = 10_000_000;
pub const CONDITIONS_BUDGET: u64 = 2_500_000;
/// A message made by an expression has at most this many bytes.
const MAX_MESSAGE: usize = 5 * 1024;
/// A value for the audit log is cut here.
const MAX_ANNOTATION: usize = 10 * 1024;

/// What a policy finds wrong.
struct Refusal {
    message: String,
    reason: String,
    /// Of the validation.
    index: usize,
}

impl Refusal {
    fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), reason: String::new(), index: 0 }
    }
}

/// Asks all policies with their bindings.
pub async fn validate(a: &Attributes<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let policies = a.ctx.server.policies.current(&a.ctx.server.objects);
    if policies.is_empty() || matching::exempt(a) {
        return Ok(());
    }
    let mut denied: Option<ApiError> = None;
    let (mut failures, mut annotations) = (Vec::new(), Vec::new());
    for (policy, bindings) in policies.iter() {
        let Some(matched) = constraints::matches(a, &policy.common.constraints, doc, old)? else { continue };
        let (seen, before) = matching::views(a, matched.as_deref(), doc, old).await?;
        for binding in bindings {
            if constraints::matches(a, &binding.resources, doc, old)?.is_none() {
                continue;
            }
            let started = std::time::Instant::now();
            let refusals =
                judge(a, policy, binding, matched.as_deref().unwrap_or(a.res), seen.as_deref(), before.as_deref(), &mut annotations);
            checked(a, &policy.common.name, binding, !refusals.is_empty(), started.elapsed());
            for refusal in refusals {
                let who = format!("ValidatingAdmissionPolicy '{}' with binding '{}'", policy.common.name, binding.name);
                if binding.warn {
                    a.ctx.warn(format!("Validation failed for {who}: {}", refusal.message));
                }
                if binding.audit {
                    let actions = [(binding.deny, "Deny"), (binding.warn, "Warn"), (binding.audit, "Audit")];
                    let actions: Vec<&str> = actions.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
                    failures.push(serde_json::json!({"message": refusal.message, "policy": policy.common.name, "binding": binding.name,
                        "expressionIndex": refusal.index, "validationActions": actions}));
                }
                if binding.deny && denied.is_none() {
                    denied = Some(refused(a, doc.or(old), &format!("{who} denied request: {}", refusal.message), &refusal.reason));
                }
            }
        }
    }
    if !failures.is_empty() {
        a.ctx.annotate("validation.policy.admission.k8s.io/validation_failure", &serde_json::Value::from(failures).to_string());
    }
    // What several bindings or parameters say under one key stands side by side.
    let mut joined: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    for (key, value) in annotations {
        let values = joined.entry(key).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }
    for (key, values) in joined {
        a.ctx.annotate(key, &values.join(", "));
    }
    denied.map_or(Ok(()), Err)
}

/// Counts what came of a policy with a binding.
fn checked(a: &Attributes<'_>, policy: &str, binding: &Bound, failed: bool, took: std::time::Duration) {
    let action = match () {
        () if !failed => "allow",
        () if binding.deny => "deny",
        () if binding.warn => "warn",
        () => "audit",
    };
    let labels = [action, "no_error", policy, &binding.name];
    let metrics = &a.ctx.server.metrics.admission;
    metrics.checks.add(&labels);
    metrics.check_seconds.observe(&labels, took);
}

fn refused(a: &Attributes<'_>, doc: Option<&Doc>, message: &str, reason: &str) -> ApiError {
    let own = doc.map_or("", |d| d.meta().name());
    let name = if own.is_empty() { &a.ctx.info.name } else { own };
    let mut e = ApiError::forbidden(Group(&a.res.group, &a.res.plural), name, message);
    (e.code, e.reason) = match reason {
        "Unauthorized" => (401, "Unauthorized".into()),
        "Forbidden" => (403, "Forbidden".into()),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge".into()),
        _ => (422, "Invalid".into()),
    };
    if let Some(d) = &mut e.details {
        d.causes.push(Cause { reason: String::new(), message: message.to_owned(), field: String::new() });
    }
    e
}

/// What a policy with one binding says, for each of its parameters.
fn judge(
    a: &Attributes<'_>,
    policy: &Policy,
    binding: &Bound,
    res: &crate::registry::Resource,
    doc: Option<&Doc>,
    old: Option<&Doc>,
    annotations: &mut Vec<(String, String)>,
) -> Vec<Refusal> {
    let failed = |why: String| if policy.common.fail { vec![Refusal::plain(why)] } else { Vec::new() };
    let params = match params::of(a, policy.common.param_kind.as_ref(), binding.param.as_ref()) {
        Ok(params) => params,
        Err(why) => return failed(format!("failed to configure binding: {why}")),
    };
    let inputs = Inputs::new(a, res, doc, old);
    let mut out = Vec::new();
    for param in params {
        let mut run = inputs.run(param.as_ref(), CONDITIONS_BUDGET);
        match run.conditions(&policy.common.conditions) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => {
                out.extend(failed(why));
                continue;
            }
        }
        run.budget = BUDGET;
        run.variables(&policy.common.variables);
        for (index, v) in policy.validations.iter().enumerate() {
            out.extend(validation(&mut run, policy, v).map(|r| Refusal { index, ..r }));
        }
        for n in &policy.annotations {
            match run.evaluate(&n.expression) {
                Ok(v) => {
                    let text = v.as_str().map(|s| s.trim().chars().take(MAX_ANNOTATION).collect::<String>());
                    let key = format!("{}/{}", policy.common.name, n.name);
                    annotations.extend(text.filter(|t| !t.is_empty()).map(|t| (key, t)));
                }
                Err(why) => out.extend(failed(why)),
            }
        }
    }
    out
}

fn validation(run: &mut inputs::Run<'_>, policy: &Policy, v: &Validation) -> Option<Refusal> {
    let refusal = |message| Some(Refusal { message, reason: v.reason.clone(), index: 0 });
    match run.evaluate(&v.expression) {
        Ok(Value::Bool(true)) => None,
        Ok(_) => {
            let made = v.message_expression.as_ref().and_then(|m| run.evaluate(m).ok());
            let made = made.and_then(|m| m.as_str().map(|s| s.trim().to_owned()));
            let usable = made.filter(|s| !s.is_empty() && s.len() <= MAX_MESSAGE && !s.contains(['\n', '\r']));
            refusal(usable.unwrap_or_else(|| match v.message.trim() {
                "" => format!("failed expression: {}", v.expression.source.trim()),
                m => m.to_owned(),
            }))
        }
        Err(why) if policy.common.fail => Some(Refusal::plain(why)),
        Err(_) => None,
    }
}
