//! One object at rest: the bytes as they are in etcd, and the little that lists and watches ask of every object.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Weak},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;

/// Shares equal strings among objects: label keys and values, node names and phases come in few variants.
#[derive(Debug, Default)]
pub struct Interner {
    set: Mutex<HashSet<Arc<str>>>,
}

/// Strings nobody holds any more are swept when the set reaches a multiple of this.
const SWEEP: usize = 1 << 14;

impl Interner {
    pub fn intern(&self, s: &str) -> Arc<str> {
        let mut set = self.set.lock();
        if let Some(a) = set.get(s) {
            return Arc::clone(a);
        }
        if set.len() % SWEEP == SWEEP - 1 {
            set.retain(|a| Arc::strong_count(a) > 1);
        }
        let a: Arc<str> = s.into();
        set.insert(Arc::clone(&a));
        a
    }
}

/// Selectable fields of custom resources have no static names, so they stand among the labels, behind a character no label has.
pub const CUSTOM_FIELD: char = '\0';

/// An object of the watch cache.
#[derive(Debug)]
pub struct Stored {
    /// Below the resource's prefix: `namespace/name`, or `name`.
    pub key: Arc<str>,
    /// etcd's mod revision, which is the resourceVersion.
    pub rev: i64,
    pub labels: Box<[(Arc<str>, Arc<str>)]>,
    /// What field selectors of this kind can ask for, beyond name and namespace.
    pub fields: Box<[(&'static str, Arc<str>)]>,
    /// The storage encoding.
    pub body: Bytes,
    /// Converted from what is stored: as it is now it is what clients of the other version see.
    pub shown: bool,
    json: ArcSwapOption<Bytes>,
}

impl Stored {
    pub fn new(key: Arc<str>, rev: i64, labels: Box<[(Arc<str>, Arc<str>)]>, fields: Box<[(&'static str, Arc<str>)]>, body: Bytes) -> Self {
        Self { key, rev, labels, fields, body, shown: false, json: ArcSwapOption::empty() }
    }

    /// The same object as it was when something at `rev` deleted it.
    pub fn at_revision(&self, rev: i64) -> Self {
        Self::new(Arc::clone(&self.key), rev, self.labels.clone(), self.fields.clone(), self.body.clone())
    }

    /// The same object in the version of some clients.
    pub fn shown_as(&self, body: Bytes) -> Self {
        Self { shown: true, ..Self::new(Arc::clone(&self.key), self.rev, self.labels.clone(), self.fields.clone(), body) }
    }

    /// Empty for what has no namespace.
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(ns, _)| ns)
    }

    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, n)| n)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => self.fields.iter().find(|(k, _)| *k == name).map(|(_, v)| &**v).or_else(|| {
                let hidden = |k: &str| k.strip_prefix(CUSTOM_FIELD).is_some_and(|k| k == name);
                self.labels.iter().find(|(k, _)| hidden(k)).map(|(_, v)| &**v)
            }),
        }
    }
}

/// JSON of stored objects, made once and shared by everyone who reads them, within a budget of bytes; what was made first goes first.
#[derive(Debug)]
pub struct EncodedCache {
    budget: usize,
    state: Mutex<Encoded>,
}

#[derive(Debug, Default)]
struct Encoded {
    order: VecDeque<(Weak<Stored>, usize)>,
    bytes: usize,
}

impl EncodedCache {
    pub fn new(budget: usize) -> Self {
        Self { budget, state: Mutex::default() }
    }

    /// The JSON of `stored`, encoding it with `make` when nobody did.
    pub fn json<E>(&self, stored: &Arc<Stored>, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some(b) = stored.json.load_full() {
            return Ok(Bytes::clone(&b));
        }
        let b = make()?;
        let len = b.len();
        if len <= self.budget / 8 {
            stored.json.store(Some(Arc::new(b.clone())));
            let mut state = self.state.lock();
            state.order.push_back((Arc::downgrade(stored), len));
            state.bytes += len;
            while state.bytes > self.budget {
                let Some((old, len)) = state.order.pop_front() else { break };
                state.bytes -= len;
                if let Some(old) = old.upgrade() {
                    old.json.store(None);
                }
            }
        }
        Ok(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(key: &str) -> Arc<Stored> {
        Arc::new(Stored::new(key.into(), 7, Box::new([]), Box::new([("spec.nodeName", "n1".into())]), Bytes::new()))
    }

    #[test]
    fn json_is_made_once_until_the_budget_drops_it() {
        let cache = EncodedCache::new(80);
        let (a, b) = (stored("ns/a"), stored("ns/b"));
        let mut made = 0;
        let mut get = |s: &Arc<Stored>| {
            cache.json(s, || {
                made += 1;
                Ok::<_, ()>(Bytes::from_static(b"0123456789"))
            })
        };
        for _ in 0..3 {
            get(&a).unwrap();
        }
        for _ in 0..9 {
            let s = stored("x");
            get(&s).unwrap();
        }
        get(&a).unwrap();
        get(&b).unwrap();
        assert_eq!(made, 12, "one for a, nine for x, one for a again, one for b");
    }

    #[test]
    fn fields_come_from_the_key_and_the_attributes() {
        let s = stored("ns/a");
        assert_eq!(
            [s.field("metadata.name"), s.field("metadata.namespace"), s.field("spec.nodeName"), s.field("other")],
            [Some("a"), Some("ns"), Some("n1"), None]
        );
        assert_eq!(stored("only").namespace(), "");
    }

    #[test]
    fn interning_shares_and_sweeps() {
        let i = Interner::default();
        assert!(Arc::ptr_eq(&i.intern("a"), &i.intern("a")));
        for n in 0..3 * SWEEP {
            i.intern(&n.to_string());
        }
        assert!(i.set.lock().len() <= SWEEP + 1);
    }
}
