//! Merging what is applied into what is there, and taking fields out again.

use super::set::{PathElement, Set};
use super::typed::{Atom, TypeRef, element_of, field_type, resolve};
use crate::table::{Schema, TypeId};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Merges `new` over `old`. Lists with keys keep the order of the old list where the new one does not say otherwise.
pub fn merge(schema: &Schema, tr: TypeRef, old: &Value, new: &Value) -> Result<Value, String> {
    Ok(Merger { schema }.merge(tr, Some(old), Some(new))?.unwrap_or(Value::Null))
}

struct Merger<'a> {
    schema: &'a Schema,
}

impl Merger<'_> {
    fn merge(&self, tr: TypeRef, old: Option<&Value>, new: Option<&Value>) -> Result<Option<Value>, String> {
        let kept = || Ok(new.or(old).cloned());
        let (Some(old_value), Some(new_value)) = (old, new) else {
            return match (new, old) {
                (None, None) => Ok(None),
                (Some(v), _) | (None, Some(v)) => self.copy(tr, v),
            };
        };
        let atom = resolve(self.schema, tr, Some(if new_value.is_null() { old_value } else { new_value }));
        let (lists, maps) = (
            old_value.as_array().is_some_and(|l| !l.is_empty()) || new_value.as_array().is_some_and(|l| !l.is_empty()),
            old_value.as_object().is_some_and(|m| !m.is_empty()) || new_value.as_object().is_some_and(|m| !m.is_empty()),
        );
        match atom {
            Atom::SetList(_) | Atom::KeyedList(..) if lists => self.list(&atom, old_value, new_value),
            Atom::Struct(_, false) | Atom::Map(_, false) if maps => self.map(&atom, old_value, new_value),
            _ => kept(),
        }
    }

    /// A value that only one side has: as it is, but for containers that turn out empty.
    fn copy(&self, tr: TypeRef, v: &Value) -> Result<Option<Value>, String> {
        let atom = resolve(self.schema, tr, Some(v));
        match (&atom, v) {
            (Atom::SetList(_) | Atom::KeyedList(..), Value::Array(list)) if !list.is_empty() => self.list(&atom, &Value::Null, v),
            (Atom::Struct(_, false) | Atom::Map(_, false), Value::Object(map)) if !map.is_empty() => self.map(&atom, &Value::Null, v),
            _ => Ok(Some(v.clone())),
        }
    }

    fn map(&self, atom: &Atom<'_>, old: &Value, new: &Value) -> Result<Option<Value>, String> {
        let empty = Map::new();
        let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
        let mut out = Map::new();
        for key in old.keys().chain(new.keys().filter(|k| !old.contains_key(*k))) {
            let tr = field_type(atom, key).unwrap_or(TypeRef::of(TypeId::ANY));
            if let Some(v) = self.merge(tr, old.get(key), new.get(key))? {
                out.insert(key.clone(), v);
            }
        }
        Ok((!out.is_empty()).then_some(Value::Object(out)))
    }

    fn list(&self, atom: &Atom<'_>, old: &Value, new: &Value) -> Result<Option<Value>, String> {
        let tr = match atom {
            Atom::SetList(e) | Atom::KeyedList(_, e) => *e,
            _ => TypeRef::of(TypeId::ANY),
        };
        let (left, left_values) = self.index(atom, old, true)?;
        let (right, right_values) = self.index(atom, new, false)?;
        let mut shared = right.iter().filter(|e| left_values.contains_key(e));
        let mut next_shared = shared.next();
        let mut merged: BTreeSet<&PathElement> = BTreeSet::new();
        let mut out = Vec::new();
        let mut push = |l: Option<&Value>, r: Option<&Value>| -> Result<(), String> {
            out.extend(self.merge(tr, l, r)?);
            Ok(())
        };
        // An element that the old list has twice has no value of its own to merge with.
        let of = |e: &PathElement| left_values.get(e).and_then(Option::as_ref);
        let old_items = old.as_array().map(Vec::as_slice).unwrap_or_default();
        let (mut l, mut r) = (0, 0);
        while l < left.len() || r < right.len() {
            if l < left.len() && r < right.len() {
                let e = &left[l];
                if *e == right[r] {
                    merged.insert(e);
                    push(of(e), right_values.get(e).and_then(Option::as_ref))?;
                    (l, r) = (l + 1, r + 1);
                    next_shared = shared.next();
                    continue;
                }
                if right_values.contains_key(e) && next_shared.is_some_and(|n| n != e) {
                    l += 1;
                    continue;
                }
            }
            if l < left.len() {
                let e = &left[l];
                if !right_values.contains_key(e) {
                    push(old_items.get(l), None)?;
                    l += 1;
                    continue;
                } else if merged.contains(e) {
                    l += 1;
                }
            }
            if r < right.len() {
                let e = &right[r];
                merged.insert(e);
                push(of(e), right_values.get(e).and_then(Option::as_ref))?;
                r += 1;
                if next_shared == Some(e) {
                    next_shared = shared.next();
                }
            }
        }
        Ok((!out.is_empty()).then_some(Value::Array(out)))
    }

    #[allow(clippy::type_complexity)]
    fn index(
        &self,
        atom: &Atom<'_>,
        list: &Value,
        duplicates: bool,
    ) -> Result<(Vec<PathElement>, BTreeMap<PathElement, Option<Value>>), String> {
        let (mut elements, mut values) = (Vec::new(), BTreeMap::new());
        for (i, item) in list.as_array().into_iter().flatten().enumerate() {
            let e = element_of(self.schema, atom, item).map_err(|e| format!("element {i}: {e}"))?;
            if values.contains_key(&e) {
                if !duplicates {
                    return Err(format!("duplicate entries for key {e}"));
                }
                values.insert(e.clone(), None);
            } else {
                values.insert(e.clone(), Some(item.clone()));
            }
            elements.push(e);
        }
        Ok((elements, values))
    }
}

/// Takes the paths of a set out of a value.
pub fn remove(schema: &Schema, tr: TypeRef, value: &Value, set: &Set) -> Value {
    let atom = resolve(schema, tr, Some(value));
    match (&atom, value) {
        (Atom::Scalar(_), v) => v.clone(),
        // Upstream's walk ends at what is one piece or empty with nothing; its callers keep such values, because no path
        // leads below them.
        (Atom::SetList(_) | Atom::KeyedList(..), Value::Array(list)) if !list.is_empty() => {
            let tr = match atom {
                Atom::SetList(e) | Atom::KeyedList(_, e) => e,
                _ => TypeRef::of(TypeId::ANY),
            };
            let mut out = Vec::new();
            for item in list {
                match element_of(schema, &atom, item) {
                    Ok(e) if set.members.contains(&e) => {}
                    Ok(e) => match set.below(&e) {
                        Some(below) => out.push(remove(schema, tr, item, below)),
                        None => out.push(item.clone()),
                    },
                    Err(_) => out.push(item.clone()),
                }
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
        (Atom::Struct(_, false) | Atom::Map(_, false), Value::Object(map)) if !map.is_empty() => {
            let mut out = Map::new();
            for (key, item) in map {
                let e = PathElement::Field(key.clone());
                if set.members.contains(&e) {
                    continue;
                }
                let tr = field_type(&atom, key).unwrap_or(TypeRef::of(TypeId::ANY));
                let item = match set.below(&e) {
                    Some(below) => remove(schema, tr, item, below),
                    None => item.clone(),
                };
                out.insert(key.clone(), item);
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        _ => Value::Null,
    }
}
