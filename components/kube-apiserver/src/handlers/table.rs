//! `as=Table` and `as=PartialObjectMetadata`: what `kubectl get` shows, from the column definitions of [`super::tables`].

use k8s_schema::Doc;
use serde_json::{Value, json};

use super::tables;
use crate::{
    custom,
    http::{ApiError, Wanted},
    registry::Resource,
};

/// What of each object a table carries along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    Metadata,
    Object,
    None,
}

impl Include {
    pub fn parse(v: Option<&str>) -> Result<Self, ApiError> {
        match v.unwrap_or("") {
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            "None" => Ok(Self::None),
            other => Err(ApiError::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

/// A table under the version that was asked for.
pub fn versioned(mut table: Value, wanted: Wanted) -> Value {
    if wanted.beta {
        table["apiVersion"] = "meta.k8s.io/v1beta1".into();
    }
    table
}

/// The metadata of a table of one object.
pub fn list_meta(doc: &Doc) -> Value {
    // A dry run has no revision.
    match doc.at("metadata.resourceVersion").str() {
        "" => json!({}),
        rv => json!({"resourceVersion": rv}),
    }
}

/// What the version of a kind adds to its annotations is not there where only metadata is shown.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub fn partial(doc: &Doc) -> Value {
    let mut metadata = doc.at("metadata").to_value();
    if doc.kind() == "DaemonSet"
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.shift_remove(TEMPLATE_GENERATION);
        if annotations.is_empty()
            && let Some(m) = metadata.as_object_mut()
        {
            m.shift_remove("annotations");
        }
    }
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

pub fn of_objects(res: &Resource, docs: &[Doc], include: Include, list_meta: &Value) -> Value {
    let object_of = |d: &Doc| match include {
        Include::Object => d.to_value(),
        Include::Metadata => partial(d),
        Include::None => Value::Null,
    };
    if let Some(custom) = &res.custom {
        let rows: Vec<Value> = docs.iter().map(|d| json!({"cells": custom::table::cells(custom, d), "object": object_of(d)})).collect();
        let columns = custom::table::columns(custom);
        return json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "columnDefinitions": columns, "rows": rows});
    }
    let printer = tables::of(&res.group, &res.kind);
    let columns: Vec<Value> = printer
        .columns
        .iter()
        .map(|c| json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description, "priority": c.priority}))
        .collect();
    let rows: Vec<Value> = docs
        .iter()
        .map(|d| {
            let row = (printer.row)(d);
            let mut v = json!({"cells": row.cells});
            if !row.conditions.is_empty() {
                v["conditions"] = row.conditions.into();
            }
            v["object"] = object_of(d);
            v
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta, "columnDefinitions": columns, "rows": rows})
}
