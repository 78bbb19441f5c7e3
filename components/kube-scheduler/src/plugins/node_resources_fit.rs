//! A node fits when what is left covers the pod's requests; emptier nodes score higher (LeastAllocated over cpu and memory).

use std::sync::Arc;

use crate::framework::{MAX_SCORE, Prepared, Unfit};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

struct NodeResourcesFit {
    pod: Arc<PodInfo>,
}

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(pod: &Arc<PodInfo>, _: &Snapshot) -> Option<Box<dyn Prepared>> {
    Some(Box::new(NodeResourcesFit { pod: Arc::clone(pod) }))
}

/// The reasons the pod does not fit, empty when it does. Also asked by the kubelet's admission rules upstream, hence public.
pub fn insufficient(pod: &PodInfo, node: &NodeInfo) -> Unfit {
    let mut unfit = Unfit { reasons: vec![], unresolvable: false };
    let allowed = node.allocatable.get("pods");
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= allowed {
        unfit.reasons.push("Too many pods".into());
    }
    for (name, wanted) in pod.requests.iter().filter(|(_, amount)| *amount > 0) {
        let allocatable = node.allocatable.get(name);
        if wanted > allocatable.saturating_sub(node.requested.get(name)) {
            unfit.reasons.push(format!("Insufficient {name}"));
            unfit.unresolvable |= wanted > allocatable;
        }
    }
    unfit
}

impl Prepared for NodeResourcesFit {
    fn filter(&self, node: &NodeInfo) -> Result<(), Unfit> {
        let unfit = insufficient(&self.pod, node);
        if unfit.reasons.is_empty() { Ok(()) } else { Err(unfit) }
    }

    fn score(&self, node: &NodeInfo) -> i64 {
        let free = ["cpu", "memory"].map(|name| {
            let allocatable = node.allocatable.get(name);
            let used = node.scoring_requested.get(name).saturating_add(self.pod.scoring_requests.get(name));
            (allocatable > 0).then(|| {
                if used > allocatable {
                    0
                } else {
                    ((i128::from(allocatable - used) * i128::from(MAX_SCORE)) / i128::from(allocatable)) as i64
                }
            })
        });
        let counted: Vec<_> = free.into_iter().flatten().collect();
        if counted.is_empty() { 0 } else { counted.iter().sum::<i64>() / counted.len() as i64 }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::framework::Unfit;
    use crate::plugins::fixtures::{filter, pod, scores, snapshot};

    #[test]
    fn requests_are_held_against_what_is_left() {
        let nodes = [
            json!({"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}}),
            json!({"metadata": {"name": "b"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "0"}}}),
        ];
        let on_a =
            json!({"metadata": {"uid": "1"}, "spec": {"nodeName": "a", "containers": [{"resources": {"requests": {"cpu": "600m"}}}]}});
        let s = snapshot(&nodes, &[on_a]);
        let p = pod(json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "500m", "example.com/gpu": 1}}}]}}));
        assert_eq!(
            filter("NodeResourcesFit", &p, &s),
            [
                Err(Unfit { reasons: vec!["Insufficient cpu".into(), "Insufficient example.com/gpu".into()], unresolvable: true }),
                Err(Unfit { reasons: vec!["Too many pods".into(), "Insufficient example.com/gpu".into()], unresolvable: true }),
            ]
        );
        let small = pod(json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "400m", "memory": "512Mi"}}}]}}));
        assert!(filter("NodeResourcesFit", &small, &s)[0].is_ok());
        // a: cpu 0 % free, memory 512Mi and the 200Mi assumed for the pod already there leave 30 %.
        assert_eq!(scores("NodeResourcesFit", &small, &s), [15, 65]);
    }
}
