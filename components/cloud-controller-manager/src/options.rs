//! Flags, with upstream's names and defaults. A flag that is not here is an error that names it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
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
    /// Waits for the Lease kube-system/cloud-controller-manager before doing anything.
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub leader_elect: bool,
    /// How long a lease lasts without renewal.
    #[arg(long, default_value = "15s", value_parser = go_duration)]
    pub leader_elect_lease_duration: Duration,
    /// How long the leader tries to renew before it gives up.
    #[arg(long, default_value = "10s", value_parser = go_duration)]
    pub leader_elect_renew_deadline: Duration,
    /// Pause between attempts.
    #[arg(long, default_value = "2s", value_parser = go_duration)]
    pub leader_elect_retry_period: Duration,
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

/// One line per event on standard error.
pub fn start_logging(verbosity: u8) {
    let level = match verbosity {
        0..=3 => tracing::Level::INFO,
        4..=7 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    let filter = tracing_subscriber::EnvFilter::new(format!("{level},h2=info,hyper=info,hyper_util=info,rustls=info,tower=info"));
    // A second subscriber in the same process, as in tests, is no problem: the first stays.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
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
        assert!(options.leader_elect && options.configure_cloud_routes);
        for bad in ["--no-such=1", "--cloud-provider=aws", "--node-gone-after=soon"] {
            assert!(Options::try_parse_from(["ccm", bad]).is_err(), "{bad}");
        }
    }
}
