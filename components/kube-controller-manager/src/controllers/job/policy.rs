//! What a job says of its pods' failures and of its own success: the failure policy, failures by index, the success policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_client::Condition;

use super::indexes;
use super::plan::{failed, holds, index_of};
use crate::api::{ContainerStatus, Job, OnExitCodes, Pod, PodFailureRule};

/// How often the pods of an index failed before this one.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often they failed in a way that the failure policy ignores.
pub const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// What one failed pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Count,
    Ignore,
    FailIndex,
    /// The whole job fails, for this reason.
    FailJob(String),
}

/// The first rule that matches decides; a failure that no rule matches counts.
pub fn judge(job: &Job, pod: &Pod) -> Verdict {
    let rules = job.spec.pod_failure_policy.as_ref().map_or(&[][..], |policy| &policy.rules);
    for (n, rule) in rules.iter().enumerate() {
        let Some(what) = matched(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {n}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matched(rule: &PodFailureRule, pod: &Pod) -> Option<String> {
    let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
    if let Some(wanted) = &rule.on_exit_codes {
        let containers = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
        let (container, code) = containers.filter_map(|status| Some((&status.name, exit_code(wanted, status)?))).next()?;
        return Some(format!("Container {container} for pod {namespace}/{name} failed with exit code {code}"));
    }
    let has = |kind: &str, status: &str| Condition::find(&pod.status.conditions, kind).is_some_and(|known| known.status == status);
    let condition =
        rule.on_pod_conditions.iter().find(|wanted| has(&wanted.kind, if wanted.status.is_empty() { "True" } else { &wanted.status }))?;
    Some(format!("Pod {namespace}/{name} has condition {}", condition.kind))
}

/// The exit code of a container that ended in failure as the rule says.
fn exit_code(wanted: &OnExitCodes, status: &ContainerStatus) -> Option<i32> {
    if wanted.container_name.as_ref().is_some_and(|name| *name != status.name) {
        return None;
    }
    let code = status.state.terminated.as_ref()?.exit_code;
    (code != 0 && wanted.values.contains(&code) == (wanted.operator == "In")).then_some(code)
}

/// What is known of the indexes of a job whose failures are counted by index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PerIndex {
    /// Indexes that failed for good.
    pub failed: BTreeSet<i32>,
    /// The last failed pod of each index that waits for its next one. Its finalizer stays until that exists: the number of failures is
    /// written nowhere else.
    pub waiting: BTreeMap<i32, Arc<Pod>>,
}

fn number(pod: &Pod, annotation: &str) -> i32 {
    pod.metadata.annotations.get(annotation).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Failures of the index up to this pod, ignored ones too.
pub fn all_failures(pod: &Pod) -> i32 {
    number(pod, FAILURES).saturating_add(number(pod, IGNORED))
}

/// The counts that the pod after this failed one carries: failures, and ignored ones.
pub fn next_counts(job: &Job, last: Option<&Pod>) -> (i32, i32) {
    let Some(last) = last else { return (0, 0) };
    let (failures, ignored) = (number(last, FAILURES), number(last, IGNORED));
    match judge(job, last) {
        Verdict::Ignore => (failures, ignored.saturating_add(1)),
        _ => (failures.saturating_add(1), ignored),
    }
}

/// Sorts the indexes; nothing for a job without `backoffLimitPerIndex`.
pub fn per_index(job: &Job, pods: &[Arc<Pod>], completed: &BTreeSet<i32>) -> Option<PerIndex> {
    let limit = job.spec.backoff_limit_per_index?;
    let completions = job.spec.completions.unwrap_or(0);
    let mut found =
        PerIndex { failed: indexes::parse(job.status.failed_indexes.as_deref().unwrap_or_default(), completions), ..PerIndex::default() };
    let ended = |pod: &Pod| failed(job, pod) && holds(pod);
    let range = |index: &i32| (0..completions).contains(index);
    for pod in pods.iter().filter(|pod| ended(pod)) {
        let Some(index) = index_of(pod).filter(range) else { continue };
        let over = match judge(job, pod) {
            Verdict::FailIndex => true,
            Verdict::Ignore => false,
            _ => number(pod, FAILURES) >= limit,
        };
        if over {
            found.failed.insert(index);
        }
    }
    found.failed.retain(|index| !completed.contains(index));
    let active: BTreeSet<i32> =
        pods.iter().filter(|pod| pod.status.phase != "Succeeded" && !failed(job, pod)).filter_map(|pod| index_of(pod)).collect();
    for pod in pods.iter().filter(|pod| ended(pod)) {
        let Some(index) = index_of(pod).filter(range) else { continue };
        if completed.contains(&index) || found.failed.contains(&index) || active.contains(&index) {
            continue;
        }
        if found.waiting.get(&index).is_none_or(|last| all_failures(last) <= all_failures(pod)) {
            found.waiting.insert(index, pod.clone());
        }
    }
    Some(found)
}

/// The rule of the success policy that these completed indexes fulfil, in words.
pub fn success(job: &Job, completed: &BTreeSet<i32>) -> Option<String> {
    let completions = job.spec.completions.unwrap_or(0);
    let rules = &job.spec.success_policy.as_ref()?.rules;
    let met = rules.iter().position(|rule| {
        let least = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
        match (&rule.succeeded_indexes, least) {
            (Some(text), least) => {
                let wanted = indexes::parse(text, completions);
                let done = wanted.intersection(completed).count();
                done >= least.unwrap_or(wanted.len())
            }
            (None, Some(least)) => completed.len() >= least,
            (None, None) => false,
        }
    })?;
    Some(format!("Matched rules at index {met}"))
}

/// Annotations of the pod of an index whose failures are counted.
pub fn annotations(job: &Job, counts: (i32, i32)) -> Vec<(String, String)> {
    let mut all = vec![(FAILURES.to_string(), counts.0.to_string())];
    if job.spec.pod_failure_policy.is_some() {
        all.push((IGNORED.to_string(), counts.1.to_string()));
    }
    all
}
