//! The boot partition: a FAT file system with systemd-boot and the kernel image of slot A.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use machine_config::layout::Partition;

use super::Media;

/// What systemd-boot is told: start slot A at once, and let nobody edit the command line.
pub const LOADER_CONF: &str = "default strake-a.efi\ntimeout 0\neditor no\n";

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
        conf.write_all(LOADER_CONF.as_bytes())?;
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
