//! What a machine API's serving certificate says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use machine_api::SERVER_NAME;
use machine_config::Config;
use pki::LeafSpec;

/// How long certificates that are issued here are good; machines renew after two thirds.
pub const LIFETIME: Duration = Duration::from_secs(7 * 86_400);

/// A serving certificate for a machine's API.
pub fn spec(hostname: &str, addresses: &[IpAddr], names: &[String]) -> LeafSpec {
    let mut dns_names = vec![SERVER_NAME.to_owned(), hostname.to_owned(), "localhost".to_owned()];
    dns_names.extend(names.iter().filter(|name| !dns_names.contains(name)).cloned().collect::<Vec<_>>());
    let mut all = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for address in addresses {
        if !all.contains(address) {
            all.push(*address);
        }
    }
    LeafSpec {
        common_name: hostname.to_owned(),
        organization: None,
        dns_names,
        addresses: all,
        server: true,
        client: false,
        lifetime: LIFETIME,
    }
}

/// More names and addresses that a config asks for in the machine API's certificate.
pub fn config_sans(config: &Config) -> (Vec<String>, Vec<IpAddr>) {
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    for san in &config.machine.cert_sans {
        match san {
            machine_config::values::Host::Name(name) => names.push(name.clone()),
            machine_config::values::Host::Address(address) => addresses.push(*address),
        }
    }
    (names, addresses)
}
