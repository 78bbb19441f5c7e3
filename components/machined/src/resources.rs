//! The machine's observed state as named JSON objects of a kind, with versions and watches. In memory, bounded, written
//! by the reconcilers and read by the machine API; nothing is decided from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;
use tokio::sync::broadcast;

/// Most objects of one kind; more are dropped with a warning, so that a machine with absurdly many routes can't fill
/// machined's memory.
const MAX_PER_KIND: usize = 4096;
/// Changes a slow watcher may be behind before it has to begin again.
const WATCH_BACKLOG: usize = 256;

/// The kinds there are, in the order in which people are shown them.
pub const KINDS: &[&str] = &[
    "status",
    "events",
    "boot",
    "root",
    "security",
    "upgrade",
    "disks",
    "links",
    "addresses",
    "routes",
    "volumes",
    "services",
    "time",
    "certificates",
    "etcd-members",
    "etcd-snapshots",
    "joined",
];

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// What it is one of.
    pub kind: String,
    /// Its name within the kind.
    pub id: String,
    /// Grows with every change of any object.
    pub version: u64,
    /// What is known about it.
    pub spec: Arc<Value>,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is new or different.
    Set(Resource),
    /// It is gone; this is what it was.
    Deleted(Resource),
}

impl Change {
    /// The object that changed.
    pub fn resource(&self) -> &Resource {
        match self {
            Change::Set(resource) | Change::Deleted(resource) => resource,
        }
    }
}

#[derive(Debug, Default)]
struct Objects {
    kinds: BTreeMap<String, BTreeMap<String, Resource>>,
    version: u64,
}

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<Mutex<Objects>>,
    changes: broadcast::Sender<Change>,
}

impl Default for Store {
    fn default() -> Self {
        Store { objects: Arc::default(), changes: broadcast::Sender::new(WATCH_BACKLOG) }
    }
}

impl Store {
    /// Sets one object. The same value again changes nothing.
    pub fn set(&self, kind: &str, id: &str, spec: Value) {
        let mut objects = self.lock();
        self.set_locked(&mut objects, kind, id, spec);
    }

    /// Makes these the only objects of the kind.
    pub fn replace(&self, kind: &str, wanted: BTreeMap<String, Value>) {
        let mut objects = self.lock();
        let gone: Vec<String> =
            objects.kinds.get(kind).into_iter().flatten().map(|(id, _)| id.clone()).filter(|id| !wanted.contains_key(id)).collect();
        for id in gone {
            self.remove_locked(&mut objects, kind, &id);
        }
        for (id, spec) in wanted {
            self.set_locked(&mut objects, kind, &id, spec);
        }
    }

    /// Removes one object.
    pub fn remove(&self, kind: &str, id: &str) {
        let mut objects = self.lock();
        self.remove_locked(&mut objects, kind, id);
    }

    /// The objects of a kind, or the one with this name.
    pub fn get(&self, kind: &str, id: Option<&str>) -> Vec<Resource> {
        Self::select(&self.lock(), kind, id)
    }

    /// The objects now, and every change from now on.
    pub fn watch(&self, kind: &str, id: Option<&str>) -> (Vec<Resource>, broadcast::Receiver<Change>) {
        let objects = self.lock();
        (Self::select(&objects, kind, id), self.changes.subscribe())
    }

    fn select(objects: &Objects, kind: &str, id: Option<&str>) -> Vec<Resource> {
        let of_kind = objects.kinds.get(kind).into_iter().flatten();
        of_kind.filter(|(name, _)| id.is_none_or(|id| id == name.as_str())).map(|(_, resource)| resource.clone()).collect()
    }

    fn set_locked(&self, objects: &mut Objects, kind: &str, id: &str, spec: Value) {
        let of_kind = objects.kinds.entry(kind.to_owned()).or_default();
        if of_kind.get(id).is_some_and(|existing| *existing.spec == spec) {
            return;
        }
        if of_kind.len() >= MAX_PER_KIND && !of_kind.contains_key(id) {
            tracing::warn!(kind, id, limit = MAX_PER_KIND, "too many resources of one kind, this one is not shown");
            return;
        }
        objects.version += 1;
        let resource = Resource { kind: kind.to_owned(), id: id.to_owned(), version: objects.version, spec: Arc::new(spec) };
        objects.kinds.entry(kind.to_owned()).or_default().insert(id.to_owned(), resource.clone());
        // Without a receiver the change is in the store all the same.
        let _ = self.changes.send(Change::Set(resource));
    }

    fn remove_locked(&self, objects: &mut Objects, kind: &str, id: &str) {
        if let Some(resource) = objects.kinds.get_mut(kind).and_then(|of_kind| of_kind.remove(id)) {
            objects.version += 1;
            let _ = self.changes.send(Change::Deleted(Resource { version: objects.version, ..resource }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        // No code panics while it holds the lock, and a half-made change is at worst one resource not shown.
        self.objects.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ids(resources: &[Resource]) -> Vec<&str> {
        resources.iter().map(|resource| resource.id.as_str()).collect()
    }

    #[test]
    fn the_same_value_again_is_no_change() {
        let store = Store::default();
        let (_, mut changes) = store.watch("links", None);
        store.set("links", "eth0", json!({"up": true}));
        store.set("links", "eth0", json!({"up": true}));
        assert_eq!(store.get("links", Some("eth0"))[0].version, 1);
        assert!(matches!(changes.try_recv(), Ok(Change::Set(_))));
        assert!(changes.try_recv().is_err());
    }

    #[test]
    fn replace_removes_what_is_not_named() {
        let store = Store::default();
        store.set("links", "eth0", json!(1));
        store.set("links", "eth1", json!(1));
        store.set("routes", "default", json!(1));
        let (before, mut changes) = store.watch("links", None);
        assert_eq!(ids(&before), ["eth0", "eth1"]);
        store.replace("links", BTreeMap::from([("eth1".to_owned(), json!(1)), ("eth2".to_owned(), json!(2))]));
        assert_eq!(ids(&store.get("links", None)), ["eth1", "eth2"]);
        assert_eq!(ids(&store.get("routes", None)), ["default"]);
        assert!(matches!(changes.try_recv(), Ok(Change::Deleted(resource)) if resource.id == "eth0"));
        assert!(matches!(changes.try_recv(), Ok(Change::Set(resource)) if resource.id == "eth2"));
        assert!(changes.try_recv().is_err());
    }

    #[test]
    fn a_kind_is_bounded() {
        let store = Store::default();
        for index in 0..MAX_PER_KIND + 10 {
            store.set("routes", &index.to_string(), json!(index));
        }
        assert_eq!(store.get("routes", None).len(), MAX_PER_KIND);
    }
}
