//! Tokens in Secrets that were once made for every service account. One that nobody used for a long time is marked, which makes it good for
//! nothing, and deleted when it was marked for as long and nobody took the mark away.
//!
//! Only what was made by itself is touched: the account must name the Secret, and no pod of its namespace may. When a token was used last
//! is what API servers write on the Secret; before they did that for long enough, nothing is touched.

use std::time::Duration;

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use k8s_client::{
    Client, DeleteOptions, Error, Informer, List, ListOptions, Patch, Request,
    resources::{CONFIG_MAPS, PODS, SECRETS},
};
use serde_json::{Value, json};

use crate::api::{ConfigMap, Secret, ServiceAccount};
use crate::context::Context;
use crate::ownership::ignore_missing;

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(300);

/// What to do about one Secret.
#[derive(Debug, PartialEq)]
enum Plan {
    Keep,
    Mark,
    Delete,
}

fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// Whether tokens were followed for long enough to know that one was not used. The day on which it began does not count.
fn followed_enough(since: Date, period: Duration, now: Timestamp) -> bool {
    let first = since.tomorrow().ok().and_then(|date| date.to_zoned(TimeZone::UTC).ok());
    let first = first.and_then(|at| at.timestamp().checked_add(period).ok());
    first.is_some_and(|enough| now >= enough)
}

/// What one Secret's age and labels say; `made_by_itself` and `mounted` are asked only when they matter.
fn plan(secret: &Secret, period: Duration, now: Timestamp, made_by_itself: impl FnOnce() -> bool) -> Plan {
    let Ok(line) = now.checked_sub(period) else { return Plan::Keep };
    let meta = &secret.metadata;
    let young = meta.creation_timestamp.as_ref().is_none_or(|created| created.0 >= line);
    if secret.kind != TYPE || meta.is_deleting() || young {
        return Plan::Keep;
    }
    match meta.labels.get(LAST_USED).map(|text| text.parse::<Date>()) {
        // A date that cannot be read says nothing.
        Some(Err(_)) => return Plan::Keep,
        Some(Ok(used)) if used >= day(line) => return Plan::Keep,
        Some(Ok(_)) | None => {}
    }
    if !made_by_itself() {
        return Plan::Keep;
    }
    match meta.labels.get(INVALID_SINCE).and_then(|text| text.parse::<Date>().ok()) {
        None => Plan::Mark,
        Some(since) if since >= day(line) => Plan::Keep,
        Some(_) => Plan::Delete,
    }
}

/// Whether the account that a Secret is for names it.
fn made_for(secret: &Secret, account: Option<&ServiceAccount>) -> bool {
    let uid = secret.metadata.annotations.get(UID).map_or("", String::as_str);
    account.is_some_and(|account| {
        (uid.is_empty() || uid == account.metadata.uid) && account.secrets.iter().any(|named| named.name == secret.metadata.name)
    })
}

/// Whether anything in a pod names a Secret. Every reference is an object, or a list of objects, under a field whose name speaks of a secret.
fn names_secret(pod: &Value, name: &str) -> bool {
    let named = |v: &Value| v["name"] == name || v["secretName"] == name;
    match pod {
        Value::Object(fields) => fields.iter().any(|(field, value)| {
            let speaks = field.to_ascii_lowercase().contains("secret");
            let here = speaks && (named(value) || value.as_array().is_some_and(|all| all.iter().any(named)));
            // A file on another machine is named without an object of its own.
            here || (field == "secretName" && value == name) || names_secret(value, name)
        }),
        Value::Array(all) => all.iter().any(|value| names_secret(value, name)),
        _ => false,
    }
}

struct Controller {
    /// Reads what informers of the process may read.
    root: Client,
    client: Client,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    period: Duration,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        root: context.root.clone(),
        client: context.client("legacy-service-account-token-cleaner"),
        secrets: context.informers.narrow::<Secret>("", &format!("type={TYPE}")),
        accounts: context.informers.service_accounts(),
        period: context.options.legacy_service_account_token_clean_up_period,
    };
    controller.secrets.wait_synced().await;
    controller.accounts.wait_synced().await;
    loop {
        let wait = match controller.round(Timestamp::now()).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "unused tokens of service accounts are not cleaned up now");
                AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

impl Controller {
    async fn round(&self, now: Timestamp) -> Result<(), Error> {
        let tracking: ConfigMap = self.client.call(&Request::get(&CONFIG_MAPS, "kube-system", TRACKING)).await?;
        let since = tracking.data.get("since").and_then(|text| text.parse::<Date>().ok());
        if !since.is_some_and(|since| followed_enough(since, self.period, now)) {
            return Ok(());
        }
        for secret in self.secrets.list() {
            let meta = &secret.metadata;
            let account = meta.annotations.get(NAME).and_then(|name| self.accounts.get(&meta.namespace, name));
            let plan = plan(&secret, self.period, now, || made_for(&secret, account.as_deref()));
            if plan == Plan::Keep || self.is_mounted(&secret).await? {
                continue;
            }
            let (namespace, name) = (meta.namespace.as_str(), meta.name.as_str());
            if plan == Plan::Mark {
                tracing::info!(namespace, secret = name, "nobody used this token for long: it is marked and good for nothing");
                let mark = json!({"metadata": {"uid": meta.uid, "labels": {INVALID_SINCE: day(now).to_string()}}});
                match self.client.execute(&Request::patch(&SECRETS, namespace, name, &Patch::merge(&mark))).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                    _ => {}
                }
            } else {
                tracing::info!(namespace, secret = name, "a token that was marked long ago is deleted");
                let seen = DeleteOptions { resource_version: Some(meta.resource_version.clone()), ..DeleteOptions::uid(&meta.uid) };
                match ignore_missing(&self.client, &Request::delete(&SECRETS, namespace, name, &seen)).await {
                    Err(error) if !error.is_conflict() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Few Secrets are old and unused, so pods are read when one is.
    async fn is_mounted(&self, secret: &Secret) -> Result<bool, Error> {
        let pods: List<Value> = self.root.list(&PODS, &secret.metadata.namespace, &ListOptions::default()).await?;
        Ok(pods.items.iter().any(|pod| names_secret(&pod["spec"], &secret.metadata.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(8760 * 3600);

    #[test]
    fn an_unused_token_is_marked_and_a_year_later_deleted() {
        let now: Timestamp = "2026-06-15T12:00:00Z".parse().unwrap();
        let secret = |kind: &str, created: &str, labels: Value| -> Secret {
            serde_json::from_value(
                json!({"metadata": {"name": "s", "namespace": "d", "creationTimestamp": created, "labels": labels}, "type": kind}),
            )
            .unwrap()
        };
        let old = "2024-01-01T00:00:00Z";
        for (object, made, want) in [
            (secret(TYPE, old, json!({})), true, Plan::Mark),
            (secret(TYPE, old, json!({})), false, Plan::Keep),
            (secret("Opaque", old, json!({})), true, Plan::Keep),
            (secret(TYPE, "2025-12-01T00:00:00Z", json!({})), true, Plan::Keep),
            (secret(TYPE, old, json!({LAST_USED: "2025-06-14"})), true, Plan::Mark),
            (secret(TYPE, old, json!({LAST_USED: "2025-06-15"})), true, Plan::Keep),
            (secret(TYPE, old, json!({LAST_USED: "yesterday"})), true, Plan::Keep),
            (secret(TYPE, old, json!({INVALID_SINCE: "2026-01-01"})), true, Plan::Keep),
            (secret(TYPE, old, json!({INVALID_SINCE: "2025-01-01"})), true, Plan::Delete),
            (secret(TYPE, old, json!({INVALID_SINCE: "2025-01-01", LAST_USED: "2026-01-01"})), true, Plan::Keep),
            (secret(TYPE, old, json!({INVALID_SINCE: "once"})), true, Plan::Mark),
        ] {
            assert_eq!(plan(&object, YEAR, now, || made), want, "{object:?}");
        }
    }

    #[test]
    fn nothing_is_known_before_tokens_were_followed_for_the_whole_period() {
        let now = |text: &str| text.parse::<Timestamp>().unwrap();
        let since: Date = "2025-06-14".parse().unwrap();
        assert!(followed_enough(since, YEAR, now("2026-06-15T00:00:00Z")));
        assert!(!followed_enough(since, YEAR, now("2026-06-14T23:59:59Z")));
    }

    #[test]
    fn only_a_secret_that_its_account_names_was_made_by_itself() {
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "s", "annotations": {NAME: "a", UID: "u"}}, "type": TYPE})).unwrap();
        let account = |uid: &str, names: Value| -> ServiceAccount {
            serde_json::from_value(json!({"metadata": {"name": "a", "uid": uid}, "secrets": names})).unwrap()
        };
        assert!(made_for(&secret, Some(&account("u", json!([{"name": "s"}])))));
        assert!(!made_for(&secret, Some(&account("another", json!([{"name": "s"}])))));
        assert!(!made_for(&secret, Some(&account("u", json!([{"name": "t"}])))));
        assert!(!made_for(&secret, None));
    }

    #[test]
    fn every_way_to_name_a_secret_is_known() {
        for spec in [
            json!({"imagePullSecrets": [{"name": "s"}]}),
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}]}),
            json!({"volumes": [{"name": "v", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}}]}),
            json!({"volumes": [{"name": "v", "azureFile": {"secretName": "s", "shareName": "x"}}]}),
            json!({"containers": [{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}),
            json!({"initContainers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}]}),
        ] {
            assert!(names_secret(&spec, "s"), "{spec}");
            assert!(!names_secret(&spec, "other"), "{spec}");
        }
        assert!(!names_secret(
            &json!({"containers": [{"name": "s", "image": "s"}], "volumes": [{"name": "s", "configMap": {"name": "s"}}]}),
            "s"
        ));
    }
}
