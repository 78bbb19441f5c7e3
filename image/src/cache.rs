//! The cache on the builder's machine: packages, tools unpacked from them, and other things that cost time to get.
//! An empty cache is always valid; nothing in it is the only copy of anything.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::{Error, FileContext};

/// The cache directory and the names inside it.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$STRAKE_CACHE`, else `$XDG_CACHE_HOME/strake`, else `~/.cache/strake`; created when it is not there.
    pub fn open() -> Result<Self, Error> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let root = absolute("STRAKE_CACHE")
            .or_else(|| absolute("XDG_CACHE_HOME").map(|base| base.join("strake")))
            .or_else(|| absolute("HOME").map(|home| home.join(".cache/strake")))
            .ok_or_else(|| Error::Missing {
                what: "a cache directory".into(),
                hint: "set HOME or STRAKE_CACHE to an absolute path".into(),
            })?;
        Self::at(root)
    }

    /// A cache at a given place.
    pub fn at(root: PathBuf) -> Result<Self, Error> {
        std::fs::create_dir_all(&root).on("create", &root)?;
        Ok(Self { root })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory in the cache, created when it is not there.
    pub fn dir(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.root.join(name);
        std::fs::create_dir_all(&path).on("create", &path)?;
        Ok(path)
    }

    /// Waits until no other process holds the lock `name`, and holds it until the file is dropped.
    pub fn lock(&self, name: &str) -> Result<File, Error> {
        let path = self.root.join(format!("{name}.lock"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).on("open", &path)?;
        file.lock().on("lock", &path)?;
        Ok(file)
    }
}

/// Fills `destination` through `fill` under a temporary name, so that a reader sees a whole directory or none.
pub fn fill_once(destination: &Path, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    if destination.is_dir() {
        return Ok(());
    }
    let partial = destination.with_extension(format!("partial-{}", std::process::id()));
    if partial.exists() {
        std::fs::remove_dir_all(&partial).on("remove", &partial)?;
    }
    std::fs::create_dir_all(&partial).on("create", &partial)?;
    fill(&partial)?;
    std::fs::rename(&partial, destination).on("rename", &partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_fill_leaves_nothing_under_the_final_name() {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().join("tools");
        let failed = fill_once(&place, |_| Err(Error::Missing { what: "x".into(), hint: "y".into() }));
        assert!(failed.is_err() && !place.exists());
        fill_once(&place, |dir| std::fs::write(dir.join("a"), "1").on("write", dir)).unwrap();
        fill_once(&place, |_| panic!("a full directory is not filled again")).unwrap();
        assert_eq!(std::fs::read_to_string(place.join("a")).unwrap(), "1");
    }
}
