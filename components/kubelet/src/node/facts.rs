//! What this machine is and has, from /proc and /sys.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

/// Version of Kubernetes this kubelet follows.
pub const KUBERNETES: &str = "v1.36.2";

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    pub total: i64,
    pub available: i64,
}

/// Reads `/proc/meminfo`.
pub fn parse_meminfo(text: &str) -> Memory {
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix("kB")?.trim().parse::<i64>().ok())
            .unwrap_or(0)
            * 1024
    };
    Memory { total: field("MemTotal"), available: field("MemAvailable") }
}

pub fn memory() -> Memory {
    parse_meminfo(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

/// Processors in use.
pub fn cpus() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1))
}

/// Size, free space and inodes of the file system a path is on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Filesystem {
    pub size: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

pub fn filesystem(path: &Path) -> Filesystem {
    match rustix::fs::statvfs(path) {
        Ok(s) => Filesystem {
            size: s.f_blocks.saturating_mul(s.f_frsize),
            available: s.f_bavail.saturating_mul(s.f_frsize),
            inodes: s.f_files,
            inodes_free: s.f_ffree,
        },
        Err(_) => Filesystem::default(),
    }
}

/// Largest process number and processes now.
pub fn pids() -> (i64, i64) {
    let max = read("/proc/sys/kernel/pid_max").parse().unwrap_or(0);
    // The fourth field of loadavg is running/total.
    let total = read("/proc/loadavg").split(' ').nth(3).and_then(|f| f.split_once('/')).and_then(|(_, t)| t.parse().ok()).unwrap_or(0);
    (max, total)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The node's `nodeInfo`.
pub fn node_info(runtime: &str) -> serde_json::Value {
    let uname = rustix::system::uname();
    let release: serde_json::Value =
        std::fs::read_to_string("/usr/share/strake/release.json").ok().and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
    let os = match (release["name"].as_str(), release["version"].as_str()) {
        (Some(name), Some(version)) => {
            let mut name = name.to_owned();
            if let Some(first) = name.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            format!("{name} {version}")
        }
        _ => pretty_name(&read("/etc/os-release")),
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    serde_json::json!({
        "machineID": read("/etc/machine-id"),
        "systemUUID": read("/sys/class/dmi/id/product_uuid"),
        "bootID": read("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": uname.release().to_string_lossy(),
        "osImage": os,
        "containerRuntimeVersion": runtime,
        "kubeletVersion": KUBERNETES,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": architecture,
    })
}

fn pretty_name(os_release: &str) -> String {
    let line = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map(|v| v.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".into())
}

/// The address other machines reach this one at when none is configured: the source of the default route. Nothing is sent.
pub fn detect_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_unspecified())
}

/// The host name.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        let m = parse_meminfo("MemTotal:        2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\n");
        assert_eq!(m, Memory { total: 2 << 20, available: 1 << 20 });
        assert_eq!(parse_meminfo("garbage"), Memory::default());
    }

    #[test]
    fn os_names() {
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(pretty_name(""), "Linux");
    }
}
