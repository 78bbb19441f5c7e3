//! nf_tables as data: tables, chains, rules, sets and maps are plain values that print as `nft` would write them, encode to netlink messages
//! (kernel UAPI `linux/netfilter/nf_tables.h`), and are committed as one transaction.
//!
//! It covers the expressions this project uses and no more; what the kernel holds is read with the `nft` program in tests.

mod attribute;
mod batch;
mod expr;
mod rule;
mod socket;

pub use batch::Batch;
pub use expr::{Base, CmpOp, CtKey, Expr, FibResult, MetaKey, NatKind, Verdict};
pub use rule::{Field, Rule, rule};
pub use socket::{CommitError, Socket};

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `ip`.
    Ip,
    /// `ip6`.
    Ip6,
}

impl Family {
    /// `NFPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    /// Bytes of an address.
    pub fn address_len(self) -> usize {
        match self {
            Self::Ip => 4,
            Self::Ip6 => 16,
        }
    }

    /// The family of an address.
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::Ip } else { Self::Ip6 }
    }
}

/// Where a base chain is hooked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// To the machine itself.
    Input = 1,
    /// Through the machine.
    Forward = 2,
    /// From the machine itself.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// A base chain's type and place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// Hook.
    pub hook: Hook,
    /// Priority, lower first.
    pub priority: i32,
}

/// Priority of destination NAT.
pub const PRIORITY_DSTNAT: i32 = -100;
/// Priority of filters.
pub const PRIORITY_FILTER: i32 = 0;
/// Priority of source NAT.
pub const PRIORITY_SRCNAT: i32 = 100;

/// One part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPart {
    /// Address of the table's family.
    Address,
    /// Layer 4 protocol.
    Protocol,
    /// Port.
    Port,
}

impl KeyPart {
    /// The number `nft` knows the type by, and its length in bytes.
    fn kind(self, family: Family) -> (u32, usize) {
        match (self, family) {
            (Self::Address, Family::Ip) => (7, 4),
            (Self::Address, Family::Ip6) => (8, 16),
            (Self::Protocol, _) => (12, 1),
            (Self::Port, _) => (13, 2),
        }
    }
}

/// A named set, or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name.
    pub name: String,
    /// Key: one part or a concatenation.
    pub key: Vec<KeyPart>,
    /// Elements carry a verdict.
    pub verdicts: bool,
    /// Elements are added by rules and expire after this many milliseconds.
    pub timeout_ms: Option<u64>,
}

/// An element: its key parts, and a verdict in maps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// One value per part of the set's key.
    pub key: Vec<Field>,
    /// Verdict, in maps.
    pub verdict: Option<Verdict>,
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key: Vec<_> = self.key.iter().map(ToString::to_string).collect();
        write!(f, "{}", key.join(" . "))?;
        match &self.verdict {
            Some(verdict) => write!(f, " : {verdict}"),
            None => Ok(()),
        }
    }
}
