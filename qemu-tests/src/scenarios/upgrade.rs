//! Upgrades that undo themselves: a new system whose init ends, and one that never gets healthy, each lead back to the old one by themselves,
//! with the reason told; a good one becomes the one that is started, also after a power cut; rollback leads back; a damaged root
//! leads to the other slot. All of that needs no Kubernetes; at the end the machine becomes a cluster, and an upgrade moves its pods.

use std::path::{Path, PathBuf};

use image::cache::Cache;
use image::{Image, Inputs, Versions};
use serde_json::Value;

use super::verity::{flip, slot_start};
use crate::cluster::plan::Node;
use crate::error::{Error, FileContext};
use crate::scenario::{Context, RunningCluster, Scenario};

/// What CI runs: one that is bad, then one that is good.
pub const SHORT: Scenario = Scenario {
    name: "upgrade",
    protects: "a bad new system leads back to the old one by itself with the reason told, and a good one stays",
    run: short,
};

/// The rest, which takes long.
pub const FAULTS: Scenario = Scenario {
    name: "upgrade-faults",
    protects: "a system that hangs is left too, rollback and a damaged root lead to the other slot, and a cluster's machine is upgraded with its pods moved",
    run: faults,
};

/// How long a system that cannot become good gets; the shortest there is.
pub const DEADLINE: &str = "60";

/// A system that is wrong in one way: another program stands in for one of its own.
pub struct Bad {
    pub what: &'static str,
    pub version: &'static str,
    pub program: &'static str,
    pub instead: &'static str,
    /// Part of the reason that is told.
    pub reason: &'static str,
}

/// It prints how it is used and ends, which stops the kernel.
const ENDS: Bad = Bad { what: "an init that ends", version: "0.1.1", program: "init", instead: "strakectl", reason: "said nothing" };
/// It runs and does nothing.
const IDLES: Bad =
    Bad { what: "a machined that does nothing", version: "0.1.2", program: "machined", instead: "pause", reason: "said nothing" };
const GOOD: &str = "0.2.0";
const BETTER: &str = "0.3.0";

fn short(context: &Context) -> Result<(), Error> {
    let machine = Subject::installed(context)?;
    machine.undoes(&ENDS)?;
    machine.takes_good_one()
}

fn faults(context: &Context) -> Result<(), Error> {
    let machine = Subject::installed(context)?;
    let first = context.image.version.clone();
    machine.undoes(&IDLES)?;
    machine.takes_good_one()?;

    machine.power_cut(|_| Ok(()))?;
    machine.runs("ROOT-B", GOOD)?;
    context.say("it is the one that is started, after a power cut too");

    let before = machine.boot_id()?;
    let outcome = machine.strakectl(&["rollback"])?;
    machine.wait_other_boot(&before)?;
    machine.runs("ROOT-A", &first)?;
    machine.wait_state("rolled-back", GOOD)?;
    context.say(&format!("rollback: {}", outcome.lines().last().unwrap_or_default().trim()));

    let top = context.image.verity.top_block() * 4096 + 5;
    machine.power_cut(|disk| flip(disk, slot_start(disk, "ROOT-A")? + top))?;
    machine.runs("ROOT-B", GOOD)?;
    let last = machine.last()?;
    let reason = last["reason"].as_str().unwrap_or_default();
    if !reason.contains("ROOT-A") {
        return Err(unexpected("the damaged slot in the reason", last.to_string()));
    }
    context.say(&format!("a damaged root led to the other slot: {reason}"));
    machine.power_cut(|_| Ok(()))?;
    machine.runs("ROOT-B", GOOD)?;

    machine.cluster.become_cluster(&[], context)?;
    let image = variant(context, BETTER, None)?;
    machine.upgrade(&image, &["--deadline", "1800"])?;
    machine.wait_state("good", BETTER)?;
    machine.runs("ROOT-A", BETTER)?;
    machine.cluster.wait_nodes(context)?;
    machine.takes_pods()?;
    context.say("a machine that is a cluster was upgraded: its node is Ready and takes pods");
    Ok(())
}

pub fn variant(context: &Context, version: &str, replaced: Option<(&str, &str)>) -> Result<PathBuf, Error> {
    variant_image(context, version, replaced).map(|image| image.upgrade)
}

/// Another system of this version, with one of its programs replaced by another if need be. Its ISO is not kept.
pub fn variant_image(context: &Context, version: &str, replaced: Option<(&str, &str)>) -> Result<Image, Error> {
    let built = context.programs.strakectl.parent().unwrap_or(Path::new("/")).to_owned();
    let (binaries, out) = (context.dir.join(format!("binaries-{version}")), context.dir.join(format!("image-{version}")));
    std::fs::create_dir_all(&binaries).on("create", &binaries)?;
    let ours = ["init", "logd", "machined", "kube", "kube-proxy", "pause", "strakectl"];
    let instead = replaced.filter(|(program, _)| !ours.contains(program));
    let instead = instead.map(|(program, instead)| (format!("usr/bin/{program}"), built.join(instead)));
    for name in ours {
        let from = replaced.filter(|(program, _)| *program == name).map_or(name, |(_, instead)| instead);
        let link = binaries.join(name);
        std::os::unix::fs::symlink(built.join(from), &link).on("link", &link)?;
    }
    let failed = |problem: image::Error| unexpected("an image", problem.to_string());
    let cache = Cache::open().map_err(failed)?;
    let inputs = Inputs {
        project: &context.project,
        binaries: &binaries,
        out: &out,
        version,
        kubernetes: &context.image.kubernetes,
        versions: Versions::Locked,
        signing: None,
        firmware: &[],
        replaced: instead.as_ref().map(|(place, file)| (place.as_str(), file.as_path())),
    };
    let image = image::build(&cache, &context.programs.tools, &inputs, &|_| {}).map_err(failed)?;
    std::fs::remove_file(&image.iso).on("remove", &image.iso)?;
    context.say(&format!("an upgrade to {version} is built"));
    Ok(image)
}

/// The machine that all of this happens to.
pub struct Subject<'a> {
    pub context: &'a Context,
    pub cluster: RunningCluster,
    pub node: Node,
}

impl<'a> Subject<'a> {
    pub fn installed(context: &'a Context) -> Result<Self, Error> {
        let cluster = context.installed_machine()?;
        let machine = Self { context, node: cluster.plan().control_plane().clone(), cluster };
        machine.runs("ROOT-A", &context.image.version)?;
        Ok(machine)
    }

    /// A bad system is tried, and the old one is back by itself.
    pub fn undoes(&self, bad: &Bad) -> Result<(), Error> {
        let image = variant(self.context, bad.version, Some((bad.program, bad.instead)))?;
        let before = self.boot_id()?;
        self.upgrade(&image, &["--drain-seconds", "0", "--deadline", DEADLINE])?;
        self.undone(bad, &before)
    }

    /// Waits until a bad system that is tried is given up.
    pub fn undone(&self, bad: &Bad, before: &str) -> Result<(), Error> {
        let last = self.wait_state("failed", bad.version)?;
        let reason = last["reason"].as_str().unwrap_or_default();
        if !reason.contains(bad.reason) || self.boot_id()? == before {
            return Err(unexpected(&format!("a restart, and a reason with {:?}", bad.reason), last.to_string()));
        }
        self.runs("ROOT-A", &self.context.image.version)?;
        self.told_on_the_console(bad.version)?;
        self.context.say(&format!("{}: back in ROOT-A by itself: {reason}", bad.what));
        Ok(())
    }

    fn takes_good_one(&self) -> Result<(), Error> {
        let image = variant(self.context, GOOD, None)?;
        let would = self.upgrade(&image, &["--dry-run"])?;
        if !would.contains("would write") {
            return Err(unexpected("what would be done", would));
        }
        self.upgrade(&image, &["--deadline", "900"])?;
        self.wait_state("good", GOOD)?;
        self.runs("ROOT-B", GOOD)?;
        self.context.say("a good system proved itself");
        Ok(())
    }

    pub fn strakectl(&self, words: &[&str]) -> Result<String, Error> {
        let api = self.node.local_api();
        self.cluster.clients().strakectl([&["--timeout", "5", "-n", &api], words].concat())
    }

    pub fn upgrade(&self, image: &Path, options: &[&str]) -> Result<String, Error> {
        let file = image.to_string_lossy();
        // In JSON the progress is on the standard output.
        self.strakectl(&[&["-o", "json", "upgrade", "--image", &file], options].concat())
    }

    pub fn first_row(&self, words: &[&str]) -> Result<Value, Error> {
        let text = self.strakectl(&[words, &["-o", "json"]].concat())?;
        let rows: Value = serde_json::from_str(&text).map_err(|problem| unexpected("JSON", problem.to_string()))?;
        Ok(rows[0].clone())
    }

    pub fn last(&self) -> Result<Value, Error> {
        self.first_row(&["get", "upgrade"])
    }

    pub fn boot_id(&self) -> Result<String, Error> {
        self.strakectl(&["read", "/proc/sys/kernel/random/boot_id"])
    }

    pub fn wait_other_boot(&self, before: &str) -> Result<(), Error> {
        self.context
            .eventually("another boot", self.context.patience(180), || Ok(self.boot_id().ok().filter(|now| now != before).map(drop)))
    }

    /// Waits until the last upgrade, which is one to this version, stands so.
    pub fn wait_state(&self, state: &str, version: &str) -> Result<Value, Error> {
        self.context.eventually(&format!("the upgrade to {version} to be {state}"), self.context.patience(240), || {
            Ok(self.last().ok().filter(|last| last["state"] == state && last["to"] == version))
        })
    }

    /// Waits until the machine answers, and compares what runs.
    pub fn runs(&self, slot: &str, version: &str) -> Result<(), Error> {
        let found = self.context.eventually("the machine API to answer", self.context.patience(180), || {
            Ok(self.first_row(&["get", "root"]).ok().zip(self.first_row(&["version"]).ok()))
        })?;
        let (root, system) = found;
        if root["id"] != slot || root["verity"] != "verified" || system["version"] != version {
            return Err(unexpected(&format!("{version} in {slot}, verified"), format!("{system} in {root}")));
        }
        Ok(())
    }

    fn takes_pods(&self) -> Result<(), Error> {
        self.context.eventually("a node that takes pods", self.context.patience(60), || {
            let Ok(node) = self.cluster.clients().get(&["node", &self.node.name]) else { return Ok(None) };
            Ok((node["spec"]["unschedulable"] != true).then_some(()))
        })
    }

    fn told_on_the_console(&self, version: &str) -> Result<(), Error> {
        let said = format!("{version} in ROOT-B failed");
        self.cluster.machine(&self.node).wait_text(0, &said, self.context.patience(30))
    }

    /// Cuts the power, does something to the disk, and starts the machine again.
    pub fn power_cut(&self, meanwhile: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
        let machine = self.cluster.machine(&self.node);
        let disk = machine.spec().disk.as_ref().map(|disk| disk.path.clone());
        machine.pull_plug()?;
        meanwhile(&disk.ok_or_else(|| unexpected("a disk", "none".to_owned()))?)?;
        self.cluster.start_installed(&self.node, self.context.accelerator).map(drop)
    }
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}
