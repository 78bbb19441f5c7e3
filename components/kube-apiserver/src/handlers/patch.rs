//! The four kinds of patch.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use k8s_schema::{
    Doc,
    patch::{self, PatchError},
};

use serde_json::{Map, Value};

use super::{
    Ctx, Validation, WriteOptions,
    decode::{self, Expected},
    encode_written, write,
};
use crate::{
    custom::objects,
    http::{Answer, ApiError, Group, Offers},
    kinds::{self, meta},
    registry::Resource,
    validation::{ErrorList, FieldError},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

const ACCEPTED: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

pub fn kind_of(ctx: &Ctx) -> Result<PatchKind, ApiError> {
    let ct = ctx.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let media = ct.split(';').next().unwrap_or("").trim();
    Ok(match media {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" => PatchKind::Strategic,
        "application/apply-patch+yaml" => PatchKind::Apply,
        // The router refuses these, which knows content types only.
        _ => {
            let mut e = ApiError::new(415, "UnsupportedMediaType", "415: Unsupported Media Type");
            e.details = Some(Box::default());
            return Err(e);
        }
    })
}

pub async fn patch(ctx: &Arc<Ctx>, res: &Arc<Resource>, body: Bytes) -> Result<Answer, ApiError> {
    let kind = kind_of(ctx)?;
    if kind == PatchKind::Strategic && res.custom.is_some() {
        return Err(ApiError::unsupported_media_type("application/strategic-merge-patch+json", &[ACCEPTED[0], ACCEPTED[1], ACCEPTED[3]]));
    }
    let wanted = ctx.wanted(Offers::Objects, false)?;
    let options = WriteOptions::parse(&ctx.query, "PatchOptions", kind == PatchKind::Apply)?;
    let (code, doc) = if kind == PatchKind::Apply {
        apply(ctx, res, &body, &options).await?
    } else {
        (200, merge(ctx, res, kind, &body, &options).await?)
    };
    Ok(encode_written(ctx, code, res, &doc, wanted))
}

/// A patched document, or why there is none.
pub fn patched(ctx: &Ctx, old: &Doc, kind: PatchKind, body: &[u8], validation: Validation) -> Result<Doc, ApiError> {
    let validate = validation != Validation::Ignore;
    let patched = match kind {
        PatchKind::Json => patch::json_patch(old, body, validate),
        PatchKind::Merge => patch::merge_patch(old, body, validate),
        PatchKind::Strategic => patch::strategic_merge_patch(old, body),
        PatchKind::Apply => return Err(ApiError::internal("apply is not a patch of a document")),
    }
    .map_err(|e| error(ctx, e))?;
    match (validation, patched.strict_error()) {
        (Validation::Strict, Some(e)) => return Err(error(ctx, e)),
        (Validation::Warn, _) => patched.strict.iter().for_each(|w| ctx.warn(w.clone())),
        _ => {}
    }
    Ok(patched.doc)
}

/// A patch that cannot be applied, as upstream says it.
fn error(ctx: &Ctx, e: PatchError) -> ApiError {
    match e {
        PatchError::BadRequest(m) => ApiError::bad_request(m),
        PatchError::TooLarge(m) => ApiError::too_large(format!("Request entity too large: {m}")),
        PatchError::Internal(m) => ApiError::new(500, "", m),
        PatchError::Unprocessable(m) => {
            tracing::debug!(reason = m, "a patch cannot be applied");
            let mut e = ApiError::new(422, "Invalid", "the server rejected our request due to an error in our request");
            e.details = Some(Box::default());
            e
        }
        PatchError::Invalid { value, detail } => {
            let _ = ctx;
            let mut errors = ErrorList::new();
            errors.push(FieldError::invalid("patch", value, detail));
            ApiError::invalid(Group("", ""), "", &errors)
        }
    }
}

async fn merge(ctx: &Arc<Ctx>, res: &Arc<Resource>, kind: PatchKind, body: &Bytes, options: &WriteOptions) -> Result<Doc, ApiError> {
    let manager = ctx.manager(&options.manager);
    let sub = ctx.info.subresource.clone();
    let strategy = kinds::strategy_of(res);
    write::change(ctx, res, options.dry_run, |old| {
        let mut new = patched(ctx, old, kind, body, options.validation)?;
        if let Some(custom) = &res.custom {
            new = objects::patched(ctx, &new, custom, options.validation)?;
        }
        if new.at("metadata.namespace").str().is_empty() && res.namespaced {
            write::set(&mut new, "metadata.namespace", ctx.info.namespace.as_str())?;
        }
        check_identity(ctx, &new, old)?;
        kinds::defaults::apply(res, &mut new);
        meta::dedup_owners(&mut new, &mut |w| ctx.warn(w));
        meta::track(res, &mut new, old, &manager, &sub, strategy.reset_on_update(&sub));
        Ok(new)
    })
    .await
}

fn check_identity(ctx: &Ctx, new: &Doc, old: &Doc) -> Result<(), ApiError> {
    let name = new.at("metadata.name").str();
    if name.is_empty() {
        let why = "was undeterminable: name must be provided";
        return Err(ApiError::bad_request(format!("the name of the object ({} based on URL) {why}", ctx.info.name)));
    }
    if name != ctx.info.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            ctx.info.name
        )));
    }
    if new.at("metadata.namespace").str() != old.at("metadata.namespace").str() {
        return Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    Ok(())
}

async fn apply(ctx: &Arc<Ctx>, res: &Arc<Resource>, body: &Bytes, options: &WriteOptions) -> Result<(u16, Doc), ApiError> {
    let want: Expected<'_> = write::expected(ctx, res)?;
    let value = decode::yaml_to_value(body).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    if want.custom.is_none() {
        // Types are checked by merging.
        decode::check_kind_of(ctx, &value, want)?;
    }
    let mut config = match value {
        Value::Null => Value::Object(Map::new()),
        Value::Object(_) => value,
        other => {
            let what = if other.is_array() { "array" } else { "scalar" };
            return Err(ApiError::bad_request(format!("error decoding YAML: an object has to be a map, this is {what}")));
        }
    };
    let text = |config: &Value, field: &str| config["metadata"][field].as_str().unwrap_or("").to_owned();
    let managed = &config["metadata"]["managedFields"];
    if managed.as_array().is_some_and(|a| !a.is_empty()) || managed.as_object().is_some_and(|o| !o.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let name = text(&config, "name");
    if !name.is_empty() && name != ctx.info.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            ctx.info.name
        )));
    }
    let given = text(&config, "namespace");
    if res.namespaced && !given.is_empty() && given != ctx.info.namespace {
        return Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    let uid = text(&config, "uid");
    identify(&mut config, &ctx.info.name);
    let sub = ctx.info.subresource.clone();
    let strategy = kinds::strategy_of(res);
    let force = options.force.unwrap_or(false);
    let run = |old: &Doc, created: bool| -> Result<Doc, ApiError> {
        let reset = if created { strategy.reset_on_create() } else { strategy.reset_on_update(&sub) };
        let mut new = meta::apply(res, old, &config, &options.manager, &sub, force, reset)?;
        kinds::defaults::apply(res, &mut new);
        Ok(new)
    };
    let result = write::change(ctx, res, options.dry_run, |old| run(old, false)).await;
    match result {
        Ok(doc) => Ok((200, doc)),
        Err(e) if e.code == 404 && sub.is_empty() => {
            if !uid.is_empty() {
                return Err(ApiError::conflict(
                    Group(&res.group, &res.plural),
                    &ctx.info.name,
                    "uid mismatch: the provided object specified uid and no existing object was found",
                ));
            }
            let mut empty = Doc::new(&ctx.server.objects.schema, want.ty);
            empty.set_type_meta(&res.api_version(), &res.kind);
            if res.namespaced {
                write::set(&mut empty, "metadata.namespace", ctx.info.namespace.as_str())?;
            }
            write::set(&mut empty, "metadata.name", ctx.info.name.as_str())?;
            let doc = run(&empty, true)?;
            let mut o = options.clone();
            o.manager = write::MANAGED_ALREADY.into();
            Ok((201, write::create_doc(ctx, res, doc, &o).await?))
        }
        Err(e) => Err(e),
    }
}

/// Gives the configuration that the client sent the identity that the path has.
fn identify(config: &mut Value, name: &str) {
    for key in ["apiVersion", "kind"] {
        if !config[key].is_string() {
            config[key] = "".into();
        }
    }
    if !config["metadata"].is_object() {
        config["metadata"] = Value::Object(Map::new());
    }
    config["metadata"]["name"] = name.into();
}
