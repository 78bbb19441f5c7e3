//! The baseline: what nearly every workload can do without, because it leads out of the container.

use std::collections::BTreeSet;

use k8s_schema::Ref;

use super::checks::{Pod, Violation, bad_profiles, containers, in_user_namespace, named, plural, quoted, setters, these_containers};

fn found(reason: &'static str, detail: String) -> Option<Violation> {
    Some(Violation { reason, detail })
}

pub const PROFILES: &[&str] = &["RuntimeDefault", "Localhost"];

pub fn app_armor(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let (of_pod, of_containers, values) = bad_profiles(pod, "appArmorProfile", PROFILES);
    let mut annotations: Vec<String> = pod
        .meta
        .get("annotations")
        .entries()
        .filter(|(k, v)| {
            let v = v.str();
            k.starts_with("container.apparmor.security.beta.kubernetes.io/")
                && !(v.is_empty() || v == "runtime/default" || v.starts_with("localhost/"))
        })
        .map(|(k, v)| format!("{k}={:?}", v.str()))
        .collect();
    annotations.sort();
    let n = annotations.len();
    let who = [setters(of_pod, &of_containers), (n > 0).then(|| plural(n, "annotation", "annotations").to_owned())];
    let who: Vec<String> = who.into_iter().flatten().collect();
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = values.into_iter().map(str::to_owned).chain(annotations).collect();
    found(
        plural(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles"),
        format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values)),
    )
}

const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub fn capabilities(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let mut added = BTreeSet::new();
    let bad = named(pod, |c| {
        let own: Vec<&str> =
            c.get("securityContext").get("capabilities").get("add").strings().filter(|c| !CAPABILITIES.contains(c)).collect();
        let any = !own.is_empty();
        added.extend(own);
        any
    });
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must not include {} in securityContext.capabilities.add", these_containers(&bad), quoted(added));
    found("non-default capabilities", detail)
}

pub fn host_namespaces(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let shared: Vec<String> =
        ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|f| pod.spec.get(f).bool()).map(|f| format!("{f}=true")).collect();
    if shared.is_empty() { None } else { found("host namespaces", shared.join(", ")) }
}

pub fn host_path(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let volumes: Vec<&str> = pod.spec.get("volumes").iter().filter(|v| v.get("hostPath").exists()).map(|v| v.get("name").str()).collect();
    if volumes.is_empty() {
        return None;
    }
    found("hostPath volumes", format!("{} {}", plural(volumes.len(), "volume", "volumes"), quoted(volumes)))
}

pub fn host_ports(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let bad = named(pod, |c| {
        let own: Vec<String> = c.get("ports").iter().map(|p| p.get("hostPort").int()).filter(|p| *p != 0).map(|p| p.to_string()).collect();
        let any = !own.is_empty();
        ports.extend(own);
        any
    });
    if bad.is_empty() {
        return None;
    }
    let (uses, what) = (plural(bad.len(), "uses", "use"), plural(ports.len(), "hostPort", "hostPorts"));
    let list: Vec<String> = ports.into_iter().collect();
    found("hostPort", format!("{} {uses} {what} {}", these_containers(&bad), list.join(", ")))
}

pub fn host_probes(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
    for c in containers(pod) {
        let handlers = ["livenessProbe", "readinessProbe", "startupProbe"].map(|f| c.get(f));
        let hooks = ["postStart", "preStop"].map(|f| c.get("lifecycle").get(f));
        let all = handlers.into_iter().chain(hooks);
        for host in all.flat_map(|h| ["httpGet", "tcpSocket"].map(|k| h.get(k).get("host").str())).filter(|h| !h.is_empty()) {
            names.insert(c.get("name").str());
            hosts.insert(host);
        }
    }
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let what = plural(hosts.len(), "probe or lifecycle host", "probe or lifecycle hosts");
    let uses = plural(names.len(), "uses", "use");
    found("probe or lifecycle host", format!("{} {uses} {what} {}", these_containers(&names), quoted(hosts)))
}

pub fn privileged(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let bad = named(pod, |c| c.get("securityContext").get("privileged").bool());
    if bad.is_empty() {
        return None;
    }
    found("privileged", format!("{} must not set securityContext.privileged=true", these_containers(&bad)))
}

/// Since 1.35 a pod with users of its own may see more of /proc.
pub fn proc_mount(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    if minor >= 35 && in_user_namespace(pod) { None } else { any_proc_mount(pod) }
}

pub fn any_proc_mount(pod: Pod<'_>) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let bad = named(pod, |c| match c.get("securityContext").get("procMount").as_str() {
        None | Some("Default") => false,
        Some(other) => {
            kinds.insert(other);
            true
        }
    });
    if bad.is_empty() {
        return None;
    }
    found("procMount", format!("{} must not set securityContext.procMount to {}", these_containers(&bad), quoted(kinds)))
}

pub fn se_linux(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |holder: Ref<'_>| {
        let o = holder.get("securityContext").get("seLinuxOptions");
        let kind = o.get("type").str().to_owned();
        let known = matches!(kind.as_str(), "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (minor >= 31 && kind == "container_engine_t");
        let (u, r) = (!o.get("user").str().is_empty(), !o.get("role").str().is_empty());
        user |= u;
        role |= r;
        if !known {
            types.insert(kind);
        }
        u || r || !known
    };
    let of_pod = bad(pod.spec);
    let of_containers = named(pod, bad);
    let who = setters(of_pod, &of_containers)?;
    let what = [
        (!types.is_empty()).then(|| format!("{} {}", plural(types.len(), "type", "types"), quoted(&types))),
        user.then(|| "user may not be set".to_owned()),
        role.then(|| "role may not be set".to_owned()),
    ];
    let what: Vec<String> = what.into_iter().flatten().collect();
    found("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")))
}

pub fn seccomp(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    if minor < 19 {
        return seccomp_annotations(pod);
    }
    let (of_pod, of_containers, values) = bad_profiles(pod, "seccompProfile", PROFILES);
    let who = setters(of_pod, &of_containers)?;
    found("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)))
}

/// Before there were fields, annotations named the profiles.
fn seccomp_annotations(pod: Pod<'_>) -> Option<Violation> {
    let keys = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned())
        .chain(containers(pod).map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", c.get("name").str())));
    let annotations = pod.meta.get("annotations");
    let bad: BTreeSet<String> = keys
        .filter_map(|k| {
            let v = annotations.get(&k).as_str()?;
            let known = matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
            (!known).then(|| format!("{k}={v:?}"))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let list: Vec<String> = bad.into_iter().collect();
    found("seccompProfile", format!("forbidden {} {}", plural(list.len(), "annotation", "annotations"), list.join(", ")))
}

/// Safe ones, with the version since which they are.
const SYSCTLS: &[(&str, u64)] = &[
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

pub fn sysctls(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    let bad: Vec<&str> = pod
        .spec
        .get("securityContext")
        .get("sysctls")
        .iter()
        .map(|s| s.get("name").str())
        .filter(|n| !SYSCTLS.iter().any(|(k, since)| k == n && *since <= minor))
        .collect();
    if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
}

pub fn host_process(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let bad = |holder: Ref<'_>| holder.get("securityContext").get("windowsOptions").get("hostProcess").bool();
    let who = setters(bad(pod.spec), &named(pod, bad))?;
    found("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
