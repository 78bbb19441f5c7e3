//! DHCP messages as bytes (RFC 2131, section 2; options of RFC 2132). Pure.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::Lease;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const HEADER: usize = 236;
/// What every relay passes (RFC 2131, section 2).
const SMALLEST: usize = 300;
const BROADCAST_FLAG: u16 = 0x8000;

const PAD: u8 = 0;
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const HOST_NAME: u8 = 12;
const DOMAIN_NAME: u8 = 15;
const MTU: u8 = 26;
const NTP: u8 = 42;
const REQUESTED_ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;
const PARAMETERS: u8 = 55;
const CLIENT_ID: u8 = 61;
const END: u8 = 255;

const MAX_ADDRESSES: usize = 8;

/// The message types that this client sends or understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Discover,
    Offer,
    Request,
    Ack,
    Nak,
}

impl Kind {
    const ALL: [(Self, u8); 5] = [(Self::Discover, 1), (Self::Offer, 2), (Self::Request, 3), (Self::Ack, 5), (Self::Nak, 6)];

    fn code(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, code)| *code)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, other)| *other == code).map(|(kind, _)| *kind)
    }
}

/// The parts of a message that matter to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub reply: bool,
    pub transaction: u32,
    pub mac: [u8; 6],
    pub client_address: Ipv4Addr,
    pub your_address: Ipv4Addr,
    pub requested: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    pub prefix: Option<u8>,
    pub lease_seconds: Option<u32>,
    pub routers: Vec<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub hostname: Option<String>,
    pub domain: Option<String>,
    pub mtu: Option<u16>,
}

impl Message {
    fn new(kind: Kind, transaction: u32, mac: [u8; 6]) -> Self {
        Self {
            kind,
            reply: false,
            transaction,
            mac,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            requested: None,
            server: None,
            prefix: None,
            lease_seconds: None,
            routers: Vec::new(),
            dns: Vec::new(),
            ntp: Vec::new(),
            hostname: None,
            domain: None,
            mtu: None,
        }
    }

    pub fn discover(transaction: u32, mac: [u8; 6], hostname: Option<&str>) -> Self {
        Self { hostname: hostname.map(str::to_owned), ..Self::new(Kind::Discover, transaction, mac) }
    }

    pub fn request(transaction: u32, mac: [u8; 6], hostname: Option<&str>, address: Ipv4Addr, server: Option<Ipv4Addr>) -> Self {
        Self { hostname: hostname.map(str::to_owned), requested: Some(address), server, ..Self::new(Kind::Request, transaction, mac) }
    }

    /// A request for an address in use names it in the header and in no option (RFC 2131, 4.3.2).
    pub fn rebinding(&mut self, address: Ipv4Addr) {
        self.client_address = address;
        self.requested = None;
        self.server = None;
    }

    pub fn asked_address(&self) -> Ipv4Addr {
        self.requested.unwrap_or(self.client_address)
    }

    pub fn answers(&self, transaction: u32, mac: [u8; 6]) -> bool {
        self.reply && self.transaction == transaction && self.mac == mac
    }

    /// What an acknowledgement grants; `None` when it has no usable address.
    pub fn lease(&self) -> Option<Lease> {
        let usable = !self.your_address.is_unspecified() && !self.your_address.is_broadcast() && !self.your_address.is_multicast();
        Some(Lease {
            address: Ipv4Net::new(self.your_address, self.prefix.unwrap_or(24)).ok().filter(|_| usable)?,
            server: self.server?,
            routers: self.routers.clone(),
            dns: self.dns.clone(),
            ntp: self.ntp.clone(),
            hostname: self.hostname.clone(),
            domain: self.domain.clone(),
            mtu: self.mtu.filter(|mtu| *mtu >= 576),
            duration: match self.lease_seconds {
                None | Some(u32::MAX) => Duration::MAX,
                Some(seconds) => Duration::from_secs(u64::from(seconds.max(60))),
            },
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[0] = if self.reply { REPLY } else { REQUEST };
        bytes[1] = 1;
        bytes[2] = 6;
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        // An address that is in use can be answered directly.
        let flags = if self.client_address.is_unspecified() { BROADCAST_FLAG } else { 0 };
        bytes[10..12].copy_from_slice(&flags.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.client_address.octets());
        bytes[16..20].copy_from_slice(&self.your_address.octets());
        bytes[28..34].copy_from_slice(&self.mac);
        bytes.extend_from_slice(&COOKIE);
        let mut option = |code: u8, value: &[u8]| {
            // A length is one byte; longer values are cut, which only names could be.
            let value = &value[..value.len().min(255)];
            bytes.extend_from_slice(&[code, value.len() as u8]);
            bytes.extend_from_slice(value);
        };
        option(MESSAGE_TYPE, &[self.kind.code()]);
        if !self.reply {
            let mut id = vec![1];
            id.extend_from_slice(&self.mac);
            option(CLIENT_ID, &id);
            option(PARAMETERS, &[SUBNET_MASK, ROUTER, DNS, DOMAIN_NAME, MTU, NTP, LEASE_TIME]);
        }
        if let Some(address) = self.requested {
            option(REQUESTED_ADDRESS, &address.octets());
        }
        if let Some(address) = self.server {
            option(SERVER, &address.octets());
        }
        if let Some(prefix) = self.prefix {
            option(SUBNET_MASK, &u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0).to_be_bytes());
        }
        if let Some(seconds) = self.lease_seconds {
            option(LEASE_TIME, &seconds.to_be_bytes());
        }
        for (code, addresses) in [(ROUTER, &self.routers), (DNS, &self.dns), (NTP, &self.ntp)] {
            if !addresses.is_empty() {
                option(code, &addresses.iter().flat_map(Ipv4Addr::octets).collect::<Vec<u8>>());
            }
        }
        for (code, name) in [(HOST_NAME, &self.hostname), (DOMAIN_NAME, &self.domain)] {
            if let Some(name) = name {
                option(code, name.as_bytes());
            }
        }
        if let Some(mtu) = self.mtu {
            option(MTU, &mtu.to_be_bytes());
        }
        bytes.push(END);
        if bytes.len() < SMALLEST {
            bytes.resize(SMALLEST, PAD);
        }
        bytes
    }

    /// `None` for whatever is no DHCP message. Options that are malformed are left out.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let four = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
        if bytes.get(HEADER..HEADER + 4)? != COOKIE || bytes[1] != 1 || bytes[2] != 6 {
            return None;
        }
        let reply = match bytes[0] {
            REQUEST => false,
            REPLY => true,
            _ => return None,
        };
        let options: Vec<(u8, &[u8])> = options(&bytes[HEADER + 4..]);
        let find = |code: u8| options.iter().find(|(other, _)| *other == code).map(|(_, value)| *value);
        let number = |code: u8| find(code).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
        let addresses = |code: u8| -> Vec<Ipv4Addr> {
            find(code).unwrap_or_default().chunks_exact(4).take(MAX_ADDRESSES).map(|a| Ipv4Addr::new(a[0], a[1], a[2], a[3])).collect()
        };
        let kind = find(MESSAGE_TYPE).and_then(|value| value.first()).copied().and_then(Kind::from_code)?;
        let mut message = Self::new(kind, u32::from_be_bytes(four(4)?), bytes.get(28..34)?.try_into().ok()?);
        message.reply = reply;
        message.client_address = Ipv4Addr::from(four(12)?);
        message.your_address = Ipv4Addr::from(four(16)?);
        message.requested = number(REQUESTED_ADDRESS).map(Ipv4Addr::from);
        message.server = number(SERVER).map(Ipv4Addr::from);
        message.prefix = number(SUBNET_MASK).and_then(prefix_of);
        message.lease_seconds = number(LEASE_TIME);
        message.routers = addresses(ROUTER);
        message.dns = addresses(DNS);
        message.ntp = addresses(NTP);
        message.hostname = find(HOST_NAME).and_then(name);
        message.domain = find(DOMAIN_NAME).and_then(name);
        message.mtu = find(MTU).and_then(|value| value.try_into().ok()).map(u16::from_be_bytes);
        Some(message)
    }
}

/// Code, length, value; stops at the end or at the first option that does not fit.
fn options(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    while let Some((&code, rest)) = bytes.split_first() {
        match code {
            PAD => bytes = rest,
            END => break,
            _ => {
                let Some((&length, rest)) = rest.split_first() else { break };
                let Some((value, rest)) = rest.split_at_checked(usize::from(length)) else { break };
                found.push((code, value));
                bytes = rest;
            }
        }
    }
    found
}

fn prefix_of(mask: u32) -> Option<u8> {
    (mask.leading_ones() == mask.count_ones()).then_some(mask.count_ones() as u8)
}

/// A DNS name, or nothing: it comes from the network and ends up in files.
fn name(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!text.is_empty() && text.len() <= 253 && text.chars().all(allowed)).then(|| text.to_owned())
}
