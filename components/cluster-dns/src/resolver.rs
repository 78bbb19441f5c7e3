//! Forwarding to the resolvers of `resolv.conf`, with a bounded cache and a bound on questions under way.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::message::{Resolved, forwarded, resolved};

/// Time for one resolver to answer.
const WAIT: Duration = Duration::from_secs(2);
/// Answers kept; when full, those that ended are dropped, then all.
const CACHE: usize = 4096;
/// Longest time an answer is kept, whatever it says.
const KEEP_AT_MOST: u32 = 300;
/// Questions under way; more are refused at once.
const MAX_UNDER_WAY: usize = 256;

type Key = (String, RecordType);

/// The resolvers beyond the cluster.
pub struct Resolver {
    servers: Vec<SocketAddr>,
    cache: Mutex<HashMap<Key, (Instant, Arc<Resolved>)>>,
    under_way: Semaphore,
}

/// `nameserver` lines of a `resolv.conf`; other lines do not matter here.
pub fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let words = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim);
    words.filter_map(|address| address.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, 53)).take(3).collect()
}

impl Resolver {
    /// Asks these servers, in order.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, cache: Mutex::default(), under_way: Semaphore::new(MAX_UNDER_WAY) }
    }

    /// The answer of the cache or of the first server that has one; `None` when none answers.
    pub async fn resolve(&self, name: &str, kind: RecordType) -> Option<Arc<Resolved>> {
        let key = (name.to_string(), kind);
        if let Some(kept) = self.kept(&key) {
            return Some(kept);
        }
        let _permit = self.under_way.try_acquire().ok()?;
        for server in &self.servers {
            match tokio::time::timeout(WAIT, ask(*server, name, kind)).await {
                Ok(Ok(Some(answer))) => {
                    let answer = Arc::new(answer);
                    self.keep(key, &answer);
                    return Some(answer);
                }
                Ok(Ok(None)) | Err(_) => tracing::debug!(%server, name, "no usable answer"),
                Ok(Err(error)) => tracing::debug!(%server, name, %error, "asking failed"),
            }
        }
        None
    }

    fn kept(&self, key: &Key) -> Option<Arc<Resolved>> {
        let cache = self.cache.lock();
        let (until, answer) = cache.get(key)?;
        (*until > Instant::now()).then(|| Arc::clone(answer))
    }

    fn keep(&self, key: Key, answer: &Arc<Resolved>) {
        let ttl = answer.ttl().min(KEEP_AT_MOST);
        if ttl == 0 {
            return;
        }
        let mut cache = self.cache.lock();
        let now = Instant::now();
        if cache.len() >= CACHE {
            cache.retain(|_, (until, _)| *until > now);
        }
        if cache.len() >= CACHE {
            cache.clear();
        }
        cache.insert(key, (now + Duration::from_secs(u64::from(ttl)), Arc::clone(answer)));
    }
}

async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> std::io::Result<Option<Resolved>> {
    let id = rand::random();
    let Some(question) = forwarded(name, kind, id) else { return Ok(None) };
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    // A fresh socket per question gives a fresh port: together with the id, 32 bits an outsider has to guess.
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut buffer = vec![0; 4096];
    let answer = loop {
        let n = socket.recv(&mut buffer).await?;
        if let Some(answer) = resolved(&buffer[..n], id, name, kind) {
            break answer;
        }
    };
    if !answer.truncated {
        return Ok(Some(answer));
    }
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&(question.len() as u16).to_be_bytes()).await?;
    stream.write_all(&question).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    Ok(resolved(&buffer, id, name, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_bounded() {
        let text = "# c\nsearch a b\nnameserver 10.5.0.3\nnameserver  fd00::1\nnameserver nonsense\noptions ndots:5\nnameserver 1.1.1.1\nnameserver 2.2.2.2\n";
        let servers: Vec<_> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.5.0.3:53", "[fd00::1]:53", "1.1.1.1:53"]);
    }
}
