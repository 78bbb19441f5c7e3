//! The small HTTP(S) server every component has: `/healthz`, `/livez`, `/readyz`, and `/metrics` for those who may read it.
//!
//! Without certificate files the certificate is self-signed and made in memory, as upstream's components do. Plain HTTP is for loopback
//! alone.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::request::Request;
use crate::resource::resources::{SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;

/// One named health check; a message is a failure.
#[derive(Clone)]
pub struct Check {
    pub name: &'static str,
    pub check: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// What to serve and where.
#[derive(Clone)]
pub struct ServeConfig {
    pub bind: SocketAddr,
    /// HTTPS with a self-signed certificate; plain HTTP is accepted for loopback addresses alone.
    pub tls: bool,
    pub checks: Vec<Check>,
    /// Prometheus text.
    pub metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    /// Decides who reads `/metrics` (TokenReview, then SubjectAccessReview). Without it only loopback reads them.
    pub reviewer: Option<Client>,
}

/// A server that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("listening on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error("plain HTTP on {0}: only loopback may do without TLS")]
    Plain(SocketAddr),
    #[error("making a self-signed certificate")]
    Certificate(#[source] rcgen::Error),
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
}

/// Binds, then serves in the background until `stop`.
pub async fn serve(config: ServeConfig, stop: CancellationToken) -> Result<SocketAddr, ServeError> {
    if !config.tls && !config.bind.ip().is_loopback() {
        return Err(ServeError::Plain(config.bind));
    }
    let acceptor = if config.tls { Some(tokio_rustls::TlsAcceptor::from(Arc::new(self_signed()?))) } else { None };
    let listener = TcpListener::bind(config.bind).await.map_err(|error| ServeError::Listen(config.bind, error))?;
    let local = listener.local_addr().map_err(|error| ServeError::Listen(config.bind, error))?;
    let config = Arc::new(config);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = async {
                    // The semaphore is never closed.
                    let permit = permits.clone().acquire_owned().await.ok();
                    listener.accept().await.map(|(stream, peer)| (stream, peer, permit))
                } => accepted,
                () = stop.cancelled() => return,
            };
            let (stream, peer, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (config, acceptor, stop) = (config.clone(), acceptor.clone(), stop.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                    let config = config.clone();
                    async move { Ok::<_, Infallible>(answer(&config, &request, peer).await) }
                });
                let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
                builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30))).max_concurrent_streams(16);
                let connection = async {
                    match acceptor {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(acceptor) => {
                            if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream)).await {
                                drop(builder.serve_connection(TokioIo::new(stream), service).await);
                            }
                        }
                    }
                };
                tokio::select! {
                    () = connection => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    });
    Ok(local)
}

fn self_signed() -> Result<rustls::ServerConfig, ServeError> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).map_err(ServeError::Certificate)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(ServeError::Tls)?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .map_err(ServeError::Tls)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

async fn answer(config: &ServeConfig, request: &http::Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
    if request.method() != http::Method::GET && request.method() != http::Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
    }
    match request.uri().path() {
        "/healthz" | "/livez" | "/readyz" => {
            health(&config.checks, request.uri().query().is_some_and(|q| q.split('&').any(|p| p.starts_with("verbose"))))
        }
        "/metrics" => match &config.metrics {
            None => text(StatusCode::NOT_FOUND, "not found\n"),
            Some(metrics) => match allowed(config, request, peer).await {
                Ok(()) => text(StatusCode::OK, metrics()),
                Err(status) => text(status, format!("{status}\n")),
            },
        },
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn health(checks: &[Check], verbose: bool) -> Response<Full<Bytes>> {
    let mut report = String::new();
    let mut failed = false;
    for check in checks {
        match (check.check)() {
            Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name)),
            Err(reason) => {
                failed = true;
                report.push_str(&format!("[-]{} failed: {reason}\n", check.name));
            }
        }
    }
    match (failed, verbose) {
        (true, _) => text(StatusCode::INTERNAL_SERVER_ERROR, report + "healthz check failed\n"),
        (false, true) => text(StatusCode::OK, report + "healthz check passed\n"),
        (false, false) => text(StatusCode::OK, "ok"),
    }
}

#[derive(Deserialize)]
struct Review<T> {
    status: T,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenStatus {
    authenticated: bool,
    user: serde_json::Map<String, serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
}

async fn allowed(config: &ServeConfig, request: &http::Request<Incoming>, peer: SocketAddr) -> Result<(), StatusCode> {
    let Some(reviewer) = &config.reviewer else {
        return if peer.ip().is_loopback() { Ok(()) } else { Err(StatusCode::FORBIDDEN) };
    };
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or(StatusCode::UNAUTHORIZED)?;
    let unavailable = |error: crate::error::Error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "reviewing a request failed");
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let review: Review<TokenStatus> = reviewer.call(&Request::create(&TOKEN_REVIEWS, "", &body)).await.map_err(unavailable)?;
    if !review.status.authenticated {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let user = review.status.user;
    let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": user.get("username"), "groups": user.get("groups"), "uid": user.get("uid"), "extra": user.get("extra"),
        "nonResourceAttributes": {"path": request.uri().path(), "verb": "get"},
    }});
    let review: Review<AccessStatus> = reviewer.call(&Request::create(&SUBJECT_ACCESS_REVIEWS, "", &body)).await.map_err(unavailable)?;
    if review.status.allowed { Ok(()) } else { Err(StatusCode::FORBIDDEN) }
}
