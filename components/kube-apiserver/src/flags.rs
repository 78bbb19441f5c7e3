//! The command line, under upstream's names. What kubeadm and Talos set is accepted; a flag that is not known is an error naming it.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{ArgAction, Parser};

use crate::{
    admission, audit,
    authz::Mode,
    flow_control,
    http::drain,
    kubelet::KubeletConfig,
    server::{Config, RequestHeader},
    services::NodePorts,
    storage::EtcdConfig,
};

/// The Kubernetes API server.
#[derive(Debug, Parser)]
#[command(name = "kube-apiserver", version = crate::handlers::discovery::KUBERNETES, disable_help_subcommand = true)]
pub struct Flags {
    /// The address on which to advertise this server to the cluster.
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Privileged containers may run; this is always so.
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    allow_privileged: bool,
    /// Anonymous requests may ask for health and version.
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    anonymous_auth: bool,
    /// Audiences of tokens for this server; default: the issuer.
    #[arg(long, value_delimiter = ',')]
    api_audiences: Vec<String>,
    /// Node and RBAC, in the order in which they are asked.
    #[arg(long, value_delimiter = ',', default_value = "Node,RBAC")]
    authorization_mode: Vec<String>,
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Who may authenticate by client certificate.
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    /// Configuration of admission plugins.
    #[arg(long)]
    admission_control_config_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    enable_admission_plugins: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    enable_bootstrap_token_auth: bool,
    #[arg(long)]
    etcd_cafile: Option<PathBuf>,
    #[arg(long)]
    etcd_certfile: Option<PathBuf>,
    #[arg(long)]
    etcd_keyfile: Option<PathBuf>,
    #[arg(long, default_value = "/registry")]
    etcd_prefix: String,
    #[arg(long, value_delimiter = ',', required = true)]
    etcd_servers: Vec<String>,
    /// How long events are kept, such as `1h0m0s`.
    #[arg(long, default_value = "1h0m0s")]
    event_ttl: String,
    #[arg(long)]
    kubelet_certificate_authority: Option<PathBuf>,
    #[arg(long)]
    kubelet_client_certificate: Option<PathBuf>,
    #[arg(long)]
    kubelet_client_key: Option<PathBuf>,
    #[arg(long, value_delimiter = ',', default_value = "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP")]
    kubelet_preferred_address_types: Vec<String>,
    #[arg(long)]
    proxy_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    proxy_client_key_file: Option<PathBuf>,
    #[arg(long)]
    requestheader_client_ca_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_extra_headers_prefix: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_username_headers: Vec<String>,
    /// Everything stable is on; entries are accepted and change nothing.
    #[arg(long, value_delimiter = ',')]
    runtime_config: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    feature_gates: Vec<String>,
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    #[arg(long)]
    service_account_issuer: Vec<String>,
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    #[arg(long)]
    service_account_signing_key_file: PathBuf,
    #[arg(long)]
    service_account_max_token_expiration: Option<String>,
    /// Ranges of cluster IPs, at most one per family.
    #[arg(long, value_delimiter = ',', default_value = "10.0.0.0/24")]
    service_cluster_ip_range: Vec<ipnet::IpNet>,
    #[arg(long, default_value = "30000-32767")]
    service_node_port_range: NodePorts,
    #[arg(long)]
    tls_cert_file: PathBuf,
    #[arg(long)]
    tls_private_key_file: PathBuf,
    #[arg(long, value_delimiter = ',')]
    tls_cipher_suites: Vec<String>,
    #[arg(long)]
    tls_min_version: Option<String>,
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    profiling: bool,
    #[arg(long)]
    storage_media_type: Option<String>,
    #[arg(long)]
    endpoint_reconciler_type: Option<String>,
    /// How long to serve on after readyz began to fail at the end, such as `70s`.
    #[arg(long, default_value = "0s")]
    shutdown_delay_duration: String,
    /// While what runs is finished, others are told to come back instead of being turned away.
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    shutdown_send_retry_after: bool,
    #[command(flatten)]
    audit: audit::Flags,
    /// Requests are held back by flows and levels; otherwise only by the two numbers.
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    enable_priority_and_fairness: bool,
    /// Requests that change nothing, at a time; with priority and fairness the sum of both numbers is shared.
    #[arg(long, default_value_t = 400)]
    max_requests_inflight: u64,
    /// Requests that change something, at a time.
    #[arg(long, default_value_t = 200)]
    max_mutating_requests_inflight: u64,
    /// Verbosity: 0 to 10.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub verbosity: u8,
}

/// A duration as Go writes it, in seconds: `1h0m0s`, `90m`.
fn go_seconds(s: &str) -> anyhow::Result<i64> {
    let bad = || anyhow::anyhow!("{s:?} is not a duration such as 1h0m0s");
    let (mut total, mut number) = (0i64, String::new());
    for c in s.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(bad()),
        };
        let n: i64 = number.parse().map_err(|_| bad())?;
        total = n.checked_mul(unit).and_then(|x| total.checked_add(x)).ok_or_else(bad)?;
        number.clear();
    }
    if number.is_empty() && !s.is_empty() { Ok(total) } else { Err(bad()) }
}

impl Flags {
    /// Checks what clap cannot.
    pub fn into_config(self) -> anyhow::Result<Config> {
        let modes = self
            .authorization_mode
            .iter()
            .map(|m| match m.as_str() {
                "Node" => Ok(Mode::Node),
                "RBAC" => Ok(Mode::Rbac),
                "AlwaysAllow" => bail!("--authorization-mode: AlwaysAllow is refused: it would let everybody do everything"),
                other => bail!("--authorization-mode: {other:?} is not one of Node, RBAC"),
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        if self.enable_priority_and_fairness && self.max_requests_inflight.saturating_add(self.max_mutating_requests_inflight) == 0 {
            bail!("--max-requests-inflight and --max-mutating-requests-inflight must not both be 0 with --enable-priority-and-fairness");
        }
        for p in self.enable_admission_plugins.iter().chain(&self.disable_admission_plugins) {
            if !admission::known(p) {
                bail!("--enable-admission-plugins: unknown plugin {p:?}");
            }
        }
        let off = self.disable_admission_plugins.into_iter().filter(|p| !self.enable_admission_plugins.contains(p)).collect();
        let mut admission = admission::Configuration::without(off);
        if let Some(path) = &self.admission_control_config_file {
            admission = admission.load(path).context("--admission-control-config-file")?;
        }
        if self.service_account_issuer.is_empty() {
            bail!("--service-account-issuer is required");
        }
        let v4 = self.service_cluster_ip_range.iter().filter(|n| n.addr().is_ipv4()).count();
        if self.service_cluster_ip_range.len() > 2 || v4 > 1 || self.service_cluster_ip_range.len() - v4 > 1 {
            bail!("--service-cluster-ip-range takes one range, or one per address family");
        }
        let advertise = match self.advertise_address {
            Some(a) => a,
            None if !self.bind_address.is_unspecified() => self.bind_address,
            None => bail!("--advertise-address is required when --bind-address is {}", self.bind_address),
        };
        let api_audiences = if self.api_audiences.is_empty() { self.service_account_issuer[..1].to_vec() } else { self.api_audiences };
        let max = self
            .service_account_max_token_expiration
            .as_deref()
            .map(go_seconds)
            .transpose()
            .context("--service-account-max-token-expiration")?;
        let request_header = self.requestheader_client_ca_file.map(|ca| {
            (
                ca,
                RequestHeader {
                    ca_pem: String::new(),
                    allowed_names: self.requestheader_allowed_names,
                    username_headers: self.requestheader_username_headers,
                    group_headers: self.requestheader_group_headers,
                    extra_prefixes: self.requestheader_extra_headers_prefix,
                },
            )
        });
        Ok(Config {
            etcd: EtcdConfig {
                servers: self.etcd_servers,
                ca_file: self.etcd_cafile,
                cert_file: self.etcd_certfile,
                key_file: self.etcd_keyfile,
            },
            root: format!("{}/", self.etcd_prefix.trim_end_matches('/')),
            bind: self.bind_address,
            port: self.secure_port,
            advertise,
            tls_cert: self.tls_cert_file,
            tls_key: self.tls_private_key_file,
            client_ca: self.client_ca_file,
            modes,
            bootstrap_tokens: self.enable_bootstrap_token_auth,
            anonymous: self.anonymous_auth,
            issuers: self.service_account_issuer,
            api_audiences,
            signing_key: self.service_account_signing_key_file,
            token_keys: self.service_account_key_file,
            max_token_lifetime: max.filter(|m| *m > 0),
            service_ranges: self.service_cluster_ip_range,
            node_ports: self.service_node_port_range,
            kubelet: KubeletConfig {
                cert: self.kubelet_client_certificate,
                key: self.kubelet_client_key,
                ca: self.kubelet_certificate_authority,
                address_types: self.kubelet_preferred_address_types,
            },
            request_header,
            event_ttl: go_seconds(&self.event_ttl).context("--event-ttl")?,
            admission,
            drain: drain::Config {
                delay: Duration::from_secs(go_seconds(&self.shutdown_delay_duration).context("--shutdown-delay-duration")?.unsigned_abs()),
                send_retry_after: self.shutdown_send_retry_after,
            },
            flow_control: flow_control::Config {
                fair: self.enable_priority_and_fairness,
                read_only: self.max_requests_inflight,
                mutating: self.max_mutating_requests_inflight,
            },
            audit: self.audit.into_config(go_seconds)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &[&str] = &[
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        "--tls-cert-file=c",
        "--tls-private-key-file=k",
        "--service-account-signing-key-file=s",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--advertise-address=10.0.0.1",
    ];

    fn parse(more: &[&str]) -> anyhow::Result<Config> {
        Flags::try_parse_from(MINIMAL.iter().chain(more))?.into_config()
    }

    #[test]
    fn what_kubeadm_sets_is_taken() {
        let c = parse(&[
            "--allow-privileged=true",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--enable-bootstrap-token-auth=true",
            "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-client-ca-file=x",
            "--secure-port=6443",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--v=2",
        ])
        .unwrap();
        assert_eq!((c.root.as_str(), c.bootstrap_tokens, c.event_ttl), ("/registry/", true, 3600));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flag, named) in [
            ("--no-such-flag", "--no-such-flag"),
            ("--authorization-mode=AlwaysAllow", "AlwaysAllow"),
            ("--enable-admission-plugins=Nonsense", "Nonsense"),
            ("--service-cluster-ip-range=10.0.0.0/8,11.0.0.0/8", "--service-cluster-ip-range"),
        ] {
            assert!(parse(&[flag]).unwrap_err().to_string().contains(named), "{flag}");
        }
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(go_seconds("1h0m0s").unwrap(), 3600);
        assert_eq!(go_seconds("90m").unwrap(), 5400);
        assert!(go_seconds("1").is_err());
        assert!(go_seconds("x").is_err());
    }
}
