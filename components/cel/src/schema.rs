//! What is known of data: its types for the checker, the largest it can be for the cost estimate, and how JSON is read as values.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    cost::Sizes,
    parser::RESERVED,
    types::{ObjectType, Type},
};

/// How elements of a list belong together, which decides what `==` and `+` mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// Elements are told apart by these fields.
    Map(Vec<String>),
}

#[derive(Debug, Clone)]
pub enum Shape {
    /// The type says it all.
    Simple,
    List {
        elem: Arc<Decl>,
        kind: ListKind,
    },
    Map {
        value: Arc<Decl>,
    },
    /// Fields by the names that expressions give them.
    Object {
        fields: BTreeMap<String, Member>,
    },
}

#[derive(Debug, Clone)]
pub struct Member {
    /// The name in the data.
    pub name: String,
    pub decl: Arc<Decl>,
}

#[derive(Debug, Clone)]
pub struct Decl {
    pub ty: Type,
    pub shape: Shape,
    /// The most elements, properties or bytes there can be.
    pub max: u64,
    /// The fewest bytes of JSON.
    pub min_size: u64,
}

/// The largest request: nothing in it can be larger.
pub const MAX_REQUEST: u64 = 3 * 1024 * 1024;

impl Decl {
    pub fn simple(ty: Type, min_size: u64, max: u64) -> Self {
        Self { ty, shape: Shape::Simple, max, min_size }
    }

    /// A list of at most `max` elements, or of as many as fit into a request.
    pub fn list(elem: Self, max: Option<u64>, kind: ListKind) -> Self {
        let max = max.unwrap_or((MAX_REQUEST - 2) / (elem.min_size + 1));
        Self { ty: Type::list(elem.ty.clone()), shape: Shape::List { elem: Arc::new(elem), kind }, max, min_size: 2 }
    }

    pub fn map(value: Self, max: Option<u64>) -> Self {
        let max = max.unwrap_or((MAX_REQUEST - 2) / (value.min_size + 6));
        Self { ty: Type::map(Type::String, value.ty.clone()), shape: Shape::Map { value: Arc::new(value) }, max, min_size: 2 }
    }

    /// A structure called `name`; fields come with their names in the data and whether they are always there.
    pub fn object(name: &str, members: impl IntoIterator<Item = (String, Self, bool)>) -> Self {
        Self::members(name, members, escape)
    }

    /// An object of the system's own, whose fields are called what they are called: reserved words are names after a dot.
    pub fn plain_object(name: &str, members: impl IntoIterator<Item = (String, Self, bool)>) -> Self {
        Self::members(name, members, |member| Some(member.to_owned()))
    }

    fn members(name: &str, members: impl IntoIterator<Item = (String, Self, bool)>, called: impl Fn(&str) -> Option<String>) -> Self {
        let (mut fields, mut types, mut min_size) = (BTreeMap::new(), BTreeMap::new(), 2);
        for (member, decl, always) in members {
            if always {
                min_size += member.len() as u64 + decl.min_size + 4;
            }
            if let Some(escaped) = called(&member) {
                types.insert(escaped.clone(), decl.ty.clone());
                fields.insert(escaped, Member { name: member, decl: Arc::new(decl) });
            }
        }
        let ty = Type::Object(Arc::new(ObjectType { name: name.to_owned(), fields: types, open: false }));
        Self { ty, shape: Shape::Object { fields }, max: MAX_REQUEST, min_size }
    }

    /// How often such data can be in one request.
    pub fn max_cardinality(&self) -> u64 {
        MAX_REQUEST / (self.min_size + 1)
    }
}

/// The sizes of what a variable's declaration describes, whatever the variable is called.
impl Sizes for Decl {
    fn max_size(&self, path: &[String]) -> Option<u64> {
        let mut at = self;
        for name in path.get(1..)? {
            at = match (name.as_str(), &at.shape) {
                ("@items", Shape::List { elem, .. }) => elem,
                ("@values", Shape::Map { value }) => value,
                ("@keys", Shape::Map { .. }) => return Some(0),
                (field, Shape::Object { fields }) => &fields.get(field)?.decl,
                _ => return None,
            };
        }
        Some(at.max)
    }
}

/// Words that are values or operators: beside the reserved ones, those that a property's name is not written with as it is.
const WORDS: [&str; 4] = ["true", "false", "null", "in"];

/// A property's name as expressions write it; none for those that cannot be written.
pub fn escape(name: &str) -> Option<String> {
    let first = name.chars().next()?;
    if !(first.is_ascii_alphabetic() || matches!(first, '_' | '.' | '-' | '/'))
        || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/'))
    {
        return None;
    }
    if WORDS.contains(&name) || RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    Some(name.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_upstream_does() {
        for (name, want) in [
            ("a", Some("a")),
            ("a-b", Some("a__dash__b")),
            ("a.b/c", Some("a__dot__b__slash__c")),
            ("a__b", Some("a__underscores__b")),
            ("namespace", Some("__namespace__")),
            ("if", Some("__if__")),
            ("1a", None),
            ("a b", None),
            ("", None),
        ] {
            assert_eq!(escape(name).as_deref(), want, "{name}");
        }
    }
}
