//! Namespace.

use k8s_schema::Doc;
use serde_json::json;

use super::{Action, PLAIN, Strategy, restore};
use crate::validation::{ErrorList, FieldError, index, names};

pub const NAMESPACE: Strategy = Strategy {
    name: names::label_name,
    unmanaged_status: true,
    prepare_create,
    prepare_update,
    validate_create: |d, e| finalizers(d, e, false),
    validate_update,
    // It goes when its own finalizers are gone, which is the namespace controller's work.
    delete_instead: Some(|d| !d.at("spec.finalizers").is_empty() || !d.at("metadata.finalizers").is_empty()),
    ..PLAIN
};

/// Upstream says which of them is wrong only where they are all that is written.
fn finalizers(d: &Doc, e: &mut ErrorList, indexed: bool) {
    let path = "spec.finalizers";
    for (i, f) in d.at(path).iter().map(|f| f.str()).enumerate() {
        let at = if indexed { index(path, i) } else { path.to_owned() };
        e.all_invalid(&at, f, names::qualified_name(f));
        if !f.contains('/') && !matches!(f, "orphan" | "foregroundDeletion" | "kubernetes") {
            e.push(FieldError::invalid(at, f, "name is neither a standard finalizer name nor is it fully qualified"));
        }
    }
}

fn validate_update(action: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    let phase = new.at("status.phase").str();
    match action {
        Action::Finalize => finalizers(new, e, true),
        Action::Status if !old.at("metadata.deletionTimestamp").exists() && phase != "Active" => {
            e.push(FieldError::invalid("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty"));
        }
        Action::Status if old.at("metadata.deletionTimestamp").exists() && phase != "Terminating" => {
            e.push(FieldError::invalid("status.Phase", phase, "may only be 'Terminating' if `deletionTimestamp` is not empty"));
        }
        _ => {}
    }
}

fn prepare_create(d: &mut Doc) {
    let mut finalizers: Vec<String> = d.at("spec.finalizers").iter().map(|f| f.str().to_owned()).collect();
    if !finalizers.iter().any(|f| f == "kubernetes") {
        finalizers.push("kubernetes".into());
    }
    let name = d.at("metadata.name").str().to_owned();
    // Constant paths of the type: these cannot fail.
    let _ = d.set("spec.finalizers", json!(finalizers));
    let _ = d.set("status", json!({"phase": "Active"}));
    if !name.is_empty() {
        let _ = d.set("metadata.labels[kubernetes.io/metadata.name]", name);
    }
}

fn prepare_update(action: Action, new: &mut Doc, old: &Doc) {
    match action {
        Action::Finalize => restore(new, old, "status"),
        Action::Main => {
            restore(new, old, "spec.finalizers");
            restore(new, old, "status");
        }
        _ => {}
    }
}
