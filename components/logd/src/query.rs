//! Answers queries on a stream socket, a thread per connection. A client that does not read is dropped, and one that reads
//! slowly is told how much it missed.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use node_ipc::logd::{Entry, LogInfo, Query, Reply, Request};
use node_ipc::{CodecError, encode_line, read_line};

use crate::disk::Disk;
use crate::store::Store;
use crate::warn;

const MAX_CLIENTS: usize = 32;
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
const FOLLOW_WAIT: Duration = Duration::from_secs(1);
const MAX_TAIL: usize = 100_000;

/// Serves from threads of its own.
pub fn serve(path: &Path, store: Arc<Store>, disk: Disk) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let clients = Arc::new(AtomicUsize::new(0));
    std::thread::Builder::new().name("query".to_owned()).spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else {
                // Out of descriptors, most likely; they come back.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            let (store, disk, clients) = (Arc::clone(&store), disk.clone(), Arc::clone(&clients));
            if clients.fetch_add(1, Ordering::SeqCst) >= MAX_CLIENTS {
                clients.fetch_sub(1, Ordering::SeqCst);
                let _ = client.set_write_timeout(Some(CLIENT_TIMEOUT));
                let _ = send(&client, &Reply::Error { message: format!("logd has {MAX_CLIENTS} clients already") });
                continue;
            }
            let spawned = std::thread::Builder::new().name("client".to_owned()).spawn({
                let clients = Arc::clone(&clients);
                move || {
                    // An error here is a client that went away.
                    let _ = answer(&client, &store, &disk);
                    clients.fetch_sub(1, Ordering::SeqCst);
                }
            });
            if let Err(error) = spawned {
                clients.fetch_sub(1, Ordering::SeqCst);
                warn(&format!("start a thread for a client: {error}"));
            }
        }
    })?;
    Ok(())
}

fn answer(client: &UnixStream, store: &Store, disk: &Disk) -> Result<(), CodecError> {
    let timeout = |result: io::Result<()>| result.map_err(CodecError::Transfer);
    timeout(client.set_read_timeout(Some(CLIENT_TIMEOUT)))?;
    timeout(client.set_write_timeout(Some(CLIENT_TIMEOUT)))?;
    let request = match read_line::<Request>(&mut BufReader::new(client)) {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(error) => return send(client, &Reply::Error { message: format!("read the request: {error}") }),
    };
    match request {
        Request::Query(query) => answer_query(client, store, disk, &query),
        Request::List => send(client, &Reply::Logs { logs: all_logs(store, disk) }),
        Request::Persist { dir } => {
            let reply = match disk.persist(Path::new(&dir)) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::Error { message: format!("write logs to {dir}: {error}") },
            };
            send(client, &reply)
        }
    }
}

/// Those in memory, and those that only earlier boots wrote.
fn all_logs(store: &Store, disk: &Disk) -> Vec<LogInfo> {
    let mut logs = store.logs();
    for (name, disk_bytes) in disk.names() {
        match logs.iter_mut().find(|log| log.name == name) {
            Some(log) => log.disk_bytes = disk_bytes,
            None => logs.push(LogInfo { name, entries: 0, dropped: 0, disk_bytes }),
        }
    }
    logs.sort_by(|a, b| a.name.cmp(&b.name));
    logs
}

fn answer_query(client: &UnixStream, store: &Store, disk: &Disk, query: &Query) -> Result<(), CodecError> {
    let known = all_logs(store, disk).iter().any(|log| log.name == query.log);
    if !known && !query.follow {
        return send(client, &Reply::Error { message: format!("no log named {}", query.log.chars().take(64).collect::<String>()) });
    }
    let wanted =
        |entry: &Entry| query.since_us.is_none_or(|since| entry.time_us >= since) && (!query.this_boot || entry.boot == store.boot());
    let memory = store.entries(&query.log);
    let mut last_seen = memory.last().map_or(0, |entry| entry.boottime_us);
    let first_in_memory = memory.first().map_or(u64::MAX, |entry| entry.boottime_us);
    let tail = query.tail.map(|tail| (tail as usize).min(MAX_TAIL));
    let in_memory = memory.iter().filter(|entry| wanted(entry)).count();

    // The disk is read only when memory does not have enough.
    let mut kept: VecDeque<Entry> = VecDeque::new();
    if tail.is_none_or(|tail| tail > in_memory) && known {
        let is_older = |entry: &Entry| entry.boot != store.boot() || entry.boottime_us < first_in_memory;
        let room = tail.map(|tail| tail - in_memory);
        for entry in disk.history(&query.log).filter(|entry| is_older(entry) && wanted(entry)) {
            match room {
                None => send(client, &Reply::Entry(entry))?,
                Some(room) => {
                    if kept.len() == room {
                        kept.pop_front();
                    }
                    kept.push_back(entry);
                }
            }
        }
    }
    for entry in kept {
        send(client, &Reply::Entry(entry))?;
    }
    let skip = tail.map_or(0, |tail| in_memory.saturating_sub(tail));
    for entry in memory.iter().filter(|entry| wanted(entry)).skip(skip) {
        send(client, &Reply::Entry(Entry::clone(entry)))?;
    }
    drop(memory);
    if !query.follow {
        return send(client, &Reply::End);
    }
    loop {
        let (fresh, overrun) = store.entries_after(&query.log, last_seen, FOLLOW_WAIT);
        if fresh.is_empty() && is_gone(client) {
            return Ok(());
        }
        if overrun {
            send(client, &Reply::Lost { count: 1 })?;
        }
        for entry in fresh {
            last_seen = entry.boottime_us;
            if wanted(&entry) {
                send(client, &Reply::Entry(Entry::clone(&entry)))?;
            }
        }
    }
}

fn send(mut client: &UnixStream, reply: &Reply) -> Result<(), CodecError> {
    client.write_all(&encode_line(reply)?).map_err(CodecError::Transfer)
}

/// A follower says nothing, so whatever can be read is its end.
fn is_gone(client: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(client, PollFlags::IN | PollFlags::RDHUP)];
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Incoming;
    use std::io::BufRead;

    struct Setup {
        dir: tempfile::TempDir,
        store: Arc<Store>,
        disk: Disk,
    }

    fn setup(boot: &str, dir: tempfile::TempDir) -> Setup {
        let store = Arc::new(Store::new(boot.to_owned()));
        let disk = Disk::start(Arc::clone(&store), &dir.path().join(format!("run-{boot}"))).unwrap();
        store.write_to(disk.sender());
        serve(&dir.path().join("logd.sock"), Arc::clone(&store), disk.clone()).unwrap();
        Setup { dir, store, disk }
    }

    impl Setup {
        fn add(&self, message: &str) {
            self.store.add("svc", Incoming { priority: 6, message: message.to_owned(), ..Incoming::default() });
        }

        fn connect(&self, line: &str) -> BufReader<UnixStream> {
            let mut client = UnixStream::connect(self.dir.path().join("logd.sock")).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            client.write_all(format!("{line}\n").as_bytes()).unwrap();
            BufReader::new(client)
        }

        fn messages(&self, line: &str) -> Vec<String> {
            let mut client = self.connect(line);
            let mut seen = Vec::new();
            loop {
                match read_line::<Reply>(&mut client).unwrap().unwrap() {
                    Reply::Entry(entry) => seen.push(entry.message),
                    Reply::End => return seen,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn queries_see_earlier_boots_first_and_tails_reach_back_into_them() {
        let logs = tempfile::tempdir().unwrap();
        let first = setup("boot1", tempfile::tempdir().unwrap());
        first.add("a");
        first.add("b");
        first.disk.persist(logs.path()).unwrap();
        while first.disk.history("svc").count() < 2 {
            std::thread::sleep(Duration::from_millis(10));
        }

        let second = setup("boot2", tempfile::tempdir().unwrap());
        second.add("c");
        second.disk.persist(logs.path()).unwrap();
        second.add("d");
        let cases = [
            (r#"{"op":"query","log":"svc"}"#, vec!["a", "b", "c", "d"]),
            (r#"{"op":"query","log":"svc","tail":3}"#, vec!["b", "c", "d"]),
            (r#"{"op":"query","log":"svc","tail":1}"#, vec!["d"]),
            (r#"{"op":"query","log":"svc","tail":0}"#, vec![]),
            (r#"{"op":"query","log":"svc","tail":99}"#, vec!["a", "b", "c", "d"]),
            (r#"{"op":"query","log":"svc","this_boot":true}"#, vec!["c", "d"]),
            (r#"{"op":"query","log":"svc","since_us":9000000000000000}"#, vec![]),
        ];
        for (line, expected) in cases {
            assert_eq!(second.messages(line), expected, "{line}");
        }
    }

    #[test]
    fn following_goes_on_and_ends_with_the_client() {
        let setup = setup("boot1", tempfile::tempdir().unwrap());
        setup.add("before");
        let mut client = setup.connect(r#"{"op":"query","log":"svc","tail":1,"follow":true}"#);
        let next = |client: &mut BufReader<UnixStream>| match read_line::<Reply>(client).unwrap().unwrap() {
            Reply::Entry(entry) => entry.message,
            other => panic!("{other:?}"),
        };
        assert_eq!(next(&mut client), "before");
        for message in ["one", "two"] {
            setup.add(message);
            assert_eq!(next(&mut client), message);
        }
    }

    #[test]
    fn what_cannot_be_answered_gets_a_reason() {
        let setup = setup("boot1", tempfile::tempdir().unwrap());
        for line in [r#"{"op":"query","log":"none"}"#, "nonsense", r#"{"op":"persist","dir":"relative"}"#] {
            let reply = read_line::<Reply>(&mut setup.connect(line)).unwrap().unwrap();
            assert!(matches!(reply, Reply::Error { .. }), "{line}: {reply:?}");
        }
        let reply = read_line::<Reply>(&mut setup.connect(r#"{"op":"list"}"#)).unwrap().unwrap();
        assert_eq!(reply, Reply::Logs { logs: Vec::new() });
    }

    #[test]
    fn one_client_too_many_is_refused() {
        let setup = setup("boot1", tempfile::tempdir().unwrap());
        let follow = r#"{"op":"query","log":"svc","follow":true}"#;
        let _followers: Vec<_> = (0..MAX_CLIENTS).map(|_| setup.connect(follow)).collect();
        let mut line = String::new();
        setup.connect(follow).read_line(&mut line).unwrap();
        assert!(line.contains("clients already"), "{line}");
    }
}
