//! How many pods to create, which to delete, and what the status says.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{Condition, ObjectMeta, Time};

use crate::api::{Pod, ReplicaSet, ReplicaSetStatus, template_labels};

/// Pods created or deleted in one round at most.
const BURST: usize = 500;

/// What planning looks at.
pub struct Observed<'a> {
    pub set: &'a ReplicaSet,
    /// The set's own pods, in any state.
    pub pods: &'a [Arc<Pod>],
    /// Pods of the set and its siblings.
    pub related: &'a [Arc<Pod>],
    pub now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub create: usize,
    pub delete: Vec<ObjectMeta>,
    pub status: ReplicaSetStatus,
    /// When a ready pod becomes available by time alone.
    pub again: Option<Duration>,
}

/// The plan of one round.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { set, pods, related, now } = observed;
    let active: Vec<&Arc<Pod>> = pods.iter().filter(|pod| pod.is_active()).collect();
    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    let (create, delete) = match active.len().cmp(&wanted) {
        Ordering::Less => ((wanted - active.len()).min(BURST), Vec::new()),
        Ordering::Equal => (0, Vec::new()),
        Ordering::Greater => (0, victims(&active, related, (active.len() - wanted).min(BURST), *now)),
    };

    let labels = template_labels(&set.spec.template);
    let fully_labelled = active.iter().filter(|pod| labels.iter().all(|(k, v)| pod.metadata.labels.get(k) == Some(v))).count();
    let ready = active.iter().filter(|pod| pod.is_ready()).count();
    let available = active.iter().filter(|pod| pod.is_available(set.spec.min_ready_seconds, *now)).count();
    let terminating = pods.iter().filter(|pod| pod.metadata.is_deleting() && !pod.is_terminal()).count();
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: count(fully_labelled),
        ready_replicas: count(ready),
        available_replicas: count(available),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.metadata.generation,
        conditions: set.status.conditions.clone(),
    };
    let again = active.iter().filter_map(|pod| until_available(pod, set.spec.min_ready_seconds, *now)).min();
    Plan { create, delete, status, again }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Time until a ready pod counts as available; nothing when it already does or is not ready.
pub fn until_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let since = Condition::find(&pod.status.conditions, "Ready").filter(|c| c.is_true())?.last_transition_time?;
    let due = since.plus(Duration::from_secs(u64::try_from(min_ready_seconds).ok()?));
    Duration::try_from(due.0.duration_since(now)).ok().filter(|left| !left.is_zero())
}

fn victims(active: &[&Arc<Pod>], related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<ObjectMeta> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pod.is_active() && !pod.spec.node_name.is_empty()) {
        *on_node.entry(pod.spec.node_name.as_str()).or_default() += 1;
    }
    let mut ranked: Vec<&Arc<Pod>> = active.to_vec();
    ranked.sort_by(|a, b| compare(a, b, &on_node, now));
    ranked.into_iter().take(count).map(|pod| pod.metadata.clone()).collect()
}

/// `Less` is deleted first. Upstream's ActivePodsWithRanks, rule by rule.
fn compare(a: &Pod, b: &Pod, on_node: &HashMap<&str, usize>, now: Timestamp) -> Ordering {
    let phase = |pod: &Pod| match pod.status.phase.as_str() {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let ready_since = |pod: &Pod| {
        let condition = Condition::find(&pod.status.conditions, "Ready").filter(|condition| condition.is_true());
        condition.and_then(|condition| condition.last_transition_time)
    };
    // Ages are compared by their order of magnitude, so that pods of about the same age are spread rather than sorted.
    let age_rank = |at: Option<Time>| at.map(|at| (at.age(now).as_secs() + 1).ilog2());
    let rank = |pod: &Pod| on_node.get(pod.spec.node_name.as_str()).copied().unwrap_or(0);
    let restarts = |pod: &Pod| pod.status.container_statuses.iter().map(|c| c.restart_count).max().unwrap_or(0);
    (!a.spec.node_name.is_empty())
        .cmp(&!b.spec.node_name.is_empty())
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank(b).cmp(&rank(a)))
        .then_with(|| if a.is_ready() && b.is_ready() { age_rank(ready_since(a)).cmp(&age_rank(ready_since(b))) } else { Ordering::Equal })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age_rank(a.metadata.creation_timestamp).cmp(&age_rank(b.metadata.creation_timestamp)))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.metadata.annotations.get("controller.kubernetes.io/pod-deletion-cost").and_then(|cost| cost.parse().ok()).unwrap_or(0)
}
