//! The webhook backend: events are posted in lists to a server that is configured in a file of kubeconfig form.
//!
//! In batch mode nobody waits for it: events are collected until there are enough or the oldest waited long enough, and a full queue (by
//! number or by bytes) drops events and counts them (`apiserver_audit_error_total{plugin="buffered"}`). In the blocking modes each event is
//! posted before its request goes on. A post that fails is made again a few times, ever later; what never arrives is counted under
//! `plugin="webhook"` and refuses its request only in strict mode, and only before it was served.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Metrics, log::Mode, throttle::Throttle};
use crate::webhook::{Configured, FileError};

#[derive(Debug, Clone)]
pub struct Config {
    pub file: PathBuf,
    pub mode: Mode,
    /// How long to wait before the second try.
    pub backoff: Duration,
    pub buffer: usize,
    pub batch: usize,
    pub wait: Duration,
    /// Lists posted in a second, and how many at once after a pause.
    pub throttle: Option<(f64, u32)>,
    /// The largest list, in bytes; none: no limit but the number of events.
    pub max_bytes: Option<usize>,
}

/// Bytes that wait in the queue, at most; beyond, it counts as full.
const MAX_QUEUED: usize = 64 << 20;
/// Lists that are on their way at a time.
const IN_FLIGHT: usize = 8;
const TRIES: u32 = 5;
const FACTOR: f64 = 1.5;
/// One post takes this long at most.
const TIMEOUT: Duration = Duration::from_secs(30);

enum Message {
    Event(Vec<u8>),
    /// Told when everything before it was posted.
    Flush(oneshot::Sender<()>),
}

pub struct Webhook {
    mode: Mode,
    queue: mpsc::Sender<Message>,
    queued: Arc<AtomicUsize>,
    poster: Arc<Poster>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("mode", &self.mode).finish_non_exhaustive()
    }
}

struct Poster {
    hook: Configured,
    backoff: Duration,
    metrics: Arc<Metrics>,
}

/// The list of events, which are JSON with a newline at their end.
fn list(events: &[Vec<u8>]) -> Bytes {
    let mut out = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    for (i, e) in events.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(e.strip_suffix(b"\n").unwrap_or(e));
    }
    out.extend_from_slice(b"]}");
    out.into()
}

impl Poster {
    /// Posts events, and says whether they arrived.
    async fn post(&self, events: &[Vec<u8>]) -> bool {
        let body = list(events);
        let mut pause = self.backoff;
        for attempt in 1..=TRIES {
            let outcome = match tokio::time::timeout(TIMEOUT, self.hook.deliver(&body)).await {
                Ok(outcome) => outcome,
                Err(_) => Err("no answer in time".into()),
            };
            match outcome {
                Ok(Ok(())) => return true,
                // It will not like them any better the next time.
                Ok(Err(why)) => {
                    tracing::error!(events = events.len(), why, "the audit webhook refused events; they are lost");
                    break;
                }
                Err(why) if attempt == TRIES => {
                    tracing::error!(events = events.len(), why, "audit events cannot be posted; they are lost");
                }
                Err(why) => {
                    tracing::warn!(attempt, why, "audit events cannot be posted; trying again");
                    tokio::time::sleep(pause).await;
                    pause = pause.mul_f64(FACTOR);
                }
            }
        }
        events.iter().for_each(|_| self.metrics.errors.add(&["webhook"]));
        false
    }
}

impl Webhook {
    /// Reads where to post to, and begins to collect events.
    pub fn start(c: &Config, metrics: Arc<Metrics>) -> Result<Self, FileError> {
        let poster = Arc::new(Poster { hook: Configured::load(&c.file)?, backoff: c.backoff, metrics });
        let (queue, messages) = mpsc::channel(c.buffer);
        let queued = Arc::new(AtomicUsize::new(0));
        if c.mode == Mode::Batch {
            tokio::spawn(collect(c.clone(), messages, Arc::clone(&queued), Arc::clone(&poster)));
        }
        Ok(Self { mode: c.mode, queue, queued, poster })
    }

    /// Posts an event, or has it posted. False: it could not be, and the request must not go on.
    pub async fn write(&self, event: Vec<u8>) -> bool {
        if self.mode == Mode::Batch {
            self.offer(event);
            return true;
        }
        let posted = self.poster.post(&[event]).await;
        posted || self.mode != Mode::BlockingStrict
    }

    /// Has an event posted without waiting.
    pub fn offer(&self, event: Vec<u8>) {
        if self.mode != Mode::Batch {
            let poster = Arc::clone(&self.poster);
            tokio::spawn(async move { poster.post(&[event]).await });
            return;
        }
        let n = event.len();
        let room = self.queued.fetch_add(n, Ordering::Relaxed) + n <= MAX_QUEUED;
        if !room || self.queue.try_send(Message::Event(event)).is_err() {
            self.queued.fetch_sub(n, Ordering::Relaxed);
            self.poster.metrics.errors.add(&["buffered"]);
        }
    }

    /// Waits until everything collected before was posted, or given up.
    pub async fn flush(&self) {
        let (done, posted) = oneshot::channel();
        if self.mode == Mode::Batch && self.queue.send(Message::Flush(done)).await.is_ok() {
            // Who collects answers, or is gone with the server.
            let _ = posted.await;
        }
    }
}

/// Collects events into lists and posts them, until nobody can send any more.
async fn collect(c: Config, mut messages: mpsc::Receiver<Message>, queued: Arc<AtomicUsize>, poster: Arc<Poster>) {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut throttle = c.throttle.map(|(rate, burst)| Throttle::new(rate, burst, Instant::now()));
    let mut held: Option<Message> = None;
    loop {
        let first = match held.take() {
            Some(m) => m,
            None => match messages.recv().await {
                Some(m) => m,
                None => return,
            },
        };
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut flush = None;
        let until = tokio::time::Instant::now() + c.wait;
        let mut next = Some(first);
        loop {
            match next {
                Some(Message::Event(e)) if !events.is_empty() && c.max_bytes.is_some_and(|max| bytes + e.len() > max) => {
                    held = Some(Message::Event(e));
                    break;
                }
                Some(Message::Event(e)) => {
                    bytes += e.len();
                    events.push(e);
                }
                Some(Message::Flush(done)) => {
                    flush = Some(done);
                    break;
                }
                None => break,
            }
            if events.len() >= c.batch {
                break;
            }
            next = tokio::time::timeout_at(until, messages.recv()).await.unwrap_or(None);
        }
        if !events.is_empty() {
            queued.fetch_sub(bytes, Ordering::Relaxed);
            if let Some(t) = &mut throttle {
                tokio::time::sleep(t.take(Instant::now())).await;
            }
            // The semaphore is never closed.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let poster = Arc::clone(&poster);
            tokio::spawn(async move {
                poster.post(&events).await;
                drop(slot);
            });
        }
        if let Some(done) = flush {
            // All slots are free when everything arrived.
            let _all = slots.acquire_many(IN_FLIGHT as u32).await;
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_a_list() {
        let events = [b"{\"auditID\":\"1\"}\n".to_vec(), b"{\"auditID\":\"2\"}\n".to_vec()];
        let v: serde_json::Value = serde_json::from_slice(&list(&events)).unwrap();
        assert_eq!((v["kind"].as_str(), v["apiVersion"].as_str()), (Some("EventList"), Some("audit.k8s.io/v1")));
        assert_eq!((v["items"][0]["auditID"].as_str(), v["items"][1]["auditID"].as_str()), (Some("1"), Some("2")));
    }
}
