//! Devices that the kernel's device mapper makes of others: making a read-only one, asking how it is, removing it. The structures are
//! [`wire`]'s; this is the one place that passes them to the kernel.
#![allow(unsafe_code)]

mod wire;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::libc;

use wire::{Command, Flags, Message};
pub use wire::{Reply, Target, WireError};

const CONTROL: &str = "/dev/mapper/control";
/// The interface this was written for; another major version has other structures.
const MAJOR_VERSION: u32 = 4;
/// Room for what the kernel answers about a device's targets.
const ANSWER: usize = 16 * 1024;

/// Why the device mapper did not do something.
#[derive(Debug, thiserror::Error)]
pub enum DeviceMapperError {
    /// The module `dm_mod` is not loaded.
    #[error("open {CONTROL}")]
    Open(#[source] io::Error),
    /// The kernel speaks another version of the interface.
    #[error("the kernel's device mapper has version {0}, not {MAJOR_VERSION}")]
    Version(u32),
    /// A request that cannot be written down, or an answer that cannot be read.
    #[error("{operation} {name}")]
    Wire { operation: &'static str, name: String, source: WireError },
    /// The kernel refused.
    #[error("{operation} {name}")]
    Refused { operation: &'static str, name: String, source: io::Error },
}

/// A device that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Its number among the mapped devices, which is the minor number of its node.
    pub minor: u32,
}

impl Mapped {
    /// The node that the kernel makes in devtmpfs.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.minor))
    }
}

/// The device mapper of the running kernel.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens it and compares versions.
    pub fn open() -> Result<Self, DeviceMapperError> {
        Self::at(Path::new(CONTROL))
    }

    fn at(control: &Path) -> Result<Self, DeviceMapperError> {
        let control = OpenOptions::new().read(true).write(true).open(control).map_err(DeviceMapperError::Open)?;
        let mapper = Self { control };
        let reply = mapper.call("ask for the version", Command::Version, Flags::NONE, "", "", &[], 0)?;
        if reply.version[0] == MAJOR_VERSION { Ok(mapper) } else { Err(DeviceMapperError::Version(reply.version[0])) }
    }

    /// Makes a read-only device of these targets. Leaves nothing behind when the kernel does not take them.
    pub fn create_read_only(&self, name: &str, uuid: &str, targets: &[Target]) -> Result<Mapped, DeviceMapperError> {
        let made = self.call("create the device", Command::Create, Flags::READ_ONLY, name, uuid, &[], 0)?;
        let filled = self
            .call("load the table of", Command::LoadTable, Flags::READ_ONLY, name, "", targets, 0)
            // Resuming puts the loaded table in force.
            .and_then(|_| self.call("start", Command::Suspend, Flags::READ_ONLY, name, "", &[], 0));
        match filled {
            Ok(_) => Ok(Mapped { minor: made.device.1 }),
            Err(error) => {
                // What made it fail is worth more than whether an empty device could be removed.
                let _ = self.remove(name);
                Err(error)
            }
        }
    }

    /// What each target of a device says of itself; the form is the target's own.
    pub fn status(&self, name: &str) -> Result<Vec<Target>, DeviceMapperError> {
        Ok(self.call("ask for the status of", Command::TableStatus, Flags::NONE, name, "", &[], ANSWER)?.targets)
    }

    /// Removes a device that nobody has open.
    pub fn remove(&self, name: &str) -> Result<(), DeviceMapperError> {
        self.call("remove", Command::Remove, Flags::NONE, name, "", &[], 0).map(drop)
    }

    /// Removes a device, or, while somebody has it open, as soon as nobody does.
    pub fn remove_later(&self, name: &str) -> Result<(), DeviceMapperError> {
        self.call("remove", Command::Remove, Flags::DEFERRED_REMOVE, name, "", &[], 0).map(drop)
    }

    #[allow(clippy::too_many_arguments)] // The fields of one structure.
    fn call(
        &self,
        operation: &'static str,
        command: Command,
        flags: Flags,
        name: &str,
        uuid: &str,
        targets: &[Target],
        answer: usize,
    ) -> Result<Reply, DeviceMapperError> {
        let wire = |source| DeviceMapperError::Wire { operation, name: name.to_owned(), source };
        let mut message = Message::new(flags, name, uuid, targets, answer).map_err(wire)?;
        // SAFETY: the kernel reads the message's length in its header, and reads and writes no more than that; a `Message` always has
        // as many bytes as its header says, and lives longer than the call.
        let code = unsafe { libc::ioctl(self.control.as_raw_fd(), command.request(), message.as_mut_ptr()) };
        if code < 0 {
            let source = io::Error::last_os_error();
            return Err(DeviceMapperError::Refused { operation, name: name.to_owned(), source });
        }
        message.reply(answer > 0).map_err(wire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_device_mapper_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(DeviceMapper::at(&dir.path().join("control")), Err(DeviceMapperError::Open(_))));
        // A plain file takes no such request.
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = DeviceMapper::at(&file).unwrap_err();
        assert!(matches!(&error, DeviceMapperError::Refused { source, .. } if source.raw_os_error() == Some(libc::ENOTTY)), "{error:?}");
    }

    #[test]
    fn nodes_are_numbered() {
        assert_eq!(Mapped { minor: 3 }.node(), Path::new("/dev/dm-3"));
    }
}
