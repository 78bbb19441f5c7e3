//! `LinkConfig`: one network interface.

use crate::model::{Check, Decoder};
use crate::object;
use crate::path::FieldPath;
use crate::values::{Address, Cidr, Glob, InterfaceAddress, MacAddress};

object! {
    /// One network interface.
    pub struct LinkConfig {
        /// The name of this document; also the kernel's name of the interface unless `match` is given.
        name ("name"): String,
        /// Finds the interface by its properties; exactly one must match.
        matches ("match"): LinkMatch,
        /// Whether it is set up.
        up ("up"): bool = true,
        /// The largest packet.
        mtu ("mtu"): Option<u32>,
        /// Whether an address is asked for by DHCP.
        dhcp4 ("dhcp4"): bool = false,
        /// Static addresses.
        addresses ("addresses"): Vec<InterfaceAddress>,
        /// Static routes.
        routes ("routes"): Vec<RouteConfig>,
    }
}

object! {
    /// An interface described by its properties; all that are given must match.
    pub struct LinkMatch {
        /// The kernel's name, with wildcards.
        name ("name"): Option<Glob>,
        /// The hardware address.
        mac ("mac"): Option<MacAddress>,
        /// The device's path below `/sys/devices`, with wildcards (`pci0000:00/0000:00:03.0*`).
        path ("path"): Option<Glob>,
        /// The kernel driver, with wildcards.
        driver ("driver"): Option<Glob>,
    }
}

object! {
    /// A static route.
    pub struct RouteConfig {
        /// Where it leads; `0.0.0.0/0` and `::/0` are the default routes.
        network ("network"): Cidr,
        /// The next hop; without one the network is on the link itself.
        gateway ("gateway"): Option<Address>,
        /// Its metric; the lowest wins.
        metric ("metric"): u32 = 1024,
    }
}

impl LinkMatch {
    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        self.name.is_none() && self.mac.is_none() && self.path.is_none() && self.driver.is_none()
    }
}

impl LinkConfig {
    /// Whether an interface with these properties is the one.
    pub fn selects(&self, name: &str, mac: Option<MacAddress>, path: &str, driver: &str) -> bool {
        if self.matches.is_empty() {
            return self.name == name;
        }
        let glob = |g: &Option<Glob>, text: &str| g.as_ref().is_none_or(|g| g.matches(text));
        glob(&self.matches.name, name)
            && glob(&self.matches.path, path)
            && glob(&self.matches.driver, driver)
            && self.matches.mac.is_none_or(|wanted| mac == Some(wanted))
    }
}

impl Check for LinkMatch {}

impl Check for RouteConfig {
    fn check(&self, d: &mut Decoder) {
        if let Some(gateway) = self.gateway
            && gateway.0.is_ipv4() != self.network.0.addr().is_ipv4()
        {
            d.report_at(&FieldPath::fields("gateway"), format!("{gateway} is not of the same family as {}", self.network));
        }
    }
}

impl Check for LinkConfig {
    fn check(&self, d: &mut Decoder) {
        let fits = !self.name.is_empty()
            && self.name.len() <= 63
            && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !fits {
            d.report_at(&FieldPath::fields("name"), "must be 1 to 63 letters, digits, '-', '_' and '.'");
        } else if self.matches.is_empty() && self.name.len() > 15 {
            d.report_at(
                &FieldPath::fields("name"),
                "is longer than the 15 characters an interface can have; use match to select it by other properties",
            );
        }
        if let Some(mtu) = self.mtu
            && !(576..=65536).contains(&mtu)
        {
            d.report_at(&FieldPath::fields("mtu"), "must be between 576 and 65536");
        }
        for (i, address) in self.addresses.iter().enumerate() {
            if self.addresses[..i].iter().any(|other| other.0.addr() == address.0.addr()) {
                d.report_at(&FieldPath::fields("addresses").index(i), format!("{} is given twice", address.0.addr()));
            }
        }
        for (i, route) in self.routes.iter().enumerate() {
            let at = FieldPath::fields("routes").index(i);
            if self.routes[..i].iter().any(|other| other.network == route.network && other.metric == route.metric) {
                d.report_at(&at, format!("a route to {} with metric {} is given twice", route.network, route.metric));
            }
            if let Some(gateway) = route.gateway {
                let reachable = self.addresses.iter().any(|a| a.0.contains(&gateway.0))
                    || self.routes.iter().any(|r| r.gateway.is_none() && r.network.0.contains(&gateway.0));
                let own = self.addresses.iter().any(|a| a.0.addr() == gateway.0);
                if own {
                    d.report_at(&at.field("gateway"), format!("{gateway} is this link's own address"));
                } else if !reachable && !self.dhcp4 {
                    d.report_at(&at.field("gateway"), format!("{gateway} is in none of this link's networks"));
                }
            }
        }
    }
}
