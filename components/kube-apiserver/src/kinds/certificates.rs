//! CertificateSigningRequest: who asked is recorded by the server, and only the approval subresource decides.

use k8s_schema::Doc;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::{Action, PLAIN, Strategy, restore};
use crate::{
    authn::User,
    validation::{ErrorList, FieldError, child, index, names},
};

pub const CERTIFICATE_SIGNING_REQUEST: Strategy = Strategy {
    name: names::path_segment,
    status: true,
    unmanaged_spec: true,
    prepare_update,
    validate_create: validate,
    validate_update: update,
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

fn prepare_update(action: Action, new: &mut Doc, old: &Doc) {
    match action {
        Action::Main => restore(new, old, "spec"),
        Action::Approval => {
            restore(new, old, "spec");
            restore(new, old, "status.certificate");
            stamp(new);
        }
        Action::Status => stamp(new),
        _ => {}
    }
}

/// Conditions without times are of now.
fn stamp(d: &mut Doc) {
    let mut conditions: Vec<Value> = d.at("status.conditions").iter().map(|c| c.to_value()).collect();
    let now = crate::handlers::write::now();
    for c in &mut conditions {
        for f in ["lastUpdateTime", "lastTransitionTime"] {
            if c[f].is_null() {
                c[f] = now.as_str().into();
            }
        }
    }
    if !conditions.is_empty() {
        // Conditions taken from the same type: this cannot fail.
        let _ = d.set("status.conditions", Value::from(conditions));
    }
}

/// What a certificate may be used for.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Conditions that are never false.
const TRUE_ONLY: [&str; 3] = ["Approved", "Denied", "Failed"];

fn signer_name(signer: &str, path: &str, e: &mut ErrorList) {
    if signer.is_empty() {
        e.push(FieldError::required(path, ""));
        return;
    }
    let Some((domain, rest)) = signer.split_once('/').filter(|(_, p)| !p.contains('/')) else {
        e.push(FieldError::invalid(path, signer, "must be a fully qualified domain and path of the form 'example.com/signer-name'"));
        return;
    };
    let mut part = |whole: &str, label: &str, wrong: Vec<String>| {
        e.all_invalid(path, whole, wrong.into_iter().map(|w| format!("validating label {label:?}: {w}")));
    };
    domain.split('.').for_each(|l| part(domain, l, names::dns1123_label(l)));
    if !domain.contains('.') {
        e.push(FieldError::invalid(path, domain, "should be a domain with at least two segments separated by dots"));
    }
    let mut part = |whole: &str, label: &str, wrong: Vec<String>| {
        e.all_invalid(path, whole, wrong.into_iter().map(|w| format!("validating label {label:?}: {w}")));
    };
    rest.split('.').for_each(|l| part(rest, l, names::dns1123_subdomain(l)));
}

fn validate(d: &Doc, e: &mut ErrorList) {
    let request = d.at("spec.request");
    let pem = x509_parser::pem::parse_x509_pem(request.bytes()).ok().map(|(_, p)| p);
    match pem.filter(|p| p.label == "CERTIFICATE REQUEST") {
        None => e.push(FieldError::invalid("spec.request", request.to_value(), "PEM block type must be CERTIFICATE REQUEST")),
        Some(pem) => {
            if let Err(why) = X509CertificationRequest::from_der(&pem.contents) {
                e.push(FieldError::invalid("spec.request", request.to_value(), format!("asn1: structure error: {why}")));
            }
        }
    }
    if d.at("spec.usages").is_empty() {
        e.push(FieldError::required("spec.usages", ""));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, usage) in d.at("spec.usages").strings().enumerate() {
        if !USAGES.contains(&usage) {
            e.push(FieldError::not_supported(index("spec.usages", i), usage, USAGES));
        }
        if seen.contains(&usage) {
            e.push(FieldError::duplicate(index("spec.usages", i), usage));
        }
        seen.push(usage);
    }
    let signer = d.at("spec.signerName").str();
    if signer == "kubernetes.io/legacy-unknown" {
        e.push(FieldError::invalid("spec.signerName", signer, "the legacy signerName is not allowed via this API version"));
    } else {
        signer_name(signer, "spec.signerName", e);
    }
    if let Some(s) = d.at("spec.expirationSeconds").as_i64().filter(|s| *s < 600) {
        e.push(FieldError::invalid("spec.expirationSeconds", s, "may not specify a duration less than 600 seconds (10 minutes)"));
    }
    conditions(d, e);
    let certificate = d.at("status.certificate").bytes();
    if !certificate.is_empty() && x509_parser::pem::parse_x509_pem(certificate).is_err() {
        e.push(FieldError::invalid("status.certificate", "<certificate data>", "must contain at least one CERTIFICATE PEM block"));
    }
}

fn conditions(d: &Doc, e: &mut ErrorList) {
    let path = "status.conditions";
    let mut seen: Vec<&str> = Vec::new();
    for (i, c) in d.at(path).iter().enumerate() {
        let (at, ty, status) = (index(path, i), c.get("type").str(), c.get("status").str());
        if ty.is_empty() {
            e.push(FieldError::required(child(&at, "type"), ""));
        }
        if status.is_empty() {
            e.push(FieldError::required(child(&at, "status"), ""));
        } else if TRUE_ONLY.contains(&ty) && status != "True" {
            e.push(FieldError::not_supported(child(&at, "status"), status, &["True"]));
        } else if !matches!(status, "True" | "False" | "Unknown") {
            e.push(FieldError::not_supported(child(&at, "status"), status, &["False", "True", "Unknown"]));
        }
        let opposite = match ty {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(&opposite) && !opposite.is_empty() {
            e.push(FieldError::invalid(path, ty, "Approved and Denied conditions are mutually exclusive"));
        }
        if seen.contains(&ty) {
            e.push(FieldError::duplicate(child(&at, "type"), ty));
        }
        seen.push(ty);
    }
}

fn update(action: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if !new.at("spec").semantic_eq(old.at("spec")) {
        e.push(FieldError::invalid("spec", new.at("spec").to_value(), "field is immutable"));
    }
    if !matches!(action, Action::Status | Action::Approval) {
        return;
    }
    validate(new, e);
    let of = |d: &Doc, ty: &str| {
        d.at("status.conditions").iter().filter(|c| c.get("type").str() == ty).map(|c| c.to_value()).collect::<Vec<_>>()
    };
    let forbidden =
        |what: &str, ty: &str| FieldError::forbidden("status.conditions", format!("updates may not {what} a condition of type {ty:?}"));
    for ty in TRUE_ONLY {
        let (n, o) = (of(new, ty), of(old, ty));
        if n.len() < o.len() {
            e.push(forbidden("remove", ty));
        } else if action == Action::Status && ty != "Failed" && n.len() > o.len() {
            e.push(forbidden("add", ty));
        } else if action == Action::Status && ty != "Failed" && n != o {
            e.push(forbidden("modify", ty));
        }
    }
    let (n, o) = (new.at("status.certificate").bytes(), old.at("status.certificate").bytes());
    if n != o && !o.is_empty() {
        e.push(FieldError::forbidden("status.certificate", "updates may not modify existing certificate content"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signers_are_named_by_domain_and_path() {
        for (name, good) in
            [("example.com/s", true), ("a.b.c/d.e", true), ("foo/c", false), ("abc", false), ("a.b/c/d", false), ("a.b/X", false)]
        {
            let mut e = ErrorList::new();
            signer_name(name, "p", &mut e);
            assert_eq!(e.is_empty(), good, "{name}: {e:?}");
        }
    }
}
