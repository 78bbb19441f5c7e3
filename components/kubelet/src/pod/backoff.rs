//! Restart back-off of the containers of one pod: 10 s, doubled with every restart up to a maximum, forgotten after a long quiet run.

use std::collections::HashMap;
use std::time::Duration;

/// First delay between two starts of a container.
pub const INITIAL: Duration = Duration::from_secs(10);

/// Back-off per container. Times are nanoseconds of the wall clock, as the runtime reports them.
#[derive(Debug, Clone)]
pub struct Backoff {
    max: Duration,
    entries: HashMap<String, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    updated: i64,
}

impl Backoff {
    pub fn new(max: Duration) -> Self {
        Self { max, entries: HashMap::new() }
    }

    /// The delay in force and what is left of it, for a container that ended at `finished`.
    pub fn remaining(&self, key: &str, finished: i64, now: i64) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if self.expired(entry, finished) {
            return None;
        }
        let elapsed = elapsed(finished, now);
        (elapsed < entry.delay).then(|| (entry.delay, entry.delay - elapsed))
    }

    /// Records a restart of a container that ended at `finished`: the next one waits longer.
    pub fn restarted(&mut self, key: &str, finished: i64, now: i64) {
        let initial = INITIAL.min(self.max);
        let delay = match self.entries.get(key) {
            Some(entry) if !self.expired(entry, finished) => (entry.delay * 2).min(self.max),
            _ => initial,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
    }

    /// Keeps only the entries of containers that still exist in the pod.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.entries.retain(|key, _| keep(key));
    }

    fn expired(&self, entry: &Entry, finished: i64) -> bool {
        elapsed(entry.updated, finished) > self.max * 2
    }
}

fn elapsed(from: i64, to: i64) -> Duration {
    Duration::from_nanos(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    #[test]
    fn delays_double_up_to_the_maximum_and_reset_after_a_long_run() {
        let mut b = Backoff::new(Duration::from_secs(300));
        assert_eq!(b.remaining("c", 0, 0), None, "the first restart is immediate");
        let mut finished = 0;
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            b.restarted("c", finished, finished);
            finished += S;
            let (delay, _) = b.remaining("c", finished, finished).unwrap();
            assert_eq!(delay.as_secs(), expected);
            assert_eq!(b.remaining("c", finished, finished + expected as i64 * S), None);
        }
        let much_later = finished + 700 * S;
        assert_eq!(b.remaining("c", much_later, much_later), None, "a run longer than twice the maximum forgives");
        b.restarted("c", much_later, much_later);
        assert_eq!(b.remaining("c", much_later + S, much_later + S).unwrap().0.as_secs(), 10);
    }
}
