//! Decodes protobuf into documents. Zero values of fields that are no pointers are not kept: absent reads the same.

use super::MAGIC;
use super::wire::{BYTES, FIXED64, Reader, VARINT};
use crate::doc::{Doc, MAX_BODY, MAX_DEPTH, NONE, Node, Tag};
use crate::json::{DecodeError, syntax};
use crate::quantity::Quantity;
use crate::table::{Field, Kind, Schema, Type, TypeId, Wire};
use crate::time::ZERO_SECONDS;
use bytes::Bytes;

/// What an envelope says and holds.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// `apiVersion`
    pub api_version: String,
    /// `kind`
    pub kind: String,
    /// The message, a slice of the body.
    pub raw: Bytes,
    /// `contentEncoding`, empty for what upstream writes.
    pub content_encoding: String,
    /// `contentType`, empty for protobuf.
    pub content_type: String,
}

/// Reads the envelope of a protobuf body.
pub fn open_envelope(body: &Bytes) -> Result<Envelope, DecodeError> {
    let read = || -> Result<Envelope, String> {
        if !body.starts_with(MAGIC) {
            return Err("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".to_owned());
        }
        let mut envelope = Envelope {
            api_version: String::new(),
            kind: String::new(),
            raw: Bytes::new(),
            content_encoding: String::new(),
            content_type: String::new(),
        };
        let text = |(a, b): (usize, usize)| String::from_utf8_lossy(&body[a..b]).into_owned();
        let mut r = Reader::part(body, MAGIC.len(), body.len());
        while !r.done() {
            match r.tag()? {
                (1, BYTES) => {
                    let (a, b) = r.bytes()?;
                    let mut inner = Reader::part(body, a, b);
                    while !inner.done() {
                        match inner.tag()? {
                            (1, BYTES) => envelope.api_version = text(inner.bytes()?),
                            (2, BYTES) => envelope.kind = text(inner.bytes()?),
                            (_, wire) => inner.skip(wire)?,
                        }
                    }
                }
                (2, BYTES) => {
                    let (a, b) = r.bytes()?;
                    envelope.raw = body.slice(a..b);
                }
                (3, BYTES) => envelope.content_encoding = text(r.bytes()?),
                (4, BYTES) => envelope.content_type = text(r.bytes()?),
                (_, wire) => r.skip(wire)?,
            }
        }
        Ok(envelope)
    };
    read().map_err(DecodeError::Proto)
}

impl Doc {
    /// Decodes an object in its envelope; its type is what the envelope says.
    pub fn from_protobuf(schema: &Schema, body: Bytes) -> Result<Doc, DecodeError> {
        let envelope = open_envelope(&body)?;
        let Some(ty) = schema.kind_in(&envelope.api_version, &envelope.kind) else {
            return Err(DecodeError::Proto(format!("no kind {:?} is registered for version {:?}", envelope.kind, envelope.api_version)));
        };
        let mut doc = Doc::from_protobuf_message(schema, ty, envelope.raw)?;
        doc.set_type_meta(&envelope.api_version, &envelope.kind);
        Ok(doc)
    }

    /// Decodes a bare message. A kind's apiVersion and kind stay absent.
    pub fn from_protobuf_message(schema: &Schema, ty: TypeId, message: Bytes) -> Result<Doc, DecodeError> {
        if message.len() > MAX_BODY {
            return Err(DecodeError::TooLarge);
        }
        let mut doc =
            Doc { schema: schema.clone(), ty, nodes: Vec::with_capacity(message.len() / 16 + 4), body: message.clone(), own: Vec::new() };
        doc.nodes.push(Node::container(Tag::Struct));
        let mut d = Decoder { schema, doc: &mut doc, bytes: &message, depth: 0, unsorted: Vec::new() };
        let outcome = d.message(schema.ty(ty), 0, Reader::new(&message));
        // Each map once, however its keys came.
        for map in std::mem::take(&mut d.unsorted) {
            d.doc.sort_entries(map);
        }
        outcome.map_err(|e| match e {
            Fail::Text(text) => DecodeError::Proto(text),
            Fail::TooDeep => DecodeError::TooDeep,
        })?;
        Ok(doc)
    }
}

enum Fail {
    Text(String),
    TooDeep,
}

impl From<String> for Fail {
    fn from(text: String) -> Fail {
        Fail::Text(text)
    }
}

struct Decoder<'a> {
    schema: &'a Schema,
    doc: &'a mut Doc,
    bytes: &'a [u8],
    depth: usize,
    /// Maps whose entries have to be sorted at the end.
    unsorted: Vec<u32>,
}

impl<'a> Decoder<'a> {
    fn message(&mut self, ty: Type<'a>, at: u32, r: Reader<'_>) -> Result<(), Fail> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Fail::TooDeep);
        }
        self.level(ty, at, r, 0)?;
        self.depth -= 1;
        Ok(())
    }

    /// One level of a struct's message: the struct itself, or a struct embedded in it. `from` is where the level begins in
    /// the wire order.
    fn level(&mut self, ty: Type<'a>, at: u32, mut r: Reader<'_>, from: usize) -> Result<(), Fail> {
        let mut hint = from;
        while !r.done() {
            let (number, wire) = r.tag()?;
            let found = ty.wire_find(from, hint, number).map(|(at, step)| {
                hint = at;
                step
            });
            match found {
                None => r.skip(wire)?,
                Some(Wire::Begin(_)) => {
                    expect(wire, BYTES, number)?;
                    let (a, b) = r.bytes()?;
                    self.level(ty, at, Reader::part(self.bytes, a, b), hint + 1)?;
                }
                Some(Wire::Field(index)) => match ty.field_at(index) {
                    Some(field) => self.field(&field, at, &mut r, wire)?,
                    None => r.skip(wire)?,
                },
                Some(Wire::End) => {}
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field<'a>, parent: u32, r: &mut Reader<'_>, wire: u32) -> Result<(), Fail> {
        let ty = field.ty();
        let index = field.index();
        let former = self.doc.child_of_field(parent, index);
        match ty.kind() {
            Kind::List if !ty.is_wrapped() => {
                let list = match former {
                    Some(list) => list,
                    None => {
                        let list = self.doc.add(Node::container(Tag::List));
                        self.doc.put_field(parent, index, list);
                        list
                    }
                };
                let elem = self.schema.ty(ty.elem());
                if wire == BYTES && matches!(elem.kind(), Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Float64) {
                    // Packed.
                    let (a, b) = r.bytes()?;
                    let mut inner = Reader::part(self.bytes, a, b);
                    let wire = if elem.kind() == Kind::Float64 { FIXED64 } else { VARINT };
                    while !inner.done() {
                        let value = self.value(elem, &mut inner, wire, None, field)?;
                        self.doc.append(list, value);
                    }
                } else {
                    let value = self.value(elem, r, wire, None, field)?;
                    self.doc.append(list, value);
                }
            }
            Kind::Map => {
                let map = match former {
                    Some(map) => map,
                    None => {
                        let map = self.doc.add(Node::container(Tag::Map));
                        self.doc.put_field(parent, index, map);
                        map
                    }
                };
                self.entry(map, self.schema.ty(ty.elem()), r, wire, field)?;
            }
            _ => {
                let mergeable = former.filter(|f| self.doc.nodes[*f as usize].tag == Tag::Struct);
                let value = self.value(ty, r, wire, mergeable, field)?;
                if mergeable == Some(value) {
                    return Ok(());
                }
                if !field.is_pointer() && self.is_zero(&ty, value) {
                    if let Some(former) = former {
                        self.doc.unlink(parent, former);
                    }
                    self.doc.nodes.truncate(value as usize);
                } else {
                    self.doc.put_field(parent, index, value);
                }
            }
        }
        Ok(())
    }

    /// Scalars that read the same when absent. Bytes and raw values are nil when absent, so they are kept.
    fn is_zero(&self, ty: &Type<'_>, at: u32) -> bool {
        let node = &self.doc.nodes[at as usize];
        at as usize + 1 == self.doc.nodes.len()
            && match ty.kind() {
                Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Duration => node.as_int() == 0,
                Kind::String => node.b == 0,
                Kind::Struct => node.a == NONE,
                Kind::Time => node.as_int() == ZERO_SECONDS,
                Kind::MicroTime => node.as_int() == ZERO_SECONDS * 1_000_000,
                _ => false,
            }
    }

    fn entry(&mut self, map: u32, elem: Type<'a>, r: &mut Reader<'_>, wire: u32, field: &Field<'a>) -> Result<(), Fail> {
        expect(wire, BYTES, field.proto_number())?;
        let (a, b) = r.bytes()?;
        // The key may stand after the value, so it is looked for first.
        let mut key = (a, a);
        let mut inner = Reader::part(self.bytes, a, b);
        while !inner.done() {
            match inner.tag()? {
                (1, BYTES) => key = inner.bytes()?,
                (_, wire) => inner.skip(wire)?,
            }
        }
        let slice = self.text(key)?;
        let last = self.doc.nodes[map as usize].b;
        let sorted = last == NONE || self.doc.slice(&self.doc.nodes[last as usize]) < &self.bytes[key.0..key.1];
        let entry = self.doc.add(Node { tag: Tag::Entry, ..slice });
        let mut inner = Reader::part(self.bytes, a, b);
        let mut value = None;
        while !inner.done() {
            match inner.tag()? {
                (2, wire) => {
                    let former = value.filter(|v| self.doc.nodes[*v as usize].tag == Tag::Struct);
                    let new = self.value(elem, &mut inner, wire, former, field)?;
                    if let Some(value) = value.filter(|v| *v != new) {
                        self.doc.nodes[value as usize] = self.doc.nodes[new as usize];
                    } else {
                        value = Some(new);
                    }
                }
                (_, wire) => inner.skip(wire)?,
            }
        }
        if value.is_none() {
            self.doc.add(match elem.kind() {
                Kind::String => Node::slice(Tag::Str, (0, 0)),
                Kind::Struct => Node::container(Tag::Struct),
                _ => Node::null(),
            });
        }
        self.doc.append(map, entry);
        if !sorted && self.unsorted.last() != Some(&map) {
            self.unsorted.push(map);
        }
        Ok(())
    }

    /// A string node; what is no UTF-8 is replaced as Go's JSON encoder would.
    fn text(&mut self, (a, b): (usize, usize)) -> Result<Node, Fail> {
        let bytes = &self.bytes[a..b];
        if std::str::from_utf8(bytes).is_err() {
            let text: String = bytes.utf8_chunks().flat_map(|c| c.valid().chars().chain(c.invalid().iter().map(|_| '\u{fffd}'))).collect();
            return Ok(self.doc.keep_str(Tag::Str, &text));
        }
        Ok(Node::slice(Tag::Str, (a as u32, (b - a) as u32)))
    }

    /// Decodes one value; the answer is its node, the last added but for `former`.
    fn value(&mut self, ty: Type<'a>, r: &mut Reader<'_>, wire: u32, former: Option<u32>, field: &Field<'a>) -> Result<u32, Fail> {
        let number = field.proto_number();
        let node = match ty.kind() {
            Kind::Bool => {
                expect(wire, VARINT, number)?;
                Node::bool(r.varint()? != 0)
            }
            Kind::Int32 => {
                expect(wire, VARINT, number)?;
                Node::int(i64::from(r.varint()? as i32))
            }
            Kind::Int64 => {
                expect(wire, VARINT, number)?;
                Node::int(r.varint()? as i64)
            }
            Kind::Float64 => {
                expect(wire, FIXED64, number)?;
                Node::float(f64::from_bits(r.fixed64()?))
            }
            Kind::Any => return Err(Fail::Text(format!("proto: field {} has no protobuf form", field.name()))),
            _ => {
                expect(wire, BYTES, number)?;
                let (a, b) = r.bytes()?;
                return self.delimited(ty, (a, b), former);
            }
        };
        Ok(self.doc.add(node))
    }

    fn delimited(&mut self, ty: Type<'a>, (a, b): (usize, usize), former: Option<u32>) -> Result<u32, Fail> {
        let inner = Reader::part(self.bytes, a, b);
        let node = match ty.kind() {
            Kind::String => self.text((a, b))?,
            Kind::Bytes => Node::slice(Tag::Bytes, (a as u32, (b - a) as u32)),
            Kind::Struct => {
                let at = former.unwrap_or_else(|| self.doc.add(Node::container(Tag::Struct)));
                self.message(ty, at, inner)?;
                return Ok(at);
            }
            Kind::Quantity => {
                let mut text = "";
                let mut inner = inner;
                while !inner.done() {
                    match inner.tag()? {
                        (1, BYTES) => {
                            let (a, b) = inner.bytes()?;
                            text = std::str::from_utf8(&self.bytes[a..b]).unwrap_or("!");
                        }
                        (_, wire) => inner.skip(wire)?,
                    }
                }
                let canonical = Quantity::parse(text).map_err(|e| Fail::Text(e.to_string()))?.to_string();
                self.doc.keep_str(Tag::Str, &canonical)
            }
            Kind::IntOrString => self.int_or_string(inner)?,
            Kind::Time | Kind::MicroTime => {
                let (mut seconds, mut nanos) = if a == b { (ZERO_SECONDS, 0) } else { (0, 0) };
                let mut inner = inner;
                while !inner.done() {
                    match inner.tag()? {
                        (1, VARINT) => seconds = inner.varint()? as i64,
                        (2, VARINT) => nanos = inner.varint()? as i32,
                        (_, wire) => inner.skip(wire)?,
                    }
                }
                match ty.kind() {
                    Kind::Time => Node::int(seconds),
                    _ => Node::int(seconds.saturating_mul(1_000_000).saturating_add(i64::from(nanos / 1000))),
                }
            }
            Kind::Duration => {
                let mut nanos = 0;
                let mut inner = inner;
                while !inner.done() {
                    match inner.tag()? {
                        (1, VARINT) => nanos = inner.varint()? as i64,
                        (_, wire) => inner.skip(wire)?,
                    }
                }
                Node::int(nanos)
            }
            Kind::Raw | Kind::FieldsV1 | Kind::Json => {
                let mut raw = (a, a);
                let mut inner = inner;
                while !inner.done() {
                    match inner.tag()? {
                        (1, BYTES) => raw = inner.bytes()?,
                        (_, wire) => inner.skip(wire)?,
                    }
                }
                if raw.0 != raw.1 {
                    syntax::check(&self.bytes[raw.0..raw.1]).map_err(Fail::Text)?;
                }
                Node::slice(Tag::Raw, (raw.0 as u32, (raw.1 - raw.0) as u32))
            }
            Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStringArray => return self.union(ty, inner),
            Kind::List => {
                let at = self.doc.add(Node::container(Tag::List));
                self.strings(at, 1, inner)?;
                return Ok(at);
            }
            _ => return Err(Fail::Text(format!("proto: {} is no message", ty.go_name()))),
        };
        Ok(self.doc.add(node))
    }

    fn strings(&mut self, list: u32, number: u32, mut r: Reader<'_>) -> Result<(), Fail> {
        while !r.done() {
            match r.tag()? {
                (n, BYTES) if n == number => {
                    let extent = r.bytes()?;
                    let node = self.text(extent)?;
                    let at = self.doc.add(node);
                    self.doc.append(list, at);
                }
                (_, wire) => r.skip(wire)?,
            }
        }
        Ok(())
    }

    fn int_or_string(&mut self, mut r: Reader<'_>) -> Result<Node, Fail> {
        let (mut kind, mut int, mut text) = (0, 0, (r.at, r.at));
        while !r.done() {
            match r.tag()? {
                (1, VARINT) => kind = r.varint()?,
                (2, VARINT) => int = r.varint()? as i32,
                (3, BYTES) => text = r.bytes()?,
                (_, wire) => r.skip(wire)?,
            }
        }
        if kind == 1 { self.text(text) } else { Ok(Node::int(i64::from(int))) }
    }

    fn union(&mut self, ty: Type<'a>, r: Reader<'_>) -> Result<u32, Fail> {
        let schema_number = if ty.kind() == Kind::SchemaOrBool { 2 } else { 1 };
        let (mut schema, mut allows, mut elements) = (None, false, Vec::new());
        let mut scan = r;
        while !scan.done() {
            match scan.tag()? {
                (n, BYTES) if n == schema_number => schema = Some(scan.bytes()?),
                (2, BYTES) => elements.push(scan.bytes()?),
                (1, VARINT) => allows = scan.varint()? != 0,
                (_, wire) => scan.skip(wire)?,
            }
        }
        let props = self.schema.ty(ty.elem());
        if let (Some(extent), true) = (schema, elements.is_empty()) {
            return self.delimited(props, extent, None);
        }
        if ty.kind() == Kind::SchemaOrBool {
            return Ok(self.doc.add(Node::bool(allows)));
        }
        let list = self.doc.add(Node::container(Tag::List));
        for extent in elements {
            let at = if ty.kind() == Kind::SchemaOrArray {
                self.delimited(props, extent, None)?
            } else {
                let node = self.text(extent)?;
                self.doc.add(node)
            };
            self.doc.append(list, at);
        }
        Ok(list)
    }
}

fn expect(wire: u32, want: u32, number: u32) -> Result<(), String> {
    if wire == want { Ok(()) } else { Err(format!("proto: wrong wireType = {wire} for field {number}")) }
}
