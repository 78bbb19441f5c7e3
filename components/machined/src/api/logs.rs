//! LogService: passes on what logd keeps. A slow client slows down its own stream only.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use machine_api::limits;
use machine_api::v1alpha1::log_service_server::LogService;
use machine_api::v1alpha1::{KernelLogRequest, LogLine, LogsRequest};
use node_ipc::logd::{KERNEL, Query, Reply, Request as Ask};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::machine::Machine;

pub struct Handler(pub Arc<Machine>);

type Lines = Pin<Box<dyn Stream<Item = Result<LogLine, Status>> + Send>>;

#[tonic::async_trait]
impl LogService for Handler {
    type LogsStream = Lines;
    type KernelLogStream = Lines;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Lines>, Status> {
        let LogsRequest { service, tail, follow } = request.into_inner();
        super::bounded("the service's name", &service)?;
        self.query(service, tail, follow).await
    }

    async fn kernel_log(&self, request: Request<KernelLogRequest>) -> Result<Response<Lines>, Status> {
        let KernelLogRequest { tail, follow } = request.into_inner();
        self.query(KERNEL.to_owned(), tail, follow).await
    }
}

impl Handler {
    async fn query(&self, log: String, tail: u32, follow: bool) -> Result<Response<Lines>, Status> {
        let tail = (tail > 0).then_some(tail.min(limits::TAIL_LINES));
        let ask = Ask::Query(Query { log: log.clone(), tail, follow, ..Query::default() });
        let line = node_ipc::encode_line(&ask).map_err(|error| super::internal(&error))?;
        let path = self.0.paths.logd_socket();
        let unavailable = |error: std::io::Error| Status::unavailable(format!("ask logd over {}: {error}", path.display()));
        let mut socket = UnixStream::connect(&path).await.map_err(unavailable)?;
        socket.write_all(&line).await.map_err(unavailable)?;
        let (lines, stream) = mpsc::channel(64);
        tokio::spawn(async move {
            // Ends when logd says so, when the client is gone, or when something breaks.
            tokio::select! {
                () = forward(socket, &log, &lines) => {}
                () = lines.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn forward(socket: UnixStream, log: &str, lines: &mpsc::Sender<Result<LogLine, Status>>) {
    let mut reader = BufReader::new(socket);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = node_ipc::MAX_LINE as u64;
        let reply = match (&mut reader).take(limit).read_until(b'\n', &mut line).await {
            Ok(0) => Err(Status::unavailable("logd closed the connection")),
            Ok(_) => node_ipc::decode::<Reply>(&line).map_err(|error| super::internal(&error)),
            Err(error) => Err(Status::unavailable(format!("read from logd: {error}"))),
        };
        let message = match reply {
            Ok(Reply::Entry(entry)) => Ok(LogLine {
                unix_micros: i64::try_from(entry.time_us).unwrap_or(i64::MAX),
                priority: u32::from(entry.priority),
                service: log.to_owned(),
                message: text(&entry),
            }),
            Ok(Reply::Lost { count }) => Ok(LogLine {
                unix_micros: crate::clock::unix_seconds().saturating_mul(1_000_000),
                priority: 4,
                service: log.to_owned(),
                message: format!("({count} lines were lost)"),
            }),
            Ok(Reply::End) => return,
            Ok(Reply::Error { message }) => Err(Status::not_found(message)),
            Ok(Reply::Logs { .. } | Reply::Done) => continue,
            Err(status) => Err(status),
        };
        let last = message.is_err();
        if lines.send(message).await.is_err() || last {
            return;
        }
    }
}

/// Fields that say where in the code an entry comes from: of no use to people who read a log.
const PLACE_FIELDS: &[&str] = &["TARGET", "CODE_FILE", "CODE_LINE", "SYSLOG_IDENTIFIER"];

/// The message with the fields that belong to it.
fn text(entry: &node_ipc::logd::Entry) -> String {
    let mut text = entry.message.clone();
    for (name, value) in entry.fields.iter().filter(|(name, _)| !PLACE_FIELDS.contains(&name.as_str())) {
        text.push_str(&format!(" {}={value}", name.to_lowercase()));
    }
    text
}
