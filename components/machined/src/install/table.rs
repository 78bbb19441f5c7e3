//! The partition table: reading what a disk holds, writing the layout.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};
use gpt::{GptConfig, GptError};
use machine_config::layout::Partition;
use uuid::Uuid;

/// What a disk holds, in words; nothing when its beginning and its end are empty.
pub fn content(node: &Path, size: u64) -> io::Result<Option<String>> {
    for sector in [LogicalBlockSize::Lb512, LogicalBlockSize::Lb4096] {
        if let Ok(table) = GptConfig::new().logical_block_size(sector).open(node) {
            let names: Vec<_> = table.partitions().values().map(|partition| partition.name.clone()).collect();
            return Ok(Some(match names.as_slice() {
                [] => "an empty partition table".to_owned(),
                names => format!("the partitions {}", names.join(", ")),
            }));
        }
    }
    super::foreign::content(&mut File::open(node)?, size)
}

/// Writes the table. ROOT-A's partition UUID is the first half of the root hash (Discoverable Partitions Specification).
pub fn write(disk: &mut File, size: u64, sector: u64, partitions: &[Partition], root_hash: verity::Digest) -> Result<(), GptError> {
    let root_uuid = Uuid::parse_str(&root_hash.uuid()).map_err(|_| GptError::Overflow("partition UUID"))?;
    let uuid = |label| if label == "ROOT-A" { root_uuid } else { Uuid::new_v4() };
    write_entries(disk, size, sector, partitions.iter().map(|partition| (partition, partition.label, uuid(partition.label))))
}

/// Writes a table of one partition.
pub fn write_one(disk: &mut File, size: u64, sector: u64, partition: &Partition, name: &str) -> Result<(), GptError> {
    write_entries(disk, size, sector, std::iter::once((partition, name, Uuid::new_v4())))
}

/// Each with its name and its UUID.
fn write_entries<'a>(
    disk: &mut File,
    size: u64,
    sector: u64,
    partitions: impl Iterator<Item = (&'a Partition, &'a str, Uuid)>,
) -> Result<(), GptError> {
    let block = if sector == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    let sector = block.as_u64();
    let last = u32::try_from(size / sector - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(last).overwrite_lba0(disk).map_err(|error| GptError::Io(io::Error::other(error)))?;
    let mut table = GptConfig::new().writable(true).logical_block_size(block).create_from_device(disk, None)?;
    let mut entries = BTreeMap::new();
    for (number, (partition, name, part_guid)) in (1..).zip(partitions) {
        let guid = Uuid::parse_str(partition.type_guid).map_err(|_| GptError::Overflow("partition type"))?;
        entries.insert(
            number,
            gpt::partition::Partition {
                part_type_guid: Type { guid, os: OperatingSystem::None },
                part_guid,
                first_lba: partition.start / sector,
                last_lba: (partition.start + partition.size) / sector - 1,
                flags: 0,
                name: name.to_owned(),
            },
        );
    }
    table.update_partitions(entries)?;
    table.write().map(|_| ())
}
