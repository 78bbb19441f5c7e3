//! Encodes documents as Go's encoder would encode the same object: fields in Go's order, zero values written or left
//! out by their tags, map keys sorted, and the characters escaped that Go escapes for HTML.

use super::cursor::{ends_or_escapes, is_byte, unmarked};
use crate::doc::{Doc, NONE, Ref, Tag};
use crate::table::{Field, Kind, Type, TypeId};
use crate::time;
use base64::Engine as _;
use std::io::Write as _;

impl Doc {
    /// The document as JSON, without a newline at the end.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + self.own.len() + 64);
        self.write_json(&mut out);
        out
    }

    /// Appends the document as JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        self.root().write_json(out);
    }
}

impl Ref<'_> {
    /// The value here as JSON; an absent one as the zero value of its type.
    pub fn to_json(self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_json(&mut out);
        out
    }

    /// Appends [`Self::to_json`].
    pub fn write_json(self, out: &mut Vec<u8>) {
        Encoder { doc: self.doc, out }.value(self.ty(), self.at);
    }
}

struct Encoder<'a> {
    doc: &'a Doc,
    out: &'a mut Vec<u8>,
}

impl Encoder<'_> {
    fn value(&mut self, ty: Type<'_>, at: u32) {
        let node = self.doc.node(at).copied().filter(|n| n.tag != Tag::Null);
        let Some(node) = node else { return self.zero(ty) };
        match node.tag {
            Tag::Struct => self.object(if ty.kind() == Kind::Struct { ty } else { self.doc.schema.ty(ty.elem()) }, node.a),
            Tag::List => self.list(&ty, node.a),
            Tag::Map => self.map(&ty, node.a),
            Tag::Str | Tag::Entry => write_string(self.out, self.doc.slice(&node)),
            Tag::Bool => self.out.extend_from_slice(if node.a != 0 { b"true" } else { b"false" }),
            Tag::Int => self.int(ty.kind(), node.as_int()),
            Tag::Float => write_float(self.out, node.as_float()),
            Tag::Bytes => {
                self.out.push(b'"');
                let text = base64::engine::general_purpose::STANDARD.encode(self.doc.slice(&node));
                self.out.extend_from_slice(text.as_bytes());
                self.out.push(b'"');
            }
            Tag::Raw if node.b == 0 => self.out.extend_from_slice(b"null"),
            Tag::Raw => write_compact(self.out, self.doc.slice(&node)),
            Tag::Null => {}
        }
    }

    fn int(&mut self, kind: Kind, v: i64) {
        let text = match kind {
            Kind::Time if v == time::ZERO_SECONDS => "null".to_owned(),
            Kind::MicroTime if v == time::ZERO_SECONDS * 1_000_000 => "null".to_owned(),
            Kind::Time => format!("\"{}\"", time::format_seconds(v)),
            Kind::MicroTime => format!("\"{}\"", time::format_micros(v)),
            Kind::Duration => format!("\"{}\"", time::format_duration(v)),
            _ => {
                // Writing to a vector cannot fail.
                let _ = write!(self.out, "{v}");
                return;
            }
        };
        self.out.extend_from_slice(text.as_bytes());
    }

    /// What Go writes for a value that is not set.
    fn zero(&mut self, ty: Type<'_>) {
        let text: &[u8] = match ty.kind() {
            Kind::Struct => return self.object(ty, NONE),
            Kind::Bool => b"false",
            Kind::Int32 | Kind::Int64 | Kind::Float64 | Kind::IntOrString => b"0",
            Kind::String => b"\"\"",
            Kind::Quantity => b"\"0\"",
            Kind::Duration => b"\"0s\"",
            Kind::SchemaOrBool => b"false",
            _ => b"null",
        };
        self.out.extend_from_slice(text);
    }

    fn object(&mut self, ty: Type<'_>, first: u32) {
        self.out.push(b'{');
        let start = self.out.len();
        let mut child = first;
        for field in ty.fields() {
            let mut at = NONE;
            if let Some(node) = self.doc.node(child)
                && node.field == field.index()
            {
                at = child;
                child = node.next;
            }
            if at == NONE && field.skip_absent() {
                continue;
            }
            if at != NONE && !is_written(self.doc, &field, at) {
                continue;
            }
            if self.out.len() > start {
                self.out.push(b',');
            }
            // Names in the table need no escapes.
            self.out.push(b'"');
            self.out.extend_from_slice(field.name_bytes());
            self.out.extend_from_slice(b"\":");
            if field.is_pointer() && !self.exists(at) {
                self.out.extend_from_slice(b"null");
            } else {
                self.value(field.ty(), at);
            }
        }
        self.out.push(b'}');
    }

    fn exists(&self, at: u32) -> bool {
        self.doc.node(at).is_some_and(|n| n.tag != Tag::Null)
    }

    fn list(&mut self, ty: &Type<'_>, first: u32) {
        let elem = match ty.kind() {
            Kind::List | Kind::SchemaOrArray => ty.elem(),
            Kind::SchemaOrStringArray => TypeId::STRING,
            _ => TypeId::ANY,
        };
        let pointers = ty.kind() == Kind::List && ty.elem_is_pointer();
        self.out.push(b'[');
        let mut at = first;
        while let Some(node) = self.doc.node(at) {
            if at != first {
                self.out.push(b',');
            }
            let next = node.next;
            if pointers && node.tag == Tag::Null {
                self.out.extend_from_slice(b"null");
            } else {
                self.value(self.doc.schema.ty(elem), at);
            }
            at = next;
        }
        self.out.push(b']');
    }

    fn map(&mut self, ty: &Type<'_>, first: u32) {
        let elem = if ty.kind() == Kind::Map { ty.elem() } else { TypeId::ANY };
        self.out.push(b'{');
        let mut at = first;
        while let Some(node) = self.doc.node(at).copied() {
            if at != first {
                self.out.push(b',');
            }
            write_string(self.out, self.doc.slice(&node));
            self.out.push(b':');
            self.value(self.doc.schema.ty(elem), at + 1);
            at = node.next;
        }
        self.out.push(b'}');
    }
}

/// Whether Go's tags write a field whose value is at a node.
pub(super) fn is_written(doc: &Doc, field: &Field<'_>, at: u32) -> bool {
    if field.is_pointer() {
        return doc.node(at).is_some_and(|n| n.tag != Tag::Null) || !(field.omit_empty() || field.omit_zero());
    }
    if field.omit_empty() {
        let empty = match field.ty().kind() {
            Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Float64 | Kind::String | Kind::Bytes | Kind::List | Kind::Map | Kind::Any => {
                Ref { doc, at, ty: field.type_id() }.is_zero()
            }
            // Structs are never empty in Go.
            _ => false,
        };
        if empty {
            return false;
        }
    }
    !(field.omit_zero() && Ref { doc, at, ty: field.type_id() }.is_zero())
}

/// What a byte needs in a string: 0 nothing, 1 an escape, 2 a look at what follows.
const ESCAPES: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 0x20 {
        table[i] = 1;
        i += 1;
    }
    table[b'"' as usize] = 1;
    table[b'\\' as usize] = 1;
    table[b'<' as usize] = 1;
    table[b'>' as usize] = 1;
    table[b'&' as usize] = 1;
    table[0xe2] = 2;
    table
};

/// Appends a string as Go writes it, in quotes. The bytes are UTF-8.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    write_escaped(out, text);
    out.push(b'"');
}

/// [`ESCAPES`] of eight bytes: a mark in the lowest that needs something, and perhaps in higher ones.
const fn needs_something(word: u64) -> u64 {
    ends_or_escapes(word) | is_byte(word, b'<') | is_byte(word, b'>') | is_byte(word, b'&') | is_byte(word, 0xe2)
}

/// Appends what stands between the quotes of a string.
pub(crate) fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let mut from = 0;
    let mut at = 0;
    while at < text.len() {
        let c = text[at];
        match ESCAPES[usize::from(c)] {
            0 => at += 1 + unmarked(&text[at + 1..], needs_something),
            2 => match line_separator(text, at) {
                None => at += 1,
                Some(escape) => {
                    out.extend_from_slice(&text[from..at]);
                    out.extend_from_slice(escape);
                    at += 3;
                    from = at;
                }
            },
            _ => {
                out.extend_from_slice(&text[from..at]);
                match c {
                    b'"' => out.extend_from_slice(b"\\\""),
                    b'\\' => out.extend_from_slice(b"\\\\"),
                    b'\n' => out.extend_from_slice(b"\\n"),
                    b'\r' => out.extend_from_slice(b"\\r"),
                    b'\t' => out.extend_from_slice(b"\\t"),
                    0x08 => out.extend_from_slice(b"\\b"),
                    0x0c => out.extend_from_slice(b"\\f"),
                    _ => write_unicode(out, c),
                }
                at += 1;
                from = at;
            }
        }
    }
    out.extend_from_slice(&text[from..]);
}

fn write_unicode(out: &mut Vec<u8>, c: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u00");
    out.push(HEX[usize::from(c >> 4)]);
    out.push(HEX[usize::from(c & 15)]);
}

fn line_separator(text: &[u8], at: usize) -> Option<&'static [u8]> {
    match text.get(at + 1..at + 3) {
        Some([0x80, 0xa8]) => Some(b"\\u2028"),
        Some([0x80, 0xa9]) => Some(b"\\u2029"),
        _ => None,
    }
}

/// Appends JSON text without its white space and with Go's HTML escapes.
pub(crate) fn write_compact(out: &mut Vec<u8>, text: &[u8]) {
    let mut in_string = false;
    let mut at = 0;
    while at < text.len() {
        let c = text[at];
        match c {
            b'"' => {
                in_string = !in_string;
                out.push(c);
            }
            b'\\' if in_string => {
                out.push(c);
                at += 1;
                out.extend(text.get(at));
            }
            b'<' | b'>' | b'&' => write_unicode(out, c),
            0xe2 => match line_separator(text, at) {
                Some(escape) => {
                    out.extend_from_slice(escape);
                    at += 2;
                }
                None => out.push(c),
            },
            b' ' | b'\t' | b'\n' | b'\r' if !in_string => {}
            _ => out.push(c),
        }
        at += 1;
    }
}

/// Appends a float as Go writes it: shortest form, with an exponent below 1e-6 and from 1e21.
pub(crate) fn write_float(out: &mut Vec<u8>, v: f64) {
    let magnitude = v.abs();
    // Writing to a vector cannot fail.
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{v:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(e) => ('-', e),
            None => ('+', exponent),
        };
        // Go cleans e-09 to e-9, but leaves two digits of a positive exponent, which has two anyway.
        let _ = write!(out, "{digits}e{sign}{exponent}");
    } else {
        let _ = write!(out, "{v}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_does() {
        let mut out = Vec::new();
        write_string(&mut out, "a<b>&\"\\\n\r\t\u{8}\u{c}\u{1}\u{7f}\u{2028}é\u{2026}".as_bytes());
        assert_eq!(String::from_utf8(out).unwrap(), "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\r\\t\\b\\f\\u0001\u{7f}\\u2028é\u{2026}\"");
    }

    #[test]
    fn floats_are_written_as_go_does() {
        for (v, want) in [
            (0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (1e21, "1e+21"),
            (1e20, "100000000000000000000"),
            (1e-7, "1e-7"),
            (0.000001, "0.000001"),
            (1.25e-10, "1.25e-10"),
        ] {
            let mut out = Vec::new();
            write_float(&mut out, v);
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }

    #[test]
    fn raw_json_is_compacted() {
        let mut out = Vec::new();
        write_compact(&mut out, b" { \"a b\\\" \" : [ 1 , \"<\" ] } ");
        assert_eq!(String::from_utf8(out).unwrap(), r#"{"a b\" ":[1,"\u003c"]}"#);
    }
}
