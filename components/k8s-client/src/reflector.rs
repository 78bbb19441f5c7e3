//! Informers: list, then watch, keep a shared store, tell handlers what changed.
//!
//! One reflector per resource and process; controllers share its [`Informer`]. When the server says 410 the resource is listed again and
//! the difference is reported, so handlers never miss a change of state (they may miss intermediate states).

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::Error;
use crate::meta::{Named, Object};
use crate::request::{ListOptions, Request, WatchOptions};
use crate::resource::Resource;
use crate::store::Store;
use crate::watch::WatchEvent;

/// What to watch.
#[derive(Clone, Debug, PartialEq)]
pub struct ReflectorOptions {
    pub resource: Resource,
    /// Empty for all namespaces.
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
    pub metadata_only: bool,
}

impl ReflectorOptions {
    /// All objects of a resource.
    pub fn all(resource: Resource) -> Self {
        Self { resource, namespace: String::new(), label_selector: String::new(), field_selector: String::new(), metadata_only: false }
    }

    /// All objects of a type.
    pub fn of<T: Named>() -> Self {
        Self::all(T::RESOURCE)
    }
}

/// A change of one object, as handlers see it.
#[derive(Debug)]
pub enum Change<'a, T> {
    Added(&'a Arc<T>),
    Updated { old: &'a Arc<T>, new: &'a Arc<T> },
    Deleted(&'a Arc<T>),
}

// Written out because deriving would ask for `T: Copy`, and only references are copied.
impl<T> Clone for Change<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Change<'_, T> {}

impl<'a, T> Change<'a, T> {
    /// The object in its latest known state.
    pub fn object(&self) -> &'a Arc<T> {
        match self {
            Self::Added(object) | Self::Deleted(object) | Self::Updated { new: object, .. } => object,
        }
    }
}

type Handler<T> = Box<dyn Fn(Change<'_, T>) + Send + Sync>;

/// A shared, always current view of one resource; cheap to clone. Dereferences to its [`Store`].
pub struct Informer<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    options: ReflectorOptions,
    store: Store<T>,
    handlers: Mutex<Vec<Handler<T>>>,
    version: AtomicU64,
    synced: watch::Sender<bool>,
}

impl<T> Clone for Informer<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> Deref for Informer<T> {
    type Target = Store<T>;
    fn deref(&self) -> &Store<T> {
        &self.shared.store
    }
}

/// Starts watching in the background until `stop`. Never fails: errors are logged and retried with growing, jittered pauses.
pub fn spawn_reflector<T: Object>(client: Client, options: ReflectorOptions, stop: CancellationToken) -> Informer<T> {
    let shared = Arc::new(Shared {
        options,
        store: Store::default(),
        handlers: Mutex::new(Vec::new()),
        version: AtomicU64::new(0),
        synced: watch::Sender::new(false),
    });
    let informer = Informer { shared: shared.clone() };
    tokio::spawn(async move {
        tokio::select! {
            () = run(&client, &shared) => {}
            () = stop.cancelled() => {}
        }
    });
    informer
}

impl<T: Object> Informer<T> {
    /// Calls `handler` for every present object, then for every change, in order. It runs on the reflector's task: enqueue and return. It
    /// must not add handlers.
    pub fn add_handler(&self, handler: impl Fn(Change<'_, T>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.shared.store.list() {
            handler(Change::Added(&object));
        }
        handlers.push(Box::new(handler));
    }

    /// True once the first list is in the store.
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits for the first list.
    pub async fn wait_synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// The latest resourceVersion this view includes. A write that returned a version up to this one is in the store.
    pub fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }
}

impl<T: Object> Shared<T> {
    fn put(&self, object: T) {
        let new = Arc::new(object);
        let handlers = self.handlers.lock();
        let version = new.meta().resource_version.clone();
        let old = self.store.put(new.clone());
        self.advance(&version);
        match &old {
            Some(old) if old.meta().uid == new.meta().uid => {
                if old.meta().resource_version != version || version.is_empty() {
                    notify(&handlers, Change::Updated { old, new: &new });
                }
            }
            Some(old) => {
                // Deleted and created again between two looks.
                notify(&handlers, Change::Deleted(old));
                notify(&handlers, Change::Added(&new));
            }
            None => notify(&handlers, Change::Added(&new)),
        }
    }

    fn delete(&self, object: T) {
        let last = Arc::new(object);
        let handlers = self.handlers.lock();
        let known = self.store.remove(&last.meta().key());
        self.advance(&last.meta().resource_version);
        if known.is_some() {
            notify(&handlers, Change::Deleted(&last));
        }
    }

    fn replace(&self, items: Vec<T>, version: &str) {
        let mut gone: std::collections::BTreeSet<_> = self.store.keys().into_iter().collect();
        for item in items {
            gone.remove(&item.meta().key());
            self.put(item);
        }
        for key in gone {
            let handlers = self.handlers.lock();
            if let Some(old) = self.store.remove(&key) {
                notify(&handlers, Change::Deleted(&old));
            }
        }
        self.advance(version);
    }

    fn advance(&self, version: &str) {
        if let Ok(version) = version.parse::<u64>() {
            self.version.fetch_max(version, Ordering::AcqRel);
        }
    }
}

fn notify<T>(handlers: &[Handler<T>], change: Change<'_, T>) {
    for handler in handlers {
        handler(change);
    }
}

/// The longest pause after an answer that refuses.
const REFUSED: Duration = Duration::from_secs(30);
/// The longest pause while nothing answers. A connection attempt costs little, and a machine that boots should not lose half a minute to the
/// API server having come up just after a try.
const UNANSWERED: Duration = Duration::from_secs(5);

/// Pauses that grow from 200 ms to a limit, with up to 50 % of jitter.
struct Backoff(u32);

impl Backoff {
    fn next(&mut self, limit: Duration) -> Duration {
        let base = Duration::from_millis(200).saturating_mul(1 << self.0.min(8)).min(limit);
        self.0 = self.0.saturating_add(1);
        base.mul_f64(1.0 + rand::random_range(0.0..0.5))
    }
}

enum Ended {
    /// The server closed the watch; go on from that version.
    Normally(String),
    /// The version is too old, or something could not be decoded: list again.
    Relist,
}

async fn run<T: Object>(client: &Client, shared: &Shared<T>) {
    let mut backoff = Backoff(0);
    let mut version: Option<String> = None;
    loop {
        let from = match version.take() {
            Some(version) => version,
            None => match list(client, shared).await {
                Ok(version) => version,
                Err(error) => {
                    pause(shared, &mut backoff, "list", &error).await;
                    continue;
                }
            },
        };
        match follow(client, shared, from.clone(), &mut backoff).await {
            Ok(Ended::Normally(at)) => version = Some(at),
            Ok(Ended::Relist) => tokio::time::sleep(backoff.next(REFUSED)).await,
            Err(error) => {
                // Without an answer the version is still good; anything the server refused starts over.
                version = error.status().is_none().then(|| current(shared, from));
                pause(shared, &mut backoff, "watch", &error).await;
            }
        }
    }
}

fn current<T: Object>(shared: &Shared<T>, fallback: String) -> String {
    match shared.version.load(Ordering::Acquire) {
        0 => fallback,
        version => version.to_string(),
    }
}

async fn pause<T: Object>(shared: &Shared<T>, backoff: &mut Backoff, what: &str, error: &Error) {
    let wait = backoff.next(if error.status().is_some() { REFUSED } else { UNANSWERED });
    tracing::warn!(resource = %shared.options.resource, wait_ms = wait.as_millis() as u64, error = error as &dyn std::error::Error, "{what} failed, trying again");
    tokio::time::sleep(wait).await;
}

async fn list<T: Object>(client: &Client, shared: &Shared<T>) -> Result<String, Error> {
    let options = ListOptions {
        label_selector: shared.options.label_selector.clone(),
        field_selector: shared.options.field_selector.clone(),
        metadata_only: shared.options.metadata_only,
        ..ListOptions::default()
    };
    let list = client.list::<T>(&shared.options.resource, &shared.options.namespace, &options).await?;
    shared.replace(list.items, &list.metadata.resource_version);
    if !shared.synced.send_replace(true) {
        tracing::debug!(resource = %shared.options.resource, objects = shared.store.len(), "synced");
    }
    Ok(list.metadata.resource_version)
}

async fn follow<T: Object>(client: &Client, shared: &Shared<T>, mut version: String, backoff: &mut Backoff) -> Result<Ended, Error> {
    let timeout_seconds = rand::random_range(300..600);
    let options = WatchOptions {
        label_selector: shared.options.label_selector.clone(),
        field_selector: shared.options.field_selector.clone(),
        resource_version: version.clone(),
        timeout_seconds,
        metadata_only: shared.options.metadata_only,
    };
    let request = Request::watch(&shared.options.resource, &shared.options.namespace, &options);
    let mut stream = client.watch::<Versioned<T>>(&request).await?;
    // The server ends the watch at its timeout; past that with some grace the connection is dead.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(u64::from(timeout_seconds) + 30);
    loop {
        let event = match tokio::time::timeout_at(deadline, stream.next()).await {
            Err(_) | Ok(None) => return Ok(Ended::Normally(version)),
            Ok(Some(event)) => event?,
        };
        backoff.0 = 0;
        match event {
            WatchEvent::Added(Versioned(object)) | WatchEvent::Modified(Versioned(object)) => {
                version.clone_from(&object.meta().resource_version);
                shared.put(object);
            }
            WatchEvent::Deleted(Versioned(object)) => {
                version.clone_from(&object.meta().resource_version);
                shared.delete(object);
            }
            WatchEvent::Bookmark { resource_version, .. } => {
                shared.advance(&resource_version);
                version = resource_version;
            }
            WatchEvent::Error(status) => {
                tracing::debug!(resource = %shared.options.resource, code = status.code, message = status.message, "watch ended with an error, listing again");
                return Ok(Ended::Relist);
            }
        }
    }
}

/// Gives `T` the serde bound the stream asks for.
#[derive(Deserialize)]
#[serde(transparent, bound = "T: Object")]
struct Versioned<T>(T);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{ObjectMeta, Partial};
    use crate::resources::PODS;

    fn object(name: &str, uid: &str, version: u64) -> Partial {
        Partial {
            metadata: ObjectMeta { name: name.into(), uid: uid.into(), resource_version: version.to_string(), ..Default::default() },
            ..Default::default()
        }
    }

    #[test]
    fn handlers_see_the_difference_a_relist_makes() {
        let shared = Arc::new(Shared::<Partial> {
            options: ReflectorOptions::all(PODS),
            store: Store::default(),
            handlers: Mutex::new(Vec::new()),
            version: AtomicU64::new(0),
            synced: watch::Sender::new(false),
        });
        let informer = Informer { shared: shared.clone() };
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = log.clone();
        informer.add_handler(move |change: Change<'_, Partial>| {
            let verb = match change {
                Change::Added(_) => "+",
                Change::Updated { .. } => "~",
                Change::Deleted(_) => "-",
            };
            sink.lock().push(format!("{verb}{}@{}", change.object().metadata.name, change.object().metadata.resource_version));
        });
        shared.replace(vec![object("a", "1", 1), object("b", "2", 2), object("c", "3", 3)], "5");
        assert_eq!(informer.version(), 5);
        // a unchanged, b changed, c replaced by another of the same name, d new; then a gone
        shared.replace(vec![object("a", "1", 1), object("b", "2", 7), object("c", "9", 8), object("d", "4", 9)], "9");
        shared.delete(object("a", "1", 12));
        shared.delete(object("a", "1", 12));
        assert_eq!(*log.lock(), ["+a@1", "+b@2", "+c@3", "~b@7", "-c@3", "+c@8", "+d@9", "-a@12"]);
        assert_eq!(informer.version(), 12);
    }
}
