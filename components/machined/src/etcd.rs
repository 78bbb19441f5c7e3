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

const ENDPOINT: &str = "https://127.0.0.1:2379";
const CREDENTIALS: &str = "/etc/kubernetes/kube-apiserver";
/// A snapshot is a bbolt file, whose pages are a multiple of this, and a checksum.
const ALIGNMENT: u64 = 512;
const CHECKSUM: u64 = 32;

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
}

/// Connects to the member on this machine.
pub async fn connect(paths: &Paths) -> Result<Client, EtcdError> {
    let read = |name: &str| {
        let path = paths.at(&format!("{CREDENTIALS}/{name}"));
        fs::read(&path).map_err(|source| EtcdError::Credentials { path, source })
    };
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("etcd-ca.crt")?))
        .identity(Identity::from_pem(read("etcd-client.crt")?, read("etcd-client.key")?));
    let options = ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(5)).with_timeout(Duration::from_secs(60));
    Client::connect([ENDPOINT], Some(options)).await.map_err(|source| EtcdError::Call { operation: "connect to etcd", source })
}

/// What is known about a kept snapshot, in a file beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Bytes.
    pub size: u64,
    /// When it was taken.
    pub taken_unix: i64,
    /// The revision of the store just before.
    pub revision: i64,
    /// Hex SHA-256 of the whole file.
    pub sha256: String,
}

/// Takes a snapshot into a file, and checks it. A failed one leaves no file.
pub async fn snapshot(paths: &Paths, target: &Path, limit: u64) -> Result<SnapshotInfo, EtcdError> {
    let mut client = connect(paths).await?;
    let status = client.status().await.map_err(|source| EtcdError::Call { operation: "ask etcd for its status", source })?;
    let revision = status.header().map(|header| header.revision()).unwrap_or(0);
    let written = write(&mut client, target, limit).await;
    let checked = match written {
        Ok(()) => {
            let path = target.to_owned();
            let check = tokio::task::spawn_blocking(move || check(&path)).await;
            check.unwrap_or(Err(EtcdError::Damaged { path: target.to_owned(), problem: "could not be checked" }))
        }
        Err(error) => Err(error),
    };
    match checked {
        Ok((size, sha256)) => Ok(SnapshotInfo { size, taken_unix: crate::clock::unix_seconds(), revision, sha256 }),
        Err(error) => {
            let _ = fs::remove_file(target);
            Err(error)
        }
    }
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
    found.sort_by_key(|(name, info): &(String, SnapshotInfo)| (info.taken_unix, name.clone()));
    Ok(found)
}

/// Takes a snapshot into the directory of kept ones. The description is written last: without it there is no snapshot.
pub async fn keep(paths: &Paths, limit: u64) -> Result<(String, SnapshotInfo), EtcdError> {
    let directory = paths.snapshots();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| EtcdError::File { operation: "write", path, source }
    };
    fs::create_dir_all(&directory).map_err(failed(&directory))?;
    let stem = format!("etcd-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let target = directory.join(format!("{stem}.db"));
    let info = snapshot(paths, &target, limit).await?;
    let description = directory.join(format!("{stem}.json"));
    let text = serde_json::to_vec(&info).map_err(io::Error::other).map_err(failed(&description))?;
    crate::state::write_atomically(&description, &text, 0o600).map_err(failed(&description))?;
    Ok((format!("{stem}.db"), info))
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
        SnapshotInfo { size: 1, taken_unix, revision: 1, sha256: String::new() }
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
