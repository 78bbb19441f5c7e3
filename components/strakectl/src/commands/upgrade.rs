//! `strakectl upgrade` and `strakectl rollback`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use machine_api::v1alpha1::upgrade_request::Part;
use machine_api::v1alpha1::{RollbackRequest, UpgradeOptions, UpgradeProgress, UpgradeRequest};
use serde_json::json;
use tokio_stream::StreamExt;

use super::{Cx, refused};
use crate::output::{self, Format};

/// Give a machine a new system; it keeps it only if it proves good.
///
/// The new system is written to the slot that does not run, and the machine restarts to try it, once. If it is not at least as healthy as before within its
/// deadline, or does not come up at all, the machine is back in the old one. `strakectl get upgrade` says how it stands, and why.
#[derive(Debug, clap::Args)]
pub struct Upgrade {
    /// The upgrade file (strake.upgrade, which is built beside the ISO).
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Only check whether the machine takes it.
    #[arg(long)]
    dry_run: bool,
    /// Do not restart: the new system is tried at the next boot.
    #[arg(long)]
    stage: bool,
    /// Take an older version than the one that runs.
    #[arg(long)]
    allow_downgrade: bool,
    /// How long the new system has to prove itself.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(60..=3600))]
    deadline: u32,
    /// How long moving pods to other nodes may take before the upgrade is given up; 0 leaves them where they are.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=3600))]
    drain_seconds: u32,
}

/// Go back to the system in the other slot.
#[derive(Debug, clap::Args)]
pub struct Rollback {}

impl Upgrade {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let size = std::fs::metadata(&self.image).with_context(|| format!("read {}", self.image.display()))?.len();
        let machine = cx.one().await?;
        let bar = output::transfer(size, "send");
        let (chunks, problem) = super::etcd::file_chunks(&self.image, ProgressBar::hidden())?;
        let options = UpgradeOptions {
            dry_run: self.dry_run,
            stage: self.stage,
            allow_downgrade: self.allow_downgrade,
            deadline_seconds: self.deadline,
            drain_seconds: self.drain_seconds,
        };
        let first = tokio_stream::once(UpgradeRequest { part: Some(Part::Options(options)) });
        let rest = chunks.map(|chunk| UpgradeRequest { part: Some(Part::Data(chunk.data.to_vec())) });
        let mut progress = machine.machine().upgrade(first.chain(rest)).await.map_err(refused)?.into_inner();
        let mut stage = String::new();
        while let Some(message) = progress.next().await {
            let message = match message {
                Ok(message) => message,
                Err(status) => {
                    bar.finish_and_clear();
                    if let Some(problem) = problem.lock().ok().and_then(|mut problem| problem.take()) {
                        return Err(anyhow::Error::new(problem).context(format!("read {}", self.image.display())));
                    }
                    return Err(refused(status));
                }
            };
            if cx.output != Format::Table {
                super::print(&(row(&message).to_string() + "\n"))?;
            } else if !message.complete && (message.stage != stage || message.total == 0) {
                let detail = if message.detail.is_empty() { String::new() } else { format!(": {}", message.detail) };
                bar.suspend(|| eprintln!("{}: {}{detail}", machine.node, message.stage));
            }
            stage.clone_from(&message.stage);
            bar.set_message(message.stage.clone());
            if message.total > 0 {
                bar.set_length(message.total);
                bar.set_position(message.done);
            }
            if message.complete {
                bar.finish_and_clear();
                eprintln!("{}: {}", machine.node, message.detail);
                if !self.dry_run {
                    eprintln!("{}: `strakectl get upgrade` says how it stands", machine.node);
                }
                return Ok(());
            }
        }
        bail!("the machine ended the upgrade without saying that it is complete")
    }
}

fn row(message: &UpgradeProgress) -> serde_json::Value {
    json!({"stage": message.stage, "done": message.done, "total": message.total, "complete": message.complete, "detail": message.detail})
}

impl Rollback {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let machine = cx.one().await?;
        let mut client = machine.machine();
        let asked = client.rollback(RollbackRequest {});
        let response = match tokio::time::timeout(cx.timeout() + Duration::from_secs(20), asked).await {
            Ok(response) => response.map_err(refused)?.into_inner(),
            Err(_) => bail!("{} did not answer", machine.node),
        };
        super::show(cx, &machine.node, &["RESULT"], vec![json!({"result": format!("{}; the machine reboots", response.outcome)})])
    }
}
