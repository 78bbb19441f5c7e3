//! Installation media: one on which a key was put installs a machine that finds a config of that key's, although its clock's battery is empty, and
//! refuses a config that nobody signed; a machine without any medium boots the whole system from the network; a medium goes on to an installed
//! system unless its menu says otherwise; and a disk with the disk image becomes an installed machine of the disk's size.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::cluster::Cluster;
use crate::cluster::plan::ClusterSpec;
use crate::error::{Error, FileContext};
use crate::scenario::{Context, Scenario};

/// Nobody types a pairing string.
pub const UNATTENDED: Scenario = Scenario {
    name: "unattended",
    protects: "a signed config in the firmware's tables installs a machine by itself, also with a dead clock; an unsigned one does not",
    run: unattended,
};

/// No disk, no drive.
pub const PXE: Scenario =
    Scenario { name: "pxe", protects: "a machine without a medium boots the system from the network to maintenance mode", run: pxe };

/// The drive comes before the disk.
pub const CONTINUE: Scenario = Scenario {
    name: "continue",
    protects: "a medium in an installed machine starts the installed system after a countdown, and maintenance mode when its menu is used",
    run: go_on,
};

/// A disk that was written before the machine started.
pub const RAW: Scenario =
    Scenario { name: "raw", protects: "a disk with the raw disk image takes a config, grows to its disk and runs", run: raw };

/// What a clock shows whose battery is empty.
const DEAD: &str = "1980-01-01T00:00:00";

fn unattended(context: &Context) -> Result<(), Error> {
    let (iso, key) = (context.dir.join("keyed.iso"), context.dir.join("site"));
    std::fs::copy(&context.image.iso, &iso).on("copy", &context.image.iso)?;
    let strakectl = |words: &[&Path]| crate::machine::run(std::process::Command::new(&context.programs.strakectl).args(words));
    strakectl(&[Path::new("gen"), Path::new("config-key"), &key])?;
    let (public, private) = (key.with_extension("pub"), key.with_extension("key"));
    strakectl(&[Path::new("media"), Path::new("--config-key"), &public, &iso])?;

    let spec = ClusterSpec { workers: 0, ..ClusterSpec::small() };
    let refused = context.dir.join("unsigned.yaml");
    std::fs::write(&refused, "kind: MachineConfig\n").on("write", &refused)?;
    let mut unsigned = context.spec("unsigned", 9);
    (unsigned.iso, unsigned.oem_string) = (Some(iso.clone()), Some(oem_string(&refused)?));
    let machine = context.start(&unsigned)?;
    machine.wait_text(0, "is not signed", context.patience(60))?;
    machine.wait_text(0, "stage=maintenance", context.patience(60))?;
    drop(machine);
    context.say("a config that nobody signed is refused, and the machine waits for somebody");

    let cluster = Cluster::open(&context.dir.join("cluster"), &context.run.join("cluster"), &context.programs, &spec)?;
    let installed = cluster.install_by_itself(&iso, context.accelerator, context, |config, spec| {
        let signed = context.dir.join("signed.yaml");
        let words = [Path::new("config"), Path::new("sign"), Path::new("--key"), &private, config];
        std::fs::write(&signed, strakectl(&words)?).on("write", &signed)?;
        (spec.oem_string, spec.clock) = (Some(oem_string(&signed)?), Some(DEAD.to_owned()));
        Ok(())
    });
    let outcome = installed.and_then(|()| {
        context.say("the machine installed itself, and its API answers with the cluster's certificates");
        let node = cluster.plan().control_plane();
        let date = cluster.clients().strakectl(["-n", &node.local_api(), "get", "events"])?;
        let said = date.contains("ClockSetToFloor");
        context.say(&format!("its clock was dead{}", if said { ", and was set to what is known to be past" } else { "" }));
        cluster.become_cluster(&[], context)
    });
    cluster.down()?;
    outcome
}

fn oem_string(config: &Path) -> Result<String, Error> {
    let text = std::fs::read(config).on("read", config)?;
    Ok(format!("strake.config:{}", STANDARD.encode(text)))
}

fn pxe(context: &Context) -> Result<(), Error> {
    let mut spec = context.spec("pxe", 1);
    let file: PathBuf = context.image.pxe.clone();
    (spec.iso, spec.network_boot) = (None, Some(file));
    let machine = context.start(&spec)?;
    machine.wait_text(0, "found on the kernel image (Media)", context.patience(300))?;
    context.say(&format!("the root was found in memory, of {} MiB", spec.memory_mib));
    machine.wait_text(0, "stage=maintenance", context.patience(60))?;
    context.say("it is in maintenance mode");
    Ok(())
}

fn go_on(context: &Context) -> Result<(), Error> {
    let cluster = context.installed_machine()?;
    let node = cluster.plan().control_plane();
    cluster.machine(node).pull_plug()?;
    let start = cluster.machine(node).console().position();
    let machine = cluster.start_medium(node, &context.image.iso, context.accelerator)?;
    machine.wait_text(start, "(Media)", context.patience(60))?;
    machine.wait_text(start, "is started in", context.patience(60))?;
    context.say("the medium counts down");
    machine.wait_text(start, "(Disk)", context.patience(120))?;
    cluster.wait_running(node)?;
    context.say("the installed system runs, with the medium still in the drive");

    let start = machine.console().position();
    machine.reset()?;
    machine.wait_text(start, "whatever is installed", context.patience(60))?;
    for key in ["down", "ret"] {
        machine.monitor().execute("send-key", json!({"keys": [{"type": "qcode", "data": key}]}))?;
        std::thread::sleep(Duration::from_millis(200));
    }
    machine.wait_text(start, "maintenance mode was asked for", context.patience(60))?;
    machine.wait_text(start, "stage=maintenance", context.patience(30))?;
    context.say("the menu's other entry leads to maintenance mode");
    Ok(())
}

fn raw(context: &Context) -> Result<(), Error> {
    let spec = ClusterSpec { workers: 0, ..ClusterSpec::small() };
    let cluster = Cluster::open(&context.dir.join("cluster"), &context.run.join("cluster"), &context.programs, &spec)?;
    let node = cluster.plan().control_plane();
    let installed = cluster.install_from_disk(&context.image.raw, context.accelerator, context);
    let outcome = installed.and_then(|()| {
        let words = ["--timeout", "10", "-n", &node.local_api(), "read", "/proc/partitions"];
        let partitions = cluster.clients().strakectl(words)?;
        // The last partition ends a MiB before the disk does.
        let last = partitions.lines().filter_map(|line| line.split_whitespace().nth(3)).filter(|name| name.starts_with("vda")).max();
        context.say(&format!("the machine runs from the image, with partitions up to {}", last.unwrap_or("none")));
        match last {
            Some("vda7") => Ok(()),
            other => Err(Error::Unexpected { what: "the disk".into(), expected: "ETCD and DATA".into(), found: format!("{other:?}") }),
        }
    });
    cluster.down()?;
    outcome
}
