//! The UUIDs in a GUID partition table (UEFI specification, chapter 5.3). Reads only, from the first copy that is whole.
//! The kernel has them too, but up to Linux 6.12 does not tell them.

use std::io;
use std::os::unix::fs::FileExt;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER: usize = 92;
/// What every table in use has; a header that claims more is not believed.
const MAX_ENTRIES: u32 = 512;
const MAX_ENTRY_SIZE: u32 = 512;

/// A partition's number, from 1, and its own UUID in lower case.
pub type Partition = (u32, String);

/// The partitions of a disk; empty when it has no valid table.
pub fn read(disk: &impl FileExt, sector: u64, sectors: u64) -> Vec<Partition> {
    let copies = [Some(1), sectors.checked_sub(1)];
    copies.into_iter().flatten().find_map(|at| read_copy(disk, sector, at).ok().flatten()).unwrap_or_default()
}

fn read_copy(disk: &impl FileExt, sector: u64, at: u64) -> io::Result<Option<Vec<Partition>>> {
    let mut header = [0; HEADER];
    disk.read_exact_at(&mut header, at.saturating_mul(sector))?;
    let Some(table) = parse_header(&header, at) else { return Ok(None) };
    let mut entries = vec![0; (table.count * table.size) as usize];
    disk.read_exact_at(&mut entries, table.at.saturating_mul(sector))?;
    if crc32(&entries) != table.crc {
        return Ok(None);
    }
    let partitions = entries.chunks_exact(table.size as usize).zip(1..).filter_map(|(entry, number)| {
        let kind: [u8; 16] = entry.get(..16)?.try_into().ok()?;
        let own: [u8; 16] = entry.get(16..32)?.try_into().ok()?;
        (kind != [0; 16]).then(|| (number, uuid(own)))
    });
    Ok(Some(partitions.collect()))
}

struct Table {
    at: u64,
    count: u32,
    size: u32,
    crc: u32,
}

fn parse_header(header: &[u8; HEADER], expected_at: u64) -> Option<Table> {
    let four = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let eight = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let mut zeroed = *header;
    zeroed[16..20].fill(0);
    let valid = &header[..8] == SIGNATURE && four(12)? as usize == HEADER && four(16)? == crc32(&zeroed) && eight(24)? == expected_at;
    let table = Table { at: eight(72)?, count: four(80)?, size: four(84)?, crc: four(88)? };
    (valid && table.count <= MAX_ENTRIES && (128..=MAX_ENTRY_SIZE).contains(&table.size)).then_some(table)
}

/// The first three groups are little-endian.
fn uuid(bytes: [u8; 16]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (place, at) in order.into_iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes[at]));
    }
    text
}

/// The CRC-32 of IEEE 802.3, bit by bit: a table has 16 KiB.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::io::Write;

    const OWN: [u8; 16] = [0xa0, 0xdd, 0x63, 0x4c, 0x5e, 0xe4, 0x07, 0x84, 0xad, 0xb1, 0x24, 0x6e, 0x25, 0xa8, 0xe1, 0xd6];

    fn header(at: u64, table_at: u64, entries: &[u8]) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(SIGNATURE);
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[24..32].copy_from_slice(&at.to_le_bytes());
        header[72..80].copy_from_slice(&table_at.to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
        let crc = crc32(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// 100 sectors, the table in both copies, partition 3 in use.
    fn disk() -> Vec<u8> {
        let mut entries = vec![0; 128 * 128];
        entries[2 * 128] = 1;
        entries[2 * 128 + 16..2 * 128 + 32].copy_from_slice(&OWN);
        let mut disk = vec![0; 100 * 512];
        disk[512..1024].copy_from_slice(&header(1, 2, &entries));
        disk[1024..1024 + entries.len()].copy_from_slice(&entries);
        disk[99 * 512..].copy_from_slice(&header(99, 67, &entries));
        disk[67 * 512..99 * 512].copy_from_slice(&entries);
        disk
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn the_uuid_is_written_as_everybody_writes_it() {
        let expected = [(3, "4c63dda0-e45e-8407-adb1-246e25a8e1d6".to_owned())];
        assert_eq!(read(&file(&disk()), 512, 100), expected);
    }

    #[test]
    fn a_damaged_first_copy_leaves_the_second_and_two_leave_nothing() {
        for damage in [512, 512 + 30, 1024 + 5] {
            let mut content = disk();
            content[damage] ^= 1;
            assert_eq!(read(&file(&content), 512, 100).len(), 1, "{damage}");
            content[99 * 512 + 72] ^= 1;
            assert_eq!(read(&file(&content), 512, 100), [], "{damage}");
        }
        assert_eq!(read(&file(b""), 512, 0), []);
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 92), at in any::<u64>()) {
            let mut header: [u8; HEADER] = bytes.try_into().unwrap();
            header[..8].copy_from_slice(SIGNATURE);
            header[12..16].copy_from_slice(&92u32.to_le_bytes());
            header[16..20].fill(0);
            let crc = crc32(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            let _ = parse_header(&header, at);
        }
    }
}
