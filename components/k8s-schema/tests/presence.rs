//! Sparse presence: every field of every type, absent, null, zero and set, through JSON and protobuf. What comes out is what Go's encoders
//! write for its tags: a pointer tells absent from zero, `omitempty` leaves out what is empty but no struct, `omitzero` also those.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use k8s_schema::{Doc, Field, Kind, Schema, Type, TypeId};
use serde_json::{Map, Value, json};

/// Kinds of values that have forms of their own, which their golden objects test.
fn is_opaque(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::Bool
            | Kind::Int32
            | Kind::Int64
            | Kind::Float64
            | Kind::String
            | Kind::Bytes
            | Kind::List
            | Kind::Map
            | Kind::Struct
            | Kind::Time
            | Kind::MicroTime
            | Kind::Duration
            | Kind::Quantity
            | Kind::IntOrString
    )
}

/// Every struct that is part of a kind.
fn structs(schema: &Schema) -> BTreeMap<String, TypeId> {
    let mut left: Vec<TypeId> = schema.kinds().map(|(_, _, _, id)| id).collect();
    let (mut seen, mut out) = (BTreeSet::new(), BTreeMap::new());
    while let Some(id) = left.pop() {
        if !seen.insert(format!("{id:?}")) {
            continue;
        }
        let t = schema.ty(id);
        match t.kind() {
            Kind::Struct => {
                out.insert(t.name().to_owned(), id);
                left.extend(t.fields().map(|f| f.type_id()));
            }
            Kind::List | Kind::Map => left.push(t.elem()),
            _ => {}
        }
    }
    out
}

/// A value that is not zero.
fn set(schema: &Schema, t: Type<'_>) -> Option<Value> {
    Some(match t.kind() {
        Kind::Bool => json!(true),
        Kind::Int32 | Kind::Int64 => json!(7),
        Kind::Float64 => json!(1.5),
        Kind::String => json!("x"),
        Kind::Bytes => json!("YQ=="),
        Kind::Time => json!("2024-01-02T03:04:05Z"),
        Kind::MicroTime => json!("2024-01-02T03:04:05.000006Z"),
        Kind::Duration => json!("5s"),
        Kind::Quantity => json!("5"),
        Kind::IntOrString => json!("25%"),
        Kind::List => json!([set(schema, schema.ty(t.elem()))?]),
        Kind::Map => json!({"k": set(schema, schema.ty(t.elem()))?}),
        _ => return None,
    })
}

/// The zero of a type as JSON, where it can be written.
fn zero(t: Type<'_>) -> Option<Value> {
    Some(match t.kind() {
        Kind::Bool => json!(false),
        Kind::Int32 | Kind::Int64 | Kind::IntOrString => json!(0),
        Kind::Float64 => json!(0),
        Kind::String | Kind::Bytes => json!(""),
        Kind::Duration => json!("0s"),
        Kind::Quantity => json!("0"),
        Kind::List => json!([]),
        Kind::Map | Kind::Struct => json!({}),
        _ => return None,
    })
}

/// How Go writes a struct of which nothing was given.
fn empty(t: Type<'_>) -> Value {
    let mut m = Map::new();
    for f in t.fields() {
        if let Some(v) = written(&f, None) {
            m.insert(f.name().to_owned(), v);
        }
    }
    Value::Object(m)
}

/// How Go writes a field; `given`: what was read into it, none for nothing or null. None: it is left out.
fn written(f: &Field<'_>, given: Option<&Value>) -> Option<Value> {
    let (t, pointer) = (f.ty(), f.is_pointer());
    let omits = f.omit_empty() || f.omit_zero();
    match (t.kind(), given) {
        // A nil pointer, list or map.
        (_, None) if pointer => (!omits).then_some(Value::Null),
        (Kind::List | Kind::Map | Kind::Bytes, None) => (!omits).then_some(Value::Null),
        (Kind::List | Kind::Map | Kind::Bytes, Some(v)) => {
            let is_empty = v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(Map::is_empty) || v == "";
            (!(is_empty && f.omit_empty())).then(|| v.clone())
        }
        (Kind::Struct, _) if pointer => Some(empty(t)),
        (Kind::Struct, _) => (!f.omit_zero()).then(|| empty(t)),
        // JSON that nobody wrote is null, and in a struct of Go's, which is never empty.
        (k, None) if is_opaque(k) => (!f.omit_zero()).then_some(Value::Null),
        (Kind::Time | Kind::MicroTime, None) => (!f.omit_zero()).then_some(Value::Null),
        // These are structs to Go, which are never empty.
        (Kind::Quantity | Kind::IntOrString | Kind::Duration, v) if !pointer => {
            let v = v.cloned().or_else(|| zero(t))?;
            (!(f.omit_zero() && Some(&v) == zero(t).as_ref())).then_some(v)
        }
        (_, Some(v)) if pointer => Some(v.clone()),
        (_, v) => {
            let v = v.cloned().or_else(|| zero(t))?;
            (!(omits && Some(&v) == zero(t).as_ref())).then_some(v)
        }
    }
}

fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

fn field_of(doc: &Doc, name: &str) -> Option<Value> {
    doc.to_value().get(name).cloned()
}

#[test]
fn every_field_absent_null_zero_and_set_is_written_as_gos_tags_say() {
    let schema = Schema::builtin();
    let (mut cases, mut wrong) = (0, Vec::new());
    for (name, id) in structs(&schema) {
        for f in schema.ty(id).fields() {
            if is_opaque(f.ty().kind()) {
                continue;
            }
            let states = [("absent", None), ("null", Some(Value::Null)), ("zero", zero(f.ty())), ("set", set(&schema, f.ty()))];
            for (state, given) in states.into_iter().filter(|(s, g)| *s == "absent" || g.is_some()) {
                cases += 1;
                let body = given.as_ref().map_or_else(|| json!({}), |v| json!({ f.name(): v }));
                let read = Doc::from_json(&schema, id, Bytes::from(body.to_string()));
                let doc = match read {
                    Ok(d) => d.doc,
                    Err(e) => {
                        wrong.push(format!("{name}.{} {state}: {e}", f.name()));
                        continue;
                    }
                };
                let given = given.filter(|v| !v.is_null());
                let want = written(&f, given.as_ref());
                let got = field_of(&doc, f.name());
                if !same(got.as_ref(), want.as_ref()) {
                    wrong.push(format!("{name}.{} {state} in JSON: {got:?} instead of {want:?}", f.name()));
                }
                if f.proto_number() == 0 {
                    continue;
                }
                // Protobuf knows no empty list, unless it is a message of its own.
                let kept = given.filter(|v| {
                    let no_list = f.ty().is_wrapped() || v.as_array().is_none_or(|a| !a.is_empty());
                    no_list && !(f.ty().kind() == Kind::Map && v.as_object().is_some_and(Map::is_empty))
                });
                let want = written(&f, kept.as_ref());
                let message = Bytes::from(doc.to_protobuf_message());
                let got = match Doc::from_protobuf_message(&schema, id, message) {
                    Ok(d) => field_of(&d, f.name()),
                    Err(e) => {
                        wrong.push(format!("{name}.{} {state}: {e}", f.name()));
                        continue;
                    }
                };
                if !same(got.as_ref(), want.as_ref()) {
                    wrong.push(format!("{name}.{} {state} in protobuf: {got:?} instead of {want:?}", f.name()));
                }
            }
        }
    }
    assert!(cases > 5000, "{cases} cases are too few to be all");
    let shown = wrong.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {cases} differ:\n{shown}", wrong.len());
}
