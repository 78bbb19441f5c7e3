//! `strakectl images`: what containerd holds, and giving a machine an image without a registry.

use std::path::PathBuf;

use anyhow::Context;
use machine_api::limits;
use machine_api::v1alpha1::{ImageInfo, ImageListRequest};
use serde_json::{Value, json};

use super::{Cx, refused};
use crate::output;

/// Look at and import container images.
#[derive(Debug, clap::Subcommand)]
pub enum Images {
    /// List the images that Kubernetes can use on a machine.
    List,
    /// Import an OCI archive (a tar file with oci-layout and index.json).
    Import {
        /// The archive.
        file: PathBuf,
    },
}

const COLUMNS: &[&str] = &["IMAGE=name", "DIGEST", "SIZE", "CREATED"];

impl Images {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        match self {
            Images::List => {
                cx.rows(COLUMNS, |machine| async move {
                    let list = machine.images().list(ImageListRequest {}).await.map_err(refused)?.into_inner();
                    Ok(list.images.into_iter().map(image).collect())
                })
                .await
            }
            Images::Import { file } => import(cx, &file).await,
        }
    }
}

fn image(image: ImageInfo) -> Value {
    json!({"name": image.name, "digest": image.digest, "size": image.size, "created": output::date(image.created_unix)})
}

/// Sends the file to one machine after the other, so that each bar means something.
async fn import(cx: &Cx, file: &PathBuf) -> anyhow::Result<()> {
    let size = std::fs::metadata(file).with_context(|| format!("read {}", file.display()))?.len();
    anyhow::ensure!(size <= limits::IMAGE_BYTES, "{} is larger than a machine takes ({} bytes)", file.display(), limits::IMAGE_BYTES);
    let (nodes, trust) = cx.targets()?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for node in nodes {
        let bar = output::transfer(size, &node);
        let sent = async {
            let machine = crate::client::Connection::open(&node, &trust, cx.timeout()).await?;
            let (chunks, problem) = super::etcd::file_chunks(file, bar.clone())?;
            let answer = machine.images().import(chunks).await;
            if let Some(problem) = problem.lock().ok().and_then(|mut problem| problem.take()) {
                return Err(anyhow::Error::new(problem).context(format!("read {}", file.display())));
            }
            anyhow::Ok(answer.map_err(refused)?.into_inner())
        }
        .await;
        bar.finish_and_clear();
        match sent {
            Ok(response) => rows.extend(response.images.into_iter().map(|info| {
                let mut row = output::row(json!({"node": node}));
                row.extend(output::row(image(info)));
                row
            })),
            Err(error) => failed.push((node, error)),
        }
    }
    let columns: Vec<&str> = std::iter::once("NODE").chain(COLUMNS.iter().copied()).collect();
    if !rows.is_empty() {
        super::print(&output::render(cx.output, &columns, &rows)?)?;
    }
    super::fail(failed)
}
