//! Configs that are not trusted yet. One on trial is in force and written nowhere: unless somebody confirms it in time,
//! the one before comes back, and so it does when the machine loses power. One under which everything was ready for a while
//! is remembered as good; one that was written for a boot and under which no link ever gets an address gives way to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use machine_config::{Config, diff};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::events::Severity;
use crate::machine::{Loaded, Machine};
use crate::reconcilers::Standing;
use crate::state::StateError;

/// How long a config is tried when nobody says otherwise.
pub const TRY: Duration = Duration::from_secs(60);
/// How long a changed network may take to prove that the machine can still be reached.
pub const REACH: Duration = Duration::from_secs(120);
/// The longest trial.
pub const LONGEST: Duration = Duration::from_secs(3600);
/// How long everything must be ready before a config counts as good.
const GOOD_AFTER: Duration = Duration::from_secs(60);
/// How long links may take to get addresses under a config that never worked.
const CUT_OFF: Duration = Duration::from_secs(300);

/// The config on trial, if one is.
#[derive(Debug, Default)]
pub struct Trials(Mutex<Option<Trial>>);

#[derive(Debug)]
struct Trial {
    /// What comes back.
    before: Arc<Loaded>,
    /// What is tried, to be written when it is confirmed.
    text: String,
    ended: CancellationToken,
}

impl Trials {
    fn lock(&self) -> MutexGuard<'_, Option<Trial>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether a config is on trial.
    pub fn under_way(&self) -> bool {
        self.lock().is_some()
    }

    /// Ends a trial without going back: something else decides about the config now.
    pub fn forget(&self) {
        if let Some(trial) = self.lock().take() {
            trial.ended.cancel();
        }
    }
}

impl Machine {
    /// Puts a config in force that goes away again after this time. One on trial already gives way, and what was in force
    /// before that one is what comes back.
    pub fn try_config(self: &Arc<Machine>, config: Loaded, time: Duration) {
        let ended = CancellationToken::new();
        {
            let mut current = self.trials.lock();
            let earlier = current.take().map(|earlier| {
                earlier.ended.cancel();
                earlier.before
            });
            let Some(before) = earlier.or_else(|| self.loaded()) else { return };
            *current = Some(Trial { before, text: config.text.clone(), ended: ended.clone() });
        }
        self.config.send_replace(Some(Arc::new(config)));
        let machine = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = tokio::time::sleep(time) => machine.go_back(&ended, time),
            }
        });
    }

    /// The config before a trial comes back.
    fn go_back(&self, ended: &CancellationToken, time: Duration) {
        let mut current = self.trials.lock();
        // Confirmed or replaced at the last moment.
        if ended.is_cancelled() {
            return;
        }
        if let Some(trial) = current.take() {
            self.config.send_replace(Some(trial.before));
            let message = format!("nobody confirmed the config that was tried for {} s; the one before is in force again", time.as_secs());
            self.event(Severity::Warning, "ConfigReverted", &message);
        }
    }

    /// Keeps the config that is on trial. `false` when none is.
    pub fn confirm_config(&self) -> Result<bool, StateError> {
        let mut current = self.trials.lock();
        let Some(trial) = &*current else { return Ok(false) };
        self.state.set_config(&trial.text)?;
        trial.ended.cancel();
        *current = None;
        Ok(true)
    }
}

/// A config under which everything was ready for a while is kept as the last good one.
pub async fn remember_good_config(machine: Arc<Machine>, mut board: watch::Receiver<BTreeMap<&'static str, Standing>>) {
    let mut config = machine.config.subscribe();
    let (mut since, mut kept) = (None, false);
    loop {
        // One that is on trial is not kept anywhere yet.
        let good = !machine.trials.under_way() && board.borrow_and_update().values().all(|standing| matches!(standing, Standing::Ready(_)));
        match (good, since) {
            (false, _) => (since, kept) = (None, false),
            (true, None) => since = Some(Instant::now()),
            (true, Some(_)) => {}
        }
        let end = since.filter(|_| !kept).map(|since| since + GOOD_AFTER);
        let over = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = board.changed() => if changed.is_err() { return },
            changed = config.changed() => {
                if changed.is_err() {
                    return;
                }
                // What was ready under the one before says nothing about this one.
                (since, kept) = (None, false);
            }
            () = over => {
                kept = true;
                if let Some(loaded) = machine.loaded()
                    && let Err(error) = machine.state.set_last_good_config(&loaded.text)
                {
                    tracing::warn!(error = %crate::api::chain(&error), "keep the last good config");
                }
            }
        }
    }
}

/// Brings the last good config back when no link gets an address under one that was never good. Ends as soon as one does.
pub async fn fall_back_when_cut_off(machine: Arc<Machine>, board: watch::Receiver<BTreeMap<&'static str, Standing>>) {
    let Some((text, good)) = machine.loaded().and_then(|loaded| last_good(&machine, &loaded)) else { return };
    if tokio::time::timeout(CUT_OFF, network_is_ready(board)).await.is_ok() {
        return;
    }
    // Someone may have applied yet another meanwhile, or be trying one.
    let Some(loaded) = machine.loaded().filter(|_| !machine.trials.under_way()) else { return };
    let reboot = diff::requires_reboot(&diff::diff(&loaded.config, &good));
    let kept = machine.state.write("config.rejected.yaml", loaded.text.as_bytes()).and_then(|()| machine.state.set_config(&text));
    if let Err(error) = kept {
        tracing::error!(error = %crate::api::chain(&error), "bring the last good config back");
        return;
    }
    let message = format!("no link got an address within {} s under the new config; the last good one is back", CUT_OFF.as_secs());
    machine.event(Severity::Warning, "ConfigReverted", &message);
    machine.config.send_replace(Some(Arc::new(Loaded { text, config: good })));
    if reboot && let Err(error) = machine.init.reboot("the last good config came back").await {
        tracing::error!(error = %crate::api::chain(&error), "reboot into the last good config");
    }
}

/// The last good config, when it is another than the one in force.
fn last_good(machine: &Machine, loaded: &Loaded) -> Option<(String, Config)> {
    let text = machine.state.last_good_config().ok().flatten().filter(|text| *text != loaded.text)?;
    let config = Config::parse("config.last-good.yaml", &text).ok()?;
    Some((text, config))
}

async fn network_is_ready(mut board: watch::Receiver<BTreeMap<&'static str, Standing>>) {
    let ready = |board: &BTreeMap<&'static str, Standing>| matches!(board.get("network"), Some(Standing::Ready(_)));
    if board.wait_for(ready).await.is_err() {
        // machined ends.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{machine, worker_text};

    fn loaded(mtu: u32) -> Loaded {
        // One cluster's secrets, so that only the link differs.
        static BASE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        let base = BASE.get_or_init(|| worker_text("{disk: {name: vda}}").0);
        let text = format!("{base}---\napiVersion: strake.dev/v1alpha1\nkind: LinkConfig\nname: eth0\nmtu: {mtu}\n");
        let config = Config::parse("test", &text).unwrap_or_else(|errors| panic!("{errors}"));
        Loaded { text, config }
    }

    fn mtu(machine: &Machine) -> Option<u32> {
        machine.loaded().unwrap().config.links[0].mtu
    }

    #[tokio::test(start_paused = true)]
    async fn a_config_nobody_confirms_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), loaded(1500));
        machine.try_config(loaded(1400), TRY);
        assert_eq!((mtu(&machine), machine.state.config().unwrap()), (Some(1400), None), "in force and not written");
        // Another one on trial: what comes back is what was there before both.
        tokio::time::sleep(TRY / 2).await;
        machine.try_config(loaded(1300), TRY);
        tokio::time::sleep(TRY * 2 / 3).await;
        assert_eq!(mtu(&machine), Some(1300));
        tokio::time::sleep(TRY).await;
        assert_eq!(mtu(&machine), Some(1500));
        assert!(!machine.trials.under_way());
        assert_eq!(machine.events.totals()["ConfigReverted"], 1);
        assert!(!machine.confirm_config().unwrap(), "too late");
    }

    #[tokio::test(start_paused = true)]
    async fn a_confirmed_config_stays() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), loaded(1500));
        machine.try_config(loaded(1400), TRY);
        assert!(machine.confirm_config().unwrap());
        tokio::time::sleep(TRY * 2).await;
        assert_eq!(mtu(&machine), Some(1400));
        assert_eq!(machine.state.config().unwrap(), Some(loaded(1400).text));
        assert!(machine.events.totals().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_config_is_good_after_a_minute_in_which_everything_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), loaded(1500));
        let ready = |detail: &str| BTreeMap::from([("network", Standing::Ready(detail.into())), ("time", Standing::Ready(String::new()))]);
        let board = watch::Sender::new(BTreeMap::from([("network", Standing::Failed("no link".into()))]));
        tokio::spawn(remember_good_config(machine.clone(), board.subscribe()));
        let good = || machine.state.last_good_config().unwrap();
        tokio::time::sleep(GOOD_AFTER * 2).await;
        assert_eq!(good(), None);
        // Details that change do not begin the minute anew.
        for step in 0..7 {
            board.send_replace(ready(&format!("step {step}")));
            tokio::time::sleep(GOOD_AFTER / 6).await;
        }
        assert_eq!(good(), Some(loaded(1500).text));
        // Another config has its own minute, and one on trial has none.
        machine.config.send_replace(Some(Arc::new(loaded(1400))));
        tokio::time::sleep(GOOD_AFTER / 2).await;
        assert_eq!(good(), Some(loaded(1500).text));
        tokio::time::sleep(GOOD_AFTER).await;
        assert_eq!(good(), Some(loaded(1400).text));
        machine.try_config(loaded(1300), GOOD_AFTER * 3);
        tokio::time::sleep(GOOD_AFTER * 2).await;
        assert_eq!(good(), Some(loaded(1400).text));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_config_comes_back_when_no_link_gets_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), loaded(1400));
        machine.state.set_config(&loaded(1400).text).unwrap();
        machine.state.set_last_good_config(&loaded(1500).text).unwrap();
        let board = watch::Sender::new(BTreeMap::from([("network", Standing::Ready(String::new()))]));
        fall_back_when_cut_off(machine.clone(), board.subscribe()).await;
        assert_eq!(mtu(&machine), Some(1400), "it works");

        board.send_replace(BTreeMap::from([("network", Standing::Failed("no such link".into()))]));
        fall_back_when_cut_off(machine.clone(), board.subscribe()).await;
        assert_eq!(mtu(&machine), Some(1500));
        assert_eq!(machine.state.config().unwrap(), Some(loaded(1500).text));
        assert_eq!(machine.state.text("config.rejected.yaml").unwrap(), Some(loaded(1400).text));
        // There is nothing to go back to any more.
        fall_back_when_cut_off(machine.clone(), board.subscribe()).await;
        assert_eq!(machine.events.totals()["ConfigReverted"], 1);
    }
}
