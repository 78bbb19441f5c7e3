//! Which kernel modules go where and in which order they are loaded, from depmod's text files. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// What depmod knows of a kernel's modules. Modules are named by their path below `/usr/lib/modules/<release>/`.
#[derive(Clone, Debug, Default)]
pub struct ModuleIndex {
    depends: BTreeMap<String, Vec<String>>,
    path_of: BTreeMap<String, String>,
    before: BTreeMap<String, Vec<String>>,
    aliases: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

/// depmod's text files.
#[derive(Clone, Copy, Debug, Default)]
pub struct DepmodFiles<'a> {
    /// `modules.dep`
    pub dep: &'a str,
    /// `modules.softdep`
    pub softdep: &'a str,
    /// `modules.alias`
    pub alias: &'a str,
    /// `modules.builtin`
    pub builtin: &'a str,
}

impl ModuleIndex {
    /// Reads depmod's files.
    pub fn parse(files: DepmodFiles<'_>) -> Self {
        let mut index = Self::default();
        for (path, rest) in files.dep.lines().filter_map(|line| line.split_once(':')) {
            index.path_of.insert(name_of(path), path.to_owned());
            index.depends.insert(path.to_owned(), rest.split_whitespace().map(str::to_owned).collect());
        }
        for line in files.softdep.lines() {
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(module)) = (words.next(), words.next()) {
                let pre = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| !word.ends_with(':'));
                index.before.entry(normal(module)).or_default().extend(pre.map(normal));
            }
        }
        for line in files.alias.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["alias", pattern, module] = words[..]
                && !pattern.contains(['*', '?', '['])
            {
                index.aliases.entry(normal(pattern)).or_default().push(normal(module));
            }
        }
        index.builtin = files.builtin.lines().map(name_of).collect();
        index
    }

    /// All modules.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.depends.keys().map(String::as_str)
    }

    /// The named modules and all they need, each once, dependencies first. Names built into the kernel are left out; a name that
    /// the kernel does not know at all is the error.
    pub fn load_order(&self, names: &[String]) -> Result<Vec<String>, String> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            let name = normal(name);
            match self.path_of.get(&name) {
                Some(path) => self.visit(path, &mut seen, &mut order),
                None if self.builtin.contains(&name) => {}
                None => return Err(name),
            }
        }
        Ok(order)
    }

    /// Everything that is not below an excluded directory, and what that needs. Directories are below `kernel/`.
    pub fn keep(&self, excluded: &[String]) -> BTreeSet<String> {
        let is_excluded = |path: &str| {
            let path = path.strip_prefix("kernel/").unwrap_or(path);
            excluded.iter().any(|dir| path.strip_prefix(dir.as_str()).is_some_and(|rest| rest.starts_with('/')))
        };
        let mut seen = BTreeSet::new();
        let mut order = Vec::new();
        for path in self.paths().filter(|path| !is_excluded(path)) {
            self.visit(path, &mut seen, &mut order);
        }
        seen
    }

    fn visit(&self, path: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
        if !seen.insert(path.to_owned()) {
            return;
        }
        for soft in self.before.get(&name_of(path)).into_iter().flatten() {
            for target in self.soft_targets(soft) {
                self.visit(&target, seen, order);
            }
        }
        for dependency in self.depends.get(path).into_iter().flatten() {
            self.visit(dependency, seen, order);
        }
        order.push(path.to_owned());
    }

    /// The modules a soft dependency means: the module of that name, or those that carry it as an alias, the generic one first
    /// because it loads on any processor.
    fn soft_targets(&self, name: &str) -> Vec<String> {
        if let Some(path) = self.path_of.get(name) {
            return vec![path.clone()];
        }
        let mut names: Vec<&String> = self.aliases.get(name).into_iter().flatten().collect();
        names.sort_by_key(|name| !name.ends_with("_generic"));
        names.into_iter().filter_map(|name| self.path_of.get(name).cloned()).collect()
    }
}

/// depmod's `modules.dep` without the modules that are not kept.
pub fn filter_dep(text: &str, kept: &BTreeSet<String>) -> String {
    filter(text, |line| line.split(':').next().is_some_and(|path| kept.contains(path)))
}

/// depmod's `modules.alias` or `modules.softdep` without the modules that are not kept; `field` is the word with the module's name.
pub fn filter_names(text: &str, field: usize, kept: &BTreeSet<String>) -> String {
    let names: BTreeSet<String> = kept.iter().map(|path| name_of(path)).collect();
    filter(text, |line| line.split_whitespace().nth(field).is_some_and(|name| names.contains(&normal(name))))
}

/// A module's path once it is not compressed any more.
pub fn plain_name(path: &str) -> &str {
    path.trim_end_matches(".xz")
}

/// depmod's `modules.dep` with one module under another path.
pub fn rename(text: &str, from: &str, to: &str) -> String {
    let word = |word: &str| match word.strip_suffix(':') {
        Some(path) if path == from => format!("{to}:"),
        None if word == from => to.to_owned(),
        _ => word.to_owned(),
    };
    text.lines().flat_map(|line| [line.split(' ').map(word).collect::<Vec<_>>().join(" "), "\n".to_owned()]).collect()
}

/// The lines of a list file: one item per line, `#` starts a comment.
pub fn list_items(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn filter(text: &str, keep: impl Fn(&str) -> bool) -> String {
    text.lines().filter(|line| keep(line)).flat_map(|line| [line, "\n"]).collect()
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: DepmodFiles<'_> = DepmodFiles {
        dep: "kernel/lib/libcrc32c.ko.xz:\nkernel/crypto/crc32c_generic.ko.xz:\nkernel/arch/crc32c-intel.ko.xz:\n\
              kernel/fs/ext4/ext4.ko.xz: kernel/fs/mbcache.ko.xz kernel/lib/libcrc32c.ko.xz\nkernel/fs/mbcache.ko.xz:\n\
              kernel/sound/snd.ko.xz: kernel/sound/core.ko.xz\nkernel/sound/core.ko.xz:\nkernel/drivers/usb/audio.ko.xz: kernel/sound/core.ko.xz\n",
        softdep: "softdep libcrc32c pre: crc32c post: other\n",
        alias: "alias crc32c crc32c_intel\nalias crc32c crc32c_generic\nalias pci:v*d1 snd\n",
        builtin: "kernel/fs/proc/proc.ko\n",
    };

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn dependencies_and_soft_dependencies_come_first() {
        let index = ModuleIndex::parse(FILES);
        for (wanted, expected) in [
            (names(&["ext4"]), Ok("mbcache crc32c_generic crc32c_intel libcrc32c ext4")),
            (names(&["libcrc32c", "ext4"]), Ok("crc32c_generic crc32c_intel libcrc32c mbcache ext4")),
            (names(&["proc"]), Ok("")),
            (names(&["crc32c-intel"]), Ok("crc32c_intel")),
            (names(&["ext5"]), Err("ext5".to_owned())),
        ] {
            let order = index.load_order(&wanted).map(|paths| paths.iter().map(|path| name_of(path)).collect::<Vec<_>>().join(" "));
            assert_eq!(order, expected.map(str::to_owned), "{wanted:?}");
        }
    }

    #[test]
    fn what_a_kept_module_needs_is_kept_even_from_an_excluded_directory() {
        let kept = ModuleIndex::parse(FILES).keep(&names(&["sound", "arch", "fs/ext"]));
        assert!(kept.contains("kernel/sound/core.ko.xz") && kept.contains("kernel/fs/ext4/ext4.ko.xz"));
        assert!(!kept.contains("kernel/sound/snd.ko.xz"));
        assert_eq!(filter_dep(FILES.dep, &kept).lines().count(), 7, "all but snd; the soft dependency keeps crc32c-intel");
        assert_eq!(filter_names(FILES.alias, 2, &kept).lines().count(), 2);
    }

    #[test]
    fn a_renamed_module_is_renamed_wherever_it_stands() {
        let text = "a/x.ko.xz: b/y.ko.xz a/xx.ko.xz\nb/y.ko.xz:\na/xx.ko.xz:\n";
        assert_eq!(rename(text, "b/y.ko.xz", plain_name("b/y.ko.xz")), "a/x.ko.xz: b/y.ko a/xx.ko.xz\nb/y.ko:\na/xx.ko.xz:\n");
        assert_eq!(rename(text, "a/x.ko.xz", "a/x.ko"), "a/x.ko: b/y.ko.xz a/xx.ko.xz\nb/y.ko.xz:\na/xx.ko.xz:\n");
    }

    #[test]
    fn list_files_have_comments() {
        assert_eq!(list_items("# head\n a # tail\n\nb\n"), ["a", "b"]);
    }
}
