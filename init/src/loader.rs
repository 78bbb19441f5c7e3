//! What the boot loader tells of itself through variables of the firmware (the Boot Loader Interface of systemd, which systemd-boot and
//! the stub of a unified kernel image both speak): what it was started from.

use std::fs::File;
use std::io::Read;
use std::path::Path;

const PARTITION: &str = "/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// The stub always says of which version it is.
const STUB: &str = "/sys/firmware/efi/efivars/StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Attributes, 36 characters in UTF-16, and a zero; a longer one is none.
const MOST: u64 = 128;

/// What the loader was started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The partition with this UUID, in lower case, of a disk or a stick.
    Partition(String),
    /// No partition: a CD drive or the network.
    NoPartition,
    /// Nobody says: the firmware keeps no variables, or something else started the kernel.
    Unknown,
}

/// What the loader was started from.
pub fn origin() -> Origin {
    origin_by(Path::new(PARTITION), Path::new(STUB))
}

fn origin_by(partition: &Path, stub: &Path) -> Origin {
    match read(partition) {
        Some(uuid) => Origin::Partition(uuid),
        None if !partition.exists() && stub.exists() => Origin::NoPartition,
        None => Origin::Unknown,
    }
}

fn read(variable: &Path) -> Option<String> {
    let mut content = Vec::new();
    File::open(variable).and_then(|file| file.take(MOST).read_to_end(&mut content)).ok()?;
    parse(&content)
}

fn parse(content: &[u8]) -> Option<String> {
    let (units, _) = content.get(4..)?.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0);
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    is_uuid(&text).then(|| text.to_ascii_lowercase())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variable(text: &str) -> Vec<u8> {
        [6, 0, 0, 0].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
    }

    #[test]
    fn only_a_uuid_is_taken_and_compared_in_lower_case() {
        let uuid = "0B1C2D3E-0000-4000-8000-00000000ABCD";
        for (content, expected) in [
            (variable(uuid), true),
            (variable(&format!("{uuid}\0")), true),
            (variable(&format!("{uuid}\0more")), true),
            (variable(&uuid[1..]), false),
            (variable("../../../../../../../../../etc/passwd"), false),
            (variable(""), false),
            (vec![6, 0, 0], false),
            (Vec::new(), false),
        ] {
            let expected = expected.then(|| uuid.to_ascii_lowercase());
            assert_eq!(parse(&content), expected, "{content:?}");
        }
        assert_eq!(read(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_stub_that_names_no_partition_came_from_a_drive_or_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let (partition, stub) = (dir.path().join("partition"), dir.path().join("stub"));
        let found = || origin_by(&partition, &stub);
        assert_eq!(found(), Origin::Unknown);
        std::fs::write(&stub, variable("systemd-stub 257")).unwrap();
        assert_eq!(found(), Origin::NoPartition);
        std::fs::write(&partition, variable("nonsense")).unwrap();
        assert_eq!(found(), Origin::Unknown, "what cannot be understood says nothing");
        let uuid = "0b1c2d3e-0000-4000-8000-00000000abcd";
        std::fs::write(&partition, variable(uuid)).unwrap();
        assert_eq!(found(), Origin::Partition(uuid.to_owned()));
    }

    proptest! {
        #[test]
        fn no_variable_makes_the_reader_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&content);
        }
    }
}
