//! The network's plan: pure functions from config, links and leases to what the kernel is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use host::dhcp::Lease;
use host::net::{Desired, DesiredLink, DesiredRoute, Observed};
use ipnet::IpNet;
use machine_config::values::{Cidr, MacAddress};
use machine_config::{Config, RouteConfig};

/// Marks the routes that are ours (rtnetlink(7), rtm_protocol).
pub const PROTOCOL: u8 = 83;
/// The metric of a default route that DHCP gave.
const DHCP_METRIC: u32 = 1024;

/// A link as configs select it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    pub name: String,
    pub mac: Option<[u8; 6]>,
    pub path: String,
    pub driver: String,
    pub hardware: bool,
}

/// What one link shall be.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub name: String,
    pub up: bool,
    pub mtu: Option<u32>,
    pub dhcp: bool,
    pub addresses: Vec<IpNet>,
    pub routes: Vec<RouteConfig>,
}

/// What every link shall be, and what of the config can't be.
pub fn wanted(config: Option<&Config>, links: &[LinkFacts]) -> (Vec<Wanted>, Vec<String>) {
    let documents = config.map(|config| config.links.as_slice()).unwrap_or_default();
    if documents.is_empty() {
        let wired = links.iter().filter(|link| link.hardware);
        let ask = |link: &LinkFacts| Wanted {
            name: link.name.clone(),
            up: true,
            mtu: None,
            dhcp: true,
            addresses: Vec::new(),
            routes: Vec::new(),
        };
        return (wired.map(ask).collect(), Vec::new());
    }
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for document in documents {
        let matching: Vec<_> =
            links.iter().filter(|link| document.selects(&link.name, link.mac.map(MacAddress), &link.path, &link.driver)).collect();
        match matching.as_slice() {
            [link] => all.push(Wanted {
                name: link.name.clone(),
                up: document.up,
                mtu: document.mtu,
                dhcp: document.dhcp4 && document.up,
                addresses: document.addresses.iter().map(|address| address.0).collect(),
                routes: document.routes.clone(),
            }),
            [] => problems.push(format!("LinkConfig {}: this machine has no such link", document.name)),
            several => {
                let names: Vec<_> = several.iter().map(|link| link.name.as_str()).collect();
                problems.push(format!("LinkConfig {}: several links match: {}", document.name, names.join(", ")));
            }
        }
    }
    (all, problems)
}

/// What the kernel is asked for.
pub fn desired(wanted: &[Wanted], leases: &BTreeMap<&str, &Lease>, observed: &Observed) -> Desired {
    let mut desired = Desired { links: Vec::new(), routes: Vec::new(), route_protocol: PROTOCOL };
    for link in wanted {
        let mut addresses = link.addresses.clone();
        if let Some(lease) = leases.get(link.name.as_str()) {
            addresses.push(IpNet::V4(lease.address));
            if let Some(router) = lease.routers.first() {
                desired.routes.push(DesiredRoute {
                    destination: default_route(),
                    gateway: Some(IpAddr::V4(*router)),
                    link: Some(link.name.clone()),
                    metric: DHCP_METRIC,
                });
            }
        }
        // Addresses that routers announced are the kernel's business.
        let index = observed.link(&link.name).map(|there| there.index);
        let announced = index.into_iter().flat_map(|index| observed.addresses_of(index)).map(|address| address.net);
        addresses.extend(announced.filter(|net| net.addr().is_ipv6() && !is_link_local(net.addr()) && link.dhcp));
        desired.routes.extend(link.routes.iter().map(|route| DesiredRoute {
            destination: route.network.0,
            gateway: route.gateway.map(|gateway| gateway.0),
            link: Some(link.name.clone()),
            metric: route.metric,
        }));
        desired.links.push(DesiredLink { name: link.name.clone(), up: link.up, mtu: link.mtu, addresses });
    }
    desired
}

fn default_route() -> IpNet {
    // The prefix length 0 is always right.
    IpNet::V4(ipnet::Ipv4Net::default())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// The machine's addresses: those of its links in the config's order, static ones first, IPv4 before IPv6; when subnets
/// are given, an address in the first of them that has one comes first.
pub fn node_addresses(wanted: &[Wanted], observed: &Observed, subnets: &[Cidr]) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for link in wanted {
        let Some(there) = observed.link(&link.name) else { continue };
        let mut own: Vec<IpAddr> = observed.addresses_of(there.index).map(|address| address.net.addr()).collect();
        own.sort_by_key(|address| {
            let place = link.addresses.iter().position(|configured| configured.addr() == *address);
            (place.unwrap_or(usize::MAX), address.is_ipv6())
        });
        all.extend(own.into_iter().filter(|address| !is_link_local(*address) && !address.is_loopback()));
    }
    let preferred = subnets.iter().find_map(|subnet| all.iter().position(|address| subnet.0.contains(address)));
    if let Some(position) = preferred {
        let address = all.remove(position);
        all.insert(0, address);
    }
    all
}

/// The resolver's file: the config's servers, or those that DHCP named.
pub fn resolv_conf(config: Option<&Config>, leases: &[&Lease]) -> String {
    let document = config.and_then(|config| config.resolver.as_ref());
    let mut servers: Vec<String> =
        document.into_iter().flat_map(|document| &document.nameservers).map(|address| address.0.to_string()).collect();
    let mut search: Vec<String> = document.map(|document| document.search_domains.clone()).unwrap_or_default();
    if servers.is_empty() {
        servers = leases.iter().flat_map(|lease| &lease.dns).map(ToString::to_string).collect();
    }
    if search.is_empty() {
        search = leases.iter().filter_map(|lease| lease.domain.clone()).filter(|domain| is_plain(domain)).collect();
    }
    servers.dedup();
    let mut text: String = servers.iter().take(3).map(|server| format!("nameserver {server}\n")).collect();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    text
}

/// What a DHCP server says goes into a file only when it is a domain.
fn is_plain(domain: &str) -> bool {
    !domain.is_empty() && domain.len() < 254 && domain.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::net::{Address, Link};
    use std::time::Duration;

    fn facts(name: &str, hardware: bool) -> LinkFacts {
        LinkFacts { name: name.into(), mac: Some([2, 0, 0, 0, 0, name.len() as u8]), hardware, ..LinkFacts::default() }
    }

    fn lease(address: &str) -> Lease {
        Lease {
            address: address.parse().unwrap(),
            server: "10.0.2.2".parse().unwrap(),
            routers: vec!["10.0.2.2".parse().unwrap()],
            dns: vec!["10.0.2.3".parse().unwrap()],
            ntp: Vec::new(),
            hostname: None,
            domain: Some("example.org\nnameserver 6.6.6.6".into()),
            mtu: None,
            duration: Duration::from_secs(60),
        }
    }

    fn config(links: &str) -> Config {
        let text = crate::testing::worker_text("{disk: {name: vda}}").0 + links;
        Config::parse("test", &text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    const STATIC: &str = "---\napiVersion: strake.dev/v1alpha1\nkind: LinkConfig\nname: eth1\naddresses: [10.5.0.21/24]\n\
                          routes: [{network: 0.0.0.0/0, gateway: 10.5.0.2}]\n";

    #[test]
    fn without_a_config_every_wired_link_asks() {
        let (wanted, problems) = wanted(None, &[facts("lo", false), facts("eth0", true), facts("cni0", false)]);
        assert_eq!(wanted.iter().map(|link| (link.name.as_str(), link.dhcp)).collect::<Vec<_>>(), [("eth0", true)]);
        assert!(problems.is_empty());
    }

    #[test]
    fn a_config_decides_about_its_links_and_leaves_the_others() {
        let config = config(STATIC);
        let (links, problems) = wanted(Some(&config), &[facts("eth0", true), facts("eth1", true)]);
        assert!(problems.is_empty());
        let desired = desired(&links, &BTreeMap::new(), &Observed::default());
        assert_eq!(desired.links.len(), 1);
        assert_eq!(desired.links[0].addresses, ["10.5.0.21/24".parse().unwrap()]);
        assert_eq!(desired.routes[0].gateway, Some("10.5.0.2".parse().unwrap()));
        assert_eq!(wanted(Some(&config), &[]).1, ["LinkConfig eth1: this machine has no such link"]);
    }

    #[test]
    fn a_lease_gives_address_route_and_resolver() {
        let (links, _) = wanted(None, &[facts("eth0", true)]);
        let lease = lease("10.0.2.15/24");
        let desired = desired(&links, &BTreeMap::from([("eth0", &lease)]), &Observed::default());
        assert_eq!(desired.links[0].addresses, ["10.0.2.15/24".parse().unwrap()]);
        assert_eq!(desired.routes.len(), 1);
        // A server can't slip lines into the file.
        assert_eq!(resolv_conf(None, &[&lease]), "nameserver 10.0.2.3\n");
    }

    #[test]
    fn the_nodes_own_address_comes_first() {
        let config = config(STATIC);
        let (links, _) = wanted(Some(&config), &[facts("eth1", true)]);
        let link = Link { index: 3, name: "eth1".into(), ..Link::default() };
        let address = |net: &str| Address { link: 3, net: net.parse().unwrap() };
        let observed = Observed {
            links: vec![link],
            addresses: vec![address("fe80::1/64"), address("fd00::5/64"), address("192.168.1.1/24"), address("10.5.0.21/24")],
            routes: Vec::new(),
        };
        let shown = |subnets: &[Cidr]| node_addresses(&links, &observed, subnets).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(&[]), ["10.5.0.21", "192.168.1.1", "fd00::5"]);
        assert_eq!(shown(&["192.168.0.0/16".parse().unwrap()]), ["192.168.1.1", "10.5.0.21", "fd00::5"]);
    }
}
