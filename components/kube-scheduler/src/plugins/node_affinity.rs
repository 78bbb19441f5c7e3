//! `nodeSelector` and node affinity: required terms filter, preferred ones score.

use std::sync::Arc;

use crate::framework::{Prepared, Unfit, scale};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::types::{NodeSelectorTerm, StringMap};

/// The pod's demands on a node's labels; also used by topology spread.
pub struct NodeAffinity {
    pod: Arc<PodInfo>,
}

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(pod: &Arc<PodInfo>, _: &Snapshot) -> Option<Box<dyn Prepared>> {
    let spec = &pod.pod.spec;
    let wanted = !spec.node_selector.is_empty() || spec.affinity.as_ref().is_some_and(|a| a.node_affinity.is_some());
    wanted.then(|| Box::new(NodeAffinity { pod: Arc::clone(pod) }) as _)
}

/// An empty term matches no node (API reference, NodeSelectorTerm).
fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    let labels = &node.node.metadata.labels;
    let fields: StringMap = [("metadata.name".to_string(), node.name().to_string())].into();
    term.match_expressions.iter().all(|r| r.matches(labels)) && term.match_fields.iter().all(|r| r.matches(&fields))
}

/// `nodeSelector` and the required terms hold on the node.
pub fn required_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let spec = &pod.pod.spec;
    let labels = &node.node.metadata.labels;
    if !spec.node_selector.iter().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    let required = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()).and_then(|n| n.required.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, node)))
}

impl Prepared for NodeAffinity {
    fn filter(&self, node: &NodeInfo) -> Result<(), Unfit> {
        if required_matches(&self.pod, node) {
            return Ok(());
        }
        Err(Unfit::unresolvable("node(s) didn't match Pod's node affinity/selector"))
    }

    fn score(&self, node: &NodeInfo) -> i64 {
        let preferred = self.pod.pod.spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()).map(|n| n.preferred.as_slice());
        preferred.unwrap_or_default().iter().filter(|p| term_matches(&p.preference, node)).map(|p| i64::from(p.weight)).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::plugins::fixtures::{fits, pod, scores, snapshot};

    #[test]
    fn selector_and_terms() {
        let s = snapshot(
            &[json!({"metadata": {"name": "a", "labels": {"zone": "1"}}}), json!({"metadata": {"name": "b", "labels": {"zone": "2"}}})],
            &[],
        );
        let required = |terms| json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}});
        let table = [
            (json!({"spec": {"nodeSelector": {"zone": "1"}}}), [true, false]),
            (required(json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["2"]}]}])), [false, true]),
            (required(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}])), [true, false]),
            (required(json!([{}])), [false, false]),
            (required(json!([{}, {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}])), [true, true]),
        ];
        for (p, expect) in table {
            assert_eq!(fits("NodeAffinity", &pod(p.clone()), &s), expect, "{p}");
        }
        let preferred = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["2"]}]}}]}}}});
        assert_eq!(scores("NodeAffinity", &pod(preferred), &s), [0, 100]);
    }
}
