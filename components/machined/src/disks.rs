//! The machine's disks, from what `host` reads out of sysfs.

use std::io;
use std::path::{Path, PathBuf};

use host::block::{Blocks, LinuxBlocks};
use machine_config::disk::Disk;
use node_ipc::init::{BootInfo, BootSource};

use crate::machine::{BootPlace, Disks, Installed, ObservedDisk, SystemDisk, SystemPartition};

/// The disks of a Linux machine.
pub struct LinuxDisks {
    blocks: LinuxBlocks,
    boot: BootInfo,
}

impl LinuxDisks {
    /// The disks of a machine that was booted like this.
    pub fn new(boot: BootInfo) -> LinuxDisks {
        LinuxDisks { blocks: LinuxBlocks::default(), boot }
    }

    fn list(&self) -> io::Result<Vec<host::block::Disk>> {
        self.blocks.disks().map_err(|error| io::Error::other(crate::api::chain(&error)))
    }
}

fn installed(disk: host::block::Disk) -> Installed {
    let sector = u64::from(disk.sector_bytes.max(1));
    let boot = disk.partitions.iter().find(|partition| partition.label == "ESP").map(|partition| BootPlace {
        number: partition.number,
        first_sector: partition.start_bytes / sector,
        sectors: partition.size_bytes / sector,
        uuid: partition.uuid.clone(),
    });
    Installed { disk: disk.name, boot }
}

/// Whether a device is this disk or one of its partitions.
fn holds(disk: &host::block::Disk, device: &Path) -> bool {
    disk.path == device || disk.partitions.iter().any(|partition| partition.path == device)
}

fn carries_a_system(disk: &host::block::Disk) -> bool {
    let has = |label: &str| disk.partitions.iter().any(|partition| partition.label == label);
    has("ROOT-A") && has("STATE")
}

impl Disks for LinuxDisks {
    fn observe(&self) -> io::Result<Vec<ObservedDisk>> {
        let boot_device = Path::new(&self.boot.device);
        let disks = self.list()?.into_iter().map(|disk| ObservedDisk {
            disk: Disk {
                name: disk.name.clone(),
                paths: vec![disk.path.display().to_string()],
                size: disk.size_bytes,
                model: disk.model.clone(),
                serial: disk.serial.clone(),
                wwid: disk.wwid.clone(),
                bus: disk.bus.clone(),
                rotational: disk.rotational,
                read_only: disk.read_only,
                boot_medium: self.boot.source == BootSource::Media && holds(&disk, boot_device),
            },
            node: disk.path.clone(),
            sector: u64::from(disk.sector_bytes),
        });
        Ok(disks.collect())
    }

    fn system_partition(&self, label: &str) -> io::Result<Option<(PathBuf, u64)>> {
        let partitions = self.system_disk()?.map(|disk| disk.partitions).unwrap_or_default();
        let partition = partitions.into_iter().find(|partition| partition.label == label);
        Ok(partition.map(|partition| (partition.node, partition.size)))
    }

    fn system_disk(&self) -> io::Result<Option<SystemDisk>> {
        if self.boot.source != BootSource::Disk {
            return Ok(None);
        }
        let boot_device = Path::new(&self.boot.device);
        // Another disk may carry the same labels; only the one we run from is ours.
        let own = self.list()?.into_iter().find(|disk| holds(disk, boot_device));
        Ok(own.map(|disk| SystemDisk {
            node: disk.path,
            sector: u64::from(disk.sector_bytes),
            partitions: disk
                .partitions
                .into_iter()
                .map(|partition| SystemPartition {
                    label: partition.label,
                    number: partition.number,
                    node: partition.path,
                    size: partition.size_bytes,
                })
                .collect(),
        }))
    }

    fn labelled(&self, label: &str) -> io::Result<Vec<(String, PathBuf)>> {
        let disks = self.list()?.into_iter().filter(|disk| !carries_a_system(disk));
        let found = disks.flat_map(|disk| {
            let found = disk.partitions.into_iter().filter(|partition| partition.label == label);
            found.map(move |partition| (disk.name.clone(), partition.path)).collect::<Vec<_>>()
        });
        Ok(found.collect())
    }

    fn look_again(&self, disk: &Path) -> io::Result<()> {
        self.blocks.reread_partitions(disk).map_err(|error| io::Error::other(crate::api::chain(&error)))
    }

    fn installations(&self) -> io::Result<Vec<Installed>> {
        Ok(self.list()?.into_iter().filter(carries_a_system).map(installed).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_boot_partition_lies_is_told_in_the_disks_own_sectors() {
        let esp = host::block::Partition {
            number: 1,
            label: "ESP".into(),
            uuid: "u".into(),
            start_bytes: 1 << 20,
            size_bytes: 1 << 30,
            ..Default::default()
        };
        for (sector, first_sector, sectors) in [(512, 2048, 2_097_152), (4096, 256, 262_144)] {
            let disk = host::block::Disk { name: "vda".into(), sector_bytes: sector, partitions: vec![esp.clone()], ..Default::default() };
            let boot = Some(BootPlace { number: 1, first_sector, sectors, uuid: "u".into() });
            assert_eq!(installed(disk), Installed { disk: "vda".into(), boot });
        }
        assert_eq!(installed(host::block::Disk::default()).boot, None);
    }
}
