//! New systems and disks that are wrong, on a machine without Kubernetes. Each leads back to the old slot, or never leaves it, with the
//! reason told: a machined that ends again and again, a root that is not the kernel's, a kernel that hangs before and after the watchdog's driver,
//! a boot partition without room, a disk that gives errors in the middle. What is wrong with services that only a cluster has is in
//! `bad_services`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use super::upgrade::{Bad, DEADLINE, Subject, variant, variant_image};
use super::verity::{flip, slot_start};
use crate::error::{Error, FileContext};
use crate::hang::hang;
use crate::machine::MachineSpec;
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "bad-systems",
    protects: "a machined that crashes, a wrong root, hangs on both sides of the watchdog's driver, a full boot partition and write errors leave the old system",
    run,
};

const CRASHES: Bad =
    Bad { what: "a machined that ends", version: "0.1.3", program: "machined", instead: "strakectl", reason: "said nothing" };
/// It waits for ever where init would load drivers, and nothing of it feeds or arms a watchdog.
const HANGS: Bad = Bad { what: "an init that hangs", version: "0.1.4", program: "init", instead: "pause", reason: "said nothing" };
/// A good system; what is wrong is done to it.
const GOOD: &str = "0.2.0";
const SECTOR: u64 = 512;
/// What the kernel's loader says of a kernel that it starts.
const STARTS: &str = "EFI stub: Loaded initrd";
/// How long a machine that hangs is watched.
const HANGING: Duration = Duration::from_secs(40);

fn run(context: &Context) -> Result<(), Error> {
    let machine = Subject::installed(context)?;
    let first = context.image.version.clone();
    let good = variant_image(context, GOOD, None)?;

    write_error(&machine, &good.upgrade)?;
    machine.runs("ROOT-A", &first)?;

    let stage = ["--stage", "--drain-seconds", "0", "--deadline", DEADLINE];
    machine.upgrade(&good.upgrade, &stage)?;
    let top = good.verity.top_block() * 4096 + 5;
    machine.power_cut(|disk| flip(disk, slot_start(disk, "ROOT-B")? + top))?;
    failed(&machine, "root")?;
    context.say("a root that does not match the kernel's root hash was not run");

    machine.upgrade(&good.upgrade, &stage)?;
    machine.strakectl(&["reboot"])?;
    hangs_in_its_trials(&machine)?;
    failed(&machine, "")?;
    context.say("the watchdog led back to the old slot");

    machine.undoes(&CRASHES)?;
    hangs_before_the_driver(&machine)?;
    full_boot_partition(&machine, &good.upgrade)?;
    machine.runs("ROOT-A", &first)
}

/// The new system's processor hangs in each of its trials: one that said something before it was cut off is begun once more.
fn hangs_in_its_trials(machine: &Subject<'_>) -> Result<(), Error> {
    let (context, emulated) = (machine.context, machine.cluster.machine(&machine.node));
    let mut start = emulated.console().position();
    loop {
        emulated.wait_text(start, "ROOT-B (", context.patience(60))?;
        // init arms the watchdog before it starts anything.
        let trial = emulated.console().position();
        emulated.wait_text(trial, "service logd running", context.patience(60))?;
        hang(&emulated)?;
        context.say("the new system's processor hangs, with the watchdog armed");
        start = emulated.console().position();
        emulated.wait_text(start, "ROOT-A (", context.patience(180))?;
        start = emulated.console().position();
        let ended = context.eventually("the end of the trial, or its second", context.patience(120), || {
            if emulated.console().text_from(start)?.contains("ROOT-B (") {
                return Ok(Some(false));
            }
            Ok(machine.last().ok().filter(|last| last["state"] == "failed").map(|_| true))
        })?;
        if ended {
            return Ok(());
        }
    }
}

/// The last upgrade failed, for a reason with this in it, and the old system runs.
fn failed(machine: &Subject<'_>, reason: &str) -> Result<(), Error> {
    let last = machine.wait_state("failed", GOOD)?;
    let found = last["reason"].as_str().unwrap_or_default();
    if found.is_empty() || !found.contains(reason) {
        return Err(unexpected(&format!("a reason with {reason:?}"), last.to_string()));
    }
    machine.context.say(&format!("  the reason that is told: {found}"));
    machine.runs("ROOT-A", &machine.context.image.version)
}

/// The disk gives errors in the middle of the slot that is written.
fn write_error(machine: &Subject<'_>, image: &Path) -> Result<(), Error> {
    let context = machine.context;
    let emulated = machine.cluster.machine(&machine.node);
    emulated.pull_plug()?;
    let disk = emulated.spec().disk.as_ref().map(|disk| disk.path.clone()).ok_or_else(|| unexpected("a disk", "none".into()))?;
    let sector = slot_start(&disk, "ROOT-B")? / SECTOR + 100_000;
    let rules = context.dir.join("write-error");
    let text = format!("[inject-error]\nevent = \"none\"\niotype = \"write\"\nerrno = \"5\"\nsector = \"{sector}\"\n");
    std::fs::write(&rules, text).on("write", &rules)?;
    let failing = context.start(&MachineSpec { disk_errors: Some(rules), ..emulated.spec().clone() })?;
    machine.runs("ROOT-A", &context.image.version)?;
    let outcome = machine.upgrade(image, &["--drain-seconds", "0", "--deadline", DEADLINE]);
    let Err(problem) = outcome else { return Err(unexpected("an upgrade that fails", "one that does not".into())) };
    context.say(&format!("a write error: {}", problem.to_string().lines().last().unwrap_or_default()));
    failed(machine, "")?;
    // This ends it.
    drop(failing);
    machine.cluster.start_installed(&machine.node, context.accelerator)?;
    Ok(())
}

/// Nobody but a person brings it back, with one power cycle.
fn hangs_before_the_driver(machine: &Subject<'_>) -> Result<(), Error> {
    let context = machine.context;
    let image = variant(context, HANGS.version, Some((HANGS.program, HANGS.instead)))?;
    let before = machine.boot_id()?;
    let emulated = machine.cluster.machine(&machine.node);
    let start = emulated.console().position();
    machine.upgrade(&image, &["--drain-seconds", "0", "--deadline", DEADLINE])?;
    emulated.wait_text(start, STARTS, context.patience(120))?;
    std::thread::sleep(HANGING);
    let text = emulated.console().text_from(start)?;
    let after = text.split_once(STARTS).map(|(_, after)| after).unwrap_or_default();
    // init's first word, and the kernel's next start.
    if after.contains("strake: ") || after.contains(STARTS) {
        return Err(unexpected("a machine that hangs", emulated.console().tail(20)));
    }
    machine.power_cut(|_| Ok(()))?;
    machine.undone(&HANGS, &before)
}

/// Refused before anything is written, and told.
fn full_boot_partition(machine: &Subject<'_>, image: &Path) -> Result<(), Error> {
    machine.power_cut(|disk| {
        let window = Window::open(disk, slot_start(disk, "ESP")?)?;
        fill(window).on("fill the boot partition of", disk)
    })?;
    machine.runs("ROOT-A", &machine.context.image.version)?;
    match machine.upgrade(image, &["--dry-run"]) {
        Ok(said) => Err(unexpected("an upgrade that is refused", said)),
        Err(problem) if problem.to_string().contains("there is room for") => {
            machine.context.say("a boot partition without room: refused, and said so");
            Ok(())
        }
        Err(problem) => Err(unexpected("no room", problem.to_string())),
    }
}

fn fill(window: Window) -> io::Result<()> {
    let volume = fatfs::FileSystem::new(window, fatfs::FsOptions::new())?;
    // A kernel image in the idle slot is room for the next one.
    match volume.root_dir().remove("EFI/Linux/strake-b.efi") {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => return Err(problem),
        _ => {}
    }
    let stats = volume.stats()?;
    // Less than a kernel image is left.
    let most = u64::from(stats.free_clusters()) * u64::from(stats.cluster_size()) - (4 << 20);
    let mut file = volume.root_dir().create_file("full")?;
    let piece = vec![0; 1 << 20];
    for _ in 0..most >> 20 {
        file.write_all(&piece)?;
    }
    file.flush()?;
    drop(file);
    volume.unmount()
}

/// A partition of a disk's file.
struct Window {
    file: File,
    start: u64,
}

impl Window {
    fn open(disk: &Path, start: u64) -> Result<Self, Error> {
        let mut file = OpenOptions::new().read(true).write(true).open(disk).on("open", disk)?;
        file.seek(SeekFrom::Start(start)).on("read", disk)?;
        Ok(Self { file, start })
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Write for Window {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => SeekFrom::Start(self.start + at),
            other => other,
        };
        Ok(self.file.seek(to)? - self.start)
    }
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_in_the_middle_of_a_disk_is_filled() {
        let scratch = tempfile::tempdir().unwrap();
        let (disk, volume) = (scratch.path().join("disk"), scratch.path().join("volume"));
        let size = 64 << 20;
        let file = File::create_new(&volume).unwrap();
        file.set_len(size).unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(&volume).unwrap();
        fatfs::format_volume(&mut file, fatfs::FormatVolumeOptions::new()).unwrap();
        let content = std::fs::read(&volume).unwrap();
        std::fs::write(&disk, [vec![7; 1 << 20], content].concat()).unwrap();
        fill(Window::open(&disk, 1 << 20).unwrap()).unwrap();
        let filled = fatfs::FileSystem::new(Window::open(&disk, 1 << 20).unwrap(), fatfs::FsOptions::new()).unwrap();
        let stats = filled.stats().unwrap();
        let left = u64::from(stats.free_clusters()) * u64::from(stats.cluster_size());
        assert!(left < 6 << 20, "{left}");
        assert_eq!(std::fs::read(&disk).unwrap()[..1 << 20], vec![7; 1 << 20]);
    }
}
