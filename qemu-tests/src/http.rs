//! The smallest HTTP client that can ask a workload for a page over a forwarded port.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{Error, FileContext};

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BYTES: u64 = 1 << 20;

/// The body of a page on the host's loopback; anything but a 200 is an error.
pub fn get(port: u16, path: &str) -> Result<String, Error> {
    let place = format!("http://127.0.0.1:{port}{path}");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).on("connect to", &place)?;
    stream.set_read_timeout(Some(TIMEOUT)).on("set up", &place)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").on("ask", &place)?;
    let mut bytes = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut bytes).on("read", &place)?;
    body(&String::from_utf8_lossy(&bytes)).map_err(|found| Error::Unexpected { what: place, expected: "HTTP status 200".into(), found })
}

fn body(answer: &str) -> Result<String, String> {
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(if status.is_empty() { "no answer".into() } else { status.to_owned() });
    }
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).ok_or_else(|| "an answer without end of headers".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_200_has_a_body() {
        for (answer, expected) in [
            ("HTTP/1.0 200 OK\r\nA: b\r\n\r\npage\n", Ok("page\n")),
            ("HTTP/1.1 503 Busy\r\n\r\nno", Err("HTTP/1.1 503 Busy")),
            ("", Err("no answer")),
            ("HTTP/1.1 200 OK\r\n", Err("an answer without end of headers")),
        ] {
            assert_eq!(body(answer), expected.map(str::to_owned).map_err(str::to_owned), "{answer:?}");
        }
    }
}
