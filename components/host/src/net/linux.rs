//! The kernel's network stack, over rtnetlink(7).

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::{Address, DesiredRoute, Link, NetError, Network, Observed, Route, Step};

/// A connection to the kernel. Its task ends with the last handle.
#[derive(Debug, Clone)]
pub struct LinuxNetwork {
    handle: Handle,
}

impl LinuxNetwork {
    /// Needs a tokio runtime.
    pub fn connect() -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Connect)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    async fn index(&self, step: &Step, name: &str) -> Result<u32, NetError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(Some(message)) => Ok(message.header.index),
            _ => Err(NetError::NoLink { step: step.to_string(), link: name.to_owned() }),
        }
    }

    async fn route_message(&self, step: &Step, route: &DesiredRoute, protocol: u8) -> Result<RouteMessage, NetError> {
        let link = match &route.link {
            Some(name) => Some(self.index(step, name).await?),
            None => None,
        };
        Ok(build_route(route.destination.trunc(), route.gateway, link, route.metric, protocol))
    }
}

impl Network for LinuxNetwork {
    async fn observe(&self) -> Result<Observed, NetError> {
        let failed = |what| move |source| NetError::List { what, source };
        let links: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
        let addresses: Vec<AddressMessage> = self.handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
        let mut routes = Vec::new();
        for request in [RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(), RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()]
        {
            let found: Vec<RouteMessage> = self.handle.route().get(request).execute().try_collect().await.map_err(failed("routes"))?;
            routes.extend(found.iter().filter_map(read_route));
        }
        Ok(Observed {
            links: links.iter().map(read_link).collect(),
            addresses: addresses.iter().filter_map(read_address).collect(),
            routes,
        })
    }

    async fn apply(&self, step: &Step) -> Result<(), NetError> {
        let failed = |source| NetError::Apply { step: step.to_string(), source };
        match step {
            Step::SetMtu { link, mtu } => {
                let message = LinkUnspec::new_with_index(self.index(step, link).await?).mtu(*mtu).build();
                self.handle.link().change(message).execute().await.map_err(failed)
            }
            Step::SetUp { link, up } => {
                let message = LinkUnspec::new_with_index(self.index(step, link).await?);
                let message = if *up { message.up() } else { message.down() };
                self.handle.link().change(message.build()).execute().await.map_err(failed)
            }
            Step::AddAddress { link, net } => {
                let index = self.index(step, link).await?;
                self.handle.address().add(index, net.addr(), net.prefix_len()).replace().execute().await.map_err(failed)
            }
            Step::RemoveAddress { link, net } => {
                let index = self.index(step, link).await?;
                let found = self.handle.address().get().set_link_index_filter(index).execute();
                let found: Vec<AddressMessage> = found.try_collect().await.map_err(failed)?;
                for message in found {
                    if read_address(&message).is_some_and(|address| address.net == *net) {
                        self.handle.address().del(message).execute().await.map_err(failed)?;
                    }
                }
                Ok(())
            }
            Step::AddRoute { route, protocol } => {
                let message = self.route_message(step, route, *protocol).await?;
                self.handle.route().add(message).execute().await.map_err(failed)
            }
            Step::RemoveRoute { route } => {
                let message = build_route(route.destination, route.gateway, route.link, route.metric, route.protocol);
                match self.handle.route().del(message).execute().await {
                    // The kernel removes routes by itself, with a link or an address.
                    Err(error) if is_gone(&error) => Ok(()),
                    result => result.map_err(failed),
                }
            }
        }
    }
}

fn is_gone(error: &rtnetlink::Error) -> bool {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code() == -nix::libc::ESRCH,
        _ => false,
    }
}

fn build_route(destination: IpNet, gateway: Option<IpAddr>, link: Option<u32>, metric: u32, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(protocol);
    message.header.kind = RouteType::Unicast;
    message.header.address_family = if destination.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = destination.prefix_len();
    if gateway.is_none() && destination.addr().is_ipv4() {
        message.header.scope = netlink_packet_route::route::RouteScope::Link;
    }
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(address_of(destination.addr())));
    }
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(address_of(gateway))));
    message.attributes.extend(link.map(RouteAttribute::Oif));
    if metric > 0 {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message
}

fn address_of(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::PermAddress(mac) => link.permanent_mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// IPv4 has the interface's address in `Local`, where `Address` may be a peer's; IPv6 has `Address` only.
fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) if found.is_none() => found = Some(*address),
            _ => {}
        }
    }
    Some(Address { link: message.header.index, net: IpNet::new(found?, message.header.prefix_len).ok()? })
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast || message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let (mut destination, mut gateway, mut link, mut metric) = (unspecified, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, gateway, link, metric, protocol: u8::from(message.header.protocol) })
}

#[cfg(test)]
mod tests {
    use super::super::{Desired, DesiredLink, apply_all, plan};
    use super::*;

    #[tokio::test]
    async fn this_machines_loopback_is_seen() {
        let network = LinuxNetwork::connect().unwrap();
        let observed = network.observe().await.unwrap();
        let lo = observed.link("lo").unwrap();
        assert!(lo.loopback && lo.mtu > 0, "{lo:?}");
    }

    /// In a network namespace of its own, on a real kernel. Needs root; says so and passes without.
    #[test]
    fn a_plan_applied_to_the_kernel_leaves_nothing_to_plan() {
        let worker = std::thread::spawn(|| {
            // A namespace per thread: the runtime below stays on this one.
            if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped, no network namespace: {error}");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(real_kernel());
        });
        worker.join().unwrap();
    }

    async fn real_kernel() {
        let network = LinuxNetwork::connect().unwrap();
        let veth = rtnetlink::LinkVeth::new("left", "right").build();
        network.handle.link().add(veth).execute().await.unwrap();
        let link = |name: &str, addresses: &[&str]| DesiredLink {
            name: name.into(),
            up: true,
            mtu: Some(1400),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let route = |destination: &str, gateway: &str| DesiredRoute {
            destination: destination.parse().unwrap(),
            gateway: gateway.parse().ok(),
            link: None,
            metric: 0,
        };
        let mut desired = Desired {
            links: vec![link("left", &["10.9.0.1/24", "fd09::1/64"]), link("right", &[])],
            routes: vec![route("0.0.0.0/0", "10.9.0.254"), route("10.244.1.0/24", "10.9.0.2"), route("fd10::/64", "fd09::2")],
            route_protocol: 83,
        };
        desired.routes.push(DesiredRoute { link: Some("right".into()), gateway: None, metric: 7, ..route("192.168.9.0/24", "") });
        for round in 0..3 {
            if round == 1 {
                desired.links[0] = link("left", &["10.9.0.3/24"]);
                desired.routes = vec![route("0.0.0.0/0", "10.9.0.253"), route("10.244.1.0/24", "10.9.0.9")];
            }
            let steps = plan(&desired, &network.observe().await.unwrap());
            assert_eq!(steps.is_empty(), round == 2, "round {round}: {steps:?}");
            for (_, result) in apply_all(&network, steps).await {
                if let Err(error) = result {
                    panic!("round {round}: {error}: {:?}", std::error::Error::source(&error));
                }
            }
            let observed = network.observe().await.unwrap();
            assert_eq!(plan(&desired, &observed), [], "round {round}: {observed:?}");
        }
    }
}
