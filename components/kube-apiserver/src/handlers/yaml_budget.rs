//! YAML with a bound on what it grows to. A document of some kilobytes can repeat a part of itself by aliases until no memory is left; the
//! parser bounds how often it follows them, not how much each of them stands for.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What aliases may add to any document.
const SPARE: usize = 1 << 20;

/// Reads a document whose text has `length` bytes.
pub fn read<'de, D: Deserializer<'de>>(document: D, length: usize) -> Result<Value, String> {
    // Without aliases a text makes at most one node for each two bytes.
    let left = Cell::new(length.saturating_mul(2).saturating_add(SPARE));
    Node(&left).deserialize(document).map_err(|e| e.to_string())
}

/// A value that is taken off what is left.
#[derive(Clone, Copy)]
struct Node<'a>(&'a Cell<usize>);

impl Node<'_> {
    fn spend<E: Error>(self, cost: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(cost).ok_or_else(|| E::custom("document contains excessive aliasing"))?;
        self.0.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.spend(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
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

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        self.spend(v.len())?;
        Ok(v.into())
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.spend(key.len())?;
            let value = entries.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::decode::yaml_to_json;

    #[test]
    fn aliases_cannot_grow_a_small_document_without_end() {
        // As many elements as aliases: the square of the document.
        let wide = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(20_000), "*a,".repeat(20_000));
        // Each level nine times the one before.
        let mut deep = "l0: &l0 [x]\n".to_owned();
        for n in 1..20 {
            let alias = format!("*l{}", n - 1);
            deep.push_str(&format!("l{n}: &l{n} [{}]\n", [alias.as_str(); 9].join(",")));
        }
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a,".repeat(20_000));
        for text in [wide, deep, long] {
            let error = yaml_to_json(text.as_bytes()).unwrap_err();
            assert!(error.contains("excessive aliasing") || error.contains("repetition limit"), "{error}");
        }
    }

    #[test]
    fn what_people_write_with_anchors_is_read() {
        let text = "base: &base {a: 1, b: [x, 2.5, null, true]}\nother:\n  <<: *base\n  c: *base\n";
        let json: serde_json::Value = serde_json::from_slice(&yaml_to_json(text.as_bytes()).unwrap()).unwrap();
        let base = serde_json::json!({"a": 1, "b": ["x", 2.5, null, true]});
        assert_eq!(json, serde_json::json!({"base": base, "other": {"a": 1, "b": ["x", 2.5, null, true], "c": base}}));
    }

    proptest! {
        #[test]
        fn any_yaml_is_answered(parts in prop::collection::vec(prop::sample::select(vec![
            "a", "b:", ": ", "- ", "\n", "  ", "&x ", "*x", "<<: ", "[", "]", "{", "}", ",", "|", ">", "\"", "'", "!!int ", "!t ", "---\n", "...\n", "%YAML",
            "1", "0x1f", "1e400", ".nan", "~", "#", "\t", "\u{feff}", "? "]), 0..50)) {
            if let Ok(json) = yaml_to_json(parts.concat().as_bytes()) {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok());
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = yaml_to_json(&bytes);
        }
    }
}
