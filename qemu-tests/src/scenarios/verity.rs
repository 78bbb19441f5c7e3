//! A damaged root is never run: an installed machine reads its root through dm-verity; one byte changed on its disk, in a program or in
//! the hash tree, makes it stop with the reason on the console, and the byte put back makes it run again.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::cluster::plan::Node;
use crate::error::{Error, FileContext};
use crate::machine::run as run_program;
use crate::scenario::{Context, RunningCluster, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "verity",
    protects: "an installed machine reads its root through dm-verity, and never runs on with a changed byte of it",
    run,
};

const SLOT: &str = "ROOT-A";
const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;

/// Where a byte is changed, and what the machine says.
struct Damage {
    what: &'static str,
    /// The byte's place in the slot.
    at: u64,
    /// All of these are on the console, before the machine starts again.
    says: &'static [&'static str],
}

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.installed_machine()?;
    let node = cluster.plan().control_plane().clone();
    runs_verified(context, &cluster, &node)?;

    let machine = cluster.machine(&node);
    let disk = machine.spec().disk.as_ref().map(|disk| disk.path.clone()).ok_or_else(|| unexpected("a disk", "none".to_owned()))?;
    machine.pull_plug()?;
    let slot = slot_start(&disk, SLOT)?;
    let program = program_block(context, "/usr/bin/machined")?;
    for Damage { what, at, says } in [
        Damage {
            what: "the program machined",
            at: program * BLOCK + 100,
            says: &["must match the root hash", "is corrupted", "Kernel panic - not syncing: dm-verity device corrupted"],
        },
        Damage {
            what: "the top of the hash tree",
            at: context.image.verity.top_block() * BLOCK + 5,
            says: &["ROOT-A (/dev/vda2) does not hold the root that this kernel belongs to", "install again", "rebooting in"],
        },
    ] {
        flip(&disk, slot + at)?;
        let start = machine.console().position();
        let machine = cluster.start_installed(&node, context.accelerator)?;
        // The second start shows that the machine really restarted by itself.
        let text = machine.wait_console(start, "a restart of the damaged machine", context.patience(120), |text| {
            (text.matches("found on /dev/vda2").count() > 1).then(|| text.to_owned())
        })?;
        machine.pull_plug()?;
        if let Some(missing) = says.iter().find(|part| !text.contains(*part)) {
            return Err(unexpected(&format!("{missing:?} on the console"), text));
        }
        // The first thing machined does on the console.
        if text.contains("strake: stage=") {
            return Err(unexpected("a machine that does not run with a damaged root", text));
        }
        context.say(&format!("a changed byte in {what}: refused, restarted, told on the console"));
        flip(&disk, slot + at)?;
    }

    cluster.start_installed(&node, context.accelerator)?;
    context.say("the bytes are as they were");
    runs_verified(context, &cluster, &node)
}

/// Waits for the machine and looks at its root from inside.
fn runs_verified(context: &Context, cluster: &RunningCluster, node: &Node) -> Result<(), Error> {
    let (clients, api) = (cluster.clients(), node.local_api());
    let mounts = context.eventually("the machine API to answer", context.patience(120), || {
        Ok(clients.strakectl(["--timeout", "5", "-n", &api, "read", "/proc/mounts"]).ok())
    })?;
    if !mounts.lines().any(|line| line.starts_with("/dev/mapper/strake-root / erofs ro")) {
        return Err(unexpected("the verified device as the root", mounts));
    }
    let shown = clients.strakectl(["-n", &api, "get", "root"])?;
    let root_hash = context.image.verity.root_hash().to_string();
    for part in [SLOT, "verified", &root_hash] {
        if !shown.contains(part) {
            return Err(unexpected(&format!("{part} in `strakectl get root`"), shown));
        }
    }
    context.say(&format!("{SLOT} is verified against {root_hash}"));
    Ok(())
}

/// The first byte of the partition with this label on the disk.
pub fn slot_start(disk: &Path, label: &str) -> Result<u64, Error> {
    let table = gpt::GptConfig::new().open(disk).map_err(|problem| unexpected("a partition table", problem.to_string()))?;
    let slot = table.partitions().values().find(|partition| partition.name == label);
    slot.map(|partition| partition.first_lba * SECTOR).ok_or_else(|| unexpected(label, "no such partition".to_owned()))
}

/// A block of the file system that holds part of a program: its first, which nothing can start the program without.
fn program_block(context: &Context, path: &str) -> Result<u64, Error> {
    let mut command = context.programs.tools.command("dump.erofs")?;
    let text = run_program(command.arg("-e").arg(format!("--path={path}")).arg(&context.image.root))?;
    let first = extents(&text).first().map(|start| start / BLOCK);
    first.ok_or_else(|| unexpected("extents of the program", text))
}

/// Where the extents that dump.erofs lists begin: lines `number: logical.. end | length : physical.. end | length`.
fn extents(text: &str) -> Vec<u64> {
    let start = |line: &str| line.split_once('|')?.1.split_once(':')?.1.split("..").next()?.trim().parse().ok();
    text.lines().filter_map(start).collect()
}

pub fn flip(disk: &Path, at: u64) -> Result<(), Error> {
    let file: File = OpenOptions::new().read(true).write(true).open(disk).on("open", disk)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).on("read", disk)?;
    file.write_all_at(&[byte[0] ^ 0x10], at).on("write", disk)
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_read_from_the_tools_list() {
        let text = "Path : /usr/bin/machined\nSize: 9\n\n Ext:   logical offset   |  length :     physical offset    |  length\n   \
                    0:        0..   65536 |   65536 :     147456..    188416 |   40960\n   1:    65536..  131072 |   65536 :     188416..    217088 |   28672\n";
        assert_eq!(extents(text), [147_456, 188_416]);
    }
}
