//! Semantic equality, as upstream's `equality.Semantic`: nil and empty lists and maps are equal, quantities compare by
//! amount, and a field that is no pointer is equal to its zero value when absent.

use super::{Doc, NONE, Ref, Tag};
use crate::table::Kind;
use serde_json::{Map, Value};

/// Whether two texts of JSON are the same but for white space, which a client may send and storage does not keep.
fn same_json(left: &[u8], right: &[u8]) -> bool {
    let compact = |text| {
        let mut out = Vec::new();
        crate::json::write_compact(&mut out, text);
        out
    };
    left == right || compact(left) == compact(right)
}

impl<'a> Ref<'a> {
    /// Whether two places hold the same value. Places of different types compare by what they hold.
    pub fn semantic_eq(self, other: Ref<'_>) -> bool {
        match (self.exists(), other.exists()) {
            (false, false) => true,
            (true, false) => self.is_zero(),
            (false, true) => other.is_zero(),
            (true, true) => self.present_eq(other),
        }
    }

    /// Whether the value is what an absent field that is no pointer reads as.
    pub fn is_zero(self) -> bool {
        let Some(node) = self.node() else { return true };
        match node.tag {
            Tag::Null => true,
            Tag::Bool => node.a == 0,
            Tag::Int => {
                let zero = match self.ty().kind() {
                    Kind::Time => crate::time::ZERO_SECONDS,
                    Kind::MicroTime => crate::time::ZERO_SECONDS * 1_000_000,
                    _ => 0,
                };
                node.as_int() == zero
            }
            Tag::Float => node.as_float() == 0.0,
            Tag::Str if self.ty().kind() == Kind::Quantity => self.quantity().is_none_or(|q| q.is_zero()),
            // An IntOrString's zero is the number.
            Tag::Str => node.b == 0 && self.ty().kind() != Kind::IntOrString,
            Tag::Bytes | Tag::Raw => node.b == 0,
            Tag::List | Tag::Map => self.is_empty(),
            Tag::Struct => self.struct_is_zero(),
            Tag::Entry => false,
        }
    }

    fn struct_is_zero(self) -> bool {
        let ty = self.ty();
        self.fields().all(|(name, value)| value.is_zero() && !ty.field(name).is_some_and(|f| f.is_pointer() && value.exists()))
    }

    /// [`Self::semantic_eq`] without what is at a path of fields, as far as these are structs of the same type on both sides.
    pub(crate) fn eq_but(self, other: Ref<'_>, path: &[&str]) -> bool {
        let [name, below @ ..] = path else { return true };
        let structs = |r: &Ref<'_>| r.tag() == Some(Tag::Struct) && r.ty().kind() == Kind::Struct;
        if !structs(&self) || !structs(&other) || self.ty != other.ty || !self.doc.schema.same(&other.doc.schema) {
            return self.semantic_eq(other);
        }
        self.ty().fields().all(|f| {
            let at = |r: Ref<'_>| r.doc.child_of_field(r.at, f.index()).unwrap_or(NONE);
            let (a, b) = (Ref { doc: self.doc, at: at(self), ty: f.type_id() }, Ref { doc: other.doc, at: at(other), ty: f.type_id() });
            if f.name() == *name {
                return a.eq_but(b, below);
            }
            !(f.is_pointer() && a.exists() != b.exists()) && a.semantic_eq(b)
        })
    }

    fn present_eq(self, other: Ref<'_>) -> bool {
        let (Some(a), Some(b)) = (self.node(), other.node()) else { return false };
        match (a.tag, b.tag) {
            (Tag::Int, Tag::Int) => a.as_int() == b.as_int(),
            (Tag::Float, Tag::Float) => a.as_float() == b.as_float(),
            (Tag::Int, Tag::Float) | (Tag::Float, Tag::Int) => self.as_f64() == other.as_f64(),
            (Tag::Bool, Tag::Bool) => a.a == b.a,
            (Tag::Str, Tag::Str) => {
                self.doc.slice(a) == other.doc.slice(b)
                    || (self.ty().kind() == Kind::Quantity && self.quantity().is_some() && self.quantity() == other.quantity())
            }
            (Tag::Bytes, Tag::Bytes) => self.doc.slice(a) == other.doc.slice(b),
            (Tag::Raw, Tag::Raw) => same_json(self.doc.slice(a), other.doc.slice(b)),
            (Tag::List, Tag::List) => {
                let (mut left, mut right) = (self.iter(), other.iter());
                loop {
                    match (left.next(), right.next()) {
                        (None, None) => return true,
                        (Some(l), Some(r)) if l.semantic_eq(r) => {}
                        _ => return false,
                    }
                }
            }
            (Tag::Map, Tag::Map) => {
                let (mut left, mut right) = (self.entries(), other.entries());
                loop {
                    match (left.next(), right.next()) {
                        (None, None) => return true,
                        (Some((k, l)), Some((j, r))) if k == j && l.semantic_eq(r) => {}
                        _ => return false,
                    }
                }
            }
            (Tag::Struct, Tag::Struct) => self.struct_eq(other),
            _ => false,
        }
    }

    fn struct_eq(self, other: Ref<'_>) -> bool {
        if self.ty == other.ty && self.doc.schema.same(&other.doc.schema) {
            return self.same_struct_eq(other);
        }
        let ty = self.ty();
        let one_way = |from: Ref<'_>, to: Ref<'_>, both: bool| {
            from.fields().all(|(name, value)| {
                let there = to.get(name);
                if there.exists() {
                    return both || value.semantic_eq(there);
                }
                let pointer = ty.field(name).is_some_and(|f| f.is_pointer());
                value.is_zero() && !(pointer && value.exists())
            })
        };
        one_way(self, other, false) && one_way(other, self, true)
    }

    /// Two structs of one type: their children side by side, which are in the order of the fields.
    fn same_struct_eq(self, other: Ref<'_>) -> bool {
        let ty = match self.ty().kind() {
            Kind::Struct => self.ty(),
            _ => self.doc.schema.ty(self.ty().elem()),
        };
        let alone = |doc: &Doc, at: u32, index: u16| {
            ty.field_at(index).is_some_and(|f| {
                let value = Ref { doc, at, ty: f.type_id() };
                value.is_zero() && !(f.is_pointer() && value.exists())
            })
        };
        let (mut left, mut right) = (self.node().map_or(NONE, |n| n.a), other.node().map_or(NONE, |n| n.a));
        loop {
            match (self.doc.node(left), other.doc.node(right)) {
                (None, None) => return true,
                (Some(l), Some(r)) if l.field == r.field => {
                    let Some(f) = ty.field_at(l.field) else { return false };
                    let (a, b) = (Ref { doc: self.doc, at: left, ty: f.type_id() }, Ref { doc: other.doc, at: right, ty: f.type_id() });
                    if f.is_pointer() && a.exists() != b.exists() || !a.semantic_eq(b) {
                        return false;
                    }
                    (left, right) = (l.next, r.next);
                }
                (Some(l), r) if r.is_none_or(|r| l.field < r.field) => {
                    if !alone(self.doc, left, l.field) {
                        return false;
                    }
                    left = l.next;
                }
                (_, Some(r)) => {
                    if !alone(other.doc, right, r.field) {
                        return false;
                    }
                    right = r.next;
                }
                _ => return false,
            }
        }
    }

    /// Whether two places of one type hold the same nodes: the same value in the same form. What is not identical may
    /// still be equal.
    pub(crate) fn identical(self, other: Ref<'_>) -> bool {
        let (Some(a), Some(b)) = (self.node(), other.node()) else { return self.node().is_none() && other.node().is_none() };
        if a.tag != b.tag {
            return false;
        }
        match a.tag {
            Tag::Null => true,
            Tag::Bool => a.a == b.a,
            Tag::Int | Tag::Float => (a.a, a.b) == (b.a, b.b),
            Tag::Str | Tag::Bytes | Tag::Raw => self.doc.slice(a) == other.doc.slice(b),
            Tag::Entry => {
                self.doc.slice(a) == other.doc.slice(b) && Ref { at: self.at + 1, ..self }.identical(Ref { at: other.at + 1, ..other })
            }
            Tag::Struct | Tag::List | Tag::Map => {
                let (mut left, mut right) = (a.a, b.a);
                loop {
                    match (self.doc.node(left), other.doc.node(right)) {
                        (None, None) => return true,
                        (Some(l), Some(r)) if l.field == r.field => {
                            if !(Ref { at: left, ..self }).identical(Ref { at: right, ..other }) {
                                return false;
                            }
                            (left, right) = (l.next, r.next);
                        }
                        _ => return false,
                    }
                }
            }
        }
    }

    /// The values here and there without the fields of structs that are identical, for comparing the rest.
    pub(crate) fn differing(self, other: Ref<'_>) -> (Value, Value) {
        let (a, b) = match (self.node(), other.node()) {
            (Some(a), Some(b)) if a.tag == Tag::Struct && b.tag == Tag::Struct && self.ty().kind() == Kind::Struct => (a, b),
            _ => return (self.to_value(), other.to_value()),
        };
        let (mut old, mut new) = (Map::new(), Map::new());
        let (mut left, mut right) = (a.a, b.a);
        for f in self.ty().fields() {
            let take = |doc: &Doc, at: &mut u32| match doc.node(*at) {
                Some(node) if node.field == f.index() => std::mem::replace(at, node.next),
                _ => NONE,
            };
            let (l, r) = (take(self.doc, &mut left), take(other.doc, &mut right));
            if l == NONE && r == NONE {
                continue;
            }
            let (x, y) = (Ref { doc: self.doc, at: l, ty: f.type_id() }, Ref { doc: other.doc, at: r, ty: f.type_id() });
            if l != NONE && r != NONE {
                if x.identical(y) {
                    continue;
                }
                if x.tag() == Some(Tag::Struct) && y.tag() == Some(Tag::Struct) && x.ty().kind() == Kind::Struct {
                    let (x, y) = x.differing(y);
                    old.insert(f.name().to_owned(), x);
                    new.insert(f.name().to_owned(), y);
                    continue;
                }
            }
            for (doc, at, map) in [(self.doc, l, &mut old), (other.doc, r, &mut new)] {
                if let Some(v) = crate::json::field_value(doc, &f, at) {
                    map.insert(f.name().to_owned(), v);
                }
            }
        }
        (Value::Object(old), Value::Object(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Schema;

    #[test]
    fn json_that_is_kept_as_text_is_equal_whatever_its_white_space() {
        let schema = Schema::builtin();
        let ty = schema.kind("apps", "v1", "ControllerRevision").unwrap();
        let doc = |data: &str| {
            let text = format!(r#"{{"apiVersion":"apps/v1","kind":"ControllerRevision","data":{data}}}"#);
            Doc::from_json(&schema, ty, text.into()).unwrap().doc
        };
        let equal = |a: &Doc, b: &Doc| a.root().semantic_eq(b.root());
        let spaced = doc(r#"{ "a": [1, "b c\" "] }"#);
        assert!(equal(&spaced, &doc(r#"{"a":[1,"b c\" "]}"#)));
        assert!(!equal(&spaced, &doc(r#"{"a":[1,"bc\" "]}"#)));
    }
}
