//! Merge patches laid over the document itself: only what the patch names is touched. What is not as plain as that (unknown fields, values of
//! a wrong type, objects that are kept as text) is left to the way over JSON, which has all the rules and the errors.

use super::merge_patch::prune;
use crate::doc::{Doc, Segment, Tag};
use crate::json::decode::decode_fragment_strictly;
use crate::table::{Kind, TypeId};
use serde_json::{Map, Value};

/// The patched document; none when the way over JSON has to decide.
pub fn merge(doc: &Doc, patch: &Map<String, Value>) -> Option<Doc> {
    if !doc.ty().has_type_meta() || doc.api_version().is_empty() || doc.kind().is_empty() {
        return None;
    }
    // The way over JSON leaves none of the spaces in objects that are kept as their text. Whose fields are whose is such text too, but our own.
    let kept_texts = doc.nodes.iter().filter(|n| n.tag == Tag::Raw).count();
    if kept_texts > doc.at("metadata.managedFields").len() {
        return None;
    }
    let mut out = doc.clone();
    for (key, is) in [("apiVersion", doc.api_version()), ("kind", doc.kind())] {
        if patch.get(key).is_some_and(|v| v.as_str() != Some(is)) {
            return None;
        }
    }
    lay(&mut out, 0, doc.type_id(), patch)?;
    Some(out)
}

/// Lays an object over a struct or a map.
fn lay(doc: &mut Doc, at: u32, ty: TypeId, patch: &Map<String, Value>) -> Option<()> {
    let schema = doc.schema.clone();
    let t = schema.ty(ty);
    for (key, value) in patch {
        // The node that stands in the container, which for a map is the entry before the value.
        let (child, offset, child_ty) = match t.kind() {
            Kind::Struct => {
                let field = t.field(key)?;
                (doc.child_of_field(at, field.index()), 0, field.type_id())
            }
            Kind::Map => (doc.entry(at, key.as_bytes()), 1, t.elem()),
            _ => return None,
        };
        if value.is_null() {
            if let Some(child) = child {
                doc.unlink(at, child);
            }
            continue;
        }
        let present = child.map(|c| doc.nodes[(c + offset) as usize].tag).filter(|tag| *tag != Tag::Null);
        let kind = schema.ty(child_ty).kind();
        let (place, _) = match value {
            // An object over an object that is kept as something else.
            Value::Object(_) if present.is_some() && !matches!(kind, Kind::Struct | Kind::Map) => return None,
            _ => doc.make_step(at, ty, Segment::Bracket(key))?,
        };
        match value {
            Value::Object(below) if matches!(kind, Kind::Struct | Kind::Map) => lay(doc, place, child_ty, below)?,
            Value::String(text) if kind == Kind::String => {
                let node = doc.keep_str(Tag::Str, text);
                doc.replace(place, node);
            }
            _ => {
                let mut value = value.clone();
                prune(&mut value);
                let new = decode_fragment_strictly(doc, child_ty, &serde_json::to_vec(&value).ok()?)?;
                let node = doc.nodes[new as usize];
                doc.replace(place, node);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::merge;
    use crate::{Doc, Schema, patch::over_json, value};
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    fn pod() -> Doc {
        let schema = Schema::builtin();
        let ty = schema.kind("", "v1", "Pod").unwrap();
        let text = value!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "1", "b.c/d": "2"}, "creationTimestamp": "2020-01-01T00:00:00Z", "finalizers": ["x/y"],
                "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}}]},
            "spec": {"containers": [{"name": "c", "image": "i"}], "nodeSelector": {"k": "v"}, "priority": 0, "overhead": {"cpu": "1500m"},
                "securityContext": {"runAsUser": 0}, "hostNetwork": false}});
        Doc::from_json(&schema, ty, text.to_string().into()).unwrap().doc
    }

    /// Whether both ways give the same, where the direct one gives something.
    fn agree(patch: &Value) -> Option<bool> {
        let (doc, Value::Object(patch)) = (pod(), patch) else { return None };
        let fast = merge(&doc, patch)?;
        let slow = over_json(&doc, patch.clone(), Vec::new()).unwrap();
        Some(slow.strict.is_empty() && slow.doc.to_json() == fast.to_json() && slow.doc.to_protobuf() == fast.to_protobuf())
    }

    #[test]
    fn what_is_plain_is_laid_over_the_document() {
        for patch in [
            value!({}),
            value!({"metadata": {"labels": {"a": "x", "z": "é\"<"}, "annotations": {"n": null}}}),
            value!({"metadata": {"labels": null, "finalizers": []}}),
            value!({"kind": "Pod", "spec": {"containers": [{"name": "d", "image": null, "env": [null]}]}}),
            value!({"spec": {"securityContext": {"runAsUser": null, "seLinuxOptions": {"level": "l"}}, "overhead": {"memory": "1Gi"}}}),
            value!({"metadata": {"creationTimestamp": null, "managedFields": null}, "spec": {"affinity": {}}, "status": {"phase": "Running"}}),
        ] {
            assert_eq!(agree(&patch), Some(true), "{patch}");
        }
    }

    #[test]
    fn the_rest_goes_over_json() {
        for patch in [
            value!({"apiVersion": "v2"}),
            value!({"kind": null}),
            value!({"spec": {"nope": 1}}),
            value!({"spec": {"priority": "x"}}),
            value!({"spec": {"overhead": {"cpu": "x"}}}),
            value!({"spec": {"containers": [{"nope": 1}]}}),
            value!({"metadata": {"labels": {"a": {"b": 1}}}}),
        ] {
            assert_eq!(agree(&patch), None, "{patch}");
        }
    }

    #[test]
    fn texts_that_are_kept_go_over_json() {
        let schema = Schema::builtin();
        let ty = schema.kind("apps", "v1", "ControllerRevision").unwrap();
        let text = r#"{"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "r"}, "data": {"a": 1}, "revision": 1}"#;
        let doc = Doc::from_json(&schema, ty, text.into()).unwrap().doc;
        let patched = crate::patch::merge_patch(&doc, br#"{"revision": 2}"#, true).unwrap().doc;
        assert_eq!(patched.at("data").raw(), br#"{"a":1}"#);
    }

    fn patches() -> impl Strategy<Value = Value> {
        let keys = vec![
            "metadata",
            "labels",
            "annotations",
            "finalizers",
            "a",
            "b.c/d",
            "spec",
            "containers",
            "nodeSelector",
            "k",
            "overhead",
            "cpu",
            "priority",
            "securityContext",
            "runAsUser",
            "seLinuxOptions",
            "level",
            "hostNetwork",
            "status",
            "phase",
            "name",
            "image",
            "managedFields",
            "manager",
            "creationTimestamp",
            "tolerations",
            "affinity",
            "nodeAffinity",
            "hostIP",
            "startTime",
            "fieldsV1",
        ];
        let leaf = prop::sample::select(vec![
            Value::Null,
            value!(""),
            value!("x"),
            value!("2m"),
            value!(0),
            value!(7),
            value!(true),
            value!(false),
            value!([]),
            value!({}),
            value!("2021-02-03T04:05:06Z"),
            value!(1.5),
        ]);
        leaf.prop_recursive(5, 32, 4, move |inner| {
            prop_oneof![
                4 => prop::collection::vec((prop::sample::select(keys.clone()), inner.clone()), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())),
                1 => prop::collection::vec(inner, 0..3).prop_map(Value::Array),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn both_ways_agree(spec in patches(), metadata in patches(), root in patches()) {
            for patch in [root, value!({"spec": spec}), value!({"metadata": metadata})] {
                prop_assert_ne!(agree(&patch), Some(false), "{}", patch);
            }
        }
    }
}
