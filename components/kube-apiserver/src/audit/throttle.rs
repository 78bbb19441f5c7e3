//! How often a backend is used: so many times in a second, and some more at once after a pause.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Throttle {
    rate: f64,
    burst: f64,
    /// What may still be used; below zero, what was promised to those who wait.
    left: f64,
    at: Instant,
}

impl Throttle {
    /// `rate` and `burst` must not be zero.
    pub fn new(rate: f64, burst: u32, now: Instant) -> Self {
        Self { rate, burst: f64::from(burst), left: f64::from(burst), at: now }
    }

    /// Takes one, and says how long to wait for it.
    pub fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * self.rate).min(self.burst) - 1.0;
        if self.left >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.left / self.rate) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_the_rest_at_the_rate() {
        let start = Instant::now();
        let mut t = Throttle::new(10.0, 3, start);
        let waits: Vec<u128> = (0..5).map(|_| t.take(start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        // After a long pause there is no more than a burst.
        let later = start + Duration::from_secs(60);
        assert_eq!((0..4).map(|_| t.take(later).as_millis()).collect::<Vec<_>>(), [0, 0, 0, 100]);
    }
}
