//! Checks of access reviews.

use k8s_schema::{Doc, Ref};
use serde_json::json;

use crate::{
    http::{ApiError, Group},
    registry::Resource,
    validation::{ErrorList, FieldError, child, index, names},
};

pub fn validate_access(res: &Resource, doc: &Doc, namespace: &str) -> Result<(), ApiError> {
    let mut e = ErrorList::new();
    let (r, n) = (doc.at("spec.resourceAttributes"), doc.at("spec.nonResourceAttributes"));
    let local = res.plural == "localsubjectaccessreviews";
    let given = doc.at("metadata.namespace").str();
    if local && !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    // Upstream shows attributes of no resource by the names they have in its code.
    let path = json!({"Path": n.get("path").str(), "Verb": n.get("verb").str()});
    for which in ["fieldSelector", "labelSelector"] {
        let selector = r.get(which);
        if selector.exists() {
            validate_selector(selector, &format!("spec.resourceAttributes.{which}"), which == "labelSelector", &mut e);
        }
    }
    if r.exists() && n.exists() {
        e.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            path.clone(),
            "cannot be specified in combination with resourceAttributes",
        ));
    }
    if !r.exists() && !n.exists() {
        e.push(FieldError::invalid(
            "spec.resourceAttributes",
            r.to_value(),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    if res.plural != "selfsubjectaccessreviews" && doc.at("spec.user").str().is_empty() && doc.at("spec.groups").is_empty() {
        e.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    if local {
        if r.exists() && r.get("namespace").str() != namespace {
            e.push(FieldError::invalid("spec.resourceAttributes.namespace", r.get("namespace").str(), "must match metadata.namespace"));
        }
        if n.exists() {
            e.push(FieldError::invalid("spec.nonResourceAttributes", path.clone(), "disallowed on this kind of request"));
        }
    }
    let mut metadata = doc.at("metadata").to_value();
    let named = metadata.as_object_mut().is_some_and(|m| {
        if local {
            m.remove("namespace");
        }
        m.keys().any(|k| k != "managedFields")
    });
    if named {
        e.push(FieldError::invalid("metadata", metadata, if local { "must be empty except for namespace" } else { "must be empty" }));
    }
    // Upstream names no kind here.
    if e.is_empty() { Ok(()) } else { Err(ApiError::invalid(Group(&res.group, ""), "", &e)) }
}

fn validate_selector(s: Ref<'_>, path: &str, of_labels: bool, e: &mut ErrorList) {
    let (raw, requirements) = (s.get("rawSelector").str(), s.get("requirements"));
    if !raw.is_empty() && !requirements.is_empty() {
        e.push(FieldError::invalid(child(path, "rawSelector"), raw, "may not specified at the same time as requirements"));
    }
    if raw.is_empty() && requirements.is_empty() {
        let why = format!("when {path} is specified, requirements or rawSelector is required");
        e.push(FieldError::required(child(path, "requirements"), why));
    }
    for (i, r) in requirements.iter().enumerate() {
        let p = index(&child(path, "requirements"), i);
        let (key, values) = (r.get("key").str(), r.get("values"));
        match r.get("operator").str() {
            "In" | "NotIn" if values.is_empty() => {
                e.push(FieldError::required(child(&p, "values"), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                e.push(FieldError::forbidden(child(&p, "values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "" => e.push(FieldError::required(child(&p, "operator"), "must be specified")),
            _ => {}
        }
        if of_labels {
            e.all_invalid(&child(&p, "key"), key, names::qualified_name(key));
        } else if key.is_empty() {
            e.push(FieldError::required(child(&p, "key"), "must be specified"));
        }
    }
}

/// A selector that narrows what is asked for, as `key=value` parts; none when a part of it says nothing that can be used.
pub fn narrowed(s: Ref<'_>) -> Option<String> {
    let known = |r: &Ref<'_>| matches!(r.get("operator").str(), "In" | "NotIn" | "Exists" | "DoesNotExist");
    if !s.get("requirements").iter().all(|r| known(&r)) {
        return None;
    }
    let one = |r: Ref<'_>| {
        (r.get("operator").str() == "In" && r.get("values").len() == 1)
            .then(|| format!("{}={}", r.get("key").str(), r.get("values").iter().next().map_or("", |v| v.str())))
    };
    Some(s.get("requirements").iter().filter_map(one).collect::<Vec<_>>().join(","))
}
