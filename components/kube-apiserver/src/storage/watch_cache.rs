//! What one resource looks like now, and what happened to it lately.
//!
//! Watchers hold a cursor into one shared ring of events instead of a queue of their own: a slow one costs nothing but the place it
//! may lose when the ring moves on, and then it is told so with 410.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::{CowMap, Stored};

/// Events kept at least, however old.
const MIN_EVENTS: usize = 100;
/// Events kept at most, however young.
const MAX_EVENTS: usize = 50_000;
/// Bytes of objects that only the ring holds on to, roughly.
const MAX_BYTES: usize = 64 << 20;
/// Events younger than this are kept while there is room.
const HISTORY: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// A change: the object now (for a deletion, as it last was, at the revision of the deletion) and before.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: EventKind,
    pub object: Arc<Stored>,
    pub previous: Option<Arc<Stored>>,
    at: Instant,
}

impl Event {
    pub fn rev(&self) -> i64 {
        self.object.rev
    }
}

#[derive(Debug, Default)]
struct State {
    objects: CowMap<Arc<Stored>>,
    ring: VecDeque<Event>,
    /// The sequence number of `ring[0]`.
    first: u64,
    bytes: usize,
    /// Bytes of all objects that are there now.
    stored: u64,
    /// Changes after this revision are all in the ring.
    complete_after: i64,
    /// The last revision at which this resource changed (or was loaded).
    changed: i64,
}

/// The revision asked for is older than what the ring holds.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld {
    pub asked: i64,
    pub oldest: i64,
}

/// Where a watcher is in the ring.
#[derive(Debug, Clone, Copy)]
pub struct Cursor(u64);

#[derive(Debug)]
pub struct ResourceCache {
    state: RwLock<State>,
    /// The number of events ever pushed; watchers wait for it to grow.
    head: watch::Sender<u64>,
}

impl Default for ResourceCache {
    fn default() -> Self {
        Self { state: RwLock::default(), head: watch::channel(0).0 }
    }
}

impl ResourceCache {
    /// Replaces everything by what was listed at `rev`. Who was following loses its place, also who began before anything was there.
    pub fn load(&self, objects: CowMap<Arc<Stored>>, rev: i64) {
        let stored = objects.range("", None).map(|(_, o)| o.body.len() as u64).sum();
        let mut s = self.state.write();
        s.objects = objects;
        s.stored = stored;
        s.first += s.ring.len() as u64 + 1;
        s.ring.clear();
        s.bytes = 0;
        s.complete_after = rev;
        s.changed = rev;
        let head = s.first;
        drop(s);
        self.head.send_replace(head);
    }

    pub fn get(&self, key: &str) -> Option<Arc<Stored>> {
        self.state.read().objects.get(key).cloned()
    }

    /// A snapshot that later changes don't touch, and the last revision at which this resource changed.
    pub fn snapshot(&self) -> (CowMap<Arc<Stored>>, i64) {
        let s = self.state.read();
        (s.objects.clone(), s.changed)
    }

    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// How many objects there are, and how many bytes they have.
    pub fn extent(&self) -> (u64, u64) {
        let s = self.state.read();
        (s.objects.len() as u64, s.stored)
    }

    pub fn put(&self, object: Arc<Stored>) {
        let mut s = self.state.write();
        let previous = s.objects.insert(Arc::clone(&object.key), Arc::clone(&object));
        let before = previous.as_ref().map_or(0, |p| p.body.len() as u64);
        s.stored = (s.stored + object.body.len() as u64).saturating_sub(before);
        self.push(s, Event { kind: EventKind::Put, object, previous, at: Instant::now() });
    }

    pub fn delete(&self, key: &str, rev: i64) {
        let mut s = self.state.write();
        let Some(old) = s.objects.remove(key) else { return };
        s.stored = s.stored.saturating_sub(old.body.len() as u64);
        let object = Arc::new(old.at_revision(rev));
        self.push(s, Event { kind: EventKind::Delete, object, previous: Some(old), at: Instant::now() });
    }

    /// Reads everything again with `again`; revisions and places stay as they are, and followers are woken.
    pub fn refresh(&self, mut again: impl FnMut(&Arc<Stored>) -> Arc<Stored>) {
        let mut s = self.state.write();
        let old = std::mem::take(&mut s.objects);
        for (key, object) in old.range("", None) {
            s.objects.insert(Arc::clone(key), again(object));
        }
        s.stored = s.objects.range("", None).map(|(_, o)| o.body.len() as u64).sum();
        for event in &mut s.ring {
            event.object = again(&event.object);
            event.previous = event.previous.as_ref().map(&mut again);
        }
        drop(s);
        self.wake();
    }

    /// Makes followers look again though nothing came.
    pub fn wake(&self) {
        self.head.send_modify(|_| {});
    }

    fn push(&self, mut s: parking_lot::RwLockWriteGuard<'_, State>, event: Event) {
        s.changed = event.rev();
        s.bytes += event.object.body.len();
        s.ring.push_back(event);
        loop {
            let full = s.ring.len() > MAX_EVENTS || s.bytes > MAX_BYTES;
            let stale = s.ring.front().is_some_and(|e| e.at.elapsed() > HISTORY);
            if s.ring.len() <= MIN_EVENTS || !(full || stale) {
                break;
            }
            if let Some(old) = s.ring.pop_front() {
                s.first += 1;
                s.bytes = s.bytes.saturating_sub(old.object.body.len());
                s.complete_after = old.rev();
            }
        }
        let head = s.first + s.ring.len() as u64;
        drop(s);
        self.head.send_replace(head);
    }

    /// A cursor behind which lie all events after `rev`.
    pub fn cursor_after(&self, rev: i64) -> Result<Cursor, TooOld> {
        let s = self.state.read();
        if rev < s.complete_after {
            return Err(TooOld { asked: rev, oldest: s.complete_after });
        }
        let skip = s.ring.partition_point(|e| e.rev() <= rev);
        Ok(Cursor(s.first + skip as u64))
    }

    /// A snapshot and the cursor that continues it without a gap.
    pub fn snapshot_and_cursor(&self) -> (CowMap<Arc<Stored>>, i64, Cursor) {
        let s = self.state.read();
        (s.objects.clone(), s.changed, Cursor(s.first + s.ring.len() as u64))
    }

    /// Up to `max` events from the cursor on, which moves past them.
    pub fn read(&self, cursor: &mut Cursor, max: usize) -> Result<Vec<Event>, TooOld> {
        let s = self.state.read();
        if cursor.0 < s.first {
            return Err(TooOld { asked: 0, oldest: s.complete_after });
        }
        let from = (cursor.0 - s.first) as usize;
        let events: Vec<Event> = s.ring.iter().skip(from).take(max).cloned().collect();
        cursor.0 += events.len() as u64;
        Ok(events)
    }

    /// Tells of growth; compare with nothing, just read again when it changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn object(key: &str, rev: i64) -> Arc<Stored> {
        Arc::new(Stored::new(key.into(), rev, Box::new([]), Box::new([]), Bytes::from(vec![0; 10])))
    }

    #[test]
    fn a_cursor_sees_every_event_after_its_revision_once() {
        let c = ResourceCache::default();
        c.load(CowMap::default(), 10);
        for rev in 11..=15 {
            c.put(object("a", rev));
        }
        c.delete("a", 16);
        c.delete("never-there", 17);
        let mut cursor = c.cursor_after(13).unwrap();
        let revs: Vec<_> = c.read(&mut cursor, 100).unwrap().iter().map(|e| (e.kind, e.rev())).collect();
        assert_eq!(revs, [(EventKind::Put, 14), (EventKind::Put, 15), (EventKind::Delete, 16)]);
        assert!(c.read(&mut cursor, 100).unwrap().is_empty());
        assert_eq!(c.cursor_after(9).err(), Some(TooOld { asked: 9, oldest: 10 }));
    }

    #[test]
    fn the_bytes_of_what_is_there_are_known() {
        let c = ResourceCache::default();
        let of = |key: &str, rev, n| Arc::new(Stored::new(key.into(), rev, Box::new([]), Box::new([]), Bytes::from(vec![0; n])));
        let mut loaded = CowMap::default();
        loaded.insert("a".into(), of("a", 3, 10));
        c.load(loaded, 5);
        c.put(of("a", 6, 30));
        c.put(of("b", 7, 5));
        assert_eq!(c.extent(), (2, 35));
        c.delete("a", 8);
        assert_eq!(c.extent(), (1, 5));
        c.refresh(|o| of(&o.key, o.rev, 100));
        assert_eq!(c.extent(), (1, 100));
    }

    #[test]
    fn the_ring_is_bounded_and_a_lost_place_is_an_error() {
        let c = ResourceCache::default();
        c.load(CowMap::default(), 0);
        let mut slow = c.cursor_after(0).unwrap();
        for rev in 1..=(MAX_EVENTS as i64 + 10) {
            c.put(object("a", rev));
        }
        assert_eq!(c.read(&mut slow, 1).err(), Some(TooOld { asked: 0, oldest: 10 }));
        assert!(c.cursor_after(10).is_ok());
        assert!(c.cursor_after(9).is_err());
    }

    #[test]
    fn who_looked_before_the_first_load_does_not_miss_it() {
        let c = ResourceCache::default();
        let (all, _, mut cursor) = c.snapshot_and_cursor();
        assert_eq!(all.len(), 0);
        let mut loaded = CowMap::default();
        loaded.insert("a".into(), object("a", 3));
        c.load(loaded, 5);
        assert!(c.read(&mut cursor, 1).is_err(), "the place says that nothing was there");
        let (all, _, mut cursor) = c.snapshot_and_cursor();
        assert_eq!((all.len(), c.read(&mut cursor, 1).unwrap().len()), (1, 0));
    }

    #[test]
    fn a_reload_after_a_gap_makes_followers_start_anew() {
        let c = ResourceCache::default();
        c.load(CowMap::default(), 5);
        let mut cursor = c.cursor_after(5).unwrap();
        c.load(CowMap::default(), 20);
        assert!(c.read(&mut cursor, 1).is_err());
        assert!(c.cursor_after(20).is_ok());
    }
}
