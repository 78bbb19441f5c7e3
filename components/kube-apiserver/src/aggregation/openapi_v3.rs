//! A document of OpenAPI version 3 for an extension server that only has one of version 2.

use serde_json::{Map, Value, json};

const FROM: &str = "#/definitions/";
const TO: &str = "#/components/schemas/";
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// Moves references to where schemas are in version 3.
fn moved(v: &Value) -> Value {
    match v {
        Value::Object(m) => {
            let one = |(k, v): (&String, &Value)| match v {
                Value::String(s) if k == "$ref" => (k.clone(), s.replacen(FROM, TO, 1).into()),
                v => (k.clone(), moved(v)),
            };
            Value::Object(m.iter().map(one).collect())
        }
        Value::Array(a) => Value::Array(a.iter().map(moved).collect()),
        v => v.clone(),
    }
}

/// A schema in each of some media types.
fn content(types: &[Value], schema: &Value) -> Value {
    let schema = moved(schema);
    let each = types.iter().filter_map(Value::as_str).map(|t| (t.to_owned(), json!({ "schema": schema })));
    Value::Object(each.collect())
}

/// A parameter that is no body: what was beside its name is the schema of its value.
fn parameter(p: &Value) -> Value {
    const OWN: [&str; 5] = ["name", "in", "description", "required", "allowEmptyValue"];
    let (mut out, mut schema) = (Map::new(), Map::new());
    for (k, v) in p.as_object().into_iter().flatten() {
        match k.as_str() {
            k if OWN.contains(&k) => drop(out.insert(k.to_owned(), v.clone())),
            "collectionFormat" => {}
            k => drop(schema.insert(k.to_owned(), moved(v))),
        }
    }
    out.insert("schema".into(), Value::Object(schema));
    Value::Object(out)
}

fn parameters(list: &Value) -> Option<Value> {
    let all: Vec<Value> = list.as_array()?.iter().filter(|p| p["in"] != "body").map(parameter).collect();
    (!all.is_empty()).then(|| all.into())
}

fn operation(o: &Value) -> Value {
    let list = |f: &str| o[f].as_array().cloned().unwrap_or_else(|| vec!["application/json".into()]);
    let mut out = Map::new();
    for (k, v) in o.as_object().into_iter().flatten() {
        match k.as_str() {
            "consumes" | "produces" | "schemes" => {}
            "parameters" => {
                if let Some(all) = parameters(v) {
                    out.insert("parameters".into(), all);
                }
                if let Some(body) = v.as_array().into_iter().flatten().find(|p| p["in"] == "body") {
                    let mut request = json!({"content": content(&list("consumes"), &body["schema"])});
                    if body["required"] == true {
                        request["required"] = true.into();
                    }
                    out.insert("requestBody".into(), request);
                }
            }
            "responses" => {
                let one = |(code, r): (&String, &Value)| {
                    let mut new = json!({"description": r["description"].as_str().unwrap_or("")});
                    if r["schema"].is_object() {
                        new["content"] = content(&list("produces"), &r["schema"]);
                    }
                    (code.clone(), new)
                };
                out.insert("responses".into(), Value::Object(v.as_object().into_iter().flatten().map(one).collect()));
            }
            _ => drop(out.insert(k.clone(), moved(v))),
        }
    }
    Value::Object(out)
}

/// The same in version 3; `v2` has the paths and definitions of one group and version.
pub fn of_v2(v2: &Value, title: &str) -> Value {
    let mut paths = Map::new();
    for (path, item) in v2["paths"].as_object().into_iter().flatten() {
        let mut out = Map::new();
        for (k, v) in item.as_object().into_iter().flatten() {
            let new = match k.as_str() {
                k if METHODS.contains(&k) => Some(operation(v)),
                "parameters" => parameters(v),
                _ => Some(moved(v)),
            };
            out.extend(new.map(|n| (k.clone(), n)));
        }
        paths.insert(path.clone(), Value::Object(out));
    }
    let schemas = moved(&v2["definitions"]);
    json!({"openapi": "3.0.0", "info": {"title": title, "version": "unversioned"}, "paths": paths, "components": {"schemas": schemas}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_parameters_answers_and_references_move_to_their_places() {
        let v2 = json!({"paths": {"/apis/a.io/v1/as": {
                "parameters": [{"name": "pretty", "in": "query", "type": "string", "uniqueItems": true}],
                "post": {"operationId": "create", "consumes": ["application/json", "application/yaml"], "produces": ["application/json"],
                    "parameters": [{"name": "body", "in": "body", "required": true, "schema": {"$ref": "#/definitions/A"}}],
                    "responses": {"201": {"description": "Created", "schema": {"$ref": "#/definitions/A"}}, "401": {"description": "Unauthorized"}}}}},
            "definitions": {"A": {"type": "object", "properties": {"b": {"$ref": "#/definitions/B"}}}, "B": {"type": "string"}}});
        let a = json!({"schema": {"$ref": "#/components/schemas/A"}});
        assert_eq!(
            of_v2(&v2, "a.io"),
            json!({"openapi": "3.0.0", "info": {"title": "a.io", "version": "unversioned"}, "paths": {"/apis/a.io/v1/as": {
                "parameters": [{"name": "pretty", "in": "query", "schema": {"type": "string", "uniqueItems": true}}],
                "post": {"operationId": "create", "requestBody": {"required": true, "content": {"application/json": a, "application/yaml": a}},
                    "responses": {"201": {"description": "Created", "content": {"application/json": a}}, "401": {"description": "Unauthorized"}}}}},
                "components": {"schemas": {"A": {"type": "object", "properties": {"b": {"$ref": "#/components/schemas/B"}}}, "B": {"type": "string"}}}})
        );
    }
}
