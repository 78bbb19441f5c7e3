//! Rules, built from matches and statements that read like `nft`'s language and print the same.

use std::fmt;
use std::net::IpAddr;

use crate::expr::{Base, CmpOp, CtKey, Expr, FibResult, MetaKey, NatKind, Verdict};
use crate::{Element, Family, KeyPart, Set};

/// The mask of a prefix length over so many bytes.
fn prefix_mask(len: usize, prefix: u8) -> Vec<u8> {
    let ones = |i: usize| usize::from(prefix).saturating_sub(8 * i).min(8);
    (0..len).map(|i| if ones(i) == 0 { 0 } else { 0xffu8 << (8 - ones(i)) }).collect()
}

/// A value of a key part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Address.
    Address(IpAddr),
    /// Layer 4 protocol number.
    Protocol(u8),
    /// Port.
    Port(u16),
    /// A 32-bit number in host order, for numbered anonymous maps.
    Number(u32),
}

impl Field {
    /// Network bytes, without padding.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(a)) => a.octets().to_vec(),
            Self::Address(IpAddr::V6(a)) => a.octets().to_vec(),
            Self::Protocol(p) => vec![*p],
            Self::Port(p) => p.to_be_bytes().to_vec(),
            Self::Number(n) => n.to_ne_bytes().to_vec(),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(a) => write!(f, "{a}"),
            Self::Protocol(p) => write!(f, "{}", protocol_name(*p)),
            Self::Port(p) => write!(f, "{p}"),
            Self::Number(n) => write!(f, "{n}"),
        }
    }
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        6 => "tcp".into(),
        17 => "udp".into(),
        132 => "sctp".into(),
        n => n.to_string(),
    }
}

/// A rule: expressions, the text `nft` would show, and the elements of its own verdict map, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub(crate) family: Family,
    pub(crate) exprs: Vec<Expr>,
    pub(crate) text: Vec<String>,
    /// Elements of the anonymous map of [`Rule::random_vmap`].
    pub(crate) anonymous: Option<Vec<Element>>,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text.join(" "))
    }
}

/// An empty rule.
pub fn rule(family: Family) -> Rule {
    Rule { family, exprs: vec![], text: vec![], anonymous: None }
}

impl Rule {
    fn push(mut self, text: impl Into<String>, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.text.push(text.into());
        self.exprs.extend(exprs);
        self
    }

    fn ip(&self) -> &'static str {
        if self.family == Family::Ip { "ip" } else { "ip6" }
    }

    fn address(&self, source: bool, reg: u32) -> Expr {
        let offset = match (self.family, source) {
            (Family::Ip, true) => 12,
            (Family::Ip, false) => 16,
            (Family::Ip6, true) => 8,
            (Family::Ip6, false) => 24,
        };
        Expr::Payload { base: Base::Network, offset, len: self.family.address_len() as u32, reg }
    }

    fn network(self, source: bool, op: CmpOp, address: IpAddr, prefix: u8) -> Self {
        let len = self.family.address_len();
        let load = self.address(source, 0);
        let mask = prefix_mask(len, prefix);
        let masked: Vec<u8> = Field::Address(address).bytes().iter().zip(&mask).map(|(a, m)| a & m).collect();
        let name = if source { "saddr" } else { "daddr" };
        let sign = if op == CmpOp::Ne { "!= " } else { "" };
        let full = usize::from(prefix) == 8 * len;
        let text =
            if full { format!("{} {name} {sign}{address}", self.ip()) } else { format!("{} {name} {sign}{address}/{prefix}", self.ip()) };
        let bitwise = (!full).then(|| Expr::Bitwise { reg: 0, mask, xor: vec![0; len] });
        let exprs: Vec<_> = [Some(load), bitwise, Some(Expr::Cmp { op, reg: 0, value: masked })].into_iter().flatten().collect();
        self.push(text, exprs)
    }

    /// `ip saddr A/P`
    pub fn source(self, address: IpAddr, prefix: u8) -> Self {
        self.network(true, CmpOp::Eq, address, prefix)
    }

    /// `ip saddr != A/P`
    pub fn source_not(self, address: IpAddr, prefix: u8) -> Self {
        self.network(true, CmpOp::Ne, address, prefix)
    }

    /// `ip daddr A/P`
    pub fn destination(self, address: IpAddr, prefix: u8) -> Self {
        self.network(false, CmpOp::Eq, address, prefix)
    }

    /// `ip daddr != A/P`
    pub fn destination_not(self, address: IpAddr, prefix: u8) -> Self {
        self.network(false, CmpOp::Ne, address, prefix)
    }

    /// `meta l4proto P`
    pub fn protocol(self, protocol: u8) -> Self {
        let text = format!("meta l4proto {}", protocol_name(protocol));
        self.push(text, [Expr::Meta { key: MetaKey::L4Proto, reg: 0 }, Expr::Cmp { op: CmpOp::Eq, reg: 0, value: vec![protocol] }])
    }

    /// `th dport P`; the protocol must have been matched before.
    pub fn destination_port(self, port: u16) -> Self {
        let load = Expr::Payload { base: Base::Transport, offset: 2, len: 2, reg: 0 };
        self.push(format!("th dport {port}"), [load, Expr::Cmp { op: CmpOp::Eq, reg: 0, value: port.to_be_bytes().to_vec() }])
    }

    /// `ct state new`
    pub fn state_new(self) -> Self {
        // NF_CT_STATE_BIT(IP_CT_NEW): bit 3, in host order.
        let mask = 8u32.to_ne_bytes().to_vec();
        let zero = vec![0; 4];
        self.push(
            "ct state new",
            [
                Expr::Ct { key: CtKey::State, reg: 0 },
                Expr::Bitwise { reg: 0, mask, xor: zero.clone() },
                Expr::Cmp { op: CmpOp::Ne, reg: 0, value: zero },
            ],
        )
    }

    /// `fib daddr type local`
    pub fn destination_is_local(self) -> Self {
        // RTN_LOCAL is 2.
        let value = 2u32.to_ne_bytes().to_vec();
        self.push(
            "fib daddr type local",
            [Expr::FibDestination { result: FibResult::AddressType, reg: 0 }, Expr::Cmp { op: CmpOp::Eq, reg: 0, value }],
        )
    }

    /// `meta mark & M == 0` or `!= 0`
    pub fn mark(self, bit: u32, set: bool) -> Self {
        let op = if set { CmpOp::Ne } else { CmpOp::Eq };
        let text = format!("meta mark & {bit:#x} {} 0x0", if set { "!=" } else { "==" });
        let bitwise = Expr::Bitwise { reg: 0, mask: bit.to_ne_bytes().to_vec(), xor: vec![0; 4] };
        self.push(text, [Expr::Meta { key: MetaKey::Mark, reg: 0 }, bitwise, Expr::Cmp { op, reg: 0, value: vec![0; 4] }])
    }

    /// `meta mark set meta mark | M`, or with the bit cleared.
    pub fn set_mark(self, bit: u32, on: bool) -> Self {
        let text = if on { format!("meta mark set meta mark | {bit:#x}") } else { format!("meta mark set meta mark & {:#x}", !bit) };
        let xor = if on { bit } else { 0 };
        let bitwise = Expr::Bitwise { reg: 0, mask: (!bit).to_ne_bytes().to_vec(), xor: xor.to_ne_bytes().to_vec() };
        self.push(text, [Expr::Meta { key: MetaKey::Mark, reg: 0 }, bitwise, Expr::MetaSet { key: MetaKey::Mark, reg: 0 }])
    }

    /// Loads key parts of the packet into consecutive registers; gives the text.
    fn key(&self, key: &[KeyPart], source: bool) -> (String, Vec<Expr>) {
        let (mut reg, mut text, mut exprs) = (0, vec![], vec![]);
        for part in key {
            match part {
                KeyPart::Address => {
                    text.push(format!("{} {}", self.ip(), if source { "saddr" } else { "daddr" }));
                    exprs.push(self.address(source, reg));
                    reg += self.family.address_len() as u32 / 4;
                }
                KeyPart::Protocol => {
                    text.push("meta l4proto".into());
                    exprs.push(Expr::Meta { key: MetaKey::L4Proto, reg });
                    reg += 1;
                }
                KeyPart::Port => {
                    text.push("th dport".into());
                    exprs.push(Expr::Payload { base: Base::Transport, offset: 2, len: 2, reg });
                    reg += 1;
                }
            }
        }
        (text.join(" . "), exprs)
    }

    /// `ip daddr . meta l4proto . th dport vmap @map`, by the map's key.
    pub fn vmap(self, map: &Set) -> Self {
        let (text, exprs) = self.key(&map.key, false);
        let name = &map.name;
        self.push(format!("{text} vmap @{name}"), exprs).push("", [Expr::Vmap { map: name.clone(), reg: 0 }]).trimmed()
    }

    /// `ip daddr @set`
    pub fn destination_in(self, set: &Set) -> Self {
        let (text, exprs) = self.key(&set.key, false);
        let name = &set.name;
        self.push(format!("{text} @{name}"), exprs).push("", [Expr::InSet { set: name.clone(), reg: 0, inverted: false }]).trimmed()
    }

    /// `ip saddr @set`
    pub fn source_in(self, set: &Set) -> Self {
        let (text, exprs) = self.key(&set.key, true);
        let name = &set.name;
        self.push(format!("{text} @{name}"), exprs).push("", [Expr::InSet { set: name.clone(), reg: 0, inverted: false }]).trimmed()
    }

    /// `update @set { ip saddr timeout T }`
    pub fn remember_source(self, set: &Set) -> Self {
        let timeout_ms = set.timeout_ms.unwrap_or(0);
        let (text, exprs) = self.key(&[KeyPart::Address], true);
        let name = &set.name;
        self.push(format!("update @{name} {{ {text} timeout {}s }}", timeout_ms / 1000), exprs)
            .push("", [Expr::UpdateSet { set: name.clone(), reg: 0, timeout_ms }])
            .trimmed()
    }

    /// `numgen random mod N vmap { 0 : goto a, 1 : goto b }`
    pub fn random_vmap(mut self, chains: &[String]) -> Self {
        let elements: Vec<_> = (0..)
            .zip(chains)
            .map(|(i, chain)| Element { key: vec![Field::Number(i)], verdict: Some(Verdict::Goto(chain.clone())) })
            .collect();
        let shown: Vec<_> = elements.iter().map(ToString::to_string).collect();
        let text = format!("numgen random mod {} vmap {{ {} }}", chains.len(), shown.join(", "));
        self.anonymous = Some(elements);
        let modulus = chains.len() as u32;
        self.push(text, [Expr::Random { modulus, reg: 0 }, Expr::AnonymousVmap { id: 0, reg: 0 }])
    }

    /// `dnat to A:P`
    pub fn dnat(self, address: IpAddr, port: u16) -> Self {
        let port_reg = self.family.address_len() as u32 / 4;
        let text = if address.is_ipv6() { format!("dnat to [{address}]:{port}") } else { format!("dnat to {address}:{port}") };
        let family = self.family.number();
        self.push(
            text,
            [
                Expr::Load { reg: 0, value: Field::Address(address).bytes() },
                Expr::Load { reg: port_reg, value: port.to_be_bytes().to_vec() },
                Expr::Nat { kind: NatKind::Destination, family, address_reg: 0, port_reg: Some(port_reg) },
            ],
        )
    }

    /// `masquerade fully-random`
    pub fn masquerade(self) -> Self {
        self.push("masquerade fully-random", [Expr::Masquerade])
    }

    /// `reject`
    pub fn reject(self) -> Self {
        // ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH.
        let code = if self.family == Family::Ip { 3 } else { 4 };
        self.push("reject", [Expr::Reject { code }])
    }

    /// `counter`
    pub fn counter(self) -> Self {
        self.push("counter", [Expr::Counter])
    }

    /// A verdict.
    pub fn verdict(self, verdict: Verdict) -> Self {
        let text = verdict.to_string();
        self.push(text, [Expr::Verdict(verdict)])
    }

    /// `jump C`
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(Verdict::Jump(chain.into()))
    }

    /// `goto C`
    pub fn goto(self, chain: &str) -> Self {
        self.verdict(Verdict::Goto(chain.into()))
    }

    fn trimmed(mut self) -> Self {
        self.text.retain(|t| !t.is_empty());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_masks() {
        assert_eq!(prefix_mask(4, 0), [0, 0, 0, 0]);
        assert_eq!(prefix_mask(4, 20), [255, 255, 240, 0]);
        assert_eq!(prefix_mask(4, 32), [255; 4]);
    }

    #[test]
    fn rules_print_as_nft_writes_them() {
        let services = Set {
            name: "service-ips".into(),
            key: vec![KeyPart::Address, KeyPart::Protocol, KeyPart::Port],
            verdicts: true,
            timeout_ms: None,
        };
        let table = [
            (rule(Family::Ip).vmap(&services), "ip daddr . meta l4proto . th dport vmap @service-ips"),
            (rule(Family::Ip).source_not([10, 244, 0, 0].into(), 16).jump("m"), "ip saddr != 10.244.0.0/16 jump m"),
            (rule(Family::Ip).protocol(6).dnat([10, 244, 0, 5].into(), 80), "meta l4proto tcp dnat to 10.244.0.5:80"),
            (rule(Family::Ip).random_vmap(&["a".into(), "b".into()]), "numgen random mod 2 vmap { 0 : goto a, 1 : goto b }"),
            (rule(Family::Ip).set_mark(0x4000, true), "meta mark set meta mark | 0x4000"),
        ];
        for (rule, text) in table {
            assert_eq!(rule.to_string(), text);
        }
    }
}
