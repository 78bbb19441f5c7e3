//! A request and its answer over a SOCK_SEQPACKET unix socket. Blocking, bounded in time: call it from a blocking thread.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with};

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("connect to {0}")]
    Connect(PathBuf, #[source] io::Error),
    #[error("send a request to {0}")]
    Send(PathBuf, #[source] io::Error),
    #[error("receive the answer of {0}")]
    Receive(PathBuf, #[source] io::Error),
    #[error("{path} did not answer within {timeout:?}")]
    Timeout { path: PathBuf, timeout: Duration },
    #[error("the answer of {path} is larger than {limit} bytes")]
    TooLarge { path: PathBuf, limit: usize },
}

/// Connects, sends one packet, and returns the answering one, of at most `limit` bytes.
pub fn call(path: &Path, packet: &[u8], limit: usize, timeout: Duration) -> Result<Vec<u8>, CallError> {
    let failed = |variant: fn(PathBuf, io::Error) -> CallError| move |error: rustix::io::Errno| variant(path.to_owned(), error.into());
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed(CallError::Connect))?;
    let address = SocketAddrUnix::new(path).map_err(failed(CallError::Connect))?;
    connect(&socket, &address).map_err(failed(CallError::Connect))?;
    send(&socket, packet, SendFlags::NOSIGNAL).map_err(failed(CallError::Send))?;
    let time = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let ready = poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], Some(&time)).map_err(failed(CallError::Receive))?;
    if ready == 0 {
        return Err(CallError::Timeout { path: path.to_owned(), timeout });
    }
    let mut answer = vec![0; limit];
    let (_, size) = recv(&socket, &mut answer[..], RecvFlags::TRUNC).map_err(failed(CallError::Receive))?;
    match size {
        0 => Err(CallError::Receive(path.to_owned(), io::ErrorKind::UnexpectedEof.into())),
        size if size > limit => Err(CallError::TooLarge { path: path.to_owned(), limit }),
        size => {
            answer.truncate(size);
            Ok(answer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{accept, bind, listen};

    #[test]
    fn an_answer_comes_back_and_silence_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 4).unwrap();
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 16];
            let echo = accept(&listener).unwrap();
            let (_, size) = recv(&echo, &mut buffer[..], RecvFlags::empty()).unwrap();
            send(&echo, &buffer[..size], SendFlags::empty()).unwrap();
            let large = accept(&listener).unwrap();
            send(&large, &[0; 100], SendFlags::empty()).unwrap();
            let closed = accept(&listener).unwrap();
            drop(closed);
            let silent = accept(&listener).unwrap();
            (large, silent)
        });
        let short = Duration::from_millis(100);
        assert_eq!(call(&path, b"hello", 16, Duration::from_secs(5)).unwrap(), b"hello");
        assert!(matches!(call(&path, b"x", 16, Duration::from_secs(5)), Err(CallError::TooLarge { limit: 16, .. })));
        assert!(matches!(call(&path, b"x", 16, Duration::from_secs(5)), Err(CallError::Receive(..) | CallError::Send(..))));
        assert!(matches!(call(&path, b"x", 16, short), Err(CallError::Timeout { .. })));
        drop(server.join());
        assert!(matches!(call(&dir.path().join("none"), b"x", 16, short), Err(CallError::Connect(..))));
    }
}
