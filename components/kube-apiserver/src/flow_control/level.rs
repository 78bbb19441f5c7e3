//! A priority level at work: the queues behind a lock, who waits for them, and what they count.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    queues::{Queues, Refused, Shape},
    share::{Demand, Period},
};

/// The longest that a request waits for a seat.
const PATIENCE: Duration = Duration::from_secs(15);

/// Upper bounds of the histogram of waiting, in seconds.
pub const BUCKETS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// What is counted of a level's requests by one schema.
#[derive(Debug, Default)]
pub struct Counts {
    pub dispatched: AtomicU64,
    pub queue_full: AtomicU64,
    pub concurrency_limit: AtomicU64,
    pub time_out: AtomicU64,
    pub waited: [AtomicU64; 14],
    /// In microseconds.
    pub wait_sum: AtomicU64,
    pub executing: AtomicU64,
    pub waiting: AtomicU64,
}

impl Counts {
    fn dispatched(&self, waited: Duration) {
        self.dispatched.fetch_add(1, Ordering::Relaxed);
        self.executing.fetch_add(1, Ordering::Relaxed);
        let seconds = waited.as_secs_f64();
        let bucket = BUCKETS.iter().position(|b| seconds <= *b).unwrap_or(BUCKETS.len());
        self.waited[bucket].fetch_add(1, Ordering::Relaxed);
        self.wait_sum.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct State {
    queues: Queues,
    demand: Demand,
    /// Told when they may run; who runs is in here no more.
    waiting: HashMap<u64, oneshot::Sender<()>>,
    next: u64,
}

#[derive(Debug)]
pub struct Level {
    began: Instant,
    state: Mutex<State>,
    /// By schema.
    counts: Mutex<HashMap<String, Arc<Counts>>>,
    /// Seats that one request takes at most.
    most: AtomicU64,
    patience: Duration,
}

/// Why a request does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    QueueFull,
    ConcurrencyLimit,
    TimeOut,
}

/// What is to be seen from outside.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub seats: u64,
    pub limit: Option<u64>,
}

impl Level {
    pub fn new(shape: Shape, limit: Option<u64>) -> Self {
        let state = State { queues: Queues::new(shape, limit), demand: Demand::default(), waiting: HashMap::new(), next: 0 };
        Self { began: Instant::now(), state: Mutex::new(state), counts: Mutex::default(), most: AtomicU64::new(1), patience: PATIENCE }
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub fn counts(&self, schema: &str) -> Arc<Counts> {
        Arc::clone(self.counts.lock().entry(schema.to_owned()).or_default())
    }

    pub fn all_counts(&self) -> Vec<(String, Arc<Counts>)> {
        let mut all: Vec<_> = self.counts.lock().iter().map(|(k, v)| (k.clone(), Arc::clone(v))).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    pub fn seen(&self) -> Seen {
        let q = &self.state.lock().queues;
        Seen { seats: q.seats(), limit: q.limit() }
    }

    /// Takes another shape and bound, and lets run what now may.
    pub fn configure(&self, shape: Shape, limit: Option<u64>, most: u64) {
        self.most.store(most.max(1), Ordering::Relaxed);
        let mut s = self.state.lock();
        let now = self.now();
        s.queues.reshape(shape);
        s.queues.set_limit(now, limit);
        s.wake(now);
    }

    /// The bound changes.
    pub fn limit(&self, limit: u64) {
        let mut s = self.state.lock();
        let now = self.now();
        s.queues.set_limit(now, Some(limit));
        s.wake(now);
    }

    /// The demand since this was asked last.
    pub fn period(&self) -> Period {
        let mut s = self.state.lock();
        let now = self.now();
        s.demand.take(now)
    }

    /// Waits for seats; they are free again when what is given is dropped.
    pub async fn enter(self: &Arc<Self>, hash: u64, width: u64, counts: &Arc<Counts>) -> Result<Seats, Rejected> {
        let width = width.clamp(1, self.most.load(Ordering::Relaxed));
        let arrived = Instant::now();
        let (mut place, told) = {
            let mut s = self.state.lock();
            let now = self.now();
            let key = s.next;
            s.next += 1;
            let queue = s.queues.arrive(now, hash, width, key).map_err(|e| match e {
                Refused::QueueFull => {
                    counts.queue_full.fetch_add(1, Ordering::Relaxed);
                    Rejected::QueueFull
                }
                Refused::ConcurrencyLimit => {
                    counts.concurrency_limit.fetch_add(1, Ordering::Relaxed);
                    Rejected::ConcurrencyLimit
                }
            })?;
            let mut at_once = false;
            // Whoever is next goes; that may well be another than who just came.
            while let Some(d) = s.queues.dispatch(now) {
                if d.key == key {
                    at_once = true;
                } else if let Some(w) = s.waiting.remove(&d.key) {
                    // Who is gone gives the seats back itself.
                    let _ = w.send(());
                }
            }
            let demand = s.queues.demand() as f64;
            s.demand.set(now, demand);
            let place = Seats { level: Arc::clone(self), counts: Arc::clone(counts), key, queue, width, began: arrived, running: at_once };
            if at_once {
                counts.dispatched(Duration::ZERO);
                return Ok(place);
            }
            let (tell, told) = oneshot::channel();
            s.waiting.insert(key, tell);
            counts.waiting.fetch_add(1, Ordering::Relaxed);
            (place, told)
        };
        // When this future is dropped here, the place in the queue goes with it.
        match tokio::time::timeout(self.patience, told).await {
            Ok(Ok(())) => {
                place.running = true;
                place.began = Instant::now();
                counts.waiting.fetch_sub(1, Ordering::Relaxed);
                counts.dispatched(arrived.elapsed());
                Ok(place)
            }
            _ => {
                counts.time_out.fetch_add(1, Ordering::Relaxed);
                Err(Rejected::TimeOut)
            }
        }
    }
}

impl State {
    fn wake(&mut self, now: f64) {
        while let Some(d) = self.queues.dispatch(now) {
            if let Some(w) = self.waiting.remove(&d.key) {
                // Who is gone gives the seats back itself.
                let _ = w.send(());
            }
        }
        let demand = self.queues.demand() as f64;
        self.demand.set(now, demand);
    }
}

/// Seats of a request that runs, or its place in the queue.
#[derive(Debug)]
pub struct Seats {
    level: Arc<Level>,
    counts: Arc<Counts>,
    key: u64,
    queue: usize,
    width: u64,
    began: Instant,
    running: bool,
}

impl Drop for Seats {
    fn drop(&mut self) {
        let mut s = self.level.state.lock();
        let now = self.level.now();
        if self.running {
            self.counts.executing.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            s.waiting.remove(&self.key);
        }
        // It may have been dispatched in the moment in which nobody wanted to wait any longer.
        if self.running || !s.queues.abandon(now, self.queue, self.key) {
            s.queues.finish(now, self.queue, self.width, self.began.elapsed().as_secs_f64());
        }
        s.wake(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(limit: u64, length: usize) -> Arc<Level> {
        Arc::new(Level::new(Shape { queues: 4, hand: 2, length }, Some(limit)))
    }

    /// How many run, and how many wait.
    fn running(l: &Level) -> (usize, usize) {
        let s = l.state.lock();
        (s.queues.running(), s.queues.waiting())
    }

    #[tokio::test]
    async fn who_waits_runs_when_a_seat_is_free_and_gives_up_after_a_while() {
        let (l, counts) = (level(1, 10), Arc::<Counts>::default());
        let first = l.enter(1, 1, &counts).await.unwrap();
        let (l2, c2) = (Arc::clone(&l), Arc::clone(&counts));
        let second = tokio::spawn(async move { l2.enter(2, 1, &c2).await.map(|_| ()) });
        tokio::task::yield_now().await;
        assert_eq!(running(&l), (1, 1));
        drop(first);
        second.await.unwrap().unwrap();
        let impatient = Level::new(Shape { queues: 4, hand: 2, length: 10 }, Some(1));
        let l = Arc::new(Level { patience: Duration::ZERO, ..impatient });
        let held = l.enter(1, 1, &counts).await.unwrap();
        assert_eq!(l.enter(3, 1, &counts).await.unwrap_err(), Rejected::TimeOut);
        drop(held);
        assert_eq!((running(&l), l.seen().seats), ((0, 0), 0));
        let count = |a: &AtomicU64| a.load(Ordering::Relaxed);
        assert_eq!((count(&counts.dispatched), count(&counts.time_out), count(&counts.waiting), count(&counts.executing)), (3, 1, 0, 0));
    }

    #[tokio::test]
    async fn who_goes_away_while_it_waits_leaves_no_trace() {
        let (l, counts) = (level(1, 10), Arc::<Counts>::default());
        let held = l.enter(1, 1, &counts).await.unwrap();
        let (l2, c2) = (Arc::clone(&l), Arc::clone(&counts));
        let gone = tokio::spawn(async move { l2.enter(2, 1, &c2).await.map(|_| ()) });
        tokio::task::yield_now().await;
        assert_eq!(running(&l).1, 1);
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        assert_eq!(running(&l).1, 0);
        drop(held);
        assert_eq!(l.seen().seats, 0);
        l.enter(2, 1, &counts).await.unwrap();
    }

    #[tokio::test]
    async fn a_higher_bound_lets_who_waits_run() {
        let (l, counts) = (level(1, 10), Arc::<Counts>::default());
        let _held = l.enter(1, 1, &counts).await.unwrap();
        let (l2, c2) = (Arc::clone(&l), Arc::clone(&counts));
        let second = tokio::spawn(async move { l2.enter(2, 1, &c2).await.map(|_| ()) });
        tokio::task::yield_now().await;
        l.limit(2);
        second.await.unwrap().unwrap();
    }
}
