//! The way to a TPM.

use std::io;

/// Sends a command and gives the answer.
pub trait Transport {
    /// One of each.
    fn transact(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;
}
