//! `strakectl etcd`: members, snapshots and recovery.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use bytes::Bytes;
use indicatif::ProgressBar;
use machine_api::limits;
use machine_api::v1alpha1::{
    Chunk, EtcdListSnapshotsRequest, EtcdMember, EtcdMembersRequest, EtcdSnapshotInfo, EtcdSnapshotRequest, EtcdStatusRequest,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use super::{Cx, refused};
use crate::client::Connection;
use crate::output;

/// Look after etcd.
#[derive(Debug, clap::Subcommand)]
pub enum Etcd {
    /// Show the state of a control plane's member.
    Status,
    /// List the members.
    Members,
    /// Take a snapshot now, or download a kept one, and check it.
    Snapshot {
        /// Where to write it.
        file: PathBuf,
        /// The name of a kept snapshot; by default a new one is taken.
        #[arg(long)]
        name: Option<String>,
    },
    /// List the snapshots that the schedule keeps on a control plane.
    Snapshots,
    /// Replace etcd's data by a snapshot, on a machine that lost its own or to go back in time.
    ///
    /// The snapshot is checked before anything changes. The old data is kept beside the new until the next recovery.
    Recover {
        /// The snapshot.
        file: PathBuf,
    },
}

impl Etcd {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        match self {
            Etcd::Status => {
                let columns = [
                    "MEMBER",
                    "VERSION",
                    "LEADER",
                    "DB SIZE=dbSize|bytes",
                    "IN USE=dbSizeInUse|bytes",
                    "REVISION",
                    "TERM=raftTerm",
                    "ERRORS",
                ];
                let ask = |machine: Connection| async move {
                    let status = machine.etcd().status(EtcdStatusRequest {}).await.map_err(refused)?.into_inner();
                    Ok(vec![json!({
                        "version": status.version, "member": format!("{:016x}", status.member_id),
                        "leader": status.leader_id == status.member_id, "dbSize": status.db_size, "dbSizeInUse": status.db_size_in_use,
                        "revision": status.revision, "raftIndex": status.raft_index, "raftTerm": status.raft_term,
                        "learner": status.learner, "errors": status.errors,
                    })])
                };
                cx.of_control_planes()?.rows(&columns, ask).await
            }
            Etcd::Members => {
                let ask = |machine: Connection| async move {
                    let members = machine.etcd().members(EtcdMembersRequest {}).await.map_err(refused)?.into_inner().members;
                    let row = |member: EtcdMember| {
                        json!({
                            "id": format!("{:016x}", member.id), "name": member.name, "peers": member.peer_urls,
                            "clients": member.client_urls, "learner": member.learner,
                        })
                    };
                    Ok(members.into_iter().map(row).collect())
                };
                cx.of_control_planes()?.rows(&["ID", "NAME", "PEERS", "CLIENTS", "LEARNER"], ask).await
            }
            Etcd::Snapshots => {
                let ask = |machine: Connection| async move {
                    let list = machine.etcd().list_snapshots(EtcdListSnapshotsRequest {}).await.map_err(refused)?.into_inner();
                    let row = |snapshot: EtcdSnapshotInfo| {
                        json!({
                            "name": snapshot.name, "size": snapshot.size, "taken": output::date(snapshot.taken_unix),
                            "revision": snapshot.revision, "keys": snapshot.keys, "sha256": snapshot.sha256,
                        })
                    };
                    Ok(list.snapshots.into_iter().map(row).collect())
                };
                cx.of_control_planes()?.rows(&["NAME", "SIZE|bytes", "TAKEN", "REVISION", "KEYS", "SHA256"], ask).await
            }
            Etcd::Snapshot { file, name } => snapshot(cx, &file, name.unwrap_or_default()).await,
            Etcd::Recover { file } => recover(cx, &file).await,
        }
    }
}

/// Downloads into a file beside the target, checks it, and only then gives it its name.
async fn snapshot(cx: &Cx, target: &Path, name: String) -> anyhow::Result<()> {
    let machine = cx.control_plane().await?;
    let mut chunks = machine.etcd().snapshot(EtcdSnapshotRequest { name }).await.map_err(refused)?.into_inner();
    let partial = PathBuf::from(format!("{}.partial", target.display()));
    let mut out = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
    let bar = ProgressBar::new_spinner().with_message("snapshot");
    while let Some(chunk) = chunks.next().await {
        let data = chunk.map_err(refused)?.data;
        out.write_all(&data).with_context(|| format!("write {}", partial.display()))?;
        bar.inc(data.len() as u64);
    }
    out.sync_all().with_context(|| format!("write {}", partial.display()))?;
    bar.finish_and_clear();
    if let Err(error) = check(&partial) {
        let _ = std::fs::remove_file(&partial);
        return Err(error);
    }
    std::fs::rename(&partial, target).with_context(|| format!("rename {} to {}", partial.display(), target.display()))?;
    let size = std::fs::metadata(target)?.len();
    let row = json!({"file": target.display().to_string(), "size": size, "result": "written and checked"});
    super::show(cx, &machine.node, &["FILE", "SIZE|bytes", "RESULT"], vec![row])
}

/// A snapshot ends with the SHA-256 of everything before.
fn check(path: &Path) -> anyhow::Result<()> {
    const PAGE: u64 = 512;
    let mut file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    let size = file.metadata()?.len();
    if size <= 32 || size % PAGE != 32 {
        bail!("{} is no etcd snapshot, or it is cut off ({size} bytes)", path.display());
    }
    let mut hash = Sha256::new();
    let mut left = size - 32;
    let mut buffer = vec![0; limits::CHUNK_BYTES];
    while left > 0 {
        let want = usize::try_from(left.min(buffer.len() as u64)).unwrap_or(buffer.len());
        file.read_exact(&mut buffer[..want]).with_context(|| format!("read {}", path.display()))?;
        hash.update(&buffer[..want]);
        left -= want as u64;
    }
    let mut stored = [0; 32];
    file.read_exact(&mut stored).with_context(|| format!("read {}", path.display()))?;
    if stored[..] != hash.finalize()[..] {
        bail!("{} is damaged: its content does not have the checksum at its end", path.display());
    }
    Ok(())
}

async fn recover(cx: &Cx, file: &PathBuf) -> anyhow::Result<()> {
    check(file)?;
    let size = std::fs::metadata(file)?.len();
    anyhow::ensure!(size <= limits::SNAPSHOT_BYTES, "{} is larger than a machine takes", file.display());
    let machine = cx.control_plane().await?;
    let bar = output::transfer(size, &machine.node);
    let (chunks, problem) = file_chunks(file, bar.clone())?;
    let answer = machine.etcd().recover(chunks).await;
    bar.finish_and_clear();
    if let Some(problem) = problem.lock().ok().and_then(|mut problem| problem.take()) {
        return Err(anyhow::Error::new(problem).context(format!("read {}", file.display())));
    }
    let response = answer.map_err(refused)?.into_inner();
    let row = json!({"revision": response.revision, "result": format!("etcd holds the snapshot of revision {}", response.revision)});
    super::show(cx, &machine.node, &["RESULT"], vec![row])
}

/// A file as a stream of chunks, with a bar. A problem while reading ends the stream early and is left in the second
/// value, to be looked at before the answer is believed.
#[allow(clippy::type_complexity)]
pub fn file_chunks(
    path: &Path,
    bar: ProgressBar,
) -> anyhow::Result<(impl Stream<Item = Chunk> + Send + 'static, Arc<Mutex<Option<std::io::Error>>>)> {
    let mut file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    let problem = Arc::new(Mutex::new(None));
    let (chunks, stream) = tokio::sync::mpsc::channel(4);
    let reported = problem.clone();
    tokio::task::spawn_blocking(move || {
        loop {
            let mut buffer = Vec::with_capacity(limits::CHUNK_BYTES);
            match (&mut file).take(limits::CHUNK_BYTES as u64).read_to_end(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if chunks.blocking_send(Chunk { data: Bytes::from(buffer) }).is_err() {
                        return;
                    }
                    bar.inc(count as u64);
                }
                Err(error) => {
                    if let Ok(mut problem) = reported.lock() {
                        *problem = Some(error);
                    }
                    return;
                }
            }
        }
    });
    Ok((ReceiverStream::new(stream), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot_of(content: &[u8]) -> Vec<u8> {
        let mut bytes = content.to_vec();
        bytes.extend_from_slice(&Sha256::digest(content));
        bytes
    }

    #[test]
    fn damaged_snapshots_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        let whole = snapshot_of(&[7; 4096]);
        std::fs::write(&path, &whole).unwrap();
        check(&path).unwrap();

        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("cut off"));
        let mut flipped = whole.clone();
        flipped[100] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("damaged"));
        std::fs::write(&path, b"").unwrap();
        assert!(check(&path).is_err());
    }
}
