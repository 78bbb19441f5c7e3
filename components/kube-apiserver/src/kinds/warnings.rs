//! What is accepted but deserves a word: hints that clients show to people.

use k8s_schema::{Doc, Ref};

use crate::validation::{child, index, key, names};

/// A pod: its name, its annotations and its spec.
pub fn pod(d: &Doc, old: Option<&Doc>) -> Vec<String> {
    if old.is_some() {
        // An update that leaves the spec alone was warned of when it was made.
        return Vec::new();
    }
    let mut w = Vec::new();
    let name = d.at("metadata.name").str();
    let bad = names::dns1123_label(name);
    if !name.is_empty() && !bad.is_empty() {
        w.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            bad.join(" ")
        ));
    }
    spec(d.at("spec"), d.at("metadata"), "spec", "metadata.annotations", &mut w);
    w
}

/// What has a template of pods at `spec.template`.
pub fn templated(d: &Doc, old: Option<&Doc>) -> Vec<String> {
    let mut w = Vec::new();
    let name = d.at("metadata.name").str();
    let bad = names::dns1123_label(name);
    if old.is_none() && !bad.is_empty() && matches!(d.kind(), "Deployment" | "ReplicaSet" | "StatefulSet" | "ReplicationController" | "Job")
    {
        w.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            bad.join(" ")
        ));
    }
    if d.kind() == "StatefulSet" && d.at("spec.revisionHistoryLimit").as_i64().is_some_and(|n| n < 0) {
        w.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
    }
    let t = d.at("spec.template");
    let generation = |d: &Doc| d.at("metadata.generation").int();
    if old.is_none_or(|o| generation(o) != generation(d)) {
        spec(t.get("spec"), t.get("metadata"), "spec.template.spec", "spec.template.metadata.annotations", &mut w);
    }
    w
}

/// Volume types that go away or are gone.
const DEPRECATED: &[(&str, &str)] = &[
    ("photonPersistentDisk", "photonPersistentDisk: deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo: deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO: deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker: deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS: deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte: deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs: deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs: deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd: deprecated in v1.28, non-functional in v1.31+"),
];

const OLD_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "v1.14; use \"kubernetes.io/arch\""),
    ("beta.kubernetes.io/os", "v1.14; use \"kubernetes.io/os\""),
    ("failure-domain.beta.kubernetes.io/region", "v1.17; use \"topology.kubernetes.io/region\""),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17; use \"topology.kubernetes.io/zone\""),
    ("beta.kubernetes.io/instance-type", "v1.17; use \"node.kubernetes.io/instance-type\""),
];

fn spec(s: Ref<'_>, meta: Ref<'_>, path: &str, annotations: &str, w: &mut Vec<String>) {
    for (label, since) in OLD_LABELS {
        if s.get("nodeSelector").get(label).exists() {
            w.push(format!("{}: deprecated since {since} instead", key(&child(path, "nodeSelector"), label)));
        }
    }
    for (i, t) in s.get("topologySpreadConstraints").iter().enumerate() {
        if !t.get("labelSelector").exists() {
            w.push(format!(
                "{}.labelSelector: a null labelSelector results in matching no pod",
                index(&child(path, "topologySpreadConstraints"), i)
            ));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let list = "requiredDuringSchedulingIgnoredDuringExecution";
        for (i, t) in s.get("affinity").get(kind).get(list).iter().enumerate() {
            if !t.get("labelSelector").exists() {
                w.push(format!("{path}.affinity.{kind}.{list}[{i}].labelSelector: a null labelSelector results in matching no pod"));
            }
        }
    }
    let mut ips: Vec<&str> = Vec::new();
    for (i, a) in s.get("hostAliases").iter().enumerate() {
        let ip = a.get("ip").str();
        if ips.contains(&ip) {
            w.push(format!("{}.ip: duplicate ip {ip:?}", index(&child(path, "hostAliases"), i)));
        }
        ips.push(ip);
    }
    let mut secrets: Vec<&str> = Vec::new();
    for (i, p) in s.get("imagePullSecrets").iter().enumerate() {
        let (name, at) = (p.get("name").str(), index(&child(path, "imagePullSecrets"), i));
        if name.is_empty() {
            w.push(format!("{at}.name: invalid empty name \"\""));
        } else if secrets.contains(&name) {
            w.push(format!("{at}.name: duplicate name {name:?}"));
        }
        secrets.push(name);
    }
    for (i, v) in s.get("volumes").iter().enumerate() {
        for (kind, text) in DEPRECATED {
            if v.get(kind).exists() {
                w.push(format!("{}.{text}", index(&child(path, "volumes"), i)));
            }
        }
        let projected = v.get("projected");
        for _ in projected.get("sources").iter().filter(|x| x.fields().count() == 0) {
            w.push(format!("volume {:?} (Projected) has no sources provided", v.get("name").str()));
        }
    }
    for (list, containers) in ["initContainers", "containers"].map(|l| (l, s.get(l))) {
        for (i, c) in containers.iter().enumerate() {
            container(c, &index(&child(path, list), i), w);
        }
    }
    for (k, _) in meta.get("annotations").entries() {
        let at = key(annotations, k);
        if k == "seccomp.security.alpha.kubernetes.io/pod" || k.starts_with("container.seccomp.security.alpha.kubernetes.io/") {
            w.push(format!("{at}: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
        }
        if k.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            w.push(format!("{at}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        }
    }
}

fn container(c: Ref<'_>, p: &str, w: &mut Vec<String>) {
    for list in ["limits", "requests"] {
        for resource in ["memory", "ephemeral-storage"] {
            let q = c.get("resources").get(list).get(resource);
            if q.quantity().is_some_and(|q| !q.is_integer()) {
                w.push(format!("{p}.resources.{list}[{resource}]: fractional byte value {:?} is invalid, must be an integer", q.str()));
            }
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, e) in c.get("env").iter().enumerate() {
        let name = e.get("name").str();
        if seen.contains(&name) {
            w.push(format!("{p}.env[{i}]: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
        seen.push(name);
    }
    let mut ports: Vec<(i64, &str, i64)> = Vec::new();
    for (i, x) in c.get("ports").iter().enumerate() {
        let id = (x.get("containerPort").int(), x.get("protocol").str(), x.get("hostPort").int());
        if let Some(j) = ports.iter().position(|o| *o == id) {
            w.push(format!("{p}.ports[{i}]: duplicate port definition with {p}.ports[{j}]"));
        }
        ports.push(id);
    }
}

pub fn service(d: &Doc, _: Option<&Doc>) -> Vec<String> {
    let mut w = Vec::new();
    let s = d.at("spec");
    if !s.get("externalIPs").is_empty() {
        w.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    if s.get("type").str() != "ExternalName" && !s.get("externalName").str().is_empty() {
        w.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if s.get("clusterIP").str() == "None" && s.get("sessionAffinity").str() == "ClientIP" {
        w.push("spec.SessionAffinity is ignored for headless services".into());
    }
    let ip = s.get("loadBalancerIP").str();
    if let Some(plain) = without_leading_zeros(ip) {
        w.push(format!("spec.loadBalancerIP: non-standard IP address {ip:?} is invalid: use {plain:?}"));
    }
    if s.get("trafficDistribution").str() == "PreferClose" {
        w.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
    w
}

/// An IPv4 address whose numbers have zeros before them, which some read as octal, without them.
fn without_leading_zeros(ip: &str) -> Option<String> {
    let parts: Vec<&str> = ip.split('.').collect();
    let numbers: Option<Vec<u8>> = parts.iter().map(|p| p.parse().ok().filter(|_| p.bytes().all(|b| b.is_ascii_digit()))).collect();
    let numbers = numbers.filter(|n| n.len() == 4)?;
    let plain = numbers.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
    (plain != ip).then_some(plain)
}

pub fn claim(d: &Doc, _: Option<&Doc>) -> Vec<String> {
    let mut w = Vec::new();
    let annotation = "volume.beta.kubernetes.io/storage-class";
    if d.at("metadata.annotations").get(annotation).exists() {
        w.push(format!("metadata.annotations[{annotation}]: deprecated since v1.8; use \"storageClassName\" attribute instead"));
    }
    let q = d.at("spec.resources.requests").get("storage");
    if q.quantity().is_some_and(|q| !q.is_integer()) {
        w.push(format!("spec.resources.requests[storage]: fractional byte value {:?} is invalid, must be an integer", q.str()));
    }
    w
}

pub fn volume(d: &Doc, _: Option<&Doc>) -> Vec<String> {
    let annotation = "volume.beta.kubernetes.io/storage-class";
    if d.at("metadata.annotations").get(annotation).exists() {
        return vec![format!("metadata.annotations[{annotation}]: deprecated since v1.8; use \"storageClassName\" attribute instead")];
    }
    if d.at("spec.persistentVolumeReclaimPolicy").str() == "Recycle" {
        return vec!["spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into()];
    }
    Vec::new()
}

/// The topologies of a storage class, by the labels of nodes that there were before.
pub fn storage_class(d: &Doc, _: Option<&Doc>) -> Vec<String> {
    let mut w = Vec::new();
    for (i, t) in d.at("allowedTopologies").iter().enumerate() {
        for (j, x) in t.get("matchLabelExpressions").iter().enumerate() {
            if let Some((_, since)) = OLD_LABELS.iter().find(|(label, _)| *label == x.get("key").str()) {
                w.push(format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: deprecated since {since} instead"));
            }
        }
    }
    w
}

pub fn ingress(d: &Doc, _: Option<&Doc>) -> Vec<String> {
    if d.at("metadata.annotations").get("kubernetes.io/ingress.class").exists() && !d.at("spec.ingressClassName").exists() {
        return vec!["annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead".into()];
    }
    Vec::new()
}
