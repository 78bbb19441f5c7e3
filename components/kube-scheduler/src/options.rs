//! Flags, with upstream's names.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use component_base::LeaderElection;

/// The Kubernetes scheduler: watches pods without a node and binds each to the best one.
#[derive(Debug, Clone, Parser)]
#[command(name = "kube-scheduler", version)]
pub struct Options {
    /// Path of the kubeconfig with the API server's address and the scheduler's credentials; in-cluster configuration when unset.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig for reviewing who may read /metrics; --kubeconfig when unset.
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// Kubeconfig for access reviews; must name the same API server as --authentication-kubeconfig.
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Address of the health and metrics server.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port of the health and metrics server.
    #[arg(long, default_value_t = 10259)]
    pub secure_port: u16,
    #[command(flatten)]
    pub leader_election: LeaderElection,
    /// Serve profiles; this scheduler has none, so only false is accepted.
    #[arg(long, default_value = "false", value_parser = ["false"], num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub profiling: String,
    /// Log verbosity: 0 informs, 2 and more say why nodes do not fit, 4 and more trace.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub verbosity: u8,
}

impl Options {
    /// Where health and metrics are served.
    pub fn bind(&self) -> SocketAddr {
        SocketAddr::new(self.bind_address, self.secure_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_clusters_set_are_taken_and_unknown_ones_named() {
        let line = "kube-scheduler --authentication-kubeconfig=/a --authorization-kubeconfig=/a --bind-address=127.0.0.1 --kubeconfig=/a --leader-elect=true --profiling=false";
        let options = Options::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(options.bind(), "127.0.0.1:10259".parse().unwrap());
        assert!(!Options::try_parse_from(["kube-scheduler", "--leader-elect=false"]).unwrap().leader_election.leader_elect);
        let error = Options::try_parse_from(["kube-scheduler", "--nonsense"]).unwrap_err();
        assert!(error.to_string().contains("--nonsense"), "{error}");
    }
}
