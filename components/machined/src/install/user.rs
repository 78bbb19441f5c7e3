//! The disk of a user volume: one partition that takes all of it. The file system is made first and the table that names it is written last,
//! so that a disk that was cut off in between is one that nobody takes for the volume, and is made again.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use machine_config::layout::{ALIGNMENT, Partition};

use super::{InstallError, TABLE_BYTES, Volumes, step, table};
use crate::encryption::Planned;
use crate::paths::Paths;

/// "Linux file system data" of the Discoverable Partitions Specification.
const TYPE_LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
/// A smaller disk is not worth a file system.
const LEAST: u64 = 64 << 20;
/// The file system's own label. What finds the volume is the partition's name.
const FILE_SYSTEM: &str = "user-volume";

/// Why a disk was not made a volume.
#[derive(Debug, thiserror::Error)]
pub enum UserVolumeError {
    /// It holds something already.
    #[error("{disk} holds {what}; set wipe to true if it may be overwritten")]
    InUse { disk: PathBuf, what: String },
    /// There is no room.
    #[error("{disk} has {has} bytes; a volume needs at least {LEAST}")]
    TooSmall { disk: PathBuf, has: u64 },
    /// A step of making it failed.
    #[error(transparent)]
    Make(#[from] InstallError),
}

/// A disk that is to become a volume.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its node.
    pub disk: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// Bytes in a logical sector.
    pub sector: u64,
    /// The partition's name.
    pub name: String,
    /// Whether what is on it may be overwritten.
    pub wipe: bool,
}

/// Makes the volume on a disk that is empty, or may be overwritten; encrypted, if that is planned.
pub fn make(target: &Target, paths: &Paths, planned: Option<&Planned>) -> Result<(), UserVolumeError> {
    let Target { disk, size, sector, name, wipe } = target;
    let (size, sector, wipe) = (*size, *sector, *wipe);
    if size < LEAST {
        return Err(UserVolumeError::TooSmall { disk: disk.to_owned(), has: size });
    }
    // Fails where a part of it is in use: mounted, or of a volume that is open.
    OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::EXCL.bits() as i32)
        .open(disk)
        .map_err(step("open the disk for us alone", disk))?;
    let held = table::content(disk, size).map_err(step("read what is on the disk", disk))?;
    if let Some(what) = held.filter(|_| !wipe) {
        return Err(UserVolumeError::InUse { disk: disk.to_owned(), what });
    }
    let mut file = OpenOptions::new().read(true).write(true).open(disk).map_err(step("open the disk", disk))?;
    super::clear_tables(&mut file, size).map_err(step("remove what was there", disk))?;
    let end = (size - TABLE_BYTES) / ALIGNMENT * ALIGNMENT;
    let partition = Partition { label: FILE_SYSTEM, start: ALIGNMENT, size: end - ALIGNMENT, type_guid: TYPE_LINUX };
    Volumes { paths: paths.clone(), encrypted: Vec::new() }.make_with(planned, disk, &partition, None)?;
    file.sync_all().map_err(step("write to the disk", disk))?;
    table::write_one(&mut file, size, sector, &partition, name).map_err(|source| InstallError::Table { disk: disk.to_owned(), source })?;
    file.sync_all().map_err(step("write to the disk", disk))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};
    use std::path::Path;

    use gpt::GptConfig;
    use gpt::disk::LogicalBlockSize;

    use super::*;

    fn make(disk: &Path, size: u64, sector: u64, name: &str, wipe: bool) -> Result<(), UserVolumeError> {
        let target = Target { disk: disk.to_owned(), size, sector, name: name.to_owned(), wipe };
        super::make(&target, &Paths::under("/nonexistent"), None)
    }

    fn disk(size: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size).unwrap();
        (dir, path)
    }

    #[test]
    fn a_disk_becomes_one_partition_with_a_file_system() {
        for (sector, block) in [(512, LogicalBlockSize::Lb512), (4096, LogicalBlockSize::Lb4096)] {
            let size = (96 << 20) + 4096;
            let (_dir, path) = disk(size);
            make(&path, size, sector, "u-data", false).unwrap();
            let table = GptConfig::new().logical_block_size(block).open(&path).unwrap();
            let [(1, partition)] = table.partitions().iter().collect::<Vec<_>>()[..] else { panic!("one partition") };
            assert_eq!(partition.name, "u-data");
            assert_eq!((partition.first_lba * sector, (partition.last_lba + 1) * sector), (1 << 20, 95 << 20));
            // ext4's magic number, in the superblock that is 1 KiB into the partition.
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes[(1 << 20) + 1024 + 0x38..][..2], [0x53, 0xef]);
        }
    }

    #[test]
    fn what_holds_something_is_left_alone_unless_it_may_go() {
        let size = 96 << 20;
        let (_dir, path) = disk(size);
        make(&path, size, 512, "u-old", false).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = make(&path, size, 512, "u-new", false).unwrap_err().to_string();
        assert!(error.ends_with("holds the partitions u-old; set wipe to true if it may be overwritten"), "{error}");
        assert!(std::fs::read(&path).unwrap() == before);
        make(&path, size, 512, "u-new", true).unwrap();
        assert_eq!(table::content(&path, size).unwrap().unwrap(), "the partitions u-new");
        let (_dir, foreign) = disk(size);
        let mut file = OpenOptions::new().write(true).open(&foreign).unwrap();
        file.seek(SeekFrom::Start(1080)).unwrap();
        file.write_all(&[0x53, 0xef]).unwrap();
        assert!(matches!(make(&foreign, size, 512, "u-x", false), Err(UserVolumeError::InUse { .. })));
        let (_dir, small) = disk(1 << 20);
        assert!(matches!(make(&small, 1 << 20, 512, "u-x", true), Err(UserVolumeError::TooSmall { .. })));
    }
}
