//! `/containerLogs`: the log of one run of a container, from its end backwards, from a time, and followed while it grows.

use super::{Body, Query, text};
use crate::kubelet::Shared;
use crate::pod::observe::{ContainerObs, Observer, RunState};
use crate::runtime::log_file::{Options, Renderer, tail_offset};
use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Chunks between the reader of the file and a slow client.
const QUEUE: usize = 8;
const CHUNK: usize = 32 * 1024;
/// A record longer than this is cut: the runtime splits lines far below it.
const MAX_RECORD: usize = 1 << 20;
const POLL: Duration = Duration::from_millis(250);

fn bad(message: impl Into<String>) -> Response<Body> {
    text(StatusCode::BAD_REQUEST, message)
}

/// Reads the options of a request.
fn options(query: &Query) -> Result<Options, String> {
    let number = |name: &str| match query.get(name).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("{name}: {text:?} is not a number of at least 0")),
    };
    let mut options = Options {
        tail: number("tailLines")?,
        limit_bytes: number("limitBytes")?,
        timestamps: query.flag("timestamps"),
        ..Default::default()
    };
    if options.limit_bytes == Some(0) {
        return Err("limitBytes must be greater than 0".into());
    }
    if let Some(seconds) = number("sinceSeconds")? {
        let seconds = i64::try_from(seconds).map_err(|_| "sinceSeconds is too large".to_owned())?;
        options.since = jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds)).ok();
    }
    if let Some(time) = query.get("sinceTime").filter(|v| !v.is_empty()) {
        options.since = Some(time.parse().map_err(|_| format!("sinceTime: {time:?} is not a time"))?);
    }
    options.stderr_only = match query.get("stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(false),
        Some("Stderr") => Some(true),
        Some(other) => return Err(format!("stream: {other:?} is not All, Stdout or Stderr")),
    };
    Ok(options)
}

/// Answers a request for logs.
pub async fn serve(shared: &Arc<Shared>, namespace: &str, name: &str, container: &str, query: &Query) -> Response<Body> {
    let Some(pod) = shared.pod(namespace, name, None) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{name}\" does not exist\n"));
    };
    if !pod.all_containers().any(|c| c.name == container) {
        return text(StatusCode::NOT_FOUND, format!("container \"{container}\" not found in pod \"{name}\"\n"));
    }
    let options = match options(query) {
        Ok(options) => options,
        Err(message) => return bad(message),
    };
    let runtime = match Observer::default().observe(&shared.cri, &pod.metadata.uid).await {
        Ok(runtime) => runtime,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let runs: Vec<&ContainerObs> = runtime.containers.iter().filter(|c| c.name == container).collect();
    let previous = query.flag("previous");
    let chosen = if previous {
        // While the newest has ended and waits for its restart, it is the previous one.
        let skip = usize::from(runs.first().is_some_and(|c| c.state != RunState::Exited) || runs.len() > 1);
        match runs.get(skip) {
            Some(run) => *run,
            None => return bad(format!("previous terminated container \"{container}\" in pod \"{name}\" not found")),
        }
    } else {
        match runs.first() {
            Some(run) => *run,
            None => return bad(format!("container \"{container}\" in pod \"{name}\" is waiting to start: ContainerCreating")),
        }
    };
    let path = if chosen.log_path.is_empty() {
        shared.config.pod_log_dir(namespace, name, &pod.metadata.uid).join(container).join(format!("{}.log", chosen.restart_count))
    } else {
        PathBuf::from(&chosen.log_path)
    };
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(QUEUE);
    let follow = query.flag("follow") && !previous;
    let follower = Follower { shared: shared.clone(), id: chosen.id.clone(), path, options, follow };
    tokio::spawn(async move {
        if let Err(error) = follower.run(&sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    let mut response = Response::new(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

struct Follower {
    shared: Arc<Shared>,
    id: String,
    path: PathBuf,
    options: Options,
    follow: bool,
}

/// The part of a file read so far, with an unfinished record kept for later.
struct Tail {
    file: File,
    inode: u64,
    rest: Vec<u8>,
}

impl Tail {
    fn open(path: &Path, lines: Option<u64>) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let inode = file.metadata()?.ino();
        let offset = match lines {
            Some(lines) => tail_offset(&mut file, lines)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self { file, inode, rest: Vec::new() })
    }

    /// Reads a piece and renders its complete records; false at the end of the file.
    fn advance(&mut self, renderer: &mut Renderer, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut buffer = [0u8; CHUNK];
        let read = self.file.read(&mut buffer)?;
        self.rest.extend_from_slice(&buffer[..read]);
        let mut start = 0;
        while let Some(end) = self.rest[start..].iter().position(|b| *b == b'\n') {
            renderer.render(&self.rest[start..start + end], out);
            start += end + 1;
        }
        self.rest.drain(..start);
        if self.rest.len() > MAX_RECORD {
            self.rest.clear();
        }
        Ok(read > 0)
    }
}

impl Follower {
    async fn run(self, sender: &mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>) -> std::io::Result<()> {
        let mut renderer = Renderer::new(self.options.clone());
        let mut tail = loop {
            match Tail::open(&self.path, self.options.tail) {
                Ok(tail) => break tail,
                // A container that has just started may not have its file yet.
                Err(error) if self.follow && error.kind() == std::io::ErrorKind::NotFound && self.is_running().await => {
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => {
                    return Err(std::io::Error::new(error.kind(), format!("failed to open log file {}: {error}", self.path.display())));
                }
            }
        };
        let mut last_look = false;
        loop {
            let mut out = Vec::new();
            let more = tail.advance(&mut renderer, &mut out)?;
            if !out.is_empty() && sender.send(Ok(Frame::data(out.into()))).await.is_err() {
                return Ok(());
            }
            if renderer.is_done() {
                return Ok(());
            }
            if more {
                continue;
            }
            if !self.follow || last_look {
                return Ok(());
            }
            if let Ok(metadata) = std::fs::metadata(&self.path)
                && metadata.ino() != tail.inode
            {
                // Rotated: the old file is drained, the new one starts at its beginning.
                tail = Tail::open(&self.path, None)?;
                continue;
            }
            if !self.is_running().await {
                // What was written between the last read and the end of the container is still to come.
                last_look = true;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = sender.closed() => return Ok(()),
            }
        }
    }

    async fn is_running(&self) -> bool {
        match self.shared.cri.container_status(&self.id).await {
            Ok(Some(status)) => {
                matches!(
                    status.state(),
                    crate::cri::v1::ContainerState::ContainerRunning | crate::cri::v1::ContainerState::ContainerCreated
                )
            }
            Ok(None) => false,
            // The runtime restarts: the container has not ended because of that.
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn request_options() {
        let o =
            options(&Query::parse("tailLines=3&timestamps=true&limitBytes=7&sinceTime=2026-01-01T00%3A00%3A00Z&stream=Stderr")).unwrap();
        assert_eq!((o.tail, o.limit_bytes, o.timestamps, o.stderr_only), (Some(3), Some(7), true, Some(true)));
        assert_eq!(o.since.unwrap().to_string(), "2026-01-01T00:00:00Z");
        for text in ["tailLines=-1", "limitBytes=0", "sinceTime=x", "sinceSeconds=x", "stream=other"] {
            assert!(options(&Query::parse(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_growing_file_is_read_record_by_record() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut tail = Tail::open(file.path(), None).unwrap();
        let mut renderer = Renderer::new(Options::default());
        let mut read = |tail: &mut Tail| {
            let mut out = Vec::new();
            while tail.advance(&mut renderer, &mut out).unwrap() {}
            String::from_utf8(out).unwrap()
        };
        file.write_all(b"2026-11-22T20:00:00Z stdout F one\n2026-11-22T20:00:01Z stdo").unwrap();
        assert_eq!(read(&mut tail), "one\n");
        file.write_all(b"ut F two\n").unwrap();
        assert_eq!(read(&mut tail), "two\n");
        assert_eq!(read(&mut tail), "");
    }
}
