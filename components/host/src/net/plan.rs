//! From what there is to what shall be. Pure: no clock, no I/O.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Observed, Route};

/// What shall be. Links that are not named are left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub links: Vec<DesiredLink>,
    pub routes: Vec<DesiredRoute>,
    /// The number that marks our routes (rtm_protocol). Routes with another one are never removed.
    pub route_protocol: u8,
}

/// A link that is ours to configure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredLink {
    pub name: String,
    pub up: bool,
    /// `None` leaves it as it is.
    pub mtu: Option<u32>,
    /// All of its addresses; others are removed, but for IPv6 link-local ones.
    pub addresses: Vec<IpNet>,
}

/// A route that shall be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredRoute {
    pub destination: IpNet,
    pub gateway: Option<IpAddr>,
    /// Name of the link; needed without a gateway.
    pub link: Option<String>,
    /// 0 is the kernel's default (1024 for IPv6).
    pub metric: u32,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    SetMtu { link: String, mtu: u32 },
    SetUp { link: String, up: bool },
    AddAddress { link: String, net: IpNet },
    RemoveAddress { link: String, net: IpNet },
    AddRoute { route: DesiredRoute, protocol: u8 },
    RemoveRoute { route: Route },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of {link} to {mtu}"),
            Self::SetUp { link, up: true } => write!(f, "set {link} up"),
            Self::SetUp { link, up: false } => write!(f, "set {link} down"),
            Self::AddAddress { link, net } => write!(f, "add address {net} to {link}"),
            Self::RemoveAddress { link, net } => write!(f, "remove address {net} from {link}"),
            Self::AddRoute { route, .. } => {
                write!(f, "add route {}", route.destination)?;
                route.gateway.iter().try_for_each(|gateway| write!(f, " via {gateway}"))?;
                route.link.iter().try_for_each(|link| write!(f, " on {link}"))
            }
            Self::RemoveRoute { route } => {
                write!(f, "remove route {}", route.destination)?;
                route.gateway.iter().try_for_each(|gateway| write!(f, " via {gateway}"))
            }
        }
    }
}

/// The changes, in an order that works: links before addresses before routes, what is added before what is removed where the
/// kernel allows it. Links that are not there are skipped; their turn comes when they are. The kernel may drop routes together
/// with an address that they need, so a plan that removed one is followed by another look.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut removals = Vec::new();
    for wanted in &desired.links {
        let Some(link) = observed.link(&wanted.name) else { continue };
        if let Some(mtu) = wanted.mtu.filter(|mtu| *mtu != link.mtu) {
            steps.push(Step::SetMtu { link: wanted.name.clone(), mtu });
        }
        if wanted.up != link.up {
            steps.push(Step::SetUp { link: wanted.name.clone(), up: wanted.up });
        }
        let present: BTreeSet<IpNet> = observed.addresses_of(link.index).map(|address| address.net).collect();
        let expected: BTreeSet<IpNet> = wanted.addresses.iter().copied().collect();
        // The kernel removes the secondary IPv4 addresses of a network with its primary one, so within a network the old
        // one goes first and the wanted ones are set again.
        let mut set_again = BTreeSet::new();
        for net in present.difference(&expected).filter(|net| !is_link_local_v6(net)) {
            let same_network: Vec<IpNet> = expected.iter().copied().filter(|other| is_same_v4_network(net, other)).collect();
            let remove = Step::RemoveAddress { link: wanted.name.clone(), net: *net };
            if same_network.is_empty() {
                removals.push(remove)
            } else {
                steps.push(remove)
            }
            set_again.extend(same_network);
        }
        for net in expected.iter().filter(|net| !present.contains(net) || set_again.contains(net)) {
            steps.push(Step::AddAddress { link: wanted.name.clone(), net: *net });
        }
    }

    let ours: Vec<&Route> = observed.routes.iter().filter(|route| route.protocol == desired.route_protocol).collect();
    for (at, wanted) in desired.routes.iter().enumerate() {
        let known_link = wanted.link.as_ref().is_none_or(|name| observed.link(name).is_some());
        let listed_before = desired.routes[..at].contains(wanted);
        if known_link && !listed_before && !ours.iter().any(|route| is_same(wanted, route, observed)) {
            steps.push(Step::AddRoute { route: wanted.clone(), protocol: desired.route_protocol });
        }
    }
    for route in ours {
        if !desired.routes.iter().any(|wanted| is_same(wanted, route, observed)) {
            // The kernel takes one route per destination and metric, so the one to be replaced goes first.
            let replaced = desired
                .routes
                .iter()
                .any(|wanted| wanted.destination.trunc() == route.destination && effective_metric(wanted) == route.metric);
            let step = Step::RemoveRoute { route: route.clone() };
            if replaced {
                let first_route = steps.iter().position(|step| matches!(step, Step::AddRoute { .. })).unwrap_or(steps.len());
                steps.insert(first_route, step);
            } else {
                removals.push(step);
            }
        }
    }
    steps.extend(removals);
    steps
}

fn is_same(wanted: &DesiredRoute, route: &Route, observed: &Observed) -> bool {
    wanted.destination.trunc() == route.destination
        && wanted.gateway == route.gateway
        && effective_metric(wanted) == route.metric
        && wanted.link.as_ref().is_none_or(|name| observed.link(name).map(|link| link.index) == route.link)
}

/// IPv6 routes without a metric get 1024 (ipv6(7), IP6_RT_PRIO_USER).
fn effective_metric(route: &DesiredRoute) -> u32 {
    match (route.metric, route.destination) {
        (0, IpNet::V6(_)) => 1024,
        (metric, _) => metric,
    }
}

fn is_same_v4_network(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() && a.trunc() == b.trunc()
}

fn is_link_local_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::super::{Address, Link};
    use super::*;

    const OURS: u8 = 83;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn observed() -> Observed {
        let link = |index, name: &str, up| Link { index, name: name.into(), mtu: 1500, up, ..Link::default() };
        Observed {
            links: vec![Link { loopback: true, ..link(1, "lo", true) }, link(2, "eth0", false), link(3, "eth1", true)],
            addresses: vec![
                Address { link: 1, net: net("127.0.0.1/8") },
                Address { link: 3, net: net("10.0.0.9/24") },
                Address { link: 3, net: net("fe80::1/64") },
            ],
            routes: vec![
                Route { destination: net("10.0.0.0/24"), gateway: None, link: Some(3), metric: 0, protocol: 2 },
                Route {
                    destination: net("10.244.7.0/24"),
                    gateway: Some("10.0.0.7".parse().unwrap()),
                    link: Some(3),
                    metric: 0,
                    protocol: OURS,
                },
                Route {
                    destination: net("10.244.8.0/24"),
                    gateway: Some("10.0.0.8".parse().unwrap()),
                    link: Some(3),
                    metric: 0,
                    protocol: OURS,
                },
            ],
        }
    }

    fn route(destination: &str, gateway: &str) -> DesiredRoute {
        DesiredRoute { destination: net(destination), gateway: gateway.parse().ok(), link: None, metric: 0 }
    }

    fn shown(desired: &Desired) -> Vec<String> {
        plan(desired, &observed()).iter().map(Step::to_string).collect()
    }

    #[test]
    fn links_come_up_with_their_addresses_and_strangers_are_left_alone() {
        let links = vec![
            DesiredLink { name: "eth0".into(), up: true, mtu: Some(9000), addresses: vec![net("10.5.0.11/24")] },
            DesiredLink { name: "absent0".into(), up: true, ..DesiredLink::default() },
        ];
        let routes = vec![route("10.244.7.0/24", "10.0.0.7"), route("10.244.8.0/24", "10.0.0.8")];
        let desired = Desired { links, routes, route_protocol: OURS };
        assert_eq!(shown(&desired), ["set the MTU of eth0 to 9000", "set eth0 up", "add address 10.5.0.11/24 to eth0"]);
    }

    #[test]
    fn a_changed_address_is_there_before_the_old_one_goes_but_for_one_network_and_link_local_stays() {
        let links = vec![DesiredLink { name: "eth1".into(), up: true, mtu: None, addresses: vec![net("10.1.0.9/24")] }];
        let routes = vec![route("10.244.7.0/24", "10.0.0.7"), route("10.244.8.0/24", "10.0.0.8")];
        let desired = Desired { links, routes, route_protocol: OURS };
        let same = vec![DesiredLink { name: "eth1".into(), up: true, mtu: None, addresses: vec![net("10.0.0.10/24")] }];
        let within = Desired { links: same, ..desired.clone() };
        assert_eq!(shown(&desired), ["add address 10.1.0.9/24 to eth1", "remove address 10.0.0.9/24 from eth1"]);
        assert_eq!(shown(&within), ["remove address 10.0.0.9/24 from eth1", "add address 10.0.0.10/24 to eth1"]);
    }

    #[test]
    fn only_our_routes_are_removed_and_one_with_a_new_gateway_is_replaced() {
        let routes = vec![route("10.244.7.0/24", "10.0.0.17"), route("0.0.0.0/0", "10.0.0.1"), route("0.0.0.0/0", "10.0.0.1")];
        let desired = Desired { links: Vec::new(), routes, route_protocol: OURS };
        assert_eq!(
            shown(&desired),
            [
                "remove route 10.244.7.0/24 via 10.0.0.7",
                "add route 10.244.7.0/24 via 10.0.0.17",
                "add route 0.0.0.0/0 via 10.0.0.1",
                "remove route 10.244.8.0/24 via 10.0.0.8",
            ]
        );
    }

    #[test]
    fn what_is_there_already_needs_nothing() {
        let mut observed = observed();
        observed.routes.push(Route {
            destination: net("fd00:1::/64"),
            gateway: "fd00::1".parse().ok(),
            link: Some(3),
            metric: 1024,
            protocol: OURS,
        });
        let routes = vec![
            DesiredRoute { link: Some("eth1".into()), ..route("10.244.7.0/24", "10.0.0.7") },
            route("10.244.8.9/24", "10.0.0.8"),
            route("fd00:1::/64", "fd00::1"),
        ];
        assert_eq!(plan(&Desired { links: Vec::new(), routes, route_protocol: OURS }, &observed), []);
    }
}
