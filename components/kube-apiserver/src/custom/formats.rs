//! The string formats that upstream checks. An unknown format is no rule.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;

/// Formats that are known, for the warning about others.
pub const KNOWN: &[&str] = &[
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "date-time",
    "int32",
    "int64",
    "uint32",
    "uint64",
    "float",
    "double",
    "k8s-short-name",
    "k8s-long-name",
];

pub fn is_valid(format: &str, s: &str) -> bool {
    match format {
        "ipv4" => s.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => s.parse::<Ipv6Addr>().is_ok(),
        "cidr" => s.contains('/') && s.parse::<ipnet::IpNet>().is_ok(),
        "mac" => is_mac(s),
        "uuid" => is_uuid(s, None),
        "uuid3" => is_uuid(s, Some('3')),
        "uuid4" => is_uuid(s, Some('4')),
        "uuid5" => is_uuid(s, Some('5')),
        "byte" => base64::engine::general_purpose::STANDARD.decode(s).is_ok(),
        "date" => is_date(s),
        "date-time" | "datetime" => s.parse::<jiff::Timestamp>().is_ok(),
        "duration" => k8s_schema::time::parse_duration(s).is_ok(),
        "hexcolor" => matches!(s.strip_prefix('#').unwrap_or(s), h if matches!(h.len(), 3 | 6) && h.bytes().all(|b| b.is_ascii_hexdigit())),
        "bsonobjectid" => s.len() == 24 && s.bytes().all(|b| b.is_ascii_hexdigit()),
        "email" => is_email(s),
        "hostname" => is_hostname(s),
        "uri" => is_uri(s),
        "k8s-short-name" => crate::validation::names::dns1123_label(s).is_empty(),
        "k8s-long-name" => crate::validation::names::dns1123_subdomain(s).is_empty(),
        _ => true,
    }
}

fn is_mac(s: &str) -> bool {
    let parts: Vec<&str> = s.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_uuid(s: &str, version: Option<char>) -> bool {
    uuid::Uuid::try_parse(s).is_ok()
        && (s.len() == 36 || s.len() == 32)
        && version.is_none_or(|v| s.replace('-', "").chars().nth(12) == Some(v))
}

fn is_date(s: &str) -> bool {
    s.len() == 10 && s.parse::<jiff::civil::Date>().is_ok()
}

fn is_email(s: &str) -> bool {
    match s.rsplit_once('@') {
        Some((local, host)) => !local.is_empty() && !local.contains(char::is_whitespace) && (is_hostname(host) || host.starts_with('[')),
        None => false,
    }
}

fn is_hostname(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 255
        && s.trim_end_matches('.').split('.').all(|l| {
            !l.is_empty() && l.len() <= 63 && l.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_') && !l.starts_with('-')
        })
}

/// Something with a scheme, or a path.
fn is_uri(s: &str) -> bool {
    s.starts_with('/') || s.parse::<http::Uri>().is_ok_and(|u| u.scheme().is_some() || u.path().starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_take_what_they_are_named_for() {
        for (format, good, bad) in [
            ("ipv4", "1.2.3.4", "1.2.3"),
            ("uuid", "0b2f3a44-9a55-4a67-8f57-d5e4b1c6a1b0", "x"),
            ("byte", "eA==", "%%"),
            ("date-time", "2024-01-01T00:00:00Z", "x"),
            ("date", "2024-01-01", "2024-13-01"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("mac", "00:11:22:33:44:55", "00:11"),
            ("email", "a@example.com", "a"),
            ("duration", "5m", "five"),
            ("made-up", "anything", ""),
        ] {
            assert!(is_valid(format, good), "{format} {good}");
            assert!(bad.is_empty() || !is_valid(format, bad), "{format} {bad}");
        }
    }
}
