//! Time: the wall clock, which may be wrong and jump, and the monotonic one, which never goes back. They are of different
//! types here, so that nobody mixes them up.
#![allow(unsafe_code)]

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use crate::block::locked;

/// A correction up to this is slewed, a larger one is a step.
const SLEW_LIMIT: Duration = Duration::from_millis(500);

/// Wall-clock time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub Duration);

/// Time since boot, suspension included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MonotonicTime(pub Duration);

/// A difference to the wall clock: positive when it is behind the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    pub negative: bool,
    pub magnitude: Duration,
}

impl Offset {
    /// From nanoseconds, which hold 146 years in each direction.
    pub fn from_nanos(nanos: i64) -> Self {
        Self { negative: nanos < 0, magnitude: Duration::from_nanos(nanos.unsigned_abs()) }
    }
}

/// How a correction was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correction {
    Slewed,
    Stepped,
}

#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    #[error("set the clock")]
    Set(#[source] io::Error),
    #[error("slew the clock")]
    Slew(#[source] io::Error),
    #[error("the corrected time would lie before 1970")]
    OutOfRange,
}

/// Clocks.
pub trait Clock: Send + Sync {
    fn wall(&self) -> WallTime;
    fn monotonic(&self) -> MonotonicTime;
    /// Corrects the wall clock: slowly when it is off by little, at once otherwise.
    fn correct(&self, offset: Offset) -> Result<Correction, ClockError>;
}

fn corrected(now: WallTime, offset: Offset) -> Result<WallTime, ClockError> {
    let moved = if offset.negative { now.0.checked_sub(offset.magnitude) } else { now.0.checked_add(offset.magnitude) };
    moved.map(WallTime).ok_or(ClockError::OutOfRange)
}

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxClock;

impl Clock for LinuxClock {
    fn wall(&self) -> WallTime {
        WallTime(read(rustix::time::ClockId::Realtime))
    }

    fn monotonic(&self) -> MonotonicTime {
        MonotonicTime(read(rustix::time::ClockId::Boottime))
    }

    fn correct(&self, offset: Offset) -> Result<Correction, ClockError> {
        if offset.magnitude <= SLEW_LIMIT {
            return slew(offset).map(|()| Correction::Slewed);
        }
        let target = corrected(self.wall(), offset)?;
        let time = rustix::time::Timespec {
            tv_sec: i64::try_from(target.0.as_secs()).map_err(|_| ClockError::OutOfRange)?,
            tv_nsec: i64::from(target.0.subsec_nanos()),
        };
        rustix::time::clock_settime(rustix::time::ClockId::Realtime, time).map_err(|error| ClockError::Set(error.into()))?;
        Ok(Correction::Stepped)
    }
}

fn slew(offset: Offset) -> Result<(), ClockError> {
    let micros = offset.magnitude.subsec_micros() as i64 * if offset.negative { -1 } else { 1 };
    let delta = nix::libc::timeval { tv_sec: 0, tv_usec: micros };
    // SAFETY: adjtime(3) reads `delta`, which outlives the call, and allows a null pointer for the old value.
    match unsafe { nix::libc::adjtime(&delta, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(ClockError::Slew(io::Error::last_os_error())),
    }
}

fn read(id: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(id);
    // A wall clock before 1970 is as wrong as one at 1970.
    u64::try_from(time.tv_sec).map_or(Duration::ZERO, |seconds| Duration::new(seconds, time.tv_nsec as u32))
}

/// Clocks that a test moves.
#[derive(Debug)]
pub struct FakeClock {
    state: Mutex<(WallTime, MonotonicTime)>,
}

impl FakeClock {
    pub fn new(wall: WallTime) -> Self {
        Self { state: Mutex::new((wall, MonotonicTime(Duration::ZERO))) }
    }

    pub fn advance(&self, by: Duration) {
        let mut state = locked(&self.state);
        state.0.0 += by;
        state.1.0 += by;
    }
}

impl Clock for FakeClock {
    fn wall(&self) -> WallTime {
        locked(&self.state).0
    }

    fn monotonic(&self) -> MonotonicTime {
        locked(&self.state).1
    }

    fn correct(&self, offset: Offset) -> Result<Correction, ClockError> {
        let mut state = locked(&self.state);
        state.0 = corrected(state.0, offset)?;
        Ok(if offset.magnitude <= SLEW_LIMIT { Correction::Slewed } else { Correction::Stepped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrections_move_the_wall_clock_only() {
        let clock = FakeClock::new(WallTime(Duration::from_secs(1000)));
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.correct(Offset::from_nanos(-2_000_000_000)).unwrap(), Correction::Stepped);
        assert_eq!(clock.correct(Offset::from_nanos(100)).unwrap(), Correction::Slewed);
        assert_eq!(clock.wall(), WallTime(Duration::new(1003, 100)));
        assert_eq!(clock.monotonic(), MonotonicTime(Duration::from_secs(5)));
        assert!(matches!(clock.correct(Offset::from_nanos(i64::MIN)), Err(ClockError::OutOfRange)));
    }
}
