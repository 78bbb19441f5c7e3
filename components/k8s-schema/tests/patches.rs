//! Patches that nobody meant to send: each is applied or refused, never a panic, and what comes out is a document that reads back.

use k8s_schema::apply::{self, Operation, Set};
use k8s_schema::{Doc, Schema, patch, value};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn deployment() -> Doc {
    let schema = Schema::builtin();
    let ty = schema.kind("apps", "v1", "Deployment").unwrap();
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b"}, "finalizers": ["x/y", "x/z"]},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
            "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80, "protocol": "TCP"}]}, {"name": "e", "image": "i"}],
            "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "k"}]}}}});
    Doc::from_value(&schema, ty, &object).unwrap().doc
}

/// Words that mean something to one kind of patch or to the kind, so that random trees go deep.
const KEYS: &[&str] = &[
    "metadata",
    "spec",
    "template",
    "containers",
    "name",
    "labels",
    "finalizers",
    "env",
    "ports",
    "containerPort",
    "protocol",
    "volumes",
    "emptyDir",
    "replicas",
    "tolerations",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "$setElementOrder/env",
    "$deleteFromPrimitiveList/finalizers",
    "managedFields",
    "fieldsV1",
    "f:metadata",
    "k:{\"name\":\"c\"}",
    "v:1",
    ".",
    "manager",
    "operation",
    "apiVersion",
    "fieldsType",
    "op",
    "path",
    "value",
    "from",
    "",
    "a/b",
    "matchLabels",
    "strategy",
    "rollingUpdate",
    "maxSurge",
];

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![0_i64, 1, -1, 80, i64::MAX]).prop_map(Value::from),
        Just(value!(1.5)),
        prop::sample::select(vec![
            "",
            "c",
            "e",
            "A",
            "v",
            "delete",
            "replace",
            "merge",
            "x/y",
            "Apply",
            "Update",
            "apps/v1",
            "FieldsV1",
            "25%",
            "TCP",
            "é\u{2028}"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(KEYS), inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())),
        ]
    })
}

/// A tree below the fields where lists merge by keys.
fn aimed() -> impl Strategy<Value = Value> {
    (tree(), 0..5).prop_map(|(tree, place)| match place {
        0 => json!({"spec": {"template": {"spec": {"containers": [tree]}}}}),
        1 => json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [tree]}], "volumes": tree}}}}),
        2 => json!({"spec": {"template": {"spec": tree}}}),
        3 => json!({"metadata": tree}),
        _ => tree,
    })
}

fn reads_back(doc: &Doc) -> Result<(), TestCaseError> {
    let again = Doc::from_json(doc.schema(), doc.type_id(), doc.to_json().into());
    prop_assert_eq!(again.map(|d| d.doc.to_json()).ok(), Some(doc.to_json()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn any_merge_patch_is_answered(patch in aimed()) {
        let live = deployment();
        let text = patch.to_string();
        for patched in [patch::merge_patch(&live, text.as_bytes(), true), patch::strategic_merge_patch(&live, text.as_bytes())].into_iter().flatten() {
            reads_back(&patched.doc)?;
        }
    }

    #[test]
    fn any_json_patch_is_answered(operations in prop::collection::vec((
        prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test", "other", ""]),
        prop::collection::vec(prop::sample::select(vec!["spec", "template", "containers", "0", "1", "-", "-1", "99999999999", "metadata", "labels", "a", "~0", "~1", "~", "", "name", "finalizers"]), 0..6),
        prop::collection::vec(prop::sample::select(vec!["spec", "template", "containers", "0", "metadata", "labels", "a", "finalizers", "-"]), 0..5),
        tree()), 0..6)) {
        let path = |parts: &[&str]| parts.iter().map(|part| format!("/{part}")).collect::<String>();
        let list: Vec<Value> = operations.iter().map(|(op, at, from, value)| json!({"op": op, "path": path(at), "from": path(from), "value": value})).collect();
        if let Ok(patched) = patch::json_patch(&deployment(), json!(list).to_string().as_bytes(), true) {
            reads_back(&patched.doc)?;
        }
    }

    #[test]
    fn any_bytes_are_answered_as_patches(text in "[\\[\\]{}:,\"a-c0-9.eE+\\-tnufls$/ \\\\]{0,64}") {
        let live = deployment();
        let _ = patch::merge_patch(&live, text.as_bytes(), false);
        let _ = patch::strategic_merge_patch(&live, text.as_bytes());
        let _ = patch::json_patch(&live, text.as_bytes(), false);
    }

    #[test]
    fn any_configuration_is_applied_or_refused(first in aimed(), second in aimed(), force: bool) {
        let mut live = deployment();
        let none = Set::default();
        for (manager, config) in [("one", first), ("two", second)] {
            let mut config = config;
            if let Value::Object(map) = &mut config {
                map.insert("apiVersion".into(), "apps/v1".into());
                map.insert("kind".into(), "Deployment".into());
            }
            let operation = Operation { manager, subresource: "", now: 1, ignored: &none, typed_by: None };
            if let Ok(doc) = apply::apply(&live, &config, &operation, force) {
                reads_back(&doc)?;
                live = doc;
            }
        }
    }
}
