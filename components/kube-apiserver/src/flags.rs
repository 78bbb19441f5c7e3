//! The command line, under upstream's names. What kubeadm and Talos set is accepted; a flag that is not known is an error naming it.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{ArgAction, Parser};

use crate::{
    admission, audit,
    authn::{Names, oidc::config as oidc},
    flow_control,
    http::{drain, options, tls::Protocols},
    kubelet::KubeletConfig,
    server::{Authorizers, Config, Issuers, TokenHook},
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
    /// Issuers of tokens, how their claims become users, and who may be anonymous.
    #[arg(long)]
    authentication_config: Option<PathBuf>,
    /// A webhook that knows tokens, in a file of kubeconfig form.
    #[arg(long)]
    authentication_token_webhook_config_file: Option<PathBuf>,
    #[arg(long, default_value = "2m0s")]
    authentication_token_webhook_cache_ttl: String,
    #[arg(long, default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    authentication_token_webhook_version: String,
    /// Who is asked whether a request is allowed, in a file; instead of the mode.
    #[arg(long, conflicts_with_all = ["authorization_mode", "authorization_webhook_config_file"])]
    authorization_config: Option<PathBuf>,
    /// Node, RBAC and Webhook, in the order in which they are asked; default: Node,RBAC.
    #[arg(long, value_delimiter = ',')]
    authorization_mode: Vec<String>,
    /// The webhook of mode Webhook, in a file of kubeconfig form.
    #[arg(long)]
    authorization_webhook_config_file: Option<PathBuf>,
    #[arg(long, default_value = "5m0s")]
    authorization_webhook_cache_authorized_ttl: String,
    #[arg(long, default_value = "30s")]
    authorization_webhook_cache_unauthorized_ttl: String,
    #[arg(long, default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    authorization_webhook_version: String,
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
    /// Requests for extension servers go to endpoints instead of the service's cluster IP.
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    enable_aggregator_routing: bool,
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    enable_bootstrap_token_auth: bool,
    /// Which resources are encrypted in etcd, and with which keys.
    #[arg(long)]
    encryption_provider_config: Option<PathBuf>,
    /// Read that file again when it changes.
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, requires = "encryption_provider_config")]
    encryption_provider_config_automatic_reload: bool,
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
    oidc_ca_file: Option<PathBuf>,
    #[arg(long)]
    oidc_client_id: Option<String>,
    #[arg(long)]
    oidc_groups_claim: Option<String>,
    #[arg(long)]
    oidc_groups_prefix: Option<String>,
    /// An issuer of tokens, by its URL.
    #[arg(long)]
    oidc_issuer_url: Option<String>,
    /// `claim=value`, as often as needed.
    #[arg(long, value_delimiter = ',')]
    oidc_required_claim: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "RS256")]
    oidc_signing_algs: Vec<String>,
    #[arg(long, default_value = "sub")]
    oidc_username_claim: String,
    #[arg(long)]
    oidc_username_prefix: Option<String>,
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
    /// Tokens of pods that did not choose how long theirs is good are good for a year, though they are told an hour.
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    service_account_extend_token_expiration: bool,
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
    /// Tokens of users in a file of lines `token,user,uid,"group1,group2"`.
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Requests that are not watches or streams must be done in this time.
    #[arg(long, default_value = "1m0s")]
    request_timeout: String,
    /// Seconds after which a watch that names no end is ended at the earliest.
    #[arg(long, default_value_t = 1800)]
    min_request_timeout: u64,
    /// Requests of one HTTP/2 connection at a time; 0: 250.
    #[arg(long, default_value_t = 0)]
    http2_max_streams_per_connection: u32,
    /// Directives of the header Strict-Transport-Security, such as `max-age=31536000,includeSubDomains`.
    #[arg(long, value_delimiter = ',')]
    strict_transport_security_directives: Vec<String>,
    /// Regular expressions of origins whose web pages may read answers.
    #[arg(long, value_delimiter = ',')]
    cors_allowed_origins: Vec<String>,
    /// Where the keys of service account tokens are said to be.
    #[arg(long)]
    service_account_jwks_uri: Option<String>,
    /// Tokens of service accounts are good only while their account is there; this is always so.
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    service_account_lookup: bool,
    #[arg(long, default_value_t = 300)]
    default_not_ready_toleration_seconds: i64,
    #[arg(long, default_value_t = 300)]
    default_unreachable_toleration_seconds: i64,
    /// How often what etcd keeps of the past is cut off; 0: never.
    #[arg(long, default_value = "5m0s")]
    etcd_compaction_interval: String,
    #[command(flatten)]
    without_effect: WithoutEffect,
    /// Verbosity: 0 to 10.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub verbosity: u8,
}

/// Flags of upstream's that tune what is not tuned here. They are taken so that the same command line starts either server.
#[derive(Debug, clap::Args)]
#[group(skip)]
struct WithoutEffect {
    /// Caches follow etcd and need no size.
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, hide = true)]
    watch_cache: bool,
    #[arg(long, hide = true)]
    default_watch_cache_size: Option<u64>,
    #[arg(long, value_delimiter = ',', hide = true)]
    watch_cache_sizes: Vec<String>,
    /// Collections are deleted as fast as etcd takes it.
    #[arg(long, hide = true)]
    delete_collection_workers: Option<u64>,
    #[arg(long, hide = true)]
    lease_reuse_duration_seconds: Option<u64>,
    #[arg(long, hide = true)]
    etcd_count_metric_poll_period: Option<String>,
    #[arg(long, hide = true)]
    etcd_db_metric_poll_interval: Option<String>,
    #[arg(long, hide = true)]
    etcd_healthcheck_timeout: Option<String>,
    #[arg(long, hide = true)]
    etcd_readycheck_timeout: Option<String>,
    #[arg(long, value_parser = ["etcd3"], hide = true)]
    storage_backend: Option<String>,
    /// Finalizers of owners are always honoured.
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, hide = true)]
    enable_garbage_collector: bool,
    /// There is no profiler.
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, hide = true)]
    contention_profiling: bool,
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, hide = true)]
    enable_logs_handler: bool,
    /// The certificate is named by --tls-cert-file.
    #[arg(long, hide = true)]
    cert_dir: Option<PathBuf>,
    #[arg(long, hide = true)]
    kubelet_timeout: Option<String>,
    #[arg(long, hide = true)]
    livez_grace_period: Option<String>,
    #[arg(long, value_parser = ["text", "json"], hide = true)]
    logging_format: Option<String>,
    #[arg(long, hide = true)]
    log_flush_frequency: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    /// No metric is hidden.
    #[arg(long, hide = true)]
    show_hidden_metrics_for_version: Option<String>,
    #[arg(long, hide = true)]
    apiserver_count: Option<u64>,
}

/// A duration as Go writes it: `1h0m0s`, `90m`, `1.5s`, `250ms`.
pub fn go_duration(s: &str) -> anyhow::Result<Duration> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let bad = || anyhow::anyhow!("{s:?} is not a duration such as 1h0m0s");
    let mut rest = s.strip_prefix('+').unwrap_or(s);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (value, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let (_, size) = UNITS.iter().find(|(u, _)| *u == unit).ok_or_else(bad)?;
        total += value.parse::<f64>().map_err(|_| bad())? * size;
        rest = after;
    }
    if s.is_empty() { Err(bad()) } else { Duration::try_from_secs_f64(total).map_err(|_| bad()) }
}

/// As [`go_duration`], in whole seconds.
pub fn go_seconds(s: &str) -> anyhow::Result<i64> {
    Ok(i64::try_from(go_duration(s)?.as_secs())?)
}

impl Flags {
    /// Checks what clap cannot.
    pub fn into_config(self) -> anyhow::Result<Config> {
        let ttl = |flag: &str, text: &str| -> anyhow::Result<Duration> {
            let seconds = go_seconds(text).with_context(|| flag.to_owned())?;
            Ok(Duration::from_secs(u64::try_from(seconds).with_context(|| flag.to_owned())?))
        };
        let modes = if self.authorization_mode.is_empty() { vec!["Node".to_owned(), "RBAC".to_owned()] } else { self.authorization_mode };
        for m in &modes {
            match m.as_str() {
                "Node" | "RBAC" => {}
                "Webhook" if self.authorization_webhook_config_file.is_some() => {}
                "Webhook" => bail!("--authorization-mode: Webhook needs --authorization-webhook-config-file"),
                "AlwaysAllow" => bail!("--authorization-mode: AlwaysAllow is refused: it would let everybody do everything"),
                other => bail!("--authorization-mode: {other:?} is not one of Node, RBAC, Webhook"),
            }
        }
        let authorizers = match self.authorization_config {
            Some(path) => Authorizers::File(path),
            None => Authorizers::Flags {
                modes,
                webhook: self.authorization_webhook_config_file.map(|f| (f, self.authorization_webhook_version)),
                allowed_ttl: ttl("--authorization-webhook-cache-authorized-ttl", &self.authorization_webhook_cache_authorized_ttl)?,
                refused_ttl: ttl("--authorization-webhook-cache-unauthorized-ttl", &self.authorization_webhook_cache_unauthorized_ttl)?,
            },
        };
        let token_webhook = match self.authentication_token_webhook_config_file {
            Some(file) => Some(TokenHook {
                file,
                version: self.authentication_token_webhook_version,
                ttl: ttl("--authentication-token-webhook-cache-ttl", &self.authentication_token_webhook_cache_ttl)?,
            }),
            None => None,
        };
        if self.enable_priority_and_fairness && self.max_requests_inflight.saturating_add(self.max_mutating_requests_inflight) == 0 {
            bail!("--max-requests-inflight and --max-mutating-requests-inflight must not both be 0 with --enable-priority-and-fairness");
        }
        for p in self.enable_admission_plugins.iter().chain(&self.disable_admission_plugins) {
            if !admission::known(p) {
                bail!("--enable-admission-plugins: unknown plugin {p:?}");
            }
        }
        let mut admission = admission::Configuration::of(&self.enable_admission_plugins, &self.disable_admission_plugins);
        if let Some(path) = &self.admission_control_config_file {
            admission = admission.load(path).context("--admission-control-config-file")?;
        }
        let admission = admission.checked()?;
        if !self.service_account_lookup {
            bail!("--service-account-lookup=false is refused: tokens would outlive their accounts");
        }
        let strict_transport = match self.strict_transport_security_directives.as_slice() {
            [] => None,
            all => Some(http::HeaderValue::from_str(&all.join("; ")).context("--strict-transport-security-directives")?),
        };
        let origins = self.cors_allowed_origins.iter().map(|o| regex::Regex::new(o)).collect::<Result<Vec<_>, _>>();
        let http = options::Options {
            request_timeout: go_duration(&self.request_timeout).context("--request-timeout")?,
            min_request_timeout: Duration::from_secs(self.min_request_timeout),
            max_streams: if self.http2_max_streams_per_connection == 0 { 250 } else { self.http2_max_streams_per_connection },
            strict_transport,
            origins: origins.context("--cors-allowed-origins")?,
        };
        if http.request_timeout.is_zero() {
            bail!("--request-timeout must be greater than 0");
        }
        if self.default_not_ready_toleration_seconds < 0 || self.default_unreachable_toleration_seconds < 0 {
            bail!("--default-not-ready-toleration-seconds and --default-unreachable-toleration-seconds must not be negative");
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
                Names {
                    allowed: self.requestheader_allowed_names,
                    username: self.requestheader_username_headers,
                    uid: self.requestheader_uid_headers,
                    group: self.requestheader_group_headers,
                    extra_prefix: self.requestheader_extra_headers_prefix,
                },
            )
        });
        let oidc = oidc::Flags {
            issuer_url: self.oidc_issuer_url.unwrap_or_default(),
            client_id: self.oidc_client_id.unwrap_or_default(),
            ca_file: self.oidc_ca_file,
            username_claim: self.oidc_username_claim,
            username_prefix: self.oidc_username_prefix,
            groups_claim: self.oidc_groups_claim.unwrap_or_default(),
            groups_prefix: self.oidc_groups_prefix.unwrap_or_default(),
            signing_algs: self.oidc_signing_algs,
            required_claims: self.oidc_required_claim,
        };
        let issuers = match (self.authentication_config, oidc.issuer_url.is_empty(), oidc.client_id.is_empty()) {
            (Some(_), false, _) | (Some(_), _, false) => bail!("--authentication-config and --oidc-* flags exclude each other"),
            (Some(path), ..) => Issuers::File(path),
            (None, true, true) => Issuers::None,
            (None, false, false) => Issuers::Flags(oidc),
            _ => bail!("--oidc-issuer-url and --oidc-client-id are given together"),
        };
        let proxy_client = match (self.proxy_client_cert_file, self.proxy_client_key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => bail!("--proxy-client-cert-file and --proxy-client-key-file are given together"),
        };
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
            protocols: Protocols::of(self.tls_min_version.as_deref(), &self.tls_cipher_suites).map_err(anyhow::Error::msg)?,
            client_ca: self.client_ca_file,
            authorizers,
            token_webhook,
            bootstrap_tokens: self.enable_bootstrap_token_auth,
            anonymous: self.anonymous_auth,
            issuers,
            token_issuers: self.service_account_issuer,
            api_audiences,
            signing_key: self.service_account_signing_key_file,
            token_keys: self.service_account_key_file,
            max_token_lifetime: max.filter(|m| *m > 0),
            extend_tokens: self.service_account_extend_token_expiration,
            service_ranges: self.service_cluster_ip_range,
            node_ports: self.service_node_port_range,
            kubelet: KubeletConfig {
                cert: self.kubelet_client_certificate,
                key: self.kubelet_client_key,
                ca: self.kubelet_certificate_authority,
                address_types: self.kubelet_preferred_address_types,
            },
            request_header,
            proxy_client,
            aggregator_routing: self.enable_aggregator_routing,
            encryption: self.encryption_provider_config,
            encryption_reload: self.encryption_provider_config_automatic_reload,
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
            audit: self.audit.into_config(go_duration)?,
            arguments: Vec::new(),
            http,
            token_file: self.token_auth_file,
            jwks_uri: self.service_account_jwks_uri,
            toleration_seconds: (self.default_not_ready_toleration_seconds, self.default_unreachable_toleration_seconds),
            compaction_interval: go_duration(&self.etcd_compaction_interval).context("--etcd-compaction-interval")?,
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
    fn what_talos_sets_is_taken() {
        let c = parse(&[
            "--anonymous-auth=false",
            "--api-audiences=https://10.0.0.1:6443",
            "--authorization-mode=Node,RBAC",
            "--bind-address=0.0.0.0",
            "--encryption-provider-config=e",
            "--profiling=false",
            "--proxy-client-cert-file=p",
            "--proxy-client-key-file=k",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-client-ca-file=x",
            "--tls-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "--tls-min-version=VersionTLS12",
        ])
        .unwrap();
        assert!(c.proxy_client.is_some() && c.encryption.is_some() && !c.encryption_reload && !c.anonymous);
        assert!(matches!(&c.authorizers, Authorizers::Flags { modes, .. } if modes == &["Node", "RBAC"]));
    }

    #[test]
    fn what_tunes_upstreams_server_is_taken() {
        let c = parse(&[
            "--token-auth-file=t",
            "--request-timeout=90s",
            "--min-request-timeout=600",
            "--http2-max-streams-per-connection=1000",
            "--strict-transport-security-directives=max-age=31536000,includeSubDomains",
            "--cors-allowed-origins=^https://a,b$",
            "--default-not-ready-toleration-seconds=30",
            "--etcd-compaction-interval=10m",
            "--watch-cache-sizes=pods#100",
            "--default-watch-cache-size=200",
            "--delete-collection-workers=2",
            "--enable-garbage-collector",
            "--logging-format=json",
            "--audit-webhook-config-file=w",
            "--audit-policy-file=p",
        ])
        .unwrap();
        assert_eq!((c.http.request_timeout, c.http.min_request_timeout), (Duration::from_secs(90), Duration::from_secs(600)));
        assert_eq!((c.http.max_streams, c.http.origins.len(), c.toleration_seconds), (1000, 2, (30, 300)));
        assert_eq!(c.http.strict_transport.unwrap().as_bytes(), b"max-age=31536000; includeSubDomains");
        assert_eq!(c.compaction_interval, Duration::from_secs(600));
        assert!(c.audit.unwrap().webhook.is_some());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flag, named) in [
            ("--no-such-flag", "--no-such-flag"),
            ("--authorization-mode=AlwaysAllow", "AlwaysAllow"),
            ("--enable-admission-plugins=Nonsense", "Nonsense"),
            ("--enable-admission-plugins=EventRateLimit", "--admission-control-config-file"),
            ("--authorization-mode=Webhook", "--authorization-webhook-config-file"),
            ("--encryption-provider-config-automatic-reload", "--encryption-provider-config"),
            ("--oidc-client-id=x", "--oidc-issuer-url"),
            ("--proxy-client-cert-file=x", "--proxy-client-key-file"),
            ("--tls-min-version=1.2", "--tls-min-version"),
            ("--request-timeout=0", "--request-timeout"),
            ("--cors-allowed-origins=(", "--cors-allowed-origins"),
            ("--service-account-lookup=false", "--service-account-lookup"),
            ("--service-cluster-ip-range=10.0.0.0/8,11.0.0.0/8", "--service-cluster-ip-range"),
        ] {
            assert!(parse(&[flag]).unwrap_err().to_string().contains(named), "{flag}");
        }
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(go_seconds("1h0m0s").unwrap(), 3600);
        assert_eq!(go_seconds("90m").unwrap(), 5400);
        assert_eq!(go_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(go_duration("1m250ms").unwrap(), Duration::from_millis(60_250));
        assert_eq!(go_duration("0").unwrap(), Duration::ZERO);
        for bad in ["1", "x", "", "1x", "s", "-1s", "1.2.3s"] {
            assert!(go_duration(bad).is_err(), "{bad}");
        }
    }
}
