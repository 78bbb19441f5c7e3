//! What the controllers report of workloads: numbers that fit together.

use std::collections::HashSet;

use k8s_schema::{Doc, Ref};

use crate::validation::{ErrorList, FieldError, child, index, names, values};

/// Numbers that may not be negative.
fn counts(status: Ref<'_>, fields: &[&str], e: &mut ErrorList) {
    for f in fields {
        if let Some(n) = status.get(f).as_i64() {
            values::non_negative(n, &format!("status.{f}"), e);
        }
    }
}

/// None of `parts` is greater than `whole`.
fn within(status: Ref<'_>, parts: &[&str], whole: &str, shown: &str, e: &mut ErrorList) {
    for f in parts {
        let n = status.get(f).int();
        if n > status.get(whole).int() {
            e.push(FieldError::invalid(format!("status.{f}"), n, format!("cannot be greater than {shown}")));
        }
    }
}

/// The number of collisions only grows.
fn collisions(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let path = "status.collisionCount";
    let (n, o) = (new.at(path).int(), old.at(path));
    if o.exists() && (n < o.int() || !new.at(path).exists()) {
        e.push(FieldError::invalid(path, n, "cannot be decremented"));
    }
}

/// Conditions of the common form, which others than the server write.
pub fn conditions(d: &Doc, e: &mut ErrorList) {
    const STATUSES: &[&str] = &["False", "True", "Unknown"];
    let mut seen = HashSet::new();
    for (i, c) in d.at("status.conditions").iter().enumerate() {
        let path = index("status.conditions", i);
        let (kind, status, reason) = (c.get("type").str(), c.get("status").str(), c.get("reason").str());
        e.all_invalid(&child(&path, "type"), kind, names::qualified_name(kind));
        if !kind.is_empty() && !seen.insert(kind) {
            e.push(FieldError::duplicate(child(&path, "type"), kind));
        }
        if !STATUSES.contains(&status) {
            e.push(FieldError::not_supported(child(&path, "status"), status, STATUSES));
        }
        if !c.get("lastTransitionTime").exists() {
            e.push(FieldError::required(child(&path, "lastTransitionTime"), ""));
        }
        if reason.is_empty() {
            e.push(FieldError::required(child(&path, "reason"), ""));
        }
    }
}

pub fn deployment(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let s = new.at("status");
    counts(
        s,
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ],
        e,
    );
    within(s, &["updatedReplicas", "readyReplicas", "availableReplicas"], "replicas", "status.replicas", e);
    within(s, &["availableReplicas"], "readyReplicas", "readyReplicas", e);
    collisions(new, old, e);
}

/// Of replica sets and replication controllers.
pub fn replica_set(new: &Doc, _: &Doc, e: &mut ErrorList) {
    let s = new.at("status");
    counts(s, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration", "terminatingReplicas"], e);
    within(s, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], "replicas", "status.replicas", e);
    within(s, &["availableReplicas"], "readyReplicas", "readyReplicas", e);
}

pub fn daemon_set(new: &Doc, old: &Doc, e: &mut ErrorList) {
    counts(
        new.at("status"),
        &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ],
        e,
    );
    collisions(new, old, e);
}

pub fn stateful_set(new: &Doc, old: &Doc, e: &mut ErrorList) {
    let s = new.at("status");
    counts(
        s,
        &["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas", "observedGeneration", "collisionCount"],
        e,
    );
    within(s, &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"], "replicas", "status.replicas", e);
    within(s, &["availableReplicas"], "readyReplicas", "status.readyReplicas", e);
    collisions(new, old, e);
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn reported_numbers_fit_together() {
        let schema = Schema::builtin();
        let of = |status: Value| {
            Doc::from_value(&schema, schema.kind("apps", "v1", "Deployment").unwrap(), &json!({"status": status})).unwrap().doc
        };
        let errors = |new: Value, old: Value| {
            let mut e = ErrorList::new();
            deployment(&of(new), &of(old), &mut e);
            e.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(errors(json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 1}), json!({})), [""; 0]);
        assert_eq!(
            errors(json!({"replicas": 1, "readyReplicas": 2}), json!({"collisionCount": 1})),
            [
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.collisionCount: Invalid value: 0: cannot be decremented"
            ]
        );
    }
}
