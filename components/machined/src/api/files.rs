//! FileService: looks at files, never writes. Devices, sockets and pipes are listed but not read.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use machine_api::limits;
use machine_api::v1alpha1::file_service_server::FileService;
use machine_api::v1alpha1::{Chunk, FileInfo, FileListRequest, FileListResponse, FileReadRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::machine::Machine;

pub struct Handler(pub Arc<Machine>);

#[tonic::async_trait]
impl FileService for Handler {
    type ReadStream = ReceiverStream<Result<Chunk, Status>>;

    async fn list(&self, request: Request<FileListRequest>) -> Result<Response<FileListResponse>, Status> {
        let path = self.path(&request.into_inner().path)?;
        let shown = path.display().to_string();
        let listing = tokio::task::spawn_blocking(move || list(&path)).await.map_err(|error| super::internal(&error))?;
        Ok(Response::new(listing.map_err(|error| refusal(&shown, &error))?))
    }

    async fn read(&self, request: Request<FileReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let path = self.path(&request.into_inner().path)?;
        let shown = path.display().to_string();
        let opened = tokio::task::spawn_blocking(move || open(&path)).await.map_err(|error| super::internal(&error))?;
        let file = opened.map_err(|error| refusal(&shown, &error))?;
        Ok(Response::new(send(file, limits::FILE_BYTES)))
    }
}

impl Handler {
    fn path(&self, path: &str) -> Result<PathBuf, Status> {
        super::bounded("the path", path)?;
        if !path.starts_with('/') || path.contains('\0') {
            return Err(Status::invalid_argument("the path must begin with /"));
        }
        Ok(self.0.paths.at(path))
    }
}

/// Sends a file in chunks, at most this many bytes of it. A client that does not read stops the reading thread.
pub fn send(file: impl Read + Send + 'static, limit: u64) -> ReceiverStream<Result<Chunk, Status>> {
    let (chunks, stream) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let mut file = file.take(limit);
        loop {
            let mut buffer = Vec::with_capacity(limits::CHUNK_BYTES);
            let chunk = match (&mut file).take(limits::CHUNK_BYTES as u64).read_to_end(&mut buffer) {
                Ok(0) => return,
                Ok(_) => Ok(Chunk { data: Bytes::from(buffer) }),
                Err(error) => Err(Status::data_loss(format!("read: {error}"))),
            };
            let last = chunk.is_err();
            if chunks.blocking_send(chunk).is_err() || last {
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}

fn open(path: &PathBuf) -> io::Result<File> {
    // Opening a pipe or a terminal must not wait, and a regular file does not mind.
    let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

fn list(path: &PathBuf) -> io::Result<FileListResponse> {
    let metadata = fs::symlink_metadata(path)?;
    if !fs::metadata(path).map(|target| target.is_dir()).unwrap_or(false) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return Ok(FileListResponse { files: vec![info(name, path, &metadata)], truncated: false });
    }
    let mut response = FileListResponse::default();
    for entry in fs::read_dir(path)? {
        if response.files.len() == limits::DIRECTORY_ENTRIES {
            response.truncated = true;
            break;
        }
        let entry = entry?;
        // An entry that was removed in between is no error.
        if let Ok(metadata) = entry.metadata() {
            response.files.push(info(entry.file_name().to_string_lossy().into_owned(), &entry.path(), &metadata));
        }
    }
    response.files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(response)
}

fn info(name: String, path: &PathBuf, metadata: &Metadata) -> FileInfo {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "link",
        () if kind.is_socket() => "socket",
        () if kind.is_fifo() => "fifo",
        () if kind.is_block_device() => "block",
        () => "char",
    };
    let link_target = match kind {
        "link" => fs::read_link(path).map(|target| target.to_string_lossy().into_owned()).unwrap_or_default(),
        _ => String::new(),
    };
    FileInfo {
        name,
        r#type: kind.to_owned(),
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_unix: metadata.mtime(),
        link_target,
    }
}

fn refusal(path: &str, error: &io::Error) -> Status {
    let text = format!("{path}: {error}");
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(text),
        io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory => Status::invalid_argument(text),
        _ => Status::unknown(text),
    }
}
