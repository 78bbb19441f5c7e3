//! Persistent volumes, claims, storage classes and CSI objects.

use k8s_schema::Doc;

use super::{Action, PLAIN, Strategy, immutable, warnings};
use crate::validation::{ErrorList, FieldError, index, names};

pub const PERSISTENT_VOLUME: Strategy = Strategy {
    status: true,
    returns_deleted: true,
    prepare_create: |d| {
        // A constant that fits the type: this cannot fail.
        let _ = d.set("status.phase", "Pending");
    },
    warnings: warnings::volume,
    validate_create: volume,
    validate_update: |a, n, o, e| {
        if a == Action::Main {
            volume(n, e);
            immutable(n, o, "spec.volumeMode", e);
        }
    },
    ..PLAIN
};
pub const PERSISTENT_VOLUME_CLAIM: Strategy = Strategy {
    status: true,
    returns_deleted: true,
    prepare_create: |d| {
        // A constant that fits the type: this cannot fail.
        let _ = d.set("status.phase", "Pending");
    },
    warnings: warnings::claim,
    validate_create: claim,
    validate_update: claim_update,
    ..PLAIN
};
pub const STORAGE_CLASS: Strategy = Strategy {
    returns_deleted: true,
    validate_create: class,
    validate_update: |_, n, o, e| {
        class(n, e);
        for f in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
            if !n.at(f).semantic_eq(o.at(f)) {
                e.push(FieldError::forbidden(f, format!("updates to {f} are forbidden.")));
            }
        }
    },
    ..PLAIN
};
pub const VOLUME_ATTACHMENT: Strategy = Strategy { status: true, returns_deleted: true, ..PLAIN };

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn modes(d: &Doc, path: &str, e: &mut ErrorList) {
    if d.at(path).is_empty() {
        e.push(FieldError::required(
            path,
            if path.contains("accessModes") && d.kind() == "PersistentVolumeClaim" { "at least 1 access mode is required" } else { "" },
        ));
    }
    for (i, m) in d.at(path).iter().enumerate() {
        if !MODES.contains(&m.str()) {
            e.push(FieldError::not_supported(
                if d.kind() == "PersistentVolumeClaim" { path.to_owned() } else { index(path, i) },
                m.str(),
                MODES,
            ));
        }
    }
}

fn volume(d: &Doc, e: &mut ErrorList) {
    modes(d, "spec.accessModes", e);
    if d.at("spec.capacity").is_empty() {
        e.push(FieldError::required("spec.capacity", ""));
    }
    let class = d.at("spec.storageClassName").str();
    if !class.is_empty() {
        e.all_invalid("spec.storageClassName", class, names::dns1123_subdomain(class));
    }
}

fn claim(d: &Doc, e: &mut ErrorList) {
    modes(d, "spec.accessModes", e);
    let storage = d.at("spec.resources.requests").get("storage");
    match storage.quantity() {
        None => e.push(FieldError::required("spec.resources[storage]", "")),
        Some(q) if q.is_zero() || q.sign() < 0 => {
            e.push(FieldError::invalid("spec.resources[storage]", storage.str(), "must be greater than zero"));
        }
        Some(_) => {}
    }
    let class = d.at("spec.storageClassName").str();
    if !class.is_empty() {
        e.all_invalid("spec.storageClassName", class, names::dns1123_subdomain(class));
    }
}

fn claim_update(a: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if a != Action::Main {
        return;
    }
    claim(new, e);
    let spec = |d: &Doc| {
        let mut v = d.at("spec").to_value();
        if let Some(m) = v.as_object_mut() {
            for f in ["volumeName", "volumeAttributesClassName"] {
                m.remove(f);
            }
            if let Some(r) = m.get_mut("resources").and_then(|r| r.get_mut("requests")).and_then(|r| r.as_object_mut()) {
                r.remove("storage");
            }
        }
        v
    };
    let bound = old.at("spec.volumeName").str();
    if spec(new) != spec(old) || (!bound.is_empty() && bound != new.at("spec.volumeName").str()) {
        e.push(FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
}

fn class(d: &Doc, e: &mut ErrorList) {
    let p = d.at("provisioner").str();
    if p.is_empty() {
        e.push(FieldError::required("provisioner", ""));
    } else {
        e.all_invalid("provisioner", p, names::qualified_name(&p.to_lowercase()));
    }
    let r = d.at("reclaimPolicy").str();
    if !matches!(r, "Delete" | "Retain") {
        e.push(FieldError::not_supported("reclaimPolicy", r, &["Delete", "Retain"]));
    }
    let b = d.at("volumeBindingMode").str();
    if !matches!(b, "Immediate" | "WaitForFirstConsumer") {
        e.push(FieldError::not_supported("volumeBindingMode", b, &["Immediate", "WaitForFirstConsumer"]));
    }
}
