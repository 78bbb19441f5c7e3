//! Accepts connections and serves HTTP/1.1 and HTTP/2 over TLS on them, until the server drains.

use std::{
    error::Error,
    future::poll_fn,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::{body::Incoming, rt::Executor, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{chain, gathered};
use crate::{authn, server::Server};

/// A client that does not finish its handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that may be in their handshake or open at a time.
const MAX_CONNECTIONS: usize = 16_384;
const DRAIN: Duration = Duration::from_secs(20);

/// What requests of one connection share.
#[derive(Debug)]
pub struct Conn {
    pub peer: SocketAddr,
    pub certificates: authn::Peer,
}

/// Runs the streams of HTTP/2 connections. Most answers are there at once: those are written by the connection's own task, which is
/// about to write anyway, and no other thread is woken for them. What has to wait becomes a task.
#[derive(Debug, Clone, Copy)]
struct AtOnce;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for AtOnce {
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        // The task polls again before anything else, and waits with a waker of its own.
        if stream.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            tokio::spawn(stream);
        }
    }
}

pub async fn serve(server: Arc<Server>, listener: TcpListener, acceptor: TlsAcceptor, stop: CancellationToken) {
    let mut http = auto::Builder::new(AtOnce);
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
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned());
            let certificates = authn::Peer::new(certificates.collect());
            let conn = Arc::new(Conn { peer, certificates });
            let service = service_fn(move |req: hyper::Request<Incoming>| {
                let (server, conn) = (Arc::clone(&server), Arc::clone(&conn));
                // In a place of its own: what holds it is moved several times before it runs.
                let answer = Box::pin(chain::handle(server, conn, req));
                async move { Ok::<_, super::body::Never>(answer.await) }
            });
            let (stream, handle) = gathered::gather(stream);
            let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            let (mut connection, mut draining) = (std::pin::pin!(connection), std::pin::pin!(draining.cancelled()));
            let mut drained = false;
            let result = poll_fn(|cx| {
                if !drained && draining.as_mut().poll(cx).is_ready() {
                    // Requests that are being answered are finished, new ones are refused.
                    drained = true;
                    connection.as_mut().graceful_shutdown();
                }
                let polled = connection.as_mut().poll(cx);
                match handle.poll_flush(cx) {
                    Poll::Ready(Err(e)) if polled.is_pending() => Poll::Ready(Err(e.into())),
                    _ => polled,
                }
            })
            .await;
            // The answer that agrees to another protocol may still wait.
            handle.let_go();
            let rest = tokio::time::timeout(HANDSHAKE, poll_fn(|cx| handle.poll_flush(cx))).await;
            let result: Result<(), Box<dyn Error + Send + Sync>> = result.and_then(|()| rest.map_or(Ok(()), |r| Ok(r?)));
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
