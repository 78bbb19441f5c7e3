//! The rest of a disk that was written from the raw disk image and started: STATE, ETCD and DATA, as large as the disk is, and the partition table,
//! last. The system runs from the same disk meanwhile, so nothing that is there already is touched; what is made lies behind it. The new table has
//! identifiers of its own, because the image's are on every disk that it was written to.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use machine_config::Config;
use machine_config::disk::Disk;
use machine_config::layout::{Partition, front, layout};

use super::{InstallError, Progress, Volumes, say, step, table};
use crate::machine::SystemDisk;

/// The rest of a disk, checked and not made yet.
#[derive(Clone, Debug)]
pub struct Rest {
    /// The disk's node.
    pub disk: PathBuf,
    sector: u64,
    size: u64,
    partitions: Vec<Partition>,
    root_hash: verity::Digest,
    config: String,
    /// How the volumes are made.
    pub volumes: Volumes,
}

/// Whether the system runs from a disk that has no rest yet.
pub fn is_missing(system: &SystemDisk) -> bool {
    let labels: Vec<&str> = system.partitions.iter().map(|partition| partition.label.as_str()).collect();
    front().iter().map(|partition| partition.label).eq(labels)
}

/// Checks what can be checked without writing. `disk` is what the config selects.
pub fn prepare(
    config: &Config,
    text: &str,
    disk: &Disk,
    system: &SystemDisk,
    root_hash: verity::Digest,
    volumes: Volumes,
) -> Result<Rest, InstallError> {
    let partitions = layout(config.machine.role, disk.size).map_err(|source| InstallError::TooSmall { disk: disk.name.clone(), source })?;
    for (planned, found) in partitions.iter().zip(&system.partitions) {
        if (planned.label, planned.size) != (found.label.as_str(), found.size) {
            let what = format!("{} of {} bytes where {} of {} should be", found.label, found.size, planned.label, planned.size);
            return Err(InstallError::InUse { disk: disk.name.clone(), what });
        }
    }
    let (node, size, config) = (system.node.clone(), disk.size, text.to_owned());
    Ok(Rest { disk: node, sector: system.sector, size, partitions, root_hash, config, volumes })
}

impl Rest {
    /// Makes it. Blocks; takes as long as the disk needs.
    pub fn run(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
        // STATE, with the config, comes last.
        let rest = || self.partitions.iter().skip(front().len());
        for partition in rest().filter(|partition| partition.label != "STATE") {
            say(progress, "make file systems", partition.label.to_owned());
            self.part(partition, |node, whole| self.volumes.make(node, whole, None))?;
        }
        for partition in rest().filter(|partition| partition.label == "STATE") {
            say(progress, "write the machine config", partition.label.to_owned());
            self.part(partition, |node, whole| self.volumes.make_state(node, whole, &self.config))?;
        }
        say(progress, "write the partition table", self.disk.display().to_string());
        let mut disk = OpenOptions::new().read(true).write(true).open(&self.disk).map_err(step("open the disk", &self.disk))?;
        disk.sync_all().map_err(step("write to the disk", &self.disk))?;
        let failed = |source| InstallError::Table { disk: self.disk.clone(), source };
        table::write(&mut disk, self.size, self.sector, &self.partitions, self.root_hash).map_err(failed)?;
        disk.sync_all().map_err(step("write the partition table", &self.disk))
    }

    /// Works on a part of the disk as if it were a device: the kernel does not know it yet, and programs refuse a disk that is in use.
    fn part(&self, partition: &Partition, work: impl FnOnce(&Path, &Partition) -> Result<(), InstallError>) -> Result<(), InstallError> {
        let label = partition.label;
        let attached = host::loop_device::attach_part(&self.disk, partition.start, partition.size);
        let (node, kept) = attached.map_err(|source| InstallError::Part { label, source })?;
        let done = work(&node, &Partition { label, start: 0, size: partition.size, type_guid: partition.type_guid });
        let synced = File::open(&node).and_then(|file| file.sync_all()).map_err(step("write to the disk", &node));
        drop(kept);
        done.and(synced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::SystemPartition;
    use crate::paths::Paths;

    const GIB: u64 = 1 << 30;

    fn system(partitions: &[Partition]) -> SystemDisk {
        let partitions = (1..).zip(partitions).map(|(number, partition)| SystemPartition {
            label: partition.label.to_owned(),
            number,
            node: PathBuf::new(),
            size: partition.size,
        });
        SystemDisk { node: "/dev/vda".into(), sector: 512, partitions: partitions.collect() }
    }

    #[test]
    fn a_disk_from_the_image_is_completed_and_no_other() {
        let config = crate::testing::worker_config("{name: vda}");
        let all = layout(config.machine.role, 10 * GIB).unwrap();
        assert!(is_missing(&system(&front())));
        for other in [&all[..], &all[..3], &[]] {
            assert!(!is_missing(&system(other)));
        }
        let disk = |size| Disk { name: "vda".into(), size, ..Disk::default() };
        let volumes = || Volumes { paths: Paths::under("/nonexistent"), encrypted: Vec::new() };
        let hash = verity::Digest([1; 32]);
        let rest = prepare(&config, "a: 1\n", &disk(10 * GIB), &system(&front()), hash, volumes()).unwrap();
        assert_eq!(rest.partitions, all);
        let small = prepare(&config, "a: 1\n", &disk(5 * GIB), &system(&front()), hash, volumes());
        assert!(matches!(small, Err(InstallError::TooSmall { .. })));
        let mut moved = front();
        moved[1].size += 1 << 20;
        let error = prepare(&config, "a: 1\n", &disk(10 * GIB), &system(&moved), hash, volumes()).unwrap_err();
        assert!(error.to_string().contains("ROOT-A of"), "{error}");
    }
}
