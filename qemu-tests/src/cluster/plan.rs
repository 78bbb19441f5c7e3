//! What a test cluster consists of: names, addresses, ports, and the config patches of each machine. Pure.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::machine::Firmware;
use crate::network::{Forward, GATEWAY};

/// The port of the machine API.
pub const MACHINE_API: u16 = 50000;
/// The port of the Kubernetes API.
pub const KUBERNETES_API: u16 = 6443;
/// The node port of the example workload.
pub const HELLO_PORT: u16 = 30080;
/// The cluster's name.
pub const NAME: &str = "test";
/// More machines than a host of two processors can carry.
pub const MAX_WORKERS: u8 = 9;

/// What a person chooses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Workers beside the one control plane.
    pub workers: u8,
    /// Memory of the control plane in MiB.
    pub memory_mib: u32,
    /// Memory of each worker in MiB.
    pub worker_memory_mib: u32,
    /// Size of each machine's disk in bytes.
    pub disk_bytes: u64,
    /// Which firmware starts them.
    #[serde(default)]
    pub firmware: Firmware,
    /// Whether each has a TPM.
    #[serde(default)]
    pub tpm: bool,
    /// More documents of their configs, of encrypted volumes for example.
    #[serde(default)]
    pub documents: Option<String>,
}

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it is the control plane.
    pub control_plane: bool,
    /// Its address once it has its config.
    pub address: Ipv4Addr,
    /// The loopback port that leads to its machine API.
    pub api_port: u16,
    /// The loopback port that leads to the example workload's node port.
    pub hello_port: u16,
}

/// The whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPlan {
    /// What was asked for.
    pub spec: ClusterSpec,
    /// The machines, the control plane first.
    pub nodes: Vec<Node>,
    /// The loopback port that leads to the Kubernetes API.
    pub kubernetes_port: u16,
}

impl ClusterSpec {
    /// The cluster of the scenarios: the least memory that must do.
    pub fn small() -> Self {
        Self {
            workers: 1,
            memory_mib: 1024,
            worker_memory_mib: 512,
            disk_bytes: 20 << 30,
            firmware: Firmware::Uefi,
            tpm: false,
            documents: None,
        }
    }
}

impl ClusterPlan {
    /// Plans a cluster; `port` gives a free loopback port near a preferred one.
    pub fn new<E>(spec: &ClusterSpec, port: impl Fn(u16) -> Result<u16, E>) -> Result<Self, E> {
        let mut nodes = Vec::new();
        for index in 0..=spec.workers.min(MAX_WORKERS) {
            let control_plane = index == 0;
            let last = if control_plane { 11 } else { 20 + index };
            nodes.push(Node {
                name: if control_plane { "cp-1".to_owned() } else { format!("worker-{index}") },
                control_plane,
                address: Ipv4Addr::new(10, 5, 0, last),
                api_port: port(41000 + u16::from(last))?,
                hello_port: port(42000 + u16::from(last))?,
            });
        }
        Ok(Self { spec: spec.clone(), nodes, kubernetes_port: port(46443)? })
    }

    /// The forwards the gateway starts with.
    pub fn forwards(&self) -> Vec<Forward> {
        let mut forwards = Vec::new();
        for node in &self.nodes {
            for (host_port, port) in [(node.api_port, MACHINE_API), (node.hello_port, HELLO_PORT)] {
                forwards.push(Forward { host_port, address: node.address, port });
            }
        }
        forwards.push(Forward { host_port: self.kubernetes_port, address: self.control_plane().address, port: KUBERNETES_API });
        forwards
    }

    /// The control plane.
    pub fn control_plane(&self) -> &Node {
        &self.nodes[0]
    }

    /// The Kubernetes API as the machines reach it.
    pub fn endpoint(&self) -> String {
        format!("https://{}:{KUBERNETES_API}", self.control_plane().address)
    }

    /// The Kubernetes API as the host reaches it.
    pub fn local_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.kubernetes_port)
    }

    /// Whether the example's two copies need the control plane's node as well.
    pub fn schedules_on_control_plane(&self) -> bool {
        self.spec.workers < 2
    }
}

impl Node {
    /// The last byte of its Ethernet and IP addresses.
    pub fn last_byte(&self) -> u8 {
        self.address.octets()[3]
    }

    /// Where the host reaches its machine API.
    pub fn local_api(&self) -> String {
        format!("127.0.0.1:{}", self.api_port)
    }

    /// The documents that make a generated config this machine's.
    pub fn patch(&self) -> String {
        let Self { address, .. } = self;
        format!(
            "apiVersion: strake.dev/v1alpha1\nkind: LinkConfig\nname: lan\nmatch:\n  mac: \"52:54:00:05:00:{:02x}\"\naddresses: [{address}/24]\n\
             routes:\n  - network: 0.0.0.0/0\n    gateway: {GATEWAY}\n---\n\
             apiVersion: strake.dev/v1alpha1\nkind: ResolverConfig\nnameservers: [10.5.0.3]\n---\n\
             apiVersion: strake.dev/v1alpha1\nkind: TimeConfig\nenabled: false\n",
            self.last_byte()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn plan(workers: u8) -> ClusterPlan {
        let spec = ClusterSpec { workers, memory_mib: 1024, worker_memory_mib: 512, disk_bytes: 1, ..ClusterSpec::small() };
        ClusterPlan::new(&spec, Ok::<u16, Infallible>).unwrap()
    }

    #[test]
    fn machines_have_the_documented_names_and_addresses() {
        let plan = plan(2);
        let found: Vec<String> = plan.nodes.iter().map(|node| format!("{} {} {}", node.name, node.address, node.local_api())).collect();
        assert_eq!(found, ["cp-1 10.5.0.11 127.0.0.1:41011", "worker-1 10.5.0.21 127.0.0.1:41021", "worker-2 10.5.0.22 127.0.0.1:41022"]);
        assert_eq!(plan.forwards().len(), 7);
        assert!(!plan.schedules_on_control_plane() && super::tests::plan(1).schedules_on_control_plane());
        assert_eq!(super::tests::plan(200).nodes.len(), 10);
    }

    #[test]
    fn a_patch_names_the_machines_own_link() {
        let patch = plan(1).nodes[1].patch();
        assert!(patch.contains("52:54:00:05:00:15") && patch.contains("[10.5.0.21/24]"), "{patch}");
    }
}
