//! IP addresses and ranges as new fields take them: strict, and where it matters in the one form that everybody writes.

use std::net::IpAddr;

use ipnet::IpNet;

pub const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// What is wrong with an address that has to be in its canonical form.
pub fn canonical_ip(text: &str) -> Option<String> {
    match text.parse::<IpAddr>() {
        Err(_) if is_padded_v4(text) => Some("must not have leading 0s".into()),
        Err(_) => Some(BAD_IP.into()),
        Ok(ip) if is_mapped(ip) => Some("must not be an IPv4-mapped IPv6 address".into()),
        Ok(ip) => not_canonical(text, &ip.to_string()),
    }
}

/// A range whose address has no bits beyond the prefix, or what is wrong with the text.
pub fn range(text: &str) -> Result<IpNet, String> {
    // The parser takes zeros before numbers, which mean eight as a base to others.
    let padded = |ip: &str, length: &str| ip.parse::<IpAddr>().is_err() || length.len() > 1 && length.starts_with('0');
    match text.parse::<IpNet>() {
        Ok(_) if text.split_once('/').is_some_and(|(ip, length)| padded(ip, length)) => Err(PADDED_RANGE.into()),
        Ok(net) if is_mapped(net.addr()) => Err("must not have an IPv4-mapped IPv6 address".into()),
        Ok(net) if net.addr() != net.network() => Err("must not have bits set beyond the prefix length".into()),
        Ok(net) => Ok(net),
        Err(_) => Err(BAD_RANGE.into()),
    }
}

const PADDED_RANGE: &str = "must not have leading 0s in IP or prefix length";

/// [`range`], of which the text has to be the canonical form.
pub fn canonical_range(text: &str) -> Option<String> {
    match range(text) {
        Err(why) => Some(why),
        Ok(net) => not_canonical(text, &net.to_string()),
    }
}

fn not_canonical(text: &str, canonical: &str) -> Option<String> {
    (text != canonical).then(|| format!("must be in canonical form ({canonical:?})"))
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Four numbers of an address, some of them with zeros before them.
pub fn is_padded_v4(text: &str) -> bool {
    let digits = |o: &str| (1..=3).contains(&o.len()) && o.bytes().all(|c| c.is_ascii_digit()) && o.parse::<u8>().is_ok();
    text.split('.').count() == 4 && text.split('.').all(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ranges_have_one_form() {
        for (text, want) in [
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("2001:DB8::1", Some("must be in canonical form (\"2001:db8::1\")")),
            ("010.0.0.1", Some("must not have leading 0s")),
            ("::ffff:10.0.0.1", Some("must not be an IPv4-mapped IPv6 address")),
            ("10.0.0.256", Some(BAD_IP)),
            ("", Some(BAD_IP)),
        ] {
            assert_eq!(canonical_ip(text).as_deref(), want, "{text}");
        }
        for (text, want) in [
            ("10.0.0.0/8", None),
            ("2001:db8::/64", None),
            ("2001:db8:0::/64", Some("must be in canonical form (\"2001:db8::/64\")")),
            ("10.0.0.1/8", Some("must not have bits set beyond the prefix length")),
            ("10.0.0.0/08", Some(PADDED_RANGE)),
            ("10.00.0.0/8", Some(PADDED_RANGE)),
            ("::ffff:10.0.0.0/104", Some("must not have an IPv4-mapped IPv6 address")),
            ("10.0.0.0/33", Some(BAD_RANGE)),
            ("10.0.0.0", Some(BAD_RANGE)),
        ] {
            assert_eq!(canonical_range(text).as_deref(), want, "{text}");
        }
    }
}
