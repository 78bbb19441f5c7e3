//! Service-account tokens: issued for an audience and a time, bound to the account and to a pod, a node or a secret, and good only
//! while those exist. And the older kind that stands in a Secret: without an end, good as long as the Secret holds it.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Rejected, User,
    jwt::{self, SigningKey, VerifyingKey},
};
use crate::objects::Objects;

/// Keys and names of the token issuer.
pub struct TokenIssuer {
    /// The first is the one that tokens are made with.
    pub issuers: Vec<String>,
    pub api_audiences: Vec<String>,
    pub signing: Option<SigningKey>,
    pub keys: Arc<Vec<VerifyingKey>>,
    /// The longest life a token may ask for, in seconds.
    pub max_lifetime: Option<i64>,
    /// Tokens whose end pods did not choose are good for longer than they are told.
    pub extends: bool,
    /// Whose tokens of Secrets were used.
    pub used: Used,
}

/// Secrets, by namespace and name, whose tokens were used since somebody asked. No more than [`MAX_USED`]: who is left out is noted when it
/// is used again.
#[derive(Debug, Default)]
pub struct Used(Mutex<BTreeSet<String>>);

const MAX_USED: usize = 10_000;

impl Used {
    pub fn note(&self, key: &str) {
        let mut all = self.0.lock();
        if all.len() < MAX_USED && !all.contains(key) {
            all.insert(key.to_owned());
        }
    }

    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// What a token is bound to beside its account.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// `pod`, `node` or `secret`.
    pub kind: &'static str,
    pub name: String,
    pub uid: String,
    /// The node of a bound pod.
    pub node: Option<(String, String)>,
}

impl TokenIssuer {
    /// `lifetime` in seconds. Gives the token and when it ends.
    pub fn issue(
        &self,
        namespace: &str,
        account: (&str, &str),
        audiences: &[String],
        lifetime: Lifetime,
        bound: Option<&Bound>,
        now: Timestamp,
    ) -> Option<(String, Timestamp)> {
        let iat = now.as_second();
        let Lifetime { told, real } = lifetime;
        let mut k8s = json!({"namespace": namespace, "serviceaccount": {"name": account.0, "uid": account.1}});
        if let Some(b) = bound {
            k8s[b.kind] = json!({"name": b.name, "uid": b.uid});
            if let Some((name, uid)) = &b.node {
                k8s["node"] = if uid.is_empty() { json!({"name": name}) } else { json!({"name": name, "uid": uid}) };
            }
        }
        if real != told {
            k8s["warnafter"] = (iat + told).into();
        }
        let claims = json!({
            "aud": audiences,
            "exp": iat + real,
            "iat": iat,
            "iss": self.issuers.first()?,
            "jti": Uuid::new_v4().to_string(),
            "kubernetes.io": k8s,
            "nbf": iat,
            "sub": format!("system:serviceaccount:{namespace}:{}", account.0),
        });
        let token = self.signing.as_ref()?.sign(&claims).ok()?;
        Some((token, Timestamp::from_second(iat + told).ok()?))
    }
}

/// How many seconds a token is said to be good, and how many it really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    pub told: i64,
    pub real: i64,
}

/// What kubelets ask for where a pod did not choose: such tokens may be in hands that read them once.
const UNCHOSEN: i64 = 3607;
const YEAR: i64 = 365 * 24 * 3600;

impl Lifetime {
    /// `unchosen`: the token is a pod's, for this server, and may be good for longer than it is said to be, so that programs that never
    /// read it again go on.
    pub fn of(seconds: i64, unchosen: bool, max: Option<i64>) -> Self {
        let real = if unchosen && seconds == UNCHOSEN { max.map_or(YEAR, |m| m.min(YEAR)).max(seconds) } else { seconds };
        Self { told: seconds, real }
    }
}

fn strings(v: &Value) -> Vec<String> {
    match v {
        Value::String(s) => vec![s.clone()],
        Value::Array(a) => a.iter().filter_map(|s| s.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

/// Who made the tokens that stand in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Set by the controller on Secrets whose tokens nobody used for a long time.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// A token of a Secret of type `kubernetes.io/service-account-token`.
fn legacy(
    issuer: &TokenIssuer,
    objects: &Objects,
    token: &str,
    claims: &Value,
    audiences: &[String],
) -> Result<(User, Vec<String>), &'static str> {
    let claim = |k: &str| claims[format!("kubernetes.io/serviceaccount/{k}")].as_str().filter(|v| !v.is_empty());
    let ns = claim("namespace").ok_or("namespace claim is missing")?;
    let secret_name = claim("secret.name").ok_or("secretName claim is missing")?;
    let name = claim("service-account.name").ok_or("serviceAccountName claim is missing")?;
    let uid = claim("service-account.uid").ok_or("serviceAccountUID claim is missing")?;
    if claims["sub"].as_str() != Some(format!("system:serviceaccount:{ns}:{name}").as_str()) {
        return Err("the subject is not the account");
    }
    // Such a token says nothing of audiences: it is for this server alone.
    let matching: Vec<String> = audiences.iter().filter(|a| issuer.api_audiences.contains(a)).cloned().collect();
    if matching.is_empty() {
        return Err("another audience");
    }
    let key = format!("{ns}/{secret_name}");
    let secret = objects.get("secrets", &key).ok_or("service account token has been invalidated")?;
    if secret.at("metadata.deletionTimestamp").exists() {
        return Err("token is deleted");
    }
    if secret.at("data").get("token").bytes() != token.as_bytes() {
        return Err("token does not match server's copy");
    }
    // A use of a token that is marked is a use too: people see whom they would hurt.
    issuer.used.note(&key);
    if secret.meta().label(INVALID_SINCE).is_some() {
        return Err("the token in the secret is marked invalid");
    }
    let account = objects.get("serviceaccounts", &format!("{ns}/{name}")).ok_or("the account is gone")?;
    if account.at("metadata.deletionTimestamp").exists() || account.at("metadata.uid").str() != uid {
        return Err("the account is gone");
    }
    let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{ns}")];
    Ok((User { name: format!("system:serviceaccount:{ns}:{name}"), uid: uid.to_owned(), groups, extra: Vec::new() }, matching))
}

pub(super) fn authenticate(
    issuer: &TokenIssuer,
    objects: &Objects,
    token: &str,
    audiences: &[String],
) -> Result<(User, Vec<String>), Rejected> {
    let reject = |why: &str| Rejected(format!("service account token: {why}"));
    let claims = jwt::verify(token, &issuer.keys).map_err(reject)?;
    if claims["iss"] == LEGACY_ISSUER {
        return legacy(issuer, objects, token, &claims, audiences).map_err(reject);
    }
    if !claims["iss"].as_str().is_some_and(|i| issuer.issuers.iter().any(|k| k == i)) {
        return Err(reject("another issuer"));
    }
    let now = Timestamp::now().as_second();
    if claims["exp"].as_i64().is_none_or(|e| e <= now) {
        return Err(reject("expired"));
    }
    // A little leeway, as clocks of API servers differ.
    if claims["nbf"].as_i64().is_some_and(|n| n > now + 60) {
        return Err(reject("not valid yet"));
    }
    let aud = strings(&claims["aud"]);
    let matching: Vec<String> = audiences.iter().filter(|a| aud.contains(a)).cloned().collect();
    if matching.is_empty() {
        return Err(reject("another audience"));
    }
    let k8s = &claims["kubernetes.io"];
    let s = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let (ns, name, uid) = (s(&k8s["namespace"]), s(&k8s["serviceaccount"]["name"]), s(&k8s["serviceaccount"]["uid"]));
    if claims["sub"].as_str() != Some(format!("system:serviceaccount:{ns}:{name}").as_str()) {
        return Err(reject("the subject is not the account"));
    }
    // Deleted objects stay good until they are gone, but for those whose grace is over.
    let alive = |prefix: &str, key: &str, uid: &str| -> bool {
        objects.get(prefix, key).is_some_and(|d| {
            let over = d.at("metadata.deletionTimestamp").time_seconds().is_some_and(|t| t + 60 < now);
            d.at("metadata.uid").str() == uid && !over
        })
    };
    if !alive("serviceaccounts", &format!("{ns}/{name}"), &uid) {
        return Err(reject("the account is gone"));
    }
    let mut extra = Vec::new();
    let mut note = |k: &str, v: String| extra.push((format!("authentication.kubernetes.io/{k}"), vec![v]));
    let jti = s(&claims["jti"]);
    if !jti.is_empty() {
        note("credential-id", format!("JTI={jti}"));
    }
    if k8s["pod"].is_object() {
        let (pod, pod_uid) = (s(&k8s["pod"]["name"]), s(&k8s["pod"]["uid"]));
        if !alive("pods", &format!("{ns}/{pod}"), &pod_uid) {
            return Err(reject("the pod is gone"));
        }
        note("pod-name", pod);
        note("pod-uid", pod_uid);
    }
    if k8s["secret"].is_object() && !alive("secrets", &format!("{ns}/{}", s(&k8s["secret"]["name"])), &s(&k8s["secret"]["uid"])) {
        return Err(reject("the secret is gone"));
    }
    if k8s["node"].is_object() {
        let (node, node_uid) = (s(&k8s["node"]["name"]), s(&k8s["node"]["uid"]));
        if !k8s["pod"].is_object() && !alive("minions", &node, &node_uid) {
            return Err(reject("the node is gone"));
        }
        note("node-name", node);
        if !node_uid.is_empty() {
            note("node-uid", node_uid);
        }
    }
    let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{ns}")];
    Ok((User { name: format!("system:serviceaccount:{ns}:{name}"), uid, groups, extra }, matching))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_nobody_chose_the_end_of_are_good_for_longer() {
        let of = |seconds, unchosen, max| {
            let l = Lifetime::of(seconds, unchosen, max);
            (l.told, l.real)
        };
        assert_eq!(of(3607, true, None), (3607, YEAR));
        assert_eq!(of(3607, true, Some(86_400)), (3607, 86_400));
        assert_eq!(of(3607, true, Some(600)), (3607, 3607));
        assert_eq!((of(3607, false, None), of(7200, true, None)), ((3607, 3607), (7200, 7200)));
    }
}
