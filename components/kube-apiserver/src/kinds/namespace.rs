//! Namespace.

use k8s_schema::Doc;
use serde_json::json;

use super::{Action, PLAIN, Strategy, restore};
use crate::validation::{ErrorList, names};

pub const NAMESPACE: Strategy = Strategy {
    name: names::label_name,
    status: false,
    prepare_create,
    prepare_update,
    validate_create: |_, _| {},
    validate_update: |_, _, _, _: &mut ErrorList| {},
    // It goes when its own finalizers are gone, which is the namespace controller's work.
    delete_instead: Some(|d| !d.at("spec.finalizers").is_empty() || !d.at("metadata.finalizers").is_empty()),
    ..PLAIN
};

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
        Action::Finalize => {
            let finalizers = new.at("spec.finalizers").to_value();
            let mut kept = old.clone();
            if finalizers.is_null() {
                kept.remove("spec.finalizers");
            } else {
                // The same field of the same type: this cannot fail.
                let _ = kept.set("spec.finalizers", finalizers);
            }
            let rv = new.at("metadata.resourceVersion").str().to_owned();
            let _ = kept.set("metadata.resourceVersion", rv);
            *new = kept;
        }
        Action::Main => {
            restore(new, old, "spec.finalizers");
            restore(new, old, "status");
        }
        _ => {}
    }
}
