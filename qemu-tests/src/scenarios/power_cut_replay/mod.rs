//! What a power cut at any moment leaves: one machine is installed, started again, given another config, upgraded, rolled back and reset
//! while everything that it writes is recorded; then each disk that a cut could have left in between is shown to the checker, which
//! must find the old system or the new one, with the old config or the new one, and what was acknowledged. Some of those disks are
//! really booted, and what runs is compared with what the checker said.
//!
//! `STRAKE_POWER_CUT_SEED` chooses other samples, `STRAKE_POWER_CUT_SAMPLES` how many before each flush, `STRAKE_POWER_CUT_BOOTS` how many
//! disks of each operation are booted (20), `STRAKE_POWER_CUT_MINUTES` after how long no other is begun. `STRAKE_POWER_CUT_RECORDING` names the
//! directory of a recording that was kept (a copy of this scenario's): it is replayed, nothing is recorded, and what was booted
//! of it already counts and is not booted again.

mod boots;
mod look;
mod phases;
mod record;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::cache::Cache;
use image::debian::{ROOT, store};
use image::{Image, Versions};
use machine_config::Role;
use machine_config::layout::layout;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use verity::Digest;

use crate::cluster::Cluster;
use crate::cluster::plan::ClusterSpec;
use crate::error::{Error, FileContext};
use crate::power::checker::{Checker, System};
use crate::power::contents::regions;
use crate::power::log;
use crate::power::replay::Replay;
use crate::scenario::{Context, RunningCluster, Scenario};
use boots::Boots;
use look::Look;
use phases::Expected;
use record::Recording;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "power-cut-replay",
    protects: "a power cut at any write of install, start, config, upgrade, rollback and reset leaves the old state or the new one",
    run,
};

/// Random samples before each flush.
const SAMPLES: u64 = 250;

/// The files of a recording that is kept.
const LOG: &str = "writes.log";
const VARIABLES: &str = "variables-before.fd";
const KNOWN: &str = "recording.json";
/// What came of the disks that were booted.
const BOOTED: &str = "booted.json";

/// What has to be known of a recording besides its log.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    expected: Expected,
    systems: Vec<System>,
    loader: Digest,
}

fn run(context: &Context) -> Result<(), Error> {
    let (seed, boots) = (setting("STRAKE_POWER_CUT_SEED", 1)?, setting("STRAKE_POWER_CUT_BOOTS", 20)?);
    let samples = setting("STRAKE_POWER_CUT_SAMPLES", SAMPLES)? as usize;
    let kept = std::env::var_os("STRAKE_POWER_CUT_RECORDING").map(PathBuf::from);
    let recording = if kept.is_none() { Some(recorded(context)?) } else { None };
    let dir = kept.unwrap_or_else(|| context.dir.clone());
    let read = |name: &str| std::fs::read(dir.join(name)).on("read", dir.join(name));
    let Known { expected, systems, loader } =
        serde_json::from_slice(&read(KNOWN)?).map_err(|problem| unexpected("a recording", problem.to_string()))?;
    let (log, variables) = (dir.join(LOG), read(VARIABLES)?);
    let file = File::open(&log).on("open", &log)?;
    let events = log::read(&mut &file).map_err(|problem| unexpected("a whole log", problem.to_string()))?;
    context.say(&format!("{} writes, flushes and marks were recorded", events.len()));

    let scratch = context.dir.join("scratch");
    std::fs::create_dir_all(&scratch).on("create", &scratch)?;
    let checker = Checker::new(vec![loader], systems, scratch);
    let disk_bytes = ClusterSpec::small().disk_bytes;
    let partitions = layout(Role::ControlPlane, disk_bytes).map_err(|problem| unexpected("a layout", problem.to_string()))?;
    let regions = regions(&partitions, disk_bytes);
    let replay = || Replay::new(&file, &regions, variables.clone(), seed, samples);

    context.say(&format!("replaying; seed {seed}"));
    let begun = Instant::now();
    let mut look = Look::new(&checker, &expected);
    replay().run(&events, &mut look).on("replay", &log)?;
    let (found, lines) = look.result();
    for line in lines {
        context.say(&line);
    }
    context.say(&format!("checked in {:.0} s", begun.elapsed().as_secs_f32()));
    println!("power-cut states checked: {}", found.distinct);
    println!("bad outcomes: {}", found.bad);

    let mut disagreements = 0;
    if boots > 0 {
        let cluster = match recording {
            Some(recording) => recording.cluster,
            None => of_recording(context, &dir)?,
        };
        let until = Instant::now() + Duration::from_secs(60 * setting("STRAKE_POWER_CUT_MINUTES", 600)?);
        let chosen = found.choose(seed, boots as usize);
        let mut booted = Boots::new(context, &cluster, disk_bytes, chosen, &dir.join(BOOTED), until);
        let outcome = replay().run(&events, &mut booted);
        disagreements = booted.disagreements();
        let done = booted.done();
        println!("sampled disks booted: {} {done:?}", done.values().sum::<usize>());
        println!("checker disagreements: {disagreements}");
        outcome.on("boot samples of", &log)?;
    }
    if found.bad > 0 || disagreements > 0 {
        return Err(unexpected("no bad outcome and no disagreement", format!("{} and {disagreements}", found.bad)));
    }
    if found.distinct < 2000 {
        return Err(unexpected("at least 2000 distinct states of metadata", found.distinct.to_string()));
    }
    Ok(())
}

/// The cluster of a recording that was kept: its credentials and its network, for the machines that are booted.
fn of_recording(context: &Context, dir: &Path) -> Result<RunningCluster, Error> {
    let (from, to) = (dir.join("cluster"), context.dir.join("cluster"));
    std::fs::create_dir_all(&to).on("create", &to)?;
    for name in ["cluster.json", "strakeconfig"] {
        std::fs::copy(from.join(name), to.join(name)).on("copy", from.join(name))?;
    }
    let cluster = Cluster::open(&to, &context.run.join("cluster"), &context.programs, &ClusterSpec::small())?;
    cluster.start_network()?;
    Ok(RunningCluster::from(cluster))
}

/// Records, and keeps what a replay needs.
fn recorded(context: &Context) -> Result<Recording, Error> {
    let recording = record::record(context, &context.dir.join(LOG))?;
    let systems = systems(context, &[&context.image, &recording.new])?;
    let known = Known { expected: recording.expected.clone(), systems, loader: loader(context)? };
    let text = serde_json::to_vec_pretty(&known).map_err(|problem| unexpected("JSON", problem.to_string()))?;
    for (name, content) in [(KNOWN, &text), (VARIABLES, &recording.variables)] {
        std::fs::write(context.dir.join(name), content).on("write", context.dir.join(name))?;
    }
    Ok(recording)
}

fn setting(name: &str, otherwise: u64) -> Result<u64, Error> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| unexpected(&format!("a number in {name}"), text)),
        Err(_) => Ok(otherwise),
    }
}

/// The boot loader that installations write.
fn loader(context: &Context) -> Result<Digest, Error> {
    let packages =
        Cache::open().and_then(|cache| store::prepare(&cache, &context.project.join("image/locks"), &ROOT, Versions::Locked, &|_| {}))?;
    let path = packages.dir.join("usr/lib/systemd/boot/efi/systemd-bootx64.efi");
    Ok(Digest(Sha256::digest(std::fs::read(&path).on("read", &path)?).into()))
}

fn systems(context: &Context, images: &[&Image]) -> Result<Vec<System>, Error> {
    let arguments = context.project.join("configs/kernel-arguments");
    let text = std::fs::read_to_string(&arguments).on("read", &arguments)?;
    let takes_second_table = text.lines().any(|line| line.split_whitespace().next() == Some("gpt"));
    let system = |image: &&Image| {
        let uki = Digest(Sha256::digest(std::fs::read(&image.uki).on("read", &image.uki)?).into());
        Ok(System { version: image.version.clone(), root: image.verity, uki, takes_second_table })
    };
    images.iter().map(system).collect()
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the power-cut test".into(), expected: expected.to_owned(), found }
}
