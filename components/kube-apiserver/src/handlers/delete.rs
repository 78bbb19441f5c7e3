//! Delete and deletecollection: preconditions, finalizers, propagation, and the grace of pods.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_schema::{Doc, Schema, proto};
use serde_json::{Value, json};

use super::{Ctx, DeleteOptions, Propagation, decode, encode_doc, encode_value, load_shown, options::ListOptions, read, write};
use crate::{
    admission::{self, Attributes, Operation},
    http::{Answer, ApiError, Group, Media, Offers, negotiate},
    kinds::{self, Strategy},
    registry::Resource,
    storage::{StoreError, Stored},
};

const OPTIONS: &str = "DeleteOptions";
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const TRIES: usize = 16;

fn body_options(ctx: &Ctx, body: &Bytes) -> Result<Option<Value>, ApiError> {
    if body.is_empty() {
        return Ok(None);
    }
    let json = match negotiate::content(&ctx.headers)? {
        Media::Json => body.clone(),
        Media::Yaml => decode::yaml_to_json(body).map_err(ApiError::bad_request)?.json,
        Media::Protobuf => {
            return options_of_envelope(&ctx.server.objects.schema, body).map(Some);
        }
    };
    let v: Value = serde_json::from_slice(&json).map_err(|e| {
        let why = if e.is_eof() { "unexpected end of JSON input".to_owned() } else { e.to_string() };
        ApiError::bad_request(format!("couldn't get version/kind; json parse error: {why}"))
    })?;
    if v.is_array() {
        return Err(ApiError::bad_request(
            "couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \
             \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }",
        ));
    }
    if v["gracePeriodSeconds"].is_string() {
        let why = "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64";
        return Err(ApiError::bad_request(why));
    }
    for field in ["uid", "resourceVersion"] {
        let given = &v["preconditions"][field];
        if !given.is_null() && !given.is_string() {
            let name = if given.is_number() {
                "number"
            } else if given.is_boolean() {
                "bool"
            } else if given.is_array() {
                "array"
            } else {
                "object"
            };
            let ty = if field == "uid" { "types.UID" } else { "string" };
            return Err(ApiError::bad_request(format!(
                "json: cannot unmarshal {name} into Go struct field Preconditions.preconditions.{field} of type {ty}"
            )));
        }
    }
    let word = |field: &str| v[field].as_str().unwrap_or("");
    check_kind(word("apiVersion"), word("kind"))?;
    Ok(Some(v))
}

/// Options in protobuf. Every group has this kind in its versions, and it is the same in all of them.
fn options_of_envelope(schema: &Schema, body: &Bytes) -> Result<Value, ApiError> {
    let bad = |e: &dyn std::fmt::Display| ApiError::bad_request(e.to_string());
    let envelope = proto::open_envelope(body).map_err(|e| bad(&e))?;
    check_kind(&envelope.api_version, &envelope.kind)?;
    let ty = schema.kind_in("v1", OPTIONS).ok_or_else(|| ApiError::internal("the schema has no DeleteOptions"))?;
    Ok(Doc::from_protobuf_message(schema, ty, envelope.raw).map_err(|e| bad(&e))?.to_value())
}

fn check_kind(api_version: &str, kind: &str) -> Result<(), ApiError> {
    if kind.is_empty() || kind == OPTIONS {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "no kind {kind:?} is registered for version {api_version:?} in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
    )))
}

/// What came of a deletion.
enum Outcome {
    /// The object is gone; this is how it last was.
    Gone(Doc),
    /// It is marked and waits for its finalizers or its grace.
    Marked(Doc),
    Retry,
}

pub async fn delete(ctx: &Arc<Ctx>, res: &Arc<Resource>, body: Bytes) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, false)?;
    let options = DeleteOptions::parse(&ctx.query, body_options(ctx, &body)?)?;
    let name = ctx.info.name.clone();
    match delete_one(ctx, res, &name, &options).await? {
        Outcome::Gone(doc) if !kinds::strategy_of(res).returns_deleted => {
            let mut details = json!({"name": name, "kind": res.plural, "uid": doc.at("metadata.uid").str()});
            if !res.group.is_empty() {
                details["group"] = res.group.as_str().into();
            }
            Ok(encode_value(
                200,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
                wanted,
            ))
        }
        Outcome::Gone(doc) | Outcome::Marked(doc) => Ok(encode_doc(ctx, 200, res, &doc, wanted)),
        Outcome::Retry => Err(ApiError::modified(Group(&res.group, &res.plural), &name)),
    }
}

async fn delete_one(ctx: &Ctx, res: &Resource, name: &str, options: &DeleteOptions) -> Result<Outcome, ApiError> {
    let mut fresh = false;
    for _ in 0..TRIES {
        let stored = write::current(ctx, res, name, fresh).await?;
        match attempt(ctx, res, &stored, options).await {
            Ok(Outcome::Retry) => fresh = true,
            Err(e) if !fresh && e.code == 409 => fresh = true,
            r => return r,
        }
    }
    Ok(Outcome::Retry)
}

/// The finalizers after a deletion with these options was asked for.
fn finalizers(doc: &Doc, strategy: &Strategy, o: &DeleteOptions) -> Vec<String> {
    let mut list: Vec<String> = doc.at("metadata.finalizers").iter().map(|f| f.str().to_owned()).collect();
    let had = |f: &str| list.iter().any(|x| x == f);
    let (orphan, foreground) = match (o.orphan, o.propagation) {
        (Some(orphan), _) => (orphan, false),
        (None, Some(Propagation::Orphan)) => (true, false),
        (None, Some(Propagation::Foreground)) => (false, true),
        (None, Some(Propagation::Background)) => (false, false),
        // What was decided by an earlier request holds.
        (None, None) if had(ORPHAN) || had(FOREGROUND) => (had(ORPHAN), had(FOREGROUND)),
        (None, None) => (strategy.orphans_by_default, false),
    };
    list.retain(|f| f != ORPHAN && f != FOREGROUND);
    if orphan {
        list.push(ORPHAN.into());
    }
    if foreground {
        list.push(FOREGROUND.into());
    }
    list
}

async fn attempt(ctx: &Ctx, res: &Resource, stored: &Arc<Stored>, o: &DeleteOptions) -> Result<Outcome, ApiError> {
    let strategy = kinds::strategy_of(res);
    let name = stored.name();
    let plural = Group(&res.group, &res.plural);
    let doc = load_shown(&ctx.server, res, stored).await?;
    let uid = doc.at("metadata.uid").str();
    if let Some(want) = o.uid.as_deref().filter(|u| *u != uid) {
        let why = format!(
            "the UID in the precondition ({want}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(Group(&res.group, &res.kind), name, why));
    }
    if let Some(want) = o.resource_version.as_deref().filter(|v| v.parse::<i64>() != Ok(stored.rev)) {
        let why = format!(
            "the ResourceVersion in the precondition ({want}) does not match the ResourceVersion in record ({}). The object might have been modified",
            stored.rev
        );
        return Err(ApiError::conflict(Group(&res.group, &res.kind), name, why));
    }
    let asked = Attributes { ctx, res, subresource: "", operation: Operation::Delete, dry_run: o.dry_run, delete: Some(o) };
    admission::delete(&asked, &doc).await?;
    if let Some(w) = strategy.delete_warning.filter(|_| o.propagation.is_none() && o.orphan.is_none()) {
        ctx.warn(w);
    }
    let deleting = doc.at("metadata.deletionTimestamp").exists();
    let old_grace = doc.at("metadata.deletionGracePeriodSeconds").as_i64();
    let grace = strategy.graceful.map(|g| g(&doc, o.grace));
    let kept = finalizers(&doc, strategy, o);
    let had: Vec<String> = doc.at("metadata.finalizers").iter().map(|f| f.str().to_owned()).collect();
    let mut new = doc.clone();
    if kept != had {
        if kept.is_empty() {
            new.remove("metadata.finalizers");
        } else {
            new.set("metadata.finalizers", Value::from(kept.clone())).map_err(ApiError::internal)?;
        }
    }
    let now = Timestamp::now().as_second();
    let mark = |new: &mut Doc, seconds: i64| -> Result<(), ApiError> {
        let at = Timestamp::from_second(now + seconds).unwrap_or(Timestamp::MAX).to_string();
        write::set(new, "metadata.deletionTimestamp", at)?;
        write::set(new, "metadata.deletionGracePeriodSeconds", seconds)?;
        if !deleting && new.at("metadata.generation").int() > 0 {
            let g = new.at("metadata.generation").int() + 1;
            write::set(new, "metadata.generation", g)?;
        }
        Ok(())
    };
    // A definition's objects go before it does.
    if res.prefix == crate::custom::PREFIX && !deleting {
        crate::custom::controller::mark_deleted(&mut new)?;
        return store(ctx, res, stored, new, &doc, o.dry_run).await.map(wrap_marked);
    }
    // A namespace goes through Terminating and is deleted by emptying its finalizers.
    if let Some(finish) = strategy.delete_instead
        && finish(&new)
    {
        if !deleting {
            mark(&mut new, 0)?;
            new.remove("metadata.deletionGracePeriodSeconds");
        }
        write::set(&mut new, "status.phase", "Terminating")?;
        return store(ctx, res, stored, new, &doc, o.dry_run).await.map(wrap_marked);
    }
    match grace {
        Some(seconds) if seconds > 0 => {
            if deleting && old_grace.is_some_and(|g| g <= seconds) {
                // Longer or equal grace changes nothing.
                return if kept == had {
                    Ok(Outcome::Marked(doc))
                } else {
                    store(ctx, res, stored, new, &doc, o.dry_run).await.map(wrap_marked)
                };
            }
            if deleting {
                let began = doc.at("metadata.deletionTimestamp").time_seconds().unwrap_or(now) - old_grace.unwrap_or(0);
                let at = Timestamp::from_second(began + seconds).unwrap_or(Timestamp::MAX).to_string();
                write::set(&mut new, "metadata.deletionTimestamp", at)?;
                write::set(&mut new, "metadata.deletionGracePeriodSeconds", seconds)?;
            } else {
                mark(&mut new, seconds)?;
            }
            store(ctx, res, stored, new, &doc, o.dry_run).await.map(wrap_marked)
        }
        _ => {
            if !kept.is_empty() {
                if !deleting || old_grace.is_none_or(|g| g > 0) {
                    mark(&mut new, 0)?;
                }
                return if kept == had && deleting && old_grace == Some(0) {
                    Ok(Outcome::Marked(doc))
                } else {
                    store(ctx, res, stored, new, &doc, o.dry_run).await.map(wrap_marked)
                };
            }
            // Pods show in their last event that they are deleted without grace.
            if grace.is_some() && (!deleting || old_grace.is_none_or(|g| g > 0)) {
                mark(&mut new, 0)?;
            }
            if o.dry_run {
                return Ok(Outcome::Gone(new));
            }
            match ctx.server.etcd.delete(&key_of(ctx, res, stored), stored.rev).await {
                Ok(_) => {
                    crate::services::released(ctx, res, &doc).await;
                    Ok(Outcome::Gone(new))
                }
                Err(StoreError::Changed { current: None, .. }) => Err(ApiError::not_found(plural, name)),
                Err(StoreError::Changed { .. }) => Ok(Outcome::Retry),
                Err(e) => Err(e.into()),
            }
        }
    }
}

fn wrap_marked(d: Option<Doc>) -> Outcome {
    d.map_or(Outcome::Retry, Outcome::Marked)
}

fn key_of(ctx: &Ctx, res: &Resource, stored: &Stored) -> String {
    format!("{}{}/{}", ctx.server.root, res.prefix, stored.key)
}

async fn store(ctx: &Ctx, res: &Resource, stored: &Stored, mut new: Doc, old: &Doc, dry_run: bool) -> Result<Option<Doc>, ApiError> {
    if dry_run || new.root().semantic_eq(old.root()) {
        return Ok(Some(new));
    }
    let value = write::encode(res, write::stored_form(&ctx.server, res, &new).await?);
    match ctx.server.etcd.update(&key_of(ctx, res, stored), stored.rev, value, 0).await {
        Ok(rev) => {
            write::set(&mut new, "metadata.resourceVersion", rev.to_string())?;
            Ok(Some(new))
        }
        Err(StoreError::Changed { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub async fn collection(ctx: &Arc<Ctx>, res: &Arc<Resource>, body: Bytes) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, false)?;
    let list = ListOptions::parse(&ctx.query, false, "")?;
    let options = DeleteOptions::parse(&ctx.query, body_options(ctx, &body)?)?;
    let selection = read::select(ctx, res, &list).await?;
    for item in &selection.items {
        match delete_one(ctx, res, item.name(), &options).await {
            Ok(_) => {}
            // Someone else deleted it, or replaced it: that one was not asked for.
            Err(e) if e.code == 404 || e.code == 409 => {}
            Err(e) => return Err(e),
        }
    }
    read::encode_list(ctx, res, selection, wanted).await
}

/// Deletes the pod of an eviction.
pub async fn evict(ctx: &Arc<Ctx>, res: &Arc<Resource>, options: &DeleteOptions) -> Result<(), ApiError> {
    match delete_one(ctx, res, &ctx.info.name, options).await? {
        Outcome::Gone(_) | Outcome::Marked(_) => Ok(()),
        Outcome::Retry => Err(ApiError::modified(Group(&res.group, &res.plural), &ctx.info.name)),
    }
}

/// Deletes an object for the server itself.
pub async fn delete_for_server(ctx: &Ctx, res: &Resource, name: &str) -> Result<(), ApiError> {
    delete_one(ctx, res, name, &DeleteOptions::parse(&ctx.query, None)?).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_protobuf_are_read_in_every_group() {
        let schema = Schema::builtin();
        let mut doc = Doc::new(&schema, schema.kind_in("v1", OPTIONS).unwrap());
        doc.set("propagationPolicy", "Orphan").unwrap();
        for (api_version, kind, works) in
            [("v1", OPTIONS, true), ("apps/v1", OPTIONS, true), ("example.com/v1", OPTIONS, true), ("", "", true), ("v1", "Pod", false)]
        {
            doc.set_type_meta(api_version, kind);
            let read = options_of_envelope(&schema, &doc.to_protobuf().into());
            assert_eq!(
                read.as_ref().ok().map(|v| v["propagationPolicy"].as_str()),
                works.then_some(Some("Orphan")),
                "{api_version} {kind}"
            );
        }
        assert_eq!(options_of_envelope(&schema, &Bytes::from_static(b"k8s\0\xff")).unwrap_err().code, 400);
        assert_eq!(options_of_envelope(&schema, &Bytes::from_static(b"{}")).unwrap_err().code, 400);
    }
}
