//! Whether the schema of a definition is one: supported keywords, structural, with defaults that it accepts itself.

use serde_json::{Map, Value};

use super::{
    cel, formats, shape,
    structural::{Pattern, Schema},
    validate as values,
};
use crate::validation::{ErrorList, FieldError, child, index, key};

/// Schemas nest at most this deep; the decoder stops before.
const MAX_DEPTH: usize = 256;

/// Checks a schema at `path` and appends what is wrong.
pub fn validate(v: &Value, path: &str, e: &mut ErrorList) {
    if is(v, "nullable") {
        e.push(FieldError::forbidden(child(path, "nullable"), "nullable cannot be true at the root"));
    }
    let before = e.len();
    let unsupported = supported(v, path, true, 0, e);
    if unsupported {
        return;
    }
    let mut structure = ErrorList::new();
    structural(v, path, Level::Root, &mut structure);
    if !structure.is_empty() {
        e.append(structure);
        return;
    }
    if e.len() == before {
        cel::definition::check(&Schema::of(v), path, e);
    }
    if e.len() == before {
        defaults(v, path, true, e);
    }
}

fn is(v: &Value, field: &str) -> bool {
    v.get(field).and_then(Value::as_bool) == Some(true)
}

fn text<'a>(v: &'a Value, field: &str) -> &'a str {
    v.get(field).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(v: &'a Value, field: &str) -> &'a [Value] {
    v.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The properties in the order of their names, as upstream's errors come.
fn properties<'a>(v: &'a Value, field: &str) -> Vec<(&'a String, &'a Value)> {
    let mut all: Vec<(&String, &Value)> = v.get(field).and_then(Value::as_object).into_iter().flatten().collect();
    all.sort_by_key(|(name, _)| *name);
    all
}

fn is_empty(v: Option<&Value>) -> bool {
    match v {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(Value::Array(a)) => a.is_empty(),
        Some(Value::Object(m)) => m.is_empty(),
        _ => false,
    }
}

/// Keywords of JSON schema that are not supported, and rules of those that are. Whether there was one that makes the schema no
/// structural one at all.
fn supported(v: &Value, path: &str, root: bool, depth: usize, e: &mut ErrorList) -> bool {
    if depth > MAX_DEPTH {
        e.push(FieldError::forbidden(path, "nested too deep"));
        return true;
    }
    let mut broken = false;
    let mut forbid = |field: &str, why: String, e: &mut ErrorList| {
        e.push(FieldError::forbidden(child(path, field), why));
        broken = true;
    };
    for field in ["$ref", "id", "patternProperties", "definitions", "dependencies", "additionalItems"] {
        let set = match v.get(field) {
            Some(Value::Bool(_)) => true,
            other => !is_empty(other),
        };
        if set {
            forbid(field, format!("{field} is not supported"), e);
        }
    }
    if is(v, "uniqueItems") {
        forbid("uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic".into(), e);
    }
    if v.get("items").is_some_and(Value::is_array) {
        forbid("items", "items must be a schema object and not an array".into(), e);
    }
    let additional = v.get("additionalProperties");
    if additional.is_some_and(|a| a.is_object() || *a == Value::Bool(true)) && !is_empty(v.get("properties")) {
        e.push(FieldError::forbidden(child(path, "additionalProperties"), "additionalProperties and properties are mutual exclusive"));
        broken = true;
    }
    if root && additional.is_some_and(Value::is_object) {
        e.push(FieldError::forbidden(child(path, "additionalProperties"), "must not be used at the root"));
        broken = true;
    }
    let ty = text(v, "type");
    const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
    if !ty.is_empty() && !TYPES.contains(&ty) {
        e.push(FieldError::not_supported(child(path, "type"), ty, &TYPES));
        broken = true;
    }
    if let Some(p) = v.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty())
        && let Err(why) = Pattern::compile(p)
    {
        let why = format!("must be a valid regular expression, but isn't: error parsing regexp: {}", go_regexp_error(p, &why));
        e.push(FieldError::invalid(child(path, "pattern"), p, why));
    }
    if v.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        e.push(FieldError::invalid(child(path, "x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined"));
    }
    lists(v, path, e);
    for (name, p) in properties(v, "properties") {
        broken |= supported(p, &key(&child(path, "properties"), name), false, depth + 1, e);
    }
    if let Some(a) = additional.filter(|a| a.is_object()) {
        broken |= supported(a, &child(path, "additionalProperties"), false, depth + 1, e);
    }
    if let Some(i) = v.get("items").filter(|i| i.is_object()) {
        broken |= supported(i, &child(path, "items"), false, depth + 1, e);
    }
    for field in ["allOf", "anyOf", "oneOf"] {
        for (i, s) in list(v, field).iter().enumerate() {
            broken |= supported(s, &index(&child(path, field), i), false, depth + 1, e);
        }
    }
    if let Some(n) = v.get("not").filter(|n| n.is_object()) {
        broken |= supported(n, &child(path, "not"), false, depth + 1, e);
    }
    broken
}

/// What the regex crate says, as Go would.
fn go_regexp_error(pattern: &str, why: &regex::Error) -> String {
    for group in ["(?=", "(?!", "(?<=", "(?<!", "(?>"] {
        if pattern.contains(group) {
            return format!("invalid or unsupported Perl syntax: `{}`", &group[..group.len().min(3)]);
        }
    }
    let why = why.to_string();
    if why.contains("unclosed character class") {
        let from = pattern.rfind('[').unwrap_or(0);
        return format!("missing closing ]: `{}`", &pattern[from..]);
    }
    if why.contains("unclosed group") {
        return format!("missing closing ): `{pattern}`");
    }
    if why.contains("unopened group") {
        return format!("unexpected ): `{pattern}`");
    }
    if why.contains("repetition operator missing expression") {
        let c = pattern.find(['*', '+', '?']).map_or("*", |i| &pattern[i..=i]);
        return format!("missing argument to repetition operator: `{c}`");
    }
    if why.contains("exceeds size limit") {
        return "expression too large".into();
    }
    format!("invalid syntax: `{pattern}`")
}

/// `x-kubernetes-list-type` and `x-kubernetes-map-type`.
fn lists(v: &Value, path: &str, e: &mut ErrorList) {
    let (ty, list_type, map_type) = (text(v, "type"), text(v, "x-kubernetes-list-type"), text(v, "x-kubernetes-map-type"));
    let keys: Vec<&str> = list(v, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).collect();
    if !list_type.is_empty() {
        if ty != "array" {
            e.push(if ty.is_empty() {
                FieldError::required(child(path, "type"), "must be array if x-kubernetes-list-type is specified")
            } else {
                FieldError::invalid(child(path, "type"), ty, "must be array if x-kubernetes-list-type is specified")
            });
        } else if !matches!(list_type, "atomic" | "set" | "map") {
            e.push(FieldError::not_supported(child(path, "x-kubernetes-list-type"), list_type, &["atomic", "set", "map"]));
        }
    }
    if !keys.is_empty() && list_type != "map" {
        let at = child(path, "x-kubernetes-list-type");
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        e.push(if list_type.is_empty() { FieldError::required(at, why) } else { FieldError::invalid(at, list_type, why) });
    }
    if list_type == "map" && ty == "array" {
        map_list(v, path, &keys, e);
    }
    if list_type == "set"
        && ty == "array"
        && let Some(items) = v.get("items").filter(|i| i.is_object())
    {
        let at = child(path, "items");
        let kind = match text(items, "type") {
            "object" => Some(("x-kubernetes-map-type", text(items, "x-kubernetes-map-type"))),
            "array" => Some(("x-kubernetes-list-type", text(items, "x-kubernetes-list-type"))),
            _ => None,
        };
        if let Some((field, given)) = kind.filter(|(_, g)| *g != "atomic") {
            let shown = if given.is_empty() { "null".to_owned() } else { format!("{given:?}") };
            let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
            e.push(FieldError::invalid_raw(child(&at, field), &shown, why));
        }
    }
    if !map_type.is_empty() {
        if ty != "object" {
            let why = "must be object if x-kubernetes-map-type is specified";
            e.push(if ty.is_empty() {
                FieldError::required(child(path, "type"), why)
            } else {
                FieldError::invalid(child(path, "type"), ty, why)
            });
        } else if !matches!(map_type, "atomic" | "granular") {
            e.push(FieldError::not_supported(child(path, "x-kubernetes-map-type"), map_type, &["atomic", "granular"]));
        }
    }
}

fn map_list(v: &Value, path: &str, keys: &[&str], e: &mut ErrorList) {
    let keys_at = child(path, "x-kubernetes-list-map-keys");
    if keys.is_empty() {
        e.push(FieldError::required(keys_at, "must not be empty if x-kubernetes-list-type is map"));
        return;
    }
    let Some(items) = v.get("items").filter(|i| i.is_object()) else { return };
    let ty = text(items, "type");
    if ty != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        e.push(FieldError::invalid(format!("{path}.items.type"), ty, why));
        return;
    }
    let required: Vec<&str> = list(items, "required").iter().filter_map(Value::as_str).collect();
    for k in keys {
        match items.get("properties").and_then(|p| p.get(k)) {
            None => {
                e.push(FieldError::invalid(keys_at.clone(), Value::from(keys.to_vec()), "entries must all be names of item properties"));
                return;
            }
            Some(p) if is_empty(p.get("default")) && !required.contains(k) => {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                e.push(FieldError::required(format!("{path}.items.properties[{k}].default"), why));
            }
            Some(_) => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Every value has one type, and what combines schemas adds only values' rules.
fn structural(v: &Value, path: &str, level: Level, e: &mut ErrorList) {
    let ty = text(v, "type");
    let at = child(path, "type");
    let (free, embedded) = (is(v, "x-kubernetes-preserve-unknown-fields"), is(v, "x-kubernetes-embedded-resource"));
    if embedded && is_empty(v.get("properties")) && !free {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        e.push(FieldError::required(child(path, "properties"), why));
    }
    match (ty, level) {
        ("", _) if embedded => e.push(FieldError::required(at, "must be object if x-kubernetes-embedded-resource is true")),
        ("object", _) => {}
        (t, _) if embedded => e.push(FieldError::invalid(at, t, "must be object if x-kubernetes-embedded-resource is true")),
        ("", Level::Root) => e.push(FieldError::required(at, "must not be empty at the root")),
        (t, Level::Root) => e.push(FieldError::invalid(at, t, "must be object at the root")),
        ("", _) if is(v, "x-kubernetes-int-or-string") || free => {}
        ("", Level::Field) => e.push(FieldError::required(at, "must not be empty for specified object fields")),
        ("", Level::Item) => e.push(FieldError::required(at, "must not be empty for specified array items")),
        _ => {}
    }
    if ty == "array" && v.get("items").is_none_or(Value::is_null) {
        e.push(FieldError::required(child(path, "items"), "must be specified"));
    }
    if level == Level::Root || embedded {
        type_and_meta(v, path, e);
    }
    for (name, p) in properties(v, "properties") {
        structural(p, &key(&child(path, "properties"), name), Level::Field, e);
    }
    if let Some(a) = v.get("additionalProperties").filter(|a| a.is_object()) {
        structural(a, &child(path, "additionalProperties"), Level::Field, e);
    }
    if let Some(i) = v.get("items").filter(|i| i.is_object()) {
        structural(i, &child(path, "items"), Level::Item, e);
    }
    combinators(v, path, is(v, "x-kubernetes-int-or-string"), e);
}

fn type_and_meta(v: &Value, path: &str, e: &mut ErrorList) {
    let Some(all) = v.get("properties") else { return };
    let at = |name: &str| key(&child(path, "properties"), name);
    for name in ["apiVersion", "kind"] {
        if let Some(p) = all.get(name)
            && text(p, "type") != "string"
            && !text(p, "type").is_empty()
        {
            e.push(FieldError::invalid(child(&at(name), "type"), text(p, "type"), "must be string"));
        }
    }
    let Some(meta) = all.get("metadata") else { return };
    let ty = text(meta, "type");
    if ty != "object" && !ty.is_empty() {
        e.push(FieldError::invalid(child(&at("metadata"), "type"), ty, "must be object"));
        return;
    }
    let mut known = Map::new();
    known.insert("type".into(), Value::from("object"));
    let extra = meta.as_object().into_iter().flatten().any(|(k, v)| match k.as_str() {
        "type" | "description" | "default" => false,
        "properties" => v.as_object().is_some_and(|p| p.keys().any(|k| k != "name" && k != "generateName")),
        _ => true,
    });
    if extra {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        e.push(FieldError::forbidden(at("metadata"), why));
    }
    if meta.get("default").is_some_and(|d| !d.is_null()) {
        e.push(FieldError::forbidden(child(&at("metadata"), "default"), "must not be set in top-level metadata"));
    }
}

/// An int-or-string may say so once more by a combination of the two types.
fn says_int_or_string(alternatives: &[Value]) -> bool {
    let types: Vec<&Value> = alternatives.iter().filter_map(|a| a.get("type")).collect();
    alternatives.len() == 2
        && alternatives.iter().all(|a| a.as_object().is_some_and(|m| m.len() == 1))
        && types == [&Value::from("integer"), &Value::from("string")]
}

fn combinators(v: &Value, path: &str, int_or_string: bool, e: &mut ErrorList) {
    for field in ["allOf", "anyOf", "oneOf"] {
        let all = list(v, field);
        if int_or_string && field == "anyOf" && says_int_or_string(all) {
            continue;
        }
        for (i, s) in all.iter().enumerate() {
            if int_or_string && field == "allOf" && i == 0 && says_int_or_string(list(s, "anyOf")) {
                continue;
            }
            value_rules(s, &index(&child(path, field), i), e);
        }
    }
    if let Some(n) = v.get("not").filter(|n| n.is_object()) {
        value_rules(n, &child(path, "not"), e);
    }
}

fn value_rules(v: &Value, path: &str, e: &mut ErrorList) {
    for field in ["type", "title", "description"] {
        if !text(v, field).is_empty() {
            e.push(FieldError::forbidden(child(path, field), "must be empty to be structural"));
        }
    }
    if v.get("default").is_some_and(|d| !d.is_null()) {
        e.push(FieldError::forbidden(child(path, "default"), "must be undefined to be structural"));
    }
    if v.get("additionalProperties").is_some_and(|a| !a.is_null()) {
        e.push(FieldError::forbidden(child(path, "additionalProperties"), "must be undefined to be structural"));
    }
    for field in ["nullable", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource", "x-kubernetes-int-or-string"] {
        if is(v, field) {
            e.push(FieldError::forbidden(child(path, field), "must be false to be structural"));
        }
    }
    if !is_empty(v.get("x-kubernetes-validations")) {
        e.push(FieldError::forbidden(child(path, "x-kubernetes-validations"), "must be empty to be structural"));
    }
    for (name, p) in properties(v, "properties") {
        value_rules(p, &key(&child(path, "properties"), name), e);
    }
    if let Some(i) = v.get("items").filter(|i| i.is_object()) {
        value_rules(i, &child(path, "items"), e);
    }
    combinators(v, path, false, e);
}

/// Defaults have to be values that their schema accepts.
fn defaults(v: &Value, path: &str, root: bool, e: &mut ErrorList) {
    if let Some(d) = v.get("default").filter(|d| !d.is_null()) {
        let (s, at) = (Schema::of(v), child(path, "default"));
        let mut pruned = d.clone();
        let mut unknown = Vec::new();
        shape::prune(&mut pruned, &s, root, &mut unknown);
        if !unknown.is_empty() {
            e.push(FieldError::invalid(at, d.clone(), "must not have unknown fields"));
        } else {
            let mut whole = d.clone();
            shape::default(&mut whole, &s);
            let before = e.len();
            values::validate(&whole, None, &s, &at, e);
            if e.len() == before
                && let Some(rules) = cel::Rules::of(&s, root)
            {
                cel::validate(&rules, &whole, None, &at, e);
            }
            if root {
                let resource = Schema { embedded: true, ..s };
                values::embedded(&whole, &resource, &at, e);
            } else {
                values::embedded(&whole, &s, &at, e);
            }
        }
    }
    for (name, p) in properties(v, "properties") {
        defaults(p, &key(&child(path, "properties"), name), false, e);
    }
    if let Some(a) = v.get("additionalProperties").filter(|a| a.is_object()) {
        defaults(a, &child(path, "additionalProperties"), false, e);
    }
    if let Some(i) = v.get("items").filter(|i| i.is_object()) {
        defaults(i, &child(path, "items"), false, e);
    }
}

/// Formats that are no rule, for warnings.
pub fn unknown_formats(v: &Value, out: &mut Vec<String>) {
    let format = text(v, "format");
    if !format.is_empty() && !formats::KNOWN.contains(&format.replace('-', "").as_str()) && !formats::KNOWN.contains(&format) {
        let w = format!("unrecognized format {format:?}");
        if !out.contains(&w) {
            out.push(w);
        }
    }
    for (_, p) in properties(v, "properties") {
        unknown_formats(p, out);
    }
    for field in ["items", "additionalProperties"] {
        if let Some(s) = v.get(field).filter(|s| s.is_object()) {
            unknown_formats(s, out);
        }
    }
}
