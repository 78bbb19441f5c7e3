//! How long each admission plugin takes. Every write passes all of them, so all are taken in under one lock, by names that are constants.

use std::{collections::HashMap, fmt::Write, time::Duration};

use parking_lot::Mutex;

use super::histogram::write_series;

const BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const NAME: &str = "apiserver_admission_controller_admission_duration_seconds";

/// The operation, and which half of admission it was.
type Key = (&'static str, &'static str);

#[derive(Debug)]
struct Series {
    plugin: &'static str,
    refused: bool,
    buckets: [u64; BOUNDS.len()],
    sum: f64,
    count: u64,
}

#[derive(Debug, Default)]
pub struct Plugins(Mutex<HashMap<Key, Vec<Series>>>);

impl Plugins {
    /// Takes the times of plugins that were asked one after the other; the last of them refused, or none.
    pub fn observe(&self, operation: &'static str, half: &'static str, times: &[(&'static str, Duration)], refused: bool) {
        let mut all = self.0.lock();
        let series = all.entry((operation, half)).or_default();
        for (i, (plugin, took)) in times.iter().enumerate() {
            let refused = refused && i + 1 == times.len();
            let is = |s: &Series| s.refused == refused && s.plugin == *plugin;
            // They are always asked in one order, so each is mostly where it was when it was seen first.
            let at = if series.get(i).is_some_and(is) { Some(i) } else { series.iter().position(is) };
            let at = at.unwrap_or_else(|| {
                series.push(Series { plugin, refused, buckets: [0; BOUNDS.len()], sum: 0.0, count: 0 });
                series.len() - 1
            });
            let s = &mut series[at];
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
        let mut all: Vec<_> = all
            .iter()
            .flat_map(|((operation, half), series)| series.iter().map(move |s| (s.plugin, *operation, s.refused, *half, s)))
            .collect();
        all.sort_by_key(|(plugin, operation, refused, half, _)| (*plugin, *operation, *refused, *half));
        // Writing to a String cannot fail.
        let _ = writeln!(w, "# HELP {NAME} [STABLE] Time of admission plugins.\n# TYPE {NAME} histogram");
        for (name, operation, refused, half, s) in all {
            let labels = format!("name={name:?},operation={operation:?},rejected=\"{refused}\",type={half:?}");
            write_series(w, NAME, &labels, BOUNDS, &s.buckets, s.sum, s.count);
        }
    }
}
