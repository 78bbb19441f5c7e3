//! The boot chain is signed with keys of the user's own: a firmware in setup mode gets them from the ISO, the machine installs and runs with
//! secure boot, takes upgrades that are signed and no others, and the firmware starts neither an unsigned kernel image, nor one of another
//! key, nor one with a changed byte. What is put into the machine's SMBIOS table does not become part of the kernel's command line unseen.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::cache::Cache;
use image::signing::Signing;
use image::{Image, Inputs, Versions, fat_image};
use serde_json::Value;

use crate::cluster::plan::Node;
use crate::error::{Error, FileContext};
use crate::machine::{Disk, Firmware, run as run_program};
use crate::scenario::{Context, RunningCluster, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "secure-boot",
    protects: "keys are enrolled from the ISO, what they signed installs, runs locked down and upgrades; unsigned, foreign and changed systems are refused",
    run,
};

const NEXT: &str = "0.2.0";
const ENROLS: &str = "Enrolling secure boot keys";
/// What init says first, and firmware that refuses an image.
const STARTED: &str = "secure boot is enabled";
const REFUSED: &str = "Access Denied";

fn run(context: &Context) -> Result<(), Error> {
    let cache = Cache::open().map_err(failed)?;
    let [ours, others] = [signing(context, &cache, "keys")?, signing(context, &cache, "other-keys")?];
    let image = signed(context, &cache, &ours, &context.image.version.clone(), "image")?;
    context.say("a signed image is built");

    let cluster = context.installed_from(&image.iso, Firmware::SecureBoot)?;
    let node = cluster.plan().control_plane().clone();
    let machine = cluster.machine(&node);
    for said in [ENROLS, STARTED] {
        machine.wait_text(0, said, context.patience(1))?;
    }
    runs_locked_down(context, &cluster, &node)?;
    context.say("the firmware got the keys from the ISO, and the installed machine runs with secure boot");

    upgrades(context, &cluster, &node, &cache, [&ours, &others])?;
    let variables = machine.spec().dir.join("firmware-variables.fd");
    machine.pull_plug()?;

    let tampered = context.dir.join("tampered.efi");
    std::fs::copy(&image.uki, &tampered).on("copy", &image.uki)?;
    flip_middle(&tampered)?;
    let foreign = context.dir.join("foreign.efi");
    others.program(&context.image.uki, &foreign).map_err(failed)?;
    for (what, uki, expected) in [
        ("signed", &image.uki, STARTED),
        ("unsigned", &context.image.uki, REFUSED),
        ("foreign", &foreign, REFUSED),
        ("tampered", &tampered, REFUSED),
    ] {
        starts(context, (what, uki), &variables, None, expected)?;
    }
    let extra = "io.systemd.stub.kernel-cmdline-extra=lockdown=none";
    starts(context, ("smbios", &image.uki), &variables, Some(extra), "command line is not the image's own; it has more: lockdown=none")
}

/// Starts a machine with the enrolled keys from a disk with this kernel image, and waits for what it says. What is refused must not start.
fn starts(context: &Context, (what, uki): (&str, &Path), variables: &Path, oem_string: Option<&str>, expected: &str) -> Result<(), Error> {
    let mut spec = context.spec(&format!("uki-{what}"), 2);
    std::fs::create_dir_all(&spec.dir).on("create", &spec.dir)?;
    let disk = spec.dir.join("disk.img");
    fat_image(&[("EFI/BOOT/BOOTX64.EFI", uki)], &disk).map_err(failed)?;
    std::fs::copy(variables, spec.dir.join("firmware-variables.fd")).on("copy", variables)?;
    spec.firmware = Firmware::SecureBoot;
    spec.iso = None;
    spec.disk = Some(Disk { path: disk, overlay: false });
    spec.oem_string = oem_string.map(str::to_owned);
    let machine = context.start(&spec)?;
    machine.wait_text(0, expected, context.patience(15))?;
    let console = machine.console().text_from(0)?;
    if expected == REFUSED && console.contains(STARTED) {
        return Err(unexpected("a kernel image that is refused", console));
    }
    context.say(&format!("{what}: {expected}"));
    Ok(())
}

/// Files that nobody signed, or somebody else, are refused; a signed one is written, tried and kept.
fn upgrades(context: &Context, cluster: &RunningCluster, node: &Node, cache: &Cache, [ours, others]: [&Signing; 2]) -> Result<(), Error> {
    let api = node.local_api();
    let upgrade = |file: &Path, options: &[&str]| {
        let file = file.to_string_lossy();
        cluster.clients().strakectl([&["--timeout", "5", "-n", &api, "-o", "json", "upgrade", "--image", &file], options].concat())
    };
    let foreign = signed(context, cache, others, NEXT, "image-foreign")?;
    for (file, reason) in [(&context.image.upgrade, "is not signed"), (&foreign.upgrade, "no key of this image")] {
        match upgrade(file, &["--dry-run"]) {
            Err(problem) if problem.to_string().contains(reason) => context.say(&format!("an upgrade is refused: {reason}")),
            Err(problem) => return Err(problem),
            Ok(outcome) => return Err(unexpected(&format!("a refusal that says {reason:?}"), outcome)),
        }
    }
    let next = signed(context, cache, ours, NEXT, "image-next")?;
    upgrade(&next.upgrade, &["--drain-seconds", "0", "--deadline", "900"])?;
    context.eventually("the signed upgrade to be good", context.patience(240), || {
        Ok(row(cluster, node, "upgrade").ok().filter(|last| last["state"] == "good" && last["to"] == NEXT))
    })?;
    runs_locked_down(context, cluster, node)?;
    context.say("a signed upgrade runs in the other slot");
    Ok(())
}

fn runs_locked_down(context: &Context, cluster: &RunningCluster, node: &Node) -> Result<(), Error> {
    let found = context.eventually("the machine API to answer", context.patience(120), || Ok(row(cluster, node, "security").ok()))?;
    let expected = [("secureBoot", "enabled"), ("lockdown", "integrity"), ("modules", "signed"), ("upgrades", "signed")];
    if let Some((key, value)) = expected.iter().find(|(key, value)| found[*key] != *value) {
        return Err(unexpected(&format!("{key} {value}"), found.to_string()));
    }
    Ok(())
}

/// The one resource of a kind.
pub(super) fn row(cluster: &RunningCluster, node: &Node, kind: &str) -> Result<Value, Error> {
    let text = cluster.clients().strakectl(["--timeout", "5", "-n", &node.local_api(), "get", kind, "-o", "json"])?;
    let rows: Value = serde_json::from_str(&text).map_err(|problem| unexpected("JSON", problem.to_string()))?;
    Ok(rows[0].clone())
}

/// New keys, as a person makes them.
pub(super) fn signing(context: &Context, cache: &Cache, name: &str) -> Result<Signing, Error> {
    let dir = context.dir.join(name);
    run_program(Command::new(&context.programs.strakectl).args(["gen", "secureboot-keys"]).arg(&dir))?;
    Signing::prepare(cache, &context.project, &dir, true, &|step| context.say(step)).map_err(failed)
}

/// The system under test, signed.
pub(super) fn signed(context: &Context, cache: &Cache, signing: &Signing, version: &str, name: &str) -> Result<Image, Error> {
    let binaries: PathBuf = context.programs.strakectl.parent().unwrap_or(Path::new("/")).to_owned();
    let inputs = Inputs {
        project: &context.project,
        replaced: None,
        binaries: &binaries,
        out: &context.dir.join(name),
        version,
        kubernetes: &context.image.kubernetes,
        versions: Versions::Locked,
        signing: Some(signing),
        firmware: &[],
    };
    image::build(cache, &context.programs.tools, &inputs, &|_| {}).map_err(failed)
}

fn flip_middle(file: &Path) -> Result<(), Error> {
    let opened = OpenOptions::new().read(true).write(true).open(file).on("open", file)?;
    let middle = opened.metadata().on("look at", file)?.len() / 2;
    let mut byte = [0];
    opened.read_exact_at(&mut byte, middle).on("read", file)?;
    opened.write_all_at(&[byte[0] ^ 1], middle).on("write", file)
}

fn failed(problem: image::Error) -> Error {
    unexpected("an image", problem.to_string())
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}
