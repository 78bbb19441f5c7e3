//! The hardware watchdog: fed from the event loop, so that a hung init resets the machine. It is left armed for a reboot and
//! disarmed for a power-off.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::time::Duration;

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// An open watchdog and when to feed it next.
pub struct Watchdog {
    device: File,
    interval: Duration,
    next: Duration,
}

impl Watchdog {
    /// Arms the first watchdog there is.
    pub fn open(now: Duration) -> Option<Self> {
        let device = OpenOptions::new().write(true).open("/dev/watchdog0").ok()?;
        let timeout = fs::read_to_string("/sys/class/watchdog/watchdog0/timeout").unwrap_or_default();
        Some(Self { device, interval: interval(&timeout), next: now })
    }

    /// Feeds it when it is time. Returns when it is time again.
    pub fn feed(&mut self, now: Duration) -> Duration {
        if now >= self.next {
            let _ = self.device.write_all(b"\n");
            self.next = now + self.interval;
        }
        self.next
    }

    /// Stops it (the "magic close" of the kernel's watchdog API).
    pub fn disarm(mut self) {
        let _ = self.device.write_all(b"V");
    }
}

/// A third of the hardware's timeout.
fn interval(timeout: &str) -> Duration {
    let seconds = timeout.trim().parse().unwrap_or(30);
    (Duration::from_secs(seconds) / 3).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_three_times_per_timeout_within_bounds() {
        for (timeout, expected) in [("30\n", 10_000), ("15", 5_000), ("1", 1_000), ("600", 10_000), ("", 10_000), ("x", 10_000)] {
            assert_eq!(interval(timeout), Duration::from_millis(expected), "{timeout:?}");
        }
    }
}
