//! Flags, with upstream's names and defaults. A flag that is not here is an error that names it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use component_base::LeaderElection;
use ipnet::IpNet;
use k8s_client::go_duration;

/// kube-controller-manager: watches the cluster's desired state and moves the real one towards it.
#[derive(Clone, Debug, Parser)]
#[command(name = "kube-controller-manager", disable_version_flag = true)]
pub struct Options {
    /// kubeconfig with the API server and this component's identity.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// kubeconfig allowed to create TokenReviews; who reads /metrics is checked with it.
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// kubeconfig allowed to create SubjectAccessReviews.
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Address of the HTTPS server for health and metrics.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port of the HTTPS server; 0 turns it off.
    #[arg(long, default_value_t = 10257)]
    pub secure_port: u16,
    /// Accepted for compatibility: client certificates are not used on the health server.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Accepted for compatibility: there is no request-header authentication on the health server.
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Pod address ranges, one per family.
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// Service address ranges, never given to nodes.
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<IpNet>,
    /// Prefix length of a node's pod range: 24 for IPv4, 64 for IPv6 by default.
    #[arg(long)]
    pub node_cidr_mask_size: Option<u8>,
    /// Prefix length of a node's IPv4 pod range.
    #[arg(long)]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// Prefix length of a node's IPv6 pod range.
    #[arg(long)]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// Gives each node a pod range from --cluster-cidr.
    #[arg(long, default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub allocate_node_cidrs: bool,
    /// CA certificate for signing CertificateSigningRequests.
    #[arg(long)]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Key of the signing CA.
    #[arg(long)]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Longest lifetime of a signed certificate.
    #[arg(long, default_value = "8760h0m0s", value_parser = go_duration)]
    pub cluster_signing_duration: Duration,
    /// CA bundle published to every namespace as ConfigMap kube-root-ca.crt.
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs the tokens of Secrets of type `kubernetes.io/service-account-token`.
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Runs each controller as its own service account.
    #[arg(long, default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub use_service_account_credentials: bool,
    /// Controllers to run: `*` for those on by default, `name` to add, `-name` to leave out.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    pub controllers: Vec<String>,
    #[command(flatten)]
    pub leader_election: LeaderElection,
    /// Name of the cluster.
    #[arg(long, default_value = "kubernetes")]
    pub cluster_name: String,
    /// How long a node may be silent before it is marked unknown.
    #[arg(long, default_value = "50s", value_parser = go_duration)]
    pub node_monitor_grace_period: Duration,
    /// How often node health is looked at.
    #[arg(long, default_value = "5s", value_parser = go_duration)]
    pub node_monitor_period: Duration,
    /// Terminated pods kept before the oldest are deleted; 0 keeps all.
    #[arg(long, default_value_t = 12500)]
    pub terminated_pod_gc_threshold: usize,
    /// How often the autoscaler looks at each of its targets.
    #[arg(long, default_value = "15s", value_parser = go_duration)]
    pub horizontal_pod_autoscaler_sync_period: Duration,
    /// How far back the autoscaler looks for a higher number before it scales down.
    #[arg(long, default_value = "5m0s", value_parser = go_duration)]
    pub horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// How far from 1 the ratio of measured to wanted must be before the autoscaler acts.
    #[arg(long, default_value_t = 0.1)]
    pub horizontal_pod_autoscaler_tolerance: f64,
    /// How long after its start a pod's CPU samples may be left out.
    #[arg(long, default_value = "5m0s", value_parser = go_duration)]
    pub horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// How long after a pod's start a change of its readiness counts as its first.
    #[arg(long, default_value = "30s", value_parser = go_duration)]
    pub horizontal_pod_autoscaler_initial_readiness_delay: Duration,
    /// How long a token of a Secret that was made for a service account may be unused before it is marked, and marked before it is deleted.
    #[arg(long, default_value = "8760h0m0s", value_parser = go_duration)]
    pub legacy_service_account_token_clean_up_period: Duration,
    /// Never detaches a volume that a silent node says it uses, however long that takes.
    #[arg(long, default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub disable_force_detach_on_timeout: bool,
    /// Log verbosity: 4 and more is debug.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub verbosity: u8,
    /// Accepted for compatibility: profiling is not served.
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub profiling: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeadms_flags_parse_and_unknown_ones_are_named() {
        let line = "kube-controller-manager --allocate-node-cidrs=true --authentication-kubeconfig=/k --authorization-kubeconfig=/k --bind-address=127.0.0.1 \
            --client-ca-file=/ca --cluster-cidr=10.244.0.0/16 --cluster-name=kubernetes --cluster-signing-cert-file=/ca --cluster-signing-key-file=/key \
            --controllers=*,bootstrapsigner,tokencleaner --kubeconfig=/k --leader-elect=true --requestheader-client-ca-file=/fp --root-ca-file=/ca \
            --service-account-private-key-file=/sa --service-cluster-ip-range=10.96.0.0/16 --use-service-account-credentials=true --v=4";
        let options = Options::try_parse_from(line.split_whitespace()).unwrap();
        assert!(options.allocate_node_cidrs && options.use_service_account_credentials && options.leader_election.leader_elect);
        assert_eq!(options.controllers, ["*", "bootstrapsigner", "tokencleaner"]);
        assert_eq!(options.cluster_signing_duration, Duration::from_secs(8760 * 3600));
        let options =
            Options::try_parse_from(["kcm", "--leader-elect=false", "--allocate-node-cidrs", "--controllers=-namespace-controller,*"])
                .unwrap();
        assert!(!options.leader_election.leader_elect && options.allocate_node_cidrs);
        let error = Options::try_parse_from(["kcm", "--no-such-flag=1"]).unwrap_err().to_string();
        assert!(error.contains("--no-such-flag"), "{error}");
    }
}
