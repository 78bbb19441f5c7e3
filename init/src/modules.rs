//! Kernel modules: which files a name or a device needs, in which order, and loading them. The index is what `depmod` writes
//! (`modules.dep`, `modules.alias`, `modules.softdep`, `modules.builtin`; the formats are those of modules.dep(5) and depmod.d(5)).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// `MODULE_INIT_COMPRESSED_FILE` of finit_module(2): the kernel decompresses the file.
const COMPRESSED: i32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error("open module {0}")]
    Open(PathBuf, #[source] io::Error),
    #[error("load module {0}")]
    Load(PathBuf, #[source] Errno),
}

/// Parameters of modules: lines of `name parameter=value…` in `/usr/share/strake/module-options`.
#[derive(Debug, Default)]
pub struct Options(HashMap<String, String>);

impl Options {
    pub fn read(root: &Path) -> Self {
        Self::parse(&fs::read_to_string(root.join("usr/share/strake/module-options")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(|line| line.split_once(' ')).map(|(name, rest)| (canonical(name), rest.trim().to_owned())).collect())
    }

    fn of(&self, path: &Path) -> CString {
        let name = path.file_name().map(|name| name_of(&name.to_string_lossy())).unwrap_or_default();
        // A NUL byte cannot be in a parameter, so such a line counts for nothing.
        self.0.get(&name).and_then(|text| CString::new(text.as_str()).ok()).unwrap_or_default()
    }
}

/// depmod's index of one directory of modules.
#[derive(Debug, Default)]
pub struct Index {
    options: Options,
    base: PathBuf,
    modules: HashMap<String, Module>,
    aliases: Vec<(String, String)>,
    before: HashMap<String, Vec<String>>,
    built_in: HashSet<String>,
}

#[derive(Debug)]
struct Module {
    file: String,
    depends_on: Vec<String>,
}

impl Index {
    /// Reads the index of the running kernel under `root` (`""` for the root itself). Missing files are empty ones: without
    /// an index nothing is found, and what the kernel has built in still works.
    pub fn read(root: &Path) -> Self {
        let base = directory(root);
        let text = |name: &str| fs::read_to_string(base.join(name)).unwrap_or_default();
        let index = Self::parse(&base, &text("modules.dep"), &text("modules.alias"), &text("modules.softdep"), &text("modules.builtin"));
        Self { options: Options::read(root), ..index }
    }

    fn parse(base: &Path, dep: &str, alias: &str, softdep: &str, builtin: &str) -> Self {
        let mut index = Self { base: base.to_owned(), ..Self::default() };
        for line in dep.lines() {
            if let Some((file, depends_on)) = line.split_once(':') {
                let module = Module { file: file.to_owned(), depends_on: depends_on.split_ascii_whitespace().map(str::to_owned).collect() };
                index.modules.insert(name_of(file), module);
            }
        }
        for line in alias.lines() {
            let mut words = line.split_ascii_whitespace();
            if let (Some("alias"), Some(pattern), Some(name)) = (words.next(), words.next(), words.next()) {
                index.aliases.push((pattern.to_owned(), canonical(name)));
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_ascii_whitespace();
            if let (Some("softdep"), Some(name), Some("pre:")) = (words.next(), words.next(), words.next()) {
                let names = words.take_while(|word| *word != "post:").map(canonical).collect();
                index.before.insert(canonical(name), names);
            }
        }
        index.built_in = builtin.lines().map(name_of).collect();
        index
    }

    /// The files to load for a module's name, an alias, or a device's modalias, dependencies first. Empty when nothing is known of it.
    pub fn load_order(&self, wanted: &str) -> Vec<PathBuf> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in self.resolve(wanted) {
            self.collect(&name, &mut seen, &mut order);
        }
        order.iter().map(|file| self.base.join(file)).collect()
    }

    fn resolve(&self, wanted: &str) -> Vec<String> {
        let name = canonical(wanted);
        if self.modules.contains_key(&name) || self.built_in.contains(&name) {
            return vec![name];
        }
        let mut names = Vec::new();
        for (pattern, name) in &self.aliases {
            if matches(pattern.as_bytes(), wanted.as_bytes()) && !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Depth first; `seen` also breaks the cycles that soft dependencies may have.
    fn collect(&self, name: &str, seen: &mut HashSet<String>, order: &mut Vec<String>) {
        if !seen.insert(name.to_owned()) {
            return;
        }
        for soft in self.before.get(name).into_iter().flatten() {
            for name in self.resolve(soft) {
                self.collect(&name, seen, order);
            }
        }
        let Some(module) = self.modules.get(name) else { return };
        // modules.dep lists the whole closure, the nearest first.
        for file in module.depends_on.iter().rev() {
            self.collect(&name_of(file), seen, order);
        }
        order.push(module.file.clone());
    }
}

/// Where the modules of the running kernel are.
pub fn directory(root: &Path) -> PathBuf {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let base = root.join("usr/lib/modules").join(&release);
    if base.is_dir() { base } else { root.join("lib/modules").join(release) }
}

/// Loads one module file; one that is loaded already is fine.
pub fn load_file(path: &Path, options: &Options) -> Result<(), ModuleError> {
    let file = fs::File::open(path).map_err(|error| ModuleError::Open(path.to_owned(), error))?;
    let compressed = path.extension().is_some_and(|end| end == "xz" || end == "zst" || end == "gz");
    match rustix::system::finit_module(&file, &options.of(path), if compressed { COMPRESSED } else { 0 }) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(ModuleError::Load(path.to_owned(), error)),
    }
}

/// Loads what a name, an alias or a modalias stands for. Says whether anything was known of it; failures of single files
/// are returned and do not stop the others, since one alias may name several drivers.
pub fn load(index: &Index, wanted: &str) -> (bool, Vec<ModuleError>) {
    let order = index.load_order(wanted);
    let known = !order.is_empty();
    (known, order.iter().filter_map(|path| load_file(path, &index.options).err()).collect())
}

/// The modalias of every device of every bus, and of the input devices, which have none.
pub fn modaliases() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let groups = entries(Path::new("/sys/bus")).into_iter().map(|bus| bus.join("devices"));
    for group in groups.chain([PathBuf::from("/sys/class/input")]) {
        for device in entries(&group) {
            if let Ok(alias) = fs::read_to_string(device.join("modalias")) {
                found.insert(alias.trim().to_owned());
            }
        }
    }
    found.remove("");
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// `kernel/net/foo-bar.ko.xz` → `foo_bar`.
fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    canonical(base.split(".ko").next().unwrap_or(base))
}

/// The kernel takes `-` and `_` in names for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Shell-style matching with `*`, `?` and `[…]`, as in modules.alias.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') => {
                p += 1;
                t += 1;
                continue;
            }
            Some(b'[') => {
                if let Some((hit, next)) = class(&pattern[p..], text[t])
                    && hit
                {
                    p += next;
                    t += 1;
                    continue;
                }
            }
            Some(&byte) if byte == text[t] => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        match star {
            Some((after, at)) => {
                p = after;
                t = at + 1;
                star = Some((after, t));
            }
            None => return false,
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Whether `byte` is in the class that `pattern` starts with, and the class's length. `None` when it is not closed.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let end = pattern.iter().position(|&b| b == b']')?;
    let set = &pattern[1..end];
    let mut hit = false;
    let mut at = 0;
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == b'-' {
            hit |= (set[at]..=set[at + 2]).contains(&byte);
            at += 3;
        } else {
            hit |= set[at] == byte;
            at += 1;
        }
    }
    Some((hit, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index() -> Index {
        Index::parse(
            Path::new("/m"),
            "kernel/crypto/crc32c_generic.ko.xz:\n\
             kernel/lib/libcrc32c.ko.xz:\n\
             kernel/net/nf-conntrack.ko.xz: kernel/net/nf_defrag.ko.xz kernel/lib/libcrc32c.ko.xz\n\
             kernel/net/nf_defrag.ko.xz:\n\
             kernel/net/nf_nat.ko.xz: kernel/net/nf-conntrack.ko.xz kernel/net/nf_defrag.ko.xz kernel/lib/libcrc32c.ko.xz\n\
             kernel/drivers/virtio_net.ko.xz:\n\
             kernel/a.ko: \nkernel/b.ko:\n",
            "# a comment\n\
             alias crc32c crc32c_generic\n\
             alias virtio:d00000001v* virtio_net\n\
             alias pci:v00008086d0000[12]*sv*sd*bc*sc*i* a\n\
             alias pci:v00008086d00001* b\n",
            "softdep libcrc32c pre: crc32c\nsoftdep a pre: b post: virtio_net\nsoftdep b pre: a\n",
            "kernel/drivers/block/loop.ko\n",
        )
    }

    #[test]
    fn dependencies_come_first_each_once_with_soft_ones_before() {
        let cases: &[(&str, &[&str])] = &[
            (
                "nf_nat",
                &[
                    "kernel/crypto/crc32c_generic.ko.xz",
                    "kernel/lib/libcrc32c.ko.xz",
                    "kernel/net/nf_defrag.ko.xz",
                    "kernel/net/nf-conntrack.ko.xz",
                    "kernel/net/nf_nat.ko.xz",
                ],
            ),
            (
                "nf-conntrack",
                &[
                    "kernel/crypto/crc32c_generic.ko.xz",
                    "kernel/lib/libcrc32c.ko.xz",
                    "kernel/net/nf_defrag.ko.xz",
                    "kernel/net/nf-conntrack.ko.xz",
                ],
            ),
            ("virtio:d00000001v00001AF4", &["kernel/drivers/virtio_net.ko.xz"]),
            ("pci:v00008086d00001000sv1sd2bc02sc00i00", &["kernel/b.ko", "kernel/a.ko"]),
            ("loop", &[]),
            ("nonsense", &[]),
        ];
        for (wanted, expected) in cases {
            let expected: Vec<PathBuf> = expected.iter().map(|file| Path::new("/m").join(file)).collect();
            assert_eq!(index().load_order(wanted), expected, "{wanted}");
        }
    }

    #[test]
    fn patterns_match_as_the_shell_matches() {
        let cases = [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("*", "", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aee", false),
            ("a[bd]*", "adxyz", true),
            ("a[", "a[", false),
            ("usb:v*p*d*dc*ic08isc06ip50in*", "usb:v0781p5567d0100dc00dsc00dp00ic08isc06ip50in00", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_module_gets_the_parameters_of_its_line() {
        let options = Options::parse("# c\nbonding max_bonds=0 miimon=100\nnf-conntrack  hashsize=1\nbare\n");
        for (file, expected) in [
            ("/m/bonding.ko.xz", c"max_bonds=0 miimon=100"),
            ("/m/nf_conntrack.ko", c"hashsize=1"),
            ("/m/bare.ko", c""),
            ("/m/dummy.ko", c""),
        ] {
            assert_eq!(options.of(Path::new(file)).as_c_str(), expected, "{file}");
        }
    }

    proptest! {
        #[test]
        fn matching_never_panics_and_a_text_matches_itself_between_stars(pattern in "[a-c*?\\[\\]-]{0,12}", text in "[a-c]{0,12}") {
            let _ = matches(pattern.as_bytes(), text.as_bytes());
            let starred = format!("*{text}*");
            prop_assert!(matches(starred.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn any_index_text_is_read_without_a_panic(text in "[ -~\n]{0,200}") {
            let index = Index::parse(Path::new("/"), &text, &text, &text, &text);
            let _ = index.load_order("a");
        }
    }
}
