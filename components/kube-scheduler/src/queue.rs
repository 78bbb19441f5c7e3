//! The scheduling queue: pods ready to be tried, pods backing off, pods nothing has changed for, and pods held by gates.
//!
//! Time is a parameter (milliseconds of a monotonic clock). The queue holds at most what the API holds: one entry per pending pod.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::snapshot::PodInfo;

/// Back-off after the first failed attempt.
pub const INITIAL_BACKOFF_MS: u64 = 1_000;
/// Longest back-off.
pub const MAX_BACKOFF_MS: u64 = 10_000;
/// A pod that nothing has changed for is tried again after this long all the same.
pub const UNSCHEDULABLE_FOR_MS: u64 = 5 * 60 * 1_000;

/// Something that changed in the cluster and may let a pod fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A node appeared.
    NodeAdded,
    /// A node's labels, taints, allocatable or unschedulable changed.
    NodeChanged,
    /// A pod left a node.
    PodDeleted,
    /// A pod was bound.
    PodBound,
    /// A namespace's labels changed.
    NamespaceChanged,
}

impl ClusterEvent {
    /// The event may cure what the plugin refused for.
    fn may_help(self, plugin: &str) -> bool {
        match self {
            Self::NodeAdded => true,
            Self::NodeChanged => plugin != "NodePorts",
            Self::PodDeleted => matches!(plugin, "NodeResourcesFit" | "NodePorts" | "PodTopologySpread" | "InterPodAffinity"),
            Self::PodBound => matches!(plugin, "PodTopologySpread" | "InterPodAffinity"),
            Self::NamespaceChanged => plugin == "InterPodAffinity",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    Backoff {
        until_ms: u64,
    },
    Unschedulable {
        since_ms: u64,
    },
    Gated,
    /// Popped, being scheduled or bound.
    InFlight,
}

/// Order among active pods: higher priority first, then longer waiting.
type ActiveKey = (Reverse<i32>, u64, String);

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    added_ms: u64,
    plugins: Vec<&'static str>,
}

impl Entry {
    fn active_key(&self) -> ActiveKey {
        (Reverse(self.pod.pod.priority()), self.added_ms, self.pod.pod.metadata.uid.clone())
    }

    fn backoff_ms(&self) -> u64 {
        let doublings = self.attempts.saturating_sub(1).min(10);
        (INITIAL_BACKOFF_MS << doublings).min(MAX_BACKOFF_MS)
    }
}

/// How many pods are where, for the `scheduler_pending_pods` metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Ready to be tried.
    pub active: usize,
    /// Backing off.
    pub backoff: usize,
    /// Waiting for a change.
    pub unschedulable: usize,
    /// Held by gates.
    pub gated: usize,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeSet<ActiveKey>,
}

impl Queue {
    /// A pending pod appeared or changed.
    pub fn set(&mut self, pod: Arc<PodInfo>, now_ms: u64) {
        let uid = pod.pod.metadata.uid.clone();
        let gated = !pod.pod.spec.scheduling_gates.is_empty();
        let Some(entry) = self.entries.get_mut(&uid) else {
            let place = if gated { Place::Gated } else { Place::Active };
            let entry = Entry { pod, place, attempts: 0, added_ms: now_ms, plugins: vec![] };
            if place == Place::Active {
                self.active.insert(entry.active_key());
            }
            self.entries.insert(uid, entry);
            return;
        };
        // Only what placement depends on wakes a pod; its own status updates do not.
        let changed = entry.pod.pod.spec != pod.pod.spec || entry.pod.pod.metadata.labels != pod.pod.metadata.labels;
        let place = entry.place;
        if place == Place::Active {
            self.active.remove(&entry.active_key());
        }
        entry.pod = pod;
        match place {
            Place::Active if !gated => {
                self.active.insert(entry.active_key());
            }
            Place::Active => entry.place = Place::Gated,
            Place::Gated if !gated => self.activate(&uid),
            Place::Unschedulable { .. } if changed => self.wake(&uid, now_ms),
            _ => {}
        }
    }

    /// The pod is gone or bound.
    pub fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.entries.remove(uid) {
            self.active.remove(&entry.active_key());
        }
    }

    /// The next pod to try.
    pub fn pop(&mut self, now_ms: u64) -> Option<Arc<PodInfo>> {
        self.flush(now_ms);
        let (_, _, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts += 1;
        Some(Arc::clone(&entry.pod))
    }

    /// No node fits: wait for an event that concerns one of the plugins that refused.
    pub fn unschedulable(&mut self, uid: &str, plugins: Vec<&'static str>, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.plugins = plugins;
            entry.place = Place::Unschedulable { since_ms: now_ms };
        }
    }

    /// The attempt failed for another reason (the binding was refused, the API was away): back off and try again.
    pub fn retry(&mut self, uid: &str, now_ms: u64) {
        self.wake(uid, now_ms);
    }

    /// Something changed.
    pub fn on_event(&mut self, event: ClusterEvent, now_ms: u64) {
        let concerned: Vec<_> = (self.entries.iter())
            .filter(|(_, e)| matches!(e.place, Place::Unschedulable { .. }))
            .filter(|(_, e)| e.plugins.is_empty() || e.plugins.iter().any(|p| event.may_help(p)))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in concerned {
            self.wake(&uid, now_ms);
        }
    }

    /// When [`Queue::pop`] may return something it does not return now.
    pub fn next_wake_ms(&self) -> Option<u64> {
        (self.entries.values())
            .filter_map(|e| match e.place {
                Place::Backoff { until_ms } => Some(until_ms),
                Place::Unschedulable { since_ms } => Some(since_ms + UNSCHEDULABLE_FOR_MS),
                _ => None,
            })
            .min()
    }

    /// How many pods are where.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in self.entries.values() {
            match entry.place {
                Place::Active => counts.active += 1,
                Place::Backoff { .. } => counts.backoff += 1,
                Place::Unschedulable { .. } => counts.unschedulable += 1,
                Place::Gated => counts.gated += 1,
                Place::InFlight => {}
            }
        }
        counts
    }

    fn activate(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::Active;
            self.active.insert(entry.active_key());
        }
    }

    fn wake(&mut self, uid: &str, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let until_ms = match entry.place {
            Place::Unschedulable { since_ms } => since_ms + entry.backoff_ms(),
            _ => now_ms + entry.backoff_ms(),
        };
        if until_ms <= now_ms {
            self.activate(uid);
        } else {
            entry.place = Place::Backoff { until_ms };
        }
    }

    fn flush(&mut self, now_ms: u64) {
        let due: Vec<_> = (self.entries.iter())
            .filter(|(_, e)| match e.place {
                Place::Backoff { until_ms } => until_ms <= now_ms,
                Place::Unschedulable { since_ms } => since_ms + UNSCHEDULABLE_FOR_MS <= now_ms,
                _ => false,
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            self.activate(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::fixtures::pod;

    fn named(uid: &str, priority: i32) -> Arc<PodInfo> {
        pod(json!({"metadata": {"uid": uid}, "spec": {"priority": priority}}))
    }

    fn popped(queue: &mut Queue, now: u64) -> Option<String> {
        queue.pop(now).map(|p| p.pod.metadata.uid.clone())
    }

    #[test]
    fn priority_first_then_the_longest_waiting() {
        let mut q = Queue::default();
        q.set(named("late", 0), 2);
        q.set(named("early", 0), 1);
        q.set(named("urgent", 5), 3);
        assert_eq!(
            [popped(&mut q, 3), popped(&mut q, 3), popped(&mut q, 3), popped(&mut q, 3)],
            [Some("urgent".into()), Some("early".into()), Some("late".into()), None]
        );
    }

    #[test]
    fn an_unschedulable_pod_waits_for_an_event_that_can_help() {
        let mut q = Queue::default();
        q.set(named("p", 0), 0);
        popped(&mut q, 0);
        q.unschedulable("p", vec!["NodeResourcesFit"], 0);
        q.on_event(ClusterEvent::PodBound, 5_000);
        assert_eq!(popped(&mut q, 5_000), None);
        q.on_event(ClusterEvent::PodDeleted, 5_000);
        assert_eq!(popped(&mut q, 5_000), Some("p".into()));
        q.unschedulable("p", vec!["NodeResourcesFit"], 5_000);
        q.on_event(ClusterEvent::NodeAdded, 5_001);
        assert_eq!((popped(&mut q, 5_001), q.next_wake_ms()), (None, Some(7_000)), "the second attempt backs off two seconds");
        assert_eq!(popped(&mut q, 7_000), Some("p".into()));
    }

    #[test]
    fn nothing_waits_for_ever() {
        let mut q = Queue::default();
        q.set(named("p", 0), 0);
        popped(&mut q, 0);
        q.unschedulable("p", vec!["NodeAffinity"], 0);
        assert_eq!(popped(&mut q, UNSCHEDULABLE_FOR_MS - 1), None);
        assert_eq!(popped(&mut q, UNSCHEDULABLE_FOR_MS), Some("p".into()));
    }

    #[test]
    fn a_gated_pod_is_not_tried_until_its_gates_are_gone() {
        let mut q = Queue::default();
        q.set(pod(json!({"metadata": {"uid": "p"}, "spec": {"schedulingGates": [{"name": "g"}]}})), 0);
        assert_eq!((popped(&mut q, 0), q.counts().gated), (None, 1));
        q.set(named("p", 0), 1);
        assert_eq!(popped(&mut q, 1), Some("p".into()));
    }

    #[test]
    fn back_off_grows_and_is_bounded() {
        let mut q = Queue::default();
        q.set(named("p", 0), 0);
        let (mut now, mut waits) = (0, vec![]);
        for _ in 0..6 {
            popped(&mut q, now);
            q.retry("p", now);
            let wake = q.next_wake_ms().unwrap();
            waits.push(wake - now);
            now = wake;
        }
        assert_eq!(waits, [1000, 2000, 4000, 8000, 10_000, 10_000]);
    }

    #[test]
    fn a_pod_deleted_while_in_flight_does_not_come_back() {
        let mut q = Queue::default();
        q.set(named("p", 0), 0);
        popped(&mut q, 0);
        q.remove("p");
        q.retry("p", 0);
        q.unschedulable("p", vec![], 0);
        assert_eq!(popped(&mut q, u64::MAX / 2), None);
    }
}
