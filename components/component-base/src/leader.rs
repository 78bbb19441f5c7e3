//! The flags of leader election, with upstream's names and defaults.

use std::time::Duration;

use clap::{ArgAction, Args};
use k8s_client::{LeaderConfig, go_duration};

/// Which of several copies works: the one that holds a Lease.
#[derive(Clone, Debug, Args)]
pub struct LeaderElection {
    /// Hold the component's Lease before doing anything, so that one of several copies works
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub leader_elect: bool,
    /// How long a lease lasts without renewal
    #[arg(long, default_value = "15s", value_parser = go_duration)]
    pub leader_elect_lease_duration: Duration,
    /// How long the leader tries to renew before it gives up
    #[arg(long, default_value = "10s", value_parser = go_duration)]
    pub leader_elect_renew_deadline: Duration,
    /// Pause between attempts
    #[arg(long, default_value = "2s", value_parser = go_duration)]
    pub leader_elect_retry_period: Duration,
    /// Namespace of the Lease
    #[arg(long, default_value = "kube-system")]
    pub leader_elect_resource_namespace: String,
    /// Name of the Lease; the component's own when unset
    #[arg(long)]
    pub leader_elect_resource_name: Option<String>,
    /// What the lock is; only leases are supported
    #[arg(long, default_value = "leases", value_parser = ["leases"])]
    pub leader_elect_resource_lock: String,
}

impl LeaderElection {
    /// The lease of a component on a host.
    pub fn config(&self, component: &str, host: &str) -> LeaderConfig {
        LeaderConfig {
            namespace: self.leader_elect_resource_namespace.clone(),
            lease_duration: self.leader_elect_lease_duration,
            renew_deadline: self.leader_elect_renew_deadline,
            retry_period: self.leader_elect_retry_period,
            ..LeaderConfig::new(self.leader_elect_resource_name.as_deref().unwrap_or(component), host)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        election: LeaderElection,
    }

    #[test]
    fn flags_are_upstreams_and_default_to_the_components_own_lease() {
        let plain = Program::try_parse_from(["x"]).unwrap().election;
        let config = plain.config("kube-scheduler", "cp-1");
        assert!(plain.leader_elect);
        assert_eq!((config.namespace.as_str(), config.name.as_str()), ("kube-system", "kube-scheduler"));
        assert_eq!(config.lease_duration, Duration::from_secs(15));
        let line = "x --leader-elect=false --leader-elect-lease-duration=1m --leader-elect-resource-name=other --leader-elect-resource-lock=leases";
        let other = Program::try_parse_from(line.split(' ')).unwrap().election;
        assert!(!other.leader_elect);
        assert_eq!((other.config("a", "b").name.as_str(), other.config("a", "b").lease_duration), ("other", Duration::from_secs(60)));
        assert!(Program::try_parse_from(["x", "--leader-elect-resource-lock=endpoints"]).is_err());
    }
}
