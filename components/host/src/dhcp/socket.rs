//! UDP over IPv4 by hand on a packet socket (packet(7)), because a link without an address has no UDP of its own.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub const CLIENT_PORT: u16 = 68;
pub const SERVER_PORT: u16 = 67;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;

/// Sends and receives the UDP payloads of a DHCP client on one link.
pub struct PacketSocket {
    fd: OwnedFd,
    link: u32,
}

impl PacketSocket {
    pub fn open(link: u32) -> io::Result<Self> {
        let protocol = (libc::ETH_P_IP as u16).to_be();
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, i32::from(protocol)) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = Self::address(link);
        // SAFETY: the address is a complete sockaddr_ll of the given size and outlives the call.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, link })
    }

    fn address(link: u32) -> libc::sockaddr_ll {
        libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_IP as u16).to_be(),
            sll_ifindex: link as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        }
    }

    /// From 0.0.0.0:68 to 255.255.255.255:67.
    pub fn broadcast(&self, payload: &[u8]) -> io::Result<()> {
        let packet = wrap(payload, [0; 4], CLIENT_PORT, SERVER_PORT);
        let address = Self::address(self.link);
        // SAFETY: both pointers are to live memory of the given sizes, which the kernel only reads.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next payload for a DHCP client; `None` when the time is over.
    pub fn receive(&self, until: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0; 2048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(size) => {
                    if let Some(payload) = unwrap(&buffer[..size], CLIENT_PORT) {
                        return Ok(Some(payload.to_vec()));
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }
}

/// IPv4 (RFC 791) and UDP (RFC 768) around a payload, to the broadcast address.
pub fn wrap(payload: &[u8], source: [u8; 4], from: u16, to: u16) -> Vec<u8> {
    let udp_length = (UDP_HEADER + payload.len()) as u16;
    let mut packet = vec![0; IP_HEADER + UDP_HEADER];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(IP_HEADER as u16 + udp_length).to_be_bytes());
    packet[8] = 64;
    packet[9] = UDP;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&[255; 4]);
    let sum = checksum(&packet[..IP_HEADER], 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..22].copy_from_slice(&from.to_be_bytes());
    packet[22..24].copy_from_slice(&to.to_be_bytes());
    packet[24..26].copy_from_slice(&udp_length.to_be_bytes());
    packet.extend_from_slice(payload);
    let pseudo = checksum_add(&packet[12..20], 0) + u32::from(UDP) + u32::from(udp_length);
    let sum = match checksum(&packet[IP_HEADER..], pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The payload of a UDP packet to this port. Its checksum is left to the message's own checks: virtual links often have none yet.
pub fn unwrap(packet: &[u8], port: u16) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let fragmented = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x3fff != 0;
    if packet[0] >> 4 != 4 || header < IP_HEADER || fragmented || *packet.get(9)? != UDP {
        return None;
    }
    let udp = packet.get(header..)?;
    let field = |at: usize| -> Option<u16> { Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?)) };
    if field(2)? != port {
        return None;
    }
    udp.get(UDP_HEADER..usize::from(field(4)?))
}

fn checksum_add(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
}

/// RFC 1071.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = checksum_add(bytes, start);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
