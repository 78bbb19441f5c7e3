//! Configurations of admission webhooks: what may be asked, of whom, and how.

use std::collections::HashSet;

use cel::{Env, Type};
use k8s_schema::{Doc, Ref};

use super::{GENERATION, Strategy, admission_policies::expression};
use crate::{
    admission::policy::environment,
    custom::crd::{check_url, check_url_path},
    validation::{ErrorList, FieldError, child, index, names, values},
};

pub const MUTATING: Strategy = Strategy {
    unconditional_update: false,
    validate_create: |d, e| configuration(d, true, e),
    validate_update: |_, d, _, e| configuration(d, true, e),
    ..GENERATION
};
pub const VALIDATING: Strategy = Strategy {
    unconditional_update: false,
    validate_create: |d, e| configuration(d, false, e),
    validate_update: |_, d, _, e| configuration(d, false, e),
    ..GENERATION
};

/// Match conditions of one webhook at most.
const MAX_CONDITIONS: usize = 64;

fn configuration(d: &Doc, mutating: bool, e: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (i, w) in d.at("webhooks").iter().enumerate() {
        let path = index("webhooks", i);
        webhook(w, &path, mutating, e);
        review_versions(w.get("admissionReviewVersions"), &child(&path, "admissionReviewVersions"), e);
        let name = w.get("name").str();
        if !name.is_empty() && !seen.insert(name) {
            e.push(FieldError::duplicate(child(&path, "name"), name));
        }
    }
}

fn one_of(r: Ref<'_>, path: &str, known: &[&str], e: &mut ErrorList) {
    if let Some(v) = r.as_str().filter(|v| !known.contains(v)) {
        e.push(FieldError::not_supported(path, v, known));
    }
}

fn webhook(w: Ref<'_>, path: &str, mutating: bool, e: &mut ErrorList) {
    qualified(w.get("name").str(), &child(path, "name"), e);
    for (i, r) in w.get("rules").iter().enumerate() {
        rule(r, &index(&child(path, "rules"), i), true, e);
    }
    one_of(w.get("failurePolicy"), &child(path, "failurePolicy"), &["Fail", "Ignore"], e);
    one_of(w.get("matchPolicy"), &child(path, "matchPolicy"), &["Equivalent", "Exact"], e);
    let effects = child(path, "sideEffects");
    if w.get("sideEffects").as_str().is_none() {
        e.push(FieldError::required(effects, "must specify one of None, NoneOnDryRun"));
    } else {
        one_of(w.get("sideEffects"), &effects, &["None", "NoneOnDryRun"], e);
    }
    if mutating {
        one_of(w.get("reinvocationPolicy"), &child(path, "reinvocationPolicy"), &["IfNeeded", "Never"], e);
    }
    if let Some(t) = w.get("timeoutSeconds").as_i64().filter(|t| !(1..=30).contains(t)) {
        e.push(FieldError::invalid(child(path, "timeoutSeconds"), t, "the timeout value must be between 1 and 30 seconds"));
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        values::label_selector(w.get(selector), &child(path, selector), e);
    }
    client(w.get("clientConfig"), &child(path, "clientConfig"), e);
    conditions(w.get("matchConditions"), &child(path, "matchConditions"), &environment(false, false), e);
}

/// A name with a domain.
fn qualified(name: &str, path: &str, e: &mut ErrorList) {
    if name.is_empty() {
        e.push(FieldError::required(path, ""));
        return;
    }
    let wrong = names::dns1123_subdomain(name);
    if wrong.is_empty() && name.split('.').count() < 3 {
        e.push(FieldError::invalid(path, name, "should be a domain with at least three segments separated by dots"));
    }
    e.all_invalid(path, name, wrong);
}

/// Which requests something is about. Also what admission policies are constrained by.
pub fn rule(r: Ref<'_>, path: &str, subresources: bool, e: &mut ErrorList) {
    const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    let star = |list: Ref<'_>| list.len() > 1 && list.contains_str("*");
    let at = |f: &str| child(path, f);
    let operations = r.get("operations");
    if operations.is_empty() {
        e.push(FieldError::required(at("operations"), ""));
    }
    if star(operations) {
        e.push(FieldError::invalid(at("operations"), operations.to_value(), "if '*' is present, must not specify other operations"));
    }
    for (i, o) in operations.strings().enumerate().filter(|(_, o)| !OPERATIONS.contains(o)) {
        e.push(FieldError::not_supported(index(&at("operations"), i), o, OPERATIONS));
    }
    for (field, what, empty) in [("apiGroups", "API groups", true), ("apiVersions", "API versions", false)] {
        let list = r.get(field);
        if list.is_empty() {
            e.push(FieldError::required(at(field), ""));
        }
        if star(list) {
            let why = format!("if '*' is present, must not specify other {what}");
            e.push(FieldError::invalid(at(field), list.to_value(), why));
        }
        for (i, _) in list.strings().enumerate().filter(|(_, v)| v.is_empty() && !empty) {
            e.push(FieldError::required(index(&at(field), i), ""));
        }
    }
    resources(r.get("resources"), &at("resources"), subresources, e);
    one_of(r.get("scope"), &at("scope"), &["*", "Cluster", "Namespaced"], e);
}

fn resources(list: Ref<'_>, path: &str, subresources: bool, e: &mut ErrorList) {
    if list.is_empty() {
        e.push(FieldError::required(path, ""));
    }
    // Resources named with all subresources, and subresources named of all resources.
    let (mut whole, mut everywhere) = (HashSet::new(), HashSet::new());
    let mut plain = false;
    for (i, r) in list.strings().enumerate() {
        if r.is_empty() {
            e.push(FieldError::required(index(path, i), ""));
            continue;
        }
        let Some((resource, sub)) = r.split_once('/') else {
            plain |= r != "*";
            continue;
        };
        if !subresources {
            e.push(FieldError::invalid(index(path, i), r, "must not specify subresources"));
        }
        if whole.contains(resource) {
            e.push(FieldError::invalid(index(path, i), r, format!("if '{resource}/*' is present, must not specify {r}")));
        }
        if everywhere.contains(sub) {
            e.push(FieldError::invalid(index(path, i), r, format!("if '*/{sub}' is present, must not specify {r}")));
        }
        if sub == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            everywhere.insert(sub);
        }
    }
    if list.len() > 1 && list.contains_str("*/*") {
        e.push(FieldError::invalid(path, list.to_value(), "if '*/*' is present, must not specify other resources"));
    }
    if list.contains_str("*") && plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        e.push(FieldError::invalid(path, list.to_value(), why));
    }
}

fn client(c: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (url, service) = (c.get("url"), c.get("service"));
    if url.exists() == service.exists() {
        e.push(FieldError::required(path, "exactly one of url or service is required"));
        return;
    }
    if let Some(u) = url.as_str() {
        check_url(u, &child(path, "url"), e);
        return;
    }
    let path = child(path, "service");
    // Upstream names the other field of the two.
    for (field, named) in [("name", "namespace"), ("namespace", "name")] {
        if service.get(field).str().is_empty() {
            e.push(FieldError::required(child(&path, named), ""));
        }
    }
    if let Some(p) = service.get("path").as_str().filter(|p| !p.is_empty()) {
        if !p.starts_with('/') {
            e.push(FieldError::invalid(child(&path, "path"), p, "must start with a '/'"));
        }
        check_url_path(&format!("/{}", p.trim_start_matches('/')), p, &child(&path, "path"), e);
    }
    let port = service.get("port").as_i64().unwrap_or(443);
    if let Some(why) = values::port(port) {
        e.push(FieldError::invalid(child(&path, "port"), port, format!("port is not valid: {why}")));
    }
}

fn review_versions(list: Ref<'_>, path: &str, e: &mut ErrorList) {
    if list.is_empty() {
        e.push(FieldError::required(path, "must specify one of v1, v1beta1"));
        return;
    }
    let (mut seen, mut known) = (HashSet::new(), false);
    for (i, v) in list.strings().enumerate() {
        if !seen.insert(v) {
            e.push(FieldError::invalid(index(path, i), v, "duplicate version"));
            continue;
        }
        e.all_invalid(&index(path, i), v, names::dns1035_label(v));
        known |= v == "v1" || v == "v1beta1";
    }
    if !known {
        e.push(FieldError::invalid(path, list.to_value(), "must include at least one of v1, v1beta1"));
    }
}

/// Conditions in CEL. Also those of admission policies.
pub fn conditions(list: Ref<'_>, path: &str, env: &Env, e: &mut ErrorList) {
    if list.len() > MAX_CONDITIONS {
        e.push(FieldError::too_many(path, list.len(), MAX_CONDITIONS));
    }
    let mut seen = HashSet::new();
    for (i, c) in list.iter().enumerate() {
        let path = index(path, i);
        let name = c.get("name").str();
        let source = c.get("expression").str();
        if source.trim().is_empty() {
            e.push(FieldError::required(child(&path, "expression"), ""));
        } else {
            expression(source, &child(&path, "expression"), env, &[Type::Bool], e);
        }
        if name.is_empty() {
            e.push(FieldError::required(child(&path, "name"), ""));
            continue;
        }
        e.all_invalid(&child(&path, "name"), name, names::qualified_name(name));
        if !seen.insert(name) {
            e.push(FieldError::duplicate(child(&path, "name"), name));
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;
    use serde_json::{Value, json};

    use super::*;

    fn errors(change: Value) -> Vec<String> {
        let mut w = json!({"name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"url": "https://x.example.com/"}});
        change.as_object().unwrap().iter().for_each(|(k, v)| w[k] = v.clone());
        let schema = Schema::builtin();
        let ty = schema.kind("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration").unwrap();
        let v = json!({"metadata": {"name": "x"}, "webhooks": [w]});
        let mut e = ErrorList::new();
        configuration(&Doc::from_value(&schema, ty, &v).unwrap().doc, true, &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_webhook_says_whom_it_asks_about_what() {
        assert_eq!(errors(json!({})), [""; 0]);
        let rule = |resources: Value| json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": resources}]});
        assert_eq!(errors(rule(json!(["*/*"]))), [""; 0]);
        assert_eq!(errors(rule(json!(["*", "pods/log"]))), [""; 0]);
        for (change, want) in [
            (
                json!({"name": "abc"}),
                "webhooks[0].name: Invalid value: \"abc\": should be a domain with at least three segments separated by dots",
            ),
            (
                json!({"timeoutSeconds": 31}),
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                json!({"sideEffects": "Some"}),
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (json!({"clientConfig": {}}), "webhooks[0].clientConfig: Required value: exactly one of url or service is required"),
            (
                rule(json!(["pods/*", "pods/log"])),
                "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
            ),
            (json!({"matchConditions": [{"expression": "true"}]}), "webhooks[0].matchConditions[0].name: Required value"),
        ] {
            assert_eq!(errors(change), [want]);
        }
    }
}
