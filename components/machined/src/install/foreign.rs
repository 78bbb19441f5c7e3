//! What a disk holds that is not ours, by the marks at its beginning and its end. Whatever is not zero there counts; what is known is called by its
//! name, so that people see what they would lose. Members of RAID sets have their marks at the end as often as at the beginning, and a disk
//! with nothing but those looks empty to whoever reads only its first sectors.

use std::io::{self, Read, Seek, SeekFrom};

use super::TABLE_BYTES;

/// Where a mark stands.
#[derive(Clone, Copy, Debug)]
enum At {
    /// So many bytes from the beginning.
    Start(usize),
    /// So many bytes before the end.
    End(u64),
    /// As Linux's RAID places it: before the end, at a multiple of this many bytes, with that many behind.
    Aligned { multiple: u64, behind: u64 },
}

/// Marks, and what they are of. Each from the description of its format.
const MARKS: &[(At, &[u8], &str)] = &[
    (At::Start(0), b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (At::Start(0), b"XFSB", "a file system (XFS)"),
    (At::Start(1080), &[0x53, 0xef], "a file system (ext2, ext3 or ext4)"),
    (At::Start(65_600), b"_BHRfS_M", "a file system (Btrfs)"),
    (At::Start(3), b"NTFS    ", "a file system (NTFS)"),
    (At::Start(32_769), b"CD001", "an ISO image"),
    // A physical volume's label is in one of the first four sectors.
    (At::Start(0), b"LABELONE", LVM),
    (At::Start(512), b"LABELONE", LVM),
    (At::Start(1024), b"LABELONE", LVM),
    (At::Start(1536), b"LABELONE", LVM),
    (At::Start(0), RAID_MARK, RAID),
    (At::Start(4096), RAID_MARK, RAID),
    // Version 1.0 of the metadata, and 0.90.
    (At::Aligned { multiple: 4096, behind: 8192 }, RAID_MARK, RAID),
    (At::Aligned { multiple: 65_536, behind: 65_536 }, RAID_MARK, RAID),
    (At::End(1024), b"Intel Raid ISM Cfg Sig. ", "a member of a RAID set of the firmware's (Intel)"),
    (At::End(512), &[0xde, 0x11, 0xde, 0x11], "a member of a RAID set of a controller's (DDF)"),
];

const LVM: &str = "a physical volume of LVM";
const RAID: &str = "a member of a Linux RAID set";
const RAID_MARK: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

/// What is there, in words; nothing when both ends are empty.
pub fn content(disk: &mut (impl Read + Seek), size: u64) -> io::Result<Option<String>> {
    let mut part = |start: u64, length: u64| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        disk.seek(SeekFrom::Start(start))?;
        disk.by_ref().take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let length = size.min(TABLE_BYTES);
    let (start, end) = (part(0, length)?, part(size - length, length)?);
    let at = |at: At| -> Option<&[u8]> {
        let from_end = |place: u64| start_of_end(size, length, place).and_then(|offset| end.get(offset..));
        match at {
            At::Start(offset) => start.get(offset..),
            At::End(before) => from_end(size.checked_sub(before)?),
            At::Aligned { multiple, behind } => from_end((size / multiple * multiple).checked_sub(behind)?),
        }
    };
    if let Some((.., name)) = MARKS.iter().find(|(place, mark, _)| at(*place).is_some_and(|bytes| bytes.starts_with(mark))) {
        return Ok(Some((*name).to_owned()));
    }
    let empty = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    Ok(match (empty(&start), empty(&end)) {
        (true, true) => None,
        (false, _) => Some("data that is not a Strake installation".to_owned()),
        (true, false) => Some("data at its end, such as a RAID set's".to_owned()),
    })
}

/// Where a place on the disk is in what was read of its end.
fn start_of_end(size: u64, length: u64, place: u64) -> Option<usize> {
    usize::try_from(place.checked_sub(size - length)?).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = (3 << 20) + 5 * 512;

    fn found(size: usize, place: usize, mark: &[u8]) -> Option<String> {
        let mut disk = vec![0; size];
        disk[place..place + mark.len()].copy_from_slice(mark);
        content(&mut Cursor::new(disk), size as u64).unwrap()
    }

    #[test]
    fn what_is_on_a_disk_is_called_by_its_name() {
        for (place, mark, expected) in [
            (0, &b"LUKS\xba\xbe"[..], "LUKS"),
            (1080, &[0x53, 0xef], "ext4"),
            (512, b"LABELONE", "physical volume of LVM"),
            (1536, b"LABELONE", "physical volume of LVM"),
            (0, RAID_MARK, "Linux RAID"),
            (4096, RAID_MARK, "Linux RAID"),
            // Metadata 1.0: 8 KiB before the end, at a multiple of 4 KiB. 0.90: 64 KiB before the last multiple of 64 KiB.
            (SIZE / 4096 * 4096 - 8192, RAID_MARK, "Linux RAID"),
            (SIZE / 65_536 * 65_536 - 65_536, RAID_MARK, "Linux RAID"),
            (SIZE - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00", "Intel"),
            (SIZE - 512, &[0xde, 0x11, 0xde, 0x11], "DDF"),
            (700_000, b"x", "not a Strake installation"),
            (SIZE - 1, b"x", "at its end"),
        ] {
            let found = found(SIZE, place, mark);
            assert!(found.as_deref().is_some_and(|found| found.contains(expected)), "{expected}: {found:?}");
        }
        assert_eq!(found(SIZE, 1_500_000, b"in the middle, where nothing says what it belongs to"), None);
    }

    proptest! {
        #[test]
        fn no_disk_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), more in 0u64..9000) {
            let _ = content(&mut Cursor::new(bytes.clone()), bytes.len() as u64);
            let _ = content(&mut Cursor::new(bytes.clone()), bytes.len() as u64 + more);
        }
    }
}
