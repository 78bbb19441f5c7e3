//! What the image needs to know of an ELF file: is it dynamic, which loader, which libraries. Everything is bounds-checked;
//! a file that lies is an error, never a panic.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, FileContext};

const MAGIC: &[u8] = b"\x7fELF";
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// The dynamic linking facts of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elf {
    /// It asks for a dynamic loader (a shared library does not, a static-pie neither).
    pub is_dynamic: bool,
    /// The loader's path, when there is one.
    pub interpreter: Option<String>,
    /// The names of the libraries it needs, in its order.
    pub needed: Vec<String>,
}

/// Whether the file starts like an ELF file.
pub fn is_elf(path: &Path) -> Result<bool, Error> {
    let mut start = Vec::new();
    File::open(path).on("open", path)?.take(4).read_to_end(&mut start).on("read", path)?;
    Ok(start == MAGIC)
}

/// Reads the facts of a file.
pub fn read(path: &Path) -> Result<Elf, Error> {
    parse(&std::fs::read(path).on("read", path)?).map_err(|problem| Error::malformed(path, problem))
}

/// Parses a 64-bit little-endian ELF file.
pub fn parse(bytes: &[u8]) -> Result<Elf, &'static str> {
    if !bytes.starts_with(MAGIC) || bytes.get(4) != Some(&2) || bytes.get(5) != Some(&1) {
        return Err("not a 64-bit little-endian ELF file");
    }
    let table = number(bytes, 0x20, 8)?;
    let (entry_size, count) = (number(bytes, 0x36, 2)?, number(bytes, 0x38, 2)?);
    let mut elf = Elf::default();
    let mut loads = Vec::new();
    let mut dynamic = None;
    for index in 0..count {
        let header = table.checked_add(index * entry_size).ok_or("program header out of range")?;
        let (offset, address, size) = (number(bytes, header + 8, 8)?, number(bytes, header + 16, 8)?, number(bytes, header + 32, 8)?);
        match u32::try_from(number(bytes, header, 4)?).map_err(|_| "bad program header")? {
            PT_LOAD => loads.push((address, offset, size)),
            PT_DYNAMIC => dynamic = Some((offset, size)),
            PT_INTERP => {
                elf.is_dynamic = true;
                elf.interpreter = Some(text(bytes, offset)?);
            }
            _ => {}
        }
    }
    let Some((start, size)) = dynamic else { return Ok(elf) };
    let mut names = Vec::new();
    let mut strings = None;
    for index in 0..size / 16 {
        let entry = start.checked_add(index * 16).ok_or("dynamic section out of range")?;
        let (tag, value) = (number(bytes, entry, 8)?, number(bytes, entry + 8, 8)?);
        match tag {
            0 => break,
            DT_NEEDED => names.push(value),
            DT_STRTAB => strings = Some(value),
            _ => {}
        }
    }
    if names.is_empty() {
        return Ok(elf);
    }
    let address = strings.ok_or("no string table")?;
    let in_file = |&(start, offset, size): &(u64, u64, u64)| {
        let distance = address.checked_sub(start)?;
        if distance < size { offset.checked_add(distance) } else { None }
    };
    let base = loads.iter().find_map(in_file).ok_or("the string table is in no segment")?;
    for name in names {
        elf.needed.push(text(bytes, base.checked_add(name).ok_or("name out of range")?)?);
    }
    Ok(elf)
}

/// The libraries in `library_dirs` (below `root`) that the programs need, directly or through other libraries, and the loaders.
/// Paths are relative to `root`, as found; a library that is nowhere is an error that names who needs it.
pub fn closure(root: &Path, programs: &[PathBuf], library_dirs: &[&str]) -> Result<BTreeSet<PathBuf>, Error> {
    let mut found = BTreeSet::new();
    let mut resolved: BTreeMap<String, ()> = BTreeMap::new();
    let mut queue: Vec<PathBuf> = programs.to_vec();
    while let Some(file) = queue.pop() {
        let elf = read(&root.join(&file))?;
        let loader = elf.interpreter.as_deref().map(|path| path.rsplit('/').next().unwrap_or(path).to_owned());
        for name in elf.needed.iter().cloned().chain(loader) {
            if resolved.insert(name.clone(), ()).is_some() {
                continue;
            }
            let place = library_dirs.iter().map(|dir| Path::new(dir).join(&name)).find(|path| root.join(path).is_file());
            let place =
                place.ok_or_else(|| Error::Missing { what: format!("library {name}"), hint: format!("{} needs it", file.display()) })?;
            queue.push(place.clone());
            found.insert(place);
        }
    }
    Ok(found)
}

fn number(bytes: &[u8], offset: u64, width: usize) -> Result<u64, &'static str> {
    let start = usize::try_from(offset).map_err(|_| "offset out of range")?;
    let end = start.checked_add(width).ok_or("offset out of range")?;
    let slice = bytes.get(start..end).ok_or("the file is too short")?;
    Ok(slice.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn text(bytes: &[u8], offset: u64) -> Result<String, &'static str> {
    let start = usize::try_from(offset).map_err(|_| "offset out of range")?;
    let rest = bytes.get(start..).ok_or("a name lies outside the file")?;
    let end = rest.iter().take(4096).position(|byte| *byte == 0).ok_or("a name has no end")?;
    String::from_utf8(rest[..end].to_vec()).map_err(|_| "a name is not text")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shell_needs_a_loader_and_libc() {
        let elf = read(Path::new("/bin/sh")).unwrap();
        assert!(elf.is_dynamic);
        assert!(elf.needed.iter().any(|name| name.starts_with("libc.so")), "{elf:?}");
    }

    #[test]
    fn this_test_is_a_static_pie_and_needs_nothing() {
        let elf = read(&std::env::current_exe().unwrap()).unwrap();
        assert_eq!(elf, Elf::default());
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_an_error_not_a_panic(cut in 0usize..5000, at in 0usize..5000, byte: u8) {
            let mut bytes = std::fs::read("/bin/sh").unwrap();
            bytes.truncate(bytes.len().min(64 + cut * 20));
            let place = at % bytes.len();
            bytes[place] = byte;
            let _ = parse(&bytes);
        }
    }
}
