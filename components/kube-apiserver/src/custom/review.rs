//! What a conversion webhook may answer: as many objects as were sent, in their order, the same objects but for their version, their
//! fields, labels and annotations.

use k8s_schema::{Doc, Schema, TypeId};
use serde_json::{Map, Value};

use crate::validation::{ErrorList, values};

fn type_name(v: &Value) -> &'static str {
    match v {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// The objects of a `ConversionReview`, if it is the answer to the request `uid`.
pub fn answer(mut review: Value, api_version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let (version, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
    if version != api_version || kind != "ConversionReview" {
        return Err(format!("expected webhook response of {api_version}, Kind=ConversionReview, got {version}, Kind={kind}"));
    }
    let response = review["response"].take();
    if !response.is_object() {
        return Err("no response provided".into());
    }
    let beta = api_version.ends_with("/v1beta1");
    let got = text(&response["uid"]);
    if got != uid && !beta {
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let status = text(&response["result"]["status"]);
    if status != "Success" {
        let message = text(&response["result"]["message"]);
        return Err(if message.is_empty() { format!("response.result.status was '{status}', not 'Success'") } else { message });
    }
    match response {
        Value::Object(mut m) => match m.remove("convertedObjects") {
            Some(Value::Array(a)) => Ok(a),
            _ => Ok(Vec::new()),
        },
        _ => Ok(Vec::new()),
    }
}

/// The converted objects with everything restored that a webhook may not change.
pub fn accept(originals: &[Value], converted: Vec<Value>, desired: &str) -> Result<Vec<Value>, String> {
    if converted.len() != originals.len() {
        return Err(format!("returned {} objects, expected {}", converted.len(), originals.len()));
    }
    let alone = originals.len() == 1;
    let at = |i: usize| if alone { String::new() } else { format!(" at index {i}") };
    originals
        .iter()
        .zip(converted)
        .enumerate()
        .map(|(i, (original, mut new))| {
            same(original, &new, desired).map_err(|e| format!("returned invalid converted object{}: {e}", at(i)))?;
            let of = if alone { String::new() } else { format!(" in object at index {i}") };
            restore(original, &mut new).map_err(|e| format!("returned invalid metadata{of}: {e}"))?;
            Ok(new)
        })
        .collect()
}

fn same(original: &Value, new: &Value, desired: &str) -> Result<(), String> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let version = text(&new["apiVersion"]);
    if version != desired {
        return Err(format!("invalid groupVersion (expected {desired}, received {version})"));
    }
    let (e, a) = (text(&original["kind"]), text(&new["kind"]));
    if e != a {
        return Err(format!("must have the same kind: {e} != {a}"));
    }
    for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (e, a) = (text(&original["metadata"][field]), text(&new["metadata"][field]));
        if e != a {
            return Err(format!("must have the same {name}: {e} != {a}"));
        }
    }
    Ok(())
}

/// Labels and annotations are the webhook's, all other metadata is as it was.
fn restore(original: &Value, new: &mut Value) -> Result<(), String> {
    let given = match new.get("metadata") {
        None => return Err("missing metadata in converted object".into()),
        Some(Value::Object(m)) => m.clone(),
        Some(other) => return Err(format!("invalid metadata of type {} in converted object", type_name(other))),
    };
    let mut metadata = original["metadata"].as_object().cloned().unwrap_or_else(Map::new);
    for field in ["labels", "annotations"] {
        match given.get(field) {
            None | Some(Value::Null) => {
                metadata.remove(field);
            }
            Some(Value::Object(m)) => {
                let mut errors = ErrorList::new();
                let table = Schema::builtin();
                for (k, v) in m {
                    if !v.is_string() {
                        return Err(format!("metadata.{field}.{k} is a {} and no string", type_name(v)));
                    }
                }
                let doc = Doc::from_value(&table, TypeId::ANY, given.get(field).unwrap_or(&Value::Null)).map_err(|e| e.to_string())?.doc;
                let path = format!("metadata.{field}");
                if field == "labels" {
                    values::labels(doc.root(), &path, &mut errors)
                } else {
                    values::annotations(doc.root(), &path, &mut errors)
                }
                if let Some(e) = errors.iter().next() {
                    return Err(e.to_string());
                }
                metadata.insert(field.into(), Value::Object(m.clone()));
            }
            Some(other) => return Err(format!("invalid metadata.{field} of type {} in converted object", type_name(other))),
        }
    }
    new["metadata"] = Value::Object(metadata);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const V1: &str = "apiextensions.k8s.io/v1";

    fn object(version: &str, metadata: Value) -> Value {
        json!({"apiVersion": format!("g.io/{version}"), "kind": "A", "metadata": metadata})
    }

    #[test]
    fn an_answer_must_be_to_the_request_and_successful() {
        let review = |response: Value| json!({"apiVersion": V1, "kind": "ConversionReview", "response": response});
        let good = review(json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{"a": 1}]}));
        assert_eq!(answer(good, V1, "u").unwrap(), [json!({"a": 1})]);
        let cases = [
            (json!({"apiVersion": V1, "kind": "ConversionReview"}), "no response provided"),
            (json!({"kind": "X"}), "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=X"),
            (review(json!({"uid": "x", "result": {"status": "Success"}})), "expected response.uid=\"u\", got \"x\""),
            (review(json!({"uid": "u", "result": {"status": "Failure", "message": "no way"}})), "no way"),
            (review(json!({"uid": "u", "result": {"status": "Failure"}})), "response.result.status was 'Failure', not 'Success'"),
            (review(json!({"uid": "u"})), "response.result.status was '', not 'Success'"),
        ];
        for (v, want) in cases {
            assert_eq!(answer(v, V1, "u").unwrap_err(), want);
        }
    }

    #[test]
    fn only_labels_and_annotations_of_the_metadata_are_the_webhooks() {
        let old = object("v1", json!({"name": "a", "uid": "u", "finalizers": ["f/f"], "labels": {"a": "b"}, "annotations": {"x": "y"}}));
        let new = object("v2", json!({"name": "a", "uid": "u", "labels": {"c": "d"}, "generation": 9}));
        let got = accept(&[old], vec![new], "g.io/v2").unwrap();
        assert_eq!(got[0]["metadata"], json!({"name": "a", "uid": "u", "finalizers": ["f/f"], "labels": {"c": "d"}}));
    }

    #[test]
    fn other_objects_than_were_sent_are_refused() {
        let old = || object("v1", json!({"name": "a", "uid": "u"}));
        let cases = [
            (vec![], "returned 0 objects, expected 1"),
            (
                vec![object("v1", json!({"name": "a", "uid": "u"}))],
                "returned invalid converted object: invalid groupVersion (expected g.io/v2, received g.io/v1)",
            ),
            (vec![object("v2", json!({"name": "b", "uid": "u"}))], "returned invalid converted object: must have the same name: a != b"),
            (vec![object("v2", json!({"name": "a"}))], "returned invalid converted object: must have the same UID: u != "),
            (
                vec![object("v2", json!({"name": "a", "uid": "u", "labels": 7}))],
                "returned invalid metadata: invalid metadata.labels of type float64 in converted object",
            ),
        ];
        for (new, want) in cases {
            assert_eq!(accept(&[old()], new, "g.io/v2").unwrap_err(), want);
        }
        let two = [old(), object("v1", json!({"name": "b"}))];
        let swapped = vec![object("v2", json!({"name": "b"})), object("v2", json!({"name": "a", "uid": "u"}))];
        assert_eq!(
            accept(&two, swapped, "g.io/v2").unwrap_err(),
            "returned invalid converted object at index 0: must have the same name: a != b"
        );
    }
}
