//! Disks and their partitions, as sysfs describes them, and the few calls that change what the kernel knows of them.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// sysfs counts in these, whatever the disk's sectors are.
const SYSFS_SECTOR: u64 = 512;

/// How often and how long re-reading a partition table is tried: udev-like openers hold disks for moments.
const REREAD_TRIES: u32 = 20;
const REREAD_PAUSE: Duration = Duration::from_millis(100);

/// A whole disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// `sda`, `nvme0n1`.
    pub name: String,
    /// `/dev/sda`.
    pub path: PathBuf,
    pub size_bytes: u64,
    /// Logical sector size.
    pub sector_bytes: u32,
    pub model: String,
    pub serial: String,
    pub wwid: String,
    /// `virtio`, `nvme`, `ata`, `usb`, `scsi`, `mmc` or empty.
    pub bus: String,
    pub rotational: bool,
    pub removable: bool,
    pub read_only: bool,
    /// In the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// A partition the kernel knows of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    pub name: String,
    pub path: PathBuf,
    /// The GPT partition's name.
    pub label: String,
    /// The GPT partition's own UUID, in lower case.
    pub uuid: String,
    pub start_bytes: u64,
    pub size_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("list {0}")]
    List(PathBuf, #[source] io::Error),
    #[error("open {0}")]
    Open(PathBuf, #[source] io::Error),
    #[error("re-read the partition table of {0}")]
    Reread(PathBuf, #[source] io::Error),
    #[error("discard {length} bytes at {offset} of {path}")]
    Discard { path: PathBuf, offset: u64, length: u64, source: io::Error },
}

/// Disks.
pub trait Blocks: Send + Sync {
    /// Every disk with a size, by name. Not the ones that the kernel makes up (loop, ram, device mapper) and no optical drives.
    fn disks(&self) -> Result<Vec<Disk>, BlockError>;
    /// Makes the kernel read a disk's partition table again.
    fn reread_partitions(&self, disk: &Path) -> Result<(), BlockError>;
    /// Tells the device that a range holds nothing any more. A device that cannot is no error.
    fn discard(&self, device: &Path, offset: u64, length: u64) -> Result<(), BlockError>;
}

/// The first partition with this label, on any disk.
pub fn partition_by_label<'a>(disks: &'a [Disk], label: &str) -> Option<(&'a Disk, &'a Partition)> {
    find_partition(disks, |partition| partition.label == label)
}

/// The partition with this UUID.
pub fn partition_by_uuid<'a>(disks: &'a [Disk], uuid: &str) -> Option<(&'a Disk, &'a Partition)> {
    find_partition(disks, |partition| partition.uuid.eq_ignore_ascii_case(uuid))
}

fn find_partition(disks: &[Disk], matches: impl Fn(&Partition) -> bool) -> Option<(&Disk, &Partition)> {
    disks.iter().find_map(|disk| disk.partitions.iter().find(|partition| matches(partition)).map(|partition| (disk, partition)))
}

/// The running kernel's disks.
#[derive(Debug, Clone)]
pub struct LinuxBlocks {
    sys: PathBuf,
    dev: PathBuf,
}

impl Default for LinuxBlocks {
    fn default() -> Self {
        Self { sys: PathBuf::from("/sys"), dev: PathBuf::from("/dev") }
    }
}

impl Blocks for LinuxBlocks {
    fn disks(&self) -> Result<Vec<Disk>, BlockError> {
        let dir = self.sys.join("block");
        let mut disks = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|error| BlockError::List(dir.clone(), error))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_made_up(&name)
                && let Some(mut disk) = read_disk(&name, &entry.path())
            {
                read_uuids(&mut disk, &self.dev);
                disks.push(disk);
            }
        }
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(disks)
    }

    fn reread_partitions(&self, disk: &Path) -> Result<(), BlockError> {
        let file = File::open(disk).map_err(|error| BlockError::Open(disk.to_owned(), error))?;
        for attempt in 1.. {
            // SAFETY: BLKRRPART takes no argument.
            match unsafe { ioctl::blkrrpart(file.as_raw_fd()) } {
                Ok(_) => break,
                Err(nix::Error::EBUSY) if attempt < REREAD_TRIES => std::thread::sleep(REREAD_PAUSE),
                Err(error) => return Err(BlockError::Reread(disk.to_owned(), error.into())),
            }
        }
        Ok(())
    }

    fn discard(&self, device: &Path, offset: u64, length: u64) -> Result<(), BlockError> {
        let file = OpenOptions::new().write(true).open(device).map_err(|error| BlockError::Open(device.to_owned(), error))?;
        let range = [offset, length];
        // SAFETY: BLKDISCARD reads two u64 from its argument, which outlives the call.
        match unsafe { ioctl::blkdiscard(file.as_raw_fd(), &range) } {
            Ok(_) | Err(nix::Error::EOPNOTSUPP) => Ok(()),
            Err(error) => Err(BlockError::Discard { path: device.to_owned(), offset, length, source: error.into() }),
        }
    }
}

mod ioctl {
    nix::ioctl_none_bad!(blkrrpart, 0x125F);
    nix::ioctl_write_ptr_bad!(blkdiscard, 0x1277, [u64; 2]);
}

fn is_made_up(name: &str) -> bool {
    ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"].iter().any(|prefix| name.starts_with(prefix))
}

fn read_disk(name: &str, dir: &Path) -> Option<Disk> {
    let text = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default().trim().to_owned();
    let first = |files: &[&str]| files.iter().map(|file| text(file)).find(|value| !value.is_empty()).unwrap_or_default();
    let flag = |file: &str| text(file) == "1";
    let size_bytes = text("size").parse::<u64>().ok().filter(|sectors| *sectors > 0)?.checked_mul(SYSFS_SECTOR)?;
    let device = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mut partitions: Vec<Partition> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| read_partition(&entry.file_name().to_string_lossy(), &entry.path()))
        .collect();
    partitions.sort_by_key(|partition| partition.number);
    Some(Disk {
        name: name.to_owned(),
        path: device_path(name),
        size_bytes,
        sector_bytes: text("queue/logical_block_size").parse().unwrap_or(512),
        model: first(&["device/model", "device/name"]),
        serial: match first(&["serial", "device/serial"]) {
            serial if serial.is_empty() => scsi_serial(&dir.join("device/vpd_pg80")),
            serial => serial,
        },
        wwid: first(&["wwid", "device/wwid"]),
        bus: bus_of(name, &device).to_owned(),
        rotational: flag("queue/rotational"),
        removable: flag("removable"),
        read_only: flag("ro"),
        partitions,
    })
}

/// From the partition table itself: up to Linux 6.12 sysfs does not have them. A disk without a valid one has none.
fn read_uuids(disk: &mut Disk, dev: &Path) {
    if disk.partitions.is_empty() {
        return;
    }
    let block_size = if disk.sector_bytes == 4096 { gpt::disk::LogicalBlockSize::Lb4096 } else { gpt::disk::LogicalBlockSize::Lb512 };
    let config = gpt::GptConfig::new().writable(false).logical_block_size(block_size);
    let Ok(table) = config.open(dev.join(disk.name.replace('!', "/"))) else { return };
    for partition in &mut disk.partitions {
        if let Some(entry) = table.partitions().get(&partition.number) {
            partition.uuid = entry.part_guid.to_string();
        }
    }
}

fn read_partition(name: &str, dir: &Path) -> Option<Partition> {
    let text = |file: &str| fs::read_to_string(dir.join(file)).ok();
    let number = text("partition")?.trim().parse().ok()?;
    let bytes = |file: &str| text(file).and_then(|value| value.trim().parse::<u64>().ok()).and_then(|n| n.checked_mul(SYSFS_SECTOR));
    let uevent: BTreeMap<String, String> = text("uevent")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Some(Partition {
        number,
        name: name.to_owned(),
        path: device_path(name),
        label: uevent.get("PARTNAME").cloned().unwrap_or_default(),
        uuid: String::new(),
        start_bytes: bytes("start")?,
        size_bytes: bytes("size")?,
    })
}

/// sysfs writes a slash in a device's name as `!`.
fn device_path(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

/// The unit serial number page: four bytes of header, then text (SPC-4, 7.8.15).
fn scsi_serial(page: &Path) -> String {
    let bytes = fs::read(page).unwrap_or_default();
    String::from_utf8_lossy(bytes.get(4..).unwrap_or_default()).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
}

fn bus_of(name: &str, device: &Path) -> &'static str {
    let path = device.to_string_lossy();
    if name.starts_with("nvme") {
        "nvme"
    } else if name.starts_with("mmcblk") {
        "mmc"
    } else if path.contains("/usb") {
        "usb"
    } else if path.contains("/ata") {
        "ata"
    } else if name.starts_with("vd") {
        "virtio"
    } else if name.starts_with("sd") {
        "scsi"
    } else {
        ""
    }
}

/// Disks that a test makes up; remembers what was asked of them.
#[derive(Debug, Default)]
pub struct FakeBlocks {
    pub disks: Mutex<Vec<Disk>>,
    pub reread: Mutex<Vec<PathBuf>>,
    pub discarded: Mutex<Vec<(PathBuf, u64, u64)>>,
}

impl FakeBlocks {
    pub fn new(disks: Vec<Disk>) -> Self {
        Self { disks: Mutex::new(disks), ..Self::default() }
    }
}

/// A test that panicked while it held a fake's lock has failed already.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Blocks for FakeBlocks {
    fn disks(&self) -> Result<Vec<Disk>, BlockError> {
        Ok(locked(&self.disks).clone())
    }

    fn reread_partitions(&self, disk: &Path) -> Result<(), BlockError> {
        locked(&self.reread).push(disk.to_owned());
        Ok(())
    }

    fn discard(&self, device: &Path, offset: u64, length: u64) -> Result<(), BlockError> {
        locked(&self.discarded).push((device.to_owned(), offset, length));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, content: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn sysfs() -> (tempfile::TempDir, LinuxBlocks) {
        let dir = tempfile::tempdir().unwrap();
        let vda = dir.path().join("devices/pci0000:00/virtio1/block/vda");
        let sda = dir.path().join("devices/pci0000:00/ata2/host1/block/sda");
        for (file, content) in [
            ("size", "2048\n"),
            ("serial", "disk-1\n"),
            ("queue/logical_block_size", "512\n"),
            ("queue/rotational", "1\n"),
            ("ro", "0\n"),
            ("removable", "0\n"),
            ("vda2/partition", "2\n"),
            ("vda2/start", "10\n"),
            ("vda2/size", "20\n"),
            ("vda2/uevent", "DEVNAME=vda2\nPARTN=2\nPARTNAME=ROOT-A\n"),
            ("vda1/partition", "1\n"),
            ("vda1/start", "2\n"),
            ("vda1/size", "8\n"),
            ("vda1/uevent", "DEVNAME=vda1\n"),
        ] {
            write(vda.join(file), content.as_bytes());
        }
        for (file, content) in [
            ("size", &b"8\n"[..]),
            ("device/model", b"ACME 9000   \n"),
            ("device/vpd_pg80", b"\x00\x80\x00\x06 S1\x00\x00"),
            ("removable", b"1\n"),
        ] {
            write(sda.join(file), content);
        }
        write(dir.path().join("devices/virtual/block/loop0/size"), b"8\n");
        write(dir.path().join("devices/virtual/block/sdb/size"), b"0\n");
        fs::create_dir(dir.path().join("block")).unwrap();
        for (name, target) in [("vda", vda), ("sda", sda)] {
            std::os::unix::fs::symlink(target, dir.path().join("block").join(name)).unwrap();
        }
        for name in ["loop0", "sdb"] {
            std::os::unix::fs::symlink(dir.path().join("devices/virtual/block").join(name), dir.path().join("block").join(name)).unwrap();
        }
        let blocks = LinuxBlocks { sys: dir.path().to_owned(), dev: dir.path().join("dev") };
        (dir, blocks)
    }

    /// A real table with two partitions; returns the second one's UUID.
    fn write_table(path: &Path) -> String {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap().set_len(1024 * 1024).unwrap();
        let mut table = gpt::GptConfig::new().writable(true).create(path).unwrap();
        table.add_partition_at("ESP", 1, 34, 6, gpt::partition_types::EFI, 0).unwrap();
        table.add_partition_at("ROOT-A", 2, 40, 20, gpt::partition_types::LINUX_FS, 0).unwrap();
        let uuid = table.partitions()[&2].part_guid.to_string();
        table.write().unwrap();
        uuid
    }

    #[test]
    fn sysfs_becomes_disks_with_partitions_in_order() {
        let (dir, blocks) = sysfs();
        let uuid = write_table(&dir.path().join("dev/vda"));
        let disks = blocks.disks().unwrap();
        assert_eq!(disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["sda", "vda"]);
        let (sda, vda) = (&disks[0], &disks[1]);
        assert_eq!((sda.bus.as_str(), sda.model.as_str(), sda.serial.as_str(), sda.removable), ("ata", "ACME 9000", "S1", true));
        assert_eq!((vda.bus.as_str(), vda.serial.as_str(), vda.sector_bytes, vda.rotational), ("virtio", "disk-1", 512, true));
        assert_eq!((vda.size_bytes, vda.path.as_path()), (1024 * 1024, Path::new("/dev/vda")));
        assert_eq!(vda.partitions.iter().map(|partition| partition.number).collect::<Vec<_>>(), [1, 2]);
        let (disk, root) = partition_by_label(&disks, "ROOT-A").unwrap();
        assert_eq!((disk.name.as_str(), root.start_bytes, root.size_bytes, root.uuid.as_str()), ("vda", 5120, 10240, uuid.as_str()));
        assert_eq!(partition_by_uuid(&disks, &uuid.to_uppercase()).unwrap().1.path, Path::new("/dev/vda2"));
        assert!(partition_by_label(&disks, "STATE").is_none());
    }

    #[test]
    fn errors_name_the_device() {
        let blocks = LinuxBlocks { sys: PathBuf::from("/nonexistent"), dev: PathBuf::from("/nonexistent") };
        assert_eq!(blocks.disks().unwrap_err().to_string(), "list /nonexistent/block");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = blocks.reread_partitions(file.path()).unwrap_err();
        assert!(error.to_string().starts_with("re-read the partition table of "), "{error}");
    }
}
