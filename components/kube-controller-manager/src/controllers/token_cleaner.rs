//! Deletes bootstrap tokens that have expired.

use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use k8s_client::{Action, Change, DeleteOptions, Error, ObjectKey, Request, WorkQueue, resources::SECRETS, run_workers};

use crate::api::Secret;
use crate::context::Context;

/// The type of a bootstrap token's secret.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";

/// Time until the token expires; zero when it has. Nothing for other secrets and for tokens that last. One whose expiry cannot be read counts
/// as expired, as it does for the API server.
pub fn expires_in(secret: &Secret, now: Timestamp) -> Option<Duration> {
    if secret.kind != TYPE {
        return None;
    }
    let encoded = secret.data.get("expiration").filter(|text| !text.is_empty())?;
    let text = base64::engine::general_purpose::STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let at = text.and_then(|text| text.trim().parse::<Timestamp>().ok());
    Some(at.and_then(|at| Duration::try_from(at.duration_since(now)).ok()).unwrap_or(Duration::ZERO))
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("token-cleaner");
    let secrets = context.informers.narrow::<Secret>("kube-system", &format!("type={TYPE}"));
    let queue = WorkQueue::new("token-cleaner");
    let sink = queue.clone();
    secrets.add_handler(move |change: Change<'_, Secret>| sink.add(change.object().metadata.key()));
    secrets.wait_synced().await;
    run_workers(queue, 1, context.stop.clone(), move |key: ObjectKey| {
        let (client, secrets) = (client.clone(), secrets.clone());
        async move {
            let Some(secret) = secrets.get_key(&key) else { return Ok(Action::Done) };
            match expires_in(&secret, Timestamp::now()) {
                None => Ok(Action::Done),
                Some(wait) if !wait.is_zero() => Ok(Action::After(wait)),
                Some(_) => {
                    let options = DeleteOptions::uid(&secret.metadata.uid);
                    crate::ownership::ignore_missing(&client, &Request::delete(&SECRETS, &key.namespace, &key.name, &options)).await?;
                    tracing::info!(secret = key.name, "expired bootstrap token removed");
                    Ok::<_, Error>(Action::Done)
                }
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_expire_at_their_time() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = |kind: &str, at: Option<&str>| Secret {
            kind: kind.into(),
            data: at.map(|at| ("expiration".to_string(), base64::engine::general_purpose::STANDARD.encode(at))).into_iter().collect(),
            ..Default::default()
        };
        for (secret, want) in [
            (secret("Opaque", Some("2020-01-01T00:00:00Z")), None),
            (secret(TYPE, None), None),
            (secret(TYPE, Some("2026-01-01T00:01:00Z")), Some(60)),
            (secret(TYPE, Some("2026-01-01T02:00:00+02:00")), Some(0)),
            (secret(TYPE, Some("2025-01-01T00:00:00Z")), Some(0)),
            (secret(TYPE, Some("tomorrow")), Some(0)),
        ] {
            assert_eq!(expires_in(&secret, now).map(|d| d.as_secs()), want, "{secret:?}");
        }
    }
}
