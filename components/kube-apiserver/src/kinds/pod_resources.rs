//! What containers ask for and may use at most.

use std::collections::BTreeMap;

use k8s_schema::{Quantity, Ref};

use crate::validation::{ErrorList, FieldError, child, index, key, names};

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

pub fn resource_name(name: &str, path: &str, e: &mut ErrorList) {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        e.all_invalid(path, name, wrong);
        if name.contains('/') {
            e.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
        }
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

/// What a pod as a whole may ask for.
pub fn of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge(name)
}

/// What the containers of a pod ask for together: those that run side by side, or an init container beside what started before it.
pub fn aggregated(spec: Ref<'_>) -> BTreeMap<String, Quantity> {
    fn add(sum: &mut BTreeMap<String, Quantity>, of: Ref<'_>) {
        for (name, q) in of.entries().filter_map(|(k, v)| Some((k, v.quantity()?))) {
            match sum.get_mut(name) {
                Some(s) => s.add(&q),
                None => drop(sum.insert(name.to_owned(), q)),
            }
        }
    }
    fn raise(most: &mut BTreeMap<String, Quantity>, to: BTreeMap<String, Quantity>) {
        for (name, q) in to {
            if most.get(&name).is_none_or(|m| *m < q) {
                most.insert(name, q);
            }
        }
    }
    let (mut sidecars, mut most) = (BTreeMap::new(), BTreeMap::new());
    for c in spec.get("initContainers").iter() {
        let requests = c.at("resources.requests");
        if c.get("restartPolicy").str() == "Always" {
            add(&mut sidecars, requests);
            continue;
        }
        let mut now = sidecars.clone();
        add(&mut now, requests);
        raise(&mut most, now);
    }
    for c in spec.get("containers").iter() {
        add(&mut sidecars, c.at("resources.requests"));
    }
    raise(&mut most, sidecars);
    most
}

/// The resources of a pod as a whole, which bound those of its containers.
pub fn validate_pod(spec: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (own, path) = (spec.get("resources"), child(path, "resources"));
    if !own.exists() {
        return;
    }
    let claims = own.get("claims");
    if !claims.is_empty() {
        e.push(FieldError::forbidden(child(&path, "claims"), "claims may not be set for Resources at pod-level"));
        let known: Vec<&str> = spec.get("resourceClaims").iter().map(|c| c.get("name").str()).collect();
        for (i, name) in claims.iter().map(|c| c.get("name").str()).enumerate().filter(|(_, n)| !known.contains(n)) {
            let list = if known.is_empty() { " which is empty".to_owned() } else { format!(": {}", known.join(", ")) };
            let why = format!("must be one of the names in pod.spec.resourceClaims{list}");
            e.push(FieldError::not_found_of(index(&child(&path, "claims"), i), name, why));
        }
    }
    let before = e.len();
    for list in ["limits", "requests"] {
        for (name, _) in sorted(own.get(list)).into_iter().filter(|(n, _)| !of_pods(n)) {
            e.push(FieldError::not_supported(key(&child(&path, list), name), name, &["cpu", "hugepages-", "memory"]));
        }
    }
    if e.len() == before {
        validate(own, &path, e);
    }
    let sum = aggregated(spec);
    for (name, q) in sorted(own.get("requests")).into_iter().filter(|(n, _)| of_pods(n)) {
        if let (Some(all), Some(mine)) = (sum.get(name), q.quantity())
            && mine < *all
        {
            let why = format!("must be greater than or equal to aggregate container requests of {all}");
            e.push(FieldError::invalid(key(&child(&path, "requests"), name), q.str(), why));
        }
    }
    for list in ["containers", "initContainers"] {
        for (i, c) in spec.get(list).iter().enumerate() {
            for (name, limit) in sorted(c.at("resources.limits")) {
                let most = own.get("limits").get(name);
                if let (Some(a), Some(b)) = (limit.quantity(), most.quantity())
                    && a > b
                {
                    let at = format!("{path}.{list}[{i}][{name}].limits");
                    e.push(FieldError::invalid(at, limit.str(), format!("must be less than or equal to pod limits of {}", most.str())));
                }
            }
        }
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
