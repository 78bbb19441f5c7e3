//! Pod: its first status, its grace, and what may change once it exists.

use k8s_schema::Doc;
use serde_json::{Value, json};

use super::{Action, SPEC_AND_STATUS, Strategy, pod_metadata, pod_resources, pod_spec, restore, warnings};
use crate::validation::{ErrorList, FieldError};

pub const POD: Strategy = Strategy {
    prepare_create,
    prepare_update,
    validate_create: |d, e| {
        pod_metadata::validate(d, e);
        pod_resources::validate_pod(d.at("spec"), "spec", e);
        pod_spec::validate(d.at("spec"), d.at("metadata"), "spec", e);
        if !d.at("spec.ephemeralContainers").is_empty() {
            e.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
        }
    },
    validate_update,
    warnings: warnings::pod,
    graceful: Some(grace),
    returns_deleted: true,
    ..SPEC_AND_STATUS
};

/// Upstream's classes of service: Guaranteed, Burstable, BestEffort.
pub fn qos(d: &Doc) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    let pod_level = d.at("spec.resources");
    let containers = || ["containers", "initContainers"].into_iter().flat_map(|l| d.at("spec").get(l).iter().map(|c| c.get("resources")));
    let all: Vec<_> =
        if pod_level.get("requests").len() + pod_level.get("limits").len() > 0 { vec![pod_level] } else { containers().collect() };
    for r in &all {
        for resource in ["cpu", "memory"] {
            let nonzero = |list: &str| r.get(list).get(resource).quantity().filter(|q| !q.is_zero());
            let (request, limit) = (nonzero("requests"), nonzero("limits"));
            any |= request.is_some() || limit.is_some();
            match (&request, &limit) {
                (Some(a), Some(b)) if a == b => {}
                (None, Some(_)) => {}
                _ => guaranteed = false,
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What needs a feature that is off by default is not stored.
fn drop_disabled(d: &mut Doc) {
    let done = d.for_each("spec.volumes", |mut v| {
        v.for_each("projected.sources", |mut s| {
            s.remove("clusterTrustBundle");
            s.remove("podCertificate");
            Ok::<_, std::convert::Infallible>(())
        })
    });
    // Nothing in there fails.
    let _ = done;
}

/// Keys whose values a pod shares with the pods it looks for become part of its selectors.
fn merge_label_keys(d: &mut Doc) {
    let labels: Vec<(String, String)> = d.at("metadata.labels").entries().map(|(k, v)| (k.to_owned(), v.str().to_owned())).collect();
    let mut places = Vec::new();
    for kind in ["podAffinity", "podAntiAffinity"] {
        let of = d.at("spec.affinity").get(kind);
        let path = format!("spec.affinity.{kind}");
        let (required, preferred) = ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
        places.extend((0..of.get(required).len()).map(|i| format!("{path}.{required}[{i}]")));
        places.extend((0..of.get(preferred).len()).map(|i| format!("{path}.{preferred}[{i}].podAffinityTerm")));
    }
    places.extend((0..d.at("spec.topologySpreadConstraints").len()).map(|i| format!("spec.topologySpreadConstraints[{i}]")));
    for place in places {
        let term = d.at(&place);
        if !term.get("labelSelector").exists() {
            continue;
        }
        let mut wanted = Vec::new();
        for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            for k in term.get(keys).strings() {
                if let Some((_, v)) = labels.iter().find(|(l, _)| l == k) {
                    wanted.push(json!({"key": k, "operator": operator, "values": [v]}));
                }
            }
        }
        for w in wanted {
            // A field of every selector: this cannot fail.
            let _ = d.push(&format!("{place}.labelSelector.matchExpressions"), w);
        }
    }
}

fn prepare_create(d: &mut Doc) {
    drop_disabled(d);
    merge_label_keys(d);
    pod_metadata::adopt_app_armor(d);
    let class = qos(d);
    // Constant paths of the type: these cannot fail.
    let _ = d.set("status", json!({"phase": "Pending", "qosClass": class}));
    if !d.at("spec.schedulingGates").is_empty() {
        let condition = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastTransitionTime": crate::handlers::write::now()}]);
        let _ = d.set("status.conditions", condition);
    }
}

fn prepare_update(action: Action, new: &mut Doc, old: &Doc) {
    match action {
        Action::Main => restore(new, old, "status"),
        Action::Status => {
            restore(new, old, "metadata.ownerReferences");
            // The class of service is decided at creation.
            if old.at("status.qosClass").exists() {
                restore(new, old, "status.qosClass");
            }
        }
        Action::EphemeralContainers => {
            let given = new.clone();
            let mut kept = old.clone();
            // Parts of the same type: these cannot fail.
            let _ = kept.copy_from("spec.ephemeralContainers", given.at("spec.ephemeralContainers"));
            let _ = kept.copy_from("metadata.resourceVersion", given.at("metadata.resourceVersion"));
            let _ = kept.copy_from("metadata.managedFields", given.at("metadata.managedFields"));
            *new = kept;
        }
        Action::Resize => {
            let given = new.clone();
            let mut kept = old.clone();
            // Parts of the same type: these cannot fail.
            for list in ["containers", "initContainers"] {
                for (i, c) in old.at("spec").get(list).iter().enumerate() {
                    let asked = given.at("spec").get(list).find("name", c.get("name").str());
                    for f in ["resources", "resizePolicy"].into_iter().filter(|_| asked.exists()) {
                        let path = format!("spec.{list}[{i}].{f}");
                        if asked.get(f).exists() {
                            let _ = kept.copy_from(&path, asked.get(f));
                        } else {
                            kept.remove(&path);
                        }
                    }
                }
            }
            for f in ["metadata.resourceVersion", "metadata.managedFields"] {
                let _ = kept.copy_from(f, given.at(f));
            }
            *new = kept;
        }
        _ => {}
    }
}

/// What a resize may not do.
fn validate_resize(new: &Doc, old: &Doc, e: &mut ErrorList) {
    pod_spec::validate(new.at("spec"), new.at("metadata"), "spec", e);
    let class = qos(old);
    if qos(new) != class {
        e.push(FieldError::invalid("spec", class, "Pod QOS Class may not change as a result of resizing"));
    }
    let mut others = false;
    for list in ["containers", "initContainers"] {
        for (i, c) in old.at("spec").get(list).iter().enumerate() {
            let now = new.at("spec").get(list).index(i);
            for part in ["requests", "limits"] {
                let (was, is) = (c.at("resources").get(part), now.at("resources").get(part));
                if was.entries().any(|(k, _)| matches!(k, "cpu" | "memory") && !is.get(k).exists()) {
                    let path = format!("spec.{list}[{i}].resources.{part}");
                    e.push(FieldError::forbidden(path, format!("resource {part} cannot be removed")));
                }
                let rest = |r: k8s_schema::Ref<'_>| {
                    r.entries()
                        .filter(|(k, _)| !matches!(*k, "cpu" | "memory"))
                        .map(|(k, v)| (k.to_owned(), v.to_value()))
                        .collect::<Vec<_>>()
                };
                others |= rest(was) != rest(is);
            }
            others |= !c.get("resizePolicy").semantic_eq(now.get("resizePolicy"));
        }
    }
    if others {
        e.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
    }
}

fn grace(d: &Doc, asked: Option<i64>) -> i64 {
    // Nobody has to stop a pod that never ran or is over.
    if d.at("spec.nodeName").str().is_empty() || matches!(d.at("status.phase").str(), "Succeeded" | "Failed") {
        return 0;
    }
    let own = d.at("spec.terminationGracePeriodSeconds").as_i64().unwrap_or(30);
    match asked {
        Some(s) if s >= 0 => s,
        // Negative values mean: at once, but not forced.
        Some(_) => 1,
        None if own < 0 => 1,
        None => own,
    }
}

/// The spec without what an update may change.
fn fixed(d: &Doc, old: &Doc) -> Value {
    let mut v = d.at("spec").to_value();
    for list in ["containers", "initContainers"] {
        for c in v[list].as_array_mut().into_iter().flatten() {
            if let Some(c) = c.as_object_mut() {
                c.remove("image");
            }
        }
    }
    if let Some(m) = v.as_object_mut() {
        m.remove("activeDeadlineSeconds");
        m.remove("ephemeralContainers");
        m.remove("tolerations");
        m.remove("schedulingGates");
        if !old.at("spec.schedulingGates").is_empty() {
            m.remove("nodeSelector");
            m.remove("affinity");
        }
        if m.get("terminationGracePeriodSeconds").and_then(Value::as_i64) == Some(1)
            && old.at("spec.terminationGracePeriodSeconds").int() < 0
        {
            m.insert("terminationGracePeriodSeconds".into(), old.at("spec.terminationGracePeriodSeconds").int().into());
        }
    }
    v
}

fn validate_update(action: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    match action {
        Action::Main => {
            pod_spec::validate(new.at("spec"), new.at("metadata"), "spec", e);
            let names = |d: &Doc, l: &str| d.at("spec").get(l).len();
            for list in ["containers", "initContainers"] {
                if names(new, list) != names(old, list) {
                    e.push(FieldError::forbidden(format!("spec.{list}"), "pod updates may not add or remove containers"));
                    return;
                }
            }
            let (o, n) = (old.at("spec.activeDeadlineSeconds").as_i64(), new.at("spec.activeDeadlineSeconds").as_i64());
            match (o, n) {
                (Some(o), Some(n)) if n > o => {
                    e.push(FieldError::invalid("spec.activeDeadlineSeconds", n, "must be less than or equal to previous value"));
                }
                (Some(_), None) => {
                    e.push(FieldError::invalid_raw(
                        "spec.activeDeadlineSeconds",
                        "null",
                        "must not update from a positive integer to nil value",
                    ));
                }
                _ => {}
            }
            let gates = |d: &Doc| d.at("spec.schedulingGates").iter().map(|g| g.get("name").str().to_owned()).collect::<Vec<_>>();
            let had = gates(old);
            for g in gates(new) {
                if !had.contains(&g) {
                    e.push(FieldError::forbidden(
                        "spec.schedulingGates",
                        format!("only deletion is allowed, but found new scheduling gate '{g}'"),
                    ));
                }
            }
            let tolerations: Vec<Value> = new.at("spec.tolerations").iter().map(|t| t.to_value()).collect();
            for t in old.at("spec.tolerations").iter() {
                let same = |x: &Value| {
                    let strip = |v: &Value| {
                        let mut v = v.clone();
                        if let Some(m) = v.as_object_mut() {
                            m.remove("tolerationSeconds");
                        }
                        v
                    };
                    strip(x) == strip(&t.to_value())
                };
                if !tolerations.iter().any(same) {
                    e.push(FieldError::forbidden(
                        "spec.tolerations",
                        "existing toleration can not be modified except its tolerationSeconds",
                    ));
                }
            }
            if fixed(new, old) != fixed(old, old) {
                e.push(FieldError::forbidden(
                    "spec",
                    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                     `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
                ));
            }
        }
        Action::EphemeralContainers => {
            pod_spec::validate(new.at("spec"), new.at("metadata"), "spec", e);
            for (i, c) in old.at("spec.ephemeralContainers").iter().enumerate() {
                let n = new.at("spec.ephemeralContainers").find("name", c.get("name").str());
                if !n.exists() {
                    e.push(FieldError::forbidden(
                        "spec.ephemeralContainers",
                        format!("existing ephemeral containers {:?} may not be removed\n", c.get("name").str()),
                    ));
                } else if !n.semantic_eq(c) {
                    e.push(FieldError::forbidden(
                        "spec.ephemeralContainers",
                        format!("existing ephemeral containers {:?} may not be changed\n", c.get("name").str()),
                    ));
                }
                let _ = i;
            }
        }
        Action::Resize => validate_resize(new, old, e),
        Action::Status => {
            let node = |d: &Doc| d.at("spec.nodeName").str().to_owned();
            if node(new) != node(old) {
                e.push(FieldError::forbidden("status.nodeName", "may not be changed directly"));
            }
        }
        _ => {}
    }
}
