//! The wire between the machines: a small learning Ethernet switch over unix stream sockets, in QEMU's framing (a 32-bit big-endian
//! length before each frame). It is a process or a thread of its own, so it survives any machine. A peer that stops reading is cut off
//! after [`STALL`] and comes back by reconnecting; nobody else waits for it longer than that.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, FileContext};

const STALL: Duration = Duration::from_millis(500);
/// Larger than any Ethernet frame with offloads (64 KiB and headers).
const MAX_FRAME: usize = 70_000;
const MAX_PEERS: usize = 64;
/// Addresses remembered; when full, forgotten all at once and learned again.
const MAX_ADDRESSES: usize = 4096;

type Mac = [u8; 6];

/// Listens on `socket` and serves until the process ends.
pub fn serve(socket: &Path) -> Result<(), Error> {
    let listener = bind(socket)?;
    accept_all(&listener, socket)
}

/// The same in a thread of this process.
pub fn spawn(socket: &Path) -> Result<(), Error> {
    let listener = bind(socket)?;
    let socket = socket.to_owned();
    std::thread::spawn(move || accept_all(&listener, &socket));
    Ok(())
}

fn bind(socket: &Path) -> Result<UnixListener, Error> {
    if socket.exists() {
        std::fs::remove_file(socket).on("remove", socket)?;
    }
    UnixListener::bind(socket).on("listen on", socket)
}

fn accept_all(listener: &UnixListener, socket: &Path) -> Result<(), Error> {
    let fabric = Arc::new(Mutex::new(Fabric::default()));
    loop {
        let (stream, _) = listener.accept().on("accept on", socket)?;
        stream.set_write_timeout(Some(STALL)).on("set up a peer of", socket)?;
        let sender = stream.try_clone().on("share a peer of", socket)?;
        let Some(port) = locked(&fabric).attach(Arc::new(Mutex::new(sender))) else { continue };
        let fabric = fabric.clone();
        std::thread::spawn(move || {
            pump(port, stream, &fabric);
            locked(&fabric).detach(port);
        });
    }
}

/// Reads frames from one peer and hands them on until the peer is gone.
fn pump(port: u64, stream: UnixStream, fabric: &Mutex<Fabric<Arc<Mutex<UnixStream>>>>) {
    let mut reader = BufReader::new(stream);
    let mut header = [0; 4];
    let mut packet = Vec::new();
    while reader.read_exact(&mut header).is_ok() {
        let length = u32::from_be_bytes(header) as usize;
        if length > MAX_FRAME {
            return;
        }
        packet.clear();
        packet.extend_from_slice(&header);
        packet.resize(4 + length, 0);
        if reader.read_exact(&mut packet[4..]).is_err() {
            return;
        }
        let targets = locked(fabric).route(port, &packet[4..]);
        for (target, peer) in targets {
            let mut stream = locked(&peer);
            if stream.write_all(&packet).is_err() {
                // A frame may have been written in part; only a new connection is in step again.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                drop(stream);
                locked(fabric).detach(target);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which peer is behind which address.
struct Fabric<Peer> {
    next: u64,
    peers: HashMap<u64, Peer>,
    addresses: HashMap<Mac, u64>,
}

impl<Peer> Default for Fabric<Peer> {
    fn default() -> Self {
        Self { next: 0, peers: HashMap::new(), addresses: HashMap::new() }
    }
}

impl<Peer: Clone> Fabric<Peer> {
    /// A new port; none when all are taken.
    fn attach(&mut self, peer: Peer) -> Option<u64> {
        if self.peers.len() >= MAX_PEERS {
            return None;
        }
        self.next += 1;
        self.peers.insert(self.next, peer);
        Some(self.next)
    }

    fn detach(&mut self, port: u64) {
        self.peers.remove(&port);
        self.addresses.retain(|_, known| *known != port);
    }

    /// Learns the sender's port and says who gets the frame: the known owner of the destination, or everybody else.
    fn route(&mut self, from: u64, frame: &[u8]) -> Vec<(u64, Peer)> {
        let (Some(destination), Some(source)) = (mac(frame, 0), mac(frame, 6)) else { return Vec::new() };
        if is_unicast(&source) {
            if self.addresses.len() >= MAX_ADDRESSES {
                self.addresses.clear();
            }
            self.addresses.insert(source, from);
        }
        match self.addresses.get(&destination) {
            Some(port) if *port == from => Vec::new(),
            Some(port) => self.peers.get(port).map(|peer| (*port, peer.clone())).into_iter().collect(),
            None => self.peers.iter().filter(|(port, _)| **port != from).map(|(port, peer)| (*port, peer.clone())).collect(),
        }
    }
}

fn mac(frame: &[u8], offset: usize) -> Option<Mac> {
    frame.get(offset..offset + 6)?.try_into().ok()
}

fn is_unicast(mac: &Mac) -> bool {
    mac[0] & 1 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    const ALL: Mac = [255; 6];

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        [&to[..], &from, b"payload"].concat()
    }

    #[test]
    fn frames_go_to_the_learned_port_or_to_everybody_else() {
        let mut fabric = Fabric::default();
        let ports: Vec<u64> = ["a", "b", "c"].iter().map(|name| fabric.attach(*name).unwrap()).collect();
        let mut who = |from: usize, to: Mac, source: Mac| {
            let mut names: Vec<&str> = fabric.route(ports[from], &frame(to, source)).iter().map(|(_, name)| *name).collect();
            names.sort();
            names.join("")
        };
        for (from, to, source, expected) in [
            (0, B, A, "bc"),
            (1, A, B, "a"),
            (0, B, A, "b"),
            (2, ALL, [2, 0, 0, 0, 0, 3], "ab"),
            (2, A, A, ""), // the machine moved to another port: nothing goes back out where it came in
            (1, A, B, "c"),
            (0, ALL, ALL, "bc"),
        ] {
            assert_eq!(who(from, to, source), expected, "from {from} to {to:?}");
        }
        fabric.detach(ports[2]);
        assert_eq!(fabric.route(ports[1], &frame(A, B)).len(), 1, "a gone port's addresses are forgotten");
        assert!(fabric.route(ports[1], &[0; 11]).is_empty(), "a runt frame goes nowhere");
    }

    #[test]
    fn frames_cross_real_sockets_and_a_peer_can_come_back() {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("switch");
        spawn(&socket).unwrap();
        let send = |stream: &mut UnixStream, frame: &[u8]| {
            stream.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
            stream.write_all(frame).unwrap();
        };
        let receive = |stream: &mut UnixStream| {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut header = [0; 4];
            stream.read_exact(&mut header).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(header) as usize];
            stream.read_exact(&mut frame).unwrap();
            frame
        };
        let mut a = UnixStream::connect(&socket).unwrap();
        for _ in 0..2 {
            let mut b = UnixStream::connect(&socket).unwrap();
            // The switch has attached b once a's answer to b's broadcast arrives; until then a repeats nothing.
            send(&mut b, &frame(ALL, B));
            assert_eq!(receive(&mut a), frame(ALL, B));
            send(&mut a, &frame(B, A));
            assert_eq!(receive(&mut b), frame(B, A));
        }
    }
}
