//! `strakectl apply-config`: gives a machine its config. In maintenance mode this installs the machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use machine_api::limits;
use machine_api::v1alpha1::{
    ApplyConfigRequest, ApplyMode, ConfigFile, ConfirmConfigRequest, InstallProgress, InstallRequest, Mode, VersionRequest, VolumeSecrets,
};
use machine_config::{DocumentKind, Documents};
use serde_json::json;
use tokio_stream::StreamExt;

use super::{Cx, refused};
use crate::client::Connection;
use crate::output::{self, Format};

/// Give a machine its config; a machine in maintenance mode is installed by it.
///
/// When links change, the machine must be reached again under the new config, or the one before comes back by itself:
/// strakectl sees to that. If the machine has another address then, run `strakectl -n ADDRESS confirm-config` in time.
#[derive(Debug, clap::Args)]
pub struct ApplyConfig {
    /// A file of the config; may be given several times.
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only show what would change.
    #[arg(long)]
    dry_run: bool,
    /// When the config takes effect on an installed machine.
    #[arg(long, value_enum, default_value_t)]
    mode: When,
    /// With a config that encrypts volumes: the file of the recovery key. It is made when it is not there; keep it off the machine.
    #[arg(long, value_name = "FILE")]
    recovery_key: Option<PathBuf>,
    /// With a config that encrypts volumes by a passphrase: the file it is in (its end of line does not count).
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// With --mode try: after how many seconds the machine goes back.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=3600))]
    try_seconds: u32,
}

/// Keep a config that is being tried.
#[derive(Debug, clap::Args)]
pub struct ConfirmConfig {}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum When {
    /// At once where that is possible, else after a reboot that follows at once.
    #[default]
    Auto,
    /// At once; refused when something needs a reboot.
    NoReboot,
    /// After a reboot that follows at once.
    Reboot,
    /// At the next boot.
    Staged,
    /// At once, and only until the time is over, unless confirm-config comes before.
    Try,
}

/// How long a machine may take to be reached again after its links changed.
const REACH: Duration = Duration::from_secs(30);

impl ApplyConfig {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let files = read(&self.files)?;
        let machine = cx.one().await?;
        let version = machine.machine().version(VersionRequest {}).await.map_err(refused)?.into_inner();
        if version.mode() == Mode::Maintenance && !self.dry_run {
            let secrets = self.secrets(&files)?;
            return install(cx, &machine, files, secrets).await;
        }
        let mode = match self.mode {
            When::Auto => ApplyMode::Auto,
            When::NoReboot => ApplyMode::NoReboot,
            When::Reboot => ApplyMode::Reboot,
            When::Staged => ApplyMode::Staged,
            When::Try => ApplyMode::Try,
        };
        let request = ApplyConfigRequest { files, dry_run: self.dry_run, mode: mode.into(), try_seconds: self.try_seconds };
        let response = machine.machine().apply_config(request).await.map_err(refused)?.into_inner();
        for warning in &response.warnings {
            eprintln!("warning: {warning}");
        }
        if cx.output != Format::Table || !response.changes.is_empty() {
            let rows: Vec<_> = response
                .changes
                .iter()
                .map(|change| output::row(json!({"path": change.path, "old": change.old, "new": change.new})))
                .collect();
            super::print(&output::render(cx.output, &["PATH", "OLD", "NEW"], &rows)?)?;
        }
        eprintln!("{}: {}", machine.node, response.outcome);
        match response.confirm_seconds {
            0 => Ok(()),
            seconds if self.mode == When::Try => {
                eprintln!("{}: to keep it, run within {seconds} s: strakectl -n {} confirm-config", machine.node, machine.node);
                Ok(())
            }
            seconds => prove(cx, &machine.node, seconds).await,
        }
    }
}

impl ApplyConfig {
    /// What the config's encrypted volumes take beside what the machine makes itself. A recovery key that is made here is on this computer's disk before
    /// any machine knows it.
    fn secrets(&self, files: &[ConfigFile]) -> anyhow::Result<Option<VolumeSecrets>> {
        let documents = Documents::parse_all(files.iter().map(|file| (file.name.as_str(), file.content.as_str())))?;
        let volumes = documents.iter().filter_map(|document| match document {
            DocumentKind::VolumeConfig(volume) => volume.encryption.as_ref(),
            _ => None,
        });
        let (mut recovery, mut passphrase) = (false, false);
        for encryption in volumes {
            recovery |= encryption.recovery_key;
            passphrase |= encryption.keys.iter().any(|key| key.passphrase.is_some());
        }
        let mut secrets = VolumeSecrets::default();
        if passphrase {
            let file = self
                .passphrase_file
                .as_ref()
                .context("the config encrypts volumes by a passphrase: name its file with --passphrase-file")?;
            secrets.passphrase = super::unlock::secret(file)?;
        }
        if recovery {
            let file = self.recovery_key.as_ref().context(
                "the config encrypts volumes: name the file of the recovery key with --recovery-key (it is made when it is not there), or set \
                 encryption.recoveryKey to false and lose the data when nothing else opens them",
            )?;
            secrets.recovery_key = super::recovery_key::read_or_make(file)?.to_string();
        }
        Ok((recovery || passphrase).then_some(secrets))
    }
}

impl ConfirmConfig {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        cx.rows(&["RESULT"], |machine| async move {
            let response = machine.machine().confirm_config(ConfirmConfigRequest {}).await.map_err(refused)?.into_inner();
            Ok(vec![json!({"result": response.outcome})])
        })
        .await
    }
}

/// Confirms over a new connection: the old one may live on although nobody else gets in.
async fn prove(cx: &Cx, node: &str, seconds: u32) -> anyhow::Result<()> {
    let end = tokio::time::Instant::now() + REACH.min(Duration::from_secs(seconds.into()));
    loop {
        // The links are being changed just now.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let attempt = async {
            let machine = cx.one().await?;
            machine.machine().confirm_config(ConfirmConfigRequest {}).await.map_err(refused)
        };
        let problem = match tokio::time::timeout(cx.timeout(), attempt).await {
            Ok(Ok(_)) => {
                eprintln!("{node}: reached under the new config, which is kept");
                return Ok(());
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "no answer".to_owned(),
        };
        if tokio::time::Instant::now() >= end {
            bail!(
                "{node} is not reached under the new config ({problem}); it goes back to the one before by itself. If it has another address now, run \
                 `strakectl -n ADDRESS confirm-config` within {} s",
                u64::from(seconds).saturating_sub(REACH.as_secs())
            );
        }
    }
}

fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<ConfigFile>> {
    ensure!(paths.len() <= limits::CONFIG_FILES, "a config has at most {} files", limits::CONFIG_FILES);
    let mut files = Vec::new();
    for path in paths {
        let content = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        files.push(ConfigFile { name: path.display().to_string(), content });
    }
    let size: usize = files.iter().map(|file| file.content.len()).sum();
    ensure!(size <= limits::CONFIG_BYTES, "a config has at most {} bytes, these files have {size}", limits::CONFIG_BYTES);
    Ok(files)
}

async fn install(cx: &Cx, machine: &Connection, files: Vec<ConfigFile>, secrets: Option<VolumeSecrets>) -> anyhow::Result<()> {
    let mut progress = machine.machine().install(InstallRequest { files, secrets }).await.map_err(refused)?.into_inner();
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut stage = String::new();
    while let Some(message) = progress.next().await {
        let message = message.map_err(refused)?;
        if cx.output != Format::Table {
            super::print(
                &(json!({"stage": message.stage, "done": message.done, "total": message.total, "complete": message.complete,
                "detail": message.detail})
                .to_string()
                    + "\n"),
            )?;
        } else if message.stage != stage {
            bar.suspend(|| eprintln!("{}: {}{}", machine.node, message.stage, detail(&message)));
        }
        stage.clone_from(&message.stage);
        show(&bar, &message);
        if message.complete {
            bar.finish_and_clear();
            eprintln!("{}: installed; the machine reboots from its disk", machine.node);
            return Ok(());
        }
    }
    bail!("the machine ended the installation without saying that it is complete")
}

fn detail(message: &InstallProgress) -> String {
    if message.detail.is_empty() { String::new() } else { format!(": {}", message.detail) }
}

fn show(bar: &ProgressBar, message: &InstallProgress) {
    let template = match message.total {
        0 => "{msg} {spinner}",
        _ => "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_length(message.total);
    bar.set_position(message.done);
    bar.set_message(message.stage.clone());
}
