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

use node_ipc::init::{BOOT_INFO_FILE, BootInfo, BootSource, MEDIA_DIR};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::{cmdline, loopdev, modules, mounts, report, root};

const SYSROOT: &str = "/sysroot";
const POLL: Duration = Duration::from_millis(100);
/// A medium is taken when the devices have not changed for this long: a disk that is installed goes first.
const SETTLE: Duration = Duration::from_millis(1500);

#[derive(Debug, thiserror::Error)]
enum StageOneError {
    #[error("the kernel command line has no valid strake.root=<uuid>")]
    NoRootUuid,
    #[error("no root {uuid} on any device after {waited:?}; devices: {devices}")]
    RootNotFound { uuid: String, waited: Duration, devices: String },
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
    load_listed_modules(Path::new("/modules.list"));

    let command_line = cmdline::read();
    let uuid = command_line.root_uuid.ok_or(StageOneError::NoRootUuid)?;
    let boot = find_and_mount(&uuid, command_line.root_wait)?;
    report::notice(&format!("root {uuid} found on {} ({:?})", boot.device, boot.source));

    let dir = Path::new(BOOT_INFO_FILE).parent().unwrap_or(Path::new("/run"));
    fs::create_dir_all(dir).map_err(StageOneError::WriteBootInfo)?;
    fs::write(BOOT_INFO_FILE, serde_json::to_vec(&boot)?).map_err(StageOneError::WriteBootInfo)?;

    switch_root()?;
    Err(StageOneError::Exec(Command::new("/usr/bin/init").exec()).into())
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

fn find_and_mount(uuid: &str, wait: Duration) -> Result<BootInfo, StageOneError> {
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
        let boot = |source, device: &root::BlockDevice| BootInfo {
            source,
            device: device.path().to_string_lossy().into_owned(),
            root_uuid: uuid.to_owned(),
        };
        if let Some(partition) = root::root_partition(&devices, uuid) {
            mount_root(&partition.path())?;
            return Ok(boot(BootSource::Disk, partition));
        }
        if changed.elapsed() >= SETTLE {
            for device in root::medium_candidates(&devices) {
                if root::is_iso9660(&device.path())
                    && let Some(image) = root::mount_medium(&device.path(), Path::new(MEDIA_DIR), uuid)
                {
                    match loopdev::attach(&image) {
                        Ok((path, _keep)) => {
                            mount_root(&path)?;
                            return Ok(boot(BootSource::Media, device));
                        }
                        Err(error) => report::warn(&report::chain(&error)),
                    }
                }
            }
        }
        if started.elapsed() >= wait {
            let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
            return Err(StageOneError::RootNotFound { uuid: uuid.to_owned(), waited: wait, devices: names.join(" ") });
        }
        std::thread::sleep(POLL);
    }
}

fn mount_root(device: &Path) -> Result<(), StageOneError> {
    let _ = fs::create_dir_all(SYSROOT);
    mount(device, SYSROOT, "erofs", MountFlags::RDONLY, None)
        .map_err(|source| StageOneError::MountRoot { device: device.to_owned(), source })
}

/// Moves the mounts into the root, empties the initramfs to give its memory back, and makes the root `/`.
fn switch_root() -> Result<(), StageOneError> {
    for from in ["/dev", "/proc", "/sys", "/run"] {
        mount_move(from, format!("{SYSROOT}{from}")).map_err(|error| StageOneError::MoveMount(from, error))?;
    }
    if let Ok(meta) = fs::metadata("/") {
        remove_tree(Path::new("/"), meta.dev());
    }
    let switch = || {
        rustix::process::chdir(SYSROOT)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    switch().map_err(StageOneError::SwitchRoot)
}

/// Removes what is on the device `dev` below `dir`; mount points and what is on them stay.
fn remove_tree(dir: &Path, dev: u64) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.dev() != dev => {}
            Ok(meta) if meta.is_dir() => {
                remove_tree(&path, dev);
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
    fn emptying_a_tree_stops_at_other_devices() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/proc", dir.path().join("link")).unwrap();
        let dev = fs::metadata(dir.path()).unwrap().dev();

        remove_tree(dir.path(), dev + 1);
        assert!(dir.path().join("a/b/file").exists());
        remove_tree(dir.path(), dev);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Path::new("/proc/self").exists());
    }
}
