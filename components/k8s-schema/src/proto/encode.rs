//! Encodes documents as upstream's generated code does: fields by number, map keys sorted, every field that is no
//! pointer written even when zero.

use super::MAGIC;
use super::wire::{FIXED64, begin, end, put_bytes, put_tag, put_uint};
use crate::doc::{Doc, NONE, Ref, Tag};
use crate::table::{Field, Kind, Type, TypeId, Wire};
use crate::time::ZERO_SECONDS;

impl Doc {
    /// The object as upstream stores and sends it: `k8s\0` and an envelope with its apiVersion and kind.
    pub fn to_protobuf(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + self.own.len() + 64);
        write_envelope(&mut out, self.api_version(), self.kind(), |out| self.write_protobuf_message(out));
        out
    }

    /// The bare message, as it stands in lists and watch events.
    pub fn to_protobuf_message(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + self.own.len());
        self.write_protobuf_message(&mut out);
        out
    }

    /// Appends the bare message.
    pub fn write_protobuf_message(&self, out: &mut Vec<u8>) {
        Encoder { doc: self, out }.message(self.ty(), if self.nodes[0].tag == Tag::Struct { self.nodes[0].a } else { NONE });
    }
}

/// Appends an envelope (`k8s\0` and `runtime.Unknown`) around what `raw` writes.
pub fn write_envelope(out: &mut Vec<u8>, api_version: &str, kind: &str, raw: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(MAGIC);
    let meta = begin(out, 1);
    put_bytes(out, 1, api_version.as_bytes());
    put_bytes(out, 2, kind.as_bytes());
    end(out, meta);
    let start = begin(out, 2);
    raw(out);
    end(out, start);
    put_bytes(out, 3, b"");
    put_bytes(out, 4, b"");
}

struct Encoder<'a> {
    doc: &'a Doc,
    out: &'a mut Vec<u8>,
}

impl Encoder<'_> {
    fn at(&self, at: u32, ty: TypeId) -> Ref<'_> {
        Ref { doc: self.doc, at, ty }
    }

    /// A struct's fields, from its first child.
    fn message(&mut self, ty: Type<'_>, first: u32) {
        // Children are in Go's order, numbers mostly ascend with it; where they do not, the search starts over.
        let mut child = first;
        let mut open = Vec::new();
        for step in ty.wire() {
            match step {
                Wire::Begin(number) => open.push(begin(self.out, number)),
                Wire::End => {
                    if let Some(start) = open.pop() {
                        end(self.out, start);
                    }
                }
                Wire::Field(index) => {
                    let at = self.find(first, &mut child, index);
                    if let Some(field) = ty.field_at(index) {
                        self.field(&field, at);
                    }
                }
            }
        }
    }

    fn find(&self, first: u32, child: &mut u32, index: u16) -> u32 {
        let mut at = match self.doc.node(*child) {
            Some(node) if node.field <= index => *child,
            _ => first,
        };
        while let Some(node) = self.doc.node(at) {
            if node.field == index {
                *child = at;
                return at;
            }
            if node.field > index {
                break;
            }
            at = node.next;
        }
        NONE
    }

    fn exists(&self, at: u32) -> bool {
        self.doc.node(at).is_some_and(|n| n.tag != Tag::Null)
    }

    fn field(&mut self, field: &Field<'_>, at: u32) {
        let exists = self.exists(at);
        if field.is_pointer() && !exists {
            return;
        }
        let ty = field.ty();
        let number = field.proto_number();
        match ty.kind() {
            Kind::List if ty.is_wrapped() => {
                if exists {
                    self.value(number, ty, at);
                }
            }
            Kind::List => {
                let mut element = if exists { self.doc.nodes[at as usize].a } else { NONE };
                let elem = self.doc.schema.ty(ty.elem());
                while let Some(node) = self.doc.node(element) {
                    let next = node.next;
                    self.value(number, elem, element);
                    element = next;
                }
            }
            Kind::Map => {
                let mut entry = if exists { self.doc.nodes[at as usize].a } else { NONE };
                let elem = self.doc.schema.ty(ty.elem());
                while let Some(node) = self.doc.node(entry).copied() {
                    let start = begin(self.out, number);
                    put_bytes(self.out, 1, self.doc.slice(&node));
                    if elem.kind() != Kind::Bytes || self.exists(entry + 1) {
                        self.value(2, elem, entry + 1);
                    }
                    end(self.out, start);
                    entry = node.next;
                }
            }
            Kind::Bytes => {
                if exists {
                    self.value(number, ty, at);
                }
            }
            _ => self.value(number, ty, at),
        }
    }

    /// One value with its tag; an absent one as its zero.
    fn value(&mut self, number: u32, ty: Type<'_>, at: u32) {
        let node = self.doc.node(at).copied().filter(|n| n.tag != Tag::Null);
        let here = self.at(at, ty.id());
        match ty.kind() {
            Kind::Bool => put_uint(self.out, number, u64::from(here.bool())),
            Kind::Int32 | Kind::Int64 => {
                let v = here.int() as u64;
                put_uint(self.out, number, v);
            }
            Kind::Float64 => {
                let bits = here.as_f64().unwrap_or(0.0).to_bits();
                put_tag(self.out, number, FIXED64);
                self.out.extend_from_slice(&bits.to_le_bytes());
            }
            Kind::String | Kind::Bytes => put_bytes(self.out, number, node.as_ref().map_or(&[], |n| self.doc.slice(n))),
            Kind::Any => {}
            _ => {
                let start = begin(self.out, number);
                self.content(ty, at);
                end(self.out, start);
            }
        }
    }

    /// What is inside a message.
    fn content(&mut self, ty: Type<'_>, at: u32) {
        let node = self.doc.node(at).copied().filter(|n| n.tag != Tag::Null);
        let here = self.at(at, ty.id());
        match ty.kind() {
            Kind::Struct => self.message(ty, node.map_or(NONE, |n| n.a)),
            Kind::Quantity => {
                let text = here.as_str().unwrap_or("0").to_owned();
                put_bytes(self.out, 1, text.as_bytes());
            }
            Kind::IntOrString => {
                let (kind, int) = match node {
                    Some(n) if n.tag == Tag::Str => (1, 0),
                    Some(n) => (0, n.as_int()),
                    None => (0, 0),
                };
                put_uint(self.out, 1, kind);
                put_uint(self.out, 2, int as u64);
                put_bytes(self.out, 3, node.as_ref().filter(|_| kind == 1).map_or(&[], |n| self.doc.slice(n)));
            }
            Kind::Time => self.timestamp(here.as_i64().unwrap_or(ZERO_SECONDS), 0),
            Kind::MicroTime => {
                let micros = here.as_i64().unwrap_or(ZERO_SECONDS * 1_000_000);
                self.timestamp(micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000) as u64 * 1000);
            }
            Kind::Duration => {
                let nanos = here.int() as u64;
                put_uint(self.out, 1, nanos);
            }
            Kind::Raw | Kind::FieldsV1 | Kind::Json => {
                // RawExtension and FieldsV1 read null as nothing, and so does JSON.
                if let Some(node) = node
                    && node.b != 0
                    && self.doc.slice(&node) != b"null"
                {
                    put_bytes(self.out, 1, self.doc.slice(&node));
                }
            }
            Kind::SchemaOrBool => {
                let allows = match node {
                    Some(n) if n.tag == Tag::Bool => n.a != 0,
                    other => other.is_some(),
                };
                put_uint(self.out, 1, u64::from(allows));
                self.schema(2, ty, at);
            }
            Kind::SchemaOrArray | Kind::SchemaOrStringArray => {
                self.schema(1, ty, at);
                let elem = self.doc.schema.ty(if ty.kind() == Kind::SchemaOrArray { ty.elem() } else { TypeId::STRING });
                self.elements(2, elem, at);
            }
            // A wrapped list.
            Kind::List => {
                let elem = self.doc.schema.ty(ty.elem());
                self.elements(1, elem, at);
            }
            _ => {}
        }
    }

    fn schema(&mut self, number: u32, union: Type<'_>, at: u32) {
        if let Some(node) = self.doc.node(at).copied()
            && node.tag == Tag::Struct
        {
            let start = begin(self.out, number);
            self.message(self.doc.schema.ty(union.elem()), node.a);
            end(self.out, start);
        }
    }

    fn elements(&mut self, number: u32, elem: Type<'_>, at: u32) {
        let mut element = match self.doc.node(at) {
            Some(node) if node.tag == Tag::List => node.a,
            _ => NONE,
        };
        while let Some(node) = self.doc.node(element) {
            let next = node.next;
            self.value(number, elem, element);
            element = next;
        }
    }

    fn timestamp(&mut self, seconds: i64, nanos: u64) {
        if seconds == ZERO_SECONDS && nanos == 0 {
            return;
        }
        put_uint(self.out, 1, seconds as u64);
        put_uint(self.out, 2, nanos);
    }
}
