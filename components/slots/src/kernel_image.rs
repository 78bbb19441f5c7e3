//! What a program for the firmware looks like from outside: a unified kernel image is a PE file (Microsoft's "PE Format") whose sections hold kernel, initramfs,
//! command line and signatures. Pure.

/// More than the headers of a kernel image take: its first bytes, in which [`sections`] finds them.
pub const HEAD: usize = 16 << 10;
/// As many sections as the format allows.
const MOST: u16 = 96;
/// `IMAGE_FILE_MACHINE_AMD64`, and others by their names.
const X86_64: u16 = 0x8664;
const OTHERS: &[(u16, &str)] = &[(0x14c, "i386"), (0x1c4, "arm"), (0xaa64, "aarch64"), (0x5064, "riscv64"), (0x6264, "loongarch64")];

/// Why a firmware of these machines would not start a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is something else.
    #[error("it is not a program that a firmware starts")]
    NotAProgram,
    /// It is for other machines.
    #[error("it is for {0} machines, and this is an {ours} one", ours = crate::manifest::ARCHITECTURE)]
    Architecture(String),
    /// A part of it is missing.
    #[error("it is cut off: it has {has} bytes, and its section {section} ends at {end}")]
    CutOff {
        /// The first part that is not whole.
        section: String,
        /// Where it should end.
        end: u64,
        /// How much there is.
        has: u64,
    },
}

/// Whether a program of this size, of which these are the first bytes, is whole and for machines of this kind.
pub fn check(head: &[u8], size: u64) -> Result<(), Problem> {
    let sections = sections(head).filter(|sections| !sections.is_empty()).ok_or(Problem::NotAProgram)?;
    match machine(head) {
        Some(X86_64) => {}
        Some(other) => {
            let name = OTHERS.iter().find(|(number, _)| *number == other).map(|(_, name)| (*name).to_owned());
            return Err(Problem::Architecture(name.unwrap_or_else(|| format!("{other:#06x}"))));
        }
        None => return Err(Problem::NotAProgram),
    }
    for Section { name, start, size: length } in sections {
        let end = start.saturating_add(length);
        if end > size {
            return Err(Problem::CutOff { section: name, end, has: size });
        }
    }
    Ok(())
}

fn machine(head: &[u8]) -> Option<u16> {
    let pe = usize::try_from(u32::from_le_bytes(*head.get(0x3c..)?.first_chunk()?)).ok()?;
    Some(u16::from_le_bytes(*head.get(pe.checked_add(4)?..)?.first_chunk()?))
}

/// A part of a kernel image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name, with the dot.
    pub name: String,
    /// Where it begins in the file.
    pub start: u64,
    /// Its bytes, without what pads them.
    pub size: u64,
}

/// The sections of an image of which these are the first bytes, in their order; nothing when it is not an image that a firmware starts.
pub fn sections(head: &[u8]) -> Option<Vec<Section>> {
    let two = |at: usize| Some(u16::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let four = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let pe = usize::try_from(four(0x3c)?).ok()?;
    if head.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let (count, optional) = (two(pe + 6)?, two(pe + 20)?);
    let first = pe + 24 + usize::from(optional);
    let section = |number: u16| {
        let at = first + usize::from(number) * 40;
        let name = String::from_utf8_lossy(head.get(at..at + 8)?).trim_end_matches('\0').to_owned();
        let (size, raw_size, start) = (four(at + 8)?, four(at + 16)?, four(at + 20)?);
        Some(Section { name, start: start.into(), size: size.min(raw_size).into() })
    };
    (0..count.min(MOST)).map(section).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(sections: &[(&str, u32, u32, u32)]) -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[0x3c] = 0x40;
        file.extend(b"PE\0\0\x64\x86");
        file.extend(u16::try_from(sections.len()).unwrap().to_le_bytes());
        file.extend([0; 16]);
        for (name, size, raw_size, start) in sections {
            let mut header = [0; 40];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[8..12].copy_from_slice(&size.to_le_bytes());
            header[16..20].copy_from_slice(&raw_size.to_le_bytes());
            header[20..24].copy_from_slice(&start.to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn parts_are_found_by_their_names_without_what_pads_them() {
        let file = image(&[(".pcrsig", 5, 512, 1024), (".initrd1", 700, 600, u32::MAX)]);
        let section = |name: &str, start, size| Section { name: name.into(), start, size };
        assert_eq!(sections(&file), Some(vec![section(".pcrsig", 1024, 5), section(".initrd1", u32::MAX.into(), 600)]));
        assert_eq!(sections(&file[..file.len() - 20]), None, "cut off");
        assert_eq!(sections(b"MZ and no more"), None);
    }

    #[test]
    fn what_is_cut_off_or_for_other_machines_is_told() {
        let whole = image(&[(".linux", 5, 512, 1024), (".initrd", 700, 1024, 2048)]);
        assert_eq!(check(&whole, 2748), Ok(()));
        let (section, end, has) = (".initrd".to_owned(), 2748, 2747);
        assert_eq!(check(&whole, 2747), Err(Problem::CutOff { section, end, has }));
        let mut other = whole.clone();
        for (number, name) in [(0xaa64_u16, "aarch64"), (0x5064, "riscv64"), (0x1234, "0x1234")] {
            other[0x44..0x46].copy_from_slice(&number.to_le_bytes());
            assert_eq!(check(&other, 4096), Err(Problem::Architecture(name.to_owned())));
        }
        for none in [&b""[..], b"MZ", &[0; 4096], &image(&[]), &whole[..100]] {
            assert_eq!(check(none, 4096), Err(Problem::NotAProgram));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut file in proptest::collection::vec(any::<u8>(), 0..400), size in any::<u64>()) {
            let _ = check(&file, size);
            let _ = sections(&file);
            if file.len() > 0x44 {
                file[0x3c..0x44].copy_from_slice(b"\x40\0\0\0PE\0\0");
                let _ = sections(&file);
                let _ = check(&file, size);
            }
        }
    }
}
