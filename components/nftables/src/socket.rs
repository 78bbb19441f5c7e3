//! The netlink socket that transactions go through.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::Batch;

/// Longest the kernel may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Largest transaction. A bigger one is refused before it is sent.
const MAX_BATCH: usize = 64 << 20;

/// Why a transaction did not take effect. None of it did.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The socket could not be made.
    #[error("open the netfilter netlink socket")]
    Open(#[source] Errno),
    /// The transaction is too large.
    #[error("send a transaction of {0} bytes: the limit is {MAX_BATCH}")]
    TooLarge(usize),
    /// It could not be sent.
    #[error("send the transaction to the kernel")]
    Send(#[source] Errno),
    /// No answer came.
    #[error("wait for the kernel's answer")]
    Receive(#[source] Errno),
    /// The kernel refused one of the operations.
    #[error("{operation}")]
    Refused {
        /// Which.
        operation: String,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// A netfilter netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens it in the current network namespace.
    pub fn open() -> Result<Self, CommitError> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
            .map_err(CommitError::Open)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(CommitError::Open)?;
        let wait = TimeVal::seconds(ANSWER_WITHIN.as_secs() as i64);
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait).map_err(CommitError::Open)?;
        setsockopt(&fd, sockopt::SendTimeout, &wait).map_err(CommitError::Open)?;
        Ok(Self { fd })
    }

    /// Commits a transaction; an empty one is not sent.
    pub fn commit(&mut self, batch: Batch) -> Result<(), CommitError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, operations, last) = batch.finish();
        if bytes.len() > MAX_BATCH {
            return Err(CommitError::TooLarge(bytes.len()));
        }
        self.drain();
        // Without CAP_NET_ADMIN in the first namespace the forced size is refused and the ordinary, capped one has to do.
        if setsockopt(&self.fd, sockopt::SndBufForce, &(2 * bytes.len())).is_err() {
            let _ = setsockopt(&self.fd, sockopt::SndBuf, &(2 * bytes.len()));
        }
        sendto(self.fd.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(CommitError::Send)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(CommitError::Receive)?,
            };
            for (sequence, errno) in answers(&buffer[..n]) {
                if errno != 0 {
                    let operation = operations.get(sequence as usize).cloned().unwrap_or_else(|| format!("message {sequence}"));
                    return Err(CommitError::Refused { operation, source: Errno::from_raw(errno) });
                }
                if sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Throws away answers to a transaction that failed before.
    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while matches!(recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT), Ok(n) if n > 0) {}
    }
}

/// The `NLMSG_ERROR` messages of a datagram: sequence number and errno (0 acknowledges).
fn answers(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let mut out = vec![];
    while let [a, b, c, d, kind0, kind1, _, _, s0, s1, s2, s3, ..] = *bytes {
        let len = u32::from_ne_bytes([a, b, c, d]) as usize;
        if len < 16 || len > bytes.len() {
            break;
        }
        if u16::from_ne_bytes([kind0, kind1]) == 2 && len >= 20 {
            let errno = i32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
            out.push((u32::from_ne_bytes([s0, s1, s2, s3]), errno.saturating_neg()));
        }
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::answers;

    proptest! {
        #[test]
        fn reading_answers_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answers(&bytes);
        }
    }

    #[test]
    fn an_error_and_an_acknowledgement_are_told_apart() {
        let message = |sequence: u32, errno: i32| {
            let mut m = vec![];
            m.extend(36u32.to_ne_bytes());
            m.extend(2u16.to_ne_bytes());
            m.extend(0u16.to_ne_bytes());
            m.extend(sequence.to_ne_bytes());
            m.extend(0u32.to_ne_bytes());
            m.extend(errno.to_ne_bytes());
            m.extend([0; 16]);
            m
        };
        assert_eq!(answers(&[message(3, -2), message(4, 0)].concat()), [(3, 2), (4, 0)]);
    }
}
