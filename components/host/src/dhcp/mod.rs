//! A small DHCPv4 client (RFC 2131, 2132): discover, offer, request, acknowledge, and renewing. It asks by broadcast only, over
//! a packet socket, so it works on a link that has no address yet. It changes nothing on the host: the lease is a value, and
//! putting it on the link is [`crate::net`]'s.
//!
//! Blocking: call it from a blocking thread.

mod message;
mod socket;

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use message::{Kind, Message};
use socket::PacketSocket;

/// The link to ask on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    pub mac: [u8; 6],
}

/// What a server gave us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Net,
    pub server: Ipv4Addr,
    pub routers: Vec<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub hostname: Option<String>,
    pub domain: Option<String>,
    pub mtu: Option<u16>,
    /// How long the address is ours; [`Duration::MAX`] for ever.
    pub duration: Duration,
}

impl Lease {
    /// When to renew it (RFC 2131, 4.4.5).
    pub fn renew_after(&self) -> Duration {
        if self.duration == Duration::MAX { self.duration } else { self.duration / 2 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    #[error("open a packet socket on {0}")]
    Open(String, #[source] io::Error),
    #[error("send on {0}")]
    Send(String, #[source] io::Error),
    #[error("receive on {0}")]
    Receive(String, #[source] io::Error),
    #[error("no DHCP server answered on {link} within {waited:?}")]
    NoAnswer { link: String, waited: Duration },
    #[error("the DHCP server refused {address}")]
    Refused { address: Ipv4Addr },
}

const FIRST_TRY: Duration = Duration::from_secs(2);
const LONGEST_TRY: Duration = Duration::from_secs(16);

/// Gets an address. `hostname` is told to the server, `transaction` should be random.
pub fn acquire(link: &Link, hostname: Option<&str>, transaction: u32, timeout: Duration) -> Result<Lease, DhcpError> {
    let mut exchange = Exchange::open(link, hostname, transaction, timeout)?;
    loop {
        let offer = exchange.ask(&Message::discover(transaction, link.mac, hostname), Kind::Offer)?;
        let Some(server) = offer.server else { continue };
        let request = Message::request(transaction, link.mac, hostname, offer.your_address, Some(server));
        match exchange.ask(&request, Kind::Ack) {
            Ok(answer) => {
                if let Some(lease) = answer.lease() {
                    return Ok(lease);
                }
            }
            // Somebody else took it in between; ask anew within the same deadline.
            Err(DhcpError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Asks any server for more time with an address that we use.
pub fn renew(link: &Link, hostname: Option<&str>, lease: &Lease, transaction: u32, timeout: Duration) -> Result<Lease, DhcpError> {
    let mut exchange = Exchange::open(link, hostname, transaction, timeout)?;
    let mut request = Message::request(transaction, link.mac, hostname, lease.address.addr(), None);
    request.rebinding(lease.address.addr());
    exchange
        .ask(&request, Kind::Ack)
        .and_then(|answer| answer.lease().ok_or_else(|| DhcpError::NoAnswer { link: link.name.clone(), waited: timeout }))
}

struct Exchange {
    socket: PacketSocket,
    link: String,
    started: Instant,
    timeout: Duration,
    wait: Duration,
    mac: [u8; 6],
    transaction: u32,
}

impl Exchange {
    fn open(link: &Link, _hostname: Option<&str>, transaction: u32, timeout: Duration) -> Result<Self, DhcpError> {
        let socket = PacketSocket::open(link.index).map_err(|error| DhcpError::Open(link.name.clone(), error))?;
        Ok(Self { socket, link: link.name.clone(), started: Instant::now(), timeout, wait: FIRST_TRY, mac: link.mac, transaction })
    }

    /// Sends, and again with growing pauses, until the wanted answer comes or the time is over.
    fn ask(&mut self, question: &Message, wanted: Kind) -> Result<Message, DhcpError> {
        loop {
            let left = self.timeout.saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return Err(DhcpError::NoAnswer { link: self.link.clone(), waited: self.timeout });
            }
            self.socket.broadcast(&question.encode()).map_err(|error| DhcpError::Send(self.link.clone(), error))?;
            let until = Instant::now() + self.wait.min(left);
            while let Some(payload) = self.socket.receive(until).map_err(|error| DhcpError::Receive(self.link.clone(), error))? {
                let Some(answer) = Message::decode(&payload) else { continue };
                if !answer.answers(self.transaction, self.mac) {
                    continue;
                }
                if answer.kind == Kind::Nak && wanted == Kind::Ack {
                    return Err(DhcpError::Refused { address: question.asked_address() });
                }
                if answer.kind == wanted {
                    self.wait = FIRST_TRY;
                    return Ok(answer);
                }
            }
            self.wait = (self.wait * 2).min(LONGEST_TRY);
        }
    }
}

#[cfg(test)]
mod tests;
