//! The end of a server: how long it goes on after it was asked to stop, and what it tells who still comes.
//!
//! Asked to stop, the server says so at readyz and leaves the endpoints, and serves on for the delay, in which load balancers find out.
//! Then watches end, and what runs is finished; with `--shutdown-send-retry-after` the port stays open meanwhile and who comes is told to
//! come back, otherwise it is closed at once.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use http::{HeaderValue, header};
use tokio_util::sync::CancellationToken;

use super::{Answer, body};

/// Requests that run have this long.
const FINISH: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, Default)]
pub struct Config {
    pub delay: Duration,
    pub send_retry_after: bool,
}

#[derive(Debug, Default)]
pub struct Drain {
    config: Config,
    /// The delay is over.
    pub over: CancellationToken,
    running: AtomicUsize,
}

/// A request that runs.
pub struct Running<'a>(&'a Drain);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drain {
    pub fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    /// Counts a request, or refuses it because the server is going. Health and metrics are told to the end.
    pub fn enter(&self, path: &str) -> Result<Running<'_>, Box<Answer>> {
        let told = ["/healthz", "/livez", "/readyz", "/metrics"].iter().any(|p| path.starts_with(p));
        if self.config.send_retry_after && self.over.is_cancelled() && !told {
            let mut a = body::text(429, "The apiserver is shutting down, please try again later.\n");
            a.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            a.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return Err(Box::new(a));
        }
        self.running.fetch_add(1, Ordering::AcqRel);
        Ok(Running(self))
    }

    /// The server was asked to stop: returns when the port may be closed.
    pub async fn run(&self) {
        tokio::time::sleep(self.config.delay).await;
        self.over.cancel();
        let until = tokio::time::Instant::now() + FINISH;
        while self.config.send_retry_after && self.running.load(Ordering::Acquire) > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_server_that_goes_finishes_what_runs_and_sends_others_away() {
        let d = Arc::new(Drain::new(Config { delay: Duration::ZERO, send_retry_after: true }));
        let running = d.enter("/api/v1/nodes").map_err(|a| a.status()).unwrap();
        let d2 = Arc::clone(&d);
        let end = tokio::spawn(async move { d2.run().await });
        d.over.cancelled().await;
        let refused = d.enter("/api/v1/nodes").err().unwrap();
        assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "5"));
        assert!(d.enter("/readyz").is_ok() && !end.is_finished());
        drop(running);
        end.await.unwrap();
    }

    #[tokio::test]
    async fn without_it_the_port_is_closed_after_the_delay_whatever_runs() {
        let d = Drain::new(Config { delay: Duration::from_millis(1), send_retry_after: false });
        let _running = d.enter("/").map_err(|a| a.status()).unwrap();
        d.run().await;
        assert!(d.over.is_cancelled() && d.enter("/api").is_ok());
    }
}
