//! This machine's etcd member: a client with the API server's credentials, and snapshots. A snapshot ends with the
//! SHA-256 of what comes before, as etcd writes it; nothing is kept or restored whose checksum does not fit.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::paths::Paths;

const CREDENTIALS: &str = "/etc/kubernetes/kube-apiserver";
/// A snapshot is a bbolt file, whose pages are a multiple of this, and a checksum.
const ALIGNMENT: u64 = 512;
const CHECKSUM: u64 = 32;
/// The revision of a store that nothing was ever written to.
const EMPTY: i64 = 1;

/// The reason of the event that says so.
pub const SNAPSHOT_FAILED: &str = "EtcdSnapshotFailed";

/// Why etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The credentials are not there: no control plane, or not bootstrapped yet.
    #[error("read etcd's credentials {path}")]
    Credentials { path: PathBuf, source: io::Error },
    /// etcd refused or can't be reached.
    #[error("{operation}")]
    Call { operation: &'static str, source: etcd_client::Error },
    /// A snapshot can't be written or read.
    #[error("{operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    /// A snapshot is not whole.
    #[error("the snapshot {path} {problem}")]
    Damaged { path: PathBuf, problem: &'static str },
    /// The snapshot is larger than allowed.
    #[error("the snapshot is larger than {0} bytes")]
    TooLarge(u64),
    /// etcd's own tool does not like it.
    #[error("read the snapshot's store: {0}")]
    Unreadable(String),
    /// It is older than what was in the store before it was taken.
    #[error("the snapshot is of revision {found}, but the store was at {expected} before it was taken")]
    Stale { found: i64, expected: i64 },
}

/// Connects to the member on this machine.
pub async fn connect(paths: &Paths) -> Result<Client, EtcdError> {
    connect_to(paths, &[paths.etcd_endpoint()]).await
}

/// Connects to the member with these addresses.
pub async fn connect_to(paths: &Paths, endpoints: &[impl AsRef<str>]) -> Result<Client, EtcdError> {
    let read = |name: &str| {
        let path = paths.at(&format!("{CREDENTIALS}/{name}"));
        fs::read(&path).map_err(|source| EtcdError::Credentials { path, source })
    };
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("etcd-ca.crt")?))
        .identity(Identity::from_pem(read("etcd-client.crt")?, read("etcd-client.key")?));
    let options = ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(5)).with_timeout(Duration::from_secs(60));
    Client::connect(endpoints, Some(options)).await.map_err(|source| EtcdError::Call { operation: "connect to etcd", source })
}

/// What is known about a kept snapshot, in a file beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Bytes.
    pub size: u64,
    /// When it was taken.
    pub taken_unix: i64,
    /// The store's revision in it.
    pub revision: i64,
    /// Hex SHA-256 of the whole file.
    pub sha256: String,
    /// Entries of the store in it.
    #[serde(default)]
    pub keys: i64,
}

/// Takes a snapshot into a file and checks it: its size and checksum, that etcd's own tool reads the whole store in it, and
/// that the store's revision is not older than what was asked for. A failed one leaves no file.
pub async fn snapshot(paths: &Paths, target: &Path, limit: u64) -> Result<SnapshotInfo, EtcdError> {
    let mut client = connect(paths).await?;
    let status = client.status().await.map_err(|source| EtcdError::Call { operation: "ask etcd for its status", source })?;
    let expected = status.header().map(|header| header.revision()).unwrap_or(0);
    let checked = match write(&mut client, target, limit).await {
        Ok(()) => checked(paths, target, expected).await,
        Err(error) => Err(error),
    };
    if checked.is_err() {
        let _ = fs::remove_file(target);
    }
    checked
}

async fn checked(paths: &Paths, target: &Path, expected: i64) -> Result<SnapshotInfo, EtcdError> {
    let path = target.to_owned();
    let check = tokio::task::spawn_blocking(move || check(&path)).await;
    let (size, sha256) = check.unwrap_or(Err(EtcdError::Damaged { path: target.to_owned(), problem: "could not be checked" }))?;
    let store = crate::kubernetes::etcd::status(paths, target).await.map_err(|error| EtcdError::Unreadable(crate::api::chain(&error)))?;
    if is_stale(store.revision, expected) {
        return Err(EtcdError::Stale { found: store.revision, expected });
    }
    Ok(SnapshotInfo { size, taken_unix: crate::clock::unix_seconds(), revision: store.revision, sha256, keys: store.keys })
}

/// Whether a snapshot is older than the store was. A store that nothing was ever written to answers with revision 1, and its file holds none.
fn is_stale(found: i64, expected: i64) -> bool {
    found < expected && expected > EMPTY
}

async fn write(client: &mut Client, target: &Path, limit: u64) -> Result<(), EtcdError> {
    let failed = |source| EtcdError::File { operation: "write", path: target.to_owned(), source };
    let call = |source| EtcdError::Call { operation: "take a snapshot", source };
    let mut stream = client.snapshot().await.map_err(call)?;
    let mut file = File::create(target).map_err(failed)?;
    let mut size = 0;
    while let Some(message) = stream.message().await.map_err(call)? {
        size += message.blob().len() as u64;
        if size > limit {
            return Err(EtcdError::TooLarge(limit));
        }
        file.write_all(message.blob()).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

/// Checks that a snapshot is whole. Gives its size and the hex SHA-256 of the whole file.
pub fn check(path: &Path) -> Result<(u64, String), EtcdError> {
    let failed = |source| EtcdError::File { operation: "read", path: path.to_owned(), source };
    let damaged = |problem| EtcdError::Damaged { path: path.to_owned(), problem };
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size <= CHECKSUM || size % ALIGNMENT != CHECKSUM {
        return Err(damaged("is no etcd snapshot, or it is cut off"));
    }
    let (mut content, mut whole) = (Sha256::new(), Sha256::new());
    let mut left = size - CHECKSUM;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..want]).map_err(failed)?;
        content.update(&buffer[..want]);
        whole.update(&buffer[..want]);
        left -= want as u64;
    }
    let mut stored = [0; CHECKSUM as usize];
    file.read_exact(&mut stored).map_err(failed)?;
    whole.update(stored);
    if content.finalize()[..] != stored[..] {
        return Err(damaged("is damaged: its content does not have the checksum at its end"));
    }
    Ok((size, whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Kept snapshots by name, oldest first.
pub fn kept(directory: &Path) -> io::Result<Vec<(String, SnapshotInfo)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(stem) = name.strip_suffix(".db") else { continue };
        // A snapshot without its description was not finished.
        let description = fs::read(directory.join(format!("{stem}.json"))).ok();
        if let Some(info) = description.and_then(|text| serde_json::from_slice(&text).ok()) {
            found.push((name, info));
        }
    }
    found.sort_by_key(|(name, info): &(String, SnapshotInfo)| (info.taken_unix, info.revision, name.clone()));
    Ok(found)
}

/// One at a time: two would take each other's unfinished files for leftovers.
static KEEPING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Takes a snapshot into the directory of kept ones, and removes the oldest beyond `most`. The description is written last:
/// without it there is no snapshot, and what a crash left is removed.
pub async fn keep(paths: &Paths, limit: u64, most: usize) -> Result<(String, SnapshotInfo), EtcdError> {
    let _one = KEEPING.lock().await;
    let directory = paths.snapshots();
    let failed = |operation: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| EtcdError::File { operation, path, source }
    };
    fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
    remove_unfinished(&directory).map_err(failed("remove what is unfinished in", &directory))?;
    let began = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let stem = (0..100)
        .map(|again| if again == 0 { format!("etcd-{began}") } else { format!("etcd-{began}-{again}") })
        .find(|stem| !directory.join(format!("{stem}.db")).exists())
        .unwrap_or_else(|| format!("etcd-{began}-{}", uuid::Uuid::new_v4()));
    let target = directory.join(format!("{stem}.db"));
    let info = snapshot(paths, &target, limit).await?;
    let description = directory.join(format!("{stem}.json"));
    let text = serde_json::to_vec(&info).map_err(io::Error::other).map_err(failed("write", &description))?;
    crate::state::write_atomically(&description, &text, 0o600).map_err(failed("write", &description))?;
    let all = kept(&directory).map_err(failed("list", &directory))?;
    for name in surplus(&all, most) {
        remove(&directory, &name).map_err(failed("remove", &directory.join(&name)))?;
    }
    Ok((format!("{stem}.db"), info))
}

/// Snapshots without a description: a crash came before it was written.
fn remove_unfinished(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "db") && !path.with_extension("json").exists() {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Names of the snapshots that go when only so many are kept: the oldest.
pub fn surplus(kept: &[(String, SnapshotInfo)], keep: usize) -> Vec<String> {
    kept.iter().take(kept.len().saturating_sub(keep)).map(|(name, _)| name.clone()).collect()
}

/// Removes a kept snapshot, its description first.
pub fn remove(directory: &Path, name: &str) -> io::Result<()> {
    let snapshot = directory.join(name);
    let description = snapshot.with_extension("json");
    match fs::remove_file(&description) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_file(&snapshot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(taken_unix: i64) -> SnapshotInfo {
        SnapshotInfo { size: 1, taken_unix, revision: 1, sha256: String::new(), keys: 1 }
    }

    #[test]
    fn only_a_snapshot_without_what_was_written_is_stale() {
        assert!(is_stale(4, 5) && is_stale(0, 2));
        assert!(!is_stale(5, 5) && !is_stale(6, 5));
        assert!(!is_stale(0, EMPTY), "a store that nothing was ever written to");
    }

    #[test]
    fn the_oldest_snapshots_go() {
        let kept = [("a.db".to_owned(), info(1)), ("b.db".to_owned(), info(2)), ("c.db".to_owned(), info(3))];
        assert_eq!(surplus(&kept, 2), ["a.db"]);
        assert!(surplus(&kept, 3).is_empty());
        assert!(surplus(&kept, 10).is_empty());
    }

    #[test]
    fn only_finished_snapshots_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(kept(&dir.path().join("nothing")).unwrap().is_empty());
        for name in ["b.db", "a.db", "unfinished.db"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::write(dir.path().join("b.json"), serde_json::to_vec(&info(1)).unwrap()).unwrap();
        fs::write(dir.path().join("a.json"), serde_json::to_vec(&info(2)).unwrap()).unwrap();
        let names: Vec<_> = kept(dir.path()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["b.db", "a.db"]);
        remove_unfinished(dir.path()).unwrap();
        assert!(!dir.path().join("unfinished.db").exists());
        remove(dir.path(), "b.db").unwrap();
        assert_eq!(kept(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_snapshot_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        let mut bytes = vec![9u8; 1024];
        bytes.extend_from_slice(&Sha256::digest(vec![9u8; 1024]));
        fs::write(&path, &bytes).unwrap();
        let (size, sha256) = check(&path).unwrap();
        assert_eq!((size, sha256.len()), (1056, 64));
        fs::write(&path, &bytes[..1000]).unwrap();
        assert!(matches!(check(&path), Err(EtcdError::Damaged { .. })));
        bytes[3] = 0;
        fs::write(&path, &bytes).unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("checksum"));
    }
}
