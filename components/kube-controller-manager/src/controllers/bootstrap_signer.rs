//! Signs `kube-public/cluster-info` with every bootstrap token, so that a joining node can check what it reads there before it trusts anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use k8s_client::{Action, Change, Client, Error, Informer, ObjectKey, WorkQueue, resources::CONFIG_MAPS};
use serde_json::json;

use super::token_cleaner::{TYPE, expires_in};
use crate::api::{ConfigMap, Secret};
use crate::context::Context;
use crate::reconcile::{Reconcile, work};

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
const SIGNATURE: &str = "jws-kubeconfig-";

/// ID and secret of a token that may sign now.
fn signer(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let text = |key: &str| {
        let bytes = STANDARD.decode(secret.data.get(key)?).ok()?;
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    let (id, value) = (text("token-id")?, text("token-secret")?);
    let named = secret.metadata.name.strip_prefix("bootstrap-token-") == Some(id.as_str());
    let live = secret.kind == TYPE && !secret.metadata.is_deleting() && expires_in(secret, now).is_none_or(|left| !left.is_zero());
    (named && live && text("usage-bootstrap-signing")? == "true").then_some((id, value))
}

/// A JSON Web Signature without its content, which is beside it already.
fn sign(content: &str, id: &str, secret: &str) -> String {
    let head = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, format!("{head}.{}", URL_SAFE_NO_PAD.encode(content)).as_bytes());
    format!("{head}..{}", URL_SAFE_NO_PAD.encode(signature))
}

/// What the map should say, or nothing when it says so or has nothing to sign.
fn plan(map: &ConfigMap, secrets: &[Arc<Secret>], now: Timestamp) -> Option<BTreeMap<String, String>> {
    let content = map.data.get("kubeconfig")?;
    let mut data = map.data.clone();
    data.retain(|key, _| !key.starts_with(SIGNATURE));
    for (id, secret) in secrets.iter().filter_map(|secret| signer(secret, now)) {
        data.insert(format!("{SIGNATURE}{id}"), sign(content, &id, &secret));
    }
    (data != map.data).then_some(data)
}

#[derive(Clone)]
struct Controller {
    client: Client,
    maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("bootstrap-signer"),
        maps: context.informers.narrow::<ConfigMap>(NAMESPACE, &format!("metadata.name={NAME}")),
        secrets: context.informers.narrow::<Secret>("kube-system", &format!("type={TYPE}")),
    };
    let queue = WorkQueue::new("bootstrap-signer");
    let sink = queue.clone();
    controller.maps.add_handler(move |_: Change<'_, ConfigMap>| sink.add(ObjectKey::new(NAMESPACE, NAME)));
    let sink = queue.clone();
    controller.secrets.add_handler(move |_: Change<'_, Secret>| sink.add(ObjectKey::new(NAMESPACE, NAME)));
    controller.maps.wait_synced().await;
    controller.secrets.wait_synced().await;
    work(&context, queue, 1, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(map) = self.maps.get_key(&key) else { return Ok(Action::Done) };
        let (secrets, now) = (self.secrets.list(), Timestamp::now());
        if let Some(data) = plan(&map, &secrets, now) {
            let set = |object: &mut serde_json::Value| {
                object["metadata"]["resourceVersion"] = json!(map.metadata.resource_version);
                object["data"] = json!(data);
            };
            match self.client.update(&CONFIG_MAPS, (NAMESPACE, NAME), &map.metadata.uid, "", set).await {
                Err(error) if error.is_conflict() => return Ok(Action::Retry),
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        // The next token to expire takes its signature along.
        let next = secrets.iter().filter_map(|secret| expires_in(secret, now)).filter(|left| !left.is_zero()).min();
        Ok(next.map_or(Action::Done, Action::After))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn token(id: &str, change: &[(&str, &str)]) -> Arc<Secret> {
        let mut fields = BTreeMap::from([("token-id", id), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-signing", "true")]);
        fields.extend(change.iter().copied());
        let mut secret = Secret { kind: TYPE.into(), ..Secret::default() };
        secret.metadata.name = "bootstrap-token-abcdef".into();
        secret.data = fields.into_iter().map(|(key, value)| (key.to_string(), STANDARD.encode(value))).collect();
        Arc::new(secret)
    }

    fn signed(map: &ConfigMap, secrets: &[Arc<Secret>]) -> Option<BTreeMap<String, String>> {
        plan(map, secrets, NOW.parse().unwrap())
    }

    #[test]
    fn live_signing_tokens_sign_and_others_do_not() {
        let map = ConfigMap { data: BTreeMap::from([("kubeconfig".to_string(), "content".to_string())]), ..ConfigMap::default() };
        for (change, signs) in [
            (&[][..], true),
            (&[("expiration", "2026-01-01T01:00:00Z")], true),
            (&[("expiration", "2025-12-31T23:00:00Z")], false),
            (&[("usage-bootstrap-signing", "false")], false),
            (&[("token-id", "ghijkl")], false),
            (&[("token-secret", "")], false),
        ] {
            assert_eq!(signed(&map, &[token("abcdef", change)]).is_some(), signs, "{change:?}");
        }
        assert_eq!(signed(&ConfigMap::default(), &[token("abcdef", &[])]), None, "nothing to sign");
    }

    #[test]
    fn signatures_are_made_once_and_go_with_their_token() {
        let mut map = ConfigMap { data: BTreeMap::from([("kubeconfig".to_string(), "content".to_string())]), ..ConfigMap::default() };
        map.data = signed(&map, &[token("abcdef", &[])]).unwrap();
        // Computed with another implementation of HMAC-SHA256.
        assert_eq!(map.data["jws-kubeconfig-abcdef"], EXPECTED);
        assert_eq!(signed(&map, &[token("abcdef", &[])]), None);
        assert_eq!(signed(&map, &[]).unwrap().len(), 1);
    }

    const EXPECTED: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..psz1NayrXM3IaFzKZGsb5n_mBl7MjtlsZ1xE8MRmF_4";
}
