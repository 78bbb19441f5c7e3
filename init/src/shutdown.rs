//! Going down in order: who is stopped when, for how long at most, and what comes after. The plan is a value; the event loop
//! carries it out, because reaping and feeding the watchdog go on meanwhile.

use std::fs;
use std::path::Path;
use std::time::Duration;

use host::device_mapper::DeviceMapper;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

use crate::services::TABLE;

/// How the machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Reboot,
    PowerOff,
}

/// One step; each ends when it is done or when its time is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    StopService(&'static str),
    /// TERM to every process of this cgroup and below it, then kill.
    StopCgroup(&'static str),
    /// TERM, then KILL to every process there is.
    StopEverything,
    /// In a helper process, because a dead disk can hang it.
    Unmount,
}

/// The steps in order, each with its deadline.
pub fn plan() -> Vec<(Step, Duration)> {
    let service = |name: &'static str| {
        let timeout = TABLE.iter().find(|def| def.name == name).map_or(Duration::from_secs(5), |def| def.stop_timeout);
        // Beyond the timeout comes the kill, which also takes a moment.
        (Step::StopService(name), timeout + Duration::from_secs(2))
    };
    vec![
        service("kubelet"),
        service("kube-proxy"),
        (Step::StopCgroup("kubepods"), Duration::from_secs(25)),
        service("containerd"),
        (Step::StopCgroup("podruntime"), Duration::from_secs(3)),
        service("machined"),
        service("logd"),
        (Step::StopEverything, Duration::from_secs(5)),
        (Step::Unmount, Duration::from_secs(30)),
    ]
}

/// A mount as /proc/self/mountinfo has it (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
struct MountPoint {
    target: String,
    source: String,
}

/// What a disk backs, the last mounted first. The root goes down with the kernel.
fn to_unmount(mountinfo: &str) -> Vec<MountPoint> {
    let mut mounts: Vec<MountPoint> = mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let target = unescape(left.split(' ').nth(4)?);
            let source = unescape(right.split(' ').nth(1)?);
            Some(MountPoint { target, source })
        })
        .filter(|mount| mount.target != "/" && mount.source.starts_with("/dev/"))
        .collect();
    mounts.reverse();
    mounts
}

/// Space, tab, newline and backslash are written as octal numbers.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                text.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    text + rest
}

/// The helper's work: unmount, several times because mounts may lie in each other; what stays is made read-only; then sync.
pub fn unmount_all() -> i32 {
    let read = || to_unmount(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    for _ in 0..5 {
        let mounts = read();
        if mounts.is_empty() {
            break;
        }
        for mount in mounts {
            let _ = unmount(&mount.target, UnmountFlags::NOFOLLOW);
        }
    }
    for mount in read() {
        if !Path::new(&mount.target).starts_with("/run/strake") {
            crate::report::warn(&format!("{} is still in use, made read-only", mount.target));
        }
        let _ = mount_remount(&mount.target, MountFlags::RDONLY, "");
    }
    rustix::fs::sync();
    close_volumes();
    0
}

/// The kernel forgets the keys of encrypted volumes that nobody uses any more.
fn close_volumes() {
    let volumes = open_volumes(Path::new("/sys/block"));
    if volumes.is_empty() {
        return;
    }
    let closed = DeviceMapper::open().and_then(|mapper| volumes.iter().try_for_each(|name| mapper.remove(name)));
    if let Err(error) = closed {
        crate::report::warn(&crate::report::chain(&error));
    }
}

/// The mapped devices that machined opened.
fn open_volumes(blocks: &Path) -> Vec<String> {
    let names =
        fs::read_dir(blocks).into_iter().flatten().flatten().filter_map(|entry| fs::read_to_string(entry.path().join("dm/name")).ok());
    names
        .map(|name| name.trim().to_owned())
        .filter(|name| ["strake-state", "strake-etcd", "strake-data"].contains(&name.as_str()) || name.starts_with("strake-u-"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_go_before_their_runtime_and_logs_last() {
        let steps: Vec<Step> = plan().into_iter().map(|(step, _)| step).collect();
        let at = |step: &Step| steps.iter().position(|other| other == step).unwrap();
        let order = [
            Step::StopService("kubelet"),
            Step::StopCgroup("kubepods"),
            Step::StopService("containerd"),
            Step::StopService("machined"),
            Step::StopService("logd"),
            Step::StopEverything,
            Step::Unmount,
        ];
        assert!(order.windows(2).all(|pair| at(&pair[0]) < at(&pair[1])), "{steps:?}");
        for def in TABLE {
            assert!(steps.contains(&Step::StopService(def.name)), "{} is never stopped", def.name);
        }
        let total: Duration = plan().iter().map(|(_, deadline)| *deadline).sum();
        assert!(total < Duration::from_secs(180), "{total:?}");
    }

    #[test]
    fn disks_are_unmounted_from_the_inside_out() {
        let mountinfo = "\
22 1 7:0 / / ro,relatime shared:1 - erofs /dev/loop0 ro\n\
23 22 0:5 / /dev rw,nosuid shared:2 - devtmpfs devtmpfs rw\n\
24 22 0:6 / /etc rw shared:3 - tmpfs tmpfs rw\n\
30 22 254:4 / /system/state rw shared:9 - ext4 /dev/vda5 rw\n\
31 22 254:6 / /var rw shared:10 - ext4 /dev/vda7 rw\n\
40 31 254:6 /lib/x /var/lib/kubelet/a\\040b rw shared:10 - ext4 /dev/vda7 rw\n\
41 31 0:50 / /run/containerd/rootfs rw - overlay overlay rw\n\
garbage\n";
        let targets: Vec<String> = to_unmount(mountinfo).into_iter().map(|mount| mount.target).collect();
        assert_eq!(targets, ["/var/lib/kubelet/a b", "/var", "/system/state"]);
    }

    #[test]
    fn only_volumes_are_closed_and_not_the_root() {
        let dir = tempfile::tempdir().unwrap();
        for (device, name) in [
            ("dm-0", "strake-root\n"),
            ("dm-1", "strake-state\n"),
            ("dm-2", "pods-own\n"),
            ("dm-3", "strake-data\n"),
            ("dm-4", "strake-u-scratch\n"),
        ] {
            fs::create_dir_all(dir.path().join(device).join("dm")).unwrap();
            fs::write(dir.path().join(device).join("dm/name"), name).unwrap();
        }
        fs::create_dir(dir.path().join("vda")).unwrap();
        let mut found = open_volumes(dir.path());
        found.sort();
        assert_eq!(found, ["strake-data", "strake-state", "strake-u-scratch"]);
    }

    #[test]
    fn octal_escapes_are_undone_and_broken_ones_kept() {
        for (field, expected) in [("a\\040b", "a b"), ("\\134", "\\"), ("a\\", "a\\"), ("a\\9x", "a\\9x"), ("", ""), ("\\04", "\\04")] {
            assert_eq!(unescape(field), expected);
        }
    }
}
