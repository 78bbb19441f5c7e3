//! `strakectl ls` and `strakectl read`.

use std::io::Write;

use anyhow::Context;
use machine_api::v1alpha1::{FileListRequest, FileReadRequest};
use serde_json::json;
use tokio_stream::StreamExt;

use super::{Cx, refused};
use crate::output;

/// List a directory of a machine.
#[derive(Debug, clap::Args)]
pub struct Ls {
    /// An absolute path.
    #[arg(default_value = "/")]
    path: String,
}

/// Copy a file of a machine to standard output.
#[derive(Debug, clap::Args)]
pub struct Read {
    /// An absolute path.
    path: String,
}

impl Ls {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        cx.rows(&["MODE", "UID", "GID", "SIZE", "MODIFIED", "NAME=shown"], |machine| {
            let path = self.path.clone();
            async move {
                let list = machine.files().list(FileListRequest { path }).await.map_err(refused)?.into_inner();
                if list.truncated {
                    eprintln!("{}: the directory has more entries than are shown", machine.node);
                }
                Ok(list
                    .files
                    .into_iter()
                    .map(|file| {
                        let shown = match file.link_target.as_str() {
                            "" => file.name.clone(),
                            target => format!("{} -> {target}", file.name),
                        };
                        json!({
                            "name": file.name, "type": file.r#type, "size": file.size, "uid": file.uid, "gid": file.gid,
                            "mode": mode(&file.r#type, file.mode), "modified": output::date(file.modified_unix),
                            "linkTarget": file.link_target, "shown": shown,
                        })
                    })
                    .collect())
            }
        })
        .await
    }
}

/// Type and permissions as `ls -l` shows them.
fn mode(kind: &str, mode: u32) -> String {
    let kind = match kind {
        "directory" => 'd',
        "link" => 'l',
        "socket" => 's',
        "fifo" => 'p',
        "block" => 'b',
        "char" => 'c',
        _ => '-',
    };
    let bits = (0..9).map(|bit| if mode & (0o400 >> bit) != 0 { ['r', 'w', 'x'][bit % 3] } else { '-' });
    std::iter::once(kind).chain(bits).collect()
}

impl Read {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let machine = cx.one().await?;
        let mut chunks = machine.files().read(FileReadRequest { path: self.path }).await.map_err(refused)?.into_inner();
        let mut out = std::io::stdout().lock();
        while let Some(chunk) = chunks.next().await {
            match out.write_all(&chunk.map_err(refused)?.data) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                other => other.context("write to standard output")?,
            }
        }
        out.flush().context("write to standard output")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_in_ls() {
        assert_eq!(mode("directory", 0o755), "drwxr-xr-x");
        assert_eq!(mode("file", 0o640), "-rw-r-----");
    }
}
