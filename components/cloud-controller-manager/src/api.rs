//! The objects this component reads, as narrow structs.

use k8s_client::{Condition, Named, Object, ObjectMeta, Resource, null_default, resources::*};
use serde::{Deserialize, Serialize};

/// core/v1 Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Node {
    pub metadata: ObjectMeta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

/// The part of a node's spec that matters here.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    #[serde(rename = "providerID", deserialize_with = "null_default")]
    pub provider_id: String,
    #[serde(rename = "podCIDRs", deserialize_with = "null_default")]
    pub pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "null_default")]
    pub taints: Vec<Taint>,
}

/// core/v1 Taint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Taint {
    pub key: String,
    pub effect: String,
}

/// The part of a node's status that matters here.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<NodeAddress>,
    pub node_info: NodeInfo,
}

/// core/v1 NodeAddress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub address: String,
}

/// What identifies the machine.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NodeInfo {
    #[serde(rename = "machineID")]
    pub machine_id: String,
}

impl Object for Node {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for Node {
    const RESOURCE: Resource = NODES;
}

impl Node {
    /// Addresses of one type, in the node's order.
    pub fn addresses<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.status.addresses.iter().filter(move |address| address.kind == kind).map(|address| address.address.as_str())
    }
}
