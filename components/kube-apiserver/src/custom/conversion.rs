//! From version to version of a custom resource: by the version's name, or by asking the definition's webhook.
//!
//! An object that only a webhook can convert is never converted in another way: pruning it by the schema of a version it was not
//! written for would lose what that version names differently. Objects are converted before they are encoded, so that everything
//! behind this (lists, watches, patches) sees them in the version it asked for.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use k8s_schema::{Doc, Ref, peek_type_meta};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Custom, review, to_doc};
use crate::{
    http::ApiError,
    kinds,
    registry::Resource,
    server::Server,
    storage::Stored,
    webhook::{ClientConfig, Webhooks},
};

/// A webhook has this long for one review.
const TIMEOUT: Duration = Duration::from_secs(30);
/// One review carries at most so many objects and, but for one object alone, so many bytes.
const BATCH: usize = 200;
const BATCH_BYTES: usize = 2 << 20;
/// Converted objects that a definition keeps, in bytes.
const KEPT: usize = 8 << 20;

/// How a definition's objects get from version to version.
#[derive(Debug)]
pub enum Conversion {
    /// Only the version's name changes.
    ByName,
    Webhook(Box<Hook>),
}

/// The webhook of a definition.
#[derive(Debug)]
pub struct Hook {
    client: ClientConfig,
    /// The version of the review that is spoken.
    review: &'static str,
    kept: Mutex<Kept>,
}

/// Which object as which version: the version's name, the key, the revision.
type Which = (String, Arc<str>, i64);

/// Converted objects, so that many readers of one cost one call; what came first goes first.
#[derive(Debug, Default)]
struct Kept {
    bodies: HashMap<Which, Bytes>,
    order: VecDeque<Which>,
    bytes: usize,
}

impl Kept {
    fn put(&mut self, which: Which, body: Bytes) {
        if body.len() > KEPT / 8 {
            return;
        }
        self.bytes += body.len();
        if let Some(before) = self.bodies.insert(which.clone(), body) {
            self.bytes -= before.len();
        } else {
            self.order.push_back(which);
        }
        while self.bytes > KEPT {
            let Some(old) = self.order.pop_front() else { break };
            self.bytes -= self.bodies.remove(&old).map_or(0, |b| b.len());
        }
    }
}

impl Conversion {
    pub fn of(conversion: Ref<'_>) -> Self {
        if conversion.get("strategy").str() != "Webhook" {
            return Self::ByName;
        }
        let webhook = conversion.get("webhook");
        // Validation demands one of the two.
        let known = |v: &str| ["v1", "v1beta1"].into_iter().find(|k| *k == v);
        let review = webhook.get("conversionReviewVersions").strings().find_map(known).unwrap_or("v1");
        Self::Webhook(Box::new(Hook { client: ClientConfig::of(webhook.get("clientConfig")), review, kept: Mutex::default() }))
    }

    fn hook(&self) -> Option<&Hook> {
        match self {
            Self::ByName => None,
            Self::Webhook(h) => Some(h),
        }
    }
}

/// Why an object could not be converted.
#[derive(Debug, thiserror::Error)]
#[error("conversion webhook for {from} {why}")]
pub struct ConversionError {
    /// The object's version and kind as upstream writes them: `group/version, Kind=Kind`.
    pub from: String,
    pub why: String,
}

impl ConversionError {
    pub fn new(api_version: &str, kind: &str, why: impl Into<String>) -> Self {
        Self { from: format!("{api_version}, Kind={kind}"), why: why.into() }
    }

    /// The webhook gave no answer that can be used.
    pub fn failed(doc: &Doc, why: impl std::fmt::Display) -> Self {
        Self::new(doc.api_version(), doc.kind(), format!("failed: {why}"))
    }
}

impl From<ConversionError> for ApiError {
    fn from(e: ConversionError) -> Self {
        Self::new(500, "", e.to_string())
    }
}

impl Hook {
    /// `objects`, all of one version, as `desired`.
    async fn convert(&self, webhooks: &Webhooks, objects: &[Value], desired: &str) -> Result<Vec<Value>, ConversionError> {
        let text = |f: &str| objects.first().and_then(|o| o[f].as_str()).unwrap_or("");
        let failed = |why: String| ConversionError::new(text("apiVersion"), text("kind"), why);
        let uid = uuid::Uuid::new_v4().to_string();
        let review_version = format!("apiextensions.k8s.io/{}", self.review);
        let body = json!({"kind": "ConversionReview", "apiVersion": review_version,
            "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects}});
        let answer = webhooks.call(&self.client, &body, TIMEOUT).await.map_err(|e| failed(format!("failed: {e}")))?;
        let converted = review::answer(answer, &review_version, &uid).map_err(|e| failed(format!("failed: {e}")))?;
        review::accept(objects, converted, desired).map_err(failed)
    }
}

fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or("")
}

/// Stored objects as `res` serves them, as far as a webhook is needed for that; the others stay as they are.
pub async fn shown(server: &Server, res: &Resource, mut items: Vec<Arc<Stored>>) -> Result<Vec<Arc<Stored>>, ConversionError> {
    let Some(custom) = &res.custom else { return Ok(items) };
    let Some(hook) = custom.definition.conversion.hook() else { return Ok(items) };
    let version = custom.version().name.as_str();
    // By the version they were written in, as a review has objects of one version.
    let mut waiting: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, item) in items.iter_mut().enumerate() {
        let Ok(meta) = peek_type_meta(&item.body) else { continue };
        if item.shown || version_of(&meta.api_version) == version {
            continue;
        }
        match hook.kept.lock().bodies.get(&(version.to_owned(), Arc::clone(&item.key), item.rev)) {
            Some(body) => *item = Arc::new(item.shown_as(body.clone())),
            None => waiting.entry(meta.api_version).or_default().push(i),
        }
    }
    for indices in waiting.into_values() {
        let mut rest = indices.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(BATCH).take_while(|i| {
                bytes += items[**i].body.len();
                bytes <= BATCH_BYTES
            });
            let (batch, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let originals: Vec<Value> =
                batch.iter().filter_map(|i| server.objects.doc(&items[*i])).map(|d| custom.as_written(&d)).collect();
            if originals.len() != batch.len() {
                return Err(ConversionError::new(version, &custom.definition.kind, "failed: an object in etcd cannot be decoded"));
            }
            let converted = hook.convert(&server.webhooks, &originals, &custom.api_version()).await?;
            for (i, v) in batch.iter().zip(converted) {
                let mut v = custom.pruned(v);
                if let Some(m) = v["metadata"].as_object_mut() {
                    m.remove("resourceVersion");
                }
                let body = Bytes::from(v.to_string());
                let item = &mut items[*i];
                hook.kept.lock().put((version.to_owned(), Arc::clone(&item.key), item.rev), body.clone());
                *item = Arc::new(item.shown_as(body));
            }
        }
    }
    Ok(items)
}

pub async fn one(server: &Server, res: &Resource, item: &Arc<Stored>) -> Result<Arc<Stored>, ConversionError> {
    let shown = shown(server, res, vec![Arc::clone(item)]).await?;
    Ok(shown.into_iter().next().unwrap_or_else(|| Arc::clone(item)))
}

/// The object as it goes to etcd.
pub async fn for_storage(server: &Server, custom: &Custom, doc: &Doc) -> Result<Doc, ConversionError> {
    let stored = custom.in_storage_version();
    match custom.definition.conversion.hook() {
        Some(hook) if stored.version().name != custom.version().name => {
            let converted = hook.convert(&server.webhooks, &[doc.to_value()], &stored.api_version()).await?;
            Ok(converted.into_iter().next().map_or_else(|| doc.clone(), |v| to_doc(&stored.pruned(v))))
        }
        _ => custom.to_storage(doc),
    }
}

/// What a client sees of an object it wrote, which goes to etcd as `stored`: what storing and reading it leave.
pub async fn settle(server: &Server, custom: &Custom, doc: &mut Doc, stored: &Doc) -> Result<(), ConversionError> {
    if custom.definition.storage().name == custom.version().name {
        return Ok(());
    }
    let revision = doc.at("metadata.resourceVersion").to_value();
    *doc = match custom.definition.conversion.hook() {
        Some(hook) => {
            let converted = hook.convert(&server.webhooks, &[custom.as_written(stored)], &custom.api_version()).await?;
            converted.into_iter().next().map_or_else(|| doc.clone(), |v| to_doc(&custom.pruned(v)))
        }
        None => custom.read(stored)?,
    };
    // The field is a string in every object.
    let _ = doc.set("metadata.resourceVersion", revision);
    Ok(())
}

/// An object of `from` as `to`, which is another version of the same resource.
pub async fn between(server: &Server, from: &Resource, to: &Resource, doc: &Doc) -> Result<Doc, ApiError> {
    match (&from.custom, &to.custom) {
        (Some(_), Some(target)) => match target.definition.conversion.hook() {
            Some(hook) => {
                let converted = hook.convert(&server.webhooks, &[doc.to_value()], &target.api_version()).await?;
                Ok(converted.into_iter().next().map_or_else(|| doc.clone(), |v| to_doc(&target.pruned(v))))
            }
            None => {
                let mut v = target.pruned(doc.to_value());
                v["apiVersion"] = target.api_version().into();
                Ok(to_doc(&v))
            }
        },
        _ => {
            let schema = &server.objects.schema;
            let stored = kinds::convert::to_storage(schema, doc.clone(), from).map_err(ApiError::internal)?;
            let mut doc = kinds::convert::to_version(schema, stored, to).map_err(ApiError::internal)?;
            kinds::defaults::apply(to, &mut doc);
            Ok(doc)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = Kept::default();
        let which = |n: i64| ("v1".to_owned(), Arc::from("ns/a"), n);
        for n in 0..100 {
            kept.put(which(n), Bytes::from(vec![b'x'; KEPT / 10]));
            kept.put(which(n), Bytes::from(vec![b'x'; KEPT / 10]));
        }
        assert_eq!((kept.bodies.len(), kept.order.len()), (10, 10));
        assert!(kept.bodies.contains_key(&which(99)) && !kept.bodies.contains_key(&which(89)));
        kept.put(which(100), Bytes::from(vec![b'x'; KEPT]));
        assert!(!kept.bodies.contains_key(&which(100)), "one object does not drive out all others");
    }
}
