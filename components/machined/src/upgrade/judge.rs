//! What follows at the next boot. The new system watches its own health and makes itself the one that is started; the old one, when it runs
//! again, says why. Until then the new system says in META what it waits for, so that the old one knows more than that it came back.

use std::sync::Arc;
use std::time::Duration;

use slots::gate::{Decision, Gate, SETTLED};
use slots::loader::{DEFAULT, ONE_SHOT, entry};
use slots::record::{self, AtBoot, State, Upgrade};

use super::layout::Layout;
use super::{ARMED, UpgradeError, drain, health, show};
use crate::clock::{Now, unix_seconds};
use crate::encryption;
use crate::events::Severity;
use crate::machine::Machine;

/// How often a system on trial is looked at.
const EVERY: Duration = Duration::from_secs(2);
/// What a system waits for is written down when it changes, and not more often than this.
const NOTED_EVERY: Duration = Duration::from_secs(5);
/// A system that runs for so long has come up.
const COME_UP: Duration = Duration::from_secs(30);
/// How often it is tried to let pods come back.
const UNCORDON_EVERY: Duration = Duration::from_secs(5);
/// How long before the end of its time a system on trial notes that it came. init ends the trial, and a disk may be slow.
const NEAR_THE_END: Duration = Duration::from_secs(20);
/// How long the machine may take to go down.
const GOES_DOWN: Duration = Duration::from_secs(180);
/// init's key: see its `meta.rs`.
const STARTED: &str = "started";

/// Judges how the machine came up. What is wrong, for the console.
pub fn at_boot(machine: &Machine) -> Option<String> {
    match judge(machine) {
        Ok(trouble) => trouble,
        Err(UpgradeError::NoSlots) => None,
        Err(error) => {
            let error = crate::api::chain(&error);
            tracing::warn!(error, "judge the last upgrade");
            Some(format!("the last upgrade can't be judged: {error}"))
        }
    }
}

fn judge(machine: &Machine) -> Result<Option<String>, UpgradeError> {
    let layout = Layout::of(machine)?;
    let Some(mut upgrade) = record::upgrade(&layout.read()?) else { return Ok(None) };
    let came_back = upgrade.at_boot(layout.own, &layout.running.root) == AtBoot::CameBack;
    if came_back && upgrade.state == State::Trying && machine.paths.at(ARMED).exists() {
        show(&machine.store, &upgrade);
        return Ok(None);
    }
    if came_back && upgrade.was_cut_off() && layout.boot.has(upgrade.slot).unwrap_or_default() {
        return begin_again(machine, &layout, upgrade).map(|()| None);
    }
    if came_back {
        upgrade.came_back(unix_seconds());
        layout.change(|meta| {
            record::set_upgrade(meta, &upgrade);
            if upgrade.slot != layout.own {
                record::set_good(meta, upgrade.slot, None);
            }
        })?;
        machine.event(Severity::Warning, "UpgradeFailed", &told(&upgrade));
    }
    show(&machine.store, &upgrade);
    if let Some(slot) = upgrade.default_slot(layout.own) {
        start_always(&layout, slot)?;
    }
    Ok((upgrade.state == State::Failed).then(|| told(&upgrade)))
}

/// The trial of a new system was cut off, by a power cut as it seems: it is tried once more. META first: cut off behind it, the old system stays.
fn begin_again(machine: &Machine, layout: &Layout, mut upgrade: Upgrade) -> Result<(), UpgradeError> {
    upgrade.try_again();
    layout.change(|meta| record::set_upgrade(meta, &upgrade))?;
    layout.variables.remove(DEFAULT)?;
    layout.variables.write(ONE_SHOT, entry(upgrade.slot))?;
    show(&machine.store, &upgrade);
    tracing::warn!(version = upgrade.to.version, slot = upgrade.slot.label(), "the trial was cut off, and is begun once more");
    Ok(())
}

/// Restarts the machine into a trial that [`at_boot`] began once more; returns when there is none, or when the machine does not go down.
pub async fn restart_for_trial(machine: &Machine) {
    let armed = || {
        let layout = Layout::of(machine).ok()?;
        let upgrade = record::upgrade(&layout.read().ok()?)?;
        let waits = upgrade.again && upgrade.at_boot(layout.own, &layout.running.root) == AtBoot::CameBack;
        (waits && layout.variables.read(ONE_SHOT).ok()?.as_deref() == Some(entry(upgrade.slot))).then_some(upgrade.to.version)
    };
    let Some(version) = armed() else { return };
    match machine.init.reboot(&format!("the trial of {version} was cut off and is begun once more")).await {
        Ok(()) => tokio::time::sleep(GOES_DOWN).await,
        Err(error) => tracing::error!(error = crate::api::chain(&error), "restart for the trial that was cut off"),
    }
}

fn told(upgrade: &Upgrade) -> String {
    format!("{} in {} failed, {} runs: {}", upgrade.to.version, upgrade.slot.label(), upgrade.from.version, upgrade.reason)
}

/// Makes a slot the one that is started, if it is not yet.
fn start_always(layout: &Layout, slot: node_ipc::init::Slot) -> Result<(), UpgradeError> {
    let failed = |error| UpgradeError::Boot("change the default", error);
    if layout.boot.default_slot().map_err(failed)? != Some(slot) {
        layout.boot.set_default(slot).map_err(failed)?;
        tracing::info!(slot = slot.label(), "started from now on");
    }
    // What would win over the default.
    layout.variables.remove(ONE_SHOT)?;
    Ok(layout.variables.remove(DEFAULT)?)
}

/// Watches until the system that runs is known to be good, and pods come back.
pub async fn watch(machine: Arc<Machine>) {
    let Ok(layout) = Layout::of(&machine) else { return };
    let upgrade = layout.read().ok().and_then(|meta| record::upgrade(&meta));
    let cordoned = upgrade.as_ref().is_some_and(|upgrade| upgrade.cordoned);
    match upgrade.filter(|upgrade| upgrade.at_boot(layout.own, &layout.running.root) == AtBoot::OnTrial) {
        Some(upgrade) => prove(&machine, &layout, upgrade).await,
        None => come_up(&layout).await,
    }
    raise_floor(&machine).await;
    if cordoned {
        while !drain::uncordon(&machine).await {
            tokio::time::sleep(UNCORDON_EVERY).await;
        }
        note(&layout, |upgrade| upgrade.cordoned = false);
    }
}

/// A system that is not on trial and runs for a while is one to go back to.
async fn come_up(layout: &Layout) {
    tokio::time::sleep(COME_UP).await;
    let noted = layout.change(|meta| {
        meta.set(STARTED, None);
        if record::good(meta, layout.own).as_ref() != Some(&layout.running) {
            record::set_good(meta, layout.own, Some(&layout.running));
        }
    });
    if let Err(error) = noted {
        tracing::warn!(error = crate::api::chain(&error), "note in META that the system came up");
    }
}

/// Older images than the one that has just proved good get no keys of volumes any more. Cut off before, it is done after the next start.
async fn raise_floor(machine: &Machine) {
    let paths = machine.paths.clone();
    match tokio::task::spawn_blocking(move || encryption::raise_floor(&paths)).await {
        Ok(Ok(None)) | Err(_) => {}
        Ok(Ok(Some(lowest))) => {
            let message = format!("images below security version {lowest} do not open this machine's volumes any more");
            machine.event(Severity::Normal, "FloorRaised", &message);
        }
        Ok(Err(error)) => tracing::warn!(error = %crate::api::chain(&error), "raise the floor of images in the TPM"),
    }
}

/// The health gate.
async fn prove(machine: &Machine, layout: &Layout, mut upgrade: Upgrade) {
    let mut gate = Gate::default();
    let (mut said, mut said_at) = (None, Duration::ZERO);
    let mut lacked = String::new();
    let end = machine.boot.trial_seconds.map(Duration::from_secs);
    loop {
        let seen = health::observe(machine).await;
        let now = Duration::from_micros(Now::read().boottime_us);
        match gate.look(&upgrade.baseline, &seen, now) {
            Decision::Good => match commit(machine, layout, &mut upgrade).await {
                Ok(()) => return,
                Err(error) => tracing::error!(error = crate::api::chain(&error), "keep the new system"),
            },
            decision => {
                if !upgrade.timed_out && end.is_some_and(|end| now + NEAR_THE_END >= end) {
                    upgrade.timed_out = true;
                    note(layout, |kept| kept.timed_out = true);
                }
                let reason = words(&decision, &mut lacked);
                if said.as_ref() != Some(&reason) && (said.is_none() || now.saturating_sub(said_at) >= NOTED_EVERY) {
                    tracing::info!(reason, "on trial");
                    upgrade.because(&reason);
                    note(layout, |kept| kept.because(&reason));
                    show(&machine.store, &upgrade);
                    (said, said_at) = (Some(reason), now);
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// How a trial stands, for people. What it `lacked` last is told while it settles too: a program that ends again and again is there for moments.
fn words(decision: &Decision, lacked: &mut String) -> String {
    if let Decision::Wait(missing) = decision {
        *lacked = missing.join(", ");
        return format!("not as healthy as before: {lacked}");
    }
    let settles = format!("as healthy as before, which must last for {} s", SETTLED.as_secs());
    if lacked.is_empty() { settles } else { format!("{settles}; before, it lacked {lacked}") }
}

/// The new system is good. META first: a power cut before the loader knows is a way back with a reason, and one behind it is no loss.
pub async fn commit(machine: &Machine, layout: &Layout, upgrade: &mut Upgrade) -> Result<(), UpgradeError> {
    upgrade.state = State::Good;
    upgrade.reason.clear();
    upgrade.ended_unix = unix_seconds();
    layout.change(|meta| {
        record::set_upgrade(meta, upgrade);
        record::set_good(meta, layout.own, Some(&layout.running));
        meta.set(STARTED, None);
    })?;
    start_always(layout, layout.own)?;
    if let Err(error) = machine.init.trial_passed().await {
        // It would restart a machine whose new system is the default: no way back, only a restart too many.
        tracing::warn!(error = crate::api::chain(&error), "tell init that the system is good");
    }
    show(&machine.store, upgrade);
    let trial = if upgrade.again { " in its second trial, because the first was cut off," } else { "" };
    let (version, slot) = (&upgrade.to.version, upgrade.slot.label());
    machine.event(Severity::Normal, "Upgraded", &format!("{version} in {slot} proved good{trial} and is started from now on"));
    Ok(())
}

fn note(layout: &Layout, change: impl FnOnce(&mut Upgrade)) {
    let noted = layout.change(|meta| {
        if let Some(mut upgrade) = record::upgrade(meta) {
            change(&mut upgrade);
            record::set_upgrade(meta, &upgrade);
        }
    });
    if let Err(error) = noted {
        tracing::warn!(error = crate::api::chain(&error), "note in META how the upgrade stands");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lacking_last_is_told_while_a_trial_settles() {
        let mut lacked = String::new();
        let settles = words(&Decision::Settling(Duration::ZERO), &mut lacked);
        assert_eq!(settles, "as healthy as before, which must last for 30 s");
        let waits = words(&Decision::Wait(vec!["kubelet".into(), "pod etcd".into()]), &mut lacked);
        assert_eq!(waits, "not as healthy as before: kubelet, pod etcd");
        assert_eq!(words(&Decision::Settling(Duration::ZERO), &mut lacked), format!("{settles}; before, it lacked kubelet, pod etcd"));
    }
}
