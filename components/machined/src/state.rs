//! What a machine keeps in STATE: its config, the last good one, the cluster's id, what it was issued. Every write is
//! complete or has not happened: a new file, synced, then renamed over the old one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why STATE could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file could not be read.
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// A file could not be written.
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    /// The machine belongs to a cluster already.
    #[error("this machine already belongs to cluster {0}; a machine is bootstrapped once")]
    HasClusterId(String),
}

/// Larger files than this were not written by machined.
const MAX_FILE: u64 = 4 << 20;

/// The directory where STATE is mounted.
#[derive(Clone, Debug)]
pub struct StateDir {
    dir: PathBuf,
}

impl StateDir {
    /// STATE, mounted here.
    pub fn new(dir: impl Into<PathBuf>) -> StateDir {
        StateDir { dir: dir.into() }
    }

    /// A file in STATE.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The text of the machine config, when there is one.
    pub fn config(&self) -> Result<Option<String>, StateError> {
        self.text("config.yaml")
    }

    /// The config that last brought everything up.
    pub fn last_good_config(&self) -> Result<Option<String>, StateError> {
        self.text("config.last-good.yaml")
    }

    /// Makes this the machine config.
    pub fn set_config(&self, text: &str) -> Result<(), StateError> {
        self.write("config.yaml", text.as_bytes())
    }

    /// Remembers this config as one that works.
    pub fn set_last_good_config(&self, text: &str) -> Result<(), StateError> {
        if self.last_good_config()?.as_deref() == Some(text) {
            return Ok(());
        }
        self.write("config.last-good.yaml", text.as_bytes())
    }

    /// The id of the cluster that this machine was made the first of, or joined.
    pub fn cluster_id(&self) -> Result<Option<String>, StateError> {
        Ok(self.text("cluster-id")?.map(|text| text.trim().to_owned()))
    }

    /// Records the cluster's id, once.
    pub fn set_cluster_id(&self, id: &str) -> Result<(), StateError> {
        let path = self.path("cluster-id");
        let temporary = self.path("cluster-id.new");
        let failed = |source| StateError::Write { path: path.clone(), source };
        write_synced(&temporary, format!("{id}\n").as_bytes(), 0o600).map_err(failed)?;
        // A link, unlike a rename, never replaces what is there.
        let linked = fs::hard_link(&temporary, &path);
        let removed = fs::remove_file(&temporary);
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StateError::HasClusterId(self.cluster_id()?.unwrap_or_default()))
            }
            other => other.and(removed).and_then(|()| sync_dir(&self.dir)).map_err(failed),
        }
    }

    /// Whether STATE, ETCD and DATA are to be wiped at the next boot.
    pub fn reset_requested(&self) -> bool {
        self.path("reset-requested").exists()
    }

    /// Asks for STATE, ETCD and DATA to be wiped at the next boot.
    pub fn request_reset(&self) -> Result<(), StateError> {
        self.write("reset-requested", b"")
    }

    /// A file's text, when it exists.
    pub fn text(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.path(name);
        match read_bounded(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    /// Writes a file that only root reads.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        write_atomically(&path, content, 0o600).map_err(|source| StateError::Write { path, source })
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes")));
    }
    fs::read_to_string(path)
}

/// Replaces a file so that a crash leaves the old content or the new. Directories are made as needed, for root only.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    write_synced(&temporary, content, mode)?;
    fs::rename(&temporary, path)?;
    sync_dir(parent)
}

fn write_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_is_recorded_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        assert_eq!(state.cluster_id().unwrap(), None);
        state.set_cluster_id("first").unwrap();
        assert!(matches!(state.set_cluster_id("second"), Err(StateError::HasClusterId(id)) if id == "first"));
        assert_eq!(state.cluster_id().unwrap().as_deref(), Some("first"));
        assert!(!state.path("cluster-id.new").exists());
    }

    #[test]
    fn a_left_over_of_a_crash_does_not_stop_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        fs::write(state.path("config.yaml.new"), "half a con").unwrap();
        state.set_config("whole").unwrap();
        assert_eq!(state.config().unwrap().as_deref(), Some("whole"));
    }

    #[test]
    fn only_root_reads_what_is_kept() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        state.write("pki/machine.key", b"secret").unwrap();
        assert_eq!(fs::metadata(state.path("pki/machine.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(state.path("pki")).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
