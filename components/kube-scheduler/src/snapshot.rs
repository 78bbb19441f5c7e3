//! What the scheduler believes about the cluster: nodes with the pods on them, bound or assumed.
//!
//! [`Cache`] follows the API; an assumed pod counts on its node until the API confirms the binding, refuses it, or the assumption expires.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::resources::{Resources, pod_requests};
use crate::types::{Node, Pod};

/// A pod on a node, with what it asks for computed once.
#[derive(Debug, Clone, PartialEq)]
pub struct PodInfo {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Requests as stated.
    pub requests: Resources,
    /// Requests with the defaults that scoring assumes.
    pub scoring_requests: Resources,
}

impl PodInfo {
    /// Computes the sums.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { requests: pod_requests(&pod, false), scoring_requests: pod_requests(&pod, true), pod }
    }
}

/// A node and what runs on it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeInfo {
    /// The node.
    pub node: Arc<Node>,
    /// What its pods may use.
    pub allocatable: Resources,
    /// Sum of the requests of its pods.
    pub requested: Resources,
    /// The same with scoring defaults.
    pub scoring_requested: Resources,
    /// Its pods by UID.
    pub pods: BTreeMap<String, Arc<PodInfo>>,
}

impl NodeInfo {
    /// Name of the node.
    pub fn name(&self) -> &str {
        &self.node.metadata.name
    }

    /// A node with pods on it.
    pub fn new(node: Arc<Node>, pods: impl IntoIterator<Item = Arc<PodInfo>>) -> Self {
        let mut info = Self { allocatable: node.status.allocatable(), node, ..Self::default() };
        for pod in pods {
            info.add(pod);
        }
        info
    }

    /// Adds a pod; a second add of one UID replaces the first.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.remove(&pod.pod.metadata.uid);
        self.requested.add(&pod.requests);
        self.scoring_requested.add(&pod.scoring_requests);
        self.pods.insert(pod.pod.metadata.uid.clone(), pod);
    }

    /// Removes a pod by UID.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested.sub(&pod.requests);
        self.scoring_requested.sub(&pod.scoring_requests);
        Some(pod)
    }
}

/// Nodes in name order, and how many nodes have each image.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<NodeInfo>>,
    /// Labels of namespaces, for namespace selectors of affinity terms.
    pub namespace_labels: Arc<HashMap<String, crate::types::StringMap>>,
}

impl Snapshot {
    /// In how many nodes an image name is present.
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.nodes.values().filter(|n| n.node.status.images.iter().any(|i| i.names.iter().any(|x| x == name))).count()
    }
}

struct Assumed {
    node: String,
    deadline_ms: u64,
}

/// The live state that snapshots are taken of.
#[derive(Default)]
pub struct Cache {
    nodes: BTreeMap<String, Arc<NodeInfo>>,
    /// Pods on nodes that are not known (yet): they count when the node appears.
    orphans: BTreeMap<String, BTreeMap<String, Arc<PodInfo>>>,
    /// Where each pod counts.
    placed: HashMap<String, String>,
    assumed: HashMap<String, Assumed>,
    namespace_labels: Arc<HashMap<String, crate::types::StringMap>>,
}

/// How long an assumed pod counts without confirmation after its binding succeeded.
pub const ASSUME_FOR_MS: u64 = 15 * 60 * 1000;

impl Cache {
    /// A cheap copy: nodes are shared until they change.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { nodes: self.nodes.clone(), namespace_labels: Arc::clone(&self.namespace_labels) }
    }

    /// A node appeared or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone();
        let pods: Vec<_> = match self.nodes.remove(&name) {
            Some(old) => old.pods.values().cloned().collect(),
            None => self.orphans.remove(&name).unwrap_or_default().into_values().collect(),
        };
        self.nodes.insert(name, Arc::new(NodeInfo::new(node, pods)));
    }

    /// A node went away; its pods are kept until they do too.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(old) = self.nodes.remove(name)
            && !old.pods.is_empty()
        {
            self.orphans.insert(name.to_string(), old.pods.clone());
        }
    }

    /// A namespace appeared or changed.
    pub fn set_namespace(&mut self, name: &str, labels: crate::types::StringMap) {
        Arc::make_mut(&mut self.namespace_labels).insert(name.to_string(), labels);
    }

    /// A namespace went away.
    pub fn remove_namespace(&mut self, name: &str) {
        Arc::make_mut(&mut self.namespace_labels).remove(name);
    }

    /// The API says the pod is on a node (or, when terminal, no longer uses it).
    pub fn set_pod(&mut self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone();
        if pod.is_terminal() || !pod.is_assigned() {
            self.remove_pod(&uid);
            return;
        }
        self.assumed.remove(&uid);
        let node = pod.spec.node_name.clone();
        self.place(Arc::new(PodInfo::new(pod)), &node);
    }

    /// The pod is gone.
    pub fn remove_pod(&mut self, uid: &str) {
        self.assumed.remove(uid);
        self.unplace(uid);
    }

    /// Counts a pod on the node chosen for it before the API has confirmed.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str, now_ms: u64) {
        let uid = pod.pod.metadata.uid.clone();
        self.place(pod, node);
        self.assumed.insert(uid, Assumed { node: node.to_string(), deadline_ms: now_ms + ASSUME_FOR_MS });
    }

    /// The binding failed: the pod no longer counts, unless the API meanwhile said it is bound.
    pub fn forget(&mut self, uid: &str) {
        if self.assumed.remove(uid).is_some() {
            self.unplace(uid);
        }
    }

    /// The pod waits for the confirmation of its binding.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.assumed.contains_key(uid)
    }

    /// Drops assumptions nobody confirmed; the pods' UIDs and nodes are returned for the log.
    pub fn expire(&mut self, now_ms: u64) -> Vec<(String, String)> {
        let expired: Vec<_> =
            self.assumed.iter().filter(|(_, a)| a.deadline_ms <= now_ms).map(|(uid, a)| (uid.clone(), a.node.clone())).collect();
        for (uid, _) in &expired {
            self.forget(uid);
        }
        expired
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        let uid = pod.pod.metadata.uid.clone();
        self.unplace(&uid);
        match self.nodes.get_mut(node) {
            Some(info) => Arc::make_mut(info).add(pod),
            None => {
                self.orphans.entry(node.to_string()).or_default().insert(uid.clone(), pod);
            }
        }
        self.placed.insert(uid, node.to_string());
    }

    fn unplace(&mut self, uid: &str) {
        let Some(node) = self.placed.remove(uid) else { return };
        if let Some(info) = self.nodes.get_mut(&node) {
            Arc::make_mut(info).remove(uid);
        } else if let Some(pods) = self.orphans.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.orphans.remove(&node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Arc<Node> {
        Arc::new(serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2"}}})).unwrap())
    }

    fn pod(uid: &str, node: &str, cpu: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(serde_json::json!({"metadata": {"name": uid, "uid": uid}, "spec": {"nodeName": node,
                "containers": [{"resources": {"requests": {"cpu": cpu}}}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn an_assumed_pod_counts_until_forgotten_or_confirmed() {
        let mut cache = Cache::default();
        cache.set_node(node("a"));
        let used = |c: &Cache| c.snapshot().nodes["a"].requested.get("cpu");
        cache.assume(Arc::new(PodInfo::new(pod("p", "", "500m"))), "a", 0);
        assert_eq!(used(&cache), 500);
        cache.forget("p");
        assert_eq!(used(&cache), 0);
        cache.assume(Arc::new(PodInfo::new(pod("p", "", "500m"))), "a", 0);
        cache.set_pod(pod("p", "a", "500m"));
        cache.forget("p");
        assert_eq!(used(&cache), 500, "a confirmed pod is not forgotten");
        assert!(cache.expire(u64::MAX).is_empty());
        cache.remove_pod("p");
        assert_eq!(used(&cache), 0);
    }

    #[test]
    fn pods_of_an_unknown_node_count_when_it_appears_and_survive_its_going() {
        let mut cache = Cache::default();
        cache.set_pod(pod("p", "a", "1"));
        cache.set_node(node("a"));
        assert_eq!(cache.snapshot().nodes["a"].requested.get("cpu"), 1000);
        cache.remove_node("a");
        cache.set_node(node("a"));
        assert_eq!(cache.snapshot().nodes["a"].requested.get("cpu"), 1000);
    }

    #[test]
    fn an_unconfirmed_assumption_expires() {
        let mut cache = Cache::default();
        cache.set_node(node("a"));
        cache.assume(Arc::new(PodInfo::new(pod("p", "", "1"))), "a", 0);
        assert_eq!(cache.expire(ASSUME_FOR_MS - 1), vec![]);
        assert_eq!(cache.expire(ASSUME_FOR_MS), vec![("p".to_string(), "a".to_string())]);
        assert_eq!(cache.snapshot().nodes["a"].requested.get("cpu"), 0);
    }
}
