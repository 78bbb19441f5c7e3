//! Command-line flags: upstream's names; an unknown flag is an error that names it.

use clap::Parser;
use std::net::IpAddr;
use std::path::PathBuf;

/// Flags of the kubelet. Settings that have a field in the configuration file are taken from the file unless a flag is given.
#[derive(Debug, Clone, Parser)]
#[command(name = "kubelet", about = "Runs the pods of this node.", disable_version_flag = true)]
pub struct Flags {
    /// File with a KubeletConfiguration.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Kubeconfig that says how to reach the API server. Without it the kubelet runs static pods only.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig used to ask for a client certificate when the kubeconfig does not exist yet.
    #[arg(long)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Directory for the kubelet's state.
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// Directory for the kubelet's certificates.
    #[arg(long)]
    pub cert_dir: Option<PathBuf>,
    /// Node name to use instead of the host name.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Address of the node (one, or an IPv4 and an IPv6 address separated by a comma).
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Labels to add when registering the node.
    #[arg(long, value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints to register the node with (key=value:effect).
    #[arg(long, value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    /// Register the node with the API server.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub register_node: Option<bool>,
    /// Register the node as not schedulable.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value = "true", hide = true)]
    pub register_schedulable: bool,
    /// "external" when a cloud controller manager completes the node.
    #[arg(long, value_parser = ["", "external"])]
    pub cloud_provider: Option<String>,
    /// Identifier of the machine in the cloud provider's store.
    #[arg(long)]
    pub provider_id: Option<String>,
    /// Endpoint of the container runtime.
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    /// Endpoint of the image service, when it is not the container runtime's.
    #[arg(long)]
    pub image_service_endpoint: Option<String>,
    /// Image of the pod sandbox; set in the container runtime's configuration, accepted here as upstream does.
    #[arg(long, hide = true)]
    pub pod_infra_container_image: Option<String>,
    /// Directory of static pod manifests.
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
    /// Cgroup driver; only cgroupfs is supported.
    #[arg(long)]
    pub cgroup_driver: Option<String>,
    /// Resolver configuration used as the base of the pods' own.
    #[arg(long)]
    pub resolv_conf: Option<String>,
    /// Cluster DNS servers.
    #[arg(long, value_delimiter = ',')]
    pub cluster_dns: Vec<String>,
    /// Cluster domain.
    #[arg(long)]
    pub cluster_domain: Option<String>,
    /// Address the API listens on.
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// Port of the API.
    #[arg(long)]
    pub port: Option<u16>,
    /// File with the CA of client certificates.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Serving certificate.
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of the serving certificate.
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// Rotate the client certificate.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub rotate_certificates: Option<bool>,
    /// Ask the cluster for a serving certificate and rotate it.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub rotate_server_certificates: Option<bool>,
    /// Allow requests without credentials.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    /// Authorization mode: Webhook or AlwaysAllow.
    #[arg(long)]
    pub authorization_mode: Option<String>,
    /// Ask the API server about bearer tokens.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub authentication_token_webhook: Option<bool>,
    /// Port of the health endpoint on the loopback address; 0 turns it off.
    #[arg(long)]
    pub healthz_port: Option<u16>,
    /// Address of the health endpoint.
    #[arg(long)]
    pub healthz_bind_address: Option<IpAddr>,
    /// Largest number of pods.
    #[arg(long)]
    pub max_pods: Option<u32>,
    /// Fail when swap is on.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub fail_swap_on: Option<bool>,
    /// Feature gates (name=true,...). The gates this kubelet knows are locked to their defaults; the flag is accepted for compatibility.
    #[arg(long, value_delimiter = ',')]
    pub feature_gates: Vec<String>,
    /// Log verbosity, 0 to 10.
    #[arg(short = 'v', long = "v", default_value_t = 2)]
    pub verbosity: u8,
    /// Log format; only text is written.
    #[arg(long, default_value = "text", hide = true)]
    pub logging_format: String,
}

/// Parses `key=value:effect` or `key:effect`.
pub fn parse_taint(text: &str) -> Result<crate::model::node::Taint, String> {
    let (head, effect) = text.rsplit_once(':').ok_or_else(|| format!("taint {text:?} has no effect (key=value:effect)"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!("taint {text:?}: effect {effect:?} is not NoSchedule, PreferNoSchedule or NoExecute"));
    }
    let (key, value) = head.split_once('=').unwrap_or((head, ""));
    if key.is_empty() {
        return Err(format!("taint {text:?} has no key"));
    }
    Ok(crate::model::node::Taint { key: key.into(), value: value.into(), effect: effect.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_flags_are_named() {
        let error = Flags::try_parse_from(["kubelet", "--no-such-flag=1"]).unwrap_err().to_string();
        assert!(error.contains("--no-such-flag"), "{error}");
    }

    #[test]
    fn booleans_work_with_and_without_a_value() {
        let f = Flags::try_parse_from(["kubelet", "--rotate-certificates", "--register-node=false", "--node-ip=10.0.0.1,fd00::1", "--v=4"])
            .unwrap();
        assert_eq!((f.rotate_certificates, f.register_node, f.node_ip.len(), f.verbosity), (Some(true), Some(false), 2, 4));
    }

    #[test]
    fn taints() {
        let t = parse_taint("a/b=c:NoSchedule").unwrap();
        assert_eq!((t.key.as_str(), t.value.as_str(), t.effect.as_str()), ("a/b", "c", "NoSchedule"));
        assert!(parse_taint("a").is_err() && parse_taint("a:Nope").is_err() && parse_taint(":NoSchedule").is_err());
    }
}
