//! Turning a request's body into a document, with upstream's complaints.

use bytes::Bytes;
use k8s_schema::{Doc, TypeId, peek_type_meta};
use serde::Deserialize;
use serde_json::Value;

use super::{Ctx, Validation};
use crate::{
    custom::{Custom, objects},
    http::{ApiError, Media, negotiate},
};

/// What the endpoint takes.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub ty: TypeId,
    pub custom: Option<&'a Custom>,
}

impl Expected<'_> {
    fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// The beginning of a body, as upstream quotes it: as text when it looks like JSON objects, in hexadecimal otherwise.
fn quoted(body: &[u8]) -> String {
    if body.is_empty() {
        return "<empty>".into();
    }
    let text = body[0] == b'{';
    let cut = &body[..body.len().min(30)];
    let mut s = if text { String::from_utf8_lossy(cut).into_owned() } else { cut.iter().map(|b| format!("{b:02x}")).collect() };
    if body.len() > 30 {
        s.push_str(" ...");
    }
    s
}

/// Whether some mapping takes over another one.
fn merges(v: &Value) -> bool {
    match v {
        Value::Object(m) => m.contains_key("<<") || m.values().any(merges),
        Value::Array(a) => a.iter().any(merges),
        _ => false,
    }
}

/// A YAML body as JSON, and the keys that it has twice.
#[derive(Debug)]
pub struct FromYaml {
    pub json: Bytes,
    pub repeated: Vec<(usize, String)>,
}

impl FromYaml {
    /// Upstream's complaint about keys that are there twice.
    fn complaint(&self) -> Option<String> {
        let lines: Vec<String> = self.repeated.iter().map(|(line, key)| format!("  line {line}: key {key:?} already set in map")).collect();
        (!lines.is_empty()).then(|| format!("yaml: unmarshal errors:\n{}", lines.join("\n")))
    }
}

/// YAML bodies become JSON; both then go one way.
pub fn yaml_to_json(body: &[u8]) -> Result<FromYaml, String> {
    let Some(read) = read_yaml(body)? else { return Ok(FromYaml { json: Bytes::from_static(b"null"), repeated: Vec::new() }) };
    let json = serde_json::to_vec(&read.value).map(Bytes::from).map_err(|e| e.to_string())?;
    Ok(FromYaml { json, repeated: read.repeated })
}

/// What a YAML body holds, which is often JSON.
pub fn yaml_to_value(body: &[u8]) -> Result<Value, String> {
    if let Some(value) = super::plain_json::read(body) {
        return Ok(value);
    }
    Ok(read_yaml(body)?.map_or(Value::Null, |read| read.value))
}

fn read_yaml(body: &[u8]) -> Result<Option<super::yaml_budget::Read>, String> {
    // Of several documents the first one counts, and of a key that comes twice the last value.
    let first = || serde_yaml::Deserializer::from_slice(body).next();
    let Some(document) = first() else { return Ok(None) };
    let mut read = super::yaml_budget::read(document, body).map_err(|e| yaml_error(&e))?;
    if merges(&read.value)
        && let Some(document) = first()
    {
        let mut merged = serde_yaml::Value::deserialize(document).map_err(|e| e.to_string())?;
        merged.apply_merge().map_err(|e| e.to_string())?;
        read.value = serde_json::to_value(merged).map_err(|e| e.to_string())?;
    }
    Ok(Some(read))
}

/// A complaint of the parser, `what at line 2 column 1, while …`, in upstream's form.
fn yaml_error(e: &str) -> String {
    if e.contains("excessive aliasing") || e.contains("repetition limit exceeded") {
        return "yaml: document contains excessive aliasing".into();
    }
    let Some((what, place)) = e.split_once(" at line ") else { return format!("yaml: {e}") };
    let line: usize = place.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0);
    // A path to the place may stand before what is wrong.
    let what = what.rsplit_once(": ").map_or(what, |(_, w)| w);
    match what {
        "recursion limit exceeded" => format!("yaml: line {line}: exceeded max depth of 10000"),
        // What the scanner finds is told by the line it is in, what the parser misses by the one before.
        w if w.starts_with("did not find expected") && line > 1 => format!("yaml: line {}: {w}", line - 1),
        w if line > 1 => format!("yaml: line {line}: {w}"),
        w => format!("yaml: {w}"),
    }
}

/// Reads `body` as what the endpoint takes. Unknown and duplicate fields are ignored, warned of or refused.
pub fn decode(ctx: &Ctx, body: Bytes, want: Expected<'_>, validation: Validation) -> Result<Doc, ApiError> {
    let media = negotiate::content(&ctx.headers)?;
    decode_as(ctx, body, media, want, validation)
}

pub fn decode_as(ctx: &Ctx, body: Bytes, media: Media, want: Expected<'_>, validation: Validation) -> Result<Doc, ApiError> {
    let schema = &ctx.server.objects.schema;
    let given = quoted(&body);
    let unrecognized =
        |e: String| ApiError::bad_request(format!("the object provided is unrecognized (must be of type {}): {e} ({given})", want.kind));
    let unhandled =
        |e: String| ApiError::bad_request(format!("{} in version {:?} cannot be handled as a {}: {e}", want.kind, want.version, want.kind));
    let mut repeated = None;
    let body = match media {
        Media::Protobuf if want.custom.is_some() => {
            return Err(ApiError::unsupported_media_type("application/vnd.kubernetes.protobuf", &["application/json", "application/yaml"]));
        }
        Media::Protobuf => {
            if body.is_empty() {
                return Err(unrecognized("empty data".into()));
            }
            if body == crate::objects::PROTOBUF_MAGIC {
                return Err(unrecognized("empty body".into()));
            }
            if !body.starts_with(crate::objects::PROTOBUF_MAGIC) {
                return Err(unrecognized("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into()));
            }
            let envelope = k8s_schema::proto::open_envelope(&body);
            let envelope = envelope.map_err(|e| unrecognized(e.to_string().replacen("proto: illegal", "proto: Unknown: illegal", 1)))?;
            if envelope.api_version.is_empty() && envelope.kind.is_empty() {
                let mut doc = Doc::from_protobuf_message(schema, want.ty, envelope.raw).map_err(|e| unhandled(e.to_string()))?;
                doc.set_type_meta(&want.api_version(), want.kind);
                return Ok(doc);
            }
            let doc = Doc::from_protobuf(schema, body.clone()).map_err(|e| unhandled(e.to_string()))?;
            if doc.type_id() != want.ty {
                let (av, kind) = (doc.api_version().to_owned(), doc.kind().to_owned());
                check_type(ctx, &av, &kind, want)?;
            }
            return Ok(doc);
        }
        Media::Yaml => {
            let read = yaml_to_json(&body).map_err(unrecognized)?;
            repeated = read.complaint();
            read.json
        }
        Media::Json => body,
    };
    if let Some(custom) = want.custom {
        return objects::decode(ctx, &body, custom, validation, unrecognized);
    }
    let meta = peek_type_meta(&body).map_err(|e| unrecognized_json(want, &e.to_string(), &given))?;
    if meta.api_version.split('/').count() > 2 {
        return Err(unrecognized(format!("unexpected GroupVersion string: {}", meta.api_version)));
    }
    check_type(ctx, &meta.api_version, &meta.kind, want)?;
    let mut decoded = Doc::from_json(schema, want.ty, body).map_err(|e| unhandled(e.to_string()))?;
    if let Some(complaint) = repeated {
        decoded.strict.insert(0, complaint);
    }
    if !decoded.strict.is_empty() {
        match validation {
            Validation::Ignore => {}
            Validation::Warn => decoded.strict.iter().for_each(|w| ctx.warn(w.clone())),
            Validation::Strict => {
                return Err(unhandled(format!("strict decoding error: {}", decoded.strict.join(", "))));
            }
        }
    }
    let mut doc = decoded.doc;
    // What the path says counts when the body says nothing.
    doc.set_type_meta(&want.api_version(), want.kind);
    Ok(doc)
}

/// Whether a body is of the kind that the endpoint takes.
pub fn check_kind(ctx: &Ctx, body: &[u8], want: Expected<'_>) -> Result<(), ApiError> {
    let meta = peek_type_meta(body).map_err(|e| unrecognized_json(want, &e.to_string(), &quoted(body)))?;
    check_type(ctx, &meta.api_version, &meta.kind, want)
}

/// [`check_kind`] of a body that was read.
pub fn check_kind_of(ctx: &Ctx, value: &Value, want: Expected<'_>) -> Result<(), ApiError> {
    let Value::Object(map) = value else { return check_kind(ctx, value.to_string().as_bytes(), want) };
    // Names that differ in case alone count too.
    let plain = |name: &str| map.keys().all(|k| k == name || !k.eq_ignore_ascii_case(name));
    match (map.get("apiVersion"), map.get("kind")) {
        (Some(Value::String(api_version)), Some(Value::String(kind))) if plain("apiVersion") && plain("kind") => {
            check_type(ctx, api_version, kind, want)
        }
        _ => check_kind(ctx, value.to_string().as_bytes(), want),
    }
}

fn unrecognized_json(want: Expected<'_>, why: &str, given: &str) -> ApiError {
    let why = why.strip_prefix("couldn't get version/kind; json parse error: ").unwrap_or(why);
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {why} ({given})",
        want.kind
    ))
}

const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";

/// The body may leave its type out, but not name another.
fn check_type(ctx: &Ctx, api_version: &str, kind: &str, want: Expected<'_>) -> Result<(), ApiError> {
    let expected = want.api_version();
    let (av, kind) = (if api_version.is_empty() { &expected } else { api_version }, if kind.is_empty() { want.kind } else { kind });
    if kind == want.kind && av == expected {
        return Ok(());
    }
    let (group, version) = av.split_once('/').unwrap_or(("", av));
    // A version that is read no more but still known by name.
    let former = (group, version) == ("apiextensions.k8s.io", "v1beta1");
    let known = former || ctx.server.objects.schema.kind(group, version, kind).is_some();
    let why = if !known {
        format!("no kind {kind:?} is registered for version {av:?} in scheme {SCHEME:?}")
    } else if kind == want.kind {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({av}) does not match the expected API version ({expected})"
        )));
    } else {
        let internal = if want.group.is_empty() { "core" } else { want.group.split('.').next().unwrap_or(want.group) };
        format!("converting ({version}.{kind}) to ({internal}.{}): unknown conversion", want.kind)
    };
    Err(ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", want.kind)))
}
