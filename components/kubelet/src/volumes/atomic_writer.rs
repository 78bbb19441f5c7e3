//! Writes a set of files so that a reader sees all of the old or all of the new ones.
//!
//! The content lies in a directory named for the time it was written; `..data` is a symbolic link to it, swapped by rename; each file a user
//! sees is a symbolic link through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// One file.
#[derive(Debug, Clone, PartialEq)]
pub struct FileContent {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner, when it is not root.
    pub uid: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, FileContent>;

/// A failed write.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("volume file path {0:?} is not allowed: it must be relative, without \"..\" elements, and not start with \"..\"")]
    BadPath(String),
    #[error("{operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

fn context<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> WriteError + 'a {
    move |source| WriteError::Io { operation, path: path.into(), source }
}

/// Whether a path may be used inside a volume.
pub fn check_path(path: &str) -> Result<(), WriteError> {
    let bad = || WriteError::BadPath(path.to_owned());
    if path.is_empty() || path.len() > 4096 || path.starts_with("..") {
        return Err(bad());
    }
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) if name.len() <= 255 => {}
            _ => return Err(bad()),
        }
    }
    Ok(())
}

/// Brings `target` to hold exactly `payload`. Returns whether anything changed. `group` becomes the group of every file.
pub fn write(target: &Path, payload: &Payload, group: Option<u32>) -> Result<bool, WriteError> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let data = target.join(DATA);
    let old = std::fs::read_link(&data).ok().map(|name| target.join(name));
    if let Some(old) = &old
        && is_same(old, payload)
    {
        link_files(target, payload)?;
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let fresh = target.join(format!("{stamp}.{}", rand::random::<u32>()));
    std::fs::create_dir(&fresh).map_err(context("create directory", &fresh))?;
    set_owner(&fresh, 0o755, None, group)?;
    for (path, file) in payload {
        let full = fresh.join(path);
        if let Some(parent) = full.parent() {
            let mut current = fresh.clone();
            for part in parent.strip_prefix(&fresh).unwrap_or(Path::new("")).components() {
                current.push(part);
                if !current.is_dir() {
                    std::fs::create_dir(&current).map_err(context("create directory", &current))?;
                    set_owner(&current, 0o755, None, group)?;
                }
            }
        }
        std::fs::write(&full, &file.data).map_err(context("write", &full))?;
        // A group that is to read the files needs the permission to.
        let mode = if group.is_some() { file.mode | ((file.mode & 0o400) >> 3) } else { file.mode };
        set_owner(&full, mode, file.uid, group)?;
    }
    let fresh_name = fresh.file_name().map(PathBuf::from).unwrap_or_default();
    let new = target.join(DATA_NEW);
    let _ = std::fs::remove_file(&new);
    symlink(&fresh_name, &new).map_err(context("link", &new))?;
    std::fs::rename(&new, &data).map_err(context("swap", &data))?;
    link_files(target, payload)?;
    if let Some(old) = old {
        std::fs::remove_dir_all(&old).map_err(context("remove", &old))?;
    }
    Ok(true)
}

/// The first elements of all paths: what lies in the volume's own directory.
fn visible(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|p| p.split('/').find(|s| !s.is_empty() && *s != ".")).collect()
}

/// Makes the links a user sees and removes those of files that are gone.
fn link_files(target: &Path, payload: &Payload) -> Result<(), WriteError> {
    let wanted = visible(payload);
    for name in &wanted {
        let link = target.join(name);
        let to = Path::new(DATA).join(name);
        if std::fs::read_link(&link).ok().as_deref() != Some(&to) {
            symlink(&to, &link).map_err(context("link", &link))?;
        }
    }
    for entry in std::fs::read_dir(target).map_err(context("list", target))? {
        let entry = entry.map_err(context("list", target))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !wanted.contains(name) && entry.file_type().is_ok_and(|t| t.is_symlink()) {
            std::fs::remove_file(entry.path()).map_err(context("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn is_same(dir: &Path, payload: &Payload) -> bool {
    fn count(dir: &Path, depth: usize) -> Option<usize> {
        let mut files = 0;
        for entry in std::fs::read_dir(dir).ok()? {
            let entry = entry.ok()?;
            files += if entry.file_type().ok()?.is_dir() && depth < 32 { count(&entry.path(), depth + 1)? } else { 1 };
        }
        Some(files)
    }
    count(dir, 0) == Some(payload.len())
        && payload.iter().all(|(path, file)| {
            let full = dir.join(path);
            std::fs::metadata(&full).is_ok_and(|m| m.len() == file.data.len() as u64)
                && std::fs::read(&full).is_ok_and(|data| data == file.data)
        })
}

fn set_owner(path: &Path, mode: u32, uid: Option<u32>, gid: Option<u32>) -> Result<(), WriteError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(context("set the mode of", path))?;
    if uid.is_some() || gid.is_some() {
        std::os::unix::fs::chown(path, uid, gid).map_err(context("set the owner of", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(p, d)| ((*p).to_owned(), FileContent { data: d.as_bytes().to_vec(), mode: 0o644, uid: None })).collect()
    }

    #[test]
    fn updates_swap_everything_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = |p: &str| std::fs::read_to_string(dir.path().join(p)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("sub/dir/b", "2")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("sub/dir/b").as_deref()), (Some("1"), Some("2")));
        assert_eq!(std::fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        let first = std::fs::read_link(dir.path().join("..data")).unwrap();
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("sub/dir/b", "2")]), None).unwrap(), "the same content is not written again");
        assert_eq!(std::fs::read_link(dir.path().join("..data")).unwrap(), first);
        assert!(write(dir.path(), &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("c").as_deref(), read("sub/dir/b")), (Some("3"), Some("4"), None));
        assert!(!dir.path().join(first).exists(), "the old content is gone");
        assert!(!dir.path().join("sub").is_symlink());
        assert!(write(dir.path(), &payload(&[]), None).unwrap());
        assert_eq!(read("a"), None);
    }

    #[test]
    fn modes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut p = payload(&[("a", "1")]);
        p.get_mut("a").unwrap().mode = 0o400;
        write(dir.path(), &p, None).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o400);
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["/etc/passwd", "../x", "a/../../x", "..data", "", "a/../b"] {
            assert!(write(dir.path(), &payload(&[(path, "x")]), None).is_err(), "{path}");
        }
    }
}
