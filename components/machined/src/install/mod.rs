//! Installing to a disk. Everything that can be known beforehand is checked before the first byte is written; the old
//! partition table goes first and the new one comes last, so that an interrupted installation leaves a disk that nothing
//! takes for an installed one. What was written to the slot is read back from the disk and verified against the root hash
//! of the system that installs, before the boot partition is made.
//!
//! All partitions are written through the whole disk at their offsets, so the same code installs to a block device and
//! to a file, and needs neither the kernel to know the partitions nor anything to be mounted.

pub mod esp;
mod filesystem;
mod foreign;
pub mod rest;
pub mod slot;
mod table;
pub mod user;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use machine_config::Config;
use machine_config::disk::{Disk, Selection, select};
use machine_config::layout::{Partition, layout};
use slots::kernel_image;

use crate::encryption::{self, EncryptionError, Planned};
use crate::paths::Paths;

/// The part of a disk at either end that holds partition tables.
const TABLE_BYTES: u64 = 1 << 20;

/// Why nothing was installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The config's selector does not name one disk.
    #[error("{0}")]
    Disk(Selection),
    /// The disk is too small.
    #[error("{disk}")]
    TooSmall { disk: String, source: machine_config::layout::DiskTooSmall },
    /// The disk holds something already.
    #[error("{disk} holds {what}; set install.wipe to true if it may be overwritten")]
    InUse { disk: String, what: String },
    /// The image does not fit.
    #[error("{what} has {has} bytes, and {label} only {room}")]
    TooLarge { what: &'static str, has: u64, label: &'static str, room: u64 },
    /// What starts the system would not.
    #[error("{path} does not start this machine: the installation medium is damaged, or made for others")]
    Program { path: PathBuf, source: kernel_image::Problem },
    /// The medium lacks something, or a file can't be read.
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// The medium holds another root than the one that is running.
    #[error("the root image has {has} bytes instead of {expected}: the installation medium is damaged")]
    Damaged { has: u64, expected: u64 },
    /// What is on the disk now is not what should have been written.
    #[error("{label} on {disk} does not verify: the disk or the installation medium is damaged")]
    Verify { label: &'static str, disk: PathBuf, source: verity::CheckError },
    /// A step on the disk failed.
    #[error("{step} on {disk}")]
    Step { step: &'static str, disk: PathBuf, source: io::Error },
    /// The partition table could not be written.
    #[error("write the partition table of {disk}")]
    Table { disk: PathBuf, source: gpt::GptError },
    /// An encrypted volume could not be made.
    #[error(transparent)]
    Encrypt(#[from] EncryptionError),
    /// A part of the disk could not be given to the program that encrypts it.
    #[error("make the volume {label}")]
    Part { label: &'static str, source: host::loop_device::LoopError },
    /// A file system could not be made.
    #[error("make the file system {label}")]
    MakeFilesystem { label: &'static str, source: filesystem::MkfsError },
}

/// What is installed: files of the installation medium.
#[derive(Clone, Debug)]
pub struct Media {
    /// The root image, with its hash tree.
    pub root: PathBuf,
    /// What it is verified against; its UUID becomes its partition's.
    pub verity: verity::Parameters,
    /// The unified kernel image that starts this root.
    pub uki: PathBuf,
    /// systemd-boot.
    pub loader: PathBuf,
}

impl Media {
    /// The files of a medium mounted at this directory.
    pub fn at(directory: &Path, verity: verity::Parameters) -> Media {
        Media {
            root: directory.join(format!("strake/{}.erofs", verity.root_uuid())),
            verity,
            uki: directory.join("EFI/Linux/strake.efi"),
            loader: directory.join("EFI/systemd/systemd-bootx64.efi"),
        }
    }
}

/// What the volumes are made with, beside the disk's layout.
#[derive(Clone, Debug)]
pub struct Volumes {
    /// Where things are on the machine that installs.
    pub paths: Paths,
    /// Those that are encrypted.
    pub encrypted: Vec<Planned>,
}

impl Volumes {
    /// A directory in memory for what STATE begins with.
    fn scratch(&self) -> PathBuf {
        self.paths.at("/run/strake/install")
    }

    fn planned(&self, label: &str) -> Option<&Planned> {
        self.encrypted.iter().find(|planned| planned.volume.as_str() == label)
    }

    /// Makes a volume at a partition's place on a disk, filled from a directory if there is one.
    fn make(&self, disk: &Path, partition: &Partition, content: Option<&Path>) -> Result<(), InstallError> {
        self.make_with(self.planned(partition.label), disk, partition, content)
    }

    /// The same with what was planned for this volume, if it is encrypted.
    fn make_with(&self, planned: Option<&Planned>, disk: &Path, partition: &Partition, content: Option<&Path>) -> Result<(), InstallError> {
        let label = partition.label;
        let failed = move |source| InstallError::MakeFilesystem { label, source };
        let Some(planned) = planned else { return filesystem::make(disk, partition, content).map_err(failed) };
        let (device, kept) = if partition.start == 0 {
            (disk.to_owned(), None)
        } else {
            let part = host::loop_device::attach_part(disk, partition.start, partition.size);
            let (device, kept) = part.map_err(|source| InstallError::Part { label, source })?;
            (device, Some(kept))
        };
        let made = encryption::make(planned, &device, &self.paths, |open, size| {
            let whole = Partition { label, start: 0, size, type_guid: "" };
            filesystem::make(open, &whole, content).map_err(failed)
        });
        // What is written through the loop device is on the disk before it goes away.
        let synced = File::open(&device).and_then(|file| file.sync_all()).map_err(step("write to the disk", &device));
        drop(kept);
        made.and(synced)
    }
}

impl Volumes {
    /// Makes STATE with the config in it. The files it begins with lie in a directory that only root reads, for as long as that takes.
    fn make_state(&self, disk: &Path, partition: &Partition, config: &str) -> Result<(), InstallError> {
        let directory = self.scratch().join("state");
        let content = || -> io::Result<()> {
            if directory.exists() {
                fs::remove_dir_all(&directory)?;
            }
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            crate::state::write_atomically(&directory.join("config.yaml"), config.as_bytes(), 0o600)
        };
        content().map_err(step("prepare STATE", &directory))?;
        let made = self.make(disk, partition, Some(&directory));
        let removed = fs::remove_dir_all(&directory).map_err(step("remove what STATE was made from", &directory));
        made.and(removed)
    }
}

/// How far an installation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: &'static str,
    /// Bytes done and to do; both 0 when they are not counted.
    pub done: u64,
    /// See `done`.
    pub total: u64,
    /// What it is done to.
    pub detail: String,
}

/// An installation that was checked and can begin.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The disk's node.
    pub disk: PathBuf,
    sector: u64,
    size: u64,
    partitions: Vec<Partition>,
    media: Media,
    config: String,
    /// How the volumes are made.
    pub volumes: Volumes,
}

/// The disk that a config selects.
pub fn select_disk<'a>(config: &Config, disks: &'a [Disk]) -> Result<&'a Disk, InstallError> {
    match select(&config.machine.install.disk, disks) {
        // The name is one of those given.
        Selection::One(name) => disks.iter().find(|disk| disk.name == name).ok_or(InstallError::Disk(Selection::None(Vec::new()))),
        other => Err(InstallError::Disk(other)),
    }
}

/// Checks everything that can be checked without writing.
pub fn prepare(
    config: &Config,
    config_text: &str,
    disk: &Disk,
    node: &Path,
    sector: u64,
    media: Media,
    volumes: Volumes,
) -> Result<Installation, InstallError> {
    let partitions = layout(config.machine.role, disk.size).map_err(|source| InstallError::TooSmall { disk: disk.name.clone(), source })?;
    let room = |label: &str| partitions.iter().find(|partition| partition.label == label).map_or(0, |partition| partition.size);
    let (root, expected) = (readable(&media.root)?, media.verity.total_bytes());
    if root != expected {
        return Err(InstallError::Damaged { has: root, expected });
    }
    if root > room("ROOT-A") {
        return Err(InstallError::TooLarge { what: "the root image", has: root, label: "ROOT-A", room: room("ROOT-A") });
    }
    // Two kernels and as many loaders must fit, for the other slot.
    let boot = (program(&media.uki)? + program(&media.loader)? * 2) * 2;
    if boot > room("ESP") / 10 * 9 {
        return Err(InstallError::TooLarge { what: "what starts the system", has: boot, label: "ESP", room: room("ESP") });
    }
    if !config.machine.install.wipe
        && let Some(what) = table::content(node, disk.size).map_err(step("look for partitions", node))?
    {
        return Err(InstallError::InUse { disk: disk.name.clone(), what });
    }
    let (node, size, config) = (node.to_owned(), disk.size, config_text.to_owned());
    Ok(Installation { disk: node, sector, size, partitions, media, config, volumes })
}

fn readable(path: &Path) -> Result<u64, InstallError> {
    let size = File::open(path).and_then(|file| file.metadata()).map(|metadata| metadata.len());
    size.map_err(|source| InstallError::Read { path: path.to_owned(), source })
}

/// The size of a program that the firmware is to start.
fn program(path: &Path) -> Result<u64, InstallError> {
    let (size, mut head) = (readable(path)?, Vec::new());
    let read = File::open(path).and_then(|file| file.take(kernel_image::HEAD as u64).read_to_end(&mut head));
    read.map_err(|source| InstallError::Read { path: path.to_owned(), source })?;
    kernel_image::check(&head, size).map_err(|source| InstallError::Program { path: path.to_owned(), source })?;
    Ok(size)
}

fn step(step: &'static str, disk: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let disk = disk.to_owned();
    move |source| InstallError::Step { step, disk, source }
}

impl Installation {
    /// Installs. Blocks; takes as long as the disk needs.
    pub fn run(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
        say(progress, "remove the old partition table", self.disk.display().to_string());
        let mut disk = OpenOptions::new().read(true).write(true).open(&self.disk).map_err(step("open the disk", &self.disk))?;
        clear_tables(&mut disk, self.size).map_err(step("remove the old partition table", &self.disk))?;

        for partition in &self.partitions {
            match partition.label {
                "ROOT-A" => slot::write(&mut disk, &self.disk, partition, &self.media, progress)?,
                // A slot that was never written must not look like one that was.
                "ROOT-B" | "META" => zero(&mut disk, partition.start, TABLE_BYTES).map_err(step("clear a partition", &self.disk))?,
                _ => {}
            }
        }
        for partition in self.partitions.iter().filter(|partition| partition.label == "ESP") {
            say(progress, "write the boot partition", partition.label.to_owned());
            esp::write(&mut disk, partition, &self.media).map_err(step("write the boot partition", &self.disk))?;
        }
        disk.sync_all().map_err(step("write to the disk", &self.disk))?;

        for partition in &self.partitions {
            match partition.label {
                "STATE" => {
                    say(progress, "write the machine config", partition.label.to_owned());
                    self.volumes.make_state(&self.disk, partition, &self.config)?;
                }
                "ETCD" | "DATA" => {
                    say(progress, "make file systems", partition.label.to_owned());
                    self.volumes.make(&self.disk, partition, None)?;
                }
                _ => {}
            }
        }
        say(progress, "write the partition table", self.disk.display().to_string());
        disk.sync_all().map_err(step("write to the disk", &self.disk))?;
        let table_failed = |source| InstallError::Table { disk: self.disk.clone(), source };
        table::write(&mut disk, self.size, self.sector, &self.partitions, self.media.verity.root_hash()).map_err(table_failed)?;
        disk.sync_all().map_err(step("write the partition table", &self.disk))
    }
}

fn clear_tables(disk: &mut File, size: u64) -> io::Result<()> {
    zero(disk, 0, TABLE_BYTES)?;
    zero(disk, size.saturating_sub(TABLE_BYTES), TABLE_BYTES)?;
    disk.sync_all()
}

fn say(progress: &mut dyn FnMut(Progress), stage: &'static str, detail: String) {
    progress(Progress { stage, done: 0, total: 0, detail });
}

/// Gives an already installed disk a config again, after a reset: makes the encrypted volumes anew, and STATE with the config last. `parts` are the
/// partitions' labels, nodes and sizes.
pub fn write_volumes(parts: &[(&'static str, PathBuf, u64)], config_text: &str, volumes: &Volumes) -> Result<(), InstallError> {
    for (label, node, size) in parts.iter().filter(|(label, ..)| *label != "STATE" && volumes.planned(label).is_some()) {
        volumes.make(node, &Partition { label, start: 0, size: *size, type_guid: "" }, None)?;
    }
    for (label, node, size) in parts.iter().filter(|(label, ..)| *label == "STATE") {
        volumes.make_state(node, &Partition { label, start: 0, size: *size, type_guid: "" }, config_text)?;
        File::open(node).and_then(|file| file.sync_all()).map_err(step("write to the disk", node))?;
    }
    Ok(())
}

#[cfg(test)]
pub use table::write as write_table;

/// Makes an empty file system on a partition's node.
pub fn make_empty(node: &Path, label: &'static str, size: u64) -> Result<(), InstallError> {
    let partition = Partition { label, start: 0, size, type_guid: "" };
    filesystem::make(node, &partition, None).map_err(|source| InstallError::MakeFilesystem { label, source })
}

fn zero(disk: &mut File, start: u64, count: u64) -> io::Result<()> {
    disk.seek(SeekFrom::Start(start))?;
    io::copy(&mut io::repeat(0).take(count), disk).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const GIB: u64 = 1 << 30;

    struct Fixture {
        dir: tempfile::TempDir,
        media: Media,
    }

    fn program_of(size: usize) -> Vec<u8> {
        crate::testing::kernel_image(&[(".linux", &vec![2; size - 512])])
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (root, verity) = crate::testing::root_image(768, 1);
        let media = Media::at(&dir.path().join("media"), verity);
        for (path, content) in [(&media.root, root), (&media.uki, program_of(3 << 20)), (&media.loader, program_of(3 << 20))] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        Fixture { dir, media }
    }

    impl Fixture {
        fn disk(&self, size: u64) -> Disk {
            let path = self.dir.path().join("disk");
            File::create(&path).unwrap().set_len(size).unwrap();
            Disk { name: "vda".into(), paths: vec![path.display().to_string()], size, bus: "virtio".into(), ..Disk::default() }
        }

        fn prepare(&self, config: &Config, disk: &Disk) -> Result<Installation, InstallError> {
            let volumes = Volumes { paths: Paths::under(self.dir.path().join("scratch")), encrypted: Vec::new() };
            prepare(config, "the: config\n", disk, Path::new(&disk.paths[0]), 512, self.media.clone(), volumes)
        }
    }

    #[test]
    fn a_worker_is_installed_to_an_empty_disk() {
        let fixture = fixture();
        let disk = fixture.disk(10 * GIB);
        let config = crate::testing::worker_config("{name: vda}");
        assert_eq!(select_disk(&config, std::slice::from_ref(&disk)).unwrap().name, "vda");
        let mut stages = Vec::new();
        let installation = fixture.prepare(&config, &disk).unwrap();
        installation.run(&mut |progress| stages.push(progress.stage)).unwrap();
        assert!(stages.contains(&"write the system"), "{stages:?}");

        let node = PathBuf::from(&disk.paths[0]);
        let table = gpt::GptConfig::new().open(&node).unwrap();
        let labels: Vec<_> = table.partitions().values().map(|partition| partition.name.clone()).collect();
        assert_eq!(labels, ["ESP", "ROOT-A", "ROOT-B", "META", "STATE", "DATA"]);
        let root = &table.partitions()[&2];
        assert_eq!(root.part_guid.to_string(), fixture.media.verity.root_uuid());
        let mut image = File::open(&node).unwrap();
        image.seek(SeekFrom::Start(root.first_lba * 512)).unwrap();
        verity::check(&mut image, &fixture.media.verity).unwrap();
        let (verified, boot) = ("verify the system", "write the boot partition");
        let place = |wanted: &str| stages.iter().position(|stage| *stage == wanted);
        assert!(place(verified).is_some() && place(verified) < place(boot), "{stages:?}");

        assert_eq!(
            esp::files(&node, &installation.partitions[0]).unwrap(),
            [
                ("EFI/BOOT/BOOTX64.EFI".to_owned(), 3 << 20),
                ("EFI/Linux/strake-a.efi".to_owned(), 3 << 20),
                ("EFI/systemd/systemd-bootx64.efi".to_owned(), 3 << 20),
                ("loader/loader.conf".to_owned(), esp::conf().len() as u64),
            ]
        );

        // debugfs reads the config out of STATE, as the next boot will.
        let state = &table.partitions()[&5];
        let output = Command::new("/sbin/debugfs")
            .args(["-R", "cat /config.yaml"])
            .arg(format!("{}?offset={}", node.display(), state.first_lba * 512))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "the: config\n");
        assert!(!fixture.dir.path().join("scratch/run/strake/install/state").exists(), "the config is not left in memory");

        // The disk is taken now.
        assert!(matches!(fixture.prepare(&config, &disk), Err(InstallError::InUse { what, .. }) if what.contains("ROOT-A")));
    }

    #[test]
    fn nothing_is_written_when_something_is_wrong_beforehand() {
        let fixture = fixture();
        let config = crate::testing::worker_config("{name: vda}");
        let small = fixture.disk(2 * GIB);
        assert!(matches!(fixture.prepare(&config, &small), Err(InstallError::TooSmall { .. })));

        let disk = fixture.disk(10 * GIB);
        fs::write(&disk.paths[0], "a file system of someone").unwrap();
        OpenOptions::new().write(true).open(&disk.paths[0]).unwrap().set_len(disk.size).unwrap();
        assert!(matches!(fixture.prepare(&config, &disk), Err(InstallError::InUse { .. })));
        let wipe = crate::testing::worker_config_with("{disk: {name: vda}, wipe: true}");
        assert!(fixture.prepare(&wipe, &disk).is_ok());
        // A member of a RAID set whose mark is at its end looks empty at its beginning.
        let member = Fixture { dir: tempfile::tempdir().unwrap(), media: fixture.media.clone() };
        let raid = member.disk(10 * GIB);
        let mut file = OpenOptions::new().write(true).open(&raid.paths[0]).unwrap();
        file.seek(SeekFrom::Start(raid.size - 8192)).unwrap();
        io::Write::write_all(&mut file, &[0xfc, 0x4e, 0x2b, 0xa9]).unwrap();
        let refused = member.prepare(&config, &raid).unwrap_err().to_string();
        assert!(refused.contains("Linux RAID") && refused.contains("install.wipe"), "{refused}");
        assert!(member.prepare(&wipe, &raid).is_ok());
        let group = Fixture { dir: tempfile::tempdir().unwrap(), media: fixture.media.clone() };
        let lvm = group.disk(10 * GIB);
        let mut file = OpenOptions::new().write(true).open(&lvm.paths[0]).unwrap();
        file.seek(SeekFrom::Start(512)).unwrap();
        io::Write::write_all(&mut file, b"LABELONE").unwrap();
        let refused = group.prepare(&config, &lvm).unwrap_err().to_string();
        assert!(refused.contains("vda holds a physical volume of LVM") && refused.contains("install.wipe"), "{refused}");
        // No such disk, and two that are equal.
        let none = select_disk(&config, &[]).unwrap_err().to_string();
        let by_size = crate::testing::worker_config("{bus: virtio}");
        let two = [Disk { name: "vda".into(), ..disk.clone() }, Disk { name: "vdb".into(), ..disk.clone() }];
        let ambiguous = select_disk(&by_size, &two).unwrap_err().to_string();
        assert!(!none.is_empty() && ambiguous.contains("vda") && ambiguous.contains("vdb"), "{none}; {ambiguous}");

        // A medium for other machines, and one that is cut off.
        let uki = fs::read(&fixture.media.uki).unwrap();
        let mut other = uki.clone();
        other[0x44..0x46].copy_from_slice(&0xaa64_u16.to_le_bytes());
        for (content, expected) in [
            (&other[..], "it is for aarch64 machines, and this is an x86_64 one"),
            (&uki[..uki.len() / 2], "it is cut off"),
            (b"", "not a program that a firmware starts"),
        ] {
            fs::write(&fixture.media.uki, content).unwrap();
            let told = crate::api::chain(&fixture.prepare(&wipe, &disk).unwrap_err());
            assert!(told.contains("EFI/Linux/strake.efi") && told.contains(expected), "{told}: {expected}");
        }
        fs::remove_file(&fixture.media.uki).unwrap();
        assert!(matches!(fixture.prepare(&wipe, &disk), Err(InstallError::Read { path, .. }) if path == fixture.media.uki));
        let mut content = [0; 24];
        File::open(&disk.paths[0]).unwrap().read_exact(&mut content).unwrap();
        assert_eq!(&content, b"a file system of someone");
    }

    #[test]
    fn a_damaged_medium_is_found_out_before_anything_can_start_from_the_disk() {
        let fixture = fixture();
        let disk = fixture.disk(10 * GIB);
        let config = crate::testing::worker_config("{name: vda}");
        let intact = fs::read(&fixture.media.root).unwrap();
        for place in [0, 2 << 20, intact.len() - 1] {
            let mut damaged = intact.clone();
            damaged[place] ^= 0x40;
            fs::write(&fixture.media.root, damaged).unwrap();
            let installation = fixture.prepare(&config, &disk).unwrap();
            let mut stages = Vec::new();
            let error = installation.run(&mut |progress| stages.push(progress.stage)).unwrap_err();
            assert!(matches!(error, InstallError::Verify { label: "ROOT-A", .. }), "{place}: {error:?}");
            assert!(!stages.contains(&"write the boot partition"), "{stages:?}");
            assert!(gpt::GptConfig::new().open(&disk.paths[0]).is_err(), "no partition table");
        }
        fs::write(&fixture.media.root, &intact[..intact.len() - 1]).unwrap();
        assert!(matches!(fixture.prepare(&config, &disk), Err(InstallError::Damaged { .. })));
    }

    #[test]
    fn an_interrupted_installation_leaves_no_partition_table() {
        let fixture = fixture();
        let disk = fixture.disk(10 * GIB);
        let config = crate::testing::worker_config("{name: vda}");
        let installation = fixture.prepare(&config, &disk).unwrap();
        installation.run(&mut |_| {}).unwrap();
        // Again, and this time the medium is pulled before its image is read.
        let wipe = crate::testing::worker_config_with("{disk: {name: vda}, wipe: true}");
        let installation = fixture.prepare(&wipe, &disk).unwrap();
        fs::remove_file(&fixture.media.root).unwrap();
        assert!(matches!(installation.run(&mut |_| {}), Err(InstallError::Read { .. })));
        assert!(gpt::GptConfig::new().open(&disk.paths[0]).is_err());
    }
}
