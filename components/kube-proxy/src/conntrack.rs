//! UDP has no end of a connection: the kernel goes on sending a flow to the endpoint it first chose, also after that endpoint is gone.
//!
//! So flows to a service whose answers come from somewhere that is no endpoint of it (any more) are removed from the connection tracking table
//! (kernel UAPI `linux/netfilter/nfnetlink_conntrack.h`). Deciding is pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nftables::Family;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::services::Forward;

const UDP: u8 = 17;
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

/// One tracked flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Layer 4 protocol.
    pub protocol: u8,
    /// Where the client sent it.
    pub destination: SocketAddr,
    /// Who answers.
    pub answers_from: SocketAddr,
    /// The original tuple's attribute, which names the flow when it is deleted.
    tuple: Vec<u8>,
}

/// Connection tracking could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// Socket.
    #[error("open the connection tracking socket")]
    Open(#[source] Errno),
    /// Dump.
    #[error("list tracked connections")]
    List(#[source] Errno),
    /// Delete.
    #[error("remove the tracked connection to {0}")]
    Delete(SocketAddr, #[source] Errno),
}

/// The flows that no longer lead to an endpoint of the service they were sent to. Flows to addresses that are no service's are left alone.
pub fn stale<'a>(flows: &'a [Flow], forwards: &[Forward], node_addresses: &[IpAddr]) -> Vec<&'a Flow> {
    let mut endpoints: BTreeMap<SocketAddr, &Forward> = BTreeMap::new();
    for f in forwards.iter().filter(|f| f.protocol == UDP) {
        let addresses = std::iter::once(&f.cluster_ip).chain(&f.external_ips).chain(&f.load_balancer_ips);
        endpoints.extend(addresses.map(|a| (SocketAddr::new(*a, f.port), f)));
        endpoints.extend(f.node_port.into_iter().flat_map(|port| node_addresses.iter().map(move |a| (SocketAddr::new(*a, port), f))));
    }
    flows
        .iter()
        .filter(|flow| flow.protocol == UDP && endpoints.get(&flow.destination).is_some_and(|f| !f.endpoints.contains(&flow.answers_from)))
        .collect()
}

/// Attributes of a buffer: type without flags, and value. Stops at the first that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *bytes else { return None };
        let len = usize::from(u16::from_ne_bytes([a, b]));
        if len < 4 || len > bytes.len() {
            return None;
        }
        let value = &bytes[4..len];
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// (protocol, source, destination) of a tuple.
fn tuple(bytes: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (ip, proto) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
    let either = |a, b| attribute(ip, a).or_else(|| attribute(ip, b)).and_then(address);
    let number = *attribute(proto, 1)?.first()?;
    let source = SocketAddr::new(either(1, 3)?, port(attribute(proto, 2)?)?);
    let destination = SocketAddr::new(either(2, 4)?, port(attribute(proto, 3)?)?);
    Some((number, source, destination))
}

/// A flow from the attributes of a conntrack message; `None` for protocols without ports.
fn flow(bytes: &[u8]) -> Option<Flow> {
    let (original, reply) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
    let (protocol, _, destination) = tuple(original)?;
    let (_, answers_from, _) = tuple(reply)?;
    Some(Flow { protocol, destination, answers_from, tuple: original.to_vec() })
}

/// The connection tracking table of the current network namespace.
pub struct Conntrack {
    fd: OwnedFd,
    family: Family,
}

enum Answer {
    Flow(Option<Flow>),
    Done,
    Error(i32),
}

impl Conntrack {
    /// Opens it.
    pub fn open(family: Family) -> Result<Self, ConntrackError> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
            .map_err(ConntrackError::Open)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(ConntrackError::Open)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10)).map_err(ConntrackError::Open)?;
        Ok(Self { fd, family })
    }

    /// Removes what [`stale`] finds; gives how many.
    pub fn remove_stale(&mut self, forwards: &[Forward], node_addresses: &[IpAddr]) -> Result<usize, ConntrackError> {
        if !forwards.iter().any(|f| f.protocol == UDP) {
            return Ok(0);
        }
        let flows = self.list()?;
        let stale = stale(&flows, forwards, node_addresses);
        for flow in &stale {
            self.delete(flow)?;
        }
        Ok(stale.len())
    }

    fn list(&mut self) -> Result<Vec<Flow>, ConntrackError> {
        self.send(GET, DUMP, &[]).map_err(ConntrackError::List)?;
        let mut flows = vec![];
        loop {
            for answer in self.receive().map_err(ConntrackError::List)? {
                match answer {
                    Answer::Flow(flow) => flows.extend(flow.filter(|f| f.protocol == UDP)),
                    Answer::Done => return Ok(flows),
                    Answer::Error(errno) => return Err(ConntrackError::List(Errno::from_raw(errno))),
                }
            }
        }
    }

    fn delete(&mut self, flow: &Flow) -> Result<(), ConntrackError> {
        let failed = |errno| ConntrackError::Delete(flow.destination, errno);
        let mut body = ((flow.tuple.len() + 4) as u16).to_ne_bytes().to_vec();
        body.extend((1u16 | 0x8000).to_ne_bytes());
        body.extend(&flow.tuple);
        self.send(DELETE, ACK, &body).map_err(failed)?;
        loop {
            for answer in self.receive().map_err(failed)? {
                if let Answer::Error(errno) = answer {
                    // It ended by itself meanwhile: as good.
                    return if errno == 0 || errno == Errno::ENOENT as i32 { Ok(()) } else { Err(failed(Errno::from_raw(errno))) };
                }
            }
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> nix::Result<()> {
        let mut message = (20 + body.len() as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([self.family.number(), 0, 0, 0]);
        message.extend(body);
        sendto(self.fd.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map(drop)
    }

    fn receive(&self) -> nix::Result<Vec<Answer>> {
        let mut buffer = vec![0; 64 << 10];
        let n = loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        Ok(answers(&buffer[..n]))
    }
}

fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut out = vec![];
    while let [a, b, c, d, kind0, kind1, ..] = *bytes {
        let len = u32::from_ne_bytes([a, b, c, d]) as usize;
        if len < 16 || len > bytes.len() {
            break;
        }
        match u16::from_ne_bytes([kind0, kind1]) {
            2 if len >= 20 => out.push(Answer::Error(i32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]).saturating_neg())),
            3 => out.push(Answer::Done),
            _ if len >= 20 => out.push(Answer::Flow(flow(&bytes[20..len]))),
            _ => {}
        }
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn flow_of(destination: &str, answers_from: &str) -> Flow {
        Flow { protocol: UDP, destination: destination.parse().unwrap(), answers_from: answers_from.parse().unwrap(), tuple: vec![] }
    }

    #[test]
    fn only_flows_of_services_that_lead_nowhere_are_stale() {
        let forward = Forward {
            key: "d/dns/udp/".into(),
            protocol: UDP,
            cluster_ip: [10, 96, 0, 10].into(),
            port: 53,
            node_port: Some(30053),
            external_ips: BTreeSet::new(),
            load_balancer_ips: BTreeSet::new(),
            source_ranges: vec![],
            affinity_seconds: None,
            internal_local: false,
            external_local: false,
            endpoints: BTreeSet::from(["10.244.0.2:53".parse().unwrap()]),
            local_endpoints: BTreeSet::new(),
        };
        let flows = [
            flow_of("10.96.0.10:53", "10.244.0.2:53"),
            flow_of("10.96.0.10:53", "10.244.0.9:53"),
            // Sent while there was no endpoint: answered by nobody but the address itself.
            flow_of("10.96.0.10:53", "10.96.0.10:53"),
            flow_of("10.5.0.11:30053", "10.244.0.9:53"),
            flow_of("10.5.0.12:30053", "10.244.0.9:53"),
            flow_of("8.8.8.8:53", "8.8.8.8:53"),
        ];
        let found = stale(&flows, std::slice::from_ref(&forward), &[[10, 5, 0, 11].into()]);
        assert_eq!(found, [&flows[1], &flows[2], &flows[3]]);
        assert_eq!(stale(&flows, &[Forward { protocol: 6, ..forward }], &[]), Vec::<&Flow>::new());
    }

    proptest! {
        #[test]
        fn reading_answers_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = answers(&bytes);
            let _ = flow(&bytes);
        }
    }
}
