//! Reading stored objects from the caches as documents, for everything inside the server that needs one.

use std::sync::Arc;

use bytes::Bytes;
use k8s_schema::{Doc, Schema};

use crate::{
    kinds,
    storage::{Ingest, Interner, Reflector, Stored},
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
    let ty = schema.kind(group, version, &meta.kind).ok_or_else(|| format!("unknown kind {} of {}", meta.kind, meta.api_version))?;
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

/// Decodes objects on their way into the caches.
pub struct SchemaIngest(pub Schema);

impl Ingest for SchemaIngest {
    fn ingest(&self, prefix: &str, key: &str, rev: i64, body: Bytes, interner: &Interner) -> Result<Stored, String> {
        let doc = decode(&self.0, &body)?;
        let labels = doc.at("metadata.labels").entries().map(|(k, v)| (interner.intern(k), interner.intern(v.str()))).collect();
        let fields = kinds::selectable(prefix, &doc).into_iter().map(|(k, v)| (k, interner.intern(&v))).collect();
        Ok(Stored::new(key.into(), rev, labels, fields, body))
    }
}
