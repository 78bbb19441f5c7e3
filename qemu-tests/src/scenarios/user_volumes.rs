//! A volume on a disk of its own: a disk that is plugged in becomes it, one that holds something else does not, and one that is pulled out is
//! told, disturbs nothing, and comes back with what it held.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, FileContext};
use crate::machine::create_disk;
use crate::qmp::Monitor;
use crate::scenario::{Context, RunningCluster, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "user-volumes",
    protects: "a disk that is plugged in becomes a volume, one that holds something is left alone, and one that vanishes is told and comes back as it was",
    run,
};

/// The same with a volume that only a person opens.
pub const ENCRYPTED: Scenario = Scenario {
    name: "user-volumes-encrypted",
    protects: "an encrypted volume on another disk is made with the passphrase that a person gives, shows nothing of itself, and opens with that alone",
    run: encrypted,
};

const SIZE: u64 = 256 << 20;
const PASSPHRASE: &str = "correct horse battery staple";
/// In the volume's document.
const ENCRYPTION: &str = "encryption:\n  recoveryKey: false\n  keys:\n  - {slot: 0, passphrase: {memoryMiB: 16}}\n";
/// Where ext4's superblock has the file system's UUID, on a partition that begins at the first MiB.
const UUID: u64 = (1 << 20) + 1024 + 0x68;

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.installed_machine()?;
    let machine = cluster.machine(cluster.plan().control_plane());
    let (monitor, subject) = (machine.monitor(), Subject { context, cluster: &cluster });

    let disk = context.dir.join("user-1.disk");
    create_disk(&disk, SIZE)?;
    plug(&monitor, "user-1", &disk)?;
    subject.wants("serial: user-1", "")?;
    subject.is_mounted()?;
    let made = uuid(&disk)?;
    context.say("a disk that was plugged in became the volume");

    unplug(context, &monitor, "user-1")?;
    subject.says("matches no disk")?;
    subject.strakectl(&["version"])?;
    if subject.strakectl(&["ls", "/var/mnt"]).is_ok_and(|listed| listed.contains("data")) {
        return Err(unexpected("no directory without its volume", "/var/mnt/data".to_owned()));
    }
    context.say("it was pulled out: told, and the machine answers");

    plug(&monitor, "user-1", &disk)?;
    subject.is_mounted()?;
    if uuid(&disk)? != made {
        return Err(unexpected("the file system that was there", "another one".to_owned()));
    }
    unplug(context, &monitor, "user-1")?;
    subject.says("matches no disk")?;
    context.say("it came back as it was");

    let foreign = context.dir.join("user-2.disk");
    create_disk(&foreign, SIZE)?;
    let mut bytes = fs::read(&foreign).on("read", &foreign)?;
    bytes[512..520].copy_from_slice(b"precious");
    fs::write(&foreign, &bytes).on("write", &foreign)?;
    plug(&monitor, "user-2", &foreign)?;
    subject.wants("serial: user-2", "")?;
    subject.says("set wipe to true if it may be overwritten")?;
    if fs::read(&foreign).on("read", &foreign)? != bytes {
        return Err(unexpected("a disk that was left alone", "another content".to_owned()));
    }
    context.say("a disk that holds something was left alone");
    Ok(())
}

fn encrypted(context: &Context) -> Result<(), Error> {
    let cluster = context.installed_machine()?;
    let machine = cluster.machine(cluster.plan().control_plane());
    let (monitor, subject) = (machine.monitor(), Subject { context, cluster: &cluster });
    let key_file = |name: &str, text: &str| {
        let path = context.dir.join(name);
        fs::write(&path, format!("{text}\n")).on("write", &path).map(|()| path.to_string_lossy().into_owned())
    };
    let (right, wrong) = (key_file("passphrase", PASSPHRASE)?, key_file("wrong", "open sesame")?);

    let disk = context.dir.join("user-1.disk");
    create_disk(&disk, SIZE)?;
    plug(&monitor, "user-1", &disk)?;
    subject.wants("serial: user-1", ENCRYPTION)?;
    subject.says("nobody gave it")?;
    if fs::read(&disk).on("read", &disk)?.iter().any(|byte| *byte != 0) {
        return Err(unexpected("a disk that nothing was written to", "something on it".to_owned()));
    }
    subject.strakectl(&["unlock", "--key-file", &right])?;
    subject.is_mounted()?;
    if subject.volume().is_none_or(|volume| volume["encrypted"] != true) {
        return Err(unexpected("an encrypted volume", format!("{:?}", subject.volume())));
    }
    let start = fs::read(&disk).on("read", &disk)?[1 << 20..][..8].to_vec();
    if start != *b"LUKS\xba\xbe\0\x02" {
        return Err(unexpected("LUKS2 on the disk", format!("{start:?}")));
    }
    context.say("made with the passphrase that was given");

    let boot = subject.strakectl(&["read", "/proc/sys/kernel/random/boot_id"])?;
    subject.strakectl(&["reboot"])?;
    context.eventually("another boot", context.patience(180), || {
        Ok(subject.strakectl(&["read", "/proc/sys/kernel/random/boot_id"]).ok().filter(|now| *now != boot).map(drop))
    })?;
    subject.says("locked: it takes the passphrase")?;
    match subject.strakectl(&["unlock", "--key-file", &wrong]) {
        Err(problem) if problem.to_string().contains("none of its keys") => {}
        Err(problem) => return Err(problem),
        Ok(outcome) => return Err(unexpected("a refusal of a wrong passphrase", outcome)),
    }
    subject.strakectl(&["unlock", "--key-file", &right])?;
    subject.is_mounted()?;
    context.say("after a start it waits for the passphrase, while the machine runs, and takes no other");

    unplug(context, &monitor, "user-1")?;
    subject.says("matches no disk")?;
    plug(&monitor, "user-1", &disk)?;
    subject.says("locked: it takes the passphrase")?;
    subject.strakectl(&["unlock", "--key-file", &right])?;
    subject.is_mounted()?;
    context.say("pulled out and put back, it waits for it again");
    Ok(())
}

/// Puts a disk into the machine's free slot.
fn plug(monitor: &Monitor, serial: &str, disk: &Path) -> Result<(), Error> {
    let file = json!({"driver": "file", "filename": disk, "cache": {"direct": false, "no-flush": false}});
    monitor.execute("blockdev-add", json!({"driver": "raw", "node-name": serial, "file": file}))?;
    let device = json!({"driver": "virtio-blk-pci", "id": format!("dev-{serial}"), "bus": "free-slot", "drive": serial, "serial": serial});
    monitor.execute("device_add", device).map(drop)
}

/// Pulls it out; the file can be read when QEMU has let go of it.
fn unplug(context: &Context, monitor: &Monitor, serial: &str) -> Result<(), Error> {
    monitor.execute("device_del", json!({"id": format!("dev-{serial}")}))?;
    context.eventually("the disk to be let go of", context.patience(60), || {
        Ok(monitor.execute("blockdev-del", json!({"node-name": serial})).ok())
    })?;
    Ok(())
}

fn uuid(disk: &Path) -> Result<[u8; 16], Error> {
    let mut uuid = [0; 16];
    let mut file = File::open(disk).on("open", disk)?;
    file.seek(SeekFrom::Start(UUID)).and_then(|_| file.read_exact(&mut uuid)).on("read", disk)?;
    if uuid == [0; 16] { Err(unexpected("a file system", "an empty disk".to_owned())) } else { Ok(uuid) }
}

struct Subject<'a> {
    context: &'a Context,
    cluster: &'a RunningCluster,
}

impl Subject<'_> {
    fn strakectl(&self, words: &[&str]) -> Result<String, Error> {
        let api = self.cluster.plan().control_plane().local_api();
        self.cluster.clients().strakectl([&["--timeout", "20", "-n", &api], words].concat())
    }

    /// Applies the machine's config with the volume on a disk like this, and more of its document.
    fn wants(&self, selector: &str, more: &str) -> Result<(), Error> {
        let file = self.cluster.config(self.cluster.plan().control_plane());
        let text = fs::read_to_string(&file).on("read", &file)?;
        let document = format!("\n---\napiVersion: strake.dev/v1alpha1\nkind: UserVolumeConfig\nname: data\ndisk: {{{selector}}}\n{more}");
        let wanted = self.context.dir.join("with-volume.yaml");
        fs::write(&wanted, text + &document).on("write", &wanted)?;
        self.strakectl(&["apply-config", "--mode", "no-reboot", "-f", &wanted.to_string_lossy()]).map(drop)
    }

    fn volume(&self) -> Option<Value> {
        let text = self.strakectl(&["get", "volumes", "u-data", "-o", "json"]).ok()?;
        let rows: Value = serde_json::from_str(&text).ok()?;
        Some(rows[0].clone())
    }

    fn is_mounted(&self) -> Result<(), Error> {
        self.context.eventually("the volume to be mounted", self.context.patience(90), || {
            Ok(self.volume().filter(|volume| volume["mounted"] == "/var/mnt/data" && volume["problem"].is_null()).map(drop))
        })
    }

    fn says(&self, trouble: &str) -> Result<(), Error> {
        self.context.eventually(&format!("the volume to say {trouble:?}"), self.context.patience(90), || {
            Ok(self.volume().filter(|volume| volume["problem"].as_str().is_some_and(|told| told.contains(trouble))).map(drop))
        })
    }
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}
