//! Variables of the firmware through which a boot loader and the system talk (systemd's Boot Loader Interface), as files of efivarfs: four
//! bytes of attributes, then text in UTF-16 that ends with a zero.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// Where efivarfs is mounted.
pub const DIRECTORY: &str = "/sys/firmware/efi/efivars";
/// The loader's vendor.
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Kept without power, and reachable before and after the firmware has handed over.
const ATTRIBUTES: u32 = 1 | 2 | 4;
/// A longer one is none of the loader's.
const MOST: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum VariableError {
    #[error("read the firmware's variable {0}")]
    Read(String, #[source] io::Error),
    #[error("write the firmware's variable {0}")]
    Write(String, #[source] io::Error),
    #[error("remove the firmware's variable {0}")]
    Remove(String, #[source] io::Error),
    #[error("the firmware did not keep its variable {0}")]
    NotKept(String),
}

/// The loader's variables.
#[derive(Debug, Clone)]
pub struct LoaderVariables {
    directory: PathBuf,
}

impl Default for LoaderVariables {
    fn default() -> Self {
        Self::at(Path::new(DIRECTORY))
    }
}

impl LoaderVariables {
    /// Those in this directory.
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}-{VENDOR}"))
    }

    /// A variable's text; nothing when there is none, or when it is no text.
    pub fn read(&self, name: &str) -> Result<Option<String>, VariableError> {
        let mut content = Vec::new();
        match File::open(self.path(name)).and_then(|file| file.take(MOST).read_to_end(&mut content)) {
            Ok(_) => Ok(parse(&content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VariableError::Read(name.to_owned(), error)),
        }
    }

    /// Sets a variable, and makes sure that it reads back.
    pub fn write(&self, name: &str, text: &str) -> Result<(), VariableError> {
        self.remove(name)?;
        let content: Vec<u8> =
            ATTRIBUTES.to_le_bytes().into_iter().chain(text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes)).collect();
        // One call: each is a variable of its own to the firmware.
        let written = OpenOptions::new().write(true).create_new(true).open(self.path(name)).and_then(|mut file| file.write_all(&content));
        written.map_err(|error| VariableError::Write(name.to_owned(), error))?;
        if self.read(name)?.as_deref() == Some(text) { Ok(()) } else { Err(VariableError::NotKept(name.to_owned())) }
    }

    /// Removes a variable; one that is not there is removed already.
    pub fn remove(&self, name: &str) -> Result<(), VariableError> {
        let path = self.path(name);
        // The kernel protects most variables against an rm -rf by this flag; other file systems may not know it.
        if let Ok(file) = File::open(&path)
            && let Ok(flags) = ioctl_getflags(&file)
        {
            let _ = ioctl_setflags(&file, flags - IFlags::IMMUTABLE);
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VariableError::Remove(name.to_owned(), error)),
            _ => Ok(()),
        }
    }
}

fn parse(content: &[u8]) -> Option<String> {
    let (units, _) = content.get(4..)?.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_written_read_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let variables = LoaderVariables::at(dir.path());
        assert_eq!(variables.read("LoaderEntryOneShot").unwrap(), None);
        for text in ["strake-b.efi", "a"] {
            variables.write("LoaderEntryOneShot", text).unwrap();
            assert_eq!(variables.read("LoaderEntryOneShot").unwrap().as_deref(), Some(text));
        }
        let content = fs::read(dir.path().join(format!("LoaderEntryOneShot-{VENDOR}"))).unwrap();
        assert_eq!(content, [7, 0, 0, 0, b'a', 0, 0, 0]);
        variables.remove("LoaderEntryOneShot").unwrap();
        variables.remove("LoaderEntryOneShot").unwrap();
        assert_eq!(variables.read("LoaderEntryOneShot").unwrap(), None);
    }

    #[test]
    fn firmware_without_variables_is_told() {
        let variables = LoaderVariables::at(Path::new("/nonexistent"));
        assert_eq!(variables.read("X").unwrap(), None);
        assert!(matches!(variables.write("X", "y"), Err(VariableError::Write(..))));
        assert_eq!(parse(&[7, 0]), None);
        assert_eq!(parse(&[7, 0, 0, 0, 0, 0xd8]), None, "half a character");
    }
}
