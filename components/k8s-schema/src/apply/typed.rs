//! Values with their types, as structured-merge-diff sees them: what is a scalar, what merges, what is one piece; field
//! sets, comparison and validation.

use super::set::{PathElement, Scalar, Set};
use crate::table::{Kind, ListType, Schema, Type, TypeId};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A type, and whether the place it stands in makes it one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeRef {
    pub ty: TypeId,
    pub atomic: bool,
}

impl TypeRef {
    pub fn of(ty: TypeId) -> TypeRef {
        TypeRef { ty, atomic: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalarKind {
    Numeric,
    String,
    Boolean,
    Untyped,
}

/// What a value of a type is.
#[derive(Clone, Copy)]
pub enum Atom<'a> {
    Scalar(ScalarKind),
    /// A list that is one piece.
    AtomicList(TypeRef),
    /// A list of scalars, each at most once.
    SetList(TypeRef),
    /// A list whose elements have keys.
    KeyedList(Type<'a>, TypeRef),
    /// A struct; `true`: one piece.
    Struct(Type<'a>, bool),
    Map(TypeRef, bool),
}

impl Atom<'_> {
    fn is_atomic(&self) -> bool {
        matches!(self, Atom::AtomicList(_) | Atom::Struct(_, true) | Atom::Map(_, true))
    }

    fn shape(&self) -> u8 {
        match self {
            Atom::Scalar(_) => 0,
            Atom::AtomicList(_) | Atom::SetList(_) | Atom::KeyedList(..) => 1,
            Atom::Struct(..) | Atom::Map(..) => 2,
        }
    }
}

/// Go's name for the type of a value, in errors.
fn go_type(v: &Value) -> &'static str {
    match v {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// The atom of a type for a value; types that can be anything follow the value.
pub fn resolve<'a>(schema: &'a Schema, tr: TypeRef, value: Option<&Value>) -> Atom<'a> {
    let t = schema.ty(tr.ty);
    match t.kind() {
        Kind::Bool => Atom::Scalar(ScalarKind::Boolean),
        Kind::Int32 | Kind::Int64 | Kind::Float64 => Atom::Scalar(ScalarKind::Numeric),
        Kind::String | Kind::Bytes | Kind::Duration => Atom::Scalar(ScalarKind::String),
        Kind::Quantity | Kind::IntOrString | Kind::Time | Kind::MicroTime => Atom::Scalar(ScalarKind::Untyped),
        Kind::Struct => Atom::Struct(t, tr.atomic || t.is_atomic()),
        Kind::Map => Atom::Map(TypeRef::of(t.elem()), tr.atomic || t.is_atomic()),
        Kind::List => {
            let elem = TypeRef::of(t.elem());
            match t.list_type() {
                ListType::Map if !tr.atomic => Atom::KeyedList(t, elem),
                ListType::Set if !tr.atomic => Atom::SetList(elem),
                _ => Atom::AtomicList(elem),
            }
        }
        Kind::Any if !tr.atomic => match value {
            Some(Value::Array(_)) => Atom::AtomicList(TypeRef { ty: TypeId::ANY, atomic: true }),
            Some(Value::Object(_)) | None => Atom::Map(TypeRef::of(TypeId::ANY), false),
            Some(Value::Null) => Atom::Map(TypeRef::of(TypeId::ANY), false),
            Some(_) => Atom::Scalar(ScalarKind::Untyped),
        },
        // Any value as one piece, and the unions of JSON schema.
        _ => match value {
            Some(Value::Array(_)) => Atom::AtomicList(TypeRef { ty: TypeId::ANY, atomic: true }),
            Some(Value::Object(_) | Value::Null) | None => Atom::Map(TypeRef { ty: TypeId::ANY, atomic: true }, true),
            Some(_) => Atom::Scalar(ScalarKind::Untyped),
        },
    }
}

/// The type of a struct's field or a map's value; `None` for a field the struct does not have.
pub fn field_type(atom: &Atom<'_>, name: &str) -> Option<TypeRef> {
    match atom {
        Atom::Struct(t, _) => {
            let declared = t.field(name).map(|f| TypeRef { ty: f.type_id(), atomic: f.is_atomic() });
            declared.or_else(|| t.is_open().then_some(TypeRef::of(TypeId::ANY)))
        }
        Atom::Map(elem, _) => Some(*elem),
        _ => None,
    }
}

fn elem_type(atom: &Atom<'_>) -> TypeRef {
    match atom {
        Atom::AtomicList(e) | Atom::SetList(e) | Atom::KeyedList(_, e) => *e,
        _ => TypeRef::of(TypeId::ANY),
    }
}

/// How an element of a list stands in a path.
pub fn element_of(schema: &Schema, list: &Atom<'_>, item: &Value) -> Result<PathElement, String> {
    match list {
        Atom::SetList(_) => match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
            scalar => Ok(PathElement::Value(Scalar::of(scalar))),
        },
        Atom::KeyedList(t, elem) => {
            let map = match item {
                Value::Object(map) => map,
                Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
                _ => return Err("associative list with keys may not have non-map elements".to_owned()),
            };
            let mut keys = Vec::new();
            for key in t.list_keys() {
                if let Some(v) = map.get(key) {
                    keys.push((key.to_owned(), Scalar::of(v)));
                } else if let Some(v) = key_default(schema, elem.ty, key) {
                    keys.push((key.to_owned(), Scalar::of(&v)));
                }
            }
            if keys.is_empty() {
                let names: Vec<String> = t.list_keys().map(crate::time::quote).collect();
                return Err(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                    names.join(" ")
                ));
            }
            keys.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(PathElement::Key(keys))
        }
        _ => Err("invalid indexing of non-associative list".to_owned()),
    }
}

/// A key's default: declared, or the zero value of a field that is always written.
fn key_default(schema: &Schema, elem: TypeId, key: &str) -> Option<Value> {
    let field = schema.ty(elem).field(key)?;
    if let Some(default) = field.default_json() {
        return serde_json::from_str(default).ok();
    }
    if field.is_pointer() || field.omit_empty() {
        return None;
    }
    match field.ty().kind() {
        Kind::String => Some(Value::from("")),
        Kind::Int32 | Kind::Int64 => Some(Value::from(0)),
        Kind::Bool => Some(Value::from(false)),
        _ => None,
    }
}

/// The paths that a value sets.
pub fn field_set(schema: &Schema, tr: TypeRef, value: &Value) -> Set {
    let mut out = Set::default();
    collect(schema, tr, value, &mut out);
    out
}

/// Collects what is below a value; whether the value itself is a member.
fn collect(schema: &Schema, tr: TypeRef, value: &Value, out: &mut Set) -> bool {
    let atom = resolve(schema, tr, Some(value));
    if matches!(atom, Atom::Scalar(_)) || atom.is_atomic() {
        return true;
    }
    match (value, &atom) {
        (Value::Array(list), Atom::SetList(_) | Atom::KeyedList(..)) => {
            let elements: Vec<PathElement> =
                list.iter().map(|v| element_of(schema, &atom, v).unwrap_or(PathElement::Value(Scalar::Null))).collect();
            let mut counts: BTreeMap<&PathElement, usize> = BTreeMap::new();
            for element in &elements {
                *counts.entry(element).or_default() += 1;
            }
            for (item, element) in list.iter().zip(&elements) {
                out.members.insert(element.clone());
                // Of duplicates only the element is known, not what belongs to which.
                if counts.get(element) == Some(&1) {
                    descend(schema, elem_type(&atom), item, element.clone(), out);
                }
            }
        }
        (Value::Object(map), Atom::Struct(..) | Atom::Map(..)) => {
            for (key, item) in map {
                let declared = matches!(atom, Atom::Struct(t, _) if t.field(key).is_some());
                let tr = field_type(&atom, key).unwrap_or(TypeRef::of(TypeId::ANY));
                let element = PathElement::Field(key.clone());
                let empty = item.is_null() || item.as_object().is_some_and(|m| m.is_empty());
                let member = descend(schema, tr, item, element.clone(), out);
                if member || empty || !declared {
                    out.members.insert(element);
                }
            }
        }
        _ => {}
    }
    false
}

fn descend(schema: &Schema, tr: TypeRef, item: &Value, element: PathElement, out: &mut Set) -> bool {
    let mut below = Set::default();
    let member = collect(schema, tr, item, &mut below);
    if !below.is_empty() {
        out.children.insert(element, below);
    }
    member
}

/// What differs between two values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    /// Without some fields and what is below them.
    pub fn exclude(self, fields: &Set) -> Comparison {
        if fields.is_empty() {
            return self;
        }
        Comparison {
            removed: self.removed.recursive_difference(fields),
            modified: self.modified.recursive_difference(fields),
            added: self.added.recursive_difference(fields),
        }
    }
}

/// Compares two values of a type.
pub fn compare(schema: &Schema, tr: TypeRef, old: &Value, new: &Value) -> Comparison {
    let mut w = Comparer { schema, out: Comparison::default(), path: Vec::new() };
    w.compare(tr, Some(old), Some(new));
    w.out
}

struct Comparer<'a> {
    schema: &'a Schema,
    out: Comparison,
    path: Vec<PathElement>,
}

impl Comparer<'_> {
    fn compare(&mut self, tr: TypeRef, old: Option<&Value>, new: Option<&Value>) {
        // Most of an object is as it was.
        if old.is_some() && old == new {
            return;
        }
        let atom_old = resolve(self.schema, tr, old);
        let atom_new = resolve(self.schema, tr, new);
        let leaf = match (old, new) {
            (Some(_), None) => self.atom(&atom_old, old, new),
            (Some(_), Some(_)) if atom_old.shape() != atom_new.shape() => {
                let first = self.atom(&atom_old, old, new);
                let second = self.atom(&atom_new, old, new);
                first || second
            }
            _ => self.atom(&atom_new, old, new),
        };
        if !leaf {
            if old.is_none() {
                self.out.added.insert(&self.path);
            } else if new.is_none() {
                self.out.removed.insert(&self.path);
            }
        }
    }

    /// Whether it was compared as one piece.
    fn atom(&mut self, atom: &Atom<'_>, old: Option<&Value>, new: Option<&Value>) -> bool {
        let lists = |v: Option<&Value>| v.and_then(Value::as_array).map_or(0, Vec::len);
        let maps = |v: Option<&Value>| v.and_then(Value::as_object).map_or(0, |m| m.len());
        let empty = match atom.shape() {
            1 => lists(old) == 0 && lists(new) == 0,
            2 => maps(old) == 0 && maps(new) == 0,
            _ => true,
        };
        if atom.is_atomic() || empty {
            match (old, new) {
                (None, _) => self.out.added.insert(&self.path),
                (_, None) => self.out.removed.insert(&self.path),
                (Some(old), Some(new)) => {
                    if !equal(old, new) {
                        self.out.modified.insert(&self.path);
                    }
                }
            }
            return true;
        }
        if atom.shape() == 1 {
            self.items(atom, old, new)
        } else {
            self.fields(atom, old, new)
        }
        false
    }

    fn fields(&mut self, atom: &Atom<'_>, old: Option<&Value>, new: Option<&Value>) {
        let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
        let keys: BTreeSet<&String> = old.into_iter().chain(new).flat_map(|m| m.keys()).collect();
        for key in keys {
            let tr = field_type(atom, key).unwrap_or(TypeRef::of(TypeId::ANY));
            self.path.push(PathElement::Field(key.clone()));
            self.compare(tr, old.and_then(|m| m.get(key)), new.and_then(|m| m.get(key)));
            self.path.pop();
        }
    }

    fn items(&mut self, atom: &Atom<'_>, old: Option<&Value>, new: Option<&Value>) {
        let index = |v: Option<&Value>| -> BTreeMap<PathElement, Vec<Value>> {
            let mut all: BTreeMap<PathElement, Vec<Value>> = BTreeMap::new();
            for item in v.and_then(Value::as_array).into_iter().flatten() {
                if let Ok(element) = element_of(self.schema, atom, item) {
                    all.entry(element).or_default().push(item.clone());
                }
            }
            all
        };
        let (old, new) = (index(old), index(new));
        let elements: BTreeSet<&PathElement> = old.keys().chain(new.keys()).collect();
        let none = Vec::new();
        for element in elements {
            let (l, r) = (old.get(element).unwrap_or(&none), new.get(element).unwrap_or(&none));
            self.path.push(element.clone());
            let tr = elem_type(atom);
            match (l.len(), r.len()) {
                (0 | 1, 0 | 1) => self.compare(tr, l.first(), r.first()),
                (2.., 2..) => {
                    if l.len() != r.len() || l.iter().zip(r).any(|(a, b)| !equal(a, b)) {
                        self.out.modified.insert(&self.path);
                    }
                }
                (2.., _) => {
                    if let Some(r) = r.first() {
                        self.compare(tr, None, Some(r));
                    }
                    self.out.removed.insert(&self.path);
                }
                _ => {
                    if let Some(l) = l.first() {
                        self.compare(tr, Some(l), None);
                    }
                    self.out.added.insert(&self.path);
                }
            }
            self.path.pop();
        }
    }
}

/// Equality that does not tell 1 from 1.0 and minds no order of keys.
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w))),
        _ => a == b,
    }
}

/// Checks a value against its type; the error is upstream's.
pub fn validate(schema: &Schema, tr: TypeRef, value: &Value) -> Result<(), String> {
    let mut errors = Vec::new();
    check(schema, tr, value, &mut String::new(), &mut errors);
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(format!("errors:\n{}", errors.iter().map(|e| format!("  {e}")).collect::<Vec<_>>().join("\n"))),
    }
}

fn check(schema: &Schema, tr: TypeRef, value: &Value, path: &mut String, errors: &mut Vec<String>) {
    let fail = |path: &str, message: String| if path.is_empty() { message } else { format!("{path}: {message}") };
    if value.is_null() {
        return;
    }
    let atom = resolve(schema, tr, Some(value));
    let len = path.len();
    match (&atom, value) {
        (Atom::Scalar(kind), v) => {
            let message = match kind {
                ScalarKind::Numeric if !v.is_number() => format!("expected numeric (int or float), got {}", go_type(v)),
                ScalarKind::String if !v.is_string() => format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(v)),
                ScalarKind::Boolean if !v.is_boolean() => format!("expected boolean, got {}", shown(v)),
                ScalarKind::Untyped if v.is_array() || v.is_object() => format!("expected any scalar, got {}", shown(v)),
                _ => return,
            };
            errors.push(fail(path, message));
        }
        (Atom::Struct(..) | Atom::Map(..), Value::Object(map)) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            for key in keys {
                path.push('.');
                path.push_str(key);
                match field_type(&atom, key) {
                    Some(tr) => check(schema, tr, &map[key], path, errors),
                    None => errors.push(fail(path, "field not declared in schema".to_owned())),
                }
                path.truncate(len);
            }
        }
        (Atom::Struct(..) | Atom::Map(..), other) => errors.push(fail(path, format!("expected map, got {}", shown(other)))),
        (_, Value::Array(list)) => {
            let mut seen = BTreeSet::new();
            for (i, item) in list.iter().enumerate() {
                let element = if matches!(atom, Atom::AtomicList(_)) {
                    PathElement::Index(i as i64)
                } else {
                    match element_of(schema, &atom, item) {
                        Ok(element) => element,
                        Err(e) => {
                            errors.push(fail(path, format!("element {i}: {e}")));
                            return;
                        }
                    }
                };
                if !seen.insert(element.clone()) {
                    errors.push(fail(path, format!("duplicate entries for key {element}")));
                }
                path.push_str(&element.to_string());
                check(schema, elem_type(&atom), item, path, errors);
                path.truncate(len);
            }
        }
        (_, other) => errors.push(fail(path, format!("expected list, got {}", shown(other)))),
    }
}

/// How structured-merge-diff prints a value.
fn shown(v: &Value) -> String {
    v.to_string()
}

/// Go's `%#v` of a scalar.
fn go_syntax(v: &Value) -> String {
    match v {
        Value::Array(list) => format!("[]interface {{}}{{{}}}", list.iter().map(go_syntax).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let mut parts: Vec<String> = map.iter().map(|(k, v)| format!("{}:{}", crate::time::quote(k), go_syntax(v))).collect();
            parts.sort();
            format!("map[string]interface {{}}{{{}}}", parts.join(", "))
        }
        Value::Null => "interface {}(nil)".to_owned(),
        other => other.to_string(),
    }
}

/// Adds the structs' fields on the way to every path, so that removing and keeping treat them alike.
pub fn with_named_fields(schema: &Schema, tr: TypeRef, set: &Set) -> Set {
    let mut out = Set { members: set.members.clone(), children: BTreeMap::new() };
    let atom = resolve(schema, tr, None);
    for (element, child) in &set.children {
        let mut inner = TypeRef::of(TypeId::ANY);
        if let PathElement::Field(name) = element {
            if let Some(tr) = field_type(&atom, name) {
                inner = tr;
            }
            if matches!(atom, Atom::Struct(t, _) if t.field(name).is_some()) {
                out.members.insert(element.clone());
            }
        } else {
            inner = elem_type(&atom);
        }
        out.children.insert(element.clone(), with_named_fields(schema, inner, child));
    }
    out
}
