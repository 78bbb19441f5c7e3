//! When the tokens that stand in Secrets were used last: a label with the day, for the controller that cleans up those that nobody uses.
//!
//! A request waits for nothing: the authenticator notes the Secret, and the upkeep writes the label, at most once a day for each.

use k8s_schema::Doc;

use crate::{handlers::write, http::ApiError, server::Server, storage::StoreError};

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const DAY: i64 = 24 * 3600;

/// The label that a Secret gets; none: it says today, or tomorrow, as a server with another clock wrote.
fn label(secret: &Doc, now: jiff::Timestamp) -> Option<String> {
    let day = |t: jiff::Timestamp| t.strftime("%Y-%m-%d").to_string();
    let today = day(now);
    let tomorrow = jiff::Timestamp::from_second(now.as_second() + DAY).map(day).unwrap_or_default();
    let said = secret.meta().label(LAST_USED).unwrap_or("");
    (said != today && said != tomorrow).then_some(today)
}

/// Writes the labels of those that were used since the last time.
pub async fn note(server: &Server) -> Result<(), ApiError> {
    let used = server.tokens.used.take();
    if used.is_empty() {
        return Ok(());
    }
    let secrets = super::resource(server, "", "secrets")?;
    for key in used {
        let Some(stored) = server.objects.reflector.cache(&secrets.prefix).and_then(|c| c.get(&key)) else { continue };
        let Some(mut secret) = server.objects.doc(&stored) else { continue };
        let Some(today) = label(&secret, jiff::Timestamp::now()) else { continue };
        secret.set(&format!("metadata.labels[{LAST_USED}]"), today).map_err(ApiError::internal)?;
        let full = format!("{}{}/{key}", server.root, secrets.prefix);
        match server.etcd.update(&full, stored.rev, write::to_storage(&server.objects.schema, &secrets, &secret)?, 0).await {
            Ok(_) => {}
            // Somebody changed or deleted it at this moment; the next use is noted too.
            Err(StoreError::Changed { .. }) => {}
            Err(e) => {
                server.tokens.used.note(&key);
                return Err(e.into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_day_is_written_once() {
        let schema = k8s_schema::Schema::builtin();
        let now: jiff::Timestamp = "2026-12-31T23:59:00Z".parse().unwrap();
        for (said, want) in [
            (None, Some("2026-12-31")),
            (Some("2026-12-30"), Some("2026-12-31")),
            (Some("2026-12-31"), None),
            (Some("2027-01-01"), None),
            (Some("nonsense"), Some("2026-12-31")),
        ] {
            let mut secret = Doc::of_kind(&schema, "", "v1", "Secret").unwrap();
            if let Some(said) = said {
                secret.set("metadata.labels", json!({LAST_USED: said})).unwrap();
            }
            assert_eq!(label(&secret, now).as_deref(), want, "{said:?}");
        }
    }
}
