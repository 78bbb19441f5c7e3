//! The table of checks that the Pod Security Standards consist of, and how they are put together for a level and a version.
//!
//! Source of the rules: the Pod Security Standards of Kubernetes v1.36. Every check is a pure function of a pod's metadata and spec.

use std::collections::BTreeSet;

use k8s_schema::Ref;

use super::{
    baseline,
    policy::{Level, Standard, Version},
    restricted,
};

/// The newest version that has rules of its own; every newer one means this.
pub const NEWEST: u64 = 35;

/// A pod, or what a template would make one of.
#[derive(Clone, Copy)]
pub struct Pod<'a> {
    pub meta: Ref<'a>,
    pub spec: Ref<'a>,
}

/// What a check finds wrong: in short, and with the values at fault.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: &'static str,
    pub detail: String,
}

/// One check. `run` gets the minor version whose rules apply.
pub struct Check {
    pub id: &'static str,
    pub level: Level,
    /// The first minor version that has it.
    pub since: u64,
    /// The baseline check that it replaces where it applies.
    pub replaces: &'static str,
    pub run: fn(Pod<'_>, u64) -> Option<Violation>,
}

const fn check(id: &'static str, since: u64, run: fn(Pod<'_>, u64) -> Option<Violation>) -> Check {
    Check { id, level: Level::Baseline, since, replaces: "", run }
}

const fn strict(id: &'static str, since: u64, replaces: &'static str, run: fn(Pod<'_>, u64) -> Option<Violation>) -> Check {
    Check { id, level: Level::Restricted, since, replaces, run }
}

/// All checks, in the order in which what they find is told: baseline first, each by name.
pub static CHECKS: &[Check] = &[
    check("appArmorProfile", 0, baseline::app_armor),
    check("capabilities_baseline", 0, baseline::capabilities),
    check("hostNamespaces", 0, baseline::host_namespaces),
    check("hostPathVolumes", 0, baseline::host_path),
    check("hostPorts", 0, baseline::host_ports),
    check("hostProbesAndHostLifecycle", 34, baseline::host_probes),
    check("privileged", 0, baseline::privileged),
    check("procMount", 0, baseline::proc_mount),
    check("seLinuxOptions", 0, baseline::se_linux),
    check("seccompProfile_baseline", 0, baseline::seccomp),
    check("sysctls", 0, baseline::sysctls),
    check("windowsHostProcess", 0, baseline::host_process),
    strict("allowPrivilegeEscalation", 8, "", restricted::escalation),
    strict("capabilities_restricted", 22, "capabilities_baseline", restricted::capabilities),
    strict("procMount_restricted", 35, "procMount", restricted::proc_mount),
    strict("restrictedVolumes", 0, "hostPathVolumes", restricted::volumes),
    strict("runAsNonRoot", 0, "", restricted::non_root),
    strict("runAsUser", 23, "", restricted::user),
    strict("seccompProfile_restricted", 19, "seccompProfile_baseline", restricted::seccomp),
];

/// Everything about a pod that a standard does not allow.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict(Vec<Violation>);

impl Verdict {
    pub fn allowed(&self) -> bool {
        self.0.is_empty()
    }

    /// The reasons alone, for what many pods have in common.
    pub fn reasons(&self) -> String {
        self.0.iter().map(|v| v.reason).collect::<Vec<_>>().join(", ")
    }

    /// The reasons with the values at fault.
    pub fn details(&self) -> String {
        let one = |v: &Violation| if v.detail.is_empty() { v.reason.to_owned() } else { format!("{} ({})", v.reason, v.detail) };
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// Judges a pod by a standard.
pub fn judge(standard: Standard, pod: Pod<'_>) -> Verdict {
    let minor = match standard.version {
        Version::Latest => NEWEST,
        Version::Minor(n) => n.min(NEWEST),
    };
    let applies = |c: &Check| c.level <= standard.level && c.since <= minor;
    let replaced = |id: &str| CHECKS.iter().any(|c| c.replaces == id && applies(c));
    let found = CHECKS.iter().filter(|c| applies(c) && !replaced(c.id)).filter_map(|c| (c.run)(pod, minor));
    if standard.level == Level::Privileged { Verdict::default() } else { Verdict(found.collect()) }
}

/// All containers of a pod: those that run first, first.
pub fn containers(pod: Pod<'_>) -> impl Iterator<Item = Ref<'_>> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| pod.spec.get(list).iter())
}

/// The names of the containers of which something holds.
pub fn named<'a>(pod: Pod<'a>, mut bad: impl FnMut(Ref<'a>) -> bool) -> Vec<&'a str> {
    containers(pod).filter(|c| bad(*c)).map(|c| c.get("name").str()).collect()
}

pub fn plural(n: usize, one: &'static str, many: &'static str) -> &'static str {
    if n == 1 { one } else { many }
}

pub fn quoted<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    items.into_iter().map(|i| format!("\"{}\"", i.as_ref())).collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
pub fn these_containers(names: &[&str]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names))
}

/// Who set something that is not allowed: the pod, some containers, both; none: nobody.
pub fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    let all = [pod.then(|| "pod".to_owned()), (!containers.is_empty()).then(|| these_containers(containers))];
    let all: Vec<String> = all.into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(" and "))
}

/// Without user namespaces of its own a pod's users are the host's.
pub fn in_user_namespace(pod: Pod<'_>) -> bool {
    pod.spec.get("hostUsers").as_bool() == Some(false)
}

/// Fields that mean nothing on Windows are not asked for there, since rules know of operating systems.
pub fn on_windows(pod: Pod<'_>, minor: u64) -> bool {
    minor >= 25 && pod.spec.get("os").get("name").str() == "windows"
}

/// A field of type profile: who set a type that `allowed` does not name, and which.
pub fn bad_profiles<'a>(pod: Pod<'a>, field: &str, allowed: &[&str]) -> (bool, Vec<&'a str>, BTreeSet<&'a str>) {
    let mut values = BTreeSet::new();
    let mut bad = |holder: Ref<'a>| {
        let profile = holder.get("securityContext").get(field);
        let kind = profile.get("type").str();
        let bad = profile.exists() && !allowed.contains(&kind);
        if bad {
            values.insert(kind);
        }
        bad
    };
    let of_pod = bad(pod.spec);
    let of_containers = named(pod, bad);
    (of_pod, of_containers, values)
}
