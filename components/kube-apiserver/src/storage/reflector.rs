//! Keeps every resource's cache true to etcd with one watch over the whole key space.
//!
//! One watch means one order of events over all resources, so one number, the observed revision, tells how current every cache is.
//! When the watch breaks it is resumed where it stopped; only after a compaction are the caches filled anew.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{EventType, WatchStream};
use parking_lot::RwLock;
use tokio::sync::{Notify, oneshot, watch};

use super::{CowMap, Etcd, Interner, ResourceCache, StoreError, Stored, etcd::prefix_end};

/// Reads at start come in pages of this many keys.
const PAGE: i64 = 2000;
/// A consistent read waits this long for the watch to catch up.
const CATCH_UP: Duration = Duration::from_secs(3);
/// Silence on the watch for this long is answered with a request for progress, so that bookmarks stay current.
const IDLE: Duration = Duration::from_secs(5);

/// Reads what lists and watches need out of an object's bytes.
pub trait Ingest: Send + Sync {
    /// Labels and selectable fields of the object at `prefix`/`key`.
    fn ingest(&self, prefix: &str, key: &str, rev: i64, body: Bytes, interner: &Interner) -> Result<Stored, String>;

    /// Where the objects are that say which further prefixes there are, if any do.
    fn definitions(&self) -> Option<&'static str> {
        None
    }

    /// One of these objects came, changed or went (`None`).
    fn defined(&self, key: &str, object: Option<&Stored>) -> Defined {
        let _ = (key, object);
        Defined::Nothing
    }

    /// Only the definitions with these keys are left.
    fn only(&self, keys: &[String]) {
        let _ = keys;
    }
}

/// What a definition does to the caches.
#[derive(Debug, PartialEq, Eq)]
pub enum Defined {
    Nothing,
    /// Objects below this prefix are wanted; what was read of those there already is to be read again.
    Changed(String),
    /// The prefix is wanted as it was.
    Same(String),
    /// They are not wanted any more.
    Gone(String),
}

/// The caches of all resources, by storage prefix.
pub struct Reflector {
    etcd: Etcd,
    root: String,
    caches: HashMap<String, Arc<ResourceCache>>,
    /// Caches of prefixes that definitions add.
    dynamic: RwLock<HashMap<String, Arc<ResourceCache>>>,
    ingest: Box<dyn Ingest>,
    interner: Interner,
    observed: watch::Sender<i64>,
    want_progress: Notify,
    want_reload: Notify,
    /// Waiters of the next revision check; `None`: no check is running.
    checks: parking_lot::Mutex<Checks>,
}

#[derive(Default)]
struct Checks {
    running: bool,
    waiting: Vec<oneshot::Sender<Result<i64, String>>>,
}

impl Reflector {
    /// `root` is the key space, with a slash at its end; `prefixes` are below it.
    pub fn new(etcd: Etcd, root: &str, prefixes: impl IntoIterator<Item = String>, ingest: Box<dyn Ingest>) -> Arc<Self> {
        Arc::new(Self {
            etcd,
            root: root.to_owned(),
            caches: prefixes.into_iter().map(|p| (p, Arc::default())).collect(),
            dynamic: RwLock::default(),
            ingest,
            interner: Interner::default(),
            observed: watch::channel(0).0,
            want_progress: Notify::new(),
            want_reload: Notify::new(),
            checks: parking_lot::Mutex::default(),
        })
    }

    pub fn cache(&self, prefix: &str) -> Option<Arc<ResourceCache>> {
        self.caches.get(prefix).cloned().or_else(|| self.dynamic.read().get(prefix).cloned())
    }

    /// Everything up to this revision is in the caches; 0 before the first load.
    pub fn observed(&self) -> i64 {
        *self.observed.borrow()
    }

    pub fn observed_changes(&self) -> watch::Receiver<i64> {
        self.observed.subscribe()
    }

    pub fn make_stored(&self, prefix: &str, key: &str, rev: i64, body: Bytes) -> Result<Stored, String> {
        self.ingest.ingest(prefix, key, rev, body, &self.interner)
    }

    /// Splits a key below the root into a known prefix and the rest.
    fn split<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str)> {
        let key = key.strip_prefix(self.root.as_str())?;
        let mut splits = key.match_indices('/').take(3).map(|(i, _)| (&key[..i], &key[i + 1..]));
        splits.clone().find(|(p, _)| self.caches.contains_key(*p)).or_else(|| {
            let dynamic = self.dynamic.read();
            splits.find(|(p, _)| dynamic.contains_key(*p))
        })
    }

    /// Reads the definitions first: they say which other prefixes are wanted.
    async fn load_definitions(&self) -> Result<i64, StoreError> {
        let Some(prefix) = self.ingest.definitions() else { return Ok(0) };
        let base = format!("{}{prefix}/", self.root);
        let (mut start, mut rev, mut keys, mut wanted) = (base.clone(), 0, Vec::new(), Vec::new());
        loop {
            let page = self.etcd.range(&start, prefix_end(&base), PAGE, rev).await?;
            rev = page.rev;
            let last = page.kvs.last().map(|kv| kv.key.clone());
            for kv in page.kvs {
                let Some(key) = kv.key.strip_prefix(&base) else { continue };
                match self.ingest.ingest(prefix, key, kv.rev, kv.value, &self.interner) {
                    Ok(s) => {
                        if let Defined::Changed(p) | Defined::Same(p) = self.ingest.defined(key, Some(&s)) {
                            wanted.push(p);
                        }
                        keys.push(key.to_owned());
                    }
                    Err(reason) => tracing::error!(key, reason, "a definition in etcd cannot be decoded and is not served"),
                }
            }
            match last {
                Some(last) if page.more => start = format!("{last}\0"),
                _ => break,
            }
        }
        self.ingest.only(&keys);
        let mut dynamic = self.dynamic.write();
        dynamic.retain(|p, _| wanted.contains(p));
        for p in wanted {
            dynamic.entry(p).or_default();
        }
        Ok(rev)
    }

    /// A definition came, changed or went: caches follow before any later event is looked at.
    async fn redefine(&self, key: &str, object: Option<&Stored>, rev: i64) -> Result<(), StoreError> {
        match self.ingest.defined(key, object) {
            Defined::Nothing => {}
            Defined::Gone(prefix) => {
                if let Some(cache) = self.dynamic.write().remove(&prefix) {
                    cache.wake();
                }
            }
            Defined::Changed(prefix) | Defined::Same(prefix) if self.cache(&prefix).is_none() => {
                let map = self.load_prefix(&prefix, rev).await?;
                let cache = Arc::new(ResourceCache::default());
                cache.load(map, rev);
                self.dynamic.write().insert(prefix, cache);
            }
            Defined::Same(_) => {}
            Defined::Changed(prefix) => {
                if let Some(cache) = self.cache(&prefix) {
                    cache.refresh(|s| {
                        let again = self.ingest.ingest(&prefix, &s.key, s.rev, s.body.clone(), &self.interner);
                        again.map(Arc::new).unwrap_or_else(|_| Arc::clone(s))
                    });
                }
            }
        }
        Ok(())
    }

    /// Everything below a prefix at a revision.
    async fn load_prefix(&self, prefix: &str, rev: i64) -> Result<CowMap<Arc<Stored>>, StoreError> {
        let base = format!("{}{prefix}/", self.root);
        let (mut start, mut map) = (base.clone(), CowMap::default());
        loop {
            let page = self.etcd.range(&start, prefix_end(&base), PAGE, rev).await?;
            let last = page.kvs.last().map(|kv| kv.key.clone());
            for kv in page.kvs {
                let Some(key) = kv.key.strip_prefix(&base) else { continue };
                match self.ingest.ingest(prefix, key, kv.rev, kv.value, &self.interner) {
                    Ok(s) => {
                        map.insert(Arc::clone(&s.key), Arc::new(s));
                    }
                    Err(reason) => tracing::error!(key = kv.key, reason, "an object in etcd cannot be decoded and is not served"),
                }
            }
            match last {
                Some(last) if page.more => start = format!("{last}\0"),
                _ => return Ok(map),
            }
        }
    }

    /// Fills all caches at one revision, which is returned.
    async fn load(&self) -> Result<i64, StoreError> {
        let mut maps: HashMap<String, CowMap<Arc<Stored>>> = HashMap::new();
        let (mut start, mut rev) = (self.root.clone(), self.load_definitions().await?);
        loop {
            let page = self.etcd.range(&start, prefix_end(&self.root), PAGE, rev).await?;
            rev = page.rev;
            let last = page.kvs.last().map(|kv| kv.key.clone());
            for kv in page.kvs {
                let Some((prefix, key)) = self.split(&kv.key) else { continue };
                match self.ingest.ingest(prefix, key, kv.rev, kv.value, &self.interner) {
                    Ok(s) => {
                        if !maps.contains_key(prefix) {
                            maps.insert(prefix.to_owned(), CowMap::default());
                        }
                        if let Some(map) = maps.get_mut(prefix) {
                            map.insert(Arc::clone(&s.key), Arc::new(s));
                        }
                    }
                    Err(reason) => tracing::error!(key = kv.key, reason, "an object in etcd cannot be decoded and is not served"),
                }
            }
            match last {
                Some(last) if page.more => start = format!("{last}\0"),
                _ => break,
            }
        }
        for (prefix, cache) in self.caches.iter().chain(self.dynamic.read().iter()) {
            cache.load(maps.remove(prefix).unwrap_or_default(), rev);
        }
        self.observed.send_replace(rev);
        Ok(rev)
    }

    /// Runs until the process ends.
    pub async fn run(self: Arc<Self>) {
        let mut backoff = Duration::from_millis(50);
        let mut from = None;
        loop {
            let result = async {
                let rev = match from {
                    Some(rev) => rev,
                    None => {
                        let rev = self.load().await?;
                        from = Some(rev);
                        rev
                    }
                };
                let stream = self.etcd.watch(&self.root, rev + 1).await?;
                backoff = Duration::from_millis(50);
                self.follow(stream, &mut from).await
            }
            .await;
            match result {
                Ok(()) => tracing::warn!("the etcd watch ended; resuming"),
                Err(StoreError::Compacted) => {
                    tracing::warn!("etcd compacted what the watch had not read yet; loading again");
                    from = None;
                }
                Err(StoreError::ReadAgain) => from = None,
                Err(e) => tracing::warn!(error = &e as &dyn std::error::Error, "the etcd watch failed; resuming"),
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(Duration::from_secs(2));
        }
    }

    async fn follow(&self, mut stream: WatchStream, from: &mut Option<i64>) -> Result<(), StoreError> {
        let mut silent = 0u32;
        loop {
            let message = tokio::select! {
                m = stream.message() => m?,
                () = self.want_progress.notified() => {
                    stream.request_progress().await?;
                    continue;
                }
                () = self.want_reload.notified() => return Err(StoreError::ReadAgain),
                () = tokio::time::sleep(IDLE) => {
                    // A connection that stays silent although asked is dead.
                    silent += 1;
                    if silent > 3 {
                        return Err(StoreError::Timeout);
                    }
                    stream.request_progress().await?;
                    continue;
                }
            };
            silent = 0;
            let Some(message) = message else { return Ok(()) };
            if message.compact_revision() > 0 {
                return Err(StoreError::Compacted);
            }
            if message.canceled() {
                return Ok(());
            }
            for event in message.events() {
                let Some(kv) = event.kv() else { continue };
                let rev = kv.mod_revision();
                let full = String::from_utf8_lossy(kv.key());
                if let Some((prefix, key)) = self.split(&full) {
                    // `split` only gives prefixes that are in a map.
                    let Some(cache) = self.cache(prefix) else { continue };
                    let definition = self.ingest.definitions() == Some(prefix);
                    match event.event_type() {
                        EventType::Delete => {
                            if definition {
                                self.redefine(key, None, rev).await?;
                            }
                            cache.delete(key, rev);
                        }
                        EventType::Put => match self.read_event(prefix, key, rev, &full, kv.value()) {
                            Ok(s) => {
                                if definition {
                                    self.redefine(key, Some(&s), rev).await?;
                                }
                                cache.put(Arc::new(s));
                            }
                            Err(reason) => {
                                tracing::error!(key = &*full, reason, "an object in etcd cannot be decoded and is not served");
                                cache.delete(key, rev);
                            }
                        },
                    }
                }
            }
            // A response holds whole transactions (it is not fragmented), so its last revision is complete; a progress
            // notification's header says that nothing is missing up to it. The header of a response with events may be ahead of them.
            let rev = match message.events().last().and_then(|e| e.kv()) {
                Some(kv) => kv.mod_revision(),
                None if message.created() => continue,
                None => message.header().map_or(0, |h| h.revision()),
            };
            if from.is_none_or(|f| f < rev) {
                *from = Some(rev);
                self.observed.send_replace(rev);
            }
        }
    }

    fn read_event(&self, prefix: &str, key: &str, rev: i64, full: &str, value: &[u8]) -> Result<Stored, String> {
        let body = self.etcd.open(full, Bytes::copy_from_slice(value)).map_err(|e| e.to_string())?;
        self.ingest.ingest(prefix, key, rev, body, &self.interner)
    }

    /// Makes all caches be filled anew: values that could not be read may be readable now.
    pub fn read_again(&self) {
        self.want_reload.notify_one();
    }

    /// Waits until the caches hold everything up to `rev`.
    pub async fn wait_for(&self, rev: i64) -> Result<(), StoreError> {
        let mut observed = self.observed.subscribe();
        if *observed.borrow_and_update() >= rev {
            return Ok(());
        }
        let deadline = tokio::time::Instant::now() + CATCH_UP;
        // Events that are on their way need no request; one that is not under our root does.
        let mut pause = Duration::from_millis(3);
        loop {
            match tokio::time::timeout(pause, observed.wait_for(|o| *o >= rev)).await {
                Ok(_) => return Ok(()),
                Err(_) if tokio::time::Instant::now() > deadline => return Err(StoreError::Timeout),
                Err(_) => {
                    self.want_progress.notify_one();
                    pause = (pause * 2).min(Duration::from_millis(200));
                }
            }
        }
    }

    /// Waits until the caches hold everything that was written before this call, and gives the revision of that moment. Callers that
    /// come while a check is running share the next one.
    pub async fn barrier(self: &Arc<Self>) -> Result<i64, StoreError> {
        let (tx, rx) = oneshot::channel();
        let start = {
            let mut c = self.checks.lock();
            c.waiting.push(tx);
            !std::mem::replace(&mut c.running, true)
        };
        if start {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                loop {
                    let batch = {
                        let mut c = this.checks.lock();
                        if c.waiting.is_empty() {
                            c.running = false;
                            return;
                        }
                        std::mem::take(&mut c.waiting)
                    };
                    let r = this.etcd.revision().await.map_err(|e| e.to_string());
                    for tx in batch {
                        // A caller that went away needs no answer.
                        let _ = tx.send(r.clone());
                    }
                }
            });
        }
        match rx.await {
            Ok(Ok(rev)) => {
                self.wait_for(rev).await?;
                Ok(rev)
            }
            Ok(Err(_)) | Err(_) => Err(StoreError::Timeout),
        }
    }
}
