//! `metadata.managedFields`: who set which fields, read from and written to its entries.

use super::set::Set;
use crate::doc::{Doc, Node, Segment, Tag};
use crate::json::write_string;
use crate::table::Kind;
use crate::time;
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
        let fields = entry.get("fieldsV1");
        // An untyped document keeps them as a tree, a typed one as text.
        let tree = if fields.exists() && fields.ty().kind() == Kind::Any { fields.to_json() } else { Vec::new() };
        let fields = if tree.is_empty() { fields.raw() } else { &tree };
        let set = if fields.is_empty() { Set::default() } else { Set::from_text(fields)? };
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
    if doc.ty().kind() == Kind::Struct && write_nodes(doc, &entries).is_some() {
        return Ok(());
    }
    doc.root_mut().set_json("metadata.managedFields", &text_of(&entries))
}

/// The list as an untyped document takes it.
fn text_of(entries: &[(&Manager, &Managed)]) -> Vec<u8> {
    let mut text = Vec::with_capacity(1024);
    let quoted = |out: &mut Vec<u8>, key: &str, value: &str| {
        out.push(b'"');
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        write_string(out, value.as_bytes());
        out.push(b',');
    };
    text.push(b'[');
    for (m, v) in entries {
        text.push(b'{');
        quoted(&mut text, "manager", &m.name);
        quoted(&mut text, "operation", if m.applied { "Apply" } else { "Update" });
        quoted(&mut text, "apiVersion", &v.api_version);
        if let Some(time) = v.time {
            quoted(&mut text, "time", &time::format_seconds(time));
        }
        quoted(&mut text, "fieldsType", "FieldsV1");
        if !m.subresource.is_empty() {
            quoted(&mut text, "subresource", &m.subresource);
        }
        text.extend_from_slice(b"\"fieldsV1\":");
        v.set.write_json(&mut text);
        text.extend_from_slice(b"},");
    }
    text.pop();
    text.push(b']');
    text
}

/// Writes entries as the nodes of a typed document; none when its type has no such list.
fn write_nodes(doc: &mut Doc, entries: &[(&Manager, &Managed)]) -> Option<()> {
    let schema = doc.schema.clone();
    let (metadata, ty) = doc.make_step(0, doc.type_id(), Segment::Name("metadata"))?;
    let elem = schema.ty(schema.ty(ty).field("managedFields")?.type_id()).elem();
    let index = |name: &str| schema.ty(elem).field(name).map(|f| f.index());
    let strings = ["manager", "operation", "apiVersion", "fieldsType", "subresource"];
    let [manager, operation, api_version, fields_type, subresource] = strings.map(index);
    let (time, fields) = (index("time")?, index("fieldsV1")?);
    let strings = [manager?, operation?, api_version?, fields_type?, subresource?];
    let (list, _) = doc.make_step(metadata, ty, Segment::Name("managedFields"))?;
    doc.replace(list, Node::container(Tag::List));
    let mut text = Vec::with_capacity(512);
    for (m, v) in entries {
        let entry = doc.add(Node::container(Tag::Struct));
        let operation = if m.applied { "Apply" } else { "Update" };
        for (index, value) in strings.into_iter().zip([m.name.as_str(), operation, &v.api_version, "FieldsV1", &m.subresource]) {
            if value.is_empty() && index == strings[4] {
                continue;
            }
            let node = doc.keep_str(Tag::Str, value);
            let at = doc.add(node);
            doc.put_field(entry, index, at);
        }
        if let Some(seconds) = v.time {
            let at = doc.add(Node::int(seconds));
            doc.put_field(entry, time, at);
        }
        text.clear();
        v.set.write_json(&mut text);
        let node = Node::slice(Tag::Raw, doc.keep(&text));
        let at = doc.add(node);
        doc.put_field(entry, fields, at);
        doc.append(list, entry);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Schema;

    #[test]
    fn nodes_and_text_are_the_same_list() {
        let schema = Schema::builtin();
        let of = |name: &str, applied, subresource: &str, time| {
            let api_version = if applied { String::new() } else { "v1".to_owned() };
            let manager = Manager { name: name.to_owned(), applied, api_version, subresource: subresource.to_owned() };
            let set = Set::of_fields(&[&["metadata", "labels", "a\"b<"], &["data"], &["data", "k"]]);
            (manager, Managed { set, api_version: "v1".to_owned(), time })
        };
        let managers: Managers =
            [of("m", true, "", Some(1_600_000_000)), of("", false, "status", None), of("é\"", false, "", Some(0))].into();
        let entries: Vec<_> = managers.iter().collect();
        let mut nodes = Doc::of_kind(&schema, "", "v1", "ConfigMap").unwrap();
        let mut text = nodes.clone();
        write_nodes(&mut nodes, &entries).unwrap();
        text.root_mut().set_json("metadata.managedFields", &text_of(&entries)).unwrap();
        assert_eq!(nodes.to_json(), text.to_json());
        assert_eq!(nodes.to_protobuf(), text.to_protobuf());
        assert_eq!(decode(&nodes).unwrap(), managers);
    }
}
