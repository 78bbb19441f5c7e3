//! The volumes of pods, what is mounted of them, and the devices that are given as they are.

use k8s_schema::Ref;

use super::pod_spec::POLICIES;
use crate::validation::{ErrorList, FieldError, child, index, key, names};

/// The kinds of volumes, in the order in which upstream looks for them.
const KINDS: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "scaleIO",
    "projected",
    "csi",
    "ephemeral",
    "image",
];

/// A volume by its name, and whether it can be given as a device.
pub type Volume<'a> = (&'a str, bool);

pub fn volumes<'a>(list: Ref<'a>, path: &str, e: &mut ErrorList) -> Vec<Volume<'a>> {
    let mut seen: Vec<Volume<'a>> = Vec::new();
    for (i, v) in list.iter().enumerate() {
        let p = index(path, i);
        let name = v.get("name").str();
        let sources: Vec<&str> = KINDS.iter().copied().filter(|k| v.get(k).exists()).collect();
        if let Some(source) = sources.first() {
            volume_source(v.get(source), source, &child(&p, source), e);
        } else {
            e.push(FieldError::required(p.clone(), "must specify a volume type"));
        }
        for extra in sources.iter().skip(1) {
            e.push(FieldError::forbidden(child(&p, extra), "may not specify more than 1 volume type"));
        }
        if name.is_empty() {
            e.push(FieldError::required(child(&p, "name"), ""));
        } else {
            e.all_invalid(&child(&p, "name"), name, names::dns1123_label(name));
            if seen.iter().any(|(n, _)| *n == name) {
                e.push(FieldError::duplicate(child(&p, "name"), name));
            }
        }
        seen.push((name, v.get("persistentVolumeClaim").exists() || v.get("ephemeral").exists()));
    }
    seen
}

fn mode(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    if let Some(m) = r.as_i64().filter(|m| !(0..=0o777).contains(m)) {
        e.push(FieldError::invalid(path, m, "must be a number between 0 and 0777 (octal), both inclusive"));
    }
}

fn items(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    for (i, it) in r.iter().enumerate() {
        let p = index(path, i);
        if it.get("key").str().is_empty() {
            e.push(FieldError::required(child(&p, "key"), ""));
        }
        relative(it.get("path").str(), &child(&p, "path"), e);
        mode(it.get("mode"), &child(&p, "mode"), e);
    }
}

pub(super) fn no_backsteps(path: &str, at: &str, e: &mut ErrorList) {
    if path.split('/').any(|p| p == "..") {
        e.push(FieldError::invalid(at, path, "must not contain '..'"));
    }
}

/// A path below something.
fn relative(path: &str, at: &str, e: &mut ErrorList) {
    if path.is_empty() {
        e.push(FieldError::required(at, ""));
    } else if path.starts_with('/') {
        e.push(FieldError::invalid(at, path, "must be a relative path"));
    }
    no_backsteps(path, at, e);
    if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        e.push(FieldError::invalid(at, path, "must not start with '..'"));
    }
}

fn between(r: Ref<'_>, low: i64, high: i64, path: &str, e: &mut ErrorList) {
    if let Some(n) = r.as_i64().filter(|n| !(low..=high).contains(n)) {
        e.push(FieldError::invalid(path, n, format!("must be between {low} and {high}, inclusive")));
    }
}

fn one_of(r: Ref<'_>, path: String, known: &[&str], e: &mut ErrorList) {
    if let Some(v) = r.as_str().filter(|v| !known.contains(v)) {
        e.push(FieldError::not_supported(path, v, known));
    }
}

fn required(s: Ref<'_>, p: &str, fields: &[&str], e: &mut ErrorList) {
    for f in fields.iter().filter(|f| s.get(f).str().is_empty()) {
        e.push(FieldError::required(child(p, f), ""));
    }
}

pub(super) fn volume_source(s: Ref<'_>, source: &str, p: &str, e: &mut ErrorList) {
    match source {
        "hostPath" => {
            required(s, p, &["path"], e);
            no_backsteps(s.get("path").str(), &child(p, "path"), e);
            const TYPES: &[&str] = &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            one_of(s.get("type"), child(p, "type"), TYPES, e);
        }
        "secret" | "configMap" => {
            required(s, p, if source == "secret" { &["secretName"] } else { &["name"] }, e);
            mode(s.get("defaultMode"), &child(p, "defaultMode"), e);
            items(s.get("items"), &child(p, "items"), e);
        }
        "emptyDir" => {
            if s.get("sizeLimit").quantity().is_some_and(|q| q.sign() < 0) {
                e.push(FieldError::forbidden(child(p, "sizeLimit"), "SizeLimit field must be a valid resource quantity"));
            }
        }
        "downwardAPI" => {
            mode(s.get("defaultMode"), &child(p, "defaultMode"), e);
            downward(s.get("items"), p, e);
        }
        "projected" => projected(s, p, e),
        "csi" => {
            let driver = s.get("driver").str();
            if driver.is_empty() {
                e.push(FieldError::required(child(p, "driver"), ""));
            } else {
                e.all_invalid(&child(p, "driver"), driver, names::dns1123_subdomain(&driver.to_lowercase()));
            }
            let secret = s.get("nodePublishSecretRef");
            if secret.exists() && secret.get("name").str().is_empty() {
                e.push(FieldError::required(child(p, "nodePublishSecretRef.name"), ""));
            }
        }
        "ephemeral" => {
            let template = s.get("volumeClaimTemplate");
            let p = child(p, "volumeClaimTemplate");
            if !template.exists() {
                e.push(FieldError::required(p, ""));
                return;
            }
            for (f, _) in template.get("metadata").fields().filter(|(f, _)| !matches!(*f, "annotations" | "labels")) {
                e.push(FieldError::forbidden(format!("{p}.metadata.{f}"), "cannot be set"));
            }
            super::storage::claim_spec(template.get("spec"), &child(&p, "spec"), e);
        }
        "image" => {
            required(s, p, &["reference"], e);
            one_of(s.get("pullPolicy"), child(p, "pullPolicy"), POLICIES, e);
        }
        _ => network_source(s, source, p, e),
    }
}

/// Volumes of storage systems, most of which only drivers of other kinds serve now.
fn network_source(s: Ref<'_>, source: &str, p: &str, e: &mut ErrorList) {
    match source {
        "persistentVolumeClaim" => required(s, p, &["claimName"], e),
        "nfs" => {
            required(s, p, &["server", "path"], e);
            let path = s.get("path").str();
            if !path.is_empty() && !path.starts_with('/') {
                e.push(FieldError::invalid(child(p, "path"), path, "must be an absolute path"));
            }
        }
        "iscsi" => {
            required(s, p, &["targetPortal", "iqn"], e);
            let iqn = s.get("iqn").str();
            if !iqn.is_empty() && !["iqn", "eui", "naa"].iter().any(|k| iqn.starts_with(k)) {
                e.push(FieldError::invalid(child(p, "iqn"), iqn, "must be valid format starting with iqn, eui, or naa"));
            }
            between(s.get("lun"), 0, 255, &child(p, "lun"), e);
            if (s.get("chapAuthDiscovery").bool() || s.get("chapAuthSession").bool()) && !s.get("secretRef").exists() {
                e.push(FieldError::required(child(p, "secretRef"), ""));
            }
        }
        "rbd" | "cephfs" => {
            if s.get("monitors").is_empty() {
                e.push(FieldError::required(child(p, "monitors"), ""));
            }
            if source == "rbd" {
                required(s, p, &["image"], e);
            }
        }
        "glusterfs" => required(s, p, &["endpoints", "path"], e),
        "gcePersistentDisk" => {
            // Upstream leaves a part of the name away here.
            let p = p.replace("gcePersistentDisk", "persistentDisk");
            required(s, &p, &["pdName"], e);
            partition(s, &p, e);
        }
        "awsElasticBlockStore" => {
            required(s, p, &["volumeID"], e);
            partition(s, p, e);
        }
        "gitRepo" => {
            required(s, p, &["repository"], e);
            let at = s.get("directory").str();
            if !at.is_empty() {
                relative(at, &child(p, "directory"), e);
            }
        }
        "cinder" => required(s, p, &["volumeID"], e),
        "fc" => {
            let (targets, ids) = (s.get("targetWWNs"), s.get("wwids"));
            let at = child(p, "targetWWNs");
            match (targets.is_empty(), ids.is_empty()) {
                (true, true) => e.push(FieldError::required(at, "must specify either targetWWNs or wwids, but not both")),
                (false, false) => {
                    e.push(FieldError::invalid(at, targets.to_value(), "targetWWNs and wwids can not be specified simultaneously"));
                }
                (false, true) => match s.get("lun").as_i64() {
                    None => e.push(FieldError::required(child(p, "lun"), "lun is required if targetWWNs is specified")),
                    Some(_) => between(s.get("lun"), 0, 255, &child(p, "lun"), e),
                },
                (true, false) => {}
            }
        }
        "flexVolume" => {
            required(s, p, &["driver"], e);
            for (k, _) in s.get("options").entries() {
                let domain = k.split('/').next().unwrap_or("").to_lowercase();
                if ["kubernetes.io", "k8s.io"].iter().any(|r| domain == *r || domain.ends_with(&format!(".{r}"))) {
                    e.push(FieldError::invalid(key(&child(p, "options"), k), k, "kubernetes.io and k8s.io namespaces are reserved"));
                }
            }
        }
        "azureDisk" => azure_disk(s, p, e),
        "azureFile" => required(s, p, &["secretName", "shareName"], e),
        "vsphereVolume" => required(s, p, &["volumePath"], e),
        "photonPersistentDisk" => required(s, p, &["pdID"], e),
        "portworxVolume" => required(s, p, &["volumeID"], e),
        "quobyte" => {
            let registry = s.get("registry").str();
            let at = child(p, "registry");
            if registry.is_empty() {
                e.push(FieldError::required(at, "must be a host:port pair or multiple pairs separated by commas"));
            } else if registry.split(',').any(|r| r.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.is_empty())) {
                e.push(FieldError::invalid(at, registry, "must be a host:port pair or multiple pairs separated by commas"));
            }
            required(s, p, &["volume"], e);
        }
        "scaleIO" => required(s, p, &["gateway", "system", "volumeName"], e),
        "storageos" => required(s, p, &["volumeName"], e),
        "flocker" => match (s.get("datasetName").str(), s.get("datasetUUID").str()) {
            ("", "") => e.push(FieldError::required(p, "one of datasetName and datasetUUID is required")),
            (name, uuid) if !name.is_empty() && !uuid.is_empty() => {
                e.push(FieldError::invalid(p, "resource", "datasetName and datasetUUID can not be specified simultaneously"));
            }
            (name, _) if name.contains('/') => e.push(FieldError::invalid(child(p, "datasetName"), name, "must not contain '/'")),
            _ => {}
        },
        _ => {}
    }
}

fn partition(s: Ref<'_>, p: &str, e: &mut ErrorList) {
    if let Some(n) = s.get("partition").as_i64().filter(|n| !(0..=255).contains(n)) {
        e.push(FieldError::invalid(child(p, "partition"), n, "must be between 1 and 255, inclusive"));
    }
}

fn azure_disk(s: Ref<'_>, p: &str, e: &mut ErrorList) {
    required(s, p, &["diskName", "diskURI"], e);
    one_of(s.get("cachingMode"), child(p, "cachingMode"), &["None", "ReadOnly", "ReadWrite"], e);
    let (kind, uri) = (s.get("kind").str(), s.get("diskURI").str());
    one_of(s.get("kind"), child(p, "kind"), &["Dedicated", "Managed", "Shared"], e);
    let managed = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    if kind == "Managed" && !uri.starts_with("/subscriptions/") {
        e.push(FieldError::not_supported(child(p, "diskURI"), uri, &[managed]));
    }
    if matches!(kind, "Shared" | "Dedicated") && !uri.starts_with("https://") {
        let blob = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
        e.push(FieldError::not_supported(child(p, "diskURI"), uri, &[blob]));
    }
}

/// Fields of the pod itself that a file can hold.
const DOWNWARD: &[&str] = &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn downward(list: Ref<'_>, p: &str, e: &mut ErrorList) {
    for it in list.iter() {
        relative(it.get("path").str(), &child(p, "path"), e);
        let (field, resource) = (it.get("fieldRef"), it.get("resourceFieldRef"));
        if field.exists() {
            let path = field.get("fieldPath").str();
            let at = child(p, "fieldRef.fieldPath");
            let keyed = |l: &str| path.strip_prefix(l).is_some_and(|r| r.starts_with("['") && r.ends_with("']"));
            if path.is_empty() {
                e.push(FieldError::required(at, ""));
            } else if !DOWNWARD.contains(&path) && !keyed("metadata.labels") && !keyed("metadata.annotations") {
                e.push(FieldError::not_supported(at, path, DOWNWARD));
            }
            if resource.exists() {
                e.push(FieldError::invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"));
            }
        } else if resource.exists() {
            required(resource, &child(p, "resourceFieldRef"), &["containerName", "resource"], e);
        } else {
            e.push(FieldError::required(p, "one of fieldRef and resourceFieldRef is required"));
        }
        mode(it.get("mode"), &child(p, "mode"), e);
    }
}

fn projected(s: Ref<'_>, p: &str, e: &mut ErrorList) {
    mode(s.get("defaultMode"), &child(p, "defaultMode"), e);
    let mut paths: Vec<&str> = Vec::new();
    for (i, x) in s.get("sources").iter().enumerate() {
        let q = index(&child(p, "sources"), i);
        if x.fields().count() > 1 {
            e.push(FieldError::forbidden(q.clone(), "may not specify more than 1 volume type per source"));
        }
        let mut named = "";
        for kind in ["secret", "configMap"].into_iter().filter(|k| x.get(k).exists()) {
            named = x.get(kind).get("name").str();
            if named.is_empty() {
                e.push(FieldError::required(child(&child(&q, kind), "name"), ""));
            }
            items(x.get(kind).get("items"), &child(&child(&q, kind), "items"), e);
        }
        downward(x.at("downwardAPI.items"), &child(&q, "downwardAPI"), e);
        let all = ["secret", "configMap", "downwardAPI"].into_iter().flat_map(|k| x.get(k).get("items").iter());
        for path in all.map(|it| it.get("path").str()) {
            if paths.contains(&path) {
                e.push(FieldError::invalid(p, named, "conflicting duplicate paths"));
            }
            paths.push(path);
        }
        let t = x.get("serviceAccountToken");
        if t.exists() {
            let (seconds, at) = (t.get("expirationSeconds").int(), child(&q, "serviceAccountToken.expirationSeconds"));
            if seconds < 600 {
                e.push(FieldError::invalid(at, seconds, "may not specify a duration less than 10 minutes"));
            } else if seconds > 1 << 32 {
                e.push(FieldError::invalid(at, seconds, "may not specify a duration larger than 2^32 seconds"));
            }
            relative(t.get("path").str(), &child(p, "path"), e);
        }
    }
}

/// What a container mounts, and the devices it is given.
pub fn of_container(c: Ref<'_>, p: &str, volumes: &[Volume<'_>], e: &mut ErrorList) {
    let (mounted, devices) = (c.get("volumeMounts"), c.get("volumeDevices"));
    mounts(mounted, &child(p, "volumeMounts"), volumes, (devices, c.at("securityContext.privileged").bool()), e);
    let mut seen: (Vec<&str>, Vec<&str>) = Default::default();
    for (i, d) in devices.iter().enumerate() {
        let p = index(&child(p, "volumeDevices"), i);
        let (name, path) = (d.get("name").str(), d.get("devicePath").str());
        let (name_at, path_at) = (child(&p, "name"), child(&p, "devicePath"));
        if name.is_empty() {
            e.push(FieldError::required(name_at.as_str(), ""));
        }
        if seen.0.contains(&name) {
            e.push(FieldError::invalid(name_at.as_str(), name, "must be unique"));
        }
        match volumes.iter().find(|(n, _)| *n == name) {
            None if !name.is_empty() => e.push(FieldError::not_found(name_at.as_str(), name)),
            Some((_, false)) => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                e.push(FieldError::invalid(name_at.as_str(), name, why));
            }
            _ => {}
        }
        if path.is_empty() {
            e.push(FieldError::required(path_at.as_str(), ""));
        }
        if !path.is_empty() && seen.1.contains(&path) {
            e.push(FieldError::invalid(path_at.as_str(), path, "must be unique"));
        }
        if path.split('/').any(|x| x == "..") {
            e.push(FieldError::invalid(path_at.as_str(), path, "can not contain backsteps ('..')"));
        }
        if mounted.find("name", name).exists() {
            e.push(FieldError::invalid(name_at, name, "must not already exist in volumeMounts"));
        }
        if mounted.find("mountPath", path).exists() {
            e.push(FieldError::invalid(path_at, path, "must not already exist as a path in volumeMounts"));
        }
        seen.0.push(name);
        seen.1.push(path);
    }
}

fn mounts(list: Ref<'_>, path: &str, volumes: &[Volume<'_>], (devices, privileged): (Ref<'_>, bool), e: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, m) in list.iter().enumerate() {
        let p = index(path, i);
        let name = m.get("name").str();
        if name.is_empty() {
            e.push(FieldError::required(child(&p, "name"), ""));
        }
        if !volumes.iter().any(|(n, _)| *n == name) {
            e.push(FieldError::not_found(child(&p, "name"), name));
        }
        let at = m.get("mountPath").str();
        if at.is_empty() {
            e.push(FieldError::required(child(&p, "mountPath"), ""));
        }
        if seen.contains(&at) {
            e.push(FieldError::invalid(child(&p, "mountPath"), at, "must be unique"));
        }
        seen.push(at);
        if devices.find("name", name).exists() {
            e.push(FieldError::invalid(child(&p, "name"), name, "must not already exist in volumeDevices"));
        }
        if devices.find("devicePath", at).exists() {
            e.push(FieldError::invalid(child(&p, "mountPath"), at, "must not already exist as a path in volumeDevices"));
        }
        // Upstream names these without the mount's number.
        for f in ["subPath", "subPathExpr"] {
            let sub = m.get(f).str();
            if !sub.is_empty() {
                let at = child(path, f);
                if sub.starts_with('/') {
                    e.push(FieldError::invalid(at.as_str(), sub, "must be a relative path"));
                }
                no_backsteps(sub, &at, e);
            }
        }
        if !m.get("subPath").str().is_empty() && !m.get("subPathExpr").str().is_empty() {
            e.push(FieldError::invalid(
                child(&p, "subPathExpr"),
                m.get("subPathExpr").str(),
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
        let propagation = m.get("mountPropagation");
        one_of(propagation, child(path, "mountPropagation"), &["Bidirectional", "HostToContainer", "None"], e);
        if propagation.str() == "Bidirectional" && !privileged {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            e.push(FieldError::forbidden(child(path, "mountPropagation"), why));
        }
        read_only(m, path, e);
    }
}

/// Read-only of what is mounted below a mount, too.
fn read_only(m: Ref<'_>, path: &str, e: &mut ErrorList) {
    let at = child(path, "recursiveReadOnly");
    let wanted = m.get("recursiveReadOnly");
    match wanted.as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !m.get("readOnly").bool() {
                e.push(FieldError::forbidden(at.as_str(), "may only be specified when readOnly is true"));
            }
            if !matches!(m.get("mountPropagation").str(), "" | "None") {
                e.push(FieldError::forbidden(at, "may only be specified when mountPropagation is None or not specified"));
            }
        }
        Some(other) => e.push(FieldError::not_supported(at, other, &["Disabled", "Enabled", "IfPossible"])),
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::{Doc, Schema};
    use serde_json::{Value, json};

    use super::*;

    fn errors(volume: Value) -> Vec<String> {
        let schema = Schema::builtin();
        let mut v = volume;
        v["name"] = "v".into();
        let pod = json!({"spec": {"volumes": [v]}});
        let doc = Doc::from_value(&schema, schema.kind("", "v1", "Pod").unwrap(), &pod).unwrap().doc;
        let mut e = ErrorList::new();
        volumes(doc.at("spec.volumes"), "v", &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn volumes_say_what_they_need() {
        for (volume, want) in [
            (json!({"emptyDir": {}, "hostPath": {"path": "/a"}}), "v[0].hostPath: Forbidden: may not specify more than 1 volume type"),
            (json!({"nfs": {"server": "s", "path": "p"}}), "v[0].nfs.path: Invalid value: \"p\": must be an absolute path"),
            (json!({"flocker": {}}), "v[0].flocker: Required value: one of datasetName and datasetUUID is required"),
            (json!({"fc": {}}), "v[0].fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both"),
            (
                json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": "../x"}]}}),
                "v[0].secret.items[0].path: Invalid value: \"../x\": must not contain '..'",
            ),
            (
                json!({"gcePersistentDisk": {"pdName": "a", "partition": 300}}),
                "v[0].persistentDisk.partition: Invalid value: 300: must be between 1 and 255, inclusive",
            ),
        ] {
            assert_eq!(errors(volume), [want]);
        }
        assert_eq!(errors(json!({"configMap": {"name": "c", "defaultMode": 420}})), [""; 0]);
    }
}
