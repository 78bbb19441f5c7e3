//! Definitions of custom resources: the schema as it was written, with what every object has.

use super::definitions::Builder;
use super::{Dialect, Resource};
use serde_json::{Map, Value, json};

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object.";
const KIND: &str = "Kind is a string value representing the REST resource this object represents.";

/// `stable.example.com`, `v1`, `CronTab` → `com.example.stable.v1.CronTab`.
fn name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{kind}", parts.join("."))
}

/// Version 2 has no combinations of schemas and no null: what says more than it can express is left out.
fn narrowed(schema: &Value) -> Value {
    let Value::Object(m) = schema else { return schema.clone() };
    let flag = |k: &str| m.get(k) == Some(&Value::Bool(true));
    let mut out = Map::new();
    for (key, v) in m {
        let value = match key.as_str() {
            "allOf" | "anyOf" | "oneOf" | "not" | "nullable" | "default" => continue,
            "properties" => Value::Object(v.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), narrowed(v))).collect()),
            "items" | "additionalProperties" => narrowed(v),
            _ => v.clone(),
        };
        out.insert(key.clone(), value);
    }
    if flag("x-kubernetes-int-or-string") {
        out.remove("type");
    }
    if flag("x-kubernetes-preserve-unknown-fields") {
        ["properties", "items", "additionalProperties"].iter().for_each(|k| drop(out.shift_remove(*k)));
    }
    Value::Object(out)
}

/// Refers to the definition of a kind, or of a list of it, of some custom resource.
pub fn reference(builder: &mut Builder<'_>, group: &str, version: &str, kind: &str) -> Option<Value> {
    let is = |r: &&Resource| {
        let lists = r.custom.as_ref().is_some_and(|c| c.list_kind == kind);
        r.custom.is_some() && r.group == group && r.version == version && (r.kind == kind || lists)
    };
    let resource = builder.documents().resources.iter().find(is)?;
    let custom = resource.custom.as_ref()?;
    let meta = |builder: &mut Builder<'_>, ty: &str| match builder.documents().schema.type_named(&format!("meta/v1.{ty}")) {
        Some(ty) => builder.reference(ty),
        None => json!({"type": "object"}),
    };
    let gvk = json!([{"group": group, "version": version, "kind": kind}]);
    let text = |t: &str| json!({"type": "string", "description": t});
    if resource.kind != kind {
        let item = reference(builder, group, version, &resource.kind)?;
        let list_meta = meta(builder, "ListMeta");
        let definition = json!({
            "description": format!("{kind} is a list of {}", resource.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": text(API_VERSION),
                "items": {"type": "array", "description": format!("List of {}.", resource.plural), "items": item},
                "kind": text(KIND),
                "metadata": list_meta,
            },
            "x-kubernetes-group-version-kind": gvk,
        });
        return Some(builder.add(&name(group, version, kind), definition));
    }
    let v2 = builder.dialect() == Dialect::V2;
    let free = v2 && custom.schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    let mut definition = match &custom.schema {
        // Clients of version 2 would take any property for all there are.
        _ if free => json!({"type": "object"}),
        schema if !schema.is_object() => json!({"type": "object"}),
        schema if v2 => narrowed(schema),
        schema => schema.clone(),
    };
    definition["x-kubernetes-group-version-kind"] = gvk;
    if !free {
        definition["properties"]["apiVersion"] = text(API_VERSION);
        definition["properties"]["kind"] = text(KIND);
        definition["properties"]["metadata"] = meta(builder, "ObjectMeta");
    }
    Some(builder.add(&name(group, version, kind), definition))
}
