//! Autoscalers.

use k8s_schema::{Doc, Ref};

use super::{Action, SPEC_AND_STATUS, Strategy, pod_resources};
use crate::validation::{ErrorList, FieldError, child, index, names, values};

pub const HORIZONTAL_POD_AUTOSCALER: Strategy = Strategy {
    generation: false,
    validate_create: |d, e| autoscaler(d, None, e),
    validate_update: |a, n, o, e| {
        if a == Action::Main {
            autoscaler(n, Some(o), e);
        } else {
            for field in ["currentReplicas", "desiredReplicas"] {
                values::non_negative(n.at("status").get(field).int(), &child("status", field), e);
            }
        }
    },
    ..SPEC_AND_STATUS
};

/// What is scaled, and between which bounds.
fn autoscaler(d: &Doc, old: Option<&Doc>, e: &mut ErrorList) {
    let (min, max) = (d.at("spec.minReplicas"), d.at("spec.maxReplicas").int());
    if let Some(min) = min.as_i64().filter(|m| *m < 1) {
        e.push(FieldError::invalid("spec.minReplicas", min, "must be greater than or equal to 1"));
    }
    if max < 1 {
        e.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than 0"));
    }
    if min.as_i64().is_some_and(|min| max < min) {
        e.push(FieldError::invalid("spec.maxReplicas", max, "must be greater than or equal to `minReplicas`"));
    }
    let target = d.at("spec.scaleTargetRef");
    reference(target, "spec.scaleTargetRef", e);
    let version = target.get("apiVersion").str();
    let path = "spec.scaleTargetRef.apiVersion";
    let groupless = |d: &Doc| !d.at(path).str().contains('/');
    if version.split('/').count() > 2 {
        e.push(FieldError::invalid(path, version, format!("unexpected GroupVersion string: {version}")));
    } else if groupless(d) && target.get("kind").str() != "ReplicationController" && !old.is_some_and(groupless) {
        e.push(FieldError::invalid(path, version, "apiVersion must specify API group"));
    }
    // The first version of the API has one metric, which is judged as what it stands for.
    if let Some(percent) = d.at("spec.targetCPUUtilizationPercentage").as_i64().filter(|p| *p < 1) {
        e.push(FieldError::invalid("spec.metrics[0].resource.target.averageUtilization", percent, "must be greater than 0"));
    }
    for (i, m) in d.at("spec.metrics").iter().enumerate() {
        metric(m, &index("spec.metrics", i), e);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = d.at("spec.behavior").get(direction);
        if rules.exists() {
            scaling(rules, &child("spec.behavior", direction), e);
        }
    }
}

fn reference(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    for field in ["kind", "name"] {
        let at = child(path, field);
        match r.get(field).str() {
            "" => e.push(FieldError::required(at, "")),
            v => e.all_invalid(&at, v, names::path_segment(v, false)),
        }
    }
}

/// The types of metrics and the fields that say more of them, in the order in which upstream looks for the fields.
const METRICS: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

fn metric(m: Ref<'_>, path: &str, e: &mut ErrorList) {
    const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    let kind = m.get("type").str();
    if kind.is_empty() {
        e.push(FieldError::required(child(path, "type"), "must specify a metric source type"));
    }
    if !TYPES.contains(&kind) {
        e.push(FieldError::not_supported(child(path, "type"), kind, &TYPES));
    }
    let given: Vec<&str> = METRICS.iter().map(|(_, field)| *field).filter(|f| m.get(f).exists()).collect();
    if let Some(first) = given.first() {
        source(m.get(first), first, &child(path, first), e);
    }
    let expected = METRICS.iter().find(|(k, _)| *k == kind).map(|(_, field)| *field);
    match expected {
        Some(field) if !given.contains(&field) => {
            e.push(FieldError::required(child(path, field), "must populate information for the given metric source"));
        }
        Some(_) => {}
        None => e.push(FieldError::not_supported(child(path, "type"), kind, &TYPES)),
    }
    if given.len() != 1 {
        let mut others: Vec<&str> = given.into_iter().filter(|f| Some(*f) != expected).collect();
        others.sort_unstable();
        for field in others {
            e.push(FieldError::forbidden(child(path, field), "must populate the given metric source only"));
        }
    }
}

fn source(s: Ref<'_>, kind: &str, path: &str, e: &mut ErrorList) {
    if kind == "object" {
        reference(s.get("describedObject"), &child(path, "describedObject"), e);
    }
    let (name, resource) = (child(path, "metric.name"), s.get("name").str());
    if matches!(kind, "object" | "external" | "pods") {
        match s.at("metric.name").str() {
            "" => e.push(FieldError::required(name, "must specify a metric name")),
            v => e.all_invalid(&name, v, names::path_segment(v, false)),
        }
    } else if resource.is_empty() {
        e.push(FieldError::required(child(path, "name"), "must specify a resource name"));
    } else if kind == "containerResource" {
        pod_resources::resource_name(resource, &child(path, "name"), e);
    }
    if kind == "containerResource" {
        let at = child(path, "container");
        match s.get("container").str() {
            "" => e.push(FieldError::required(at, "must specify a container")),
            v => e.all_invalid(&at, v, names::dns1123_label(v)),
        }
    }
    let (target, at) = (s.get("target"), child(path, "target"));
    wanted(target, &at, e);
    let [value, average, utilization] = ["value", "averageValue", "averageUtilization"].map(|f| target.get(f).exists());
    let missing = |field: &str, why: &str| FieldError::required(child(&at, field), why);
    match kind {
        "object" if !value && !average => e.push(missing("averageValue", "must set either a target value or averageValue")),
        "external" if !value && !average => {
            e.push(missing("averageValue", "must set either a target value for metric or a per-pod target"));
        }
        "external" if value && average => {
            e.push(FieldError::forbidden(child(&at, "value"), "may not set both a target value for metric and a per-pod target"));
        }
        "pods" if !average => e.push(missing("averageValue", "must specify a positive target averageValue")),
        "resource" | "containerResource" if !utilization && !average => {
            e.push(missing("averageUtilization", "must set either a target raw value or a target utilization"));
        }
        "resource" | "containerResource" if utilization && average => {
            let why = "may not set both a target raw value and a target utilization";
            e.push(FieldError::forbidden(child(&at, "averageValue"), why));
        }
        _ => {}
    }
}

fn wanted(t: Ref<'_>, path: &str, e: &mut ErrorList) {
    let kind = t.get("type").str();
    if kind.is_empty() {
        e.push(FieldError::required(child(path, "type"), "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        e.push(FieldError::invalid(child(path, "type"), kind, "must be either Utilization, Value, or AverageValue"));
    }
    for field in ["value", "averageValue"] {
        if let Some(q) = t.get(field).quantity().filter(|q| q.sign() <= 0) {
            e.push(FieldError::invalid(child(path, field), q.to_string(), "must be positive"));
        }
    }
    if let Some(percent) = t.get("averageUtilization").as_i64().filter(|p| *p < 1) {
        e.push(FieldError::invalid(child(path, "averageUtilization"), percent, "must be greater than 0"));
    }
}

/// How fast there may become more, or fewer.
fn scaling(r: Ref<'_>, path: &str, e: &mut ErrorList) {
    /// Seconds.
    const LONGEST_WINDOW: i64 = 3600;
    const LONGEST_PERIOD: i64 = 1800;
    let (window, at) = (r.get("stabilizationWindowSeconds").as_i64(), child(path, "stabilizationWindowSeconds"));
    match window {
        Some(n) if n < 0 => e.push(FieldError::invalid(at, n, "must be greater than or equal to zero")),
        Some(n) if n > LONGEST_WINDOW => e.push(FieldError::invalid(at, n, format!("must be less than or equal to {LONGEST_WINDOW}"))),
        _ => {}
    }
    const SELECT: [&str; 3] = ["Disabled", "Max", "Min"];
    if let Some(policy) = r.get("selectPolicy").as_str().filter(|p| !SELECT.contains(p)) {
        e.push(FieldError::not_supported(child(path, "selectPolicy"), policy, &SELECT));
    }
    let (policies, at) = (r.get("policies"), child(path, "policies"));
    if policies.is_empty() {
        e.push(FieldError::required(at.clone(), "must specify at least one Policy"));
    }
    for (i, p) in policies.iter().enumerate() {
        let at = index(&at, i);
        let (kind, value, period) = (p.get("type").str(), p.get("value").int(), p.get("periodSeconds").int());
        if !matches!(kind, "Pods" | "Percent") {
            e.push(FieldError::not_supported(child(&at, "type"), kind, &["Percent", "Pods"]));
        }
        for (field, n) in [("value", value), ("periodSeconds", period)] {
            if n <= 0 {
                e.push(FieldError::invalid(child(&at, field), n, "must be greater than zero"));
            }
        }
        if period > LONGEST_PERIOD {
            let why = format!("must be less than or equal to {LONGEST_PERIOD}");
            e.push(FieldError::invalid(child(&at, "periodSeconds"), period, why));
        }
    }
    if let Some(q) = r.get("tolerance").quantity().filter(|q| q.sign() < 0) {
        e.push(FieldError::invalid(child(path, "tolerance"), q.to_string(), "must be greater or equal to zero"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn errors(change: Value) -> Vec<String> {
        let schema = k8s_schema::Schema::builtin();
        let mut d = Doc::of_kind(&schema, "autoscaling", "v2", "HorizontalPodAutoscaler").unwrap();
        let mut spec = json!({"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        d.set("spec", spec).unwrap();
        let mut e = ErrorList::new();
        autoscaler(&d, None, &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn metrics_say_what_is_measured_and_what_it_should_be() {
        let cpu = |target: Value| json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]});
        for (change, want) in [
            (cpu(json!({"type": "Utilization", "averageUtilization": 50})), vec![]),
            (
                cpu(json!({"type": "Utilization", "averageUtilization": 0})),
                vec!["spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0"],
            ),
            (
                cpu(json!({"type": "Utilization"})),
                vec![
                    "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
                ],
            ),
            (
                json!({"metrics": [{"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "-1"}}}]}),
                vec!["spec.metrics[0].pods.target.averageValue: Invalid value: \"-1\": must be positive"],
            ),
            (
                json!({"metrics": [{"type": "External", "object": {"describedObject": {"kind": "K", "name": "n"}, "metric": {"name": "m"},
                    "target": {"type": "Value", "value": "1"}}}]}),
                vec!["spec.metrics[0].external: Required value: must populate information for the given metric source"],
            ),
            (
                json!({"metrics": [{"type": "Other"}]}),
                vec![
                    "spec.metrics[0].type: Unsupported value: \"Other\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"";
                    2
                ],
            ),
        ] {
            assert_eq!(errors(change.clone()), want, "{change}");
        }
    }

    #[test]
    fn replicas_change_within_bounds() {
        let rules = |rules: Value| json!({"behavior": {"scaleDown": rules}});
        let policy = json!({"type": "Percent", "value": 10, "periodSeconds": 60});
        for (change, want) in [
            (rules(json!({"policies": [policy], "stabilizationWindowSeconds": 300, "selectPolicy": "Min"})), vec![]),
            (rules(json!({})), vec!["spec.behavior.scaleDown.policies: Required value: must specify at least one Policy"]),
            (
                rules(json!({"policies": [{"type": "Percent", "value": 10, "periodSeconds": 1801}], "stabilizationWindowSeconds": 3601})),
                vec![
                    "spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
                    "spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
                ],
            ),
            (json!({"minReplicas": 5}), vec!["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"]),
        ] {
            assert_eq!(errors(change.clone()), want, "{change}");
        }
    }
}
