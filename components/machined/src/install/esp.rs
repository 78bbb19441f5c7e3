//! The boot partition: a FAT file system with systemd-boot and a kernel image per slot. An installation makes it with that of slot A; an
//! upgrade adds the other slot's and changes which is started.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use machine_config::layout::Partition;
use node_ipc::init::Slot;
use sha2::{Digest as _, Sha256};
use slots::loader;

use super::Media;

/// What systemd-boot is told on a new disk: start slot A.
pub fn conf() -> String {
    loader::conf(Slot::A)
}

/// What a kernel image is called while it is written.
const UNFINISHED: &str = "EFI/Linux/strake.new";
const PIECE: usize = 256 << 10;

/// A file that is read here and there.
pub trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// The boot partition of an installed disk. Nothing mounts it, so it is read and written as a file.
#[derive(Clone, Debug)]
pub struct BootPartition {
    /// Its node.
    pub node: PathBuf,
    /// Its size.
    pub size: u64,
}

impl BootPartition {
    /// Works on its files; everything is on the disk afterwards.
    fn with<T>(&self, work: impl FnOnce(&FileSystem<Window<'_>>) -> io::Result<T>) -> io::Result<T> {
        let mut node = OpenOptions::new().read(true).write(true).open(&self.node)?;
        let partition = Partition { label: "ESP", start: 0, size: self.size, type_guid: "" };
        let filesystem = FileSystem::new(Window::new(&mut node, &partition), FsOptions::new().update_accessed_date(false))?;
        let result = work(&filesystem);
        filesystem.unmount()?;
        node.sync_all()?;
        result
    }

    /// Bytes that are free, counting what an unfinished upgrade left.
    pub fn free(&self, besides: Slot) -> io::Result<u64> {
        self.with(|filesystem| {
            let stats = filesystem.stats()?;
            let replaced: u64 = [UNFINISHED.to_owned(), image(besides)]
                .iter()
                .filter_map(|path| filesystem.root_dir().open_file(path).ok()?.seek(SeekFrom::End(0)).ok())
                .sum();
            Ok(u64::from(stats.free_clusters()) * u64::from(stats.cluster_size()) + replaced)
        })
    }

    /// The slot that is started.
    pub fn default_slot(&self) -> io::Result<Option<Slot>> {
        self.with(|filesystem| {
            let mut text = String::new();
            filesystem.root_dir().open_file(loader::CONF)?.take(4096).read_to_string(&mut text)?;
            Ok(loader::default_slot(&text))
        })
    }

    /// Starts this slot from now on. One byte changes, so that a cut leaves the one slot or the other.
    pub fn set_default(&self, slot: Slot) -> io::Result<()> {
        let wanted = loader::conf(slot);
        self.with(|filesystem| {
            let mut conf = filesystem.root_dir().create_file(loader::CONF)?;
            let size = conf.seek(SeekFrom::End(0))?;
            conf.rewind()?;
            conf.write_all(wanted.as_bytes())?;
            if size != wanted.len() as u64 {
                // Not what an installation wrote.
                conf.truncate()?;
            }
            conf.flush()
        })
    }

    /// Whether a slot has a kernel image.
    pub fn has(&self, slot: Slot) -> io::Result<bool> {
        self.with(|filesystem| Ok(filesystem.root_dir().open_file(&image(slot)).is_ok()))
    }

    /// Gives a slot's kernel image to whoever wants to look into it.
    pub fn read_image<T>(&self, slot: Slot, look: impl FnOnce(&mut dyn ReadSeek) -> io::Result<T>) -> io::Result<T> {
        self.with(|filesystem| look(&mut filesystem.root_dir().open_file(&image(slot))?))
    }

    /// Removes a slot's kernel image, so that nothing starts the slot any more.
    pub fn remove(&self, slot: Slot) -> io::Result<()> {
        self.with(|filesystem| [UNFINISHED.to_owned(), image(slot)].iter().try_for_each(|path| remove(filesystem, path)))
    }

    /// Writes a slot's kernel image from `source`, reads it back, and gives it its name only when it has this SHA-256.
    pub fn install(&self, slot: Slot, source: &mut dyn Read, sha256: verity::Digest) -> io::Result<()> {
        self.with(|filesystem| {
            remove(filesystem, UNFINISHED)?;
            let mut target = filesystem.root_dir().create_file(UNFINISHED)?;
            let mut buffer = vec![0; PIECE];
            loop {
                match source.read(&mut buffer)? {
                    0 => break,
                    count => target.write_all(&buffer[..count])?,
                }
            }
            target.flush()
        })?;
        self.with(|filesystem| {
            let (mut file, mut digest, mut buffer) = (filesystem.root_dir().open_file(UNFINISHED)?, Sha256::new(), vec![0; PIECE]);
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    count => digest.update(&buffer[..count]),
                }
            }
            let found = verity::Digest(digest.finalize().into());
            if found != sha256 {
                return Err(io::Error::other(format!("the kernel image has the SHA-256 {found}, and it should be {sha256}")));
            }
            Ok(())
        })?;
        self.with(|filesystem| {
            remove(filesystem, &image(slot))?;
            let root = filesystem.root_dir();
            root.rename(UNFINISHED, &root, &image(slot))
        })
    }
}

fn image(slot: Slot) -> String {
    format!("{}/{}", loader::DIRECTORY, loader::entry(slot))
}

fn remove(filesystem: &FileSystem<Window<'_>>, path: &str) -> io::Result<()> {
    match filesystem.root_dir().remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the file system and fills it.
pub fn write(disk: &mut File, partition: &Partition, media: &Media) -> io::Result<()> {
    let mut window = Window::new(disk, partition);
    let options = FormatVolumeOptions::new().fat_type(FatType::Fat32).volume_label(*b"ESP        ");
    fatfs::format_volume(&mut window, options)?;
    let filesystem = FileSystem::new(window, FsOptions::new().update_accessed_date(false))?;
    {
        let root = filesystem.root_dir();
        for directory in ["EFI", "EFI/BOOT", "EFI/systemd", "EFI/Linux", "loader"] {
            root.create_dir(directory)?;
        }
        let copy = |from: &std::path::Path, to: &str| -> io::Result<()> {
            let mut target = root.create_file(to)?;
            target.truncate()?;
            let mut source = io::BufReader::with_capacity(1 << 20, File::open(from)?);
            io::copy(&mut source, &mut target)?;
            target.flush()
        };
        copy(&media.loader, "EFI/BOOT/BOOTX64.EFI")?;
        copy(&media.loader, "EFI/systemd/systemd-bootx64.efi")?;
        copy(&media.uki, "EFI/Linux/strake-a.efi")?;
        let mut conf = root.create_file("loader/loader.conf")?;
        conf.truncate()?;
        conf.write_all(self::conf().as_bytes())?;
        conf.flush()?;
    }
    filesystem.unmount()
}

/// The part of a disk that is one partition.
struct Window<'a> {
    disk: &'a mut File,
    start: u64,
    size: u64,
    position: u64,
}

impl<'a> Window<'a> {
    fn new(disk: &'a mut File, partition: &Partition) -> Window<'a> {
        Window { disk, start: partition.start, size: partition.size, position: 0 }
    }

    /// How much of a buffer lies within the partition.
    fn fit(&self, wanted: usize) -> usize {
        usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let fit = self.fit(buffer.len());
        self.disk.seek(SeekFrom::Start(self.start + self.position))?;
        let count = self.disk.read(&mut buffer[..fit])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let fit = self.fit(data.len());
        self.disk.seek(SeekFrom::Start(self.start + self.position))?;
        let count = self.disk.write(&data[..fit])?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let before_start = || io::Error::new(io::ErrorKind::InvalidInput, "seek before the start of the partition");
        self.position = position.ok_or_else(before_start)?;
        Ok(self.position)
    }
}

#[cfg(test)]
pub fn files(node: &std::path::Path, partition: &Partition) -> io::Result<Vec<(String, u64)>> {
    fn walk(dir: &fatfs::Dir<'_, Window<'_>>, prefix: &str, found: &mut Vec<(String, u64)>) {
        for entry in dir.iter().map(Result::unwrap).filter(|entry| !entry.file_name().starts_with('.')) {
            let path = format!("{prefix}{}", entry.file_name());
            if entry.is_dir() {
                walk(&entry.to_dir(), &format!("{path}/"), found);
            } else {
                found.push((path, entry.len()));
            }
        }
    }
    let mut disk = std::fs::OpenOptions::new().read(true).write(true).open(node)?;
    let filesystem = FileSystem::new(Window::new(&mut disk, partition), FsOptions::new().update_accessed_date(false))?;
    let mut found = Vec::new();
    walk(&filesystem.root_dir(), "", &mut found);
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_boot_partition_gets_another_slot_and_another_default() {
        let dir = tempfile::tempdir().unwrap();
        let (uki, boot_loader) = (dir.path().join("uki"), dir.path().join("loader"));
        std::fs::write(&uki, vec![1; 1 << 20]).unwrap();
        std::fs::write(&boot_loader, vec![2; 1 << 20]).unwrap();
        let media = Media { root: PathBuf::new(), verity: crate::testing::root_image(2, 1).1, uki, loader: boot_loader };
        let boot = BootPartition { node: dir.path().join("esp"), size: 64 << 20 };
        let partition = Partition { label: "ESP", start: 0, size: boot.size, type_guid: "" };
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&boot.node).unwrap();
        file.set_len(boot.size).unwrap();
        write(&mut file, &partition, &media).unwrap();
        assert_eq!(boot.default_slot().unwrap(), Some(Slot::A));
        assert!(boot.has(Slot::A).unwrap() && !boot.has(Slot::B).unwrap());

        let content = vec![7; 3 << 20];
        let right = verity::Digest(Sha256::digest(&content).into());
        let error = boot.install(Slot::B, &mut &content[1..], right).unwrap_err();
        assert!(error.to_string().contains("it should be"), "{error}");
        assert!(!boot.has(Slot::B).unwrap(), "what does not verify has no name that is started");
        boot.install(Slot::B, &mut &content[..], right).unwrap();
        boot.install(Slot::B, &mut &content[..], right).unwrap();
        boot.set_default(Slot::B).unwrap();
        assert_eq!(boot.default_slot().unwrap(), Some(Slot::B));
        let names = files(&boot.node, &partition).unwrap();
        assert!(names.contains(&("EFI/Linux/strake-b.efi".to_owned(), 3 << 20)), "{names:?}");
        assert!(names.contains(&("loader/loader.conf".to_owned(), conf().len() as u64)), "{names:?}");
        assert!(!names.iter().any(|(name, _)| name.contains("new")), "{names:?}");

        let free = boot.free(Slot::A).unwrap();
        boot.remove(Slot::A).unwrap();
        boot.remove(Slot::A).unwrap();
        assert!(boot.has(Slot::B).unwrap() && !boot.has(Slot::A).unwrap());
        assert_eq!(boot.free(Slot::A).unwrap(), free);
    }
}
