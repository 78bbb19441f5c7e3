//! YAML with a bound on what it grows to. A document of some kilobytes can repeat a part of itself by aliases until no memory is left; the
//! parser bounds how often it follows them, not how much each of them stands for.
//!
//! Scalars mean what they mean to upstream, whose YAML is of version 1.1: without quotes `y`, `no` and `off` are booleans, `0644` is octal and
//! `1_000` a number. The parser knows none of that, but it lends parts of the text, and what stands around them tells whether they were quoted.
//! Maps come out sorted, as upstream's do, and keys that are there twice are told with their lines.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What aliases may add to any document.
const SPARE: usize = 1 << 20;
/// Keys that are told to be there twice, at most.
const MAX_REPEATED: usize = 16;
/// How far before a scalar its tag is looked for. A document may be one line, and have a scalar in every second byte of it.
const TAG: usize = 256;

/// A document and the keys that are twice in one of its maps.
#[derive(Debug)]
pub struct Read {
    pub value: Value,
    /// Each with the line of its second place.
    pub repeated: Vec<(usize, String)>,
}

/// Reads a document of a text.
pub fn read<'de, D: Deserializer<'de>>(document: D, text: &'de [u8]) -> Result<Read, String>
where
    D::Error: fmt::Display,
{
    // Without aliases a text makes at most one node for each two bytes.
    let left = Cell::new(text.len().saturating_mul(2).saturating_add(SPARE));
    let repeated = RefCell::default();
    let value = Node { left: &left, text, repeated: &repeated }.deserialize(document).map_err(|e| e.to_string())?;
    Ok(Read { value, repeated: repeated.into_inner() })
}

/// What a scalar without quotes is in YAML 1.1, where that is something else than in 1.2.
fn of_version_1_1(plain: &str) -> Option<Value> {
    match plain {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Some(true.into()),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Some(false.into()),
        _ => {}
    }
    let (negative, digits) = match plain.as_bytes().first()? {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, plain),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let digits = digits.replace('_', "");
    let octal = digits.strip_prefix('0').filter(|d| !d.is_empty() && d.bytes().all(|b| matches!(b, b'0'..=b'7')));
    let number = match octal {
        Some(octal) => i64::from_str_radix(octal, 8).ok()?,
        None if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0') => digits.parse().ok()?,
        None => return None,
    };
    Some(if negative { (-number).into() } else { number.into() })
}

/// A value that is taken off what is left.
#[derive(Clone, Copy)]
struct Node<'a, 'de> {
    left: &'a Cell<usize>,
    text: &'de [u8],
    repeated: &'a RefCell<Vec<(usize, String)>>,
}

impl<'de> Node<'_, 'de> {
    fn spend<E: Error>(self, cost: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(cost).ok_or_else(|| E::custom("document contains excessive aliasing"))?;
        self.left.set(left);
        Ok(())
    }

    /// Where in the text a part of it stands.
    fn place(self, part: &str) -> Option<usize> {
        let at = (part.as_ptr() as usize).checked_sub(self.text.as_ptr() as usize)?;
        (at + part.len() <= self.text.len()).then_some(at)
    }

    /// Whether a part of the text stands there without quotes and without a tag.
    fn is_plain(self, part: &str) -> bool {
        let Some(at) = self.place(part) else { return false };
        let before = &self.text[at.saturating_sub(TAG)..at];
        if matches!(before.last(), Some(b'"' | b'\'')) {
            return false;
        }
        let line = before.rsplit(|b| *b == b'\n').next().unwrap_or_default().trim_ascii_end();
        !line.rsplit(u8::is_ascii_whitespace).next().unwrap_or_default().starts_with(b"!")
    }

    /// The line of a place, counted only for what is told.
    fn line(self, place: Option<usize>) -> usize {
        place.map_or(0, |at| 1 + self.text[..at].iter().filter(|b| **b == b'\n').count())
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_, 'de> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.spend(1)?;
        deserializer.deserialize_any(self)
    }
}

/// A key, and where it stands: what is no text becomes one.
struct Key<'a, 'de>(Node<'a, 'de>);

impl<'de> DeserializeSeed<'de> for Key<'_, 'de> {
    type Value = (String, Option<usize>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_, 'de> {
    type Value = (String, Option<usize>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar as a key")
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Self::Value, E> {
        Ok((v.to_owned(), None))
    }

    fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<Self::Value, E> {
        let other = if self.0.is_plain(v) { of_version_1_1(v) } else { None };
        Ok((other.map_or_else(|| v.to_owned(), |o| o.to_string()), self.0.place(v)))
    }
}

impl<'de> Visitor<'de> for Node<'_, 'de> {
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

    fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<Value, E> {
        match of_version_1_1(v) {
            Some(other) if self.is_plain(v) => Ok(other),
            _ => self.visit_str(v),
        }
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
        let mut map = BTreeMap::new();
        while let Some((key, place)) = entries.next_key_seed(Key(self))? {
            self.spend(key.len())?;
            let value = entries.next_value_seed(self)?;
            let mut repeated = self.repeated.borrow_mut();
            if map.contains_key(&key) && repeated.len() < MAX_REPEATED {
                repeated.push((self.line(place), key.clone()));
            }
            drop(repeated);
            map.insert(key, value);
        }
        Ok(Value::Object(map.into_iter().collect::<Map<_, _>>()))
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
        let json: serde_json::Value = serde_json::from_slice(&yaml_to_json(text.as_bytes()).unwrap().json).unwrap();
        let base = serde_json::json!({"a": 1, "b": ["x", 2.5, null, true]});
        assert_eq!(json, serde_json::json!({"base": base, "other": {"a": 1, "b": ["x", 2.5, null, true], "c": base}}));
    }

    #[test]
    fn scalars_mean_what_they_mean_in_yaml_1_1() {
        let text = "{a: yes, b: 'yes', c: \"no\", d: off, e: 0644, f: '0644', g: 1_000, h: !!str y, i: [n, \"n\"], y: 1, j: 08, k: -010, l: a_b, m: |\n y}";
        let text = text.replace(", m: |\n y", "");
        let json: serde_json::Value = serde_json::from_slice(&yaml_to_json(text.as_bytes()).unwrap().json).unwrap();
        let want = serde_json::json!({"a": true, "b": "yes", "c": "no", "d": false, "e": 420, "f": "0644", "g": 1000, "h": "y", "i": [false, "n"],
            "true": 1, "j": json["j"], "k": -8, "l": "a_b"});
        assert_eq!(json, want);
        let block = yaml_to_json(b"a: |-\n  y\nb: >-\n  no\n").unwrap().json;
        assert_eq!(&block[..], br#"{"a":"y","b":"no"}"#);
    }

    #[test]
    fn what_a_scalar_costs_does_not_depend_on_what_stands_before_it() {
        // One line with as many scalars and keys as it has room for: looking back to its beginning for each would take minutes.
        let list = format!("[{}]", "y,".repeat(400_000));
        let json = yaml_to_json(list.as_bytes()).unwrap().json;
        assert_eq!(json.iter().filter(|c| **c == b',').count(), 399_999);
        let mut map = "{".to_owned();
        (0..100_000).for_each(|n| map.push_str(&format!("k{n}: 1,")));
        map.push_str("k5: 2}");
        let read = yaml_to_json(map.as_bytes()).unwrap();
        assert_eq!(read.repeated, [(1, "k5".to_owned())]);
    }

    #[test]
    fn keys_are_sorted_and_repeated_ones_told() {
        let read = yaml_to_json(b"b: 1\na:\n  x: 1\n  x: 2\nb: 2\n").unwrap();
        assert_eq!(&read.json[..], br#"{"a":{"x":2},"b":2}"#);
        assert_eq!(read.repeated, [(4, "x".to_owned()), (5, "b".to_owned())]);
    }

    proptest! {
        #[test]
        fn any_yaml_is_answered(parts in prop::collection::vec(prop::sample::select(vec![
            "a", "b:", ": ", "- ", "\n", "  ", "&x ", "*x", "<<: ", "[", "]", "{", "}", ",", "|", ">", "\"", "'", "!!int ", "!t ", "---\n", "...\n", "%YAML",
            "1", "0x1f", "1e400", ".nan", "~", "#", "\t", "\u{feff}", "? "]), 0..50)) {
            if let Ok(read) = yaml_to_json(parts.concat().as_bytes()) {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&read.json).is_ok());
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = yaml_to_json(&bytes);
        }
    }
}
