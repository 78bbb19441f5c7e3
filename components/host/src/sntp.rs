//! A question to a time server (SNTP, RFC 4330). Only the difference comes out; setting the clock is [`crate::clock`]'s.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;

use crate::clock::Offset;

/// The port of time servers.
pub const PORT: u16 = 123;

/// Seconds from 1900, where NTP begins, to 1970.
const ERA_OFFSET: u64 = 2_208_988_800;
const PACKET: usize = 48;

#[derive(Debug, thiserror::Error)]
pub enum SntpError {
    #[error("ask time server {0}")]
    Exchange(SocketAddr, #[source] io::Error),
    #[error("time server {server} did not answer within {timeout:?}")]
    Timeout { server: SocketAddr, timeout: Duration },
    #[error("answer of time server {server}: {reason}")]
    BadAnswer { server: SocketAddr, reason: &'static str },
}

/// What a server said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What to add to the wall clock.
    pub offset: Offset,
    /// The time the packets took; half of it bounds the error.
    pub delay: Duration,
    pub stratum: u8,
}

/// Asks a server once.
pub async fn query(server: SocketAddr, timeout: Duration) -> Result<Answer, SntpError> {
    let failed = |error| SntpError::Exchange(server, error);
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await.map_err(failed)?;
    // Connected, so that only this server's packets arrive.
    socket.connect(server).await.map_err(failed)?;
    let sent = now();
    socket.send(&request(sent)).await.map_err(failed)?;
    let mut buffer = [0; 128];
    let size = match tokio::time::timeout(timeout, socket.recv(&mut buffer)).await {
        Ok(received) => received.map_err(failed)?,
        Err(_) => return Err(SntpError::Timeout { server, timeout }),
    };
    evaluate(&buffer[..size], sent, now()).map_err(|reason| SntpError::BadAnswer { server, reason })
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Version 4, mode 3 (client), and our time, which the server sends back.
fn request(sent: Duration) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[0] = (4 << 3) | 3;
    packet[40..48].copy_from_slice(&to_ntp(sent).to_be_bytes());
    packet
}

/// The offset and the delay (RFC 4330, section 5). Times are those of the local clock since 1970.
fn evaluate(packet: &[u8], sent: Duration, received: Duration) -> Result<Answer, &'static str> {
    let packet = packet.get(..PACKET).ok_or("too short")?;
    let stamp = |at: usize| packet[at..at + 8].iter().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    if packet[0] & 7 != 4 {
        return Err("not from a server");
    }
    if packet[0] >> 6 == 3 {
        return Err("the server is not synchronised");
    }
    if !(1..=15).contains(&packet[1]) {
        return Err("the server refuses or has no time (stratum)");
    }
    if stamp(24) != to_ntp(sent) {
        return Err("not an answer to this question");
    }
    if stamp(40) == 0 {
        return Err("no transmit time");
    }
    let (t1, t2, t3, t4) = (nanos(sent), nanos(from_ntp(stamp(32))), nanos(from_ntp(stamp(40))), nanos(received));
    let offset = ((t2 - t1) + (t3 - t4)) / 2;
    let delay = ((t4 - t1) - (t3 - t2)).max(0);
    Ok(Answer {
        offset: Offset::from_nanos(i64::try_from(offset).map_err(|_| "the time is out of range")?),
        delay: Duration::from_nanos(u64::try_from(delay).map_err(|_| "the time is out of range")?),
        stratum: packet[1],
    })
}

fn nanos(time: Duration) -> i128 {
    time.as_nanos() as i128
}

/// 32 bits of seconds since 1900, 32 bits of fraction.
fn to_ntp(time: Duration) -> u64 {
    let seconds = (time.as_secs() + ERA_OFFSET) & 0xffff_ffff;
    let fraction = (u64::from(time.subsec_nanos()) << 32) / 1_000_000_000;
    (seconds << 32) | fraction
}

/// Times before 1970 belong to the era that begins in 2036 (RFC 4330, section 3).
fn from_ntp(stamp: u64) -> Duration {
    let seconds = stamp >> 32;
    let seconds = if seconds >= ERA_OFFSET { seconds - ERA_OFFSET } else { seconds + (1 << 32) - ERA_OFFSET };
    Duration::new(seconds, (((stamp & 0xffff_ffff) * 1_000_000_000) >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(sent: Duration, received_there: Duration, sent_there: Duration) -> [u8; PACKET] {
        let mut packet = [0; PACKET];
        packet[0] = (4 << 3) | 4;
        packet[1] = 2;
        packet[24..32].copy_from_slice(&to_ntp(sent).to_be_bytes());
        packet[32..40].copy_from_slice(&to_ntp(received_there).to_be_bytes());
        packet[40..48].copy_from_slice(&to_ntp(sent_there).to_be_bytes());
        packet
    }

    fn millis(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn offset_and_delay_are_those_of_the_rfc() {
        let base = 1_800_000_000_000;
        // We are 10 s behind; 30 ms there, 5 ms inside, 30 ms back.
        let packet = answer(millis(base), millis(base + 10_030), millis(base + 10_035));
        let result = evaluate(&packet, millis(base), millis(base + 65)).unwrap();
        assert!(!result.offset.negative);
        assert!(result.offset.magnitude.abs_diff(millis(10_000)) < millis(1), "{result:?}");
        assert!(result.delay.abs_diff(millis(60)) < millis(1), "{result:?}");
    }

    #[test]
    fn bad_answers_are_refused() {
        let sent = millis(1_800_000_000_000);
        let good = answer(sent, sent, sent);
        let changed = |at: usize, value: u8| {
            let mut packet = good;
            packet[at] = value;
            packet
        };
        assert!(evaluate(&good, sent, sent).is_ok());
        for (packet, reason) in [
            (changed(0, (4 << 3) | 3), "not from a server"),
            (changed(0, 0b1110_0100), "the server is not synchronised"),
            (changed(1, 0), "the server refuses or has no time (stratum)"),
            (changed(1, 16), "the server refuses or has no time (stratum)"),
            (changed(24, 0), "not an answer to this question"),
        ] {
            assert_eq!(evaluate(&packet, sent, sent), Err(reason));
        }
        assert_eq!(evaluate(&good[..47], sent, sent), Err("too short"));
    }

    #[tokio::test]
    async fn a_server_on_loopback_is_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            let (_, client) = server.recv_from(&mut buffer).await.unwrap();
            let ahead = now() + Duration::from_secs(100);
            let mut packet = answer(Duration::ZERO, ahead, ahead);
            packet[24..32].copy_from_slice(&buffer[40..48]);
            server.send_to(&packet, client).await.unwrap();
        });
        let result = query(address, Duration::from_secs(5)).await.unwrap();
        assert!(result.offset.magnitude.abs_diff(Duration::from_secs(100)) < Duration::from_secs(2), "{result:?}");
    }

    proptest! {
        #[test]
        fn stamps_survive_and_no_packet_panics(nanos in 0u64..4_000_000_000_000_000_000, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let time = Duration::from_nanos(nanos);
            prop_assert!(from_ntp(to_ntp(time)).abs_diff(time) < Duration::from_nanos(2));
            let _ = evaluate(&bytes, time, time);
        }
    }
}
