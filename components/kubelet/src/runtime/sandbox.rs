//! The configuration of a pod's sandbox.

use super::{dns, security};
use crate::config::Config;
use crate::cri::v1;
use crate::model::pod::Pod;
use crate::pod::observe::{LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use crate::pod::qos;

/// Builds the sandbox configuration. `cgroup_parent` is the pod's own cgroup.
pub fn config(pod: &Pod, attempt: u32, config: &Config, dns: v1::DnsConfig, cgroup_parent: &str) -> v1::PodSandboxConfig {
    let meta = &pod.metadata;
    let mut labels: std::collections::HashMap<String, String> = meta.labels.clone().into_iter().collect();
    labels.insert(LABEL_POD_NAME.into(), meta.name.clone());
    labels.insert(LABEL_POD_NAMESPACE.into(), meta.namespace.clone());
    labels.insert(LABEL_POD_UID.into(), meta.uid.clone());
    let sysctls = pod.spec.security_context.iter().flat_map(|c| &c.sysctls).map(|s| (s.name.replace('/', "."), s.value.clone())).collect();
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            namespace: meta.namespace.clone(),
            attempt,
        }),
        hostname: if pod.spec.host_network { String::new() } else { dns::hostname(pod) },
        log_directory: config.pod_log_dir(&meta.namespace, &meta.name, &meta.uid).to_string_lossy().into_owned(),
        dns_config: Some(dns),
        port_mappings: port_mappings(pod),
        labels,
        annotations: meta.annotations.clone().into_iter().collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.into(),
            security_context: Some(security::sandbox_context(pod)),
            sysctls,
            overhead: None,
            resources: Some(resources(pod)),
        }),
        windows: None,
    }
}

/// The sum of the pod's resources, as a hint to the runtime.
fn resources(pod: &Pod) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: qos::pod_limit_milli(pod, "cpu").map_or(0, super::cgroup::cpu_quota),
        cpu_shares: super::cgroup::cpu_shares(qos::pod_request_milli(pod, "cpu")),
        memory_limit_in_bytes: qos::pod_limit_milli(pod, "memory").map_or(0, |m| m / 1000),
        ..Default::default()
    }
}

fn port_mappings(pod: &Pod) -> Vec<v1::PortMapping> {
    if pod.spec.host_network {
        return Vec::new();
    }
    pod.all_containers()
        .flat_map(|c| &c.ports)
        .filter(|p| p.host_port > 0)
        .map(|p| v1::PortMapping {
            protocol: match p.protocol.as_str() {
                "UDP" => v1::Protocol::Udp,
                "SCTP" => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            }
            .into(),
            container_port: p.container_port,
            host_port: p.host_port,
            host_ip: p.host_ip.clone(),
        })
        .collect()
}
