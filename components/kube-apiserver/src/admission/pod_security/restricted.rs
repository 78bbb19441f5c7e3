//! What hardened workloads do on top of the baseline: no root, no capabilities, a seccomp profile, no volumes of the host.

use std::collections::BTreeSet;

use k8s_schema::Ref;

use super::{
    baseline::{PROFILES, any_proc_mount},
    checks::{Pod, Violation, bad_profiles, in_user_namespace, named, on_windows, plural, quoted, setters, these_containers},
};

fn found(reason: &'static str, detail: String) -> Option<Violation> {
    Some(Violation { reason, detail })
}

pub fn escalation(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    if on_windows(pod, minor) {
        return None;
    }
    let bad = named(pod, |c| c.get("securityContext").get("allowPrivilegeEscalation").as_bool() != Some(false));
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", these_containers(&bad));
    found("allowPrivilegeEscalation != false", detail)
}

fn given(container: Ref<'_>) -> Ref<'_> {
    container.get("securityContext").get("capabilities")
}

pub fn capabilities(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    if on_windows(pod, minor) {
        return None;
    }
    let keeping = named(pod, |c| !given(c).get("drop").contains_str("ALL"));
    let mut added = BTreeSet::new();
    let adding = named(pod, |c| {
        let own: Vec<String> = given(c).get("add").strings().filter(|c| *c != "NET_BIND_SERVICE").map(str::to_owned).collect();
        let any = !own.is_empty();
        added.extend(own);
        any
    });
    let details = [
        (!keeping.is_empty()).then(|| format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", these_containers(&keeping))),
        (!adding.is_empty())
            .then(|| format!("{} must not include {} in securityContext.capabilities.add", these_containers(&adding), quoted(&added))),
    ];
    let details: Vec<String> = details.into_iter().flatten().collect();
    if details.is_empty() { None } else { found("unrestricted capabilities", details.join("; ")) }
}

pub fn proc_mount(pod: Pod<'_>, _: u64) -> Option<Violation> {
    any_proc_mount(pod)
}

const VOLUMES: &[&str] =
    &["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"];

pub fn volumes(pod: Pod<'_>, _: u64) -> Option<Violation> {
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for v in pod.spec.get("volumes").iter() {
        if VOLUMES.iter().any(|k| v.get(k).exists()) {
            continue;
        }
        names.push(v.get("name").str());
        kinds.insert(v.fields().map(|(k, _)| k).find(|k| *k != "name").unwrap_or("unknown"));
    }
    if names.is_empty() {
        return None;
    }
    let (n, k) = (names.len(), kinds.len());
    let (volumes, uses) = (plural(n, "volume", "volumes"), plural(n, "uses", "use"));
    let what = plural(k, "restricted volume type", "restricted volume types");
    found("restricted volume types", format!("{volumes} {} {uses} {what} {}", quoted(names), quoted(kinds)))
}

pub fn non_root(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    if minor >= 35 && in_user_namespace(pod) {
        return None;
    }
    const REASON: &str = "runAsNonRoot != true";
    let of = |holder: Ref<'_>| holder.get("securityContext").get("runAsNonRoot").as_bool();
    let of_pod = of(pod.spec);
    if let Some(who) = setters(of_pod == Some(false), &named(pod, |c| of(c) == Some(false))) {
        return found(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let silent = named(pod, |c| of(c).is_none());
    if of_pod == Some(true) || silent.is_empty() {
        return None;
    }
    found(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", these_containers(&silent)))
}

pub fn user(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    if minor >= 35 && in_user_namespace(pod) {
        return None;
    }
    let root = |holder: Ref<'_>| holder.get("securityContext").get("runAsUser").as_i64() == Some(0);
    let who = setters(root(pod.spec), &named(pod, root))?;
    found("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub fn seccomp(pod: Pod<'_>, minor: u64) -> Option<Violation> {
    if on_windows(pod, minor) {
        return None;
    }
    const REASON: &str = "seccompProfile";
    let (of_pod, of_containers, values) = bad_profiles(pod, REASON, PROFILES);
    if let Some(who) = setters(of_pod, &of_containers) {
        return found(REASON, format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)));
    }
    let of = |holder: Ref<'_>| holder.get("securityContext").get(REASON).exists();
    let silent = named(pod, |c| !of(c));
    if of(pod.spec) || silent.is_empty() {
        return None;
    }
    let what = "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    found(REASON, format!("pod or {} {what}", these_containers(&silent)))
}
