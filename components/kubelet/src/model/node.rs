//! Nodes, leases and services as the kubelet reads them.

use super::{object, pod::ObjectMeta, time::Time};
use std::collections::BTreeMap;

object! {
    Node { metadata: ObjectMeta, spec: NodeSpec, status: NodeStatus, }
    NodeSpec {
        #[serde(rename = "podCIDR")]
        pod_cidr: String,
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Vec<String>,
        #[serde(rename = "providerID")]
        provider_id: String,
        unschedulable: bool,
        taints: Vec<Taint>,
    }
    Taint { key: String, value: String, effect: String, }
    NodeStatus {
        capacity: BTreeMap<String, String>,
        allocatable: BTreeMap<String, String>,
        conditions: Vec<NodeCondition>,
        addresses: Vec<NodeAddress>,
    }
    NodeAddress { r#type: String, address: String, }
    NodeCondition {
        r#type: String,
        status: String,
        last_heartbeat_time: Option<Time>,
        last_transition_time: Option<Time>,
        reason: String,
        message: String,
    }
    /// A service, for the environment variables of pods.
    Service { metadata: ObjectMeta, spec: ServiceSpec, }
    ServiceSpec {
        #[serde(rename = "clusterIP")]
        cluster_ip: String,
        ports: Vec<ServicePort>,
    }
    ServicePort { name: String, protocol: String, port: i32, }
}

impl k8s_client::Object for Node {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl k8s_client::Named for Node {
    const RESOURCE: k8s_client::Resource = k8s_client::resources::NODES;
}

impl k8s_client::Object for Service {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl k8s_client::Named for Service {
    const RESOURCE: k8s_client::Resource = k8s_client::resources::SERVICES;
}
