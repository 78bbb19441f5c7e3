//! SHA-256 of bytes, files and lists of inputs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, FileContext};

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a byte string.
pub fn of_bytes(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of a file's content, read in pieces.
pub fn of_file(path: &Path) -> Result<[u8; 32], Error> {
    let mut file = File::open(path).on("open", path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).on("read", path)?;
        if count == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..count]);
    }
}

/// A digest over named parts in which no two different lists of parts collide by concatenation.
#[derive(Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Adds one named part.
    pub fn add(&mut self, name: &str, value: &[u8]) -> &mut Self {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The digest of everything added, as hexadecimal.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_a_byte_between_parts_changes_the_digest() {
        let digest = |parts: [(&str, &str); 2]| {
            let mut inputs = Inputs::default();
            for (name, value) in parts {
                inputs.add(name, value.as_bytes());
            }
            inputs.finish()
        };
        assert_ne!(digest([("a", "bc"), ("d", "")]), digest([("a", "b"), ("cd", "")]));
        assert_eq!(digest([("a", "b"), ("c", "d")]), digest([("a", "b"), ("c", "d")]));
    }

    #[test]
    fn the_empty_file_has_the_well_known_hash() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(hex(&of_file(file.path()).unwrap()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
