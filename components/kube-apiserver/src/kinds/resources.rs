//! Quotas and limits: which resources may be named in them, and which amounts fit together.

use k8s_schema::{Doc, Quantity, Ref, quantity::Format};

use super::{Action, PLAIN, Strategy, immutable};
use crate::validation::{ErrorList, FieldError, child, index, key, names};

pub const LIMIT_RANGE: Strategy =
    Strategy { create_on_update: true, validate_create: limit_range, validate_update: |_, n, _, e| limit_range(n, e), ..PLAIN };
pub const RESOURCE_QUOTA: Strategy = Strategy {
    status: true,
    returns_deleted: true,
    validate_create: quota,
    validate_update: |action, n, o, e| {
        if action == Action::Status {
            amounts(n.at("status.hard"), "status.hard", e);
            amounts(n.at("status.used"), "status.used", e);
        } else {
            quota(n, e);
            immutable(n, o, "spec.scopes", e);
        }
    },
    ..PLAIN
};

/// Resources without a domain that a quota may count.
const QUOTA: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
/// Those that are numbers of things.
const INTEGER: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const CONTAINER: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// A name, with or without a domain; without one it must be one of `known`.
fn resource_name(name: &str, known: &[&str], what: &str, path: &str, e: &mut ErrorList) {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        e.all_invalid(path, name, wrong);
        return;
    }
    let huge = name.strip_prefix("requests.").or(name.strip_prefix("limits.")).unwrap_or(name).starts_with("hugepages-");
    if !name.contains('/') && !known.contains(&name) && !huge {
        // Every standard resource of one kind is one of all.
        if !QUOTA.contains(&name) {
            e.push(FieldError::invalid(path, name, "must be a standard resource type or fully qualified"));
        }
        e.push(FieldError::invalid(path, name, format!("must be a standard resource for {what}")));
    }
}

fn amounts(list: Ref<'_>, path: &str, e: &mut ErrorList) {
    for (name, amount) in list.entries() {
        let path = key(path, name);
        resource_name(name, QUOTA, "quota", &path, e);
        let Some(q) = amount.quantity() else { continue };
        if q.sign() < 0 {
            e.push(FieldError::invalid(path.as_str(), amount.str(), "must be greater than or equal to 0"));
        }
        if INTEGER.contains(&name) && !q.is_integer() {
            e.push(FieldError::invalid(path, amount.str(), "must be an integer"));
        }
    }
}

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

/// Whether a resource can be counted within a scope.
fn in_scope(scope: &str, resource: &str) -> bool {
    let storage = resource == "persistentvolumeclaims"
        || resource == "requests.storage"
        || resource.contains(".storageclass.storage.k8s.io/")
        || resource == "count/persistentvolumeclaims";
    let pods = resource == "pods" || resource == "count/pods";
    let compute = !storage && !pods && !INTEGER.contains(&resource) && !resource.starts_with("count/");
    match scope {
        "BestEffort" => pods,
        "VolumeAttributesClass" => storage,
        _ => pods || compute,
    }
}

fn conflicting(scopes: &[&str]) -> bool {
    let both = |a, b| scopes.contains(&a) && scopes.contains(&b);
    both("BestEffort", "NotBestEffort") || both("Terminating", "NotTerminating")
}

fn quota(d: &Doc, e: &mut ErrorList) {
    amounts(d.at("spec.hard"), "spec.hard", e);
    let hard: Vec<&str> = d.at("spec.hard").entries().map(|(k, _)| k).collect();
    let scopes: Vec<&str> = d.at("spec.scopes").strings().collect();
    let whole = || d.at("spec.scopes").to_value();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            e.push(FieldError::invalid("spec.scopes", whole(), "unsupported scope"));
        } else if hard.iter().any(|r| !in_scope(scope, r)) {
            e.push(FieldError::invalid("spec.scopes", whole(), "unsupported scope applied to resource"));
        }
    }
    if conflicting(&scopes) {
        e.push(FieldError::invalid("spec.scopes", whole(), "conflicting scopes"));
    }
    let path = "spec.scopeSelector.matchExpressions";
    let mut selected = Vec::new();
    for x in d.at(path).iter() {
        let (scope, operator) = (x.get("scopeName").str(), x.get("operator").str());
        selected.push(scope);
        let values = x.get("values").len();
        if !SCOPES.contains(&scope) {
            e.push(FieldError::invalid(child(path, "scopeName"), scope, "unsupported scope"));
        } else if hard.iter().any(|r| !in_scope(scope, r)) {
            e.push(FieldError::invalid(path, d.at(path).to_value(), "unsupported scope applied to resource"));
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope) && operator != "Exists" {
            let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            e.push(FieldError::invalid(child(path, "operator"), operator, why));
        }
        match operator {
            "In" | "NotIn" if values == 0 => {
                e.push(FieldError::required(
                    child(path, "values"),
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                ));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
                e.push(FieldError::invalid(child(path, "values"), x.get("values").to_value(), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => e.push(FieldError::invalid(child(path, "operator"), other, "not a valid selector operator")),
        }
    }
    if conflicting(&selected) {
        e.push(FieldError::invalid("spec.scopeSelector.matchExpressions.scopeName", d.at(path).to_value(), "conflicting scopes"));
    }
}

fn limit_range(d: &Doc, e: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, l) in d.at("spec.limits").iter().enumerate() {
        let p = index("spec.limits", i);
        let t = l.get("type").str();
        let wrong = names::qualified_name(t);
        if wrong.is_empty() {
            if !t.contains('/') && !matches!(t, "Pod" | "Container" | "PersistentVolumeClaim") {
                e.push(FieldError::invalid(child(&p, "type"), t, "must be a standard limit type or fully qualified"));
            }
        } else {
            e.all_invalid(&child(&p, "type"), t, wrong);
        }
        if seen.contains(&t) {
            e.push(FieldError::duplicate(child(&p, "type"), t));
        }
        seen.push(t);
        limits(l, t, &p, e);
    }
}

/// A named amount of a limit.
fn amount<'a>(l: Ref<'a>, field: &str, name: &str) -> Option<(Quantity, &'a str)> {
    let r = l.get(field).get(name);
    Some((r.quantity()?, r.str()))
}

fn limits(l: Ref<'_>, t: &str, p: &str, e: &mut ErrorList) {
    let standard: &[&str] = if t == "PersistentVolumeClaim" { &["storage"] } else { CONTAINER };
    let what = if t == "Pod" { "limits" } else { "containers" };
    let mut fields = vec!["max", "min"];
    if t == "Pod" {
        for f in ["default", "defaultRequest"].into_iter().filter(|f| !l.get(f).is_empty()) {
            e.push(FieldError::forbidden(child(p, f), "may not be specified when `type` is 'Pod'"));
        }
    } else {
        fields.extend(["default", "defaultRequest"]);
    }
    fields.push("maxLimitRequestRatio");
    let mut all: Vec<&str> = Vec::new();
    for f in fields {
        for (name, _) in l.get(f).entries() {
            if t != "PersistentVolumeClaim" {
                resource_name(name, standard, what, &key(&child(p, f), name), e);
            }
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }
    if t == "PersistentVolumeClaim" && amount(l, "min", "storage").is_none() && amount(l, "max", "storage").is_none() {
        e.push(FieldError::required(child(p, "limits"), "either minimum or maximum storage value is required, but neither was provided"));
    }
    all.sort_unstable();
    for name in all {
        together(l, name, p, e);
    }
}

/// The amounts of one resource must leave something between them.
fn together(l: Ref<'_>, name: &str, p: &str, e: &mut ErrorList) {
    let at = |f: &str| key(&child(p, f), name);
    let of = |f: &str| amount(l, f, name);
    let (max, min, default, request, ratio) = (of("max"), of("min"), of("default"), of("defaultRequest"), of("maxLimitRequestRatio"));
    let mut over = |a: &Option<(Quantity, &str)>, b: &Option<(Quantity, &str)>, what: (&str, &str), field: &str, shown: &str| {
        if let (Some((a, text)), Some((b, other))) = (a, b)
            && a > b
        {
            e.push(FieldError::invalid(at(field), shown, format!("{} {text} is greater than {} {other}", what.0, what.1)));
        }
    };
    let text = |q: &Option<(Quantity, &str)>| q.as_ref().map_or(String::new(), |(_, t)| (*t).to_owned());
    over(&min, &max, ("min value", "max value"), "min", &text(&min));
    over(&min, &request, ("min value", "default request value"), "defaultRequest", &text(&request));
    over(&request, &max, ("default request value", "max value"), "defaultRequest", &text(&request));
    over(&request, &default, ("default request value", "default limit value"), "defaultRequest", &text(&request));
    // Upstream shows the other value here.
    over(&min, &default, ("min value", "default value"), "default", &text(&min));
    over(&default, &max, ("default value", "max value"), "default", &text(&max));
    if let Some((r, shown)) = &ratio {
        if *r < Quantity::new(1, Format::DecimalSi) {
            e.push(FieldError::invalid(at("maxLimitRequestRatio"), *shown, format!("ratio {shown} is less than 1")));
        }
        if let (Some((max, _)), Some((min, _))) = (&max, &min) {
            let (bound, ratio) = (max.as_f64() / min.as_f64(), r.as_f64());
            if ratio > bound {
                e.push(FieldError::invalid(
                    at("maxLimitRequestRatio"),
                    *shown,
                    format!("ratio {shown} is greater than max/min = {bound:.6}"),
                ));
            }
        }
    }
    // What cannot be given twice is requested as it is limited.
    let overcommitted = CONTAINER.contains(&name) || name == "storage" || !name.contains('/') && !name.starts_with("hugepages-");
    if let (false, Some((d, dt)), Some((r, rt))) = (overcommitted, &default, &request)
        && d != r
    {
        let why = format!("default value {dt} must equal to defaultRequest value {rt} in {name}");
        e.push(FieldError::invalid(at("defaultRequest"), *rt, why));
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::{Value, json};

    use super::*;

    fn errors(kind: &str, spec: Value, validate: fn(&Doc, &mut ErrorList)) -> Vec<String> {
        let schema = Schema::builtin();
        let mut e = ErrorList::new();
        let v = json!({"metadata": {"name": "x"}, "spec": spec});
        validate(&Doc::from_value(&schema, schema.kind("", "v1", kind).unwrap(), &v).unwrap().doc, &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_quota_counts_what_there_is_within_scopes_that_fit() {
        let of = |spec: Value| errors("ResourceQuota", spec, quota);
        assert_eq!(of(json!({"hard": {"pods": "1", "count/jobs.batch": "2", "requests.a.b/gpu": "1", "limits.cpu": "100m"}})), [""; 0]);
        assert_eq!(of(json!({"hard": {"cpu": "1"}, "scopes": ["NotBestEffort"]})), [""; 0]);
        assert_eq!(of(json!({"hard": {"foo": "1"}})).len(), 2);
        assert_eq!(of(json!({"hard": {"pods": "1.5"}})), ["spec.hard[pods]: Invalid value: \"1500m\": must be an integer"]);
        assert_eq!(
            of(json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]})),
            ["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"]
        );
    }

    #[test]
    fn limits_leave_something_between_them() {
        let of = |item: Value| errors("LimitRange", json!({"limits": [item]}), limit_range);
        assert_eq!(of(json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}})), [""; 0]);
        assert_eq!(
            of(json!({"type": "Container", "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "3"}, "min": {"cpu": "1"}})),
            ["spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000"]
        );
        assert_eq!(
            of(json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}})),
            ["spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1"]
        );
    }
}
