//! The machine whose writes are recorded, and what happens to it.

use std::path::Path;

use image::Image;
use node_ipc::init::Slot;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use slots::record;
use verity::Digest;

use super::phases::{self, Expected};
use super::unexpected;
use crate::cluster::plan::Node;
use crate::error::{Error, FileContext};
use crate::power::recorder::Recorder;
use crate::scenario::{Context, RunningCluster};
use crate::scenarios::upgrade::variant_image;
use crate::scenarios::verity::slot_start;

/// The version of the second system.
const NEW: &str = "0.2.0";
/// init's key for a start that has not come up yet.
const STARTED: &str = "started";

/// What came of it.
pub struct Recording {
    /// The machine's network is still there for those that are booted later; the machine is not.
    pub cluster: RunningCluster,
    /// What a cut may leave.
    pub expected: Expected,
    /// The second system.
    pub new: Image,
    /// The variable store as it began.
    pub variables: Vec<u8>,
}

struct Subject<'a> {
    context: &'a Context,
    cluster: &'a RunningCluster,
    node: Node,
}

/// Runs the machine through everything.
pub fn record(context: &Context, log: &Path) -> Result<Recording, Error> {
    let new = variant_image(context, NEW, None)?;
    let (cluster, recorder) = context.recorded_machine(log)?;
    let node = cluster.plan().control_plane().clone();
    let store = cluster.machine(&node).spec().dir.join("firmware-variables.fd");
    let variables = std::fs::read(&store).on("read", &store)?;
    let subject = Subject { context, cluster: &cluster, node };
    let configs = subject.operations(&recorder, &new)?;
    subject.cluster.machine(&subject.node).pull_plug()?;
    recorder.mark("end")?;
    let expected = Expected { versions: [context.image.version.clone(), NEW.to_owned()], configs };
    Ok(Recording { cluster, expected, new, variables })
}

impl Subject<'_> {
    fn operations(&self, recorder: &Recorder, new: &Image) -> Result<[String; 2], Error> {
        recorder.mark(phases::INSTALL)?;
        self.cluster.install_machines(&self.context.image.iso, self.context.accelerator, self.context)?;
        recorder.mark(phases::INSTALLED)?;
        let first = self.config()?;
        self.come_up(Slot::A)?;

        recorder.mark(phases::START)?;
        self.restart(&["reboot"])?;
        self.come_up(Slot::A)?;

        let file = self.cluster.config(&self.node);
        let text = std::fs::read_to_string(&file).on("read", &file)?;
        let changed = self.context.dir.join("changed.yaml");
        let other = text.replace("10.5.0.3", "10.5.0.2");
        if other == text {
            return Err(unexpected("a resolver to change in the config", text));
        }
        std::fs::write(&changed, other).on("write", &changed)?;
        recorder.mark(phases::CONFIG)?;
        self.strakectl(&["apply-config", "--mode", "no-reboot", "-f", &changed.to_string_lossy()])?;
        recorder.mark(phases::CONFIG_DONE)?;
        let second = self.config()?;
        if first == second {
            return Err(unexpected("another config in STATE", second));
        }

        recorder.mark(phases::UPGRADE)?;
        let file = new.upgrade.to_string_lossy();
        self.strakectl(&["-o", "json", "upgrade", "--image", &file, "--stage", "--drain-seconds", "0", "--deadline", "900"])?;
        recorder.mark(phases::UPGRADE_DONE)?;
        self.context.say("a new system is written and waits for its trial");

        recorder.mark(phases::TRIAL)?;
        self.restart(&["reboot"])?;
        self.context.eventually("the new system to be good", self.context.patience(240), || {
            Ok(self.last().ok().filter(|last| last["state"] == "good" && last["to"] == NEW))
        })?;
        recorder.mark(phases::TRIAL_DONE)?;
        self.context.say("the new system proved good");

        recorder.mark(phases::ROLLBACK)?;
        let before = self.boot_id()?;
        self.strakectl(&["rollback"])?;
        recorder.mark(phases::ROLLBACK_DONE)?;
        self.wait_other_boot(&before)?;
        self.come_up(Slot::A)?;
        self.context.say("rolled back");

        recorder.mark(phases::RESET)?;
        let machine = self.cluster.machine(&self.node);
        let console = machine.console().position();
        self.strakectl(&["reset", "--yes"])?;
        recorder.mark(phases::RESET_DONE)?;
        machine.wait_text(console, "stage=maintenance", self.context.patience(180))?;
        self.context.say("reset");
        Ok([first, second])
    }

    fn strakectl(&self, words: &[&str]) -> Result<String, Error> {
        let api = self.node.local_api();
        self.cluster.clients().strakectl([&["--timeout", "20", "-n", &api], words].concat())
    }

    /// The SHA-256 of the config in STATE.
    fn config(&self) -> Result<String, Error> {
        let text = self.context.eventually("the config in STATE", self.context.patience(60), || {
            Ok(self.strakectl(&["read", "/system/state/config.yaml"]).ok())
        })?;
        Ok(Digest(Sha256::digest(text).into()).to_string())
    }

    fn last(&self) -> Result<Value, Error> {
        let text = self.strakectl(&["get", "upgrade", "-o", "json"])?;
        let rows: Value = serde_json::from_str(&text).map_err(|problem| unexpected("JSON", problem.to_string()))?;
        Ok(rows[0].clone())
    }

    fn boot_id(&self) -> Result<String, Error> {
        self.context.eventually("the machine API to answer", self.context.patience(120), || {
            Ok(self.strakectl(&["read", "/proc/sys/kernel/random/boot_id"]).ok())
        })
    }

    fn restart(&self, words: &[&str]) -> Result<(), Error> {
        let before = self.boot_id()?;
        self.strakectl(words)?;
        self.wait_other_boot(&before)
    }

    fn wait_other_boot(&self, before: &str) -> Result<(), Error> {
        self.context.eventually("another boot", self.context.patience(180), || {
            Ok(self.strakectl(&["read", "/proc/sys/kernel/random/boot_id"]).ok().filter(|now| now != before).map(drop))
        })
    }

    /// Waits until META on the disk says that the system in this slot came up.
    fn come_up(&self, slot: Slot) -> Result<(), Error> {
        let machine = self.cluster.machine(&self.node);
        let disk = machine.spec().disk.as_ref().map(|disk| disk.path.clone()).ok_or_else(|| unexpected("a disk", "none".to_owned()))?;
        let start = slot_start(&disk, slots::meta::LABEL)?;
        self.context.eventually("the system to note in META that it came up", self.context.patience(120), || {
            let mut partition = vec![0; 1 << 20];
            let file = std::fs::File::open(&disk).on("open", &disk)?;
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut partition, start).on("read", &disk)?;
            let meta = slots::meta::read(&mut std::io::Cursor::new(partition)).on("read META of", &disk)?;
            let known = record::good(&meta, slot).is_some() && meta.get(STARTED).is_none();
            Ok(known.then_some(()))
        })
    }
}
