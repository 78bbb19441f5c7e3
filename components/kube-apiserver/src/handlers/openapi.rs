//! OpenAPI v2 and v3, made of the schema table when somebody asks, and kept as compressed bytes.

use std::{
    collections::HashMap,
    io::Write,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderValue, header};
use k8s_schema::openapi::{Documents, Resource, Subresource};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use super::{Ctx, discovery::KUBERNETES, encode_value};
use crate::{
    http::{Answer, ApiError, Body, Wanted, body},
    server::Server,
};

/// A document as it is kept: gzip of its JSON, and the hash that clients cache it by.
#[derive(Debug, Clone)]
struct Kept {
    gzip: Bytes,
    hash: String,
}

fn keep(v: &Value) -> Result<Kept, ApiError> {
    let json = serde_json::to_vec(v).map_err(ApiError::internal)?;
    let hash: String = Sha512::digest(&json).iter().map(|b| format!("{b:02X}")).collect();
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(&json).map_err(ApiError::internal)?;
    Ok(Kept { gzip: gz.finish().map_err(ApiError::internal)?.into(), hash })
}

/// The documents of this server's resources.
#[derive(Debug, Default)]
pub struct OpenApi {
    resources: OnceLock<Vec<Resource>>,
    v2: Mutex<Option<Kept>>,
    v3: Mutex<HashMap<String, Kept>>,
}

impl OpenApi {
    fn documents<'a>(&'a self, server: &'a Server) -> Documents<'a> {
        let resources = self.resources.get_or_init(|| server.registry.all().iter().map(|r| resource(r)).collect());
        Documents { schema: &server.objects.schema, resources, version: KUBERNETES, descriptions: None }
    }

    fn v2(&self, server: &Server) -> Result<Kept, ApiError> {
        let mut v2 = self.v2.lock();
        if let Some(k) = &*v2 {
            return Ok(k.clone());
        }
        let k = keep(&self.documents(server).v2())?;
        *v2 = Some(k.clone());
        Ok(k)
    }

    fn v3(&self, server: &Server, path: &str) -> Result<Option<Kept>, ApiError> {
        if let Some(k) = self.v3.lock().get(path) {
            return Ok(Some(k.clone()));
        }
        let Some(v) = self.documents(server).v3(path) else { return Ok(None) };
        let k = keep(&v)?;
        self.v3.lock().insert(path.to_owned(), k.clone());
        Ok(Some(k))
    }
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

fn send(ctx: &Ctx, k: &Kept) -> Result<Answer, ApiError> {
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
    let mut a = body::answer(200, "application/json", Body::Full(bytes));
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
            if accept.contains("com.github.proto-openapi") && !accept.contains("application/json") && !accept.contains("*/*") {
                return Ok(body::text(406, ""));
            }
            send(ctx, &server.openapi.v2(server)?)
        }
        "openapi/v3" => {
            let mut paths = serde_json::Map::new();
            for p in server.openapi.documents(server).v3_paths() {
                if let Some(k) = server.openapi.v3(server, &p)? {
                    paths.insert(p.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{p}?hash={}", k.hash)}));
                }
            }
            Ok(encode_value(200, &json!({"paths": paths}), Wanted::JSON))
        }
        _ => match path.strip_prefix("openapi/v3/") {
            Some(p) => match server.openapi.v3(server, p)? {
                Some(k) => send(ctx, &k),
                None => Ok(body::text(404, "404 page not found\n")),
            },
            None => Ok(body::text(404, "404 page not found\n")),
        },
    }
}
