//! CSIDriver and CSINode.

use k8s_schema::{Doc, Ref};
use serde_json::json;

use super::{Action, PLAIN, Strategy};
use crate::validation::{ErrorList, FieldError, child, index, names, values};

pub const CSI_DRIVER: Strategy = Strategy {
    returns_deleted: true,
    unconditional_update: false,
    // Only changes are counted: a new driver has no generation.
    prepare_update: |_, new, old| {
        let counted = [
            "podInfoOnMount",
            "requiresRepublish",
            "tokenRequests",
            "seLinuxMount",
            "storageCapacity",
            "fsGroupPolicy",
            "serviceAccountTokenInSecrets",
        ];
        let changed = counted.iter().any(|f| !new.at("spec").get(f).semantic_eq(old.at("spec").get(f)));
        let g = old.at("metadata.generation").int() + i64::from(changed);
        if g > 0 {
            // A number in a field of every kind: this cannot fail.
            let _ = new.set("metadata.generation", g);
        }
    },
    validate_create: driver,
    validate_update: |_, new, old, e| {
        driver(new, e);
        for (field, shown) in [("attachRequired", "spec.attachedRequired"), ("volumeLifecycleModes", "spec.volumeLifecycleModes")] {
            let (n, o) = (new.at("spec").get(field), old.at("spec").get(field));
            if !n.semantic_eq(o) {
                e.push(FieldError::invalid(shown, n.to_value(), "field is immutable"));
            }
        }
    },
    warnings: |d, old| {
        let spec = d.at("spec");
        let same = old.is_some_and(|o| o.at("spec.tokenRequests").semantic_eq(spec.get("tokenRequests")));
        if same || spec.get("tokenRequests").is_empty() || spec.get("serviceAccountTokenInSecrets").exists() {
            return Vec::new();
        }
        vec!["spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".into()]
    },
    ..PLAIN
};

pub const CSI_NODE: Strategy = Strategy {
    returns_deleted: true,
    unconditional_update: false,
    validate_create: |d, e| node(d, e),
    validate_update: node_update,
    ..PLAIN
};

pub const CSI_STORAGE_CAPACITY: Strategy = Strategy {
    unconditional_update: false,
    validate_create: capacity,
    validate_update: |_, new, old, e| {
        capacity(new, e);
        for field in ["nodeTopology", "storageClassName"] {
            if !new.at(field).semantic_eq(old.at(field)) {
                e.push(FieldError::invalid(field, new.at(field).to_value(), "field is immutable"));
            }
        }
    },
    ..PLAIN
};

/// How much a driver can still give, where and of which class.
fn capacity(d: &Doc, e: &mut ErrorList) {
    values::label_selector(d.at("nodeTopology"), "nodeTopology", e);
    let class = d.at("storageClassName").str();
    e.all_invalid("storageClassName", class, names::dns1123_subdomain(class));
    if let Some(q) = d.at("capacity").quantity().filter(|q| q.sign() < 0) {
        e.push(FieldError::invalid("capacity", q.to_string(), "must be greater than or equal to 0"));
    }
}

fn driver(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    const POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];
    if let Some(p) = spec.get("fsGroupPolicy").as_str()
        && !POLICIES.contains(&p)
    {
        e.push(FieldError::not_supported("spec.fsGroupPolicy", p, &POLICIES));
    }
    for m in spec.get("volumeLifecycleModes").iter() {
        if !matches!(m.str(), "Persistent" | "Ephemeral") {
            e.push(FieldError::not_supported("spec.volumeLifecycleModes", m.str(), &["Persistent", "Ephemeral"]));
        }
    }
    let mut audiences: Vec<&str> = Vec::new();
    for (i, t) in spec.get("tokenRequests").iter().enumerate() {
        let (path, audience) = (index("spec.tokenRequests", i), t.get("audience").str());
        if audiences.contains(&audience) {
            e.push(FieldError::duplicate(child(&path, "audience"), audience));
            continue;
        }
        audiences.push(audience);
        let Some(seconds) = t.get("expirationSeconds").as_i64() else { continue };
        let path = child(&path, "expirationSeconds");
        if seconds < 600 {
            e.push(FieldError::invalid(path.clone(), seconds, "may not specify a duration less than 10 minutes"));
        }
        if seconds > 1 << 32 {
            e.push(FieldError::invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"));
        }
    }
    if let Some(s) = spec.get("nodeAllocatableUpdatePeriodSeconds").as_i64().filter(|s| *s < 10) {
        e.push(FieldError::invalid("spec.nodeAllocatableUpdatePeriodSeconds", s, "must be greater than or equal to 10 seconds"));
    }
    if spec.get("serviceAccountTokenInSecrets").exists() && audiences.is_empty() {
        let v = spec.get("serviceAccountTokenInSecrets").bool();
        e.push(FieldError::invalid(
            "spec.serviceAccountTokenInSecrets",
            v,
            "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
        ));
    }
}

fn node(d: &Doc, e: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, driver) in d.at("spec.drivers").iter().enumerate() {
        let path = index("spec.drivers", i);
        let name = driver.get("name").str();
        if name.is_empty() {
            e.push(FieldError::required(child(&path, "name"), ""));
        } else {
            if name.len() > 63 {
                e.push(FieldError::too_long(child(&path, "name"), name, 63));
            }
            e.all_invalid(&child(&path, "name"), name, names::dns1123_subdomain(&name.to_lowercase()));
        }
        let id = driver.get("nodeID").str();
        if id.is_empty() {
            e.push(FieldError::required(child(&path, "nodeID"), ""));
        } else if id.len() > 256 {
            e.push(FieldError::invalid(child(&path, "nodeID"), id, "must be 256 characters or less"));
        }
        if let Some(n) = driver.at("allocatable.count").as_i64() {
            values::non_negative(n, &format!("{path}.allocatable.count"), e);
        }
        let mut keys: Vec<&str> = Vec::new();
        for k in driver.get("topologyKeys").iter() {
            let k = k.str();
            if k.is_empty() {
                e.push(FieldError::required(path.clone(), ""));
            }
            if keys.contains(&k) {
                e.push(FieldError::duplicate(path.clone(), k));
            }
            keys.push(k);
            e.all_invalid(&path, k, names::qualified_name(k));
        }
        if !name.is_empty() && seen.contains(&name) {
            e.push(FieldError::duplicate(child(&path, "name"), name));
        }
        seen.push(name);
    }
}

/// A driver in upstream's internal form, as errors show it.
fn shown(d: Ref<'_>) -> serde_json::Value {
    let keys = d.get("topologyKeys");
    let allocatable = d.get("allocatable");
    json!({
        "Name": d.get("name").str(),
        "NodeID": d.get("nodeID").str(),
        "TopologyKeys": if keys.is_empty() { serde_json::Value::Null } else { keys.to_value() },
        "Allocatable": if allocatable.exists() { json!({"Count": allocatable.get("count").to_value()}) } else { serde_json::Value::Null },
    })
}

fn node_update(_: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    node(new, e);
    for was in old.at("spec.drivers").iter() {
        let is = new.at("spec.drivers").find("name", was.get("name").str());
        let fixed = ["nodeID", "topologyKeys"];
        if is.exists() && fixed.iter().any(|f| !is.get(f).semantic_eq(was.get(f))) {
            e.push(FieldError::invalid("spec.drivers", shown(is), "field is immutable"));
        }
    }
}
