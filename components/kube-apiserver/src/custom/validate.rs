//! Validation of a custom resource's values against its schema, with upstream's texts and field paths.
//!
//! On updates a part that did not change and was wrong before is let through (ratcheting): `old` is the former value at the same place,
//! where places can be told to be the same.

use serde_json::{Map, Value};

use super::{
    formats,
    structural::{Additional, Schema},
};
use crate::validation::{ErrorList, FieldError};

/// The field of complaints that upstream gives no field.
pub const NO_FIELD: &str = "<nil>";

/// A complaint before it is known where the value stands.
enum Complaint {
    Field(FieldError),
    /// A text that upstream gives no field.
    Text(String),
}

#[derive(Default)]
struct Found(Vec<Complaint>);

impl Found {
    fn push(&mut self, e: FieldError) {
        self.0.push(Complaint::Field(e));
    }

    fn text(&mut self, t: String) {
        self.0.push(Complaint::Text(t));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

/// Where a value stands: `base` is the field of the root, `name` what messages call the value (relative to the root).
#[derive(Clone)]
struct Place {
    base: String,
    name: String,
}

impl Place {
    fn field(&self) -> String {
        match (self.base.is_empty(), self.name.is_empty()) {
            (true, true) => NO_FIELD.to_owned(),
            (true, false) => self.name.clone(),
            (false, true) => self.base.clone(),
            (false, false) => format!("{}.{}", self.base, self.name),
        }
    }

    fn child(&self, name: &str) -> Self {
        let name = if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) };
        Self { base: self.base.clone(), name }
    }

    fn index(&self, i: usize) -> Self {
        Self { base: self.base.clone(), name: format!("{}[{i}]", self.name) }
    }
}

/// Checks `v` (below the field `base`, which may be empty) and appends what is wrong.
pub fn validate(v: &Value, old: Option<&Value>, s: &Schema, base: &str, errors: &mut ErrorList) {
    let mut found = Found::default();
    check(v, old, s, &Place { base: base.to_owned(), name: String::new() }, &mut found);
    for c in found.0 {
        errors.push(match c {
            Complaint::Field(e) => e,
            Complaint::Text(t) => FieldError::invalid(if base.is_empty() { NO_FIELD } else { base }, "", t),
        });
    }
}

fn type_of(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integral(v: &Value) -> bool {
    v.as_f64().is_some_and(|f| f.fract() == 0.0)
}

fn check(v: &Value, old: Option<&Value>, s: &Schema, at: &Place, out: &mut Found) {
    if old == Some(v) {
        return;
    }
    let types: &[&str] = match s.ty.as_str() {
        _ if s.int_or_string => &["integer", "string"],
        "" => &[],
        t => &[t],
    };
    let fits = |t: &str| types.contains(&t);
    let ty = type_of(v);
    let right = types.is_empty()
        || fits(ty)
        || (ty == "null" && s.nullable)
        || (ty == "number" && fits("integer") && is_integral(v))
        || (ty == "integer" && fits("number"));
    if !right {
        let what = format!("{} in body must be of type {}: {ty:?}", at.name, types.join(","));
        out.push(FieldError::type_invalid(at.field(), ty, what));
    }
    if v.is_null() {
        enumerated(v, s, at, out);
        return;
    }
    combined(v, s, at, out);
    match v {
        Value::String(x) => {
            string(x, s, at, out);
            if !s.format.is_empty() && !formats::is_valid(&s.format, x) {
                let what = format!("{} in body must be of type {}: {x:?}", at.name, s.format);
                out.push(FieldError::type_invalid(at.field(), x, what));
            }
        }
        Value::Number(_) => number(v, s, at, out),
        Value::Array(list) => array(list, old, s, at, out),
        _ => {}
    }
    enumerated(v, s, at, out);
    if let Value::Object(m) = v {
        object(m, old, s, at, out);
    }
}

fn enumerated(v: &Value, s: &Schema, at: &Place, out: &mut Found) {
    let same = |e: &Value| e == v || (e.is_number() && v.is_number() && e.as_f64() == v.as_f64());
    if s.enum_.is_empty() || s.enum_.iter().any(same) || (v.is_null() && s.nullable) {
        return;
    }
    let allowed: Vec<String> = s.enum_.iter().map(|e| e.as_str().map_or_else(|| e.to_string(), str::to_owned)).collect();
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    out.push(FieldError::not_supported(at.field(), v.clone(), &allowed));
}

fn combined(v: &Value, s: &Schema, at: &Place, out: &mut Found) {
    let run = |s: &Schema| {
        let mut found = Found::default();
        check(v, None, s, at, &mut found);
        found
    };
    let name = if at.name.is_empty() { String::new() } else { at.name.clone() };
    if !s.any_of.is_empty() {
        let mut first = None;
        let mut ok = false;
        for a in &s.any_of {
            let found = run(a);
            if found.is_empty() {
                ok = true;
                break;
            }
            first.get_or_insert(found);
        }
        if let Some(found) = first.filter(|_| !ok) {
            out.text(format!("{name:?} must validate at least one schema (anyOf)"));
            out.append(found);
        }
    }
    if !s.one_of.is_empty() {
        let mut first = None;
        let mut valid = 0;
        for o in &s.one_of {
            let found = run(o);
            if found.is_empty() {
                valid += 1;
            } else {
                first.get_or_insert(found);
            }
        }
        if valid == 0 {
            out.text(format!("{name:?} must validate one and only one schema (oneOf). Found none valid"));
            if let Some(found) = first {
                out.append(found);
            }
        } else if valid > 1 {
            out.text(format!("{name:?} must validate one and only one schema (oneOf). Found {valid} valid alternatives"));
        }
    }
    if !s.all_of.is_empty() {
        let mut valid = 0;
        for a in &s.all_of {
            let found = run(a);
            valid += usize::from(found.is_empty());
            out.append(found);
        }
        if valid == 0 {
            out.text(format!("{name:?} must validate all the schemas (allOf). None validated"));
        } else if valid < s.all_of.len() {
            out.text(format!("{name:?} must validate all the schemas (allOf)"));
        }
    }
    if let Some(not) = &s.not
        && run(not).is_empty()
    {
        out.text(format!("{name:?} must not validate the schema (not)"));
    }
}

fn string(x: &str, s: &Schema, at: &Place, out: &mut Found) {
    let chars = i64::try_from(x.chars().count()).unwrap_or(i64::MAX);
    if let Some(max) = s.max_length.filter(|m| chars > *m) {
        out.push(FieldError::too_long(at.field(), x, usize::try_from(max).unwrap_or(0)));
    }
    if let Some(min) = s.min_length.filter(|m| chars < *m) {
        out.push(FieldError::invalid(at.field(), x, format!("{} in body should be at least {min} chars long", at.name)));
    }
    if let Some(p) = s.pattern.as_ref().filter(|p| !p.is_match(x)) {
        out.push(FieldError::invalid(at.field(), x, format!("{} in body should match '{}'", at.name, p.text)));
    }
}

/// A number as Go prints it.
fn shown(f: f64) -> String {
    format!("{f}")
}

fn number(v: &Value, s: &Schema, at: &Place, out: &mut Found) {
    let n = v.as_f64().unwrap_or(0.0);
    let whole = !matches!(v, Value::Number(n) if n.is_f64());
    if let Some(m) = s.multiple_of {
        // Whole numbers are compared with the whole part of the factor.
        let factor = if whole { m.trunc() } else { m };
        if factor <= 0.0 {
            let what = format!("factor MultipleOf declared for {} must be positive: {}", at.name, shown(factor));
            out.push(FieldError::invalid_raw(at.field(), &shown(factor), what));
        } else {
            let quotient = n / factor;
            if (quotient - quotient.round()).abs() > 1e-9 {
                let what = format!("{} in body should be a multiple of {}", at.name, shown(factor));
                out.push(FieldError::invalid(at.field(), v.clone(), what));
            }
        }
    }
    if let Some(max) = s.maximum.filter(|m| n > *m || (s.exclusive_maximum && n == *m)) {
        let how = if s.exclusive_maximum { "less than" } else { "less than or equal to" };
        out.push(FieldError::invalid(at.field(), v.clone(), format!("{} in body should be {how} {}", at.name, shown(max))));
    }
    if let Some(min) = s.minimum.filter(|m| n < *m || (s.exclusive_minimum && n == *m)) {
        let how = if s.exclusive_minimum { "greater than" } else { "greater than or equal to" };
        out.push(FieldError::invalid(at.field(), v.clone(), format!("{} in body should be {how} {}", at.name, shown(min))));
    }
    let integer = s.ty == "integer";
    if integer && !is_integral(v) {
        let format = if s.format.is_empty() { "(default format)".to_owned() } else { format!("with format {}", s.format) };
        out.text(format!("Checked value must be of type integer {format} in {}", at.name));
        return;
    }
    let fits = match s.format.as_str() {
        "int32" => (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&n),
        "uint32" => (0.0..=f64::from(u32::MAX)).contains(&n),
        "float" => n.abs() <= f64::from(f32::MAX),
        _ => true,
    };
    if !fits {
        let ty = if integer { "integer" } else { "number" };
        out.text(format!("Checked value must be of type {ty} with format {} in {}", s.format, at.name));
    }
}

/// The value of an element's keys, to find the same element in the old list.
fn keys_of<'a>(v: &'a Value, s: &Schema) -> Vec<Option<&'a Value>> {
    s.map_keys.iter().map(|k| v.get(k)).collect()
}

/// The element of an old list that is the same as one of the new, where elements have keys.
pub fn correlated<'a>(item: &Value, old: Option<&'a Value>, s: &Schema) -> Option<&'a Value> {
    if s.list_type != "map" {
        return None;
    }
    let keys = keys_of(item, s);
    let mut same = old?.as_array()?.iter().filter(|o| keys_of(o, s) == keys);
    same.next().filter(|_| same.next().is_none())
}

fn array(list: &[Value], old: Option<&Value>, s: &Schema, at: &Place, out: &mut Found) {
    if let Some(items) = &s.items {
        for (i, item) in list.iter().enumerate() {
            check(item, correlated(item, old, s), items, &at.index(i), out);
        }
    }
    let n = i64::try_from(list.len()).unwrap_or(i64::MAX);
    if let Some(min) = s.min_items.filter(|m| n < *m) {
        out.push(FieldError::invalid(at.field(), n, format!("{} in body should have at least {min} items", at.name)));
    }
    if let Some(max) = s.max_items.filter(|m| n > *m) {
        out.push(FieldError::too_many(at.field(), list.len(), usize::try_from(max).unwrap_or(0)));
    }
}

fn object(m: &Map<String, Value>, old: Option<&Value>, s: &Schema, at: &Place, out: &mut Found) {
    let n = i64::try_from(m.len()).unwrap_or(i64::MAX);
    if let Some(min) = s.min_properties.filter(|x| n < *x) {
        out.push(FieldError::invalid(at.field(), n, format!("{} in body should have at least {min} properties", at.name)));
    }
    if let Some(max) = s.max_properties.filter(|x| n > *x) {
        out.push(FieldError::too_many(at.field(), m.len(), usize::try_from(max).unwrap_or(0)));
    }
    for (name, v) in m {
        let before = old.and_then(|o| o.get(name));
        match (s.properties.get(name), &s.additional) {
            (Some(p), _) => check(v, before, p, &at.child(name), out),
            (None, Additional::Of(p)) => check(v, before, p, &at.child(name), out),
            _ => {}
        }
    }
    for name in s.required.iter().filter(|r| !m.contains_key(*r)) {
        out.push(FieldError::required(at.child(name).field(), ""));
    }
}

/// What resources embedded in a resource have to have, below `path`.
pub fn embedded(v: &Value, s: &Schema, path: &str, errors: &mut ErrorList) {
    match v {
        Value::Object(m) => {
            if s.embedded {
                for field in ["apiVersion", "kind"] {
                    let at = join(path, field);
                    match m.get(field) {
                        None => errors.push(FieldError::required(at, "")),
                        Some(Value::String(x)) if x.is_empty() => errors.push(FieldError::invalid(at, "", "must not be empty")),
                        _ => {}
                    }
                }
            }
            for (name, x) in m {
                if let Some(p) = s.member(name) {
                    embedded(x, p, &join(path, name), errors);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &s.items {
                list.iter().enumerate().for_each(|(i, x)| embedded(x, items, &format!("{path}[{i}]"), errors));
            }
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Elements of sets and keyed lists are there once.
pub fn unique(v: &Value, s: &Schema, path: &str, errors: &mut ErrorList) {
    match v {
        Value::Object(m) => {
            for (name, x) in m {
                if let Some(p) = s.member(name) {
                    unique(x, p, &join(path, name), errors);
                }
            }
        }
        Value::Array(list) => {
            let keyed = s.list_type == "map";
            if keyed || s.list_type == "set" {
                let mut seen = std::collections::HashSet::new();
                for (i, x) in list.iter().enumerate() {
                    let shown = if keyed {
                        let key: Map<String, Value> = s.map_keys.iter().filter_map(|k| Some((k.clone(), x.get(k)?.clone()))).collect();
                        Value::Object(key)
                    } else {
                        x.clone()
                    };
                    if !seen.insert(shown.to_string()) {
                        errors.push(FieldError::duplicate(format!("{path}[{i}]"), shown));
                    }
                }
            }
            if let Some(items) = &s.items {
                list.iter().enumerate().for_each(|(i, x)| unique(x, items, &format!("{path}[{i}]"), errors));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn complaints(schema: Value, v: Value, old: Option<Value>) -> Vec<String> {
        let mut e = ErrorList::new();
        validate(&v, old.as_ref(), &Schema::of(&schema), "", &mut e);
        e.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_checked_with_upstreams_words() {
        let one = |p: Value| json!({"type": "object", "properties": {"x": p}});
        let cases = [
            (json!({"type": "integer", "maximum": 10}), json!(11), "x: Invalid value: 11: x in body should be less than or equal to 10"),
            (json!({"type": "string", "pattern": "^a$"}), json!("b"), "x: Invalid value: \"b\": x in body should match '^a$'"),
            (json!({"type": "string", "maxLength": 1}), json!("bb"), "x: Too long: may not be more than 1 bytes"),
            (json!({"type": "string"}), json!(5), "x: Invalid value: \"integer\": x in body must be of type string: \"integer\""),
            (json!({"type": "number", "multipleOf": 0.5}), json!(1.3), "x: Invalid value: 1.3: x in body should be a multiple of 0.5"),
            (
                json!({"type": "number", "multipleOf": 0.5}),
                json!(2),
                "x: Invalid value: 0: factor MultipleOf declared for x must be positive: 0",
            ),
            (json!({"enum": ["a", 1]}), json!("q"), "x: Unsupported value: \"q\": supported values: \"a\", \"1\""),
            (json!({"type": "array", "maxItems": 1}), json!([1, 2]), "x: Too many: 2: must have at most 1 items"),
            (json!({"not": {"enum": ["bad"]}}), json!("bad"), "<nil>: Invalid value: \"\": \"x\" must not validate the schema (not)"),
            (json!({"type": "object", "required": ["k"]}), json!({}), "x.k: Required value"),
            (json!({"type": "integer"}), json!(1.0), ""),
            (json!({"x-kubernetes-int-or-string": true}), json!("5%"), ""),
        ];
        for (schema, v, want) in cases {
            let got = complaints(one(schema), json!({"x": v}), None);
            assert_eq!(got.first().map_or("", String::as_str), want);
            assert!(got.len() <= 1, "{got:?}");
        }
    }

    #[test]
    fn what_was_wrong_before_may_stay_wrong() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 1}, "b": {"type": "integer"},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}}}});
        let old = json!({"a": "long", "b": 1, "l": [{"k": "x", "v": 5}]});
        assert_eq!(
            complaints(schema.clone(), json!({"a": "long", "b": 2, "l": [{"k": "y", "v": 1}, {"k": "x", "v": 5}]}), Some(old.clone())),
            [""; 0]
        );
        assert_eq!(complaints(schema, json!({"a": "longer", "b": 2, "l": [{"k": "x", "v": 6}]}), Some(old)).len(), 2);
    }
}
