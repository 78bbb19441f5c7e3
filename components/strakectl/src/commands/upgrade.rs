//! `strakectl upgrade` and `strakectl rollback`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use machine_api::v1alpha1::upgrade_request::Part;
use machine_api::v1alpha1::{
    RollbackRequest, UpgradeCheck, UpgradeOptions, UpgradeProgress, UpgradeRequest, UpgradeVerdict, VersionRequest,
};
use serde_json::json;
use tokio_stream::StreamExt;

use super::rollout::{self, Next, Seen};
use super::{Cx, health, refused};
use crate::client::{Connection, Trust};
use crate::fetch::{self, Source};
use crate::output::{self, Format, Row};

/// How often a machine is asked how it stands.
const EVERY: Duration = Duration::from_secs(3);
/// How long a machine may take to restart, beside its trial.
const RESTART: Duration = Duration::from_secs(600);
/// How long a machine may take to be as healthy as before, once its new system stays, and other machines to notice.
const SETTLE: Duration = Duration::from_secs(300);

/// Give machines a new system; each keeps it only if it proves good.
///
/// The new system is written to the slot that does not run, and the machine restarts to try it, once. If it is not at least as healthy as before within its
/// deadline, or does not come up at all, the machine is back in the old one. `strakectl get upgrade` says how it stands, and why.
///
/// Several machines are upgraded in the order in which they are named, each after the one before it proved good. Trouble on any machine of the cluster stops
/// the rollout; the same command goes on where it stopped.
#[derive(Debug, clap::Args)]
pub struct Upgrade {
    /// The upgrade file (strake.upgrade, which is built beside the ISO): a file, a URL, or a reference to an OCI registry (registry.example/strake:0.2.0).
    #[arg(long, value_name = "FILE|URL|REFERENCE")]
    image: String,
    /// PEM certificates of the authorities that the URL's or the registry's server is believed by, beside this computer's.
    #[arg(long, value_name = "FILE")]
    image_ca: Option<PathBuf>,
    /// Only check whether the machines take it.
    #[arg(long)]
    dry_run: bool,
    /// Do not restart: the new system is tried at the next boot.
    #[arg(long)]
    stage: bool,
    /// Wait until the new system proved good, as it is always done with more than one machine.
    #[arg(long, conflicts_with_all = ["dry_run", "stage"])]
    wait: bool,
    /// Take an older version than the one that runs.
    #[arg(long)]
    allow_downgrade: bool,
    /// Go on although etcd has no quorum while the machine restarts.
    #[arg(long)]
    allow_quorum_loss: bool,
    /// Take a system that does not open the machine's encrypted volumes with the keys in its TPM, as one below its floor; a person has to.
    #[arg(long)]
    allow_locked_volumes: bool,
    /// How long the new system has to prove itself.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(60..=3600))]
    deadline: u32,
    /// How long moving pods to other nodes may take before the upgrade is given up; 0 leaves them where they are.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=3600))]
    drain_seconds: u32,
}

/// Go back to the system in the other slot.
///
/// A system below the security floor in the machine's TPM, whose encrypted volumes would wait for the recovery key, is gone back to only with
/// `--allow-locked-volumes`.
#[derive(Debug, clap::Args)]
pub struct Rollback {
    /// Go back although encrypted volumes that open by themselves now would stay locked until a person opens them.
    #[arg(long)]
    allow_locked_volumes: bool,
}

/// How a machine answered.
enum Outcome {
    /// It did what was asked.
    Done,
    /// It runs this very system.
    Same(String),
}

impl Upgrade {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let (nodes, trust) = cx.targets()?;
        let source = Source::parse(&self.image, Path::is_file)?;
        let bar = if matches!(source, Source::File(_)) { ProgressBar::hidden() } else { output::transfer(0, "fetch") };
        let image = fetch::fetch(&source, self.image_ca.as_deref(), &bar).await;
        bar.finish_and_clear();
        let image = image?;
        if let [node] = nodes.as_slice() {
            let machine = Connection::open(node, &trust, cx.timeout()).await?;
            return self.one(cx, &trust, &machine, image.path()).await;
        }
        let mut done = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            if let Err(error) = self.in_turn(cx, &trust, node, image.path(), number > 0).await {
                if self.dry_run {
                    return Err(error.context(node.clone()));
                }
                return Err(error.context(node.clone()).context(rollout::stopped(&done, &nodes[number + 1..])));
            }
            done.push(node.clone());
        }
        Ok(())
    }

    async fn one(&self, cx: &Cx, trust: &Trust, machine: &Connection, image: &Path) -> anyhow::Result<()> {
        let before = if self.wait { Some(Before::of(machine).await?) } else { None };
        match self.send(cx, machine, image, self.dry_run).await? {
            (Outcome::Same(told), _) => bail!("{told}"),
            (Outcome::Done, _) => {}
        }
        if let Some(before) = before {
            return self.proved(cx, trust, &machine.node, &before).await;
        }
        if !self.dry_run {
            eprintln!("{}: `strakectl get upgrade` says how it stands", machine.node);
        }
        Ok(())
    }

    /// One of several: only checked at first, since what is found on other machines stops the rollout before anything is written.
    async fn in_turn(&self, cx: &Cx, trust: &Trust, node: &str, image: &Path, patient: bool) -> anyhow::Result<()> {
        let machine = Connection::open(node, trust, cx.timeout()).await?;
        let end = Instant::now() + if patient { SETTLE } else { Duration::ZERO };
        loop {
            let (outcome, checks) = self.send(cx, &machine, image, true).await?;
            if let Outcome::Same(told) = outcome {
                eprintln!("{node}: {told}");
                return Ok(());
            }
            let elsewhere: Vec<&str> =
                checks.iter().filter(|check| check.verdict() == UpgradeVerdict::Elsewhere).map(|check| check.detail.as_str()).collect();
            if elsewhere.is_empty() || self.dry_run {
                break;
            }
            // The machine before this one may still be coming back.
            if Instant::now() >= end {
                bail!("there is trouble on other machines: {}", elsewhere.join("; "));
            }
            tokio::time::sleep(5 * EVERY).await;
        }
        if self.dry_run {
            return Ok(());
        }
        let before = Before::of(&machine).await?;
        if let (Outcome::Same(told), _) = self.send(cx, &machine, image, false).await? {
            eprintln!("{node}: {told}");
            return Ok(());
        }
        if self.stage { Ok(()) } else { self.proved(cx, trust, node, &before).await }
    }

    /// Waits until the machine keeps the new system and is as healthy as it was.
    async fn proved(&self, cx: &Cx, trust: &Trust, node: &str, before: &Before) -> anyhow::Result<()> {
        let end = Instant::now() + RESTART + Duration::from_secs(self.deadline.into());
        let mut said = String::new();
        loop {
            let seen = look(cx, trust, node).await;
            match rollout::next(&before.boot_id, seen.as_ref().ok()) {
                Next::Good => break,
                Next::Failed(why) => bail!("{why}"),
                Next::Wait(what) => {
                    if Instant::now() >= end {
                        let why = seen.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
                        bail!("the new system did not prove good in time; the machine {what}{why}");
                    }
                    if what != said {
                        eprintln!("{node}: {what}");
                        said = what;
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
        let end = Instant::now() + SETTLE;
        loop {
            let now = async { health_of(&Connection::open(node, trust, cx.timeout()).await?).await }.await;
            let worse = match now {
                Ok(now) => rollout::worse(&before.health, &now),
                Err(error) => vec![format!("{error:#}")],
            };
            if worse.is_empty() {
                eprintln!("{node}: the new system is good, and the machine as healthy as before");
                return Ok(());
            }
            if Instant::now() >= end {
                bail!("the new system stays, but the machine is not as healthy as before: {}", worse.join(", "));
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Sends the file and shows what the machine says. Gives what was checked.
    async fn send(&self, cx: &Cx, machine: &Connection, image: &Path, dry_run: bool) -> anyhow::Result<(Outcome, Vec<UpgradeCheck>)> {
        let size = std::fs::metadata(image).with_context(|| format!("read {}", image.display()))?.len();
        let bar = output::transfer(size, "send");
        let (chunks, problem) = super::etcd::file_chunks(image, ProgressBar::hidden())?;
        let options = UpgradeOptions {
            dry_run,
            stage: self.stage,
            allow_downgrade: self.allow_downgrade,
            deadline_seconds: self.deadline,
            drain_seconds: self.drain_seconds,
            allow_quorum_loss: self.allow_quorum_loss,
            allow_locked_volumes: self.allow_locked_volumes,
        };
        let first = tokio_stream::once(UpgradeRequest { part: Some(Part::Options(options)) });
        let rest = chunks.map(|chunk| UpgradeRequest { part: Some(Part::Data(chunk.data.to_vec())) });
        let mut progress = machine.machine().upgrade(first.chain(rest)).await.map_err(refused)?.into_inner();
        let (mut stage, mut checks) = (String::new(), Vec::new());
        while let Some(message) = progress.next().await {
            let message = match message {
                Ok(message) => message,
                Err(status) => {
                    bar.finish_and_clear();
                    if let Some(problem) = problem.lock().ok().and_then(|mut problem| problem.take()) {
                        return Err(anyhow::Error::new(problem).context(format!("read {}", image.display())));
                    }
                    if status.code() == tonic::Code::AlreadyExists {
                        return Ok((Outcome::Same(status.message().to_owned()), checks));
                    }
                    return Err(refused(status));
                }
            };
            if cx.output != Format::Table {
                super::print(&(row(&message).to_string() + "\n"))?;
            } else if !message.checks.is_empty() {
                bar.suspend(|| super::show(cx, &machine.node, &["CHECK", "RESULT", "DETAIL"], table(&message.checks)))?;
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
                return Ok((Outcome::Done, checks));
            }
            checks.extend(message.checks);
        }
        Err(anyhow!("the machine ended the upgrade without saying that it is complete"))
    }
}

/// What a machine was like.
struct Before {
    boot_id: String,
    health: Vec<Row>,
}

impl Before {
    async fn of(machine: &Connection) -> anyhow::Result<Before> {
        let version = machine.machine().version(VersionRequest {}).await.map_err(refused)?.into_inner();
        Ok(Before { boot_id: version.boot_id, health: health_of(machine).await? })
    }
}

async fn health_of(machine: &Connection) -> anyhow::Result<Vec<Row>> {
    let checks = health::checks(machine.clone(), health::Until::Kubernetes).await?;
    Ok(checks.into_iter().map(output::row).collect())
}

async fn look(cx: &Cx, trust: &Trust, node: &str) -> anyhow::Result<Seen> {
    let asked = async {
        let machine = Connection::open(node, trust, cx.timeout()).await?;
        let version = machine.machine().version(VersionRequest {}).await.map_err(refused)?.into_inner();
        let upgrades = super::resources::list(machine, "upgrade".to_owned(), String::new()).await?;
        Ok(Seen::new(&version.boot_id, upgrades.iter().find(|upgrade| upgrade["id"] == "last")))
    };
    tokio::time::timeout(2 * cx.timeout(), asked).await.map_err(|_| anyhow!("no answer"))?
}

fn word(verdict: UpgradeVerdict) -> &'static str {
    match verdict {
        UpgradeVerdict::Good => "good",
        UpgradeVerdict::Notice => "notice",
        UpgradeVerdict::Elsewhere => "trouble elsewhere",
        UpgradeVerdict::Refused => "refused",
        UpgradeVerdict::Unspecified => "unknown",
    }
}

fn table(checks: &[UpgradeCheck]) -> Vec<serde_json::Value> {
    let row = |check: &UpgradeCheck| json!({"check": check.name, "result": word(check.verdict()), "detail": check.detail});
    checks.iter().map(row).collect()
}

fn row(message: &UpgradeProgress) -> serde_json::Value {
    let UpgradeProgress { stage, done, total, complete, detail, checks } = message;
    if checks.is_empty() {
        return json!({"stage": stage, "done": done, "total": total, "complete": complete, "detail": detail});
    }
    json!({"stage": stage, "checks": table(checks)})
}

impl Rollback {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let machine = cx.one().await?;
        let mut client = machine.machine();
        let asked = client.rollback(RollbackRequest { allow_locked_volumes: self.allow_locked_volumes });
        let response = match tokio::time::timeout(cx.timeout() + Duration::from_secs(20), asked).await {
            Ok(response) => response.map_err(refused)?.into_inner(),
            Err(_) => bail!("{} did not answer", machine.node),
        };
        super::show(cx, &machine.node, &["RESULT"], vec![json!({"result": format!("{}; the machine reboots", response.outcome)})])
    }
}
