//! A queue of keys to reconcile: a key is never processed twice at once, adding one that waits is free, failures come back later.
//!
//! Its length is bounded by the number of distinct keys, that is by the objects that exist.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// How failed keys come back: exponentially per key, and not more than a rate overall.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    pub base: Duration,
    pub max: Duration,
    /// Retries per second over all keys, once the burst is used up.
    pub per_second: f64,
    pub burst: f64,
}

impl Default for RateLimit {
    /// Upstream's default controller rate limiter.
    fn default() -> Self {
        Self { base: Duration::from_millis(5), max: Duration::from_secs(1000), per_second: 10.0, burst: 100.0 }
    }
}

impl RateLimit {
    /// The pause before the n-th retry of one key, n from 0.
    pub fn delay(&self, failures: u32) -> Duration {
        self.base.saturating_mul(1_u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX)).min(self.max)
    }
}

/// The queue. Share it with `Arc`.
pub struct WorkQueue<K> {
    name: String,
    limit: RateLimit,
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// In `ready`, or to be added again when its processing ends.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    sequence: u64,
    failures: HashMap<K, u32>,
    tokens: f64,
    refilled: Instant,
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    /// An empty queue; the name appears in logs.
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Self::with_limit(name, RateLimit::default())
    }

    /// An empty queue with another retry policy.
    pub fn with_limit(name: impl Into<String>, limit: RateLimit) -> Arc<Self> {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            sequence: 0,
            failures: HashMap::new(),
            tokens: limit.burst,
            refilled: Instant::now(),
        };
        Arc::new(Self { name: name.into(), limit, state: Mutex::new(state), wake: Notify::new() })
    }

    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Keys that are ready or waiting for their time.
    pub fn len(&self) -> usize {
        let state = self.state.lock();
        state.ready.len() + state.delayed.len()
    }

    /// True when nothing is ready or waiting.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a key now.
    pub fn add(&self, key: K) {
        self.state.lock().add(key);
        self.wake.notify_one();
    }

    /// Adds a key after a while; of several times for one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.state.lock().delay(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Adds a key again after a failure.
    pub fn add_rate_limited(&self, key: K) {
        let mut state = self.state.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let own = self.limit.delay(*failures);
        *failures = failures.saturating_add(1);
        let bucket = state.take_token(&self.limit);
        state.delay(key, Instant::now() + own.max(bucket));
        drop(state);
        self.wake.notify_one();
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &K) {
        self.state.lock().failures.remove(key);
    }

    /// How often the key failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key. Call [`WorkQueue::done`] with it afterwards.
    pub async fn get(&self) -> K {
        loop {
            // Registered before looking, so that an add in between is not missed.
            let notified = self.wake.notified();
            let next_due = {
                let mut state = self.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            match next_due {
                None => notified.await,
                Some(at) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }

    /// Ends the processing of a key; it comes back at once if it was added meanwhile.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if !self.dirty.insert(key.clone()) {
            return;
        }
        if !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn delay(&mut self, key: K, at: Instant) {
        match self.due.get(&key) {
            Some((known, _)) if *known <= at => return,
            Some(slot) => {
                let slot = *slot;
                self.delayed.remove(&slot);
            }
            None => {}
        }
        self.sequence += 1;
        let slot = (at, self.sequence);
        self.due.insert(key.clone(), slot);
        self.delayed.insert(slot, key);
    }

    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }

    fn take_token(&mut self, limit: &RateLimit) -> Duration {
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.refilled).as_secs_f64() * limit.per_second).min(limit.burst);
        self.refilled = now;
        self.tokens -= 1.0;
        if self.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64((-self.tokens / limit.per_second).min(1000.0)) }
    }
}

/// What to do with a key after a successful round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until it changes.
    Done,
    /// Look again after this long.
    After(Duration),
    /// Look again as after a failure, without calling it one.
    Retry,
}

/// Runs `workers` tasks that process keys until `stop`. Failures are logged and retried with the queue's back-off.
pub async fn run_workers<K, E, F, Fut>(queue: Arc<WorkQueue<K>>, workers: usize, stop: CancellationToken, process: F)
where
    K: Clone + Eq + Hash + Send + Sync + std::fmt::Debug + 'static,
    E: std::error::Error + 'static,
    F: Fn(K) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<Action, E>> + Send,
{
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let (queue, stop, process) = (queue.clone(), stop.clone(), process.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    key = queue.get() => key,
                    () = stop.cancelled() => return,
                };
                match process(key.clone()).await {
                    Ok(Action::Done) => queue.forget(&key),
                    Ok(Action::After(delay)) => {
                        queue.forget(&key);
                        queue.add_after(key.clone(), delay);
                    }
                    Ok(Action::Retry) => queue.add_rate_limited(key.clone()),
                    Err(error) => {
                        let (name, failures) = (queue.name(), queue.failures(&key));
                        // Someone else wrote first: the normal way of two writers, and no trouble.
                        let conflict = (&error as &(dyn std::error::Error + 'static)).downcast_ref::<Error>().is_some_and(Error::is_conflict);
                        if conflict && failures < 5 {
                            tracing::debug!(queue = name, key = ?key, failures, error = &error as &dyn std::error::Error, "conflict, trying again");
                        } else {
                            tracing::warn!(queue = name, key = ?key, failures, error = &error as &dyn std::error::Error, "reconciling failed, trying again");
                        }
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_never_processed_twice_at_once() {
        let queue = WorkQueue::new("test");
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.get().await, "a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.get().await, "b");
        assert!(tokio::time::timeout(Duration::from_millis(50), queue.get()).await.is_err(), "a is still being processed");
        queue.done(&"a");
        assert_eq!(queue.get().await, "a");
    }

    #[tokio::test]
    async fn delayed_keys_come_at_their_earliest_time() {
        let queue = WorkQueue::new("test");
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(100));
        queue.add_after("late", Duration::from_millis(20));
        queue.add_after("late", Duration::from_secs(50));
        assert_eq!(queue.get().await, "late");
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn failures_back_off_per_key_and_are_forgotten() {
        let queue = WorkQueue::new("test");
        let mut waits = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            queue.add_rate_limited("k");
            queue.get().await;
            waits.push(start.elapsed().as_millis());
            queue.done(&"k");
        }
        assert!(waits.iter().zip([5, 10, 20, 40]).all(|(have, least)| *have >= least), "{waits:?}");
        queue.forget(&"k");
        assert_eq!(queue.failures(&"k"), 0);
        assert_eq!(RateLimit::default().delay(40), Duration::from_secs(1000));
    }

    #[tokio::test]
    async fn workers_retry_failures_and_stop_when_told() {
        let queue = WorkQueue::new("test");
        let stop = CancellationToken::new();
        let tries = Arc::new(Mutex::new(0));
        queue.add(1);
        let (seen, ended) = (tries.clone(), stop.clone());
        run_workers(queue, 2, stop, move |_| {
            let (seen, ended) = (seen.clone(), ended.clone());
            async move {
                *seen.lock() += 1;
                if *seen.lock() < 3 {
                    return Err(std::io::Error::other("not yet"));
                }
                ended.cancel();
                Ok(Action::Done)
            }
        })
        .await;
        assert_eq!(*tries.lock(), 3);
    }
}
