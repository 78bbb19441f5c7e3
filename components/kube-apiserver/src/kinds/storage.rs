//! Persistent volumes, claims, storage classes and CSI objects.

use k8s_schema::{Doc, Ref};

use super::{Action, PLAIN, Strategy, immutable, warnings};
use crate::validation::{ErrorList, FieldError, child, index, names, values};

pub const PERSISTENT_VOLUME_CLAIM: Strategy = Strategy {
    status: true,
    returns_deleted: true,
    prepare_create: |d| {
        // A constant that fits the type: this cannot fail.
        let _ = d.set("status.phase", "Pending");
        sources(d);
    },
    warnings: warnings::claim,
    validate_create: claim,
    validate_update: claim_update,
    ..PLAIN
};
pub const STORAGE_CLASS: Strategy = Strategy {
    returns_deleted: true,
    warnings: warnings::storage_class,
    validate_create: class,
    validate_update: |_, n, o, e| {
        class(n, e);
        for f in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
            immutable(n, o, f, e);
        }
    },
    ..PLAIN
};
pub const VOLUME_ATTACHMENT: Strategy = Strategy {
    status: true,
    returns_deleted: true,
    unconditional_update: false,
    validate_create: attachment,
    validate_update: |_, n, o, e| {
        attachment(n, e);
        immutable(n, o, "spec", e);
    },
    ..PLAIN
};
pub const VOLUME_ATTRIBUTES_CLASS: Strategy = Strategy {
    returns_deleted: true,
    validate_create: attributes_class,
    validate_update: |_, n, o, e| {
        attributes_class(n, e);
        for field in ["driverName", "parameters"].into_iter().filter(|f| !n.at(f).semantic_eq(o.at(f))) {
            e.push(FieldError::forbidden(field, format!("updates to {field} are forbidden.")));
        }
    },
    ..PLAIN
};

pub(super) const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn claim(d: &Doc, e: &mut ErrorList) {
    claim_spec(d.at("spec"), "spec", e);
}

/// What a claim asks for. Also a claim template's.
pub fn claim_spec(spec: Ref<'_>, path: &str, e: &mut ErrorList) {
    let modes_at = child(path, "accessModes");
    let modes = spec.get("accessModes");
    if modes.is_empty() {
        e.push(FieldError::required(modes_at.as_str(), "at least 1 access mode is required"));
    }
    values::label_selector(spec.get("selector"), &child(path, "selector"), e);
    for m in modes.strings().filter(|m| !MODES.contains(m)) {
        e.push(FieldError::not_supported(modes_at.as_str(), m, MODES));
    }
    if modes.contains_str("ReadWriteOncePod") && modes.len() > 1 {
        e.push(FieldError::forbidden(modes_at, "may not use ReadWriteOncePod with other access modes"));
    }
    let storage = spec.at("resources.requests").get("storage");
    let storage_at = child(path, "resources[storage]");
    match storage.quantity() {
        None => e.push(FieldError::required(storage_at, "")),
        Some(q) if q.is_zero() || q.sign() < 0 => {
            e.push(FieldError::invalid(storage_at, storage.str(), "must be greater than zero"));
        }
        Some(_) => {}
    }
    let class = spec.get("storageClassName").str();
    if !class.is_empty() {
        e.all_invalid(&child(path, "storageClassName"), class, names::dns1123_subdomain(class));
    }
    if let Some(mode) = spec.get("volumeMode").as_str().filter(|m| !matches!(*m, "Block" | "Filesystem")) {
        e.push(FieldError::not_supported(child(path, "volumeMode"), mode, &["Block", "Filesystem"]));
    }
    let (source, reference) = (spec.get("dataSource"), spec.get("dataSourceRef"));
    let same = ["apiGroup", "kind", "name"].iter().all(|f| source.get(f).str() == reference.get(f).str());
    if source.exists() && reference.exists() && !same {
        e.push(FieldError::invalid(path, serde_json::json!({}), "must match dataSourceRef"));
    }
}

/// The two ways to name what a volume is filled from say the same: the old one takes claims and snapshots only.
fn sources(d: &mut Doc) {
    let (source, reference) = (d.at("spec.dataSource"), d.at("spec.dataSourceRef"));
    let (group, kind) = (source.get("apiGroup").str(), source.get("kind").str());
    let known = matches!((group, kind), ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot"));
    // Another namespace needs a feature that is off.
    let elsewhere = !reference.get("namespace").str().is_empty();
    let (source, reference) = (source.to_value(), reference.to_value());
    // Values of the same shape: these cannot fail.
    if elsewhere {
        d.remove("spec.dataSourceRef");
    }
    if !source.is_null() && !known {
        d.remove("spec.dataSource");
    } else if !source.is_null() && reference.is_null() {
        let _ = d.set("spec.dataSourceRef", source);
    } else if source.is_null() && !reference.is_null() && !elsewhere {
        let _ = d.set("spec.dataSource", reference);
    }
}

fn claim_update(a: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if a == Action::Status {
        claim_status(new.at("status"), e);
    }
    if a != Action::Main {
        return;
    }
    claim(new, e);
    let bound = old.at("status.phase").str() == "Bound";
    let spec = |d: &Doc| {
        let mut v = d.at("spec").to_value();
        if let Some(m) = v.as_object_mut() {
            m.remove("volumeAttributesClassName");
            // The volume and the class of a claim that named none are filled in.
            for f in ["volumeName", "storageClassName"].into_iter().filter(|f| old.at("spec").get(f).str().is_empty()) {
                m.remove(f);
            }
            if let Some(r) = m.get_mut("resources").and_then(|r| r.get_mut("requests")).and_then(|r| r.as_object_mut()).filter(|_| bound) {
                r.remove("storage");
            }
        }
        v
    };
    if spec(new) != spec(old) {
        e.push(FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let amount = |d: &Doc, path: &str| d.at(path).get("storage").quantity();
    let (wanted, before) = (amount(new, "spec.resources.requests"), amount(old, "spec.resources.requests"));
    let least = amount(old, "status.capacity");
    if bound && wanted < before && wanted <= least {
        e.push(FieldError::forbidden("spec.resources.requests.storage", "field can not be less than status.capacity"));
    }
    if !new.at("spec.volumeMode").semantic_eq(old.at("spec.volumeMode")) {
        e.push(FieldError::invalid("volumeMode", new.at("spec.volumeMode").to_value(), "field is immutable"));
    }
}

fn claim_status(status: Ref<'_>, e: &mut ErrorList) {
    for (name, amount) in status.get("capacity").entries() {
        if let Some(q) = amount.quantity().filter(|q| q.sign() < 0) {
            e.push(FieldError::invalid(format!("status.capacity[{name}]"), q.value(), "must be a valid resource quantity"));
        }
    }
    const STATUSES: &[&str] =
        &["ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending"];
    for (name, s) in status.get("allocatedResourceStatuses").entries() {
        if !STATUSES.contains(&s.str()) {
            e.push(FieldError::not_supported("status.allocatedResourceStatuses", name, STATUSES));
        }
    }
}

/// Where volumes of a class may be: no term twice, no key twice in a term, no value twice of a key.
fn topologies(d: &Doc, e: &mut ErrorList) {
    let mut terms: Vec<serde_json::Value> = Vec::new();
    for (i, t) in d.at("allowedTopologies").iter().enumerate() {
        let path = child(&index("allowedTopologies", i), "matchLabelExpressions");
        let (mut keys, mut term) = (Vec::new(), Vec::new());
        for (j, x) in t.get("matchLabelExpressions").iter().enumerate() {
            let at = index(&path, j);
            let key = x.get("key").str();
            let mut values: Vec<&str> = Vec::new();
            if x.get("values").is_empty() {
                e.push(FieldError::required(child(&at, "values"), ""));
            }
            for (n, v) in x.get("values").strings().enumerate() {
                if values.contains(&v) {
                    e.push(FieldError::duplicate(index(&child(&at, "values"), n), v));
                }
                values.push(v);
            }
            e.all_invalid(&child(&at, "key"), key, names::qualified_name(key));
            if keys.contains(&key) {
                e.push(FieldError::duplicate(child(&at, "key"), key));
            }
            keys.push(key);
            term.push(serde_json::json!([key, values]));
        }
        let term = serde_json::Value::from(term);
        // A term without keys is all there is, so even one alone is one too many.
        if terms.contains(&term) || keys.is_empty() {
            e.push(FieldError::duplicate(path, ""));
        }
        terms.push(term);
    }
}

/// The driver that a class is of.
fn provisioner(d: &Doc, field: &str, e: &mut ErrorList) {
    let p = d.at(field).str();
    if p.is_empty() {
        e.push(FieldError::required(field, ""));
    } else {
        e.all_invalid(field, p, names::qualified_name(&p.to_lowercase()));
    }
}

/// What a class tells its driver.
fn parameters(d: &Doc, e: &mut ErrorList) {
    let mut size = 0;
    for (k, v) in d.at("parameters").entries() {
        if k.is_empty() {
            e.push(FieldError::invalid("parameters", k, "field can not be empty."));
        }
        size += k.len() + v.str().len();
    }
    if d.at("parameters").len() > 512 {
        e.push(FieldError::too_long("parameters", "", 512));
    }
    if size > 256 << 10 {
        e.push(FieldError::too_long("parameters", "", 256 << 10));
    }
}

fn attributes_class(d: &Doc, e: &mut ErrorList) {
    provisioner(d, "driverName", e);
    parameters(d, e);
    if d.at("parameters").is_empty() {
        e.push(FieldError::required("parameters", "must contain at least one key/value pair"));
    }
}

fn attachment(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    let attacher = spec.get("attacher").str();
    if attacher.is_empty() {
        e.push(FieldError::required("spec.attacher", attacher));
    }
    let (at, source) = ("spec.source", spec.get("source"));
    let (inline, named) = (source.get("inlineVolumeSpec"), source.get("persistentVolumeName"));
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline.exists(), named.exists()) {
        (false, false) => e.push(FieldError::required(at, ONE)),
        (true, true) => e.push(FieldError::forbidden(at, ONE)),
        (false, true) if named.str().is_empty() => {
            e.push(FieldError::required(child(at, "persistentVolumeName"), "must specify non empty persistentVolumeName"));
        }
        (false, true) => {}
        (true, false) => super::persistent_volume::inline_spec(inline, &child(at, "inlineVolumeSpec"), e),
    }
    let node = spec.get("nodeName").str();
    e.all_invalid("spec.nodeName", node, names::dns1123_subdomain(node));

    let metadata: usize = d.at("status.attachmentMetadata").entries().map(|(k, v)| k.len() + v.str().len()).sum();
    const MAX: usize = 256 << 10;
    if metadata > MAX {
        e.push(FieldError::too_long("status.attachmentMetadata", "", MAX));
    }
    for field in ["attachError", "detachError"] {
        let (at, error) = (child("status", field), d.at("status").get(field));
        if error.get("message").str().len() > 1024 {
            // The limit that upstream tells is that of the metadata.
            e.push(FieldError::too_long(child(&at, "message"), "", MAX));
        }
        if let Some(code) = error.get("errorCode").as_i64().filter(|c| *c < 0) {
            e.push(FieldError::invalid(child(&at, "errorCode"), code, "must be between 0 and 2147483647, inclusive"));
        }
    }
    super::dra::driver(attacher, "spec.attacher", e);
    if !named.str().is_empty() {
        e.all_invalid("spec.source.persistentVolumeName", named.str(), names::dns1123_subdomain(named.str()));
    }
}

fn class(d: &Doc, e: &mut ErrorList) {
    provisioner(d, "provisioner", e);
    parameters(d, e);
    let r = d.at("reclaimPolicy").str();
    if !matches!(r, "" | "Delete" | "Retain") {
        e.push(FieldError::not_supported("reclaimPolicy", r, &["Delete", "Retain"]));
    }
    let b = d.at("volumeBindingMode").str();
    if !matches!(b, "Immediate" | "WaitForFirstConsumer") {
        e.push(FieldError::not_supported("volumeBindingMode", b, &["Immediate", "WaitForFirstConsumer"]));
    }
    topologies(d, e);
}
