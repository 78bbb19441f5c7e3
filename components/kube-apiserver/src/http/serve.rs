//! Accepts connections and serves HTTP/1.1 and HTTP/2 over TLS on them, until the server drains.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::chain;
use crate::server::Server;

/// A client that does not finish its handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that may be in their handshake or open at a time.
const MAX_CONNECTIONS: usize = 16_384;
const DRAIN: Duration = Duration::from_secs(20);

/// What requests of one connection share.
#[derive(Debug)]
pub struct Conn {
    pub peer: SocketAddr,
    pub certificates: Vec<CertificateDer<'static>>,
}

pub async fn serve(server: Arc<Server>, listener: TcpListener, acceptor: TlsAcceptor, stop: CancellationToken) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(1 << 20);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(server.http.max_streams)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15))
        .max_header_list_size(1 << 20)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20);
    let http = Arc::new(http);
    let open = TaskTracker::new();
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, peer) = tokio::select! {
            r = listener.accept() => match r {
                Ok(c) => c,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        // Over the limit a new connection is closed at once: the client's retry finds another server or a free slot.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        // Latency matters more than a few packets; a socket that cannot be told so still works.
        let _ = stream.set_nodelay(true);
        let (server, acceptor, http) = (Arc::clone(&server), acceptor.clone(), Arc::clone(&http));
        let draining = stop.clone();
        open.spawn(async move {
            let _slot = slot;
            let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(s)) => s,
                Ok(Err(e)) => {
                    tracing::debug!(%peer, error = %e, "TLS handshake failed");
                    return;
                }
                Err(_) => return,
            };
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
            let conn = Arc::new(Conn { peer, certificates });
            let service = service_fn(move |req: hyper::Request<Incoming>| {
                let (server, conn) = (Arc::clone(&server), Arc::clone(&conn));
                async move { Ok::<_, super::body::Never>(chain::handle(server, conn, req).await) }
            });
            let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            let mut connection = std::pin::pin!(connection);
            let result = tokio::select! {
                r = connection.as_mut() => r,
                () = draining.cancelled() => {
                    // Requests that are being answered are finished, new ones are refused.
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(e) = result {
                tracing::debug!(%peer, error = %e, "connection ended");
            }
        });
    }
    drop(listener);
    open.close();
    if tokio::time::timeout(DRAIN, open.wait()).await.is_err() {
        tracing::info!("requests were still running when the time to drain was over");
    }
}
