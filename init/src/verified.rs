//! The root as nothing but a verified device: the parameters from the initramfs, which is signed together with the kernel, and the
//! device mapper's target `verity` over the place where the root was found. From then on the kernel stops when it reads a block that
//! does not match.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use host::device_mapper::{DeviceMapper, DeviceMapperError, Target};
use verity::{BLOCK, CheckError, Parameters};

/// Put there by the image builder.
const PARAMETERS: &str = "/verity.json";
/// The parameters have some 200 bytes.
const MOST: u64 = 4096;
/// The device's name; what `/proc/mounts` shows of `/`.
const NAME: &str = "strake-root";

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("read {PARAMETERS}")]
    ReadParameters(#[source] io::Error),
    #[error("{PARAMETERS} does not say what root this kernel belongs to")]
    Parameters(#[source] serde_json::Error),
    #[error("read the hash tree in {place}; {WAY_OUT}")]
    ReadTree { place: String, source: io::Error },
    #[error("{place} does not hold the root that this kernel belongs to; {WAY_OUT}")]
    Other { place: String, source: CheckError },
    #[error("set up the verification of {place}")]
    SetUp { place: String, source: DeviceMapperError },
}

const WAY_OUT: &str = "start the installation medium and install again";

/// What this kernel expects of the root.
pub fn parameters() -> Result<Parameters, VerifyError> {
    let mut text = Vec::new();
    File::open(PARAMETERS).and_then(|file| file.take(MOST).read_to_end(&mut text)).map_err(VerifyError::ReadParameters)?;
    serde_json::from_slice(&text).map_err(VerifyError::Parameters)
}

/// Makes the verified device over `device`, which is `place` to people, and returns its path.
pub fn open(device: &Path, place: &str, root: &Parameters) -> Result<PathBuf, VerifyError> {
    // The kernel would only stop at the first read, without a word on what to do.
    check(device, place, root)?;
    let target = Target { start: 0, sectors: root.sectors(), kind: "verity".to_owned(), words: root.table(&device.to_string_lossy()) };
    let uuid = format!("strake-verity-{}", root.root_uuid());
    let made = DeviceMapper::open().and_then(|mapper| mapper.create_read_only(NAME, &uuid, &[target]));
    let node = made.map_err(|source| VerifyError::SetUp { place: place.to_owned(), source })?.node();
    // devtmpfs knows numbers only; the name is for people.
    let link = Path::new("/dev/mapper").join(NAME);
    let named = node.file_name().is_some_and(|name| symlink(Path::new("..").join(name), &link).is_ok());
    Ok(if named { link } else { node })
}

/// Whether the top of the hash tree is the one that the root hash stands for.
fn check(device: &Path, place: &str, root: &Parameters) -> Result<(), VerifyError> {
    let mut top = [0; BLOCK];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut top, root.top_block() * BLOCK as u64));
    read.map_err(|source| VerifyError::ReadTree { place: place.to_owned(), source })?;
    verity::check_top(&top, root).map_err(|source| VerifyError::Other { place: place.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chain;

    #[test]
    fn another_root_is_told_with_its_place_both_hashes_and_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let (device, salt) = (dir.path().join("vda2"), verity::Digest([7; 32]));
        let mut image = vec![5; 200 * BLOCK];
        let tree = verity::build(&mut &image[..], 200, &salt).unwrap();
        image.extend(&tree.bytes);
        let root = Parameters::new(tree.root_hash, salt, 200).unwrap();
        std::fs::write(&device, &image).unwrap();
        check(&device, "ROOT-A (/dev/vda2)", &root).unwrap();

        image[200 * BLOCK] ^= 1;
        std::fs::write(&device, &image).unwrap();
        let text = chain(&check(&device, "ROOT-A (/dev/vda2)", &root).unwrap_err());
        for part in ["ROOT-A (/dev/vda2) does not hold", "install again", "the root hash is ", &format!("expected {}", tree.root_hash)] {
            assert!(text.contains(part), "{part} in {text}");
        }

        std::fs::write(&device, &image[..200 * BLOCK]).unwrap();
        let text = chain(&check(&device, "ROOT-A (/dev/vda2)", &root).unwrap_err());
        assert!(text.starts_with("read the hash tree in ROOT-A (/dev/vda2)") && text.contains("install again"), "{text}");
    }
}
