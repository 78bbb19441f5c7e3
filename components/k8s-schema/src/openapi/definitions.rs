//! Definitions of types.

use super::{Dialect, Documents};
use crate::table::{Field, Kind, ListType, Type, TypeId};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The definition's name of a named type, such as `io.k8s.api.core.v1.Pod`.
pub fn definition_name(type_name: &str) -> String {
    match type_name.split_once('/') {
        Some(("meta", rest)) => format!("io.k8s.apimachinery.pkg.apis.meta.{rest}"),
        Some(("apiextensions", rest)) => format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{rest}"),
        Some(("apiregistration", rest)) => format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{rest}"),
        _ => format!("io.k8s.api.{}", type_name.replace('/', ".")),
    }
}

/// Names and schemas of types with an encoding of their own, in both dialects.
fn special(kind: Kind, dialect: Dialect) -> Option<(&'static str, Value)> {
    let either = |a: &str, b: &str| json!({"oneOf": [{"type": a}, {"type": b}]});
    Some(match (kind, dialect) {
        (Kind::Quantity, Dialect::V2) => ("io.k8s.apimachinery.pkg.api.resource.Quantity", json!({"type": "string"})),
        (Kind::Quantity, Dialect::V3) => ("io.k8s.apimachinery.pkg.api.resource.Quantity", either("string", "number")),
        (Kind::IntOrString, Dialect::V2) => {
            ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", json!({"type": "string", "format": "int-or-string"}))
        }
        (Kind::IntOrString, Dialect::V3) => {
            let mut schema = either("integer", "string");
            schema["format"] = "int-or-string".into();
            ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", schema)
        }
        (Kind::Time, _) => ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", json!({"type": "string", "format": "date-time"})),
        (Kind::MicroTime, _) => ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", json!({"type": "string", "format": "date-time"})),
        (Kind::Duration, _) => ("io.k8s.apimachinery.pkg.apis.meta.v1.Duration", json!({"type": "string"})),
        (Kind::Raw, _) => ("io.k8s.apimachinery.pkg.runtime.RawExtension", json!({"type": "object"})),
        (Kind::FieldsV1, _) => ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", json!({"type": "object"})),
        (Kind::Json, _) => ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", json!({})),
        (Kind::SchemaOrBool, _) => ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", json!({})),
        (Kind::SchemaOrArray, _) => ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", json!({})),
        (Kind::SchemaOrStringArray, _) => {
            ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray", json!({}))
        }
        _ => return None,
    })
}

/// Collects the definitions that references ask for.
pub struct Builder<'a> {
    documents: &'a Documents<'a>,
    dialect: Dialect,
    done: BTreeMap<String, Value>,
    due: Vec<TypeId>,
    asked: BTreeSet<TypeId>,
}

impl<'a> Builder<'a> {
    pub fn new(documents: &'a Documents<'a>, dialect: Dialect) -> Self {
        Builder { documents, dialect, done: BTreeMap::new(), due: Vec::new(), asked: BTreeSet::new() }
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub fn documents(&self) -> &'a Documents<'a> {
        self.documents
    }

    /// Adds a definition that no type of the table has; the answer refers to it.
    pub fn add(&mut self, name: &str, schema: Value) -> Value {
        self.done.entry(name.to_owned()).or_insert(schema);
        self.dialect.reference(name)
    }

    /// Refers to a named struct or a special type.
    pub fn reference(&mut self, ty: TypeId) -> Value {
        let t = self.documents.schema.ty(ty);
        if let Some((name, mut schema)) = special(t.kind(), self.dialect) {
            if let Some(text) = self.describe(name, None) {
                schema["description"] = text.into();
            }
            return self.add(name, schema);
        }
        if self.asked.insert(ty) {
            self.due.push(ty);
        }
        self.dialect.reference(&definition_name(t.name()))
    }

    fn describe(&self, definition: &str, field: Option<&str>) -> Option<String> {
        self.documents.descriptions.and_then(|d| d(definition, field))
    }

    /// All definitions, with those that they refer to.
    pub fn finish(mut self) -> Value {
        while let Some(ty) = self.due.pop() {
            let t = self.documents.schema.ty(ty);
            let schema = self.structure(t);
            self.done.insert(definition_name(t.name()), schema);
        }
        Value::Object(self.done.into_iter().collect())
    }

    fn structure(&mut self, t: Type<'a>) -> Value {
        let name = definition_name(t.name());
        let mut schema = Map::new();
        if let Some(text) = self.describe(&name, None) {
            schema.insert("description".into(), text.into());
        }
        schema.insert("type".into(), "object".into());
        let mut required: Vec<&str> = t.fields().filter(|f| f.required() && !f.omit_zero()).map(|f| f.name()).collect();
        required.sort_unstable();
        if !required.is_empty() {
            schema.insert("required".into(), json!(required));
        }
        let mut properties: BTreeMap<&str, Value> = BTreeMap::new();
        for field in t.fields() {
            let property = self.property(&field, &name);
            properties.insert(field.name(), property);
        }
        if !properties.is_empty() {
            schema.insert("properties".into(), json!(properties));
        }
        if t.is_atomic() {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        let kinds = self.kinds_of(t.id());
        if !kinds.is_empty() {
            schema.insert("x-kubernetes-group-version-kind".into(), json!(kinds));
        }
        Value::Object(schema)
    }

    /// Every group and version in which a type is a kind; options and watch events are in all of them.
    fn kinds_of(&self, ty: TypeId) -> Vec<Value> {
        let schema = self.documents.schema;
        let mut own: Vec<(String, String, String)> =
            schema.kinds().filter(|(_, _, _, t)| *t == ty).map(|(g, v, k, _)| (g.to_owned(), v.to_owned(), k.to_owned())).collect();
        if let Some((_, _, kind)) = own.first()
            && matches!(kind.as_str(), "DeleteOptions" | "WatchEvent")
        {
            let kind = kind.clone();
            let all: BTreeSet<(String, String)> = schema.kinds().map(|(g, v, _, _)| (g.to_owned(), v.to_owned())).collect();
            own = all.into_iter().filter(|(g, _)| g != "meta.k8s.io").map(|(g, v)| (g, v, kind.clone())).collect();
        }
        own.into_iter().map(|(group, version, kind)| json!({"group": group, "version": version, "kind": kind})).collect()
    }

    fn property(&mut self, field: &Field<'a>, owner: &str) -> Value {
        let t = field.ty();
        let mut schema = self.value(t, field.is_pointer() || field.omit_empty());
        let description = self.describe(owner, Some(field.name()));
        let v3 = self.dialect == Dialect::V3;
        let reference = schema.get("$ref").is_some();
        let mut extra = Map::new();
        if let Some(text) = description {
            extra.insert("description".into(), text.into());
        }
        if v3 {
            if let Some(default) = field.default_json().and_then(|d| serde_json::from_str::<Value>(d).ok()) {
                extra.insert("default".into(), default);
            } else if reference && !field.is_pointer() && t.kind() == Kind::Struct {
                extra.insert("default".into(), json!({}));
            }
        }
        if t.kind() == Kind::List {
            if field.patch_merge() {
                extra.insert("x-kubernetes-patch-strategy".into(), strategy(field).into());
                if let Some(key) = field.patch_merge_key() {
                    extra.insert("x-kubernetes-patch-merge-key".into(), key.into());
                }
            }
        } else if field.patch_retain_keys() {
            extra.insert("x-kubernetes-patch-strategy".into(), strategy(field).into());
        }
        if t.kind() == Kind::Map && field.is_atomic() {
            extra.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if extra.is_empty() {
            return schema;
        }
        if reference && v3 {
            schema = json!({ "allOf": [schema] });
        }
        if let Value::Object(map) = &mut schema {
            map.extend(extra);
        }
        schema
    }

    /// The schema of a value. `optional` strings have no default.
    fn value(&mut self, t: Type<'a>, optional: bool) -> Value {
        let v3 = self.dialect == Dialect::V3;
        let with_default = |mut schema: Value, default: Value| {
            if v3 && !optional {
                schema["default"] = default;
            }
            schema
        };
        match t.kind() {
            Kind::Bool => with_default(json!({"type": "boolean"}), false.into()),
            Kind::Int32 => with_default(json!({"type": "integer", "format": "int32"}), 0.into()),
            Kind::Int64 => with_default(json!({"type": "integer", "format": "int64"}), 0.into()),
            Kind::Float64 => with_default(json!({"type": "number", "format": "double"}), 0.into()),
            Kind::String => {
                let mut schema = with_default(json!({"type": "string"}), "".into());
                if v3 && t.is_enum() {
                    let mut values: Vec<&str> = t.values().collect();
                    values.sort_unstable();
                    values.dedup();
                    schema["enum"] = json!(values);
                }
                schema
            }
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Any => json!({}),
            Kind::List => {
                let mut schema = json!({ "type": "array" });
                schema["items"] = self.element(t);
                let relation = match t.list_type() {
                    ListType::Unset => None,
                    ListType::Atomic => Some("atomic"),
                    ListType::Set => Some("set"),
                    ListType::Map => Some("map"),
                };
                if let Some(relation) = relation {
                    schema["x-kubernetes-list-type"] = relation.into();
                }
                let keys: Vec<&str> = t.list_keys().collect();
                if !keys.is_empty() {
                    schema["x-kubernetes-list-map-keys"] = json!(keys);
                }
                schema
            }
            Kind::Map => {
                let mut schema = json!({ "type": "object" });
                schema["additionalProperties"] = self.element(t);
                schema
            }
            Kind::Struct => self.reference(t.id()),
            _ => self.reference(t.id()),
        }
    }

    fn element(&mut self, container: Type<'a>) -> Value {
        let elem = self.documents.schema.ty(container.elem());
        let schema = self.value(elem, container.elem_is_pointer());
        if self.dialect == Dialect::V3 && elem.kind() == Kind::Struct && !container.elem_is_pointer() {
            return json!({ "allOf": [schema], "default": {} });
        }
        schema
    }
}

fn strategy(field: &Field<'_>) -> &'static str {
    match (field.patch_merge(), field.patch_retain_keys()) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        _ => "retainKeys",
    }
}
