//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1): read strictly, with upstream's defaults and the flags laid over it.

use crate::flags::Flags;
use crate::model::time::go_duration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read kubelet configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("parse kubelet configuration {path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("kubelet configuration: {0}")]
    Invalid(String),
}

/// The file's fields. An unknown field is an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct File {
    pub api_version: String,
    pub kind: String,
    pub static_pod_path: Option<String>,
    #[serde(rename = "staticPodURL")]
    pub static_pod_url: Option<String>,
    #[serde(deserialize_with = "go_duration")]
    pub sync_frequency: Option<Duration>,
    #[serde(deserialize_with = "go_duration")]
    pub file_check_frequency: Option<Duration>,
    #[serde(deserialize_with = "go_duration", rename = "httpCheckFrequency")]
    pub http_check_frequency: Option<Duration>,
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub read_only_port: Option<u16>,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    pub tls_cipher_suites: Vec<String>,
    pub tls_min_version: Option<String>,
    pub rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: Option<bool>,
    pub authentication: Authentication,
    pub authorization: Authorization,
    #[serde(rename = "registryPullQPS")]
    pub registry_pull_qps: Option<i32>,
    pub registry_burst: Option<i32>,
    #[serde(rename = "eventRecordQPS")]
    pub event_record_qps: Option<i32>,
    pub event_burst: Option<i32>,
    pub enable_debugging_handlers: Option<bool>,
    pub healthz_port: Option<u16>,
    pub healthz_bind_address: Option<IpAddr>,
    pub oom_score_adj: Option<i32>,
    pub cluster_domain: Option<String>,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    #[serde(deserialize_with = "go_duration")]
    pub streaming_connection_idle_timeout: Option<Duration>,
    #[serde(deserialize_with = "go_duration")]
    pub node_status_update_frequency: Option<Duration>,
    #[serde(deserialize_with = "go_duration")]
    pub node_status_report_frequency: Option<Duration>,
    pub node_lease_duration_seconds: Option<i32>,
    #[serde(deserialize_with = "go_duration", rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: Option<Duration>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: Option<i32>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: Option<i32>,
    #[serde(deserialize_with = "go_duration")]
    pub volume_stats_agg_period: Option<Duration>,
    pub kubelet_cgroups: Option<String>,
    pub system_cgroups: Option<String>,
    pub cgroup_root: Option<String>,
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: Option<bool>,
    pub cgroup_driver: Option<String>,
    pub cpu_manager_policy: Option<String>,
    pub memory_manager_policy: Option<String>,
    pub topology_manager_policy: Option<String>,
    pub max_pods: Option<u32>,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    pub pod_pids_limit: Option<i64>,
    pub resolv_conf: Option<String>,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: Option<bool>,
    #[serde(deserialize_with = "go_duration", rename = "cpuCFSQuotaPeriod")]
    pub cpu_cfs_quota_period: Option<Duration>,
    pub node_status_max_images: Option<i32>,
    pub max_open_files: Option<i64>,
    pub content_type: Option<String>,
    #[serde(rename = "kubeAPIQPS")]
    pub kube_api_qps: Option<i32>,
    #[serde(rename = "kubeAPIBurst")]
    pub kube_api_burst: Option<i32>,
    pub serialize_image_pulls: Option<bool>,
    pub max_parallel_image_pulls: Option<i32>,
    pub eviction_hard: BTreeMap<String, String>,
    pub eviction_soft: BTreeMap<String, String>,
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    #[serde(deserialize_with = "go_duration")]
    pub eviction_pressure_transition_period: Option<Duration>,
    pub pods_per_core: Option<i32>,
    pub protect_kernel_defaults: Option<bool>,
    pub fail_swap_on: Option<bool>,
    pub memory_swap: Option<serde_json::Value>,
    pub container_log_max_size: Option<String>,
    pub container_log_max_files: Option<u32>,
    pub container_log_max_workers: Option<u32>,
    #[serde(deserialize_with = "go_duration")]
    pub container_log_monitor_interval: Option<Duration>,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub enforce_node_allocatable: Option<Vec<String>>,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub feature_gates: BTreeMap<String, bool>,
    #[serde(deserialize_with = "go_duration")]
    pub shutdown_grace_period: Option<Duration>,
    #[serde(deserialize_with = "go_duration")]
    pub shutdown_grace_period_critical_pods: Option<Duration>,
    pub seccomp_default: Option<bool>,
    pub register_with_taints: Vec<crate::model::node::Taint>,
    pub register_node: Option<bool>,
    #[serde(rename = "providerID")]
    pub provider_id: Option<String>,
    pub container_runtime_endpoint: Option<String>,
    pub image_service_endpoint: Option<String>,
    pub pod_logs_dir: Option<PathBuf>,
    pub volume_plugin_dir: Option<PathBuf>,
    pub logging: Option<serde_json::Value>,
    #[serde(deserialize_with = "go_duration")]
    pub runtime_request_timeout: Option<Duration>,
    pub hairpin_mode: Option<String>,
    pub make_iptables_util_chains: Option<bool>,
    pub fail_cgroup_v1: Option<bool>,
    pub crash_loop_back_off: Option<CrashLoopBackOff>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CrashLoopBackOff {
    #[serde(deserialize_with = "go_duration")]
    pub max_container_restart_period: Option<Duration>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    pub x509: X509,
    pub webhook: WebhookAuthentication,
    pub anonymous: Anonymous,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhookAuthentication {
    pub enabled: Option<bool>,
    #[serde(deserialize_with = "go_duration", rename = "cacheTTL")]
    pub cache_ttl: Option<Duration>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Anonymous {
    pub enabled: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authorization {
    pub mode: Option<String>,
    pub webhook: WebhookAuthorization,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhookAuthorization {
    #[serde(deserialize_with = "go_duration", rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: Option<Duration>,
    #[serde(deserialize_with = "go_duration", rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: Option<Duration>,
}

/// The settings in force: flags over file over defaults.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub static_pod_path: Option<PathBuf>,
    #[serde(skip)]
    pub sync_frequency: Duration,
    pub address: IpAddr,
    pub port: u16,
    pub healthz_address: IpAddr,
    pub healthz_port: u16,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    pub rotate_certificates: bool,
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
    pub anonymous_auth: bool,
    pub token_webhook: bool,
    pub webhook_authorization: bool,
    #[serde(skip)]
    pub authentication_ttl: Duration,
    #[serde(skip)]
    pub authorized_ttl: Duration,
    #[serde(skip)]
    pub unauthorized_ttl: Duration,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub cgroup_root: String,
    pub enforce_pods: bool,
    #[serde(rename = "failCgroupV1")]
    pub fail_cgroup_v1: bool,
    pub max_pods: u32,
    pub pod_pids_limit: i64,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    #[serde(skip)]
    pub cpu_cfs_period: Duration,
    pub container_log_max_size: u64,
    pub container_log_max_files: u32,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub eviction_hard: BTreeMap<String, String>,
    pub seccomp_default: bool,
    pub register_node: bool,
    pub register_with_taints: Vec<crate::model::node::Taint>,
    pub node_labels: BTreeMap<String, String>,
    #[serde(rename = "providerID")]
    pub provider_id: Option<String>,
    pub external_cloud_provider: bool,
    pub container_runtime_endpoint: PathBuf,
    pub pod_logs_dir: PathBuf,
    pub root_dir: PathBuf,
    pub cert_dir: PathBuf,
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    #[serde(skip)]
    pub status_update: Duration,
    #[serde(skip)]
    pub status_report: Duration,
    pub lease_seconds: i32,
    pub node_status_max_images: usize,
    pub serialize_image_pulls: bool,
    #[serde(skip)]
    pub max_restart_period: Duration,
    #[serde(skip)]
    pub runtime_request_timeout: Duration,
    pub allowed_unsafe_sysctls: Vec<String>,
}

impl File {
    /// Reads and parses the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let parse = |message: String| ConfigError::Parse { path: path.into(), message };
        let file: File = serde_yaml::from_str(&text).map_err(|e| parse(e.to_string()))?;
        if file.kind != "KubeletConfiguration" || file.api_version != "kubelet.config.k8s.io/v1beta1" {
            return Err(parse(format!(
                "expected kubelet.config.k8s.io/v1beta1 KubeletConfiguration, found {:?} {:?}",
                file.api_version, file.kind
            )));
        }
        Ok(file)
    }

    /// Names of fields that are set to something this kubelet does not do.
    pub fn unsupported(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        let mut check = |name, unsupported: bool| {
            if unsupported {
                names.push(name);
            }
        };
        check("staticPodURL", self.static_pod_url.as_deref().is_some_and(|u| !u.is_empty()));
        check("readOnlyPort", self.read_only_port.is_some_and(|p| p != 0));
        check("cpuManagerPolicy", self.cpu_manager_policy.as_deref().is_some_and(|p| !p.is_empty() && p != "none"));
        check("memoryManagerPolicy", self.memory_manager_policy.as_deref().is_some_and(|p| !p.is_empty() && p != "None"));
        check("topologyManagerPolicy", self.topology_manager_policy.as_deref().is_some_and(|p| !p.is_empty() && p != "none"));
        check("evictionSoft", !self.eviction_soft.is_empty());
        check("shutdownGracePeriod", self.shutdown_grace_period.is_some_and(|d| !d.is_zero()));
        check("tlsCipherSuites", !self.tls_cipher_suites.is_empty());
        check("memorySwap", self.memory_swap.as_ref().is_some_and(|v| v.as_object().is_some_and(|o| !o.is_empty())));
        names
    }
}

/// Splits an endpoint such as `unix:///run/containerd/containerd.sock` into its socket path.
pub fn socket_path(endpoint: &str) -> Result<PathBuf, ConfigError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(ConfigError::Invalid(format!("containerRuntimeEndpoint {endpoint:?} is not a unix socket (unix:///path)")));
    }
    Ok(PathBuf::from(path))
}

impl Config {
    /// Lays flags over the file over the defaults. `hostname` is the machine's, used when no override is given.
    pub fn resolve(flags: &Flags, file: File, hostname: &str) -> Result<Self, ConfigError> {
        let invalid = |message: String| ConfigError::Invalid(message);
        let driver = flags.cgroup_driver.clone().or(file.cgroup_driver);
        if let Some(driver) = driver.filter(|d| d != "cgroupfs") {
            return Err(invalid(format!("cgroupDriver {driver:?} is not supported: this system has no systemd, use \"cgroupfs\"")));
        }
        let mode = flags.authorization_mode.clone().or(file.authorization.mode).unwrap_or_else(|| "Webhook".into());
        if !["Webhook", "AlwaysAllow"].contains(&mode.as_str()) {
            return Err(invalid(format!("authorization.mode {mode:?} is not Webhook or AlwaysAllow")));
        }
        let mut taints = file.register_with_taints;
        for text in &flags.register_with_taints {
            taints.push(crate::flags::parse_taint(text).map_err(invalid)?);
        }
        let mut labels = BTreeMap::new();
        for text in flags.node_labels.iter().filter(|l| !l.is_empty()) {
            let (key, value) = text.split_once('=').ok_or_else(|| invalid(format!("node label {text:?} is not key=value")))?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        let quantity = |name: &str, text: &str| {
            crate::model::quantity::Quantity(text.into())
                .value()
                .and_then(|v| u64::try_from(v).ok())
                .ok_or_else(|| invalid(format!("{name}: {text:?} is not a quantity")))
        };
        let endpoint = flags
            .container_runtime_endpoint
            .clone()
            .or(file.container_runtime_endpoint)
            .filter(|e| !e.is_empty())
            .unwrap_or_else(|| "unix:///run/containerd/containerd.sock".into());
        let log_size = file.container_log_max_size.as_deref().unwrap_or("10Mi");
        let some_path = |text: Option<String>| text.filter(|t| !t.is_empty()).map(PathBuf::from);
        let enforce = file.enforce_node_allocatable.unwrap_or_else(|| vec!["pods".into()]);
        if let Some(unknown) = enforce.iter().find(|e| !["pods", "none", ""].contains(&e.as_str())) {
            return Err(invalid(format!("enforceNodeAllocatable {unknown:?} is not supported: use \"pods\" or \"none\"")));
        }
        let name = flags.hostname_override.as_deref().filter(|n| !n.is_empty()).unwrap_or(hostname).trim().to_ascii_lowercase();
        if name.is_empty() {
            return Err(invalid("the machine has no host name and --hostname-override is not set".into()));
        }
        let pids = file.pod_pids_limit.unwrap_or(-1);
        let eviction_defaults =
            [("memory.available", "100Mi"), ("nodefs.available", "10%"), ("nodefs.inodesFree", "5%"), ("imagefs.available", "15%")];
        Ok(Config {
            static_pod_path: flags.pod_manifest_path.clone().or(some_path(file.static_pod_path)),
            sync_frequency: file.sync_frequency.unwrap_or(Duration::from_secs(60)).max(Duration::from_secs(1)),
            address: flags.address.or(file.address).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            port: flags.port.or(file.port).unwrap_or(10250),
            healthz_address: flags.healthz_bind_address.or(file.healthz_bind_address).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            healthz_port: flags.healthz_port.or(file.healthz_port).unwrap_or(10248),
            tls_cert_file: flags.tls_cert_file.clone().or(file.tls_cert_file).filter(|p| !p.as_os_str().is_empty()),
            tls_private_key_file: flags.tls_private_key_file.clone().or(file.tls_private_key_file).filter(|p| !p.as_os_str().is_empty()),
            rotate_certificates: flags.rotate_certificates.or(file.rotate_certificates).unwrap_or(false),
            server_tls_bootstrap: flags.rotate_server_certificates.or(file.server_tls_bootstrap).unwrap_or(false),
            client_ca_file: flags.client_ca_file.clone().or(file.authentication.x509.client_ca_file).filter(|p| !p.as_os_str().is_empty()),
            anonymous_auth: flags.anonymous_auth.or(file.authentication.anonymous.enabled).unwrap_or(false),
            token_webhook: flags.authentication_token_webhook.or(file.authentication.webhook.enabled).unwrap_or(true),
            webhook_authorization: mode == "Webhook",
            authentication_ttl: file.authentication.webhook.cache_ttl.unwrap_or(Duration::from_secs(120)),
            authorized_ttl: file.authorization.webhook.cache_authorized_ttl.unwrap_or(Duration::from_secs(300)),
            unauthorized_ttl: file.authorization.webhook.cache_unauthorized_ttl.unwrap_or(Duration::from_secs(30)),
            cluster_dns: if flags.cluster_dns.is_empty() { file.cluster_dns } else { flags.cluster_dns.clone() },
            cluster_domain: flags.cluster_domain.clone().or(file.cluster_domain).unwrap_or_default(),
            resolv_conf: some_path(flags.resolv_conf.clone().or(file.resolv_conf)).unwrap_or_else(|| "/etc/resolv.conf".into()),
            cgroup_root: file.cgroup_root.unwrap_or_default(),
            fail_cgroup_v1: file.fail_cgroup_v1.unwrap_or(true),
            enforce_pods: enforce.iter().any(|e| e == "pods"),
            max_pods: flags.max_pods.or(file.max_pods).unwrap_or(110),
            pod_pids_limit: pids,
            cpu_cfs_quota: file.cpu_cfs_quota.unwrap_or(true),
            cpu_cfs_period: file.cpu_cfs_quota_period.unwrap_or(Duration::from_millis(100)),
            container_log_max_size: quantity("containerLogMaxSize", log_size)?,
            container_log_max_files: file.container_log_max_files.unwrap_or(5).max(2),
            system_reserved: file.system_reserved,
            kube_reserved: file.kube_reserved,
            eviction_hard: if file.eviction_hard.is_empty() {
                eviction_defaults.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
            } else {
                file.eviction_hard
            },
            seccomp_default: file.seccomp_default.unwrap_or(false),
            register_node: flags.register_node.or(file.register_node).unwrap_or(true),
            register_with_taints: taints,
            node_labels: labels,
            provider_id: flags.provider_id.clone().or(file.provider_id).filter(|p| !p.is_empty()),
            external_cloud_provider: flags.cloud_provider.as_deref() == Some("external"),
            container_runtime_endpoint: socket_path(&endpoint)?,
            pod_logs_dir: file.pod_logs_dir.unwrap_or_else(|| "/var/log/pods".into()),
            cert_dir: flags.cert_dir.clone().unwrap_or_else(|| flags.root_dir.join("pki")),
            root_dir: flags.root_dir.clone(),
            node_name: name,
            node_ips: flags.node_ip.clone(),
            status_update: file.node_status_update_frequency.unwrap_or(Duration::from_secs(10)),
            status_report: file.node_status_report_frequency.unwrap_or(Duration::from_secs(300)),
            lease_seconds: file.node_lease_duration_seconds.unwrap_or(40).max(4),
            node_status_max_images: usize::try_from(file.node_status_max_images.unwrap_or(50)).unwrap_or(usize::MAX),
            serialize_image_pulls: file.serialize_image_pulls.unwrap_or(true),
            max_restart_period: file
                .crash_loop_back_off
                .and_then(|c| c.max_container_restart_period)
                .unwrap_or(Duration::from_secs(300))
                .clamp(Duration::from_secs(1), Duration::from_secs(300)),
            runtime_request_timeout: file.runtime_request_timeout.filter(|d| !d.is_zero()).unwrap_or(Duration::from_secs(120)),
            allowed_unsafe_sysctls: file.allowed_unsafe_sysctls,
        })
    }

    /// The directory of one pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// The log directory of one pod.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn file(yaml: &str) -> Result<File, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{yaml}")).unwrap();
        File::load(&path)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let flags = Flags::parse_from(["kubelet", "--cluster-domain=flag.local", "--hostname-override=Node-A"]);
        let config = Config::resolve(&flags, file("clusterDomain: file.local\nmaxPods: 7\nsyncFrequency: 30s\n").unwrap(), "host").unwrap();
        assert_eq!((config.cluster_domain.as_str(), config.max_pods, config.port), ("flag.local", 7, 10250));
        assert_eq!((config.node_name.as_str(), config.sync_frequency), ("node-a", Duration::from_secs(30)));
    }

    #[test]
    fn bad_files_are_refused_with_the_reason() {
        for (yaml, expected) in
            [("noSuchField: 1\n", "noSuchField"), ("syncFrequency: soon\n", "soon"), ("authentication: {x509: {caFile: a}}\n", "caFile")]
        {
            let error = file(yaml).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let flags = Flags::parse_from(["kubelet"]);
        for (yaml, expected) in [
            ("cgroupDriver: systemd\n", "cgroupfs"),
            ("authorization: {mode: Maybe}\n", "Maybe"),
            ("containerRuntimeEndpoint: tcp://x\n", "unix"),
        ] {
            let error = Config::resolve(&flags, file(yaml).unwrap(), "host").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
