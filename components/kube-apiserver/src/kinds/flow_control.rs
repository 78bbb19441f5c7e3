//! FlowSchema and PriorityLevelConfiguration. The two of each without which nothing could be mended stay as they are.

use k8s_schema::{Doc, Ref};

use super::{Action, SPEC_AND_STATUS, Strategy};
use crate::{
    flow_control::upkeep::Defaults,
    validation::{ErrorList, FieldError, child, index, names},
};

pub const FLOW_SCHEMA: Strategy =
    Strategy { validate_create: schema, validate_update: |a, new, _, e| update(a, new, e, schema), ..SPEC_AND_STATUS };

pub const PRIORITY_LEVEL: Strategy =
    Strategy { validate_create: level, validate_update: |a, new, _, e| update(a, new, e, level), ..SPEC_AND_STATUS };

fn update(action: Action, new: &Doc, e: &mut ErrorList, validate: fn(&Doc, &mut ErrorList)) {
    if action == Action::Main {
        validate(new, e);
    }
}

/// What cannot be mended if it is wrong must be as every cluster has it.
fn fixed(d: &Doc, all: impl Fn(&Defaults) -> &[Doc], same: impl Fn(&Doc, &Doc) -> bool, e: &mut ErrorList) {
    let name = d.meta().name();
    if !matches!(name, "exempt" | "catch-all") {
        return;
    }
    let defaults = Defaults::new(d.schema());
    if all(&defaults).iter().any(|w| w.meta().name() == name && !same(d, w)) {
        e.push(FieldError::invalid("spec", d.at("spec").to_value(), format!("spec of '{name}' must equal the fixed value")));
    }
}

fn schema(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    fixed(d, |all| &all.schemas, |a, b| a.at("spec").semantic_eq(b.at("spec")), e);
    let at = "spec.matchingPrecedence";
    match spec.get("matchingPrecedence").int() {
        v if v <= 0 => e.push(FieldError::invalid(at, v, "must be a positive value")),
        v if v > 10_000 => e.push(FieldError::invalid(at, v, "must not be greater than 10000")),
        1 if d.meta().name() != "exempt" => {
            e.push(FieldError::invalid(at, 1i64, "only the schema named 'exempt' may have matchingPrecedence 1"));
        }
        _ => {}
    }
    let method = spec.get("distinguisherMethod");
    if method.exists() && !matches!(method.get("type").str(), "ByNamespace" | "ByUser") {
        e.push(FieldError::not_supported("spec.distinguisherMethod.type", method.get("type").str(), &["ByNamespace", "ByUser"]));
    }
    let (at, name) = ("spec.priorityLevelConfiguration.name", spec.get("priorityLevelConfiguration").get("name").str());
    if name.is_empty() {
        e.push(FieldError::required(at, "must reference a priority level"));
    } else {
        e.all_invalid(at, name, names::dns1123_subdomain(name));
    }
    for (i, r) in spec.get("rules").iter().enumerate() {
        rule(r, &index("spec.rules", i), e);
    }
}

fn rule(r: Ref<'_>, p: &str, e: &mut ErrorList) {
    if r.get("subjects").is_empty() {
        e.push(FieldError::required(child(p, "subjects"), "subjects must contain at least one value"));
    }
    for (i, s) in r.get("subjects").iter().enumerate() {
        subject(s, &index(&child(p, "subjects"), i), e);
    }
    if r.get("resourceRules").is_empty() && r.get("nonResourceRules").is_empty() {
        e.push(FieldError::required(p, "at least one of resourceRules and nonResourceRules has to be non-empty"));
    }
    for (i, r) in r.get("resourceRules").iter().enumerate() {
        let p = index(&child(p, "resourceRules"), i);
        verbs(r, &p, e);
        some(r, &p, "apiGroups", "resource rules must supply at least one api group", "api groups", e);
        some(r, &p, "resources", "resource rules must supply at least one resource", "resources", e);
        if r.get("namespaces").is_empty() {
            if !r.get("clusterScope").bool() {
                let why = "resource rules that are not cluster scoped must supply at least one namespace";
                e.push(FieldError::required(child(&p, "namespaces"), why));
            }
        } else {
            some(r, &p, "namespaces", "", "namespaces", e);
            for (j, ns) in r.get("namespaces").strings().enumerate().filter(|(_, ns)| *ns != "*") {
                e.all_invalid(&index(&child(&p, "namespaces"), j), ns, names::dns1123_label(ns));
            }
        }
    }
    for (i, r) in r.get("nonResourceRules").iter().enumerate() {
        let p = index(&child(p, "nonResourceRules"), i);
        verbs(r, &p, e);
        some(r, &p, "nonResourceURLs", "nonResourceURLs must contain at least one value", "non-resource URLs", e);
        for (j, url) in r.get("nonResourceURLs").strings().enumerate().filter(|(_, u)| *u != "*") {
            let at = index(&child(&p, "nonResourceURLs"), j);
            if !url.starts_with('/') {
                e.push(FieldError::invalid(at, url, "must start with slash"));
            } else if url.trim_end_matches('*').contains('*') || (url.ends_with('*') && !url.ends_with("/*")) {
                e.push(FieldError::invalid(at, url, "wildcard can only do suffix matching"));
            }
        }
    }
}

fn subject(s: Ref<'_>, p: &str, e: &mut ErrorList) {
    let part = |field: &str, e: &mut ErrorList| {
        if !s.get(field).exists() {
            let kind = s.get("kind").str();
            e.push(FieldError::required(child(p, field), format!("{field} is required when subject kind is '{kind}'")));
        } else if s.get(field).get("name").str().is_empty() {
            e.push(FieldError::required(child(&child(p, field), "name"), ""));
        }
    };
    match s.get("kind").str() {
        "User" => part("user", e),
        "Group" => part("group", e),
        "ServiceAccount" => {
            part("serviceAccount", e);
            if s.get("serviceAccount").exists() && s.get("serviceAccount").get("namespace").str().is_empty() {
                e.push(FieldError::required(child(&child(p, "serviceAccount"), "namespace"), "must specify namespace for service account"));
            }
        }
        other => e.push(FieldError::not_supported(child(p, "kind"), other, &["Group", "ServiceAccount", "User"])),
    }
}

/// A list that must not be empty, and in which `*` stands alone.
fn some(r: Ref<'_>, p: &str, field: &str, empty: &str, what: &str, e: &mut ErrorList) {
    let list = r.get(field);
    if list.is_empty() {
        e.push(FieldError::required(child(p, field), empty));
    } else if list.len() > 1 && list.contains_str("*") {
        e.push(FieldError::invalid(child(p, field), list.to_value(), format!("if '*' is present, must not specify other {what}")));
    }
}

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn verbs(r: Ref<'_>, p: &str, e: &mut ErrorList) {
    some(r, p, "verbs", "verbs must contain at least one value", "verbs", e);
    let others = r.get("verbs").strings().enumerate().filter(|(_, v)| *v != "*" && !VERBS.contains(v));
    for (i, v) in others {
        e.push(FieldError::not_supported(index(&child(p, "verbs"), i), v, VERBS));
    }
}

fn level(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    // The shares of the exempt level may be set.
    let same = |a: &Doc, b: &Doc| {
        let exempt = a.meta().name() == "exempt" && a.at("spec.type").str() == "Exempt" && !a.at("spec.limited").exists();
        exempt || a.at("spec").semantic_eq(b.at("spec"))
    };
    fixed(d, |all| &all.levels, same, e);
    match spec.get("type").str() {
        "Exempt" => {
            if spec.get("limited").exists() {
                e.push(FieldError::forbidden("spec.limited", "must be nil if the type is not Limited"));
            }
            shares(spec.get("exempt"), "spec.exempt", e);
        }
        "Limited" => {
            if spec.get("exempt").exists() {
                e.push(FieldError::forbidden("spec.exempt", "must be nil if the type is Limited"));
            }
            if spec.get("limited").exists() {
                limited(spec.get("limited"), e);
            } else {
                e.push(FieldError::required("spec.limited", "must not be empty when type is Limited"));
            }
        }
        other => e.push(FieldError::not_supported("spec.type", other, &["Exempt", "Limited"])),
    }
}

fn shares(l: Ref<'_>, p: &str, e: &mut ErrorList) {
    if let Some(v) = l.get("nominalConcurrencyShares").as_i64().filter(|v| *v < 0) {
        e.push(FieldError::invalid(child(p, "nominalConcurrencyShares"), v, "must be a non-negative integer"));
    }
    if let Some(v) = l.get("lendablePercent").as_i64().filter(|v| !(0..=100).contains(v)) {
        e.push(FieldError::invalid(child(p, "lendablePercent"), v, "must be between 0 and 100, inclusive"));
    }
}

fn limited(l: Ref<'_>, e: &mut ErrorList) {
    shares(l, "spec.limited", e);
    if let Some(v) = l.get("borrowingLimitPercent").as_i64().filter(|v| *v < 0) {
        e.push(FieldError::invalid("spec.limited.borrowingLimitPercent", v, "if specified, must be a non-negative integer"));
    }
    let response = l.get("limitResponse");
    let (p, queuing) = ("spec.limited.limitResponse", response.get("queuing"));
    match response.get("type").str() {
        "Reject" if queuing.exists() => {
            e.push(FieldError::forbidden(child(p, "queuing"), "must be nil if limited.limitResponse.type is not Limited"));
        }
        "Reject" => {}
        "Queue" if !queuing.exists() => {
            e.push(FieldError::required(child(p, "queuing"), "must not be empty if limited.limitResponse.type is Limited"));
        }
        "Queue" => queues(queuing, &child(p, "queuing"), e),
        other => e.push(FieldError::not_supported(child(p, "type"), other, &["Queue", "Reject"])),
    }
}

fn queues(q: Ref<'_>, p: &str, e: &mut ErrorList) {
    let of = |f: &str| q.get(f).int();
    let positive = |f: &str, e: &mut ErrorList| {
        if of(f) <= 0 {
            e.push(FieldError::invalid(child(p, f), of(f), "must be positive"));
        }
    };
    positive("queueLengthLimit", e);
    positive("queues", e);
    let (queues, hand) = (of("queues"), of("handSize"));
    if queues > 10_000_000 {
        e.push(FieldError::invalid(child(p, "queues"), queues, "must not be greater than 10000000"));
    }
    positive("handSize", e);
    if hand > queues {
        e.push(FieldError::invalid(child(p, "handSize"), hand, format!("should not be greater than queues ({queues})")));
    } else if hand > 0 && (0..hand.min(64)).map(|i| ((queues - i) as f64).log2()).sum::<f64>().ceil() > 60.0 {
        let why = format!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than 60");
        e.push(FieldError::invalid(child(p, "handSize"), hand, why));
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::{Value, json};

    use super::*;

    fn errors(kind: &str, name: &str, spec: Value) -> Vec<String> {
        let s = Schema::builtin();
        let ty = s.kind("flowcontrol.apiserver.k8s.io", "v1", kind).unwrap();
        let d = Doc::from_value(&s, ty, &json!({"metadata": {"name": name}, "spec": spec})).unwrap().doc;
        let mut e = ErrorList::new();
        if kind == "FlowSchema" {
            schema(&d, &mut e)
        } else {
            level(&d, &mut e)
        }
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_every_cluster_has_is_valid() {
        let s = Schema::builtin();
        let d = Defaults::new(&s);
        let mut e = ErrorList::new();
        d.schemas.iter().for_each(|x| schema(x, &mut e));
        d.levels.iter().for_each(|x| level(x, &mut e));
        assert!(e.is_empty(), "{:?}", e.iter().map(ToString::to_string).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let flow = |rule: Value| json!({"matchingPrecedence": 5, "priorityLevelConfiguration": {"name": "l"}, "rules": [rule]});
        let user = json!([{"kind": "User", "user": {"name": "u"}}]);
        let queue = |q: Value| json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": q}}});
        for (kind, name, spec, named) in [
            ("FlowSchema", "x", json!({"matchingPrecedence": 0, "priorityLevelConfiguration": {"name": "l"}}), "must be a positive value"),
            (
                "FlowSchema",
                "x",
                json!({"matchingPrecedence": 10_001, "priorityLevelConfiguration": {"name": "l"}}),
                "must not be greater than 10000",
            ),
            (
                "FlowSchema",
                "x",
                json!({"matchingPrecedence": 1, "priorityLevelConfiguration": {"name": "l"}}),
                "only the schema named 'exempt'",
            ),
            ("FlowSchema", "x", json!({"matchingPrecedence": 2}), "must reference a priority level"),
            (
                "FlowSchema",
                "exempt",
                json!({"matchingPrecedence": 2, "priorityLevelConfiguration": {"name": "l"}}),
                "spec of 'exempt' must equal the fixed value",
            ),
            ("FlowSchema", "x", flow(json!({})), "spec.rules[0].subjects: Required value"),
            ("FlowSchema", "x", flow(json!({"subjects": user})), "at least one of resourceRules and nonResourceRules"),
            (
                "FlowSchema",
                "x",
                flow(json!({"subjects": [{"kind": "User"}], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})),
                "user is required when subject kind is 'User'",
            ),
            (
                "FlowSchema",
                "x",
                flow(json!({"subjects": user, "nonResourceRules": [{"verbs": ["*", "get"], "nonResourceURLs": ["*"]}]})),
                "must not specify other verbs",
            ),
            (
                "FlowSchema",
                "x",
                flow(json!({"subjects": user, "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["x"]}]})),
                "must start with slash",
            ),
            (
                "FlowSchema",
                "x",
                flow(json!({"subjects": user, "resourceRules": [{"verbs": ["peek"], "apiGroups": ["*"], "resources": ["*"]}]})),
                "must supply at least one namespace",
            ),
            ("PriorityLevelConfiguration", "x", json!({"type": "Exempt", "limited": {}}), "spec.limited: Forbidden"),
            ("PriorityLevelConfiguration", "x", json!({"type": "Limited"}), "spec.limited: Required value"),
            (
                "PriorityLevelConfiguration",
                "x",
                json!({"type": "Limited", "limited": {"nominalConcurrencyShares": -1, "limitResponse": {"type": "Reject"}}}),
                "non-negative",
            ),
            (
                "PriorityLevelConfiguration",
                "x",
                queue(json!({"queues": 4, "handSize": 5, "queueLengthLimit": 1})),
                "should not be greater than queues (4)",
            ),
            ("PriorityLevelConfiguration", "x", queue(json!({"queues": 1000, "handSize": 8, "queueLengthLimit": 1})), "entropy bits"),
            (
                "PriorityLevelConfiguration",
                "x",
                queue(json!({"queues": 64, "handSize": 8, "queueLengthLimit": 0})),
                "queueLengthLimit: Invalid value",
            ),
            (
                "PriorityLevelConfiguration",
                "catch-all",
                json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}),
                "'catch-all' must equal",
            ),
        ] {
            let all = errors(kind, name, spec.clone());
            assert!(all.iter().any(|m| m.contains(named)), "{spec}: {all:?}");
        }
        assert!(errors("PriorityLevelConfiguration", "x", queue(json!({"queues": 64, "handSize": 8, "queueLengthLimit": 50}))).is_empty());
    }
}
