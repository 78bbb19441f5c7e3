//! The kubelet's API on port 10250, and its health endpoint on the loopback address.

mod auth;
mod logs;
mod stats;
mod stream;
mod tls;

use crate::kubelet::Shared;
use crate::model::pod::Pod;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A body that is either whole or streamed.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;

/// A server that cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("read the client CA")]
    ClientCa(#[source] pki::PkiError),
    #[error("read {path}")]
    Read { path: std::path::PathBuf, source: std::io::Error },
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("make a serving certificate")]
    Certificate(#[source] pki::PkiError),
    #[error("set up the check of client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A plain answer.
pub fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(message.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(full(bytes));
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Serves the API for ever.
pub async fn serve(shared: Arc<Shared>) -> Result<(), ServerError> {
    let address = SocketAddr::new(shared.config.address, shared.config.port);
    let acceptor = tls::acceptor(&shared.config)?;
    let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
    tracing::info!(%address, "kubelet API");
    let access = Arc::new(auth::Access::new(shared.clone()));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, access, acceptor) = (shared.clone(), access.clone(), acceptor.clone());
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection(shared, access, acceptor, stream).await {
                tracing::debug!(error = %error, "connection");
            }
        });
    }
}

async fn connection(
    shared: Arc<Shared>,
    access: Arc<auth::Access>,
    acceptor: tokio_rustls::TlsAcceptor,
    stream: TcpStream,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let stream = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream))
        .await
        .map_err(|_| "TLS handshake timed out".to_owned())?
        .map_err(|e| e.to_string())?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|der| der.as_ref().to_vec());
    let caller = Arc::new(certificate.as_deref().and_then(auth::user_of_certificate));
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (shared, access, caller) = (shared.clone(), access.clone(), caller.clone());
        async move { Ok::<_, Infallible>(guarded(shared, access, caller, request).await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30))).max_concurrent_streams(250);
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await.map_err(|e| e.to_string())
}

async fn guarded(
    shared: Arc<Shared>,
    access: Arc<auth::Access>,
    caller: Arc<Option<auth::User>>,
    request: Request<Incoming>,
) -> Response<Body> {
    let user = match access.authenticate(caller.as_ref().as_ref(), request.headers()).await {
        Ok(user) => user,
        Err(message) => {
            tracing::debug!(path = request.uri().path(), message, "request refused");
            return text(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
    };
    if let Err((status, message)) = access.authorize(&user, request.method(), request.uri().path()).await {
        tracing::info!(user = %user.name, method = %request.method(), path = request.uri().path(), "request forbidden");
        return text(status, message);
    }
    route(&shared, request).await
}

/// What a path asks for.
#[derive(Debug, PartialEq)]
enum Route<'a> {
    Healthz,
    Pods,
    RunningPods,
    ContainerLogs { namespace: &'a str, pod: &'a str, container: &'a str },
    Exec { namespace: &'a str, pod: &'a str, uid: Option<&'a str>, container: &'a str },
    Run { namespace: &'a str, pod: &'a str, uid: Option<&'a str>, container: &'a str },
    Attach { namespace: &'a str, pod: &'a str, uid: Option<&'a str>, container: &'a str },
    PortForward { namespace: &'a str, pod: &'a str, uid: Option<&'a str> },
    StatsSummary,
    Metrics,
    MetricsResource,
    Configz,
    NotFound,
}

fn parse_route(path: &str) -> Route<'_> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] | ["healthz", "ping" | "log" | "syncloop"] => Route::Healthz,
        ["pods"] => Route::Pods,
        ["runningpods"] => Route::RunningPods,
        ["containerLogs", namespace, pod, container] => Route::ContainerLogs { namespace, pod, container },
        ["exec", namespace, pod, container] => Route::Exec { namespace, pod, uid: None, container },
        ["exec", namespace, pod, uid, container] => Route::Exec { namespace, pod, uid: Some(uid), container },
        ["run", namespace, pod, container] => Route::Run { namespace, pod, uid: None, container },
        ["run", namespace, pod, uid, container] => Route::Run { namespace, pod, uid: Some(uid), container },
        ["attach", namespace, pod, container] => Route::Attach { namespace, pod, uid: None, container },
        ["attach", namespace, pod, uid, container] => Route::Attach { namespace, pod, uid: Some(uid), container },
        ["portForward", namespace, pod] => Route::PortForward { namespace, pod, uid: None },
        ["portForward", namespace, pod, uid] => Route::PortForward { namespace, pod, uid: Some(uid) },
        ["stats", "summary"] => Route::StatsSummary,
        ["metrics"] => Route::Metrics,
        ["metrics", "resource"] => Route::MetricsResource,
        ["configz"] => Route::Configz,
        _ => Route::NotFound,
    }
}

async fn route(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let read_only = matches!(*request.method(), Method::GET | Method::HEAD);
    match parse_route(&path) {
        Route::Healthz => health(shared),
        Route::Pods if read_only => json(&pod_list(shared)),
        Route::RunningPods if read_only => match stats::running_pods(shared).await {
            Ok(list) => json(&list),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        Route::ContainerLogs { namespace, pod, container } if read_only => logs::serve(shared, namespace, pod, container, &query).await,
        Route::Exec { namespace, pod, uid, container } => stream::exec(shared, (namespace, pod, uid), container, &query, request).await,
        Route::Attach { namespace, pod, uid, container } => stream::attach(shared, (namespace, pod, uid), container, &query, request).await,
        Route::PortForward { namespace, pod, uid } => stream::port_forward(shared, (namespace, pod, uid), &query, request).await,
        Route::Run { namespace, pod, uid, container } if *request.method() == Method::POST => {
            stream::run(shared, (namespace, pod, uid), container, &query).await
        }
        Route::StatsSummary => match stats::summary(shared).await {
            Ok(summary) => json(&summary),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        Route::MetricsResource if read_only => match stats::resource_metrics(shared).await {
            Ok(metrics) => text(StatusCode::OK, metrics),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        Route::Metrics if read_only => text(StatusCode::OK, stats::own_metrics(shared)),
        Route::Configz if read_only => json(&serde_json::json!({"kubeletconfig": shared.config})),
        Route::NotFound => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n"),
    }
}

fn health(shared: &Shared) -> Response<Body> {
    if shared.pleg.is_healthy() {
        text(StatusCode::OK, "ok")
    } else {
        text(StatusCode::INTERNAL_SERVER_ERROR, "[-]syncloop failed: the container runtime does not answer\n")
    }
}

/// All pods with the kubelet's own view of their status.
fn pod_list(shared: &Shared) -> serde_json::Value {
    let items: Vec<serde_json::Value> = shared
        .pods()
        .into_iter()
        .map(|pod| {
            let mut pod: Pod = (*pod).clone();
            if let Some(status) = shared.statuses.get(&pod.metadata.uid) {
                pod.status = status;
            }
            serde_json::to_value(&pod).unwrap_or_default()
        })
        .collect();
    serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// Query parameters; a name may come several times.
#[derive(Debug, Default)]
pub struct Query(HashMap<String, Vec<String>>);

impl Query {
    fn parse(text: &str) -> Self {
        let mut map: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            map.entry(decode(name)).or_default().push(decode(value));
        }
        Self(map)
    }

    /// The first value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.first().map(String::as_str)
    }

    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// `1` and `true` are true.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true"))
    }
}

/// Undoes percent and plus encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%').then(|| tail.get(..2).and_then(|h| std::str::from_utf8(h).ok())).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Serves `/healthz` without TLS on the loopback address.
pub async fn serve_health(shared: Arc<Shared>) -> Result<(), ServerError> {
    if shared.config.healthz_port == 0 {
        return Ok(());
    }
    let address = SocketAddr::new(shared.config.healthz_address, shared.config.healthz_port);
    let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
    let permits = Arc::new(Semaphore::new(16));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let shared = shared.clone();
                async move {
                    let response = match parse_route(request.uri().path()) {
                        Route::Healthz => health(&shared),
                        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
                    };
                    Ok::<_, Infallible>(response)
                }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        for (path, expected) in [
            ("/healthz", Route::Healthz),
            ("/pods/", Route::Pods),
            ("/containerLogs/ns/p/c", Route::ContainerLogs { namespace: "ns", pod: "p", container: "c" }),
            ("/exec/ns/p/c", Route::Exec { namespace: "ns", pod: "p", uid: None, container: "c" }),
            ("/exec/ns/p/u/c", Route::Exec { namespace: "ns", pod: "p", uid: Some("u"), container: "c" }),
            ("/portForward/ns/p", Route::PortForward { namespace: "ns", pod: "p", uid: None }),
            ("/metrics/resource", Route::MetricsResource),
            ("/logs/../etc/passwd", Route::NotFound),
        ] {
            assert_eq!(parse_route(path), expected, "{path}");
        }
    }

    #[test]
    fn queries() {
        let q = Query::parse("command=sh&command=-c&command=echo%20a%2Bb+c&tty=1&follow=true&x");
        assert_eq!(q.all("command"), ["sh", "-c", "echo a+b c"]);
        assert!(q.flag("tty") && q.flag("follow") && !q.flag("input"));
        assert_eq!((q.get("x"), decode("%zz%4"), decode("%c3%a9")), (Some(""), "%zz%4".to_owned(), "é".to_owned()));
    }
}
