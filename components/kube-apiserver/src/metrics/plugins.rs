//! How long each admission plugin takes. Every write passes all of them, so all are taken in under one lock, by names that are constants.

use std::{collections::HashMap, fmt::Write, time::Duration};

use parking_lot::Mutex;

use super::histogram::write_series;

const BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const NAME: &str = "apiserver_admission_controller_admission_duration_seconds";

/// Plugin, operation, whether it refused, and which half of admission it was.
type Key = (&'static str, &'static str, bool, &'static str);

#[derive(Debug, Default)]
struct Series {
    buckets: [u64; BOUNDS.len()],
    sum: f64,
    count: u64,
}

#[derive(Debug, Default)]
pub struct Plugins(Mutex<HashMap<Key, Series>>);

impl Plugins {
    /// Takes the times of plugins that were asked one after the other; the last of them refused, or none.
    pub fn observe(&self, operation: &'static str, half: &'static str, times: &[(&'static str, Duration)], refused: bool) {
        let mut all = self.0.lock();
        for (i, (name, took)) in times.iter().enumerate() {
            let s = all.entry((name, operation, refused && i + 1 == times.len(), half)).or_default();
            let seconds = took.as_secs_f64();
            if let Some(b) = BOUNDS.iter().position(|b| seconds <= *b) {
                s.buckets[b] += 1;
            }
            s.sum += seconds;
            s.count += 1;
        }
    }

    pub fn render(&self, w: &mut String) {
        let all = self.0.lock();
        let mut all: Vec<_> = all.iter().collect();
        all.sort_by_key(|(k, _)| **k);
        // Writing to a String cannot fail.
        let _ = writeln!(w, "# HELP {NAME} [STABLE] Time of admission plugins.\n# TYPE {NAME} histogram");
        for ((name, operation, refused, half), s) in all {
            let labels = format!("name={name:?},operation={operation:?},rejected=\"{refused}\",type={half:?}");
            write_series(w, NAME, &labels, BOUNDS, &s.buckets, s.sum, s.count);
        }
    }
}
