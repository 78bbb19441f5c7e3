//! A counter with labels.

use std::{collections::BTreeMap, fmt::Write};

use parking_lot::Mutex;

/// Labels come from fixed sets and from names of objects; no counter grows beyond this.
const MAX_SERIES: usize = 2000;

/// Counts by the values of its labels.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    values: Mutex<BTreeMap<String, u64>>,
}

impl Counter {
    pub const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, labels, values: Mutex::new(BTreeMap::new()) }
    }

    /// Counts one, under as many values as there are labels.
    pub fn add(&self, values: &[&str]) {
        let mut key = String::new();
        for (i, (label, value)) in self.labels.iter().zip(values).enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(key, "{}{label}={value:?}", if i > 0 { "," } else { "" });
        }
        let mut all = self.values.lock();
        if let Some(n) = all.get_mut(&key) {
            *n += 1;
        } else if all.len() < MAX_SERIES {
            all.insert(key, 1);
        }
    }

    pub fn render(&self, out: &mut String) {
        let all = self.values.lock();
        // Writing to a String cannot fail. A counter without labels is there from the start.
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} counter", self.name, self.help, self.name);
        if all.is_empty() && self.labels.is_empty() {
            let _ = writeln!(out, "{} 0", self.name);
        }
        for (key, n) in all.iter() {
            let _ = if key.is_empty() { writeln!(out, "{} {n}", self.name) } else { writeln!(out, "{}{{{key}}} {n}", self.name) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_by_labels() {
        let c = Counter::new("x_total", "[ALPHA] X.", &["a", "b"]);
        for v in [["1", "\"q\""], ["1", "\"q\""], ["2", ""]] {
            c.add(&v);
        }
        let mut out = String::new();
        c.render(&mut out);
        assert_eq!(
            out,
            "# HELP x_total [ALPHA] X.\n# TYPE x_total counter\nx_total{a=\"1\",b=\"\\\"q\\\"\"} 2\nx_total{a=\"2\",b=\"\"} 1\n"
        );
        let plain = Counter::new("y_total", "Y.", &[]);
        let mut out = String::new();
        plain.render(&mut out);
        plain.add(&[]);
        plain.render(&mut out);
        assert!(out.contains("y_total 0\n") && out.ends_with("y_total 1\n"), "{out}");
    }
}
