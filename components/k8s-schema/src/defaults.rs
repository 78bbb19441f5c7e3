//! Defaults that the table knows (`+default`): constants for a field that is not set. What depends on other fields is the
//! API server's, per kind.

use crate::doc::{Doc, EditError, Ref};
use crate::table::Kind;
use serde_json::Value;

/// Sets every field that is absent, or zero without being a pointer, and has a declared default.
pub fn apply(doc: &mut Doc) -> Result<(), EditError> {
    let mut due = Vec::new();
    collect(doc.root(), &mut String::new(), &mut due);
    for (path, default) in due {
        doc.set(&path, default)?;
    }
    Ok(())
}

fn collect(at: Ref<'_>, path: &mut String, due: &mut Vec<(String, Value)>) {
    let len = path.len();
    if at.ty().kind() == Kind::Struct && at.exists() {
        for field in at.ty().fields() {
            let Some(text) = field.default_json() else { continue };
            let there = at.get(field.name());
            if there.exists() && (field.is_pointer() || !there.is_zero()) {
                continue;
            }
            // A zero default of a field that is no pointer is what it reads as anyway.
            if let Ok(default) = serde_json::from_str::<Value>(text)
                && (field.is_pointer() || !matches!(default.to_string().as_str(), "0" | "false" | "\"\""))
            {
                due.push((format!("{path}.{}", field.name()), default));
            }
        }
    }
    for (name, child) in at.fields() {
        // Keys may hold dots.
        path.push_str(&if at.ty().kind() == Kind::Map { format!("[{name}]") } else { format!(".{name}") });
        collect(child, path, due);
        path.truncate(len);
    }
    for (i, child) in at.iter().enumerate() {
        path.push_str(&format!("[{i}]"));
        collect(child, path, due);
        path.truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use crate::{Doc, Schema, value};

    #[test]
    fn declared_defaults_are_set_where_nothing_is() {
        let schema = Schema::builtin();
        let ty = schema.kind("", "v1", "Pod").unwrap();
        let pod = value!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 2, "protocol": "UDP"}, {"containerPort": 3, "protocol": ""}]}],
            "volumes": [{"name": "v", "rbd": {"image": "i"}}]}});
        let mut doc = Doc::from_value(&schema, ty, &pod).unwrap().doc;
        super::apply(&mut doc).unwrap();
        let protocols: Vec<&str> = doc.at("spec.containers[0].ports").iter().map(|p| p.get("protocol").str()).collect();
        assert_eq!(protocols, ["TCP", "UDP", "TCP"]);
        assert_eq!(doc.at("spec.volumes[0].rbd.pool").str(), "rbd");
    }
}
