//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: users' servers that change or judge requests.
//!
//! Those that change objects are asked one after the other, each seeing what the one before made of it; those that only judge are asked
//! at the same time. Configurations of admission themselves are never sent to webhooks, so that a bad one can be mended, nor are the
//! server's own writes.

mod conditions;
mod hook;
mod review;

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use futures_util::future::join_all;
use k8s_schema::{Doc, patch};
use serde_json::{Value, json};

pub use hook::Configured;
use hook::Hook;
use review::{Answer, Question};

use super::{
    Attributes, Operation,
    matching::{self, Asked},
};
use crate::{
    http::{ApiError, Group},
    kinds,
    registry::Resource,
};

pub const MUTATING: &str = "mutatingwebhookconfigurations";
pub const VALIDATING: &str = "validatingwebhookconfigurations";

/// What is remembered between the two rounds of one request.
#[derive(Default)]
pub struct Rounds {
    second: bool,
    /// Some object was changed: plugins look again.
    changed: bool,
    /// Asked already, and to be asked again when somebody changes the object after them.
    asked: HashSet<String>,
    again: HashSet<String>,
    /// What the webhooks left.
    left: Option<Doc>,
}

impl Rounds {
    pub fn is_second(&self) -> bool {
        self.second
    }

    /// Begins the second round if there is one.
    pub fn next(&mut self) -> bool {
        self.second = true;
        self.changed
    }

    fn ask_again(&mut self) {
        self.again.extend(std::mem::take(&mut self.asked));
    }
}

/// A webhook that a request is for.
struct Call<'h, 'd> {
    hook: &'h Hook,
    /// The version of the resource that its rules name, when that is not the one asked for.
    as_: Option<Arc<Resource>>,
    /// What it sees of the object, and of the one before.
    object: Option<Cow<'d, Doc>>,
    old: Option<Cow<'d, Doc>>,
}

/// Why a webhook let nothing through.
enum Refused {
    /// It could not be asked, or gave no answer that makes sense.
    Failed(String),
    By(ApiError),
}

/// Whether and as what a request goes to a webhook.
async fn select<'h, 'd>(
    a: &Attributes<'_>,
    hook: &'h Hook,
    doc: Option<&'d Doc>,
    old: Option<&'d Doc>,
) -> Result<Option<Call<'h, 'd>>, ApiError> {
    let namespace = matching::namespace_of(a, doc, old);
    let asked = |res: &Resource| hook.rules.iter().any(|r| r.matches(&Asked::of(a, res, namespace)));
    let Some(as_) = matching::served_as(a, hook.equivalent, asked) else { return Ok(None) };
    if !hook.selectors.match_request(a, format_args!("webhook {:?}", hook.name), doc, old)? {
        return Ok(None);
    }
    let (object, before) = matching::views(a, as_.as_deref(), doc, old).await?;
    let call = Call { hook, as_, object, old: before };
    match conditions::met(a, &call) {
        Ok(true) => Ok(Some(call)),
        Ok(false) => Ok(None),
        Err(_) if !hook.fail => Ok(None),
        Err(why) => Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), matching::name_of(a, doc, old), why)),
    }
}

pub(super) fn options(a: &Attributes<'_>) -> Value {
    let kind = match a.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut o = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if let Some(d) = a.delete {
        d.write(&mut o);
    } else {
        for field in ["fieldManager", "fieldValidation"] {
            if let Some(v) = a.ctx.query.get(field).filter(|v| !v.is_empty()) {
                o[field] = v.into();
            }
        }
    }
    if a.dry_run {
        o["dryRun"] = json!(["All"]);
    }
    o
}

/// Asks one webhook.
async fn ask(a: &Attributes<'_>, call: &Call<'_, '_>, name: &str, namespace: &str, mutating: bool) -> Result<Answer, Refused> {
    let hook = call.hook;
    if a.dry_run && !hook.harmless {
        return Err(Refused::By(ApiError::bad_request(format!("admission webhook {:?} does not support dry run", hook.name))));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let res = call.as_.as_deref().unwrap_or(a.res);
    let question = Question {
        uid: &uid,
        kind: kind_of(res, a.subresource),
        request_kind: kind_of(a.res, a.subresource),
        resource: (&res.group, &res.version, &res.plural),
        request_resource: (&a.res.group, &a.res.version, &a.res.plural),
        subresource: a.subresource,
        name,
        namespace,
        operation: a.operation.name(),
        user: &a.ctx.user,
        object: call.object.as_deref().map_or(Value::Null, Doc::to_value),
        old_object: call.old.as_deref().map_or(Value::Null, Doc::to_value),
        dry_run: a.dry_run,
        options: options(a),
    };
    let failed = |why: String| Refused::Failed(format!("failed calling webhook {:?}: {why}", hook.name));
    let started = std::time::Instant::now();
    let answer = a.ctx.server.webhooks.call(&hook.client, &question.review(hook.review), hook.timeout).await;
    let rejected = if answer.as_ref().is_ok_and(|a| a["response"]["allowed"] == true) { "false" } else { "true" };
    let half = if mutating { "admit" } else { "validating" };
    a.ctx.server.metrics.admission.webhooks.observe(&[&hook.name, a.operation.name(), rejected, half], started.elapsed());
    let answer = answer.map_err(|e| failed(format!("failed to call webhook: {e}")))?;
    let answer =
        review::answer(&answer, hook.review, &uid, mutating).map_err(|e| failed(format!("received invalid webhook response: {e}")))?;
    answer.warnings.iter().for_each(|w| a.ctx.warn(w.clone()));
    answer.annotations.iter().for_each(|(k, v)| a.ctx.annotate(format!("{}/{k}", hook.name), v));
    if answer.allowed { Ok(answer) } else { Err(Refused::By(review::refusal(&hook.name, &answer.result))) }
}

pub(super) fn kind_of<'r>(res: &'r Resource, subresource: &str) -> review::Gvn<'r> {
    match res.subresource(subresource).filter(|s| !s.version.is_empty()) {
        Some(s) => (&s.group, &s.version, &s.kind),
        None => (&res.group, &res.version, res.subresource(subresource).map_or(&res.kind, |s| &s.kind)),
    }
}

/// What a webhook that could not be asked means.
fn unasked(a: &Attributes<'_>, hook: &Hook, mutating: bool, round: usize, index: usize, why: String) -> Result<(), ApiError> {
    if hook.fail {
        return Err(ApiError::internal(why));
    }
    let kind = if mutating { "mutating" } else { "validating" };
    a.ctx.annotate(format!("failed-open.{kind}.webhook.admission.k8s.io/round_{round}_index_{index}"), &hook.name);
    tracing::warn!(webhook = hook.name, reason = why, "a webhook cannot be asked; its configuration says to go on without it");
    Ok(())
}

/// Lets webhooks change the object, one after the other.
pub async fn mutate(a: &Attributes<'_>, mut doc: Option<&mut Doc>, old: Option<&Doc>, rounds: &mut Rounds) -> Result<(), ApiError> {
    let hooks = a.ctx.server.mutating.hooks(&a.ctx.server.objects);
    if hooks.is_empty() || matching::exempt(a) {
        return Ok(());
    }
    if rounds.second && doc.as_deref().zip(rounds.left.as_ref()).is_some_and(|(now, left)| !now.root().semantic_eq(left.root())) {
        // Plugins changed what the webhooks left.
        rounds.ask_again();
    }
    let round = usize::from(rounds.second);
    for (index, hook) in hooks.iter().enumerate() {
        if rounds.second && !rounds.again.contains(&hook.id) {
            continue;
        }
        let Some(call) = select(a, hook, doc.as_deref(), old).await? else { continue };
        let changed = match ask_to_change(a, call, doc.as_deref(), old).await {
            Ok(new) => {
                let new = new.filter(|n| doc.as_deref().is_some_and(|d| !n.root().semantic_eq(d.root())));
                let changed = new.is_some();
                if let (Some(doc), Some(new)) = (doc.as_deref_mut(), new) {
                    *doc = new;
                }
                changed
            }
            Err(Refused::By(e)) => return Err(e),
            Err(Refused::Failed(why)) => {
                unasked(a, hook, true, round, index, why)?;
                false
            }
        };
        if let Some(r) = &a.ctx.audit {
            let configuration = hook.id.split('/').next().unwrap_or("");
            let said = json!({"configuration": configuration, "webhook": hook.name, "mutated": changed});
            r.annotate(format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}"), &said.to_string());
        }
        if changed {
            rounds.ask_again();
            rounds.changed = true;
        }
        if hook.again {
            rounds.asked.insert(hook.id.clone());
        }
    }
    rounds.left = doc.as_deref().cloned();
    Ok(())
}

/// What a webhook makes of the object; none: what it is.
async fn ask_to_change(a: &Attributes<'_>, call: Call<'_, '_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<Option<Doc>, Refused> {
    let answer = ask(a, &call, matching::name_of(a, doc, old), matching::namespace_of(a, doc, old), true).await?;
    let empty = serde_json::from_slice::<Value>(&answer.patch).is_ok_and(|p| p.as_array().is_some_and(Vec::is_empty));
    if answer.patch.is_empty() || empty {
        return Ok(None);
    }
    let (Some(doc), Some(seen)) = (doc, call.object.as_deref()) else {
        let why =
            format!("admission webhook {:?} attempted to modify the object, which is not supported for this operation", call.hook.name);
        return Err(Refused::By(ApiError::internal(why)));
    };
    let patched = patch::json_patch(seen, &answer.patch, false).map_err(|e| Refused::By(ApiError::internal(e)))?;
    let mut new = matching::adopt(a, call.as_.as_deref(), doc, patched.doc).await.map_err(Refused::By)?;
    // Managed fields that nobody can read any more would be lost with the next write.
    if k8s_schema::apply::managers_of(&new).is_err() {
        kinds::restore(&mut new, doc, "metadata.managedFields");
    }
    Ok(Some(new))
}

/// Lets webhooks judge the request, all at once. Of several refusals the first webhook's counts.
pub async fn validate(a: &Attributes<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let hooks = a.ctx.server.validating.hooks(&a.ctx.server.objects);
    if hooks.is_empty() || matching::exempt(a) {
        return Ok(());
    }
    let mut calls = Vec::new();
    for hook in hooks.iter() {
        calls.extend(select(a, hook, doc, old).await?);
    }
    let (name, namespace) = (matching::name_of(a, doc, old), matching::namespace_of(a, doc, old));
    let judged = calls.iter().enumerate().map(|(index, call)| async move {
        match ask(a, call, name, namespace, false).await {
            Ok(_) => Ok(()),
            Err(Refused::By(e)) => Err(e),
            Err(Refused::Failed(why)) => unasked(a, call.hook, false, 0, index, why),
        }
    });
    join_all(judged).await.into_iter().collect()
}
