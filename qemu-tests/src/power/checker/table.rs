//! The partition table as three readers see it (UEFI specification, chapter 5): the firmware, which wants a protective MBR and takes
//! either copy; the kernel, which takes the first alone unless it is told otherwise; and init, which takes either.

use std::io;

use slots::table::{HEADER, place};

use super::Disk;

const SECTOR: u64 = 512;
const TYPE_BOOT: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its label.
    pub name: String,
    /// Its own UUID, in lower case.
    pub uuid: String,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    kind: String,
}

impl Partition {
    /// Whether the firmware looks for a loader there.
    pub fn is_boot(&self) -> bool {
        self.kind == TYPE_BOOT
    }
}

/// Both copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    protected: bool,
    first: Option<Vec<Partition>>,
    second: Option<Vec<Partition>>,
}

impl Table {
    /// Reads them.
    pub fn read(disk: &dyn Disk) -> io::Result<Self> {
        let mut record = [0; SECTOR as usize];
        disk.read_at(0, &mut record)?;
        // One of the four entries, of type 0xee, that begins in sector 1.
        let protective = |entry: &[u8]| entry[4] == 0xee && entry[8..12] == [1, 0, 0, 0];
        let protected = record[510..] == [0x55, 0xaa] && record[446..510].chunks_exact(16).any(protective);
        let last = disk.size() / SECTOR - 1;
        Ok(Self { protected, first: copy(disk, 1)?, second: copy(disk, last)? })
    }

    /// What the firmware sees.
    pub fn firmware(&self) -> Option<&[Partition]> {
        self.first.as_deref().or(self.second.as_deref()).filter(|_| self.protected)
    }

    /// Whether the kernel sees partitions.
    pub fn kernel(&self, takes_second: bool) -> bool {
        takes_second || self.protected && self.first.is_some()
    }

    /// What init sees.
    pub fn any(&self) -> &[Partition] {
        self.first.as_deref().or(self.second.as_deref()).unwrap_or_default()
    }
}

fn copy(disk: &dyn Disk, sector: u64) -> io::Result<Option<Vec<Partition>>> {
    let mut header = [0; HEADER];
    disk.read_at(sector * SECTOR, &mut header)?;
    let Ok(place) = place(&header, sector) else { return Ok(None) };
    let Some(at) = place.sector.checked_mul(SECTOR).filter(|at| at.saturating_add(place.bytes as u64) <= disk.size()) else {
        return Ok(None);
    };
    let mut entries = vec![0; place.bytes];
    disk.read_at(at, &mut entries)?;
    let field = |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    // `place` has seen that an entry has 128 bytes at least.
    let size = field(84).max(128) as usize;
    if field(88) != crc32fast::hash(&entries) {
        return Ok(None);
    }
    Ok(Some(entries.chunks_exact(size).filter_map(partition).collect()))
}

fn partition(entry: &[u8]) -> Option<Partition> {
    let eight = |at: usize| entry.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let units = entry.get(56..128)?.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let name = char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|char| char.unwrap_or('\u{fffd}')).collect();
    let (first, last) = (eight(32)?, eight(40)?);
    let size = last.checked_sub(first)?.checked_add(1)?.checked_mul(SECTOR)?;
    let (kind, uuid) = (uuid(entry.get(..16)?), uuid(entry.get(16..32)?));
    (entry[..16] != [0; 16]).then_some(Partition { name, uuid, start: first.checked_mul(SECTOR)?, size, kind })
}

/// The first three groups are little-endian on the disk.
fn uuid(bytes: &[u8]) -> String {
    let hex = |range: &[usize]| range.iter().map(|at| format!("{:02x}", bytes[*at])).collect::<String>();
    [hex(&[3, 2, 1, 0]), hex(&[5, 4]), hex(&[7, 6]), hex(&[8, 9]), hex(&[10, 11, 12, 13, 14, 15])].join("-")
}
