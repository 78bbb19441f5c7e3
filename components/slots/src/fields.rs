//! Which config a system can read: the fields that its documents have, by kind. They stand in the upgrade's manifest, so that the system that
//! runs can say beforehand what the new one would not understand of the config in force. A config that is not understood would end the
//! machine in maintenance mode, or with the last good config, and the trial with the way back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Any key, of what is a map and no document's field.
const ANY: &str = "*";
/// Names of unknown fields that people are told.
const NAMED: usize = 8;

/// Fields by their names; one without fields of its own is a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fields(BTreeMap<String, Fields>);

impl Fields {
    /// The documents' fields by `apiVersion/kind`, from the JSON Schema of all documents, whose `oneOf` has one for each kind.
    pub fn of_schema(schema: &Value) -> Fields {
        let documents = schema["oneOf"].as_array().into_iter().flatten().filter_map(|document| {
            let word = |field: &str| document["properties"][field]["const"].as_str();
            Some((format!("{}/{}", word("apiVersion")?, word("kind")?), fields(document)))
        });
        Fields(documents.collect())
    }

    /// Whether nothing is known at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What documents have that is not known, at most some of it.
    pub fn unknown(&self, documents: &[Value]) -> Vec<String> {
        let mut found = Vec::new();
        for document in documents {
            let word = |field: &str| document[field].as_str().unwrap_or_default();
            let kind = format!("{}/{}", word("apiVersion"), word("kind"));
            match self.0.get(&kind) {
                Some(known) => known.compare(document, word("kind"), &mut found),
                None => found.push(kind),
            }
        }
        found.sort();
        found.dedup();
        found.truncate(NAMED);
        found
    }

    fn compare(&self, value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.compare(item, path, found)),
            // A value whose content is its own matter.
            Value::Object(_) if self.0.is_empty() => {}
            Value::Object(object) => {
                for (name, value) in object {
                    match self.0.get(name).or_else(|| self.0.get(ANY)) {
                        Some(known) => known.compare(value, &format!("{path}.{name}"), found),
                        None if found.len() < 10 * NAMED => found.push(format!("{path}.{name}")),
                        None => {}
                    }
                }
            }
            _ => {}
        }
    }
}

fn fields(schema: &Value) -> Fields {
    if let Some(properties) = schema["properties"].as_object() {
        return Fields(properties.iter().map(|(name, schema)| (name.clone(), fields(schema))).collect());
    }
    if schema["items"].is_object() {
        return fields(&schema["items"]);
    }
    if schema["additionalProperties"].is_object() {
        return Fields(BTreeMap::from([(ANY.to_owned(), fields(&schema["additionalProperties"]))]));
    }
    let choices = ["oneOf", "anyOf"].into_iter().filter_map(|word| schema[word].as_array()).flatten();
    Fields(choices.flat_map(|choice| fields(choice).0).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"oneOf": [
            {"properties": {
                "apiVersion": {"const": "strake.dev/v1alpha1"}, "kind": {"const": "MachineConfig"}, "role": {"type": "string"},
                "install": {"properties": {"disk": {"properties": {"name": {"type": "string"}}}}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "taints": {"type": "array", "items": {"properties": {"key": {}}}},
                "either": {"oneOf": [{"type": "string"}, {"properties": {"a": {}}}, {"properties": {"b": {}}}]},
            }},
            {"properties": {"apiVersion": {"const": "strake.dev/v1alpha1"}, "kind": {"const": "LinkConfig"}, "name": {}}},
        ]})
    }

    #[test]
    fn what_the_schema_does_not_have_is_named_by_its_path() {
        let known = Fields::of_schema(&schema());
        let again: Fields = serde_json::from_str(&serde_json::to_string(&known).unwrap()).unwrap();
        assert_eq!(again, known);
        let machine = |more: Value| {
            let mut document = json!({"apiVersion": "strake.dev/v1alpha1", "kind": "MachineConfig", "role": "worker"});
            document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            document
        };
        let cases: [(Value, &[&str]); 8] = [
            (machine(json!({})), &[]),
            (machine(json!({"install": {"disk": {"name": "vda"}}, "labels": {"x/y": "z"}, "taints": [{"key": "a"}, {"key": "b"}]})), &[]),
            (machine(json!({"either": {"a": 1, "b": 2}})), &[]),
            (machine(json!({"install": {"disk": {"serial": "1"}}})), &["MachineConfig.install.disk.serial"]),
            (machine(json!({"taints": [{"key": "a"}, {"value": "b"}, {"value": "c"}]})), &["MachineConfig.taints.value"]),
            (machine(json!({"z": 1, "y": 1})), &["MachineConfig.y", "MachineConfig.z"]),
            (json!({"apiVersion": "strake.dev/v1alpha1", "kind": "VolumeConfig"}), &["strake.dev/v1alpha1/VolumeConfig"]),
            (json!({"apiVersion": "strake.dev/v1", "kind": "LinkConfig"}), &["strake.dev/v1/LinkConfig"]),
        ];
        for (document, expected) in cases {
            assert_eq!(known.unknown(std::slice::from_ref(&document)), expected, "{document}");
        }
    }

    proptest! {
        #[test]
        fn no_document_makes_the_comparison_panic(text in "[\\[\\]{}:,\"a-z0-9]{0,60}") {
            let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            let _ = Fields::of_schema(&value).unknown(std::slice::from_ref(&value));
            prop_assert!(Fields::of_schema(&schema()).unknown(&[value]).len() <= NAMED);
        }
    }
}
