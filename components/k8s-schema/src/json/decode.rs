//! Decodes JSON into a document in one pass.
//!
//! What Go's decoder does with the same text is what happens here: the first type error is reported at the end,
//! with the struct and the path Go names; unknown and duplicate fields are collected for field validation; null leaves
//! a field absent. Custom unmarshallers (times, quantities …) fail at once.

use super::cursor::{Cursor, Stop, unescape};
use super::peek::describe;
use super::syntax;
use crate::doc::{Doc, MAX_BODY, MAX_DEPTH, NONE, Node, Tag};
use crate::quantity::Quantity;
use crate::table::{Kind, Schema, Type, TypeId};
use crate::time;
use base64::Engine as _;
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write as _;

/// Why a body could not be decoded. Displayed in upstream's words, without upstream's prefix
/// (`X in version "v1" cannot be handled as a Y: `).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is no JSON.
    #[error("{0}")]
    Syntax(String),
    /// A value has the wrong type or form.
    #[error("{0}")]
    Type(String),
    /// It is no protobuf of the type.
    #[error("{0}")]
    Proto(String),
    /// Values nest too deep.
    #[error("exceeded max depth")]
    TooDeep,
    /// The body is larger than offsets reach.
    #[error("the body is too large")]
    TooLarge,
}

impl DecodeError {
    /// The syntax error of the text if it has one, else the other error.
    pub(crate) fn syntax_or(text: &[u8], other: DecodeError) -> DecodeError {
        match syntax::check(text) {
            Err(message) => DecodeError::Syntax(message),
            Ok(()) => other,
        }
    }
}

/// A decoded document, and what strict field validation would complain about, in upstream's words and order.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The document.
    pub doc: Doc,
    /// Such as `unknown field "spec.foo"`.
    pub strict: Vec<String>,
}

/// At most this many are collected, as upstream.
const MAX_STRICT: usize = 100;

impl Doc {
    /// Decodes JSON. `body` is kept: the document's strings are slices of it.
    pub fn from_json(schema: &Schema, ty: TypeId, body: Bytes) -> Result<Decoded, DecodeError> {
        if body.len() > MAX_BODY {
            return Err(DecodeError::TooLarge);
        }
        let body = valid_utf8(body);
        let mut doc =
            Doc { schema: schema.clone(), ty, nodes: Vec::with_capacity(body.len() / 24 + 4), body: body.clone(), own: Vec::new() };
        let strict = decode_into(&mut doc, &body, false)?;
        Ok(Decoded { doc, strict })
    }

    /// Decodes a JSON value held in memory.
    pub fn from_value(schema: &Schema, ty: TypeId, value: &serde_json::Value) -> Result<Decoded, DecodeError> {
        let text = serde_json::to_vec(value).map_err(|e| DecodeError::Syntax(e.to_string()))?;
        Doc::from_json(schema, ty, Bytes::from(text))
    }
}

fn decode_into(doc: &mut Doc, text: &[u8], copy: bool) -> Result<Vec<String>, DecodeError> {
    let schema = doc.schema.clone();
    let ty = doc.ty;
    let mut d =
        Decoder { cursor: Cursor::new(text), schema: &schema, doc, copy, frames: Vec::new(), saved: None, strict: Vec::new(), depth: 0 };
    let outcome = d.value(ty, None).and_then(|root| d.cursor.end().map(|()| root));
    let (saved, strict) = (d.saved.take(), std::mem::take(&mut d.strict));
    let error = match outcome {
        Ok(_) if saved.is_none() => {
            if doc.nodes.is_empty() {
                // `null` is the zero value.
                doc.nodes = Doc::bare(&schema, ty, Bytes::new()).nodes;
            }
            return Ok(strict);
        }
        Ok(_) => DecodeError::Type(saved.unwrap_or_default()),
        Err(Stop::Hard(message)) => DecodeError::Type(message),
        Err(Stop::TooDeep | Stop::Syntax) => DecodeError::TooDeep,
    };
    Err(DecodeError::syntax_or(text, error))
}

/// Decodes a value of a type into the arena of a document, copying what it keeps. The answer is its node.
pub(crate) fn decode_fragment(doc: &mut Doc, ty: TypeId, text: &[u8]) -> Result<Option<u32>, DecodeError> {
    fragment(doc, ty, text).map(|(at, _)| at)
}

/// [`decode_fragment`] of what nobody complains about; none otherwise.
pub(crate) fn decode_fragment_strictly(doc: &mut Doc, ty: TypeId, text: &[u8]) -> Option<u32> {
    let (at, strict) = fragment(doc, ty, text).ok()?;
    at.filter(|_| strict.is_empty())
}

fn fragment(doc: &mut Doc, ty: TypeId, text: &[u8]) -> Result<(Option<u32>, Vec<String>), DecodeError> {
    let schema = doc.schema.clone();
    let mut d = Decoder {
        cursor: Cursor::new(text),
        schema: &schema,
        doc,
        copy: true,
        frames: Vec::new(),
        saved: None,
        strict: Vec::new(),
        depth: 0,
    };
    let outcome = d.value(ty, None).and_then(|root| d.cursor.end().map(|()| root));
    let error = match (outcome, d.saved.take()) {
        (Ok(at), None) => return Ok((at, d.strict)),
        (Ok(_), Some(message)) | (Err(Stop::Hard(message)), _) => DecodeError::Type(message),
        (Err(Stop::TooDeep | Stop::Syntax), _) => DecodeError::TooDeep,
    };
    Err(DecodeError::syntax_or(text, error))
}

/// Go reads each byte that is no UTF-8 as U+FFFD.
fn valid_utf8(body: Bytes) -> Bytes {
    if std::str::from_utf8(&body).is_ok() {
        return body;
    }
    let mut out = String::with_capacity(body.len());
    for chunk in body.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
    }
    Bytes::from(out)
}

/// Where the value being decoded stands.
enum Frame {
    Field {
        owner: TypeId,
        index: u16,
    },
    Index(u32),
    /// The entry's node.
    Key(u32),
}

struct Decoder<'t, 'd> {
    cursor: Cursor<'t>,
    schema: &'d Schema,
    doc: &'d mut Doc,
    /// Copy strings into the document, because the text is not its body.
    copy: bool,
    frames: Vec<Frame>,
    saved: Option<String>,
    strict: Vec<String>,
    depth: usize,
}

impl<'d> Decoder<'_, 'd> {
    /// Decodes a value. `None` is null, or a value of a wrong type, which was noted.
    fn value(&mut self, ty: TypeId, existing: Option<u32>) -> Result<Option<u32>, Stop> {
        let t = self.schema.ty(ty);
        let c = self.cursor.next_byte()?;
        if c == b'n' {
            self.cursor.literal(b"null")?;
            return Ok(if t.kind() == Kind::Any { Some(self.doc.add(Node::null())) } else { None });
        }
        match t.kind() {
            Kind::Struct if c == b'{' => self.object(t, existing).map(Some),
            Kind::String if c == b'"' => self.string(Tag::Str).map(Some),
            Kind::List if c == b'[' => self.list(t.elem(), t.elem_is_pointer()).map(Some),
            Kind::Map if c == b'{' => self.map(t.elem(), existing).map(Some),
            Kind::Bool if c == b't' => self.cursor.literal(b"true").map(|()| Some(self.doc.add(Node::bool(true)))),
            Kind::Bool if c == b'f' => self.cursor.literal(b"false").map(|()| Some(self.doc.add(Node::bool(false)))),
            Kind::Int32 | Kind::Int64 | Kind::Float64 if matches!(c, b'-' | b'0'..=b'9') => self.number(t),
            Kind::Any => self.any(c).map(Some),
            Kind::Bytes if c == b'"' => self.base64(),
            Kind::Quantity => self.quantity(c).map(Some),
            Kind::IntOrString => self.int_or_string(c).map(Some),
            Kind::Time | Kind::MicroTime | Kind::Duration => self.moment(t.kind(), c).map(Some),
            Kind::Raw | Kind::FieldsV1 | Kind::Json => self.raw().map(Some),
            Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStringArray => self.union(t, c),
            _ => {
                self.wrong(describe(c), t.go_name());
                self.cursor.skip()?;
                Ok(None)
            }
        }
    }

    fn deeper(&mut self) -> Result<(), Stop> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(Stop::TooDeep) } else { Ok(()) }
    }

    /// Adds a string slice; escaped ones go to the document's own buffer.
    fn string(&mut self, tag: Tag) -> Result<u32, Stop> {
        let (start, end, escaped) = self.cursor.string_span()?;
        Ok(self.slice(tag, start, end, escaped))
    }

    fn slice(&mut self, tag: Tag, start: usize, end: usize, escaped: bool) -> u32 {
        let raw = &self.cursor.text[start..end];
        let node = if escaped {
            let text = unescape(raw);
            self.doc.keep_str(tag, &text)
        } else if self.copy {
            Node::slice(tag, self.doc.keep(raw))
        } else {
            Node::slice(tag, (start as u32, (end - start) as u32))
        };
        self.doc.add(node)
    }

    fn object(&mut self, t: Type<'d>, existing: Option<u32>) -> Result<u32, Stop> {
        self.deeper()?;
        let at = existing.unwrap_or_else(|| self.doc.add(Node::container(Tag::Struct)));
        let mut seen = 0u128;
        let mut expected = 0u16;
        let mut first = true;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key_text();
            let Some(field) = t.field_near(&key, expected) else {
                self.complain("unknown field", &key);
                self.cursor.skip()?;
                continue;
            };
            let index = field.index();
            expected = index + 1;
            let bit = 1u128 << (index & 127);
            let twice = seen & bit != 0;
            if twice {
                self.complain("duplicate field", field.name());
            }
            seen |= bit;
            let former = if twice || existing.is_some() { self.doc.child_of_field(at, index) } else { None };
            let mergeable = former.filter(|f| matches!(self.doc.nodes[*f as usize].tag, Tag::Struct | Tag::Map));
            self.frames.push(Frame::Field { owner: t.id(), index });
            let value = self.value(field.type_id(), mergeable)?;
            self.frames.pop();
            match value {
                Some(value) if Some(value) == mergeable => {}
                Some(value) => self.doc.put_field(at, index, value),
                None => {
                    let nil = field.is_pointer() || matches!(field.ty().kind(), Kind::List | Kind::Map | Kind::Bytes);
                    if let Some(former) = former.filter(|_| nil) {
                        self.doc.unlink(at, former);
                    }
                }
            }
        }
        self.depth -= 1;
        Ok(at)
    }

    fn list(&mut self, elem: TypeId, pointers: bool) -> Result<u32, Stop> {
        self.deeper()?;
        let at = self.doc.add(Node::container(Tag::List));
        let mut first = true;
        let mut index = 0;
        while self.cursor.next_element(&mut first)? {
            self.frames.push(Frame::Index(index));
            let value = self.value(elem, None)?;
            self.frames.pop();
            let value = match value {
                Some(value) => value,
                None if pointers => self.doc.add(Node::null()),
                None => {
                    let zero = self.zero(elem);
                    self.doc.add(zero)
                }
            };
            self.doc.append(at, value);
            index += 1;
        }
        self.depth -= 1;
        Ok(at)
    }

    /// What null means where something has to stand: the zero value.
    fn zero(&self, ty: TypeId) -> Node {
        match self.schema.ty(ty).kind() {
            Kind::Struct => Node::container(Tag::Struct),
            Kind::Bool => Node::bool(false),
            Kind::Int32 | Kind::Int64 | Kind::Duration | Kind::IntOrString => Node::int(0),
            Kind::Float64 => Node::float(0.0),
            Kind::String => Node::slice(Tag::Str, (0, 0)),
            // Lists, maps, bytes and raw values are nil; a zero time or quantity reads like an absent one.
            _ => Node::null(),
        }
    }

    fn map(&mut self, elem: TypeId, existing: Option<u32>) -> Result<u32, Stop> {
        self.deeper()?;
        let at = existing.unwrap_or_else(|| self.doc.add(Node::container(Tag::Map)));
        let mut sorted = existing.is_none();
        let mut keys: Option<HashSet<String>> = None;
        let mut first = true;
        while self.cursor.next_key(&mut first)? {
            let (start, end) = self.cursor.key;
            let escaped = self.cursor.key_escaped;
            let key = self.cursor.key_text();
            let last = self.doc.nodes[at as usize].b;
            let ascending = keys.is_none() && (last == NONE || self.doc.slice(&self.doc.nodes[last as usize]) < key.as_bytes());
            if !ascending {
                sorted = false;
                let doc = &*self.doc;
                let keys = keys.get_or_insert_with(|| {
                    let mut all = HashSet::new();
                    let mut entry = doc.nodes[at as usize].a;
                    // Of a map that was there before, every key may come again.
                    while let Some(node) = doc.node(entry).filter(|_| existing.is_none()) {
                        all.insert(doc.text(node).to_owned());
                        entry = node.next;
                    }
                    all
                });
                if !keys.insert(key.clone().into_owned()) {
                    self.complain("duplicate field", &key);
                }
            }
            let entry = self.slice(Tag::Entry, start, end, escaped);
            self.frames.push(Frame::Key(entry));
            let value = self.value(elem, None)?;
            self.frames.pop();
            let value = match value {
                Some(value) => value,
                None => {
                    let zero = self.zero(elem);
                    self.doc.add(zero)
                }
            };
            debug_assert_eq!(value, entry + 1);
            self.doc.append(at, entry);
        }
        if !sorted {
            self.doc.sort_entries(at);
        }
        self.depth -= 1;
        Ok(at)
    }

    fn any(&mut self, c: u8) -> Result<u32, Stop> {
        match c {
            b'{' => self.map(TypeId::ANY, None),
            b'[' => self.list(TypeId::ANY, false),
            b'"' => self.string(Tag::Str),
            b't' => self.cursor.literal(b"true").map(|()| self.doc.add(Node::bool(true))),
            b'f' => self.cursor.literal(b"false").map(|()| self.doc.add(Node::bool(false))),
            _ => {
                let text = self.cursor.number_span()?;
                if !text.contains('.')
                    && let Ok(v) = text.parse::<i64>()
                {
                    return Ok(self.doc.add(Node::int(v)));
                }
                match text.parse::<f64>() {
                    Ok(v) if v.is_finite() => Ok(self.doc.add(Node::float(v))),
                    _ => {
                        self.wrong(&format!("number {text}"), "float64");
                        Ok(self.doc.add(Node::null()))
                    }
                }
            }
        }
    }

    fn number(&mut self, t: Type<'_>) -> Result<Option<u32>, Stop> {
        let text = self.cursor.number_span()?;
        let node = match t.kind() {
            Kind::Int32 => text.parse::<i32>().ok().map(|v| Node::int(i64::from(v))),
            Kind::Int64 => text.parse::<i64>().ok().map(Node::int),
            _ => text.parse::<f64>().ok().filter(|v| v.is_finite()).map(Node::float),
        };
        match node {
            Some(node) => Ok(Some(self.doc.add(node))),
            None => {
                self.wrong(&format!("number {text}"), t.go_name());
                Ok(None)
            }
        }
    }

    fn base64(&mut self) -> Result<Option<u32>, Stop> {
        let text = self.cursor.string_owned()?;
        // Go passes over line breaks.
        let text: Cow<'_, str> =
            if text.contains(['\r', '\n']) { Cow::Owned(text.replace(['\r', '\n'], "")) } else { Cow::Borrowed(&text) };
        match base64::engine::general_purpose::STANDARD.decode(text.as_bytes()) {
            Ok(bytes) => {
                let node = Node::slice(Tag::Bytes, self.doc.keep(&bytes));
                Ok(Some(self.doc.add(node)))
            }
            Err(e) => {
                let at = match e {
                    base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol { offset: at, .. } => at,
                    _ => text.len() / 4 * 4,
                };
                self.save(format!("illegal base64 data at input byte {at}"));
                Ok(None)
            }
        }
    }

    fn quantity(&mut self, c: u8) -> Result<u32, Stop> {
        let text = if c == b'"' {
            let (start, end, _) = self.cursor.string_span()?;
            &self.cursor.text[start..end]
        } else {
            let start = self.cursor.at;
            self.cursor.skip()?;
            &self.cursor.text[start..self.cursor.at]
        };
        let text = std::str::from_utf8(text).unwrap_or("").trim();
        let quantity = Quantity::parse(text).map_err(|e| Stop::Hard(e.to_string()))?;
        let node = self.doc.keep_str(Tag::Str, &quantity.to_string());
        Ok(self.doc.add(node))
    }

    fn int_or_string(&mut self, c: u8) -> Result<u32, Stop> {
        match c {
            b'"' => self.string(Tag::Str),
            b'-' | b'0'..=b'9' => {
                let text = self.cursor.number_span()?;
                match text.parse::<i32>() {
                    Ok(v) => Ok(self.doc.add(Node::int(i64::from(v)))),
                    Err(_) => Err(Stop::Hard(self.describe_wrong(&format!("number {text}"), "int32"))),
                }
            }
            _ => Err(Stop::Hard(self.describe_wrong(describe(c), "int32"))),
        }
    }

    fn moment(&mut self, kind: Kind, c: u8) -> Result<u32, Stop> {
        if c != b'"' {
            return Err(Stop::Hard(self.describe_wrong(describe(c), "string")));
        }
        let text = self.cursor.string_owned()?;
        let value = match kind {
            Kind::Duration => time::parse_duration(&text),
            Kind::MicroTime => time::parse(&text, time::RFC3339_MICRO).map(|(s, n)| s * 1_000_000 + i64::from(n / 1000)),
            _ => time::parse(&text, time::RFC3339).map(|(s, _)| s),
        };
        let value = value.map_err(Stop::Hard)?;
        Ok(self.doc.add(Node::int(value)))
    }

    fn raw(&mut self) -> Result<u32, Stop> {
        let start = self.cursor.at;
        self.cursor.skip()?;
        let end = self.cursor.at;
        Ok(self.slice(Tag::Raw, start, end, false))
    }

    fn union(&mut self, t: Type<'d>, c: u8) -> Result<Option<u32>, Stop> {
        let schema = self.schema;
        match (t.kind(), c) {
            (_, b'{') => self.object(schema.ty(t.elem()), None).map(Some),
            (Kind::SchemaOrBool, b't' | b'f') => self.any(c).map(Some),
            (Kind::SchemaOrArray, b'[') => self.list(t.elem(), false).map(Some),
            (Kind::SchemaOrStringArray, b'[') => self.list(TypeId::STRING, false).map(Some),
            (Kind::SchemaOrBool, _) => Err(Stop::Hard("boolean or JSON schema expected".to_owned())),
            _ => {
                self.cursor.skip()?;
                Ok(None)
            }
        }
    }

    fn save(&mut self, message: String) {
        if self.saved.is_none() {
            self.saved = Some(message);
        }
    }

    fn wrong(&mut self, what: &str, go_type: &str) {
        if self.saved.is_none() {
            self.saved = Some(self.describe_wrong(what, go_type));
        }
    }

    /// Go's UnmarshalTypeError: the last struct's name and the path of fields to it, without indexes and keys.
    fn describe_wrong(&self, what: &str, go_type: &str) -> String {
        let mut path = String::new();
        let mut owner_name = None;
        for frame in &self.frames {
            if let Frame::Field { owner, index } = frame {
                let owner = self.schema.ty(*owner);
                owner_name = Some(owner.short_name());
                if let Some(field) = owner.field_at(*index) {
                    for name in field.embedded_in() {
                        let _ = write!(path, ".{name}");
                    }
                    let _ = write!(path, ".{}", field.name());
                }
            }
        }
        match owner_name {
            Some(owner) => format!("json: cannot unmarshal {what} into Go struct field {owner}{path} of type {go_type}"),
            None => format!("json: cannot unmarshal {what} into Go value of type {go_type}"),
        }
    }

    fn complain(&mut self, what: &str, name: &str) {
        if self.strict.len() >= MAX_STRICT {
            return;
        }
        let mut path = String::new();
        for frame in &self.frames {
            match frame {
                Frame::Field { owner, index } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(self.schema.ty(*owner).field_at(*index).map_or("", |f| f.name()));
                }
                Frame::Index(i) => {
                    let _ = write!(path, "[{i}]");
                }
                Frame::Key(entry) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(self.doc.node(*entry).map_or("", |n| self.doc.text(n)));
                }
            }
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        let message = format!("{what} {}", time::quote(&path));
        if !self.strict.contains(&message) {
            self.strict.push(message);
        }
    }
}
