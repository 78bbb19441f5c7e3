//! Tables of custom resources, by the printer columns of their definition.

use k8s_schema::Doc;
use serde_json::{Value, json};

use super::{Custom, definition::Column};
use crate::handlers::duration;

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

pub fn columns(custom: &Custom) -> Vec<Value> {
    let mut all = vec![json!({"name": "Name", "type": "string", "format": "name", "description": NAME, "priority": 0})];
    all.extend(custom.version().columns.iter().map(|c| {
        let plain = || format!("Custom resource definition column (in JSONPath format): {}", c.text);
        let description = if c.description.is_empty() { plain() } else { c.description.clone() };
        json!({"name": c.name, "type": c.type_, "format": c.format, "description": description, "priority": c.priority})
    }));
    all
}

pub fn cells(custom: &Custom, doc: &Doc) -> Vec<Value> {
    let v = doc.to_value();
    let mut cells = vec![Value::from(doc.meta().name())];
    cells.extend(custom.version().columns.iter().map(|c| cell(c, &v)));
    cells
}

fn cell(c: &Column, v: &Value) -> Value {
    let Some(found) = c.path.find(v).first().copied() else { return Value::Null };
    match c.type_.as_str() {
        "string" => match found {
            Value::Null => Value::Null,
            Value::String(s) => s.as_str().into(),
            other => other.to_string().into(),
        },
        "integer" => match found {
            Value::Number(n) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into(),
            _ => Value::Null,
        },
        "number" => match found {
            Value::Number(n) => Value::Number(n.clone()),
            _ => Value::Null,
        },
        "boolean" => found.as_bool().into(),
        "date" => match found.as_str().map(str::parse::<jiff::Timestamp>) {
            Some(Ok(t)) => duration(jiff::Timestamp::now().as_second() - t.as_second()).into(),
            Some(Err(_)) => "<invalid>".into(),
            None => Value::Null,
        },
        _ => Value::Null,
    }
}
