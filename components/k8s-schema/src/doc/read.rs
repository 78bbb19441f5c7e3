//! Reading: [`Ref`] is a place in a document, present or not. It never fails; what is absent chains on to what is absent.

use super::path::{Segment, segments};
use super::{Doc, NONE, Node, Tag};
use crate::quantity::Quantity;
use crate::table::{Kind, Type, TypeId};

/// A place in a document with its type. `Copy`, and absent places have all the methods too.
#[derive(Clone, Copy)]
pub struct Ref<'a> {
    pub(crate) doc: &'a Doc,
    pub(crate) at: u32,
    pub(crate) ty: TypeId,
}

/// The value of an `intstr.IntOrString`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntOrString<'a> {
    /// A number.
    Int(i32),
    /// A text, such as `25%` or a port's name.
    String(&'a str),
}

impl Doc {
    /// The root.
    pub fn root(&self) -> Ref<'_> {
        Ref { doc: self, at: 0, ty: self.ty }
    }

    /// The place of a path (see the [module](super)): `doc.at("spec.template.spec.containers")`.
    pub fn at(&self, path: &str) -> Ref<'_> {
        self.root().at(path)
    }
}

impl std::fmt::Debug for Ref<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.exists() { f.write_str(&String::from_utf8_lossy(&self.to_json())) } else { f.write_str("(absent)") }
    }
}

impl<'a> Ref<'a> {
    pub(crate) fn node(&self) -> Option<&'a Node> {
        self.doc.node(self.at)
    }

    fn absent(&self, ty: TypeId) -> Ref<'a> {
        Ref { doc: self.doc, at: NONE, ty }
    }

    pub(crate) fn tag(&self) -> Option<Tag> {
        self.node().map(|n| n.tag)
    }

    /// Whether something is there. A present zero value is; null never is.
    pub fn exists(&self) -> bool {
        self.tag().is_some_and(|t| t != Tag::Null)
    }

    /// Its type.
    pub fn ty(&self) -> Type<'a> {
        self.doc.schema.ty(self.ty)
    }

    /// A struct's field or a map's entry.
    pub fn get(self, name: &str) -> Ref<'a> {
        match self.ty().kind() {
            Kind::Map => self.entry(name, self.ty().elem()),
            Kind::Any => self.entry(name, TypeId::ANY),
            Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStringArray => Ref { ty: self.ty().elem(), ..self }.get(name),
            Kind::Struct => {
                let Some(field) = self.ty().field(name) else { return self.absent(TypeId::ANY) };
                let at = match self.tag() {
                    Some(Tag::Struct) => self.doc.child_of_field(self.at, field.index()).unwrap_or(NONE),
                    _ => NONE,
                };
                Ref { doc: self.doc, at, ty: field.type_id() }
            }
            _ => self.absent(TypeId::ANY),
        }
    }

    fn entry(self, key: &str, ty: TypeId) -> Ref<'a> {
        let at = match self.tag() {
            Some(Tag::Map) => self.doc.entry(self.at, key.as_bytes()).map_or(NONE, |e| e + 1),
            _ => NONE,
        };
        Ref { doc: self.doc, at, ty }
    }

    fn elem_ty(&self) -> TypeId {
        let ty = self.ty();
        match ty.kind() {
            Kind::List | Kind::Map | Kind::SchemaOrArray => ty.elem(),
            Kind::SchemaOrStringArray => TypeId::STRING,
            _ => TypeId::ANY,
        }
    }

    /// A list's element.
    pub fn index(self, i: usize) -> Ref<'a> {
        self.iter().nth(i).unwrap_or_else(|| self.absent(self.elem_ty()))
    }

    /// The place of a path below this one.
    pub fn at(self, path: &str) -> Ref<'a> {
        segments(path).fold(self, Ref::step)
    }

    /// One step of a path.
    pub fn step(self, segment: Segment<'_>) -> Ref<'a> {
        match (self.ty().kind(), self.tag(), segment) {
            (Kind::List | Kind::SchemaOrArray, ..) | (Kind::Any, Some(Tag::List), _) => match segment.text().parse() {
                Ok(i) => self.index(i),
                Err(_) => self.absent(self.elem_ty()),
            },
            _ => self.get(segment.text()),
        }
    }

    /// A list's elements; nothing for what is no list.
    pub fn iter(self) -> Iter<'a> {
        let next = match self.node() {
            Some(node) if node.tag == Tag::List => node.a,
            _ => NONE,
        };
        Iter { doc: self.doc, next, ty: self.elem_ty() }
    }

    /// A map's entries in the order of their keys; nothing for what is no map.
    pub fn entries(self) -> Entries<'a> {
        let next = match self.node() {
            Some(node) if node.tag == Tag::Map => node.a,
            _ => NONE,
        };
        Entries { doc: self.doc, next, ty: self.elem_ty() }
    }

    /// A struct's present fields in Go's order, or a map's entries.
    pub fn fields(self) -> impl Iterator<Item = (&'a str, Ref<'a>)> {
        let ty = match self.ty().kind() {
            Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStringArray => self.doc.schema.ty(self.ty().elem()),
            _ => self.ty(),
        };
        let mut at = match self.node() {
            Some(node) if node.tag == Tag::Struct => node.a,
            _ => NONE,
        };
        let doc = self.doc;
        let fields = std::iter::from_fn(move || {
            let node = doc.node(at)?;
            let here = std::mem::replace(&mut at, node.next);
            let field = ty.field_at(node.field)?;
            Some((field.name(), Ref { doc, at: here, ty: field.type_id() }))
        });
        fields.chain(self.entries())
    }

    /// How many elements, entries or present fields there are.
    pub fn len(&self) -> usize {
        match self.tag() {
            Some(Tag::List) => self.iter().count(),
            Some(Tag::Map) => self.entries().count(),
            Some(Tag::Struct) => self.fields().count(),
            _ => 0,
        }
    }

    /// Whether [`Self::len`] is zero.
    pub fn is_empty(&self) -> bool {
        !matches!(self.node(), Some(n) if matches!(n.tag, Tag::List | Tag::Map | Tag::Struct) && n.a != NONE)
    }

    /// The first element of a list whose `field` is `value`.
    pub fn find(self, field: &str, value: &str) -> Ref<'a> {
        self.iter().find(|e| e.get(field).as_str() == Some(value)).unwrap_or_else(|| self.absent(self.elem_ty()))
    }

    /// Whether a list has this string.
    pub fn contains_str(self, value: &str) -> bool {
        self.iter().any(|e| e.as_str() == Some(value))
    }

    /// A string, or the text of a quantity.
    pub fn as_str(self) -> Option<&'a str> {
        let node = self.node().filter(|n| n.tag == Tag::Str)?;
        Some(self.doc.text(node))
    }

    /// A string, empty when absent.
    pub fn str(self) -> &'a str {
        self.as_str().unwrap_or("")
    }

    /// A boolean.
    pub fn as_bool(self) -> Option<bool> {
        self.node().filter(|n| n.tag == Tag::Bool).map(|n| n.a != 0)
    }

    /// A boolean, false when absent.
    pub fn bool(self) -> bool {
        self.as_bool().unwrap_or(false)
    }

    /// A number; also a time's seconds (or microseconds) and a duration's nanoseconds.
    pub fn as_i64(self) -> Option<i64> {
        self.node().filter(|n| n.tag == Tag::Int).map(Node::as_int)
    }

    /// A number, 0 when absent.
    pub fn int(self) -> i64 {
        self.as_i64().unwrap_or(0)
    }

    /// A float or a whole number.
    pub fn as_f64(self) -> Option<f64> {
        match self.node()? {
            n if n.tag == Tag::Float => Some(n.as_float()),
            n if n.tag == Tag::Int => Some(n.as_int() as f64),
            _ => None,
        }
    }

    /// A `[]byte`'s content.
    pub fn bytes(self) -> &'a [u8] {
        self.node().filter(|n| n.tag == Tag::Bytes).map_or(&[], |n| self.doc.slice(n))
    }

    /// JSON text kept as it came: RawExtension, FieldsV1, apiextensions.JSON.
    pub fn raw(self) -> &'a [u8] {
        self.node().filter(|n| n.tag == Tag::Raw).map_or(&[], |n| self.doc.slice(n))
    }

    /// A time in Unix seconds, also a MicroTime. Go's zero time is none.
    pub fn time_seconds(self) -> Option<i64> {
        // What has no type keeps times as their text.
        if self.ty().kind() == Kind::Any {
            return crate::time::parse(self.as_str()?, crate::time::RFC3339).ok().map(|(s, _)| s);
        }
        let value = self.as_i64()?;
        let seconds = if self.ty().kind() == Kind::MicroTime { value.div_euclid(1_000_000) } else { value };
        Some(seconds).filter(|s| *s != crate::time::ZERO_SECONDS)
    }

    /// A quantity.
    pub fn quantity(self) -> Option<Quantity> {
        Quantity::parse(self.as_str()?).ok()
    }

    /// An IntOrString.
    pub fn int_or_string(self) -> Option<IntOrString<'a>> {
        match self.tag()? {
            Tag::Int => Some(IntOrString::Int(self.int() as i32)),
            Tag::Str => Some(IntOrString::String(self.str())),
            _ => None,
        }
    }

    /// The elements of a list of strings.
    pub fn strings(self) -> impl Iterator<Item = &'a str> {
        self.iter().filter_map(Ref::as_str)
    }
}

/// Elements of a list.
pub struct Iter<'a> {
    doc: &'a Doc,
    next: u32,
    ty: TypeId,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Ref<'a>;
    fn next(&mut self) -> Option<Ref<'a>> {
        let node = self.doc.node(self.next)?;
        let at = std::mem::replace(&mut self.next, node.next);
        Some(Ref { doc: self.doc, at, ty: self.ty })
    }
}

/// Entries of a map.
pub struct Entries<'a> {
    doc: &'a Doc,
    next: u32,
    ty: TypeId,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, Ref<'a>);
    fn next(&mut self) -> Option<(&'a str, Ref<'a>)> {
        let node = self.doc.node(self.next)?;
        let at = std::mem::replace(&mut self.next, node.next);
        Some((self.doc.text(node), Ref { doc: self.doc, at: at + 1, ty: self.ty }))
    }
}
