//! Questions that are asked by creating an object that is not stored: who am I, may I, is this token good.

use std::sync::Arc;

use hyper::body::Incoming;
use k8s_schema::{Doc, Ref};
use serde_json::{Value, json};

use super::{Ctx, WriteOptions, decode, encode_doc, encode_value, subresources, write};
use crate::{
    authn::User,
    authz::{Attributes, Decision, rbac::Rule},
    http::{Answer, ApiError, Group, Offers},
    kinds::{meta, reviews},
    registry::Resource,
};

pub async fn dispatch(ctx: &Arc<Ctx>, res: &Arc<Resource>, incoming: Incoming) -> Result<Answer, ApiError> {
    if res.plural == "componentstatuses" {
        return component_statuses(ctx);
    }
    if ctx.info.verb != "create" || ctx.info.parts != 1 || (res.namespaced && ctx.info.namespace.is_empty()) {
        return Err(ApiError::method_not_allowed());
    }
    if res.plural == "bindings" {
        return subresources::bind(ctx, incoming).await;
    }
    let wanted = ctx.wanted(Offers::Posted, false)?;
    let options = WriteOptions::parse(&ctx.query, "CreateOptions", false)?;
    let body = ctx.body(incoming).await?;
    let mut doc = decode::decode(ctx, body, write::expected(ctx, res)?, options.validation)?;
    let mut empty = Doc::new(&ctx.server.objects.schema, doc.type_id());
    empty.set_type_meta(&res.api_version(), &res.kind);
    meta::track(res, &mut doc, &empty, &ctx.manager(&options.manager), "", &[]);
    match res.plural.as_str() {
        "selfsubjectreviews" => {
            let info = user_info(&ctx.user);
            // Nothing of the question comes back.
            doc = empty;
            doc.set("status", json!({"userInfo": info})).map_err(ApiError::internal)?;
            write::set(&mut doc, "metadata.creationTimestamp", write::now())?;
        }
        "tokenreviews" => token_review(ctx, &mut doc).await?,
        "selfsubjectrulesreviews" => rules_review(ctx, &mut doc)?,
        _ => access_review(ctx, res, &mut doc).await?,
    }
    Ok(encode_doc(ctx, 201, res, &doc, wanted))
}

fn component_statuses(ctx: &Ctx) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, true)?;
    ctx.warn("v1 ComponentStatus is deprecated in v1.19+");
    if !ctx.info.name.is_empty() && ctx.info.parts > 1 {
        // Upstream names it so.
        return Err(ApiError::not_found(Group("", "componentstatus"), &ctx.info.name));
    }
    Ok(encode_value(200, &json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": []}), wanted))
}

fn user_info(u: &User) -> Value {
    let mut v = json!({"username": u.name});
    if !u.uid.is_empty() {
        v["uid"] = u.uid.as_str().into();
    }
    if !u.groups.is_empty() {
        v["groups"] = u.groups.clone().into();
    }
    if !u.extra.is_empty() {
        v["extra"] = Value::Object(u.extra.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect());
    }
    v
}

async fn token_review(ctx: &Ctx, doc: &mut Doc) -> Result<(), ApiError> {
    let token = doc.at("spec.token").str().to_owned();
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let asked: Vec<String> = doc.at("spec.audiences").iter().map(|a| a.str().to_owned()).collect();
    let audiences = if asked.is_empty() { ctx.server.tokens.api_audiences.clone() } else { asked.clone() };
    let status = match ctx.server.authn.token(&token, &audiences).await {
        Ok((user, auds)) => {
            let mut s = json!({"authenticated": true, "user": user_info(&user)});
            if !auds.is_empty() {
                s["audiences"] = auds.into();
            }
            s
        }
        Err(e) => {
            tracing::debug!(reason = e.0, "a token under review is not good");
            json!({"user": {}, "error": "invalid bearer token"})
        }
    };
    doc.set("status", status).map_err(ApiError::internal)
}

fn strings(r: Ref<'_>) -> Vec<String> {
    r.iter().map(|s| s.str().to_owned()).collect()
}

async fn access_review(ctx: &Ctx, res: &Resource, doc: &mut Doc) -> Result<(), ApiError> {
    let own = res.plural == "selfsubjectaccessreviews";
    reviews::validate_access(res, doc, &ctx.info.namespace)?;
    let user = if own {
        ctx.user.clone()
    } else {
        User {
            name: doc.at("spec.user").str().to_owned(),
            uid: doc.at("spec.uid").str().to_owned(),
            groups: strings(doc.at("spec.groups")),
            extra: doc.at("spec.extra").entries().map(|(k, v)| (k.to_lowercase(), strings(v))).collect(),
        }
    };
    let r = doc.at("spec.resourceAttributes");
    let s = |n: &str| r.get(n).str().to_owned();
    let ignored: Vec<String> = ["fieldSelector", "labelSelector"]
        .iter()
        .filter(|which| r.get(which).exists() && reviews::narrowed(r.get(which)).is_none())
        .map(|which| format!("spec.resourceAttributes.{which} ignored due to parse error"))
        .collect();
    let attributes = if r.exists() {
        Attributes {
            verb: s("verb"),
            is_resource: true,
            group: s("group"),
            version: s("version"),
            resource: s("resource"),
            subresource: s("subresource"),
            namespace: s("namespace"),
            name: s("name"),
            field_selector: reviews::narrowed(r.get("fieldSelector")).unwrap_or_default(),
            ..Attributes::default()
        }
    } else {
        let n = doc.at("spec.nonResourceAttributes");
        Attributes { verb: n.get("verb").str().to_owned(), path: n.get("path").str().to_owned(), ..Attributes::default() }
    };
    let mut status = match ctx.server.authz.decide(&user, &attributes).await {
        Decision::Allow(reason) if reason.is_empty() => json!({"allowed": true}),
        Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
        Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false, "denied": true}),
        Decision::Deny(reason) => json!({"allowed": false, "denied": true, "reason": reason}),
        Decision::NoOpinion(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::NoOpinion(reason) => json!({"allowed": false, "reason": reason}),
    };
    if !ignored.is_empty() {
        status["evaluationError"] = ignored.join(", ").into();
    }
    doc.set("status", status).map_err(ApiError::internal)
}

fn rules_review(ctx: &Ctx, doc: &mut Doc) -> Result<(), ApiError> {
    let ns = doc.at("spec.namespace").str().to_owned();
    if ns.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let mut rules: Vec<Rule> = Vec::new();
    if ctx.user.in_group(crate::authn::MASTERS) {
        let all = || vec!["*".to_owned()];
        rules.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
        rules.push(Rule { verbs: all(), urls: all(), ..Rule::default() });
    }
    rules.extend(ctx.server.authz.rbac.rules_for(&ctx.user, &ns));
    let (mut resource, mut other) = (Vec::new(), Vec::new());
    for r in rules {
        if !r.resources.is_empty() {
            let mut v = json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
            if !r.names.is_empty() {
                v["resourceNames"] = r.names.into();
            }
            resource.push(v);
        }
        if !r.urls.is_empty() {
            other.push(json!({"verbs": r.verbs, "nonResourceURLs": r.urls}));
        }
    }
    let mut missing = Vec::new();
    if crate::authz::node::node_of(&ctx.user).is_some() {
        missing.push("node authorizer does not support user rule resolution");
    }
    if ctx.server.authz.asks_webhooks() {
        missing.push("webhook authorizer does not support user rule resolution");
    }
    let mut status = json!({"resourceRules": resource, "nonResourceRules": other, "incomplete": !missing.is_empty()});
    if !missing.is_empty() {
        status["evaluationError"] = missing.join(", ").into();
    }
    doc.set("status", status).map_err(ApiError::internal)
}
