//! RFC 6902 with the liberties of the library that upstream uses: replacing and copying what does not exist, negative
//! indexes, pointers whose first part is passed over.

use super::PatchError;
use crate::json::peek::describe;
use crate::json::syntax;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// As upstream.
const MAX_OPERATIONS: usize = 10_000;
/// What all copies together may add, so that copies of copies end (the limit of a request's body).
const MAX_COPIED: usize = 3 * 1024 * 1024;

pub struct Operation {
    op: Option<String>,
    path: Option<String>,
    from: Option<String>,
    value: Option<Value>,
}

/// Reads a patch. With `validate`, unknown members of operations are reported.
pub fn parse(text: &[u8], validate: bool) -> Result<(Vec<Operation>, Vec<String>), PatchError> {
    let bad = |message: String| PatchError::BadRequest(if validate { format!("error decoding patch: {message}") } else { message });
    syntax::check(text).map_err(bad)?;
    let (value, duplicates) = super::untyped(text).map_err(|e| bad(e.to_string()))?;
    let first = |v: &Value| describe(v.to_string().bytes().next().unwrap_or(b'n'));
    let list = match value {
        Value::Array(list) => list,
        Value::Null => Vec::new(),
        other => return Err(bad(format!("json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp", first(&other)))),
    };
    if list.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            list.len()
        )));
    }
    let mut strict: Vec<String> = if validate { duplicates.iter().map(|d| format!("json patch {d}")).collect() } else { Vec::new() };
    let mut operations = Vec::with_capacity(list.len());
    for (i, item) in list.into_iter().enumerate() {
        let mut map = match item {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => return Err(bad(format!("json: cannot unmarshal {} into Go value of type handlers.jsonPatchOp", first(&other)))),
        };
        let mut text = |key: &str| match map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => {
                Err(bad(format!("json: cannot unmarshal {} into Go struct field jsonPatchOp.{key} of type string", first(&other))))
            }
        };
        let (op, path, from) = (text("op")?, text("path")?, text("from")?);
        let value = map.remove("value");
        if validate {
            strict.extend(map.keys().map(|k| format!("json patch unknown field {}", crate::time::quote(&format!("[{i}].{k}")))));
        }
        operations.push(Operation { op, path, from, value });
    }
    Ok((operations, strict))
}

/// Applies operations in order, all or none.
pub fn apply(root: &mut Value, operations: Vec<Operation>) -> Result<(), String> {
    let mut copied = 0;
    let mut touched: BTreeSet<String> = BTreeSet::new();
    for o in operations {
        let Some(path) = o.path else { return Err("operation has no path".to_owned()) };
        for pointer in [Some(&path), o.from.as_ref()].into_iter().flatten() {
            if let Some((parent, _)) = pointer.rsplit_once('/') {
                touched.insert(parent.to_owned());
            }
        }
        match o.op.as_deref().unwrap_or("unknown") {
            "add" => add(root, &path, o.value.unwrap_or(Value::Null))?,
            "remove" => {
                remove(root, &path)?;
            }
            "replace" => replace(root, &path, o.value.unwrap_or(Value::Null))?,
            "move" => {
                let from = o.from.ok_or("move operation has no from")?;
                let value = remove(root, &from)?;
                add(root, &path, value)?;
            }
            "copy" => {
                let from = o.from.ok_or("copy operation has no from")?;
                let value = get(root, &from)?.cloned().unwrap_or(Value::Null);
                copied += value.to_string().len();
                if copied > MAX_COPIED {
                    return Err(format!(
                        "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                    ));
                }
                add(root, &path, value)?;
            }
            "test" => {
                let want = o.value.unwrap_or(Value::Null);
                let found = if path.is_empty() { Some(&*root) } else { get(root, &path)? };
                let same = match found {
                    None => want.is_null(),
                    Some(found) => *found == want,
                };
                if !same {
                    return Err(format!("testing path {path} failed"));
                }
            }
            other => return Err(format!("Unexpected kind: {other}")),
        }
    }
    sort_touched(root, &touched);
    Ok(())
}

/// Sorts the objects on the way to what operations touched, as the library writes them. Each object once.
fn sort_touched(root: &mut Value, touched: &BTreeSet<String>) {
    let mut prefixes: BTreeSet<&str> = BTreeSet::from([""]);
    for path in touched {
        prefixes.extend(path.char_indices().filter(|(_, c)| *c == '/').map(|(i, _)| &path[..i]));
        prefixes.insert(path);
    }
    for prefix in prefixes {
        // A trailing part makes the prefix itself the container.
        if let Ok((Value::Object(map), _)) = container(root, &format!("{prefix}/")) {
            map.sort_keys();
        }
    }
}

/// The container a pointer leads to, and the last part.
fn container<'v>(root: &'v mut Value, path: &str) -> Result<(&'v mut Value, String), String> {
    let missing = || format!("doc is missing path: {path}");
    let mut parts: Vec<String> = path.split('/').skip(1).map(|p| p.replace("~1", "/").replace("~0", "~")).collect();
    let last = parts.pop().ok_or_else(missing)?;
    let mut at = root;
    for part in parts {
        at = match at {
            Value::Object(map) => map.get_mut(&part).ok_or_else(missing)?,
            Value::Array(list) => {
                let i = index(&part, list.len())?;
                list.get_mut(i).ok_or_else(missing)?
            }
            _ => return Err(missing()),
        };
    }
    if at.is_object() || at.is_array() { Ok((at, last)) } else { Err(missing()) }
}

/// An index, from the end when negative.
fn index(text: &str, len: usize) -> Result<usize, String> {
    let i: i64 = text.parse().map_err(|_| format!("{text} is no index"))?;
    let i = if i < 0 { i + len as i64 } else { i };
    usize::try_from(i).map_err(|_| format!("Unable to access invalid index: {text}"))
}

fn add(root: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (at, last) = container(root, path)?;
    match at {
        Value::Object(map) => {
            map.insert(last, value);
        }
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            let i = index(&last, list.len() + 1)?;
            if i > list.len() {
                return Err(format!("Unable to access invalid index: {last}"));
            }
            list.insert(i, value);
        }
        _ => return Err(format!("doc is missing path: {path}")),
    }
    Ok(())
}

fn remove(root: &mut Value, path: &str) -> Result<Value, String> {
    let (at, last) = container(root, path)?;
    match at {
        Value::Object(map) => map.swap_remove(&last).ok_or_else(|| format!("Unable to remove nonexistent key: {last}")),
        Value::Array(list) => {
            let i = index(&last, list.len())?;
            if i < list.len() { Ok(list.remove(i)) } else { Err(format!("Unable to access invalid index: {last}")) }
        }
        _ => Err(format!("doc is missing path: {path}")),
    }
}

fn replace(root: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err("replace operation value must be object or array".to_owned());
        }
        *root = value;
        return Ok(());
    }
    let (at, last) = container(root, path)?;
    match at {
        Value::Object(map) => {
            map.insert(last, value);
        }
        Value::Array(list) => {
            let i = index(&last, list.len())?;
            *list.get_mut(i).ok_or_else(|| format!("Unable to access invalid index: {last}"))? = value;
        }
        _ => {}
    }
    Ok(())
}

fn get<'v>(root: &'v mut Value, path: &str) -> Result<Option<&'v Value>, String> {
    let (at, last) = container(root, path)?;
    match at {
        Value::Object(map) => Ok(map.get(&last)),
        Value::Array(list) => {
            let i = index(&last, list.len())?;
            list.get(i).map(Some).ok_or_else(|| format!("Unable to access invalid index: {last}"))
        }
        _ => Ok(None),
    }
}
