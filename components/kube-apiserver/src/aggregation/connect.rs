//! Connections to extension servers: who we are there, whom we take them for, and those that are kept for the next request.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Remote, remote::Spec};
use crate::{
    authn::User,
    http::{
        Body,
        tls::{TlsError, read_certs, read_key},
    },
    objects::Objects,
    services,
    webhook::{self, Trust},
};

const CONNECT: Duration = Duration::from_secs(10);
/// Idle connections kept, and for how long.
const IDLE: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(60);

/// The certificate that this server shows, reloaded when its files change.
#[derive(Debug)]
pub struct Identity {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<Loaded>,
}

type Loaded = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Identity {
    pub fn load(cert: PathBuf, key: PathBuf) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from_pointee((read_certs(&cert)?, read_key(&key)?));
        Ok(Arc::new(Self { cert, key, current }))
    }

    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new((read_certs(&self.cert)?, read_key(&self.key)?)));
        Ok(())
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        vec![self.cert.clone(), self.key.clone()]
    }
}

type Sender = SendRequest<Body>;

/// The connections to one extension server.
#[derive(Debug)]
pub struct Pool {
    /// An error is one of the APIService: its bundle cannot be read.
    tls: Result<Arc<ClientConfig>, String>,
    /// What the configuration was made with.
    shown: Option<Arc<Loaded>>,
    idle: Mutex<Vec<(Sender, (String, u16), Instant)>>,
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

impl Pool {
    pub fn new(spec: &Spec, identity: Option<Arc<Identity>>) -> Self {
        let shown = identity.map(|i| i.current.load_full());
        let trust = if spec.insecure { Trust::Anybody } else { Trust::Bundle(&spec.ca_bundle) };
        let own = shown.as_ref().map(|s| (s.0.clone(), s.1.clone_key()));
        Self { tls: webhook::tls_config(trust, own).map(Arc::new), shown, idle: Mutex::default() }
    }

    /// Whether the certificate it shows is the one of now.
    pub fn current(&self, identity: Option<&Arc<Identity>>) -> bool {
        match (&self.shown, identity) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, &b.current.load()),
            (None, None) => true,
            _ => false,
        }
    }

    /// A connection that was used before and is free now.
    fn reuse(&self, to: &Address) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|(s, (host, port), since)| !s.is_closed() && *host == to.host && *port == to.port && since.elapsed() < IDLE_TIME);
        let at = idle.iter().position(|(s, ..)| s.is_ready())?;
        Some(idle.swap_remove(at).0)
    }

    /// Keeps a connection whose answer may still be under way.
    fn put_back(&self, to: &Address, sender: Sender) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE && !sender.is_closed() {
            idle.push((sender, (to.host.clone(), to.port), Instant::now()));
        }
    }

    async fn connect(&self, spec: &Spec, to: &Address) -> Result<Sender, String> {
        let tls = self.tls.as_ref().map_err(Clone::clone)?;
        let name = format!("{}.{}.svc", spec.name, spec.namespace);
        let work = async {
            let tcp = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(|e| format!("dial tcp {to}: connect: {e}"))?;
            // Frames of watches should not wait for more.
            let _ = tcp.set_nodelay(true);
            let name = ServerName::try_from(name.clone()).map_err(|e| format!("{name:?} is no name of a server: {e}"))?;
            let tls = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
            let tls = tls.map_err(|e| format!("tls: failed to verify certificate or handshake: {e}"))?;
            http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())
        };
        let (sender, connection) = tokio::time::timeout(CONNECT, work).await.map_err(|_| format!("dial tcp {to}: i/o timeout"))??;
        tokio::spawn(async move {
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!(error = %e, "a connection to an extension server ended");
            }
        });
        Ok(sender)
    }
}

/// Sends a request; one without a body that fails on a kept connection is sent again on a new one.
pub async fn send(remote: &Remote, to: &Address, mut request: Request<Body>) -> Result<Response<Incoming>, String> {
    let host = HeaderValue::from_str(&to.to_string()).map_err(|e| e.to_string())?;
    request.headers_mut().insert(header::HOST, host);
    let repeatable = request.method() == Method::GET && !request.headers().contains_key(header::UPGRADE);
    if repeatable && let Some(mut sender) = remote.pool.reuse(to) {
        let mut copy = Request::new(Body::Full(Bytes::new()));
        (*copy.method_mut(), *copy.uri_mut(), *copy.headers_mut()) =
            (request.method().clone(), request.uri().clone(), request.headers().clone());
        if let Ok(response) = sender.send_request(copy).await {
            remote.pool.put_back(to, sender);
            return Ok(response);
        }
    }
    let mut sender = remote.pool.connect(&remote.spec, to).await?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    remote.pool.put_back(to, sender);
    Ok(response)
}

/// The address behind an APIService's service.
pub fn resolve(objects: &Objects, spec: &Spec, routing: bool) -> Result<Address, String> {
    let (host, port) = if routing { endpoint(objects, spec)? } else { webhook::resolve(objects, &spec.namespace, &spec.name, spec.port)? };
    Ok(Address { host, port })
}

/// A ready endpoint of the service's port.
fn endpoint(objects: &Objects, spec: &Spec) -> Result<(String, u16), String> {
    let (namespace, name) = (&spec.namespace, &spec.name);
    let service = objects.get("services/specs", &format!("{namespace}/{name}")).ok_or_else(|| format!("service {name:?} not found"))?;
    let kind = service.at("spec.type").str();
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        return Err(format!("unsupported service type {kind:?}"));
    }
    let ports = service.at("spec.ports");
    let port = ports.iter().find(|p| p.get("port").int() == i64::from(spec.port));
    let port = port.ok_or_else(|| format!("no service port {} found for service {name:?}", spec.port))?;
    services::endpoint(objects, namespace, name, port.get("name").str())
        .ok_or_else(|| format!("no endpoints available for service {name:?}"))
}

/// An answer that was read as a whole.
pub struct Fetched {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Asks an extension server something as `user`.
pub async fn fetch(
    remote: &Remote,
    to: &Address,
    path: &str,
    headers: &[(header::HeaderName, &str)],
    user: &User,
    (limit, timeout): (usize, Duration),
) -> Result<Fetched, String> {
    let mut request = Request::new(Body::Full(Bytes::new()));
    *request.uri_mut() = path.parse().map_err(|_| format!("{path:?} is no path"))?;
    for (k, v) in headers {
        request.headers_mut().insert(k.clone(), HeaderValue::from_str(v).map_err(|e| e.to_string())?);
    }
    super::proxy::name_user(request.headers_mut(), user);
    let work = async {
        let response = send(remote, to, request).await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok(Fetched { status: parts.status.as_u16(), headers: parts.headers, body })
    };
    tokio::time::timeout(timeout, work).await.map_err(|_| "context deadline exceeded".to_owned())?
}
