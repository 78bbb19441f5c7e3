//! The only module that knows a YAML library.
//!
//! A document becomes a [`Node`] tree that keeps duplicate keys, so that the decoder can report them beside everything else that is wrong.
//! Nodes carry no positions: the library shows positions only on errors. [`locate`] uses that: it reads the document again, walks
//! to a path and fails there on purpose, and the library says where it was. That costs one parse for each reported problem, and their
//! number is bounded.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::path::Step;

/// Longest accepted text, in bytes. A config with certificates of every kind is about 20 KiB.
pub const MAX_BYTES: usize = 1 << 20;
/// Most nodes in one document; aliases count each time they are used.
const MAX_NODES: usize = 50_000;
/// Most documents in one text.
pub const MAX_DOCUMENTS: usize = 256;

/// A YAML value. Maps keep the order of the text and duplicate keys.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `null`, `~` or nothing at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text, quoted or not.
    Str(String),
    /// A sequence.
    Seq(Vec<Node>),
    /// A mapping.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What to call this value in a message.
    pub fn describe(&self) -> &'static str {
        match self {
            Node::Null => "nothing",
            Node::Bool(_) => "a boolean",
            Node::Int(_) => "a whole number",
            Node::Float(_) => "a number",
            Node::Str(_) => "a string",
            Node::Seq(_) => "a list",
            Node::Map(_) => "a mapping",
        }
    }

    /// The first value of `key`, when this is a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Map(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text, when this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Node::Str(s) => Some(s),
            _ => None,
        }
    }
}

/// A text that is not YAML, or not the YAML that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line, from 1; 0 when unknown.
    pub line: usize,
    /// Column, from 1; 0 when unknown.
    pub column: usize,
    /// What is wrong, without the position.
    pub reason: String,
}

impl SyntaxError {
    fn new(error: &serde_yaml::Error) -> Self {
        let (line, column) = error.location().map_or((0, 0), |l| (l.line(), l.column()));
        let text = error.to_string();
        // The library appends the position to its message; it is printed in front already.
        let reason = match text.rfind(" at line ") {
            Some(at) => text[..at].to_owned(),
            None => text,
        };
        Self { line, column, reason }
    }
}

/// Reads every document of a text. Empty documents (only comments) are left out; the number beside each tree is the
/// document's index in the text, which [`locate`] wants back. The first syntax error ends the reading.
pub fn parse(text: &str) -> (Vec<(usize, Node)>, Option<SyntaxError>) {
    let mut documents = Vec::new();
    if text.len() > MAX_BYTES {
        let reason = format!("the text has {} bytes, more than the {MAX_BYTES} that are accepted", text.len());
        return (documents, Some(SyntaxError { line: 0, column: 0, reason }));
    }
    // The library takes a text without any document for one that ends too early.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return (documents, None);
    }
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        if index >= MAX_DOCUMENTS {
            let reason = format!("more than {MAX_DOCUMENTS} documents");
            return (documents, Some(SyntaxError { line: 0, column: 0, reason }));
        }
        let mut left = MAX_NODES;
        match (Build { left: &mut left }).deserialize(document) {
            Ok(Node::Null) => {}
            Ok(node) => documents.push((index, node)),
            Err(error) => return (documents, Some(SyntaxError::new(&error))),
        }
    }
    (documents, None)
}

/// Where in the text (line and column from 1) the value at `path` of document `index` begins; with `key`, where its key begins. A path
/// that does not exist gives the innermost part of it that does.
pub fn locate(text: &str, index: usize, path: &[Step], key: bool) -> Option<(usize, usize)> {
    let document = serde_yaml::Deserializer::from_str(text).nth(index)?;
    let error = (Locate { path, key }).deserialize(document).err()?;
    error.location().map(|l| (l.line(), l.column()))
}

/// Writes documents as YAML, separated by `---`.
pub fn render<'a>(documents: impl IntoIterator<Item = &'a Node>) -> String {
    let mut out = String::new();
    for node in documents {
        if !out.is_empty() {
            out.push_str("---\n");
        }
        // Serialising a tree of plain values into a String has no failing case; were one added, an empty document would show it.
        out.push_str(&serde_yaml::to_string(node).unwrap_or_default());
    }
    out
}

/// The documents of a text as plain values, as far as it can be read.
pub fn to_values(text: &str) -> Vec<serde_json::Value> {
    parse(text).0.iter().filter_map(|(_, document)| serde_json::to_value(document).ok()).collect()
}

/// Any value as a YAML document: for the files of other programs, so that no second crate needs a YAML library.
pub fn to_yaml(value: &serde_json::Value) -> String {
    serde_yaml::to_string(value).unwrap_or_default()
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Null => serializer.serialize_unit(),
            Node::Bool(v) => serializer.serialize_bool(*v),
            Node::Int(v) => match (i64::try_from(*v), u64::try_from(*v)) {
                (Ok(v), _) => serializer.serialize_i64(v),
                (_, Ok(v)) => serializer.serialize_u64(v),
                _ => serializer.serialize_i128(*v),
            },
            Node::Float(v) => serializer.serialize_f64(*v),
            Node::Str(v) => serializer.serialize_str(v),
            Node::Seq(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Node::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

/// Builds a tree and counts its nodes.
struct Build<'a> {
    left: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        *self.left = self.left.checked_sub(1).ok_or_else(|| de::Error::custom(format!("more than {MAX_NODES} values in one document")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
        Ok(Node::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
        Ok(Node::Int(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
        Ok(Node::Int(v.into()))
    }
    fn visit_i128<E>(self, v: i128) -> Result<Node, E> {
        Ok(Node::Int(v))
    }
    fn visit_u128<E: de::Error>(self, v: u128) -> Result<Node, E> {
        i128::try_from(v).map(Node::Int).map_err(|_| E::custom("the number is too large"))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
        Ok(Node::Float(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Node, E> {
        Ok(Node::Str(v.to_owned()))
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Build { left: &mut *self.left })? {
            items.push(item);
        }
        Ok(Node::Seq(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let value = map.next_value_seed(Build { left: &mut *self.left })?;
            entries.push((key, value));
        }
        Ok(Node::Map(entries))
    }
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(de::Error::custom("YAML tags are not accepted"))
    }
}

/// A mapping's key: a string and nothing else.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string as key (quote it)")
    }
    fn visit_str<E>(self, v: &str) -> Result<String, E> {
        Ok(v.to_owned())
    }
}

/// Walks to a path and fails there.
struct Locate<'a> {
    path: &'a [Step],
    key: bool,
}

fn here<T, E: de::Error>() -> Result<T, E> {
    Err(E::custom("here"))
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        here()
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        here()
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        here()
    }
    fn visit_i128<E: de::Error>(self, _: i128) -> Result<(), E> {
        here()
    }
    fn visit_u128<E: de::Error>(self, _: u128) -> Result<(), E> {
        here()
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        here()
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        here()
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        here()
    }
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        here()
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.path.split_first() else { return here() };
        for _ in 0..*wanted {
            if seq.next_element::<de::IgnoredAny>()?.is_none() {
                return here();
            }
        }
        seq.next_element_seed(Locate { path: rest, key: self.key })?;
        here()
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Field(name, occurrence), rest)) = self.path.split_first() else { return here() };
        let mut seen = 0;
        while let Some(found) = map.next_key_seed(LocateKey { name, fail: self.key && rest.is_empty() && seen == *occurrence })? {
            if found && seen == *occurrence {
                map.next_value_seed(Locate { path: rest, key: self.key })?;
                return here();
            }
            seen += usize::from(found);
            map.next_value::<de::IgnoredAny>()?;
        }
        here()
    }
}

/// Compares a key; fails on it when its position is what is wanted.
struct LocateKey<'a> {
    name: &'a str,
    fail: bool,
}

impl<'de> DeserializeSeed<'de> for LocateKey<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for LocateKey<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string as key")
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<bool, E> {
        if v != self.name {
            return Ok(false);
        }
        if self.fail { here() } else { Ok(true) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locate_finds_keys_values_and_the_innermost_existing_part() {
        let text = "a: 1\nb:\n  - x\n  - c: 2\n    c: 3\n---\nd: {e: [5, 6]}\n";
        let field = |n: &str| Step::Field(n.to_owned(), 0);
        let cases: &[(usize, Vec<Step>, bool, (usize, usize))] = &[
            (0, vec![], false, (1, 1)),
            (0, vec![field("a")], false, (1, 4)),
            (0, vec![field("a")], true, (1, 1)),
            (0, vec![field("b"), Step::Index(1), Step::Field("c".into(), 1)], true, (5, 5)),
            (0, vec![field("b"), Step::Index(1), field("missing")], false, (4, 5)),
            (1, vec![field("d"), field("e"), Step::Index(1)], false, (7, 12)),
        ];
        for (index, path, key, expected) in cases {
            assert_eq!(locate(text, *index, path, *key), Some(*expected), "{path:?}");
        }
    }

    #[test]
    fn aliases_that_explode_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let refs = vec![format!("*a{}", i - 1); 9].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        let (documents, error) = parse(&text);
        assert!(documents.is_empty());
        assert!(error.is_some());
    }

    #[test]
    fn documents_without_content_are_left_out() {
        for (text, expected) in [("", 0), ("# nothing\n\n", 0), ("---\n---\na: 1\n---\n# end\n", 1), ("a: 1\n---\nb: 1\n", 2)] {
            let (documents, error) = parse(text);
            assert_eq!((documents.len(), error), (expected, None), "{text:?}");
        }
    }

    #[test]
    fn tags_and_keys_that_are_not_strings_are_refused_where_they_stand() {
        for (text, line) in [("a: 1\nb: !x 1\n", 2), ("a: 1\n2: 1\n", 2), ("a: [1\n", 2)] {
            let (_, error) = parse(text);
            assert_eq!(error.expect(text).line, line, "{text}");
        }
    }
}
