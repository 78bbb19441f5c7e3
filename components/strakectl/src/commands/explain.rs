//! `strakectl config explain`: the machine config's documents and fields, out of the schema that the types publish.

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::Cx;
use crate::output::{self, Format};

/// Explains a path such as `ClusterConfig.etcd.snapshots`; nothing lists the kinds.
pub fn run(cx: &Cx, path: &str) -> anyhow::Result<()> {
    let schema = machine_config::json_schema();
    let kinds = schema["oneOf"].as_array().context("the schema has no documents")?;
    if path.is_empty() {
        let rows: Vec<_> =
            kinds.iter().map(|kind| output::row(json!({"kind": kind_of(kind), "description": kind["description"]}))).collect();
        return super::print(&output::render(cx.output, &["KIND", "DESCRIPTION"], &rows)?);
    }
    let field = find(kinds, path)?;
    if cx.output != Format::Table {
        return super::print(&output::render(cx.output, &[], &[output::row(json!({"path": path, "schema": field}))])?);
    }
    let mut text = format!("{path} <{}>\n  {}\n", type_of(field), words(&field["description"]));
    text.push_str(&limits(field));
    let rows: Vec<_> = fields(field)
        .into_iter()
        .flatten()
        .filter(|(name, _)| !["apiVersion", "kind"].contains(&name.as_str()))
        .map(|(name, inner)| {
            let required = field_list(field).contains(&Value::from(name.as_str()));
            let default = match inner.get("default") {
                Some(default) => short(default),
                None if required => "(required)".to_owned(),
                None => String::new(),
            };
            output::row(json!({"field": name, "type": type_of(inner), "default": default, "description": inner["description"]}))
        })
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&output::render(Format::Table, &["FIELD", "TYPE", "DEFAULT", "DESCRIPTION"], &rows)?);
    }
    super::print(&text)
}

fn kind_of(document: &Value) -> &str {
    document["properties"]["kind"]["const"].as_str().unwrap_or_default()
}

fn find<'a>(kinds: &'a [Value], path: &str) -> anyhow::Result<&'a Value> {
    let mut steps = path.split('.');
    let kind = steps.next().unwrap_or_default();
    let Some(mut at) = kinds.iter().find(|document| kind_of(document).eq_ignore_ascii_case(kind)) else {
        let known: Vec<&str> = kinds.iter().map(kind_of).collect();
        bail!("there is no document of kind {kind}; there are {}", known.join(", "));
    };
    let mut done = kind_of(at).to_owned();
    for step in steps {
        let step = step.split('[').next().unwrap_or_default();
        let known = fields(at);
        match known.and_then(|fields| fields.get(step)) {
            Some(next) => at = next,
            None => {
                let known: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                let known = if known.is_empty() { "no fields".to_owned() } else { known.join(", ") };
                bail!("{done} has no field {step:?}; it has {known}");
            }
        }
        done = format!("{done}.{step}");
    }
    Ok(at)
}

/// The fields of an object, or of a list's objects.
fn fields(schema: &Value) -> Option<&serde_json::Map<String, Value>> {
    schema["properties"].as_object().or_else(|| schema["items"]["properties"].as_object())
}

fn field_list(schema: &Value) -> &[Value] {
    let list = if schema["properties"].is_object() { &schema["required"] } else { &schema["items"]["required"] };
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn type_of(schema: &Value) -> String {
    match schema["type"].as_str() {
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => format!("map to {}", type_of(&schema["additionalProperties"])),
        Some(simple) => schema["format"].as_str().map_or_else(|| simple.to_owned(), |format| format!("{simple}, {format}")),
        None => "value".to_owned(),
    }
}

fn words(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn short(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What a value must keep to.
fn limits(schema: &Value) -> String {
    let mut text = String::new();
    for (key, title) in [("default", "default"), ("minimum", "at least"), ("maximum", "at most"), ("pattern", "must match")] {
        if let Some(value) = schema.get(key) {
            text.push_str(&format!("  {title}: {}\n", short(value)));
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().map(short).collect();
        text.push_str(&format!("  one of: {}\n", values.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_and_missing_ones_are_named() {
        let schema = machine_config::json_schema();
        let kinds = schema["oneOf"].as_array().unwrap();
        let keep = find(kinds, "clusterconfig.etcd.snapshots.keep").unwrap();
        assert_eq!((type_of(keep).as_str(), keep["default"].as_u64()), ("integer", Some(48)));
        assert_eq!(type_of(find(kinds, "LinkConfig.routes").unwrap()), "list of object");
        assert!(find(kinds, "LinkConfig.routes[0].gateway").is_ok());
        for (path, message) in [
            ("Nonsense", "there is no document of kind Nonsense; there are MachineConfig"),
            ("ClusterConfig.etc", "ClusterConfig has no field \"etc\"; it has"),
            ("ClusterConfig.name.x", "ClusterConfig.name has no field \"x\"; it has no fields"),
        ] {
            let error = find(kinds, path).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn every_field_has_a_description_and_a_type() {
        fn check(path: &str, schema: &Value) {
            for (name, field) in fields(schema).into_iter().flatten().filter(|(name, _)| !["apiVersion", "kind"].contains(&name.as_str())) {
                let path = format!("{path}.{name}");
                assert!(!words(&field["description"]).is_empty(), "{path}");
                assert_ne!(type_of(field), "value", "{path}");
                check(&path, field);
            }
        }
        for document in machine_config::json_schema()["oneOf"].as_array().unwrap() {
            check(kind_of(document), document);
        }
    }
}
