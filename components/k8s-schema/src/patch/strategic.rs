//! Strategic merge patch: maps merge, lists merge by the key that the schema names, directives (`$patch`,
//! `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`) say what else.

use super::PatchError;
use super::print::{go_kind, go_list, go_type, go_value};
use crate::table::{Kind, Schema, Type, TypeId};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

type Object = Map<String, Value>;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";

fn internal<T>(message: String) -> Result<T, PatchError> {
    Err(PatchError::Internal(message))
}

/// How a field merges.
#[derive(Clone, Copy)]
struct Meta<'a> {
    ty: TypeId,
    merge: bool,
    replace_map: bool,
    key: Option<&'a str>,
}

struct Merger<'a> {
    schema: &'a Schema,
}

/// Merges a patch into an object of a type.
pub fn merge(schema: &Schema, ty: TypeId, original: Object, patch: Object) -> Result<Object, PatchError> {
    Merger { schema }.merge_map(original, patch, ty)
}

impl<'a> Merger<'a> {
    fn meta(&self, ty: TypeId, key: &str) -> Meta<'a> {
        let t: Type<'a> = self.schema.ty(ty);
        match t.kind() {
            Kind::Struct => match t.field(key) {
                Some(f) => {
                    let inner = f.ty();
                    let ty = if inner.kind() == Kind::List { inner.elem() } else { f.type_id() };
                    Meta { ty, merge: f.patch_merge(), replace_map: false, key: f.patch_merge_key() }
                }
                None => Meta { ty: TypeId::ANY, merge: false, replace_map: false, key: None },
            },
            Kind::Map => Meta { ty: t.elem(), merge: false, replace_map: false, key: None },
            Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStringArray => self.meta(t.elem(), key),
            _ => Meta { ty: TypeId::ANY, merge: false, replace_map: false, key: None },
        }
    }

    fn merge_map(&self, mut original: Object, mut patch: Object, ty: TypeId) -> Result<Object, PatchError> {
        if let Some(directive) = patch.get(PATCH) {
            return match directive.as_str() {
                Some("replace") => {
                    patch.swap_remove(PATCH);
                    Ok(patch)
                }
                Some("delete") => Ok(Object::new()),
                _ => bad_directive(directive, &patch),
            };
        }
        retain_keys(&mut original, &mut patch)?;
        self.apply_orders(&mut original, &mut patch, ty)?;
        for (key, value) in patch {
            let (key, deletes) = match key.split_once('/') {
                Some((DELETE_FROM, name)) => (name.to_owned(), true),
                _ if key.starts_with(DELETE_FROM) => return internal("invalid patch format of primitive list".to_owned()),
                _ => (key, false),
            };
            if value.is_null() {
                original.swap_remove(&key);
                continue;
            }
            let Some(old) = original.get_mut(&key).filter(|old| same_type(old, &value)) else {
                if !deletes {
                    match clean(value) {
                        Some(value) => {
                            original.insert(key, value);
                        }
                        None => {
                            original.swap_remove(&key);
                        }
                    }
                }
                continue;
            };
            let meta = self.meta(ty, &key);
            let merged = match (old.take(), value) {
                (Value::Object(o), Value::Object(p)) => Value::Object(if meta.replace_map { p } else { self.merge_map(o, p, meta.ty)? }),
                (Value::Array(o), Value::Array(p)) => Value::Array(self.merge_list(o, p, meta, deletes)?),
                (_, value) => value,
            };
            original.insert(key, merged);
        }
        Ok(original)
    }

    /// `$setElementOrder/<list>`: merges that list, then puts its elements in the order given.
    fn apply_orders(&self, original: &mut Object, patch: &mut Object, ty: TypeId) -> Result<(), PatchError> {
        let orders: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
        for directive in orders {
            let Some(order) = patch.swap_remove(&directive) else { continue };
            let Value::Array(order) = order else {
                return internal(format!("expected a []interface {{}}, but received a {}", go_type(&order)));
            };
            let Some((SET_ORDER, name)) = directive.split_once('/') else {
                return internal("invalid patch format of setElementOrder list".to_owned());
            };
            let list = |v: Option<&Value>| match v {
                None => Ok(None),
                Some(Value::Array(list)) => Ok(Some(list.clone())),
                Some(other) => internal(format!("expected a []interface {{}}, but received a {}", go_type(other))),
            };
            let (old, new) = (list(original.get(name))?, list(patch.get(name))?);
            let meta = self.meta(ty, name);
            check_order(new.as_deref().unwrap_or(&[]), &order, meta.key)?;
            let merged = match (&old, &new) {
                (None, None) => continue,
                (Some(old), None) => old.clone(),
                (None, Some(new)) => match clean(Value::Array(new.clone())) {
                    Some(Value::Array(list)) => list,
                    _ => continue,
                },
                (Some(old), Some(new)) => self.merge_list(old.clone(), new.clone(), meta, false)?,
            };
            let old = old.unwrap_or_default();
            let sorted = arrange(merged, &order, &old, meta.key)?;
            original.insert(name.to_owned(), Value::Array(sorted));
            patch.swap_remove(name);
        }
        Ok(())
    }

    fn merge_list(&self, original: Vec<Value>, patch: Vec<Value>, meta: Meta<'_>, deletes: bool) -> Result<Vec<Value>, PatchError> {
        if !meta.merge && !deletes {
            return Ok(patch);
        }
        if original.is_empty() && patch.is_empty() {
            return Ok(original);
        }
        let first = original.iter().chain(&patch).next().map_or("", go_type);
        if original.iter().chain(&patch).any(|v| go_type(v) != first) {
            return internal(format!("list element types are not identical: [{} {}]", go_list(&original), go_list(&patch)));
        }
        if first == "[]interface {}" {
            return internal("lists of lists are not supported".to_owned());
        }
        if first != "map[string]interface {}" {
            if deletes {
                let gone: HashSet<String> = patch.iter().map(Value::to_string).collect();
                return Ok(original.into_iter().filter(|v| !gone.contains(&v.to_string())).collect());
            }
            let mut known = HashSet::new();
            let seen: Vec<Value> = original.iter().chain(&patch).filter(|v| known.insert(v.to_string())).cloned().collect();
            return arrange(seen, &patch, &original, None);
        }
        let Some(key) = meta.key else {
            return internal(format!("cannot merge lists without merge key for {}", self.schema.ty(meta.ty).short_name()));
        };
        let (mut merged, patch) = special_elements(original, patch, key)?;
        let server_order = merged.clone();
        let mut places = index(&merged, key)?;
        for element in &patch {
            let Value::Object(new) = element else { continue };
            let Some(id) = new.get(key) else { return no_merge_key(new, key) };
            match places.get(&id.to_string()) {
                Some(&i) => {
                    if let Value::Object(old) = merged[i].take() {
                        merged[i] = Value::Object(self.merge_map(old, new.clone(), meta.ty)?);
                    }
                }
                None => {
                    places.insert(id.to_string(), merged.len());
                    merged.push(element.clone());
                }
            }
        }
        arrange(merged, &patch, &server_order, Some(key))
    }
}

fn same_type(a: &Value, b: &Value) -> bool {
    go_type(a) == go_type(b)
}

fn bad_directive<T>(directive: &Value, map: &Object) -> Result<T, PatchError> {
    internal(format!("unknown patch type: {} in map: {}", go_value(directive), go_value(&Value::Object(map.clone()))))
}

fn no_merge_key<T>(map: &Object, key: &str) -> Result<T, PatchError> {
    internal(format!("map: {} does not contain declared merge key: {key}", go_value(&Value::Object(map.clone()))))
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(retained) = patch.swap_remove(RETAIN_KEYS) else { return Ok(()) };
    let wrong = || PatchError::BadRequest("invalid patch format of retainKeys".to_owned());
    let Value::Array(retained) = retained else { return Err(wrong()) };
    let named = |k: &str| retained.iter().any(|r| r.as_str() == Some(k));
    let directive = |k: &str| k.starts_with(DELETE_FROM) || k.starts_with(SET_ORDER);
    if patch.iter().any(|(k, v)| !v.is_null() && !directive(k) && !named(k)) {
        return Err(wrong());
    }
    original.retain(|k, _| named(k));
    Ok(())
}

/// Takes out nulls and what carries a directive; `None` when the value itself does.
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => {
            Some(Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).filter_map(|(k, v)| Some((k, clean(v)?))).collect()))
        }
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(clean).collect())),
        other => Some(other),
    }
}

/// Elements with `$patch` act on the original list; the rest is merged. `replace` makes the rest the whole list.
fn special_elements(mut original: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let (mut plain, mut deleted) = (Vec::new(), Vec::new());
    let mut replace = false;
    for element in patch {
        let Value::Object(map) = &element else { continue };
        match map.get(PATCH) {
            None => plain.push(element),
            Some(Value::String(s)) if s == "delete" => {
                let Some(id) = map.get(key) else { return no_merge_key(map, key) };
                deleted.push(id.to_string());
            }
            Some(Value::String(s)) if s == "replace" => replace = true,
            Some(Value::String(s)) if s == "merge" => return internal("merging lists cannot yet be specified in the patch".to_owned()),
            Some(other) => return bad_directive(other, map),
        }
    }
    let deleted: HashSet<String> = deleted.into_iter().collect();
    original.retain(|v| !v.get(key).is_some_and(|id| deleted.contains(&id.to_string())));
    Ok(if replace { (plain, Vec::new()) } else { (original, plain) })
}

/// Where the first element with each value of the key is.
fn index(list: &[Value], key: &str) -> Result<HashMap<String, usize>, PatchError> {
    let mut places = HashMap::with_capacity(list.len());
    for (i, element) in list.iter().enumerate() {
        let Value::Object(map) = element else { return internal(format!("value for key {i} is not a map")) };
        if let Some(id) = map.get(key) {
            places.entry(id.to_string()).or_insert(i);
        }
    }
    Ok(places)
}

/// Elements named by the order come in that order; the others stay where they were in the original list, as far as both
/// orders allow.
fn arrange(merged: Vec<Value>, order: &[Value], server_order: &[Value], key: Option<&str>) -> Result<Vec<Value>, PatchError> {
    let id = |v: &'_ Value| -> Value {
        match key {
            Some(key) => v.get(key).cloned().unwrap_or(Value::Null),
            None => v.clone(),
        }
    };
    if let Some(key) = key {
        for v in merged.iter().chain(order) {
            match v {
                Value::Object(map) if !map.contains_key(key) => return no_merge_key(map, key),
                Value::Object(_) => {}
                other => return internal(format!("expected a map[string]interface {{}}, but received a {}", go_type(other))),
            }
        }
    }
    let places = |list: &[Value]| -> HashMap<String, usize> {
        let mut all = HashMap::with_capacity(list.len());
        for (i, v) in list.iter().enumerate() {
            all.entry(id(v).to_string()).or_insert(i);
        }
        all
    };
    let (order, server_order) = (places(order), places(server_order));
    let place = |list: &HashMap<String, usize>, v: &Value| list.get(&id(v).to_string()).copied();
    let (mut ordered, mut rest): (Vec<Value>, Vec<Value>) = merged.into_iter().partition(|v| place(&order, v).is_some());
    ordered.sort_by_cached_key(|v| place(&order, v));
    rest.sort_by_cached_key(|v| place(&server_order, v).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ordered.len() + rest.len());
    let (mut left, mut right) = (rest.into_iter().peekable(), ordered.into_iter().peekable());
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return Ok(out),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => matches!((place(&server_order, l), place(&server_order, r)), (Some(a), Some(b)) if a < b),
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

/// What the patch gives must be named by the order, and in that order.
fn check_order(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = patch.iter().filter(|v| v.get(PATCH).is_none()).peekable();
    for o in order {
        let Some(p) = wanted.peek() else { break };
        let equal = match key {
            None => *p == o,
            Some(key) => {
                for v in [*p, o] {
                    match v {
                        Value::Object(map) if !map.contains_key(key) => return no_merge_key(map, key),
                        Value::Object(_) => {}
                        other => return internal(format!("expected a map[string]interface {{}}, but received a {}", go_type(other))),
                    }
                }
                p.get(key) == o.get(key)
            }
        };
        if equal {
            wanted.next();
        }
    }
    if wanted.peek().is_some() {
        return internal(format!("The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n", go_list(patch), go_list(order)));
    }
    Ok(())
}

/// Checks a merged object against its type as upstream's conversion from untyped maps does, with its errors, and makes
/// whole floats the integers their fields want.
pub fn coerce(schema: &Schema, ty: TypeId, value: &mut Value) -> Result<(), String> {
    let t = schema.ty(ty);
    match (t.kind(), &mut *value) {
        (_, Value::Null) => Ok(()),
        (Kind::Struct, Value::Object(map)) => {
            // Go's order of fields decides which error comes first.
            for field in t.fields() {
                if let Some(v) = map.get_mut(field.name()) {
                    coerce(schema, field.type_id(), v)?;
                }
            }
            Ok(())
        }
        (Kind::Struct, other) => Err(format!("cannot restore struct from: {}", go_kind(other))),
        (Kind::Map, Value::Object(map)) => map.values_mut().try_for_each(|v| coerce(schema, t.elem(), v)),
        (Kind::Map, other) => Err(format!("cannot restore map from {}", go_kind(other))),
        (Kind::List, Value::Array(list)) => list.iter_mut().try_for_each(|v| coerce(schema, t.elem(), v)),
        (Kind::List, other) => Err(format!("cannot restore slice from {}", go_kind(other))),
        (Kind::String, Value::String(_)) | (Kind::Bool, Value::Bool(_)) => Ok(()),
        (Kind::String, Value::Number(n)) => {
            Err(format!("cannot convert {} to {}", if n.is_f64() { "float64" } else { "int64" }, t.go_name()))
        }
        (Kind::Int32 | Kind::Int64, Value::Number(n)) => {
            if let Some(f) = n.as_f64().filter(|_| n.is_f64()) {
                if f.trunc() != f {
                    return Err(format!("cannot convert float64 to {}", t.go_name()));
                }
                *value = Value::from(f as i64);
            }
            Ok(())
        }
        (Kind::Float64, Value::Number(_)) => Ok(()),
        (Kind::String, _) => Err("unrecognized type: string".to_owned()),
        (Kind::Bool, _) => Err("unrecognized type: bool".to_owned()),
        (Kind::Int32, _) => Err("unrecognized type: int32".to_owned()),
        (Kind::Int64, _) => Err("unrecognized type: int64".to_owned()),
        (Kind::Float64, _) => Err("unrecognized type: float64".to_owned()),
        _ => Ok(()),
    }
}
