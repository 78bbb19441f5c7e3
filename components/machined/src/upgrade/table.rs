//! Changes one partition's UUID on the disk: first in the copy of the table at the end, then in the one at the start, so that whoever reads the
//! table after a power cut finds one that is whole.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use slots::table::{HEADER, TableError, place, rename};

/// Why a table is as it was.
#[derive(Debug, thiserror::Error)]
pub enum TableFailure {
    #[error("read or write the table")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("{0:?} is no UUID")]
    Uuid(String),
}

/// Gives a partition, by its number, this UUID.
pub fn set_uuid(disk: &Path, sector: u64, number: u32, uuid: &str) -> Result<(), TableFailure> {
    let uuid = uuid::Uuid::parse_str(uuid).map_err(|_| TableFailure::Uuid(uuid.to_owned()))?;
    let file = OpenOptions::new().read(true).write(true).open(disk)?;
    let first = read(&file, sector, 1)?;
    let copy_at = place(&first, 1)?.other_header;
    for at in [copy_at, 1] {
        let mut header = read(&file, sector, at)?;
        let place = place(&header, at)?;
        let mut entries = vec![0; place.bytes];
        file.read_exact_at(&mut entries, place.sector.saturating_mul(sector))?;
        rename(&mut header, &mut entries, number, *uuid.as_bytes())?;
        file.write_all_at(&entries, place.sector.saturating_mul(sector))?;
        file.write_all_at(&header, at.saturating_mul(sector))?;
        file.sync_all()?;
    }
    Ok(())
}

fn read(file: &File, sector: u64, at: u64) -> io::Result<[u8; HEADER]> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, at.saturating_mul(sector))?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use machine_config::Role;
    use machine_config::layout::layout;

    use super::*;

    #[test]
    fn the_fields_own_library_reads_the_changed_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let size = 10 << 30;
        let mut disk = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        disk.set_len(size).unwrap();
        let partitions = layout(Role::Worker, size).unwrap();
        crate::install::write_table(&mut disk, size, 512, &partitions, verity::Digest([1; 32])).unwrap();
        let uuid = "561c87dc-42ed-5a69-cb12-155fe5ed6807";
        set_uuid(&path, 512, 3, uuid).unwrap();
        for only in ["primary", "backup"] {
            let table = gpt::GptConfig::new().only_valid_headers(false).open(&path).unwrap();
            assert_eq!(table.partitions()[&3].part_guid.to_string(), uuid, "{only}");
            assert_eq!(table.partitions()[&3].name, "ROOT-B");
            assert_eq!(table.partitions()[&2].part_guid.to_string(), "01010101-0101-0101-0101-010101010101");
            // The second time the first copy is gone.
            disk.write_all_at(&[0; 512], 512).unwrap();
        }
        assert!(matches!(set_uuid(&path, 512, 3, uuid), Err(TableFailure::Table(TableError::Header(1)))));
    }
}
