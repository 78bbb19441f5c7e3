//! Telling a UEFI firmware what to start next: a boot option for a program on a partition (`Boot####`, UEFI specification 3.1.3), and
//! `BootNext`, which the firmware takes once, before its boot order, and forgets.

use std::fs;
use std::path::{Path, PathBuf};

use crate::loader_variables::{DIRECTORY, VariableError, put};

/// The vendor of what the specification itself names.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
const NEXT: &str = "BootNext";
/// The option may be started.
const ACTIVE: u32 = 1;
/// Device paths: a partition of a disk, a file, the end.
const HARD_DRIVE: [u8; 2] = [4, 1];
const FILE: [u8; 2] = [4, 4];
const END: [u8; 4] = [0x7f, 0xff, 4, 0];
/// Of a partition in a GPT, which its GUID names.
const GPT: [u8; 2] = [2, 2];

/// A program on a partition, as the firmware is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootOption<'a> {
    /// What its menu shows.
    pub description: &'a str,
    /// The partition's number in its table, from 1.
    pub number: u32,
    /// Where it begins and how large it is, in sectors of the disk.
    pub first_sector: u64,
    pub sectors: u64,
    /// Its GUID.
    pub uuid: &'a str,
    /// The program, from the root of the partition's file system.
    pub file: &'a str,
}

impl BootOption<'_> {
    /// The variable's content. Nothing when the GUID is none, or a text is too long to be told.
    fn encode(&self) -> Option<Vec<u8>> {
        let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect() };
        let file = utf16(&self.file.replace('/', "\\"));
        let mut path = node(HARD_DRIVE, 38)?;
        path.extend(self.number.to_le_bytes());
        path.extend(self.first_sector.to_le_bytes());
        path.extend(self.sectors.to_le_bytes());
        path.extend(guid(self.uuid)?);
        path.extend(GPT);
        path.extend(node(FILE, file.len())?);
        path.extend(file);
        path.extend(END);
        let mut option = ACTIVE.to_le_bytes().to_vec();
        option.extend(u16::try_from(path.len()).ok()?.to_le_bytes());
        option.extend(utf16(self.description));
        option.extend(path);
        Some(option)
    }
}

/// The head of a part of a device path that has so many bytes behind it.
fn node(kind: [u8; 2], behind: usize) -> Option<Vec<u8>> {
    let length = u16::try_from(behind + 4).ok()?.to_le_bytes();
    Some(kind.into_iter().chain(length).collect())
}

/// The bytes of a GUID, of which the first three fields are little-endian.
fn guid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|letter| *letter != '-').collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, at) in bytes.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    Some(bytes)
}

/// The firmware's list of what it can start.
#[derive(Debug, Clone)]
pub struct BootOptions {
    directory: PathBuf,
}

impl Default for BootOptions {
    fn default() -> Self {
        Self::at(Path::new(DIRECTORY))
    }
}

impl BootOptions {
    /// That of the variables in this directory.
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Makes the firmware start this at the next start, and only then. The option is left in the list, outside the boot order, and used again.
    pub fn start_next(&self, option: &BootOption<'_>) -> Result<(), VariableError> {
        let failed = |what: &str| VariableError::NotKept(what.to_owned());
        let content = option.encode().ok_or_else(|| failed("Boot####, which cannot name this partition"))?;
        let number = self.place(&content).ok_or_else(|| failed("Boot####, of which none is free"))?;
        put(&self.path(&name(number)), &name(number), &content)?;
        put(&self.path(NEXT), NEXT, &number.to_le_bytes())
    }

    /// The number of the option with this description, or one that is free.
    fn place(&self, content: &[u8]) -> Option<u16> {
        let description = |content: &[u8]| -> Option<Vec<u8>> {
            let (units, _) = content.get(6..)?.as_chunks::<2>();
            Some(units.iter().take_while(|unit| **unit != [0, 0]).flatten().copied().collect())
        };
        let wanted = description(content);
        let known =
            |number: &u16| fs::read(self.path(&name(*number))).is_ok_and(|found| found.get(4..).map(description) == Some(wanted.clone()));
        // Firmware writes its own from the beginning.
        (0..MOST).find(known).or_else(|| (FIRST..MOST).find(|number| !self.path(&name(*number)).exists()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}-{GLOBAL}"))
    }
}

/// Options that are looked at, and the first that is taken.
const MOST: u16 = 0x200;
const FIRST: u16 = 0x100;

fn name(number: u16) -> String {
    format!("Boot{number:04X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTION: BootOption<'static> = BootOption {
        description: "Ab",
        number: 1,
        first_sector: 2048,
        sectors: 0x20_0000,
        uuid: "0b1c2d3e-1122-4000-8000-0000a0b0c0d0",
        file: "/EFI/X.EFI",
    };

    #[test]
    fn an_option_is_what_the_specification_says() {
        let mut expected = vec![1, 0, 0, 0, 42 + 26 + 4, 0, b'A', 0, b'b', 0, 0, 0];
        expected.extend([4, 1, 42, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]);
        expected.extend([0x3e, 0x2d, 0x1c, 0x0b, 0x22, 0x11, 0x00, 0x40, 0x80, 0x00, 0x00, 0x00, 0xa0, 0xb0, 0xc0, 0xd0, 2, 2]);
        expected.extend([4, 4, 26, 0]);
        expected.extend("\\EFI\\X.EFI\0".encode_utf16().flat_map(u16::to_le_bytes));
        expected.extend([0x7f, 0xff, 4, 0]);
        assert_eq!(OPTION.encode().unwrap(), expected);
        for uuid in ["", "0b1c2d3e-1122-4000-8000-0000a0b0c0d", "0b1c2d3e-1122-4000-8000-0000a0b0c0dx", "ä".repeat(16).as_str()] {
            assert_eq!(BootOption { uuid, ..OPTION }.encode(), None, "{uuid}");
        }
    }

    #[test]
    fn the_option_is_written_once_and_started_once() {
        let dir = tempfile::tempdir().unwrap();
        let options = BootOptions::at(dir.path());
        fs::write(options.path("Boot0000"), [7, 0, 0, 0, 1, 0, 0, 0, 4, 0, b'P', 0, 0, 0]).unwrap();
        let numbers = || {
            let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.map(|name| name.split('-').next().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        for sectors in [OPTION.sectors, 9] {
            let option = BootOption { sectors, ..OPTION };
            options.start_next(&option).unwrap();
            assert_eq!(numbers(), ["Boot0000", "Boot0100", "BootNext"]);
            assert_eq!(fs::read(options.path("Boot0100")).unwrap()[4..], option.encode().unwrap());
            assert_eq!(fs::read(options.path(NEXT)).unwrap(), [7, 0, 0, 0, 0, 1]);
        }
        assert!(matches!(BootOptions::at(Path::new("/nonexistent")).start_next(&OPTION), Err(VariableError::Write(..))));
    }
}
