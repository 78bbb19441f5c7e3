//! A volume labelled `STRAKE-CFG` with a file `config.yaml`: a stick or a partition with a FAT file system, or an ISO image, as hypervisors and
//! management controllers attach one. FAT is read here and not by the kernel; ISO 9660 is mounted, read-only.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use host::block::{Blocks, LinuxBlocks};
use host::mount::{Flags, LinuxMounts, MountRequest, Mounts};

use super::{Found, UnattendedError, text};
use crate::paths::Paths;

/// The volume's label.
const LABEL: &str = "STRAKE-CFG";
const FILE: &str = "config.yaml";
/// Volumes that are looked at.
const MOST: usize = 256;
const DRIVES: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fat,
    Iso9660,
}

/// Looks at every disk and partition, in the order of their names.
pub fn look(paths: &Paths) -> Result<Option<Found>, UnattendedError> {
    let disks = LinuxBlocks::default().disks().unwrap_or_default();
    let devices = disks.into_iter().flat_map(|disk| std::iter::once(disk.path).chain(disk.partitions.into_iter().map(|part| part.path)));
    // CD drives are no disks.
    let drives = (0..DRIVES).map(|number| paths.at(&format!("/dev/sr{number}")));
    for device in devices.chain(drives).take(MOST) {
        let kind = File::open(&device).ok().and_then(|mut file| kind(&mut file));
        match kind {
            Some(Kind::Fat) => return from_fat(&device).map(Some),
            Some(Kind::Iso9660) => return from_iso(paths, &device).map(Some),
            None => {}
        }
    }
    Ok(None)
}

fn place(device: &Path) -> String {
    format!("the volume {LABEL} ({})", device.display())
}

/// What kind of file system with the label is there, if one is.
fn kind(device: &mut (impl Read + Seek)) -> Option<Kind> {
    let mut at = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        device.seek(SeekFrom::Start(offset)).and_then(|_| device.read_exact(&mut bytes)).ok().map(|()| bytes)
    };
    let labelled = |bytes: &[u8]| bytes.trim_ascii_end() == LABEL.as_bytes();
    // The boot sector's label of FAT12 and FAT16, and of FAT32, behind each of which stands the kind.
    if let Some(sector) = at(0, 512)
        && sector[510..] == [0x55, 0xaa]
        && ((&sector[54..57] == b"FAT" && labelled(&sector[43..54])) || (&sector[82..85] == b"FAT" && labelled(&sector[71..82])))
    {
        return Some(Kind::Fat);
    }
    // ECMA-119, 8.4: the primary volume descriptor.
    let descriptor = at(16 * 2048, 2048)?;
    (descriptor[..6] == *b"\x01CD001" && labelled(&descriptor[40..72])).then_some(Kind::Iso9660)
}

fn from_fat(device: &Path) -> Result<Found, UnattendedError> {
    let place = place(device);
    let failed = |source| UnattendedError::Read { place: place.clone(), source };
    // The library opens for writing what it may write to; it is given nothing to write with.
    let volume = fatfs::FileSystem::new(ReadOnly(File::open(device).map_err(failed)?), fatfs::FsOptions::new()).map_err(failed)?;
    let file = volume.root_dir().open_file(FILE).map_err(failed)?;
    text(&place, file)
}

/// The text of a file on a FAT volume, of which so many bytes are read at most.
pub fn read_fat(device: &Path, path: &str, most: u64) -> std::io::Result<String> {
    let volume = fatfs::FileSystem::new(ReadOnly(File::open(device)?), fatfs::FsOptions::new())?;
    let (file, mut text) = (volume.root_dir().open_file(path)?, String::new());
    file.take(most).read_to_string(&mut text)?;
    Ok(text)
}

struct ReadOnly(File);

impl Read for ReadOnly {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for ReadOnly {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

impl std::io::Write for ReadOnly {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Such as the mark that the volume is in use.
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn from_iso(paths: &Paths, device: &Path) -> Result<Found, UnattendedError> {
    let place = place(device);
    let target: PathBuf = paths.at("/run/strake/config-volume");
    let failed = |source| UnattendedError::Read { place: place.clone(), source };
    std::fs::create_dir_all(&target).map_err(failed)?;
    let flags = Flags { read_only: true, no_suid: true, no_dev: true, no_exec: true, ..Flags::default() };
    let request =
        MountRequest { source: device.to_owned(), target: target.clone(), kind: "iso9660".to_owned(), flags, options: String::new() };
    LinuxMounts.mount(&request).map_err(|error| failed(std::io::Error::other(error)))?;
    let found = File::open(target.join(FILE)).map_err(failed).and_then(|file| text(&place, file));
    if let Err(error) = LinuxMounts.unmount(&target, false) {
        tracing::warn!(error = crate::api::chain(&error), "unmount the volume with the config");
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use super::*;

    fn fat(label: &[u8; 11], megabytes: usize) -> Vec<u8> {
        let mut image = Cursor::new(vec![0; megabytes << 20]);
        fatfs::format_volume(&mut image, fatfs::FormatVolumeOptions::new().volume_label(*label)).unwrap();
        let volume = fatfs::FileSystem::new(&mut image, fatfs::FsOptions::new()).unwrap();
        volume.root_dir().create_file(FILE).unwrap().write_all(b"a: 1\n").unwrap();
        volume.unmount().unwrap();
        image.into_inner()
    }

    #[test]
    fn the_label_makes_the_volume() {
        let mut iso = vec![0; 40 << 10];
        iso[16 * 2048..16 * 2048 + 6].copy_from_slice(b"\x01CD001");
        iso[16 * 2048 + 40..16 * 2048 + 72].copy_from_slice(b"STRAKE-CFG                      ");
        let mut other = iso.clone();
        other[16 * 2048 + 40] = b'X';
        for (image, expected) in [
            (fat(b"STRAKE-CFG ", 2), Some(Kind::Fat)),
            (fat(b"STRAKE-CFG ", 64), Some(Kind::Fat)),
            (fat(b"STRAKE     ", 2), None),
            (iso, Some(Kind::Iso9660)),
            (other, None),
            (vec![0; 100], None),
            (Vec::new(), None),
        ] {
            assert_eq!(kind(&mut Cursor::new(image)), expected);
        }
    }

    #[test]
    fn a_config_is_read_from_fat_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volume");
        let image = fat(b"STRAKE-CFG ", 2);
        std::fs::write(&file, &image).unwrap();
        assert_eq!(from_fat(&file).unwrap().text, "a: 1\n");
        assert_eq!(read_fat(&file, FILE, 3).unwrap(), "a: ");
        assert_eq!(read_fat(&file, "strake/none.pem", 3).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert_eq!(std::fs::read(&file).unwrap(), image);
        std::fs::write(&file, &image[..100_000]).unwrap();
        let _ = from_fat(&file);
        std::fs::write(&file, b"no volume").unwrap();
        assert!(from_fat(&file).is_err());
    }
}
