//! Checks of access reviews.

use k8s_schema::Doc;

use crate::{
    http::{ApiError, Group},
    registry::Resource,
    validation::{ErrorList, FieldError},
};

pub fn validate_access(res: &Resource, doc: &Doc, namespace: &str) -> Result<(), ApiError> {
    let mut e = ErrorList::new();
    let (r, n) = (doc.at("spec.resourceAttributes"), doc.at("spec.nonResourceAttributes"));
    let local = res.plural == "localsubjectaccessreviews";
    if r.exists() && n.exists() {
        e.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            n.to_value(),
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
            e.push(FieldError::invalid("spec.nonResourceAttributes", n.to_value(), "disallowed on this kind of request"));
        }
    }
    if e.is_empty() { Ok(()) } else { Err(ApiError::invalid(Group(&res.group, &res.kind), "", &e)) }
}
