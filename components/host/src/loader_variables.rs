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

/// The loader's variables, or those of another vendor in the same form.
#[derive(Debug, Clone)]
pub struct LoaderVariables {
    directory: PathBuf,
    vendor: &'static str,
}

impl Default for LoaderVariables {
    fn default() -> Self {
        Self::at(Path::new(DIRECTORY))
    }
}

impl LoaderVariables {
    /// Those in this directory.
    pub fn at(directory: &Path) -> Self {
        Self::of_vendor(directory, VENDOR)
    }

    /// Those of another vendor, named by its GUID in lower case.
    pub fn of_vendor(directory: &Path, vendor: &'static str) -> Self {
        Self { directory: directory.to_owned(), vendor }
    }

    /// Whether the firmware keeps variables and the kernel shows them.
    pub fn are_kept(&self) -> bool {
        fs::read_dir(&self.directory).is_ok_and(|mut entries| entries.next().is_some())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}-{}", self.vendor))
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
        let content: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        put(&self.path(name), name, &content)
    }

    /// Removes a variable; one that is not there is removed already.
    pub fn remove(&self, name: &str) -> Result<(), VariableError> {
        remove(&self.path(name), name)
    }
}

/// Sets a variable to these bytes, and makes sure that they read back. One that has them already is left alone: the firmware's memory wears out.
pub(crate) fn put(path: &Path, name: &str, bytes: &[u8]) -> Result<(), VariableError> {
    let content: Vec<u8> = ATTRIBUTES.to_le_bytes().iter().chain(bytes).copied().collect();
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    remove(path, name)?;
    // One call: each is a variable of its own to the firmware.
    let written = OpenOptions::new().write(true).create_new(true).open(path).and_then(|mut file| file.write_all(&content));
    written.map_err(|error| VariableError::Write(name.to_owned(), error))?;
    let kept = fs::read(path).is_ok_and(|found| found.get(4..) == Some(bytes));
    if kept { Ok(()) } else { Err(VariableError::NotKept(name.to_owned())) }
}

fn remove(path: &Path, name: &str) -> Result<(), VariableError> {
    // The kernel protects most variables against an rm -rf by this flag; other file systems may not know it.
    if let Ok(file) = File::open(path)
        && let Ok(flags) = ioctl_getflags(&file)
    {
        let _ = ioctl_setflags(&file, flags - IFlags::IMMUTABLE);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VariableError::Remove(name.to_owned(), error)),
        _ => Ok(()),
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
        assert!(!variables.are_kept() && !LoaderVariables::at(tempfile::tempdir().unwrap().path()).are_kept());
        assert!(matches!(variables.write("X", "y"), Err(VariableError::Write(..))));
        assert_eq!(parse(&[7, 0]), None);
        assert_eq!(parse(&[7, 0, 0, 0, 0, 0xd8]), None, "half a character");
    }
}
