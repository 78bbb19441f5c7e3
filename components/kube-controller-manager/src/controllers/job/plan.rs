//! Counting, completion, failure, and how many pods to run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_client::{Condition, LabelMap, ObjectMeta, OwnerReference, Time};
use serde_json::{Value, json};

use super::indexes;
use super::policy::{self, PerIndex, Verdict};
use crate::api::{JOB_TRACKING, Job, JobStatus, Pod, Uncounted};
use crate::ownership;

pub const FINALIZER: &str = JOB_TRACKING;
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
    /// How often the pods of an index failed until now, counted and ignored, in a job that counts them by index.
    pub failures: BTreeMap<i32, (i32, i32)>,
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

pub fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.get(INDEX)?.parse().ok()
}

fn succeeded(pod: &Pod) -> bool {
    pod.status.phase == "Succeeded"
}

/// Whether the pod failed. One being deleted counts as failed, since it may vanish without ever saying so, unless the job wants to know how
/// each of its pods ended.
pub fn failed(job: &Job, pod: &Pod) -> bool {
    pod.status.phase == "Failed" || (pod.metadata.is_deleting() && !succeeded(pod) && !job.spec.replaces_only_failed())
}

/// Not yet counted.
pub fn holds(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

/// How the job ends, once nothing of it runs any more.
struct End {
    failed: bool,
    reason: String,
    message: String,
}

impl End {
    fn new(failed: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { failed, reason: reason.into(), message: message.into() }
    }
}

/// Pods that ended, counted or not yet.
#[derive(Clone, Copy)]
struct Ended {
    good: i32,
    bad: i32,
}

/// The plan of one round.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { job, pods, now } = observed;
    let mut plan = Plan {
        create: Vec::new(),
        failures: BTreeMap::new(),
        delete: Vec::new(),
        status: job.status.clone(),
        release: BTreeSet::new(),
        again: None,
    };
    if job.metadata.is_deleting() || is_finished(job) {
        plan.release =
            pods.iter().filter(|pod| pod.is_terminal() || pod.metadata.is_deleting()).map(|pod| pod.metadata.uid.clone()).collect();
        return plan;
    }
    let completed = completed(job, pods);
    let by_index = policy::per_index(job, pods, &completed);
    let ended = ended(job, pods, &completed);
    let active: Vec<&Pod> = pods.iter().map(Arc::as_ref).filter(|pod| pod.is_active()).collect();
    let suspended = job.spec.suspend.unwrap_or(false);
    let end = end(observed, &active, &completed, by_index.as_ref(), ended, suspended);

    count(job, pods, end.is_none().then_some(by_index.as_ref()).flatten(), &completed, &mut plan);
    let uncounted = plan.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let terminating = pods.iter().filter(|pod| pod.metadata.is_deleting() && !pod.is_terminal()).count();
    let status = &mut plan.status;
    status.active = as_i32(active.len());
    status.ready = Some(as_i32(active.iter().filter(|pod| pod.is_ready()).count()));
    status.terminating = Some(as_i32(terminating));
    if let Some(by_index) = &by_index {
        status.failed_indexes = Some(indexes::format(&by_index.failed));
    }
    if end.is_none() {
        suspend(status, suspended, *now);
    }
    if !suspended && status.start_time.is_none() {
        status.start_time = Some(*now);
    }

    if let Some(end) = end {
        let (target, last) = if end.failed { ("FailureTarget", "Failed") } else { ("SuccessCriteriaMet", "Complete") };
        set(status, target, true, &end.reason, &end.message, *now);
        plan.delete = active.iter().map(|pod| pod.metadata.clone()).collect();
        if active.is_empty() && terminating == 0 && uncounted.succeeded.is_empty() && uncounted.failed.is_empty() {
            set(&mut plan.status, last, true, &end.reason, &end.message, *now);
            if !end.failed {
                plan.status.completion_time = Some(*now);
            }
        }
        return plan;
    }
    if suspended {
        plan.delete = active.iter().map(|pod| pod.metadata.clone()).collect();
        return plan;
    }
    size(observed, &active, &completed, by_index.as_ref(), ended, &mut plan);
    let deadline = job.spec.active_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    if let (Some(deadline), Some(start)) = (deadline, plan.status.start_time) {
        let left = deadline.saturating_sub(start.age(now.0)) + Duration::from_secs(1);
        plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
    }
    plan
}

/// Indexes done, those of pods not yet counted included. None in a job without indexes.
fn completed(job: &Job, pods: &[Arc<Pod>]) -> BTreeSet<i32> {
    if !is_indexed(job) {
        return BTreeSet::new();
    }
    let completions = job.spec.completions.unwrap_or(0);
    let mut completed = indexes::parse(&job.status.completed_indexes, completions);
    let new = pods.iter().filter(|pod| holds(pod) && succeeded(pod)).filter_map(|pod| index_of(pod));
    completed.extend(new.filter(|index| (0..completions).contains(index)));
    completed
}

/// Whether this failure adds to the job's failures.
fn counts(job: &Job, pod: &Pod) -> bool {
    failed(job, pod) && policy::judge(job, pod) != Verdict::Ignore
}

fn ended(job: &Job, pods: &[Arc<Pod>], completed: &BTreeSet<i32>) -> Ended {
    let old = job.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let new = |list: &[String], test: &dyn Fn(&Pod) -> bool| {
        list.len() + pods.iter().filter(|pod| holds(pod) && test(pod) && !list.contains(&pod.metadata.uid)).count()
    };
    let good = if is_indexed(job) { as_i32(completed.len()) } else { job.status.succeeded + as_i32(new(&old.succeeded, &succeeded)) };
    Ended { good, bad: job.status.failed + as_i32(new(&old.failed, &|pod| counts(job, pod))) }
}

/// Whether and how the job ends. What was once decided stays.
fn end(
    observed: &Observed<'_>,
    active: &[&Pod],
    completed: &BTreeSet<i32>,
    by_index: Option<&PerIndex>,
    ended: Ended,
    suspended: bool,
) -> Option<End> {
    let Observed { job, pods, now } = observed;
    for (kind, failed) in [("FailureTarget", true), ("SuccessCriteriaMet", false)] {
        if let Some(known) = condition(&job.status, kind) {
            return Some(End::new(failed, &known.reason, known.message.clone()));
        }
    }
    let condemned = pods.iter().filter(|pod| failed(job, pod)).find_map(|pod| match policy::judge(job, pod) {
        Verdict::FailJob(message) => Some(message),
        _ => None,
    });
    if let Some(message) = condemned {
        return Some(End::new(true, "PodFailurePolicy", message));
    }
    if let Some((reason, message)) = failure(job, active, ended.bad, suspended, *now) {
        return Some(End::new(true, reason, message));
    }
    let completions = job.spec.completions;
    if let (Some(by_index), Some(completions)) = (by_index, completions) {
        let failed = by_index.failed.len();
        if job.spec.max_failed_indexes.is_some_and(|most| as_i32(failed) > most) {
            return Some(End::new(true, "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes"));
        }
        if failed > 0 && as_i32(failed + completed.len()) >= completions {
            return Some(End::new(true, "FailedIndexes", "Job has failed indexes"));
        }
    }
    if let Some(message) = policy::success(job, completed) {
        return Some(End::new(false, "SuccessPolicy", message));
    }
    let enough = active.is_empty() && completions.map_or(ended.good > 0, |completions| ended.good >= completions);
    enough.then(|| End::new(false, "CompletionsReached", "Reached expected number of succeeded pods"))
}

fn as_i32(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Moves finished pods through the three stages of counting. Those that wait for the next pod of their index are left for later.
fn count(job: &Job, pods: &[Arc<Pod>], by_index: Option<&PerIndex>, completed: &BTreeSet<i32>, plan: &mut Plan) {
    let status = &mut plan.status;
    let old = status.uncounted_terminated_pods.take().unwrap_or_default();
    let held = |uid: &String| pods.iter().any(|pod| pod.metadata.uid == *uid && holds(pod));
    // Third: the finalizer is gone, so the uid can become a number.
    let (mut good, counted): (Vec<String>, Vec<String>) = old.succeeded.into_iter().partition(held);
    status.succeeded += as_i32(counted.len());
    let (mut bad, counted): (Vec<String>, Vec<String>) = old.failed.into_iter().partition(held);
    status.failed += as_i32(counted.len());
    let waits = |uid: &str| by_index.is_some_and(|by_index| by_index.waiting.values().any(|pod| pod.metadata.uid == uid));
    for pod in pods.iter().filter(|pod| holds(pod) && !waits(&pod.metadata.uid)) {
        let uid = &pod.metadata.uid;
        if good.len() + bad.len() >= MAX_UNCOUNTED {
            break;
        }
        if succeeded(pod) {
            if is_indexed(job) {
                // An index is idempotent: no second stage is needed.
                plan.release.insert(uid.clone());
            } else if !good.contains(uid) {
                good.push(uid.clone());
            }
        } else if failed(job, pod) && !counts(job, pod) {
            plan.release.insert(uid.clone());
        } else if failed(job, pod) && !bad.contains(uid) {
            bad.push(uid.clone());
        }
    }
    if is_indexed(job) {
        status.completed_indexes = indexes::format(completed);
        status.succeeded = as_i32(completed.len());
    }
    // Second: what is written down may lose its finalizer.
    plan.release.extend(good.iter().chain(&bad).cloned());
    status.uncounted_terminated_pods = Some(Uncounted { succeeded: good, failed: bad });
}

/// Why too many pods or too much time make the job fail, if they do.
fn failure(job: &Job, active: &[&Pod], bad: i32, suspended: bool, now: Time) -> Option<(&'static str, &'static str)> {
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
        return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    let deadline = job.spec.active_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok())?;
    let over = !suspended && job.status.start_time.is_some_and(|start| start.age(now.0) >= Duration::from_secs(deadline));
    over.then_some(("DeadlineExceeded", "Job was active longer than specified deadline"))
}

/// Creates or deletes pods so that the right number is active.
fn size(
    observed: &Observed<'_>,
    active: &[&Pod],
    completed: &BTreeSet<i32>,
    by_index: Option<&PerIndex>,
    Ended { good, bad }: Ended,
    plan: &mut Plan,
) {
    let Observed { job, pods, now } = observed;
    let none = PerIndex::default();
    let PerIndex { failed: dead, waiting } = by_index.unwrap_or(&none);
    let completions = job.spec.completions.unwrap_or(0);
    let parallelism = job.spec.parallelism.unwrap_or(1).max(0);
    let wanted = match job.spec.completions {
        None if good > 0 => as_i32(active.len()).min(parallelism),
        None => parallelism,
        Some(completions) => parallelism.min((completions - good - as_i32(dead.len())).max(0)),
    };
    let mut have: Vec<&Pod> = active.to_vec();
    if is_indexed(job) {
        // One pod per index, the oldest; none for an index that is done.
        have.sort_by(|a, b| (a.metadata.creation_timestamp, &a.metadata.name).cmp(&(b.metadata.creation_timestamp, &b.metadata.name)));
        let mut seen = BTreeSet::new();
        have.retain(|pod| {
            let keep =
                index_of(pod).is_some_and(|index| (0..completions).contains(&index) && !completed.contains(&index) && seen.insert(index));
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
    // Pods that are ending still hold their place when only failed ones are replaced.
    let ending: Vec<&Arc<Pod>> =
        pods.iter().filter(|pod| job.spec.replaces_only_failed() && pod.metadata.is_deleting() && !pod.is_terminal()).collect();
    let missing = wanted.saturating_sub(have.len() + ending.len()).min(BURST);
    if missing == 0 {
        return;
    }
    if by_index.is_none()
        && let Some(wait) = backoff(job, pods, bad, *now)
    {
        plan.again = Some(wait);
        return;
    }
    if !is_indexed(job) {
        plan.create = vec![None; missing];
        return;
    }
    let taken: BTreeSet<i32> = have.iter().copied().chain(ending.iter().map(|pod| pod.as_ref())).filter_map(index_of).collect();
    for index in (0..completions).filter(|index| !completed.contains(index) && !dead.contains(index) && !taken.contains(index)) {
        if plan.create.len() == missing {
            break;
        }
        let last = waiting.get(&index).map(Arc::as_ref);
        if let Some(last) = last
            && let Some(wait) = pause(policy::all_failures(last) + 1, finished_at(last), *now)
        {
            plan.again = Some(plan.again.map_or(wait, |again| again.min(wait)));
            continue;
        }
        if by_index.is_some() {
            plan.failures.insert(index, policy::next_counts(job, last));
        }
        plan.create.push(Some(index));
    }
}

/// After failures new pods wait: from the last failure on, the longer the more pods failed since the last success.
fn backoff(job: &Job, pods: &[Arc<Pod>], bad: i32, now: Time) -> Option<Duration> {
    let failures = || pods.iter().filter(|pod| failed(job, pod)).filter_map(|pod| finished_at(pod));
    let success = pods.iter().filter(|pod| succeeded(pod)).filter_map(|pod| finished_at(pod)).max();
    let count = success.map_or(bad, |success| as_i32(failures().filter(|at| *at > success).count()));
    pause(count, failures().max(), now)
}

/// What is left of 10 s, doubled per failure, at most ten minutes.
fn pause(failures: i32, last: Option<Time>, now: Time) -> Option<Duration> {
    let doublings = u32::try_from(failures - 1).ok()?.min(6);
    let pause = Duration::from_secs(10 << doublings).min(Duration::from_secs(600));
    let left = pause.saturating_sub(last?.age(now.0));
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
pub fn pod(job: &Job, owner: &OwnerReference, index: Option<i32>, failures: Option<(i32, i32)>) -> Value {
    let extra: LabelMap = index.map(|index| (INDEX.to_string(), index.to_string())).into_iter().collect();
    let mut annotations = extra.clone();
    annotations.extend(failures.into_iter().flat_map(|failures| policy::annotations(job, failures)));
    let mut pod = ownership::pod_from_template(&job.spec.template, &job.metadata.namespace, owner, &extra, &annotations);
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
