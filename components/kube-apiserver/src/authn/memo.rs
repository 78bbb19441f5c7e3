//! Remembers what a signature check said: the same certificate comes with every request of a connection, and checking its signature
//! again would cost more than most requests do.

use std::collections::HashMap;

use parking_lot::RwLock;
use sha2::{Digest, Sha256};

/// Entries at most; when a new one does not fit, all are forgotten, and each costs one more check.
const MAX: usize = 4096;

pub type Key = [u8; 32];

/// The key of a credential made of parts.
pub fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Key {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Good verdicts. Bad ones are not kept: whoever sends them pays for them.
#[derive(Debug)]
pub struct Memo<T>(RwLock<HashMap<Key, T>>);

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T: Clone> Memo<T> {
    pub fn get(&self, key: &Key) -> Option<T> {
        self.0.read().get(key).cloned()
    }

    pub fn put(&self, key: Key, value: T) {
        let mut known = self.0.write();
        if known.len() >= MAX {
            known.clear();
        }
        known.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_the_size_is_bounded() {
        assert_ne!(key([b"ab".as_slice(), b"c"]), key([b"a".as_slice(), b"bc"]));
        let memo = Memo::default();
        for n in 0..=MAX {
            memo.put(key([n.to_le_bytes().as_slice()]), n);
        }
        assert_eq!(memo.get(&key([MAX.to_le_bytes().as_slice()])), Some(MAX));
        assert_eq!(memo.get(&key([0_usize.to_le_bytes().as_slice()])), None);
        assert!(memo.0.read().len() <= MAX);
    }
}
