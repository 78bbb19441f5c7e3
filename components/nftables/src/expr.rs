//! The expressions rules are made of, with the numbers of the kernel's UAPI.

use std::fmt;

use crate::attribute::Attributes;

/// First 32-bit register (`NFT_REG32_00`).
pub(crate) const REG: u32 = 8;

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Let it through this hook.
    Accept,
    /// Drop it silently.
    Drop,
    /// Go on after the jump that led here.
    Return,
    /// Continue in a chain, then come back.
    Jump(String),
    /// Continue in a chain for good.
    Goto(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
            Self::Return => write!(f, "return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Verdict {
    /// `NFTA_DATA_VERDICT`.
    pub(crate) fn encode(&self, data: &mut Attributes) {
        let (code, chain): (i32, _) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Return => (-5, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        data.nest(2, |v| {
            v.bytes(1, &code.to_be_bytes());
            if let Some(chain) = chain {
                v.string(2, chain);
            }
        });
    }
}

/// Comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// `==`
    Eq = 0,
    /// `!=`
    Ne = 1,
}

/// Header a payload is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// IP header.
    Network = 1,
    /// TCP, UDP, SCTP header.
    Transport = 2,
}

/// Packet metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Mark.
    Mark = 3,
    /// Layer 4 protocol.
    L4Proto = 16,
}

/// Connection tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// State bits.
    State = 0,
}

/// What a routing lookup gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult {
    /// Address type (`RTN_*`).
    AddressType = 3,
}

/// Direction of a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// Source.
    Source = 0,
    /// Destination.
    Destination = 1,
}

/// One expression. Registers are counted from zero, 32 bits each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Part of a header into registers.
    Payload { base: Base, offset: u32, len: u32, reg: u32 },
    /// Metadata into a register.
    Meta { key: MetaKey, reg: u32 },
    /// A register into metadata.
    MetaSet { key: MetaKey, reg: u32 },
    /// Connection tracking into a register.
    Ct { key: CtKey, reg: u32 },
    /// `reg = (reg & mask) ^ xor`.
    Bitwise { reg: u32, mask: Vec<u8>, xor: Vec<u8> },
    /// Goes on when the comparison holds.
    Cmp { op: CmpOp, reg: u32, value: Vec<u8> },
    /// Data into registers.
    Load { reg: u32, value: Vec<u8> },
    /// A verdict.
    Verdict(Verdict),
    /// Goes on when the registers' value is in the set (or, inverted, is not).
    InSet { set: String, reg: u32, inverted: bool },
    /// The verdict of the map for the registers' value.
    Vmap { map: String, reg: u32 },
    /// The verdict of a map that belongs to this rule alone, by number; filled from the rule.
    AnonymousVmap { id: u32, reg: u32 },
    /// A random number below the modulus into a register.
    Random { modulus: u32, reg: u32 },
    /// A routing lookup of the destination address into a register.
    FibDestination { result: FibResult, reg: u32 },
    /// Adds (or refreshes) an element of a set from registers.
    UpdateSet { set: String, reg: u32, timeout_ms: u64 },
    /// Translates to the address and port in registers.
    Nat { kind: NatKind, family: u8, address_reg: u32, port_reg: Option<u32> },
    /// Source translation to the outgoing link's address, with random ports.
    Masquerade,
    /// Refuses with an ICMP error: the code for "port unreachable" of the table's family.
    Reject { code: u8 },
    /// Counts packets.
    Counter,
}

impl Expr {
    /// `NFTA_LIST_ELEM` with name and data.
    pub(crate) fn encode(&self, list: &mut Attributes) {
        list.nest(1, |e| {
            e.string(1, self.name());
            e.nest(2, |d| self.data(d));
        });
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Ct { .. } => "ct",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Load { .. } | Self::Verdict(_) => "immediate",
            Self::InSet { .. } | Self::Vmap { .. } | Self::AnonymousVmap { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::FibDestination { .. } => "fib",
            Self::UpdateSet { .. } => "dynset",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject { .. } => "reject",
            Self::Counter => "counter",
        }
    }

    fn data(&self, d: &mut Attributes) {
        match self {
            Self::Payload { base, offset, len, reg } => {
                d.u32(1, REG + reg).u32(2, *base as u32).u32(3, *offset).u32(4, *len);
            }
            Self::Meta { key, reg } => {
                d.u32(1, REG + reg).u32(2, *key as u32);
            }
            Self::MetaSet { key, reg } => {
                d.u32(2, *key as u32).u32(3, REG + reg);
            }
            Self::Ct { key, reg } => {
                d.u32(1, REG + reg).u32(2, *key as u32);
            }
            Self::Bitwise { reg, mask, xor } => {
                d.u32(1, REG + reg).u32(2, REG + reg).u32(3, mask.len() as u32);
                d.nest(4, |v| value(v, mask)).nest(5, |v| value(v, xor));
            }
            Self::Cmp { op, reg, value: v } => {
                d.u32(1, REG + reg).u32(2, *op as u32).nest(3, |n| value(n, v));
            }
            Self::Load { reg, value: v } => {
                d.u32(1, REG + reg).nest(2, |n| value(n, v));
            }
            Self::Verdict(verdict) => {
                d.u32(1, 0).nest(2, |n| verdict.encode(n));
            }
            Self::InSet { set, reg, inverted } => {
                d.string(1, set).u32(2, REG + reg);
                if *inverted {
                    d.u32(5, 1);
                }
            }
            Self::Vmap { map, reg } => {
                d.string(1, map).u32(2, REG + reg).u32(3, 0);
            }
            Self::AnonymousVmap { id, reg } => {
                d.string(1, "__map%d").u32(2, REG + reg).u32(3, 0).u32(4, *id);
            }
            Self::Random { modulus, reg } => {
                d.u32(1, REG + reg).u32(2, *modulus).u32(3, 1).u32(4, 0);
            }
            Self::FibDestination { result, reg } => {
                d.u32(1, REG + reg).u32(2, *result as u32).u32(3, 2);
            }
            Self::UpdateSet { set, reg, timeout_ms } => {
                d.string(1, set).u32(3, 1).u32(4, REG + reg).u64(6, *timeout_ms);
            }
            Self::Nat { kind, family, address_reg, port_reg } => {
                // NF_NAT_RANGE_MAP_IPS is implied by the address registers, NF_NAT_RANGE_PROTO_SPECIFIED by the port's.
                d.u32(1, *kind as u32).u32(2, u32::from(*family)).u32(3, REG + address_reg).u32(4, REG + address_reg);
                if let Some(port) = port_reg {
                    d.u32(5, REG + port).u32(6, REG + port);
                }
            }
            Self::Masquerade => {
                d.u32(1, 1 << 4);
            }
            Self::Reject { code } => {
                d.u32(1, 0).u8(2, *code);
            }
            Self::Counter => {
                d.u64(1, 0).u64(2, 0);
            }
        }
    }
}

fn value(data: &mut Attributes, bytes: &[u8]) {
    data.bytes(1, bytes);
}
