//! Requests as values: built purely here, sent by [`crate::Client`].

use std::fmt::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::client::FullObject;
use crate::resource::Resource;

/// HTTP methods the API uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    pub(crate) fn http(self) -> http::Method {
        match self {
            Self::Get => http::Method::GET,
            Self::Post => http::Method::POST,
            Self::Put => http::Method::PUT,
            Self::Patch => http::Method::PATCH,
            Self::Delete => http::Method::DELETE,
        }
    }
}

/// One request. Two requests that would do the same compare equal.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// Percent-encoded, without query.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub content_type: Option<&'static str>,
    pub accept: &'static str,
    pub body: Bytes,
    /// How long the whole exchange may take; for a watch, the time to the first byte of the answer.
    pub timeout: Duration,
}

const JSON: &str = "application/json";
const PARTIAL: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const PARTIAL_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The kinds of patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    /// Server-side apply: needs a field manager.
    Apply,
}

/// A patch and its encoding.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    kind: PatchKind,
    body: Bytes,
    query: Vec<(String, String)>,
}

fn encode(body: &impl Serialize) -> Bytes {
    // Values serialized here are structs and maps with string keys, for which serde_json cannot fail.
    Bytes::from(serde_json::to_vec(body).expect("a body with string keys always encodes"))
}

impl Patch {
    /// RFC 6902.
    pub fn json(operations: &impl Serialize) -> Self {
        Self { kind: PatchKind::Json, body: encode(operations), query: Vec::new() }
    }

    /// RFC 7386.
    pub fn merge(body: &impl Serialize) -> Self {
        Self { kind: PatchKind::Merge, body: encode(body), query: Vec::new() }
    }

    /// Strategic merge; built-in kinds only.
    pub fn strategic(body: &impl Serialize) -> Self {
        Self { kind: PatchKind::Strategic, body: encode(body), query: Vec::new() }
    }

    /// Server-side apply on behalf of `manager`.
    pub fn apply(body: &impl Serialize, manager: &str, force: bool) -> Self {
        let query = vec![("fieldManager".into(), manager.into()), ("force".into(), force.to_string())];
        Self { kind: PatchKind::Apply, body: encode(body), query }
    }
}

/// Parameters of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    /// Objects per page; 0 is no limit.
    pub limit: u32,
    pub continue_token: String,
    pub resource_version: String,
    pub metadata_only: bool,
}

/// Parameters of a watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: String,
    pub timeout_seconds: u32,
    pub metadata_only: bool,
}

/// What happens to dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// Parameters of a delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub propagation: Option<Propagation>,
    pub grace_period_seconds: Option<i64>,
    /// Fails with a conflict when the object has another uid.
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Deletes only the object with this uid.
    pub fn uid(uid: &str) -> Self {
        Self { uid: Some(uid.to_string()), ..Self::default() }
    }

    fn body(&self) -> Bytes {
        let mut body = serde_json::json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(propagation) = self.propagation {
            body["propagationPolicy"] = format!("{propagation:?}").into();
        }
        if let Some(seconds) = self.grace_period_seconds {
            body["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(uid) = &self.uid {
            body["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(version) = &self.resource_version {
            body["preconditions"]["resourceVersion"] = version.as_str().into();
        }
        encode(&body)
    }
}

impl Request {
    /// A GET of any path, for example `/version`.
    pub fn raw(method: Method, path: &str) -> Self {
        Self {
            method,
            path: path.to_string(),
            query: Vec::new(),
            content_type: None,
            accept: JSON,
            body: Bytes::new(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    fn on(method: Method, resource: &Resource, namespace: &str, name: Option<&str>) -> Self {
        let mut path = resource.base_path();
        if resource.namespaced && !namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(&encode_segment(namespace));
        }
        path.push('/');
        path.push_str(&resource.plural);
        if let Some(name) = name {
            path.push('/');
            path.push_str(&encode_segment(name));
        }
        Self::raw(method, &path)
    }

    /// Reads one object. The namespace of a cluster-scoped resource is ignored, here and below.
    pub fn get(resource: &Resource, namespace: &str, name: &str) -> Self {
        Self::on(Method::Get, resource, namespace, Some(name))
    }

    /// Reads one object for its metadata.
    pub fn get_metadata(resource: &Resource, namespace: &str, name: &str) -> Self {
        Self { accept: PARTIAL, ..Self::get(resource, namespace, name) }
    }

    /// Lists a namespace, or all namespaces when it is empty.
    pub fn list(resource: &Resource, namespace: &str, options: &ListOptions) -> Self {
        let mut request = Self::on(Method::Get, resource, namespace, None);
        request.accept = if options.metadata_only { PARTIAL_LIST } else { JSON };
        request.push("labelSelector", &options.label_selector);
        request.push("fieldSelector", &options.field_selector);
        if options.limit > 0 {
            request.push("limit", &options.limit.to_string());
        }
        request.push("continue", &options.continue_token);
        request.push("resourceVersion", &options.resource_version);
        request
    }

    /// Watches a namespace, or all namespaces when it is empty.
    pub fn watch(resource: &Resource, namespace: &str, options: &WatchOptions) -> Self {
        let mut request = Self::on(Method::Get, resource, namespace, None);
        request.accept = if options.metadata_only { PARTIAL } else { JSON };
        request.push("watch", "true");
        request.push("allowWatchBookmarks", "true");
        request.push("labelSelector", &options.label_selector);
        request.push("fieldSelector", &options.field_selector);
        request.push("resourceVersion", &options.resource_version);
        if options.timeout_seconds > 0 {
            request.push("timeoutSeconds", &options.timeout_seconds.to_string());
        }
        request
    }

    /// Creates an object.
    pub fn create(resource: &Resource, namespace: &str, body: &impl Serialize) -> Self {
        let mut request = Self::on(Method::Post, resource, namespace, None);
        request.content_type = Some(JSON);
        request.body = encode(body);
        request
    }

    /// Posts to a subresource (`binding`, `token`, `eviction`).
    pub fn create_subresource(resource: &Resource, namespace: &str, name: &str, subresource: &str, body: &impl Serialize) -> Self {
        let mut request = Self::on(Method::Post, resource, namespace, Some(name)).subresource(subresource);
        request.content_type = Some(JSON);
        request.body = encode(body);
        request
    }

    /// Puts a whole object back. Only something read whole can be put.
    pub fn replace(resource: &Resource, object: &FullObject) -> Self {
        let meta = object.meta();
        let mut request = Self::on(Method::Put, resource, &meta.namespace, Some(&meta.name));
        request.content_type = Some(JSON);
        request.body = encode(object.value());
        request
    }

    /// Patches an object.
    pub fn patch(resource: &Resource, namespace: &str, name: &str, patch: &Patch) -> Self {
        let mut request = Self::on(Method::Patch, resource, namespace, Some(name));
        request.content_type = Some(match patch.kind {
            PatchKind::Json => "application/json-patch+json",
            PatchKind::Merge => "application/merge-patch+json",
            PatchKind::Strategic => "application/strategic-merge-patch+json",
            PatchKind::Apply => "application/apply-patch+yaml",
        });
        request.query.extend(patch.query.iter().cloned());
        request.body = patch.body.clone();
        request
    }

    /// Deletes an object.
    pub fn delete(resource: &Resource, namespace: &str, name: &str, options: &DeleteOptions) -> Self {
        let mut request = Self::on(Method::Delete, resource, namespace, Some(name));
        if *options != DeleteOptions::default() {
            request.content_type = Some(JSON);
            request.body = options.body();
        }
        request
    }

    /// Deletes all objects of a namespace that match.
    pub fn delete_collection(resource: &Resource, namespace: &str, list: &ListOptions, options: &DeleteOptions) -> Self {
        let mut request = Self { method: Method::Delete, accept: JSON, ..Self::list(resource, namespace, list) };
        if *options != DeleteOptions::default() {
            request.content_type = Some(JSON);
            request.body = options.body();
        }
        request
    }

    /// The same request on a subresource (`status`, `scale`, `approval`, `finalize`).
    #[must_use]
    pub fn subresource(mut self, name: &str) -> Self {
        self.path.push('/');
        self.path.push_str(name);
        self
    }

    /// The same request with one more query parameter.
    #[must_use]
    pub fn with_query(mut self, key: &str, value: &str) -> Self {
        self.query.push((key.to_string(), value.to_string()));
        self
    }

    /// The same request with another time limit.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn push(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.query.push((key.to_string(), value.to_string()));
        }
    }

    /// Path and query as they go on the wire.
    pub fn path_and_query(&self) -> String {
        let mut out = self.path.clone();
        for (index, (key, value)) in self.query.iter().enumerate() {
            out.push(if index == 0 { '?' } else { '&' });
            out.push_str(&encode_segment(key));
            out.push('=');
            out.push_str(&encode_segment(value));
        }
        out
    }
}

/// The verb and the path, for messages; never the body, which may hold secrets.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method.http(), self.path)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.method.http(), self.path_and_query(), String::from_utf8_lossy(&self.body))
    }
}

fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b':') {
            out.push(byte as char);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{CERTIFICATE_SIGNING_REQUESTS, DEPLOYMENTS, NODES, PODS};

    #[test]
    fn requests_have_the_apis_paths() {
        let list = ListOptions { label_selector: "a in (b,c)".into(), limit: 500, continue_token: "x+/=".into(), ..Default::default() };
        for (request, want) in [
            (Request::get(&PODS, "default", "a"), "GET /api/v1/namespaces/default/pods/a "),
            (Request::get(&NODES, "ignored", "n1"), "GET /api/v1/nodes/n1 "),
            (Request::list(&PODS, "", &list), "GET /api/v1/pods?labelSelector=a%20in%20%28b%2Cc%29&limit=500&continue=x%2B%2F%3D "),
            (
                Request::patch(&DEPLOYMENTS, "d", "web", &Patch::merge(&serde_json::json!({"a": 1}))).subresource("status"),
                "PATCH /apis/apps/v1/namespaces/d/deployments/web/status {\"a\":1}",
            ),
            (
                Request::get(&CERTIFICATE_SIGNING_REQUESTS, "", "../x"),
                "GET /apis/certificates.k8s.io/v1/certificatesigningrequests/..%2Fx ",
            ),
            (
                Request::delete(&PODS, "d", "a", &DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::uid("u") }),
                "DELETE /api/v1/namespaces/d/pods/a {\"apiVersion\":\"v1\",\"kind\":\"DeleteOptions\",\"propagationPolicy\":\"Background\",\"preconditions\":{\"uid\":\"u\"}}",
            ),
        ] {
            assert_eq!(format!("{request:?}"), want);
        }
    }
}
