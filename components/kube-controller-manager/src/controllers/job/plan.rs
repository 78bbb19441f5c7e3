//! Counting, completion, failure, and how many pods to run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_client::{Condition, LabelMap, ObjectMeta, OwnerReference, Time};
use serde_json::{Value, json};

use super::indexes;
use crate::api::{Job, JobStatus, Pod, Uncounted};
use crate::ownership;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Uids in `uncountedTerminatedPods` at once, as upstream.
const MAX_UNCOUNTED: usize = 500;
/// Pods created in one round at most.
const BURST: usize = 500;

/// What planning looks at.
pub struct Observed<'a> {
    pub job: &'a Job,
    pub pods: &'a [Arc<Pod>],
    pub now: Time,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// One entry per pod: its index, in an indexed job.
    pub create: Vec<Option<i32>>,
    pub delete: Vec<ObjectMeta>,
    pub status: JobStatus,
    /// Uids of pods whose finalizer goes once the status is written.
    pub release: BTreeSet<String>,
    pub again: Option<Duration>,
}

fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a Condition> {
    Condition::find(&status.conditions, kind).filter(|condition| condition.is_true())
}

/// Complete or Failed, for good.
pub fn is_finished(job: &Job) -> bool {
    condition(&job.status, "Complete").is_some() || condition(&job.status, "Failed").is_some()
}

fn is_indexed(job: &Job) -> bool {
    job.spec.completion_mode.as_deref() == Some("Indexed")
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.get(INDEX)?.parse().ok()
}

fn succeeded(pod: &Pod) -> bool {
    pod.status.phase == "Succeeded"
}

/// A pod being deleted counts as failed: it may vanish without ever saying so.
fn failed(pod: &Pod) -> bool {
    pod.status.phase == "Failed" || (pod.metadata.is_deleting() && !succeeded(pod))
}

/// The plan of one round.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { job, pods, now } = observed;
    let mut plan = Plan { create: Vec::new(), delete: Vec::new(), status: job.status.clone(), release: BTreeSet::new(), again: None };
    if job.metadata.is_deleting() || is_finished(job) {
        plan.release =
            pods.iter().filter(|pod| pod.is_terminal() || pod.metadata.is_deleting()).map(|pod| pod.metadata.uid.clone()).collect();
        return plan;
    }
    let completed = count(job, pods, &mut plan);
    let uncounted = plan.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let good = plan.status.succeeded + as_i32(uncounted.succeeded.len());
    let bad = plan.status.failed + as_i32(uncounted.failed.len());
    let active: Vec<&Pod> = pods.iter().map(Arc::as_ref).filter(|pod| !succeeded(pod) && !failed(pod)).collect();
    let terminating = pods.iter().filter(|pod| pod.metadata.is_deleting() && !pod.is_terminal()).count();
    let status = &mut plan.status;
    status.active = as_i32(active.len());
    status.ready = Some(as_i32(active.iter().filter(|pod| pod.is_ready()).count()));
    status.terminating = Some(as_i32(terminating));

    let suspended = job.spec.suspend.unwrap_or(false);
    suspend(status, suspended, *now);
    if !suspended && status.start_time.is_none() {
        status.start_time = Some(*now);
    }
    let nothing_runs = active.is_empty() && terminating == 0 && uncounted.succeeded.is_empty() && uncounted.failed.is_empty();

    if let Some((reason, message)) = failure(job, &active, bad, status, suspended, *now) {
        set(status, "FailureTarget", true, &reason, &message, *now);
        plan.delete = active.iter().map(|pod| pod.metadata.clone()).collect();
        if nothing_runs {
            set(&mut plan.status, "Failed", true, &reason, &message, *now);
        }
        return plan;
    }
    let enough = match job.spec.completions {
        None => good > 0 && active.is_empty(),
        Some(completions) => good >= completions && active.is_empty(),
    };
    if enough || condition(status, "SuccessCriteriaMet").is_some() {
        set(status, "SuccessCriteriaMet", true, "CompletionsReached", "Reached expected number of succeeded pods", *now);
        if nothing_runs {
            set(status, "Complete", true, "CompletionsReached", "Reached expected number of succeeded pods", *now);
            status.completion_time = Some(*now);
        }
        return plan;
    }
    if suspended {
        plan.delete = active.iter().map(|pod| pod.metadata.clone()).collect();
        return plan;
    }
    size(job, pods, &active, &completed, (good, bad), *now, &mut plan);
    let deadline = job.spec.active_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    if let (Some(deadline), Some(start)) = (deadline, plan.status.start_time) {
        let left = deadline.saturating_sub(start.age(now.0)) + Duration::from_secs(1);
        plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
    }
    plan
}

fn as_i32(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Moves finished pods through the three stages of counting; returns the completed indexes of an indexed job.
fn count(job: &Job, pods: &[Arc<Pod>], plan: &mut Plan) -> BTreeSet<i32> {
    let status = &mut plan.status;
    let old = status.uncounted_terminated_pods.take().unwrap_or_default();
    let holds = |pod: &Pod| pod.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    let held = |uid: &String| pods.iter().any(|pod| pod.metadata.uid == *uid && holds(pod));
    // Third: the finalizer is gone, so the uid can become a number.
    let (mut good, counted): (Vec<String>, Vec<String>) = old.succeeded.into_iter().partition(held);
    status.succeeded += as_i32(counted.len());
    let (mut bad, counted): (Vec<String>, Vec<String>) = old.failed.into_iter().partition(held);
    status.failed += as_i32(counted.len());
    let completions = job.spec.completions.unwrap_or(0);
    let mut completed = if is_indexed(job) { indexes::parse(&status.completed_indexes, completions) } else { BTreeSet::new() };
    for pod in pods.iter().filter(|pod| holds(pod)) {
        let uid = &pod.metadata.uid;
        if good.len() + bad.len() >= MAX_UNCOUNTED {
            break;
        }
        if succeeded(pod) {
            if is_indexed(job) {
                // An index is idempotent: no second stage is needed.
                completed.extend(index_of(pod).filter(|index| (0..completions).contains(index)));
                plan.release.insert(uid.clone());
            } else if !good.contains(uid) {
                good.push(uid.clone());
            }
        } else if failed(pod) && !bad.contains(uid) {
            bad.push(uid.clone());
        }
    }
    if is_indexed(job) {
        status.completed_indexes = indexes::format(&completed);
        status.succeeded = as_i32(completed.len());
    }
    // Second: what is written down may lose its finalizer.
    plan.release.extend(good.iter().chain(&bad).cloned());
    status.uncounted_terminated_pods = Some(Uncounted { succeeded: good, failed: bad });
    completed
}

/// Why the job has failed, if it has.
fn failure(job: &Job, active: &[&Pod], bad: i32, status: &JobStatus, suspended: bool, now: Time) -> Option<(String, String)> {
    if let Some(known) = condition(status, "FailureTarget") {
        return Some((known.reason.clone(), known.message.clone()));
    }
    let limit = job.spec.backoff_limit.unwrap_or(6);
    let restarts: i32 = if job.spec.template.pointer("/spec/restartPolicy").and_then(Value::as_str) == Some("OnFailure") {
        active
            .iter()
            .flat_map(|pod| pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses))
            .map(|c| c.restart_count)
            .sum()
    } else {
        0
    };
    if bad > limit || (restarts > 0 && restarts >= limit.max(1)) {
        return Some(("BackoffLimitExceeded".into(), "Job has reached the specified backoff limit".into()));
    }
    let deadline = job.spec.active_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok())?;
    let over = !suspended && status.start_time.is_some_and(|start| start.age(now.0) >= Duration::from_secs(deadline));
    over.then(|| ("DeadlineExceeded".into(), "Job was active longer than specified deadline".into()))
}

/// Creates or deletes pods so that the right number is active.
fn size(job: &Job, pods: &[Arc<Pod>], active: &[&Pod], completed: &BTreeSet<i32>, (good, bad): (i32, i32), now: Time, plan: &mut Plan) {
    let parallelism = job.spec.parallelism.unwrap_or(1).max(0);
    let wanted = match job.spec.completions {
        None if good > 0 => as_i32(active.len()).min(parallelism),
        None => parallelism,
        Some(completions) => parallelism.min((completions - good).max(0)),
    };
    let mut have: Vec<&Pod> = active.to_vec();
    if is_indexed(job) {
        // One pod per index, the oldest; none for an index that is done.
        have.sort_by(|a, b| (a.metadata.creation_timestamp, &a.metadata.name).cmp(&(b.metadata.creation_timestamp, &b.metadata.name)));
        let mut seen = BTreeSet::new();
        have.retain(|pod| {
            let keep = index_of(pod).is_some_and(|index| {
                (0..job.spec.completions.unwrap_or(0)).contains(&index) && !completed.contains(&index) && seen.insert(index)
            });
            if !keep {
                plan.delete.push(pod.metadata.clone());
            }
            keep
        });
    }
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if have.len() > wanted {
        // Those that got least far go first.
        have.sort_by_key(|pod| (pod.is_ready(), !pod.spec.node_name.is_empty(), std::cmp::Reverse(pod.metadata.creation_timestamp)));
        plan.delete.extend(have.iter().take(have.len() - wanted).map(|pod| pod.metadata.clone()));
        return;
    }
    let missing = (wanted - have.len()).min(BURST);
    if missing == 0 {
        return;
    }
    if let Some(wait) = backoff(pods, bad, now) {
        plan.again = Some(wait);
        return;
    }
    plan.create = if is_indexed(job) {
        let taken: BTreeSet<i32> = have.iter().filter_map(|pod| index_of(pod)).collect();
        let free = (0..job.spec.completions.unwrap_or(0)).filter(|index| !completed.contains(index) && !taken.contains(index));
        free.take(missing).map(Some).collect()
    } else {
        vec![None; missing]
    };
}

/// After failures new pods wait: 10 s, doubled per failure, at most ten minutes, counted from the last failure.
fn backoff(pods: &[Arc<Pod>], bad: i32, now: Time) -> Option<Duration> {
    let last = pods.iter().filter(|pod| failed(pod)).filter_map(|pod| finished_at(pod)).max()?;
    let doublings = u32::try_from(bad - 1).ok()?.min(6);
    let pause = Duration::from_secs(10 << doublings).min(Duration::from_secs(600));
    let left = pause.saturating_sub(last.age(now.0));
    (!left.is_zero()).then_some(left)
}

fn finished_at(pod: &Pod) -> Option<Time> {
    let ends = pod.status.container_statuses.iter().filter_map(|c| c.state.terminated.as_ref()?.finished_at).max();
    let ready = Condition::find(&pod.status.conditions, "Ready").and_then(|c| c.last_transition_time);
    ends.or(ready).or(pod.metadata.deletion_timestamp).or(pod.metadata.creation_timestamp)
}

fn suspend(status: &mut JobStatus, suspended: bool, now: Time) {
    let known = Condition::find(&status.conditions, "Suspended").map(Condition::is_true);
    match (known, suspended) {
        (None | Some(false), true) => {
            set(status, "Suspended", true, "JobSuspended", "Job suspended", now);
            status.start_time = None;
        }
        (Some(true), false) => {
            set(status, "Suspended", false, "JobResumed", "Job resumed", now);
            status.start_time = Some(now);
        }
        _ => {}
    }
}

fn set(status: &mut JobStatus, kind: &str, on: bool, reason: &str, message: &str, now: Time) {
    let wanted = if on { "True" } else { "False" };
    if Condition::find(&status.conditions, kind).is_some_and(|known| known.status == wanted) {
        return;
    }
    status.conditions.retain(|condition| condition.kind != kind);
    status.conditions.push(Condition {
        kind: kind.into(),
        status: wanted.into(),
        reason: reason.into(),
        message: message.into(),
        last_probe_time: Some(now),
        last_transition_time: Some(now),
        ..Condition::default()
    });
}

/// A pod of the job, for one index in an indexed one.
pub fn pod(job: &Job, owner: &OwnerReference, index: Option<i32>) -> Value {
    let extra: LabelMap = index.map(|index| (INDEX.to_string(), index.to_string())).into_iter().collect();
    let mut pod = ownership::pod_from_template(&job.spec.template, &job.metadata.namespace, owner, &extra, &extra);
    let mut finalizers = pod["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.push(json!(FINALIZER));
    pod["metadata"]["finalizers"] = Value::Array(finalizers);
    let Some(index) = index else { return pod };
    pod["metadata"]["generateName"] = json!(format!("{}-{index}-", owner.name));
    if pod["spec"]["hostname"].as_str().unwrap_or_default().is_empty() {
        pod["spec"]["hostname"] = json!(format!("{}-{index}", owner.name));
    }
    let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": format!("metadata.labels['{INDEX}']")}}});
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let mut env = container["env"].as_array().cloned().unwrap_or_default();
            if !env.iter().any(|known| known["name"] == "JOB_COMPLETION_INDEX") {
                env.push(variable.clone());
                container["env"] = Value::Array(env);
            }
        }
    }
    pod
}
