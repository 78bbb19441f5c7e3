//! Large input costs in proportion to its size: each of these would take minutes if anything in it were quadratic.

use bytes::Bytes;
use k8s_schema::apply::{Operation, Set};
use k8s_schema::{Doc, Schema, apply, patch, value};
use serde_json::{Map, Value};

const MANY: usize = 30_000;
const LONG: usize = 5_000;

fn config_map(schema: &Schema, keys: usize) -> Doc {
    let data: Map<String, Value> = (0..keys).map(|i| (format!("k{:06}", keys - i), Value::from("v"))).collect();
    let object = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
    Doc::from_value(schema, schema.kind("", "v1", "ConfigMap").unwrap(), &object).unwrap().doc
}

#[test]
fn unsorted_maps_decode_from_both_formats() {
    let schema = Schema::builtin();
    let doc = config_map(&schema, MANY);
    assert_eq!(doc.at("data").len(), MANY);
    assert!(doc.at("data").entries().map(|(k, _)| k).is_sorted());
    // The same in protobuf with descending keys, which no encoder of upstream's writes.
    let mut message = Vec::new();
    for i in (0..MANY).rev() {
        let key = format!("k{i:06}");
        message.extend([0x12, key.len() as u8 + 5, 0x0a, key.len() as u8]);
        message.extend(key.as_bytes());
        message.extend([0x12, 1, b'v']);
    }
    let doc = Doc::from_protobuf_message(&schema, doc.type_id(), Bytes::from(message)).unwrap();
    assert_eq!(doc.at("data").len(), MANY);
    assert!(doc.at("data").entries().map(|(k, _)| k).is_sorted());
}

#[test]
fn a_full_json_patch_of_a_large_map() {
    let doc = config_map(&Schema::builtin(), MANY);
    let operations: Vec<Value> = (0..10_000).map(|i| value!({"op": "remove", "path": format!("/data/k{:06}", i + 1)})).collect();
    let patched = patch::json_patch(&doc, Value::Array(operations).to_string().as_bytes(), true).unwrap();
    assert_eq!(patched.doc.at("data").len(), MANY - 10_000);
    let nulls: Map<String, Value> = (0..MANY).map(|i| (format!("k{i:06}"), Value::Null)).collect();
    for patched in [
        patch::merge_patch(&doc, value!({"data": nulls.clone()}).to_string().as_bytes(), true),
        patch::strategic_merge_patch(&doc, value!({"data": nulls}).to_string().as_bytes()),
    ] {
        assert_eq!(patched.unwrap().doc.at("data").len(), 1);
    }
}

#[test]
fn long_lists_merge_and_apply() {
    let schema = Schema::builtin();
    let env: Vec<Value> = (0..LONG).map(|i| value!({"name": format!("E{i}"), "value": "1"})).collect();
    let pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "finalizers": []}, "spec": {"containers": [{"name": "a", "env": env}]}});
    let doc = Doc::from_value(&schema, schema.kind("", "v1", "Pod").unwrap(), &pod).unwrap().doc;
    let same = value!({"spec": {"containers": [{"name": "a", "env": pod["spec"]["containers"][0]["env"]}]}}).to_string();
    let patched = patch::strategic_merge_patch(&doc, same.as_bytes()).unwrap();
    assert_eq!(patched.doc, doc);
    let none = Set::default();
    let operation = Operation { manager: "m", subresource: "", now: 1, ignored: &none, typed_by: None };
    let applied = apply::apply(&doc, &pod, &operation, true).unwrap();
    assert_eq!(applied.at("spec.containers[0].env").len(), LONG);
    let again = apply::apply(&applied, &pod, &operation, false).unwrap();
    assert_eq!(again, applied);
}
