//! What the protobuf form cannot tell apart: an empty list or map from none.

use super::{Doc, NONE, Ref, Tag};
use crate::table::Kind;

impl Doc {
    /// Drops the fields that are empty lists or maps, as an object loses them on its way through the protobuf form. Values of
    /// no known type are kept as they are.
    pub fn forget_empty(&mut self) {
        let mut empty = Vec::new();
        collect(self.root(), &mut empty);
        for (parent, child) in empty {
            self.unlink(parent, child);
        }
    }
}

fn collect(at: Ref<'_>, empty: &mut Vec<(u32, u32)>) {
    match at.tag() {
        Some(Tag::Struct) if at.ty().kind() == Kind::Struct => {
            for (_, value) in at.fields() {
                match value.tag() {
                    Some(Tag::List | Tag::Map) if value.ty().kind() != Kind::Any && value.node().is_some_and(|n| n.a == NONE) => {
                        empty.push((at.at, value.at));
                    }
                    _ => collect(value, empty),
                }
            }
        }
        Some(Tag::List) if at.ty().kind() == Kind::List => at.iter().for_each(|value| collect(value, empty)),
        Some(Tag::Map) if at.ty().kind() == Kind::Map => at.entries().for_each(|(_, value)| collect(value, empty)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Doc, Schema};

    #[test]
    fn empty_lists_and_maps_go_as_they_do_through_protobuf() {
        let schema = Schema::builtin();
        let pod = schema.kind("", "v1", "Pod").unwrap();
        let given = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "labels": {}, "finalizers": []},
            "spec": {"containers": [{"name": "c", "args": [], "env": [{"name": "e"}], "securityContext": {}}], "volumes": []}});
        let mut doc = Doc::from_value(&schema, pod, &given).unwrap().doc;
        let stored = Doc::from_protobuf(&schema, doc.to_protobuf().into()).unwrap();
        doc.forget_empty();
        assert_eq!(doc.to_value(), stored.to_value());
        assert!(doc.at("spec.containers[0].securityContext").exists());
        assert!(!doc.at("spec.containers[0].args").exists());
    }
}
