//! The scheduler's state: cache, queue and nominations behind one lock. Changes of the cluster go in, decisions come out; no I/O.

use std::collections::HashMap;
use std::sync::Arc;

use crate::preemption::{self, ExhaustedBudgets, Preemption};
use crate::queue::{ClusterEvent, Counts, Queue};
use crate::schedule::{Decision, FitError, schedule};
use crate::snapshot::{Cache, PodInfo, Snapshot};
use crate::types::{Node, Pod, StringMap};

/// Pods with this name (or none) are ours.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// What one attempt led to, to be carried out by the caller.
#[derive(Debug, Clone, PartialEq)]
pub enum Attempt {
    /// The pod counts on the node already; bind it there.
    Bind {
        /// Pod.
        pod: Arc<PodInfo>,
        /// Node.
        node: String,
    },
    /// Tell people, and make room if that helps.
    Unschedulable {
        /// Pod.
        pod: Arc<PodInfo>,
        /// Why.
        error: FitError,
        /// Whom to remove.
        preemption: Option<Preemption>,
    },
}

/// Cache, queue and nominations.
#[derive(Default)]
pub struct State {
    cache: Cache,
    queue: Queue,
    /// Pods that wait for the victims of their preemption to go, by UID.
    nominated: HashMap<String, (String, Arc<PodInfo>)>,
}

impl State {
    /// A pod appeared or changed.
    pub fn set_pod(&mut self, old: Option<&Pod>, pod: &Arc<Pod>, now_ms: u64) {
        let uid = &pod.metadata.uid;
        if pod.is_terminal() {
            self.remove_pod(pod, now_ms);
        } else if pod.is_assigned() {
            self.queue.remove(uid);
            self.nominated.remove(uid);
            let newly = !old.is_some_and(Pod::is_assigned);
            self.cache.set_pod(Arc::clone(pod));
            if newly {
                self.queue.on_event(ClusterEvent::PodBound, now_ms);
            }
        } else if pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(uid);
            self.nominated.remove(uid);
        } else if (pod.spec.scheduler_name.is_empty() || pod.spec.scheduler_name == SCHEDULER_NAME) && !self.cache.is_assumed(uid) {
            self.queue.set(Arc::new(PodInfo::new(Arc::clone(pod))), now_ms);
        }
    }

    /// A pod is gone, or needs its node no more.
    pub fn remove_pod(&mut self, pod: &Pod, now_ms: u64) {
        self.queue.remove(&pod.metadata.uid);
        self.nominated.remove(&pod.metadata.uid);
        self.cache.remove_pod(&pod.metadata.uid);
        if pod.is_assigned() {
            self.queue.on_event(ClusterEvent::PodDeleted, now_ms);
        }
    }

    /// A node appeared or changed.
    pub fn set_node(&mut self, old: Option<&Node>, node: &Arc<Node>, now_ms: u64) {
        let event = match old {
            None => Some(ClusterEvent::NodeAdded),
            // Heartbeats change neither of these and wake nobody.
            Some(old) => {
                (old.spec != node.spec || old.metadata.labels != node.metadata.labels || old.status.allocatable != node.status.allocatable)
                    .then_some(ClusterEvent::NodeChanged)
            }
        };
        if event.is_some() || old.is_none_or(|old| old.status != node.status) {
            self.cache.set_node(Arc::clone(node));
        }
        if let Some(event) = event {
            self.queue.on_event(event, now_ms);
        }
    }

    /// A node is gone.
    pub fn remove_node(&mut self, name: &str) {
        self.cache.remove_node(name);
    }

    /// A namespace's labels.
    pub fn set_namespace(&mut self, name: &str, labels: StringMap, now_ms: u64) {
        self.cache.set_namespace(name, labels);
        self.queue.on_event(ClusterEvent::NamespaceChanged, now_ms);
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.cache.remove_namespace(name);
    }

    /// Tries the next pod, if one is ready. `tie` decides between equally good nodes.
    pub fn attempt(&mut self, budgets: &ExhaustedBudgets, now_ms: u64, tie: u64) -> Option<Attempt> {
        for (uid, node) in self.cache.expire(now_ms) {
            tracing::warn!(uid, node, "a binding was never confirmed; the pod no longer counts on the node");
        }
        let pod = self.queue.pop(now_ms)?;
        let snapshot = self.snapshot_for(&pod);
        match schedule(&pod, &snapshot, tie) {
            Decision::Node(node) => {
                self.nominated.remove(&pod.pod.metadata.uid);
                self.cache.assume(Arc::clone(&pod), &node, now_ms);
                Some(Attempt::Bind { pod, node })
            }
            Decision::Unschedulable(mut error) => {
                let uid = pod.pod.metadata.uid.clone();
                // Victims on their way out make room soon: no second round of them meanwhile.
                let waits = self.nominated.get(&uid).is_some_and(|(node, _)| self.has_leaving_pods(node, pod.pod.priority()));
                let preemption = if waits { None } else { preemption::plan(&pod, &snapshot, &error, budgets) };
                match &preemption {
                    Some(p) => {
                        self.nominated.insert(uid.clone(), (p.node.clone(), Arc::clone(&pod)));
                    }
                    None if !waits => {
                        self.nominated.remove(&uid);
                        error.preemption = Some(no_preemption(&error));
                    }
                    None => {}
                }
                self.queue.unschedulable(&uid, error.plugins.clone(), now_ms);
                Some(Attempt::Unschedulable { pod, error, preemption })
            }
        }
    }

    /// The binding went through; the API's own word follows.
    pub fn bound(&mut self, uid: &str) {
        self.queue.remove(uid);
    }

    /// The binding was refused: the pod's place is free again, and it is tried again unless it is gone.
    pub fn binding_failed(&mut self, uid: &str, gone: bool, now_ms: u64) {
        self.cache.forget(uid);
        if gone {
            self.queue.remove(uid);
        } else {
            self.queue.retry(uid, now_ms);
        }
        self.queue.on_event(ClusterEvent::PodDeleted, now_ms);
    }

    /// When something may be ready that is not now.
    pub fn next_wake_ms(&self) -> Option<u64> {
        self.queue.next_wake_ms()
    }

    /// Pending pods by where they wait.
    pub fn counts(&self) -> Counts {
        self.queue.counts()
    }

    fn has_leaving_pods(&self, node: &str, priority: i32) -> bool {
        self.cache
            .snapshot()
            .nodes
            .get(node)
            .is_some_and(|n| n.pods.values().any(|p| p.pod.metadata.deletion_timestamp.is_some() && p.pod.priority() < priority))
    }

    /// The snapshot as this pod must see it: room promised to pods at least as important is taken.
    fn snapshot_for(&self, pod: &PodInfo) -> Snapshot {
        let mut snapshot = self.cache.snapshot();
        for (uid, (node, other)) in &self.nominated {
            if *uid != pod.pod.metadata.uid
                && other.pod.priority() >= pod.pod.priority()
                && let Some(info) = snapshot.nodes.get_mut(node)
            {
                Arc::make_mut(info).add(Arc::clone(other));
            }
        }
        snapshot
    }
}

/// Why nobody is preempted, in upstream's words.
fn no_preemption(error: &FitError) -> String {
    let hopeless = error.unfit.values().filter(|u| u.unresolvable).count();
    let clauses = [
        (error.unfit.len() - hopeless, "No preemption victims found for incoming pod"),
        (hopeless, "Preemption is not helpful for scheduling"),
    ];
    let clauses: Vec<_> = clauses.iter().filter(|(n, _)| *n > 0).map(|(n, text)| format!("{n} {text}")).collect();
    format!("preemption: 0/{} nodes are available: {}.", error.nodes, clauses.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(json: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn pending(uid: &str, cpu: &str, priority: i32) -> Arc<Pod> {
        pod(
            json!({"metadata": {"uid": uid, "name": uid, "namespace": "d"}, "spec": {"priority": priority, "schedulerName": "default-scheduler",
            "containers": [{"resources": {"requests": {"cpu": cpu}}}]}}),
        )
    }

    fn bound_to(pod: &Pod, node: &str) -> Arc<Pod> {
        let mut bound = pod.clone();
        bound.spec.node_name = node.into();
        Arc::new(bound)
    }

    fn with_node(cpu: &str) -> State {
        let mut state = State::default();
        let node = json!({"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": cpu, "pods": "10", "memory": "1Gi"}}});
        state.set_node(None, &Arc::new(serde_json::from_value(node).unwrap()), 0);
        state
    }

    #[test]
    fn room_is_taken_at_once_and_given_back_when_the_binding_fails() {
        let mut state = with_node("1");
        state.set_pod(None, &pending("p", "600m", 0), 0);
        state.set_pod(None, &pending("q", "600m", 0), 1);
        assert!(matches!(state.attempt(&[], 1, 0), Some(Attempt::Bind { ref node, .. }) if node == "a"));
        assert!(matches!(state.attempt(&[], 1, 0), Some(Attempt::Unschedulable { .. })), "p counts before the API has confirmed it");
        state.binding_failed("p", true, 2_000);
        assert!(matches!(state.attempt(&[], 4_000, 0), Some(Attempt::Bind { pod, .. }) if pod.pod.metadata.uid == "q"));
    }

    #[test]
    fn another_schedulers_pods_and_leaving_pods_are_not_tried() {
        let mut state = with_node("1");
        state.set_pod(None, &pod(json!({"metadata": {"uid": "p"}, "spec": {"schedulerName": "mine"}})), 0);
        state.set_pod(None, &pod(json!({"metadata": {"uid": "q", "deletionTimestamp": "2026-01-01T00:00:00Z"}})), 0);
        assert_eq!(state.attempt(&[], 0, 0), None);
    }

    #[test]
    fn a_preemptor_gets_the_room_it_made_and_nobody_less_important_takes_it() {
        let mut state = with_node("1");
        let victim = bound_to(&pending("victim", "800m", 0), "a");
        state.set_pod(None, &victim, 0);
        state.set_pod(None, &pending("vip", "800m", 100), 0);
        let Some(Attempt::Unschedulable { preemption: Some(plan), .. }) = state.attempt(&[], 0, 0) else { panic!("no preemption") };
        assert_eq!((plan.node.as_str(), plan.victims[0].pod.metadata.uid.as_str()), ("a", "victim"));
        let mut leaving = (*victim).clone();
        leaving.metadata.deletion_timestamp = Some(k8s_client::Time::now());
        state.set_pod(Some(&victim), &Arc::new(leaving.clone()), 10);
        state.set_pod(None, &pending("small", "500m", 0), 20);
        assert!(matches!(state.attempt(&[], 20, 0), Some(Attempt::Unschedulable { preemption: None, .. })), "small waits");
        state.remove_pod(&leaving, 5_000);
        let next: Vec<_> = (0..2).filter_map(|_| state.attempt(&[], 20_000, 0)).collect();
        assert!(matches!(&next[0], Attempt::Bind { pod, .. } if pod.pod.metadata.uid == "vip"), "{next:?}");
        assert!(matches!(&next[1], Attempt::Unschedulable { .. }), "{next:?}");
    }
}
