//! `HostnameConfig`, `ResolverConfig`, `TimeConfig`: what a machine is called, and whom it asks for names and the time.

use crate::model::{Check, Decoder};
use crate::object;
use crate::path::FieldPath;
use crate::values::{Address, Host, Instant, check_dns_name};

object! {
    /// The machine's name, which is also its node's name.
    pub struct HostnameConfig {
        /// A DNS name of at most 63 characters.
        hostname ("hostname"): String,
    }
}

object! {
    /// The DNS servers the machine asks.
    pub struct ResolverConfig {
        /// Servers in the order they are asked; at most three are used by the resolver.
        nameservers ("nameservers"): Vec<Address>,
        /// Domains that are tried after a short name.
        search_domains ("searchDomains"): Vec<String>,
    }
}

object! {
    /// The clock.
    pub struct TimeConfig {
        /// Whether the clock is set from servers.
        enabled ("enabled"): bool = true,
        /// NTP servers.
        servers ("servers"): Vec<Host>,
        /// The clock is wrong when it shows less; the system's build time is a floor in any case.
        floor ("floor"): Option<Instant>,
    }
}

impl Check for HostnameConfig {
    fn check(&self, d: &mut Decoder) {
        let at = FieldPath::fields("hostname");
        if let Err(reason) = check_dns_name(&self.hostname) {
            d.report_at(&at, reason);
        } else if self.hostname.len() > 63 {
            d.report_at(&at, "is longer than 63 characters");
        } else if self.hostname == "localhost" {
            d.report_at(&at, "localhost is every machine's name for itself");
        }
    }
}

impl Check for ResolverConfig {
    fn check(&self, d: &mut Decoder) {
        if self.nameservers.len() > 3 {
            d.report_at(&FieldPath::fields("nameservers"), "at most three are used by the resolver");
        }
        if self.search_domains.len() > 32 {
            d.report_at(&FieldPath::fields("searchDomains"), "at most 32");
        }
        for (i, domain) in self.search_domains.iter().enumerate() {
            if let Err(reason) = check_dns_name(domain) {
                d.report_at(&FieldPath::fields("searchDomains").index(i), reason);
            }
        }
    }
}

impl Check for TimeConfig {
    fn check(&self, d: &mut Decoder) {
        if self.servers.len() > 8 {
            d.report_at(&FieldPath::fields("servers"), "at most 8");
        }
    }
}
