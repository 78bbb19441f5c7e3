//! What processors and devices load from their makers, from the Debian packages that the user names: microcode as an archive of its own in front of the
//! initramfs, where the kernel looks before anything else runs (Documentation/arch/x86/microcode.rst), and everything else in the root's
//! `/usr/lib/firmware`. What drivers of the initramfs ask for lies in the initramfs too. All of it is under the kernel image's signature: the root by its hash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::cpio;
use crate::debian::FIRMWARE;
use crate::debian::lock::Lock;
use crate::debian::store::{self, Unpacked, Versions};
use crate::error::{Error, FileContext};
use crate::tree::Tree;

const PLACE: &str = "usr/lib/firmware";
/// Where the packages have microcode, what of it is taken, and where the kernel looks for it.
const MICROCODE: &[Maker] = &[
    Maker { dir: "amd-ucode", takes: is_container, target: "kernel/x86/microcode/AuthenticAMD.bin" },
    Maker { dir: "intel-ucode", takes: is_update, target: "kernel/x86/microcode/GenuineIntel.bin" },
];

/// Of Intel's updates, of which each is a multiple of it long.
const ALIGNMENT: usize = 16;

struct Maker {
    dir: &'static str,
    takes: fn(&str) -> bool,
    target: &'static str,
}

/// AMD's containers; their signatures for people lie beside them.
fn is_container(name: &str) -> bool {
    name.ends_with(".bin")
}

/// Intel's updates are called after family, model and stepping; `.initramfs` marks those that may be loaded early only, as here.
fn is_update(name: &str) -> bool {
    let plain = name.strip_suffix(".initramfs").unwrap_or(name);
    let parts: Vec<&str> = plain.split('-').collect();
    parts.len() == 3 && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The chosen packages' firmware.
#[derive(Clone, Debug)]
pub struct Firmware {
    /// The packages.
    pub lock: Lock,
    /// By path below [`PLACE`]: a file of the packages, or what a link points to.
    files: BTreeMap<String, Item>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    File(PathBuf),
    Link(String),
}

impl Firmware {
    /// Fetches and unpacks these packages. Without any there is no firmware.
    pub fn prepare(
        cache: &Cache,
        lock_dir: &Path,
        packages: &[String],
        versions: Versions,
        say: &dyn Fn(&str),
    ) -> Result<Option<Self>, Error> {
        if packages.is_empty() {
            return Ok(None);
        }
        let Unpacked { dir, lock } = store::prepare_some(cache, lock_dir, &FIRMWARE, Some(packages), versions, say)?;
        Self::read(&dir, lock).map(Some)
    }

    fn read(dir: &Path, lock: Lock) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        // Packages from before the merged /usr have it in /lib.
        for place in [PLACE, "lib/firmware"] {
            let top = dir.join(place);
            if top.is_dir() {
                collect(&top, "", &mut files)?;
            }
        }
        if files.is_empty() {
            return Err(Error::malformed(dir, "there is no firmware in these packages"));
        }
        Ok(Self { lock, files })
    }

    /// The archive with the microcode; nothing when no package has any.
    pub fn microcode(&self) -> Result<Option<Vec<u8>>, Error> {
        let mut tree = Tree::default();
        for Maker { dir, takes, target } in MICROCODE {
            let mut content = Vec::new();
            for (path, item) in &self.files {
                let name = path.strip_prefix(dir).and_then(|rest| rest.strip_prefix('/'));
                if let (Some(_), Item::File(from)) = (name.filter(|name| takes(name)), item) {
                    content.extend(std::fs::read(from).on("read", from)?);
                }
            }
            if !content.is_empty() {
                tree.file(target, content, 0o644);
            }
        }
        if tree.entries().next().is_none() { Ok(None) } else { cpio::aligned(&tree, ALIGNMENT).map(Some) }
    }

    /// Adds everything but microcode to the root.
    pub fn add_to_root(&self, tree: &mut Tree) {
        for (path, item) in self.files.iter().filter(|(path, _)| !is_microcode(path)) {
            add(tree, &format!("{PLACE}/{path}"), item);
        }
    }

    /// Adds what a driver asks for to the initramfs, which has no links of a merged `/usr`. A driver asks for more than there is.
    pub fn add_for_driver(&self, tree: &mut Tree, module: &[u8]) {
        for name in asked_for(module) {
            let mut next = Some(name);
            // A link leads to another file, or to another link.
            for _ in 0..4 {
                let Some((path, item)) = next.take().and_then(|path| self.files.get_key_value(&path)) else { break };
                add(tree, &format!("lib/firmware/{path}"), item);
                if let Item::Link(target) = item {
                    next = resolve(path, target);
                }
            }
        }
    }

    /// How many files there are beside microcode, and their bytes.
    pub fn size(&self) -> Result<(usize, u64), Error> {
        let mut size = (0, 0);
        for (_, item) in self.files.iter().filter(|(path, _)| !is_microcode(path)) {
            let Item::File(from) = item else { continue };
            size = (size.0 + 1, size.1 + std::fs::metadata(from).on("look at", from)?.len());
        }
        Ok(size)
    }
}

fn is_microcode(path: &str) -> bool {
    MICROCODE.iter().any(|maker| path.strip_prefix(maker.dir).is_some_and(|rest| rest.starts_with('/')))
}

fn add(tree: &mut Tree, path: &str, item: &Item) {
    match item {
        Item::File(from) => tree.copy(path, from, 0o644),
        Item::Link(target) => tree.link(path, target),
    }
}

/// Everything below a directory, by its path from there.
fn collect(dir: &Path, prefix: &str, files: &mut BTreeMap<String, Item>) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).on("list", dir)? {
        let entry = entry.on("list", dir)?;
        let (place, kind) = (entry.path(), entry.file_type().on("look at", dir)?);
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if kind.is_dir() {
            collect(&place, &format!("{path}/"), files)?;
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&place).on("read", &place)?;
            files.insert(path, Item::Link(target.to_string_lossy().into_owned()));
        } else {
            files.insert(path, Item::File(place));
        }
    }
    Ok(())
}

/// What a link below [`PLACE`] points to, if that is below it too.
fn resolve(path: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    (!target.starts_with('/')).then(|| parts.join("/"))
}

/// The names in a module's `.modinfo`, which is text that ends with zeros (`MODULE_FIRMWARE`).
fn asked_for(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"firmware=";
    let values = module.split(|byte| *byte == 0).filter_map(|text| text.strip_prefix(KEY));
    values.filter_map(|value| String::from_utf8(value.to_vec()).ok()).filter(|name| !name.is_empty() && !name.contains("..")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unpacked packages with these files and links.
    fn packages(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> (tempfile::TempDir, Firmware) {
        let dir = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let place = dir.path().join(PLACE).join(path);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            place
        };
        files.iter().for_each(|(path, content)| std::fs::write(place(path), content).unwrap());
        links.iter().for_each(|(path, target)| std::os::unix::fs::symlink(target, place(path)).unwrap());
        let firmware = Firmware::read(dir.path(), Lock::default()).unwrap();
        (dir, firmware)
    }

    #[test]
    fn microcode_is_one_file_for_each_maker_uncompressed_and_where_the_kernel_looks() {
        let files: &[(&str, &[u8])] = &[
            ("intel-ucode/06-03-02", b"intel one "),
            ("intel-ucode/06-4f-01.initramfs", b"intel early "),
            ("intel-ucode/README", b"not this"),
            ("amd-ucode/microcode_amd.bin", b"amd one "),
            ("amd-ucode/microcode_amd.bin.asc", b"not this"),
            ("amd/amd_sev.sbin", b"not this"),
        ];
        let (_dir, firmware) = packages(files, &[]);
        let archive = firmware.microcode().unwrap().unwrap();
        assert!(archive.starts_with(b"070701"), "the kernel looks into archives that are not compressed");
        let at = |text: &[u8]| archive.windows(text.len()).position(|window| window == text);
        let after = |name: &[u8], content: &[u8]| {
            // newc: a header of 110 bytes, of which these are the name's length with its zeros; the content begins at a multiple of four.
            let name = at(name).unwrap();
            let size = std::str::from_utf8(&archive[name - 16..name - 8]).unwrap();
            let start = (name + usize::from_str_radix(size, 16).unwrap()).next_multiple_of(4);
            assert_eq!(start % 16, 0, "the processor takes it from there only");
            archive[start..].starts_with(content)
        };
        assert!(after(b"kernel/x86/microcode/AuthenticAMD.bin", b"amd one "));
        assert!(after(b"kernel/x86/microcode/GenuineIntel.bin", b"intel one intel early "));
        assert_eq!(at(b"not this"), None);

        let mut root = Tree::default();
        firmware.add_to_root(&mut root);
        let paths: Vec<&str> = root.entries().map(|(path, _)| path).filter(|path| path.contains("firmware/")).collect();
        assert_eq!(paths, ["usr/lib/firmware/amd", "usr/lib/firmware/amd/amd_sev.sbin"], "microcode is loaded early only");
        assert_eq!(firmware.size().unwrap(), (1, 8));
    }

    #[test]
    fn an_image_without_microcode_has_no_archive_for_it() {
        let (_dir, firmware) = packages(&[("bnx2/a.fw", b"x")], &[]);
        assert_eq!(firmware.microcode().unwrap(), None);
        let empty = tempfile::tempdir().unwrap();
        assert!(Firmware::read(empty.path(), Lock::default()).unwrap_err().to_string().contains("no firmware"));
    }

    #[test]
    fn the_initramfs_has_what_its_drivers_ask_for_links_included() {
        let files: &[(&str, &[u8])] = &[("vendor/real.bin", b"x"), ("vendor/unused.bin", b"y")];
        let (_dir, firmware) = packages(files, &[("alias.bin", "vendor/next.bin"), ("vendor/next.bin", "real.bin"), ("loop", "loop")]);
        let mut tree = Tree::default();
        firmware.add_for_driver(&mut tree, b"\x7fELF\0license=GPL\0firmware=alias.bin\0firmware=loop\0firmware=missing\0firmware=../x\0\0");
        let paths: Vec<&str> =
            tree.entries().map(|(path, _)| path).filter(|path| !path.ends_with("lib") && *path != "lib/firmware").collect();
        assert_eq!(
            paths,
            [
                "lib/firmware/alias.bin",
                "lib/firmware/loop",
                "lib/firmware/vendor",
                "lib/firmware/vendor/next.bin",
                "lib/firmware/vendor/real.bin"
            ]
        );
    }

    #[test]
    fn names_of_updates_are_told_from_others() {
        for (name, taken) in
            [("06-4f-01", true), ("0f-00-0a.initramfs", true), ("06-4f", false), ("06-4f-01.asc", false), ("6-4f-01", false)]
        {
            assert_eq!(is_update(name), taken, "{name}");
        }
        assert_eq!(resolve("a/b/c", "../d"), Some("a/d".to_owned()));
        assert_eq!((resolve("c", "../../d"), resolve("c", "/etc/d")), (None, None));
    }
}
