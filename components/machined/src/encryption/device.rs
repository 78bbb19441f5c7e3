//! The kernel's TPM.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use tpm::{MAX_MESSAGE, Transport};

/// The kernel's TPM behind its resource manager, which keeps each user's objects apart and removes them when the device is closed.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Where the kernel has it.
    pub const PATH: &str = "/dev/tpmrm0";

    /// Opens a device.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }
}

impl Transport for Device {
    fn transact(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(command)?;
        // The whole answer comes with one read.
        let mut answer = vec![0; MAX_MESSAGE];
        let size = self.0.read(&mut answer)?;
        answer.truncate(size);
        Ok(answer)
    }
}
