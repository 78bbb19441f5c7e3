//! One object at rest: the bytes as they are in etcd, and the little that lists and watches ask of every object.

use std::{
    any::Any,
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::http::gzip::Tail;

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

/// Values of `Stored::plain`.
const UNKNOWN: u8 = 0;
const PLAIN: u8 = 1;
const DIFFERENT: u8 = 2;

/// An encoding that readers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// With a newline.
    Json,
    /// In upstream's envelope.
    Protobuf,
}

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
    /// At the revision of what ended it, with what it was before.
    former: bool,
    encoded: [ArcSwapOption<Bytes>; 2],
    /// Whether readers in the storage version get `body` as it is, but for the revision.
    plain: AtomicU8,
}

impl Stored {
    pub fn new(key: Arc<str>, rev: i64, labels: Box<[(Arc<str>, Arc<str>)]>, fields: Box<[(&'static str, Arc<str>)]>, body: Bytes) -> Self {
        Self { key, rev, labels, fields, body, shown: false, former: false, encoded: Default::default(), plain: AtomicU8::new(UNKNOWN) }
    }

    /// The same object as it was when something at `rev` deleted it.
    pub fn at_revision(&self, rev: i64) -> Self {
        let new = Self::new(Arc::clone(&self.key), rev, self.labels.clone(), self.fields.clone(), self.body.clone());
        Self { former: true, ..new }
    }

    /// The same object in the version of some clients.
    pub fn shown_as(&self, body: Bytes) -> Self {
        Self { shown: true, ..Self::new(Arc::clone(&self.key), self.rev, self.labels.clone(), self.fields.clone(), body) }
    }

    /// Whether readers in the storage version get the body as it is, but for the revision; none: nobody looked yet.
    pub fn is_plain(&self) -> Option<bool> {
        match self.plain.load(Ordering::Relaxed) {
            UNKNOWN => None,
            known => Some(known == PLAIN),
        }
    }

    pub fn note_plain(&self, plain: bool) {
        self.plain.store(if plain { PLAIN } else { DIFFERENT }, Ordering::Relaxed);
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

/// Encodings of stored objects and compressed lists, made once and shared by everyone who reads them, within a budget of bytes; what was made
/// first goes first.
#[derive(Debug)]
pub struct EncodedCache {
    budget: usize,
    /// How often an object was encoded for readers.
    made: AtomicU64,
    state: Mutex<Encoded>,
}

#[derive(Debug)]
enum Kept {
    Object(Weak<Stored>, Encoding),
    /// A list by its key, and which of those that were kept under it.
    List(String, u64),
}

#[derive(Debug)]
struct List {
    id: u64,
    changed: i64,
    /// What it was made by: another maker's list is another list.
    maker: Weak<dyn Any + Send + Sync>,
    tail: Arc<Tail>,
    cost: usize,
}

/// Writes whose JSON waits for its first reader, at most; watchers come at once or not at all.
const WRITTEN: usize = 256;
/// And the bytes of it.
const WRITTEN_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
struct Encoded {
    /// What writers were answered, by the key and revision of what they wrote.
    written: VecDeque<(String, i64, Bytes)>,
    written_bytes: usize,
    order: VecDeque<(Kept, usize)>,
    lists: HashMap<String, List>,
    last: u64,
    bytes: usize,
}

impl Encoded {
    fn take_written(&mut self, key: &str, rev: i64) -> Option<Bytes> {
        // The newest are asked for first.
        let at = self.written.iter().rposition(|(k, r, _)| *r == rev && k == key)?;
        let (_, _, line) = self.written.remove(at)?;
        self.written_bytes -= line.len();
        Some(line)
    }

    fn push(&mut self, kept: Kept, cost: usize, budget: usize) {
        self.order.push_back((kept, cost));
        self.bytes += cost;
        while self.bytes > budget {
            let Some((old, cost)) = self.order.pop_front() else { break };
            self.bytes -= cost;
            match old {
                Kept::Object(old, encoding) => {
                    if let Some(old) = old.upgrade() {
                        old.encoded[encoding as usize].store(None);
                    }
                }
                Kept::List(key, id) => {
                    if self.lists.get(&key).is_some_and(|l| l.id == id) {
                        self.lists.remove(&key);
                    }
                }
            }
        }
    }
}

impl EncodedCache {
    pub fn new(budget: usize) -> Self {
        Self { budget, made: AtomicU64::new(0), state: Mutex::default() }
    }

    /// What may be kept of one object or list, at most.
    pub fn largest(&self) -> usize {
        self.budget / 8
    }

    /// How often an object was encoded, for however many readers.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// `stored` in an encoding, made with `make` when nobody did.
    pub fn get<E>(&self, stored: &Arc<Stored>, encoding: Encoding, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let slot = &stored.encoded[encoding as usize];
        if let Some(b) = slot.load_full() {
            return Ok(Bytes::clone(&b));
        }
        let look = encoding == Encoding::Json && !stored.former && !stored.shown;
        let b = match look.then(|| self.state.lock().take_written(&stored.key, stored.rev)).flatten() {
            Some(b) => {
                #[cfg(debug_assertions)]
                if let Ok(made) = make() {
                    assert_eq!(made, b, "a writer was answered something else than readers of {} are", stored.key);
                }
                b
            }
            None => {
                self.made.fetch_add(1, Ordering::Relaxed);
                make()?
            }
        };
        let len = b.len();
        if len <= self.largest() {
            slot.store(Some(Arc::new(b.clone())));
            self.state.lock().push(Kept::Object(Arc::downgrade(stored), encoding), len, self.budget);
        }
        Ok(b)
    }

    /// A writer was answered this JSON, of the object that it stored below its resource's prefix at `key`, at `rev`.
    pub fn written(&self, key: String, rev: i64, line: Bytes) {
        if line.len() > WRITTEN_BYTES {
            return;
        }
        let mut state = self.state.lock();
        state.written_bytes += line.len();
        state.written.push_back((key, rev, line));
        while state.written.len() > WRITTEN || state.written_bytes > WRITTEN_BYTES {
            let Some((_, _, old)) = state.written.pop_front() else { break };
            state.written_bytes -= old.len();
        }
    }

    /// The compressed items of a list, if they were kept when the resource was as it is, by the same maker.
    pub fn list(&self, key: &str, changed: i64, maker: &Arc<impl Any + Send + Sync>) -> Option<Arc<Tail>> {
        let state = self.state.lock();
        let list = state.lists.get(key).filter(|l| l.changed == changed)?;
        std::ptr::addr_eq(Weak::as_ptr(&list.maker), Arc::as_ptr(maker)).then(|| Arc::clone(&list.tail))
    }

    /// Keeps the compressed items of a list in place of older ones. A weak maker's memory is nobody else's, so it cannot be taken for
    /// another's.
    pub fn keep_list(&self, key: String, changed: i64, maker: &Arc<impl Any + Send + Sync>, tail: Arc<Tail>) {
        let cost = tail.cost() + key.len() + size_of::<List>();
        if cost > self.largest() {
            return;
        }
        let mut state = self.state.lock();
        if let Some(old) = state.lists.remove(&key) {
            state.bytes -= old.cost;
            state.order.retain(|(k, _)| !matches!(k, Kept::List(_, id) if *id == old.id));
        }
        state.last += 1;
        let id = state.last;
        let maker: Weak<dyn Any + Send + Sync> = Arc::downgrade(maker) as Weak<_>;
        state.lists.insert(key.clone(), List { id, changed, maker, tail, cost });
        state.push(Kept::List(key, id), cost, self.budget);
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
            cache.get(s, Encoding::Json, || {
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
        assert_eq!(cache.made(), 12);
        let other = cache.get(&b, Encoding::Protobuf, || Ok::<_, ()>(Bytes::from_static(b"k8s"))).unwrap();
        assert_eq!((&other[..], cache.made()), (&b"k8s"[..], 13), "each encoding is made for itself");
    }

    #[test]
    fn what_a_writer_was_answered_is_read_once_by_its_object_alone() {
        let cache = EncodedCache::new(1 << 16);
        let none = || Err::<Bytes, _>("made anew");
        let line = Bytes::from_static(b"{}\n");
        cache.written("ns/a".into(), 7, line.clone());
        assert_eq!(cache.get(&stored("ns/b"), Encoding::Json, none), Err("made anew"), "another object");
        let s = stored("ns/a");
        assert_eq!(cache.get(&Arc::new(s.at_revision(7)), Encoding::Json, none), Err("made anew"), "it shows what was before");
        assert_eq!(cache.get(&s, Encoding::Json, none), Ok(line.clone()));
        assert_eq!(cache.get(&s, Encoding::Json, none), Ok(line.clone()), "it is kept with the object");
        assert_eq!(cache.get(&stored("ns/a"), Encoding::Json, none), Err("made anew"), "and nowhere else");
        (0..2 * WRITTEN as i64).for_each(|rev| cache.written("ns/a".into(), rev, line.clone()));
        cache.written("ns/a".into(), 1 << 40, Bytes::from(vec![0; WRITTEN_BYTES]));
        let state = cache.state.lock();
        assert_eq!((state.written.len(), state.written_bytes), (1, WRITTEN_BYTES));
    }

    #[test]
    fn a_list_is_kept_for_one_revision_and_one_maker_within_the_budget() {
        let cache = EncodedCache::new(1 << 16);
        let (one, two) = (Arc::new(1), Arc::new(2));
        let tail = |n: u8| Arc::new(Tail::new(&[n; 100]));
        for changed in 0..1000 {
            cache.keep_list("a".into(), changed, &one, tail(0));
        }
        assert!(cache.list("a", 999, &one).is_some());
        assert!(cache.list("a", 998, &one).is_none() && cache.list("a", 999, &two).is_none() && cache.list("b", 999, &one).is_none());
        assert_eq!(cache.state.lock().order.len(), 1, "an older list leaves nothing behind");
        for n in 0..1000 {
            cache.keep_list(format!("k{n}"), 1, &one, tail(1));
        }
        assert!(cache.list("a", 999, &one).is_none() && cache.list("k999", 1, &one).is_some());
        let state = cache.state.lock();
        assert!(state.bytes <= 1 << 16 && state.lists.len() == state.order.len());
        assert_eq!(state.bytes, state.lists.values().map(|l| l.cost).sum::<usize>());
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
