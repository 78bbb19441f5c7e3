//! A planned directory tree: what is where, with which mode, from which source. The plan is a plain value; writing it to a
//! directory, to a cpio archive or to a tar archive are the three ways to make it real. Everything belongs to root and is
//! dated by the caller, so equal plans give equal bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Error, FileContext};

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Dir { mode: u32 },
    /// A file copied from the builder's disk.
    Copy { from: PathBuf, mode: u32 },
    /// A file with this content.
    File { content: Vec<u8>, mode: u32 },
    /// A symbolic link.
    Link { target: String },
}

/// Entries by path; paths have no leading slash, and parents are added by [`Tree::add`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Adds an entry, with its parent directories; a later entry replaces an earlier one.
    pub fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        let parents = path.match_indices('/').map(|(end, _)| &path[..end]);
        for parent in parents.filter(|parent| !parent.is_empty()) {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Dir { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Adds an empty directory.
    pub fn dir(&mut self, path: &str, mode: u32) {
        self.add(path, Entry::Dir { mode });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(path, Entry::Link { target: target.to_owned() });
    }

    /// Adds a file with this content.
    pub fn file(&mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) {
        self.add(path, Entry::File { content: content.into(), mode });
    }

    /// Adds a file copied from the builder's disk.
    pub fn copy(&mut self, path: &str, from: impl Into<PathBuf>, mode: u32) {
        self.add(path, Entry::Copy { from: from.into(), mode });
    }

    /// All entries, parents before children.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// The content of a file entry; `None` for directories and links.
    pub fn content(entry: &Entry) -> Result<Option<Vec<u8>>, Error> {
        match entry {
            Entry::Copy { from, .. } => std::fs::read(from).on("read", from).map(Some),
            Entry::File { content, .. } => Ok(Some(content.clone())),
            Entry::Dir { .. } | Entry::Link { .. } => Ok(None),
        }
    }

    /// Writes the tree below an empty directory.
    pub fn write_to(&self, dir: &Path) -> Result<(), Error> {
        for (path, entry) in self.entries() {
            let place = dir.join(path);
            let mode = match entry {
                Entry::Dir { mode } => {
                    std::fs::create_dir(&place).on("create", &place)?;
                    *mode
                }
                Entry::Copy { from, mode } => {
                    std::fs::copy(from, &place).on("copy", from)?;
                    *mode
                }
                Entry::File { content, mode } => {
                    std::fs::write(&place, content).on("write", &place)?;
                    *mode
                }
                Entry::Link { target } => {
                    symlink(target, &place).on("link", &place)?;
                    continue;
                }
            };
            std::fs::set_permissions(&place, std::fs::Permissions::from_mode(mode)).on("set the mode of", &place)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_written_as_planned() {
        let mut tree = Tree::default();
        tree.file("/usr/bin/tool", "x", 0o755);
        tree.link("bin", "usr/bin");
        tree.dir("tmp", 0o1777);
        let paths: Vec<&str> = tree.entries().map(|(path, _)| path).collect();
        assert_eq!(paths, ["bin", "tmp", "usr", "usr/bin", "usr/bin/tool"]);
        let scratch = tempfile::tempdir().unwrap();
        tree.write_to(scratch.path()).unwrap();
        assert_eq!(std::fs::read_to_string(scratch.path().join("bin/tool")).unwrap(), "x");
        assert_eq!(std::fs::metadata(scratch.path().join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
    }
}
