//! Appends the hash tree to a root file system. The salt comes from the content, so equal roots have equal trees.

use std::fs::OpenOptions;
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use verity::{BLOCK, Digest, Parameters};

use crate::digest;
use crate::error::{Error, FileContext};

/// Writes the tree behind the file system in `file`, and says what the whole is verified against.
pub fn append(file: &Path) -> Result<Parameters, Error> {
    let bytes = std::fs::metadata(file).on("look at", file)?.len();
    if !bytes.is_multiple_of(BLOCK as u64) {
        return Err(Error::malformed(file, format!("{bytes} bytes are no whole number of blocks of {BLOCK}")));
    }
    let salt = salt(&digest::of_file(file)?);
    let mut image = OpenOptions::new().read(true).write(true).open(file).on("open", file)?;
    let data_blocks = bytes / BLOCK as u64;
    let tree = verity::build(&mut BufReader::new(&image), data_blocks, &salt).on("hash", file)?;
    image.seek(SeekFrom::Start(bytes)).on("seek in", file)?;
    image.write_all(&tree.bytes).on("write", file)?;
    Parameters::new(tree.root_hash, salt, data_blocks).map_err(|problem| Error::malformed(file, problem.to_string()))
}

/// Not the content's own hash, so that it is of no other use.
fn salt(content: &[u8; 32]) -> Digest {
    Digest(digest::of_bytes(&[&b"salt of a root: "[..], content].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_roots_have_equal_trees_and_check() {
        let scratch = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..300 * BLOCK as u32).map(|number| (number / 7) as u8).collect();
        let made: Vec<(Parameters, Vec<u8>)> = ["a", "b"]
            .iter()
            .map(|name| {
                let file = scratch.path().join(name);
                std::fs::write(&file, &content).unwrap();
                (append(&file).unwrap(), std::fs::read(&file).unwrap())
            })
            .collect();
        assert_eq!(made[0], made[1]);
        let (parameters, image) = &made[0];
        assert_eq!((parameters.data_blocks(), parameters.total_bytes()), (300, image.len() as u64));
        assert_eq!(image[..content.len()], content, "the file system stays as it is");
        verity::check(&mut &image[..], parameters).unwrap();

        let other = scratch.path().join("other");
        std::fs::write(&other, &content[BLOCK..]).unwrap();
        assert_ne!(append(&other).unwrap().salt(), parameters.salt());
    }

    #[test]
    fn half_a_block_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0; BLOCK + 1]).unwrap();
        assert!(append(file.path()).unwrap_err().to_string().contains("4097"));
    }
}
