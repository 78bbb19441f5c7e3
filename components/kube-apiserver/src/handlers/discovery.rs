//! Discovery: which groups, versions and resources there are, in the old form and the aggregated one; version; the issuer's documents.

use std::sync::Arc;

use http::{HeaderValue, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Ctx, encode_value};
use crate::{
    http::{Answer, ApiError, As, Body, Offers, Wanted, body},
    registry::Resource,
};

/// The version this server is compatible with.
pub const KUBERNETES: &str = "v1.36.2";

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

pub fn dispatch(ctx: &Arc<Ctx>) -> Result<Answer, ApiError> {
    let path = ctx.info.path.trim_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let registry = &ctx.server.registry;
    let whole = parts.len() == 1;
    let wanted = ctx.wanted(if whole { Offers::Discovery } else { Offers::Plain }, false)?;
    if ctx.method != http::Method::GET && ctx.method != http::Method::HEAD {
        return Err(ApiError::method_not_allowed());
    }
    let groups = ctx.server.aggregator.groups(registry.groups());
    let known = |g: &str| groups.iter().find(|(n, _)| n == g);
    match parts.as_slice() {
        ["api"] if wanted.shape == As::Discovery => aggregated(ctx, &[(String::new(), vec!["v1".to_owned()])], wanted),
        ["apis"] if wanted.shape == As::Discovery => aggregated(ctx, &groups, wanted),
        ["api"] => {
            let v = json!({"kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ctx.server.public_address}]});
            Ok(encode_value(200, &v, wanted))
        }
        ["api", "v1"] => Ok(encode_value(200, &resources(ctx, "", "v1"), wanted)),
        ["apis"] => {
            let groups: Vec<Value> = groups.iter().map(|(g, v)| api_group(g, v)).collect();
            Ok(encode_value(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}), wanted))
        }
        ["apis", g] => match known(g) {
            Some((g, v)) => {
                let mut group = api_group(g, v);
                group["kind"] = "APIGroup".into();
                group["apiVersion"] = "v1".into();
                Ok(encode_value(200, &group, wanted))
            }
            None => Ok(body::text(404, "404 page not found\n")),
        },
        ["apis", g, v] if known(g).is_some_and(|(_, versions)| versions.iter().any(|x| x == v)) => {
            Ok(encode_value(200, &resources(ctx, g, v), wanted))
        }
        // A version that a built-in group had once, or will have.
        ["apis", g, _] if registry.builtin_groups().iter().any(|(n, _)| n == g) => Err(ApiError::no_resource()),
        _ => Ok(body::text(404, "404 page not found\n")),
    }
}

fn api_group(group: &str, versions: &[String]) -> Value {
    let v: Vec<Value> = versions.iter().map(|v| json!({"groupVersion": group_version(group, v), "version": v})).collect();
    json!({"name": group, "versions": v, "preferredVersion": v.first()})
}

/// Stable as long as objects are stored in the same version.
fn storage_hash(r: &Resource) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let digest = Sha256::digest(format!("{}/{}/{}", r.storage_group, r.storage_version, r.kind));
    STANDARD.encode(&digest[..8])
}

fn resources(ctx: &Ctx, group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for r in ctx.server.registry.of_group_version(group, version) {
        let mut v = json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": r.verbs});
        if !r.short_names.is_empty() {
            v["shortNames"] = r.short_names.clone().into();
        }
        if !r.categories.is_empty() {
            v["categories"] = r.categories.clone().into();
        }
        if !r.prefix.is_empty() {
            v["storageVersionHash"] = storage_hash(&r).into();
        }
        list.push(v);
        for s in &r.subresources {
            let mut v = json!({"name": format!("{}/{}", r.plural, s.name), "singularName": "", "namespaced": r.namespaced, "kind": s.kind, "verbs": s.verbs});
            if !s.version.is_empty() {
                v["group"] = s.group.as_str().into();
                v["version"] = s.version.as_str().into();
            }
            list.push(v);
        }
    }
    let mut v = json!({"kind": "APIResourceList", "groupVersion": group_version(group, version), "resources": list});
    if !group.is_empty() {
        v["apiVersion"] = "v1".into();
    }
    v
}

fn aggregated(ctx: &Ctx, groups: &[(String, Vec<String>)], wanted: Wanted) -> Result<Answer, ApiError> {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let items: Vec<Value> = groups
        .iter()
        .map(|(g, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| {
                    if let Some(theirs) = ctx.server.aggregator.version_entry(g, v) {
                        return theirs;
                    }
                    let resources: Vec<Value> = ctx
                        .server
                        .registry
                        .of_group_version(g, v)
                        .iter()
                        .map(|r| {
                            let scope = if r.namespaced { "Namespaced" } else { "Cluster" };
                            let mut o = json!({"resource": r.plural, "responseKind": kind("", "", &r.kind), "scope": scope,
                                "singularResource": r.singular, "verbs": r.verbs});
                            if !r.short_names.is_empty() {
                                o["shortNames"] = r.short_names.clone().into();
                            }
                            if !r.categories.is_empty() {
                                o["categories"] = r.categories.clone().into();
                            }
                            let subs: Vec<Value> = r
                                .subresources
                                .iter()
                                .map(|s| json!({"subresource": s.name, "responseKind": kind(&s.group, &s.version, &s.kind), "verbs": s.verbs}))
                                .collect();
                            if !subs.is_empty() {
                                o["subresources"] = subs.into();
                            }
                            o
                        })
                        .collect();
                    json!({"version": v, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let meta = if g.is_empty() { json!({}) } else { json!({"name": g}) };
            json!({"metadata": meta, "versions": versions})
        })
        .collect();
    let v = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let etag: String = Sha256::digest(v.to_string()).iter().map(|b| format!("{b:02X}")).collect();
    let etag = HeaderValue::from_str(&format!("\"{etag}\"")).map_err(ApiError::internal)?;
    let mut a = if ctx.headers.get(header::IF_NONE_MATCH) == Some(&etag) {
        body::answer(304, "", Body::Full(bytes::Bytes::new()))
    } else {
        let mut a = encode_value(200, &v, wanted);
        a.headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"));
        a
    };
    a.headers_mut().insert(header::ETAG, etag);
    a.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(a)
}

pub fn version(ctx: &Ctx) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Json, false)?;
    let (major, minor) = KUBERNETES.trim_start_matches('v').split_once('.').unwrap_or(("1", "0"));
    let minor = minor.split('.').next().unwrap_or("0");
    let v = json!({
        "major": major, "minor": minor, "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": "35",
        "gitVersion": KUBERNETES, "gitCommit": "$Format:%H$", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "go1.26.6", "compiler": "gc", "platform": "linux/amd64",
    });
    Ok(encode_value(200, &v, Wanted { shape: As::Object, ..wanted }))
}

pub fn root(ctx: &Ctx) -> Result<Answer, ApiError> {
    let mut paths: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/.well-known/openid-configuration",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for (g, versions) in ctx.server.aggregator.groups(ctx.server.registry.groups()) {
        paths.push(format!("/apis/{g}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{g}/{v}")));
    }
    paths.sort();
    Ok(encode_value(200, &json!({"paths": paths}), Wanted::JSON))
}

pub fn openid(ctx: &Ctx) -> Result<Answer, ApiError> {
    let issuer = &ctx.server.tokens;
    match ctx.info.path.as_str() {
        "/.well-known/openid-configuration" => {
            let mut algs: Vec<&str> = issuer.keys.iter().map(|k| k.alg().name()).collect();
            algs.sort_unstable();
            algs.dedup();
            let own = || format!("https://{}/openid/v1/jwks", ctx.server.public_address);
            let jwks = ctx.server.jwks_uri.clone().unwrap_or_else(own);
            let v = json!({"issuer": issuer.issuers.first(), "jwks_uri": jwks,
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": algs});
            Ok(encode_value(200, &v, Wanted::JSON))
        }
        "/openid/v1/jwks" => {
            let accept = ctx.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
            if !accept.is_empty() && !accept.contains("application/jwk-set+json") && !accept.contains("*/*") {
                let mut e =
                    ApiError::new(406, "NotAcceptable", "406: Not Acceptable\n\nAvailable representations: application/jwk-set+json");
                e.details = Some(Box::default());
                return Err(e);
            }
            let keys: Vec<Value> = issuer.keys.iter().map(|k| k.to_jwk()).collect();
            let mut a = encode_value(200, &json!({"keys": keys}), Wanted::JSON);
            a.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
            Ok(a)
        }
        _ => Ok(body::text(404, "404 page not found\n")),
    }
}
