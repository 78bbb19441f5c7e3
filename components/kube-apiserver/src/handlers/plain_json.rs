//! Applied objects are YAML by their media type, and JSON as nearly every client writes them. Reading those as YAML costs ten times as much,
//! so what is JSON and means the same in YAML is read as JSON.

use serde_json::Value;

use super::yaml_budget;

/// The value of a text that is an object in JSON without anything that YAML reads in another way: keys that are there twice, keys that merge,
/// numbers that are not whole, and escapes and characters that YAML does not have. It is what the same text is as YAML, by the same visitor.
pub fn read(text: &[u8]) -> Option<Value> {
    if text.first() != Some(&b'{') || text.contains(&0x7f) {
        return None;
    }
    let mut rest = text.iter();
    while rest.any(|c| *c == b'\\') {
        if !matches!(rest.next(), Some(b'"' | b'\\' | b'n' | b't' | b'r' | b'b' | b'f')) {
            return None;
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let read = yaml_budget::read(&mut deserializer, text).ok()?;
    deserializer.end().ok()?;
    (read.repeated.is_empty() && !is_read_otherwise(&read.value)).then_some(read.value)
}

/// Whether a key merges, or a number is not whole.
fn is_read_otherwise(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| key == "<<" || is_read_otherwise(value)),
        Value::Array(list) => list.iter().any(is_read_otherwise),
        Value::Number(number) => number.is_f64(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::decode::yaml_to_json, read};

    fn as_yaml(text: &str) -> serde_json::Value {
        serde_json::from_slice(&yaml_to_json(text.as_bytes()).unwrap().json).unwrap()
    }

    #[test]
    fn what_yaml_reads_otherwise_is_left_to_it() {
        for text in [
            "a: 1",
            "",
            "[1]",
            "{a: 1}",
            r#"{"a": 1, "a": 2}"#,
            r#"{"<<": {"a": 1}}"#,
            r#"{"a": 1.5}"#,
            r#"{"a": 1e3}"#,
            r#"{"a": "\ud83d\ude00"}"#,
            r#"{"a": "\/"}"#,
            "{\"a\": \"\u{7f}\"}",
            r#"{"a": 1} x"#,
            "{\"a\": 1}\n---\n",
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
        let text = r#"{"z": {"b": [1, -2, true, null, "yes", "0644", "a\"\\\n"], "a": ""}, "k": {}}"#;
        let value = read(text.as_bytes()).unwrap();
        assert_eq!(value.to_string(), as_yaml(text).to_string());
        assert_eq!(value.as_object().unwrap().keys().next().unwrap(), "k");
    }

    proptest! {
        #[test]
        fn both_ways_agree(parts in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"a\"", "\"b\"", "\"y\"", "\"<<\"", "1", "-3", "0", "012", "1.0", "true", "null", "no", "\"\\n\"", "\"\\\\\"", " ", "\n",
            "{\"a\":", "\"b\":1}", "#", "'"]), 0..14)) {
            let text = format!("{{\"x\":{}}}", parts.concat());
            if let Some(value) = read(text.as_bytes()) {
                prop_assert_eq!(value.to_string(), as_yaml(&text).to_string(), "{}", text);
            }
        }
    }
}
