//! `strakectl logs` and `strakectl dmesg`.

use std::future::Future;

use machine_api::v1alpha1::{KernelLogRequest, LogLine, LogsRequest};
use serde_json::json;
use tokio_stream::StreamExt;
use tonic::Streaming;

use super::{Cx, refused};
use crate::client::Connection;
use crate::output::Format;

/// Show the log of a service.
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// The service: init, logd, machined, containerd, kubelet, kube-proxy…
    service: String,
    #[command(flatten)]
    how: How,
}

/// Show the kernel's log.
#[derive(Debug, clap::Args)]
pub struct Dmesg {
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct How {
    /// Stay and show what comes.
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines.
    #[arg(long, default_value_t = 0, value_name = "LINES", hide_default_value = true)]
    tail: u32,
}

impl Logs {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let (service, how) = (&self.service, &self.how);
        each(cx, |machine| async move {
            let request = LogsRequest { service: service.clone(), tail: how.tail, follow: how.follow };
            Ok(machine.logs().logs(request).await.map_err(refused)?.into_inner())
        })
        .await
    }
}

impl Dmesg {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let how = &self.how;
        each(cx, |machine| async move {
            let request = KernelLogRequest { tail: how.tail, follow: how.follow };
            Ok(machine.logs().kernel_log(request).await.map_err(refused)?.into_inner())
        })
        .await
    }
}

/// Shows the lines of every machine as they come, each with its machine's name when there are several.
async fn each<F, Fut>(cx: &Cx, ask: F) -> anyhow::Result<()>
where
    F: Fn(Connection) -> Fut,
    Fut: Future<Output = anyhow::Result<Streaming<LogLine>>>,
{
    let machines = cx.all().await?;
    let several = machines.len() > 1;
    let ask = &ask;
    let shows = machines.into_iter().map(|machine| async move {
        let node = machine.node.clone();
        let shown = async { show(cx, if several { &node } else { "" }, ask(machine).await?).await }.await;
        (node, shown)
    });
    let ended = futures_util::future::join_all(shows).await;
    super::fail(ended.into_iter().filter_map(|(node, shown)| shown.err().map(|error| (node, error))).collect())
}

async fn show(cx: &Cx, node: &str, mut lines: Streaming<LogLine>) -> anyhow::Result<()> {
    let prefix = if node.is_empty() { String::new() } else { format!("{node}: ") };
    while let Some(line) = lines.next().await {
        let line = line.map_err(refused)?;
        let time = jiff::Timestamp::from_microsecond(line.unix_micros).map(|time| format!("{time:.3}")).unwrap_or_default();
        let text = match cx.output {
            Format::Table => format!("{prefix}{time} {} {}\n", level(line.priority), line.message),
            _ => {
                let row = json!({"node": node, "time": time, "priority": line.priority, "service": line.service, "message": line.message});
                row.to_string() + "\n"
            }
        };
        super::print(&text)?;
    }
    Ok(())
}

fn level(priority: u32) -> &'static str {
    match priority {
        0..=2 => "CRIT ",
        3 => "ERROR",
        4 => "WARN ",
        5 | 6 => "INFO ",
        _ => "DEBUG",
    }
}
