//! A config from the firmware: QEMU's `fw_cfg` item `opt/dev.strake/config`, or an OEM string of the SMBIOS table (type 11) that begins with
//! `strake.config:` and goes on with the config in base64. Hypervisors and management controllers can set them.

use std::fs::File;
use std::io::{ErrorKind, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Found, UnattendedError, text};
use crate::paths::Paths;

const ITEM: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/dev.strake/config/raw";
const TABLE: &str = "/sys/firmware/dmi/tables/DMI";
const MARK: &str = "strake.config:";
/// The most bytes of a table, which may hold a whole config.
const MOST: u64 = 4 << 20;
const OEM_STRINGS: u8 = 11;

/// Looks at the item, then at the table.
pub fn look(paths: &Paths) -> Result<Option<Found>, UnattendedError> {
    match File::open(paths.at(ITEM)) {
        Ok(item) => return text("the firmware's item opt/dev.strake/config", item).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(UnattendedError::Read { place: ITEM.to_owned(), source }),
    }
    let mut table = Vec::new();
    // A machine without such a table has no such string.
    if File::open(paths.at(TABLE)).and_then(|file| file.take(MOST).read_to_end(&mut table)).is_err() {
        return Ok(None);
    }
    let Some(encoded) = oem_strings(&table).find_map(|string| string.strip_prefix(MARK.as_bytes())) else { return Ok(None) };
    let place = "the firmware's OEM string";
    let problem = |_| UnattendedError::Text { place: place.to_owned(), problem: "is not in base64".to_owned() };
    let content = STANDARD.decode(encoded.trim_ascii()).map_err(problem)?;
    text(place, &content[..]).map(Some)
}

/// The strings of every structure of type 11. A structure is its formatted part, whose length is its second byte, and strings that each end
/// with a zero, the last with two (SMBIOS specification, 6.1).
fn oem_strings(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    structures(table).filter(|(kind, _)| *kind == OEM_STRINGS).flat_map(|(_, strings)| strings.split(|byte| *byte == 0))
}

fn structures(table: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = table;
    std::iter::from_fn(move || {
        let (kind, length) = (*rest.first()?, usize::from(*rest.get(1)?));
        let behind = rest.get(length.max(4)..)?;
        let end = behind.windows(2).position(|pair| pair == [0, 0])?;
        rest = &behind[end + 2..];
        Some((kind, &behind[..end]))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn structure(kind: u8, strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![kind, 5, 0, 0, u8::try_from(strings.len()).unwrap()];
        for string in strings {
            bytes.extend(string.as_bytes());
            bytes.push(0);
        }
        bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        bytes
    }

    #[test]
    fn the_item_goes_first_then_the_string_with_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        assert_eq!(look(&paths).unwrap(), None);
        let write = |path: &str, content: &[u8]| {
            let path = paths.at(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        let value = format!("{MARK}{}", STANDARD.encode("a: 1\n"));
        let table = |strings: &[&str]| [structure(0, &["strake.config:no"]), structure(1, &[]), structure(11, strings)].concat();
        write(TABLE, &table(&["something", &value]));
        assert_eq!(look(&paths).unwrap().unwrap().text, "a: 1\n");
        write(TABLE, &table(&["something"]));
        assert_eq!(look(&paths).unwrap(), None);
        write(TABLE, &table(&["strake.config:?"]));
        assert!(look(&paths).is_err(), "what is there and can't be used is not passed over");
        write(ITEM, b"b: 2\n");
        assert_eq!(look(&paths).unwrap().unwrap().text, "b: 2\n");
    }

    proptest! {
        #[test]
        fn no_table_makes_the_parser_panic(table in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(oem_strings(&table).count() <= table.len() + 1);
        }
    }
}
