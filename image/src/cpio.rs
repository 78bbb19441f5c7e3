//! A tree as a cpio archive in the form the kernel unpacks as initramfs (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).

use crate::error::Error;
use crate::tree::{Entry, Tree};

/// Six characters, and thirteen numbers of eight.
const HEADER: usize = 110;
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// What is opened before anything is mounted: by the kernel for init, and by Rust's runtime when a standard stream is closed.
const DEVICES: &[(&str, u32, (u32, u32))] = &[("dev/console", 0o600, (5, 1)), ("dev/null", 0o666, (1, 3))];

/// The archive's bytes. The few device nodes that must be there from the start are added.
pub fn archive(tree: &Tree) -> Result<Vec<u8>, Error> {
    aligned(tree, 4)
}

/// The same with the content of every file at a multiple of this many bytes, which is a multiple of four: Intel's processors take microcode from such an address
/// only (Software Developer's Manual, volume 3, "Microcode update loader"), and the kernel hands it over where it lies. Names are filled with zeros for that.
pub fn aligned(tree: &Tree, alignment: usize) -> Result<Vec<u8>, Error> {
    let mut writer = Writer { bytes: Vec::new(), inode: 0, alignment };
    for (path, entry) in tree.entries() {
        match entry {
            Entry::Dir { mode } => writer.record(path, DIRECTORY | mode, &[], (0, 0)),
            Entry::Link { target } => writer.record(path, SYMLINK | 0o777, target.as_bytes(), (0, 0)),
            Entry::Copy { mode, .. } | Entry::File { mode, .. } => {
                writer.record(path, FILE | mode, &Tree::content(entry)?.unwrap_or_default(), (0, 0));
            }
        }
        if path == "dev" {
            for (name, mode, device) in DEVICES {
                writer.record(name, CHARACTER_DEVICE | mode, &[], *device);
            }
        }
    }
    writer.record("TRAILER!!!", 0, &[], (0, 0));
    Ok(writer.bytes)
}

struct Writer {
    bytes: Vec<u8>,
    inode: u32,
    alignment: usize,
}

impl Writer {
    fn record(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.inode += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // Fields: inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), name size, checksum.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let plain = self.bytes.len() + HEADER + name.len() + 1;
        let filled = self.alignment > 4 && !content.is_empty();
        let name_end = if filled { plain.next_multiple_of(self.alignment) } else { plain };
        let name_size = u32::try_from(name_end - self.bytes.len() - HEADER).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(b"070701");
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.resize(name_end, 0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn records_are_aligned_and_end_with_the_trailer() {
        let mut tree = Tree::default();
        tree.dir("dev", 0o755);
        tree.file("init", "12345", 0o755);
        let bytes = archive(&tree).unwrap();
        assert!(bytes.starts_with(b"070701") && bytes.len().is_multiple_of(4));
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(text.contains("init\0") && text.contains("12345") && text.contains("dev/console\0") && text.contains("TRAILER!!!\0"));
        assert_eq!(bytes, archive(&tree).unwrap());
    }

    #[test]
    fn the_systems_own_cpio_reads_it_when_there_is_one() {
        let mut tree = Tree::default();
        tree.file("usr/lib/a", "content", 0o644);
        tree.link("lib", "usr/lib");
        let Ok(mut child) = Command::new("cpio").args(["-it", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            return;
        };
        child.stdin.take().unwrap().write_all(&archive(&tree).unwrap()).unwrap();
        let listed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(listed.lines().collect::<Vec<_>>(), ["lib", "usr", "usr/lib", "usr/lib/a"]);
    }
}
