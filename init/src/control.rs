//! init's control socket: who may connect, and the packets. What a request does is the event loop's.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use node_ipc::init::{ErrorCode, Request, Response};
use node_ipc::{MAX_PACKET, decode, encode_packet};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv, send, socket_with,
    sockopt,
};

use crate::report;

const MAX_CONNECTIONS: usize = 8;
const MAX_WORDS: usize = 256;

/// The listener and its connections.
pub struct Control {
    listener: OwnedFd,
    connections: Vec<OwnedFd>,
}

impl Control {
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let _ = fs::remove_file(path);
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        bind(&listener, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&listener, MAX_CONNECTIONS as i32)?;
        Ok(Self { listener, connections: Vec::new() })
    }

    /// What to poll for reading.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        std::iter::once(self.listener.as_fd()).chain(self.connections.iter().map(|connection| connection.as_fd()))
    }

    /// Takes what is there: new connections, and one request of each.
    pub fn serve(&mut self, mut handle: impl FnMut(Request) -> Response) {
        while let Ok(connection) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            match sockopt::socket_peercred(&connection) {
                Ok(peer) if peer.uid.is_root() => {}
                _ => continue,
            }
            if self.connections.len() == MAX_CONNECTIONS {
                // The longest-standing one is the likeliest to be forgotten.
                self.connections.remove(0);
            }
            self.connections.push(connection);
        }
        let mut buffer = vec![0; MAX_PACKET];
        self.connections.retain(|connection| match recv(connection, &mut buffer[..], RecvFlags::TRUNC) {
            Ok((_, 0)) => false,
            Ok((_, size)) => answer(connection, &response(buffer.get(..size), &mut handle)),
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        });
    }
}

/// `packet` is `None` when it was larger than the buffer.
fn response(packet: Option<&[u8]>, handle: &mut impl FnMut(Request) -> Response) -> Response {
    let bad = |message: String| Response::Error { code: ErrorCode::BadRequest, message };
    let Some(packet) = packet else { return bad(format!("a request has at most {MAX_PACKET} bytes")) };
    match decode::<Request>(packet) {
        Ok(request) => match check(&request) {
            Ok(()) => handle(request),
            Err(message) => bad(message),
        },
        Err(error) => bad(report::chain(&error)),
    }
}

/// What cannot be passed to execve(2).
fn check(request: &Request) -> Result<(), String> {
    let Request::Start { args, env, .. } = request else { return Ok(()) };
    if args.len() > MAX_WORDS || env.len() > MAX_WORDS {
        return Err(format!("at most {MAX_WORDS} arguments and variables"));
    }
    if args.iter().chain(env.iter().map(|variable| &variable.value)).any(|word| word.contains('\0')) {
        return Err("an argument or a variable holds a NUL byte".to_owned());
    }
    if let Some(variable) = env.iter().find(|variable| variable.name.is_empty() || variable.name.contains(['=', '\0'])) {
        return Err(format!("{:?} is no name of a variable", variable.name));
    }
    Ok(())
}

/// Says whether the connection stays.
fn answer(connection: &OwnedFd, response: &Response) -> bool {
    encode_packet(response).is_ok_and(|packet| send(connection, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_ipc::init::EnvVar;

    fn reply(packet: Option<&[u8]>) -> Response {
        response(packet, &mut |_| Response::Done)
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_reason() {
        let nul = Request::Start { name: "kubelet".into(), args: vec!["a\0b".into()], env: Vec::new() };
        let equals =
            Request::Start { name: "kubelet".into(), args: Vec::new(), env: vec![EnvVar { name: "A=B".into(), value: String::new() }] };
        let many = Request::Start { name: "kubelet".into(), args: vec![String::new(); MAX_WORDS + 1], env: Vec::new() };
        let packets = [nul, equals, many].map(|request| encode_packet(&request).unwrap());
        for packet in packets.iter().map(Vec::as_slice).chain([&b"{"[..], b"", b"{\"op\":\"explode\"}"]) {
            assert!(matches!(reply(Some(packet)), Response::Error { code: ErrorCode::BadRequest, .. }), "{packet:?}");
        }
        assert!(matches!(reply(None), Response::Error { code: ErrorCode::BadRequest, .. }));
        assert_eq!(reply(Some(br#"{"op":"list"}"#)), Response::Done);
    }

    #[test]
    fn a_client_is_answered_and_a_closed_one_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init.sock");
        let mut control = Control::bind(&path).unwrap();
        let connect = || {
            let client = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            rustix::net::connect(&client, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            client
        };
        let client = connect();
        send(&client, &encode_packet(&Request::List).unwrap(), SendFlags::empty()).unwrap();
        control.serve(|request| {
            assert_eq!(request, Request::List);
            Response::Services { services: Vec::new() }
        });
        let mut buffer = vec![0; MAX_PACKET];
        let (_, size) = recv(&client, &mut buffer[..], RecvFlags::empty()).unwrap();
        assert_eq!(decode::<Response>(&buffer[..size]).unwrap(), Response::Services { services: Vec::new() });

        drop(client);
        control.serve(|_| Response::Done);
        assert_eq!(control.fds().count(), 1);

        let _clients: Vec<OwnedFd> = (0..MAX_CONNECTIONS)
            .map(|_| {
                let client = connect();
                control.serve(|_| Response::Done);
                client
            })
            .collect();
        let _one_more = connect();
        control.serve(|_| Response::Done);
        assert_eq!(control.fds().count(), 1 + MAX_CONNECTIONS);
    }
}
