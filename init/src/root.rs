//! Finding the root file system: a partition whose UUID is the root's, or a file on an ISO 9660 medium. On the disk that the boot loader
//! was started from, when it says so; another disk may hold the same root, with another machine's data beside it. What was started from a CD
//! drive or the network takes no disk's: an installed system, with all it keeps, is started by its own loader.
//! Which of two it is when nobody says where the loader came from: the installed one, once the devices have settled.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::gpt;
use crate::loader::Origin;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A block device as sysfs describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockDevice {
    pub name: String,
    /// Of a partition: its number and its disk.
    pub partition: Option<(u32, String)>,
    /// Of a partition: its GPT name.
    pub label: String,
    pub sectors: u64,
}

impl BlockDevice {
    fn parse(uevent: &str, size: &str, disk: Option<String>) -> Option<Self> {
        let mut device = Self { sectors: size.trim().parse().ok()?, ..Self::default() };
        let mut number = None;
        for line in uevent.lines() {
            match line.split_once('=') {
                Some(("DEVNAME", name)) => device.name = name.to_owned(),
                Some(("PARTN", value)) => number = value.parse().ok(),
                Some(("PARTNAME", value)) => device.label = value.to_owned(),
                _ => {}
            }
        }
        device.partition = number.zip(disk);
        (!device.name.is_empty()).then_some(device)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

/// Every block device with a size, in the order of their names.
pub fn block_devices() -> Vec<BlockDevice> {
    let mut devices: Vec<BlockDevice> = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            // A partition's directory lies in its disk's.
            let real = fs::canonicalize(entry.path()).ok()?;
            let disk = real.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
            BlockDevice::parse(&read("uevent"), &read("size"), disk)
        })
        // sysfs shows a device a moment before it can be opened.
        .filter(|device| device.sectors > 0 && device.path().exists())
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices
}

/// A disk and what its partition table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub disk: String,
    pub partitions: Vec<gpt::Partition>,
}

/// The partition tables of all disks that have one.
pub fn tables(devices: &[BlockDevice]) -> Vec<Table> {
    let disks =
        medium_candidates(devices, &Search::Everywhere).filter(|device| device.partition.is_none() && !device.name.starts_with("sr"));
    let tables = disks.map(|disk| Table { disk: disk.name.clone(), partitions: partition_table(disk) });
    tables.filter(|table| !table.partitions.is_empty()).collect()
}

/// Where the root may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Search {
    /// Nobody says where the loader came from.
    Everywhere,
    /// On a medium: the loader came from a CD drive or the network.
    Medium,
    /// On the disk that the loader came from.
    Disk(String),
    /// On that disk, which has not appeared yet.
    NotYet,
}

impl Search {
    /// Where to look when the loader was started from there.
    pub fn of(loader: &Origin, tables: &[Table]) -> Self {
        match loader {
            Origin::Unknown => Self::Everywhere,
            Origin::NoPartition => Self::Medium,
            Origin::Partition(loader) => {
                let holds = |table: &&Table| table.partitions.iter().any(|(_, uuid)| uuid == loader);
                tables.iter().find(holds).map_or(Self::NotYet, |table| Self::Disk(table.disk.clone()))
            }
        }
    }

    fn covers(&self, disk: &str) -> bool {
        match self {
            Self::Everywhere | Self::Medium => true,
            Self::Disk(wanted) => wanted == disk,
            Self::NotYet => false,
        }
    }
}

/// The partition that holds the root, by the partition tables of the disks.
pub fn root_partition<'a>(devices: &'a [BlockDevice], tables: &[Table], search: &Search, root_uuid: &str) -> Option<&'a BlockDevice> {
    if *search == Search::Medium {
        return None;
    }
    tables.iter().filter(|table| search.covers(&table.disk)).find_map(|table| {
        let (number, _) = table.partitions.iter().find(|(_, uuid)| uuid == root_uuid)?;
        let wanted = Some((*number, table.disk.clone()));
        devices.iter().find(|device| device.partition == wanted)
    })
}

fn partition_table(disk: &BlockDevice) -> Vec<gpt::Partition> {
    let Ok(file) = File::open(disk.path()) else { return Vec::new() };
    let sector = fs::read_to_string(Path::new("/sys/class/block").join(&disk.name).join("queue/logical_block_size"));
    let sector: u64 = sector.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(512);
    gpt::read(&file, sector, disk.sectors.saturating_mul(512) / sector.max(512))
}

/// Devices that may hold a medium: not those that the kernel makes up.
pub fn medium_candidates<'a>(devices: &'a [BlockDevice], search: &'a Search) -> impl Iterator<Item = &'a BlockDevice> {
    let made_up = ["loop", "ram", "zram", "dm-", "md", "fd", "nbd"];
    let real = devices.iter().filter(move |device| !made_up.iter().any(|prefix| device.name.starts_with(prefix)));
    real.filter(move |device| search.covers(device.partition.as_ref().map_or(&device.name, |(_, disk)| disk)))
}

/// Whether an ISO 9660 file system starts on the device (ECMA-119, 8.1: the first volume descriptor is in sector 16).
pub fn is_iso9660(device: &Path) -> bool {
    let mut identifier = [0; 5];
    File::open(device).and_then(|file| file.read_exact_at(&mut identifier, 16 * 2048 + 1)).is_ok() && identifier == *b"CD001"
}

/// Mounts the medium and returns the path of the root image on it; leaves nothing mounted when it holds none.
pub fn mount_medium(device: &Path, target: &Path, root_uuid: &str) -> Option<PathBuf> {
    fs::create_dir_all(target).ok()?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(device, target, "iso9660", flags, None).ok()?;
    let image = target.join("strake").join(format!("{root_uuid}.erofs"));
    if image.is_file() {
        return Some(image);
    }
    let _ = unmount(target, UnmountFlags::empty());
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, partition: Option<(u32, &str)>) -> BlockDevice {
        let partition = partition.map(|(number, disk)| (number, disk.to_owned()));
        BlockDevice { name: name.into(), partition, label: String::new(), sectors: 8 }
    }

    #[test]
    fn sysfs_text_becomes_a_device() {
        let partition = "MAJOR=254\nMINOR=2\nDEVNAME=vda2\nDEVTYPE=partition\nPARTN=2\nPARTNAME=ROOT-A\n";
        let disk = |name: &str| Some(name.to_owned());
        let expected = BlockDevice { label: "ROOT-A".into(), ..device("vda2", Some((2, "vda"))) };
        assert_eq!(BlockDevice::parse(partition, "8\n", disk("vda")), Some(expected));
        assert_eq!(BlockDevice::parse("DEVNAME=sr0\nDEVTYPE=disk\n", "8", disk("block")), Some(device("sr0", None)));
        assert_eq!(BlockDevice::parse("DEVTYPE=disk\n", "8", None), None);
        assert_eq!(BlockDevice::parse("DEVNAME=sr0\n", "", None), None);
    }

    #[test]
    fn disks_that_cannot_be_read_hold_no_root() {
        let devices = [device("nonexistent", None), device("nonexistent1", Some((1, "nonexistent")))];
        assert_eq!(tables(&devices), []);
    }

    fn table(disk: &str, uuids: &[&str]) -> Table {
        Table { disk: disk.into(), partitions: (1..).zip(uuids.iter().map(|uuid| (*uuid).to_owned())).collect() }
    }

    #[test]
    fn of_two_disks_with_the_same_root_the_loaders_is_taken() {
        let tables = [table("vda", &["esp-1", "root"]), table("vdb", &["esp-2", "root"]), table("vdc", &["esp-3"])];
        let partition = |uuid: &str| Origin::Partition(uuid.to_owned());
        let mut devices = Vec::new();
        for disk in ["vda", "vdb", "vdc"] {
            devices.push(device(disk, None));
            devices.extend([1, 2].map(|number| device(&format!("{disk}{number}"), Some((number, disk)))));
        }
        for (loader, expected) in [
            (Origin::Unknown, Some("vda2")),
            // An installed system, and all it keeps, is not this one's.
            (Origin::NoPartition, None),
            (partition("esp-1"), Some("vda2")),
            (partition("esp-2"), Some("vdb2")),
            // Its disk has no such root: that of another machine is not taken instead.
            (partition("esp-3"), None),
            // Its disk has not appeared.
            (partition("esp-4"), None),
        ] {
            let search = Search::of(&loader, &tables);
            let found = root_partition(&devices, &tables, &search, "root").map(|device| device.name.as_str());
            assert_eq!(found, expected, "{loader:?}");
        }
        assert_eq!(root_partition(&devices, &tables, &Search::Everywhere, "other"), None);
    }

    #[test]
    fn media_are_looked_for_on_real_devices_of_the_loaders_disk_only() {
        let names = ["loop0", "ram1", "sr0", "sda", "nvme0n1", "fd0", "dm-0", "vdb"];
        let mut devices = names.map(|name| device(name, None)).to_vec();
        devices.push(device("sda1", Some((1, "sda"))));
        for (search, expected) in [
            (Search::Everywhere, &["sr0", "sda", "nvme0n1", "vdb", "sda1"][..]),
            (Search::Medium, &["sr0", "sda", "nvme0n1", "vdb", "sda1"]),
            (Search::Disk("sda".into()), &["sda", "sda1"]),
            (Search::NotYet, &[]),
        ] {
            let found: Vec<&str> = medium_candidates(&devices, &search).map(|device| device.name.as_str()).collect();
            assert_eq!(found, expected, "{search:?}");
        }
    }

    #[test]
    fn the_descriptor_of_sector_16_tells_an_iso_from_other_content() {
        let dir = tempfile::tempdir().unwrap();
        let (iso, other) = (dir.path().join("iso"), dir.path().join("other"));
        let mut content = vec![0u8; 40 * 1024];
        fs::write(&other, &content).unwrap();
        content[16 * 2048 + 1..16 * 2048 + 6].copy_from_slice(b"CD001");
        fs::write(&iso, &content).unwrap();
        assert!(is_iso9660(&iso));
        assert!(!is_iso9660(&other));
        assert!(!is_iso9660(&dir.path().join("missing")));
    }
}
