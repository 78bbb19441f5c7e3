//! Patches and applies as upstream's API server answered them.

use bytes::Bytes;
use k8s_schema::apply::{ApplyError, Operation, Set};
use k8s_schema::patch::{self, PatchError};
use k8s_schema::{Doc, Schema, apply};
use serde_json::Value;

fn recorded(part: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/recorded.zst");
    let mut decoder = zstd::Decoder::new(std::fs::File::open(path).unwrap()).unwrap();
    decoder.window_log_max(27).unwrap();
    let all: Value = serde_json::from_reader(decoder).unwrap();
    all[part].as_array().unwrap().clone()
}

fn doc(schema: &Schema, value: &Value) -> Doc {
    let ty = schema.kind_in(value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap()).unwrap();
    Doc::from_json(schema, ty, Bytes::from(value.to_string())).unwrap().doc
}

/// Removes what a server sets by itself.
fn strip(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Object(map) => {
            map.retain(|k, _| !keys.contains(&k.as_str()));
            map.values_mut().for_each(|v| strip(v, keys));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| strip(v, keys)),
        _ => {}
    }
}

#[test]
fn patches_make_what_upstream_makes_of_them() {
    let schema = Schema::builtin();
    let cases = recorded("patches");
    for case in &cases {
        let at = format!("{} {} {}", case["scenario"], case["note"], case["body"]);
        let live = doc(&schema, &case["live"]);
        let body = case["body"].as_str().unwrap().as_bytes();
        let validate = case["validate"].as_bool().unwrap();
        let patched = match case["patch"].as_str().unwrap() {
            "json" => patch::json_patch(&live, body, validate),
            "merge" => patch::merge_patch(&live, body, validate),
            _ => patch::strategic_merge_patch(&live, body),
        };
        match patched {
            Ok(patched) => {
                let mut got = patched.doc.to_value();
                strip(&mut got, &["managedFields", "generation", "creationTimestamp", "uid"]);
                assert_eq!(got, case["value"], "{at}");
            }
            Err(e) => {
                let got = match &e {
                    PatchError::BadRequest(m) => format!("400 {m}"),
                    PatchError::Unprocessable(_) => "422 the server rejected our request due to an error in our request".to_owned(),
                    PatchError::Invalid { detail, .. } => format!("422 {detail}"),
                    PatchError::TooLarge(m) => format!("413 {m}"),
                    PatchError::Internal(m) => format!("500 {m}"),
                };
                assert_eq!(got, case["error"].as_str().unwrap_or(""), "{at}");
            }
        }
    }
    assert!(cases.len() > 200);
}

fn without_times(entries: &Value) -> Vec<Value> {
    let mut list = entries.as_array().cloned().unwrap_or_default();
    list.iter_mut().for_each(|e| strip(e, &["time"]));
    list.sort_by_key(|e| format!("{}{}{}", e["operation"], e["manager"], e["subresource"]));
    list
}

#[test]
fn applies_and_updates_leave_the_managed_fields_that_upstream_leaves() {
    let schema = Schema::builtin();
    let cases = recorded("managed");
    for case in &cases {
        let at = format!("{} {}", case["scenario"], case["note"]);
        let live = doc(&schema, &case["live"]);
        let ignored: Vec<Vec<&str>> =
            case["ignored"].as_array().unwrap().iter().map(|p| p.as_array().unwrap().iter().filter_map(Value::as_str).collect()).collect();
        let ignored = Set::of_fields(&ignored.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let operation = Operation {
            manager: case["manager"].as_str().unwrap(),
            subresource: case["subresource"].as_str().unwrap(),
            now: 1_577_836_800,
            ignored: &ignored,
            typed_by: None,
        };
        let managed = |doc: &Doc| without_times(&doc.to_value()["metadata"]["managedFields"]);
        if case.get("apply").is_none() {
            let mut new = doc(&schema, &case["new"]);
            apply::update(&live, &mut new, &operation);
            assert_eq!(managed(&new), without_times(&case["managedFields"]), "{at}");
            continue;
        }
        match apply::apply(&live, &case["apply"], &operation, case["force"] == true) {
            Ok(doc) => assert_eq!(managed(&doc), without_times(&case["managedFields"]), "{at}"),
            Err(e) => {
                let code = match &e {
                    ApplyError::BadRequest(_) => 400,
                    ApplyError::Conflict(_) => 409,
                    ApplyError::Internal(_) => 500,
                };
                assert_eq!(format!("{code} {e}"), case["error"].as_str().unwrap_or(""), "{at}");
            }
        }
    }
    assert!(cases.len() > 150);
}

#[test]
fn applying_the_same_again_changes_nothing_and_giving_up_fields_removes_them() {
    let schema = Schema::builtin();
    let live = Doc::of_kind(&schema, "", "v1", "ConfigMap").unwrap();
    let none = Set::default();
    let operation = |now| Operation { manager: "m", subresource: "", now, ignored: &none, typed_by: None };
    let config = |data: Value| k8s_schema::value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
    let first = apply::apply(&live, &config(k8s_schema::value!({"a": "1", "b": "2"})), &operation(1), false).unwrap();
    let again = apply::apply(&first, &config(k8s_schema::value!({"a": "1", "b": "2"})), &operation(2), false).unwrap();
    assert_eq!(again.to_json(), first.to_json());
    let less = apply::apply(&first, &config(k8s_schema::value!({"a": "1"})), &operation(3), false).unwrap();
    assert_eq!(less.at("data").to_value(), k8s_schema::value!({"a": "1"}));
    let other = Operation { manager: "n", ..operation(4) };
    let conflict = apply::apply(&less, &config(k8s_schema::value!({"a": "9"})), &other, false).unwrap_err();
    assert_eq!(conflict.to_string(), "Apply failed with 1 conflict: conflict with \"m\": .data.a");
    let forced = apply::apply(&less, &config(k8s_schema::value!({"a": "9"})), &other, true).unwrap();
    assert_eq!(forced.at("data.a").str(), "9");
    assert_eq!(forced.at("metadata.managedFields").len(), 1);
}
