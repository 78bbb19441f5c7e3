//! Pods, nodes and snapshots for the tests of the plugins, written as the API writes them.

use std::sync::Arc;

use serde_json::Value;

use crate::framework::{Plugin, Unfit};
use crate::snapshot::{Cache, PodInfo, Snapshot};

/// A pod from its JSON.
pub fn pod(json: Value) -> Arc<PodInfo> {
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(json).unwrap())))
}

/// A snapshot of nodes and the pods bound to them.
pub fn snapshot(nodes: &[Value], pods: &[Value]) -> Snapshot {
    let mut cache = Cache::default();
    for node in nodes {
        cache.set_node(Arc::new(serde_json::from_value(node.clone()).unwrap()));
    }
    for pod in pods {
        cache.set_pod(Arc::new(serde_json::from_value(pod.clone()).unwrap()));
    }
    cache.snapshot()
}

/// The plugin by name.
pub fn plugin(name: &str) -> &'static Plugin {
    crate::framework::PLUGINS.iter().find(|p| p.name == name).unwrap()
}

/// What the plugin says of each node, in name order.
pub fn filter(name: &str, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Vec<Result<(), Unfit>> {
    match (plugin(name).prepare)(pod, snapshot) {
        None => snapshot.nodes.values().map(|_| Ok(())).collect(),
        Some(prepared) => snapshot.nodes.values().map(|n| prepared.filter(n)).collect(),
    }
}

/// The plugin's normalised scores, in name order.
pub fn scores(name: &str, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Vec<i64> {
    match (plugin(name).prepare)(pod, snapshot) {
        None => vec![0; snapshot.nodes.len()],
        Some(prepared) => {
            let mut scores: Vec<_> = snapshot.nodes.values().map(|n| prepared.score(n)).collect();
            prepared.normalize(&mut scores);
            scores
        }
    }
}

/// Whether each node fits.
pub fn fits(name: &str, pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Vec<bool> {
    filter(name, pod, snapshot).into_iter().map(|r| r.is_ok()).collect()
}
