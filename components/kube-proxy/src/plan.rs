//! The table `kube-proxy` as it should be for a set of services. Pure, and the one place that knows its chains.
//!
//! Names of chains, maps and sets are upstream's, so that people and tools find their way:
//! `service-ips` and `service-nodeports` lead to `service-…` and `external-…` chains, those to one of their `endpoint-…` chains.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nftables::{
    BaseChain, Element, Family, Field, Hook, KeyPart, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_SRCNAT, Rule, Set, Verdict, rule,
};

use crate::ruleset::Ruleset;
use crate::services::Forward;

/// Name of the table.
pub const TABLE: &str = "kube-proxy";

/// What the rules depend on besides services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Family.
    pub family: Family,
    /// Addresses node ports answer on.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Where pods live: other sources get their address masked when they use a cluster address.
    pub cluster_cidr: Option<(IpAddr, u8)>,
    /// Where cluster addresses come from: unassigned ones are dropped.
    pub service_cidrs: Vec<(IpAddr, u8)>,
    /// Mark on packets to be masqueraded.
    pub masquerade_mark: u32,
    /// Mask every source.
    pub masquerade_all: bool,
}

/// Longest name of a chain or set the kernel takes is 255 bytes; names are cut well before that and kept unique by the hash in front.
const NAME_MAX: usize = 200;

fn named(kind: &str, key: &str) -> String {
    // FNV-1a: only has to tell names apart that were cut.
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut name = format!("{kind}-{:08x}-{key}", hash as u32 ^ (hash >> 32) as u32);
    name.truncate(NAME_MAX);
    name
}

fn endpoint_key(forward: &Forward, endpoint: &SocketAddr) -> String {
    format!("{}__{}/{}", forward.key, endpoint.ip(), endpoint.port())
}

fn map(name: &str, key: &[KeyPart]) -> Set {
    Set { name: name.into(), key: key.to_vec(), verdicts: true, timeout_ms: None }
}

fn address_set(name: &str) -> Set {
    Set { name: name.into(), key: vec![KeyPart::Address], verdicts: false, timeout_ms: None }
}

/// Elements of the maps, gathered while walking the services.
#[derive(Default)]
struct Elements {
    service_ips: Vec<Element>,
    node_ports: Vec<Element>,
    no_endpoint_services: Vec<Element>,
    no_endpoint_node_ports: Vec<Element>,
    firewall_ips: Vec<Element>,
    cluster_ips: Vec<Element>,
}

fn by_address(address: IpAddr, forward: &Forward, verdict: Verdict) -> Element {
    Element { key: vec![Field::Address(address), Field::Protocol(forward.protocol), Field::Port(forward.port)], verdict: Some(verdict) }
}

/// The table for these services.
pub fn plan(settings: &Settings, forwards: &[Forward]) -> Ruleset {
    let mut out = Ruleset::default();
    let mut elements = Elements::default();
    for forward in forwards {
        service(settings, forward, &mut out, &mut elements);
    }
    let by_service = [KeyPart::Address, KeyPart::Protocol, KeyPart::Port];
    let by_port = [KeyPart::Protocol, KeyPart::Port];
    let service_ips = map("service-ips", &by_service);
    let service_nodeports = map("service-nodeports", &by_port);
    let no_endpoint_services = map("no-endpoint-services", &by_service);
    let no_endpoint_nodeports = map("no-endpoint-nodeports", &by_port);
    let firewall_ips = map("firewall-ips", &by_service);
    let cluster_ips = address_set("cluster-ips");
    let nodeport_ips = address_set("nodeport-ips");

    let family = settings.family;
    let r = || rule(family);
    let new_to = |chain: &str| r().state_new().jump(chain);
    let base = |kind, hook, priority| BaseChain { kind, hook, priority };
    out.base_chain("filter-prerouting-pre-dnat", base("filter", Hook::Prerouting, PRIORITY_DSTNAT - 10), vec![new_to("firewall-check")]);
    out.base_chain("filter-output-pre-dnat", base("filter", Hook::Output, PRIORITY_DSTNAT - 10), vec![new_to("firewall-check")]);
    out.base_chain(
        "filter-input",
        base("filter", Hook::Input, PRIORITY_FILTER),
        vec![new_to("nodeport-endpoints-check"), new_to("service-endpoints-check")],
    );
    let forwarded = vec![new_to("service-endpoints-check"), new_to("cluster-ips-check")];
    out.base_chain("filter-forward", base("filter", Hook::Forward, PRIORITY_FILTER), forwarded.clone());
    out.base_chain("filter-output", base("filter", Hook::Output, PRIORITY_FILTER), forwarded);
    out.base_chain("nat-prerouting", base("nat", Hook::Prerouting, PRIORITY_DSTNAT), vec![r().jump("services")]);
    out.base_chain("nat-output", base("nat", Hook::Output, PRIORITY_DSTNAT), vec![r().jump("services")]);
    out.base_chain("nat-postrouting", base("nat", Hook::Postrouting, PRIORITY_SRCNAT), vec![r().jump("masquerading")]);

    out.chain("services", vec![r().vmap(&service_ips), r().destination_in(&nodeport_ips).vmap(&service_nodeports)]);
    out.chain("service-endpoints-check", vec![r().vmap(&no_endpoint_services)]);
    out.chain("nodeport-endpoints-check", vec![r().destination_in(&nodeport_ips).vmap(&no_endpoint_nodeports)]);
    out.chain("firewall-check", vec![r().vmap(&firewall_ips)]);
    let mut cluster_check = vec![r().destination_in(&cluster_ips).reject()];
    for (address, prefix) in settings.service_cidrs.iter().filter(|(a, _)| Family::of(*a) == family) {
        cluster_check.push(r().destination(*address, *prefix).verdict(Verdict::Drop));
    }
    out.chain("cluster-ips-check", cluster_check);
    out.chain("reject-chain", vec![r().reject()]);
    let mark = settings.masquerade_mark;
    out.chain("mark-for-masquerade", vec![r().set_mark(mark, true)]);
    out.chain("masquerading", vec![r().mark(mark, false).verdict(Verdict::Return), r().set_mark(mark, false), r().masquerade()]);

    out.set(service_ips, elements.service_ips);
    out.set(service_nodeports, elements.node_ports);
    out.set(no_endpoint_services, elements.no_endpoint_services);
    out.set(no_endpoint_nodeports, elements.no_endpoint_node_ports);
    out.set(firewall_ips, elements.firewall_ips);
    out.set(cluster_ips, elements.cluster_ips);
    let addresses = settings.node_port_addresses.iter().filter(|a| Family::of(**a) == family);
    out.set(nodeport_ips, addresses.map(|a| Element { key: vec![Field::Address(*a)], verdict: None }));
    out
}

fn service(settings: &Settings, forward: &Forward, out: &mut Ruleset, elements: &mut Elements) {
    let family = settings.family;
    let r = || rule(family);
    elements.cluster_ips.push(Element { key: vec![Field::Address(forward.cluster_ip)], verdict: None });

    let internal = if forward.internal_local { &forward.local_endpoints } else { &forward.endpoints };
    let external = if forward.external_local { &forward.local_endpoints } else { &forward.endpoints };
    // Nothing at all is refused, so that clients fail at once; nothing here while others have some is dropped, so that they try elsewhere.
    let refused = |local: bool| if local && !forward.endpoints.is_empty() { Verdict::Drop } else { Verdict::Goto("reject-chain".into()) };

    let service_chain = named("service", &forward.key);
    let external_chain = named("external", &forward.key);
    let local_chain = named("local", &forward.key);

    let mut used: BTreeSet<SocketAddr> = BTreeSet::new();
    let needs_service_chain = !internal.is_empty() || (!external.is_empty() && !forward.external_local);
    if needs_service_chain {
        let mut rules = vec![];
        if !internal.is_empty() && (settings.masquerade_all || settings.cluster_cidr.is_some()) {
            let to_cluster_ip =
                r().destination(forward.cluster_ip, address_bits(family)).protocol(forward.protocol).destination_port(forward.port);
            rules.push(match settings.cluster_cidr.filter(|_| !settings.masquerade_all) {
                Some((address, prefix)) => to_cluster_ip.source_not(address, prefix).jump("mark-for-masquerade"),
                None => to_cluster_ip.jump("mark-for-masquerade"),
            });
        }
        let endpoints = if internal.is_empty() { external } else { internal };
        rules.extend(balance(settings, forward, endpoints));
        used.extend(endpoints);
        out.chain(service_chain.clone(), rules);
    }
    if internal.is_empty() {
        elements.no_endpoint_services.push(by_address(forward.cluster_ip, forward, refused(forward.internal_local)));
    } else {
        elements.service_ips.push(by_address(forward.cluster_ip, forward, Verdict::Goto(service_chain.clone())));
    }

    let outside: BTreeSet<IpAddr> = forward.external_ips.union(&forward.load_balancer_ips).copied().collect();
    if outside.is_empty() && forward.node_port.is_none() {
        endpoints(settings, forward, &used, out);
        return;
    }
    if external.is_empty() {
        let verdict = refused(forward.external_local);
        elements.no_endpoint_services.extend(outside.iter().map(|a| by_address(*a, forward, verdict.clone())));
        elements.no_endpoint_node_ports.extend(forward.node_port.map(|port| by_port(forward.protocol, port, verdict)));
    } else {
        let mut rules = vec![];
        if forward.external_local {
            // Traffic of pods and of this machine is not external: it may use all endpoints.
            if let Some((address, prefix)) = settings.cluster_cidr.filter(|_| !internal.is_empty()) {
                rules.push(r().source(address, prefix).goto(&service_chain));
            }
            rules.push(r().goto(&local_chain));
            out.chain(local_chain.clone(), balance(settings, forward, external));
            used.extend(external);
        } else if forward.internal_local && !internal.is_empty() {
            rules.push(r().jump("mark-for-masquerade"));
            rules.extend(balance(settings, forward, external));
            used.extend(external);
        } else {
            rules.push(r().jump("mark-for-masquerade"));
            rules.push(r().goto(&service_chain));
        }
        out.chain(external_chain.clone(), rules);
        let verdict = Verdict::Goto(external_chain);
        elements.service_ips.extend(outside.iter().map(|a| by_address(*a, forward, verdict.clone())));
        elements.node_ports.extend(forward.node_port.map(|port| by_port(forward.protocol, port, verdict)));
    }
    if !forward.source_ranges.is_empty() && !forward.load_balancer_ips.is_empty() {
        let chain = named("firewall", &forward.key);
        let mut rules: Vec<Rule> = forward.source_ranges.iter().map(|(a, p)| r().source(*a, *p).verdict(Verdict::Return)).collect();
        rules.push(r().verdict(Verdict::Drop));
        out.chain(chain.clone(), rules);
        elements.firewall_ips.extend(forward.load_balancer_ips.iter().map(|a| by_address(*a, forward, Verdict::Goto(chain.clone()))));
    }
    endpoints(settings, forward, &used, out);
}

fn by_port(protocol: u8, port: u16, verdict: Verdict) -> Element {
    Element { key: vec![Field::Protocol(protocol), Field::Port(port)], verdict: Some(verdict) }
}

fn address_bits(family: Family) -> u8 {
    if family == Family::Ip { 32 } else { 128 }
}

fn affinity_set(forward: &Forward, endpoint: &SocketAddr) -> Option<Set> {
    let seconds = forward.affinity_seconds?;
    Some(Set {
        name: named("affinity", &endpoint_key(forward, endpoint)),
        key: vec![KeyPart::Address],
        verdicts: false,
        timeout_ms: Some(seconds.saturating_mul(1000)),
    })
}

/// Back to the endpoint this client used before, else to a random one.
fn balance(settings: &Settings, forward: &Forward, endpoints: &BTreeSet<SocketAddr>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = (endpoints.iter())
        .filter_map(|e| {
            affinity_set(forward, e).map(|set| rule(settings.family).source_in(&set).goto(&named("endpoint", &endpoint_key(forward, e))))
        })
        .collect();
    let chains: Vec<_> = endpoints.iter().map(|e| named("endpoint", &endpoint_key(forward, e))).collect();
    rules.push(rule(settings.family).random_vmap(&chains));
    rules
}

fn endpoints(settings: &Settings, forward: &Forward, used: &BTreeSet<SocketAddr>, out: &mut Ruleset) {
    for endpoint in used {
        let r = || rule(settings.family);
        // A pod that reaches itself through its service must see an address it answers to through the host.
        let mut rules = vec![r().source(endpoint.ip(), address_bits(settings.family)).jump("mark-for-masquerade")];
        if let Some(set) = affinity_set(forward, endpoint) {
            rules.push(r().remember_source(&set));
            out.set(set, []);
        }
        rules.push(r().protocol(forward.protocol).dnat(endpoint.ip(), endpoint.port()));
        out.chain(named("endpoint", &endpoint_key(forward, endpoint)), rules);
    }
}
