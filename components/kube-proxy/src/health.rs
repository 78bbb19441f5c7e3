//! `/healthz` and `/livez` on the health address and `/metrics` on the metrics address, plain HTTP as upstream's proxy serves them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_client::CancellationToken;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections served at once.
const MAX_CONNECTIONS: usize = 32;
/// A change that is not programmed within this time makes the proxy unhealthy.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Health and metrics of the proxy.
pub struct Health {
    started: Instant,
    /// Milliseconds since the start, plus one; 0 when nothing waits.
    pending_since: AtomicU64,
    registry: Registry,
    /// Time per sync.
    pub sync_seconds: Histogram,
    /// Failed syncs.
    pub failures: Counter,
}

impl Default for Health {
    fn default() -> Self {
        let mut registry = Registry::default();
        let sync_seconds = Histogram::new((0..15).map(|i| 0.001 * f64::from(1 << i)));
        let failures = Counter::default();
        registry.register("kubeproxy_sync_proxy_rules_duration_seconds", "Time to plan and commit the rules", sync_seconds.clone());
        registry.register("kubeproxy_sync_proxy_rules_nftables_sync_failures", "Transactions the kernel refused", failures.clone());
        Self { started: Instant::now(), pending_since: AtomicU64::new(1), registry, sync_seconds, failures }
    }
}

impl Health {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// A change waits to be programmed.
    pub fn pending(&self) {
        // Only the oldest counts.
        let _ = self.pending_since.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// All changes are programmed.
    pub fn synced(&self) {
        self.pending_since.store(0, Ordering::Relaxed);
    }

    fn healthy(&self) -> bool {
        let since = self.pending_since.load(Ordering::Relaxed);
        since == 0 || self.now().saturating_sub(since) < STUCK_AFTER.as_millis() as u64
    }

    fn answer(&self, path: &str, metrics: bool) -> Response<Full<Bytes>> {
        let (status, kind, body) = match path {
            "/healthz" | "/livez" => {
                let status = if self.healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                (status, "text/plain; charset=utf-8", if self.healthy() { "ok".to_string() } else { "rules are not up to date".into() })
            }
            "/metrics" if metrics => {
                let mut text = String::new();
                // Writing to a string cannot fail.
                let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
                (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
            }
            _ => (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not found".into()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    }

    /// Serves in the background until told to stop.
    pub async fn serve(self: &Arc<Self>, bind: SocketAddr, metrics: bool, stop: CancellationToken) -> std::io::Result<()> {
        let listener = TcpListener::bind(bind).await?;
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            loop {
                let permit = permits.clone().acquire_owned().await;
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let this = Arc::clone(&this);
                tokio::spawn(async move {
                    let _permit = permit;
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        let response = this.answer(request.uri().path(), metrics);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let mut server = hyper::server::conn::http1::Builder::new();
                    server.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
                    // A client that hangs up is no news.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(())
    }
}
