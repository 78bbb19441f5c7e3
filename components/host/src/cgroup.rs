//! One cgroup v2 directory (the kernel's cgroup-v2 documentation names its files).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("create cgroup {0}")]
    Create(PathBuf, #[source] io::Error),
    #[error("write {value:?} to {file}")]
    Write { file: PathBuf, value: String, source: io::Error },
    #[error("read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("remove cgroup {0}")]
    Remove(PathBuf, #[source] io::Error),
}

/// A cgroup by its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// A cgroup below [`ROOT`], or below another directory in tests.
    pub fn new(root: &Path, name: &str) -> Self {
        Self { dir: root.join(name.trim_start_matches('/')) }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates it and the ones above it.
    pub fn create(&self) -> Result<(), CgroupError> {
        fs::create_dir_all(&self.dir).map_err(|error| CgroupError::Create(self.dir.clone(), error))
    }

    pub fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.dir.join(file);
        fs::write(&path, value).map_err(|source| CgroupError::Write { file: path, value: value.to_owned(), source })
    }

    pub fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.dir.join(file);
        fs::read_to_string(&path).map_err(|error| CgroupError::Read(path, error))
    }

    /// The processes directly in it.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Kills every process in it and below it.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Removes it; one that is not there is removed. It must have no processes and nothing below it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CgroupError::Remove(self.dir.clone(), error)),
            _ => Ok(()),
        }
    }

    /// One number of a `key value` file such as `memory.stat` or `cpu.stat`.
    pub fn stat(&self, file: &str, key: &str) -> Result<Option<u64>, CgroupError> {
        Ok(stat(&self.read(file)?, key))
    }

    /// The number in a file that holds one; `None` for `max`.
    pub fn number(&self, file: &str) -> Result<Option<u64>, CgroupError> {
        Ok(self.read(file)?.trim().parse().ok())
    }
}

fn stat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key)).and_then(|(_, value)| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_stat_files_match_whole() {
        let text = "anon 4096\nanon_thp 8192\nfile x\n";
        for (key, expected) in [("anon", Some(4096)), ("anon_thp", Some(8192)), ("file", None), ("ano", None)] {
            assert_eq!(stat(text, key), expected, "{key}");
        }
    }

    #[test]
    fn a_group_is_made_used_and_removed_and_errors_name_the_file() {
        let root = tempfile::tempdir().unwrap();
        let group = Cgroup::new(root.path(), "/kubepods/pod1");
        group.create().unwrap();
        group.write("cgroup.procs", "12\n13\n").unwrap();
        assert_eq!(group.processes().unwrap(), [12, 13]);
        group.write("memory.max", "max\n").unwrap();
        assert_eq!(group.number("memory.max").unwrap(), None);
        let error = group.read("absent").unwrap_err();
        assert!(error.to_string().ends_with("kubepods/pod1/absent"), "{error}");
        assert!(group.remove().is_err());
        fs::remove_file(group.dir().join("cgroup.procs")).unwrap();
        fs::remove_file(group.dir().join("memory.max")).unwrap();
        group.remove().unwrap();
        group.remove().unwrap();
    }
}
