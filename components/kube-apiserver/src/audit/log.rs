//! The log backend: a thread that owns the file, behind a bounded queue.
//!
//! In the blocking modes who makes an event waits for it to be written, so the queue's bound slows requests down. In batch mode nobody
//! waits: with a full queue an event is dropped and counted (`apiserver_audit_error_total{plugin="buffered"}`), as upstream does. An
//! event that the file system refuses is dropped too, counted under `plugin="log"`, and refuses its request only in strict mode.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::{Metrics, rotate::Rotated, throttle::Throttle};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Legacy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Batch,
    Blocking,
    BlockingStrict,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub path: PathBuf,
    /// Zero: old files are kept for ever, and all of them.
    pub max_age: Duration,
    pub max_backups: usize,
    pub max_bytes: u64,
    pub compress: bool,
    pub format: Format,
    pub mode: Mode,
    pub buffer: usize,
    pub batch: usize,
    pub wait: Duration,
    /// Batches written in a second, and how many at once after a pause.
    pub throttle: Option<(f64, u32)>,
}

/// Bytes that wait in the queue, at most; beyond, it counts as full.
const MAX_QUEUED: usize = 64 << 20;
/// Lines that a blocking backend writes at once when they are there.
const TOGETHER: usize = 256;

struct Line {
    text: Vec<u8>,
    /// Told whether the line is in the file.
    done: Option<oneshot::Sender<bool>>,
}

#[derive(Debug)]
pub struct Log {
    pub format: Format,
    mode: Mode,
    queue: mpsc::Sender<Line>,
    queued: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Log {
    /// Opens the file and starts the thread, which lives as long as this value.
    pub fn start(c: Config, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let mut file = Rotated::open(c.path, c.max_bytes, c.max_backups, c.max_age, c.compress)?;
        let (queue, mut lines) = mpsc::channel::<Line>(c.buffer);
        let queued = Arc::new(AtomicUsize::new(0));
        let log = Self { format: c.format, mode: c.mode, queue, queued: Arc::clone(&queued), metrics: Arc::clone(&metrics) };
        let (together, wait) = if c.mode == Mode::Batch { (c.batch, c.wait) } else { (TOGETHER, Duration::ZERO) };
        let mut throttle = c.throttle.filter(|_| c.mode == Mode::Batch).map(|(rate, burst)| Throttle::new(rate, burst, Instant::now()));
        std::thread::Builder::new().name("audit-log".into()).spawn(move || {
            let mut failing = false;
            while let Some(first) = lines.blocking_recv() {
                let (mut text, mut waiting) = (first.text, vec![first.done]);
                let until = Instant::now() + wait;
                while waiting.len() < together {
                    match lines.try_recv() {
                        Ok(l) => {
                            text.extend_from_slice(&l.text);
                            waiting.push(l.done);
                        }
                        Err(mpsc::error::TryRecvError::Empty) if Instant::now() < until => {
                            std::thread::sleep(Duration::from_millis(20).min(wait));
                        }
                        Err(_) => break,
                    }
                }
                if let Some(t) = &mut throttle {
                    std::thread::sleep(t.take(Instant::now()));
                }
                queued.fetch_sub(text.len(), Ordering::Relaxed);
                let written = file.write(&text);
                if let Err(e) = &written {
                    waiting.iter().for_each(|_| metrics.errors.add(&["log"]));
                    if !failing {
                        tracing::error!(
                            error = e as &dyn std::error::Error,
                            "audit events cannot be written; they are lost until this is mended"
                        );
                    }
                }
                failing = written.is_err();
                for done in waiting.into_iter().flatten() {
                    // Who waited may have gone.
                    let _ = done.send(written.is_ok());
                }
            }
        })?;
        Ok(log)
    }

    /// Writes a line. False: it could not be, and the request must not go on.
    pub async fn write(&self, text: Vec<u8>) -> bool {
        if self.mode == Mode::Batch {
            self.offer(text);
            return true;
        }
        let (done, written) = oneshot::channel();
        self.queued.fetch_add(text.len(), Ordering::Relaxed);
        let sent = self.queue.send(Line { text, done: Some(done) }).await.is_ok();
        let written = sent && written.await.unwrap_or(false);
        written || self.mode != Mode::BlockingStrict
    }

    /// Writes a line when there is room for it, without waiting.
    pub fn offer(&self, text: Vec<u8>) {
        let n = text.len();
        let room = self.queued.fetch_add(n, Ordering::Relaxed) + n <= MAX_QUEUED;
        if !room || self.queue.try_send(Line { text, done: None }).is_err() {
            self.queued.fetch_sub(n, Ordering::Relaxed);
            self.metrics.errors.add(&["buffered"]);
        }
    }

    /// Waits until everything queued before is written.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.queue.send(Line { text: Vec::new(), done: Some(done) }).await.is_ok() {
            // The thread answers every line that it takes.
            let _ = written.await;
        }
    }
}
