//! Semantic equality, as upstream's `equality.Semantic`: nil and empty lists and maps are equal, quantities compare by
//! amount, and a field that is no pointer is equal to its zero value when absent.

use super::{Ref, Tag};
use crate::table::Kind;

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
            (Tag::Bytes, Tag::Bytes) | (Tag::Raw, Tag::Raw) => self.doc.slice(a) == other.doc.slice(b),
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
}
