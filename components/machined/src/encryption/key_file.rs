//! A key in a file on another volume: found by the label of its partition or of its file system, mounted read-only for a moment.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use host::block::{Blocks, LinuxBlocks};
use host::mount::{Flags, LinuxMounts, MountRequest, Mounts};

use crate::paths::Paths;

/// More bytes than a key needs.
const MOST: u64 = 8 << 10;
/// Fewer can be guessed.
const LEAST: usize = 16;
const PLACE: &str = "/run/strake/key-volume";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The volume is not there.
    #[error("no partition or file system is called {0}")]
    NotThere(String),
    /// The disks could not be looked at.
    #[error("look for the volume {0}")]
    Look(String, #[source] host::block::BlockError),
    /// It could not be mounted.
    #[error("mount {device}: {problem}")]
    Mount { device: PathBuf, problem: String },
    /// The file could not be read.
    #[error("read {path} of {device}")]
    Read { device: PathBuf, path: String, source: io::Error },
    /// It is no key.
    #[error("{path} of {device} has {size} bytes; a key has {LEAST} to {MOST}")]
    Size { device: PathBuf, path: String, size: usize },
}

/// Reads it.
pub fn read(paths: &Paths, volume: &str, path: &str) -> Result<Vec<u8>, KeyFileError> {
    let (device, kind) = find(volume)?;
    let mounted = paths.at(PLACE);
    let failed = |problem: String| KeyFileError::Mount { device: device.clone(), problem };
    std::fs::create_dir_all(&mounted).map_err(|error| failed(error.to_string()))?;
    let request = MountRequest {
        source: device.clone(),
        target: mounted.clone(),
        kind: kind.to_owned(),
        flags: Flags { read_only: true, no_suid: true, no_dev: true, no_exec: true, ..Flags::default() },
        // Without it ext4 replays its journal, which writes.
        options: if kind == "ext4" { "noload".to_owned() } else { String::new() },
    };
    LinuxMounts.mount(&request).map_err(|error| failed(crate::api::chain(&error)))?;
    let content =
        content(&mounted.join(path)).map_err(|source| KeyFileError::Read { device: device.clone(), path: path.to_owned(), source });
    LinuxMounts.unmount(&mounted, false).map_err(|error| failed(crate::api::chain(&error)))?;
    let content = content?;
    if content.len() < LEAST || content.len() as u64 > MOST {
        return Err(KeyFileError::Size { device, path: path.to_owned(), size: content.len() });
    }
    Ok(content)
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut content)?;
    Ok(content)
}

fn find(volume: &str) -> Result<(PathBuf, &'static str), KeyFileError> {
    let disks = LinuxBlocks::default().disks().map_err(|error| KeyFileError::Look(volume.to_owned(), error))?;
    for disk in &disks {
        let partitions = disk.partitions.iter().map(|partition| (&partition.path, partition.label.as_str()));
        for (device, label) in partitions.chain([(&disk.path, "")]) {
            let mut start = vec![0; 2048];
            let read = File::open(device).and_then(|mut file| file.read_exact(&mut start));
            if let (Ok(()), Some((kind, own))) = (read, file_system(&start))
                && (label == volume || own == volume)
            {
                return Ok((device.clone(), kind));
            }
        }
    }
    Err(KeyFileError::NotThere(volume.to_owned()))
}

/// Kind and label of a FAT or ext4 file system, from its first two KiB.
fn file_system(start: &[u8]) -> Option<(&'static str, String)> {
    let label = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).trim_end().to_owned()
    };
    // The magic number and volume name of ext4's superblock, which is 1024 bytes in.
    if start.get(1080..1082)? == [0x53, 0xef] {
        return Some(("ext4", label(start.get(1144..1160)?)));
    }
    // The boot sector of FAT32 and of FAT12 or FAT16 (Microsoft's FAT specification).
    if start.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    if start.get(82..87)? == b"FAT32" {
        return Some(("vfat", label(start.get(71..82)?)));
    }
    (start.get(54..57)? == b"FAT").then(|| ("vfat", label(&start[43..54])))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_are_those_that_were_given() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volume");
        std::fs::write(&file, vec![0; 4 << 20]).unwrap();
        let volume = File::options().read(true).write(true).open(&file).unwrap();
        fatfs::format_volume(volume, fatfs::FormatVolumeOptions::new().volume_label(*b"MY KEYS    ")).unwrap();
        assert_eq!(file_system(&std::fs::read(&file).unwrap()), Some(("vfat", "MY KEYS".to_owned())));
        assert!(Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-L", "KEYS"]).arg(&file).status().unwrap().success());
        assert_eq!(file_system(&std::fs::read(&file).unwrap()), Some(("ext4", "KEYS".to_owned())));
        assert_eq!(file_system(&[0; 2048]), None);
    }

    proptest! {
        #[test]
        fn anything_can_be_looked_at(start in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = file_system(&start);
        }
    }
}
