//! OpenAPI v2 and v3, made of the schema table when somebody asks, and kept as compressed bytes.

use std::{
    collections::HashMap,
    io::Write,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderValue, header};
use k8s_descriptions::Descriptions;
use k8s_schema::openapi::{Documents, Resource, Subresource};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use super::{Ctx, discovery::KUBERNETES, encode_value};
use crate::{
    aggregation,
    http::{Answer, ApiError, Body, Wanted, body},
    registry::Dynamic,
    server::Server,
};

/// A document as it is kept: gzip of its JSON, and the hash that clients cache it by.
#[derive(Debug, Clone)]
struct Kept {
    gzip: Bytes,
    hash: String,
}

fn keep(v: &Value) -> Result<Kept, ApiError> {
    keep_bytes(&serde_json::to_vec(v).map_err(ApiError::internal)?)
}

fn keep_bytes(json: &[u8]) -> Result<Kept, ApiError> {
    let hash: String = Sha512::digest(json).iter().map(|b| format!("{b:02X}")).collect();
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(json).map_err(ApiError::internal)?;
    Ok(Kept { gzip: gz.finish().map_err(ApiError::internal)?.into(), hash })
}

/// The documents of this server's resources. Those of built-in groups never change; the rest is kept until a definition does.
#[derive(Debug, Default)]
pub struct OpenApi {
    builtin: OnceLock<Vec<Resource>>,
    v3: Mutex<HashMap<String, Kept>>,
    dynamic: Mutex<Custom>,
}

/// What holds for one state of the definitions and of what extension servers describe.
#[derive(Debug, Default)]
struct Custom {
    of: Option<(Arc<Dynamic>, u64)>,
    v2: Option<Kept>,
    v2_protobuf: Option<Kept>,
    v3: HashMap<String, Kept>,
}

impl OpenApi {
    fn builtin(&self, server: &Server) -> &[Resource] {
        self.builtin.get_or_init(|| server.registry.all().iter().map(|r| resource(r)).collect())
    }

    /// What is kept for the definitions as they are now.
    fn dynamic(&self, now: &Arc<Dynamic>, described: u64) -> MutexGuard<'_, Custom> {
        let mut kept = self.dynamic.lock();
        if !kept.of.as_ref().is_some_and(|(of, d)| Arc::ptr_eq(of, now) && *d == described) {
            *kept = Custom { of: Some((Arc::clone(now), described)), ..Custom::default() };
        }
        kept
    }

    fn v2_value(&self, server: &Server, dynamic: &Dynamic) -> Result<Value, ApiError> {
        let mut resources = self.builtin(server).to_vec();
        resources.extend(dynamic.all().iter().map(|r| resource(r)));
        let mut v = documents(server, &resources, |d| d.v2())?;
        for remote in server.aggregator.remotes() {
            if let Some(theirs) = server.aggregator.described(&remote.key()).as_deref().and_then(|d| d.v2.as_ref()) {
                aggregation::openapi::merge_v2(&mut v, theirs);
            }
        }
        Ok(v)
    }

    fn v2(&self, server: &Server, protobuf: bool) -> Result<Kept, ApiError> {
        let dynamic = server.registry.dynamic();
        let mut kept = self.dynamic(&dynamic, server.aggregator.generation());
        let slot = if protobuf { &mut kept.v2_protobuf } else { &mut kept.v2 };
        if let Some(k) = slot {
            return Ok(k.clone());
        }
        let v = self.v2_value(server, &dynamic)?;
        let k = if protobuf { keep_bytes(&k8s_schema::openapi::binary::encode(&v))? } else { keep(&v)? };
        *slot = Some(k.clone());
        Ok(k)
    }

    /// The paths that have a document, sorted.
    fn v3_paths(&self, server: &Server) -> Vec<String> {
        let mut paths = silent(server, self.builtin(server)).v3_paths();
        for (group, versions) in server.registry.dynamic().groups() {
            paths.push(format!("apis/{group}"));
            paths.extend(versions.iter().map(|v| format!("apis/{group}/{v}")));
        }
        paths.sort();
        paths.dedup();
        paths
    }

    /// The document of an extension server that has none of this version; none: it has, or is none.
    fn made(&self, server: &Server, path: &str) -> Result<Option<Kept>, ApiError> {
        let Some(remote) = server.aggregator.route(&format!("/{path}")).filter(|r| r.path().trim_start_matches('/') == path) else {
            return Ok(None);
        };
        let dynamic = server.registry.dynamic();
        let mut kept = self.dynamic(&dynamic, server.aggregator.generation());
        if let Some(k) = kept.v3.get(path) {
            return Ok(Some(k.clone()));
        }
        let Some(v) = server.aggregator.described(&remote.key()).and_then(|d| d.made_v3(&remote.group)) else { return Ok(None) };
        let k = keep(&v)?;
        kept.v3.insert(path.to_owned(), k.clone());
        Ok(Some(k))
    }

    fn v3(&self, server: &Server, path: &str) -> Result<Option<Kept>, ApiError> {
        let dynamic = server.registry.dynamic();
        let mut parts = path.strip_prefix("apis/").into_iter().flat_map(|p| p.split('/'));
        let group = parts.next().unwrap_or("");
        if dynamic.groups().iter().any(|(g, _)| g == group) {
            let mut kept = self.dynamic(&dynamic, server.aggregator.generation());
            if let Some(k) = kept.v3.get(path) {
                return Ok(Some(k.clone()));
            }
            let mut resources: Vec<Resource> = self.builtin(server).iter().filter(|r| r.group == group).cloned().collect();
            resources.extend(dynamic.all().iter().filter(|r| r.group == group).map(|r| resource(r)));
            let Some(v) = documents(server, &resources, |d| d.v3(path))? else { return Ok(None) };
            let k = keep(&v)?;
            kept.v3.insert(path.to_owned(), k.clone());
            return Ok(Some(k));
        }
        if let Some(k) = self.v3.lock().get(path) {
            return Ok(Some(k.clone()));
        }
        let Some(v) = documents(server, self.builtin(server), |d| d.v3(path))? else { return Ok(None) };
        let k = keep(&v)?;
        self.v3.lock().insert(path.to_owned(), k.clone());
        Ok(Some(k))
    }
}

/// What `of` makes of the documents, with words for people, which are unpacked for that long.
fn documents<T>(server: &Server, resources: &[Resource], of: impl FnOnce(&Documents<'_>) -> T) -> Result<T, ApiError> {
    let words = Descriptions::open().map_err(ApiError::internal)?;
    let describe = |definition: &str, field: Option<&str>| words.get(definition, field);
    Ok(of(&Documents { descriptions: Some(&describe), ..silent(server, resources) }))
}

/// The documents without words.
fn silent<'a>(server: &'a Server, resources: &'a [Resource]) -> Documents<'a> {
    Documents { schema: &server.objects.schema, resources, version: KUBERNETES, descriptions: None }
}

fn resource(r: &crate::registry::Resource) -> Resource {
    let connect = ["exec", "attach", "portforward", "proxy"];
    Resource {
        group: r.group.clone(),
        version: r.version.clone(),
        plural: r.plural.clone(),
        kind: r.kind.clone(),
        namespaced: r.namespaced,
        verbs: r.verbs.clone(),
        custom: r
            .custom
            .as_ref()
            .map(|c| k8s_schema::openapi::Custom { schema: c.version().schema_json.clone(), list_kind: c.definition.list_kind.clone() }),
        subresources: r
            .subresources
            .iter()
            .map(|s| Subresource {
                name: s.name.clone(),
                group: if s.version.is_empty() { r.group.clone() } else { s.group.clone() },
                version: if s.version.is_empty() { r.version.clone() } else { s.version.clone() },
                kind: s.kind.clone(),
                verbs: s
                    .verbs
                    .iter()
                    .map(|v| if connect.contains(&s.name.as_str()) { format!("connect:{v}") } else { v.clone() })
                    .collect(),
            })
            .collect(),
    }
}

fn send(ctx: &Ctx, k: &Kept, content_type: &'static str) -> Result<Answer, ApiError> {
    let etag = HeaderValue::from_str(&format!("\"{}\"", k.hash)).map_err(ApiError::internal)?;
    if ctx.headers.get(header::IF_NONE_MATCH) == Some(&etag) {
        let mut a = body::answer(304, "", Body::Full(Bytes::new()));
        a.headers_mut().insert(header::ETAG, etag);
        return Ok(a);
    }
    let gzip = ctx.headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("gzip"));
    let bytes = if gzip {
        k.gzip.clone()
    } else {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut GzDecoder::new(&k.gzip[..]), &mut plain).map_err(ApiError::internal)?;
        plain.into()
    };
    let mut a = body::answer(200, content_type, Body::Full(bytes));
    let h = a.headers_mut();
    if gzip {
        h.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    h.insert(header::ETAG, etag);
    h.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    Ok(a)
}

pub fn dispatch(ctx: &Arc<Ctx>) -> Result<Answer, ApiError> {
    let server = &ctx.server;
    let path = ctx.info.path.trim_matches('/');
    let accept = ctx.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    match path {
        "openapi/v2" => {
            let protobuf = accept.contains("com.github.proto-openapi.spec.v2");
            let content_type = if protobuf { "application/com.github.proto-openapi.spec.v2.v1.0+protobuf" } else { "application/json" };
            send(ctx, &server.openapi.v2(server, protobuf)?, content_type)
        }
        "openapi/v3" => {
            let mut paths = serde_json::Map::new();
            // Unpacked once for all documents that are not made yet.
            let _words = Descriptions::open().map_err(ApiError::internal)?;
            for p in server.openapi.v3_paths(server) {
                if let Some(k) = server.openapi.v3(server, &p)? {
                    paths.insert(p.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{p}?hash={}", k.hash)}));
                }
            }
            for remote in server.aggregator.remotes() {
                let Some(described) = server.aggregator.described(&remote.key()) else { continue };
                for (path, url) in &described.v3 {
                    paths.insert(path.clone(), json!({"serverRelativeURL": url}));
                }
                let path = remote.path().trim_start_matches('/').to_owned();
                if let Some(k) = server.openapi.made(server, &path)? {
                    paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={}", k.hash)}));
                }
            }
            Ok(encode_value(200, &json!({"paths": paths}), Wanted::JSON))
        }
        _ => match path.strip_prefix("openapi/v3/") {
            Some(p) => match server.openapi.made(server, p)?.map_or_else(|| server.openapi.v3(server, p), |k| Ok(Some(k)))? {
                Some(k) => send(ctx, &k, "application/json"),
                None => Ok(body::text(404, "404 page not found\n")),
            },
            None => Ok(body::text(404, "404 page not found\n")),
        },
    }
}
