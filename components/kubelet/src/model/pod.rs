//! Pods as the kubelet reads them.

use super::{object, quantity::Quantity, status::PodStatus};
pub use k8s_client::{LocalObjectReference, ObjectMeta};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Requests, limits and similar lists.
pub type ResourceList = BTreeMap<String, Quantity>;

object! {
    /// A pod from any source.
    Pod {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: PodSpec,
        status: PodStatus,
    }
    PodSpec {
        volumes: Vec<Volume>,
        init_containers: Vec<Container>,
        containers: Vec<Container>,
        restart_policy: String,
        termination_grace_period_seconds: Option<i64>,
        active_deadline_seconds: Option<i64>,
        dns_policy: String,
        service_account_name: String,
        automount_service_account_token: Option<bool>,
        node_name: String,
        host_network: bool,
        #[serde(rename = "hostPID")]
        host_pid: bool,
        #[serde(rename = "hostIPC")]
        host_ipc: bool,
        share_process_namespace: Option<bool>,
        security_context: Option<PodSecurityContext>,
        image_pull_secrets: Vec<LocalObjectReference>,
        hostname: String,
        subdomain: String,
        #[serde(rename = "setHostnameAsFQDN")]
        set_hostname_as_fqdn: Option<bool>,
        tolerations: Vec<Toleration>,
        host_aliases: Vec<HostAlias>,
        priority_class_name: String,
        priority: Option<i32>,
        dns_config: Option<PodDnsConfig>,
        readiness_gates: Vec<PodReadinessGate>,
        runtime_class_name: Option<String>,
        enable_service_links: Option<bool>,
        overhead: ResourceList,
        resources: Option<ResourceRequirements>,
    }
    PodReadinessGate { condition_type: String, }
    Toleration { key: String, operator: String, value: String, effect: String, toleration_seconds: Option<i64>, }
    HostAlias { ip: String, hostnames: Vec<String>, }
    PodDnsConfig { nameservers: Vec<String>, searches: Vec<String>, options: Vec<DnsOption>, }
    DnsOption { name: String, value: Option<String>, }
    PodSecurityContext {
        se_linux_options: Option<SeLinuxOptions>,
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        supplemental_groups: Vec<i64>,
        supplemental_groups_policy: String,
        fs_group: Option<i64>,
        fs_group_change_policy: String,
        sysctls: Vec<Sysctl>,
        seccomp_profile: Option<SecurityProfile>,
        app_armor_profile: Option<SecurityProfile>,
    }
    SeLinuxOptions { user: String, role: String, r#type: String, level: String, }
    Sysctl { name: String, value: String, }
    /// Seccomp or AppArmor profile.
    SecurityProfile { r#type: String, localhost_profile: String, }
    SecurityContext {
        capabilities: Option<Capabilities>,
        privileged: Option<bool>,
        se_linux_options: Option<SeLinuxOptions>,
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        read_only_root_filesystem: Option<bool>,
        allow_privilege_escalation: Option<bool>,
        proc_mount: String,
        seccomp_profile: Option<SecurityProfile>,
        app_armor_profile: Option<SecurityProfile>,
    }
    Capabilities { add: Vec<String>, drop: Vec<String>, }
    Container {
        name: String,
        image: String,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        ports: Vec<ContainerPort>,
        env_from: Vec<EnvFromSource>,
        env: Vec<EnvVar>,
        resources: ResourceRequirements,
        restart_policy: String,
        restart_policy_rules: Vec<ContainerRestartRule>,
        volume_mounts: Vec<VolumeMount>,
        volume_devices: Vec<serde_json::Value>,
        liveness_probe: Option<Probe>,
        readiness_probe: Option<Probe>,
        startup_probe: Option<Probe>,
        lifecycle: Option<Lifecycle>,
        termination_message_path: String,
        termination_message_policy: String,
        image_pull_policy: String,
        security_context: Option<SecurityContext>,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
    }
    ContainerRestartRule { action: String, exit_codes: Option<RestartExitCodes>, }
    RestartExitCodes { operator: String, values: Vec<i32>, }
    ResourceRequirements { limits: ResourceList, requests: ResourceList, }
    ContainerPort {
        name: String,
        host_port: i32,
        container_port: i32,
        protocol: String,
        #[serde(rename = "hostIP")]
        host_ip: String,
    }
    EnvFromSource { prefix: String, config_map_ref: Option<EnvObjectRef>, secret_ref: Option<EnvObjectRef>, }
    EnvObjectRef { name: String, optional: Option<bool>, }
    EnvVar { name: String, value: String, value_from: Option<EnvVarSource>, }
    EnvVarSource {
        field_ref: Option<ObjectFieldSelector>,
        resource_field_ref: Option<ResourceFieldSelector>,
        config_map_key_ref: Option<KeySelector>,
        secret_key_ref: Option<KeySelector>,
    }
    ObjectFieldSelector { api_version: String, field_path: String, }
    ResourceFieldSelector { container_name: String, resource: String, divisor: Option<Quantity>, }
    KeySelector { name: String, key: String, optional: Option<bool>, }
    VolumeMount {
        name: String,
        read_only: bool,
        recursive_read_only: Option<String>,
        mount_path: String,
        sub_path: String,
        sub_path_expr: String,
        mount_propagation: Option<String>,
    }
    Probe {
        exec: Option<ExecAction>,
        http_get: Option<HttpGetAction>,
        tcp_socket: Option<TcpSocketAction>,
        grpc: Option<GrpcAction>,
        initial_delay_seconds: i32,
        timeout_seconds: i32,
        period_seconds: i32,
        success_threshold: i32,
        failure_threshold: i32,
        termination_grace_period_seconds: Option<i64>,
    }
    ExecAction { command: Vec<String>, }
    HttpGetAction { path: String, port: IntOrString, host: String, scheme: String, http_headers: Vec<HttpHeader>, }
    HttpHeader { name: String, value: String, }
    TcpSocketAction { port: IntOrString, host: String, }
    GrpcAction { port: i32, service: Option<String>, }
    SleepAction { seconds: i64, }
    Lifecycle { post_start: Option<LifecycleHandler>, pre_stop: Option<LifecycleHandler>, stop_signal: Option<String>, }
    LifecycleHandler {
        exec: Option<ExecAction>,
        http_get: Option<HttpGetAction>,
        tcp_socket: Option<TcpSocketAction>,
        sleep: Option<SleepAction>,
    }
    EmptyDirVolumeSource { medium: String, size_limit: Option<Quantity>, }
    HostPathVolumeSource { path: String, r#type: Option<String>, }
    /// `configMap` names its object `name`, `secret` names it `secretName`.
    ObjectVolumeSource {
        name: String,
        secret_name: String,
        items: Vec<KeyToPath>,
        default_mode: Option<i32>,
        optional: Option<bool>,
    }
    KeyToPath { key: String, path: String, mode: Option<i32>, }
    DownwardApiVolumeSource { items: Vec<DownwardApiFile>, default_mode: Option<i32>, }
    DownwardApiFile {
        path: String,
        field_ref: Option<ObjectFieldSelector>,
        resource_field_ref: Option<ResourceFieldSelector>,
        mode: Option<i32>,
    }
    ProjectedVolumeSource { sources: Vec<VolumeProjection>, default_mode: Option<i32>, }
    VolumeProjection {
        secret: Option<ObjectVolumeSource>,
        config_map: Option<ObjectVolumeSource>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardApiVolumeSource>,
        service_account_token: Option<ServiceAccountTokenProjection>,
    }
    ServiceAccountTokenProjection { audience: String, expiration_seconds: Option<i64>, path: String, }
}

/// One volume; `other` holds source kinds this kubelet does not provide, so that they are refused by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolumeSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathVolumeSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ObjectVolumeSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<ObjectVolumeSource>,
    #[serde(rename = "downwardAPI", skip_serializing_if = "Option::is_none")]
    pub downward_api: Option<DownwardApiVolumeSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projected: Option<ProjectedVolumeSource>,
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// A port by number or by the name of a container port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i32),
    String(String),
}

impl Default for IntOrString {
    fn default() -> Self {
        IntOrString::Int(0)
    }
}

/// Annotation that says where a pod came from: `file` or `api`.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation with the content hash of a static pod.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation that makes a pod in the API the mirror of a static pod; its value is the static pod's hash.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// Annotation with the time the kubelet first saw the pod.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

impl k8s_client::Object for Pod {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl k8s_client::Named for Pod {
    const RESOURCE: k8s_client::Resource = k8s_client::resources::PODS;
}

impl Pod {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Whether the pod came from a manifest on this machine.
    pub fn is_static(&self) -> bool {
        self.metadata.annotations.get(CONFIG_SOURCE).is_some_and(|s| s != "api")
    }

    /// Whether the pod only mirrors a static pod.
    pub fn is_mirror(&self) -> bool {
        self.metadata.annotations.contains_key(CONFIG_MIRROR)
    }

    /// The grace period of an ordinary termination.
    pub fn grace_period(&self) -> i64 {
        self.metadata.deletion_grace_period_seconds.or(self.spec.termination_grace_period_seconds).unwrap_or(30).max(0)
    }

    /// Restart policy with its default.
    pub fn restart_policy(&self) -> RestartPolicy {
        match self.spec.restart_policy.as_str() {
            "Never" => RestartPolicy::Never,
            "OnFailure" => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// Init containers, then regular ones.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    /// A critical pod keeps running when others are evicted.
    pub fn is_critical(&self) -> bool {
        self.is_static() || self.spec.priority.is_some_and(|p| p >= 2_000_000_000)
    }
}

/// When an exited container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl Container {
    /// An init container that keeps running beside the others (a sidecar).
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == "Always"
    }

    /// The pod's restart policy, or this container's own.
    pub fn effective_restart_policy(&self, pod: &Pod) -> RestartPolicy {
        match self.restart_policy.as_str() {
            "Always" => RestartPolicy::Always,
            "OnFailure" => RestartPolicy::OnFailure,
            "Never" => RestartPolicy::Never,
            _ => pod.restart_policy(),
        }
    }

    /// Whether this container, having exited with `exit_code`, is started again.
    pub fn restarts_after(&self, pod: &Pod, exit_code: i32) -> bool {
        for rule in &self.restart_policy_rules {
            if let Some(codes) = &rule.exit_codes
                && codes.values.contains(&exit_code) == (codes.operator == "In")
                && rule.action == "Restart"
            {
                return true;
            }
        }
        match self.effective_restart_policy(pod) {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }

    /// Resolves a port given by number or name.
    pub fn resolve_port(&self, port: &IntOrString) -> Option<u16> {
        let number = match port {
            IntOrString::Int(n) => *n,
            IntOrString::String(s) => s.parse().ok().or_else(|| self.ports.iter().find(|p| p.name == *s).map(|p| p.container_port))?,
        };
        u16::try_from(number).ok().filter(|p| *p != 0)
    }
}
