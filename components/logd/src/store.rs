//! The logs in memory: a ring per service, bounded in entries and bytes, and how many there may be. Everything that comes in
//! goes through here, and from here to the disk's queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use node_ipc::logd::{Entry, LogInfo};

use crate::disk::Sender;

const MAX_LOGS: usize = 64;
const MAX_NAME: usize = 64;
const RING_ENTRIES: usize = 4096;
const RING_BYTES: usize = 1024 * 1024;
/// Where entries go whose log would be one too many.
const OVERFLOW: &str = "other";

/// Something for a log, before it has its times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Incoming {
    pub priority: u8,
    pub pid: Option<i32>,
    pub message: String,
    pub fields: BTreeMap<String, String>,
    /// When it happened, where that is known better than by when it is read.
    pub age: Duration,
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    last_boottime_us: u64,
    dropped: u64,
    disk_bytes: u64,
}

/// All logs.
pub struct Store {
    boot: String,
    logs: Mutex<BTreeMap<String, Ring>>,
    arrived: Condvar,
    sender: Mutex<Option<Sender>>,
}

impl Store {
    pub fn new(boot: String) -> Self {
        Self { boot, logs: Mutex::default(), arrived: Condvar::new(), sender: Mutex::default() }
    }

    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// From now on every entry also goes to this queue.
    pub fn write_to(&self, sender: Sender) {
        *lock(&self.sender) = Some(sender);
    }

    /// Adds an entry. Never waits for anything but the lock, which nobody holds for long.
    pub fn add(&self, log: &str, incoming: Incoming) {
        let (wall, boottime) = (wall_us(), boottime_us());
        let age = u64::try_from(incoming.age.as_micros()).unwrap_or(u64::MAX);
        let mut logs = lock(&self.logs);
        let name = if logs.contains_key(log) || logs.len() < MAX_LOGS { log } else { OVERFLOW };
        let ring = logs.entry(name.to_owned()).or_default();
        let entry = Arc::new(Entry {
            time_us: wall.saturating_sub(age),
            boottime_us: boottime.max(ring.last_boottime_us + 1),
            boot: self.boot.clone(),
            priority: incoming.priority,
            pid: incoming.pid,
            message: incoming.message,
            fields: incoming.fields,
        });
        ring.last_boottime_us = entry.boottime_us;
        ring.bytes += weight(&entry);
        ring.entries.push_back(Arc::clone(&entry));
        while ring.entries.len() > RING_ENTRIES || ring.bytes > RING_BYTES {
            let Some(oldest) = ring.entries.pop_front() else { break };
            ring.bytes -= weight(&oldest);
        }
        // Inside the lock, so that the queue has the order of the ring; a full queue says so at once.
        if let Some(sender) = lock(&self.sender).as_ref()
            && !sender.offer(name, &entry)
        {
            ring.dropped += 1;
        }
        drop(logs);
        self.arrived.notify_all();
    }

    /// Counts entries that never became any.
    pub fn lost(&self, log: &str, count: u64) {
        if let Some(ring) = lock(&self.logs).get_mut(log) {
            ring.dropped += count;
        }
    }

    /// What the writer knows of a log on disk.
    pub fn set_disk_bytes(&self, log: &str, bytes: u64) {
        if let Some(ring) = lock(&self.logs).get_mut(log) {
            ring.disk_bytes = bytes;
        }
    }

    pub fn logs(&self) -> Vec<LogInfo> {
        let info = |(name, ring): (&String, &Ring)| LogInfo {
            name: name.clone(),
            entries: ring.entries.len() as u64,
            dropped: ring.dropped,
            disk_bytes: ring.disk_bytes,
        };
        lock(&self.logs).iter().map(info).collect()
    }

    /// Everything in memory of one log, oldest first.
    pub fn entries(&self, log: &str) -> Vec<Arc<Entry>> {
        lock(&self.logs).get(log).map(|ring| ring.entries.iter().cloned().collect()).unwrap_or_default()
    }

    /// Entries after a moment of this boot, waiting for at most so long when there are none yet. The flag says that some in
    /// between are gone already.
    pub fn entries_after(&self, log: &str, after_us: u64, wait: Duration) -> (Vec<Arc<Entry>>, bool) {
        let newest = |logs: &BTreeMap<String, Ring>| logs.get(log).map_or(0, |ring| ring.last_boottime_us);
        let guard = lock(&self.logs);
        let (guard, _) =
            self.arrived.wait_timeout_while(guard, wait, |logs| newest(logs) <= after_us).unwrap_or_else(PoisonError::into_inner);
        let Some(ring) = guard.get(log) else { return (Vec::new(), false) };
        let fresh: Vec<Arc<Entry>> = ring.entries.iter().filter(|entry| entry.boottime_us > after_us).cloned().collect();
        let overrun = fresh.len() == ring.entries.len() && ring.entries.len() == RING_ENTRIES && after_us > 0;
        (fresh, overrun)
    }
}

/// A panic while a lock is held leaves at worst one entry half counted.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn weight(entry: &Entry) -> usize {
    let fields: usize = entry.fields.iter().map(|(key, value)| key.len() + value.len() + 64).sum();
    entry.message.len() + fields + 160
}

/// A log's name becomes a file's name: lower-case letters, digits, dashes and dots, the first one a letter or a digit.
pub fn log_name(wanted: &str) -> Option<String> {
    let name: String = wanted.to_ascii_lowercase().chars().take(MAX_NAME).collect();
    let well_formed = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    well_formed.then_some(name)
}

/// The kernel's id of this boot, without dashes.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().replace('-', "")
}

fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds since boot, which go on when logd restarts.
pub fn boottime_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(message: &str) -> Incoming {
        Incoming { priority: 6, message: message.to_owned(), ..Incoming::default() }
    }

    #[test]
    fn a_ring_keeps_the_newest_within_its_bounds() {
        let store = Store::new("b".into());
        for n in 0..RING_ENTRIES + 10 {
            store.add("a", incoming(&n.to_string()));
        }
        let entries = store.entries("a");
        assert_eq!(entries.len(), RING_ENTRIES);
        assert_eq!(entries[0].message, "10");
        assert!(entries.windows(2).all(|pair| pair[0].boottime_us < pair[1].boottime_us), "the order is strict");

        for _ in 0..200 {
            store.add("big", incoming(&"x".repeat(16 * 1024)));
        }
        let held: usize = store.entries("big").iter().map(|entry| weight(entry)).sum();
        assert!(held <= RING_BYTES && held > RING_BYTES / 2, "{held}");
    }

    #[test]
    fn there_are_only_so_many_logs() {
        let store = Store::new("b".into());
        for n in 0..MAX_LOGS * 2 {
            store.add(&format!("log{n}"), incoming("x"));
        }
        assert!(store.logs().len() <= MAX_LOGS + 1);
        assert_eq!(store.entries(OVERFLOW).len(), MAX_LOGS);
    }

    #[test]
    fn a_follower_wakes_for_what_is_new_only() {
        let store = Arc::new(Store::new("b".into()));
        store.add("a", incoming("old"));
        let seen = store.entries("a")[0].boottime_us;
        assert_eq!(store.entries_after("a", seen, Duration::from_millis(20)), (Vec::new(), false));
        let writer = Arc::clone(&store);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            writer.add("other", incoming("not this"));
            writer.add("a", incoming("new"));
        });
        let (fresh, overrun) = store.entries_after("a", seen, Duration::from_secs(10));
        assert_eq!((fresh.len(), fresh[0].message.as_str(), overrun), (1, "new", false));
        thread.join().unwrap();
    }

    #[test]
    fn names_are_safe_as_file_names() {
        for (wanted, expected) in [
            ("kubelet", Some("kubelet")),
            ("Kube-Proxy_1.x", Some("kube-proxy_1.x")),
            ("../etc", None),
            (".hidden", None),
            ("a/b", None),
            ("", None),
            ("ä", None),
        ] {
            assert_eq!(log_name(wanted).as_deref(), expected, "{wanted}");
        }
    }
}
