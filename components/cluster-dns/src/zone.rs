//! What the cluster's zone answers (Kubernetes DNS-Based Service Discovery 1.1.0). Pure but for reading a [`Cluster`].

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::RecordType;

use crate::types::{EndpointSlice, Service};

/// Seconds answers may be kept.
pub const TTL: u32 = 30;
/// The version of the specification, in the TXT record of `dns-version`.
const SPECIFICATION: &str = "1.1.0";
/// Longest chain of names an `ExternalName` may lead to within the zone.
const MAX_ALIASES: usize = 8;

/// What is known of the cluster.
pub trait Cluster {
    /// A service.
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    /// The slices of a service.
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>>;
    /// Services with this cluster address.
    fn services_by_address(&self, address: IpAddr) -> Vec<Arc<Service>>;
    /// Slices with an endpoint of this address.
    fn slices_by_address(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>>;
    /// The namespace has a service.
    fn has_namespace(&self, namespace: &str) -> bool;
}

/// The data of a record; names are absolute, without the final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV.
    Service { port: u16, target: String },
    /// PTR.
    Pointer(String),
    /// TXT.
    Text(String),
    /// CNAME.
    Alias(String),
    /// SOA.
    Authority,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Owner.
    pub name: String,
    /// Data.
    pub data: Data,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Answers.
    pub records: Vec<Record>,
    /// Addresses of SRV targets.
    pub additional: Vec<Record>,
    /// The name does not exist.
    pub no_such_name: bool,
    /// An alias that leads out of the zone: its address has to be asked elsewhere.
    pub external: Option<String>,
}

/// A zone: `cluster.local`, without the final dot, in lower case.
#[derive(Debug, Clone)]
pub struct Zone {
    /// Domain.
    pub domain: String,
}

impl Zone {
    /// The answer, or `None` when the question is not for this zone and has to be forwarded. `name` is in lower case, without the final dot.
    pub fn answer(&self, cluster: &dyn Cluster, name: &str, kind: RecordType) -> Option<Answer> {
        if let Some(address) = reverse(name) {
            return self.pointer(cluster, name, address, kind);
        }
        let inside = if name == self.domain { Some("") } else { name.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix('.')) };
        inside.map(|inside| self.inside(cluster, name, inside, kind, MAX_ALIASES))
    }

    fn inside(&self, cluster: &dyn Cluster, name: &str, inside: &str, kind: RecordType, aliases: usize) -> Answer {
        let labels: Vec<&str> = if inside.is_empty() { vec![] } else { inside.rsplit('.').collect() };
        let exists = |yes: bool| Answer { no_such_name: !yes, ..Answer::default() };
        match labels[..] {
            [] => Answer { records: (kind == RecordType::SOA).then(|| self.authority()).into_iter().collect(), ..Answer::default() },
            ["dns-version"] => {
                let text = Record { name: name.into(), data: Data::Text(SPECIFICATION.into()) };
                Answer { records: (kind == RecordType::TXT).then_some(text).into_iter().collect(), ..Answer::default() }
            }
            ["svc" | "pod"] => exists(true),
            ["svc" | "pod", namespace] => exists(cluster.has_namespace(namespace)),
            ["pod", namespace, address] => match undashed(address).filter(|_| cluster.has_namespace(namespace)) {
                Some(address) => Answer { records: addresses(name, [address], kind), ..Answer::default() },
                None => exists(false),
            },
            ["svc", namespace, service, ref rest @ ..] => match cluster.service(namespace, service) {
                Some(service) => self.service(cluster, name, &service, rest, kind, aliases),
                None => exists(false),
            },
            _ => exists(false),
        }
    }

    fn service(&self, cluster: &dyn Cluster, name: &str, service: &Service, rest: &[&str], kind: RecordType, aliases: usize) -> Answer {
        let missing = Answer { no_such_name: true, ..Answer::default() };
        if service.spec.kind == "ExternalName" {
            return if rest.is_empty() { self.alias(cluster, name, &service.spec.external_name, kind, aliases) } else { missing };
        }
        let meta = &service.metadata;
        let base = self.service_name(&meta.namespace, &meta.name);
        let slices = if service.is_headless() { cluster.slices(&meta.namespace, &meta.name) } else { vec![] };
        let ready = || slices.iter().flat_map(|s| s.endpoints.iter().filter(|e| e.is_ready()).map(move |e| (s, e)));
        match rest {
            [] if service.is_headless() => {
                let all: Vec<_> = ready().flat_map(|(_, e)| e.addresses()).collect();
                // As CoreDNS: a headless service nobody serves has no name.
                Answer { no_such_name: all.is_empty(), records: addresses(name, all, kind), ..Answer::default() }
            }
            [] => Answer { records: addresses(name, service.addresses(), kind), ..Answer::default() },
            [label] if service.is_headless() && !label.starts_with('_') => {
                let all: Vec<_> = ready().flat_map(|(_, e)| e.addresses().filter(|a| e.label(*a) == *label).collect::<Vec<_>>()).collect();
                Answer { no_such_name: all.is_empty(), records: addresses(name, all, kind), ..Answer::default() }
            }
            [protocol, port] => {
                let (Some(protocol), Some(port)) = (protocol.strip_prefix('_'), port.strip_prefix('_')) else { return missing };
                let matches = |n: &str, p: &str| n == port && (if p.is_empty() { "TCP" } else { p }).eq_ignore_ascii_case(protocol);
                let mut targets: Vec<(u16, String, Vec<IpAddr>)> = vec![];
                if service.is_headless() {
                    for (slice, endpoint) in ready() {
                        let ports = slice
                            .ports
                            .iter()
                            .filter(|p| matches(p.name.as_deref().unwrap_or_default(), p.protocol.as_deref().unwrap_or_default()));
                        for number in ports.filter_map(|p| p.port) {
                            targets.extend(endpoint.addresses().map(|a| (number, format!("{}.{base}", endpoint.label(a)), vec![a])));
                        }
                    }
                } else {
                    let ports = service.spec.ports.iter().filter(|p| matches(&p.name, &p.protocol));
                    targets.extend(ports.map(|p| (p.port, base.clone(), service.addresses().collect())));
                }
                if targets.is_empty() {
                    return missing;
                }
                let mut answer = Answer::default();
                if kind == RecordType::SRV {
                    for (port, target, own) in targets {
                        answer.additional.extend(own.into_iter().map(|a| Record { name: target.clone(), data: Data::Address(a) }));
                        answer.records.push(Record { name: name.into(), data: Data::Service { port, target } });
                    }
                    answer.records.dedup();
                }
                answer
            }
            // `_tcp.service`: nothing of its own, but names below it.
            [label] if label.starts_with('_') => Answer::default(),
            _ => missing,
        }
    }

    fn alias(&self, cluster: &dyn Cluster, name: &str, target: &str, kind: RecordType, aliases: usize) -> Answer {
        let target = target.trim_end_matches('.').to_lowercase();
        let mut answer = Answer { records: vec![Record { name: name.into(), data: Data::Alias(target.clone()) }], ..Answer::default() };
        if kind == RecordType::CNAME || aliases == 0 {
            return answer;
        }
        match target.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix('.')) {
            Some(inside) => {
                let next = self.inside(cluster, &target, inside, kind, aliases - 1);
                answer.records.extend(next.records);
                answer.external = next.external;
            }
            None => answer.external = Some(target),
        }
        answer
    }

    fn pointer(&self, cluster: &dyn Cluster, name: &str, address: IpAddr, kind: RecordType) -> Option<Answer> {
        let mut names: Vec<String> =
            cluster.services_by_address(address).iter().map(|s| self.service_name(&s.metadata.namespace, &s.metadata.name)).collect();
        if names.is_empty() {
            for slice in cluster.slices_by_address(address) {
                let Some(service) = slice.service() else { continue };
                let Some((namespace, service)) = service.split_once('/') else { continue };
                if !cluster.service(namespace, service).is_some_and(|s| s.is_headless()) {
                    continue;
                }
                let own = slice.endpoints.iter().filter(|e| e.addresses().any(|a| a == address));
                names.extend(own.map(|e| format!("{}.{}", e.label(address), self.service_name(namespace, service))));
            }
        }
        names.dedup();
        // Addresses that are not the cluster's are somebody else's to name.
        if names.is_empty() {
            return None;
        }
        let records = if kind == RecordType::PTR {
            names.into_iter().map(|n| Record { name: name.into(), data: Data::Pointer(n) }).collect()
        } else {
            vec![]
        };
        Some(Answer { records, ..Answer::default() })
    }

    fn service_name(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.domain)
    }

    /// The zone's SOA.
    pub fn authority(&self) -> Record {
        Record { name: self.domain.clone(), data: Data::Authority }
    }
}

fn addresses(name: &str, list: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Vec<Record> {
    let wanted = |a: &IpAddr| match kind {
        RecordType::A => a.is_ipv4(),
        RecordType::AAAA => a.is_ipv6(),
        _ => false,
    };
    list.into_iter().filter(wanted).map(|a| Record { name: name.into(), data: Data::Address(a) }).collect()
}

/// `10-244-0-5` or an IPv6 address with dashes for colons.
fn undashed(label: &str) -> Option<IpAddr> {
    label.replace('-', ".").parse().or_else(|_| label.replace('-', ":").parse()).ok()
}

/// The address of a name under `in-addr.arpa` or `ip6.arpa`.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets: Vec<u8> = rest.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        octets.reverse();
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    let nibbles: Vec<u8> = name.strip_suffix(".ip6.arpa")?.split('.').map(|n| u8::from_str_radix(n, 16)).collect::<Result<_, _>>().ok()?;
    if nibbles.len() != 32 || nibbles.iter().any(|n| *n > 15) {
        return None;
    }
    let bytes: Vec<u8> = nibbles.chunks(2).rev().map(|pair| (pair[1] << 4) | pair[0]).collect();
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    struct Fixed {
        services: Vec<Arc<Service>>,
        slices: Vec<Arc<EndpointSlice>>,
    }

    impl Cluster for Fixed {
        fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
            self.services.iter().find(|s| s.metadata.namespace == namespace && s.metadata.name == name).cloned()
        }
        fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
            self.slices.iter().filter(|s| s.service() == Some(format!("{namespace}/{name}"))).cloned().collect()
        }
        fn services_by_address(&self, address: IpAddr) -> Vec<Arc<Service>> {
            self.services.iter().filter(|s| s.addresses().any(|a| a == address)).cloned().collect()
        }
        fn slices_by_address(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>> {
            self.slices.iter().filter(|s| s.endpoints.iter().any(|e| e.addresses().any(|a| a == address))).cloned().collect()
        }
        fn has_namespace(&self, namespace: &str) -> bool {
            self.services.iter().any(|s| s.metadata.namespace == namespace)
        }
    }

    fn cluster() -> Fixed {
        let parse = |v: Value| Arc::new(serde_json::from_value(v).unwrap());
        let service = |name: &str, spec: Value| parse(json!({"metadata": {"namespace": "d", "name": name}, "spec": spec}));
        Fixed {
            services: vec![
                service("web", json!({"type": "ClusterIP", "clusterIPs": ["10.96.0.7", "fd00::7"], "ports": [{"name": "http", "protocol": "TCP", "port": 80}]})),
                service("db", json!({"type": "ClusterIP", "clusterIPs": ["None"], "ports": [{"name": "sql", "port": 5432}]})),
                service("out", json!({"type": "ExternalName", "externalName": "example.com"})),
                service("in", json!({"type": "ExternalName", "externalName": "web.d.svc.cluster.local"})),
                service("loop", json!({"type": "ExternalName", "externalName": "loop.d.svc.cluster.local"})),
            ],
            slices: vec![Arc::new(
                serde_json::from_value(json!({"metadata": {"namespace": "d", "labels": {SERVICE_NAME: "db"}}, "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
                "endpoints": [{"addresses": ["10.244.0.2"], "hostname": "db-0"}, {"addresses": ["10.244.0.3"]}, {"addresses": ["10.244.0.4"], "conditions": {"ready": false}}]}))
                .unwrap(),
            )],
        }
    }

    const SERVICE_NAME: &str = crate::types::SERVICE_NAME;

    fn ask(name: &str, kind: RecordType) -> Option<Answer> {
        Zone { domain: "cluster.local".into() }.answer(&cluster(), name, kind)
    }

    fn shown(name: &str, kind: RecordType) -> Vec<String> {
        let answer = ask(name, kind).unwrap();
        let mut out: Vec<_> = answer
            .records
            .iter()
            .map(|r| match &r.data {
                Data::Address(a) => a.to_string(),
                Data::Service { port, target } => format!("{port} {target}"),
                Data::Pointer(n) | Data::Text(n) => n.clone(),
                Data::Alias(n) => format!("-> {n}"),
                Data::Authority => "SOA".into(),
            })
            .collect();
        out.extend(answer.no_such_name.then(|| "NXDOMAIN".into()));
        out.extend(answer.external.map(|e| format!("ask {e}")));
        out
    }

    #[test]
    fn the_specification_by_name_and_type() {
        use RecordType::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
        let table: &[(&str, RecordType, &[&str])] = &[
            ("web.d.svc.cluster.local", A, &["10.96.0.7"]),
            ("web.d.svc.cluster.local", AAAA, &["fd00::7"]),
            ("web.d.svc.cluster.local", SRV, &[]),
            ("nobody.d.svc.cluster.local", A, &["NXDOMAIN"]),
            ("_http._tcp.web.d.svc.cluster.local", SRV, &["80 web.d.svc.cluster.local"]),
            ("_http._udp.web.d.svc.cluster.local", SRV, &["NXDOMAIN"]),
            ("_tcp.web.d.svc.cluster.local", SRV, &[]),
            ("db.d.svc.cluster.local", A, &["10.244.0.2", "10.244.0.3"]),
            ("db-0.db.d.svc.cluster.local", A, &["10.244.0.2"]),
            ("10-244-0-3.db.d.svc.cluster.local", A, &["10.244.0.3"]),
            ("10-244-0-4.db.d.svc.cluster.local", A, &["NXDOMAIN"]),
            ("_sql._tcp.db.d.svc.cluster.local", SRV, &["5432 db-0.db.d.svc.cluster.local", "5432 10-244-0-3.db.d.svc.cluster.local"]),
            ("out.d.svc.cluster.local", A, &["-> example.com", "ask example.com"]),
            ("out.d.svc.cluster.local", CNAME, &["-> example.com"]),
            ("in.d.svc.cluster.local", A, &["-> web.d.svc.cluster.local", "10.96.0.7"]),
            ("7.0.96.10.in-addr.arpa", PTR, &["web.d.svc.cluster.local"]),
            ("2.0.244.10.in-addr.arpa", PTR, &["db-0.db.d.svc.cluster.local"]),
            ("10-244-0-9.d.pod.cluster.local", A, &["10.244.0.9"]),
            ("10-244-0-9.nowhere.pod.cluster.local", A, &["NXDOMAIN"]),
            ("nonsense.d.pod.cluster.local", A, &["NXDOMAIN"]),
            ("dns-version.cluster.local", TXT, &["1.1.0"]),
            ("cluster.local", SOA, &["SOA"]),
            ("d.svc.cluster.local", A, &[]),
            ("elsewhere.svc.cluster.local", A, &["NXDOMAIN"]),
        ];
        for (name, kind, expect) in table {
            assert_eq!(shown(name, *kind), *expect, "{name} {kind}");
        }
        assert_eq!(ask("_sql._tcp.db.d.svc.cluster.local", SRV).unwrap().additional.len(), 2);
    }

    #[test]
    fn what_is_not_ours_is_forwarded() {
        for name in ["example.com", "cluster.local.example.com", "xcluster.local", "8.8.8.8.in-addr.arpa"] {
            assert_eq!(ask(name, RecordType::A), None, "{name}");
        }
    }

    #[test]
    fn an_alias_of_itself_ends() {
        assert_eq!(shown("loop.d.svc.cluster.local", RecordType::A).len(), MAX_ALIASES + 1);
    }

    #[test]
    fn reverse_names() {
        assert_eq!(reverse("1.2.3.4.in-addr.arpa"), Some([4, 3, 2, 1].into()));
        let v6 = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reverse(v6), Some("fd00::7".parse().unwrap()));
        assert_eq!(reverse("300.2.3.4.in-addr.arpa"), None);
    }

    proptest! {
        #[test]
        fn no_name_panics(name in "[a-z0-9_.-]{0,80}") {
            let _ = ask(&name, RecordType::A);
            let _ = ask(&format!("{name}.svc.cluster.local"), RecordType::SRV);
            let _ = ask(&format!("{name}.in-addr.arpa"), RecordType::PTR);
        }
    }
}
