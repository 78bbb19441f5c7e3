//! Asking a webhook whether someone may do something, by a SubjectAccessReview; its answers are remembered for a while.

use std::{
    collections::HashMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

use cel::{
    Env, Program, Type, Value as Cel, Variables,
    schema::{Decl, ListKind},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Attributes, Decision};
use crate::{authn::User, webhook::Configured};

/// Answers remembered, at most; questions longer than this are asked every time.
const MAX: usize = 4096;
const MAX_QUESTION: usize = 10_000;
/// One condition may cost this much.
const LIMIT: u64 = 1_000_000;

pub struct Settings {
    pub version: String,
    pub timeout: Duration,
    pub allowed_ttl: Duration,
    pub refused_ttl: Duration,
    /// Without an answer the request is refused; else others are asked.
    pub deny_on_failure: bool,
}

pub struct WebhookAuthorizer {
    hook: Configured,
    settings: Settings,
    conditions: Vec<Program>,
    known: Mutex<HashMap<[u8; 32], (Instant, Decision)>>,
}

/// The review's spec, as conditions see it.
fn spec_decl() -> &'static Decl {
    static DECL: LazyLock<Decl> = LazyLock::new(|| {
        let text = || Decl::simple(Type::String, 2, 3 << 20);
        let list = || Decl::list(text(), None, ListKind::Atomic);
        let object =
            |name: &str, fields: Vec<(&str, Decl)>| Decl::plain_object(name, fields.into_iter().map(|(n, d)| (n.to_owned(), d, false)));
        let resource = ["namespace", "verb", "group", "version", "resource", "subresource", "name"];
        let resource = object("kubernetes.ResourceAttributes", resource.into_iter().map(|n| (n, text())).collect());
        let other = object("kubernetes.NonResourceAttributes", vec![("path", text()), ("verb", text())]);
        object(
            "kubernetes.SubjectAccessReviewSpec",
            vec![
                ("user", text()),
                ("uid", text()),
                ("groups", list()),
                ("extra", Decl::map(list(), None)),
                ("resourceAttributes", resource),
                ("nonResourceAttributes", other),
            ],
        )
    });
    &DECL
}

/// Compiles a condition; it must say yes or no.
pub fn condition(source: &str) -> Result<Program, String> {
    let env = Env::new([("request", spec_decl().ty.clone())]);
    let checked = cel::compile(source, &env).map_err(|e| format!("compilation failed: {e}"))?;
    if !matches!(checked.result(), Type::Bool | Type::Dyn) {
        return Err("must evaluate to bool".into());
    }
    Ok(Program::new(checked))
}

fn spec(user: &User, a: &Attributes) -> Value {
    let extra: serde_json::Map<String, Value> = user.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let mut s = json!({"user": user.name, "uid": user.uid, "groups": user.groups, "extra": extra});
    if a.is_resource {
        s["resourceAttributes"] = json!({"namespace": a.namespace, "verb": a.verb, "group": a.group, "version": a.version,
            "resource": a.resource, "subresource": a.subresource, "name": a.name});
    } else {
        s["nonResourceAttributes"] = json!({"path": a.path, "verb": a.verb});
    }
    s
}

/// Whether all conditions hold. One that does not hold counts for more than one that fails.
fn all_hold(conditions: &[Program], spec: &Value) -> Result<bool, String> {
    let variables: Variables<'_> = [("request", Cel::json(spec, Some(spec_decl())))].into_iter().collect();
    let mut failed = None;
    for c in conditions {
        match c.run(&variables, LIMIT).value {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => return Ok(false),
            Err(e) => failed = failed.or(Some(e.to_string())),
        }
    }
    failed.map_or(Ok(true), Err)
}

fn decision(status: &Value) -> Decision {
    let reason = status["reason"].as_str().unwrap_or("").to_owned();
    match (status["allowed"] == true, status["denied"] == true) {
        (true, false) => Decision::Allow(reason),
        (false, true) => Decision::Deny(reason),
        (false, false) => Decision::NoOpinion(reason),
        // Both at once is no answer.
        (true, true) => Decision::Deny("webhook subject access review returned both allow and deny response".into()),
    }
}

impl WebhookAuthorizer {
    pub fn new(hook: Configured, settings: Settings, conditions: Vec<Program>) -> Self {
        Self { hook, settings, conditions, known: Mutex::default() }
    }

    fn failed(&self, why: &str) -> Decision {
        tracing::warn!(why, "the authorization webhook gave no answer");
        if self.settings.deny_on_failure { Decision::Deny(String::new()) } else { Decision::NoOpinion(String::new()) }
    }

    pub async fn decide(&self, user: &User, a: &Attributes) -> Decision {
        let spec = spec(user, a);
        match all_hold(&self.conditions, &spec) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion(String::new()),
            Err(why) => return self.failed(&why),
        }
        let text = spec.to_string();
        let key: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        if let Some((until, d)) = self.known.lock().get(&key)
            && Instant::now() < *until
        {
            return d.clone();
        }
        let review = json!({"apiVersion": format!("authorization.k8s.io/{}", self.settings.version), "kind": "SubjectAccessReview",
            "metadata": {}, "spec": spec});
        let answer = match self.hook.post(&review, self.settings.timeout).await {
            Ok(a) if a["status"].is_object() => a,
            Ok(_) => return self.failed("it has no status"),
            Err(e) => return self.failed(&e),
        };
        let d = decision(&answer["status"]);
        let ttl = if d.allowed() { self.settings.allowed_ttl } else { self.settings.refused_ttl };
        if text.len() < MAX_QUESTION && !ttl.is_zero() {
            let mut known = self.known.lock();
            if known.len() >= MAX {
                known.retain(|_, (until, _)| Instant::now() < *until);
            }
            if known.len() < MAX {
                known.insert(key, (Instant::now() + ttl, d.clone()));
            }
        }
        d
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_see_the_review() {
        let user = User { name: "jane".into(), groups: vec!["dev".into()], ..User::default() };
        let get = Attributes {
            verb: "get".into(),
            is_resource: true,
            namespace: "kube-system".into(),
            resource: "pods".into(),
            ..Attributes::default()
        };
        let path = Attributes { verb: "get".into(), path: "/healthz".into(), ..Attributes::default() };
        let holds = |source: &str, a: &Attributes| all_hold(&[condition(source).unwrap()], &spec(&user, a));
        let in_system = "has(request.resourceAttributes) && request.resourceAttributes.namespace == 'kube-system'";
        assert_eq!((holds(in_system, &get), holds(in_system, &path)), (Ok(true), Ok(false)));
        assert_eq!(holds("!('system:masters' in request.groups)", &path), Ok(true));
        assert!(holds("request.resourceAttributes.namespace == 'x'", &path).is_err());
        // One that is false decides, whatever fails beside it.
        let both = ["request.resourceAttributes.namespace == 'x'", "request.user == 'joe'"].map(|s| condition(s).unwrap());
        assert_eq!(all_hold(&both, &spec(&user, &path)), Ok(false));
        for bad in ["request.nonsense", "1", "request.user"] {
            assert!(condition(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_read_as_upstream_reads_them() {
        assert_eq!(decision(&json!({"allowed": true})), Decision::Allow(String::new()));
        assert_eq!(decision(&json!({"allowed": false, "reason": "x"})), Decision::NoOpinion("x".into()));
        assert_eq!(decision(&json!({"allowed": false, "denied": true})), Decision::Deny(String::new()));
        assert!(!decision(&json!({"allowed": true, "denied": true})).allowed());
        assert!(!decision(&json!({})).allowed());
    }
}
