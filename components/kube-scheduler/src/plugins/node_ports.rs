//! Host ports: two pods cannot hold the same port of a node.

use std::sync::Arc;

use crate::framework::{Prepared, Unfit};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::types::{ContainerPort, Pod};

struct NodePorts {
    wanted: Vec<ContainerPort>,
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports).filter(|p| p.host_port > 0)
}

fn conflict(a: &ContainerPort, b: &ContainerPort) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    let protocol = |p: &ContainerPort| if p.protocol.is_empty() { "TCP".to_string() } else { p.protocol.clone() };
    a.host_port == b.host_port && protocol(a) == protocol(b) && (any(&a.host_ip) || any(&b.host_ip) || a.host_ip == b.host_ip)
}

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(pod: &Arc<PodInfo>, _: &Snapshot) -> Option<Box<dyn Prepared>> {
    let wanted: Vec<_> = host_ports(&pod.pod).cloned().collect();
    (!wanted.is_empty()).then(|| Box::new(NodePorts { wanted }) as _)
}

impl Prepared for NodePorts {
    fn filter(&self, node: &NodeInfo) -> Result<(), Unfit> {
        let taken = node.pods.values().flat_map(|p| host_ports(&p.pod)).any(|held| self.wanted.iter().any(|w| conflict(w, held)));
        if taken { Err(Unfit::because("node(s) didn't have free ports for the requested pod ports")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::plugins::fixtures::{fits, pod, snapshot};

    #[test]
    fn a_held_port_conflicts_by_protocol_and_address() {
        let held = json!({"metadata": {"uid": "1"}, "spec": {"nodeName": "a", "containers": [{"ports": [{"hostPort": 80, "hostIP": "10.0.0.1"}]}]}});
        let s = snapshot(&[json!({"metadata": {"name": "a"}})], &[held]);
        let table = [
            (json!({"hostPort": 80}), false),
            (json!({"hostPort": 80, "hostIP": "10.0.0.2"}), true),
            (json!({"hostPort": 80, "protocol": "UDP"}), true),
            (json!({"hostPort": 81}), true),
            (json!({"containerPort": 80}), true),
        ];
        for (port, expect) in table {
            assert_eq!(fits("NodePorts", &pod(json!({"spec": {"containers": [{"ports": [port]}]}})), &s), [expect], "{port}");
        }
    }
}
