//! Kubernetes on this machine: certificates, files of the node's services, static pods, etcd's life, the default manifests, and the pod network.
//!
//! Everything that is written is rendered by pure functions ([`static_pods`], [`node_files`], [`certificates`], [`manifests`]); reconcilers compare it
//! with what is there and write the difference.

mod apply;
pub mod certificates;
pub mod etcd;
pub mod files;
pub mod kubeconfig;
pub mod manifests;
pub mod node_files;
mod pod_network;
mod reconciler;
pub mod static_pods;
#[cfg(test)]
pub mod testing;

use std::net::IpAddr;

use k8s_client::Client;
use machine_config::{Config, Role};
use node_ipc::init::EnvVar;
use sha2::{Digest as _, Sha256};

use crate::paths::Paths;
use crate::reconcilers::{Context, ReconcileError};
use files::File;

pub use apply::Manifests;
pub use pod_network::PodNetwork;
pub use reconciler::{ContainerdConfig, Kubernetes};

/// The image whose pods run programs of the verified root; also the pod sandbox.
pub const STUB_IMAGE: &str = "strake.dev/stub:v1";
/// Where the API server listens on a control-plane machine.
pub const API_SERVER_PORT: u16 = 6443;
/// The kubeconfig machined itself uses for the default manifests.
pub const ADMIN_KUBECONFIG: &str = "/etc/kubernetes/admin.kubeconfig";
/// The kubelet's kubeconfig, with which machined asks for its own node.
pub const KUBELET_KUBECONFIG: &str = "/etc/kubernetes/kubelet/kubeconfig";

/// The kubeconfig with the most that a machine may do: a control plane's own, a worker's kubelet's.
pub fn own_kubeconfig(config: &Config) -> &'static str {
    if config.is_control_plane() { ADMIN_KUBECONFIG } else { KUBELET_KUBECONFIG }
}

/// A client of the API server with the credentials of a kubeconfig on this machine.
pub fn client(paths: &Paths, kubeconfig: &str) -> Result<Client, k8s_client::ConfigError> {
    Client::new(k8s_client::Config::load(Some(&paths.at(kubeconfig)))?.with_user_agent("machined"))
}

/// Users of the components, as the architecture page says.
pub mod uid {
    /// kube-apiserver
    pub const API_SERVER: u32 = 901;
    /// kube-controller-manager
    pub const CONTROLLER_MANAGER: u32 = 902;
    /// kube-scheduler
    pub const SCHEDULER: u32 = 903;
    /// cloud-controller-manager
    pub const CLOUD_CONTROLLER_MANAGER: u32 = 904;
    /// etcd
    pub const ETCD: u32 = 905;
    /// cluster-dns
    pub const CLUSTER_DNS: u32 = 906;
}

/// What is known of the machine beside its config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The machine's and node's name.
    pub hostname: String,
    /// The node's address.
    pub node_ip: IpAddr,
    /// All of the machine's addresses that others can reach.
    pub addresses: Vec<IpAddr>,
}

impl NodeFacts {
    /// Chooses the node's address: the first in one of the config's `nodeIPSubnets`, or the first of all. `None` while there is none. Addresses of
    /// pods and services (bridges) are not the machine's.
    pub fn new(hostname: &str, config: &Config, addresses: &[IpAddr]) -> Option<Self> {
        let network = &config.cluster.network;
        let inside = |a: &IpAddr| network.pod_subnets.iter().chain(&network.service_subnets).any(|s| s.0.contains(a));
        let addresses: Vec<IpAddr> = addresses.iter().copied().filter(|a| !inside(a)).collect();
        let subnets = &config.machine.kubelet.node_ip_subnets;
        let node_ip = addresses.iter().find(|a| subnets.is_empty() || subnets.iter().any(|s| s.0.contains(*a)))?;
        Some(Self { hostname: hostname.to_owned(), node_ip: *node_ip, addresses: addresses.clone() })
    }
}

/// One of init's services with its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name in init's table.
    pub name: String,
    /// Arguments after argv[0].
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<EnvVar>,
}

impl Service {
    /// The runtime and its plugins look for programs (runc, nft, mount) in PATH. The digest of the files that are read only at the start makes
    /// a change of them a change of the environment, on which init starts the service anew.
    fn new(name: &str, args: Vec<String>, files: &[File]) -> Self {
        let mut digest = Sha256::new();
        for file in files {
            digest.update((file.content.len() as u64).to_le_bytes());
            digest.update(&file.content);
        }
        let digest = digest.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
        let env = |name: &str, value: String| EnvVar { name: name.to_owned(), value };
        let env = vec![env("PATH", "/usr/bin:/usr/sbin".to_owned()), env("STRAKE_CONFIG_DIGEST", digest)];
        Self { name: name.to_owned(), args, env }
    }
}

/// containerd, which needs nothing of the config.
pub fn containerd_service() -> Service {
    Service::new("containerd", node_files::containerd_args(), &[node_files::containerd()])
}

/// The services that need the node's name and address: kubelet and kube-proxy.
pub fn services(cx: &Context) -> Result<Vec<Service>, ReconcileError> {
    Ok(node_services(cx.config(), &facts(cx)?))
}

fn node_services(config: &Config, facts: &NodeFacts) -> Vec<Service> {
    vec![
        Service::new("kubelet", node_files::kubelet_args(config, facts), &node_files::kubelet(config, facts)),
        Service::new("kube-proxy", node_files::kube_proxy_args(config), &node_files::kube_proxy(config, facts)),
    ]
}

/// The facts of this machine, once it has an address.
pub fn facts(cx: &Context) -> Result<NodeFacts, ReconcileError> {
    NodeFacts::new(&cx.hostname(), cx.config(), &cx.addresses())
        .ok_or_else(|| "the machine has no address for its node yet (kubelet.nodeIPSubnets must contain one)".into())
}

/// Where this machine's components reach the API server: the one on the machine itself, or the cluster's endpoint.
pub fn api_server_url(config: &Config) -> String {
    match config.machine.role {
        Role::ControlPlane => format!("https://127.0.0.1:{API_SERVER_PORT}"),
        Role::Worker => config.cluster.control_plane.endpoint.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_started_anew_when_a_file_changes_that_it_reads_once() {
        let (mut config, facts) = (testing::control_plane_config(), testing::facts());
        let before = node_services(&config, &facts);
        assert_eq!(before, node_services(&config, &facts));
        config.machine.kubelet.max_pods = 50;
        let after = node_services(&config, &facts);
        assert_ne!(before[0].env, after[0].env);
        assert_eq!(before[1], after[1]);
    }

    #[test]
    fn the_nodes_address_is_the_first_that_fits_and_never_a_bridges() {
        let mut config = testing::control_plane_config();
        let all: Vec<IpAddr> = vec![[10, 244, 0, 1].into(), [192, 168, 1, 5].into(), [10, 5, 0, 11].into()];
        let chosen = |config: &Config| NodeFacts::new("cp-1", config, &all).map(|f| f.node_ip);
        assert_eq!(chosen(&config), Some([192, 168, 1, 5].into()));
        config.machine.kubelet.node_ip_subnets = vec!["10.5.0.0/24".parse().unwrap()];
        assert_eq!(chosen(&config), Some([10, 5, 0, 11].into()));
        config.machine.kubelet.node_ip_subnets = vec!["10.6.0.0/24".parse().unwrap()];
        assert_eq!(chosen(&config), None);
    }
}
