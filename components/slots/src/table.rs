//! Giving a partition another UUID in a GUID partition table (UEFI specification, chapter 5.3): the slot that was written is found by the
//! UUID of its root. The two copies of the table are changed one after the other, so one of them is whole at any time.

/// The bytes of a header that count.
pub const HEADER: usize = 92;
/// The most bytes of a table.
const MOST: u64 = 512 * 512;

/// Where a copy's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Their first sector.
    pub sector: u64,
    /// Their bytes.
    pub bytes: usize,
    /// The sector of the other copy's header.
    pub other_header: u64,
}

/// Why a copy was left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It is no header, or not that of this sector, or damaged.
    #[error("the partition table has no whole header in sector {0}")]
    Header(u64),
    /// The entries are not those that the header is about.
    #[error("the entries of the partition table are damaged")]
    Entries,
    /// There is no such partition.
    #[error("the partition table has no partition {0}")]
    NoPartition(u32),
}

/// What a header in this sector says of its entries.
pub fn place(header: &[u8; HEADER], sector: u64) -> Result<Place, TableError> {
    let four = |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let eight = |at: usize| header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let parse = || {
        let whole = header.starts_with(b"EFI PART") && four(12)? as usize == HEADER && four(16)? == sum(header) && eight(24)? == sector;
        let bytes = u64::from(four(80)?) * u64::from(four(84)?);
        let place = Place { sector: eight(72)?, bytes: usize::try_from(bytes).ok()?, other_header: eight(32)? };
        (whole && four(84)? >= 128 && bytes <= MOST).then_some(place)
    };
    parse().ok_or(TableError::Header(sector))
}

/// Gives a partition, by its number from 1, another UUID (as it is written, of 16 bytes): changes the entries and their sum in the header.
pub fn rename(header: &mut [u8; HEADER], entries: &mut [u8], number: u32, uuid: [u8; 16]) -> Result<(), TableError> {
    let field = |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes).unwrap_or_default();
    let size = field(84) as usize;
    if field(88) != crc32fast::hash(entries) || size < 128 {
        return Err(TableError::Entries);
    }
    let at = (number as usize).checked_sub(1).and_then(|before| before.checked_mul(size)).ok_or(TableError::NoPartition(number))?;
    let entry = entries.get_mut(at..at + 32).filter(|entry| entry[..16] != [0; 16]).ok_or(TableError::NoPartition(number))?;
    entry[16..].copy_from_slice(&mixed(uuid));
    header[88..92].copy_from_slice(&crc32fast::hash(entries).to_le_bytes());
    let crc = sum(header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// The header's own sum, which is made with its field empty.
fn sum(header: &[u8; HEADER]) -> u32 {
    let mut zeroed = *header;
    zeroed[16..20].fill(0);
    crc32fast::hash(&zeroed)
}

/// The first three groups are little-endian on the disk.
fn mixed(uuid: [u8; 16]) -> [u8; 16] {
    [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].map(|at| uuid[at])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn copy() -> ([u8; HEADER], Vec<u8>) {
        let mut entries = vec![0; 128 * 128];
        for number in 0..6 {
            entries[number * 128..number * 128 + 32].fill(number as u8 + 1);
        }
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[24..32].copy_from_slice(&1u64.to_le_bytes());
        header[32..40].copy_from_slice(&99u64.to_le_bytes());
        header[72..80].copy_from_slice(&2u64.to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let crc = sum(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        (header, entries)
    }

    #[test]
    fn a_partition_gets_its_uuid_and_the_sums_stay_right() {
        let (mut header, mut entries) = copy();
        let uuid = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 9, 10, 11, 12, 13, 14, 15, 16];
        let before = entries.clone();
        rename(&mut header, &mut entries, 3, uuid).unwrap();
        assert_eq!(place(&header, 1), Ok(Place { sector: 2, bytes: 16384, other_header: 99 }));
        assert_eq!(entries[2 * 128 + 16..2 * 128 + 32], [0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77, 9, 10, 11, 12, 13, 14, 15, 16]);
        let changed = before.iter().zip(&entries).filter(|(before, after)| before != after).count();
        assert!(changed <= 16, "{changed}");
        rename(&mut header, &mut entries, 3, [3; 16]).unwrap();
        assert_eq!(entries, before);
    }

    #[test]
    fn what_is_damaged_or_missing_is_left_alone() {
        let (mut header, mut entries) = copy();
        assert_eq!(place(&header, 99), Err(TableError::Header(99)));
        for (number, expected) in [(0, 0), (7, 7), (129, 129), (u32::MAX, u32::MAX)] {
            assert_eq!(rename(&mut header, &mut entries, number, [1; 16]), Err(TableError::NoPartition(expected)));
        }
        entries[5] ^= 1;
        assert_eq!(rename(&mut header, &mut entries, 1, [1; 16]), Err(TableError::Entries));
        header[20] ^= 1;
        assert_eq!(place(&header, 1), Err(TableError::Header(1)));
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), HEADER), number in any::<u32>()) {
            let mut header: [u8; HEADER] = bytes.try_into().unwrap();
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92u32.to_le_bytes());
            let crc = sum(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            let _ = place(&header, 1);
            let mut entries = vec![7; 600];
            header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
            let _ = rename(&mut header, &mut entries, number, [0; 16]);
        }
    }
}
