//! What can be run on a machine is a list that a person reads: the build stops when the root holds a program that the list does not name,
//! a script, or a file that runs with its owner's rights.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, FileContext};
use crate::kmod::list_items;
use crate::tree::{Entry, Tree};

const SET_ID: u32 = 0o6000;
const EXECUTE: u32 = 0o111;

/// Compares the programs of a tree with those of the list at `allowed`.
pub fn check(tree: &Tree, allowed: &Path) -> Result<(), Error> {
    let text = std::fs::read_to_string(allowed).on("read", allowed)?;
    let allowed_paths: BTreeSet<String> = list_items(&text).into_iter().collect();
    let (found, wrong) = programs(tree)?;
    let unknown: Vec<&String> = found.difference(&allowed_paths).collect();
    let gone: Vec<&String> = allowed_paths.difference(&found).collect();
    let mut problems = wrong;
    if !unknown.is_empty() {
        problems.push(format!("the root has programs that it does not name: {unknown:?}"));
    }
    if !gone.is_empty() {
        problems.push(format!("the root does not have {gone:?}"));
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::malformed(allowed, problems.join("; "))) }
}

/// The paths of executable files, and what is wrong whatever a list says.
fn programs(tree: &Tree) -> Result<(BTreeSet<String>, Vec<String>), Error> {
    let (mut found, mut wrong) = (BTreeSet::new(), Vec::new());
    for (path, entry) in tree.entries() {
        let (Entry::Copy { mode, .. } | Entry::File { mode, .. }) = entry else { continue };
        if mode & SET_ID != 0 {
            wrong.push(format!("{path} runs with its owner's rights"));
        }
        if mode & EXECUTE == 0 {
            continue;
        }
        if Tree::content(entry)?.is_some_and(|content| content.starts_with(b"#!")) {
            wrong.push(format!("{path} is a script"));
        }
        found.insert(path.to_owned());
    }
    Ok((found, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(tree: &Tree, list: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), list).unwrap();
        check(tree, file.path()).map_or_else(|problem| problem.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn what_the_list_does_not_name_is_not_built() {
        let mut tree = Tree::default();
        tree.file("usr/bin/init", "\x7fELF", 0o755);
        tree.file("usr/share/text", "#! not run", 0o644);
        tree.link("usr/bin/modprobe", "init");
        assert_eq!(told(&tree, "# programs\nusr/bin/init # PID 1\n"), "fine");
        assert!(told(&tree, "usr/bin/init\nusr/bin/old\n").contains("does not have [\"usr/bin/old\"]"));
        tree.file("usr/bin/sh", "\x7fELF", 0o755);
        assert!(told(&tree, "usr/bin/init\n").contains("does not name: [\"usr/bin/sh\"]"));
        tree.file("usr/bin/sh", "#!/bin/x", 0o4755);
        let problem = told(&tree, "usr/bin/init\nusr/bin/sh\n");
        assert!(problem.contains("usr/bin/sh is a script") && problem.contains("usr/bin/sh runs with its owner's rights"), "{problem}");
    }
}
