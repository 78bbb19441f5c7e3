//! Documents as [`serde_json::Value`]: the same fields as [`super::encode`] writes, for webhooks, patches and tests.

use super::encode::is_written;
use crate::doc::{Doc, NONE, Ref, Tag};
use crate::table::{Field, Kind, Schema, Type, TypeId};
use bytes::Bytes;
use serde_json::{Map, Number, Value};

impl Doc {
    /// The document as a JSON value.
    pub fn to_value(&self) -> Value {
        of(self, self.ty(), 0)
    }
}

impl Ref<'_> {
    /// The value here as a JSON value; null when absent.
    pub fn to_value(self) -> Value {
        if !self.exists() {
            return Value::Null;
        }
        of(self.doc, self.ty(), self.at)
    }
}

fn of(doc: &Doc, ty: Type<'_>, at: u32) -> Value {
    let Some(node) = doc.node(at).copied().filter(|n| n.tag != Tag::Null) else { return zero(doc, ty) };
    match node.tag {
        Tag::Struct => object(doc, if ty.kind() == Kind::Struct { ty } else { doc.schema.ty(ty.elem()) }, node.a),
        Tag::List => {
            let elem = match ty.kind() {
                Kind::List | Kind::SchemaOrArray => ty.elem(),
                Kind::SchemaOrStringArray => TypeId::STRING,
                _ => TypeId::ANY,
            };
            let pointers = ty.kind() == Kind::List && ty.elem_is_pointer();
            let elem = doc.schema.ty(elem);
            let one = |r: Ref<'_>| if pointers && !r.exists() { Value::Null } else { of(doc, elem, r.at) };
            Value::Array(Ref { doc, at, ty: ty.id() }.iter().map(one).collect())
        }
        Tag::Map => {
            let elem = doc.schema.ty(if ty.kind() == Kind::Map { ty.elem() } else { TypeId::ANY });
            Value::Object(Ref { doc, at, ty: ty.id() }.entries().map(|(k, r)| (k.to_owned(), of(doc, elem, r.at))).collect())
        }
        Tag::Str | Tag::Entry => Value::String(doc.text(&node).to_owned()),
        Tag::Bool => Value::Bool(node.a != 0),
        Tag::Float => Number::from_f64(node.as_float()).map_or(Value::Null, Value::Number),
        Tag::Int if !matches!(ty.kind(), Kind::Time | Kind::MicroTime | Kind::Duration) => Value::from(node.as_int()),
        Tag::Raw if node.b != 0 => raw(doc.slice(&node)),
        // Times, durations and bytes are strings (a zero time is null).
        _ => raw(&Ref { doc, at, ty: ty.id() }.to_json()),
    }
}

fn raw(text: &[u8]) -> Value {
    match Doc::from_json(&Schema::builtin(), TypeId::ANY, Bytes::copy_from_slice(text)) {
        Ok(decoded) => decoded.doc.to_value(),
        Err(_) => Value::Null,
    }
}

fn zero(doc: &Doc, ty: Type<'_>) -> Value {
    match ty.kind() {
        Kind::Struct => object(doc, ty, NONE),
        Kind::Bool | Kind::SchemaOrBool => Value::Bool(false),
        Kind::Int32 | Kind::Int64 | Kind::IntOrString => Value::from(0),
        Kind::Float64 => Value::from(0),
        Kind::String => Value::from(""),
        Kind::Quantity => Value::from("0"),
        Kind::Duration => Value::from("0s"),
        _ => Value::Null,
    }
}

fn object(doc: &Doc, ty: Type<'_>, first: u32) -> Value {
    let mut map = Map::new();
    let mut child = first;
    for field in ty.fields() {
        let mut at = NONE;
        if let Some(node) = doc.node(child)
            && node.field == field.index()
        {
            at = child;
            child = node.next;
        }
        if let Some(value) = field_value(doc, &field, at) {
            map.insert(field.name().to_owned(), value);
        }
    }
    Value::Object(map)
}

/// What stands in a struct for a field whose value is at a node; none when Go leaves it out.
pub(crate) fn field_value(doc: &Doc, field: &Field<'_>, at: u32) -> Option<Value> {
    if at == NONE && field.skip_absent() || at != NONE && !is_written(doc, field, at) {
        return None;
    }
    let absent = !doc.node(at).is_some_and(|n| n.tag != Tag::Null);
    Some(if field.is_pointer() && absent { Value::Null } else { of(doc, field.ty(), at) })
}

#[cfg(test)]
mod tests {
    use crate::{Doc, Schema, value};

    #[test]
    fn a_value_has_what_the_text_has() {
        let schema = Schema::builtin();
        let ty = schema.kind("", "v1", "Pod").unwrap();
        let text = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "creationTimestamp": "2020-01-01T00:00:00Z",
            "managedFields": [{"fieldsV1": {"f:a": {".": {}}}, "manager": "m"}]},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}, "ports": [{"containerPort": 1}]}]}})
        .to_string();
        let doc = Doc::from_json(&schema, ty, text.into()).unwrap().doc;
        assert_eq!(doc.to_value(), serde_json::from_slice::<serde_json::Value>(&doc.to_json()).unwrap());
        assert_eq!(doc.at("spec.containers[0].resources").to_value(), value!({"limits": {"cpu": "1500m"}}));
    }
}
