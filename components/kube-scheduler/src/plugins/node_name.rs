//! A pod that names its node fits there only.

use std::sync::Arc;

use crate::framework::{Prepared, Unfit};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

struct NodeName(String);

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(pod: &Arc<PodInfo>, _: &Snapshot) -> Option<Box<dyn Prepared>> {
    let name = &pod.pod.spec.node_name;
    (!name.is_empty()).then(|| Box::new(NodeName(name.clone())) as _)
}

impl Prepared for NodeName {
    fn filter(&self, node: &NodeInfo) -> Result<(), Unfit> {
        if node.name() == self.0 { Ok(()) } else { Err(Unfit::unresolvable("node(s) didn't match the requested node name")) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::plugins::fixtures::{fits, pod, snapshot};

    #[test]
    fn only_the_named_node_fits() {
        let s = snapshot(&[json!({"metadata": {"name": "a"}}), json!({"metadata": {"name": "b"}})], &[]);
        assert_eq!(fits("NodeName", &pod(json!({"spec": {"nodeName": "b"}})), &s), [false, true]);
        assert_eq!(fits("NodeName", &pod(json!({})), &s), [true, true]);
    }
}
