//! The structures of linux/dm-ioctl.h, version 4: `struct dm_ioctl`, followed by as many `struct dm_target_spec` with their parameters
//! as the command has. Pure; reading believes nothing that the bytes do not bear out.

use nix::libc;

/// `sizeof(struct dm_ioctl)`.
const HEADER: usize = 312;
/// `sizeof(struct dm_target_spec)`.
const TARGET: usize = 40;
const NAME: std::ops::Range<usize> = 48..176;
const UUID: std::ops::Range<usize> = 176..305;
const KIND: std::ops::Range<usize> = 24..40;
/// More than any request or answer of ours needs.
const MOST: usize = 64 * 1024;
/// The kernel had more to say than the message has room for (`DM_BUFFER_FULL_FLAG`).
const BUFFER_FULL: u32 = 1 << 8;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Version = 0,
    Create = 3,
    Remove = 4,
    /// `DM_DEV_SUSPEND`, which resumes when the flag to suspend is not set.
    Suspend = 6,
    LoadTable = 9,
    TableStatus = 12,
}

impl Command {
    /// `_IOWR(0xfd, command, struct dm_ioctl)`.
    pub fn request(self) -> libc::c_ulong {
        nix::request_code_readwrite!(0xfd, self as u8, HEADER)
    }
}

/// The flags of `struct dm_ioctl` that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    pub const NONE: Self = Self(0);
    pub const READ_ONLY: Self = Self(1 << 0);
    /// `DM_DEFERRED_REMOVE`: as soon as nobody has the device open.
    pub const DEFERRED_REMOVE: Self = Self(1 << 17);
}

/// One target of a device: which sectors of it (of 512 bytes) are mapped by what, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub start: u64,
    pub sectors: u64,
    /// `verity`, `linear`, …
    pub kind: String,
    /// The target's own words: its parameters, or its status.
    pub words: String,
}

/// What the kernel answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub version: [u32; 3],
    pub open_count: u32,
    /// Major and minor number.
    pub device: (u32, u32),
    pub read_only: bool,
    pub name: String,
    pub uuid: String,
    /// Only of the commands that ask for targets.
    pub targets: Vec<Target>,
}

/// What cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A text is too long for its field or holds a NUL byte.
    #[error("{0:?} is no valid {1}")]
    Text(String, &'static str),
    /// Too many targets, or too long ones.
    #[error("a request of {0} bytes, at most {MOST} are taken")]
    TooLarge(usize),
    /// The kernel has more to say than fits.
    #[error("the kernel's answer is too long")]
    Truncated,
    /// The answer contradicts itself.
    #[error("the kernel's answer has a wrong {0}")]
    Malformed(&'static str),
}

/// A request, and after the call its answer. Has exactly as many bytes as its header says.
#[derive(Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// Writes a request with room for `answer` bytes behind the header.
    pub fn new(flags: Flags, name: &str, uuid: &str, targets: &[Target], answer: usize) -> Result<Self, WireError> {
        let mut bytes = vec![0; HEADER];
        for target in targets {
            put_target(&mut bytes, target)?;
        }
        bytes.resize(bytes.len().max(HEADER + answer), 0);
        let size = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MOST).ok_or(WireError::TooLarge(bytes.len()))?;
        // Bounded by the size, of which each takes a part.
        let count = u32::try_from(targets.len()).map_err(|_| WireError::TooLarge(bytes.len()))?;
        for (at, value) in [(0, 4), (12, size), (16, HEADER as u32), (20, count), (28, flags.0)] {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        put_text(&mut bytes[NAME], name, "name of a mapped device")?;
        put_text(&mut bytes[UUID], uuid, "UUID of a mapped device")?;
        Ok(Self(bytes))
    }

    /// For the call.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// Reads the answer.
    pub fn reply(&self, with_targets: bool) -> Result<Reply, WireError> {
        read(&self.0, with_targets)
    }
}

/// `next` counts from this target's start; the targets are aligned for their 64-bit fields.
fn put_target(bytes: &mut Vec<u8>, target: &Target) -> Result<(), WireError> {
    if target.words.contains('\0') {
        return Err(WireError::Text(target.words.clone(), "parameter of a target"));
    }
    let length = (TARGET + target.words.len() + 1).next_multiple_of(8);
    let next = u32::try_from(length).map_err(|_| WireError::TooLarge(length))?;
    let mut spec = vec![0; length];
    spec[0..8].copy_from_slice(&target.start.to_ne_bytes());
    spec[8..16].copy_from_slice(&target.sectors.to_ne_bytes());
    spec[20..24].copy_from_slice(&next.to_ne_bytes());
    put_text(&mut spec[KIND], &target.kind, "kind of target")?;
    spec[TARGET..TARGET + target.words.len()].copy_from_slice(target.words.as_bytes());
    bytes.extend(spec);
    Ok(())
}

/// The field keeps at least one NUL byte at its end.
fn put_text(field: &mut [u8], text: &str, what: &'static str) -> Result<(), WireError> {
    if text.len() >= field.len() || text.contains('\0') {
        return Err(WireError::Text(text.chars().take(200).collect(), what));
    }
    field[..text.len()].copy_from_slice(text.as_bytes());
    Ok(())
}

fn read(bytes: &[u8], with_targets: bool) -> Result<Reply, WireError> {
    let header = bytes.get(..HEADER).ok_or(WireError::Malformed("length"))?;
    let flags = four(header, 28)?;
    if flags & BUFFER_FULL != 0 {
        return Err(WireError::Truncated);
    }
    let device = eight(header, 40)?;
    let targets = if with_targets { read_targets(bytes)? } else { Vec::new() };
    Ok(Reply {
        version: [four(header, 0)?, four(header, 4)?, four(header, 8)?],
        open_count: four(header, 24)?,
        device: numbers(device),
        read_only: flags & Flags::READ_ONLY.0 != 0,
        name: text(&header[NAME]),
        uuid: text(&header[UUID]),
        targets,
    })
}

/// As `huge_encode_dev` packs them: minor's lower eight bits, twelve bits of major, the rest of minor.
fn numbers(device: u64) -> (u32, u32) {
    let bits = |from: u32, mask: u64| u32::try_from((device >> from) & mask).unwrap_or_default();
    (bits(8, 0xfff), bits(0, 0xff) | bits(20, 0xf_ffff) << 8)
}

/// In an answer, `next` counts from the start of the data, and each text ends where the next target begins.
fn read_targets(bytes: &[u8]) -> Result<Vec<Target>, WireError> {
    let size = (four(bytes, 12)? as usize).min(bytes.len());
    let data = bytes.get(four(bytes, 16)? as usize..size).ok_or(WireError::Malformed("start of data"))?;
    let mut targets = Vec::new();
    let mut at = 0;
    for _ in 0..four(bytes, 20)? {
        let spec = data.get(at..).ok_or(WireError::Malformed("place of a target"))?;
        let next = four(spec, 20)? as usize;
        // Each lies behind the one before, so a count that lies ends at the end of the data. The last one's `next` is rounded up beyond it.
        let end = next.min(data.len());
        let words = (next > at + TARGET).then(|| data.get(at + TARGET..end)).flatten().ok_or(WireError::Malformed("length of a target"))?;
        let kind = spec.get(KIND).ok_or(WireError::Malformed("length of a target"))?;
        targets.push(Target { start: eight(spec, 0)?, sectors: eight(spec, 8)?, kind: text(kind), words: text(words) });
        at = next;
    }
    Ok(targets)
}

fn four(bytes: &[u8], at: usize) -> Result<u32, WireError> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    field.map(u32::from_ne_bytes).ok_or(WireError::Malformed("length"))
}

fn eight(bytes: &[u8], at: usize) -> Result<u64, WireError> {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    field.map(u64::from_ne_bytes).ok_or(WireError::Malformed("length"))
}

/// Up to the first NUL byte.
fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verity(words: &str) -> Target {
        Target { start: 0, sectors: 2400, kind: "verity".into(), words: words.into() }
    }

    #[test]
    fn requests_have_the_kernels_numbers() {
        for (command, number) in [
            (Command::Version, 0xc138_fd00),
            (Command::Create, 0xc138_fd03),
            (Command::Remove, 0xc138_fd04),
            (Command::Suspend, 0xc138_fd06),
            (Command::LoadTable, 0xc138_fd09),
            (Command::TableStatus, 0xc138_fd0c),
        ] {
            assert_eq!(command.request(), number, "{command:?}");
        }
    }

    #[test]
    fn a_table_is_laid_out_as_the_kernel_reads_it() {
        let targets = [verity("1 a"), Target { start: 2400, sectors: 8, kind: "zero".into(), words: String::new() }];
        let Message(bytes) = Message::new(Flags::READ_ONLY, "root", "u-1", &targets, 0).unwrap();
        let number = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes.len(), 312 + 48 + 48);
        // version, size, start of data, targets, flags
        assert_eq!([0, 4, 8, 12, 16, 20, 28].map(number), [4, 0, 0, 408, 312, 2, 1]);
        assert_eq!((&bytes[48..53], &bytes[176..180]), (&b"root\0"[..], &b"u-1\0"[..]));
        // sectors, next, kind, words
        assert_eq!((number(312 + 8), number(312 + 20)), (2400, 48));
        assert_eq!((&bytes[336..343], &bytes[352..356]), (&b"verity\0"[..], &b"1 a\0"[..]));
        assert_eq!((number(360), number(360 + 20)), (2400, 48));
    }

    #[test]
    fn what_does_not_fit_a_field_is_refused() {
        let long = "x".repeat(128);
        for (name, uuid, target) in [
            (long.as_str(), "", verity("")),
            ("a\0b", "", verity("")),
            ("a", &format!("{long}x"), verity("")),
            ("a", "", verity("1\0")),
            ("a", "", Target { kind: "a-kind-of-16-b..".into(), ..verity("") }),
            ("a", "", verity(&"x".repeat(MOST))),
        ] {
            assert!(Message::new(Flags::NONE, name, uuid, &[target], 0).is_err(), "{name:?} {uuid:?}");
        }
        assert!(Message::new(Flags::NONE, &long[1..], &long, &[verity("x")], 0).is_ok());
    }

    /// What Linux 6.12 answers to DM_TABLE_STATUS of two targets: `next` counts from the start of the data, and is rounded up where the
    /// size is not.
    fn answer() -> Vec<u8> {
        let mut bytes = Message::new(Flags::READ_ONLY, "root", "u-1", &[verity("V"), verity("C")], 100).unwrap().0;
        bytes[24..28].copy_from_slice(&1u32.to_ne_bytes());
        bytes[40..48].copy_from_slice(&((254u64 << 8) | 3).to_ne_bytes());
        let second = (312 + 48 + 20)..(312 + 48 + 24);
        bytes[second].copy_from_slice(&96u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&(312u32 + 48 + 42).to_ne_bytes());
        bytes
    }

    #[test]
    fn an_answer_is_read() {
        let reply = read(&answer(), true).unwrap();
        assert_eq!((reply.version, reply.open_count, reply.device, reply.read_only), ([4, 0, 0], 1, (254, 3), true));
        assert_eq!((reply.name.as_str(), reply.uuid.as_str()), ("root", "u-1"));
        assert_eq!(reply.targets, [verity("V"), verity("C")]);
        assert_eq!(read(&answer(), false).unwrap().targets, []);
        assert_eq!(numbers(0x0120_fe03), (0x0fe, 0x1203));
    }

    #[test]
    fn answers_that_contradict_themselves_are_refused() {
        for (at, value, expected) in [
            (28, BUFFER_FULL, WireError::Truncated),
            (16, 5000, WireError::Malformed("start of data")),
            (20, 3, WireError::Malformed("place of a target")),
            (312 + 20, 40, WireError::Malformed("length of a target")),
            (312 + 20, 9999, WireError::Malformed("place of a target")),
            (312 + 48 + 20, 48, WireError::Malformed("length of a target")),
        ] {
            let mut bytes = answer();
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            assert_eq!(read(&bytes, true), Err(expected), "{at} {value}");
        }
        assert_eq!(read(&answer()[..311], true), Err(WireError::Malformed("length")));
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(
            tail in prop::collection::vec(any::<u8>(), 0..200),
            start in 0u32..700, size in 0u32..700, count in 0u32..5, device: u64,
        ) {
            let mut bytes = answer();
            bytes.truncate(HEADER);
            bytes[12..16].copy_from_slice(&size.to_ne_bytes());
            bytes[16..20].copy_from_slice(&start.to_ne_bytes());
            bytes[20..24].copy_from_slice(&count.to_ne_bytes());
            bytes[40..48].copy_from_slice(&device.to_ne_bytes());
            bytes.extend(tail);
            let _ = read(&bytes, true);
        }
    }
}
