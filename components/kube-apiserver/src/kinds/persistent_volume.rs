//! Persistent volumes: where they are, what they hold, and who may reach them.

use k8s_schema::{Doc, Ref};
use serde_json::Value;

use super::{Action, PLAIN, Strategy, dra, pod_spec, pod_volumes, storage::MODES, warnings};
use crate::validation::{ErrorList, FieldError, child, key, names};

pub const PERSISTENT_VOLUME: Strategy = Strategy {
    status: true,
    returns_deleted: true,
    prepare_create: |d| {
        // Constants that fit the type: these cannot fail.
        let _ = d.set("status.phase", "Pending");
        let _ = d.set("status.lastPhaseTransitionTime", crate::handlers::write::now());
    },
    prepare_update: |a, n, o| {
        if a == Action::Status && n.at("status.phase").str() != o.at("status.phase").str() {
            let _ = n.set("status.lastPhaseTransitionTime", crate::handlers::write::now());
        }
    },
    warnings: warnings::volume,
    validate_create: |d, e| spec(d.at("spec"), false, "spec", e),
    validate_update: |a, n, o, e| {
        if a == Action::Main {
            spec(n.at("spec"), false, "spec", e);
            unchanged(n, o, e);
        }
    },
    ..PLAIN
};

/// The sources of volumes, in the order in which upstream looks for them.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// The volume of an attachment that no object stands for.
pub fn inline_spec(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    const NOT_INLINE: &str = "may not be specified in the context of inline volumes";
    for (field, given) in [("claimRef", s.get("claimRef").exists()), ("capacity", !s.get("capacity").is_empty())] {
        if given {
            e.push(FieldError::forbidden(child(path, field), NOT_INLINE));
        }
    }
    if !s.get("csi").exists() {
        e.push(FieldError::required(child(path, "csi"), "has to be specified in the context of inline volumes"));
    }
    spec(s, true, path, e);
    if !matches!(s.get("persistentVolumeReclaimPolicy").str(), "" | "Retain") {
        let why = "may only be Retain in the context of inline volumes";
        e.push(FieldError::forbidden(child(path, "persistentVolumeReclaimPolicy"), why));
    }
    for (field, given) in
        [("nodeAffinity", s.get("nodeAffinity").exists()), ("storageClassName", !s.get("storageClassName").str().is_empty())]
    {
        if given {
            e.push(FieldError::forbidden(child(path, field), NOT_INLINE));
        }
    }
    if s.get("volumeMode").as_str().is_some_and(|m| m != "Filesystem") {
        let why = "may not specify volumeMode other than Filesystem in the context of inline volumes";
        e.push(FieldError::forbidden(child(path, "volumeMode"), why));
    }
}

fn spec(s: Ref<'_>, inline: bool, path: &str, e: &mut ErrorList) {
    let (modes, at) = (s.get("accessModes"), child(path, "accessModes"));
    if modes.is_empty() {
        e.push(FieldError::required(at.clone(), ""));
    }
    for m in modes.strings().filter(|m| !MODES.contains(m)) {
        e.push(FieldError::not_supported(at.clone(), m, MODES));
    }
    if modes.contains_str("ReadWriteOncePod") && modes.strings().any(|m| m != "ReadWriteOncePod" && MODES.contains(&m)) {
        e.push(FieldError::forbidden(at, "may not use ReadWriteOncePod with other access modes"));
    }
    let reclaim = s.get("persistentVolumeReclaimPolicy").str();
    if !inline {
        capacity(s.get("capacity"), &child(path, "capacity"), e);
        const POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
        if !reclaim.is_empty() && !POLICIES.contains(&reclaim) {
            e.push(FieldError::not_supported(child(path, "persistentVolumeReclaimPolicy"), reclaim, POLICIES));
        }
        let (affinity, at) = (s.get("nodeAffinity"), child(path, "nodeAffinity.required"));
        if affinity.get("required").exists() {
            pod_spec::node_selector(affinity.get("required"), &at, e);
        } else if affinity.exists() {
            e.push(FieldError::required(at, "must specify required node constraints"));
        }
    }
    sources(s, path, e);
    let host = s.at("hostPath.path").str();
    if !host.is_empty() && host.split('/').all(|part| matches!(part, "" | ".")) && host.starts_with('/') && reclaim == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        e.push(FieldError::forbidden(child(path, "persistentVolumeReclaimPolicy"), why));
    }
    if !inline {
        let class = s.get("storageClassName").str();
        if !class.is_empty() {
            e.all_invalid(&child(path, "storageClassName"), class, names::dns1123_subdomain(class));
        }
        if let Some(mode) = s.get("volumeMode").as_str().filter(|m| !matches!(*m, "Block" | "Filesystem")) {
            e.push(FieldError::not_supported(child(path, "volumeMode"), mode, &["Block", "Filesystem"]));
        }
    }
    if let Some(class) = s.get("volumeAttributesClassName").as_str() {
        let at = child(path, "volumeAttributesClassName");
        if class.is_empty() {
            e.push(FieldError::required(at, "an empty string is disallowed"));
        } else {
            e.all_invalid(&at, class, names::dns1123_subdomain(class));
        }
        if !s.get("csi").exists() {
            e.push(FieldError::required(child(path, "csi"), "has to be specified when using volumeAttributesClassName"));
        }
    }
}

fn capacity(all: Ref<'_>, path: &str, e: &mut ErrorList) {
    if all.is_empty() {
        e.push(FieldError::required(path, ""));
    }
    if !all.get("storage").exists() || all.len() > 1 {
        e.push(FieldError::not_supported_raw(path, &all.to_value().to_string(), &["storage"]));
    }
    for (name, amount) in all.entries() {
        let Some(q) = amount.quantity() else { continue };
        if q.sign() < 0 {
            e.push(FieldError::invalid(key(path, name), q.value(), "must be a valid resource quantity"));
        }
        if q.sign() <= 0 {
            e.push(FieldError::invalid(key(path, name), q.to_string(), "must be greater than zero"));
        }
    }
}

fn sources(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    let given: Vec<&str> = SOURCES.iter().copied().filter(|k| s.get(k).exists()).collect();
    if given.is_empty() {
        e.push(FieldError::required(path, "must specify a volume type"));
    }
    for (i, kind) in given.iter().enumerate() {
        let at = child(path, kind);
        // Upstream counts the volumes of FlexVolume drivers, and looks into each.
        if i == 0 || *kind == "flexVolume" {
            source(s, kind, &at, e);
        } else {
            // And spells one of them in another way here.
            let at = if *kind == "cephfs" { child(path, "cephFS") } else { at };
            e.push(FieldError::forbidden(at, "may not specify more than 1 volume type"));
        }
    }
}

fn source(spec: Ref<'_>, kind: &str, path: &str, e: &mut ErrorList) {
    let s = spec.get(kind);
    match kind {
        "csi" => return csi(s, path, e),
        "local" => {
            let at = child(path, "path");
            if s.get("path").str().is_empty() {
                e.push(FieldError::required(at, ""));
            } else {
                pod_volumes::no_backsteps(s.get("path").str(), &at, e);
            }
            if !spec.get("nodeAffinity").exists() {
                let at = path.strip_suffix("local").unwrap_or(path);
                e.push(FieldError::required(format!("{at}nodeAffinity"), "Local volume requires node affinity"));
            }
            return;
        }
        _ => pod_volumes::volume_source(s, kind, path, e),
    }
    let secret = s.get("secretRef");
    if matches!(kind, "cinder" | "storageos") && secret.exists() {
        for field in ["name", "namespace"].into_iter().filter(|f| secret.get(f).str().is_empty()) {
            e.push(FieldError::required(child(path, &format!("secretRef.{field}")), ""));
        }
    }
    if kind == "iscsi" && secret.exists() && secret.get("name").str().is_empty() {
        e.push(FieldError::required(child(path, "secretRef.name"), ""));
    }
    if kind == "azureFile" && s.get("secretNamespace").as_str() == Some("") {
        e.push(FieldError::required(child(path, "secretNamespace"), ""));
    }
    if let Some(namespace) = s.get("endpointsNamespace").as_str().filter(|_| kind == "glusterfs") {
        let at = child(path, "endpointsNamespace");
        if namespace.is_empty() {
            e.push(FieldError::invalid(at, namespace, "if the endpointnamespace is set, it must be a valid namespace name"));
        } else {
            e.all_invalid(&at, namespace, names::dns1123_label(namespace));
        }
    }
}

fn csi(s: Ref<'_>, path: &str, e: &mut ErrorList) {
    dra::driver(s.get("driver").str(), &child(path, "driver"), e);
    if s.get("volumeHandle").str().is_empty() {
        e.push(FieldError::required(child(path, "volumeHandle"), ""));
    }
    for field in ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"] {
        let (secret, at) = (s.get(field), child(path, field));
        if !secret.exists() {
            continue;
        }
        for (part, rule) in [("name", names::dns1123_subdomain as fn(&str) -> Vec<String>), ("namespace", names::dns1123_label)] {
            let (at, text) = (child(&at, part), secret.get(part).str());
            if text.is_empty() {
                e.push(FieldError::required(at, ""));
            } else {
                e.all_invalid(&at, text, rule(text));
            }
        }
    }
}

fn unchanged(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let expand = "controllerExpandSecretRef";
    let source = |d: &Doc| -> Vec<Value> { SOURCES.iter().map(|k| d.at("spec").get(k).to_value()).collect() };
    let (mut now, before) = (source(new), source(old));
    // A secret to grow volumes with may be named later.
    if let (Some(csi), false) = (now.last_mut().and_then(Value::as_object_mut), old.at("spec.csi").get(expand).exists()) {
        csi.remove(expand);
    }
    if now != before {
        let why = "spec.persistentvolumesource is immutable after creation";
        e.push(FieldError::forbidden("spec.persistentvolumesource", why));
    }
    if !new.at("spec.volumeMode").semantic_eq(old.at("spec.volumeMode")) {
        e.push(FieldError::invalid("volumeMode", new.at("spec.volumeMode").to_value(), "field is immutable"));
    }
    let affinity = |d: &Doc| d.at("spec.nodeAffinity").to_value();
    if old.at("spec.nodeAffinity").exists() && !same_labels(&affinity(old), &affinity(new)) {
        let why = "field is immutable, except for updating from beta label to GA";
        e.push(FieldError::invalid("nodeAffinity", affinity(new), why));
    }
    let class = "spec.volumeAttributesClassName";
    if old.at(class).exists() && !new.at(class).exists() {
        e.push(FieldError::forbidden(class, "update from non-nil value to nil is forbidden"));
    }
}

/// The labels of nodes that were renamed when they left beta.
const RENAMED: &[(&str, &str)] = &[
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// The same, or with new names of labels in place of old ones.
fn same_labels(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same_labels(v, w))),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(v, w)| same_labels(v, w)),
        (Value::String(a), Value::String(b)) => a == b || RENAMED.contains(&(a.as_str(), b.as_str())),
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(change: &Value) -> Doc {
        let schema = k8s_schema::Schema::builtin();
        let mut d = Doc::of_kind(&schema, "", "v1", "PersistentVolume").unwrap();
        let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "volumeMode": "Filesystem", "csi": {"driver": "d.example.com", "volumeHandle": "h"}});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        spec.as_object_mut().unwrap().retain(|_, v| !v.is_null());
        d.set("spec", spec).unwrap();
        d
    }

    fn errors(change: Value) -> Vec<String> {
        let mut e = ErrorList::new();
        spec(volume(&change).at("spec"), false, "spec", &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    fn changed(old: Value, new: Value) -> Vec<String> {
        let mut e = ErrorList::new();
        unchanged(&volume(&new), &volume(&old), &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_is_somewhere_and_of_some_size() {
        for (change, want) in [
            (json!({}), vec![]),
            (json!({"csi": null}), vec!["spec: Required value: must specify a volume type"]),
            (json!({"nfs": {"server": "s", "path": "/p"}}), vec!["spec.csi: Forbidden: may not specify more than 1 volume type"]),
            (
                json!({"csi": null, "nfs": {"server": "s", "path": "p"}}),
                vec!["spec.nfs.path: Invalid value: \"p\": must be an absolute path"],
            ),
            (
                json!({"csi": null, "local": {"path": "/mnt"}}),
                vec!["spec.nodeAffinity: Required value: Local volume requires node affinity"],
            ),
            (
                json!({"csi": null, "hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}),
                vec!["spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'"],
            ),
            (
                json!({"capacity": null}),
                vec!["spec.capacity: Required value", "spec.capacity: Unsupported value: null: supported values: \"storage\""],
            ),
            (json!({"capacity": {"storage": "0"}}), vec!["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"]),
            (
                json!({"accessModes": ["ReadWriteOncePod", "ReadOnlyMany"]}),
                vec!["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
            ),
            (
                json!({"persistentVolumeReclaimPolicy": "Keep"}),
                vec![
                    "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
                ],
            ),
            (
                json!({"csi": {"driver": "d.example.com", "volumeHandle": "h", "nodePublishSecretRef": {"name": "s"}}}),
                vec!["spec.csi.nodePublishSecretRef.namespace: Required value"],
            ),
            (json!({"nodeAffinity": {}}), vec!["spec.nodeAffinity.required: Required value: must specify required node constraints"]),
            (
                json!({"volumeMode": "File"}),
                vec!["spec.volumeMode: Unsupported value: \"File\": supported values: \"Block\", \"Filesystem\""],
            ),
        ] {
            assert_eq!(errors(change.clone()), want, "{change}");
        }
    }

    #[test]
    fn a_volume_stays_where_it_is() {
        let csi = |handle: &str| json!({"csi": {"driver": "d.example.com", "volumeHandle": handle}});
        assert!(changed(csi("a"), csi("a")).is_empty());
        let why = "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation";
        assert_eq!(changed(csi("a"), csi("b")), [why]);
        let mut later = csi("a");
        later["csi"]["controllerExpandSecretRef"] = json!({"name": "s", "namespace": "n"});
        assert!(changed(csi("a"), later.clone()).is_empty());
        assert_eq!(changed(later, csi("a")), [why]);
        let on = |key: &str, value: &str| {
            let term = json!({"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]});
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}})
        };
        assert!(changed(json!({}), on("a", "b")).is_empty(), "it may be said later");
        assert!(changed(on("failure-domain.beta.kubernetes.io/zone", "z"), on("topology.kubernetes.io/zone", "z")).is_empty());
        assert!(changed(on("a", "b"), on("a", "c"))[0].contains("field is immutable, except for updating from beta label to GA"));
        assert_eq!(changed(json!({}), json!({"volumeMode": "Block"})), ["volumeMode: Invalid value: \"Block\": field is immutable"]);
    }
}
