//! Values that are written as text and mean more than text. Each says in its `FromStr` error what is wrong and what would be right.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use crate::text_value;

/// A network: an address range in CIDR notation with no host bits set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(pub IpNet);

impl FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let net: IpNet = text.parse().map_err(|_| format!("{text:?} is not a CIDR such as 10.244.0.0/16"))?;
        if net.addr() != net.network() {
            return Err(format!("{text:?} has host bits set; the network is {}", net.trunc()));
        }
        Ok(Self(net))
    }
}

/// An interface address with its prefix length, such as `10.5.0.11/24`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress(pub IpNet);

impl FromStr for InterfaceAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let net: IpNet = text.parse().map_err(|_| format!("{text:?} is not an address with a prefix length such as 10.5.0.11/24"))?;
        let long = net.prefix_len() + 1 >= net.max_prefix_len();
        if !long && net.addr() == net.network() && net.addr().is_ipv4() {
            return Err(format!("{text:?} is the network itself, not an address in it"));
        }
        if !long && net.addr().is_ipv4() && net.addr() == net.broadcast() {
            return Err(format!("{text:?} is the network's broadcast address"));
        }
        if net.addr().is_unspecified() || net.addr().is_multicast() {
            return Err(format!("{text:?} cannot be the address of an interface"));
        }
        Ok(Self(net))
    }
}

macro_rules! show_inner {
    ($($ty:ty),*) => {$(
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
show_inner!(Cidr, InterfaceAddress, Address);

/// An IP address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub IpAddr);

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is not an IP address"))
    }
}

/// A host: an address or a DNS name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An IP address.
    Address(IpAddr),
    /// A DNS name in lower case.
    Name(String),
}

impl FromStr for Host {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if text.chars().all(|c| c.is_ascii_digit() || c == '.') {
            return Err(format!("{text:?} is not an IP address"));
        }
        check_dns_name(text).map(|()| Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(a) => a.fmt(f),
            Host::Name(n) => f.write_str(n),
        }
    }
}

/// Whether a text is a DNS name (RFC 1123 subdomain).
pub fn check_dns_name(text: &str) -> Result<(), String> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if text.is_empty() || text.len() > 253 || !text.split('.').all(label) {
        return Err(format!("{text:?} is not a DNS name: parts of lower-case letters, digits and '-' joined by dots"));
    }
    Ok(())
}

/// The address of the Kubernetes API: `https://host:port`, port 6443 unless given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where it is.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        match &self.host {
            Host::Address(IpAddr::V6(a)) => format!("[{a}]:{}", self.port),
            host => format!("{host}:{}", self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not an endpoint such as https://10.5.0.11:6443");
        let rest = text.strip_prefix("https://").ok_or_else(bad)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if let Ok(a) = rest.parse::<Ipv6Addr>() {
            return Err(format!("{text:?}: write the address in brackets: https://[{a}]:6443"));
        }
        let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (host, after) = inner.split_once(']').ok_or_else(bad)?;
            let host = Host::Address(IpAddr::V6(host.parse().map_err(|_| bad())?));
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) })
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (host.parse()?, Some(port)),
                None => (rest.parse()?, None),
            }
        };
        let port = match port {
            None => 6443,
            Some(p) => p.parse().ok().filter(|p| *p != 0).ok_or_else(bad)?,
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a MAC address such as 52:54:00:00:00:01");
        let mut out = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut out {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        parts.next().map_or(Ok(Self(out)), |_| Err(bad()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A pattern with `*` (any run) and `?` (any one character), compared without regard to case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob(String);

impl Glob {
    /// Whether the pattern covers all of `text`.
    pub fn matches(&self, text: &str) -> bool {
        let (p, t): (Vec<char>, Vec<char>) = (self.0.to_lowercase().chars().collect(), text.trim().to_lowercase().chars().collect());
        let (mut i, mut j) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while j < t.len() {
            if i < p.len() && p[i] == '*' {
                star = Some((i, j));
                i += 1;
            } else if i < p.len() && (p[i] == '?' || p[i] == t[j]) {
                i += 1;
                j += 1;
            } else if let Some((si, sj)) = star {
                star = Some((si, sj + 1));
                i = si + 1;
                j = sj + 1;
            } else {
                return false;
            }
        }
        p[i..].iter().all(|c| *c == '*')
    }
}

impl FromStr for Glob {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > 256 {
            return Err("must have 1 to 256 characters".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a size is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

/// A condition on a size, such as `>= 10GB`, `< 2TiB` or `== 512GB`; several joined by `&&`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeMatcher {
    text: String,
    conditions: Vec<(Comparison, u64)>,
}

impl SizeMatcher {
    /// Whether a size in bytes fulfils every condition.
    pub fn matches(&self, bytes: u64) -> bool {
        self.conditions.iter().all(|(comparison, than)| match comparison {
            Comparison::Less => bytes < *than,
            Comparison::AtMost => bytes <= *than,
            Comparison::Equal => bytes == *than,
            Comparison::AtLeast => bytes >= *than,
            Comparison::More => bytes > *than,
        })
    }
}

impl FromStr for SizeMatcher {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a condition on a size such as \">= 10GB\" or \"> 100GiB && < 2TB\"");
        let mut conditions = Vec::new();
        for part in text.split("&&") {
            let part = part.trim();
            let operators = [
                ("<=", Comparison::AtMost),
                (">=", Comparison::AtLeast),
                ("==", Comparison::Equal),
                ("<", Comparison::Less),
                (">", Comparison::More),
            ];
            let (operator, rest) = operators.iter().find_map(|(o, c)| part.strip_prefix(o).map(|r| (*c, r))).ok_or_else(bad)?;
            conditions.push((operator, parse_bytes(rest.trim()).ok_or_else(bad)?));
        }
        Ok(Self { text: text.to_owned(), conditions })
    }
}

impl fmt::Display for SizeMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A number of bytes with its unit: `10GB`, `1.5TiB`, `512`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / 10u128.pow(fraction.len() as u32);
    whole.checked_add(u64::try_from(part).ok()?)
}

/// A span of time in whole seconds, written like Go's: `30m`, `1h30m`, `90s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    /// A span of so many minutes.
    pub const fn minutes(minutes: u64) -> Self {
        Self(Duration::from_secs(minutes * 60))
    }
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a duration such as 30m, 1h30m or 90s");
        let mut seconds: u64 = 0;
        let mut rest = text;
        let mut last = u64::MAX;
        while !rest.is_empty() {
            let split = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let number: u64 = rest[..split].parse().map_err(|_| bad())?;
            let unit = match rest.get(split..split + 1).unwrap_or_default() {
                "h" => 3600,
                "m" => 60,
                "s" => 1,
                _ => return Err(bad()),
            };
            if unit >= last {
                return Err(bad());
            }
            last = unit;
            seconds = number.checked_mul(unit).and_then(|n| n.checked_add(seconds)).ok_or_else(bad)?;
            rest = &rest[split + 1..];
        }
        if seconds == 0 || seconds > 10 * 365 * 86400 {
            return Err(bad());
        }
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_secs();
        let parts = [(total / 3600, "h"), (total / 60 % 60, "m"), (total % 60, "s")];
        parts.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

/// A Kubernetes version, `v1.36.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KubernetesVersion {
    /// 1
    pub major: u16,
    /// 36
    pub minor: u16,
    /// 2
    pub patch: u16,
}

impl FromStr for KubernetesVersion {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a Kubernetes version such as v1.36.2");
        let parts: Vec<u16> = text
            .strip_prefix('v')
            .unwrap_or(text)
            .split('.')
            .map(|p| p.parse().ok().filter(|_| p.len() == 1 || !p.starts_with(['0', '+'])))
            .collect::<Option<_>>()
            .ok_or_else(bad)?;
        match parts[..] {
            [major, minor, patch] => Ok(Self { major, minor, patch }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A resource quantity as Kubernetes writes it: `100m`, `128Mi`, `1.5`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Quantity(String);

impl FromStr for Quantity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let number_fits = number.starts_with(|c: char| c.is_ascii_digit()) && !number.ends_with('.') && number.matches('.').count() <= 1;
        if !number_fits || text.len() > 32 || !["", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi"].contains(&unit) {
            return Err(format!("{text:?} is not a quantity such as 100m, 0.5 or 128Mi"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The token a worker joins with: `<6>.<16>` lower-case letters and digits, also a Kubernetes bootstrap token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken(String);

impl JoinToken {
    /// The public half, which names the token.
    pub fn id(&self) -> &str {
        &self.0[..6]
    }
    /// The secret half.
    pub fn secret(&self) -> &str {
        &self.0[7..]
    }
    /// The whole token; take care where it goes.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for JoinToken {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let part = |p: &str, n: usize| p.len() == n && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        match text.split_once('.') {
            Some((id, secret)) if part(id, 6) && part(secret, 16) => Ok(Self(text.to_owned())),
            // The text is not repeated: it may be a secret with one character wrong.
            _ => Err("is not a token: six and sixteen lower-case letters or digits joined by a dot".to_owned()),
        }
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.<redacted>", self.id())
    }
}

/// Certificates in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificatePem(String);

impl CertificatePem {
    /// The PEM text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A private key in PEM. Its text never reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPem(String);

impl KeyPem {
    /// The PEM text; take care where it goes.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

fn check_pem(text: &str, labels: &[&str]) -> Result<(), String> {
    let begin = labels.iter().find(|l| text.trim_start().starts_with(&format!("-----BEGIN {l}-----")));
    let complete = begin.is_some_and(|l| text.trim_end().ends_with(&format!("-----END {l}-----")));
    let printable = text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b));
    if complete && printable { Ok(()) } else { Err(format!("is not PEM: it must begin with -----BEGIN {}-----", labels[0])) }
}

impl FromStr for CertificatePem {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        check_pem(text, &["CERTIFICATE"]).map(|()| Self(text.to_owned()))
    }
}

impl FromStr for KeyPem {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        check_pem(text, &["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"]).map(|()| Self(text.to_owned()))
    }
}

impl fmt::Display for CertificatePem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CertificatePem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<certificate, {} bytes>", self.0.len())
    }
}

impl fmt::Display for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted key>")
    }
}

/// A container image reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageReference(String);

impl FromStr for ImageReference {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fits = !text.is_empty() && text.len() <= 512 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not an image reference such as registry.k8s.io/kube-apiserver:v1.36.2"))
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An instant, RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub jiff::Timestamp);

impl FromStr for Instant {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is not an instant such as 2026-11-01T00:00:00Z (quote it)"))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The IPv4 loopback, which several servers bind to.
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

text_value!(Cidr, json!({"type": "string", "format": "cidr"}));
text_value!(InterfaceAddress, json!({"type": "string", "format": "cidr"}));
text_value!(Address, json!({"type": "string", "format": "ip"}));
text_value!(Host, json!({"type": "string"}));
text_value!(Endpoint, json!({"type": "string", "pattern": "^https://"}));
text_value!(MacAddress, json!({"type": "string", "pattern": "^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$"}));
text_value!(Glob, json!({"type": "string", "minLength": 1}));
text_value!(SizeMatcher, json!({"type": "string", "pattern": "^\\s*(<=|>=|==|<|>)"}));
text_value!(Span, json!({"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"}));
text_value!(KubernetesVersion, json!({"type": "string", "pattern": "^v?1\\.[0-9]+\\.[0-9]+$"}));
text_value!(Quantity, json!({"type": "string"}));
text_value!(JoinToken, json!({"type": "string", "pattern": "^[a-z0-9]{6}\\.[a-z0-9]{16}$"}));
text_value!(CertificatePem, json!({"type": "string", "pattern": "^-----BEGIN CERTIFICATE-----"}));
text_value!(KeyPem, json!({"type": "string", "pattern": "^-----BEGIN "}));
text_value!(ImageReference, json!({"type": "string"}));
text_value!(Instant, json!({"type": "string", "format": "date-time"}));

#[cfg(test)]
mod tests {
    use super::*;

    fn ok<T: FromStr + fmt::Display>(text: &str) -> Option<String> {
        text.parse::<T>().ok().map(|v| v.to_string())
    }

    #[test]
    fn values_are_accepted_or_refused() {
        let same = |a: Option<String>, text: &str| assert_eq!(a.as_deref(), Some(text));
        same(ok::<Cidr>("10.244.0.0/16"), "10.244.0.0/16");
        same(ok::<Cidr>("fd00::/64"), "fd00::/64");
        for bad in ["10.244.0.1/16", "10.0.0/8", "10.0.0.0/33", "x", ""] {
            assert_eq!(ok::<Cidr>(bad), None, "{bad}");
        }
        same(ok::<InterfaceAddress>("10.5.0.11/24"), "10.5.0.11/24");
        same(ok::<InterfaceAddress>("10.5.0.0/31"), "10.5.0.0/31");
        for bad in ["10.5.0.0/24", "10.5.0.255/24", "10.5.0.11", "0.0.0.0/0", "224.0.0.1/24"] {
            assert_eq!(ok::<InterfaceAddress>(bad), None, "{bad}");
        }
        same(ok::<Endpoint>("https://10.5.0.11"), "https://10.5.0.11:6443");
        same(ok::<Endpoint>("https://[fd00::1]:443/"), "https://[fd00::1]:443");
        same(ok::<Endpoint>("https://api.example.org:443"), "https://api.example.org:443");
        for bad in [
            "http://a:1",
            "https://",
            "https://a:0",
            "https://a:70000",
            "https://fd00::1",
            "https://[10.0.0.1]",
            "https://1.2.3",
            "https://A_b",
        ] {
            assert_eq!(ok::<Endpoint>(bad), None, "{bad}");
        }
        same(ok::<MacAddress>("52:54:00:AB:00:01"), "52:54:00:ab:00:01");
        for bad in ["52:54:00:ab:00", "52:54:00:ab:00:01:02", "5:54:00:ab:00:01", "+2:54:00:ab:00:01"] {
            assert_eq!(ok::<MacAddress>(bad), None, "{bad}");
        }
        same(ok::<Span>("1h30m"), "1h30m");
        same(ok::<Span>("90s"), "1m30s");
        for bad in ["", "30", "0s", "m", "1m1h", "1d", "99999999999999999999h", "1µ"] {
            assert_eq!(ok::<Span>(bad), None, "{bad}");
        }
        same(ok::<KubernetesVersion>("1.36.2"), "v1.36.2");
        for bad in ["v1.36", "v1.36.2-rc.1", "v1.036.2", "v1.+6.2", "1.2.3.4", ""] {
            assert_eq!(ok::<KubernetesVersion>(bad), None, "{bad}");
        }
        for good in ["100m", "1", "0.5", "128Mi", "1.5Gi"] {
            same(ok::<Quantity>(good), good);
        }
        for bad in ["", "m", "1.", ".5", "1.2.3", "1mi", "-1", "1e3"] {
            assert_eq!(ok::<Quantity>(bad), None, "{bad}");
        }
    }

    #[test]
    fn size_conditions() {
        let cases = [
            (">= 10GB", 10_000_000_000, true),
            (">= 10GB", 9_999_999_999, false),
            ("<1.5TiB", 1_649_267_441_663, true),
            ("<1.5TiB", 1_649_267_441_664, false),
            ("> 1GB && <= 2GB", 2_000_000_000, true),
            ("> 1GB && <= 2GB", 1_000_000_000, false),
            ("== 512", 512, true),
        ];
        for (text, size, expected) in cases {
            assert_eq!(text.parse::<SizeMatcher>().expect(text).matches(size), expected, "{text} {size}");
        }
        for bad in ["10GB", ">= 10XB", ">= ", ">=1.GB", ">= 99999999999TB", "> 1GB &&", ""] {
            assert!(bad.parse::<SizeMatcher>().is_err(), "{bad}");
        }
    }

    #[test]
    fn globs_cover_the_whole_text() {
        let cases = [
            ("sd*", "sda", true),
            ("*virt*", "QEMU VirtIO disk", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b", "abx", false),
            ("*", "", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(pattern.parse::<Glob>().expect(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let token: JoinToken = "abcdef.0123456789abcdef".parse().expect("token");
        assert!(!format!("{token:?}").contains("0123456789"));
        let key: KeyPem = "-----BEGIN PRIVATE KEY-----\nMIIsecret\n-----END PRIVATE KEY-----\n".parse().expect("key");
        assert!(!format!("{key:?}").contains("secret"));
    }
}
