//! APIService: which versions of a group are served, and by whom.

use k8s_schema::Doc;
use serde_json::json;

use super::{SPEC_AND_STATUS_NO_GENERATION, Strategy};
use crate::validation::{ErrorList, FieldError, names, values};

pub const API_SERVICE: Strategy = Strategy {
    name: names::path_segment,
    prepare_create: |d| {
        if !d.at("spec.service").exists() {
            // What this server serves itself is there. A constant that fits the type: this cannot fail.
            let _ = d.set(
                "status.conditions",
                json!([{"type": "Available", "status": "True", "lastTransitionTime": crate::handlers::write::now(), "reason": "Local",
                    "message": "Local APIServices are always available"}]),
            );
        }
    },
    validate_create: validate,
    validate_update: |_, n, _, e| validate(n, e),
    ..SPEC_AND_STATUS_NO_GENERATION
};

fn validate(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    let (group, version, name) = (spec.get("group").str(), spec.get("version").str(), d.meta().name());
    let required = format!("{version}.{group}");
    if name != required {
        e.push(FieldError::invalid("metadata.name", name, format!("must be `spec.version+\".\"+spec.group`: {required:?}")));
    }
    if group.is_empty() && version != "v1" {
        e.push(FieldError::required("spec.group", "only v1 may have an empty group and it better be legacy kube"));
    }
    if !group.is_empty() {
        e.all_invalid("spec.group", group, names::dns1123_subdomain(group));
    }
    e.all_invalid("spec.version", version, names::dns1035_label(version));
    for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let n = spec.get(field).int();
        if !(1..=max).contains(&n) {
            e.push(FieldError::invalid(format!("spec.{field}"), n, format!("must be positive and less than {max}")));
        }
    }
    let (service, bundle) = (spec.get("service"), spec.get("caBundle").bytes().len());
    let insecure = spec.get("insecureSkipTLSVerify").bool();
    if !service.exists() {
        if bundle > 0 {
            e.push(FieldError::invalid("spec.caBundle", format!("{bundle} bytes").as_str(), "local APIServices may not have a caBundle"));
        }
        if insecure {
            e.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, "local APIServices may not have insecureSkipTLSVerify"));
        }
        return;
    }
    for field in ["namespace", "name"] {
        if service.get(field).str().is_empty() {
            e.push(FieldError::required(format!("spec.service.{field}"), ""));
        }
    }
    let port = service.get("port").as_i64().unwrap_or(443);
    if let Some(why) = values::port(port) {
        e.push(FieldError::invalid("spec.service.port", port, format!("port is not valid: {why}")));
    }
    if insecure && bundle > 0 {
        e.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, "may not be true if caBundle is present"));
    }
}
