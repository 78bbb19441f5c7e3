//! `strakectl logs` and `strakectl dmesg`.

use machine_api::v1alpha1::{KernelLogRequest, LogLine, LogsRequest};
use serde_json::json;
use tokio_stream::StreamExt;
use tonic::Streaming;

use super::{Cx, refused};
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
        let machine = cx.one().await?;
        let request = LogsRequest { service: self.service, tail: self.how.tail, follow: self.how.follow };
        show(cx, machine.logs().logs(request).await.map_err(refused)?.into_inner()).await
    }
}

impl Dmesg {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let machine = cx.one().await?;
        let request = KernelLogRequest { tail: self.how.tail, follow: self.how.follow };
        show(cx, machine.logs().kernel_log(request).await.map_err(refused)?.into_inner()).await
    }
}

async fn show(cx: &Cx, mut lines: Streaming<LogLine>) -> anyhow::Result<()> {
    while let Some(line) = lines.next().await {
        let line = line.map_err(refused)?;
        let time = jiff::Timestamp::from_microsecond(line.unix_micros).map(|time| format!("{time:.3}")).unwrap_or_default();
        let text = match cx.output {
            Format::Table => format!("{time} {} {}\n", level(line.priority), line.message),
            _ => json!({"time": time, "priority": line.priority, "service": line.service, "message": line.message}).to_string() + "\n",
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
