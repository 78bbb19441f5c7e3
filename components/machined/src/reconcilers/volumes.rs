//! ETCD and DATA: found by their labels on the disk the system runs from, checked in a child process, mounted. STATE is
//! mounted before there is a config, by the boot code, with the same functions. One that is full or went read-only is told.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use host::mount::{Flags, LinuxMounts, MountRequest, Mounts, Usage, usage};
use serde_json::json;

use crate::encryption::{self, Opened};
use crate::resources::Store;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::events::Severity;

/// A journal is replayed in seconds; a full check of a large disk after damage takes long.
const CHECK: Duration = Duration::from_secs(270);
const E2FSCK: &str = "/usr/sbin/e2fsck";

/// A superblock has two sectors, and is written in place when it is mounted: a power cut may leave one of them old. e2fsck does not look for a
/// copy by itself when it repairs only what is safe. Where the copy is follows from the block size that every file system here is made with.
const SECOND_SUPERBLOCK: &[&str] = &["-y", "-b", "32768", "-B", "4096"];

/// A volume of which less than one part in so many is left is called full: what works on it fails soon.
const SCARCE: u64 = 50;

/// Mounts what is not mounted.
#[derive(Default)]
pub struct Volumes {
    /// Whether uploads that a crash left behind were removed in this boot.
    cleaned: bool,
    /// What is wrong with each volume, as it was told last.
    told: Told,
}

/// What is mounted where on which role.
fn wanted(control_plane: bool) -> &'static [(&'static str, &'static str)] {
    if control_plane { &[("ETCD", "/system/etcd"), ("DATA", "/var")] } else { &[("DATA", "/var")] }
}

const UPLOADS: &str = "/var/lib/strake/uploads";

/// Directories that every part of the system expects on DATA.
const DIRECTORIES: &[(&str, u32)] = &[
    ("/var/lib/containerd", 0o711),
    ("/var/lib/kubelet", 0o700),
    ("/var/lib/strake/snapshots", 0o700),
    (UPLOADS, 0o700),
    ("/var/lib/cni", 0o755),
    ("/var/log/strake", 0o755),
    ("/var/log/pods", 0o755),
    ("/var/log/containers", 0o755),
    ("/var/tmp", 0o1777),
];

#[tonic::async_trait]
impl Reconciler for Volumes {
    fn name(&self) -> &'static str {
        "volumes"
    }

    fn needs(&self) -> &'static [&'static str] {
        &[]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let machine = &cx.machine;
        let mut mounted = vec![("STATE", machine.paths.state())];
        for &(label, target) in wanted(cx.config().is_control_plane()) {
            let target = machine.paths.at(target);
            let Some((device, _)) = machine.disks.system_partition(label)? else {
                return Err(format!("the disk this system runs from has no partition {label}").into());
            };
            if LinuxMounts.mounted_at(&target)?.is_none() {
                let device = match crate::boot::open(&machine.paths, label, &device).await? {
                    Opened::Plain(device) | Opened::Mapped(device) => device,
                    Opened::Erased => {
                        return Err(format!("the keys of {label} were destroyed: reset the machine and install it again").into());
                    }
                    Opened::Locked(why) => {
                        show_locked(&machine.store, label, &why);
                        return Err(format!("{label} is locked: {why}").into());
                    }
                };
                mount(&device, &target).await?;
            }
            mounted.push((label, target));
        }
        if !self.cleaned {
            // Where volumes on other disks have keys in it, they are opened first.
            if !cx.config().user_volumes.iter().any(|volume| volume.encryption.is_some()) {
                let paths = machine.paths.clone();
                tokio::task::spawn_blocking(move || encryption::close_tpm(&paths)).await?;
            }
            remove_content(&machine.paths.at(UPLOADS))?;
            self.cleaned = true;
        }
        // First what is wrong: a volume with errors may take no directories.
        let mut names = Vec::new();
        for (label, target) in &mounted {
            let wrong = self.told.show(cx, label, target)?;
            names.push(wrong.unwrap_or_else(|| (*label).to_owned()));
        }
        directories(cx)?;
        Ok(Outcome::ready(names.join(", "), Duration::from_secs(30)))
    }
}

/// Checks and mounts an ext4 file system, unless something is mounted there already.
pub async fn mount(device: &Path, target: &Path) -> Result<(), ReconcileError> {
    if LinuxMounts.mounted_at(target)?.is_some() {
        return Ok(());
    }
    let node = device.to_str().ok_or("the device's name is not text")?;
    let mut checked = host::process::run(E2FSCK, &["-p", node], CHECK).await?;
    if !matches!(checked.status.code(), Some(0..=2)) && superblock_is_damaged(&String::from_utf8_lossy(&checked.stdout)) {
        tracing::warn!(device = node, "the file system's superblock is damaged; its copy is used");
        checked = host::process::run(E2FSCK, &[SECOND_SUPERBLOCK, &[node]].concat(), CHECK).await?;
    }
    // e2fsck(8): 1 is "errors corrected"; 2 asks for a reboot only when the file system was mounted.
    match checked.status.code() {
        Some(0) => {}
        Some(1 | 2) => tracing::warn!(device = node, "the file system had errors, which were corrected"),
        _ => {
            let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
            return Err(format!("the file system on {node} is damaged and could not be repaired without loss: {}", said.trim()).into());
        }
    }
    let request = MountRequest {
        source: device.to_owned(),
        target: target.to_owned(),
        kind: "ext4".to_owned(),
        flags: Flags { no_suid: true, no_dev: true, ..Flags::default() },
        // Writing on after the file system found itself damaged makes it worse; the next start checks it.
        options: "errors=remount-ro".to_owned(),
    };
    Ok(tokio::task::spawn_blocking(move || LinuxMounts.mount(&request)).await??)
}

/// Whether e2fsck could not even begin, and says how it might.
fn superblock_is_damaged(said: &str) -> bool {
    said.contains("e2fsck -b ")
}

fn remove_content(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn directories(cx: &Context) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for (path, mode) in DIRECTORIES {
        let path = cx.machine.paths.at(path);
        if !path.exists() {
            std::fs::create_dir_all(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode))?;
        }
    }
    let run = cx.machine.paths.at("/var/run");
    if !run.exists() {
        std::os::unix::fs::symlink("/run", &run)?;
    }
    Ok(())
}

/// A volume that waits for a key, as people ask for it: with the reason.
pub fn show_locked(store: &Store, label: &str, why: &str) {
    store.set("volumes", label, json!({ "encrypted": true, "problem": format!("locked: {why}") }));
}

/// What is wrong with a mounted volume: the reason of an event, and its words.
fn wrong(label: &str, usage: &Usage) -> Option<(&'static str, String)> {
    if usage.read_only {
        return Some(("VolumeReadOnly", format!("{label} is read-only after errors of the disk or the file system; a reboot checks it")));
    }
    // A file system may count no inodes.
    let scarce = |left: u64, total: u64| total > 0 && left < total / SCARCE;
    if !scarce(usage.available_bytes, usage.total_bytes) && !scarce(usage.free_inodes, usage.total_inodes) {
        return None;
    }
    let (left, of) = (usage.available_bytes >> 20, usage.total_bytes >> 20);
    Some(("VolumeFull", format!("{label} is full: {left} of {of} MiB and {} of {} inodes are left", usage.free_inodes, usage.total_inodes)))
}

/// What was told of each volume, so that a trouble is one event however long it lasts.
#[derive(Default)]
pub struct Told(BTreeMap<String, &'static str>);

impl Told {
    /// Shows a mounted volume, and tells what is wrong with it now and was not before. Gives the words.
    pub fn show(&mut self, cx: &Context, label: &str, target: &Path) -> Result<Option<String>, ReconcileError> {
        let Some((reason, message)) = show(cx, label, target)? else {
            self.0.remove(label);
            return Ok(None);
        };
        if self.0.insert(label.to_owned(), reason) != Some(reason) {
            cx.machine.event(Severity::Warning, reason, &message);
        }
        Ok(Some(message))
    }
}

/// Shows a volume, and gives what is wrong with it.
fn show(cx: &Context, label: &str, target: &Path) -> Result<Option<(&'static str, String)>, ReconcileError> {
    let usage = usage(target)?;
    let device = LinuxMounts.mounted_at(target)?.map(|entry| entry.source).unwrap_or_default();
    let encrypted = device.starts_with("/dev/mapper/strake-");
    let wrong = wrong(label, &usage);
    let spec = json!({
        "device": device, "encrypted": encrypted, "mounted": target.display().to_string(),
        "size": usage.total_bytes, "used": usage.total_bytes.saturating_sub(usage.available_bytes),
        "inodes": usage.total_inodes, "inodesFree": usage.free_inodes, "readOnly": usage.read_only,
        "problem": wrong.as_ref().map(|(_, message)| message),
    });
    cx.machine.store.set("volumes", label, spec);
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_is_full_or_read_only_is_told() {
        let usage = Usage { total_bytes: 100 << 20, available_bytes: 50 << 20, total_inodes: 1000, free_inodes: 900, read_only: false };
        let reason = |usage: Usage| wrong("DATA", &usage).map(|(reason, _)| reason);
        for (seen, expected) in [
            (usage, None),
            (Usage { available_bytes: 2 << 20, ..usage }, None),
            (Usage { available_bytes: 1 << 20, ..usage }, Some("VolumeFull")),
            (Usage { free_inodes: 3, ..usage }, Some("VolumeFull")),
            (Usage { total_inodes: 0, free_inodes: 0, ..usage }, None),
            (Usage { available_bytes: 0, read_only: true, ..usage }, Some("VolumeReadOnly")),
        ] {
            assert_eq!(reason(seen), expected, "{seen:?}");
        }
        let (_, message) = wrong("STATE", &Usage { available_bytes: 0, ..usage }).unwrap();
        assert_eq!(message, "STATE is full: 0 of 100 MiB and 900 of 1000 inodes are left");
    }
}
