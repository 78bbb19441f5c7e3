//! Taints keep pods away that do not tolerate them; `PreferNoSchedule` only makes a node less liked.

use std::sync::Arc;

use crate::framework::{Prepared, Unfit, scale};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::types::Toleration;

struct TaintToleration {
    tolerations: Vec<Toleration>,
}

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(pod: &Arc<PodInfo>, _: &Snapshot) -> Option<Box<dyn Prepared>> {
    Some(Box::new(TaintToleration { tolerations: pod.pod.spec.tolerations.clone() }))
}

impl Prepared for TaintToleration {
    fn filter(&self, node: &NodeInfo) -> Result<(), Unfit> {
        let untolerated = (node.node.spec.taints.iter())
            .find(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute") && !self.tolerations.iter().any(|x| x.tolerates(t)));
        match untolerated {
            None => Ok(()),
            Some(_) => Err(Unfit::unresolvable("node(s) had untolerated taint(s)")),
        }
    }

    fn score(&self, node: &NodeInfo) -> i64 {
        let soft: Vec<_> = self.tolerations.iter().filter(|t| t.effect.is_empty() || t.effect == "PreferNoSchedule").collect();
        let intolerable =
            (node.node.spec.taints.iter()).filter(|t| t.effect == "PreferNoSchedule" && !soft.iter().any(|x| x.tolerates(t))).count();
        i64::try_from(intolerable).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::plugins::fixtures::{fits, pod, scores, snapshot};

    #[test]
    fn hard_taints_filter_and_soft_ones_score() {
        let s = snapshot(
            &[
                json!({"metadata": {"name": "a"}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
                json!({"metadata": {"name": "b"}, "spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}}),
                json!({"metadata": {"name": "c"}}),
            ],
            &[],
        );
        assert_eq!(fits("TaintToleration", &pod(json!({})), &s), [false, true, true]);
        assert_eq!(scores("TaintToleration", &pod(json!({})), &s), [100, 0, 100]);
        let tolerating = pod(json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}}));
        assert_eq!(fits("TaintToleration", &tolerating, &s), [true, true, true]);
        assert_eq!(scores("TaintToleration", &tolerating, &s), [100, 100, 100]);
    }
}
