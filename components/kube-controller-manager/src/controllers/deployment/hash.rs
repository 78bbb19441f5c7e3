//! The pod-template-hash: names a template's ReplicaSet and keeps the pods of different templates apart.

use std::fmt::Write as _;

use serde_json::Value;

/// The label that carries the hash.
pub const LABEL: &str = "pod-template-hash";

/// Whether two templates are the same but for the hash label, so that a set made by any controller manager is recognised.
pub fn same_template(a: &Value, b: &Value) -> bool {
    canonical(a) == canonical(b)
}

/// The hash of a template; `collisions` tells apart templates that share one.
pub fn template_hash(template: &Value, collisions: Option<i32>) -> String {
    let mut text = canonical(template);
    if let Some(collisions) = collisions {
        // Writing to a String cannot fail.
        let _ = write!(text, "#{collisions}");
    }
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    // Upstream's alphabet: no vowels, so that no words appear in names.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    hash.to_string().bytes().map(|digit| ALPHABET[usize::from(digit) % ALPHABET.len()] as char).collect()
}

/// JSON with sorted keys and without what does not matter: nulls, empty containers and the hash label.
fn canonical(template: &Value) -> String {
    let mut out = String::new();
    let mut template = template.clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(LABEL);
    }
    write(&template, &mut out);
    out
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> =
                map.iter().filter(|(key, value)| !(value.is_null() || (*key == "metadata" && is_empty(value)))).collect();
            keys.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (key, value) in keys {
                let _ = write!(out, "{key:?}:");
                write(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write(item, out);
                out.push(',');
            }
            out.push(']');
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hash_label_and_key_order_do_not_matter() {
        let a = json!({"metadata": {"labels": {"app": "x"}, "creationTimestamp": null}, "spec": {"a": 1, "b": [1, 2], "emptyDir": {}}});
        let b = json!({"spec": {"emptyDir": {}, "b": [1, 2], "a": 1}, "metadata": {"labels": {"pod-template-hash": "z", "app": "x"}}});
        assert!(same_template(&a, &b));
        assert_eq!(template_hash(&a, None), template_hash(&b, None));
        for other in [
            json!({"metadata": {"labels": {"app": "x"}}, "spec": {"a": 1, "b": [2, 1], "emptyDir": {}}}),
            json!({"metadata": {"labels": {"app": "x"}}, "spec": {"a": 1, "b": [1, 2]}}),
            json!({"metadata": {"labels": {"app": "y"}}, "spec": {"a": 1, "b": [1, 2], "emptyDir": {}}}),
        ] {
            assert!(!same_template(&a, &other), "{other}");
        }
        assert_ne!(template_hash(&a, None), template_hash(&a, Some(1)));
    }
}
