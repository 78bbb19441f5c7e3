//! From trees to types and back, for every kind alike.
//!
//! [`object!`](crate::object) writes a struct once with its keys, defaults and documentation, and gives decoding that reports every problem,
//! encoding that leaves out what is at its default, and the JSON Schema. A mapping all of whose fields may be left out may be left out itself. A kind's own rules (values that depend on each other) are its `check` function.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::path::{FieldPath, Step};
use crate::yaml::Node;

/// A problem before it has a place in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The field.
    pub path: FieldPath,
    /// Whether the key is at fault rather than its value.
    pub key: bool,
    /// What is wrong.
    pub reason: String,
}

/// Collects findings while a tree is walked.
#[derive(Debug, Default)]
pub struct Decoder {
    at: Vec<Step>,
    /// What was found so far.
    pub findings: Vec<Finding>,
}

impl Decoder {
    /// Reports the value at the current place.
    pub fn report(&mut self, reason: impl Into<String>) {
        self.findings.push(Finding { path: FieldPath(self.at.clone()), key: false, reason: reason.into() });
    }

    /// Reports a value below the current place.
    pub fn report_at(&mut self, below: &FieldPath, reason: impl Into<String>) {
        let mut path = self.at.clone();
        path.extend(below.0.iter().cloned());
        self.findings.push(Finding { path: FieldPath(path), key: false, reason: reason.into() });
    }

    fn report_key(&mut self, key: &str, occurrence: usize, reason: String) {
        let mut path = self.at.clone();
        path.push(Step::Field(key.to_owned(), occurrence));
        self.findings.push(Finding { path: FieldPath(path), key: true, reason });
    }

    /// Runs `f` one step further down.
    pub fn within<T>(&mut self, step: Step, f: impl FnOnce(&mut Self) -> T) -> T {
        self.at.push(step);
        let result = f(self);
        self.at.pop();
        result
    }

    /// The entries of a mapping, each key once.
    pub fn entries<'n>(&mut self, node: &'n Node) -> Option<Vec<(&'n str, &'n Node)>> {
        let Node::Map(entries) = node else {
            self.report(format!("must be a mapping, not {}", node.describe()));
            return None;
        };
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        let mut unique = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let count = seen.entry(key).or_default();
            if *count == 0 {
                unique.push((key.as_str(), value));
            } else {
                self.report_key(key, *count, "the key appears twice in the same mapping".to_owned());
            }
            *count += 1;
        }
        Some(unique)
    }

    /// The entries of a mapping whose keys are all known.
    pub fn known<'n>(&mut self, node: &'n Node, known: &[&str]) -> Option<Vec<(&'n str, &'n Node)>> {
        let entries = self.entries(node)?;
        self.unknown(&entries, known);
        Some(entries)
    }

    /// Reports the keys that are not known.
    pub fn unknown(&mut self, entries: &[(&str, &Node)], known: &[&str]) {
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(key)) {
            let hint = closest(key, known).map_or_else(String::new, |c| format!(" (did you mean {c:?}?)"));
            self.report_key(key, 0, format!("unknown field{hint}"));
        }
    }

    /// Decodes one field of a mapping; `None` when it is wrong or missing (and reported).
    pub fn field<T: Value>(&mut self, entries: &[(&str, &Node)], key: &'static str, default: Option<fn() -> T>) -> Option<T> {
        match entries.iter().find(|(k, _)| *k == key) {
            Some((_, node)) => self.within(Step::Field(key.to_owned(), 0), |d| T::decode(node, d)),
            None => match default {
                Some(default) => Some(default()),
                None => T::absent().or_else(|| {
                    self.report(format!("{key} is required"));
                    None
                }),
            },
        }
    }
}

/// The known word that a typing error most likely meant.
fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_lowercase();
    known.iter().map(|k| (distance(&lower, &k.to_lowercase()), *k)).filter(|(d, k)| *d <= 2 && *d < k.len()).min().map(|(_, k)| k)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let next = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

/// Anything a field can hold.
pub trait Value: Sized + Clone + PartialEq {
    /// Reads a tree; reports and gives `None` when it does not fit.
    fn decode(node: &Node, d: &mut Decoder) -> Option<Self>;
    /// The tree that `decode` reads back as the same value.
    fn encode(&self) -> Node;
    /// The value of a field that is not there, for types that have one.
    fn absent() -> Option<Self> {
        None
    }
    /// Whether the field is left out when written.
    fn is_absent(&self) -> bool {
        Self::absent().as_ref() == Some(self)
    }
    /// The JSON Schema of this type.
    fn schema() -> Json;
}

impl<T: Value> Value for Option<T> {
    fn decode(node: &Node, d: &mut Decoder) -> Option<Self> {
        T::decode(node, d).map(Some)
    }
    fn encode(&self) -> Node {
        self.as_ref().map_or(Node::Null, Value::encode)
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
    fn schema() -> Json {
        T::schema()
    }
}

impl<T: Value> Value for Vec<T> {
    fn decode(node: &Node, d: &mut Decoder) -> Option<Self> {
        let Node::Seq(items) = node else {
            d.report(format!("must be a list, not {}", node.describe()));
            return None;
        };
        let decoded: Vec<Option<T>> = items.iter().enumerate().map(|(i, item)| d.within(Step::Index(i), |d| T::decode(item, d))).collect();
        decoded.into_iter().collect()
    }
    fn encode(&self) -> Node {
        Node::Seq(self.iter().map(Value::encode).collect())
    }
    fn absent() -> Option<Self> {
        Some(Vec::new())
    }
    fn schema() -> Json {
        json!({"type": "array", "items": T::schema()})
    }
}

impl<T: Value> Value for BTreeMap<String, T> {
    fn decode(node: &Node, d: &mut Decoder) -> Option<Self> {
        let entries = d.entries(node)?;
        let decoded: Vec<Option<(String, T)>> = entries
            .into_iter()
            .map(|(key, value)| d.within(Step::Field(key.to_owned(), 0), |d| T::decode(value, d)).map(|v| (key.to_owned(), v)))
            .collect();
        decoded.into_iter().collect()
    }
    fn encode(&self) -> Node {
        Node::Map(self.iter().map(|(k, v)| (k.clone(), v.encode())).collect())
    }
    fn absent() -> Option<Self> {
        Some(BTreeMap::new())
    }
    fn schema() -> Json {
        json!({"type": "object", "additionalProperties": T::schema()})
    }
}

impl Value for bool {
    fn decode(node: &Node, d: &mut Decoder) -> Option<Self> {
        match node {
            Node::Bool(v) => Some(*v),
            other => {
                d.report(format!("must be true or false, not {}", other.describe()));
                None
            }
        }
    }
    fn encode(&self) -> Node {
        Node::Bool(*self)
    }
    fn schema() -> Json {
        json!({"type": "boolean"})
    }
}

impl Value for String {
    fn decode(node: &Node, d: &mut Decoder) -> Option<Self> {
        match node {
            Node::Str(v) => Some(v.clone()),
            other => {
                let hint = if matches!(other, Node::Null | Node::Seq(_) | Node::Map(_)) { "" } else { " (quote it)" };
                d.report(format!("must be a string, not {}{hint}", other.describe()));
                None
            }
        }
    }
    fn encode(&self) -> Node {
        Node::Str(self.clone())
    }
    fn schema() -> Json {
        json!({"type": "string"})
    }
}

macro_rules! whole_numbers {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            fn decode(node: &Node, d: &mut Decoder) -> Option<Self> {
                match node {
                    Node::Int(v) => <$ty>::try_from(*v).map_err(|_| d.report(format!("must be between {} and {}", <$ty>::MIN, <$ty>::MAX))).ok(),
                    other => {
                        d.report(format!("must be a whole number, not {}", other.describe()));
                        None
                    }
                }
            }
            fn encode(&self) -> Node {
                Node::Int(i128::from(*self))
            }
            fn schema() -> Json {
                json!({"type": "integer", "minimum": <$ty>::MIN, "maximum": <$ty>::MAX})
            }
        }
    )*};
}
whole_numbers!(u8, u16, u32, i64);

/// Gives a type that is written as text its [`Value`]: it needs `FromStr` (whose error says what is wrong) and `Display`.
#[macro_export]
macro_rules! text_value {
    ($ty:ty, $schema:expr) => {
        impl $crate::model::Value for $ty {
            fn decode(node: &$crate::yaml::Node, d: &mut $crate::model::Decoder) -> Option<Self> {
                let text = <String as $crate::model::Value>::decode(node, d)?;
                match text.parse::<$ty>() {
                    Ok(value) => Some(value),
                    Err(reason) => {
                        d.report(reason.to_string());
                        None
                    }
                }
            }
            fn encode(&self) -> $crate::yaml::Node {
                $crate::yaml::Node::Str(self.to_string())
            }
            fn schema() -> serde_json::Value {
                $schema
            }
        }
    };
}

/// A word out of a fixed set.
#[macro_export]
macro_rules! words {
    ($(#[doc = $doc:literal])* $vis:vis enum $name:ident { $($(#[doc = $vdoc:literal])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name { $($(#[doc = $vdoc])* $variant),+ }

        impl $name {
            /// The word as it is written.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    other => Err(format!("{other:?} is not one of {}", [$($word),+].join(", "))),
                }
            }
        }
        $crate::text_value!($name, serde_json::json!({"type": "string", "enum": [$($word),+]}));
    };
}

/// A mapping with known keys. `= value` after a field gives its default; without one an `Option`, list or map may be left out and everything else is required.
#[macro_export]
macro_rules! object {
    ($(#[doc = $doc:literal])* $vis:vis struct $name:ident {
        $($(#[doc = $fdoc:literal])* $field:ident ($key:literal): $ty:ty $(= $default:expr)?,)*
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq)]
        $vis struct $name { $($(#[doc = $fdoc])* pub $field: $ty,)* }

        impl $name {
            /// The keys this mapping knows.
            pub const KEYS: &'static [&'static str] = &[$($key),*];

            /// Decodes the entries of a mapping that was already checked for unknown keys.
            pub(crate) fn decode_entries(entries: &[(&str, &$crate::yaml::Node)], d: &mut $crate::model::Decoder) -> Option<Self> {
                $(let $field: Option<$ty> = d.field(entries, $key, $crate::object!(@default $ty $(= $default)?));)*
                let value = Self { $($field: $field?,)* };
                let before = d.findings.len();
                $crate::model::Check::check(&value, d);
                (d.findings.len() == before).then_some(value)
            }

            /// The entries that differ from the default.
            pub(crate) fn encode_entries(&self) -> Vec<(String, $crate::yaml::Node)> {
                let mut entries = Vec::new();
                $(
                    let default: Option<fn() -> $ty> = $crate::object!(@default $ty $(= $default)?);
                    let left_out = match default {
                        Some(default) => self.$field == default(),
                        None => $crate::model::Value::is_absent(&self.$field),
                    };
                    if !left_out {
                        entries.push(($key.to_owned(), $crate::model::Value::encode(&self.$field)));
                    }
                )*
                entries
            }
        }

        impl $crate::model::Value for $name {
            fn decode(node: &$crate::yaml::Node, d: &mut $crate::model::Decoder) -> Option<Self> {
                let entries = d.known(node, Self::KEYS)?;
                Self::decode_entries(&entries, d)
            }
            fn encode(&self) -> $crate::yaml::Node {
                $crate::yaml::Node::Map(self.encode_entries())
            }
            fn absent() -> Option<Self> {
                Self::decode_entries(&[], &mut $crate::model::Decoder::default())
            }
            fn schema() -> serde_json::Value {
                let mut properties = serde_json::Map::new();
                let mut required: Vec<&'static str> = Vec::new();
                $(
                    let mut property = <$ty as $crate::model::Value>::schema();
                    let default: Option<fn() -> $ty> = $crate::object!(@default $ty $(= $default)?);
                    if let Some(object) = property.as_object_mut() {
                        object.insert("description".to_owned(), concat!($($fdoc),*).trim().into());
                        if let Some(default) = default {
                            object.insert("default".to_owned(), $crate::model::to_json(&$crate::model::Value::encode(&default())));
                        }
                    }
                    if default.is_none() && <$ty as $crate::model::Value>::absent().is_none() {
                        required.push($key);
                    }
                    properties.insert($key.to_owned(), property);
                )*
                serde_json::json!({
                    "type": "object",
                    "description": concat!($($doc),*).trim(),
                    "additionalProperties": false,
                    "required": required,
                    "properties": properties,
                })
            }
        }
    };
    (@default $ty:ty) => { None::<fn() -> $ty> };
    (@default $ty:ty = $default:expr) => {{
        fn default() -> $ty { $default }
        Some(default as fn() -> $ty)
    }};
}

/// Rules of one mapping that are about more than one field.
pub trait Check {
    /// Reports what does not fit together.
    fn check(&self, _d: &mut Decoder) {}
}

/// A tree as JSON, for schemas and for `-o json`.
pub fn to_json(node: &Node) -> Json {
    match node {
        Node::Null => Json::Null,
        Node::Bool(v) => json!(v),
        Node::Int(v) => i64::try_from(*v).map(|v| json!(v)).unwrap_or_else(|_| json!(v.to_string())),
        Node::Float(v) => json!(v),
        Node::Str(v) => json!(v),
        Node::Seq(items) => items.iter().map(to_json).collect(),
        Node::Map(entries) => Json::Object(entries.iter().map(|(k, v)| (k.clone(), to_json(v))).collect()),
    }
}
