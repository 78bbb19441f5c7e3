//! ImageService: what containerd holds, and images for machines without a registry.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use containerd_client::services::v1::Image;
use machine_api::limits;
use machine_api::v1alpha1::image_service_server::ImageService;
use machine_api::v1alpha1::{Chunk, ImageImportResponse, ImageInfo, ImageListRequest, ImageListResponse};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::authorize::Caller;
use crate::containerd::{Containerd, ImageError};
use crate::machine::Machine;

pub struct Handler(pub Arc<Machine>);

#[tonic::async_trait]
impl ImageService for Handler {
    async fn list(&self, _request: Request<ImageListRequest>) -> Result<Response<ImageListResponse>, Status> {
        let containerd = self.connect().await?;
        let images = containerd.images().await.map_err(|error| status(&error))?;
        Ok(Response::new(ImageListResponse { images: images.into_iter().map(info).collect() }))
    }

    async fn import(&self, request: Request<Streaming<Chunk>>) -> Result<Response<ImageImportResponse>, Status> {
        let caller = Caller::of(&request)?;
        let containerd = self.connect().await?;
        let upload = Upload::receive(self.0.paths.at("/var/lib/strake/uploads"), request.into_inner(), limits::IMAGE_BYTES).await?;
        let images = containerd.import(&upload.path, false).await.map_err(|error| status(&error))?;
        for image in &images {
            caller.did(format_args!("import image {}", image.name));
        }
        Ok(Response::new(ImageImportResponse { images: images.into_iter().map(info).collect() }))
    }
}

impl Handler {
    async fn connect(&self) -> Result<Containerd, Status> {
        Containerd::connect(&self.0.paths.containerd_socket()).await.map_err(|error| status(&error))
    }
}

fn info(image: Image) -> ImageInfo {
    let target = image.target.unwrap_or_default();
    ImageInfo {
        name: image.name,
        digest: target.digest,
        size: u64::try_from(target.size).unwrap_or(0),
        created_unix: image.created_at.map(|time| time.seconds).unwrap_or(0),
    }
}

fn status(error: &ImageError) -> Status {
    let text = super::chain(error);
    match error {
        ImageError::Connect(_) => Status::unavailable(text),
        ImageError::Invalid { .. } | ImageError::Archive { .. } => Status::invalid_argument(text),
        ImageError::Containerd { .. } => Status::internal(text),
    }
}

/// A file that was sent in chunks; removed when it is no longer needed.
pub struct Upload {
    /// Where it is.
    pub path: PathBuf,
}

impl Upload {
    /// Receives a file of at most so many bytes into a directory.
    pub async fn receive(directory: PathBuf, mut chunks: Streaming<Chunk>, limit: u64) -> Result<Upload, Status> {
        let upload = Upload { path: directory.join(uuid::Uuid::new_v4().to_string()) };
        let failed = |error: std::io::Error| Status::internal(format!("keep the upload in {}: {error}", directory.display()));
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let mut file = File::create_new(&upload.path).map_err(failed)?;
        let mut size = 0;
        while let Some(chunk) = chunks.next().await {
            let data = chunk?.data;
            size += data.len() as u64;
            if size > limit {
                return Err(Status::invalid_argument(format!("the file is larger than {limit} bytes")));
            }
            file = tokio::task::spawn_blocking(move || file.write_all(&data).map(|()| file))
                .await
                .map_err(|error| super::internal(&error))?
                .map_err(failed)?;
        }
        Ok(upload)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // What can't be removed now is removed at the next boot.
        let _ = std::fs::remove_file(&self.path);
    }
}
