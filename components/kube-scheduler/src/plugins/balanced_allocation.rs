//! Prefers nodes on which cpu and memory would be used in like measure: 100 less the standard deviation of the used fractions.

use std::sync::Arc;

use crate::framework::{MAX_SCORE, Prepared};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

struct BalancedAllocation {
    pod: Arc<PodInfo>,
}

/// See [`crate::framework::Plugin::prepare`]. A pod that requests neither cpu nor memory is not scored.
pub fn prepare(pod: &Arc<PodInfo>, _: &Snapshot) -> Option<Box<dyn Prepared>> {
    let asks = pod.requests.get("cpu") > 0 || pod.requests.get("memory") > 0;
    asks.then(|| Box::new(BalancedAllocation { pod: Arc::clone(pod) }) as _)
}

impl Prepared for BalancedAllocation {
    fn score(&self, node: &NodeInfo) -> i64 {
        let fraction = |name: &str| {
            let allocatable = node.allocatable.get(name);
            let used = node.requested.get(name).saturating_add(self.pod.requests.get(name));
            (allocatable > 0).then(|| (used as f64 / allocatable as f64).min(1.0))
        };
        let deviation = match (fraction("cpu"), fraction("memory")) {
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::plugins::fixtures::{pod, scores, snapshot};

    #[test]
    fn even_use_scores_best() {
        let nodes = [
            json!({"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "1", "memory": "1000"}}}),
            json!({"metadata": {"name": "b"}, "status": {"allocatable": {"cpu": "1", "memory": "2000"}}}),
        ];
        let p = pod(json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "500m", "memory": "500"}}}]}}));
        assert_eq!(scores("NodeResourcesBalancedAllocation", &p, &snapshot(&nodes, &[])), [100, 87]);
        assert_eq!(scores("NodeResourcesBalancedAllocation", &pod(json!({})), &snapshot(&nodes, &[])), [0, 0]);
    }
}
