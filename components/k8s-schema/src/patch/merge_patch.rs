//! RFC 7396.

use serde_json::{Map, Value};

/// Merges a patch into an object. Objects that were merged are sorted, as the library that upstream uses writes them.
pub fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match (target.get_mut(&key), value) {
            (_, Value::Null) => {
                // The order is made anew below.
                target.swap_remove(&key);
            }
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, mut value) => {
                prune(&mut value);
                target.insert(key, value);
            }
        }
    }
    target.sort_keys();
}

/// Applies a merge patch to any value.
pub fn merge_value(target: &mut Value, patch: Value) {
    match (&mut *target, patch) {
        (Value::Object(old), Value::Object(new)) => merge(old, new),
        (_, mut other) => {
            prune(&mut other);
            *target = other;
        }
    }
}

/// Nulls in what is new mean nothing.
pub fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(prune);
            map.sort_keys();
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}
