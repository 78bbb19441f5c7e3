//! Applied objects are YAML by their media type, and JSON as nearly every client writes them. Reading those as YAML costs ten times as much,
//! so what is JSON and means the same in YAML is read as JSON.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The value of a text that is an object in JSON without anything that YAML reads in another way: keys that are there twice, keys that merge,
/// numbers that are not whole, and escapes and characters that YAML does not have. Its maps are sorted.
pub fn read(text: &[u8]) -> Option<Value> {
    if text.first() != Some(&b'{') {
        return None;
    }
    if text.contains(&0x7f) {
        return None;
    }
    let mut rest = text.iter();
    while rest.any(|c| *c == b'\\') {
        if !matches!(rest.next(), Some(b'"' | b'\\' | b'n' | b't' | b'r' | b'b' | b'f')) {
            return None;
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Plain.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    Some(value)
}

struct Plain;

impl<'de> DeserializeSeed<'de> for Plain {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON that means the same in YAML")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Plain)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let mut sorted = true;
        while let Some(key) = entries.next_key::<String>()? {
            if key == "<<" {
                return Err(A::Error::custom("a key that merges"));
            }
            sorted = sorted && map.keys().next_back().is_none_or(|last| *last < key);
            let value = entries.next_value_seed(Plain)?;
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom("a key that is there twice"));
            }
        }
        if !sorted {
            map.sort_keys();
        }
        Ok(Value::Object(map))
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
