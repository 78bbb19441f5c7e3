//! The steps of an upgrade and of a rollback, in their order.

use std::sync::Arc;
use std::time::Duration;

use machine_api::limits;
use slots::checks::{self, Check, Facts, Verdict};
use slots::gate::{DEADLINE, LONGEST, SHORTEST};
use slots::loader::{DEFAULT, ONE_SHOT, entry, other};
use slots::manifest::{self, Allow, Manifest};
use slots::record::{self, State, Upgrade};
use slots::sealed::SealedVolume;
use tokio::sync::mpsc;

use super::layout::Layout;
use super::write::{self, Archive, Pieces};
use super::{ARMED, Trust, UpgradeError, around, drain, health, show};
use crate::clock::unix_seconds;
use crate::encryption;
use crate::install::Progress;
use crate::machine::Machine;

/// What people are told while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// What was checked before anything is written.
    Checks(Vec<Check>),
    /// How far it is.
    Progress(Progress),
}

/// What a person wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only check.
    pub dry_run: bool,
    /// Do everything but the restart, and leave the pods where they are.
    pub stage: bool,
    /// What is taken on purpose.
    pub allow: Allow,
    /// How long the new system has to prove itself.
    pub deadline: Option<Duration>,
    /// How long moving pods away may take; zero leaves them.
    pub drain: Duration,
}

/// Upgrades from a file that comes in pieces. Gives what was done, in one sentence, and whether the machine should restart now.
pub async fn begin(
    machine: &Arc<Machine>,
    options: Options,
    pieces: mpsc::Receiver<Vec<u8>>,
    progress: mpsc::Sender<Told>,
) -> Result<(String, bool), UpgradeError> {
    let layout = Layout::of(machine)?;
    let deadline = options.deadline.unwrap_or(DEADLINE).clamp(SHORTEST, LONGEST);
    let (writer, written_machine, allow, dry_run) = (layout.clone(), machine.clone(), options.allow, options.dry_run);
    let told = progress.clone();
    let runtime = tokio::runtime::Handle::current();
    let (peers, members) = tokio::join!(around::peers(machine), around::members(machine));
    let work = move || -> Result<(Manifest, Option<Upgrade>), UpgradeError> {
        // A caller who does not read misses progress, nothing else.
        let mut say = |step: Progress| drop(told.try_send(Told::Progress(step)));
        let mut archive = tar::Archive::new(Pieces::new(pieces));
        let mut archive = Archive::new(&mut archive)?;
        let trust = Trust::read(&written_machine.paths.upgrade_keys())?;
        let manifest = archive.manifest(&trust).inspect_err(|error| {
            if matches!(error, UpgradeError::Unsigned(_) | UpgradeError::WrongSignature(_)) {
                drop(told.try_send(Told::Checks(vec![Check::new("signature", Verdict::Refused, error.to_string())])));
            }
        })?;
        let loaded = written_machine.loaded();
        let config = loaded.as_ref().map(|loaded| machine_config::to_values(&loaded.text)).unwrap_or_default();
        let control_plane = loaded.is_some_and(|loaded| loaded.config.is_control_plane());
        let (room, running) = (write::room(&writer)?, &writer.running);
        let sealed = encryption::sealed_volumes(&written_machine.paths, &*written_machine.disks, &written_machine.user_volumes());
        let facts = Facts { running, room, allow, config: &config, control_plane, peers, members, sealed };
        let mut table = vec![Check::new("signature", Verdict::Good, trust.words())];
        table.extend(checks::checks(&manifest, &facts));
        let refused = checks::refusal(&table);
        drop(told.try_send(Told::Checks(table)));
        if let Err(same @ manifest::Refusal::Same(_)) = manifest::version(&manifest.system, running, allow) {
            return Err(UpgradeError::Same(same));
        }
        if let Some(reasons) = refused {
            return Err(UpgradeError::Refused(reasons));
        }
        if dry_run {
            return Ok((manifest, None));
        }
        if let Some(kept) = snapshots_kept(&written_machine) {
            say(Progress { stage: "take an etcd snapshot", done: 0, total: 0, detail: String::new() });
            runtime.block_on(snapshot(&written_machine, kept))?;
        }
        let mut upgrade = Upgrade {
            slot: writer.other(),
            state: State::Writing,
            from: writer.running.clone(),
            to: manifest.system.clone(),
            reason: String::new(),
            baseline: Default::default(),
            deadline_seconds: deadline.as_secs(),
            cordoned: false,
            timed_out: false,
            again: false,
            begun_unix: unix_seconds(),
            ended_unix: 0,
        };
        show(&written_machine.store, &upgrade);
        match write::write(&writer, &mut archive, &manifest, &upgrade, &mut say) {
            Ok(()) => Ok((manifest, Some(upgrade))),
            Err(error) => {
                upgrade.because(&crate::api::chain(&error));
                give_up(&written_machine, &writer, upgrade);
                Err(error)
            }
        }
    };
    let (manifest, upgrade) = tokio::task::spawn_blocking(work).await.map_err(|_| UpgradeError::Stopping)??;
    let to = &manifest.system.version;
    let Some(mut upgrade) = upgrade else {
        return Ok((format!("would write {to} to {} and try it", layout.other().label()), false));
    };
    // What is healthy is asked before pods are moved away.
    upgrade.baseline = health::observe(machine).await;
    let armed = arm(machine, &layout, &mut upgrade, &options, &progress).await;
    if let Err(error) = armed {
        upgrade.because(&crate::api::chain(&error));
        give_up(machine, &layout, upgrade);
        return Err(error);
    }
    let slot = layout.other().label();
    if options.stage {
        return Ok((format!("{to} is in {slot} and is tried at the next boot"), false));
    }
    Ok((format!("{to} is in {slot}; the machine restarts to try it"), true))
}

/// From a slot that is complete to a loader that tries it.
async fn arm(
    machine: &Arc<Machine>,
    layout: &Layout,
    upgrade: &mut Upgrade,
    options: &Options,
    progress: &mpsc::Sender<Told>,
) -> Result<(), UpgradeError> {
    if !options.stage && !options.drain.is_zero() {
        let stage = |detail: String| Told::Progress(Progress { stage: "move pods away", done: 0, total: 0, detail });
        let mut say = |detail: String| drop(progress.try_send(stage(detail)));
        say(String::new());
        // Should the power fail meanwhile, the next boot lets pods come back.
        layout.change(|meta| record::set_upgrade(meta, &Upgrade { cordoned: true, ..upgrade.clone() }))?;
        upgrade.cordoned = drain::drain(machine, options.drain, &mut say).await.map_err(UpgradeError::Drain)?;
    }
    upgrade.state = State::Trying;
    layout.change(|meta| {
        record::set_upgrade(meta, upgrade);
        // What the machine comes from is what it goes back to, also when it has not run for as long yet as it takes to be noted.
        record::set_good(meta, layout.own, Some(&layout.running));
    })?;
    let variables = &layout.variables;
    // Somebody in front of the loader's menu may have chosen a default, which would win over the loader's file.
    variables.remove(DEFAULT)?;
    layout.boot.set_default(layout.own).map_err(|error| UpgradeError::Boot("keep the default", error))?;
    variables.write(ONE_SHOT, entry(upgrade.slot))?;
    // Without it a machined that is started again takes this boot for the next one.
    if let Err(error) = std::fs::write(machine.paths.at(ARMED), "") {
        tracing::warn!(%error, "note that the new system is tried at the next boot");
    }
    show(&machine.store, upgrade);
    Ok(())
}

/// The upgrade ended before its slot was tried.
fn give_up(machine: &Machine, layout: &Layout, mut upgrade: Upgrade) {
    upgrade.state = State::Failed;
    upgrade.ended_unix = unix_seconds();
    if let Err(error) = layout.change(|meta| record::set_upgrade(meta, &upgrade)) {
        tracing::warn!(error = crate::api::chain(&error), "note that the upgrade failed");
    }
    show(&machine.store, &upgrade);
    machine.event(crate::events::Severity::Warning, "UpgradeFailed", &format!("upgrade to {}: {}", upgrade.to.version, upgrade.reason));
}

/// How many etcd snapshots the machine keeps; none: it has no etcd.
fn snapshots_kept(machine: &Machine) -> Option<usize> {
    let loaded = machine.loaded().filter(|loaded| loaded.config.is_control_plane())?;
    matches!(machine.state.cluster_id(), Ok(Some(_))).then(|| usize::from(loaded.config.cluster.etcd.snapshots.keep).max(1))
}

/// Where there is an etcd, it is saved first.
async fn snapshot(machine: &Machine, most: usize) -> Result<(), UpgradeError> {
    let (name, _) = crate::etcd::keep(&machine.paths, limits::SNAPSHOT_BYTES, most).await.map_err(UpgradeError::Snapshot)?;
    tracing::info!(name, "etcd snapshot before the upgrade");
    Ok(())
}

/// Makes the other slot the one that is started. `sealed` is what the keys in the TPM open, if they open anything. Gives what was done; the machine should
/// restart now.
pub fn roll_back(
    machine: &Machine,
    who: &str,
    allow: Allow,
    sealed: Option<&Result<Vec<SealedVolume>, String>>,
) -> Result<String, UpgradeError> {
    let layout = Layout::of(machine)?;
    let meta = layout.read()?;
    let last = record::upgrade(&meta);
    let variables = &layout.variables;
    // A trial is over as soon as the machine restarts: the default never left the old slot, and the floor is not raised before it is.
    if let Some(mut trial) = last.clone().filter(|upgrade| upgrade.state == State::Trying) {
        variables.remove(ONE_SHOT)?;
        trial.state = State::RolledBack;
        trial.ended_unix = unix_seconds();
        trial.because(&format!("asked for by {who}"));
        layout.change(|meta| record::set_upgrade(meta, &trial))?;
        return Ok(format!("the trial of {} ends; {} is started", trial.to.version, other(trial.slot).label()));
    }
    let slot = layout.other();
    let there = layout.boot.has(slot).map_err(|error| UpgradeError::Boot("look for the other slot's kernel image", error))?;
    let system = record::good(&meta, slot).filter(|_| there).ok_or(UpgradeError::NoOther(slot.label()))?;
    let volumes = match sealed {
        None => None,
        Some(sealed) => {
            let image = layout.boot.read_image(slot, |image| encryption::measured_of(image));
            let image = image.map_err(|error| UpgradeError::Boot("read the other slot's kernel image", error))?;
            Some(checks::volumes(image.as_ref(), sealed, allow))
        }
    };
    if let Some(refused) = volumes.iter().find(|check| check.verdict == Verdict::Refused) {
        return Err(UpgradeError::Refused(format!("{} with {}: {}", slot.label(), system.version, refused.detail)));
    }
    let back = Upgrade {
        slot: layout.own,
        state: State::RolledBack,
        from: system.clone(),
        to: layout.running.clone(),
        reason: format!("asked for by {who}"),
        baseline: Default::default(),
        deadline_seconds: 0,
        // Pods that were kept away come back, whichever way the machine goes.
        cordoned: last.as_ref().is_some_and(|upgrade| upgrade.cordoned),
        timed_out: false,
        again: false,
        begun_unix: last.map_or(0, |upgrade| upgrade.begun_unix),
        ended_unix: unix_seconds(),
    };
    layout.change(|meta| record::set_upgrade(meta, &back))?;
    variables.remove(DEFAULT)?;
    variables.remove(ONE_SHOT)?;
    layout.boot.set_default(slot).map_err(|error| UpgradeError::Boot("change the default", error))?;
    let told = volumes.filter(|check| check.verdict == Verdict::Notice).map(|check| format!("; {}", check.detail)).unwrap_or_default();
    Ok(format!("{} with {} is started from now on{told}", slot.label(), system.version))
}
