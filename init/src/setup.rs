//! What stage two prepares once, before the first service: `/etc`, the cgroup tree, sysctls, the loopback link.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::report;

pub const SHARE: &str = "/usr/share/strake";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const SLICES: [&str; 3] = ["init", "system", "podruntime"];

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("copy {from} to {to}")]
    Copy { from: PathBuf, to: PathBuf, source: io::Error },
    #[error("create cgroup {0}")]
    CreateCgroup(PathBuf, #[source] io::Error),
    #[error("set the loopback link up")]
    Loopback(#[source] io::Error),
}

/// Copies a tree of directories, files and links; permissions go along.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), SetupError> {
    let failed = |source| SetupError::Copy { from: from.to_owned(), to: to.to_owned(), source };
    let kind = fs::symlink_metadata(from).map_err(failed)?;
    if kind.is_symlink() {
        let target = fs::read_link(from).map_err(failed)?;
        return symlink(target, to).map_err(failed);
    }
    if !kind.is_dir() {
        return fs::copy(from, to).map(drop).map_err(failed);
    }
    if !to.is_dir() {
        fs::create_dir(to).map_err(failed)?;
        fs::set_permissions(to, kind.permissions()).map_err(failed)?;
    }
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        copy_tree(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Makes the slices, passes every controller there is to them and to the kubelet's tree, and moves PID 1 out of the root.
pub fn cgroup_tree() -> Result<(), SetupError> {
    let root = Path::new(CGROUP_ROOT);
    for slice in SLICES {
        let dir = root.join(slice);
        if let Err(error) = fs::create_dir(&dir)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(SetupError::CreateCgroup(dir, error));
        }
    }
    if let Err(error) = fs::write(root.join("init/cgroup.procs"), "1") {
        report::warn(&format!("move init into its cgroup: {error}"));
    }
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    for dir in [root.to_owned(), root.join("system"), root.join("podruntime")] {
        // One at a time: a controller that refuses must not take the others with it.
        for controller in controllers.split_ascii_whitespace() {
            if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")) {
                report::info(&format!("enable {controller} in {}: {error}", dir.display()));
            }
        }
    }
    Ok(())
}

/// Applies `key = value` lines. Keys of modules that are not loaded fail and are reported.
pub fn sysctls(file: &Path) {
    for (key, value) in parse_sysctls(&fs::read_to_string(file).unwrap_or_default()) {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        if let Err(error) = fs::write(&path, &value) {
            report::info(&format!("set {key} to {value}: {error}"));
        }
    }
}

/// A leading `-`, as sysctl.conf(5) has it, changes nothing: no failure stops the boot.
fn parse_sysctls(text: &str) -> Vec<(String, String)> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim().trim_start_matches('-').to_owned(), value.trim().to_owned()))
        .filter(|(key, _)| !key.is_empty() && !key.contains("..") && !key.starts_with('/'))
        .collect()
}

/// Sets `lo` up: RTM_NEWLINK for the index 1 with IFF_UP (rtnetlink(7)).
pub fn loopback_up() -> Result<(), SetupError> {
    let exchange = || -> io::Result<i32> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        sendto(&socket, &loopback_request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 256];
        let (_, size) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        Ok(ack_code(&answer[..size.min(256)]))
    };
    match exchange() {
        Ok(0) => Ok(()),
        Ok(code) => Err(SetupError::Loopback(io::Error::from_raw_os_error(-code))),
        Err(error) => Err(SetupError::Loopback(error)),
    }
}

/// struct nlmsghdr, then struct ifinfomsg.
fn loopback_request() -> [u8; 32] {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut message = [0; 32];
    message[0..4].copy_from_slice(&32u32.to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    message[20..24].copy_from_slice(&1i32.to_ne_bytes());
    message[24..28].copy_from_slice(&IFF_UP.to_ne_bytes());
    message[28..32].copy_from_slice(&IFF_UP.to_ne_bytes());
    message
}

/// The error code of an NLMSG_ERROR message: 0 or a negative errno.
fn ack_code(answer: &[u8]) -> i32 {
    const EPROTO: i32 = -71;
    match answer.get(16..20) {
        Some(code) => code.try_into().map_or(EPROTO, i32::from_ne_bytes),
        None => EPROTO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_copied_with_links_and_permissions_over_an_existing_directory() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/file"), "content").unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("../run/x", from.join("link")).unwrap();

        copy_tree(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/file")).unwrap(), "content");
        assert_eq!(fs::metadata(to.join("a/file")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("../run/x"));
        assert!(matches!(copy_tree(&dir.path().join("missing"), &to), Err(SetupError::Copy { .. })));
    }

    #[test]
    fn sysctl_lines_are_read_and_nonsense_skipped() {
        let text = "# c\n; c\n\nnet.ipv4.ip_forward = 1\n-kernel.panic=10\nnovalue\n=x\n../../etc/passwd=1\nnet.ipv4.tcp_rmem = 4096 87380 6291456\n";
        let expected = [("net.ipv4.ip_forward", "1"), ("kernel.panic", "10"), ("net.ipv4.tcp_rmem", "4096 87380 6291456")];
        let expected: Vec<(String, String)> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(parse_sysctls(text), expected);
    }

    #[test]
    fn the_loopback_request_is_answered_by_the_kernel() {
        // In a network namespace of the test's own when it may make one; setting lo up again changes nothing otherwise.
        match loopback_up() {
            Ok(()) => {}
            Err(SetupError::Loopback(error)) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
            Err(other) => panic!("{other}"),
        }
    }
}
