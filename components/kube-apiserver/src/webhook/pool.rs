//! Connections to one webhook, kept for the next call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::target::Target;

/// Idle connections kept, and for how long.
const IDLE: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(60);

pub type Sender = SendRequest<Full<Bytes>>;

pub struct Pool {
    tls: Arc<ClientConfig>,
    idle: Mutex<Vec<(Sender, (String, u16), Instant)>>,
}

impl Pool {
    pub fn new(tls: ClientConfig) -> Self {
        Self { tls: Arc::new(tls), idle: Mutex::default() }
    }

    /// A connection that was used before, to where the target is now.
    pub fn reuse(&self, t: &Target) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|(s, (host, port), since)| s.is_ready() && *host == t.host && *port == t.port && since.elapsed() < IDLE_TIME);
        idle.pop().map(|(s, ..)| s)
    }

    pub fn put_back(&self, t: &Target, sender: Sender) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE && !sender.is_closed() {
            idle.push((sender, (t.host.clone(), t.port), Instant::now()));
        }
    }

    pub async fn connect(&self, t: &Target) -> Result<Sender, String> {
        let refused = |e: std::io::Error| format!("dial tcp {}:{}: connect: {e}", t.host, t.port);
        let tcp = TcpStream::connect((t.host.as_str(), t.port)).await.map_err(refused)?;
        // Requests and answers are single messages: nothing is gained by waiting for more.
        let _ = tcp.set_nodelay(true);
        let name = ServerName::try_from(t.name.clone()).map_err(|e| format!("{:?} is no name of a server: {e}", t.name))?;
        let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await;
        let tls = tls.map_err(|e| format!("tls: failed to verify certificate or handshake: {e}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "a connection to a webhook ended");
            }
        });
        Ok(sender)
    }
}
