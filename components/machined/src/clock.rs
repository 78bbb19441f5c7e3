//! Wall clock and boot clock side by side: what lasts is measured on the boot clock, which a corrected wall clock does
//! not move, and is shown as a date.

use std::time::{SystemTime, UNIX_EPOCH};

/// Both clocks, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Seconds since 1970.
    pub unix_seconds: i64,
    /// Microseconds since the machine was started.
    pub boottime_us: u64,
}

impl Now {
    /// Reads both.
    pub fn read() -> Now {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boottime_us = u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(boot.tv_nsec).unwrap_or(0) / 1000;
        Now { unix_seconds: unix_seconds(), boottime_us }
    }

    /// The date at which the boot clock showed this.
    pub fn unix_seconds_of(&self, boottime_us: u64) -> i64 {
        let ago = self.boottime_us.saturating_sub(boottime_us) / 1_000_000;
        self.unix_seconds - i64::try_from(ago).unwrap_or(0)
    }
}

/// Seconds since 1970; 0 when the clock is before that.
pub fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_is_shown_as_a_date() {
        let now = Now { unix_seconds: 1_000_000, boottime_us: 90_000_000 };
        assert_eq!(now.unix_seconds_of(30_000_000), 999_940);
        assert_eq!(now.unix_seconds_of(95_000_000), 1_000_000, "a moment that is still to come is now");
    }
}
