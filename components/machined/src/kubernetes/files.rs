//! Files as values, and the thin layer that makes the disk agree with them.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use crate::paths::Paths;

/// Larger files than this were not written here.
const MAX_BYTES: u64 = 4 << 20;

/// A file that is wanted.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its absolute path on the machine.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
    /// Who owns it (user and group).
    pub uid: u32,
    /// Its permissions.
    pub mode: u32,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Contents can be keys.
        write!(f, "File({}, {} bytes, {}, {:o})", self.path, self.content.len(), self.uid, self.mode)
    }
}

impl File {
    /// A file of root's that everyone may read.
    pub fn public(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content: content.into(), uid: 0, mode: 0o644 }
    }

    /// A file that only its owner may read.
    pub fn private(path: impl Into<String>, content: impl Into<Vec<u8>>, uid: u32) -> Self {
        Self { path: path.into(), content: content.into(), uid, mode: 0o600 }
    }
}

/// A directory that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Its absolute path on the machine.
    pub path: String,
    /// Who owns it.
    pub uid: u32,
    /// Its permissions.
    pub mode: u32,
}

/// Who really gets a file: machined is root and gives it away; anyone else (in tests) can only keep it.
fn owner(uid: u32) -> u32 {
    let me = rustix::process::getuid().as_raw();
    if me == 0 { uid } else { me }
}

/// What of a file is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedFile {
    content: Vec<u8>,
    uid: u32,
    mode: u32,
}

/// Which of the wanted files must be written.
pub fn plan(wanted: &[File], observed: impl Fn(&str) -> Option<ObservedFile>) -> Vec<&File> {
    let differs = |file: &File| {
        observed(&file.path).is_none_or(|found| found.content != file.content || found.uid != owner(file.uid) || found.mode != file.mode)
    };
    wanted.iter().filter(|file| differs(file)).collect()
}

/// Reads a file's state; anything that cannot be read counts as absent, and is written anew.
pub fn observe(paths: &Paths, path: &str) -> Option<ObservedFile> {
    let at = paths.at(path);
    let metadata = fs::symlink_metadata(&at).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return None;
    }
    let mut content = Vec::new();
    fs::File::open(&at).ok()?.take(MAX_BYTES).read_to_end(&mut content).ok()?;
    Some(ObservedFile { content, uid: metadata.uid(), mode: metadata.permissions().mode() & 0o7777 })
}

/// A file's text, when there is one.
pub fn read_text(paths: &Paths, path: &str) -> Option<String> {
    let at = paths.at(path);
    if fs::metadata(&at).ok()?.len() > MAX_BYTES {
        return None;
    }
    fs::read_to_string(at).ok()
}

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}")]
pub struct FileError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { operation, path, source }
}

/// Makes a directory with its owner and permissions; parents are root's.
pub fn make_directory(paths: &Paths, directory: &Directory) -> Result<(), FileError> {
    let at = paths.at(&directory.path);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&at).map_err(failed("create", &at))?;
    let metadata = fs::metadata(&at).map_err(failed("look at", &at))?;
    let owner = owner(directory.uid);
    if metadata.uid() != owner || metadata.gid() != owner {
        chown(&at, Some(owner), Some(owner)).map_err(failed("give away", &at))?;
    }
    if metadata.permissions().mode() & 0o7777 != directory.mode {
        fs::set_permissions(&at, fs::Permissions::from_mode(directory.mode)).map_err(failed("set the permissions of", &at))?;
    }
    Ok(())
}

/// Replaces a file: a new one is written with its owner and permissions, then renamed over the old, so that a reader sees one or the other.
pub fn write(paths: &Paths, file: &File) -> Result<(), FileError> {
    let at = paths.at(&file.path);
    if let Some(parent) = at.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed("create", parent))?;
    }
    // Hidden: the kubelet skips such names in its manifest directory.
    let name = at.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = at.with_file_name(format!(".{name}.new"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &temporary)(error)),
        _ => {}
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed("create", &temporary))?;
    out.write_all(&file.content).map_err(failed("write", &temporary))?;
    let owner = owner(file.uid);
    chown(&temporary, Some(owner), Some(owner)).map_err(failed("give away", &temporary))?;
    out.set_permissions(fs::Permissions::from_mode(file.mode)).map_err(failed("set the permissions of", &temporary))?;
    out.sync_all().map_err(failed("sync", &temporary))?;
    fs::rename(&temporary, &at).map_err(failed("put in place", &at))
}

/// Removes a file; one that is not there is fine.
pub fn remove(paths: &Paths, path: &str) -> Result<(), FileError> {
    let at = paths.at(path);
    match fs::remove_file(&at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &at)(error)),
        _ => Ok(()),
    }
}

/// Gives a directory away with all that is in it.
pub fn give_tree(path: &Path, uid: u32) -> Result<(), FileError> {
    std::os::unix::fs::lchown(path, Some(owner(uid)), Some(owner(uid))).map_err(failed("give away", path))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).map_err(failed("list", path))? {
            give_tree(&entry.map_err(failed("list", path))?.path(), uid)?;
        }
    }
    Ok(())
}

/// Points a link at a target beside it, in one step.
pub fn link(paths: &Paths, path: &str, target: &str) -> Result<(), FileError> {
    let at = paths.at(path);
    let temporary = at.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &temporary)(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &temporary).map_err(failed("link", &temporary))?;
    fs::rename(&temporary, &at).map_err(failed("put in place", &at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_when_content_or_permissions_differ_and_left_alone_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let file = File::private("/etc/a/b", "content", 901);
        let see = |p: &str| observe(&paths, p);
        assert_eq!(plan(std::slice::from_ref(&file), see).len(), 1);
        write(&paths, &file).unwrap();
        assert_eq!(plan(std::slice::from_ref(&file), see).len(), 0);
        fs::set_permissions(paths.at("/etc/a/b"), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(plan(std::slice::from_ref(&file), see).len(), 1);
        write(&paths, &file).unwrap();
        let changed = File { content: b"other".to_vec(), ..file.clone() };
        assert_eq!(plan(std::slice::from_ref(&changed), see), [&changed]);
        assert_eq!(fs::read_dir(paths.at("/etc/a")).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_replaced_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        link(&paths, "/current.pem", "one.pem").unwrap();
        link(&paths, "/current.pem", "two.pem").unwrap();
        assert_eq!(fs::read_link(paths.at("/current.pem")).unwrap(), Path::new("two.pem"));
    }
}
