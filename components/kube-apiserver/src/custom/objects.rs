//! Objects of custom resources on their way through a request: decoded, checked against their schema, told of in warnings.

use bytes::Bytes;
use k8s_schema::{Doc, Schema as Table, TypeId, peek_type_meta};
use serde_json::Value;

use super::{Custom, cel, validate};
use crate::{
    handlers::{Ctx, Validation},
    http::ApiError,
    kinds::Action,
    validation::{ErrorList, FieldError, errors::Kind},
};

/// Reads JSON as an object of `custom`: unknown and duplicate fields go, and are ignored, warned of or refused.
pub fn decode(
    ctx: &Ctx,
    body: &Bytes,
    custom: &Custom,
    validation: Validation,
    unrecognized: impl Fn(String) -> ApiError,
) -> Result<Doc, ApiError> {
    let def = &custom.definition;
    let expected = format!("{}/{}", def.group, custom.version().name);
    let meta = peek_type_meta(body).map_err(|e| {
        let text = e.to_string();
        let why = text.strip_prefix("couldn't get version/kind; json parse error: ").unwrap_or(&text);
        unrecognized(format!("couldn't get version/kind; json parse error: {why}"))
    })?;
    for (field, missing) in [("Kind", meta.kind.is_empty()), ("apiVersion", meta.api_version.is_empty())] {
        if missing {
            return Err(unrecognized(format!("Object '{field}' is missing in '{}'", String::from_utf8_lossy(body))));
        }
    }
    let unhandled = |e: String| {
        ApiError::bad_request(format!("{} in version {:?} cannot be handled as a {}: {e}", def.kind, custom.version().name, def.kind))
    };
    let decoded = Doc::from_json(&Table::builtin(), TypeId::ANY, body.clone()).map_err(|e| unhandled(e.to_string()))?;
    if meta.api_version != expected {
        // A version that is not served has no schema: every field of it is unknown.
        if meta.api_version.split('/').next() == Some(def.group.as_str()) && validation == Validation::Warn {
            let known = ["apiVersion", "kind", "metadata"];
            decoded.doc.root().entries().filter(|(k, _)| !known.contains(k)).for_each(|(k, _)| ctx.warn(format!("unknown field {k:?}")));
        }
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({expected})",
            meta.api_version
        )));
    }
    let (doc, unknown) = custom.admit(&decoded.doc).map_err(|e| unhandled(e.0))?;
    let complaints: Vec<String> = decoded.strict.into_iter().chain(unknown.iter().map(|u| format!("unknown field {u:?}"))).collect();
    match validation {
        Validation::Strict if !complaints.is_empty() => Err(unhandled(format!("strict decoding error: {}", complaints.join(", ")))),
        Validation::Warn => {
            complaints.into_iter().for_each(|c| ctx.warn(c));
            Ok(doc)
        }
        _ => Ok(doc),
    }
}

/// What a patch made, brought into shape like what a client sends.
pub fn patched(ctx: &Ctx, doc: &Doc, custom: &Custom, validation: Validation) -> Result<Doc, ApiError> {
    let (shaped, unknown) = custom.admit(doc).map_err(|e| {
        let mut errors = ErrorList::new();
        errors.push(FieldError::invalid("patch", doc.to_value(), e.0));
        ApiError::invalid(crate::http::Group("", ""), "", &errors)
    })?;
    let complaints: Vec<String> = unknown.iter().map(|u| format!("unknown field {u:?}")).collect();
    match validation {
        Validation::Strict if !complaints.is_empty() => {
            let mut errors = ErrorList::new();
            let value = String::from_utf8_lossy(&doc.to_json()).into_owned();
            errors.push(FieldError::invalid("patch", value, format!("strict decoding error: {}", complaints.join(", "))));
            Err(ApiError::invalid(crate::http::Group("", ""), "", &errors))
        }
        Validation::Warn => {
            complaints.into_iter().for_each(|c| ctx.warn(c));
            Ok(shaped)
        }
        _ => Ok(shaped),
    }
}

/// Errors that keep the schema's rules from being looked at.
fn blocks(e: &FieldError) -> bool {
    matches!(e.kind, Kind::NotSupported | Kind::Required | Kind::TooLong | Kind::TooMany | Kind::TypeInvalid)
}

/// The rules are asked only of objects that are otherwise well formed. Warnings are handed back.
fn rules(custom: &Custom, v: &Value, old: Option<&Value>, e: &mut ErrorList) -> Vec<String> {
    let Some(rules) = custom.rules() else { return Vec::new() };
    if e.iter().any(blocks) {
        let why =
            "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        e.push(FieldError::invalid(validate::NO_FIELD, Value::Null, why));
        return Vec::new();
    }
    cel::validate(rules, v, old, "", e)
}

/// The numbers of the scale subresource.
fn scale(custom: &Custom, v: &Value, status_too: bool, e: &mut ErrorList) {
    let Some(scale) = &custom.version().scale else { return };
    for (path, on) in [(&scale.spec_replicas, true), (&scale.status_replicas, status_too)] {
        let n = path.trim_start_matches('.').split('.').try_fold(v, |v, p| v.get(p)).and_then(Value::as_i64);
        if let Some(n) = n.filter(|n| on && *n < 0) {
            e.push(FieldError::invalid(path.as_str(), n, "should be a non-negative integer"));
        }
        if let Some(n) = n.filter(|n| on && *n > i64::from(i32::MAX)) {
            e.push(FieldError::invalid(path.as_str(), n, "should be less than or equal to 2147483647"));
        }
    }
}

/// The kind cannot be told by decoding, as everything is decoded alike.
fn kind(custom: &Custom, v: &Value) -> Option<FieldError> {
    let given = v["kind"].as_str().unwrap_or("");
    let want = &custom.definition.kind;
    (given != want).then(|| FieldError::invalid("kind", given, format!("must be {want}")))
}

/// What is wrong with a new object; `e` has what is wrong with its metadata.
pub fn validate_create(custom: &Custom, doc: &Doc, e: &mut ErrorList) {
    let (v, s) = (doc.to_value(), &custom.version().schema);
    if let Some(wrong) = kind(custom, &v) {
        *e = ErrorList::new();
        e.push(wrong);
        return;
    }
    validate::validate(&v, None, s, "", e);
    scale(custom, &v, true, e);
    validate::embedded(&v, s, "", e);
    validate::unique(&v, s, "", e);
    rules(custom, &v, None, e);
}

/// What is wrong with a changed object, and what is only worth a warning.
pub fn validate_update(custom: &Custom, action: Action, new: &Doc, old: &Doc, e: &mut ErrorList) -> Vec<String> {
    let (v, before, s) = (new.to_value(), old.to_value(), &custom.version().schema);
    if let Some(wrong) = kind(custom, &v) {
        *e = ErrorList::new();
        e.push(wrong);
        return Vec::new();
    }
    // Upstream checks metadata once for all kinds and once for these.
    e.append(e.clone());
    if action == Action::Status {
        if let Some((v, s)) = v.get("status").zip(s.properties.get("status")) {
            validate::validate(v, before.get("status"), s, "status", e);
        }
    } else {
        validate::validate(&v, Some(&before), s, "", e);
    }
    scale(custom, &v, true, e);
    validate::embedded(&v, s, "", e);
    let mut had = ErrorList::new();
    validate::unique(&before, s, "", &mut had);
    if had.is_empty() {
        validate::unique(&v, s, "", e);
    }
    rules(custom, &v, Some(&before), e)
}

/// Finalizers without a domain are allowed and unwise.
pub fn warnings(doc: &Doc, old: Option<&Doc>) -> Vec<String> {
    const STANDARD: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
    doc.meta()
        .finalizers()
        .filter(|f| !f.contains('/') && !STANDARD.contains(f) && !old.is_some_and(|o| o.meta().finalizers().any(|x| x == *f)))
        .map(|f| format!("metadata.finalizers: {f:?}: prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers"))
        .collect()
}
