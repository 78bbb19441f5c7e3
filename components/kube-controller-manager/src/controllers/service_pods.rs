//! What endpoints and endpointslices share: which pods are behind a service, on which addresses and ports.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_client::{Change, Informer, IntOrString, ObjectKey, WorkQueue};

use crate::api::{EndpointPort, Pod, Service, ServicePort, TargetRef};

/// Services that have pods behind them: those with a selector that are no mere alias.
pub fn has_pods(service: &Service) -> bool {
    !service.spec.selector.is_empty() && service.spec.kind != "ExternalName"
}

/// Whether the service selects the pod.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    has_pods(service) && service.spec.selector.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value))
}

/// The number a service port means on this pod: itself, the target number, or the container port of that name and protocol.
pub fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => pod
            .spec
            .containers
            .iter()
            .flat_map(|container| &container.ports)
            .find(|candidate| candidate.name == *name && protocol(&candidate.protocol) == protocol(&port.protocol))
            .map(|candidate| candidate.container_port),
    }
}

/// TCP when nothing is said.
pub fn protocol(text: &str) -> &str {
    if text.is_empty() { "TCP" } else { text }
}

/// The service's ports on this pod; ports the pod does not name are left out.
pub fn ports_on(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let mut ports: Vec<EndpointPort> = service
        .spec
        .ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone()),
                port: target_port(port, pod)?,
                protocol: protocol(&port.protocol).to_string(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

/// The pod's address of one family.
pub fn address(pod: &Pod, ipv6: bool) -> Option<IpAddr> {
    let all = pod.status.pod_ips.iter().map(|entry| entry.ip.as_str()).chain(std::iter::once(pod.status.pod_ip.as_str()));
    all.filter_map(|text| text.parse::<IpAddr>().ok()).find(|ip| ip.is_ipv6() == ipv6)
}

/// The pod's host name in the service's domain: only when the pod asks for this service as its subdomain.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    (!pod.spec.hostname.is_empty() && pod.spec.subdomain == service.metadata.name).then(|| pod.spec.hostname.clone())
}

/// A reference to the pod.
pub fn target(pod: &Pod) -> TargetRef {
    TargetRef {
        kind: "Pod".into(),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    }
}

/// Enqueues the services a pod belongs or belonged to, whenever something endpoints depend on changed.
pub fn watch_pods(pods: &Informer<Pod>, services: &Informer<Service>, queue: Arc<WorkQueue<ObjectKey>>) {
    let services = services.clone();
    pods.add_handler(move |change: Change<'_, Pod>| {
        if let Change::Updated { old, new } = change
            && !matters(old, new)
        {
            return;
        }
        let new = change.object();
        for service in services.list_namespace(&new.metadata.namespace) {
            let before = matches!(change, Change::Updated { old, .. } if selects(&service, old));
            if before || selects(&service, new) {
                queue.add(service.metadata.key());
            }
        }
    });
}

fn matters(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels != new.metadata.labels
        || old.status.pod_ip != new.status.pod_ip
        || old.status.pod_ips != new.status.pod_ips
        || old.status.phase != new.status.phase
        || old.is_ready() != new.is_ready()
        || old.spec.node_name != new.spec.node_name
        || old.metadata.is_deleting() != new.metadata.is_deleting()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn target_ports_resolve_by_number_and_name() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "ports": [{"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]}}))
        .unwrap();
        for (port, want) in [
            (json!({"port": 80}), Some(80)),
            (json!({"port": 80, "targetPort": 9000}), Some(9000)),
            (json!({"port": 80, "targetPort": "web"}), Some(8080)),
            (json!({"port": 80, "targetPort": "web", "protocol": "UDP"}), None),
            (json!({"port": 53, "targetPort": "dns", "protocol": "UDP"}), Some(53)),
            (json!({"port": 80, "targetPort": "none"}), None),
        ] {
            assert_eq!(target_port(&serde_json::from_value(port.clone()).unwrap(), &pod), want, "{port}");
        }
    }
}
