//! Flags and the config file (`kubeproxy.config.k8s.io/v1alpha1`, KubeProxyConfiguration), with upstream's names. Flags win over the file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

/// The Kubernetes service proxy: programs Services into nftables.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "kube-proxy", version)]
pub struct Options {
    /// Configuration file (KubeProxyConfiguration).
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Kubeconfig with the API server's address and the proxy's credentials.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node, where it is not the host name.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Networks of pods: other sources are masked on their way to a Service.
    #[arg(long)]
    pub cluster_cidr: Option<String>,
    /// Only `nftables`.
    #[arg(long, value_parser = ["nftables"])]
    pub proxy_mode: Option<String>,
    /// Address of the health server.
    #[arg(long)]
    pub healthz_bind_address: Option<String>,
    /// Address of the metrics server.
    #[arg(long)]
    pub metrics_bind_address: Option<String>,
    /// Log verbosity.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub verbosity: u8,
}

/// The config file. Sections of other modes are read and have no effect here; a field nobody knows is an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    api_version: String,
    kind: String,
    feature_gates: Value,
    client_connection: ClientConnection,
    logging: Value,
    hostname_override: String,
    bind_address: String,
    healthz_bind_address: String,
    metrics_bind_address: String,
    bind_address_hard_fail: bool,
    enable_profiling: bool,
    show_hidden_metrics_for_version: String,
    mode: String,
    iptables: Value,
    ipvs: Value,
    winkernel: Value,
    nftables: NfTables,
    detect_local_mode: String,
    detect_local: Value,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    node_port_addresses: Option<Vec<String>>,
    oom_score_adj: Option<i32>,
    conntrack: Value,
    config_sync_period: String,
    port_range: String,
    windows_run_as_service: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClientConnection {
    kubeconfig: String,
    accept_content_types: String,
    content_type: String,
    qps: f64,
    burst: i32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct NfTables {
    masquerade_bit: Option<u32>,
    masquerade_all: bool,
    sync_period: String,
    min_sync_period: String,
}

/// What the proxy runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Kubeconfig, in-cluster when unset.
    pub kubeconfig: Option<PathBuf>,
    /// This node.
    pub node: String,
    /// Networks of pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// Networks whose addresses take node ports; `None` means the node's primary address.
    pub node_port_networks: Option<Vec<IpNet>>,
    /// Mark on packets to be masqueraded.
    pub masquerade_mark: u32,
    /// Mask every source.
    pub masquerade_all: bool,
    /// Health server.
    pub healthz: SocketAddr,
    /// Metrics server.
    pub metrics: SocketAddr,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// File.
    #[error("read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// YAML.
    #[error("parse {0}")]
    Parse(PathBuf, #[source] serde_yaml::Error),
    /// A value.
    #[error("{field}: {value:?} is not {wanted}")]
    Value {
        /// Field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        wanted: &'static str,
    },
}

fn invalid(field: &'static str, value: &str, wanted: &'static str) -> ConfigError {
    ConfigError::Value { field, value: value.into(), wanted }
}

fn networks(field: &'static str, list: impl Iterator<Item = impl AsRef<str>>) -> Result<Vec<IpNet>, ConfigError> {
    list.map(|text| text.as_ref().trim().parse().map_err(|_| invalid(field, text.as_ref(), "a CIDR"))).collect()
}

/// `address:port`, or an address with the default port.
fn bind(field: &'static str, text: &str, default: SocketAddr) -> Result<SocketAddr, ConfigError> {
    if text.is_empty() {
        return Ok(default);
    }
    (text.parse().ok())
        .or_else(|| text.parse().ok().map(|ip| SocketAddr::new(ip, default.port())))
        .ok_or_else(|| invalid(field, text, "address:port"))
}

/// Reads the file named by the flags and lets the flags win.
pub fn load(options: &Options, host: &str) -> Result<Config, ConfigError> {
    let file = match &options.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| ConfigError::Read(path.clone(), e))?;
            parse(path, &text)?
        }
        None => File::default(),
    };
    resolve(options, &file, host)
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let file: File = serde_yaml::from_str(text).map_err(|e| ConfigError::Parse(path.into(), e))?;
    if file.api_version != "kubeproxy.config.k8s.io/v1alpha1" || file.kind != "KubeProxyConfiguration" {
        return Err(invalid(
            "apiVersion, kind",
            &format!("{} {}", file.api_version, file.kind),
            "kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration",
        ));
    }
    if !matches!(file.mode.as_str(), "" | "nftables") {
        return Err(invalid("mode", &file.mode, "nftables"));
    }
    if !matches!(file.detect_local_mode.as_str(), "" | "ClusterCIDR") {
        return Err(invalid("detectLocalMode", &file.detect_local_mode, "ClusterCIDR"));
    }
    Ok(file)
}

fn resolve(options: &Options, file: &File, host: &str) -> Result<Config, ConfigError> {
    let first = |candidates: [Option<&str>; 3]| candidates.into_iter().flatten().find(|s| !s.is_empty()).unwrap_or_default().to_string();
    let cluster_cidr = options.cluster_cidr.clone().unwrap_or_else(|| file.cluster_cidr.clone());
    let masquerade_bit = file.nftables.masquerade_bit.unwrap_or(14);
    if masquerade_bit > 31 {
        return Err(invalid("nftables.masqueradeBit", &masquerade_bit.to_string(), "a bit from 0 to 31"));
    }
    let node_port_networks = match file.node_port_addresses.as_deref() {
        None | Some([]) => None,
        Some([one]) if one == "primary" => None,
        Some(list) => Some(networks("nodePortAddresses", list.iter())?),
    };
    let kubeconfig = options
        .kubeconfig
        .clone()
        .or_else(|| (!file.client_connection.kubeconfig.is_empty()).then(|| file.client_connection.kubeconfig.clone().into()));
    Ok(Config {
        kubeconfig,
        node: first([options.hostname_override.as_deref(), Some(&file.hostname_override), Some(host)]).to_lowercase(),
        cluster_cidrs: networks("clusterCIDR", cluster_cidr.split(',').filter(|s| !s.trim().is_empty()))?,
        node_port_networks,
        masquerade_mark: 1 << masquerade_bit,
        masquerade_all: file.nftables.masquerade_all,
        healthz: bind(
            "healthzBindAddress",
            &first([options.healthz_bind_address.as_deref(), Some(&file.healthz_bind_address), None]),
            ([0, 0, 0, 0], 10256).into(),
        )?,
        metrics: bind(
            "metricsBindAddress",
            &first([options.metrics_bind_address.as_deref(), Some(&file.metrics_bind_address), None]),
            ([127, 0, 0, 1], 10249).into(),
        )?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let text = format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{text}");
        resolve(&Options::default(), &parse(Path::new("f"), &text)?, "Host")
    }

    #[test]
    fn defaults_are_upstreams() {
        let config = read("clusterCIDR: 10.244.0.0/16\nclientConnection: {kubeconfig: /k}\n").unwrap();
        assert_eq!(
            (config.node.as_str(), config.masquerade_mark, config.healthz.port(), config.metrics.port()),
            ("host", 0x4000, 10256, 10249)
        );
        assert_eq!(config.kubeconfig, Some("/k".into()));
        assert_eq!(config.node_port_networks, None);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let table = [
            ("mode: iptables", "mode: \"iptables\" is not nftables"),
            ("clusterCIDR: nonsense", "clusterCIDR: \"nonsense\" is not a CIDR"),
            ("nftables: {masqueradeBit: 40}", "nftables.masqueradeBit: \"40\" is not a bit from 0 to 31"),
            ("healthzBindAddress: here", "healthzBindAddress: \"here\" is not address:port"),
        ];
        for (text, expect) in table {
            assert_eq!(read(text).unwrap_err().to_string(), expect);
        }
        assert!(matches!(read("nonsense: 1"), Err(ConfigError::Parse(..))));
    }
}
