//! Deletes finished jobs once their `ttlSecondsAfterFinished` is over.

use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{Action, Change, DeleteOptions, Error, ObjectKey, Propagation, Request, WorkQueue, resources::JOBS, run_workers};

use crate::api::Job;
use crate::context::Context;

/// Time until the job expires; zero when it has. Nothing when it has no lifetime or is not finished.
fn expires_in(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = Duration::from_secs(u64::try_from(job.spec.ttl_seconds_after_finished?).ok()?);
    if job.metadata.is_deleting() {
        return None;
    }
    let finished = job.status.conditions.iter().find(|c| c.is_true() && matches!(c.kind.as_str(), "Complete" | "Failed"))?;
    Some(ttl.saturating_sub(finished.last_transition_time?.age(now)))
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("ttl-after-finished-controller");
    let jobs = context.informers.jobs();
    let queue = WorkQueue::new("ttl-after-finished");
    let sink = queue.clone();
    jobs.add_handler(move |change: Change<'_, Job>| {
        if change.object().spec.ttl_seconds_after_finished.is_some() && !matches!(change, Change::Deleted(_)) {
            sink.add(change.object().metadata.key());
        }
    });
    jobs.wait_synced().await;
    run_workers(queue, 1, context.stop.clone(), move |key: ObjectKey| {
        let (client, jobs) = (client.clone(), jobs.clone());
        async move {
            let Some(job) = jobs.get_key(&key) else { return Ok(Action::Done) };
            match expires_in(&job, Timestamp::now()) {
                None => Ok(Action::Done),
                Some(wait) if !wait.is_zero() => Ok(Action::After(wait)),
                Some(_) => {
                    // The version too: a job whose lifetime was just extended stays.
                    let options = DeleteOptions {
                        propagation: Some(Propagation::Foreground),
                        resource_version: Some(job.metadata.resource_version.clone()),
                        ..DeleteOptions::uid(&job.metadata.uid)
                    };
                    match client.execute(&Request::delete(&JOBS, &key.namespace, &key.name, &options)).await {
                        Err(error) if error.is_conflict() => Ok(Action::Retry),
                        Err(error) if !error.is_not_found() => Err::<_, Error>(error),
                        _ => Ok(Action::Done),
                    }
                }
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_finished_jobs_with_a_lifetime_expire() {
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let job = |ttl: Option<i64>, kind: &str| -> Job {
            serde_json::from_value(json!({"metadata": {}, "spec": {"ttlSecondsAfterFinished": ttl},
                "status": {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:09:00Z"}]}}))
            .unwrap()
        };
        for (ttl, kind, want) in [
            (None, "Complete", None),
            (Some(100), "Suspended", None),
            (Some(100), "Complete", Some(40)),
            (Some(60), "Failed", Some(0)),
            (Some(0), "Complete", Some(0)),
        ] {
            assert_eq!(expires_in(&job(ttl, kind), now).map(|d| d.as_secs()), want, "{ttl:?} {kind}");
        }
    }
}
