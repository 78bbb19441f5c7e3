//! Tells logd where to keep logs, once there is a disk for them.

use std::time::Duration;

use node_ipc::logd::{Reply, Request};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Context, Outcome, ReconcileError, Reconciler};

const DIRECTORY: &str = "/var/log/strake";

pub struct Logs;

#[tonic::async_trait]
impl Reconciler for Logs {
    fn name(&self) -> &'static str {
        "logs"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["volumes"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let asked = tokio::time::timeout(Duration::from_secs(10), persist(cx));
        asked.await.map_err(|_| "logd does not answer")??;
        // Again now and then: a logd that was restarted has forgotten it.
        Ok(Outcome::ready(format!("kept in {DIRECTORY}"), Duration::from_secs(15)))
    }
}

async fn persist(cx: &Context) -> Result<(), ReconcileError> {
    let mut socket = UnixStream::connect(cx.machine.paths.logd_socket()).await?;
    socket.write_all(&node_ipc::encode_line(&Request::Persist { dir: DIRECTORY.to_owned() })?).await?;
    let mut line = Vec::new();
    BufReader::new(socket).take(node_ipc::MAX_LINE as u64).read_until(b'\n', &mut line).await?;
    match node_ipc::decode::<Reply>(&line)? {
        Reply::Done => Ok(()),
        Reply::Error { message } => Err(message.into()),
        other => Err(format!("logd gave an answer to another question: {other:?}").into()),
    }
}
