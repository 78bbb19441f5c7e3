//! The OpenAPI documents of extension servers: version 2 is merged into this server's, of version 3 only the index is, as every group
//! and version has a document of its own.

use serde_json::{Map, Value};

use super::discovery::Asker;

const DEFINITIONS: &str = "#/definitions/";

/// Every reference in a document, which may be changed.
fn references(v: &mut Value, f: &mut impl FnMut(&mut String)) {
    match v {
        Value::Object(m) => {
            for (k, v) in m {
                match v {
                    Value::String(s) if k == "$ref" => f(s),
                    v => references(v, f),
                }
            }
        }
        Value::Array(a) => a.iter_mut().for_each(|v| references(v, f)),
        _ => {}
    }
}

/// Of a whole document, the paths below `prefix` and the definitions that they need.
fn filtered(mut whole: Value, prefix: &str) -> Value {
    let below = format!("{prefix}/");
    let own = |p: &str| p == prefix || p.starts_with(&below);
    let mut paths = Map::new();
    if let Some(Value::Object(all)) = whole.get_mut("paths") {
        paths = std::mem::take(all).into_iter().filter(|(p, _)| own(p)).collect();
    }
    let mut definitions = match whole.get_mut("definitions") {
        Some(Value::Object(all)) => std::mem::take(all),
        _ => Map::new(),
    };
    let mut kept = Map::new();
    let mut paths = Value::Object(paths);
    let mut wanted = Vec::new();
    references(&mut paths, &mut |r| wanted.extend(r.strip_prefix(DEFINITIONS).map(str::to_owned)));
    while let Some(name) = wanted.pop() {
        // Taken out of what is left, so that each is looked at once.
        let Some(mut d) = definitions.remove(&name) else { continue };
        references(&mut d, &mut |r| wanted.extend(r.strip_prefix(DEFINITIONS).map(str::to_owned)));
        kept.insert(name, d);
    }
    let mut out = Map::new();
    out.insert("paths".into(), paths);
    out.insert("definitions".into(), Value::Object(kept));
    Value::Object(out)
}

/// Adds what an extension server described. Of two different definitions of one name the later one gets a number.
pub fn merge_v2(into: &mut Value, add: &Value) {
    let mut add = add.clone();
    let mut renamed: Vec<(String, String)> = Vec::new();
    let empty = Map::new();
    let there = into["definitions"].as_object().unwrap_or(&empty);
    if let Some(new) = add["definitions"].as_object() {
        for (name, d) in new {
            if there.get(name).is_none_or(|old| old == d) {
                continue;
            }
            let free = (2..).map(|n| format!("{name}_v{n}")).find(|n| !there.contains_key(n) && !new.contains_key(n));
            renamed.extend(free.map(|f| (name.clone(), f)));
        }
    }
    references(&mut add, &mut |r| {
        if let Some((_, to)) = r.strip_prefix(DEFINITIONS).and_then(|n| renamed.iter().find(|(from, _)| from == n)) {
            *r = format!("{DEFINITIONS}{to}");
        }
    });
    for part in ["paths", "definitions"] {
        let Value::Object(new) = add[part].take() else { continue };
        let Some(all) = into.get_mut(part).and_then(Value::as_object_mut) else { continue };
        for (name, v) in new {
            let to = if part == "definitions" { renamed.iter().find(|(from, _)| *from == name).map(|(_, to)| to.clone()) } else { None };
            all.entry(to.unwrap_or(name)).or_insert(v);
        }
    }
}

pub(super) async fn v2(asker: &Asker<'_>) -> Result<Option<Value>, String> {
    let whole = asker.json("/openapi/v2", "application/json").await?;
    Ok(whole.map(|(v, _)| filtered(v, &asker.remote.path())))
}

/// Of an index, the documents of one group and version.
fn own_documents(index: &Value, path: &str) -> Vec<(String, String)> {
    let name = path.trim_start_matches('/');
    let url = index["paths"][name]["serverRelativeURL"].as_str();
    url.map(|u| vec![(name.to_owned(), u.to_owned())]).unwrap_or_default()
}

pub(super) async fn v3(asker: &Asker<'_>) -> Result<Vec<(String, String)>, String> {
    let index = asker.json("/openapi/v3", "application/json").await?;
    Ok(index.map(|(v, _)| own_documents(&v, &asker.remote.path())).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(definition: &str) -> Value {
        json!({"get": {"schema": {"$ref": format!("{DEFINITIONS}{definition}")}}})
    }

    #[test]
    fn only_what_is_needed_of_a_document_is_kept_and_names_are_kept_apart() {
        let theirs = json!({"paths": {"/apis/": path("X"), "/apis/a.io/v1/as": path("A"), "/apis/a.io/v1": path("List"), "/apis/a.io/v1x/y": path("X")},
            "definitions": {"A": {"properties": {"meta": {"$ref": "#/definitions/Meta"}, "self": {"$ref": "#/definitions/A"}}},
                "List": {"type": "object"}, "Meta": {"type": "object", "theirs": true}, "X": {}}});
        let kept = filtered(theirs, "/apis/a.io/v1");
        assert_eq!(kept["paths"].as_object().unwrap().keys().collect::<Vec<_>>(), ["/apis/a.io/v1/as", "/apis/a.io/v1"]);
        let mut names: Vec<_> = kept["definitions"].as_object().unwrap().keys().cloned().collect();
        names.sort();
        assert_eq!(names, ["A", "List", "Meta"]);

        let mut own = json!({"paths": {"/api/v1": path("Meta")}, "definitions": {"Meta": {"type": "object"}, "List": {"type": "object"}}});
        merge_v2(&mut own, &kept);
        assert_eq!(own["definitions"]["Meta"], json!({"type": "object"}));
        assert_eq!(own["definitions"]["Meta_v2"], json!({"type": "object", "theirs": true}));
        assert_eq!(own["definitions"]["A"]["properties"]["meta"]["$ref"], "#/definitions/Meta_v2");
        assert_eq!(own["paths"]["/apis/a.io/v1/as"], path("A"));
        assert!(own["definitions"].get("List_v2").is_none(), "the same definition is there once");
    }

    #[test]
    fn an_index_is_read_for_one_version() {
        let index = json!({"paths": {"apis/a.io/v1": {"serverRelativeURL": "/openapi/v3/apis/a.io/v1?hash=1"}, "apis": {"serverRelativeURL": "/x"}}});
        assert_eq!(own_documents(&index, "/apis/a.io/v1"), [("apis/a.io/v1".to_owned(), "/openapi/v3/apis/a.io/v1?hash=1".to_owned())]);
        assert!(own_documents(&index, "/apis/a.io/v2").is_empty());
    }
}
