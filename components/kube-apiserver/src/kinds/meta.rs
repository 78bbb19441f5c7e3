//! Rules of metadata, which are the same for every kind.

use k8s_schema::{
    Doc,
    apply::{self, ApplyError, Operation, Set},
};

use crate::{
    http::ApiError,
    registry::Resource,
    validation::{ErrorList, FieldError, child, index, names, values},
};

/// Owner references that name the same owner twice are one.
pub fn dedup_owners(doc: &mut Doc, warn: &mut dyn FnMut(String)) {
    let refs: Vec<serde_json::Value> = doc.at("metadata.ownerReferences").iter().map(|r| r.to_value()).collect();
    let mut kept: Vec<&serde_json::Value> = Vec::new();
    for r in &refs {
        if !kept.contains(&r) {
            kept.push(r);
        }
    }
    if kept.len() < refs.len() {
        warn(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: "
                .to_owned()
                + &duplicate_uids(&refs),
        );
        let kept: Vec<serde_json::Value> = kept.into_iter().cloned().collect();
        // A list taken from the same field: this cannot fail.
        let _ = doc.set("metadata.ownerReferences", serde_json::Value::from(kept));
    }
}

fn duplicate_uids(refs: &[serde_json::Value]) -> String {
    let mut seen: Vec<&str> = Vec::new();
    let mut twice: Vec<&str> = Vec::new();
    for uid in refs.iter().filter_map(|r| r["uid"].as_str()) {
        if seen.contains(&uid) {
            if !twice.contains(&uid) {
                twice.push(uid);
            }
        } else {
            seen.push(uid);
        }
    }
    twice.join(", ")
}

/// Kinds whose finalizers need a domain, as all of the main API's do.
fn qualifies(doc: &Doc) -> bool {
    let group = doc.api_version().split_once('/').map_or("", |(g, _)| g);
    doc.type_id() != k8s_schema::TypeId::ANY && !matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
}

pub fn validate_create(doc: &Doc, namespaced: bool, rule: names::NameRule, e: &mut ErrorList) {
    let m = doc.at("metadata");
    let generate = m.get("generateName").str();
    if !generate.is_empty() {
        e.all_invalid("metadata.generateName", generate, rule(generate, true));
    }
    let name = m.get("name").str();
    if name.is_empty() {
        e.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        e.all_invalid("metadata.name", name, rule(name, false));
    }
    let ns = m.get("namespace").str();
    if namespaced {
        if ns.is_empty() {
            e.push(FieldError::required("metadata.namespace", ""));
        } else {
            e.all_invalid("metadata.namespace", ns, names::dns1123_label(ns));
        }
    } else if !ns.is_empty() {
        e.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
    }
    common(doc, e);
}

fn common(doc: &Doc, e: &mut ErrorList) {
    let m = doc.at("metadata");
    values::non_negative(m.get("generation").int(), "metadata.generation", e);
    values::labels(m.get("labels"), "metadata.labels", e);
    values::annotations(m.get("annotations"), "metadata.annotations", e);
    owners(doc, e);
    let finalizers: Vec<&str> = m.get("finalizers").iter().map(|f| f.str()).collect();
    for f in &finalizers {
        e.all_invalid("metadata.finalizers", *f, names::qualified_name(f));
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        let shown = format!("[{}]", finalizers.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(","));
        e.push(FieldError::invalid_raw("metadata.finalizers", &shown, "finalizer orphan and foregroundDeletion cannot be both set"));
    }
    for (i, f) in finalizers.iter().enumerate().filter(|_| qualifies(doc)) {
        if !f.contains('/') && !matches!(*f, "orphan" | "foregroundDeletion" | "kubernetes") {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            e.push(FieldError::invalid(index("metadata.finalizers", i), *f, why));
        }
    }
}

fn owners(doc: &Doc, e: &mut ErrorList) {
    let path = "metadata.ownerReferences";
    let mut controller: Option<String> = None;
    for r in doc.at(path).iter() {
        let p = path.to_owned();
        let av = r.get("apiVersion").str();
        if av.is_empty() || av.split('/').count() > 2 {
            e.push(FieldError::invalid(child(&p, "apiVersion"), av, "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if r.get(field).str().is_empty() {
                e.push(FieldError::invalid(child(&p, field), "", "must not be empty"));
            }
        }
        if (av, r.get("kind").str()) == ("v1", "Event") {
            e.push(FieldError::invalid(p.clone(), r.to_value(), "/v1, Kind=Event is disallowed from being an owner"));
        }
        if r.get("controller").bool() {
            let me = format!("{}/{}", r.get("kind").str(), r.get("name").str());
            if let Some(other) = &controller {
                e.push(FieldError::invalid(
                    path,
                    doc.at(path).to_value(),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {other} and {me}"),
                ));
            } else {
                controller = Some(me);
            }
        }
    }
}

/// Upstream checks metadata once for all kinds and again for each of the main API, which shows in the number of causes.
pub fn validate_update(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let mut once = ErrorList::new();
    update_once(new, old, &mut once);
    if new.type_id() != k8s_schema::TypeId::ANY {
        e.append(once.clone());
    }
    e.append(once);
}

fn update_once(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let mut both = ErrorList::new();
    common(new, &mut both);
    if new.type_id() != k8s_schema::TypeId::ANY {
        e.append(both.clone());
    }
    e.append(both);
    let (meta, before) = (new.at("metadata"), old.at("metadata"));
    let grace = meta.get("deletionGracePeriodSeconds");
    if grace.exists() && grace.as_i64() != before.get("deletionGracePeriodSeconds").as_i64() {
        e.push(FieldError::invalid("metadata.deletionGracePeriodSeconds", grace.to_value(), "field is immutable"));
    }
    // A deleted object takes no new finalizers.
    if before.get("deletionTimestamp").exists() {
        let had: Vec<&str> = before.get("finalizers").iter().map(|f| f.str()).collect();
        let added: Vec<&str> = meta.get("finalizers").iter().map(|f| f.str()).filter(|f| !had.contains(f)).collect();
        if !added.is_empty() {
            let shown = added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            e.push(FieldError::forbidden(
                "metadata.finalizers",
                format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{shown}}}"),
            ));
        }
    }
    for f in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"] {
        let (n, o) = (meta.get(f), before.get(f));
        if !n.semantic_eq(o) {
            e.push(FieldError::invalid(child("metadata", f), n.to_value(), "field is immutable"));
        }
    }
}

/// Fields by their names, with dots between them, as a set that managers never come to own.
fn ignored(reset: &[&str]) -> Set {
    let paths: Vec<Vec<&str>> = reset.iter().map(|f| f.split('.').collect()).collect();
    let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
    Set::of_fields(&paths)
}

/// Notes which fields of `new` its manager now manages, against the object that was there. `reset`: fields this write cannot set.
pub fn track(res: &Resource, new: &mut Doc, old: &Doc, manager: &str, subresource: &str, reset: &[&str]) {
    let now = jiff::Timestamp::now().as_second();
    let typed_by = res.custom.as_ref().and_then(crate::custom::Custom::types);
    apply::update(old, new, &Operation { manager, subresource, now, ignored: &ignored(reset), typed_by });
}

/// [`track`] for a write of the replicas, which are at `path`, through the scale subresource.
pub fn track_scale(res: &Resource, new: &mut Doc, old: &Doc, manager: &str, path: &str) {
    let now = jiff::Timestamp::now().as_second();
    let typed_by = res.custom.as_ref().and_then(crate::custom::Custom::types);
    let operation = Operation { manager, subresource: "scale", now, ignored: &Set::default(), typed_by };
    apply::update_scale(old, new, &operation, &path.split('.').collect::<Vec<_>>());
}

/// Server-side apply of `applied` on `live`.
pub fn apply(
    res: &Resource,
    live: &Doc,
    applied: &serde_json::Value,
    manager: &str,
    subresource: &str,
    force: bool,
    reset: &[&str],
) -> Result<Doc, ApiError> {
    let now = jiff::Timestamp::now().as_second();
    let typed_by = res.custom.as_ref().and_then(crate::custom::Custom::types);
    let operation = Operation { manager, subresource, now, ignored: &ignored(reset), typed_by };
    apply::apply(live, applied, &operation, force).map_err(|e| {
        let message = e.to_string();
        match e {
            ApplyError::BadRequest(_) => ApiError::bad_request(message),
            ApplyError::Conflict(conflicts) => {
                let mut e = ApiError::new(409, "Conflict", message);
                e.details = Some(Box::default());
                conflicts.iter().fold(e, |e, c| e.with_cause("FieldManagerConflict", c.message(), &c.path.to_string()))
            }
            ApplyError::Internal(_) => ApiError::new(500, "", message),
        }
    })
}
