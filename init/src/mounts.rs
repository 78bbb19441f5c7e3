//! The pseudo file systems, as tables. Data disks are machined's.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

/// One mount. A failing optional one is reported and skipped.
#[derive(Debug, Clone, Copy)]
pub struct Mount {
    pub kind: &'static str,
    pub target: &'static str,
    pub flags: MountFlags,
    pub options: &'static str,
    pub optional: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("create mount point {0}")]
    Create(&'static str, #[source] io::Error),
    #[error("mount {kind} on {target}")]
    Mount { kind: &'static str, target: &'static str, source: Errno },
    #[error("make the mounts shared")]
    Share(#[source] Errno),
}

const NOSUID: MountFlags = MountFlags::NOSUID;
const STRICT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

const fn required(kind: &'static str, target: &'static str, flags: MountFlags, options: &'static str) -> Mount {
    Mount { kind, target, flags, options, optional: false }
}

const fn optional(kind: &'static str, target: &'static str, flags: MountFlags, options: &'static str) -> Mount {
    Mount { kind, target, flags, options, optional: true }
}

/// What stage one mounts; stage two keeps them.
pub const STAGE_ONE: &[Mount] = &[
    required("proc", "/proc", STRICT, ""),
    required("sysfs", "/sys", STRICT, ""),
    required("devtmpfs", "/dev", NOSUID, "mode=0755"),
    required("tmpfs", "/run", NOSUID.union(MountFlags::NODEV), "mode=0755,size=20%"),
];

/// What stage one mounts when its modules are loaded: where the boot loader says what it was started from.
pub const FIRMWARE: &[Mount] = &[optional("efivarfs", "/sys/firmware/efi/efivars", STRICT, "")];

/// What stage two adds.
pub const STAGE_TWO: &[Mount] = &[
    required("devpts", "/dev/pts", NOSUID.union(MountFlags::NOEXEC), "mode=0620,gid=5,ptmxmode=0666"),
    required("tmpfs", "/dev/shm", NOSUID.union(MountFlags::NODEV), "mode=1777"),
    optional("mqueue", "/dev/mqueue", STRICT, ""),
    optional("hugetlbfs", "/dev/hugepages", NOSUID.union(MountFlags::NODEV), ""),
    required("cgroup2", "/sys/fs/cgroup", STRICT, "nsdelegate,memory_recursiveprot"),
    optional("bpf", "/sys/fs/bpf", STRICT, "mode=0700"),
    optional("securityfs", "/sys/kernel/security", STRICT, ""),
    optional("tracefs", "/sys/kernel/tracing", STRICT, "mode=0700"),
    required("tmpfs", "/tmp", NOSUID.union(MountFlags::NODEV), "mode=1777,size=20%"),
    required("tmpfs", "/etc", NOSUID.union(MountFlags::NODEV), "mode=0755,size=32m"),
];

/// Mounts a table in order. What is mounted already stays.
pub fn mount_all(table: &[Mount], mut skipped: impl FnMut(String)) -> Result<(), MountError> {
    for entry in table {
        match mount_one(entry) {
            Ok(()) => {}
            Err(error) if entry.optional => skipped(crate::report::chain(&error)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn mount_one(entry: &Mount) -> Result<(), MountError> {
    if fs::symlink_metadata(entry.target).is_err() {
        fs::create_dir_all(entry.target).map_err(|error| MountError::Create(entry.target, error))?;
    }
    let options = std::ffi::CString::new(entry.options).unwrap_or_default();
    match mount(entry.kind, entry.target, entry.kind, entry.flags, options.as_c_str()) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(source) => Err(MountError::Mount { kind: entry.kind, target: entry.target, source }),
    }
}

/// containerd and the kubelet need mounts to propagate between the namespaces of containers.
pub fn share() -> Result<(), MountError> {
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).map_err(MountError::Share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_comes_after_the_mount_it_lies_in() {
        let all: Vec<&Mount> = STAGE_ONE.iter().chain(FIRMWARE).chain(STAGE_TWO).collect();
        for (at, outer) in all.iter().enumerate() {
            for inner in &all[..at] {
                assert!(!inner.target.starts_with(&format!("{}/", outer.target)), "{} hides {}", outer.target, inner.target);
            }
        }
    }

    #[test]
    fn nothing_but_the_device_file_systems_takes_device_nodes() {
        for entry in STAGE_ONE.iter().chain(FIRMWARE).chain(STAGE_TWO) {
            let devices = matches!(entry.kind, "devtmpfs" | "devpts");
            assert_eq!(entry.flags.contains(MountFlags::NODEV), !devices, "{}", entry.target);
            assert!(entry.flags.contains(MountFlags::NOSUID), "{}", entry.target);
        }
    }
}
