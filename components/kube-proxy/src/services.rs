//! From Services and EndpointSlices to what has to be forwarded: one [`Forward`] per service port. Pure.
//!
//! An address that does not parse is left out and told: one bad object must not stop the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nftables::Family;

use crate::types::{Endpoint, EndpointSlice, HEADLESS, PROXY_NAME, SERVICE_NAME, Service};

/// One port of one Service in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// `namespace/name/protocol/port-name`, unique within a family.
    pub key: String,
    /// Layer 4 protocol number.
    pub protocol: u8,
    /// Cluster address.
    pub cluster_ip: IpAddr,
    /// Port on cluster, external and load balancer addresses.
    pub port: u16,
    /// Port on nodes.
    pub node_port: Option<u16>,
    /// External addresses.
    pub external_ips: BTreeSet<IpAddr>,
    /// Load balancer addresses.
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// Networks that may use the load balancer's addresses; empty means all.
    pub source_ranges: Vec<(IpAddr, u8)>,
    /// Seconds of client affinity.
    pub affinity_seconds: Option<u64>,
    /// Cluster-internal traffic stays on the node.
    pub internal_local: bool,
    /// External traffic stays on the node and keeps its source.
    pub external_local: bool,
    /// Endpoints of the whole cluster.
    pub endpoints: BTreeSet<SocketAddr>,
    /// Those on this node.
    pub local_endpoints: BTreeSet<SocketAddr>,
}

/// What could not be used, in words for the log.
pub type Problems = Vec<String>;

fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "" | "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>, family: Family, what: &str, problems: &mut Problems) -> BTreeSet<IpAddr> {
    let mut out = BTreeSet::new();
    for text in texts {
        match text.parse::<IpAddr>() {
            Ok(address) if Family::of(address) == family => {
                out.insert(address);
            }
            Ok(_) => {}
            Err(_) => problems.push(format!("{what}: {text:?} is not an IP address")),
        }
    }
    out
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let net = text.trim().parse::<ipnet::IpNet>().ok()?;
    Some((net.network(), net.prefix_len()))
}

/// The state of endpoints that decides which are used.
#[derive(Default)]
struct Candidates {
    ready: BTreeSet<SocketAddr>,
    ready_local: BTreeSet<SocketAddr>,
    /// Terminating but still serving: used only when nothing is ready (KEP-1669).
    fading: BTreeSet<SocketAddr>,
    fading_local: BTreeSet<SocketAddr>,
}

impl Candidates {
    fn add(&mut self, endpoint: &Endpoint, address: SocketAddr, node: &str) {
        let c = &endpoint.conditions;
        let local = endpoint.node_name.as_deref() == Some(node);
        let (all, here) = if c.ready.unwrap_or(true) {
            (&mut self.ready, &mut self.ready_local)
        } else if c.serving.unwrap_or(false) && c.terminating.unwrap_or(false) {
            (&mut self.fading, &mut self.fading_local)
        } else {
            return;
        };
        all.insert(address);
        if local {
            here.insert(address);
        }
    }

    fn chosen(self) -> (BTreeSet<SocketAddr>, BTreeSet<SocketAddr>) {
        let all = if self.ready.is_empty() { self.fading } else { self.ready };
        let local = if self.ready_local.is_empty() { self.fading_local } else { self.ready_local };
        (all, local)
    }
}

/// Computes what to forward on this node in one family.
pub fn forwards<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    node: &str,
) -> (Vec<Forward>, Problems) {
    let mut problems = vec![];
    // namespace/name → port name and protocol → candidates
    let mut endpoints: BTreeMap<String, BTreeMap<(String, u8), Candidates>> = BTreeMap::new();
    let address_type = if family == Family::Ip { "IPv4" } else { "IPv6" };
    for slice in slices.into_iter().filter(|s| s.address_type == address_type) {
        let Some(service) = slice.metadata.labels.get(SERVICE_NAME) else { continue };
        let of_service = endpoints.entry(format!("{}/{service}", slice.metadata.namespace)).or_default();
        for port in &slice.ports {
            let (Some(number), Some(protocol)) = (port.port, protocol_number(port.protocol.as_deref().unwrap_or_default())) else {
                continue;
            };
            let candidates = of_service.entry((port.name.clone().unwrap_or_default(), protocol)).or_default();
            for endpoint in &slice.endpoints {
                match endpoint.addresses.first().map(|a| a.parse::<IpAddr>()) {
                    Some(Ok(address)) => candidates.add(endpoint, SocketAddr::new(address, number), node),
                    Some(Err(_)) | None => {
                        problems.push(format!(
                            "EndpointSlice {}/{}: an endpoint has no usable address",
                            slice.metadata.namespace, slice.metadata.name
                        ));
                    }
                }
            }
        }
    }
    let mut out = vec![];
    for service in services {
        let (meta, spec) = (&service.metadata, &service.spec);
        if spec.kind == "ExternalName" || meta.labels.contains_key(PROXY_NAME) || meta.labels.contains_key(HEADLESS) {
            continue;
        }
        let name = format!("{}/{}", meta.namespace, meta.name);
        let what = format!("Service {name}");
        let cluster_ips = addresses(spec.cluster_ips.iter().filter(|a| *a != "None"), family, &what, &mut problems);
        let Some(cluster_ip) = cluster_ips.first().copied() else { continue };
        let mut of_service = endpoints.remove(&name).unwrap_or_default();
        let lb = service
            .status
            .load_balancer
            .ingress
            .iter()
            .filter(|i| !i.ip.is_empty() && i.ip_mode.as_deref() != Some("Proxy"))
            .map(|i| &i.ip);
        let load_balancer_ips = addresses(lb, family, &what, &mut problems);
        let external_ips = addresses(spec.external_ips.iter(), family, &what, &mut problems);
        let mut source_ranges = vec![];
        for range in &spec.load_balancer_source_ranges {
            match network(range) {
                Some((address, prefix)) if Family::of(address) == family => source_ranges.push((address, prefix)),
                Some(_) => {}
                None => problems.push(format!("{what}: source range {range:?} is not a CIDR")),
            }
        }
        let affinity_seconds = (spec.session_affinity == "ClientIP").then(|| {
            spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds).unwrap_or(10_800)
        });
        for port in &spec.ports {
            let Some(protocol) = protocol_number(&port.protocol) else {
                problems.push(format!("{what}: protocol {:?} is not TCP, UDP or SCTP", port.protocol));
                continue;
            };
            let (all, local) = of_service.remove(&(port.name.clone(), protocol)).unwrap_or_default().chosen();
            let protocol_name = if port.protocol.is_empty() { "tcp".to_string() } else { port.protocol.to_lowercase() };
            out.push(Forward {
                key: format!("{name}/{protocol_name}/{}", port.name),
                protocol,
                cluster_ip,
                port: port.port,
                node_port: (port.node_port != 0).then_some(port.node_port),
                external_ips: external_ips.clone(),
                load_balancer_ips: load_balancer_ips.clone(),
                source_ranges: source_ranges.clone(),
                affinity_seconds,
                internal_local: spec.internal_traffic_policy == "Local",
                external_local: spec.external_traffic_policy == "Local",
                endpoints: all,
                local_endpoints: local,
            });
        }
    }
    out.sort_by(|a, b| a.key.cmp(&b.key));
    (out, problems)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(extra: serde_json::Value) -> Service {
        let mut spec = json!({"type": "ClusterIP", "clusterIPs": ["10.96.0.7"], "ports": [{"name": "web", "protocol": "TCP", "port": 80}]});
        for (k, v) in extra.as_object().unwrap() {
            spec[k] = v.clone();
        }
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "s"}, "spec": spec})).unwrap()
    }

    fn slice(endpoints: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "s-1", "labels": {SERVICE_NAME: "s"}}, "addressType": "IPv4",
            "ports": [{"name": "web", "port": 8080}], "endpoints": endpoints}))
        .unwrap()
    }

    fn all(endpoints: serde_json::Value) -> (Vec<String>, Vec<String>) {
        let (forwards, problems) = forwards(&[service(json!({}))], &[slice(endpoints)], Family::Ip, "me");
        assert_eq!(problems, Vec::<String>::new());
        let text = |s: &BTreeSet<SocketAddr>| s.iter().map(ToString::to_string).collect();
        (text(&forwards[0].endpoints), text(&forwards[0].local_endpoints))
    }

    #[test]
    fn ready_endpoints_count_and_terminating_ones_only_when_none_is() {
        let ready = json!({"addresses": ["10.244.0.2"], "conditions": {"ready": true}, "nodeName": "me"});
        let unknown = json!({"addresses": ["10.244.0.3"]});
        let fading = json!({"addresses": ["10.244.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let not_ready = json!({"addresses": ["10.244.0.5"], "conditions": {"ready": false}});
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            all(json!([ready, unknown, fading, not_ready])),
            (strings(&["10.244.0.2:8080", "10.244.0.3:8080"]), strings(&["10.244.0.2:8080"]))
        );
        assert_eq!(all(json!([fading, not_ready])), (strings(&["10.244.0.4:8080"]), vec![]));
    }

    #[test]
    fn headless_external_name_and_foreign_services_are_left_alone() {
        let table = [json!({"clusterIPs": ["None"]}), json!({"type": "ExternalName"}), json!({"clusterIPs": ["fd00::1"]})];
        for extra in table {
            assert_eq!(forwards(&[service(extra)], &[], Family::Ip, "me").0, vec![]);
        }
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let (forwards, problems) =
            forwards(&[service(json!({"externalIPs": ["nonsense"], "loadBalancerSourceRanges": ["10.0.0.0/33"]}))], &[], Family::Ip, "me");
        assert_eq!(forwards.len(), 1);
        assert_eq!(problems, ["Service d/s: \"nonsense\" is not an IP address", "Service d/s: source range \"10.0.0.0/33\" is not a CIDR"]);
    }
}
