//! Sampled states as real disks: a machine is started from each, and what it turns out to be is compared with what the checker said.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use verity::Digest;

use super::look::{Identity, Stores};
use crate::cluster::plan::Node;
use crate::error::{Error, FileContext};
use crate::machine::{Disk as DiskFile, Machine, MachineSpec};
use crate::power::checker::{Config, Disk, Outcome};
use crate::power::contents::Left;
use crate::power::replay::{At, Visitor};
use crate::scenario::{Context, RunningCluster};

/// The visitor that boots.
pub struct Boots<'a> {
    context: &'a Context,
    cluster: &'a RunningCluster,
    node: Node,
    disk_bytes: u64,
    chosen: HashMap<Identity, (String, Outcome)>,
    seen: HashSet<Identity>,
    stores: Stores,
    mark: String,
    /// What came of those that were booted, in this run and in earlier ones, and the file that keeps it.
    known: BTreeMap<String, Booted>,
    kept: PathBuf,
    /// When no other is begun.
    until: Instant,
}

/// What came of a disk that was booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Booted {
    operation: String,
    agrees: bool,
}

/// What a machine that was started turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// None: the installation medium.
    slot: Option<String>,
    /// The SHA-256 of the config; none: it waits for one.
    config: Option<String>,
    trial: bool,
}

impl<'a> Boots<'a> {
    /// Boots these states, of a disk of this size, until this moment. What came of each is kept in a file: a later run goes on.
    pub fn new(
        context: &'a Context,
        cluster: &'a RunningCluster,
        disk_bytes: u64,
        chosen: HashMap<Identity, (String, Outcome)>,
        kept: &Path,
        until: Instant,
    ) -> Self {
        let node = cluster.plan().control_plane().clone();
        let (seen, stores) = (HashSet::new(), Stores::default());
        // Without it all are booted again, which is no loss but of time.
        let known = std::fs::read(kept).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { context, cluster, node, disk_bytes, chosen, seen, stores, mark: String::new(), known, kept: kept.to_owned(), until }
    }

    /// How many of each operation were booted.
    pub fn done(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for booted in self.known.values() {
            *counts.entry(booted.operation.as_str()).or_default() += 1;
        }
        counts
    }

    /// How many turned out to be something else.
    pub fn disagreements(&self) -> usize {
        self.known.values().filter(|booted| !booted.agrees).count()
    }

    fn boot(&mut self, at: At, left: &Left<'_>, name: &str, outcome: &Outcome) -> Result<bool, Error> {
        let dir = self.context.dir.join("sample");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).on("remove", &dir)?;
        }
        std::fs::create_dir_all(&dir).on("create", &dir)?;
        let disk = dir.join("disk.img");
        let file = File::create(&disk).on("create", &disk)?;
        file.set_len(self.disk_bytes).and_then(|()| left.copy(0, self.disk_bytes, &file)).on("write", &disk)?;
        std::fs::write(dir.join("firmware-variables.fd"), left.variables).on("write", &dir)?;
        let seen = self.start(&dir, &disk, outcome)?;
        let agrees = agrees(outcome, seen.as_ref());
        let found = seen.map_or_else(|| "nothing".to_owned(), |seen| format!("{seen:?}"));
        self.context.say(&format!("{name}, event {} ({:?}): {outcome}: {}", at.event, at.how, if agrees { "so it is" } else { "NOT SO" }));
        if !agrees {
            self.context.say(&format!("    what ran: {found}"));
            let kept = self.context.dir.join(format!("disagreement-{}", self.disagreements() + 1));
            std::fs::rename(&dir, &kept).on("rename", &dir)?;
        }
        Ok(agrees)
    }

    /// Starts a machine from a disk; what it is, or nothing when it does not come up.
    fn start(&self, dir: &Path, disk: &Path, outcome: &Outcome) -> Result<Option<Seen>, Error> {
        let recorded = self.cluster.machine(&self.node).spec().clone();
        // The medium is in the drive where nothing else should start.
        let iso = matches!(outcome, Outcome::NotInstalled(_)).then(|| self.context.image.iso.clone());
        let disk = Some(DiskFile { path: disk.to_owned(), overlay: false });
        let machine = self.context.start(&MachineSpec { dir: dir.to_owned(), disk, iso, recorder: None, ..recorded })?;
        let patience = if matches!(outcome, Outcome::Never(_)) { Duration::from_secs(90) } else { self.context.patience(120) };
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let text = machine.console().text_from(0)?;
            if let Some(slot) = started(&text) {
                if text.contains("stage=maintenance") {
                    machine.pull_plug()?;
                    return Ok(Some(Seen { slot, config: None, trial: false }));
                }
                if let Some(seen) = self.ask(slot) {
                    machine.pull_plug()?;
                    return Ok(Some(seen));
                }
            }
            alive(&machine)?;
            std::thread::sleep(Duration::from_millis(500));
        }
        machine.pull_plug()?;
        Ok(None)
    }

    fn ask(&self, slot: Option<String>) -> Option<Seen> {
        let (clients, api) = (self.cluster.clients(), self.node.local_api());
        let strakectl = |words: &[&str]| clients.strakectl([&["--timeout", "5", "-n", &api], words].concat()).ok();
        let config = Digest(Sha256::digest(strakectl(&["read", "/system/state/config.yaml"])?).into()).to_string();
        let last: Value = serde_json::from_str(&strakectl(&["get", "upgrade", "-o", "json"])?).ok()?;
        // On a quick machine a trial is over before somebody asks.
        let trial = matches!(last[0]["state"].as_str(), Some("trying" | "good")) && last[0]["slot"].as_str() == slot.as_deref();
        Some(Seen { slot, config: Some(config), trial })
    }
}

fn alive(machine: &Machine) -> Result<(), Error> {
    if machine.is_running() { Ok(()) } else { Err(machine.ended("a sampled disk to boot")) }
}

/// The slot that init says it starts, or none for a medium; the last that it says, for a machine may restart.
fn started(console: &str) -> Option<Option<String>> {
    let line = console.lines().rfind(|line| line.contains(" found on ") && line.contains("must match the root hash"))?;
    Some(["ROOT-A", "ROOT-B"].into_iter().find(|slot| line.contains(slot)).map(str::to_owned))
}

fn agrees(outcome: &Outcome, seen: Option<&Seen>) -> bool {
    match (outcome, seen) {
        (Outcome::Never(_), None) => true,
        (Outcome::NotInstalled(_), Some(seen)) => seen.slot.is_none(),
        (Outcome::Runs(runs), Some(seen)) => {
            let config = match &runs.config {
                Config::Text(digest) => Some(digest),
                Config::None | Config::Unusable(_) => None,
            };
            seen.slot.as_deref() == Some(runs.slot) && seen.config.as_ref() == config && (!runs.trial || seen.trial)
        }
        _ => false,
    }
}

impl Visitor for Boots<'_> {
    fn visit(&mut self, at: At, left: &Left<'_>) -> io::Result<()> {
        let identity = (self.mark.clone(), left.identity(self.stores.number(left.variables)));
        if !self.seen.insert(identity.clone()) {
            return Ok(());
        }
        let Some((operation, outcome)) = self.chosen.remove(&identity) else { return Ok(()) };
        let name = format!("{} {}", identity.0, Digest(identity.1));
        if self.known.contains_key(&name) || Instant::now() >= self.until {
            return Ok(());
        }
        let agrees = self.boot(at, left, &operation, &outcome).map_err(io::Error::other)?;
        self.known.insert(name, Booted { operation, agrees });
        std::fs::write(&self.kept, serde_json::to_vec_pretty(&self.known)?)
    }

    fn mark(&mut self, text: &str) {
        self.mark = text.to_owned();
    }

    fn variables(&self, store: &[u8]) -> u128 {
        self.stores.number(store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::checker::Runs;

    #[test]
    fn the_last_start_on_the_console_counts() {
        let line = |place: &str| format!("init: root 1-2 found on /dev/vda2 (Disk): {place} must match the root hash ab\n");
        for (console, expected) in [
            (String::new(), None),
            (line("ROOT-A (/dev/vda2)"), Some(Some("ROOT-A"))),
            (line("ROOT-B (/dev/vda3)") + &line("ROOT-A (/dev/vda2)"), Some(Some("ROOT-A"))),
            (line("/dev/sr0"), Some(None)),
        ] {
            assert_eq!(started(&console), expected.map(|slot| slot.map(str::to_owned)), "{console}");
        }
    }

    #[test]
    fn a_disagreement_is_noticed() {
        let seen = |slot: Option<&str>, config: Option<&str>, trial| Seen {
            slot: slot.map(str::to_owned),
            config: config.map(str::to_owned),
            trial,
        };
        let runs = |slot, trial, config| Outcome::Runs(Runs { slot, version: "1".into(), trial, config, then: None });
        let text = Config::Text("c".into());
        let a = seen(Some("ROOT-A"), Some("c"), false);
        for (outcome, found, expected) in [
            (runs("ROOT-A", false, text.clone()), Some(&a), true),
            (runs("ROOT-B", false, text.clone()), Some(&a), false),
            (runs("ROOT-A", false, Config::Text("d".into())), Some(&a), false),
            (runs("ROOT-A", false, Config::None), Some(&a), false),
            (runs("ROOT-A", true, text.clone()), Some(&a), false),
            (runs("ROOT-A", false, text), None, false),
            (runs("ROOT-A", false, Config::None), Some(&seen(Some("ROOT-A"), None, false)), true),
            (Outcome::NotInstalled(String::new()), Some(&seen(None, None, false)), true),
            (Outcome::NotInstalled(String::new()), Some(&a), false),
            (Outcome::Never(String::new()), None, true),
            (Outcome::Never(String::new()), Some(&a), false),
        ] {
            assert_eq!(agrees(&outcome, found), expected, "{outcome} {found:?}");
        }
    }
}
