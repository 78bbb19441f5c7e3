//! META's format: two copies of one small key-value store, half a partition apart. A write goes to the copy that is not the newest, so that
//! whatever becomes of it, the other is still there: reading gives the old store or the new one.
//!
//! A copy is `STRAKE-M`, the sequence number (8 bytes), the length (4 bytes), the SHA-256 of both and of what follows, and that many bytes of
//! JSON, an object of strings. Numbers are little-endian.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use sha2::{Digest, Sha256};

/// The partition's GPT name.
pub const LABEL: &str = "META";
/// Where the copies begin.
pub const COPIES: [u64; 2] = [0, 512 << 10];
/// The most that a copy may hold.
pub const MOST: usize = 64 << 10;

const MAGIC: &[u8; 8] = b"STRAKE-M";
const HEADER: usize = 8 + 8 + 4 + 32;

/// The store, and which copy it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    entries: BTreeMap<String, String>,
    sequence: u64,
    /// The copy that holds it; `None` when neither is whole, as on a new disk.
    copy: Option<usize>,
}

/// Too much for META.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("META takes {MOST} bytes, and this would be {0}")]
pub struct TooLarge(usize);

/// Why META was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It would not fit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The device refused.
    #[error("write META")]
    Io(#[from] io::Error),
}

impl Meta {
    /// What stands under a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(String::as_str)
    }

    /// Puts a value under a key; nothing removes the key.
    pub fn set(&mut self, key: &str, value: Option<String>) {
        match value {
            Some(value) => self.entries.insert(key.to_owned(), value),
            None => self.entries.remove(key),
        };
    }

    /// Which write it was; 0 is none.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The store as the next write, and where that goes.
    pub fn encode(&self) -> Result<(u64, Vec<u8>), TooLarge> {
        // An object of strings always encodes.
        let payload = serde_json::to_vec(&self.entries).unwrap_or_default();
        if payload.len() > MOST {
            return Err(TooLarge(payload.len()));
        }
        let sequence = (self.sequence + 1).to_le_bytes();
        // At most MOST.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
        let copy = self.copy.map_or(0, |copy| 1 - copy);
        let bytes = [&MAGIC[..], &sequence, &length, &digest(&sequence, &length, &payload), &payload].concat();
        Ok((COPIES[copy], bytes))
    }

    /// The newest whole copy of two; an empty store when there is none.
    pub fn decode(copies: [&[u8]; 2]) -> Meta {
        let whole = copies.iter().enumerate().filter_map(|(copy, bytes)| {
            let (sequence, entries) = decode_copy(bytes)?;
            Some(Meta { entries, sequence, copy: Some(copy) })
        });
        whole.max_by_key(|meta| meta.sequence).unwrap_or_default()
    }
}

fn digest(sequence: &[u8], length: &[u8], payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(sequence).chain_update(length).chain_update(payload).finalize().into()
}

fn decode_copy(bytes: &[u8]) -> Option<(u64, BTreeMap<String, String>)> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let (sequence, length, sum) = (header.get(8..16)?, header.get(16..20)?, header.get(20..)?);
    let count = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
    let payload = rest.get(..count)?;
    if header[..8] != *MAGIC || digest(sequence, length, payload) != sum {
        return None;
    }
    Some((u64::from_le_bytes(sequence.try_into().ok()?), serde_json::from_slice(payload).ok()?))
}

/// Reads META from its partition.
pub fn read(device: &mut (impl Read + Seek)) -> io::Result<Meta> {
    let mut copies = [Vec::new(), Vec::new()];
    for (at, copy) in COPIES.into_iter().zip(&mut copies) {
        device.seek(SeekFrom::Start(at))?;
        device.take((HEADER + MOST) as u64).read_to_end(copy)?;
    }
    Ok(Meta::decode([&copies[0], &copies[1]]))
}

/// Writes META's next state; the caller makes sure that it has reached the disk before anything is built on it.
pub fn write(device: &mut (impl Write + Seek), meta: &Meta) -> Result<(), WriteError> {
    let (at, bytes) = meta.encode()?;
    device.seek(SeekFrom::Start(at))?;
    device.write_all(&bytes)?;
    Ok(device.flush()?)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn disk() -> Cursor<Vec<u8>> {
        Cursor::new(vec![0; 1 << 20])
    }

    fn set(disk: &mut Cursor<Vec<u8>>, key: &str, value: &str) -> Meta {
        let mut meta = read(disk).unwrap();
        meta.set(key, Some(value.to_owned()));
        write(disk, &meta).unwrap();
        read(disk).unwrap()
    }

    #[test]
    fn what_was_written_last_is_read_and_the_copies_take_turns() {
        let mut disk = disk();
        assert_eq!(read(&mut disk).unwrap(), Meta::default());
        for (number, value) in (1..).zip(["one", "two", "three"]) {
            let meta = set(&mut disk, "key", value);
            assert_eq!((meta.get("key"), meta.sequence(), meta.copy), (Some(value), number, Some(usize::from(number % 2 == 0))));
        }
        let mut meta = read(&mut disk).unwrap();
        meta.set("key", None);
        write(&mut disk, &meta).unwrap();
        assert_eq!(read(&mut disk).unwrap().get("key"), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mut disk = disk();
        let mut meta = set(&mut disk, "key", "value");
        meta.set("large", Some("x".repeat(MOST)));
        assert!(matches!(write(&mut disk, &meta), Err(WriteError::TooLarge(_))));
        assert_eq!(read(&mut disk).unwrap().get("key"), Some("value"));
    }

    #[test]
    fn a_damaged_newest_copy_leaves_the_one_before() {
        let mut disk = disk();
        set(&mut disk, "key", "old");
        set(&mut disk, "key", "new");
        let place = usize::try_from(COPIES[1]).unwrap();
        for byte in [0, 9, 17, 30, HEADER + 3] {
            let mut damaged = disk.clone();
            damaged.get_mut()[place + byte] ^= 1;
            assert_eq!(read(&mut damaged).unwrap().get("key"), Some("old"), "{byte}");
        }
        assert_eq!(read(&mut Cursor::new(Vec::new())).unwrap(), Meta::default());
    }

    proptest! {
        /// Each byte of a write that was cut off is there or not, in any mixture.
        #[test]
        fn a_torn_write_reads_as_the_old_store_or_the_new_one(
            before in prop::collection::vec("[a-z]{0,40}", 0..6),
            value in "[ -~]{0,300}",
            kept in prop::collection::vec(any::<bool>(), HEADER + 400),
            whole_sectors in any::<bool>(),
        ) {
            let mut disk = disk();
            for value in &before {
                set(&mut disk, "key", value);
            }
            let old = read(&mut disk).unwrap();
            let mut wanted = old.clone();
            wanted.set("key", Some(value.clone()));
            let (at, bytes) = wanted.encode().unwrap();
            let at = usize::try_from(at).unwrap();
            for (number, byte) in bytes.iter().enumerate() {
                let unit = if whole_sectors { number / 512 } else { number };
                if kept[unit % kept.len()] {
                    disk.get_mut()[at + number] = *byte;
                }
            }
            let found = read(&mut disk).unwrap();
            prop_assert!(found == old || (found.get("key") == Some(value.as_str()) && found.sequence() == old.sequence() + 1));
            // And the store goes on from either.
            let next = set(&mut disk, "other", "next");
            prop_assert_eq!(next.get("other"), Some("next"));
            prop_assert_eq!(next.get("key"), found.get("key"));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(one in prop::collection::vec(any::<u8>(), 0..200), length in any::<u32>()) {
            let mut two = [&MAGIC[..], &[1; 8], &length.to_le_bytes(), &[0; 32]].concat();
            two.extend(&one);
            let _ = Meta::decode([&one, &two]);
        }
    }
}
