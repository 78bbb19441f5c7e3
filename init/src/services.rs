//! The host services: the only programs that init starts. Everything else runs in containers.

use std::time::Duration;

use rustix::thread::CapabilitySet;

use crate::confinement::{CLOCK, Confinement, MOUNTS};

/// One service of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceDef {
    pub name: &'static str,
    pub program: &'static str,
    /// Arguments before those of the request.
    pub leading_args: &'static [&'static str],
    /// Started at boot, without a request.
    pub at_boot: bool,
    /// Services that must be ready before.
    pub after: &'static [&'static str],
    /// The service is ready when this file exists; without one, when its process runs.
    pub ready_file: Option<&'static str>,
    /// Below the root of the cgroup tree.
    pub cgroup: &'static str,
    pub oom_score_adj: i16,
    /// From SIGTERM to SIGKILL.
    pub stop_timeout: Duration,
    /// Whether what it leaves behind is killed with it. Not so for containerd: its shims hold the containers.
    pub kill_leftovers: bool,
    /// What it may not do. containerd has no limits: they would be those of every container.
    pub confinement: Option<&'static Confinement>,
}

/// It reads the kernel's log and keeps files.
const LOGD_LIMITS: Confinement = Confinement { capabilities: CapabilitySet::SYSLOG, refused: &[MOUNTS, CLOCK] };

/// Disks and the nodes of opened volumes, links, the clock, the loader's variables, the control plane's files, and what other users' processes hold of memory (the call
/// ptrace itself is refused).
const MACHINED_LIMITS: Confinement = Confinement {
    capabilities: CapabilitySet::CHOWN
        .union(CapabilitySet::DAC_OVERRIDE)
        .union(CapabilitySet::DAC_READ_SEARCH)
        .union(CapabilitySet::FOWNER)
        .union(CapabilitySet::FSETID)
        .union(CapabilitySet::KILL)
        .union(CapabilitySet::LINUX_IMMUTABLE)
        .union(CapabilitySet::MKNOD)
        .union(CapabilitySet::NET_ADMIN)
        .union(CapabilitySet::NET_BIND_SERVICE)
        .union(CapabilitySet::NET_RAW)
        .union(CapabilitySet::SYS_ADMIN)
        .union(CapabilitySet::SYS_PTRACE)
        .union(CapabilitySet::SYS_RESOURCE)
        .union(CapabilitySet::SYS_TIME)
        .union(CapabilitySet::SYSLOG),
    refused: &[],
};

/// Volumes with their owners, cgroups, and the kernel's log for what ran out of memory.
const KUBELET_LIMITS: Confinement = Confinement {
    capabilities: CapabilitySet::CHOWN
        .union(CapabilitySet::DAC_OVERRIDE)
        .union(CapabilitySet::DAC_READ_SEARCH)
        .union(CapabilitySet::FOWNER)
        .union(CapabilitySet::FSETID)
        .union(CapabilitySet::KILL)
        .union(CapabilitySet::NET_ADMIN)
        .union(CapabilitySet::SYS_ADMIN)
        .union(CapabilitySet::SYS_RESOURCE)
        .union(CapabilitySet::SYSLOG),
    refused: &[CLOCK],
};

/// Rules of the packet filter, and entries of connection tracking.
const KUBE_PROXY_LIMITS: Confinement = Confinement { capabilities: CapabilitySet::NET_ADMIN, refused: &[MOUNTS, CLOCK] };

/// In the order in which they are shown and started.
pub const TABLE: &[ServiceDef] = &[
    ServiceDef {
        name: LOGD,
        program: "/usr/bin/logd",
        leading_args: &[],
        at_boot: true,
        after: &[],
        ready_file: None,
        cgroup: "system/logd",
        oom_score_adj: -900,
        stop_timeout: Duration::from_secs(5),
        kill_leftovers: true,
        confinement: Some(&LOGD_LIMITS),
    },
    ServiceDef {
        name: "machined",
        program: "/usr/bin/machined",
        leading_args: &[],
        at_boot: true,
        after: &[],
        ready_file: None,
        cgroup: "system/machined",
        oom_score_adj: -900,
        stop_timeout: Duration::from_secs(10),
        kill_leftovers: true,
        confinement: Some(&MACHINED_LIMITS),
    },
    ServiceDef {
        name: "containerd",
        program: "/usr/bin/containerd",
        leading_args: &[],
        at_boot: false,
        after: &[],
        ready_file: Some("/run/containerd/containerd.sock"),
        cgroup: "podruntime/containerd",
        oom_score_adj: -999,
        stop_timeout: Duration::from_secs(15),
        kill_leftovers: false,
        confinement: None,
    },
    ServiceDef {
        name: "kubelet",
        program: "/usr/bin/kube",
        leading_args: &["kubelet"],
        at_boot: false,
        after: &["containerd"],
        ready_file: None,
        cgroup: "podruntime/kubelet",
        oom_score_adj: -999,
        stop_timeout: Duration::from_secs(10),
        kill_leftovers: true,
        confinement: Some(&KUBELET_LIMITS),
    },
    ServiceDef {
        name: "kube-proxy",
        program: "/usr/bin/kube-proxy",
        leading_args: &[],
        at_boot: false,
        after: &[],
        ready_file: None,
        cgroup: "podruntime/kube-proxy",
        oom_score_adj: -999,
        stop_timeout: Duration::from_secs(5),
        kill_leftovers: true,
        confinement: Some(&KUBE_PROXY_LIMITS),
    },
];

/// logd takes the others' output, so init treats its start specially.
pub const LOGD: &str = "logd";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_an_earlier_service() {
        for (at, def) in TABLE.iter().enumerate() {
            for name in def.after {
                assert!(TABLE[..at].iter().any(|earlier| earlier.name == *name), "{} after {name}", def.name);
            }
        }
    }

    #[test]
    fn every_service_has_a_cgroup_of_its_own_below_one_of_the_two_slices() {
        for def in TABLE {
            let (slice, leaf) = def.cgroup.split_once('/').unwrap();
            assert!(matches!(slice, "system" | "podruntime"));
            assert_eq!(leaf, def.name);
        }
    }
}
