//! What containers ask for and may use at most.

use k8s_schema::{Quantity, Ref};

use crate::validation::{ErrorList, FieldError, child, key, names};

const STANDARD: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// Names without a domain that mean something, though not to a container.
const ELSEWHERE: &[&str] = &[
    "storage",
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

fn is_huge(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// A resource that somebody's device plugin counts.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.starts_with("kubernetes.io/") && !name.starts_with("requests.")
}

fn resource_name(name: &str, path: &str, e: &mut ErrorList) {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        e.all_invalid(path, name, wrong);
        return;
    }
    if name.contains('/') {
        if name.starts_with("requests.") {
            e.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
        }
        return;
    }
    if !STANDARD.contains(&name) && !is_huge(name) {
        if !ELSEWHERE.contains(&name) {
            e.push(FieldError::invalid(path, name, "must be a standard resource type or fully qualified"));
        }
        e.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
    }
}

/// Amounts of huge pages are whole pages.
fn whole_pages(name: &str, amount: &Quantity, shown: &str, path: &str, e: &mut ErrorList) {
    let page = Quantity::parse(&name["hugepages-".len()..]).map(|q| q.value()).unwrap_or(0);
    let bytes = amount.value();
    if !amount.is_zero() && (page <= 0 || bytes % page != 0) {
        e.push(FieldError::invalid(path, shown, format!("{shown} is not positive integer multiple of {name}")));
    }
}

fn amount(name: &str, q: Ref<'_>, path: &str, e: &mut ErrorList) {
    resource_name(name, path, e);
    let Some(quantity) = q.quantity() else { return };
    if quantity.sign() < 0 {
        e.push(FieldError::invalid(path, q.str(), "must be greater than or equal to 0"));
    }
    if is_extended(name) && !quantity.is_integer() {
        e.push(FieldError::invalid(path, q.str(), "must be an integer"));
    }
    if is_huge(name) {
        whole_pages(name, &quantity, q.str(), path, e);
    }
}

fn sorted<'a>(r: Ref<'a>) -> Vec<(&'a str, Ref<'a>)> {
    let mut all: Vec<(&str, Ref<'_>)> = r.entries().collect();
    all.sort_by_key(|(k, _)| *k);
    all
}

pub fn validate(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (limits, requests) = (r.get("limits"), r.get("requests"));
    let (mut huge, mut usual) = (false, false);
    for (name, q) in sorted(limits) {
        amount(name, q, &key(&child(path, "limits"), name), e);
        huge |= is_huge(name);
        usual |= matches!(name, "cpu" | "memory");
    }
    for (name, q) in sorted(requests) {
        amount(name, q, &key(&child(path, "requests"), name), e);
        huge |= is_huge(name);
        usual |= matches!(name, "cpu" | "memory");
        let limit = limits.get(name);
        let exact = is_extended(name) || is_huge(name);
        match (q.quantity(), limit.quantity()) {
            (Some(a), Some(b)) if exact && a != b => {
                e.push(FieldError::invalid(child(path, "requests"), q.str(), format!("must be equal to {name} limit of {}", limit.str())));
            }
            (Some(a), Some(b)) if a > b => {
                let why = format!("must be less than or equal to {name} limit of {}", limit.str());
                e.push(FieldError::invalid(child(path, "requests"), q.str(), why));
            }
            (Some(_), None) if exact => {
                e.push(FieldError::required(child(path, "limits"), "Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
    }
    if huge && !usual {
        e.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::{Doc, Schema};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn requests_and_limits_fit_together() {
        let schema = Schema::builtin();
        let errors = |r: Value| {
            let v = json!({"spec": {"containers": [{"resources": r}]}});
            let doc = Doc::from_value(&schema, schema.kind("", "v1", "Pod").unwrap(), &v).unwrap().doc;
            let mut e = ErrorList::new();
            validate(doc.at("spec.containers[0].resources"), "r", &mut e);
            e.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(errors(json!({"limits": {"cpu": "1", "memory": "1Gi", "a.b/c": "1"}, "requests": {"cpu": "1", "a.b/c": "1"}})), [""; 0]);
        for (r, want) in [
            (
                json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
                "r.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (json!({"requests": {"a.b/c": "1"}}), "r.limits: Required value: Limit must be set for non overcommitable resources"),
            (
                json!({"requests": {"storage": "1Gi"}}),
                "r.requests[storage]: Invalid value: \"storage\": must be a standard resource for containers",
            ),
            (json!({"limits": {"hugepages-2Mi": "2Mi"}}), "r: Forbidden: HugePages require cpu or memory"),
            (
                json!({"limits": {"hugepages-2Mi": "3Mi", "memory": "1Mi"}}),
                "r.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
            ),
        ] {
            assert_eq!(errors(r), [want]);
        }
    }
}
