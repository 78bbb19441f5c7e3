//! PriorityClass and RuntimeClass.

use k8s_schema::Doc;

use super::{Action, PLAIN, Strategy};
use crate::validation::{ErrorList, FieldError, names};

const HIGHEST_USER: i64 = 1_000_000_000;

pub const PRIORITY_CLASS: Strategy =
    Strategy { first_generation: true, validate_create: priority_class, validate_update: priority_update, ..PLAIN };
pub const RUNTIME_CLASS: Strategy =
    Strategy { unconditional_update: false, validate_create: runtime_class, validate_update: runtime_update, ..PLAIN };

fn priority_class(d: &Doc, e: &mut ErrorList) {
    let (name, value) = (d.at("metadata.name").str(), d.at("value").int());
    let system = matches!((name, value), ("system-cluster-critical", 2_000_000_000) | ("system-node-critical", 2_000_001_000));
    if name.starts_with("system-") && !system {
        e.push(FieldError::forbidden(
            "metadata.name",
            format!("priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"),
        ));
    } else if value > HIGHEST_USER && !system {
        e.push(FieldError::forbidden("value", format!("maximum allowed value of a user defined priority is {HIGHEST_USER}")));
    }
    let policy = d.at("preemptionPolicy").str();
    if policy.is_empty() {
        e.push(FieldError::required("preemptionPolicy", ""));
    } else if !matches!(policy, "" | "Never" | "PreemptLowerPriority") {
        e.push(FieldError::not_supported("preemptionPolicy", policy, &["PreemptLowerPriority", "Never"]));
    }
}

fn priority_update(_: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if new.at("value").int() != old.at("value").int() {
        e.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    if !new.at("preemptionPolicy").semantic_eq(old.at("preemptionPolicy")) {
        e.push(FieldError::invalid("preemptionPolicy", new.at("preemptionPolicy").to_value(), "field is immutable"));
    }
}

fn runtime_class(d: &Doc, e: &mut ErrorList) {
    let h = d.at("handler").str();
    if h.is_empty() {
        e.push(FieldError::required("handler", ""));
    } else if h.contains('.') {
        e.push(FieldError::invalid("handler", h, "must not contain dots"));
    } else {
        e.all_invalid("handler", h, names::dns1123_label(h));
    }
    for (name, q) in d.at("overhead.podFixed").entries() {
        let path = crate::validation::key("overhead.limits", name);
        let wrong = names::qualified_name(name);
        let known = !wrong.is_empty()
            || name.contains('/')
            || matches!(name, "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-");
        if !wrong.is_empty() || !known {
            e.all_invalid(&path, name, wrong);
            e.push(FieldError::invalid(path.clone(), name, "must be a standard resource for containers"));
        }
        if q.quantity().is_some_and(|q| q.sign() < 0) {
            e.push(FieldError::invalid(path, q.str(), "must be greater than or equal to 0"));
        }
    }
    crate::validation::values::labels(d.at("scheduling.nodeSelector"), "scheduling.nodeSelector", e);
    let path = "scheduling.tolerations";
    super::pod_spec::tolerations(d.at(path), path, e);
    let all: Vec<_> = d.at(path).iter().collect();
    for (i, t) in all.iter().enumerate().filter(|(i, t)| all[..*i].iter().any(|o| o.semantic_eq(**t))) {
        let text = |f: &str| t.get(f).str();
        let shown = serde_json::json!({"Key": text("key"), "Operator": text("operator"), "Value": text("value"), "Effect": text("effect"),
            "TolerationSeconds": t.get("tolerationSeconds").as_i64()});
        e.push(FieldError::duplicate(crate::validation::index(path, i), shown));
    }
}

fn runtime_update(_: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    super::immutable(new, old, "handler", e);
}
