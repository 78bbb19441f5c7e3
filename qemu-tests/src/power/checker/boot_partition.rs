//! What the firmware and the boot loader read from the boot partition.

use std::collections::BTreeMap;
use std::io::{self, Read};

use fatfs::{FileSystem, FsOptions};
use sha2::{Digest as _, Sha256};
use slots::loader::{CONF, DIRECTORY};
use verity::Digest;

use super::Window;

/// Where firmware looks on a disk that it has no entry for.
const REMOVABLE: &str = "EFI/BOOT/BOOTX64.EFI";
/// More files than this in the loader's directory were not put there by Strake.
const IMAGES: usize = 16;
/// A longer file is none of ours.
const LONGEST: u64 = 256 << 20;

/// The files that count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootPartition {
    /// The SHA-256 of the boot loader.
    pub loader: Option<Digest>,
    /// The loader's configuration.
    pub conf: Option<String>,
    /// The SHA-256 of each kernel image, by its name in lower case.
    pub images: BTreeMap<String, Digest>,
}

impl BootPartition {
    /// Reads them. What can't be read of a file is as if it were not there; what can't be read of the file system is the error.
    pub fn read(partition: Window<'_>) -> Result<Self, String> {
        let filesystem = FileSystem::new(partition, FsOptions::new().update_accessed_date(false)).map_err(|error| error.to_string())?;
        let root = filesystem.root_dir();
        let mut found = Self { loader: root.open_file(REMOVABLE).ok().and_then(|mut file| digest(&mut file)), ..Self::default() };
        if let Ok(file) = root.open_file(CONF) {
            let mut text = Vec::new();
            found.conf = file.take(4096).read_to_end(&mut text).ok().map(|_| String::from_utf8_lossy(&text).into_owned());
        }
        let Ok(directory) = root.open_dir(DIRECTORY) else { return Ok(found) };
        for entry in directory.iter().flatten().take(IMAGES) {
            let name = entry.file_name().to_ascii_lowercase();
            if entry.is_file() && name.ends_with(".efi") {
                // A damaged one still is an entry: it is known by no digest then.
                found.images.insert(name, digest(&mut entry.to_file()).unwrap_or(Digest([0; 32])));
            }
        }
        Ok(found)
    }
}

fn digest(file: &mut impl Read) -> Option<Digest> {
    let (mut digest, mut buffer, mut total) = (Sha256::new(), vec![0; 256 << 10], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Some(Digest(digest.finalize().into())),
            Ok(count) => {
                digest.update(&buffer[..count]);
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
        if total > LONGEST {
            return None;
        }
    }
}
