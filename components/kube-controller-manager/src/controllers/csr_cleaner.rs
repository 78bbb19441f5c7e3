//! Deletes certificate requests nobody needs any more: decided ones after an hour, undecided ones after a day.

use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{DeleteOptions, Request, resources::CERTIFICATE_SIGNING_REQUESTS};

use crate::api::CertificateSigningRequest;
use crate::context::Context;
use crate::ownership;

const PERIOD: Duration = Duration::from_secs(600);
const DECIDED: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);

fn is_old(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let decided = request
        .status
        .conditions
        .iter()
        .filter(|condition| matches!(condition.kind.as_str(), "Approved" | "Denied" | "Failed"))
        .filter_map(|condition| condition.last_update_time.or(condition.last_transition_time))
        .max();
    // Approved but unsigned is as good as pending: a signer may be away.
    let settled =
        !request.status.certificate.is_empty() || request.status.conditions.iter().any(|c| c.kind == "Denied" || c.kind == "Failed");
    match (settled, decided, request.metadata.creation_timestamp) {
        (true, Some(at), _) | (true, None, Some(at)) => at.age(now) > DECIDED,
        (false, _, Some(at)) => at.age(now) > PENDING,
        (_, _, None) => false,
    }
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("certificate-controller");
    let requests = context.informers.signing_requests();
    requests.wait_synced().await;
    loop {
        for request in requests.list().iter().filter(|request| is_old(request, Timestamp::now())) {
            let meta = &request.metadata;
            let delete = Request::delete(&CERTIFICATE_SIGNING_REQUESTS, "", &meta.name, &DeleteOptions::uid(&meta.uid));
            match ownership::ignore_missing(&client, &delete).await {
                Ok(()) => tracing::debug!(request = meta.name, "old certificate request removed"),
                Err(error) => tracing::warn!(
                    request = meta.name,
                    error = &error as &dyn std::error::Error,
                    "removing an old certificate request failed"
                ),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_go_an_hour_after_the_decision_or_a_day_without_one() {
        let now = "2026-01-03T00:00:00Z".parse().unwrap();
        let request = |created: &str, condition: Option<(&str, &str)>, certificate: &str| -> CertificateSigningRequest {
            let conditions: Vec<_> =
                condition.iter().map(|(kind, at)| json!({"type": kind, "status": "True", "lastUpdateTime": at})).collect();
            serde_json::from_value(
                json!({"metadata": {"creationTimestamp": created}, "status": {"conditions": conditions, "certificate": certificate}}),
            )
            .unwrap()
        };
        let (old, fresh) = ("2026-01-01T00:00:00Z", "2026-01-02T23:30:00Z");
        for (name, request, want) in [
            ("issued long ago", request(old, Some(("Approved", old)), "x"), true),
            ("issued now", request(old, Some(("Approved", fresh)), "x"), false),
            ("denied long ago", request(old, Some(("Denied", old)), ""), true),
            ("pending a day", request(old, None, ""), true),
            ("pending", request(fresh, None, ""), false),
            ("approved, unsigned", request(fresh, Some(("Approved", fresh)), ""), false),
            ("approved, never signed", request(old, Some(("Approved", old)), ""), true),
        ] {
            assert_eq!(is_old(&request, now), want, "{name}");
        }
    }
}
