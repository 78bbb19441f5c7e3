//! A histogram whose series are made as they come.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use parking_lot::Mutex;

/// As of a counter: no histogram grows beyond this.
const MAX_SERIES: usize = 2000;

#[derive(Debug)]
struct Series {
    /// How many were at most as large as each bound; the larger ones are only in `count`.
    buckets: Box<[u64]>,
    sum: f64,
    count: u64,
}

/// Values by their labels.
#[derive(Debug)]
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    bounds: &'static [f64],
    series: Mutex<BTreeMap<String, Series>>,
}

impl Histogram {
    pub const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str], bounds: &'static [f64]) -> Self {
        Self { name, help, labels, bounds, series: Mutex::new(BTreeMap::new()) }
    }

    /// Takes a time, under as many values as there are labels.
    pub fn observe(&self, values: &[&str], took: Duration) {
        let mut key = String::new();
        for (i, (label, value)) in self.labels.iter().zip(values).enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(key, "{}{label}={value:?}", if i > 0 { "," } else { "" });
        }
        let mut all = self.series.lock();
        if all.len() >= MAX_SERIES && !all.contains_key(&key) {
            return;
        }
        let s = all.entry(key).or_insert_with(|| Series { buckets: vec![0; self.bounds.len()].into(), sum: 0.0, count: 0 });
        let seconds = took.as_secs_f64();
        if let Some(b) = self.bounds.iter().position(|b| seconds <= *b) {
            s.buckets[b] += 1;
        }
        s.sum += seconds;
        s.count += 1;
    }

    pub fn render(&self, out: &mut String) {
        let all = self.series.lock();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} histogram", self.name, self.help, self.name);
        for (labels, s) in all.iter() {
            write_series(out, self.name, labels, self.bounds, &s.buckets, s.sum, s.count);
        }
    }
}

/// The lines of one series.
pub fn write_series(out: &mut String, name: &str, labels: &str, bounds: &[f64], buckets: &[u64], sum: f64, count: u64) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut below = 0;
    for (bound, n) in bounds.iter().zip(buckets) {
        below += n;
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
    }
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_below_their_bounds() {
        let h = Histogram::new("x_seconds", "[STABLE] X.", &["a"], &[0.1, 1.0]);
        for ms in [50, 100, 500, 5000] {
            h.observe(&["v"], Duration::from_millis(ms));
        }
        let mut out = String::new();
        h.render(&mut out);
        assert_eq!(
            out,
            "# HELP x_seconds [STABLE] X.\n# TYPE x_seconds histogram\nx_seconds_bucket{a=\"v\",le=\"0.1\"} 2\nx_seconds_bucket{a=\"v\",le=\"1\"} 3\n\
             x_seconds_bucket{a=\"v\",le=\"+Inf\"} 4\nx_seconds_sum{a=\"v\"} 5.65\nx_seconds_count{a=\"v\"} 4\n"
        );
    }
}
