//! `metadata.managedFields`: who set which fields, read from and written to its entries.

use super::set::Set;
use crate::doc::Doc;
use crate::time;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// Who manages fields. What the order says first decides in which order conflicts are told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    /// The field manager's name.
    pub name: String,
    /// By `Apply`; else by `Update`.
    pub applied: bool,
    /// The version of an update; empty for `Apply`, where a manager has one entry for all versions.
    pub api_version: String,
    /// Such as `status`; empty for the object itself.
    pub subresource: String,
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&time::quote(&self.name))?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {}", time::quote(&self.subresource))?;
        }
        if !self.applied {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What a manager manages.
#[derive(Debug, Clone, PartialEq)]
pub struct Managed {
    /// The paths.
    pub set: Set,
    /// The version whose schema they are of.
    pub api_version: String,
    /// When they last changed, in Unix seconds.
    pub time: Option<i64>,
}

/// All managers of an object.
pub type Managers = BTreeMap<Manager, Managed>;

/// Reads an object's managedFields. The error says which rule an entry breaks.
pub fn decode(doc: &Doc) -> Result<Managers, String> {
    let mut managers = Managers::new();
    for (i, entry) in doc.meta().0.get("managedFields").iter().enumerate() {
        let applied = match entry.get("operation").str() {
            "Apply" => true,
            "Update" => false,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        let api_version = entry.get("apiVersion").str();
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match entry.get("fieldsType").str() {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
            other => return Err(format!("invalid fieldsType {} in managed fields entry {i}", time::quote(other))),
        }
        let fields = entry.get("fieldsV1").raw();
        let set = if fields.is_empty() {
            Set::default()
        } else {
            let value: Value = serde_json::from_slice(fields).map_err(|e| e.to_string())?;
            Set::from_json(&value)?
        };
        let manager = Manager {
            name: entry.get("manager").str().to_owned(),
            applied,
            api_version: if applied { String::new() } else { api_version.to_owned() },
            subresource: entry.get("subresource").str().to_owned(),
        };
        managers.insert(manager, Managed { set, api_version: api_version.to_owned(), time: entry.get("time").time_seconds() });
    }
    Ok(managers)
}

/// Whether the object asks for its managedFields to be dropped: an empty list, or one empty entry.
pub fn is_reset(doc: &Doc) -> bool {
    let entries = doc.meta().0.get("managedFields");
    entries.exists() && (entries.is_empty() || (entries.len() == 1 && entries.index(0).is_zero()))
}

/// Writes managers to an object, in upstream's order.
pub fn encode(doc: &mut Doc, managers: &Managers) -> Result<(), crate::EditError> {
    if managers.is_empty() {
        doc.remove("metadata.managedFields");
        return Ok(());
    }
    let mut entries: Vec<(&Manager, &Managed)> = managers.iter().collect();
    entries.sort_by_key(|(m, v)| (!m.applied, v.time.unwrap_or(0), m.name.as_str(), v.api_version.as_str(), m.subresource.as_str()));
    let list: Vec<Value> = entries
        .into_iter()
        .map(|(m, v)| {
            let mut entry = json!({
                "manager": m.name,
                "operation": if m.applied { "Apply" } else { "Update" },
                "apiVersion": v.api_version,
                "fieldsType": "FieldsV1",
                "fieldsV1": v.set.to_json(),
            });
            if let Some(time) = v.time {
                entry["time"] = Value::from(time::format_seconds(time));
            }
            if !m.subresource.is_empty() {
                entry["subresource"] = Value::from(m.subresource.as_str());
            }
            entry
        })
        .collect();
    doc.set("metadata.managedFields", Value::Array(list))
}
