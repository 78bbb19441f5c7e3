//! The transport: TCP, TLS with the configured identity, and connections shared over HTTP/2 when the server speaks it.
//!
//! Certificate files are looked at again every few seconds. When one changed, requests made from then on use new connections with the
//! new certificate, and running watches keep theirs until they end.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http_body_util::Full;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::error::ConfigError;

pub(crate) type HttpClient = hyper_util::client::legacy::Client<Connector, Full<bytes::Bytes>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server's address, checked.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub scheme: http::uri::Scheme,
    pub authority: http::uri::Authority,
    /// A path prefix without trailing slash, usually empty.
    pub prefix: String,
}

impl Endpoint {
    pub(crate) fn parse(server: &str) -> Result<Self, ConfigError> {
        let bad = |problem| ConfigError::Server(server.to_string(), problem);
        let uri: Uri = server.parse().map_err(|_| bad("not a URL"))?;
        let authority = uri.authority().cloned().ok_or_else(|| bad("no host"))?;
        let scheme = uri.scheme().cloned().ok_or_else(|| bad("no scheme"))?;
        let host = bare_host(authority.host());
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match scheme.as_str() {
            "https" => {}
            "http" if loopback => {}
            "http" => return Err(bad("plain http is accepted for loopback alone")),
            _ => return Err(bad("the scheme is not https")),
        }
        Ok(Self { scheme, authority, prefix: uri.path().trim_end_matches('/').to_string() })
    }
}

fn bare_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// A client for the configuration as its files are now.
pub(crate) fn http_client(config: &Config, endpoint: &Endpoint) -> Result<HttpClient, ConfigError> {
    let tls = if endpoint.scheme == http::uri::Scheme::HTTPS { Some(Arc::new(tls_config(config)?)) } else { None };
    let host = config.tls_server_name.as_deref().unwrap_or_else(|| bare_host(endpoint.authority.host()));
    let server_name = ServerName::try_from(host.to_string()).map_err(|_| ConfigError::Server(config.server.clone(), "not a host name"))?;
    let connector = Connector { tls, server_name };
    Ok(hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(Some(Duration::from_secs(20)))
        .http2_keep_alive_timeout(Duration::from_secs(15))
        .http2_keep_alive_while_idle(false)
        .http2_initial_stream_window_size(Some(512 * 1024))
        .http2_initial_connection_window_size(Some(4 * 1024 * 1024))
        .build(connector))
}

fn tls_config(config: &Config) -> Result<rustls::ClientConfig, ConfigError> {
    let mut roots = RootCertStore::empty();
    let ca = config.ca.as_ref().ok_or_else(|| ConfigError::Server(config.server.clone(), "https needs a certificate authority"))?;
    for certificate in certificates(&ca.read()?, &ca.describe())? {
        roots.add(certificate).map_err(|error| ConfigError::Tls(ca.describe(), error))?;
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Tls("the default protocol versions".into(), error))?
        .with_root_certificates(roots);
    let mut tls = match &config.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(&certificate.read()?, &certificate.describe())?;
            let private =
                PrivateKeyDer::from_pem_slice(&key.read()?).map_err(|_| ConfigError::Pem { what: key.describe(), kind: "private key" })?;
            builder.with_client_auth_cert(chain, private).map_err(|error| ConfigError::Tls(certificate.describe(), error))?
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

pub(crate) fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let bad = || ConfigError::Pem { what: what.to_string(), kind: "certificate" };
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|_| bad())?;
    if found.is_empty() { Err(bad()) } else { Ok(found) }
}

/// Opens connections for hyper.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: Option<Arc<rustls::ClientConfig>>,
    server_name: ServerName<'static>,
}

impl tower::Service<Uri> for Connector {
    type Response = Conn;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Conn, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, this.connect(uri)).await.unwrap_or_else(|_| {
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}")))
            })
        })
    }
}

impl Connector {
    async fn connect(self, uri: Uri) -> Result<Conn, std::io::Error> {
        let host = bare_host(uri.host().unwrap_or_default()).to_string();
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = self.tls else {
            return Ok(Conn { io: TokioIo::new(Box::new(tcp)), http2: false });
        };
        let stream = tokio_rustls::TlsConnector::from(tls).connect(self.server_name, tcp).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Conn { io: TokioIo::new(Box::new(stream)), http2 })
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, plain or TLS.
pub(crate) struct Conn {
    io: TokioIo<Box<dyn Io>>,
    http2: bool,
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        if self.http2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl hyper::rt::Read for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: hyper::rt::ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_or_loopback() {
        for (server, ok) in [
            ("https://10.5.0.11:6443", true),
            ("https://[fd00::1]:6443/prefix/", true),
            ("http://127.0.0.1:8080", true),
            ("http://[::1]:8080", true),
            ("http://10.5.0.11:8080", false),
            ("10.5.0.11:6443", false),
            ("unix:///x", false),
            ("", false),
        ] {
            assert_eq!(Endpoint::parse(server).is_ok(), ok, "{server}");
        }
        assert_eq!(Endpoint::parse("https://h/prefix/").unwrap().prefix, "/prefix");
    }
}
