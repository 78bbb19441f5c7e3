//! The handlers: one file per verb or endpoint, and here the table that sends a request to its handler.

mod decode;
mod delete;
pub mod discovery;
mod health;
pub mod openapi;
mod options;
mod patch;
mod plain_json;
mod protobuf_list;
pub mod proxy;
mod read;
mod reviews;
pub mod scale;
mod subresources;
mod table;
mod tables;
mod watch;
mod yaml_budget;
pub mod zpages;
pub use tables::duration;
pub mod write;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri};
use hyper::body::Incoming;
use k8s_schema::Doc;
use parking_lot::Mutex;
use serde_json::Value;

pub use delete::delete_for_server;
pub use options::{DeleteOptions, Propagation, Validation, WriteOptions};

use crate::{
    aggregation,
    audit::Record,
    authn::User,
    custom::conversion,
    http::{
        Answer, ApiError, As, Body, Group, Media, Offers, Query, RequestInfo, Wanted,
        body::{self, answer},
        gzip, memory, negotiate,
    },
    registry::Resource,
    server::Server,
    storage::{Encoding, Stored},
};

/// A request with everything a handler needs.
pub struct Ctx {
    pub server: Arc<Server>,
    pub info: Arc<RequestInfo>,
    pub query: Query,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub user: User,
    /// Sent as `Warning` headers.
    pub warnings: Mutex<Vec<String>>,
    /// Where the request is audited.
    pub audit: Option<Arc<Record>>,
    /// The server's own: no webhook is asked.
    pub internal: bool,
    /// The revision at which the object of the request was stored.
    pub wrote: OnceLock<i64>,
    /// The body's part of the memory for large ones.
    pub held: OnceLock<memory::Part>,
}

impl Ctx {
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut w = self.warnings.lock();
        if !w.contains(&text) {
            w.push(text);
        }
    }

    /// Adds to the request's audit, if there is one.
    pub fn annotate(&self, key: impl Into<String>, value: &str) {
        if let Some(r) = &self.audit {
            r.annotate(key, value);
        }
    }

    /// Reads the request's body.
    pub async fn body(&self, incoming: Incoming) -> Result<Bytes, ApiError> {
        let bytes = body::read(incoming, &self.headers).await?;
        if let Some(part) = self.server.bodies.take(bytes.len()).await? {
            // A request has one body.
            let _ = self.held.set(part);
        }
        if let Some(r) = &self.audit {
            r.request(&self.headers, &bytes);
        }
        Ok(bytes)
    }

    pub fn wanted(&self, offers: Offers, list: bool) -> Result<Wanted, ApiError> {
        let pretty = self.query.get("pretty").is_some_and(|p| matches!(p, "1" | "true"));
        negotiate::wanted(&self.headers, pretty, offers, list)
    }

    /// The manager that writes are recorded for: what the client names, or the first part of its user agent.
    pub fn manager(&self, named: &str) -> String {
        if !named.is_empty() {
            return named.to_owned();
        }
        let agent = self.headers.get("user-agent").and_then(|v| v.to_str().ok()).unwrap_or("");
        let first: String = agent.split('/').next().unwrap_or("").chars().take(128).collect();
        if first.is_empty() { "unknown".into() } else { first }
    }

    /// A request of the server's own, about one object.
    pub fn internal(server: &Arc<Server>, res: &Resource, namespace: &str, name: &str) -> Self {
        let info = RequestInfo {
            is_resource: true,
            verb: "delete".into(),
            prefix: "apis".into(),
            group: res.group.clone(),
            version: res.version.clone(),
            namespace: namespace.to_owned(),
            resource: res.plural.clone(),
            name: name.to_owned(),
            parts: 2,
            ..RequestInfo::default()
        };
        let user = User { name: "system:apiserver".into(), groups: vec![crate::authn::MASTERS.into()], ..User::default() };
        Self {
            server: Arc::clone(server),
            info: Arc::new(info),
            query: Query::default(),
            method: Method::DELETE,
            uri: Uri::default(),
            headers: HeaderMap::new(),
            user,
            warnings: Mutex::default(),
            audit: None,
            internal: true,
            wrote: OnceLock::new(),
            held: OnceLock::new(),
        }
    }

    /// Whether the answer may be compressed: the client takes it, and no audit reads it.
    pub fn takes_gzip(&self) -> bool {
        gzip::accepted(&self.headers) && !self.audit.as_ref().is_some_and(|r| r.reads_answers())
    }

    fn finish(&self, mut a: Answer) -> Answer {
        for w in self.warnings.lock().iter() {
            let text: String = w.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
            if let Ok(v) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
                a.headers_mut().append("warning", v);
            }
        }
        let read = self.method == Method::GET && self.info.verb != "watch" && (self.info.is_resource || self.info.path.starts_with("/api"));
        if read && self.takes_gzip() { gzip::compress(a) } else { a }
    }
}

/// A value of a kind that is no resource, in protobuf; none: it has no such form.
pub fn protobuf_of(v: &Value) -> Option<Vec<u8>> {
    let text = |f: &str| v[f].as_str().unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", if api_version.is_empty() { "v1" } else { api_version }));
    // The fields of tables have no numbers.
    if kind == "Table" {
        return None;
    }
    let schema = k8s_schema::Schema::builtin();
    let mut doc = Doc::from_value(&schema, schema.kind(group, version, kind)?, v).ok()?.doc;
    doc.set_type_meta(api_version, kind);
    Some(doc.to_protobuf())
}

/// Any JSON value in the encoding asked for. JSON stands in for protobuf where there is none.
pub fn encode_value(code: u16, v: &Value, wanted: Wanted) -> Answer {
    if wanted.media == Media::Protobuf
        && let Some(bytes) = protobuf_of(v)
    {
        return answer(code, Media::Protobuf.content_type(), Body::Full(bytes.into()));
    }
    match wanted.media {
        Media::Yaml => {
            let text = serde_yaml::to_string(&sorted(v)).unwrap_or_default();
            answer(code, Media::Yaml.content_type(), Body::Full(text.into()))
        }
        Media::Json | Media::Protobuf => {
            let bytes = if wanted.pretty { serde_json::to_vec_pretty(v) } else { serde_json::to_vec(v) };
            let mut bytes = bytes.unwrap_or_default();
            bytes.push(b'\n');
            answer(code, Media::Json.content_type(), Body::Full(bytes.into()))
        }
    }
}

/// YAML has its keys sorted, as upstream's.
fn sorted(v: &Value) -> Value {
    match v {
        Value::Object(m) => {
            let mut keys: Vec<&String> = m.keys().collect();
            keys.sort();
            Value::Object(keys.into_iter().map(|k| (k.clone(), sorted(&m[k]))).collect())
        }
        Value::Array(a) => Value::Array(a.iter().map(sorted).collect()),
        v => v.clone(),
    }
}

/// An object in the encoding and shape asked for.
pub fn encode_doc(ctx: &Ctx, code: u16, res: &Resource, doc: &Doc, wanted: Wanted) -> Answer {
    match (wanted.shape, wanted.media) {
        (As::Object | As::Discovery, Media::Protobuf) => answer(code, Media::Protobuf.content_type(), Body::Full(doc.to_protobuf().into())),
        (As::Object | As::Discovery, Media::Json) if !wanted.pretty => answer(code, Media::Json.content_type(), Body::Full(json_line(doc))),
        (As::Object | As::Discovery, _) => encode_value(code, &doc.to_value(), wanted),
        (As::Table, _) => {
            // What was done is done; only the answer is another.
            let include = match table::Include::parse(ctx.query.get("includeObject")) {
                Ok(include) => include,
                Err(e) => return crate::http::chain::error_answer(&e, &ctx.headers),
            };
            let table = table::of_objects(res, std::slice::from_ref(doc), include, &table::list_meta(doc));
            encode_value(code, &table::versioned(table, wanted), wanted)
        }
        (As::PartialMetadata, _) => encode_value(code, &table::partial(doc), wanted),
        (As::PartialMetadataList, _) => encode_value(code, &table::partial(doc), wanted),
    }
}

/// A stored object as a document in the version `res` serves, with its resourceVersion.
pub fn load(server: &Server, res: &Resource, stored: &Stored) -> Result<Doc, ApiError> {
    let doc = crate::objects::decode(&server.objects.schema, &stored.body).map_err(ApiError::internal)?;
    if let Some(custom) = &res.custom {
        let mut doc = if stored.shown { doc } else { custom.read(&doc)? };
        doc.set("metadata.resourceVersion", stored.rev.to_string()).map_err(ApiError::internal)?;
        return Ok(doc);
    }
    let mut doc = crate::kinds::convert::to_version(&server.objects.schema, doc, res).map_err(ApiError::internal)?;
    // Objects of older versions, and what the protobuf form leaves out, get their defaults when they are read.
    crate::kinds::defaults::apply(res, &mut doc);
    doc.set("metadata.resourceVersion", stored.rev.to_string()).map_err(ApiError::internal)?;
    Ok(doc)
}

/// As [`load`], after asking the definition's webhook where only that can convert.
pub async fn load_shown(server: &Server, res: &Resource, stored: &Arc<Stored>) -> Result<Doc, ApiError> {
    load(server, res, &*conversion::one(server, res, stored).await?)
}

/// A stored object in an encoding, shared when it is in its storage version.
fn encoded(
    server: &Server,
    res: &Resource,
    stored: &Arc<Stored>,
    encoding: Encoding,
    encode: impl FnOnce(&Doc) -> Bytes,
) -> Result<Bytes, ApiError> {
    let make = || load(server, res, stored).map(|d| encode(&d));
    // What is kept must be what the definition says now: a request that began under a former one keeps nothing.
    let current =
        || res.custom.is_none() || server.registry.resource(&res.group, &res.version, &res.plural).is_some_and(|r| std::ptr::eq(&*r, res));
    if res.is_storage_version() && current() { server.encoded.get(stored, encoding, make) } else { make() }
}

/// The JSON of a stored object with a newline.
pub fn json_line_of(server: &Server, res: &Resource, stored: &Arc<Stored>) -> Result<Bytes, ApiError> {
    encoded(server, res, stored, Encoding::Json, json_line)
}

/// A stored object in protobuf, in upstream's envelope.
pub fn enveloped(server: &Server, res: &Resource, stored: &Arc<Stored>) -> Result<Bytes, ApiError> {
    encoded(server, res, stored, Encoding::Protobuf, |doc| {
        let mut bytes = doc.to_protobuf();
        bytes.shrink_to_fit();
        bytes.into()
    })
}

/// As [`json_line_of`], without the newline.
pub fn json_of(server: &Server, res: &Resource, stored: &Arc<Stored>) -> Result<Bytes, ApiError> {
    let line = json_line_of(server, res, stored)?;
    Ok(line.slice(..line.len() - 1))
}

fn json_line(doc: &Doc) -> Bytes {
    let mut bytes = doc.to_json();
    bytes.push(b'\n');
    // It may be kept.
    bytes.shrink_to_fit();
    bytes.into()
}

/// The answer to a write that stored `doc`. Readers and watchers will ask for the same JSON, so it is kept for them.
pub fn encode_written(ctx: &Ctx, code: u16, res: &Resource, doc: &Doc, wanted: Wanted) -> Answer {
    if wanted != Wanted::JSON || res.custom.is_some() || !res.is_storage_version() || res.type_id != Some(doc.type_id()) {
        return encode_doc(ctx, code, res, doc, wanted);
    }
    let line = json_line(doc);
    // A dry run wrote nothing, and what went with its last finalizer is not there any more.
    if let Some(rev) = ctx.wrote.get() {
        let key = res.key(&ctx.info.namespace, doc.at("metadata.name").str());
        ctx.server.encoded.written(key, *rev, line.clone());
    }
    answer(code, Media::Json.content_type(), Body::Full(line))
}
/// Sends a request to its handler.
pub async fn dispatch(mut ctx: Ctx, body: Incoming, extensions: Extensions) -> Result<Answer, ApiError> {
    let mut custom = false;
    if ctx.info.is_resource && ctx.server.registry.dynamic().resource(&ctx.info.group, &ctx.info.version, &ctx.info.resource).is_some() {
        negotiate::without_protobuf(&mut ctx.headers);
        custom = true;
    }
    let ctx = Arc::new(ctx);
    // Their OpenAPI documents are their own, too.
    let document = ctx.info.path.strip_prefix("/openapi/v3");
    let made = |r: &aggregation::Remote| {
        // But for those that are made here.
        document.is_some() && ctx.server.aggregator.described(&r.key()).is_some_and(|d| d.v3.is_empty() && d.v2.is_some())
    };
    let remote = ctx.server.aggregator.route(document.unwrap_or(&ctx.info.path)).filter(|r| !made(r));
    if let Some(remote) = remote {
        return Box::pin(aggregation::proxy::serve(&ctx, &remote, body, extensions)).await;
    }
    let result = route(&ctx, body, extensions).await;
    // No router stands in front of these that would refuse in words of its own.
    let result = result.map_err(|e| if custom && e.code == 406 { negotiate::refusal() } else { e });
    match result {
        Ok(a) => Ok(ctx.finish(a)),
        Err(e) => Ok(ctx.finish(crate::http::chain::error_answer(&e, &ctx.headers))),
    }
}

/// Every verb in a place of its own, so that a short one is not as large as the largest.
async fn route(ctx: &Arc<Ctx>, incoming: Incoming, extensions: Extensions) -> Result<Answer, ApiError> {
    let info = &ctx.info;
    if !info.is_resource {
        return non_resource(ctx).await;
    }
    let Some(res) = ctx.server.registry.resource(&info.group, &info.version, &info.resource) else {
        let known = info.group.is_empty() && info.version == "v1"
            || ctx.server.registry.builtin_groups().iter().any(|(g, v)| *g == info.group && v.contains(&info.version));
        return if known { Err(ApiError::no_resource()) } else { Ok(body::text(404, "404 page not found\n")) };
    };
    if res.group.is_empty() && res.plural == "endpoints" {
        ctx.warn("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice");
        ctx.server.metrics.deprecated("", "v1", "endpoints", &info.subresource);
    }
    if let Some(custom) = &res.custom {
        // Without the path to it, a custom resource is as if it were not there.
        let anywhere = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
        if (res.namespaced && info.namespace.is_empty() && !anywhere) || (!res.namespaced && !info.namespace.is_empty()) {
            return Ok(body::text(404, "404 page not found\n"));
        }
        if let Some(w) = custom.deprecation().filter(|_| info.verb != "watch") {
            ctx.warn(w);
        }
        if !info.subresource.is_empty() && res.subresource(&info.subresource).is_none() {
            return Err(ApiError::not_found(Group(&res.group, &res.plural), &info.name));
        }
        if custom.definition.terminating && info.verb == "create" {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(ApiError::new(405, "MethodNotAllowed", why));
        }
    }
    if res.namespaced == info.namespace.is_empty() && res.plural != "namespaces" && !info.name.is_empty() && info.parts > 1 {
        return Err(ApiError::no_resource());
    }
    if !info.subresource.is_empty() {
        if res.subresource(&info.subresource).is_none() {
            return Err(ApiError::no_resource());
        }
        return Box::pin(subresources::dispatch(ctx, &res, incoming, extensions)).await;
    }
    if res.prefix.is_empty() {
        return Box::pin(reviews::dispatch(ctx, &res, incoming)).await;
    }
    let all_namespaces = res.namespaced && info.namespace.is_empty();
    match info.verb.as_str() {
        "get" => read::get(ctx, &res).await,
        "list" => Box::pin(read::list(ctx, &res)).await,
        "watch" => Box::pin(watch::watch(ctx, &res)).await,
        "create" if info.parts == 1 && !all_namespaces => {
            let body = ctx.body(incoming).await?;
            Box::pin(write::create(ctx, &res, body)).await
        }
        "update" if !info.name.is_empty() => {
            let body = ctx.body(incoming).await?;
            Box::pin(write::update(ctx, &res, body)).await
        }
        "patch" if !info.name.is_empty() => {
            let body = ctx.body(incoming).await?;
            Box::pin(patch::patch(ctx, &res, body)).await
        }
        "delete" if !info.name.is_empty() => {
            let body = ctx.body(incoming).await?;
            Box::pin(delete::delete(ctx, &res, body)).await
        }
        "deletecollection" if !all_namespaces && res.has_verb("deletecollection") => {
            let body = ctx.body(incoming).await?;
            Box::pin(delete::collection(ctx, &res, body)).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn non_resource(ctx: &Arc<Ctx>) -> Result<Answer, ApiError> {
    let path = ctx.info.path.as_str();
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    match first {
        "" => discovery::root(ctx),
        "api" | "apis" => discovery::dispatch(ctx),
        "openapi" => openapi::dispatch(ctx),
        "healthz" | "livez" | "readyz" => health::health(ctx).await,
        "version" => discovery::version(ctx),
        "metrics" if path == "/metrics" => Ok(health::metrics(ctx).await),
        "metrics" if path == "/metrics/slis" => Ok(health::slis(ctx)),
        "statusz" if path == "/statusz" => zpages::statusz(ctx),
        "flagz" if path == "/flagz" => zpages::flagz(ctx),
        ".well-known" | "openid" => discovery::openid(ctx),
        _ => Ok(body::text(404, "404 page not found\n")),
    }
}
