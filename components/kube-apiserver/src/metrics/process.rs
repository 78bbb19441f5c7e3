//! What the system says of this process.

use std::{fmt::Write, sync::OnceLock};

/// Ticks of the system's clock in a second, and bytes in a page: Linux tells user space these on every machine this runs on.
const TICKS: f64 = 100.0;
const PAGE: u64 = 4096;

/// Seconds since the epoch at which the system started.
fn boot() -> u64 {
    static BOOT: OnceLock<u64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0)
    })
}

pub fn render(w: &mut String) {
    let mut gauge = |name: &str, kind: &str, value: f64| {
        // Writing to a String cannot fail.
        let _ = writeln!(w, "# TYPE {name} {kind}\n{name} {value}");
    };
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Vec<u64> = statm.split_whitespace().filter_map(|p| p.parse().ok()).collect();
    if let [all, resident, ..] = pages.as_slice() {
        gauge("process_virtual_memory_bytes", "gauge", (all * PAGE) as f64);
        gauge("process_resident_memory_bytes", "gauge", (resident * PAGE) as f64);
    }
    // The name may have spaces; what follows its parenthesis has not.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    if let (Some(user), Some(system), Some(start)) = (fields.get(11), fields.get(12), fields.get(19)) {
        gauge("process_cpu_seconds_total", "counter", (user + system) / TICKS);
        gauge("process_start_time_seconds", "gauge", boot() as f64 + start / TICKS);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        gauge("process_open_fds", "gauge", open.count() as f64);
    }
}
