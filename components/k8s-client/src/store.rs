//! The objects an informer knows, by key and by any number of indexes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::meta::{Object, ObjectKey};

/// A snapshot in memory of one resource. Its size is that of the resource as the component decodes it; the API server's limits bound it.
pub struct Store<T> {
    inner: RwLock<Inner<T>>,
}

struct Inner<T> {
    objects: BTreeMap<ObjectKey, Arc<T>>,
    indexes: Vec<Arc<Index<T>>>,
}

type Extract<T> = Box<dyn Fn(&T) -> Vec<String> + Send + Sync>;

/// Objects by a value derived from them, for example pods by node.
pub struct Index<T> {
    extract: Extract<T>,
    entries: RwLock<HashMap<String, BTreeMap<ObjectKey, Arc<T>>>>,
}

impl<T: Object> Index<T> {
    /// All objects with that value, by key.
    pub fn get(&self, value: &str) -> Vec<Arc<T>> {
        self.entries.read().get(value).map(|found| found.values().cloned().collect()).unwrap_or_default()
    }

    /// Every value that has objects.
    pub fn values(&self) -> Vec<String> {
        self.entries.read().keys().cloned().collect()
    }

    fn insert(&self, key: &ObjectKey, object: &Arc<T>) {
        let values = (self.extract)(object);
        let mut entries = self.entries.write();
        for value in values {
            entries.entry(value).or_default().insert(key.clone(), object.clone());
        }
    }

    fn remove(&self, key: &ObjectKey, object: &T) {
        let values = (self.extract)(object);
        let mut entries = self.entries.write();
        for value in values {
            if let Some(found) = entries.get_mut(&value) {
                found.remove(key);
                if found.is_empty() {
                    entries.remove(&value);
                }
            }
        }
    }
}

impl<T: Object> Default for Store<T> {
    fn default() -> Self {
        Self { inner: RwLock::new(Inner { objects: BTreeMap::new(), indexes: Vec::new() }) }
    }
}

impl<T: Object> Store<T> {
    /// The object with that name; the namespace is empty for cluster-scoped ones.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    /// The object with that key.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<T>> {
        self.inner.read().objects.get(key).cloned()
    }

    /// Everything, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.inner.read().objects.values().cloned().collect()
    }

    /// One namespace, ordered by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        let first = ObjectKey::new(namespace, "");
        let inner = self.inner.read();
        inner.objects.range(first..).take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.inner.read().objects.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index over present and future objects.
    pub fn index(&self, extract: impl Fn(&T) -> Vec<String> + Send + Sync + 'static) -> Arc<Index<T>> {
        let index = Arc::new(Index { extract: Box::new(extract), entries: RwLock::new(HashMap::new()) });
        let mut inner = self.inner.write();
        for (key, object) in &inner.objects {
            index.insert(key, object);
        }
        inner.indexes.push(index.clone());
        index
    }

    pub(crate) fn put(&self, object: Arc<T>) -> Option<Arc<T>> {
        let key = object.meta().key();
        let mut inner = self.inner.write();
        let old = inner.objects.insert(key.clone(), object.clone());
        for index in &inner.indexes {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
        }
        old
    }

    pub(crate) fn remove(&self, key: &ObjectKey) -> Option<Arc<T>> {
        let mut inner = self.inner.write();
        let old = inner.objects.remove(key)?;
        for index in &inner.indexes {
            index.remove(key, &old);
        }
        Some(old)
    }

    pub(crate) fn keys(&self) -> Vec<ObjectKey> {
        self.inner.read().objects.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{ObjectMeta, Partial};

    fn object(namespace: &str, name: &str, kind: &str) -> Arc<Partial> {
        Arc::new(Partial {
            kind: kind.into(),
            metadata: ObjectMeta { namespace: namespace.into(), name: name.into(), ..Default::default() },
            ..Default::default()
        })
    }

    #[test]
    fn indexes_follow_changes_and_namespaces_do_not_mix() {
        let store = Store::default();
        store.put(object("a", "x", "one"));
        let index = store.index(|p: &Partial| vec![p.kind.clone()]);
        store.put(object("ab", "y", "one"));
        store.put(object("a", "z", "two"));
        assert_eq!(store.list_namespace("a").len(), 2);
        assert_eq!(index.get("one").len(), 2);
        store.put(object("a", "x", "two"));
        assert_eq!((index.get("one").len(), index.get("two").len()), (1, 2));
        store.remove(&ObjectKey::new("ab", "y"));
        assert!(index.get("one").is_empty() && index.values() == ["two"]);
    }
}
