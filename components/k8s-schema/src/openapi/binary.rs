//! The version 2 document in protobuf, as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf` (gnostic's
//! `OpenAPIv2.proto`): what client-go asks for when it wants the document typed.
//!
//! Only what [`super::Documents::v2`] writes is carried over. Vendor extensions travel as YAML text, of which JSON is one form.

use crate::proto::wire::{begin, end, put_bytes, put_uint};
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// Encodes a document made by [`super::Documents::v2`].
pub fn encode(document: &Value) -> Vec<u8> {
    let mut w = Writer { out: Vec::new() };
    w.text(1, document.get("swagger"));
    w.message(2, document.get("info"), |w, info| {
        w.text(1, info.get("title"));
        w.text(2, info.get("version"));
    });
    w.message(8, document.get("paths"), |w, paths| w.named(2, paths, Writer::path_item));
    w.message(9, document.get("definitions"), |w, all| w.named(1, all, Writer::schema));
    for requirement in document.get("security").and_then(Value::as_array).into_iter().flatten() {
        w.message(12, Some(requirement), |w, r| w.named_values(1, r, |w, list| w.texts(1, Some(list))));
    }
    w.message(13, document.get("securityDefinitions"), |w, all| {
        w.named(1, all, |w, key| {
            let start = begin(&mut w.out, 2);
            for (number, name) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
                w.text(number, key.get(name));
            }
            end(&mut w.out, start);
        });
    });
    w.out
}

struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// A string field; proto3 leaves out what is empty.
    fn text(&mut self, number: u32, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str).filter(|t| !t.is_empty()) {
            put_bytes(&mut self.out, number, text.as_bytes());
        }
    }

    fn texts(&mut self, number: u32, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            put_bytes(&mut self.out, number, text.as_bytes());
        }
    }

    fn flag(&mut self, number: u32, value: Option<&Value>) {
        if value == Some(&Value::Bool(true)) {
            put_uint(&mut self.out, number, 1);
        }
    }

    fn message(&mut self, number: u32, value: Option<&Value>, content: impl FnOnce(&mut Self, &Object)) {
        if let Some(Value::Object(map)) = value {
            let start = begin(&mut self.out, number);
            content(self, map);
            end(&mut self.out, start);
        }
    }

    /// Repeated (name, message).
    fn named(&mut self, number: u32, map: &Object, content: impl Fn(&mut Self, &Object)) {
        self.named_values(number, map, |w, value| {
            if let Value::Object(inner) = value {
                content(w, inner);
            }
        });
    }

    fn named_values(&mut self, number: u32, map: &Object, content: impl Fn(&mut Self, &Value)) {
        for (name, value) in map {
            let start = begin(&mut self.out, number);
            put_bytes(&mut self.out, 1, name.as_bytes());
            let inner = begin(&mut self.out, 2);
            content(self, value);
            end(&mut self.out, inner);
            end(&mut self.out, start);
        }
    }

    fn any(&mut self, number: u32, value: &Value) {
        let start = begin(&mut self.out, number);
        put_bytes(&mut self.out, 2, format!("{value}\n").as_bytes());
        end(&mut self.out, start);
    }

    fn extensions(&mut self, number: u32, map: &Object) {
        for (name, value) in map.iter().filter(|(k, _)| k.starts_with("x-")) {
            let start = begin(&mut self.out, number);
            put_bytes(&mut self.out, 1, name.as_bytes());
            self.any(2, value);
            end(&mut self.out, start);
        }
    }

    fn path_item(&mut self, item: &Object) {
        for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")] {
            self.message(number, item.get(method), Self::operation);
        }
        self.parameters(9, item);
        self.extensions(10, item);
    }

    fn operation(&mut self, operation: &Object) {
        self.texts(1, operation.get("tags"));
        self.text(3, operation.get("description"));
        self.text(5, operation.get("operationId"));
        self.texts(6, operation.get("produces"));
        self.texts(7, operation.get("consumes"));
        self.parameters(8, operation);
        self.message(9, operation.get("responses"), |w, responses| {
            w.named(1, responses, |w, response| {
                // Of a reference and a response, the first.
                let start = begin(&mut w.out, 1);
                w.text(1, response.get("description"));
                w.message(2, response.get("schema"), |w, schema| w.wrapped_schema(1, schema));
                end(&mut w.out, start);
            });
        });
        self.texts(10, operation.get("schemes"));
        self.extensions(13, operation);
    }

    fn wrapped_schema(&mut self, number: u32, schema: &Object) {
        let start = begin(&mut self.out, number);
        self.schema(schema);
        end(&mut self.out, start);
    }

    fn parameters(&mut self, number: u32, owner: &Object) {
        for parameter in owner.get("parameters").and_then(Value::as_array).into_iter().flatten() {
            let Value::Object(p) = parameter else { continue };
            let item = begin(&mut self.out, number);
            let one = begin(&mut self.out, 1);
            match p.get("in").and_then(Value::as_str) {
                Some("body") => {
                    let start = begin(&mut self.out, 1);
                    self.text(1, p.get("description"));
                    self.text(2, p.get("name"));
                    self.text(3, p.get("in"));
                    self.flag(4, p.get("required"));
                    self.message(5, p.get("schema"), |w, s| w.schema(s));
                    end(&mut self.out, start);
                }
                place => {
                    let path = place == Some("path");
                    let other = begin(&mut self.out, 2);
                    let start = begin(&mut self.out, if path { 4 } else { 3 });
                    self.flag(1, p.get("required"));
                    self.text(2, p.get("in"));
                    self.text(3, p.get("description"));
                    self.text(4, p.get("name"));
                    self.text(if path { 5 } else { 6 }, p.get("type"));
                    self.flag(if path { 19 } else { 20 }, p.get("uniqueItems"));
                    end(&mut self.out, start);
                    end(&mut self.out, other);
                }
            }
            end(&mut self.out, one);
            end(&mut self.out, item);
        }
    }

    fn schema(&mut self, schema: &Object) {
        self.text(1, schema.get("$ref"));
        self.text(2, schema.get("format"));
        self.text(4, schema.get("description"));
        self.texts(19, schema.get("required"));
        for value in schema.get("enum").and_then(Value::as_array).into_iter().flatten() {
            self.any(20, value);
        }
        self.message(21, schema.get("additionalProperties"), |w, s| w.wrapped_schema(1, s));
        if let Some(ty) = schema.get("type").and_then(Value::as_str) {
            let start = begin(&mut self.out, 22);
            put_bytes(&mut self.out, 1, ty.as_bytes());
            end(&mut self.out, start);
        }
        self.message(23, schema.get("items"), |w, s| w.wrapped_schema(1, s));
        self.message(25, schema.get("properties"), |w, all| w.named(1, all, Writer::schema));
        self.extensions(31, schema);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire::{BYTES, Reader};
    use serde_json::json;

    /// The content of length-delimited fields with a number.
    fn fields(bytes: &[u8], number: u32) -> Vec<Vec<u8>> {
        let mut r = Reader::new(bytes);
        let mut found = Vec::new();
        while !r.done() {
            let (n, wire) = r.tag().unwrap();
            if wire == BYTES {
                let (a, b) = r.bytes().unwrap();
                if n == number {
                    found.push(bytes[a..b].to_vec());
                }
            } else {
                r.skip(wire).unwrap();
            }
        }
        found
    }

    #[test]
    fn a_document_is_carried_over() {
        let document = json!({
            "swagger": "2.0", "info": {"title": "K", "version": "v1"},
            "paths": {"/api/": {"get": {"operationId": "g", "parameters": [{"name": "a", "in": "query", "type": "string"}],
                "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/A"}}}, "x-kubernetes-action": "list"}}},
            "definitions": {"A": {"type": "object", "properties": {"p": {"type": "array", "items": {"type": "string"}}}, "x-kubernetes-group-version-kind": [{"kind": "A"}]}},
        });
        let bytes = encode(&document);
        assert_eq!(fields(&bytes, 1), [b"2.0"]);
        let paths = fields(&bytes, 8).remove(0);
        let item = fields(&paths, 2).remove(0);
        assert_eq!(fields(&item, 1), [b"/api/"]);
        let operation = fields(&fields(&item, 2)[0], 2).remove(0);
        assert_eq!(fields(&operation, 5), [b"g"]);
        let definition = fields(&fields(&bytes, 9)[0], 1).remove(0);
        assert_eq!(fields(&definition, 1), [b"A"]);
        let schema = fields(&definition, 2).remove(0);
        let extension = fields(&schema, 31).remove(0);
        assert_eq!(fields(&fields(&extension, 2)[0], 2), [b"[{\"kind\":\"A\"}]\n"]);
    }
}
