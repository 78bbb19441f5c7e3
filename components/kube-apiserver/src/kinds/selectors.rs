//! What field selectors of each kind can ask for.

use k8s_schema::{Doc, selector::FieldSelector};

use crate::{http::ApiError, registry::Resource};

/// Storage prefix, then selectable field and where it is in the object.
static FIELDS: &[(&str, &[(&str, &str)])] = &[
    (
        "pods",
        &[
            ("spec.nodeName", "spec.nodeName"),
            ("spec.restartPolicy", "spec.restartPolicy"),
            ("spec.schedulerName", "spec.schedulerName"),
            ("spec.serviceAccountName", "spec.serviceAccountName"),
            ("spec.hostNetwork", "spec.hostNetwork"),
            ("status.phase", "status.phase"),
            ("status.podIP", "status.podIP"),
            ("status.podIPs", "status.podIP"),
            ("status.nominatedNodeName", "status.nominatedNodeName"),
        ],
    ),
    ("minions", &[("spec.unschedulable", "spec.unschedulable")]),
    ("namespaces", &[("status.phase", "status.phase")]),
    ("secrets", &[("type", "type")]),
    ("services/specs", &[("spec.clusterIP", "spec.clusterIP"), ("spec.type", "spec.type")]),
    ("controllers", &[("status.replicas", "status.replicas")]),
    ("replicasets", &[("status.replicas", "status.replicas")]),
    ("jobs", &[("status.successful", "status.succeeded")]),
    ("statefulsets", &[("status.successful", "status.replicas")]),
    ("certificatesigningrequests", &[("spec.signerName", "spec.signerName")]),
    ("resourceslices", &[("spec.nodeName", "spec.nodeName"), ("spec.driver", "spec.driver")]),
    ("ipaddresses", &[("spec.parentRef", "")]),
    (
        "events",
        &[
            ("involvedObject.kind", "involvedObject.kind"),
            ("involvedObject.namespace", "involvedObject.namespace"),
            ("involvedObject.name", "involvedObject.name"),
            ("involvedObject.uid", "involvedObject.uid"),
            ("involvedObject.apiVersion", "involvedObject.apiVersion"),
            ("involvedObject.resourceVersion", "involvedObject.resourceVersion"),
            ("involvedObject.fieldPath", "involvedObject.fieldPath"),
            ("reason", "reason"),
            ("reportingComponent", "reportingComponent"),
            ("source", "source.component"),
            ("type", "type"),
        ],
    ),
];

fn fields_of(prefix: &str) -> &'static [(&'static str, &'static str)] {
    FIELDS.iter().find(|(p, _)| *p == prefix).map_or(&[], |(_, f)| f)
}

/// The selectable fields of a stored object.
pub fn selectable(prefix: &str, doc: &Doc) -> Vec<(&'static str, String)> {
    fields_of(prefix)
        .iter()
        .map(|(name, path)| {
            let r = doc.at(path);
            let value = match *name {
                "spec.hostNetwork" | "spec.unschedulable" => r.bool().to_string(),
                "status.replicas" | "status.successful" => r.int().to_string(),
                "source" if r.str().is_empty() => doc.at("reportingComponent").str().to_owned(),
                _ => r.as_str().unwrap_or_default().to_owned(),
            };
            (*name, value)
        })
        .collect()
}

/// Whether a kind knows the fields of a selector.
pub fn check_field_selector(res: &Resource, selector: &FieldSelector) -> Result<(), ApiError> {
    let extra = fields_of(&res.prefix);
    let known = |f: &str| match f {
        "metadata.name" | "metadata.namespace" => true,
        f if res.custom.is_some() => res.custom.as_ref().is_some_and(|c| c.version().selectable.iter().any(|s| s == f)),
        f => extra.iter().any(|(n, _)| *n == f),
    };
    for r in selector.requirements() {
        let field = r.field.as_str();
        if !known(field) {
            let m = if extra.is_empty() && res.custom.is_none() {
                format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
            } else {
                format!("field label not supported: {field}")
            };
            return Err(ApiError::bad_request(m));
        }
    }
    Ok(())
}
