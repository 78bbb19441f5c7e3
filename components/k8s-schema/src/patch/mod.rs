//! Patches: JSON patch, JSON merge patch and strategic merge patch, as pure functions from document to document.
//!
//! A patch works on the JSON form of the object in its own version, as upstream's does, and the outcome is decoded again,
//! so that every rule of decoding holds for patched objects too.

mod direct;
mod json_patch;
mod merge_patch;
mod print;
mod strategic;

use crate::doc::Doc;
use crate::json::{DecodeError, syntax};
use crate::table::{Schema, TypeId};
use bytes::Bytes;
use serde_json::Value;

pub use merge_patch::merge_value;

/// Why a patch was refused, by the status it becomes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// 400 BadRequest with this message.
    #[error("{0}")]
    BadRequest(String),
    /// 422 Invalid with upstream's generic message; this one is for logs.
    #[error("{0}")]
    Unprocessable(String),
    /// 422 Invalid with the cause `patch: Invalid value: <value>: <detail>`.
    #[error("{detail}")]
    Invalid {
        /// What the patch made, or the patch.
        value: String,
        /// What is wrong with it.
        detail: String,
    },
    /// 413 RequestEntityTooLarge with this message.
    #[error("{0}")]
    TooLarge(String),
    /// 500 with this message: upstream does not classify these.
    #[error("{0}")]
    Internal(String),
}

/// A patched document.
#[derive(Debug, Clone)]
pub struct Patched {
    /// The document.
    pub doc: Doc,
    /// What strict field validation would complain about.
    pub strict: Vec<String>,
    shown: String,
}

impl Patched {
    /// The error of strict field validation, when there is something to complain about.
    pub fn strict_error(&self) -> Option<PatchError> {
        (!self.strict.is_empty()).then(|| PatchError::Invalid {
            value: self.shown.clone(),
            detail: format!("strict decoding error: {}", self.strict.join(", ")),
        })
    }
}

/// Applies a JSON patch (RFC 6902). `validate` is false for `fieldValidation=Ignore`.
pub fn json_patch(doc: &Doc, patch: &[u8], validate: bool) -> Result<Patched, PatchError> {
    let (operations, strict) = json_patch::parse(patch, validate)?;
    let mut value = doc.to_value();
    json_patch::apply(&mut value, operations).map_err(PatchError::Unprocessable)?;
    decode(doc, &value, strict)
}

/// Applies a JSON merge patch (RFC 7396).
pub fn merge_patch(doc: &Doc, patch: &[u8], validate: bool) -> Result<Patched, PatchError> {
    let (value, strict) = match parse_object(patch) {
        Ok(parsed) => parsed,
        Err(e) if validate => return Err(PatchError::BadRequest(format!("error decoding patch: {e}"))),
        Err(_) => return Err(PatchError::BadRequest("Invalid JSON Patch".to_owned())),
    };
    let Value::Object(patch) = value else { return Err(PatchError::BadRequest("Invalid JSON Patch".to_owned())) };
    if strict.is_empty()
        && let Some(patched) = direct::merge(doc, &patch)
    {
        debug_assert!(
            over_json(doc, patch, strict).is_ok_and(|slow| slow.strict.is_empty()
                && slow.doc.to_json() == patched.to_json()
                && slow.doc.to_protobuf() == patched.to_protobuf()),
            "the two ways of a merge patch agree"
        );
        return Ok(Patched { doc: patched, strict: Vec::new(), shown: String::new() });
    }
    over_json(doc, patch, strict)
}

fn over_json(doc: &Doc, patch: serde_json::Map<String, Value>, strict: Vec<String>) -> Result<Patched, PatchError> {
    let mut target = doc.to_value();
    if let Value::Object(map) = &mut target {
        merge_patch::merge(map, patch);
    }
    decode(doc, &target, strict)
}

/// Applies a strategic merge patch.
pub fn strategic_merge_patch(doc: &Doc, patch: &[u8]) -> Result<Patched, PatchError> {
    let (patch, mut strict) = parse_object(patch).map_err(PatchError::BadRequest)?;
    let Value::Object(patch) = patch else { return Ok(Patched { doc: doc.clone(), strict, shown: String::new() }) };
    let shown = print::go_value(&Value::Object(patch.clone()));
    let Value::Object(original) = doc.to_value() else { return Err(PatchError::Internal("the document is no object".to_owned())) };
    let mut merged = Value::Object(strategic::merge(doc.schema(), doc.type_id(), original, patch)?);
    if let Value::Object(map) = &mut merged {
        // The type of the object is not the patch's to change.
        map.insert("apiVersion".to_owned(), Value::from(doc.api_version()));
        map.insert("kind".to_owned(), Value::from(doc.kind()));
    }
    if let Err(detail) = strategic::coerce(doc.schema(), doc.type_id(), &mut merged) {
        return Err(PatchError::Invalid { value: shown, detail });
    }
    match Doc::from_value(doc.schema(), doc.type_id(), &merged) {
        Ok(decoded) => {
            strict.extend(decoded.strict);
            Ok(Patched { doc: decoded.doc, strict, shown })
        }
        Err(e) => Err(PatchError::Invalid { value: shown, detail: e.to_string() }),
    }
}

/// Where upstream's registry of kinds was made, which its errors name.
const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";

/// Decodes what a patch made. A patch may remove the kind, which is then the document's; a patch that changes it makes
/// something that cannot be decoded; a patch that removes the apiVersion leaves nothing, as upstream's decoder.
fn decode(doc: &Doc, value: &Value, mut strict: Vec<String>) -> Result<Patched, PatchError> {
    let shown = value.to_string();
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version.is_empty() && doc.ty().has_type_meta() {
        return Ok(Patched { doc: Doc::bare(doc.schema(), doc.type_id(), Bytes::new()), strict, shown });
    }
    if !kind.is_empty() && (kind, api_version) != (doc.kind(), doc.api_version()) {
        let detail = match doc.schema().kind_in(api_version, kind) {
            None => format!("no kind {kind:?} is registered for version {api_version:?} in scheme {SCHEME:?}"),
            Some(ty) => match Doc::from_json(doc.schema(), ty, Bytes::from(shown.clone())) {
                Err(e) => e.to_string(),
                Ok(_) => format!("converting ({}) to ({}): unknown conversion", doc.schema().ty(ty).go_name(), doc.ty().go_name()),
            },
        };
        return Err(PatchError::Invalid { value: shown, detail });
    }
    match Doc::from_json(doc.schema(), doc.type_id(), Bytes::from(shown.clone())) {
        Ok(mut decoded) => {
            strict.extend(decoded.strict);
            if kind.is_empty() {
                decoded.doc.set_type_meta(doc.api_version(), doc.kind());
            }
            Ok(Patched { doc: decoded.doc, strict, shown })
        }
        Err(e) => Err(PatchError::Invalid { value: shown, detail: e.to_string() }),
    }
}

/// A patch that has to be an object or null, with its duplicate fields. The errors are Go's.
fn parse_object(text: &[u8]) -> Result<(Value, Vec<String>), String> {
    syntax::check(text)?;
    let first = text.iter().find(|c| !c.is_ascii_whitespace()).copied().unwrap_or(b'n');
    if !matches!(first, b'{' | b'n') {
        return Err(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            crate::json::peek::describe(first)
        ));
    }
    let decoded = untyped(text).map_err(|e| e.to_string())?;
    if first == b'n' {
        return Ok((Value::Null, Vec::new()));
    }
    Ok((decoded.0, decoded.1))
}

fn untyped(text: &[u8]) -> Result<(Value, Vec<String>), DecodeError> {
    let decoded = Doc::from_json(&Schema::builtin(), TypeId::ANY, Bytes::copy_from_slice(text))?;
    Ok((decoded.doc.to_value(), decoded.strict))
}
