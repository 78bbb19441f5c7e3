//! The parts of Pods and Nodes that scheduling looks at, decoded from the API and from nothing else.
//!
//! Everything here is owned and narrow: a field that no plugin reads is not decoded.

use std::collections::BTreeMap;

use k8s_client::{
    LabelMap, Named, Object, ObjectMeta, Resource, null_default,
    resources::{NODES, PODS},
};
use serde::Deserialize;

use crate::resources::{self, Resources};

pub use k8s_client::{LabelSelector, Requirement};

/// Labels and annotations.
pub type StringMap = LabelMap;

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: PodSpec,
    /// Status.
    pub status: PodStatus,
}

impl Pod {
    /// `namespace/name`, for messages and keys.
    pub fn key(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Bound to a node.
    pub fn is_assigned(&self) -> bool {
        !self.spec.node_name.is_empty()
    }

    /// Succeeded or Failed: holds no resources any more.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Priority, zero when admission set none.
    pub fn priority(&self) -> i32 {
        self.spec.priority.unwrap_or(0)
    }
}

/// The scheduling part of a pod's spec.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Node the pod is bound to.
    pub node_name: String,
    /// Profile asked for.
    pub scheduler_name: String,
    /// Priority resolved by admission.
    pub priority: Option<i32>,
    /// `Never` or `PreemptLowerPriority`.
    pub preemption_policy: Option<String>,
    /// Required labels of the node.
    #[serde(deserialize_with = "null_default")]
    pub node_selector: StringMap,
    /// Affinity.
    pub affinity: Option<Affinity>,
    /// Tolerations.
    #[serde(deserialize_with = "null_default")]
    pub tolerations: Vec<Toleration>,
    /// Gates that hold the pod back.
    #[serde(deserialize_with = "null_default")]
    pub scheduling_gates: Vec<SchedulingGate>,
    /// Spread constraints.
    #[serde(deserialize_with = "null_default")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Init containers.
    #[serde(deserialize_with = "null_default")]
    pub init_containers: Vec<Container>,
    /// Containers.
    #[serde(deserialize_with = "null_default")]
    pub containers: Vec<Container>,
    /// Pod-level resources (KEP-2837).
    pub resources: Option<ResourceRequirements>,
    /// Overhead of the runtime class.
    #[serde(deserialize_with = "null_default")]
    pub overhead: BTreeMap<String, resources::Quantity>,
    /// Host network: container ports are host ports.
    pub host_network: bool,
}

/// The scheduling part of a pod's status.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Phase.
    pub phase: String,
    /// Node a preemptor waits for.
    pub nominated_node_name: String,
    /// Conditions, to see whether `PodScheduled` already says what we would say.
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
}

/// A condition of a pod or node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// Reason.
    pub reason: String,
    /// Message.
    pub message: String,
}

/// One scheduling gate.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchedulingGate {
    /// Name.
    pub name: String,
}

/// A container: what it asks for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Image, for image locality.
    pub image: String,
    /// Ports, for host ports.
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<ContainerPort>,
    /// Resources.
    pub resources: ResourceRequirements,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<String>,
}

/// Requests (limits do not matter for placement).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ResourceRequirements {
    /// Requests by resource name.
    #[serde(deserialize_with = "null_default")]
    pub requests: BTreeMap<String, resources::Quantity>,
}

/// A container port.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Port on the host, 0 when none.
    pub host_port: i32,
    /// Address on the host.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    /// `TCP`, `UDP`, `SCTP`; empty means TCP.
    pub protocol: String,
}

/// A toleration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Toleration {
    /// Key; empty with `Exists` matches all.
    pub key: String,
    /// `Equal` (default), `Exists`, `Lt`, `Gt`.
    pub operator: String,
    /// Value.
    pub value: String,
    /// Effect; empty matches all.
    pub effect: String,
}

impl Toleration {
    /// The toleration matches the taint (API reference, Toleration v1 core).
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect {
            return false;
        }
        if !self.key.is_empty() && self.key != taint.key {
            return false;
        }
        match self.operator.as_str() {
            "" | "Equal" => !self.key.is_empty() && self.value == taint.value,
            "Exists" => true,
            "Lt" | "Gt" => match (self.value.parse::<i64>(), taint.value.parse::<i64>()) {
                (Ok(limit), Ok(value)) if self.operator == "Lt" => value < limit,
                (Ok(limit), Ok(value)) => value > limit,
                _ => false,
            },
            _ => false,
        }
    }
}

/// A taint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`.
    pub effect: String,
}

/// Affinity.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// To nodes.
    pub node_affinity: Option<NodeAffinity>,
    /// To pods.
    pub pod_affinity: Option<PodAffinity>,
    /// Away from pods.
    pub pod_anti_affinity: Option<PodAffinity>,
}

/// Node affinity.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeAffinity {
    /// Must hold.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector>,
    /// Preferred.
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "null_default")]
    pub preferred: Vec<PreferredSchedulingTerm>,
}

/// Terms, ORed.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// Terms.
    #[serde(deserialize_with = "null_default")]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// Requirements, ANDed. An empty term matches nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// On labels.
    #[serde(deserialize_with = "null_default")]
    pub match_expressions: Vec<Requirement>,
    /// On fields: only `metadata.name`.
    #[serde(deserialize_with = "null_default")]
    pub match_fields: Vec<Requirement>,
}

/// A weighted node selector term.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PreferredSchedulingTerm {
    /// 1–100.
    pub weight: i32,
    /// The term.
    pub preference: NodeSelectorTerm,
}

/// Pod affinity or anti-affinity.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodAffinity {
    /// Must hold.
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "null_default")]
    pub required: Vec<PodAffinityTerm>,
    /// Preferred.
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "null_default")]
    pub preferred: Vec<WeightedPodAffinityTerm>,
}

/// Which pods, in which topology.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAffinityTerm {
    /// Pods meant; none matches nothing.
    pub label_selector: Option<LabelSelector>,
    /// Namespaces by name; empty (with no selector) means the pod's own.
    #[serde(deserialize_with = "null_default")]
    pub namespaces: Vec<String>,
    /// Namespaces by label; an empty selector means all.
    pub namespace_selector: Option<LabelSelector>,
    /// Node label that names the domain.
    pub topology_key: String,
    /// Keys of the incoming pod's labels added to the selector.
    #[serde(deserialize_with = "null_default")]
    pub match_label_keys: Vec<String>,
}

/// A weighted term.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightedPodAffinityTerm {
    /// 1–100.
    pub weight: i32,
    /// The term.
    pub pod_affinity_term: PodAffinityTerm,
}

/// A topology spread constraint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologySpreadConstraint {
    /// Largest difference allowed.
    pub max_skew: i32,
    /// Node label that names the domain.
    pub topology_key: String,
    /// `DoNotSchedule` or `ScheduleAnyway`.
    pub when_unsatisfiable: String,
    /// Pods counted.
    pub label_selector: Option<LabelSelector>,
    /// Fewest domains, `DoNotSchedule` only.
    pub min_domains: Option<i32>,
    /// `Honor` (default) or `Ignore`.
    pub node_affinity_policy: Option<String>,
    /// `Honor` or `Ignore` (default).
    pub node_taints_policy: Option<String>,
    /// Keys of the pod's labels added to the selector.
    #[serde(deserialize_with = "null_default")]
    pub match_label_keys: Vec<String>,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: NodeSpec,
    /// Status.
    pub status: NodeStatus,
}

/// The scheduling part of a node's spec.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Cordoned.
    pub unschedulable: bool,
    /// Taints.
    #[serde(deserialize_with = "null_default")]
    pub taints: Vec<Taint>,
}

/// The scheduling part of a node's status.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// What pods may use.
    #[serde(deserialize_with = "null_default")]
    pub allocatable: BTreeMap<String, resources::Quantity>,
    /// Images present.
    #[serde(deserialize_with = "null_default")]
    pub images: Vec<NodeImage>,
}

impl NodeStatus {
    /// Allocatable amounts.
    pub fn allocatable(&self) -> Resources {
        Resources::from_map(&self.allocatable)
    }
}

/// An image on a node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeImage {
    /// All its names.
    #[serde(deserialize_with = "null_default")]
    pub names: Vec<String>,
    /// Size in bytes.
    pub size_bytes: i64,
}

impl Object for Pod {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for Pod {
    const RESOURCE: Resource = PODS;
}

impl Object for Node {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for Node {
    const RESOURCE: Resource = NODES;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toleration_matches_as_the_api_reference_says() {
        let taint = Taint { key: "k".into(), value: "5".into(), effect: "NoSchedule".into() };
        let table = [
            (("", "Exists", "", ""), true),
            (("k", "", "5", ""), true),
            (("k", "Equal", "6", ""), false),
            (("k", "Exists", "", "NoExecute"), false),
            (("k", "Exists", "", "NoSchedule"), true),
            (("other", "Exists", "", ""), false),
            (("k", "Gt", "4", ""), true),
            (("k", "Lt", "4", ""), false),
            (("", "", "", ""), false),
        ];
        for ((key, operator, value, effect), expect) in table {
            let t = Toleration { key: key.into(), operator: operator.into(), value: value.into(), effect: effect.into() };
            assert_eq!(t.tolerates(&taint), expect, "{t:?}");
        }
    }
}
