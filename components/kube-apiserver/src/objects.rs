//! Reading stored objects from the caches as documents, for everything inside the server that needs one.

use std::sync::Arc;

use bytes::Bytes;
use k8s_schema::{Doc, Schema, TypeId};

use crate::{
    custom::{self, Definition},
    kinds,
    registry::Registry,
    storage::{CUSTOM_FIELD, Defined, Ingest, Interner, Reflector, Stored},
};

/// The envelope upstream puts before protobuf in etcd and on the wire.
pub const PROTOBUF_MAGIC: &[u8] = b"k8s\0";

/// Decodes what is in etcd, protobuf or JSON.
pub fn decode(schema: &Schema, body: &Bytes) -> Result<Doc, String> {
    if body.starts_with(PROTOBUF_MAGIC) {
        return Doc::from_protobuf(schema, body.clone()).map_err(|e| e.to_string());
    }
    let meta = k8s_schema::peek_type_meta(body).map_err(|e| e.to_string())?;
    let (group, version) = meta.api_version.split_once('/').unwrap_or(("", &meta.api_version));
    // What is not built in is a custom resource.
    let ty = schema.kind(group, version, &meta.kind).unwrap_or(TypeId::ANY);
    Doc::from_json(schema, ty, body.clone()).map(|d| d.doc).map_err(|e| e.to_string())
}

pub struct Objects {
    pub schema: Schema,
    pub reflector: Arc<Reflector>,
}

impl Objects {
    /// The object at `prefix`/`key` as the cache has it, in its storage version.
    pub fn get(&self, prefix: &str, key: &str) -> Option<Doc> {
        let stored = self.reflector.cache(prefix)?.get(key)?;
        self.doc(&stored)
    }

    pub fn doc(&self, stored: &Stored) -> Option<Doc> {
        match decode(&self.schema, &stored.body) {
            Ok(mut doc) => {
                // A fixed path and a number: this cannot fail for a kind that has metadata, which everything stored has.
                let _ = doc.set("metadata.resourceVersion", stored.rev.to_string());
                Some(doc)
            }
            Err(reason) => {
                tracing::error!(key = &*stored.key, reason, "a cached object cannot be decoded");
                None
            }
        }
    }

    /// All objects below `prefix` whose key starts with `start`.
    pub fn list(&self, prefix: &str, start: &str) -> Vec<Arc<Stored>> {
        let Some(cache) = self.reflector.cache(prefix) else { return Vec::new() };
        let (map, _) = cache.snapshot();
        map.range(start, None).map(|(_, s)| Arc::clone(s)).collect()
    }
}

/// Decodes objects on their way into the caches, and tells the registry of definitions.
pub struct SchemaIngest {
    pub schema: Schema,
    pub registry: Arc<Registry>,
}

impl Ingest for SchemaIngest {
    fn ingest(&self, prefix: &str, key: &str, rev: i64, body: Bytes, interner: &Interner) -> Result<Stored, String> {
        let doc = decode(&self.schema, &body)?;
        let labels = doc.at("metadata.labels").entries().map(|(k, v)| (interner.intern(k), interner.intern(v.str())));
        if doc.type_id() == TypeId::ANY {
            let dynamic = self.registry.dynamic();
            let mut labels: Vec<_> = labels.collect();
            for field in dynamic.stored_at(prefix).into_iter().flat_map(|d| d.selectable()) {
                let value = doc.at(field);
                let text =
                    if value.exists() { value.as_str().map_or_else(|| value.to_value().to_string(), str::to_owned) } else { String::new() };
                labels.push((interner.intern(&format!("{CUSTOM_FIELD}{field}")), interner.intern(&text)));
            }
            return Ok(Stored::new(key.into(), rev, labels.into(), Box::new([]), body));
        }
        let fields = kinds::selectable(prefix, &doc).into_iter().map(|(k, v)| (k, interner.intern(&v))).collect();
        Ok(Stored::new(key.into(), rev, labels.collect(), fields, body))
    }

    fn definitions(&self) -> Option<&'static str> {
        Some(custom::PREFIX)
    }

    fn defined(&self, key: &str, object: Option<&Stored>) -> Defined {
        let Some(object) = object else {
            return self.registry.undefine(key).map_or(Defined::Nothing, Defined::Gone);
        };
        match decode(&self.schema, &object.body) {
            Ok(doc) => {
                let definition = Definition::of(&doc);
                let prefix = definition.prefix();
                if self.registry.define(definition) { Defined::Changed(prefix) } else { Defined::Same(prefix) }
            }
            Err(_) => Defined::Nothing,
        }
    }

    fn only(&self, keys: &[String]) {
        let gone: Vec<String> = self.registry.dynamic().definitions().filter(|d| !keys.contains(&d.name)).map(|d| d.name.clone()).collect();
        gone.iter().for_each(|name| drop(self.registry.undefine(name)));
    }
}
