//! Sets of field paths, as `managedFields` keep them (`fieldsV1`).

use crate::doc::MAX_DEPTH;
use crate::json::cursor::Cursor;
use serde_json::{Map, Number, Value};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A scalar in a path: the value of a set's element or of a list's key.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// A boolean.
    Bool(bool),
    /// Null, or what is no scalar; it stands in no path that is valid.
    Null,
}

impl Scalar {
    /// Of a JSON value.
    pub fn of(value: &Value) -> Scalar {
        match value {
            Value::Number(n) => Scalar::Number(n.clone()),
            Value::String(s) => Scalar::String(s.clone()),
            Value::Bool(b) => Scalar::Bool(*b),
            _ => Scalar::Null,
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Scalar::Number(n) => Value::Number(n.clone()),
            Scalar::String(s) => Value::String(s.clone()),
            Scalar::Bool(b) => Value::Bool(*b),
            Scalar::Null => Value::Null,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Scalar::Number(_) => 0,
            Scalar::String(_) => 1,
            Scalar::Bool(_) => 2,
            Scalar::Null => 3,
        }
    }
}

impl Eq for Scalar {}

impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Scalar::Number(a), Scalar::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
            },
            (Scalar::String(a), Scalar::String(b)) => a.cmp(b),
            (Scalar::Bool(a), Scalar::Bool(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One step of a path. The order of the variants is the order in which they are written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathElement {
    /// A field of a struct or a key of a map.
    Field(String),
    /// An element of a list that is told apart by keys, which are sorted.
    Key(Vec<(String, Scalar)>),
    /// An element of a set.
    Value(Scalar),
    /// An element by index.
    Index(i64),
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathElement::Field(name) => write!(f, ".{name}"),
            PathElement::Key(keys) => {
                let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={}", v.to_value())).collect();
                write!(f, "[{}]", keys.join(","))
            }
            PathElement::Value(v) => write!(f, "[={}]", v.to_value()),
            PathElement::Index(i) => write!(f, "[{i}]"),
        }
    }
}

impl PathElement {
    /// The key of this element in `fieldsV1`.
    fn serialize(&self) -> String {
        match self {
            PathElement::Field(name) => format!("f:{name}"),
            PathElement::Key(keys) => {
                let map: Map<String, Value> = keys.iter().map(|(k, v)| (k.clone(), v.to_value())).collect();
                format!("k:{}", Value::Object(map))
            }
            PathElement::Value(v) => format!("v:{}", v.to_value()),
            PathElement::Index(i) => format!("i:{i}"),
        }
    }

    fn parse(text: &str) -> Result<PathElement, String> {
        if text.len() < 2 {
            return Err("key must be 2 characters long:".to_owned());
        }
        let Some((kind, rest)) = text.split_once(':').filter(|(kind, _)| kind.len() == 1) else {
            return Err(format!("missing colon: {text}"));
        };
        match kind {
            "f" => Ok(PathElement::Field(rest.to_owned())),
            "v" => serde_json::from_str::<Value>(rest).map(|v| PathElement::Value(Scalar::of(&v))).map_err(|e| e.to_string()),
            "k" => {
                let map: Map<String, Value> = serde_json::from_str(rest).map_err(|e| e.to_string())?;
                let mut keys: Vec<(String, Scalar)> = map.iter().map(|(k, v)| (k.clone(), Scalar::of(v))).collect();
                keys.sort();
                Ok(PathElement::Key(keys))
            }
            "i" => rest.parse().map(PathElement::Index).map_err(|_| format!("{rest} is no index")),
            _ => Err("unknown path element type".to_owned()),
        }
    }
}

/// A path from the root of an object, displayed as `.spec.containers[name="a"].image`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Path(pub Vec<PathElement>);

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|e| write!(f, "{e}"))
    }
}

/// A set of paths: a tree in which every node may be a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// Paths that end here.
    pub members: BTreeSet<PathElement>,
    /// Longer ones.
    pub children: BTreeMap<PathElement, Set>,
}

impl Set {
    /// Of field names: `&[&["metadata", "name"], …]`.
    pub fn of_fields(paths: &[&[&str]]) -> Set {
        let mut set = Set::default();
        for path in paths {
            let path: Vec<PathElement> = path.iter().map(|p| PathElement::Field((*p).to_owned())).collect();
            set.insert(&path);
        }
        set
    }

    /// Adds a path; the empty one is in no set.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Whether a path is in it.
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|c| c.has(rest)),
        }
    }

    /// Whether it has no path.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Set::is_empty)
    }

    /// What is below an element.
    pub fn below(&self, element: &PathElement) -> Option<&Set> {
        self.children.get(element).filter(|s| !s.is_empty())
    }

    /// Both sets' paths.
    pub fn union(mut self, other: &Set) -> Set {
        self.members.extend(other.members.iter().cloned());
        for (element, set) in &other.children {
            let mine = self.children.remove(element).unwrap_or_default();
            self.children.insert(element.clone(), mine.union(set));
        }
        self
    }

    /// [`Self::union`] of sets of which one is often empty.
    pub fn joined(mut self, other: Set) -> Set {
        if self.is_empty() {
            return other;
        }
        self.add_all(&other);
        self
    }

    /// Paths that both have.
    pub fn intersection(&self, other: &Set) -> Set {
        Set {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: self
                .children
                .iter()
                .filter_map(|(e, s)| Some((e.clone(), s.intersection(other.children.get(e)?))))
                .filter(|(_, s)| !s.is_empty())
                .collect(),
        }
    }

    /// Paths that the other does not have.
    pub fn difference(&self, other: &Set) -> Set {
        self.minus(other, false)
    }

    /// Paths that the other does not have, nor a beginning of.
    pub fn recursive_difference(&self, other: &Set) -> Set {
        self.minus(other, true)
    }

    fn minus(&self, other: &Set, recursive: bool) -> Set {
        let mut children = BTreeMap::new();
        for (element, set) in &self.children {
            if recursive && other.members.contains(element) {
                continue;
            }
            let rest = match other.children.get(element) {
                Some(o) => set.minus(o, recursive),
                None => set.clone(),
            };
            if !rest.is_empty() {
                children.insert(element.clone(), rest);
            }
        }
        Set { members: self.members.difference(&other.members).cloned().collect(), children }
    }

    /// Calls `f` for every path, shorter ones of a node first.
    pub fn for_each(&self, f: &mut impl FnMut(&[PathElement])) {
        fn walk(set: &Set, prefix: &mut Vec<PathElement>, f: &mut impl FnMut(&[PathElement])) {
            for member in &set.members {
                prefix.push(member.clone());
                f(prefix);
                prefix.pop();
            }
            for (element, child) in &set.children {
                prefix.push(element.clone());
                walk(child, prefix, f);
                prefix.pop();
            }
        }
        walk(self, &mut Vec::new(), f);
    }

    /// Takes out the paths of another set. What it costs depends on the other set.
    pub fn subtract(&mut self, other: &Set) {
        for member in &other.members {
            self.members.remove(member);
        }
        for (element, set) in &other.children {
            if let Some(mine) = self.children.get_mut(element) {
                mine.subtract(set);
                if mine.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    /// Adds the paths of another set. What it costs depends on the other set.
    pub fn add_all(&mut self, other: &Set) {
        for member in &other.members {
            if !self.members.contains(member) {
                self.members.insert(member.clone());
            }
        }
        for (element, set) in &other.children {
            match self.children.get_mut(element) {
                Some(mine) => mine.add_all(set),
                None => {
                    self.children.insert(element.clone(), set.clone());
                }
            }
        }
    }

    /// `fieldsV1`: `{"f:spec":{"f:replicas":{}}}`.
    pub fn to_json(&self) -> Value {
        let mut text = Vec::new();
        self.write_json(&mut text);
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Appends `fieldsV1`.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        self.emit(false, out);
    }

    fn emit(&self, member: bool, out: &mut Vec<u8>) {
        out.push(b'{');
        let start = out.len();
        if member && !(self.members.is_empty() && self.children.is_empty()) {
            out.extend_from_slice(b"\".\":{}");
        }
        let (mut members, mut children) = (self.members.iter().peekable(), self.children.iter().peekable());
        loop {
            let order = match (members.peek(), children.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(m), Some((c, _))) => (*m).cmp(*c),
            };
            let element = if order == Ordering::Greater { None } else { members.next() };
            let child = if order == Ordering::Less { None } else { children.next() };
            let Some(key) = element.or(child.map(|(e, _)| e)) else { break };
            if out.len() > start {
                out.push(b',');
            }
            match key {
                PathElement::Field(name) => {
                    out.extend_from_slice(b"\"f:");
                    crate::json::write_escaped(out, name.as_bytes());
                    out.push(b'"');
                }
                other => crate::json::write_string(out, other.serialize().as_bytes()),
            }
            out.push(b':');
            match child {
                Some((_, child)) => child.emit(element.is_some(), out),
                None => out.extend_from_slice(b"{}"),
            }
        }
        out.push(b'}');
    }

    /// Reads `fieldsV1`.
    pub fn from_json(value: &Value) -> Result<Set, String> {
        Set::from_text(value.to_string().as_bytes())
    }

    /// Reads `fieldsV1` from its text.
    pub fn from_text(text: &[u8]) -> Result<Set, String> {
        let mut cursor = Cursor::new(text);
        let set = read(&mut cursor, 0)?.0;
        cursor.end().map_err(|_| "trailing data".to_owned())?;
        Ok(set)
    }
}

/// A set, and whether its node is a member itself: it is when it is empty or says so.
fn read(cursor: &mut Cursor<'_>, depth: usize) -> Result<(Set, bool), String> {
    let broken = |_| "not a JSON object".to_owned();
    if depth > MAX_DEPTH || cursor.next_byte().map_err(broken)? != b'{' {
        return Err("expected an object".to_owned());
    }
    let (mut set, mut member, mut first, mut empty) = (Set::default(), false, true, true);
    while cursor.next_key(&mut first).map_err(broken)? {
        empty = false;
        let key = cursor.key_text();
        if key == "." {
            member = true;
            cursor.skip().map_err(broken)?;
            continue;
        }
        let element = PathElement::parse(&key)?;
        let (child, child_member) = read(cursor, depth + 1)?;
        if child_member {
            set.members.insert(element.clone());
        }
        if !child.is_empty() {
            set.children.insert(element, child);
        }
    }
    Ok((set, member || empty))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn fields_v1_is_read_and_written() {
        let text = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {".": {}, "v:\"x\"": {}}},
            "f:spec": {"f:containers": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}}});
        let set = Set::from_json(&text).unwrap();
        assert_eq!(set.to_json(), text);
        let mut paths = Vec::new();
        set.for_each(&mut |p| paths.push(Path(p.to_vec()).to_string()));
        assert!(paths.contains(&".spec.containers[containerPort=80,protocol=\"TCP\"].name".to_owned()), "{paths:?}");
        assert!(
            Set::from_json(&json!({"x": {}})).is_err()
                && Set::from_json(&json!({"q:x": {}})).is_err()
                && Set::from_json(&json!([])).is_err()
        );
    }

    fn sets() -> impl Strategy<Value = Set> {
        let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| {
            let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
            Set::of_fields(&paths)
        })
    }

    proptest! {
        #[test]
        fn set_algebra_holds(a in sets(), b in sets()) {
            let union = a.clone().union(&b);
            let count = |s: &Set| { let mut n = 0; s.for_each(&mut |_| n += 1); n };
            prop_assert_eq!(count(&union), count(&a) + count(&b) - count(&a.intersection(&b)));
            prop_assert_eq!(a.clone().joined(b.clone()).to_json(), union.to_json());
            prop_assert_eq!(count(&a.difference(&b)), count(&a) - count(&a.intersection(&b)));
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            prop_assert_eq!(Set::from_json(&a.to_json()), Ok(a));
        }
    }
}
