//! What a scheduling plugin is, and the one list of them.
//!
//! Plugins are pure: they see a pod and a snapshot, never a clock, the network or randomness. A plugin may filter, score, or both.

use std::sync::Arc;

use crate::plugins;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Highest score of one plugin before its weight.
pub const MAX_SCORE: i64 = 100;

/// Why a node does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// One clause of the event people read, e.g. `Insufficient cpu`.
    pub reasons: Vec<String>,
    /// Removing pods from the node cannot help.
    pub unresolvable: bool,
}

impl Unfit {
    /// Could be resolved by removing pods.
    pub fn because(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: false }
    }

    /// Removing pods cannot help.
    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], unresolvable: true }
    }
}

/// What a plugin prepares once per pod, before it looks at nodes.
pub trait Prepared: Send + Sync {
    /// The node fits, as far as this plugin is concerned.
    fn filter(&self, _node: &NodeInfo) -> Result<(), Unfit> {
        Ok(())
    }

    /// Raw score; higher is better, unless [`Prepared::normalize`] says otherwise.
    fn score(&self, _node: &NodeInfo) -> i64 {
        0
    }

    /// Brings raw scores of all feasible nodes into 0..=[`MAX_SCORE`].
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// A plugin: a name, a weight, and how to prepare it for a pod.
pub struct Plugin {
    /// Upstream's name.
    pub name: &'static str,
    /// Weight of its score, 0 when it only filters.
    pub weight: i64,
    /// Prepares for one pod; `None` when the plugin has nothing to say about it.
    pub prepare: fn(&Arc<PodInfo>, &Snapshot) -> Option<Box<dyn Prepared>>,
}

/// The default profile, in upstream's order and with upstream's weights.
pub const PLUGINS: &[Plugin] = &[
    Plugin { name: "NodeUnschedulable", weight: 0, prepare: plugins::node_unschedulable::prepare },
    Plugin { name: "NodeName", weight: 0, prepare: plugins::node_name::prepare },
    Plugin { name: "TaintToleration", weight: 3, prepare: plugins::taint_toleration::prepare },
    Plugin { name: "NodeAffinity", weight: 2, prepare: plugins::node_affinity::prepare },
    Plugin { name: "NodePorts", weight: 0, prepare: plugins::node_ports::prepare },
    Plugin { name: "NodeResourcesFit", weight: 1, prepare: plugins::node_resources_fit::prepare },
    Plugin { name: "PodTopologySpread", weight: 2, prepare: plugins::pod_topology_spread::prepare },
    Plugin { name: "InterPodAffinity", weight: 2, prepare: plugins::inter_pod_affinity::prepare },
    Plugin { name: "NodeResourcesBalancedAllocation", weight: 1, prepare: plugins::balanced_allocation::prepare },
    Plugin { name: "ImageLocality", weight: 1, prepare: plugins::image_locality::prepare },
];

/// Scales scores so that the best is [`MAX_SCORE`]; with `reverse` the lowest raw score is the best.
pub fn scale(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores.iter_mut() {
        *score = match (max, reverse) {
            (0, true) => MAX_SCORE,
            (0, false) => 0,
            (max, reverse) => {
                let scaled = MAX_SCORE * *score / max;
                if reverse { MAX_SCORE - scaled } else { scaled }
            }
        };
    }
}
