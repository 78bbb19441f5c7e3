//! The types of objects, as expressions about them are checked: read out of the OpenAPI documents (version 3) that the API server serves.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use cel::{Type, types::ObjectType};
use serde_json::Value;

/// Schemas within schemas, at most; what lies deeper may be anything.
const MAX_DEPTH: usize = 64;
const REFERENCE: &str = "#/components/schemas/";

/// Types of one document, each made once, so that what many fields have in common is shared.
pub struct Types<'a> {
    schemas: &'a Value,
    made: HashMap<&'a str, Type>,
}

impl<'a> Types<'a> {
    pub fn new(document: &'a Value) -> Self {
        Self { schemas: &document["components"]["schemas"], made: HashMap::new() }
    }

    /// What objects of a kind look like; none where nothing is known of them.
    pub fn of_kind(&mut self, group: &str, version: &str, kind: &str) -> Option<Type> {
        let is = |schema: &Value| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds.into_iter().flatten().any(|k| k["group"] == group && k["version"] == version && k["kind"] == kind)
        };
        let (name, _) = self.schemas.as_object()?.iter().find(|(_, schema)| is(schema))?;
        Some(self.named(name, 0))
    }

    fn named(&mut self, name: &'a str, depth: usize) -> Type {
        if let Some(t) = self.made.get(name) {
            return t.clone();
        }
        // A type within itself (schemas of definitions) ends there.
        self.made.insert(name, Type::Dyn);
        let t = self.of(&self.schemas[name], name, depth + 1);
        self.made.insert(name, t.clone());
        t
    }

    /// The type of a schema. What a schema says nothing of, such as quantities, may be anything.
    fn of(&mut self, schema: &'a Value, name: &str, depth: usize) -> Type {
        if depth > MAX_DEPTH {
            return Type::Dyn;
        }
        // A reference that has a default stands alone in an `allOf`.
        let reference = match schema["allOf"].as_array().map(Vec::as_slice) {
            Some([one]) => &one["$ref"],
            _ => &schema["$ref"],
        };
        if let Some(to) = reference.as_str().and_then(|r| r.strip_prefix(REFERENCE)) {
            return self.named(to, depth);
        }
        if schema["x-kubernetes-int-or-string"] == true || schema["format"] == "int-or-string" {
            return Type::Dyn;
        }
        match schema["type"].as_str() {
            Some("boolean") => Type::Bool,
            Some("integer") => Type::Int,
            Some("number") => Type::Double,
            Some("string") => match schema["format"].as_str() {
                Some("byte") => Type::Bytes,
                Some("date" | "date-time") => Type::Timestamp,
                Some("duration") => Type::Duration,
                _ => Type::String,
            },
            Some("array") => Type::list(self.of(&schema["items"], &format!("{name}.@idx"), depth + 1)),
            Some("object") => self.object(schema, name, depth),
            _ => Type::Dyn,
        }
    }

    fn object(&mut self, schema: &'a Value, name: &str, depth: usize) -> Type {
        let properties = schema["properties"].as_object().filter(|p| !p.is_empty());
        let values = &schema["additionalProperties"];
        match properties {
            None if values.is_object() => Type::map(Type::String, self.of(values, &format!("{name}.@elem"), depth + 1)),
            None => Type::Dyn,
            Some(properties) => {
                let mut fields = BTreeMap::new();
                for (property, of) in properties {
                    let ty = self.of(of, &format!("{name}.{property}"), depth + 1);
                    // Expressions of policies call fields what they are called; the names that rules of definitions use do no harm.
                    if let Some(escaped) = cel::schema::escape(property) {
                        fields.insert(escaped, ty.clone());
                    }
                    fields.insert(property.clone(), ty);
                }
                let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
                Type::Object(Arc::new(ObjectType { name: name.to_owned(), fields, open }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_become_types() {
        let document = json!({"components": {"schemas": {
            "g.Tab": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "g.io", "version": "v1", "kind": "Tab"}], "properties": {
                "n": {"type": "integer"}, "at": {"$ref": "#/components/schemas/Time"}, "any": {},
                "port": {"x-kubernetes-int-or-string": true}, "amount": {"allOf": [{"$ref": "#/components/schemas/Quantity"}], "default": {}},
                "list": {"type": "array", "items": {"type": "string"}}, "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
                "free": {"type": "object"}, "a-b": {"type": "number"}, "self": {"$ref": "#/components/schemas/g.Tab"}}},
            "Time": {"type": "string", "format": "date-time"},
            "Quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]}}}});
        let mut types = Types::new(&document);
        let Some(Type::Object(tab)) = types.of_kind("g.io", "v1", "Tab") else { panic!("an object") };
        let shown: Vec<String> = tab.fields.iter().map(|(name, t)| format!("{name}: {t}")).collect();
        assert_eq!(
            shown,
            [
                "a-b: double",
                "a__dash__b: double",
                "amount: dyn",
                "any: dyn",
                "at: timestamp",
                "free: dyn",
                "list: list(string)",
                "map: map(string, bool)",
                "n: int",
                "port: dyn",
                "self: dyn"
            ]
        );
        assert!(types.of_kind("g.io", "v2", "Tab").is_none() && Types::new(&json!({})).of_kind("g.io", "v1", "Tab").is_none());
    }

    #[test]
    fn a_document_without_end_ends() {
        let deep = (0..1000).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
        let document = json!({"components": {"schemas": {"D": {"type": "object", "properties": {"d": deep},
            "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "D"}]}}}});
        assert!(Types::new(&document).of_kind("", "v1", "D").is_some());
    }
}
