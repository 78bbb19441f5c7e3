//! A small HTTP/2 client over TLS: a few connections, requests spread over them in turn.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CipherSuite, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Large enough that a list is not held up by flow control.
const WINDOW: u32 = 8 << 20;

/// Connections to one server.
pub struct Client {
    port: u16,
    connections: Vec<SendRequest<Full<Bytes>>>,
    next: AtomicUsize,
}

/// What identifies us, from `<dir>/ca.crt`, `<dir>/admin.crt` and `<dir>/admin.key`.
pub fn identity(dir: &Path) -> Result<Arc<ClientConfig>> {
    let file = |name: &str| dir.join(name);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.crt")).context("cannot read ca.crt")?).context("ca.crt is no authority")?;
    let certificate = CertificateDer::from_pem_file(file("admin.crt")).context("cannot read admin.crt")?;
    let key = PrivateKeyDer::from_pem_file(file("admin.key")).context("cannot read admin.key")?;
    // Suites in the order in which client-go offers them.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

impl Client {
    /// Opens the connections.
    pub async fn connect(port: u16, identity: &Arc<ClientConfig>, connections: usize) -> Result<Self> {
        let mut opened = Vec::with_capacity(connections);
        for _ in 0..connections {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").context("localhost is no name")?;
            let stream = TlsConnector::from(Arc::clone(identity)).connect(name, stream).await?;
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW).max_frame_size(1 << 20);
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
            // Its end is seen by the requests on it.
            tokio::spawn(connection);
            opened.push(sender);
        }
        Ok(Self { port, connections: opened, next: AtomicUsize::new(0) })
    }

    /// Sends a request and gives the answer's head and its body as it comes.
    pub async fn open(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Response<Incoming>> {
        self.open_as(method, path, &[("accept", "application/json"), ("content-type", content_type)], body).await
    }

    /// As [`Self::open`], with headers of its own.
    pub async fn open_as(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("https://127.0.0.1:{}{path}", self.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header("user-agent", "bench").body(Full::new(body))?;
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let mut sender = self.connections[turn].clone();
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    /// Sends a request and gives the whole body of a good answer.
    pub async fn send(&self, method: Method, path: &str, content_type: &str, body: impl Into<Bytes>) -> Result<Bytes> {
        let what = format!("{method} {path}");
        let answer = self.open(method, path, content_type, body.into()).await.with_context(|| what.clone())?;
        let status = answer.status();
        let body = answer.into_body().collect().await.with_context(|| what.clone())?.to_bytes();
        if !status.is_success() {
            bail!("{what} was answered with {status}: {}", String::from_utf8_lossy(&body[..body.len().min(500)]));
        }
        Ok(body)
    }

    /// Reads a whole answer, not faster than so many bytes a second, and gives its length.
    pub async fn read(&self, path: &str, headers: &[(&str, &str)], pace: Option<f64>) -> Result<usize> {
        let answer = self.open_as(Method::GET, path, headers, Bytes::new()).await?;
        if !answer.status().is_success() {
            bail!("{path} was answered with {}", answer.status());
        }
        let (mut body, mut length) = (answer.into_body(), 0);
        while let Some(frame) = body.frame().await {
            let piece = frame?.data_ref().map_or(0, Bytes::len);
            length += piece;
            if let Some(pace) = pace {
                tokio::time::sleep(Duration::from_secs_f64(piece as f64 / pace)).await;
            }
        }
        Ok(length)
    }

    pub async fn get(&self, path: &str) -> Result<Bytes> {
        self.send(Method::GET, path, "application/json", Bytes::new()).await
    }
}
