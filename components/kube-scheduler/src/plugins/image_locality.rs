//! Prefers nodes that already have the pod's large images, less so when only few nodes have them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::framework::{MAX_SCORE, Prepared};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

const MIN_BYTES: i64 = 23 * 1024 * 1024;
const MAX_BYTES_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

struct ImageLocality {
    /// Image name → how many nodes have it.
    spread: HashMap<String, usize>,
    nodes: usize,
    containers: usize,
}

/// `name` with the tag `latest` when it has neither tag nor digest, as images are listed on nodes.
fn normalized(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || name.contains('@') { name.to_string() } else { format!("{name}:latest") }
}

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Option<Box<dyn Prepared>> {
    let spec = &pod.pod.spec;
    let images = spec.init_containers.iter().chain(&spec.containers).map(|c| normalized(&c.image));
    let spread = images.map(|i| (snapshot.nodes_with_image(&i), i)).filter(|(n, _)| *n > 0).map(|(n, i)| (i, n)).collect::<HashMap<_, _>>();
    let containers = spec.init_containers.len() + spec.containers.len();
    (!spread.is_empty()).then(|| Box::new(ImageLocality { spread, nodes: snapshot.nodes.len().max(1), containers }) as _)
}

impl Prepared for ImageLocality {
    fn score(&self, node: &NodeInfo) -> i64 {
        let present = |name: &str| node.node.status.images.iter().find(|i| i.names.iter().any(|n| n == name)).map(|i| i.size_bytes);
        let sum: i64 = (self.spread.iter())
            .filter_map(|(name, count)| present(name).map(|size| (size as f64 * (*count as f64 / self.nodes as f64)) as i64))
            .fold(0, i64::saturating_add);
        let max = MAX_BYTES_PER_CONTAINER.saturating_mul(self.containers.max(1) as i64);
        MAX_SCORE * (sum.clamp(MIN_BYTES, max) - MIN_BYTES) / (max - MIN_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::fixtures::{pod, scores, snapshot};

    #[test]
    fn a_large_present_image_attracts() {
        let nodes = [
            json!({"metadata": {"name": "a"}, "status": {"images": [{"names": ["app:latest"], "sizeBytes": 2_000 * 1024 * 1024i64}]}}),
            json!({"metadata": {"name": "b"}}),
        ];
        let p = pod(json!({"spec": {"containers": [{"image": "app"}]}}));
        assert_eq!(scores("ImageLocality", &p, &snapshot(&nodes, &[])), [100, 0]);
    }

    #[test]
    fn names_are_normalised() {
        for (name, expect) in [("a", "a:latest"), ("r:5000/a", "r:5000/a:latest"), ("a:1", "a:1"), ("a@sha256:0", "a@sha256:0")] {
            assert_eq!(normalized(name), expect);
        }
    }
}
