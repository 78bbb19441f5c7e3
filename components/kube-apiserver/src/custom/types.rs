//! The types that server-side apply merges a custom resource by, compiled from its schema.

use std::fmt::Write as _;

use k8s_schema::{Schema as Table, TypeId};

use super::structural::{Additional, Schema};

/// What every resource begins with. Merging knows no order, so the numbers and presence of protobuf don't matter.
const META: &str = "\
type meta/v1.ObjectMeta v1.ObjectMeta struct
 name string 0 omitempty
 generateName string 0 omitempty
 namespace string 0 omitempty
 selfLink string 0 omitempty
 uid string 0 omitempty
 resourceVersion string 0 omitempty
 generation int64 0 omitempty
 creationTimestamp time 0 omitempty
 deletionTimestamp time 0 omitempty
 deletionGracePeriodSeconds int64 0 omitempty
 labels map:string 0 omitempty
 annotations map:string 0 omitempty
 ownerReferences []meta/v1.OwnerReference{map:uid} 0 omitempty
 finalizers []string{set} 0 omitempty
 managedFields []any{atomic} 0 omitempty
type meta/v1.OwnerReference v1.OwnerReference struct atomic
 apiVersion string 0
 kind string 0
 name string 0
 uid string 0
 controller bool 0
 blockOwnerDeletion bool 0
";

/// Names longer than the table can hold are left undeclared.
const MAX_NAME: usize = 4096;

#[derive(Default)]
struct Writer {
    text: String,
    count: usize,
}

fn escaped(name: &str) -> Option<String> {
    let bad = name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control);
    (!bad).then(|| name.replace('%', "%25").replace(' ', "%20").replace(',', "%2C"))
}

impl Writer {
    /// The type expression of a value, and whether it is one piece.
    fn value(&mut self, s: &Schema) -> (String, bool) {
        if s.int_or_string {
            return ("intorstring".into(), false);
        }
        match s.ty.as_str() {
            "string" => ("string".into(), false),
            "boolean" => ("bool".into(), false),
            "integer" => ("int64".into(), false),
            "number" => ("float64".into(), false),
            "array" => (self.list(s), false),
            "object" => self.object(s),
            _ => ("any".into(), false),
        }
    }

    fn list(&mut self, s: &Schema) -> String {
        let items = s.items.as_deref();
        let (item, _) = items.map_or_else(|| ("any".to_owned(), false), |i| self.value(i));
        let relation = match (s.list_type.as_str(), items) {
            ("map", Some(i)) if i.ty == "object" && !s.map_keys.is_empty() => {
                let keys: Option<Vec<String>> = s.map_keys.iter().map(|k| escaped(k)).collect();
                keys.map_or_else(|| "atomic".to_owned(), |k| format!("map:{}", k.join(",")))
            }
            ("set", _) => "set".into(),
            _ => "atomic".into(),
        };
        format!("[]{item}{{{relation}}}")
    }

    fn object(&mut self, s: &Schema) -> (String, bool) {
        let atomic = s.map_type == "atomic";
        if s.properties.is_empty() && !s.embedded {
            return match &s.additional {
                Additional::Of(of) => (format!("map:{}", self.value(of).0), atomic),
                _ => ("any".into(), atomic),
            };
        }
        (self.structure(s, false), atomic)
    }

    fn structure(&mut self, s: &Schema, root: bool) -> String {
        let name = format!("custom/v1.T{}", self.count);
        self.count += 1;
        let mut fields = String::new();
        if root || s.embedded {
            fields.push_str(" apiVersion string 0 omitempty\n kind string 0 omitempty\n metadata meta/v1.ObjectMeta 0 omitempty\n");
        }
        for (field, p) in &s.properties {
            if (root || s.embedded) && matches!(field.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let Some(field) = escaped(field) else { continue };
            let (ty, atomic) = self.value(p);
            let _ = write!(fields, " {field} {ty} 0 omitempty");
            if atomic {
                fields.push_str(" atomic");
            }
            if let Some(d) = p.default.as_ref().and_then(|d| escaped(&d.to_string())) {
                let _ = write!(fields, " default={d}");
            }
            fields.push('\n');
        }
        let open = if s.preserve || matches!(s.additional, Additional::Any(true)) { " open" } else { "" };
        let _ = write!(self.text, "type {name} {name} struct{open}\n{fields}");
        name
    }
}

/// The table and the type of the resource; none for a schema that the table cannot hold, which then merges as untyped.
pub fn compile(s: &Schema) -> Option<(Table, TypeId)> {
    let mut w = Writer { text: META.to_owned(), count: 0 };
    let root = w.structure(s, true);
    match Table::compile(&w.text) {
        Ok(table) => table.type_named(&root).map(|id| (table, id)),
        Err(reason) => {
            tracing::warn!(reason, "a custom resource's schema cannot be compiled for server-side apply");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_shape_compiles() {
        let s = Schema::of(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "a b,c%": {"type": "integer"},
                "l": {"type": "array", "items": {"type": "string"}},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "z"],
                    "items": {"type": "object", "properties": {"k": {"type": "string", "default": "a b"}, "z": {"type": "integer"}}}},
                "deep": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"x-kubernetes-int-or-string": true}}}},
                "er": {"type": "object", "x-kubernetes-embedded-resource": true}}},
            "any": {"x-kubernetes-preserve-unknown-fields": true}}}));
        let (table, root) = compile(&s).unwrap();
        let spec = table.ty(root).field("spec").unwrap().ty();
        assert!(spec.is_open() && spec.field("a b,c%").is_some());
        let m = spec.field("m").unwrap().ty();
        assert_eq!(m.list_keys().collect::<Vec<_>>(), ["k", "z"]);
        assert_eq!(table.ty(m.elem()).field("k").unwrap().default_json(), Some("\"a b\""));
    }
}
