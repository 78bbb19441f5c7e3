//! Decoders meet what nobody meant to send: they answer with an error or a document, never a panic, and what one format
//! carried the other carries too.

use bytes::Bytes;
use k8s_schema::{Doc, Kind, Schema, TypeId, value};
use proptest::prelude::*;
use serde_json::{Map, Value};

/// A random value of a type, sparse: each field absent, zero, empty, null where that is possible, or set.
fn of_type(schema: &Schema, ty: TypeId, seed: &mut u64, depth: usize) -> Value {
    fn roll(seed: &mut u64, n: u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) % n
    }
    let t = schema.ty(ty);
    let text = |seed: &mut u64| ["", "a", "x<y>&\"\\\n", "é\u{2028}", "0"][roll(seed, 5) as usize];
    match t.kind() {
        Kind::Bool => Value::from(roll(seed, 2) == 0),
        Kind::Int32 | Kind::Int64 => Value::from([0, 1, -1, 2_147_483_647][roll(seed, 4) as usize]),
        Kind::Float64 => Value::from([0.0, 1.5, -2.25e-9][roll(seed, 3) as usize]),
        Kind::String => Value::from(text(seed)),
        Kind::Bytes => Value::from(["", "AA==", "/+8="][roll(seed, 3) as usize]),
        Kind::Quantity => Value::from(["0", "100m", "1Gi", "1.5", "12e3"][roll(seed, 5) as usize]),
        Kind::IntOrString => [Value::from(0), Value::from(80), Value::from("25%"), Value::from("")][roll(seed, 4) as usize].clone(),
        Kind::Time => Value::from(["2020-01-02T03:04:05Z", "1999-12-31T23:59:59Z"][roll(seed, 2) as usize]),
        Kind::MicroTime => Value::from(["2020-01-02T03:04:05.000001Z", "1999-12-31T23:59:59.500000Z"][roll(seed, 2) as usize]),
        Kind::Duration => Value::from(["0s", "1h0m0s", "1.5ms"][roll(seed, 3) as usize]),
        Kind::Raw | Kind::Json => [value!({"a": [1, {"b": null}]}), Value::from(3), value!({})][roll(seed, 3) as usize].clone(),
        Kind::FieldsV1 => value!({"f:a": {".": {}}}),
        Kind::Any => Value::from(1),
        Kind::SchemaOrBool => Value::from(roll(seed, 2) == 0),
        Kind::SchemaOrArray | Kind::SchemaOrStringArray if depth == 0 => value!({}),
        Kind::SchemaOrArray => of_type(schema, t.elem(), seed, depth - 1),
        Kind::SchemaOrStringArray => value!(["a", "b"]),
        Kind::List => {
            let n = if depth == 0 { 0 } else { roll(seed, 3) };
            Value::Array((0..n).map(|_| of_type(schema, t.elem(), seed, depth - 1)).collect())
        }
        Kind::Map => {
            let n = if depth == 0 { 0 } else { roll(seed, 3) };
            Value::Object((0..n).map(|i| (format!("k{}", n - i), of_type(schema, t.elem(), seed, depth - 1))).collect())
        }
        Kind::Struct => {
            let mut map = Map::new();
            for field in t.fields() {
                let name = field.name();
                if name == "kind" || name == "apiVersion" {
                    continue;
                }
                match roll(seed, 4) {
                    0 => {}
                    1 => {
                        map.insert(name.to_owned(), Value::Null);
                    }
                    _ if depth > 0 => {
                        map.insert(name.to_owned(), of_type(schema, field.type_id(), seed, depth - 1));
                    }
                    _ => {}
                }
            }
            Value::Object(map)
        }
    }
}

#[test]
fn what_json_carries_protobuf_carries_for_sparse_objects_of_every_kind() {
    let schema = Schema::builtin();
    let mut objects = 0;
    for (group, version, kind, ty) in schema.kinds() {
        // Tables and discovery have no protobuf; cells are JSON alone.
        if !schema.ty(ty).has_type_meta() || kind == "Table" {
            continue;
        }
        for round in 0..4u64 {
            let mut seed = round * 7919 + kind.len() as u64;
            let mut object = of_type(&schema, ty, &mut seed, 9);
            object["kind"] = kind.into();
            object["apiVersion"] = k8s_schema::api_version(group, version).into();
            let decoded = Doc::from_value(&schema, ty, &object).unwrap_or_else(|e| panic!("{kind}: {e}: {object}"));
            assert!(decoded.strict.is_empty(), "{kind}: {:?}", decoded.strict);
            let json = decoded.doc.to_json();
            let again = Doc::from_json(&schema, ty, Bytes::from(json.clone())).unwrap().doc;
            assert_eq!(again.to_json(), json, "{kind}");
            let pb = decoded.doc.to_protobuf();
            let from_pb = Doc::from_protobuf(&schema, Bytes::from(pb.clone())).unwrap();
            assert_eq!(from_pb.to_protobuf(), pb, "{kind}: {object}");
            // Empty lists and maps become nil on the way, which is all that may differ.
            assert_eq!(from_pb, decoded.doc, "{kind}\n{}\n{}", String::from_utf8_lossy(&from_pb.to_json()), String::from_utf8_lossy(&json));
            objects += 1;
        }
    }
    assert!(objects > 1000, "{objects}");
}

fn pod_bytes() -> (Schema, TypeId, Vec<u8>, Vec<u8>) {
    let schema = Schema::builtin();
    let ty = schema.kind("apps", "v1", "Deployment").unwrap();
    let mut seed = 5;
    let mut object = of_type(&schema, ty, &mut seed, 9);
    object["kind"] = "Deployment".into();
    object["apiVersion"] = "apps/v1".into();
    let doc = Doc::from_value(&schema, ty, &object).unwrap().doc;
    let (json, pb) = (doc.to_json(), doc.to_protobuf());
    (schema, ty, json, pb)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn broken_protobuf_is_answered(at in 0usize..4000, byte: u8, cut in 0usize..4000) {
        let (schema, _, _, mut pb) = pod_bytes();
        let n = pb.len();
        pb[at % n] = byte;
        pb.truncate(n - cut % n);
        if let Ok(doc) = Doc::from_protobuf(&schema, Bytes::from(pb)) {
            let _ = doc.to_json();
            let _ = doc.to_protobuf();
        }
    }

    #[test]
    fn broken_json_is_answered(at in 0usize..4000, byte: u8, cut in 0usize..4000) {
        let (schema, ty, mut json, _) = pod_bytes();
        let n = json.len();
        json[at % n] = byte;
        if cut % 3 == 0 {
            json.truncate(n - cut % n);
        }
        let valid = serde_json::from_slice::<serde::de::IgnoredAny>(&json).is_ok();
        match Doc::from_json(&schema, ty, Bytes::from(json)) {
            Ok(decoded) => {
                let _ = decoded.doc.to_protobuf();
            }
            Err(e) => prop_assert!(valid || !e.to_string().is_empty()),
        }
    }

    #[test]
    fn any_text_is_answered(text in "[\\[\\]{}:,\"a-c0-9.eE+\\-tnufls \\\\]{0,64}") {
        let schema = Schema::builtin();
        let decoded = Doc::from_json(&schema, TypeId::ANY, Bytes::from(text.clone()));
        // serde_json refuses numbers that overflow, as we do, and nothing else that is JSON.
        prop_assert_eq!(decoded.is_ok(), serde_json::from_str::<Value>(&text).is_ok());
        if let Ok(decoded) = decoded {
            let json = decoded.doc.to_json();
            let again = Doc::from_json(&schema, TypeId::ANY, Bytes::from(json.clone())).map(|d| d.doc.to_json());
            prop_assert_eq!(again.ok(), Some(json));
        }
    }
}

#[test]
fn nesting_is_bounded_in_what_is_kept_and_passed_over_elsewhere() {
    let schema = Schema::builtin();
    let ty = schema.kind("", "v1", "ConfigMap").unwrap();
    let deep = |n: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(n), "]".repeat(n));
    assert!(Doc::from_json(&schema, ty, Bytes::from(deep(9_000))).is_ok());
    assert_eq!(Doc::from_json(&schema, ty, Bytes::from(deep(11_000))).unwrap_err().to_string(), "invalid character '[' exceeded max depth");
    assert_eq!(Doc::from_json(&schema, TypeId::ANY, Bytes::from(deep(5_000))).unwrap_err().to_string(), "exceeded max depth");
}

#[test]
fn errors_and_strictness_are_upstreams() {
    let schema = Schema::builtin();
    let decode = |kind: (&str, &str), text: &str| {
        let ty = schema.kind(kind.0, "v1", kind.1).unwrap();
        Doc::from_json(&schema, ty, Bytes::from(text.to_owned()))
    };
    let cm = ("", "ConfigMap");
    for (kind, text, want) in [
        (cm, r#"{"metadata":"x"}"#, "json: cannot unmarshal string into Go struct field ConfigMap.metadata of type v1.ObjectMeta"),
        (cm, r#"{"metadata":[]}"#, "json: cannot unmarshal array into Go struct field ConfigMap.metadata of type v1.ObjectMeta"),
        (cm, r#"{"metadata":{"name":1}}"#, "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string"),
        (
            cm,
            r#"{"metadata":{"labels":["a"]}}"#,
            "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        (
            cm,
            r#"{"metadata":{"labels":{"a":1}}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            cm,
            r#"{"metadata":{"generation":1e400}}"#,
            "json: cannot unmarshal number 1e400 into Go struct field ObjectMeta.metadata.generation of type int64",
        ),
        (cm, r#"{"binaryData":{"a":"!!"}}"#, "illegal base64 data at input byte 0"),
        (cm, r#"{"binaryData":{"a":1}}"#, "json: cannot unmarshal number into Go struct field ConfigMap.binaryData of type []uint8"),
        (cm, r#"{"immutable":"true"}"#, "json: cannot unmarshal string into Go struct field ConfigMap.immutable of type bool"),
        (cm, r#"{"metadata":{"name":1},"x"}"#, "invalid character '}' after object key"),
        (
            ("", "Pod"),
            r#"{"spec":{"containers":[{"imagePullPolicyy":1,"name":"a","ports":[{"containerPort":"x"}]}]}}"#,
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            ("", "Pod"),
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        assert_eq!(decode(kind, text).map(|_| ()).map_err(|e| e.to_string()), Err(want.to_owned()), "{text}");
    }
    let strict = |kind, text| decode(kind, text).unwrap().strict.join(", ");
    assert_eq!(
        strict(cm, r#"{"metadata":{"name":"j","bogus":1},"data":{"a":"1","a":"2"},"extra":{"x":1},"extra":2}"#),
        r#"unknown field "metadata.bogus", duplicate field "data.a", unknown field "extra""#
    );
    assert_eq!(
        strict(
            ("apps", "Deployment"),
            r#"{"spec":{"replicas":1,"replicas":2,"foo":{"bar":1},"template":{"spec":{"containers":[{"imagee":"x"}]}}},"bogus":1}"#
        ),
        r#"duplicate field "spec.replicas", unknown field "spec.foo", unknown field "spec.template.spec.containers[0].imagee", unknown field "bogus""#
    );
    assert_eq!(
        strict(cm, r#"{"kind":"ConfigMap","kind":"ConfigMap","metadata":{"name":"k"},"metadata":{"name":"l"}}"#),
        r#"duplicate field "kind", duplicate field "metadata""#
    );
    let merged = decode(cm, r#"{"metadata":{"name":"k","labels":{"a":"1"}},"metadata":{"name":"l","labels":{"b":"2"}}}"#).unwrap().doc;
    assert_eq!(merged.at("metadata").to_value(), value!({"name": "l", "labels": {"a": "1", "b": "2"}}));
}
