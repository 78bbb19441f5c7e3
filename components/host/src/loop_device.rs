//! Loop devices: over a file, read-only, and over a part of a disk (loop(4)).
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    #[error("open {0}")]
    Open(PathBuf, #[source] io::Error),
    #[error("get a free loop device")]
    GetFree(#[source] nix::Error),
    #[error("attach {0} to a loop device")]
    Configure(PathBuf, #[source] nix::Error),
}

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config` of linux/loop.h with its embedded `struct loop_info64`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

mod ioctl {
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, super::LoopConfig);
}

/// Attaches `file` to a free loop device and returns its path. The device goes away with its last user.
/// The returned handle keeps it until it is mounted.
pub fn attach(file: &Path) -> Result<(PathBuf, File), LoopError> {
    configure(file, false, (0, 0))
}

/// The same over `size` bytes from `start` of a disk, to be written to.
pub fn attach_part(disk: &Path, start: u64, size: u64) -> Result<(PathBuf, File), LoopError> {
    configure(disk, true, (start, size))
}

/// A size of 0 is all of it.
fn configure(file: &Path, writable: bool, (offset, size_limit): (u64, u64)) -> Result<(PathBuf, File), LoopError> {
    let open =
        |path: &Path| OpenOptions::new().read(true).write(writable).open(path).map_err(|error| LoopError::Open(path.to_owned(), error));
    let backing = open(file)?;
    let control_path = Path::new("/dev/loop-control");
    let control = OpenOptions::new().read(true).write(true).open(control_path);
    let control = control.map_err(|error| LoopError::Open(control_path.to_owned(), error))?;
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    let number = unsafe { ioctl::loop_ctl_get_free(control.as_raw_fd()) }.map_err(LoopError::GetFree)?;
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let device = open(&path)?;
    let config = LoopConfig {
        fd: backing.as_raw_fd() as u32,
        block_size: 0,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset,
        size_limit,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: if writable { LO_FLAGS_AUTOCLEAR } else { LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR },
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: `config` has the layout of struct loop_config (checked by a test) and outlives the call, which only reads it.
    unsafe { ioctl::loop_configure(device.as_raw_fd(), &config) }.map_err(|error| LoopError::Configure(file.to_owned(), error))?;
    Ok((path, device))
}

#[cfg(test)]
mod tests {
    use super::LoopConfig;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(std::mem::size_of::<LoopConfig>(), 304);
        assert_eq!(std::mem::offset_of!(LoopConfig, flags), 60);
        assert_eq!(std::mem::offset_of!(LoopConfig, reserved), 240);
    }
}
