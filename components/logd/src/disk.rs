//! Logs on disk: `<log>.log` and its older parts `<log>.log.1`…, one JSON entry per line. One thread writes, from a bounded
//! queue; a disk that hangs stops that thread and nothing else. Files of earlier boots are read back for queries.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use node_ipc::logd::Entry;

use crate::store::Store;
use crate::warn;

/// Entries on their way to the disk.
const QUEUE: usize = 8192;
const FILE_BYTES: u64 = 2 * 1024 * 1024;
/// Beside the one that is written.
const OLD_FILES: u32 = 3;
const SYNC_EVERY: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_secs(5);
const PERSIST_TIMEOUT: Duration = Duration::from_secs(20);

enum Job {
    Write { log: String, entry: Arc<Entry> },
    Persist { dir: PathBuf, reply: SyncSender<io::Result<()>> },
    Flush { reply: SyncSender<()> },
}

/// The queue's writing end. Offering never waits.
#[derive(Clone)]
pub struct Sender(SyncSender<Job>);

impl Sender {
    /// Says whether there was room.
    pub fn offer(&self, log: &str, entry: &Arc<Entry>) -> bool {
        self.0.try_send(Job::Write { log: log.to_owned(), entry: Arc::clone(entry) }).is_ok()
    }
}

/// The writer, as the others see it.
#[derive(Clone)]
pub struct Disk {
    jobs: SyncSender<Job>,
    dir: Arc<Mutex<Option<PathBuf>>>,
    run_state: PathBuf,
}

impl Disk {
    /// Starts the writer; it discards what it gets until it is told where to write.
    pub fn start(store: Arc<Store>, run_state: &Path) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE);
        let disk = Self { jobs, dir: Arc::default(), run_state: run_state.to_owned() };
        let writer = Writer {
            store,
            files: BTreeMap::new(),
            written_us: BTreeMap::new(),
            dir: None,
            shared_dir: Arc::clone(&disk.dir),
            retry_at: None,
        };
        std::thread::Builder::new().name("disk".to_owned()).spawn(move || writer.run(&queue))?;
        Ok(disk)
    }

    pub fn sender(&self) -> Sender {
        Sender(self.jobs.clone())
    }

    /// Goes on where the logd before this one wrote.
    pub fn resume(&self) {
        if let Ok(dir) = fs::read_to_string(self.run_state.join("persist"))
            && let Err(error) = self.persist(Path::new(&dir))
        {
            warn(&format!("write logs to {dir} again: {error}"));
        }
    }

    /// Writes to this directory from now on, beginning with what is in memory.
    pub fn persist(&self, dir: &Path) -> io::Result<()> {
        if !dir.is_absolute() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the directory must be an absolute path"));
        }
        let (reply, answer) = sync_channel(1);
        // A writer that hangs in a disk does not take jobs; the client must not hang with it.
        self.jobs
            .try_send(Job::Persist { dir: dir.to_owned(), reply })
            .map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "the writer's queue is full"))?;
        answer.recv_timeout(PERSIST_TIMEOUT).map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer"))??;
        fs::create_dir_all(&self.run_state)?;
        fs::write(self.run_state.join("persist"), dir.as_os_str().as_encoded_bytes())
    }

    /// Waits until what was offered before is on the disk, but not for ever.
    pub fn flush(&self, longest: Duration) {
        let (reply, answer) = sync_channel(1);
        if self.jobs.try_send(Job::Flush { reply }).is_ok() {
            let _ = answer.recv_timeout(longest);
        }
    }

    pub fn is_persistent(&self) -> bool {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Entries on disk, oldest first; lines that are no entries (a power cut's last one) are skipped.
    pub fn history(&self, log: &str) -> Box<dyn Iterator<Item = Entry>> {
        match self.dir.lock().unwrap_or_else(PoisonError::into_inner).as_deref() {
            Some(dir) => Box::new(history(dir, log)),
            None => Box::new(std::iter::empty()),
        }
    }

    /// Logs that have a file.
    pub fn names(&self) -> Vec<(String, u64)> {
        let dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(dir) = dir else { return Vec::new() };
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            if let Some((name, _)) = file.split_once(".log") {
                *sizes.entry(name.to_owned()).or_default() += entry.metadata().map_or(0, |meta| meta.len());
            }
        }
        sizes.into_iter().collect()
    }
}

fn file_name(log: &str, age: u32) -> String {
    if age == 0 { format!("{log}.log") } else { format!("{log}.log.{age}") }
}

fn history(dir: &Path, log: &str) -> impl Iterator<Item = Entry> + use<> {
    let files: Vec<PathBuf> = (0..=OLD_FILES).rev().map(|age| dir.join(file_name(log, age))).collect();
    files.into_iter().filter_map(|path| File::open(path).ok()).flat_map(|file| {
        // A file never grows beyond its bound by more than a line.
        let reader = BufReader::new(file.take(FILE_BYTES + node_ipc::MAX_LINE as u64));
        reader.split(b'\n').map_while(Result::ok).filter_map(|line| node_ipc::decode(&line).ok())
    })
}

struct Open {
    file: File,
    size: u64,
    old_bytes: u64,
    dirty: bool,
}

struct Writer {
    store: Arc<Store>,
    files: BTreeMap<String, Open>,
    dir: Option<PathBuf>,
    shared_dir: Arc<Mutex<Option<PathBuf>>>,
    /// Of this boot, per log: an entry can come from memory and from the queue.
    written_us: BTreeMap<String, u64>,
    /// After a failure nothing is tried before.
    retry_at: Option<Instant>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut sync_at = Instant::now() + SYNC_EVERY;
        loop {
            match queue.recv_timeout(sync_at.saturating_duration_since(Instant::now())) {
                Ok(Job::Write { log, entry }) => self.write(&log, &entry),
                Ok(Job::Persist { dir, reply }) => {
                    let result = self.persist(&dir);
                    let _ = reply.send(result);
                }
                Ok(Job::Flush { reply }) => {
                    self.sync();
                    let _ = reply.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= sync_at {
                self.sync();
                sync_at = Instant::now() + SYNC_EVERY;
            }
        }
    }

    fn persist(&mut self, dir: &Path) -> io::Result<()> {
        if self.dir.as_deref() == Some(dir) {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        self.files.clear();
        self.dir = Some(dir.to_owned());
        self.retry_at = None;
        *self.shared_dir.lock().unwrap_or_else(PoisonError::into_inner) = Some(dir.to_owned());
        // What is in memory goes first, but for what the disk has.
        self.written_us.clear();
        for info in self.store.logs() {
            let newest = newest_of_boot(dir, &info.name, self.store.boot());
            self.written_us.insert(info.name.clone(), newest);
            for entry in self.store.entries(&info.name) {
                self.write(&info.name, &entry);
            }
        }
        Ok(())
    }

    fn write(&mut self, log: &str, entry: &Entry) {
        let Some(dir) = self.dir.clone() else { return };
        if self.written_us.get(log).is_some_and(|written| entry.boottime_us <= *written) {
            return;
        }
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            self.store.lost(log, 1);
            return;
        }
        self.retry_at = None;
        if let Err(error) = self.append(&dir, log, entry) {
            warn(&format!("write {log} to {}: {error}", dir.display()));
            self.store.lost(log, 1);
            self.files.remove(log);
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
        }
    }

    fn append(&mut self, dir: &Path, log: &str, entry: &Entry) -> io::Result<()> {
        let line = node_ipc::encode_line(entry).map_err(io::Error::other)?;
        if !self.files.contains_key(log) {
            self.files.insert(log.to_owned(), Open::new(dir, log)?);
        }
        let Some(open) = self.files.get_mut(log) else { return Ok(()) };
        if open.size > 0 && open.size + line.len() as u64 > FILE_BYTES {
            rotate(dir, log)?;
            *open = Open::new(dir, log)?;
        }
        open.file.write_all(&line)?;
        open.size += line.len() as u64;
        open.dirty = true;
        self.written_us.insert(log.to_owned(), entry.boottime_us);
        self.store.set_disk_bytes(log, open.size + open.old_bytes);
        Ok(())
    }

    fn sync(&mut self) {
        for open in self.files.values_mut().filter(|open| open.dirty) {
            let _ = open.file.sync_data();
            open.dirty = false;
        }
    }
}

impl Open {
    /// For appending, at the beginning of a line.
    fn new(dir: &Path, log: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(dir.join(file_name(log, 0)))?;
        let mut size = file.metadata()?.len();
        if size > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        let old = (1..=OLD_FILES).filter_map(|age| fs::metadata(dir.join(file_name(log, age))).ok()).map(|meta| meta.len());
        Ok(Self { file, size, old_bytes: old.sum(), dirty: false })
    }
}

/// Makes every file one older; the oldest goes.
fn rotate(dir: &Path, log: &str) -> io::Result<()> {
    for age in (0..OLD_FILES).rev() {
        match fs::rename(dir.join(file_name(log, age)), dir.join(file_name(log, age + 1))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn newest_of_boot(dir: &Path, log: &str, boot: &str) -> u64 {
    history(dir, log).filter(|entry| entry.boot == boot).map(|entry| entry.boottime_us).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Incoming;

    fn add(store: &Store, message: &str) {
        store.add("svc", Incoming { priority: 6, message: message.to_owned(), ..Incoming::default() });
    }

    fn start(boot: &str, run: &Path) -> (Arc<Store>, Disk) {
        let store = Arc::new(Store::new(boot.to_owned()));
        let disk = Disk::start(Arc::clone(&store), run).unwrap();
        store.write_to(disk.sender());
        (store, disk)
    }

    #[test]
    fn after_a_flush_everything_offered_before_can_be_read() {
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, disk) = start("boot1", run.path());
        disk.persist(dir.path()).unwrap();
        for n in 0..100 {
            add(&store, &n.to_string());
        }
        disk.flush(Duration::from_secs(10));
        assert_eq!(disk.history("svc").count(), 100);
    }

    fn wait_for(disk: &Disk, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let seen: Vec<String> = disk.history("svc").map(|entry| entry.message).collect();
            if seen.len() >= count || Instant::now() > deadline {
                return seen;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn logs_from_before_and_after_persist_are_on_disk_once_and_survive_a_boot() {
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let logs = dir.path().join("log/strake");
        let (store, disk) = start("boot1", run.path());
        add(&store, "early");
        disk.persist(&logs).unwrap();
        disk.persist(&logs).unwrap();
        add(&store, "late");
        assert_eq!(wait_for(&disk, 2), ["early", "late"]);
        assert!(store.logs()[0].disk_bytes > 0);

        let next_run = tempfile::tempdir().unwrap();
        let (store, disk) = start("boot2", next_run.path());
        add(&store, "second boot");
        disk.persist(&logs).unwrap();
        assert_eq!(wait_for(&disk, 3), ["early", "late", "second boot"]);
        assert_eq!(disk.names().first().map(|(name, _)| name.as_str()), Some("svc"));
    }

    #[test]
    fn a_restarted_logd_goes_on_where_the_one_before_wrote() {
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, disk) = start("boot1", run.path());
        disk.persist(dir.path()).unwrap();
        add(&store, "one");
        wait_for(&disk, 1);
        let (store, disk) = start("boot1", run.path());
        disk.resume();
        assert!(disk.is_persistent());
        add(&store, "two");
        assert_eq!(wait_for(&disk, 2), ["one", "two"]);
    }

    #[test]
    fn files_rotate_within_their_bounds_and_a_torn_line_is_skipped() {
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("svc.log"), b"{\"time_us\":1,\"torn").unwrap();
        let (store, disk) = start("boot1", run.path());
        disk.persist(dir.path()).unwrap();
        let large = "x".repeat(15 * 1024);
        let total = (FILE_BYTES as usize / large.len()) * (OLD_FILES as usize + 3);
        for n in 0..total {
            add(&store, &format!("{n} {large}"));
            if n % 100 == 0 {
                // Slower than the writer, so that the queue takes all.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let last = format!("{} ", total - 1);
        while !disk.history("svc").any(|entry| entry.message.starts_with(&last)) {
            assert!(Instant::now() < deadline, "the last entry never came");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
        files.sort_by_key(|entry| entry.file_name());
        assert_eq!(files.len(), 1 + OLD_FILES as usize);
        assert!(files.iter().all(|entry| entry.metadata().unwrap().len() <= FILE_BYTES));
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_an_error_and_nothing_hangs() {
        let run = tempfile::tempdir().unwrap();
        let (store, disk) = start("boot1", run.path());
        assert!(disk.persist(Path::new("relative")).is_err());
        assert!(disk.persist(Path::new("/proc/none/of/this")).is_err());
        assert!(!disk.is_persistent());
        add(&store, "x");
        assert_eq!(disk.history("svc").count(), 0);
    }

    #[test]
    fn a_hung_disk_costs_entries_but_no_writer_waits() {
        let (jobs, _never_read) = sync_channel(4);
        let store = Store::new("boot1".into());
        store.write_to(Sender(jobs));
        let begun = Instant::now();
        for _ in 0..1000 {
            add(&store, "x");
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!((store.logs()[0].entries, store.logs()[0].dropped), (1000, 996));
    }
}
