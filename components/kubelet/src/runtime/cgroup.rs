//! cgroup v2 with the cgroupfs driver: the tree `kubepods/{,burstable/,besteffort/}pod<uid>` and its numbers.

use crate::config::Config;
use crate::model::pod::Pod;
use crate::pod::qos::{self, Qos};
use std::io;
use std::path::{Path, PathBuf};

/// Thousandths of a cpu as shares of 1024 per cpu, at least 2.
pub fn cpu_shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// Thousandths of a cpu as microseconds per 100 ms period, at least 1 ms.
pub fn cpu_quota(milli: i64) -> i64 {
    milli.saturating_mul(100).max(1000)
}

/// Shares (2..=262144) as a cgroup v2 weight (1..=10000).
pub fn cpu_weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// What is written to one cgroup's files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    pub cpu_weight: Option<i64>,
    /// Microseconds per 100 ms, `None` for no limit.
    pub cpu_quota: Option<i64>,
    pub memory: Option<i64>,
    pub pids: Option<i64>,
}

impl Limits {
    /// Files and their content.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let number = |v: Option<i64>| v.map_or("max".to_owned(), |v| v.to_string());
        let mut files = Vec::new();
        if let Some(weight) = self.cpu_weight {
            files.push(("cpu.weight", weight.to_string()));
        }
        files.push(("cpu.max", format!("{} 100000", number(self.cpu_quota))));
        files.push(("memory.max", number(self.memory)));
        files.push(("pids.max", number(self.pids)));
        files
    }
}

/// The limits of a pod's own cgroup.
pub fn pod_limits(pod: &Pod, config: &Config) -> Limits {
    let best_effort = qos::class_of(pod) == Qos::BestEffort;
    Limits {
        cpu_weight: Some(cpu_weight(if best_effort { 2 } else { cpu_shares(qos::pod_request_milli(pod, "cpu")) })),
        cpu_quota: qos::pod_limit_milli(pod, "cpu").filter(|_| config.cpu_cfs_quota).map(cpu_quota),
        memory: qos::pod_limit_milli(pod, "memory").map(|m| m / 1000),
        pids: (config.pod_pids_limit > 0).then_some(config.pod_pids_limit),
    }
}

/// A pod's cgroup below the mount point.
pub fn pod_path(root: &str, pod: &Pod) -> String {
    let root = root.trim_end_matches('/');
    let class = match qos::class_of(pod) {
        Qos::Guaranteed => "",
        Qos::Burstable => "/burstable",
        Qos::BestEffort => "/besteffort",
    };
    format!("{root}/kubepods{class}/pod{}", pod.metadata.uid)
}

/// A failed operation on the tree.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}")]
pub struct CgroupError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The tree on this machine; `None` inside when the machine has no cgroup v2 hierarchy with the controllers needed and the configuration
/// says to go on without (`failCgroupV1: false`).
#[derive(Debug, Clone)]
pub struct Cgroups {
    mount: Option<PathBuf>,
    root: String,
}

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

impl Cgroups {
    /// Looks at the machine.
    pub fn detect(root: &str) -> Self {
        let mount = PathBuf::from("/sys/fs/cgroup");
        let available = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let usable = CONTROLLERS.iter().all(|c| available.split_whitespace().any(|a| a == *c));
        Self { mount: usable.then_some(mount), root: root.trim_end_matches('/').to_owned() }
    }

    /// A tree in a directory, for tests.
    #[cfg(test)]
    pub fn at(mount: &Path) -> Self {
        Self { mount: Some(mount.into()), root: String::new() }
    }

    /// Whether limits can be set.
    pub fn usable(&self) -> bool {
        self.mount.is_some()
    }

    /// Makes `kubepods` and the class cgroups and limits them to what pods may use.
    pub fn setup(&self, allocatable_cpu_milli: i64, allocatable_memory: Option<i64>) -> Result<(), CgroupError> {
        let Some(mount) = &self.mount else { return Ok(()) };
        let kubepods = format!("{}/kubepods", self.root);
        let limits =
            Limits { cpu_weight: Some(cpu_weight(cpu_shares(allocatable_cpu_milli))), memory: allocatable_memory, ..Default::default() };
        self.create(mount, &kubepods, &limits)?;
        self.create(mount, &format!("{kubepods}/burstable"), &Limits { cpu_weight: Some(1), ..Default::default() })?;
        self.create(mount, &format!("{kubepods}/besteffort"), &Limits { cpu_weight: Some(1), ..Default::default() })
    }

    /// Gives the Burstable class the cpu its pods ask for together.
    pub fn set_burstable<'a>(&self, pods: impl Iterator<Item = &'a Pod>) -> Result<(), CgroupError> {
        let Some(mount) = &self.mount else { return Ok(()) };
        let milli: i64 = pods.filter(|p| qos::class_of(p) == Qos::Burstable).map(|p| qos::pod_request_milli(p, "cpu")).sum();
        let path = mount.join(format!("{}/kubepods/burstable/cpu.weight", self.root).trim_start_matches('/'));
        write(&path, &cpu_weight(cpu_shares(milli)).to_string())
    }

    /// Makes the pod's cgroup; returns the parent for its containers, empty when the tree is not managed.
    pub fn create_pod(&self, pod: &Pod, config: &Config) -> Result<String, CgroupError> {
        let Some(mount) = &self.mount else { return Ok(String::new()) };
        let path = pod_path(&self.root, pod);
        self.create(mount, &path, &pod_limits(pod, config))?;
        Ok(path)
    }

    /// Removes the pod's cgroups, whatever class they were made for. Succeeds when there is none; fails while processes are left.
    pub fn remove_pod(&self, uid: &str) -> Result<(), CgroupError> {
        let Some(mount) = &self.mount else { return Ok(()) };
        for class in ["", "/burstable", "/besteffort"] {
            let path = mount.join(format!("{}/kubepods{class}/pod{uid}", self.root).trim_start_matches('/'));
            remove_tree(&path, 0)?;
        }
        Ok(())
    }

    /// UIDs of the pods that have a cgroup.
    pub fn pod_uids(&self) -> Vec<String> {
        let Some(mount) = &self.mount else { return Vec::new() };
        let mut uids = Vec::new();
        for class in ["", "/burstable", "/besteffort"] {
            let path = mount.join(format!("{}/kubepods{class}", self.root).trim_start_matches('/'));
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                uids.extend(entry.file_name().to_str().and_then(|n| n.strip_prefix("pod")).map(str::to_owned));
            }
        }
        uids
    }

    /// Creates a cgroup with its ancestors, each passing the controllers on, and writes its limits.
    fn create(&self, mount: &Path, path: &str, limits: &Limits) -> Result<(), CgroupError> {
        let mut current = mount.to_path_buf();
        for part in path.split('/').filter(|p| !p.is_empty()) {
            enable_controllers(&current)?;
            current.push(part);
            match std::fs::create_dir(&current) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(CgroupError { operation: "create cgroup", path: current, source }),
            }
        }
        for (file, value) in limits.files() {
            write(&current.join(file), &value)?;
        }
        Ok(())
    }
}

fn enable_controllers(cgroup: &Path) -> Result<(), CgroupError> {
    let file = cgroup.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&file).unwrap_or_default();
    let available = std::fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    let has = |list: &str, name: &str| list.split_whitespace().any(|c| c == name);
    // io and cpuset are passed on when they are there: containers may use them, nothing here needs them.
    for controller in CONTROLLERS.iter().copied().chain(["io", "cpuset"]) {
        if has(&available, controller) && !has(&enabled, controller) {
            write(&file, &format!("+{controller}"))?;
        }
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    std::fs::write(path, value).map_err(|source| CgroupError { operation: "write cgroup file", path: path.into(), source })
}

/// cgroup directories are removed from the leaves up; their files go with them.
fn remove_tree(path: &Path, depth: usize) -> Result<(), CgroupError> {
    if depth < 8 {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                remove_tree(&entry.path(), depth + 1)?;
            }
        }
    }
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CgroupError { operation: "remove cgroup", path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers() {
        for (milli, shares, quota, weight) in [
            (0, 2, 1000, 1),
            (1, 2, 1000, 1),
            (100, 102, 10_000, 4),
            (250, 256, 25_000, 10),
            (1000, 1024, 100_000, 39),
            (256_000, 262_144, 25_600_000, 10_000),
        ] {
            assert_eq!((cpu_shares(milli), cpu_quota(milli), cpu_weight(cpu_shares(milli))), (shares, quota, weight), "{milli}m");
        }
    }

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u1"}, "spec": {"containers": [{"name": "a", "resources": resources}]}})).unwrap()
    }

    fn config() -> Config {
        use clap::Parser;
        let flags = crate::flags::Flags::parse_from(["kubelet"]);
        Config::resolve(&flags, crate::config::File { pod_pids_limit: Some(100), ..Default::default() }, "n").unwrap()
    }

    #[test]
    fn pods_lie_in_their_class() {
        for (resources, path, limits) in [
            (json!({}), "/kubepods/besteffort/podu1", Limits { cpu_weight: Some(1), pids: Some(100), ..Default::default() }),
            (
                json!({"requests": {"cpu": "100m"}}),
                "/kubepods/burstable/podu1",
                Limits { cpu_weight: Some(4), pids: Some(100), ..Default::default() },
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "64Mi"}}),
                "/kubepods/podu1",
                Limits { cpu_weight: Some(39), cpu_quota: Some(100_000), memory: Some(64 << 20), pids: Some(100) },
            ),
        ] {
            let p = pod(resources);
            assert_eq!(pod_path("", &p), path);
            assert_eq!(pod_limits(&p, &config()), limits);
        }
    }

    #[test]
    fn the_tree_is_made_top_down_with_controllers_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids").unwrap();
        let tree = Cgroups::at(dir.path());
        tree.setup(2000, Some(1 << 30)).unwrap();
        assert_eq!(tree.create_pod(&pod(json!({})), &config()).unwrap(), "/kubepods/besteffort/podu1");
        let read = |p: &str| std::fs::read_to_string(dir.path().join(p)).unwrap();
        assert_eq!(read("kubepods/memory.max"), (1i64 << 30).to_string());
        assert_eq!(read("kubepods/besteffort/podu1/cpu.max"), "max 100000");
        assert_eq!(read("kubepods/besteffort/podu1/pids.max"), "100");
        assert!(read("cgroup.subtree_control").starts_with('+'));
        assert_eq!(tree.pod_uids(), ["u1"]);
    }
}
