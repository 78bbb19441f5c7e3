//! The scale subresource: a view of the replicas of what can be scaled.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use k8s_schema::{Doc, Ref, selector::LabelSelector};
use serde_json::{Value, json};

use super::{
    Ctx, WriteOptions,
    decode::{self, Expected},
    encode_doc, load_shown,
    patch::{self, PatchKind},
    write,
};
use crate::{
    custom::Scale,
    http::{Answer, ApiError, Group, Offers},
    kinds::meta,
    registry::Resource,
    validation::{ErrorList, FieldError},
};

/// Where a custom resource has its numbers.
fn paths(res: &Resource) -> Option<&Scale> {
    res.custom.as_ref().and_then(|c| c.version().scale.as_ref())
}

/// The place of a simple path such as `.spec.replicas`.
fn at<'a>(doc: &'a Doc, path: &str) -> Ref<'a> {
    path.trim_start_matches('.').split('.').fold(doc.root(), Ref::get)
}

/// The Scale of an object.
pub fn scale_of(ctx: &Ctx, res: &Resource, doc: &Doc) -> Result<Doc, ApiError> {
    let custom = paths(res);
    let schema = &ctx.server.objects.schema;
    let ty = schema.kind("autoscaling", "v1", "Scale").ok_or_else(|| ApiError::internal("no type Scale"))?;
    let selector = doc.at("spec.selector");
    let text = if custom.is_some() {
        custom.and_then(|s| s.selector.as_deref()).map_or(String::new(), |p| at(doc, p).str().to_owned())
    } else if selector.get("matchLabels").exists() || selector.get("matchExpressions").exists() {
        LabelSelector::from_ref(selector).map(|s| s.to_string()).unwrap_or_default()
    } else {
        // A replication controller selects by a plain map.
        let mut pairs: Vec<String> = selector.entries().map(|(k, v)| format!("{k}={}", v.str())).collect();
        pairs.sort();
        pairs.join(",")
    };
    let m = doc.at("metadata");
    let meta = json!({
        "name": m.get("name").str(), "namespace": m.get("namespace").str(), "uid": m.get("uid").str(),
        "resourceVersion": m.get("resourceVersion").str(), "creationTimestamp": m.get("creationTimestamp").to_value(),
    });
    let (spec, now) = match custom {
        Some(s) => {
            let spec = at(doc, &s.spec_replicas);
            if !spec.exists() {
                return Err(ApiError::internal(format!("the spec replicas field {:?} does not exist", s.spec_replicas)));
            }
            (spec.int(), at(doc, &s.status_replicas).int())
        }
        None => (doc.at("spec.replicas").int(), doc.at("status.replicas").int()),
    };
    let mut status = json!({"replicas": now});
    if !text.is_empty() {
        status["selector"] = text.into();
    }
    let mut scale = Doc::new(schema, ty);
    scale.set("metadata", meta).map_err(ApiError::internal)?;
    scale.set("spec", json!({"replicas": spec})).map_err(ApiError::internal)?;
    scale.set("status", status).map_err(ApiError::internal)?;
    Ok(scale)
}

/// Where an object has the number of a Scale.
fn replicas_at(res: &Resource) -> &str {
    paths(res).map_or("spec.replicas", |s| s.spec_replicas.trim_start_matches('.'))
}

/// Writes a Scale's number where the object has it.
pub fn set_replicas(res: &Resource, doc: &mut Doc, replicas: i64) -> Result<(), ApiError> {
    doc.set(replicas_at(res), replicas).map_err(ApiError::internal)
}

/// An applied Scale, as what it says of the object.
fn applied(res: &Resource, old: &Doc, scale: &Doc) -> Value {
    let mut config = json!({"apiVersion": res.api_version(), "kind": res.kind, "metadata": {"name": old.meta().name()}});
    if let Some(replicas) = scale.at("spec.replicas").as_i64() {
        let nested = replicas_at(res).rsplit('.').fold(json!(replicas), |inner, name| json!({ name: inner }));
        if let (Value::Object(config), Value::Object(nested)) = (&mut config, nested) {
            config.extend(nested);
        }
    }
    config
}

pub async fn dispatch(ctx: &Arc<Ctx>, res: &Arc<Resource>, incoming: Incoming) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, false)?;
    match ctx.info.verb.as_str() {
        "get" => {
            ctx.server.objects.reflector.barrier().await?;
            let stored = write::current(ctx, res, &ctx.info.name, false).await?;
            let scale = scale_of(ctx, res, &load_shown(&ctx.server, res, &stored).await?)?;
            Ok(encode_doc(ctx, 200, res, &scale, wanted))
        }
        "update" => {
            let body = ctx.body(incoming).await?;
            change(ctx, res, body, None).await
        }
        "patch" => {
            let kind = patch::kind_of(ctx)?;
            let body = ctx.body(incoming).await?;
            change(ctx, res, body, Some(kind)).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn change(ctx: &Arc<Ctx>, res: &Arc<Resource>, body: Bytes, kind: Option<PatchKind>) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, false)?;
    let options =
        WriteOptions::parse(&ctx.query, if kind.is_some() { "PatchOptions" } else { "UpdateOptions" }, kind == Some(PatchKind::Apply))?;
    let schema = &ctx.server.objects.schema;
    let ty = schema.kind("autoscaling", "v1", "Scale").ok_or_else(|| ApiError::internal("no type Scale"))?;
    let want = Expected { group: "autoscaling", version: "v1", kind: "Scale", ty, custom: None };
    let given = match kind {
        None => Some(decode::decode(ctx, body.clone(), want, options.validation)?),
        Some(PatchKind::Apply) => {
            let json = decode::yaml_to_json(&body).map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?.json;
            Some(decode::decode_as(ctx, json, crate::http::Media::Json, want, options.validation)?)
        }
        Some(_) => None,
    };
    let manager = ctx.manager(&options.manager);
    let doc = write::change(ctx, res, options.dry_run, |old| {
        let scale = match (&given, kind) {
            (Some(s), _) => s.clone(),
            (None, Some(k)) => patch::patched(ctx, &scale_of(ctx, res, old)?, k, &body, options.validation)?,
            (None, None) => return Err(ApiError::internal("neither a scale nor a patch")),
        };
        let name = scale.at("metadata.name").str();
        if !name.is_empty() && name != ctx.info.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                ctx.info.name
            )));
        }
        let replicas = scale.at("spec.replicas").int();
        if replicas < 0 && res.custom.is_none() {
            let mut e = ErrorList::new();
            e.push(FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0"));
            return Err(ApiError::invalid(Group("autoscaling", "Scale"), &ctx.info.name, &e));
        }
        let mut new = if kind == Some(PatchKind::Apply) {
            meta::apply(res, old, &applied(res, old, &scale), &manager, "scale", options.force.unwrap_or(false), &[])?
        } else {
            let mut new = old.clone();
            set_replicas(res, &mut new, replicas)?;
            new
        };
        for field in ["resourceVersion", "uid"] {
            let v = scale.at(&format!("metadata.{field}")).str().to_owned();
            if !v.is_empty() {
                write::set(&mut new, &format!("metadata.{field}"), v)?;
            }
        }
        if kind != Some(PatchKind::Apply) {
            meta::track_scale(res, &mut new, old, &manager, replicas_at(res));
        }
        Ok(new)
    })
    .await?;
    let scale = scale_of(ctx, res, &doc)?;
    Ok(encode_doc(ctx, 200, res, &scale, wanted))
}
