//! MutatingAdmissionPolicy: CEL expressions that make configurations to apply, or JSON patches, of requests.
//!
//! Policies run one after the other, by name. Those that want it (`reinvocationPolicy: IfNeeded`) run once more when a later one, or a
//! webhook, changed what they left.

use cel::{Value, value::List};
use k8s_schema::{Doc, apply, patch};
use serde_json::Value as Json;

use super::{
    BUDGET, CONDITIONS_BUDGET, Inputs,
    compiled::{Bound, MutatingPolicy, Mutation, Patch},
    constraints,
    inputs::Run,
    params,
};
use crate::{
    admission::{Attributes, matching},
    http::{ApiError, Group, status::Cause},
    kinds,
    registry::Resource,
};

/// A configuration or a patch holds at most this many values.
const MAX_VALUES: u64 = 1 << 20;

/// Lets all policies change the object; `again` when they have seen this request before.
pub async fn mutate(a: &Attributes<'_>, doc: &mut Doc, old: Option<&Doc>, again: bool) -> Result<(), ApiError> {
    let policies = a.ctx.server.mutating_policies.current(&a.ctx.server.objects);
    if policies.is_empty() || matching::exempt(a) {
        return Ok(());
    }
    let mut last_change = None;
    for (i, p) in policies.iter().enumerate().filter(|(_, p)| !again || p.0.reinvoke) {
        if run(a, p, doc, old).await? {
            last_change = Some(i);
        }
    }
    for p in policies.iter().take(last_change.filter(|_| !again).unwrap_or(0)).filter(|p| p.0.reinvoke) {
        run(a, p, doc, old).await?;
    }
    Ok(())
}

/// One policy with its bindings; whether it changed something.
async fn run(
    a: &Attributes<'_>,
    (policy, bindings): &(MutatingPolicy, Vec<Bound>),
    doc: &mut Doc,
    old: Option<&Doc>,
) -> Result<bool, ApiError> {
    let Some(matched) = constraints::matches(a, &policy.common.constraints, Some(doc), old)? else { return Ok(false) };
    let mut changed = false;
    for binding in bindings {
        if constraints::matches(a, &binding.resources, Some(doc), old)?.is_none() {
            continue;
        }
        let res = matched.as_deref().unwrap_or(a.res);
        let (seen, before) = matching::views(a, matched.as_deref(), Some(doc), old).await?;
        let Some(seen) = seen else { continue };
        match change(a, policy, binding, res, &seen, before.as_deref()) {
            Ok(None) => {}
            Ok(Some(new)) => {
                let new = matching::adopt(a, matched.as_deref(), doc, new).await?;
                changed |= !new.root().semantic_eq(doc.root());
                drop(seen);
                *doc = new;
            }
            Err(why) if policy.common.fail => return Err(refused(a, doc, policy, binding, &why)),
            Err(why) => {
                tracing::warn!(policy = policy.common.name, reason = why, "an admission policy failed and says to go on without it")
            }
        }
    }
    Ok(changed)
}

fn refused(a: &Attributes<'_>, doc: &Doc, policy: &MutatingPolicy, binding: &Bound, why: &str) -> ApiError {
    let message = format!("policy '{}' with binding '{}' denied request: {why}", policy.common.name, binding.name);
    let mut e = ApiError::forbidden(Group(&a.res.group, &a.res.plural), doc.meta().name(), "");
    e.reason = "Invalid".into();
    if let Some(d) = &mut e.details {
        d.causes.push(Cause { reason: String::new(), message: message.clone(), field: String::new() });
    }
    e.message = message;
    e
}

/// What the mutations make of the object; none: it stays as it is.
fn change(
    a: &Attributes<'_>,
    policy: &MutatingPolicy,
    binding: &Bound,
    res: &Resource,
    doc: &Doc,
    old: Option<&Doc>,
) -> Result<Option<Doc>, String> {
    let common = &policy.common;
    let params =
        params::of(a, common.param_kind.as_ref(), binding.param.as_ref()).map_err(|e| format!("failed to configure binding: {e}"))?;
    let mut current: Option<Doc> = None;
    for param in params {
        let inputs = Inputs::new(a, res, Some(current.as_ref().unwrap_or(doc)), old);
        let mut run = inputs.run(param.as_ref(), CONDITIONS_BUDGET);
        if !run.conditions(&common.conditions)? {
            continue;
        }
        let mut budget = BUDGET;
        for m in &policy.mutations {
            // Each mutation sees what the one before it made.
            let now = current.as_ref().unwrap_or(doc);
            let inputs = Inputs::new(a, res, Some(now), old);
            let mut run = inputs.run(param.as_ref(), budget);
            run.variables(&common.variables);
            let mut new = mutation(&mut run, m, res, now)?;
            budget = run.budget;
            if a.subresource.is_empty() {
                kinds::defaults::apply(res, &mut new);
            }
            current = Some(new);
        }
    }
    Ok(current)
}

fn mutation(run: &mut Run<'_>, m: &Mutation, res: &Resource, doc: &Doc) -> Result<Doc, String> {
    let value = run.evaluate(&m.expression)?;
    if value.weight(MAX_VALUES + 1) > MAX_VALUES {
        return Err("the result is too large".into());
    }
    match m.patch {
        Patch::Apply => {
            let config = value.to_json().filter(Json::is_object).ok_or("must evaluate to Object")?;
            let types = res.custom.as_ref().and_then(|c| c.types());
            apply::overlay(doc, &config, types).map_err(|e| format!("error applying patch: {e}"))
        }
        Patch::Json => {
            let Value::List(list) = value else { return Err("must evaluate to list(JSONPatch)".into()) };
            json_patch(doc, &list)
        }
    }
}

fn json_patch(doc: &Doc, list: &List<'_>) -> Result<Doc, String> {
    let operations: Option<Vec<Json>> = list.iter().map(|o| o.to_json()).collect();
    let operations = operations.ok_or("a value of the JSON patch cannot be written as JSON")?;
    let run = |n: usize| patch::json_patch(doc, &serde_json::to_vec(&operations[..n]).unwrap_or_default(), false);
    let why = match run(operations.len()) {
        Ok(patched) => return Ok(patched.doc),
        Err(e) => e.to_string(),
    };
    // The operation that failed is the last of the shortest patch that fails.
    let failed = (1..=operations.len()).find(|n| matches!(run(*n), Err(patch::PatchError::Unprocessable(_))));
    let Some(o) = failed.map(|n| &operations[n - 1]) else { return Err(format!("JSON Patch: {why}")) };
    let (op, path) = (o["op"].as_str().unwrap_or(""), o["path"].as_str().unwrap_or(""));
    let why = if why.starts_with("doc is missing path") || why.starts_with("Unable to remove nonexistent key") {
        format!("doc is missing path: {path:?}: missing value")
    } else {
        why
    };
    Err(format!("JSON Patch: {op} operation does not apply: {why}"))
}
