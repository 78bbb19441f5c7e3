//! Cordoned nodes take only pods that tolerate it.

use std::sync::Arc;

use crate::framework::{Prepared, Unfit};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::types::Taint;

struct NodeUnschedulable {
    tolerated: bool,
}

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(pod: &Arc<PodInfo>, _: &Snapshot) -> Option<Box<dyn Prepared>> {
    let taint = Taint { key: "node.kubernetes.io/unschedulable".into(), value: String::new(), effect: "NoSchedule".into() };
    Some(Box::new(NodeUnschedulable { tolerated: pod.pod.spec.tolerations.iter().any(|t| t.tolerates(&taint)) }))
}

impl Prepared for NodeUnschedulable {
    fn filter(&self, node: &NodeInfo) -> Result<(), Unfit> {
        if node.node.spec.unschedulable && !self.tolerated {
            return Err(Unfit::unresolvable("node(s) were unschedulable"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::plugins::fixtures::{fits, pod, snapshot};

    #[test]
    fn a_cordoned_node_takes_only_tolerating_pods() {
        let s = snapshot(&[json!({"metadata": {"name": "a"}, "spec": {"unschedulable": true}}), json!({"metadata": {"name": "b"}})], &[]);
        assert_eq!(fits("NodeUnschedulable", &pod(json!({})), &s), [false, true]);
        let tolerating = pod(json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}}));
        assert_eq!(fits("NodeUnschedulable", &tolerating, &s), [true, true]);
    }
}
