//! Bringing a custom resource into the shape its schema asks for: unknown fields go, metadata is what metadata is, defaults come.

use k8s_schema::{Doc, Schema as Table, TypeId};
use serde_json::{Map, Value};

use super::structural::{Additional, Schema};

/// What every resource has, whatever its schema says.
const TYPE_AND_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Removes what the schema does not know and notes the paths. `root`: the value is a resource.
pub fn prune(v: &mut Value, s: &Schema, root: bool, unknown: &mut Vec<String>) {
    prune_at(v, Some(s), root, "", unknown);
}

fn prune_at(v: &mut Value, s: Option<&Schema>, root: bool, path: &str, unknown: &mut Vec<String>) {
    let empty = Schema::default();
    let s = s.unwrap_or(&empty);
    match v {
        Value::Object(m) => prune_object(m, s, root || s.embedded, path, unknown),
        Value::Array(list) => {
            if let Some(items) = &s.items {
                for (i, item) in list.iter_mut().enumerate() {
                    prune_at(item, Some(items), false, &format!("{path}[{i}]"), unknown);
                }
            } else if !s.preserve {
                for (i, item) in list.iter_mut().enumerate() {
                    prune_at(item, None, false, &format!("{path}[{i}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

fn prune_object(m: &mut Map<String, Value>, s: &Schema, resource: bool, path: &str, unknown: &mut Vec<String>) {
    let mut gone = Vec::new();
    for (name, v) in m.iter_mut() {
        if resource && TYPE_AND_META.contains(&name.as_str()) {
            continue;
        }
        match (s.properties.get(name), &s.additional) {
            (Some(p), _) => prune_at(v, Some(p), false, &join(path, name), unknown),
            (None, Additional::Of(p)) => prune_at(v, Some(p), false, &join(path, name), unknown),
            (None, Additional::Any(true)) => {}
            (None, _) if s.preserve => {}
            (None, _) => gone.push(name.clone()),
        }
    }
    for name in gone {
        m.remove(&name);
        unknown.push(join(path, &name));
    }
}

/// Fills in defaults, and drops nulls where null is no value.
pub fn default(v: &mut Value, s: &Schema) {
    fill(v, s);
    drop_nulls(v, s);
}

fn fill(v: &mut Value, s: &Schema) {
    match v {
        Value::Object(m) => {
            for (name, p) in &s.properties {
                let Some(d) = &p.default else { continue };
                if m.get(name).is_none_or(|x| x.is_null() && !p.nullable) {
                    m.insert(name.clone(), d.clone());
                }
            }
            for (name, x) in m.iter_mut() {
                if let Some(p) = s.member(name) {
                    if x.is_null()
                        && !p.nullable
                        && let Some(d) = &p.default
                    {
                        *x = d.clone();
                    }
                    fill(x, p);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &s.items {
                for x in list {
                    if x.is_null()
                        && !items.nullable
                        && let Some(d) = &items.default
                    {
                        *x = d.clone();
                    }
                    fill(x, items);
                }
            }
        }
        _ => {}
    }
}

fn drop_nulls(v: &mut Value, s: &Schema) {
    match v {
        Value::Object(m) => {
            m.retain(|name, x| !(x.is_null() && s.member(name).is_some_and(|p| !p.nullable)));
            for (name, x) in m.iter_mut() {
                if let Some(p) = s.member(name) {
                    drop_nulls(x, p);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &s.items {
                list.iter_mut().for_each(|x| drop_nulls(x, items));
            }
        }
        _ => {}
    }
}

/// Metadata that is none.
#[derive(Debug)]
pub struct BadMetadata(pub String);

fn meta_type(table: &Table) -> Option<TypeId> {
    table.type_named("meta/v1.ObjectMeta")
}

/// Makes `metadata` of the resource, and of those embedded in it, an ObjectMeta; notes the fields that are not part of one.
pub fn coerce_metadata(v: &mut Value, s: &Schema, unknown: &mut Vec<String>) -> Result<(), BadMetadata> {
    let table = Table::builtin();
    if let Some(meta) = v.get_mut("metadata") {
        coerce(&table, meta, "metadata", unknown).map_err(BadMetadata)?;
    }
    let Value::Object(m) = v else { return Ok(()) };
    for (name, x) in m.iter_mut().filter(|(n, _)| !TYPE_AND_META.contains(&n.as_str())) {
        if let Some(p) = s.member(name) {
            coerce_embedded(&table, x, p, name, unknown)?;
        }
    }
    Ok(())
}

fn coerce(table: &Table, meta: &mut Value, path: &str, unknown: &mut Vec<String>) -> Result<(), String> {
    let Some(ty) = meta_type(table) else { return Ok(()) };
    let decoded = Doc::from_value(table, ty, meta).map_err(|e| e.to_string())?;
    for complaint in &decoded.strict {
        if let Some(field) = complaint.strip_prefix("unknown field \"").and_then(|f| f.strip_suffix('"')) {
            unknown.push(format!("{path}.{field}"));
        }
    }
    *meta = decoded.doc.to_value();
    Ok(())
}

fn coerce_embedded(table: &Table, v: &mut Value, s: &Schema, path: &str, unknown: &mut Vec<String>) -> Result<(), BadMetadata> {
    match v {
        Value::Object(m) => {
            if s.embedded
                && let Some(meta) = m.get_mut("metadata")
            {
                let given = meta.clone();
                let at = format!("{path}.metadata");
                coerce(table, meta, &at, unknown).map_err(|e| BadMetadata(format!("{at}: Invalid value: {given}: {e}")))?;
            }
            for (name, x) in m.iter_mut() {
                if let Some(p) = s.member(name) {
                    coerce_embedded(table, x, p, &join(path, name), unknown)?;
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &s.items {
                for (i, x) in list.iter_mut().enumerate() {
                    coerce_embedded(table, x, items, &format!("{path}[{i}]"), unknown)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        Schema::of(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "integer"},
                "d": {"type": "string", "default": "x"},
                "o": {"type": "object", "default": {}, "properties": {"n": {"type": "integer", "default": 7}}},
                "nu": {"type": "string", "nullable": true},
                "l": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string", "default": "q"}}}},
                "mp": {"type": "object", "additionalProperties": {"type": "object", "properties": {"z": {"type": "string"}}}},
                "pu": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"in": {"type": "object"}}},
                "er": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}}))
    }

    #[test]
    fn what_the_schema_does_not_know_goes_and_is_named() {
        let mut v = json!({"apiVersion": "v1", "kind": "K", "metadata": {"x": 1}, "top": 1, "spec": {
            "a": 1, "zz": {"b": 1}, "l": [{"k": "1", "no": 1}], "mp": {"any": {"z": "1", "no": 2}}, "pu": {"free": 1, "in": {"no": 1}},
            "er": {"apiVersion": "v1", "kind": "Q", "metadata": {}, "free": 1}}});
        let mut unknown = Vec::new();
        prune(&mut v, &schema(), true, &mut unknown);
        unknown.sort();
        assert_eq!(unknown, ["spec.l[0].no", "spec.mp.any.no", "spec.pu.in.no", "spec.zz", "top"]);
        assert_eq!(
            v["spec"],
            json!({"a": 1, "l": [{"k": "1"}], "mp": {"any": {"z": "1"}}, "pu": {"free": 1, "in": {}},
                "er": {"apiVersion": "v1", "kind": "Q", "metadata": {}, "free": 1}})
        );
    }

    #[test]
    fn defaults_nest_and_nulls_are_values_only_where_they_may_be() {
        let mut v = json!({"spec": {"a": null, "d": null, "nu": null, "l": [{}]}});
        default(&mut v, &schema());
        assert_eq!(v, json!({"spec": {"d": "x", "nu": null, "o": {"n": 7}, "l": [{"k": "q"}]}}));
    }

    #[test]
    fn metadata_is_decoded_as_metadata() {
        let mut unknown = Vec::new();
        let mut v = json!({"metadata": {"name": "a", "bogus": 1}, "spec": {"er": {"metadata": {"name": "b", "bogus": 2}}}});
        coerce_metadata(&mut v, &schema(), &mut unknown).unwrap();
        assert_eq!(v, json!({"metadata": {"name": "a"}, "spec": {"er": {"metadata": {"name": "b"}}}}));
        assert_eq!(unknown, ["metadata.bogus", "spec.er.metadata.bogus"]);
        let bad = coerce_metadata(&mut json!({"metadata": {"labels": {"a": 1}}}), &schema(), &mut unknown).unwrap_err();
        assert_eq!(bad.0, "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string");
    }
}
