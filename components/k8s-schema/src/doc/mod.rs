//! `Doc`: a schema-typed document, the one representation in which objects are worked on.
//!
//! A document is an arena of 16-byte nodes. Strings and bytes are slices of the body it was decoded from, or of a buffer
//! of its own for what was unescaped or set later. A struct's children are kept in Go's field order and a map's sorted by
//! key, so that encoding is a walk. A node does not know its type: the path to it does, so reading goes through [`Ref`],
//! which carries both.
//!
//! What is absent reads as Go's zero value where the field is no pointer; an absent pointer, list or map is nil.
//! Removing leaves garbage in the arena until the document is encoded or [`Doc::compact`]ed; it is bounded by what was written.

mod empty;
mod equal;
mod meta;
mod path;
mod read;
mod write;

pub use meta::{Meta, OwnerReference};
pub use path::Segment;
pub use read::{Entries, IntOrString, Iter, Ref};
pub use write::{EditError, Mut};

use crate::table::{Kind, Schema, Type, TypeId};
use bytes::Bytes;

/// No node.
pub(crate) const NONE: u32 = u32::MAX;
/// Set in an offset that points into the document's own buffer.
const OWN: u32 = 0x8000_0000;
/// The largest body that can be decoded: offsets are 31 bits.
pub const MAX_BODY: usize = (OWN - 1) as usize;
/// How deep values may nest in what is kept as a tree.
pub const MAX_DEPTH: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    Null,
    Bool,
    Int,
    Float,
    Str,
    Bytes,
    Raw,
    Struct,
    List,
    Map,
    /// A map's entry: its key; the value is the next node in the arena.
    Entry,
}

/// `a` and `b` are the value: two halves of a number, offset and length of a slice, or first and last child.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub tag: Tag,
    /// The field's index in the parent struct.
    pub field: u16,
    /// The next sibling.
    pub next: u32,
    pub a: u32,
    pub b: u32,
}

impl Node {
    pub fn container(tag: Tag) -> Node {
        Node { tag, field: 0, next: NONE, a: NONE, b: NONE }
    }
    pub fn null() -> Node {
        Node { tag: Tag::Null, field: 0, next: NONE, a: 0, b: 0 }
    }
    pub fn bool(v: bool) -> Node {
        Node { tag: Tag::Bool, field: 0, next: NONE, a: u32::from(v), b: 0 }
    }
    pub fn int(v: i64) -> Node {
        Node { tag: Tag::Int, field: 0, next: NONE, a: v as u32, b: (v >> 32) as u32 }
    }
    pub fn float(v: f64) -> Node {
        let bits = v.to_bits();
        Node { tag: Tag::Float, field: 0, next: NONE, a: bits as u32, b: (bits >> 32) as u32 }
    }
    pub fn slice(tag: Tag, at: (u32, u32)) -> Node {
        Node { tag, field: 0, next: NONE, a: at.0, b: at.1 }
    }
    pub fn as_int(&self) -> i64 {
        (u64::from(self.a) | u64::from(self.b) << 32) as i64
    }
    pub fn as_float(&self) -> f64 {
        f64::from_bits(u64::from(self.a) | u64::from(self.b) << 32)
    }
}

/// A document. See the module's description.
#[derive(Clone)]
pub struct Doc {
    pub(crate) schema: Schema,
    pub(crate) ty: TypeId,
    pub(crate) nodes: Vec<Node>,
    pub(crate) body: Bytes,
    pub(crate) own: Vec<u8>,
}

impl std::fmt::Debug for Doc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Doc({}: {})", self.ty().go_name(), String::from_utf8_lossy(&self.to_json()))
    }
}

impl PartialEq for Doc {
    /// [`Ref::semantic_eq`] of the roots.
    fn eq(&self, other: &Self) -> bool {
        self.root().semantic_eq(other.root())
    }
}

impl Doc {
    /// An empty document of a type. A kind's gets its apiVersion and kind when the schema knows it under one name.
    pub fn new(schema: &Schema, ty: TypeId) -> Doc {
        let mut doc = Doc::bare(schema, ty, Bytes::new());
        if schema.ty(ty).has_type_meta()
            && let Some((group, version, kind, _)) = schema.kinds().find(|(_, _, _, t)| *t == ty)
        {
            let api_version = crate::table::api_version(group, version);
            doc.set_type_meta(&api_version, kind);
        }
        doc
    }

    /// An empty document of a kind.
    pub fn of_kind(schema: &Schema, group: &str, version: &str, kind: &str) -> Option<Doc> {
        let ty = schema.kind(group, version, kind)?;
        let mut doc = Doc::bare(schema, ty, Bytes::new());
        doc.set_type_meta(&crate::table::api_version(group, version), kind);
        Some(doc)
    }

    pub(crate) fn bare(schema: &Schema, ty: TypeId, body: Bytes) -> Doc {
        let tag = match schema.ty(ty).kind() {
            Kind::List => Tag::List,
            Kind::Map | Kind::Any => Tag::Map,
            _ => Tag::Struct,
        };
        Doc { schema: schema.clone(), ty, nodes: vec![Node::container(tag)], body, own: Vec::new() }
    }

    /// The schema it is typed by.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The type of the root.
    pub fn ty(&self) -> Type<'_> {
        self.schema.ty(self.ty)
    }

    /// The type of the root.
    pub fn type_id(&self) -> TypeId {
        self.ty
    }

    /// `apiVersion`, empty when absent.
    pub fn api_version(&self) -> &str {
        self.root().get("apiVersion").str()
    }

    /// `kind`, empty when absent.
    pub fn kind(&self) -> &str {
        self.root().get("kind").str()
    }

    /// Sets `apiVersion` and `kind`; a type without them is left alone.
    pub fn set_type_meta(&mut self, api_version: &str, kind: &str) {
        if self.ty().has_type_meta() {
            // The first two fields of every such struct.
            for (field, text) in [(0, kind), (1, api_version)] {
                let node = self.keep_str(Tag::Str, text);
                let at = self.add(node);
                self.put_field(0, field, at);
            }
        } else if self.ty().kind() == Kind::Any {
            // Any value takes a string.
            let _ = self.set("kind", kind);
            let _ = self.set("apiVersion", api_version);
        }
    }

    /// Bytes held by this document, the shared body included.
    pub fn memory(&self) -> usize {
        size_of::<Doc>() + self.nodes.capacity() * size_of::<Node>() + self.own.capacity() + self.body.len()
    }

    /// Drops what was removed or overwritten, and spare capacity.
    pub fn compact(&mut self) {
        let mut fresh = Doc { schema: self.schema.clone(), ty: self.ty, nodes: Vec::new(), body: self.body.clone(), own: Vec::new() };
        let root = fresh.copy_tree(self, 0, true);
        debug_assert_eq!(root, 0);
        fresh.nodes.shrink_to_fit();
        fresh.own.shrink_to_fit();
        *self = fresh;
    }

    pub(crate) fn slice(&self, node: &Node) -> &[u8] {
        let (buffer, at): (&[u8], usize) =
            if node.a & OWN != 0 { (&self.own, (node.a & !OWN) as usize) } else { (&self.body, node.a as usize) };
        buffer.get(at..at + node.b as usize).unwrap_or(&[])
    }

    pub(crate) fn text(&self, node: &Node) -> &str {
        std::str::from_utf8(self.slice(node)).unwrap_or("")
    }

    /// Appends to the own buffer. Past 2 GiB everything reads as empty, which no accepted request reaches.
    pub(crate) fn keep(&mut self, bytes: &[u8]) -> (u32, u32) {
        let at = self.own.len();
        if at + bytes.len() > MAX_BODY {
            return (OWN, 0);
        }
        self.own.extend_from_slice(bytes);
        (at as u32 | OWN, bytes.len() as u32)
    }

    pub(crate) fn keep_str(&mut self, tag: Tag, text: &str) -> Node {
        Node::slice(tag, self.keep(text.as_bytes()))
    }

    pub(crate) fn add(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    pub(crate) fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(at as usize)
    }

    /// Appends a child at the end of a list.
    pub(crate) fn append(&mut self, parent: u32, child: u32) {
        let last = self.nodes[parent as usize].b;
        if last == NONE {
            self.nodes[parent as usize].a = child;
        } else {
            self.nodes[last as usize].next = child;
        }
        self.nodes[parent as usize].b = child;
    }

    /// The child of a struct with a field index.
    pub(crate) fn child_of_field(&self, parent: u32, field: u16) -> Option<u32> {
        let Node { a: mut at, b: last, .. } = self.nodes[parent as usize];
        // Decoders ask for what comes next.
        match self.node(last) {
            Some(node) if node.field > field => {}
            Some(node) => return (node.field == field).then_some(last),
            None => return None,
        }
        while let Some(node) = self.node(at) {
            if node.field >= field {
                return (node.field == field).then_some(at);
            }
            at = node.next;
        }
        None
    }

    /// Puts a node in its place among a struct's children; a former value of the field is unlinked.
    pub(crate) fn put_field(&mut self, parent: u32, field: u16, child: u32) {
        self.nodes[child as usize].field = field;
        let last = self.nodes[parent as usize].b;
        if last != NONE && self.nodes[last as usize].field < field {
            self.append(parent, child);
            return;
        }
        let (mut before, mut at) = (NONE, self.nodes[parent as usize].a);
        while at != NONE && self.nodes[at as usize].field < field {
            before = at;
            at = self.nodes[at as usize].next;
        }
        let replaced = at != NONE && self.nodes[at as usize].field == field;
        let after = if replaced { self.nodes[at as usize].next } else { at };
        self.link(parent, before, child, after);
    }

    /// Makes `before → child → after` among a parent's children.
    fn link(&mut self, parent: u32, before: u32, child: u32, after: u32) {
        self.nodes[child as usize].next = after;
        if before == NONE {
            self.nodes[parent as usize].a = child;
        } else {
            self.nodes[before as usize].next = child;
        }
        if after == NONE {
            self.nodes[parent as usize].b = child;
        }
    }

    /// Takes a child out of its parent.
    pub(crate) fn unlink(&mut self, parent: u32, child: u32) {
        let (mut before, mut at) = (NONE, self.nodes[parent as usize].a);
        while at != NONE && at != child {
            before = at;
            at = self.nodes[at as usize].next;
        }
        if at == NONE {
            return;
        }
        let after = self.nodes[at as usize].next;
        if before == NONE {
            self.nodes[parent as usize].a = after;
        } else {
            self.nodes[before as usize].next = after;
        }
        if after == NONE {
            self.nodes[parent as usize].b = before;
        }
    }

    /// The entry of a map's key.
    pub(crate) fn entry(&self, map: u32, key: &[u8]) -> Option<u32> {
        let mut at = self.nodes[map as usize].a;
        while let Some(node) = self.node(at) {
            match self.slice(node).cmp(key) {
                std::cmp::Ordering::Equal => return Some(at),
                std::cmp::Ordering::Greater => return None,
                std::cmp::Ordering::Less => at = node.next,
            }
        }
        None
    }

    /// Adds an entry in its place, or takes the one there; the answer is the index of its value node, which is null if new.
    pub(crate) fn put_entry(&mut self, map: u32, key: &str) -> u32 {
        let (mut before, mut at) = (NONE, self.nodes[map as usize].a);
        while at != NONE {
            match self.slice(&self.nodes[at as usize]).cmp(key.as_bytes()) {
                std::cmp::Ordering::Equal => return at + 1,
                std::cmp::Ordering::Greater => break,
                std::cmp::Ordering::Less => (before, at) = (at, self.nodes[at as usize].next),
            }
        }
        let node = self.keep_str(Tag::Entry, key);
        let entry = self.add(node);
        self.add(Node::null());
        self.link(map, before, entry, at);
        entry + 1
    }

    /// Restores the order of a map whose entries were appended as they came; of equal keys the last stays.
    pub(crate) fn sort_entries(&mut self, map: u32) {
        let mut entries = Vec::new();
        let mut at = self.nodes[map as usize].a;
        while let Some(node) = self.node(at) {
            entries.push(at);
            at = node.next;
        }
        entries.sort_by(|a, b| self.slice(&self.nodes[*a as usize]).cmp(self.slice(&self.nodes[*b as usize])));
        (self.nodes[map as usize].a, self.nodes[map as usize].b) = (NONE, NONE);
        let mut i = 0;
        while i < entries.len() {
            let same = |a: u32, b: u32| self.slice(&self.nodes[a as usize]) == self.slice(&self.nodes[b as usize]);
            while i + 1 < entries.len() && same(entries[i], entries[i + 1]) {
                i += 1;
            }
            self.nodes[entries[i] as usize].next = NONE;
            self.append(map, entries[i]);
            i += 1;
        }
    }

    /// Copies a tree of another document to the end of this one's arena. With `share`, slices of the body stay as they
    /// are, which is right only when both have the same body.
    pub(crate) fn copy_tree(&mut self, from: &Doc, at: u32, share: bool) -> u32 {
        let mut node = from.nodes[at as usize];
        if matches!(node.tag, Tag::Str | Tag::Bytes | Tag::Raw | Tag::Entry) && !(share && node.a & OWN == 0) {
            (node.a, node.b) = self.keep(from.slice(&node));
        }
        node.next = NONE;
        let container = matches!(node.tag, Tag::Struct | Tag::List | Tag::Map);
        let first = if container { std::mem::replace(&mut node.a, NONE) } else { NONE };
        if container {
            node.b = NONE;
        }
        let copy = self.add(node);
        if node.tag == Tag::Entry {
            self.copy_tree(from, at + 1, share);
        }
        let mut child = first;
        while let Some(n) = from.node(child) {
            let next = n.next;
            let new = self.copy_tree(from, child, share);
            self.append(copy, new);
            child = next;
        }
        copy
    }
}
