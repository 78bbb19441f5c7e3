//! CronJobs: jobs made on a schedule, on the clocks of their `timeZone` or else in UTC. The zones are part of the program.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use k8s_client::{
    Action, Change, Client, DeleteOptions, Error, EventType, Informer, ObjectKey, ObjectReference, Propagation, Request, Time, WorkQueue,
    owner_reference,
    resources::{CRON_JOBS, JOBS},
    run_workers,
};
use serde_json::{Value, json};

use self::schedule::Schedule;
use crate::api::{CronJob, CronJobStatus, Job};
use crate::context::Context;
use crate::expectations::Expectations;
use crate::ownership;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// What to do about one CronJob.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    /// Start a job for this scheduled time.
    start: Option<Timestamp>,
    /// Names and uids: replaced, or past their history limit.
    delete: Vec<(String, String)>,
    status: CronJobStatus,
    again: Option<Duration>,
    /// Reason and message of a warning.
    warning: Option<(&'static str, String)>,
}

fn outcome(job: &Job) -> Option<bool> {
    job.status.conditions.iter().find(|c| c.is_true() && matches!(c.kind.as_str(), "Complete" | "Failed")).map(|c| c.kind == "Complete")
}

fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut active: Vec<&Job> = jobs.iter().map(Arc::as_ref).filter(|job| outcome(job).is_none() && !job.metadata.is_deleting()).collect();
    active.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let last_success = jobs.iter().filter(|job| outcome(job) == Some(true)).filter_map(|job| job.status.completion_time).max();
    let status = CronJobStatus {
        active: active
            .iter()
            .map(|job| ObjectReference {
                resource_version: job.metadata.resource_version.clone(),
                ..ObjectReference::to(&JOBS, &job.metadata)
            })
            .collect(),
        last_schedule_time: cron.status.last_schedule_time,
        last_successful_time: last_success.max(cron.status.last_successful_time),
    };
    let mut plan = Plan { start: None, delete: past_history(cron, jobs), status, again: None, warning: None };
    if cron.metadata.is_deleting() || cron.spec.suspend.unwrap_or(false) {
        return plan;
    }
    let zone = match cron.spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => match TimeZone::get(name) {
            Ok(zone) => zone,
            Err(_) => {
                plan.warning = Some(("UnknownTimeZone", format!("invalid timeZone: {name:?}: unknown time zone {name}")));
                return plan;
            }
        },
    };
    let schedule: Schedule = match cron.spec.schedule.parse() {
        Ok(schedule) => schedule,
        Err(error) => {
            plan.warning = Some(("UnparseableSchedule", format!("unparseable schedule: {error}")));
            return plan;
        }
    };
    let created = cron.metadata.creation_timestamp.map_or(now, |time| time.0);
    let deadline = cron.spec.starting_deadline_seconds.and_then(|seconds| now.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok());
    let earliest = cron.status.last_schedule_time.map_or(created, |time| time.0);
    plan.again = schedule
        .next(earliest, now, &zone)
        .and_then(|next| Duration::try_from(next.duration_since(now)).ok())
        .map(|wait| wait + Duration::from_millis(100));
    let Some(due) = schedule.last(earliest, now, &zone) else { return plan };
    if deadline.is_some_and(|deadline| due < deadline) {
        plan.warning = Some(("MissSchedule", format!("Missed scheduled time to start a job: {due}")));
        return plan;
    }
    let name = job_name(cron, due);
    if active.iter().any(|job| job.metadata.name == name) {
        return plan;
    }
    match cron.spec.concurrency_policy.as_str() {
        "Forbid" if !active.is_empty() => {}
        policy => {
            if policy == "Replace" {
                plan.delete.extend(active.iter().map(|job| (job.metadata.name.clone(), job.metadata.uid.clone())));
            }
            plan.start = Some(due);
        }
    }
    plan
}

fn past_history(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<(String, String)> {
    let mut delete = Vec::new();
    for (success, limit) in
        [(true, cron.spec.successful_jobs_history_limit.unwrap_or(3)), (false, cron.spec.failed_jobs_history_limit.unwrap_or(1))]
    {
        let mut done: Vec<&Arc<Job>> = jobs.iter().filter(|job| outcome(job) == Some(success) && !job.metadata.is_deleting()).collect();
        done.sort_by_key(|job| (job.status.start_time.or(job.metadata.creation_timestamp), job.metadata.name.clone()));
        let excess = done.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        delete.extend(done.into_iter().take(excess).map(|job| (job.metadata.name.clone(), job.metadata.uid.clone())));
    }
    delete
}

/// The same for the same scheduled time, so that a job is never made twice.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name, at.as_second() / 60)
}

fn job(cron: &CronJob, at: Timestamp) -> Value {
    let mut metadata = json!({
        "name": job_name(cron, at),
        "namespace": cron.metadata.namespace,
        "ownerReferences": [owner_reference(&CRON_JOBS, &cron.metadata)],
    });
    for field in ["labels", "annotations"] {
        if let Some(found) = cron.spec.job_template.pointer(&format!("/metadata/{field}")).filter(|found| found.is_object()) {
            metadata[field] = found.clone();
        }
    }
    metadata["annotations"][SCHEDULED_AT] = json!(Time(at));
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": cron.spec.job_template.get("spec")})
}

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    jobs_made: Arc<Expectations>,
    statuses: Arc<Expectations>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("cronjob-controller"),
        crons: context.informers.cron_jobs(),
        jobs: context.informers.jobs(),
        jobs_made: Arc::default(),
        statuses: Arc::default(),
        context: context.clone(),
    };
    let queue = WorkQueue::new("cronjob");
    let sink = queue.clone();
    controller.crons.add_handler(move |change: Change<'_, CronJob>| sink.add(change.object().metadata.key()));
    let sink = queue.clone();
    controller.jobs.add_handler(move |change: Change<'_, Job>| {
        let job = change.object();
        if let Some(owner) = job.metadata.controller().filter(|owner| owner.kind == "CronJob") {
            sink.add(ObjectKey::new(job.metadata.namespace.clone(), owner.name.clone()));
        }
    });
    controller.crons.wait_synced().await;
    controller.jobs.wait_synced().await;
    run_workers(queue, 2, context.stop.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(key).await }
    })
    .await;
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(cron) = self.crons.get_key(&key) else {
            self.jobs_made.forget(&key);
            self.statuses.forget(&key);
            return Ok(Action::Done);
        };
        let jobs: Vec<Arc<Job>> = self
            .jobs
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|job| job.metadata.controller().is_some_and(|owner| owner.uid == cron.metadata.uid))
            .collect();
        let alive = |uid: &str| jobs.iter().any(|job| job.metadata.uid == uid && !job.metadata.is_deleting());
        if !self.statuses.met(&key, self.crons.version(), |_| false) || !self.jobs_made.met(&key, self.jobs.version(), alive) {
            return Ok(Action::Retry);
        }
        let mut plan = plan(&cron, &jobs, Timestamp::now());
        if let Some((reason, message)) = &plan.warning {
            self.context.event(&CRON_JOBS, &cron.metadata, EventType::Warning, reason, message.clone());
        }
        let how = |uid: &str| DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::uid(uid) };
        for (name, uid) in &plan.delete {
            self.jobs_made.deleted(&key, uid);
            if let Err(error) = ownership::ignore_missing(&self.client, &Request::delete(&JOBS, &key.namespace, name, &how(uid))).await {
                self.jobs_made.forget(&key);
                return Err(error);
            }
            self.context.event(&CRON_JOBS, &cron.metadata, EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
        }
        if let Some(at) = plan.start {
            match self.client.call::<Job>(&Request::create(&JOBS, &key.namespace, &job(&cron, at))).await {
                Ok(made) => {
                    self.jobs_made.wrote(&key, &made.metadata.resource_version);
                    plan.status.active.push(ObjectReference {
                        resource_version: made.metadata.resource_version.clone(),
                        ..ObjectReference::to(&JOBS, &made.metadata)
                    });
                    self.context.event(
                        &CRON_JOBS,
                        &cron.metadata,
                        EventType::Normal,
                        "SuccessfulCreate",
                        format!("Created job {}", made.metadata.name),
                    );
                }
                // Made before a crash, or someone else's: either way this time is taken.
                Err(error) if error.is_already_exists() => {}
                Err(error) if error.is_namespace_terminating() => return Ok(Action::Done),
                Err(error) => {
                    self.context.event(
                        &CRON_JOBS,
                        &cron.metadata,
                        EventType::Warning,
                        "FailedCreate",
                        format!("Error creating job: {error}"),
                    );
                    return Err(error);
                }
            }
            plan.status.last_schedule_time = Some(Time(at));
        }
        if plan.status != cron.status {
            let name = (key.namespace.as_str(), key.name.as_str());
            match self.client.update(&CRON_JOBS, name, &cron.metadata.uid, "status", |object| object["status"] = json!(plan.status)).await {
                Ok(written) => self.statuses.wrote(&key, &written.meta().resource_version),
                Err(error) if error.is_conflict() => return Ok(Action::Retry),
                Err(error) if error.is_not_found() => return Ok(Action::Done),
                Err(error) => return Err(error),
            }
        }
        Ok(plan.again.map_or(Action::Done, Action::After))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(spec: Value, last: Option<&str>) -> CronJob {
        let mut cron = json!({"metadata": {"name": "c", "namespace": "d", "uid": "c", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "*/10 * * * *", "jobTemplate": {"metadata": {"labels": {"x": "y"}}, "spec": {"template": {}}}}, "status": {"lastScheduleTime": last}});
        for (key, value) in spec.as_object().unwrap() {
            cron["spec"][key] = value.clone();
        }
        serde_json::from_value(cron).unwrap()
    }

    fn made(name: &str, state: &str) -> Arc<Job> {
        let conditions = if state.is_empty() { json!([]) } else { json!([{"type": state, "status": "True"}]) };
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status": {"conditions": conditions, "startTime": format!("2026-01-01T00:0{}:00Z", name.len())}})).unwrap())
    }

    #[test]
    fn a_job_starts_at_each_time_unless_the_policy_says_no() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let running = vec![made("r", "")];
        for (name, spec, last, now, jobs, start, deleted) in [
            ("not yet", json!({}), None, "2026-01-01T00:05:00Z", vec![], None, 0),
            ("first", json!({}), None, "2026-01-01T00:10:01Z", vec![], Some("2026-01-01T00:10:00Z"), 0),
            ("done already", json!({}), Some("2026-01-01T00:10:00Z"), "2026-01-01T00:15:00Z", vec![], None, 0),
            (
                "missed several: the last",
                json!({}),
                Some("2026-01-01T00:10:00Z"),
                "2026-01-01T01:05:00Z",
                vec![],
                Some("2026-01-01T01:00:00Z"),
                0,
            ),
            ("too late", json!({"startingDeadlineSeconds": 60}), Some("2026-01-01T00:10:00Z"), "2026-01-01T01:05:00Z", vec![], None, 0),
            ("suspended", json!({"suspend": true}), None, "2026-01-01T00:10:01Z", vec![], None, 0),
            ("allow", json!({}), None, "2026-01-01T00:10:01Z", running.clone(), Some("2026-01-01T00:10:00Z"), 0),
            ("forbid", json!({"concurrencyPolicy": "Forbid"}), None, "2026-01-01T00:10:01Z", running.clone(), None, 0),
            ("replace", json!({"concurrencyPolicy": "Replace"}), None, "2026-01-01T00:10:01Z", running, Some("2026-01-01T00:10:00Z"), 1),
            ("bad schedule", json!({"schedule": "often"}), None, "2026-01-01T00:10:01Z", vec![], None, 0),
            (
                "other zone",
                json!({"timeZone": "Asia/Kolkata", "schedule": "40 5 * * *"}),
                None,
                "2026-01-01T00:10:01Z",
                vec![],
                Some("2026-01-01T00:10:00Z"),
                0,
            ),
            ("unknown zone", json!({"timeZone": "Mars/X"}), None, "2026-01-01T00:10:01Z", vec![], None, 0),
        ] {
            let plan = plan(&cron(spec, last), &jobs, at(now));
            assert_eq!((plan.start, plan.delete.len()), (start.map(at), deleted), "{name}");
        }
    }

    #[test]
    fn old_jobs_go_past_the_limits() {
        let jobs = [
            made("a", "Complete"),
            made("bb", "Complete"),
            made("ccc", "Complete"),
            made("dddd", "Complete"),
            made("e", "Failed"),
            made("ff", "Failed"),
            made("g", ""),
        ];
        let deleted: Vec<String> = past_history(&cron(json!({}), None), &jobs).into_iter().map(|(name, _)| name).collect();
        assert_eq!(deleted, ["a", "e"]);
        assert_eq!(past_history(&cron(json!({"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0}), None), &jobs).len(), 6);
    }

    #[test]
    fn a_jobs_name_comes_from_its_time() {
        let body = job(&cron(json!({}), None), "2026-01-01T00:10:00Z".parse().unwrap());
        assert_eq!(body["metadata"]["name"], "c-29453770");
        assert_eq!(body["metadata"]["annotations"][SCHEDULED_AT], "2026-01-01T00:10:00Z");
        assert_eq!(body["metadata"]["labels"], json!({"x": "y"}));
    }
}
