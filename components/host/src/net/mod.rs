//! Links, addresses and routes: what there is ([`Observed`]), what shall be ([`Desired`]), the difference as a value
//! ([`plan()`]), and applying it step by step.

mod fake;
mod linux;
mod plan;

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

pub use fake::FakeNetwork;
pub use linux::LinuxNetwork;
pub use plan::{Desired, DesiredLink, DesiredRoute, Step, plan};

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<[u8; 6]>,
    /// The address burnt in, which a bond or a configuration may have replaced.
    pub permanent_mac: Option<[u8; 6]>,
    pub mtu: u32,
    /// Administratively.
    pub up: bool,
    pub carrier: bool,
    pub loopback: bool,
    /// What made it (`bridge`, `veth`, `vlan`…); empty for hardware.
    pub kind: String,
    /// The bridge or bond it belongs to.
    pub controller: Option<u32>,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub link: u32,
    /// The address itself with the length of its network's prefix.
    pub net: IpNet,
}

/// A unicast route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` or `::/0` for the default route.
    pub destination: IpNet,
    pub gateway: Option<IpAddr>,
    pub link: Option<u32>,
    pub metric: u32,
    /// Who made it (rtnetlink(7), rtm_protocol): 2 is the kernel.
    pub protocol: u8,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
}

impl Observed {
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The addresses of a link.
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |address| address.link == index)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("open a netlink socket")]
    Connect(#[source] io::Error),
    #[error("list {what}")]
    List { what: &'static str, source: rtnetlink::Error },
    #[error("{step}")]
    Apply { step: String, source: rtnetlink::Error },
    #[error("{step}: no link {link}")]
    NoLink { step: String, link: String },
    #[error("{0}")]
    Fake(String),
}

/// A network stack.
pub trait Network: Send + Sync {
    /// Everything there is.
    fn observe(&self) -> impl Future<Output = Result<Observed, NetError>> + Send;
    /// Does one step.
    fn apply(&self, step: &Step) -> impl Future<Output = Result<(), NetError>> + Send;
}

/// Does every step, in order, whatever fails; says of each how it went.
pub async fn apply_all(network: &impl Network, steps: Vec<Step>) -> Vec<(Step, Result<(), NetError>)> {
    let mut results = Vec::with_capacity(steps.len());
    for step in steps {
        let result = network.apply(&step).await;
        results.push((step, result));
    }
    results
}
