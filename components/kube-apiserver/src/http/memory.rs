//! How much memory the bodies of requests may take at once.
//!
//! A body is at most 3 MiB, but it becomes several times as much while it is decoded, compared, judged and encoded again, and hundreds of
//! requests may run. Small bodies are not counted: their number is bounded by flow control. Large ones take their part of a budget from
//! when they were read (how fast a client sends costs nobody else anything) until they are answered, in the order in which they came.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;

/// Bodies up to this length are not counted.
const SMALL: usize = 64 << 10;
/// The large bodies that are in work at once, in [`UNIT`]s: 48 MiB, which are sixteen of the largest.
const BUDGET: u32 = 48 << 10;
const UNIT: usize = 1 << 10;
/// A body waits no longer for its part; flow control lets nothing wait longer either.
const WAIT: Duration = Duration::from_secs(15);

/// The budget of a server.
#[derive(Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    wait: Duration,
    refused: AtomicU64,
}

/// A body's part of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Part {
    _units: OwnedSemaphorePermit,
}

impl Default for Budget {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(BUDGET as usize)), wait: WAIT, refused: AtomicU64::new(0) }
    }
}

impl Budget {
    /// The part for a body of this length, at once or after a while; none: it is small.
    pub async fn take(&self, length: usize) -> Result<Option<Part>, ApiError> {
        if length <= SMALL {
            return Ok(None);
        }
        let units = u32::try_from(length.div_ceil(UNIT)).unwrap_or(BUDGET).min(BUDGET);
        // The semaphore is never closed, so an error is a wait that was too long.
        match tokio::time::timeout(self.wait, Arc::clone(&self.free).acquire_many_owned(units)).await {
            Ok(Ok(units)) => Ok(Some(Part { _units: units })),
            _ => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(ApiError::too_many_requests("too many large requests, please try again later", 1))
            }
        }
    }

    pub fn render(&self, out: &mut String) {
        let taken = (BUDGET as usize - self.free.available_permits()) * UNIT;
        // Writing to a String cannot fail.
        let name = "strake_apiserver_large_bodies_bytes";
        let _ = writeln!(out, "# HELP {name} [ALPHA] Bytes of large request bodies in work.\n# TYPE {name} gauge\n{name} {taken}");
        let name = "strake_apiserver_large_bodies_refused_total";
        let _ = writeln!(out, "# HELP {name} [ALPHA] Requests refused because large bodies were in work for long.\n# TYPE {name} counter");
        let _ = writeln!(out, "{name} {}", self.refused.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = super::super::body::MAX_REQUEST_BODY;

    /// As many of the largest as there is room for.
    async fn filled(b: &Budget) -> Vec<Part> {
        let mut parts = Vec::new();
        for _ in 0..BUDGET as usize * UNIT / MOST {
            parts.push(b.take(MOST).await.unwrap().unwrap());
        }
        parts
    }

    #[tokio::test]
    async fn a_large_body_waits_for_those_before_it_and_not_for_ever() {
        let b = Budget { wait: Duration::from_millis(1), ..Budget::default() };
        assert!(b.take(SMALL).await.unwrap().is_none());
        let parts = filled(&b).await;
        let e = b.take(SMALL + 1).await.unwrap_err();
        assert_eq!((e.code, e.to_value()["details"]["retryAfterSeconds"].as_u64()), (429, Some(1)));
        assert!(b.take(SMALL).await.unwrap().is_none(), "small ones pass");
        drop(parts);
        assert!(b.take(usize::MAX).await.unwrap().is_some(), "nothing is too large to ever come");
        let mut out = String::new();
        b.render(&mut out);
        assert!(out.contains("large_bodies_bytes 0\n") && out.contains("refused_total 1\n"), "{out}");
    }

    #[tokio::test]
    async fn a_part_that_is_given_back_is_taken() {
        let b = Budget::default();
        let mut parts = filled(&b).await;
        let leaving = async { drop(parts.pop()) };
        let (taken, ()) = tokio::join!(b.take(MOST), leaving);
        assert!(taken.unwrap().is_some());
    }
}
