//! What extension servers serve, as they say it themselves, in the form of the aggregated discovery document.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::header;
use serde_json::{Map, Value, json};

use super::{Aggregator, GroupVersion, Remote, availability::aggregator_user, connect, openapi, openapi_v3};
use crate::server::Server;

/// A description is at most this long.
const LIMIT: usize = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                      application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// What an extension server said of one group and version.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Described {
    /// The `resources` of its version in aggregated discovery.
    pub resources: Vec<Value>,
    /// What it adds to the OpenAPI v2 document: `paths` and `definitions`.
    pub v2: Option<Value>,
    /// Its OpenAPI v3 documents: path, and where it is served with its hash.
    pub v3: Vec<(String, String)>,
}

/// A request to one extension server, answered as a whole.
pub(super) struct Asker<'a> {
    pub remote: &'a Remote,
    pub to: connect::Address,
}

impl Asker<'_> {
    /// The body and its content type; none: there is no such document.
    pub async fn get(&self, path: &str, accept: &str) -> Result<Option<(Bytes, String)>, String> {
        let headers = [(header::ACCEPT, accept)];
        let f = connect::fetch(self.remote, &self.to, path, &headers, &aggregator_user(), (LIMIT, TIMEOUT)).await?;
        let content = f.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        match f.status {
            200 => Ok(Some((f.body, content))),
            404 | 406 => Ok(None),
            code => Err(format!("{path}: status {code}")),
        }
    }

    pub async fn json(&self, path: &str, accept: &str) -> Result<Option<(Value, String)>, String> {
        match self.get(path, accept).await? {
            Some((body, content)) => {
                let v = serde_json::from_slice(&body).map_err(|e| format!("{path}: {e}"))?;
                Ok(Some((v, content)))
            }
            None => Ok(None),
        }
    }
}

/// The resources of a version in an aggregated discovery document.
fn resources_of(list: &Value, (group, version): &GroupVersion) -> Option<Vec<Value>> {
    let items = list["items"].as_array()?;
    let group = items.iter().find(|g| g["metadata"]["name"] == group.as_str())?;
    let version = group["versions"].as_array()?.iter().find(|v| v["version"] == version.as_str())?;
    Some(version["resources"].as_array().cloned().unwrap_or_default())
}

/// The older form of the same: an `APIResourceList`.
fn converted(list: &Value, (group, version): &GroupVersion) -> Vec<Value> {
    let text = |v: &Value, f: &str| v[f].as_str().unwrap_or("").to_owned();
    let kind = |r: &Value| {
        let or = |f: &str, d: &str| Some(text(r, f)).filter(|s| !s.is_empty()).unwrap_or_else(|| d.to_owned());
        json!({"group": or("group", group), "version": or("version", version), "kind": text(r, "kind")})
    };
    let mut out: Vec<(String, Map<String, Value>)> = Vec::new();
    let all = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    for r in all.iter().filter(|r| !text(r, "name").contains('/')) {
        let scope = if r["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut o = Map::new();
        o.insert("resource".into(), text(r, "name").into());
        o.insert("responseKind".into(), kind(r));
        o.insert("scope".into(), scope.into());
        o.insert("singularResource".into(), text(r, "singularName").into());
        for f in ["verbs", "shortNames", "categories"] {
            if r[f].is_array() {
                o.insert(f.into(), r[f].clone());
            }
        }
        out.push((text(r, "name"), o));
    }
    for r in all {
        let name = text(r, "name");
        let Some((parent, sub)) = name.split_once('/') else { continue };
        let entry = json!({"subresource": sub, "responseKind": kind(r), "verbs": r["verbs"]});
        if let Some((_, o)) = out.iter_mut().find(|(n, _)| n == parent)
            && let Value::Array(subs) = o.entry("subresources").or_insert_with(|| json!([]))
        {
            subs.push(entry);
        }
    }
    out.into_iter().map(|(_, o)| Value::Object(o)).collect()
}

async fn resources(asker: &Asker<'_>) -> Result<Vec<Value>, String> {
    let key = asker.remote.key();
    if let Some((list, content)) = asker.json("/apis", ACCEPT).await?
        && content.contains("as=APIGroupDiscoveryList")
        && let Some(found) = resources_of(&list, &key)
    {
        return Ok(found);
    }
    match asker.json(&asker.remote.path(), "application/json").await? {
        Some((list, _)) => Ok(converted(&list, &key)),
        None => Err("it serves no such group and version".into()),
    }
}

/// Asks a server what it serves and keeps the answer. What was known before stays when it does not say.
pub(super) async fn describe(server: &Server, remote: &Arc<Remote>) {
    let aggregator = &server.aggregator;
    let failed = |what: &str, why: String| tracing::warn!(group = remote.group, version = remote.version, what, why, "not described");
    let to = match connect::resolve(&server.objects, &remote.spec, aggregator.routing) {
        Ok(to) => to,
        Err(e) => return failed("address", e),
    };
    let asker = Asker { remote, to };
    let mut new = aggregator.described(&remote.key()).map(|d| (*d).clone()).unwrap_or_default();
    match resources(&asker).await {
        Ok(r) => new.resources = r,
        Err(e) => failed("resources", e),
    }
    match openapi::v2(&asker).await {
        Ok(v) => new.v2 = v,
        Err(e) => failed("OpenAPI v2", e),
    }
    match openapi::v3(&asker).await {
        Ok(v) => new.v3 = v,
        Err(e) => failed("OpenAPI v3", e),
    }
    aggregator.keep(remote.key(), new);
}

impl Described {
    /// The document of version 3 that this server makes of theirs of version 2, when they have none of their own.
    pub fn made_v3(&self, title: &str) -> Option<Value> {
        if self.v3.is_empty() { Some(openapi_v3::of_v2(self.v2.as_ref()?, title)) } else { None }
    }
}

impl Aggregator {
    /// What is known of a group and version.
    pub fn described(&self, key: &GroupVersion) -> Option<Arc<Described>> {
        self.described.lock().get(key).cloned()
    }

    fn keep(&self, key: GroupVersion, new: Described) {
        let mut all = self.described.lock();
        if all.get(&key).is_some_and(|old| **old == new) {
            return;
        }
        all.insert(key, Arc::new(new));
        drop(all);
        self.changed();
    }

    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes whenever anything that is described does.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A version of an extension server in the aggregated discovery document; none: it is none of theirs.
    pub fn version_entry(&self, group: &str, version: &str) -> Option<Value> {
        let key = (group.to_owned(), version.to_owned());
        let remote = self.services.load().remotes.get(&key).cloned()?;
        let described = self.described(&key);
        let fresh = if remote.available() && described.is_some() { "Current" } else { "Stale" };
        let resources = described.map(|d| d.resources.clone()).unwrap_or_default();
        Some(json!({"version": version, "resources": resources, "freshness": fresh}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_says_the_same() {
        let key = ("wardle.example.com".to_owned(), "v1".to_owned());
        let old = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"], "shortNames": ["fl"]},
            {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders/scale", "singularName": "", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"]},
        ]});
        let kind = |g: &str, k: &str| json!({"group": g, "version": "v1", "kind": k});
        let resource = json!({"resource": "flunders", "responseKind": kind("wardle.example.com", "Flunder"), "scope": "Namespaced",
            "singularResource": "flunder", "verbs": ["get", "list"], "shortNames": ["fl"], "subresources": [
                {"subresource": "status", "responseKind": kind("wardle.example.com", "Flunder"), "verbs": ["get"]},
                {"subresource": "scale", "responseKind": kind("autoscaling", "Scale"), "verbs": ["get"]}]});
        assert_eq!(converted(&old, &key), std::slice::from_ref(&resource));
        let list = json!({"items": [{"metadata": {"name": "other"}, "versions": []},
            {"metadata": {"name": "wardle.example.com"}, "versions": [{"version": "v1", "resources": [resource]}]}]});
        assert_eq!(resources_of(&list, &key).unwrap(), converted(&old, &key));
        assert_eq!(resources_of(&list, &("wardle.example.com".into(), "v2".into())), None);
    }
}
