//! An ordered map whose snapshots are cheap: a list reads one while writers go on.
//!
//! Entries lie in chunks of at most [`CHUNK`] entries behind `Arc`s. A snapshot copies one `Arc`; the first write after it copies
//! the vector of chunk pointers and the one chunk it touches, never the entries.

use std::sync::Arc;

const CHUNK: usize = 128;

type Chunk<V> = Vec<(Arc<str>, V)>;

/// Sorted by the bytes of the key, as etcd sorts.
#[derive(Debug)]
pub struct CowMap<V> {
    chunks: Arc<Vec<Arc<Chunk<V>>>>,
    len: usize,
}

impl<V> Clone for CowMap<V> {
    fn clone(&self) -> Self {
        Self { chunks: Arc::clone(&self.chunks), len: self.len }
    }
}

impl<V: Clone> Default for CowMap<V> {
    fn default() -> Self {
        Self { chunks: Arc::new(Vec::new()), len: 0 }
    }
}

impl<V: Clone> CowMap<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// The chunk that holds `key` or would hold it, and its place there.
    fn locate(&self, key: &str) -> (usize, Result<usize, usize>) {
        let c = self.chunks.partition_point(|c| c.last().is_some_and(|(k, _)| **k < *key));
        match self.chunks.get(c) {
            Some(chunk) => (c, chunk.binary_search_by(|(k, _)| (**k).cmp(key))),
            None => (c, Err(0)),
        }
    }

    pub fn get(&self, key: &str) -> Option<&V> {
        match self.locate(key) {
            (c, Ok(i)) => Some(&self.chunks[c][i].1),
            _ => None,
        }
    }

    pub fn insert(&mut self, key: Arc<str>, value: V) -> Option<V> {
        let (c, found) = self.locate(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks.is_empty() {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        }
        // Past the last chunk means: append to it.
        let (c, found) = if c == chunks.len() { (c - 1, Err(chunks[c - 1].len())) } else { (c, found) };
        let chunk = Arc::make_mut(&mut chunks[c]);
        match found {
            Ok(i) => Some(std::mem::replace(&mut chunk[i].1, value)),
            Err(i) => {
                chunk.insert(i, (key, value));
                self.len += 1;
                if chunk.len() > CHUNK {
                    // Keys mostly come in order when a cache is filled: leave the left part full then.
                    let at = if i == CHUNK { CHUNK - 8 } else { CHUNK / 2 };
                    let right = chunk.split_off(at);
                    chunks.insert(c + 1, Arc::new(right));
                }
                None
            }
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<V> {
        let (c, Ok(i)) = self.locate(key) else { return None };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[c]);
        let (_, value) = chunk.remove(i);
        self.len -= 1;
        if chunk.is_empty() {
            chunks.remove(c);
        }
        Some(value)
    }

    /// Entries whose key starts with `prefix`, from `start` on (inclusive), in order.
    pub fn range<'a>(&'a self, prefix: &'a str, start: Option<&'a str>) -> impl Iterator<Item = (&'a Arc<str>, &'a V)> {
        let from = start.filter(|s| *s > prefix).unwrap_or(prefix);
        let (c, found) = self.locate(from);
        let i = found.unwrap_or_else(|i| i);
        self.chunks[c.min(self.chunks.len())..]
            .iter()
            .enumerate()
            .flat_map(move |(n, chunk)| chunk[if n == 0 { i } else { 0 }..].iter())
            .map(|(k, v)| (k, v))
            .take_while(move |(k, _)| k.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u16, u32),
        Remove(u16),
        Snapshot,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u16..600, any::<u32>()).prop_map(|(k, v)| Op::Insert(k, v)),
            3 => (0u16..600).prop_map(Op::Remove),
            1 => Just(Op::Snapshot),
        ]
    }

    fn key(k: u16) -> String {
        format!("ns{}/{:04}", k % 3, k)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_a_btree_map_and_snapshots_never_change(ops in proptest::collection::vec(op(), 0..900)) {
            let mut map = CowMap::default();
            let mut model = BTreeMap::new();
            let mut snapshots = Vec::new();
            for op in ops {
                match op {
                    Op::Insert(k, v) => prop_assert_eq!(map.insert(key(k).into(), v), model.insert(key(k), v)),
                    Op::Remove(k) => prop_assert_eq!(map.remove(&key(k)), model.remove(&key(k))),
                    Op::Snapshot => snapshots.push((map.clone(), model.clone())),
                }
            }
            snapshots.push((map, model));
            for (map, model) in snapshots {
                prop_assert_eq!(map.len(), model.len());
                for prefix in ["", "ns1/", "ns2/", "zz"] {
                    for start in [None, Some("ns1/0100"), Some("ns1/0100\0")] {
                        let got: Vec<_> = map.range(prefix, start).map(|(k, v)| (k.to_string(), *v)).collect();
                        let want: Vec<_> = model.iter()
                            .filter(|(k, _)| k.starts_with(prefix) && start.is_none_or(|s| k.as_str() >= s))
                            .map(|(k, v)| (k.clone(), *v)).collect();
                        // A start beyond the prefix ends the range at once, as the prefix is checked from the first entry on.
                        if start.is_none_or(|s| s.starts_with(prefix) || s < prefix) {
                            prop_assert_eq!(got, want);
                        }
                    }
                }
            }
        }
    }
}
