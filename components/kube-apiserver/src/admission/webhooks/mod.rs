//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: users' servers that change or judge requests.
//!
//! Those that change objects are asked one after the other, each seeing what the one before made of it; those that only judge are asked
//! at the same time. Configurations of admission themselves are never sent to webhooks, so that a bad one can be mended, nor are the
//! server's own writes.

mod conditions;
mod hook;
mod review;
pub(super) mod rules;

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use futures_util::future::join_all;
use k8s_schema::{Doc, patch};
use serde_json::{Value, json};

pub use hook::Configured;
use hook::Hook;
use review::{Answer, Question};
use rules::Asked;

use super::{Attributes, Operation};
use crate::{
    custom::conversion,
    handlers::scale,
    http::{ApiError, Group},
    kinds,
    registry::Resource,
};

pub const MUTATING: &str = "mutatingwebhookconfigurations";
pub const VALIDATING: &str = "validatingwebhookconfigurations";

/// What no webhook hears of.
const EXEMPT: &[&str] = &[
    MUTATING,
    VALIDATING,
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
];

pub(super) fn exempt(a: &Attributes<'_>) -> bool {
    a.ctx.internal || (a.res.group == "admissionregistration.k8s.io" && EXEMPT.contains(&a.res.plural.as_str()))
}

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
struct Call<'h> {
    hook: &'h Hook,
    /// The version of the resource that its rules name, when that is not the one asked for.
    as_: Option<Arc<Resource>>,
}

/// Why a webhook let nothing through.
enum Refused {
    /// It could not be asked, or gave no answer that makes sense.
    Failed(String),
    By(ApiError),
}

pub(super) fn namespace_of<'a>(a: &'a Attributes<'_>, doc: Option<&'a Doc>, old: Option<&'a Doc>) -> &'a str {
    if a.res.group.is_empty() && a.res.plural == "namespaces" {
        return name_of(a, doc, old);
    }
    if a.res.namespaced { &a.ctx.info.namespace } else { "" }
}

pub(super) fn name_of<'a>(a: &'a Attributes<'_>, doc: Option<&'a Doc>, old: Option<&'a Doc>) -> &'a str {
    let own = match a.operation {
        Operation::Create if a.subresource.is_empty() => doc,
        Operation::Delete => old,
        _ => None,
    };
    own.map_or(a.ctx.info.name.as_str(), |d| d.meta().name())
}

/// Whether and as what a request goes to a webhook.
async fn select<'h>(a: &Attributes<'_>, hook: &'h Hook, doc: Option<&Doc>, old: Option<&Doc>) -> Result<Option<Call<'h>>, ApiError> {
    let namespace = namespace_of(a, doc, old);
    let asked = |res: &Resource| {
        let q = Asked {
            group: &res.group,
            version: &res.version,
            resource: &res.plural,
            subresource: a.subresource,
            namespace,
            operation: a.operation,
        };
        hook.rules.iter().any(|r| r.matches(&q))
    };
    let as_ = if asked(a.res) {
        None
    } else if hook.equivalent {
        let others = a.ctx.server.registry.equivalents(a.res);
        let fits = |r: &&Arc<Resource>| (a.subresource.is_empty() || r.subresource(a.subresource).is_some()) && asked(r);
        match others.iter().find(fits) {
            Some(other) => Some(Arc::clone(other)),
            None => return Ok(None),
        }
    } else {
        return Ok(None);
    };
    if !in_namespaces(a, hook, namespace, doc)? {
        return Ok(None);
    }
    let objects = hook.objects.as_ref().ok_or_else(|| unreadable(hook, "objectSelector"))?;
    let labelled = |d: Option<&Doc>| d.is_some_and(|d| d.at("metadata").exists() && objects.matches_ref(d.at("metadata.labels")));
    if !objects.is_empty() && !labelled(doc) && !labelled(old) {
        return Ok(None);
    }
    let call = Call { hook, as_ };
    match conditions::met(a, &call, doc, old).await? {
        Ok(true) => Ok(Some(call)),
        Ok(false) => Ok(None),
        Err(_) if !hook.fail => Ok(None),
        Err(why) => Err(ApiError::forbidden(Group(&a.res.group, &a.res.plural), name_of(a, doc, old), why)),
    }
}

fn unreadable(hook: &Hook, field: &str) -> ApiError {
    ApiError::internal(format!("the {field} of webhook {:?} cannot be read", hook.name))
}

fn in_namespaces(a: &Attributes<'_>, hook: &Hook, namespace: &str, doc: Option<&Doc>) -> Result<bool, ApiError> {
    let selector = hook.namespaces.as_ref().ok_or_else(|| unreadable(hook, "namespaceSelector"))?;
    if namespace.is_empty() || selector.is_empty() {
        return Ok(true);
    }
    // The labels a namespace will have count, which nobody else knows yet.
    let itself = a.res.group.is_empty() && a.res.plural == "namespaces" && a.subresource.is_empty();
    if let Some(new) = doc.filter(|_| itself && matches!(a.operation, Operation::Create | Operation::Update)) {
        return Ok(selector.matches_ref(new.at("metadata.labels")));
    }
    let cached = a.ctx.server.objects.reflector.cache("namespaces").and_then(|c| c.get(namespace));
    let stored = cached.ok_or_else(|| ApiError::not_found(Group("", "namespaces"), namespace))?;
    Ok(selector.matches(|k| stored.label(k)))
}

/// The object that a webhook sees: of scale requests the Scale, of others the object, in the version its rules name.
async fn view<'d>(a: &Attributes<'_>, call: &Call<'_>, doc: &'d Doc) -> Result<Cow<'d, Doc>, ApiError> {
    if a.subresource == "scale" {
        return scale::scale_of(a.ctx, a.res, doc).map(Cow::Owned);
    }
    match &call.as_ {
        Some(other) if a.subresource.is_empty() || a.subresource == "status" => {
            conversion::between(&a.ctx.server, a.res, other, doc).await.map(Cow::Owned)
        }
        _ => Ok(Cow::Borrowed(doc)),
    }
}

/// The other way: what a webhook made of its view becomes the object's.
async fn adopt(a: &Attributes<'_>, call: &Call<'_>, doc: &Doc, patched: Doc) -> Result<Doc, ApiError> {
    if a.subresource == "scale" {
        let mut new = doc.clone();
        scale::set_replicas(a.res, &mut new, patched.at("spec.replicas").int())?;
        return Ok(new);
    }
    let mut new = match &call.as_ {
        Some(other) if a.subresource.is_empty() || a.subresource == "status" => {
            conversion::between(&a.ctx.server, other, a.res, &patched).await?
        }
        _ => patched,
    };
    if a.operation == Operation::Update || a.subresource.is_empty() {
        kinds::defaults::apply(a.res, &mut new);
    }
    Ok(new)
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

/// Asks one webhook. The object is given as the webhook sees it.
async fn ask(
    a: &Attributes<'_>,
    call: &Call<'_>,
    name: &str,
    namespace: &str,
    object: Option<&Doc>,
    old: Option<&Doc>,
    mutating: bool,
) -> Result<Answer, Refused> {
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
        object: object.map_or(Value::Null, Doc::to_value),
        old_object: old.map_or(Value::Null, Doc::to_value),
        dry_run: a.dry_run,
        options: options(a),
    };
    let failed = |why: String| Refused::Failed(format!("failed calling webhook {:?}: {why}", hook.name));
    let answer = a.ctx.server.webhooks.call(&hook.client, &question.review(hook.review), hook.timeout).await;
    let answer = answer.map_err(|e| failed(format!("failed to call webhook: {e}")))?;
    let answer =
        review::answer(&answer, hook.review, &uid, mutating).map_err(|e| failed(format!("received invalid webhook response: {e}")))?;
    answer.warnings.iter().for_each(|w| a.ctx.warn(w.clone()));
    if answer.allowed { Ok(answer) } else { Err(Refused::By(review::refusal(&hook.name, &answer.result))) }
}

pub(super) fn kind_of<'r>(res: &'r Resource, subresource: &str) -> review::Gvn<'r> {
    match res.subresource(subresource).filter(|s| !s.version.is_empty()) {
        Some(s) => (&s.group, &s.version, &s.kind),
        None => (&res.group, &res.version, res.subresource(subresource).map_or(&res.kind, |s| &s.kind)),
    }
}

/// What a webhook that could not be asked means.
fn unasked(hook: &Hook, why: String) -> Result<(), ApiError> {
    if hook.fail {
        return Err(ApiError::internal(why));
    }
    tracing::warn!(webhook = hook.name, reason = why, "a webhook cannot be asked; its configuration says to go on without it");
    Ok(())
}

/// Lets webhooks change the object, one after the other.
pub async fn mutate(a: &Attributes<'_>, mut doc: Option<&mut Doc>, old: Option<&Doc>, rounds: &mut Rounds) -> Result<(), ApiError> {
    let hooks = a.ctx.server.mutating.hooks(&a.ctx.server.objects);
    if hooks.is_empty() || exempt(a) {
        return Ok(());
    }
    if rounds.second && doc.as_deref().zip(rounds.left.as_ref()).is_some_and(|(now, left)| !now.root().semantic_eq(left.root())) {
        // Plugins changed what the webhooks left.
        rounds.ask_again();
    }
    for hook in hooks.iter() {
        if rounds.second && !rounds.again.contains(&hook.id) {
            continue;
        }
        let Some(call) = select(a, hook, doc.as_deref(), old).await? else { continue };
        let changed = match ask_to_change(a, &call, doc.as_deref(), old).await {
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
                unasked(hook, why)?;
                false
            }
        };
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
async fn ask_to_change(a: &Attributes<'_>, call: &Call<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<Option<Doc>, Refused> {
    let (name, namespace) = (name_of(a, doc, old), namespace_of(a, doc, old));
    let seen = match doc {
        Some(d) => Some(view(a, call, d).await.map_err(Refused::By)?),
        None => None,
    };
    let before = match old {
        Some(d) => Some(view(a, call, d).await.map_err(Refused::By)?),
        None => None,
    };
    let answer = ask(a, call, name, namespace, seen.as_deref(), before.as_deref(), true).await?;
    let empty = serde_json::from_slice::<Value>(&answer.patch).is_ok_and(|p| p.as_array().is_some_and(Vec::is_empty));
    if answer.patch.is_empty() || empty {
        return Ok(None);
    }
    let (Some(doc), Some(seen)) = (doc, seen) else {
        let why =
            format!("admission webhook {:?} attempted to modify the object, which is not supported for this operation", call.hook.name);
        return Err(Refused::By(ApiError::internal(why)));
    };
    let patched = patch::json_patch(&seen, &answer.patch, false).map_err(|e| Refused::By(ApiError::internal(e)))?;
    let mut new = adopt(a, call, doc, patched.doc).await.map_err(Refused::By)?;
    // Managed fields that nobody can read any more would be lost with the next write.
    if k8s_schema::apply::managers_of(&new).is_err() {
        kinds::restore(&mut new, doc, "metadata.managedFields");
    }
    Ok(Some(new))
}

/// Lets webhooks judge the request, all at once. Of several refusals the first webhook's counts.
pub async fn validate(a: &Attributes<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let hooks = a.ctx.server.validating.hooks(&a.ctx.server.objects);
    if hooks.is_empty() || exempt(a) {
        return Ok(());
    }
    let mut calls = Vec::new();
    for hook in hooks.iter() {
        calls.extend(select(a, hook, doc, old).await?);
    }
    let (name, namespace) = (name_of(a, doc, old), namespace_of(a, doc, old));
    let judged = calls.iter().map(|call| async move {
        let seen = match doc {
            Some(d) => Some(view(a, call, d).await?),
            None => None,
        };
        let before = match old {
            Some(d) => Some(view(a, call, d).await?),
            None => None,
        };
        match ask(a, call, name, namespace, seen.as_deref(), before.as_deref(), false).await {
            Ok(_) => Ok(()),
            Err(Refused::By(e)) => Err(e),
            Err(Refused::Failed(why)) => unasked(call.hook, why),
        }
    });
    join_all(judged).await.into_iter().collect()
}
