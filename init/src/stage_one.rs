//! Stage one, in the initramfs: mount the pseudo file systems, load the modules that lead to the root, find it, move into it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use host::loop_device;
use host::secure_boot::SecureBoot;
use node_ipc::init::{BOOT_INFO_FILE, BootInfo, BootSource, MEDIA_DIR, PCR_PUBLIC_KEY_FILE, PCR_SIGNATURE_FILE, Slot};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};
use verity::Parameters;

use crate::loader::Origin;
use crate::meta::{self, Kept};
use crate::root::{BlockDevice, Search};
use crate::verified::{self, VerifyError};
use crate::{cmdline, loader, modules, mounts, report, root};

const SYSROOT: &str = "/sysroot";
/// What is on a medium otherwise, when the kernel image brought it along: a machine that boots from the network has no medium.
const MEDIA_IN_MEMORY: &str = "/media";
const IN_MEMORY: &str = "the kernel image";
const POLL: Duration = Duration::from_millis(100);
/// A medium is taken when the devices have not changed for this long: a disk that is installed goes first.
const SETTLE: Duration = Duration::from_millis(1500);

/// What systemd-stub leaves beside the initramfs, and where machined finds it.
const MEASURED: [(&str, &str); 2] =
    [("/.extra/tpm2-pcr-public-key.pem", PCR_PUBLIC_KEY_FILE), ("/.extra/tpm2-pcr-signature.json", PCR_SIGNATURE_FILE)];
/// More than either has.
const MEASURED_MOST: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
enum StageOneError {
    #[error(
        "secure boot is enabled, and the kernel's command line is not the image's own; {0}; take that out of the firmware's tables (SMBIOS type 11) or the loader's files"
    )]
    CommandLine(String),
    #[error("no root {uuid} {place} after {waited:?}; devices: {devices}")]
    RootNotFound { uuid: String, place: String, waited: Duration, devices: String },
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("{0}; start the installation medium and install again, unless the other slot is started now")]
    Damaged(String),
    #[error(transparent)]
    Loop(#[from] loop_device::LoopError),
    #[error("mount {device} on {SYSROOT}")]
    MountRoot { device: PathBuf, source: Errno },
    #[error("write {BOOT_INFO_FILE}")]
    WriteBootInfo(#[source] io::Error),
    #[error("move {0} into the root")]
    MoveMount(&'static str, #[source] Errno),
    #[error("switch to the root")]
    SwitchRoot(#[source] Errno),
    #[error("execute /usr/bin/init of the root")]
    Exec(#[source] io::Error),
}

/// Ends by executing the root's init.
pub fn run() -> Result<Infallible, Box<dyn Error>> {
    mounts::mount_all(mounts::STAGE_ONE, |_| {})?;
    report::info("stage one");
    only_own_command_line(SecureBoot::of(Path::new("/")), cmdline::changed())?;
    load_listed_modules(Path::new("/modules.list"));

    // Needs a module; without the firmware's variables the root is looked for on every disk.
    mounts::mount_all(mounts::FIRMWARE, |_| {})?;

    let boot = find_and_mount(&verified::parameters()?, &loader::origin(), cmdline::read().root_wait)?;

    let dir = Path::new(BOOT_INFO_FILE).parent().unwrap_or(Path::new("/run"));
    fs::create_dir_all(dir).map_err(StageOneError::WriteBootInfo)?;
    fs::write(BOOT_INFO_FILE, serde_json::to_vec(&boot)?).map_err(StageOneError::WriteBootInfo)?;
    for (from, to) in MEASURED {
        keep(Path::new(from), Path::new(to));
    }

    switch_root()?;
    Err(StageOneError::Exec(Command::new("/usr/bin/init").exec()).into())
}

/// Under secure boot only what is signed may say how the kernel runs: neither the firmware's tables nor files beside the image.
fn only_own_command_line(secure_boot: SecureBoot, changed: Option<String>) -> Result<(), StageOneError> {
    if secure_boot != SecureBoot::Unknown {
        report::notice(&format!("secure boot is {}", secure_boot.word()));
    }
    match changed {
        None => Ok(()),
        Some(change) if secure_boot == SecureBoot::Enabled => Err(StageOneError::CommandLine(change)),
        Some(change) => {
            report::notice(&format!("the kernel's command line is not the image's own; {change}"));
            Ok(())
        }
    }
}

/// One path per line, in load order. A module that fails may not be needed, so the search for the root decides.
fn load_listed_modules(list: &Path) {
    for line in fs::read_to_string(list).unwrap_or_default().lines() {
        let path = line.trim();
        if path.is_empty() || path.starts_with('#') {
            continue;
        }
        if let Err(error) = modules::load_file(Path::new(path), &modules::Options::default()) {
            report::info(&report::chain(&error));
        }
    }
}

fn find_and_mount(root: &Parameters, origin: &Origin, wait: Duration) -> Result<BootInfo, StageOneError> {
    let uuid = root.root_uuid();
    let index = modules::Index::read(Path::new("/"));
    let mut aliases_seen = BTreeSet::new();
    let started = Instant::now();
    let mut devices = Vec::new();
    let mut changed = Instant::now();
    loop {
        for alias in modules::modaliases() {
            if !aliases_seen.contains(&alias) {
                for error in modules::load(&index, &alias).1 {
                    report::info(&report::chain(&error));
                }
                aliases_seen.insert(alias);
            }
        }
        let now_there = root::block_devices();
        if now_there != devices {
            devices = now_there;
            changed = Instant::now();
        }
        let tables = root::tables(&devices);
        let search = Search::of(origin, &tables);
        if let Some(partition) = root::root_partition(&devices, &tables, &search, &uuid)
            && (is_complete(partition, &devices) || changed.elapsed() >= SETTLE)
        {
            return mount_root(root, BootSource::Disk, partition, &partition.path(), &devices);
        }
        if changed.elapsed() >= SETTLE {
            for device in root::medium_candidates(&devices, &search) {
                if root::is_iso9660(&device.path())
                    && let Some(image) = root::mount_medium(&device.path(), Path::new(MEDIA_DIR), &uuid)
                {
                    match loop_device::attach(&image) {
                        Ok((path, _keep)) => return mount_root(root, BootSource::Media, device, &path, &devices),
                        Err(error) => report::warn(&report::chain(&error)),
                    }
                }
            }
        }
        if changed.elapsed() >= SETTLE
            && let Some(image) = media_in_memory(&uuid)
        {
            let (path, _keep) = loop_device::attach(&image)?;
            let found = BlockDevice { name: IN_MEMORY.to_owned(), ..BlockDevice::default() };
            return mount_root(root, BootSource::Media, &found, &path, &devices);
        }
        if started.elapsed() >= wait {
            let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
            let place = match search {
                Search::Everywhere => "on any device".to_owned(),
                Search::Medium => "on any medium (the boot loader was started from a CD drive or the network)".to_owned(),
                Search::Disk(disk) => format!("on {disk}, which the boot loader was started from,"),
                Search::NotYet => {
                    format!("because no disk has the partition that the boot loader was started from ({origin:?})")
                }
            };
            return Err(StageOneError::RootNotFound { uuid, place, waited: wait, devices: names.join(" ") });
        }
        std::thread::sleep(POLL);
    }
}

/// Whether what belongs to a slot has appeared too: the kernel announces the partitions of a disk one after another, and META, which says
/// whether the slot is on trial, may come after it.
fn is_complete(partition: &BlockDevice, devices: &[BlockDevice]) -> bool {
    Slot::of_label(&partition.label).is_none() || meta::beside(partition, devices).is_some()
}

/// Shows what the kernel image brought along where a medium is shown, if it has this root. It stays in memory when the initramfs is emptied.
fn media_in_memory(root_uuid: &str) -> Option<PathBuf> {
    let file = |dir: &str| Path::new(dir).join("strake").join(format!("{root_uuid}.erofs"));
    if !file(MEDIA_IN_MEMORY).is_file() {
        return None;
    }
    let shown = fs::create_dir_all(MEDIA_DIR).map_err(|error| error.to_string()).and_then(|()| {
        mount_bind(MEDIA_IN_MEMORY, MEDIA_DIR).map_err(|error| error.to_string())?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount_remount(MEDIA_DIR, flags, "").map_err(|error| error.to_string())
    });
    if let Err(error) = shown {
        report::warn(&format!("show {IN_MEMORY}'s files on {MEDIA_DIR}: {error}"));
    }
    Some(file(MEDIA_DIR)).filter(|file| file.is_file())
}

/// Mounts the root from where it was found: `found` is the partition or the medium, `device` what holds the image.
fn mount_root(
    root: &Parameters,
    source: BootSource,
    found: &BlockDevice,
    device: &Path,
    devices: &[BlockDevice],
) -> Result<BootInfo, StageOneError> {
    let slot = Slot::of_label(&found.label);
    let name = if found.name == IN_MEMORY { IN_MEMORY.to_owned() } else { found.path().to_string_lossy().into_owned() };
    let place = match (source, slot) {
        (BootSource::Media, _) => format!("the medium {name}"),
        (BootSource::Disk, Some(slot)) => format!("{} ({name})", slot.label()),
        (BootSource::Disk, None) => name.clone(),
    };
    // Before anything of it is read: should the kernel stop at a damaged block, this is what the console shows above it.
    report::notice(&format!(
        "root {} found on {name} ({source:?}): {place} must match the root hash {}",
        root.root_uuid(),
        root.root_hash()
    ));
    let mut kept = slot.filter(|_| source == BootSource::Disk).and_then(|slot| Kept::beside(found, slot, devices));
    let verified = open(root, device, &place, kept.as_mut()).inspect_err(|error| {
        if let (true, Some(kept)) = (is_damage(error), &mut kept) {
            kept.fall_back(&report::chain(error));
        }
    })?;
    let trial_seconds = kept.and_then(|kept| kept.trial_seconds(root));
    if let Some(seconds) = trial_seconds {
        report::notice(&format!(
            "{place} is on trial: the machine goes back to the other slot unless this one proves good within {seconds} s"
        ));
    }
    let _ = fs::create_dir_all(SYSROOT);
    mount(&verified, SYSROOT, "erofs", MountFlags::RDONLY, None).map_err(|source| StageOneError::MountRoot { device: verified, source })?;
    Ok(BootInfo { source, device: name, root: *root, slot, trial_seconds })
}

fn open(root: &Parameters, device: &Path, place: &str, kept: Option<&mut Kept>) -> Result<PathBuf, StageOneError> {
    if let Some(damage) = kept.and_then(|kept| kept.start(device, root)) {
        return Err(StageOneError::Damaged(damage));
    }
    Ok(verified::open(device, place, root)?)
}

/// Whether the other slot may do better.
fn is_damage(error: &StageOneError) -> bool {
    matches!(error, StageOneError::Damaged(_) | StageOneError::Verify(VerifyError::ReadTree { .. } | VerifyError::Other { .. }))
}

/// Copies a small file before the initramfs goes away. One that is not there is none that the image has.
fn keep(from: &Path, to: &Path) {
    let fits = fs::metadata(from).is_ok_and(|found| found.is_file() && found.len() <= MEASURED_MOST);
    if fits && let Err(error) = fs::copy(from, to) {
        report::warn(&format!("keep {} as {}: {error}", from.display(), to.display()));
    }
}

/// Moves the mounts into the root, empties the initramfs to give its memory back, and makes the root `/`.
fn switch_root() -> Result<(), StageOneError> {
    for from in ["/dev", "/proc", "/sys", "/run"] {
        mount_move(from, format!("{SYSROOT}{from}")).map_err(|error| StageOneError::MoveMount(from, error))?;
    }
    if let Ok(meta) = fs::metadata("/") {
        remove_tree(Path::new("/"), meta.dev(), &[Path::new(MEDIA_IN_MEMORY)]);
    }
    let switch = || {
        rustix::process::chdir(SYSROOT)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    switch().map_err(StageOneError::SwitchRoot)
}

/// Removes what is on the device `dev` below `dir`; mount points and what is on them stay, and so does what is to be kept.
fn remove_tree(dir: &Path, dev: u64, keep: &[&Path]) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.dev() != dev || keep.contains(&path.as_path()) => {}
            Ok(meta) if meta.is_dir() => {
                remove_tree(&path, dev, keep);
                let _ = fs::remove_dir(&path);
            }
            Ok(_) => {
                let _ = fs::remove_file(&path);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_command_line_is_refused_under_secure_boot_only() {
        let changed = || Some("it has more: lockdown=none".to_owned());
        for (secure_boot, change, taken) in [
            (SecureBoot::Enabled, changed(), false),
            (SecureBoot::Enabled, None, true),
            (SecureBoot::Disabled, changed(), true),
            (SecureBoot::Unknown, changed(), true),
        ] {
            let outcome = only_own_command_line(secure_boot, change);
            assert_eq!(outcome.is_ok(), taken, "{secure_boot:?}");
            if let Err(error) = outcome {
                assert!(error.to_string().contains("lockdown=none"), "{error}");
            }
        }
    }

    #[test]
    fn a_slot_is_not_taken_before_its_meta_is_there() {
        let device = |name: &str, label: &str, disk: &str| BlockDevice {
            name: name.into(),
            label: label.into(),
            partition: Some((1, disk.to_owned())),
            sectors: 8,
        };
        let (slot, other) = (device("vda3", "ROOT-B", "vda"), device("vda9", "root", "vda"));
        assert!(!is_complete(&slot, &[slot.clone(), device("vdb4", "META", "vdb")]), "the META of another disk");
        assert!(is_complete(&slot, &[slot.clone(), device("vda4", "META", "vda")]));
        assert!(is_complete(&other, &[]), "what is no slot has no META");
    }

    #[test]
    fn emptying_a_tree_stops_at_other_devices() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/proc", dir.path().join("link")).unwrap();
        let dev = fs::metadata(dir.path()).unwrap().dev();

        remove_tree(dir.path(), dev + 1, &[]);
        assert!(dir.path().join("a/b/file").exists());
        remove_tree(dir.path(), dev, &[&dir.path().join("a")]);
        assert!(dir.path().join("a/b/file").exists() && !dir.path().join("link").exists());
        remove_tree(dir.path(), dev, &[]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Path::new("/proc/self").exists());
    }
}
