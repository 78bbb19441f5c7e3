//! CertificateSigningRequest: who asked is recorded by the server, and only the approval subresource decides.

use k8s_schema::Doc;
use serde_json::json;

use super::{Action, PLAIN, Strategy, restore};
use crate::{
    authn::User,
    validation::{ErrorList, FieldError, names},
};

pub const CERTIFICATE_SIGNING_REQUEST: Strategy = Strategy {
    status: true,
    unmanaged_spec: true,
    prepare_update,
    validate_create: validate,
    validate_update: |_, n, o, e| {
        if !n.at("spec").semantic_eq(o.at("spec")) {
            e.push(FieldError::invalid("spec", n.at("spec").to_value(), "field is immutable"));
        }
    },
    ..PLAIN
};

/// Who asks is what the server knows of the request, not what the client says.
pub fn record_requester(d: &mut Doc, user: &User) -> Result<(), k8s_schema::EditError> {
    for f in ["spec.username", "spec.uid", "spec.groups", "spec.extra"] {
        d.remove(f);
    }
    d.set("spec.username", user.name.as_str())?;
    if !user.uid.is_empty() {
        d.set("spec.uid", user.uid.as_str())?;
    }
    if !user.groups.is_empty() {
        d.set("spec.groups", json!(user.groups))?;
    }
    for (k, v) in &user.extra {
        d.set(&format!("spec.extra[{k}]"), json!(v))?;
    }
    Ok(())
}

fn is_decision(t: &str) -> bool {
    matches!(t, "Approved" | "Denied")
}

fn prepare_update(action: Action, new: &mut Doc, old: &Doc) {
    let conditions = |d: &Doc, decision: bool| {
        d.at("status.conditions").iter().filter(|c| is_decision(c.get("type").str()) == decision).map(|c| c.to_value()).collect::<Vec<_>>()
    };
    match action {
        Action::Main => restore(new, old, "spec"),
        Action::Approval => {
            let mut all = conditions(old, false);
            all.extend(conditions(new, true));
            restore(new, old, "spec");
            restore(new, old, "status");
            stamp(&mut all);
            set(new, all);
        }
        Action::Status => {
            // Approval is not this subresource's to give or take.
            let mut all = conditions(old, true);
            all.extend(conditions(new, false));
            stamp(&mut all);
            set(new, all);
        }
        _ => {}
    }
}

fn stamp(conditions: &mut [serde_json::Value]) {
    let now = crate::handlers::write::now();
    for c in conditions {
        for f in ["lastUpdateTime", "lastTransitionTime"] {
            if c[f].is_null() {
                c[f] = now.as_str().into();
            }
        }
    }
}

fn set(d: &mut Doc, conditions: Vec<serde_json::Value>) {
    // Conditions taken from the same type: these cannot fail.
    if conditions.is_empty() {
        d.remove("status.conditions");
    } else {
        let _ = d.set("status.conditions", serde_json::Value::from(conditions));
    }
}

fn validate(d: &Doc, e: &mut ErrorList) {
    let request = d.at("spec.request").bytes();
    let pem = x509_parser::pem::parse_x509_pem(request).ok().map(|(_, p)| p);
    let good = pem.as_ref().is_some_and(|p| p.label == "CERTIFICATE REQUEST");
    if !good {
        use base64::Engine;
        let shown = base64::engine::general_purpose::STANDARD.encode(request);
        e.push(FieldError::invalid("spec.request", shown.as_str(), "PEM block type must be CERTIFICATE REQUEST"));
    }
    if d.at("spec.usages").is_empty() {
        e.push(FieldError::required("spec.usages", ""));
    }
    let signer = d.at("spec.signerName").str();
    if signer.is_empty() {
        e.push(FieldError::required("spec.signerName", ""));
    } else {
        match signer.split_once('/') {
            Some((domain, path)) if domain.contains('.') && !path.is_empty() => {
                e.all_invalid("spec.signerName", signer, names::dns1123_subdomain(domain));
            }
            _ => e.push(FieldError::invalid(
                "spec.signerName",
                signer,
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            )),
        }
    }
    if let Some(s) = d.at("spec.expirationSeconds").as_i64().filter(|s| *s < 600) {
        e.push(FieldError::invalid("spec.expirationSeconds", s, "may not specify a duration less than 600 seconds (10 minutes)"));
    }
}
