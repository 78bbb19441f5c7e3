//! Flags, with upstream's names and defaults. A flag that is not here is an error that names it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use component_base::LeaderElection;
use ipnet::IpNet;
use k8s_client::go_duration;

/// cloud-controller-manager for bare metal.
#[derive(Clone, Debug, Parser)]
#[command(name = "cloud-controller-manager", disable_version_flag = true)]
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
    /// The provider; only `strake` exists here.
    #[arg(long, default_value = "strake", value_parser = ["strake", "external"])]
    pub cloud_provider: String,
    /// Address of the HTTPS server for health and metrics.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port of the HTTPS server; 0 turns it off.
    #[arg(long, default_value_t = 10258)]
    pub secure_port: u16,
    /// Name of the cluster.
    #[arg(long, default_value = "kubernetes")]
    pub cluster_name: String,
    /// Pod address ranges; nodes' ranges outside them get no route.
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// Accepted for compatibility: kube-controller-manager gives nodes their pod ranges.
    #[arg(long, default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub allocate_node_cidrs: bool,
    /// Plans routes between the nodes' pod ranges.
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub configure_cloud_routes: bool,
    /// Accepted for compatibility: the controllers share one identity.
    #[arg(long, default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub use_service_account_credentials: bool,
    #[command(flatten)]
    pub leader_election: LeaderElection,
    /// A node whose kubelet was silent this long and whose machine does not answer is removed.
    #[arg(long, default_value = "24h", value_parser = go_duration)]
    pub node_gone_after: Duration,
    /// Port on which a machine that is there answers.
    #[arg(long, default_value_t = 50000)]
    pub machine_port: u16,
    /// Log verbosity: 4 and more is debug.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub verbosity: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_a_cluster_parse_and_unknown_ones_are_named() {
        let options = Options::try_parse_from(
            "ccm --cloud-provider=strake --kubeconfig=/k --leader-elect=true --cluster-cidr=10.244.0.0/16 --bind-address=127.0.0.1 --v=2"
                .split(' '),
        )
        .unwrap();
        assert!(options.leader_election.leader_elect && options.configure_cloud_routes);
        for bad in ["--no-such=1", "--cloud-provider=aws", "--node-gone-after=soon"] {
            assert!(Options::try_parse_from(["ccm", bad]).is_err(), "{bad}");
        }
    }
}
