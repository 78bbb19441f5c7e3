//! The kind CustomResourceDefinition itself: defaults, what only the server sets, validation.
//!
//! Upstream's internal form lifts what all versions share out of the versions, and its errors name the fields of that form
//! (`spec.validation.openAPIV3Schema`); so do these.

use k8s_schema::{Doc, Mut, Ref};
use serde_json::{Value, json};

use super::{schema_rules, structural::Schema};
use crate::{
    kinds::{Action, Strategy},
    validation::{ErrorList, FieldError, child, index, names},
};

const APPROVED: &str = "api-approved.kubernetes.io";
const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

pub const CUSTOM_RESOURCE_DEFINITION: Strategy =
    Strategy { prepare_create, prepare_update, validate_create, validate_update, warnings, ..crate::kinds::SPEC_AND_STATUS };

/// Names that follow from the kind, the conversion, the webhook's port.
pub fn default(mut d: Mut<'_>) -> Result<(), k8s_schema::EditError> {
    let kind = d.get("spec.names.kind").str().to_owned();
    if !kind.is_empty() {
        if d.get("spec.names.singular").str().is_empty() {
            d.set("spec.names.singular", kind.to_lowercase())?;
        }
        if d.get("spec.names.listKind").str().is_empty() {
            d.set("spec.names.listKind", format!("{kind}List"))?;
        }
    }
    if !d.get("spec.conversion").exists() {
        d.set("spec.conversion", json!({"strategy": "None"}))?;
    }
    if d.get("spec.conversion.webhook.clientConfig.service").exists() {
        d.set_default("spec.conversion.webhook.clientConfig.service.port", 443)?;
    }
    Ok(())
}

fn storage_version(d: &Doc) -> Option<String> {
    d.at("spec.versions").iter().find(|v| v.get("storage").bool()).map(|v| v.get("name").str().to_owned())
}

fn prepare_create(d: &mut Doc) {
    let stored: Vec<String> = storage_version(d).into_iter().collect();
    d.remove("status");
    if !stored.is_empty() {
        // A list of strings, where there is one.
        let _ = d.set("status.storedVersions", Value::from(stored));
    } else {
        let _ = d.set("status", json!({}));
    }
}

fn prepare_update(action: Action, new: &mut Doc, _old: &Doc) {
    if action != Action::Main {
        return;
    }
    if let Some(v) = storage_version(new)
        && !new.at("status.storedVersions").contains_str(&v)
    {
        // A list of strings, as on create.
        let _ = new.push("status.storedVersions", v);
    }
}

fn warnings(d: &Doc, _old: Option<&Doc>) -> Vec<String> {
    let mut out = Vec::new();
    for v in d.at("spec.versions").iter() {
        schema_rules::unknown_formats(&v.at("schema.openAPIV3Schema").to_value(), &mut out);
    }
    out
}

fn validate_create(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    let (plural, group) = (spec.at("names.plural").str(), spec.get("group").str());
    let name = d.meta().name();
    if name != format!("{plural}.{group}") {
        e.push(FieldError::invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group"));
    }
    check_spec(d, e);
    check_stored(d, e);
    check_approval(d, e);
}

fn validate_update(action: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
    if action == Action::Status {
        check_stored(new, e);
        return;
    }
    check_spec(new, e);
    let mut immutable = |path: &str| {
        if !new.at(path).semantic_eq(old.at(path)) {
            e.push(FieldError::invalid(path, new.at(path).to_value(), "field is immutable"));
        }
    };
    if super::is_true(old, "Established") {
        immutable("spec.scope");
        immutable("spec.names.kind");
    }
    immutable("spec.group");
    immutable("spec.names.plural");
    check_stored(new, e);
    if new.meta().annotation(APPROVED) != old.meta().annotation(APPROVED) {
        check_approval(new, e);
    }
}

/// The names of versions as upstream's internal form shows them in errors.
fn shown_versions(spec: Ref<'_>) -> String {
    let list = spec.get("versions");
    if !list.exists() {
        return "null".into();
    }
    let all: Vec<String> = list
        .iter()
        .map(|v| {
            format!(
                "{{\"Name\":{},\"Served\":{},\"Storage\":{},\"Deprecated\":{},\"DeprecationWarning\":{},\"Schema\":null,\"Subresources\":null,\"AdditionalPrinterColumns\":null,\"SelectableFields\":null}}",
                Value::from(v.get("name").str()),
                v.get("served").bool(),
                v.get("storage").bool(),
                v.get("deprecated").bool(),
                v.get("deprecationWarning").to_value()
            )
        })
        .collect();
    format!("[{}]", all.join(","))
}

fn check_spec(d: &Doc, e: &mut ErrorList) {
    let spec = d.at("spec");
    let group = spec.get("group").str();
    if group.is_empty() {
        e.push(FieldError::required("spec.group", ""));
    } else {
        let wrong = names::dns1123_subdomain(group);
        if wrong.is_empty() && !group.contains('.') {
            e.push(FieldError::invalid("spec.group", group, "should be a domain with at least one dot"));
        }
        e.all_invalid("spec.group", group, wrong);
    }
    match spec.get("scope").str() {
        "" => e.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        other => e.push(FieldError::not_supported("spec.scope", other, &["Cluster", "Namespaced"])),
    }
    check_versions(spec, e);
    if spec.get("preserveUnknownFields").bool() {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        e.push(FieldError::invalid("spec.preserveUnknownFields", true, why));
    }
    check_names(spec.get("names"), e);
    for part in PARTS {
        check_part(spec, part, e);
    }
    check_conversion(spec.get("conversion"), e);
}

fn check_versions(spec: Ref<'_>, e: &mut ErrorList) {
    let list = spec.get("versions");
    let mut seen: Vec<&str> = Vec::new();
    let mut unique = true;
    for (i, v) in list.iter().enumerate() {
        let path = index("spec.versions", i);
        let name = v.get("name").str();
        e.all_invalid(&child(&path, "name"), name, names::dns1035_label(name));
        unique &= !seen.contains(&name);
        seen.push(name);
        if let Some(w) = v.get("deprecationWarning").as_str() {
            let path = child(&path, "deprecationWarning");
            if !v.get("deprecated").bool() {
                e.push(FieldError::invalid(path.clone(), w, "can only be set for deprecated versions"));
            }
            if w.is_empty() {
                e.push(FieldError::invalid(path, w, "must not be an empty string"));
            } else if w.chars().count() > 256 {
                e.push(FieldError::invalid(path, w, "must be <= 256 characters long"));
            }
        }
        if !v.at("schema.openAPIV3Schema").exists() {
            e.push(FieldError::required(format!("{path}.schema.openAPIV3Schema"), ""));
        }
    }
    if !unique {
        e.push(FieldError::invalid_raw("spec.versions", &shown_versions(spec), "must contain unique version names"));
    }
    if list.iter().filter(|v| v.get("storage").bool()).count() != 1 {
        e.push(FieldError::invalid_raw("spec.versions", &shown_versions(spec), "must have exactly one version marked as storage version"));
    }
    // The internal form names the first version once more.
    if let Some(first) = seen.first().filter(|n| !n.is_empty()) {
        e.all_invalid("spec.version", *first, names::dns1035_label(first));
    }
}

fn check_names(n: Ref<'_>, e: &mut ErrorList) {
    let path = "spec.names";
    let label = |field: &str, e: &mut ErrorList| {
        let v = n.get(field).str();
        if v.is_empty() {
            e.push(FieldError::required(child(path, field), ""));
        } else {
            e.all_invalid(&child(path, field), v, names::dns1035_label(v));
        }
    };
    let mixed = |field: &str, e: &mut ErrorList| {
        let v = n.get(field).str();
        if v.is_empty() {
            e.push(FieldError::required(child(path, field), ""));
        } else {
            let wrong = names::dns1035_label(&v.to_lowercase());
            let wrong = wrong.into_iter().map(|m| format!("may have mixed case, but should otherwise match: {m}"));
            e.all_invalid(&child(path, field), v, wrong);
        }
    };
    label("plural", e);
    label("singular", e);
    mixed("kind", e);
    for field in ["shortNames"] {
        for (i, s) in n.get(field).iter().enumerate() {
            e.all_invalid(&index(&child(path, field), i), s.str(), names::dns1035_label(s.str()));
        }
    }
    mixed("listKind", e);
    let (kind, list) = (n.get("kind").str(), n.get("listKind").str());
    if !kind.is_empty() && kind == list {
        e.push(FieldError::invalid("spec.names.listKind", list, "kind and listKind may not be the same"));
    }
    for (i, s) in n.get("categories").iter().enumerate() {
        e.all_invalid(&index("spec.names.categories", i), s.str(), names::dns1035_label(s.str()));
    }
}

/// A part of a version that is lifted out when all versions have the same: where it is in a version, how it is called outside, its check.
struct Part {
    field: &'static str,
    lifted: &'static str,
    within: &'static str,
    check: fn(Ref<'_>, &str, Ref<'_>, &mut ErrorList),
}

const PARTS: [Part; 4] = [
    Part { field: "additionalPrinterColumns", lifted: "spec.additionalPrinterColumns", within: "", check: check_columns },
    Part { field: "selectableFields", lifted: "spec.selectableFields", within: "", check: check_selectable },
    Part { field: "schema", lifted: "spec.validation", within: "openAPIV3Schema", check: check_schema },
    Part { field: "subresources", lifted: "spec.subresources", within: "", check: check_subresources },
];

fn check_part(spec: Ref<'_>, part: Part, e: &mut ErrorList) {
    let versions: Vec<Ref<'_>> = spec.get("versions").iter().collect();
    let Some(first) = versions.first() else { return };
    fn at<'a>(v: Ref<'a>, part: &Part) -> Ref<'a> {
        v.get(part.field)
    }
    let path_in = |base: &str| if part.within.is_empty() { base.to_owned() } else { child(base, part.within) };
    if versions.iter().all(|v| at(*v, &part).to_value() == at(*first, &part).to_value()) {
        (part.check)(at(*first, &part).at(part.within), &path_in(part.lifted), *first, e);
        return;
    }
    for (i, v) in versions.iter().enumerate() {
        (part.check)(at(*v, &part).at(part.within), &path_in(&child(&index("spec.versions", i), part.field)), *v, e);
    }
}

fn check_columns(list: Ref<'_>, path: &str, _: Ref<'_>, e: &mut ErrorList) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    for (i, c) in list.iter().enumerate() {
        let at = index(path, i);
        if c.get("name").str().is_empty() {
            e.push(FieldError::required(child(&at, "name"), ""));
        }
        let must = format!("must be one of {}", TYPES.join(","));
        match c.get("type").str() {
            "" => e.push(FieldError::required(child(&at, "type"), must)),
            t if TYPES.contains(&t) => {}
            t => e.push(FieldError::invalid(child(&at, "type"), t, must)),
        }
        let format = c.get("format").str();
        if !format.is_empty() && !FORMATS.contains(&format) {
            e.push(FieldError::invalid(child(&at, "format"), format, format!("must be one of {}", FORMATS.join(","))));
        }
        let p = c.get("jsonPath").str();
        if p.is_empty() {
            e.push(FieldError::required(child(&at, "JSONPath"), ""));
        } else {
            simple_path(p, &child(&at, "JSONPath"), e);
        }
    }
}

fn simple_path(p: &str, path: &str, e: &mut ErrorList) -> bool {
    let ok = p.starts_with('.');
    if !ok {
        e.push(FieldError::invalid(path, p, "must be a simple json path starting with ."));
    }
    ok
}

fn check_selectable(list: Ref<'_>, path: &str, version: Ref<'_>, e: &mut ErrorList) {
    const MAX: usize = 8;
    let schema = Schema::of(&version.at("schema.openAPIV3Schema").to_value());
    let mut seen: Vec<&str> = Vec::new();
    for (i, f) in list.iter().enumerate() {
        let p = f.get("jsonPath").str();
        let at = child(&index(path, i), "jsonPath");
        if p.is_empty() {
            e.push(FieldError::required(at, ""));
            continue;
        }
        let target = Some(p).filter(|p| p.starts_with('.') && !p.starts_with(".metadata")).and_then(|p| schema.at(p));
        match target {
            None => e.push(FieldError::invalid(at, p, "is an invalid path: does not refer to a valid field")),
            Some(s) if !matches!(s.ty.as_str(), "string" | "boolean" | "integer") => {
                let why =
                    "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                e.push(FieldError::invalid(at, p, why));
            }
            Some(_) if seen.contains(&p) => e.push(FieldError::duplicate(at, p)),
            Some(_) => seen.push(p),
        }
    }
    if list.len() > MAX {
        e.push(FieldError::too_many(path, list.len(), MAX));
    }
}

fn check_schema(schema: Ref<'_>, path: &str, _: Ref<'_>, e: &mut ErrorList) {
    if schema.exists() {
        schema_rules::validate(&schema.to_value(), path, e);
    }
}

fn check_subresources(r: Ref<'_>, path: &str, _: Ref<'_>, e: &mut ErrorList) {
    let scale = r.get("scale");
    if !scale.exists() {
        return;
    }
    let path = child(path, "scale");
    for (field, under) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let (at, p) = (child(&path, field), scale.get(field).str());
        if p.is_empty() {
            e.push(FieldError::required(at, ""));
        } else if simple_path(p, &at, e) && !p.strip_prefix(under).is_some_and(|r| r.starts_with('.')) {
            e.push(FieldError::invalid(at, p, format!("should be a json path under {under}")));
        }
    }
    let (at, p) = (child(&path, "labelSelectorPath"), scale.get("labelSelectorPath").str());
    if !p.is_empty() && simple_path(p, &at, e) && !p.starts_with(".spec.") && !p.starts_with(".status.") {
        e.push(FieldError::invalid(at, p, "should be a json path under either .status or .spec"));
    }
}

fn check_conversion(c: Ref<'_>, e: &mut ErrorList) {
    let path = "spec.conversion";
    let strategy = c.get("strategy").str();
    match strategy {
        "" => e.push(FieldError::required(child(path, "strategy"), "")),
        "None" | "Webhook" => {}
        other => e.push(FieldError::not_supported(child(path, "strategy"), other, &["None", "Webhook"])),
    }
    let (client, versions) = (c.at("webhook.clientConfig"), c.at("webhook.conversionReviewVersions"));
    let (client_at, versions_at) = (child(path, "webhookClientConfig"), child(path, "conversionReviewVersions"));
    if strategy == "None" {
        for (r, at) in [(client, client_at), (versions, versions_at)] {
            if r.exists() {
                e.push(FieldError::forbidden(at, "should not be set when strategy is not set to Webhook"));
            }
        }
        return;
    }
    if strategy != "Webhook" {
        return;
    }
    if client.exists() {
        check_client(client, &client_at, e);
    } else {
        e.push(FieldError::required(client_at, "required when strategy is set to Webhook"));
    }
    if versions.is_empty() {
        e.push(FieldError::required(versions_at, ""));
    } else if !versions.strings().any(|v| v == "v1" || v == "v1beta1") {
        e.push(FieldError::invalid(versions_at, versions.to_value(), "must include at least one of v1, v1beta1"));
    }
}

/// Where a webhook is: a URL or a service.
fn check_client(client: Ref<'_>, path: &str, e: &mut ErrorList) {
    let (url, service) = (client.get("url"), client.get("service"));
    if url.exists() == service.exists() {
        e.push(FieldError::required(path, "exactly one of url or service is required"));
        return;
    }
    if let Some(u) = url.as_str() {
        check_url(u, &child(path, "url"), e);
    }
    if service.exists() {
        let path = child(path, "service");
        for field in ["name", "namespace"] {
            if service.get(field).str().is_empty() {
                e.push(FieldError::required(child(&path, field), format!("service {field} is required")));
            }
        }
        if let Some(p) = service.get("path").as_str().filter(|p| !p.is_empty()) {
            if p.starts_with('/') {
                check_url_path(p, p, &child(&path, "path"), e);
            } else {
                e.push(FieldError::invalid(child(&path, "path"), p, "must start with a '/'"));
            }
        }
        let port = service.get("port").as_i64().unwrap_or(443);
        if let Some(why) = crate::validation::values::port(port) {
            e.push(FieldError::invalid(child(&path, "port"), port, format!("port is not valid: {why}")));
        }
    }
}

/// The segments of a URL's path, which begins with a slash; errors show it as `shown`.
pub fn check_url_path(p: &str, shown: &str, path: &str, e: &mut ErrorList) {
    let steps: Vec<&str> = p[1..].split('/').collect();
    let last = steps.len() - 1;
    for (i, step) in steps.iter().enumerate() {
        if step.is_empty() && (i < last || steps.len() > 1 && i != last) {
            e.push(FieldError::invalid(path, shown, format!("segment[{i}] may not be empty")));
            return;
        }
        if !step.is_empty() {
            for m in names::dns1123_subdomain(step) {
                e.push(FieldError::invalid(path, shown, format!("segment[{i}]: {m}")));
            }
        }
    }
}

/// The URL of a webhook.
pub fn check_url(u: &str, path: &str, e: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    if u.starts_with(':') {
        e.push(FieldError::required(path, format!("url must be a valid URL: parse {u:?}: missing protocol scheme{FORM}")));
        return;
    }
    let (scheme, rest) = u.split_once("://").unwrap_or(("", u));
    if scheme != "https" {
        e.push(FieldError::invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}")));
    }
    let rest = if scheme.is_empty() { "" } else { rest };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    if host.is_empty() {
        e.push(FieldError::invalid(path, host, format!("host must be specified{FORM}")));
    }
    if let Some((user, _)) = authority.rsplit_once('@') {
        e.push(FieldError::invalid(path, user, "user information is not permitted in the URL"));
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        e.push(FieldError::invalid(path, fragment, "fragments are not permitted in the URL"));
    }
    let query = rest.split('#').next().and_then(|r| r.split_once('?'));
    if let Some((_, query)) = query.filter(|(_, q)| !q.is_empty()) {
        e.push(FieldError::invalid(path, query, "query parameters are not permitted in the URL"));
    }
}

fn check_stored(d: &Doc, e: &mut ErrorList) {
    let stored = d.at("status.storedVersions");
    let path = "status.storedVersions";
    if stored.is_empty() {
        e.push(FieldError::invalid(path, stored.to_value(), "must have at least one stored version"));
        return;
    }
    let versions: Vec<(&str, bool)> = d.at("spec.versions").iter().map(|v| (v.get("name").str(), v.get("storage").bool())).collect();
    for (i, s) in stored.strings().enumerate() {
        if !versions.iter().any(|(n, _)| *n == s) {
            e.push(FieldError::invalid(
                index(path, i),
                s,
                format!(
                    "missing from spec.versions; {s} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {s} and removes {s} from status.storedVersions"
                ),
            ));
        }
    }
    for (name, _) in versions.iter().filter(|(n, storage)| *storage && !stored.contains_str(n)) {
        e.push(FieldError::invalid(path, stored.to_value(), format!("must have the storage version {name}")));
    }
}

/// Whether a group belongs to the Kubernetes project.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"].iter().any(|p| group == *p || group.strip_suffix(p).is_some_and(|r| r.ends_with('.')))
}

/// What the annotation on a protected group says: approved where, or why not.
pub fn approval(d: &Doc) -> Result<(&str, bool), bool> {
    match d.meta().annotation(APPROVED) {
        None | Some("") => Err(false),
        Some(a) if a.starts_with("unapproved") => Ok((a, false)),
        Some(a) if a.parse::<http::Uri>().is_ok_and(|u| u.scheme().is_some() && u.host().is_some()) => Ok((a, true)),
        Some(_) => Err(true),
    }
}

fn check_approval(d: &Doc, e: &mut ErrorList) {
    if !is_protected(d.at("spec.group").str()) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    match approval(d) {
        Ok(_) => {}
        Err(false) => {
            e.push(FieldError::required(path, format!("protected groups must have approval annotation {APPROVED:?}, {SEE}")));
        }
        Err(true) => {
            let why = format!(
                "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {SEE}"
            );
            e.push(FieldError::invalid(path, d.meta().annotation(APPROVED).unwrap_or(""), why));
        }
    }
}
