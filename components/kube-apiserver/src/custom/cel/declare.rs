//! Declarations for CEL from structural schemas, with upstream's assumptions of how large data can be.

use cel::{
    Type,
    schema::{Decl, ListKind, MAX_REQUEST},
};
use serde_json::Value;

use crate::custom::structural::{Additional, Schema};

fn limit(n: Option<i64>) -> Option<u64> {
    n.map(|n| u64::try_from(n).unwrap_or(0))
}

/// The declaration of what `s` describes; none where a schema says too little. `name` is what its types are called, `resource` whether
/// it has the fields that every resource has.
pub fn declare(s: &Schema, name: &str, resource: bool) -> Option<Decl> {
    if s.int_or_string {
        return Some(Decl::simple(Type::Dyn, 1, MAX_REQUEST - 2));
    }
    Some(match s.ty.as_str() {
        "array" => {
            let kind = match s.list_type.as_str() {
                "set" => ListKind::Set,
                "map" => ListKind::Map(s.map_keys.clone()),
                _ => ListKind::Atomic,
            };
            let items = s.items.as_deref()?;
            Decl::list(declare(items, &format!("{name}.@idx"), items.embedded)?, limit(s.max_items), kind)
        }
        "object" => match &s.additional {
            Additional::Of(of) if s.properties.is_empty() => {
                Decl::map(declare(of, &format!("{name}.@elem"), of.embedded)?, limit(s.max_properties))
            }
            _ => object(s, name, resource || s.embedded),
        },
        "string" => string(s),
        "boolean" => Decl::simple(Type::Bool, 4, 0),
        "integer" => Decl::simple(Type::Int, 1, 0),
        "number" => Decl::simple(Type::Double, 1, 0),
        _ => return None,
    })
}

fn string(s: &Schema) -> Decl {
    let max = limit(s.max_length);
    match s.format.as_str() {
        "byte" => Decl::simple(Type::Bytes, 2, max.unwrap_or(MAX_REQUEST - 2)),
        "duration" => Decl::simple(Type::Duration, 4, 32),
        "date" => Decl::simple(Type::Timestamp, 12, 12),
        "date-time" => Decl::simple(Type::Timestamp, 21, 30),
        _ => {
            // A character is at most four bytes.
            let longest = s.enum_.iter().filter_map(Value::as_str).map(|e| e.len() as u64).max();
            let max = max.map(|m| m.saturating_mul(4)).or(longest).unwrap_or(MAX_REQUEST - 2);
            Decl::simple(Type::String, 2, max)
        }
    }
}

fn object(s: &Schema, name: &str, resource: bool) -> Decl {
    let mut members = Vec::new();
    let text = || Decl::simple(Type::String, 2, MAX_REQUEST - 2);
    for (member, of) in &s.properties {
        if resource && matches!(member.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        let Some(decl) = declare(of, &format!("{name}.{member}"), of.embedded) else { continue };
        let always = of.default.is_none() && s.required.contains(member);
        members.push((member.clone(), decl, always));
    }
    if resource {
        let meta = ["name", "generateName"].map(|n| (n.to_owned(), text(), false));
        members.push(("apiVersion".into(), text(), false));
        members.push(("kind".into(), text(), false));
        members.push(("metadata".into(), Decl::object(&format!("{name}.metadata"), meta), false));
    }
    Decl::object(name, members)
}
