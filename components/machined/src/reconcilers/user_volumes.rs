//! User volumes: each on a disk of its own, found by its partition's name, made when there is none, opened when it is encrypted, mounted under
//! `/var/mnt`. One that is not there holds up nothing but what waits for its directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use host::mount::{LinuxMounts, Mounts};
use machine_config::disk::{Selection, select};
use machine_config::{USER_VOLUME_LABEL as LABEL, UserVolumeConfig};
use serde_json::json;

use crate::api::chain;
use crate::encryption::{self, EncryptionError, Mapping, Opened};
use crate::install::user;
use crate::machine::ObservedDisk;

use super::volumes::{Told, show_locked};
use super::{Context, Outcome, ReconcileError, Reconciler, mount};

/// Where they are mounted.
const PLACE: &str = "/var/mnt";
/// How soon a disk that is gone, or came back, is noticed.
const AGAIN: Duration = Duration::from_secs(10);

/// Makes and mounts them.
#[derive(Default)]
pub struct UserVolumes {
    told: Told,
}

/// What a volume needs.
#[derive(Clone, Debug, PartialEq)]
enum Plan {
    /// It is on this partition.
    Mount(PathBuf),
    /// It is on no disk yet; this one is to become it.
    Make(ObservedDisk),
    /// It cannot be had.
    Missing(String),
}

/// `carrying`: the partitions with the volume's name. `taken`: names of the disks that carry a system or another volume, which never become one.
fn plan(volume: &UserVolumeConfig, carrying: &[(String, PathBuf)], disks: &[ObservedDisk], taken: &[String]) -> Plan {
    match carrying {
        [(_, node)] => return Plan::Mount(node.clone()),
        [] => {}
        several => {
            let names: Vec<&str> = several.iter().map(|(disk, _)| disk.as_str()).collect();
            return Plan::Missing(format!("several disks carry it ({}); remove all but one", names.join(", ")));
        }
    }
    let free: Vec<_> = disks.iter().filter(|disk| !taken.contains(&disk.disk.name)).collect();
    let known: Vec<_> = free.iter().map(|disk| disk.disk.clone()).collect();
    match select(&volume.disk, &known) {
        Selection::One(name) => match free.into_iter().find(|disk| disk.disk.name == name) {
            Some(disk) => Plan::Make(disk.clone()),
            None => Plan::Missing("its disk is gone".to_owned()),
        },
        other => Plan::Missing(other.of("its disk selector")),
    }
}

fn planned(cx: &Context, volume: &UserVolumeConfig) -> std::io::Result<Plan> {
    let disks = &cx.machine.disks;
    let mut taken: Vec<String> = disks.installations()?.into_iter().map(|installed| installed.disk).collect();
    for other in cx.config().user_volumes.iter().filter(|other| other.name != volume.name) {
        taken.extend(disks.labelled(&other.label())?.into_iter().map(|(disk, _)| disk));
    }
    Ok(plan(volume, &disks.labelled(&volume.label())?, &disks.observe()?, &taken))
}

#[tonic::async_trait]
impl Reconciler for UserVolumes {
    fn name(&self) -> &'static str {
        "user-volumes"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["volumes"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let outcome = self.round(cx).await;
        // What is on the disks that are there is open now, or waits for a person.
        let paths = cx.machine.paths.clone();
        tokio::task::spawn_blocking(move || encryption::close_tpm(&paths)).await?;
        outcome
    }
}

impl UserVolumes {
    async fn round(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let volumes = &cx.config().user_volumes;
        let (mut problems, mut names) = (remove_others(cx, volumes)?, Vec::new());
        let mut waiting = Vec::new();
        for volume in volumes {
            let target = cx.machine.paths.at(PLACE).join(&volume.name);
            let label = volume.label();
            match ensure(cx, volume, &target).await {
                Ok(()) => names.push(self.told.show(cx, &label, &target)?.unwrap_or_else(|| volume.name.clone())),
                Err(Trouble::Locked(why)) => {
                    show_locked(&cx.machine.store, &label, &why);
                    problems.push(format!("{} is locked: {why}", volume.name));
                }
                Err(trouble) => {
                    let problem = match &trouble {
                        Trouble::Other(error) => chain(error.as_ref()),
                        Trouble::Locked(why) => why.clone(),
                        Trouble::Waits(error) => {
                            waiting.push(label.clone());
                            chain(error)
                        }
                    };
                    cx.machine.store.set("volumes", &label, json!({"mounted": "", "problem": problem}));
                    problems.push(format!("{}: {problem}", volume.name));
                }
            }
        }
        cx.machine.given.waits(waiting);
        if !problems.is_empty() {
            return Err(problems.join("; ").into());
        }
        let (detail, again) = if names.is_empty() { ("none".to_owned(), Duration::from_secs(3600)) } else { (names.join(", "), AGAIN) };
        Ok(Outcome::ready(detail, again))
    }
}

/// Why a volume is not mounted.
enum Trouble {
    /// It takes a key that the machine does not have.
    Locked(String),
    /// It is to be made, and takes a key that nobody gave yet.
    Waits(EncryptionError),
    /// Anything else.
    Other(ReconcileError),
}

impl<E: Into<ReconcileError>> From<E> for Trouble {
    fn from(error: E) -> Trouble {
        Trouble::Other(error.into())
    }
}

async fn ensure(cx: &Context, volume: &UserVolumeConfig, target: &Path) -> Result<(), Trouble> {
    let (label, encrypted) = (volume.label(), volume.encryption.is_some());
    if let Some(entry) = LinuxMounts.mounted_at(target)? {
        if is_there(cx, &label, encrypted, Path::new(&entry.source))? {
            return Ok(());
        }
        // Its disk was pulled out: whoever uses it gets errors, and when it comes back it can be mounted again.
        tracing::warn!(volume = volume.name, device = entry.source, "the disk of a volume is gone");
        LinuxMounts.unmount(target, true)?;
        if encrypted {
            let paths = cx.machine.paths.clone();
            tokio::task::spawn_blocking(move || encryption::close_later(&paths, &label)).await??;
        }
    }
    let node = match planned(cx, volume)? {
        Plan::Mount(node) => node,
        Plan::Missing(why) => {
            forget_directory(target);
            return Err(why.into());
        }
        Plan::Make(disk) => return make(cx, volume, disk, target).await,
    };
    Ok(mount(&open(cx, volume, &node).await?, target).await?)
}

/// Whether what is mounted is the disk that is there. A mapped device stays when what is behind it was pulled out.
fn is_there(cx: &Context, label: &str, encrypted: bool, source: &Path) -> Result<bool, ReconcileError> {
    if !encrypted {
        return Ok(source.exists());
    }
    let carrying = cx.machine.disks.labelled(label)?;
    Ok(is_on(&encryption::mapping(&cx.machine.paths, label), &carrying))
}

/// Whether an open volume is on one of these partitions.
fn is_on(mapping: &Mapping, carrying: &[(String, PathBuf)]) -> bool {
    let Mapping::On(devices) = mapping else { return false };
    carrying.iter().any(|(_, node)| devices.iter().any(|device| node.file_name().is_some_and(|name| name == device.as_str())))
}

async fn make(cx: &Context, volume: &UserVolumeConfig, disk: ObservedDisk, target: &Path) -> Result<(), Trouble> {
    let (label, paths, encryption) = (volume.label(), cx.machine.paths.clone(), volume.encryption.clone());
    let (given, what) = (cx.machine.given.get(), label.clone());
    // The keys first: nothing is written before they are all there.
    let keys = tokio::task::spawn_blocking(move || encryption.map(|encryption| encryption::plan_user(&paths, &what, &encryption, &given)));
    let keys = match keys.await?.transpose() {
        Err(missing @ EncryptionError::Missing { .. }) => return Err(Trouble::Waits(missing)),
        keys => keys?,
    };
    tracing::info!(volume = volume.name, disk = disk.disk.name, encrypted = keys.is_some(), "making a volume");
    let (paths, planned_keys) = (cx.machine.paths.clone(), keys.clone());
    let making = user::Target { disk: disk.node.clone(), size: disk.disk.size, sector: disk.sector, name: label, wipe: volume.wipe };
    tokio::task::spawn_blocking(move || user::make(&making, &paths, planned_keys.as_ref())).await??;
    cx.machine.disks.look_again(&disk.node)?;
    let Plan::Mount(node) = planned(cx, volume)? else {
        return Err(format!("{} was made the volume, but the kernel does not show its partition", disk.disk.name).into());
    };
    let device = match keys {
        None => node,
        Some(keys) => {
            let paths = cx.machine.paths.clone();
            tokio::task::spawn_blocking(move || encryption::open_made(&keys, &node, &paths)).await??
        }
    };
    Ok(mount(&device, target).await?)
}

/// The device that is to be mounted: the partition, or what it is opened as.
async fn open(cx: &Context, volume: &UserVolumeConfig, node: &Path) -> Result<PathBuf, Trouble> {
    let label = volume.label();
    if volume.encryption.is_none() {
        if encryption::is_encrypted(node)? {
            return Err("its disk is encrypted, and the config does not say so".into());
        }
        return Ok(node.to_owned());
    }
    match encryption::mapping(&cx.machine.paths, &label) {
        Mapping::None => {}
        open if is_on(&open, &[(String::new(), node.to_owned())]) => {}
        Mapping::On(_) => return Err("what used its disk before that was pulled out still does; end it".into()),
    }
    match crate::boot::open(&cx.machine.paths, &label, node).await? {
        Opened::Mapped(device) => Ok(device),
        Opened::Plain(_) => Err("its disk is not encrypted, and the config says that it is; it stays as it was made".into()),
        Opened::Erased => Err("its keys were destroyed: it holds nothing any more; empty the disk to make it anew".into()),
        Opened::Locked(why) => Err(Trouble::Locked(why)),
    }
}

/// Unmounts and forgets volumes that are in the config no more. What they hold stays on their disks.
fn remove_others(cx: &Context, volumes: &[UserVolumeConfig]) -> Result<Vec<String>, ReconcileError> {
    let place = cx.machine.paths.at(PLACE);
    let mut problems = Vec::new();
    for entry in LinuxMounts.list()? {
        let Some(name) = entry.target.strip_prefix(&place).ok().and_then(Path::to_str).filter(|name| is_name(name)) else { continue };
        if volumes.iter().any(|volume| volume.name == name) {
            continue;
        }
        match LinuxMounts.unmount(&entry.target, false) {
            Ok(()) => {
                forget_directory(&entry.target);
                let label = format!("{LABEL}{name}");
                if encryption::mapping(&cx.machine.paths, &label) != Mapping::None
                    && let Err(error) = encryption::close_later(&cx.machine.paths, &label)
                {
                    problems.push(format!("{name} is in the config no more, and still open: {}", chain(&error)));
                }
            }
            Err(error) => problems.push(format!("{name} is in the config no more, and still used: {}", chain(&error))),
        }
    }
    // Also those that were never mounted.
    let shown = cx.machine.store.get("volumes", None).into_iter().map(|volume| volume.id);
    for label in shown.filter(|label| label.starts_with(LABEL) && !volumes.iter().any(|volume| volume.label() == *label)) {
        cx.machine.store.remove("volumes", &label);
    }
    Ok(problems)
}

/// Whether a path below [`PLACE`] is a volume's, and not that of something mounted inside one.
fn is_name(path: &str) -> bool {
    !path.is_empty() && !path.contains('/')
}

/// Without its volume the directory is not there either: a pod with a `hostPath` of type `Directory` waits, and nobody writes to the system's disk.
fn forget_directory(target: &Path) {
    if let Err(error) = std::fs::remove_dir(target)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %target.display(), %error, "the directory of a volume that is not mounted stays");
    }
}

#[cfg(test)]
mod tests {
    use machine_config::disk::Disk;
    use machine_config::{DocumentKind, Documents};

    use super::*;

    fn volume(selector: &str) -> UserVolumeConfig {
        let text = format!("apiVersion: strake.dev/v1alpha1\nkind: UserVolumeConfig\nname: data\ndisk: {selector}\n");
        let documents = Documents::parse("test", &text).unwrap_or_else(|errors| panic!("{errors}"));
        match documents.iter().next() {
            Some(DocumentKind::UserVolumeConfig(volume)) => volume.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn disk(name: &str, serial: &str) -> ObservedDisk {
        let node = PathBuf::from(format!("/dev/{name}"));
        let disk = Disk { name: name.to_owned(), serial: serial.to_owned(), size: 1 << 30, ..Disk::default() };
        ObservedDisk { disk, node, sector: 512 }
    }

    #[test]
    fn a_volume_is_found_made_or_missing() {
        let disks = [disk("vda", "system"), disk("vdb", "one"), disk("vdc", "two")];
        let taken = ["vda".to_owned()];
        let on = |disk: &str| (disk.to_owned(), PathBuf::from(format!("/dev/{disk}1")));
        let one = volume("{serial: one}");
        // Its partition finds it, whatever the selector says now.
        assert_eq!(plan(&one, &[on("vdc")], &disks, &taken), Plan::Mount("/dev/vdc1".into()));
        assert_eq!(plan(&one, &[], &disks, &taken), Plan::Make(disk("vdb", "one")));
        let missing =
            |volume: &UserVolumeConfig, carrying: &[(String, PathBuf)], disks: &[ObservedDisk]| match plan(volume, carrying, disks, &taken)
            {
                Plan::Missing(why) => why,
                other => panic!("{other:?}"),
            };
        assert_eq!(missing(&one, &[on("vdb"), on("vdc")], &disks), "several disks carry it (vdb, vdc); remove all but one");
        assert!(missing(&volume("{size: '> 1MB'}"), &[], &disks).starts_with("its disk selector matches 2 disks (vdb, vdc)"));
        // The system's own disk is none of them.
        assert_eq!(missing(&volume("{serial: system}"), &[], &disks[..1]), "its disk selector matches no disk: this machine has none");
        assert!(missing(&one, &[], &disks[2..]).contains("vdc: its serial is \"two\""));
    }
    #[test]
    fn an_open_volume_is_the_one_of_the_disk_that_is_there() {
        let carrying = [("vdb".to_owned(), PathBuf::from("/dev/vdb1"))];
        let on = |devices: &[&str]| Mapping::On(devices.iter().map(|device| (*device).to_owned()).collect());
        for (mapping, expected) in [(on(&["vdb1"]), true), (on(&["vdc1"]), false), (on(&[]), false), (Mapping::None, false)] {
            assert_eq!(is_on(&mapping, &carrying), expected, "{mapping:?}");
        }
        assert!(!is_on(&on(&["vdb1"]), &[]), "pulled out");
    }
}
