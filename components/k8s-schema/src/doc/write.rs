//! Changing documents by path. Values come as anything that becomes a [`serde_json::Value`]; what the schema types, such
//! as quantities and times, is given in its JSON form and checked.

use super::path::{Segment, segments};
use super::{Doc, NONE, Node, Ref, Tag};
use crate::json::decode::decode_fragment;
use crate::table::{Kind, TypeId};
use serde_json::Value;

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The schema has no such field, or the path goes through a scalar or past the end of a list.
    #[error("{0}: no such field")]
    NoSuchField(String),
    /// The value does not have the type of the field.
    #[error("{path}: {reason}")]
    Value {
        /// Where.
        path: String,
        /// The decoder's words.
        reason: String,
    },
}

/// A place in a document that can be changed. See [`Doc::root_mut`].
pub struct Mut<'a> {
    doc: &'a mut Doc,
    at: u32,
    ty: TypeId,
}

impl Doc {
    /// The root, to change.
    pub fn root_mut(&mut self) -> Mut<'_> {
        let ty = self.ty;
        Mut { doc: self, at: 0, ty }
    }

    /// Sets what is at the path, making what is missing above it. `null` removes.
    pub fn set(&mut self, path: &str, value: impl Into<Value>) -> Result<(), EditError> {
        self.root_mut().set(path, value)
    }

    /// [`Self::set`] when nothing is there; whether it was set.
    pub fn set_default(&mut self, path: &str, value: impl Into<Value>) -> Result<bool, EditError> {
        self.root_mut().set_default(path, value)
    }

    /// Removes what is at the path; whether something was there.
    pub fn remove(&mut self, path: &str) -> bool {
        self.root_mut().remove(path)
    }

    /// Appends to the list at the path, which is made when absent.
    pub fn push(&mut self, path: &str, value: impl Into<Value>) -> Result<(), EditError> {
        self.root_mut().push(path, value)
    }

    /// Copies a value of another document to the path. An absent one removes.
    pub fn copy_from(&mut self, path: &str, from: Ref<'_>) -> Result<(), EditError> {
        self.root_mut().copy_from(path, from)
    }

    /// Calls `f` on every element of the list at the path (nothing when absent) until one fails.
    pub fn for_each<E>(&mut self, path: &str, f: impl FnMut(Mut<'_>) -> Result<(), E>) -> Result<(), E> {
        self.root_mut().for_each(path, f)
    }

    /// Keeps the elements of the list, or the entries of the map, at the path for which `f` is true; how many went.
    pub fn retain(&mut self, path: &str, f: impl FnMut(Ref<'_>) -> bool) -> usize {
        self.root_mut().retain(path, f)
    }
}

impl<'a> Mut<'a> {
    /// The same place, to read.
    pub fn read(&self) -> Ref<'_> {
        Ref { doc: self.doc, at: self.at, ty: self.ty }
    }

    /// [`Ref::at`] of this place.
    pub fn get(&self, path: &str) -> Ref<'_> {
        self.read().at(path)
    }

    /// A shorter borrow of the same place.
    pub fn reborrow(&mut self) -> Mut<'_> {
        Mut { doc: self.doc, at: self.at, ty: self.ty }
    }

    /// The place of a path below this one, made as a zero value when absent.
    pub fn at_mut(&mut self, path: &str) -> Result<Mut<'_>, EditError> {
        let (at, ty) = self.make(path)?;
        Ok(Mut { doc: self.doc, at, ty })
    }

    /// The place of a path below this one when it is present.
    pub fn existing(&mut self, path: &str) -> Option<Mut<'_>> {
        let found = self.get(path);
        let (at, ty) = (found.at, found.ty);
        if !found.exists() {
            return None;
        }
        Some(Mut { doc: self.doc, at, ty })
    }

    /// See [`Doc::set`].
    pub fn set(&mut self, path: &str, value: impl Into<Value>) -> Result<(), EditError> {
        let value = value.into();
        if value.is_null() {
            self.remove(path);
            return Ok(());
        }
        let (at, ty) = self.make(path)?;
        self.doc.write_value(at, ty, &value, path)
    }

    /// Sets what is at the path from JSON text.
    pub fn set_json(&mut self, path: &str, text: &[u8]) -> Result<(), EditError> {
        let (at, ty) = self.make(path)?;
        let node = self.doc.decode_node(ty, text, path)?;
        self.doc.replace(at, node);
        Ok(())
    }

    /// See [`Doc::set_default`].
    pub fn set_default(&mut self, path: &str, value: impl Into<Value>) -> Result<bool, EditError> {
        if self.get(path).exists() {
            return Ok(false);
        }
        self.set(path, value).map(|()| true)
    }

    /// See [`Doc::push`].
    pub fn push(&mut self, path: &str, value: impl Into<Value>) -> Result<(), EditError> {
        let (list, ty) = self.make(path)?;
        let Some(elem) = self.doc.list_elem(list, ty) else { return Err(EditError::NoSuchField(path.to_owned())) };
        let at = self.doc.add(Node::null());
        self.doc.write_value(at, elem, &value.into(), path)?;
        self.doc.append(list, at);
        Ok(())
    }

    /// Appends a copy of a value of another document to the list at the path.
    pub fn push_copy(&mut self, path: &str, from: Ref<'_>) -> Result<(), EditError> {
        let (list, ty) = self.make(path)?;
        let Some(elem) = self.doc.list_elem(list, ty) else { return Err(EditError::NoSuchField(path.to_owned())) };
        let at = self.doc.add(Node::null());
        self.doc.copy_value(at, elem, from, path)?;
        self.doc.append(list, at);
        Ok(())
    }

    /// See [`Doc::copy_from`].
    pub fn copy_from(&mut self, path: &str, from: Ref<'_>) -> Result<(), EditError> {
        if !from.exists() {
            self.remove(path);
            return Ok(());
        }
        let (at, ty) = self.make(path)?;
        self.doc.copy_value(at, ty, from, path)
    }

    /// See [`Doc::remove`].
    pub fn remove(&mut self, path: &str) -> bool {
        let all: Vec<Segment<'_>> = segments(path).collect();
        let Some((last, above)) = all.split_last() else {
            self.doc.nodes[self.at as usize] = self.doc.empty(self.ty, self.at);
            return true;
        };
        let parent = above.iter().fold(self.read(), |r, s| r.step(*s));
        let child = parent.step(*last);
        if child.at == NONE || parent.at == NONE {
            return false;
        }
        let (parent, child, map) = (parent.at, child.at, parent.tag() == Some(Tag::Map));
        self.doc.unlink(parent, if map { child - 1 } else { child });
        true
    }

    /// See [`Doc::for_each`].
    pub fn for_each<E>(&mut self, path: &str, mut f: impl FnMut(Mut<'_>) -> Result<(), E>) -> Result<(), E> {
        let list = self.get(path);
        if list.tag() != Some(Tag::List) {
            return Ok(());
        }
        let (mut at, ty) = (self.doc.nodes[list.at as usize].a, self.doc.list_elem(list.at, list.ty).unwrap_or(TypeId::ANY));
        while at != NONE {
            f(Mut { doc: self.doc, at, ty })?;
            at = self.doc.nodes[at as usize].next;
        }
        Ok(())
    }

    /// [`Self::for_each`] of a map's values, with their keys.
    pub fn for_each_entry<E>(&mut self, path: &str, mut f: impl FnMut(&str, Mut<'_>) -> Result<(), E>) -> Result<(), E> {
        let map = self.get(path);
        if map.tag() != Some(Tag::Map) {
            return Ok(());
        }
        let (mut at, ty) = (self.doc.nodes[map.at as usize].a, if map.ty().kind() == Kind::Map { map.ty().elem() } else { TypeId::ANY });
        while at != NONE {
            let key = self.doc.text(&self.doc.nodes[at as usize]).to_owned();
            f(&key, Mut { doc: self.doc, at: at + 1, ty })?;
            at = self.doc.nodes[at as usize].next;
        }
        Ok(())
    }

    /// See [`Doc::retain`].
    pub fn retain(&mut self, path: &str, mut f: impl FnMut(Ref<'_>) -> bool) -> usize {
        let container = self.get(path);
        let parent = container.at;
        let drop: Vec<u32> = match container.tag() {
            Some(Tag::List) => container.iter().filter(|r| !f(*r)).map(|r| r.at).collect(),
            Some(Tag::Map) => container.entries().filter(|(_, r)| !f(*r)).map(|(_, r)| r.at - 1).collect(),
            _ => return 0,
        };
        for child in &drop {
            self.doc.unlink(parent, *child);
        }
        drop.len()
    }

    /// Finds or makes the place of a path.
    fn make(&mut self, path: &str) -> Result<(u32, TypeId), EditError> {
        let wrong = || EditError::NoSuchField(path.to_owned());
        let (mut at, mut ty) = (self.at, self.ty);
        for segment in segments(path) {
            (at, ty) = self.doc.make_step(at, ty, segment).ok_or_else(wrong)?;
        }
        Ok((at, ty))
    }
}

impl Doc {
    /// An empty value of a type in place of a node.
    fn empty(&self, ty: TypeId, in_place_of: u32) -> Node {
        let mut node = match self.schema.ty(ty).kind() {
            Kind::Struct => Node::container(Tag::Struct),
            Kind::List => Node::container(Tag::List),
            Kind::Map => Node::container(Tag::Map),
            _ => Node::null(),
        };
        let old = &self.nodes[in_place_of as usize];
        (node.field, node.next) = (old.field, old.next);
        node
    }

    fn list_elem(&self, at: u32, ty: TypeId) -> Option<TypeId> {
        let t = self.schema.ty(ty);
        match t.kind() {
            Kind::List | Kind::SchemaOrArray => Some(t.elem()),
            Kind::SchemaOrStringArray => Some(TypeId::STRING),
            Kind::Any if self.nodes[at as usize].tag == Tag::List => Some(TypeId::ANY),
            _ => None,
        }
    }

    pub(crate) fn make_step(&mut self, at: u32, ty: TypeId, segment: Segment<'_>) -> Option<(u32, TypeId)> {
        let t = self.schema.ty(ty);
        let kind = t.kind();
        let (elem, field) = (t.elem(), t.field(segment.text()).map(|f| (f.index(), f.type_id())));
        let tag = self.nodes[at as usize].tag;
        match (kind, tag) {
            (Kind::Struct, Tag::Struct) => {
                let (index, ty) = field?;
                if let Some(child) = self.child_of_field(at, index) {
                    return Some((self.fill(child, ty), ty));
                }
                let child = self.add(Node::null());
                self.put_field(at, index, child);
                Some((self.fill(child, ty), ty))
            }
            (Kind::Map | Kind::Any, Tag::Map) => {
                let ty = if kind == Kind::Map { elem } else { TypeId::ANY };
                let child = self.put_entry(at, segment.text());
                Some((self.fill(child, ty), ty))
            }
            (Kind::Any, Tag::Null) => {
                let old = self.nodes[at as usize];
                self.nodes[at as usize] = Node { field: old.field, next: old.next, ..Node::container(Tag::Map) };
                self.make_step(at, ty, segment)
            }
            (_, Tag::List) => {
                let elem = self.list_elem(at, ty)?;
                let index: usize = segment.text().parse().ok()?;
                let found = Ref { doc: self, at, ty }.index(index).at;
                (found != NONE).then_some((found, elem))
            }
            (Kind::SchemaOrBool | Kind::SchemaOrArray | Kind::SchemaOrStringArray, Tag::Struct) => self.make_step(at, elem, segment),
            _ => None,
        }
    }

    /// Makes a null node the empty container of its type.
    fn fill(&mut self, at: u32, ty: TypeId) -> u32 {
        if self.nodes[at as usize].tag == Tag::Null {
            self.nodes[at as usize] = self.empty(ty, at);
        }
        at
    }

    /// Puts a node's content in place of another's.
    pub(crate) fn replace(&mut self, at: u32, with: Node) {
        let old = self.nodes[at as usize];
        self.nodes[at as usize] = Node { field: old.field, next: old.next, ..with };
    }

    fn write_value(&mut self, at: u32, ty: TypeId, value: &Value, path: &str) -> Result<(), EditError> {
        let node = match (self.schema.ty(ty).kind(), value) {
            (Kind::String | Kind::Any, Value::String(s)) => self.keep_str(Tag::Str, s),
            (Kind::Bool | Kind::Any, Value::Bool(b)) => Node::bool(*b),
            (Kind::Int64 | Kind::Any, Value::Number(n)) if n.is_i64() => Node::int(n.as_i64().unwrap_or(0)),
            _ => {
                let text = serde_json::to_vec(value).map_err(|e| EditError::Value { path: path.to_owned(), reason: e.to_string() })?;
                self.decode_node(ty, &text, path)?
            }
        };
        self.replace(at, node);
        Ok(())
    }

    fn decode_node(&mut self, ty: TypeId, text: &[u8], path: &str) -> Result<Node, EditError> {
        match decode_fragment(self, ty, text) {
            Ok(Some(new)) => Ok(self.nodes[new as usize]),
            Ok(None) => Ok(Node::null()),
            Err(e) => Err(EditError::Value { path: path.to_owned(), reason: e.to_string() }),
        }
    }

    /// Copies by nodes when the types are the same, and through JSON otherwise.
    fn copy_value(&mut self, at: u32, ty: TypeId, from: Ref<'_>, path: &str) -> Result<(), EditError> {
        if from.ty == ty && self.schema.same(&from.doc.schema) {
            if from.node().is_none() {
                return Ok(());
            }
            let new = self.copy_tree(from.doc, from.at, false);
            let node = self.nodes[new as usize];
            self.replace(at, node);
            return Ok(());
        }
        self.write_value(at, ty, &from.to_value(), path)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Doc, Schema};
    use serde_json::json;

    fn pod() -> Doc {
        let schema = Schema::builtin();
        let body = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"b":"2","a":"1"}},"spec":{"containers":[{"name":"c","image":"i"},{"name":"d"}]}}"#;
        Doc::from_json(&schema, schema.kind("", "v1", "Pod").unwrap(), body.into()).unwrap().doc
    }

    #[test]
    fn values_are_set_defaulted_and_removed_by_path() {
        let mut d = pod();
        d.set("spec.nodeName", "n1").unwrap();
        d.set("metadata.labels[app.kubernetes.io/name]", "x").unwrap();
        d.set("spec.containers[0].resources.limits.cpu", "0.5").unwrap();
        d.set("spec.securityContext", json!({"runAsUser": 5})).unwrap();
        d.push("spec.containers", json!({"name": "e"})).unwrap();
        assert!(!d.set_default("spec.nodeName", "n2").unwrap());
        assert!(d.set_default("spec.restartPolicy", "Always").unwrap());
        assert!(d.remove("metadata.labels.a") && !d.remove("metadata.labels.zz"));
        d.for_each("spec.containers", |mut c| c.set_default("image", "none").map(|_| ())).unwrap();
        assert_eq!(d.at("spec.nodeName").str(), "n1");
        assert_eq!(d.at("spec.containers[0].resources.limits[cpu]").str(), "500m");
        assert_eq!(d.at("spec.containers").find("name", "d").get("image").str(), "none");
        assert_eq!(d.at("spec.containers").len(), 3);
        assert_eq!(d.meta().labels().to_value(), json!({"app.kubernetes.io/name": "x", "b": "2"}));
        assert_eq!(d.retain("spec.containers", |c| c.get("name").str() != "d"), 1);
        assert_eq!(d.at("spec.containers[1].name").str(), "e");
        assert!(d.set("spec.nope", 1).is_err());
        assert!(d.set("spec.containers[9].name", "x").is_err());
        assert_eq!(
            d.set("spec.priority", "x").unwrap_err().to_string(),
            "spec.priority: json: cannot unmarshal string into Go value of type int32"
        );
        assert!(d.set("spec.containers[0].resources.limits.cpu", "x").is_err());
    }

    #[test]
    fn sub_trees_are_copied_and_compaction_changes_nothing() {
        let (mut a, b) = (pod(), pod());
        a.set("spec", json!({"containers": [{"name": "z"}]})).unwrap();
        assert_ne!(a, b);
        a.copy_from("spec", b.at("spec")).unwrap();
        assert_eq!(a, b);
        let before = a.to_json();
        a.compact();
        assert_eq!(a.to_json(), before);
    }
}
