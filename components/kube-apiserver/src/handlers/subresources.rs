//! Subresources: status and the like, which are updates of a part, and those that do something of their own.

use std::sync::Arc;

use http::Extensions;
use hyper::body::Incoming;
use jiff::Timestamp;
use k8s_schema::{Doc, Ref, selector::LabelSelector};
use serde_json::{Value, json};

use super::{
    Ctx, DeleteOptions, WriteOptions,
    decode::{self, Expected},
    encode_doc, encode_value, load, patch, proxy, read, scale, write,
};
use crate::{
    admission::{self, Attributes, Operation},
    authn::{Bound, Lifetime},
    http::{Answer, ApiError, Group, Offers},
    kinds::meta,
    registry::Resource,
    validation::{ErrorList, FieldError},
};

pub async fn dispatch(ctx: &Arc<Ctx>, res: &Arc<Resource>, incoming: Incoming, extensions: Extensions) -> Result<Answer, ApiError> {
    let (sub, verb) = (ctx.info.subresource.as_str(), ctx.info.verb.as_str());
    match (sub, verb) {
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => proxy::dispatch(ctx, res, incoming, extensions).await,
        _ if !res.subresource(sub).is_some_and(|s| s.verbs.iter().any(|v| v == verb)) => Err(ApiError::method_not_allowed()),
        ("scale", _) => scale::dispatch(ctx, res, incoming).await,
        ("binding", "create") => bind(ctx, incoming).await,
        ("eviction", "create") => evict(ctx, res, incoming).await,
        ("token", "create") => token(ctx, res, incoming).await,
        (_, "get") => read::get(ctx, res).await,
        (_, "update") => write::update(ctx, res, ctx.body(incoming).await?).await,
        (_, "patch") => patch::patch(ctx, res, ctx.body(incoming).await?).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn expected<'a>(ctx: &Ctx, group: &'a str, version: &'a str, kind: &'a str) -> Result<Expected<'a>, ApiError> {
    let ty = ctx.server.objects.schema.kind(group, version, kind).ok_or_else(|| ApiError::internal(format!("no type {kind}")))?;
    Ok(Expected { group, version, kind, ty, custom: None })
}

fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

/// Asks the webhooks about what is posted to a subresource.
async fn posted(ctx: &Ctx, res: &Resource, subresource: &str, dry_run: bool, doc: &mut Doc) -> Result<(), ApiError> {
    let a = Attributes { ctx, res, subresource, operation: Operation::Create, dry_run, delete: None };
    admission::posted(&a, doc).await
}

/// A pod gets its node. Also what POST to the collection `bindings` does.
pub async fn bind(ctx: &Arc<Ctx>, incoming: Incoming) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Posted, false)?;
    let options = WriteOptions::parse(&ctx.query, "CreateOptions", false)?;
    let body = ctx.body(incoming).await?;
    let mut binding = decode::decode(ctx, body, expected(ctx, "", "v1", "Binding")?, options.validation)?;
    let name = binding.at("metadata.name").str().to_owned();
    if !ctx.info.name.is_empty() && !name.is_empty() && name != ctx.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    let mut errors = ErrorList::new();
    let kind = binding.at("target.kind").str();
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if binding.at("target.name").str().is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    let pods = ctx.server.registry.resource("", "v1", "pods").ok_or_else(ApiError::no_resource)?;
    let pod_name = if ctx.info.name.is_empty() { name.clone() } else { ctx.info.name.clone() };
    if errors.is_empty() {
        posted(ctx, &pods, "binding", options.dry_run, &mut binding).await?;
    }
    let node = binding.at("target.name").str().to_owned();
    if !errors.is_empty() {
        // Upstream does not wrap these.
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(ApiError::new(500, "", all.join(", ")));
    }
    let uid = binding.at("metadata.uid").str().to_owned();
    let texts =
        |path: &str| -> Vec<(String, String)> { binding.at(path).entries().map(|(k, v)| (k.to_owned(), v.str().to_owned())).collect() };
    let (annotations, labels) = (texts("metadata.annotations"), texts("metadata.labels"));
    let plural = Group("", "pods/binding");
    for _ in 0..8 {
        let stored = write::current(ctx, &pods, &pod_name, true).await?;
        let old = load(&ctx.server, &pods, &stored)?;
        if !uid.is_empty() && uid != old.at("metadata.uid").str() {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                write::etcd_key(ctx, &pods, &pod_name),
                old.at("metadata.uid").str()
            );
            return Err(ApiError::conflict(Group("", "pods"), &pod_name, why));
        }
        if old.at("metadata.deletionTimestamp").exists() {
            return Err(ApiError::conflict(plural, &pod_name, format!("pod {pod_name} is being deleted, cannot be assigned to a host")));
        }
        let there = old.at("spec.nodeName").str();
        if !there.is_empty() {
            return Err(ApiError::conflict(plural, &pod_name, format!("pod {pod_name} is already assigned to node {there:?}")));
        }
        if !old.at("spec.schedulingGates").is_empty() {
            return Err(ApiError::conflict(plural, &pod_name, format!("pod {pod_name} has non-empty .spec.schedulingGates")));
        }
        let mut new = old.clone();
        write::set(&mut new, "spec.nodeName", node.as_str())?;
        for (k, v) in &annotations {
            write::set(&mut new, &format!("metadata.annotations[{k}]"), v.as_str())?;
        }
        for (k, v) in &labels {
            write::set(&mut new, &format!("metadata.labels[{k}]"), v.as_str())?;
        }
        for label in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
            let value =
                ctx.server.objects.get("minions", &node).map(|n| n.at("metadata.labels").get(label).str().to_owned()).unwrap_or_default();
            if !value.is_empty() {
                write::set(&mut new, &format!("metadata.labels[{label}]"), value)?;
            }
        }
        scheduled(&mut new)?;
        let status = encode_value(201, &success(201), wanted);
        if options.dry_run {
            return Ok(status);
        }
        let value = write::to_storage(&ctx.server.objects.schema, &pods, &new)?;
        let key = write::etcd_key(ctx, &pods, &pod_name);
        match ctx.server.etcd.update(&key, stored.rev, value, 0).await {
            Ok(_) => return Ok(status),
            Err(crate::storage::StoreError::Changed { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(ApiError::modified(plural, &pod_name))
}

/// Binding is what makes PodScheduled true.
fn scheduled(pod: &mut Doc) -> Result<(), ApiError> {
    let mut conditions: Vec<Value> =
        pod.at("status.conditions").iter().filter(|c| c.get("type").str() != "PodScheduled").map(|c| c.to_value()).collect();
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": write::now()}));
    pod.set("status.conditions", Value::from(conditions)).map_err(ApiError::internal)
}

/// A deletion that asks the disruption budgets first.
async fn evict(ctx: &Arc<Ctx>, res: &Arc<Resource>, incoming: Incoming) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Posted, false)?;
    let options = WriteOptions::parse(&ctx.query, "CreateOptions", false)?;
    let body = ctx.body(incoming).await?;
    // The former version says the same.
    let former = k8s_schema::peek_type_meta(&body).is_ok_and(|t| t.api_version == "policy/v1beta1");
    let version = if former { "v1beta1" } else { "v1" };
    let mut eviction = decode::decode(ctx, body, expected(ctx, "policy", version, "Eviction")?, options.validation)?;
    let given = eviction.at("metadata.namespace").str();
    if !given.is_empty() && given != ctx.info.namespace {
        return Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    if eviction.at("metadata.name").str() != ctx.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    posted(ctx, res, "eviction", options.dry_run, &mut eviction).await?;
    let mut delete = DeleteOptions::parse(&ctx.query, Some(eviction.at("deleteOptions").to_value()).filter(Value::is_object))?;
    delete.dry_run |= options.dry_run;
    let stored = write::current(ctx, res, &ctx.info.name, true).await?;
    let pod = load(&ctx.server, res, &stored)?;
    let phase = pod.at("status.phase").str();
    let deleting = pod.at("metadata.deletionTimestamp").exists();
    if !matches!(phase, "Succeeded" | "Failed" | "Pending") && !deleting {
        ask_budgets(ctx, &pod, delete.dry_run).await?;
    }
    super::delete::evict(ctx, res, &delete).await?;
    Ok(encode_value(201, &success(201), wanted))
}

fn disruptive(message: String, cause: Option<String>, retry: u32) -> ApiError {
    let mut e = ApiError::too_many_requests(message, retry);
    if let Some(c) = cause {
        e = e.with_cause("DisruptionBudget", c, "");
    }
    e
}

async fn ask_budgets(ctx: &Arc<Ctx>, pod: &Doc, dry_run: bool) -> Result<(), ApiError> {
    let ns = pod.at("metadata.namespace").str();
    let labels = pod.at("metadata.labels");
    let budgets: Vec<Doc> = ctx
        .server
        .objects
        .list("poddisruptionbudgets", &format!("{ns}/"))
        .iter()
        .filter_map(|s| ctx.server.objects.doc(s))
        .filter(|b| {
            b.at("spec.selector").exists()
                && LabelSelector::from_ref(b.at("spec.selector")).is_ok_and(|s| s.matches(|k| labels.get(k).as_str()))
        })
        .collect();
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(ApiError::new(
                500,
                "",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let name = budget.at("metadata.name").str().to_owned();
    let ready = pod.at("status.conditions").find("type", "Ready").get("status").str() == "True";
    let policy = budget.at("spec.unhealthyPodEvictionPolicy").str();
    let status = budget.at("status");
    let (healthy, desired) = (status.get("currentHealthy").int(), status.get("desiredHealthy").int());
    if !ready && (policy == "AlwaysAllow" || (desired > 0 && healthy >= desired)) {
        return Ok(());
    }
    let observed = status.get("observedGeneration").int();
    if observed < budget.at("metadata.generation").int() {
        return Err(disruptive(
            "Cannot evict pod as it would violate the pod's disruption budget.".into(),
            Some(format!("The disruption budget {name} is still being processed by the server.")),
            10,
        ));
    }
    let allowed = status.get("disruptionsAllowed").int();
    if allowed < 0 {
        return Err(ApiError::forbidden(Group("policy", "poddisruptionbudgets"), &name, "pdb disruptions allowed is negative"));
    }
    if allowed == 0 {
        let cause = format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
        return Err(disruptive("Cannot evict pod as it would violate the pod's disruption budget.".into(), Some(cause), 0));
    }
    if dry_run {
        return Ok(());
    }
    let pdbs = ctx.server.registry.resource("policy", "v1", "poddisruptionbudgets").ok_or_else(ApiError::no_resource)?;
    let stored =
        ctx.server.objects.reflector.cache(&pdbs.prefix).and_then(|c| c.get(&format!("{ns}/{name}"))).ok_or_else(ApiError::no_resource)?;
    let mut new = budget.clone();
    new.set("status.disruptionsAllowed", allowed - 1).map_err(ApiError::internal)?;
    let pod_name = pod.at("metadata.name").str();
    write::set(&mut new, &format!("status.disruptedPods[{pod_name}]"), write::now())?;
    if allowed == 1 {
        let same = |c: &Ref<'_>| c.get("type").str() == "DisruptionAllowed";
        let mut conditions: Vec<Value> = budget.at("status.conditions").iter().filter(|c| !same(c)).map(|c| c.to_value()).collect();
        conditions.push(json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "observedGeneration": observed, "lastTransitionTime": write::now()}));
        new.set("status.conditions", Value::from(conditions)).map_err(ApiError::internal)?;
    }
    meta::track(&pdbs, &mut new, budget, "kube-apiserver", "status", &["spec"]);
    let value = write::to_storage(&ctx.server.objects.schema, &pdbs, &new)?;
    let key = format!("{}{}/{ns}/{name}", ctx.server.root, pdbs.prefix);
    match ctx.server.etcd.update(&key, stored.rev, value, 0).await {
        Ok(_) => Ok(()),
        Err(crate::storage::StoreError::Changed { .. }) => {
            Err(disruptive("Cannot evict pod as it would violate the pod's disruption budget.".into(), None, 10))
        }
        Err(e) => Err(e.into()),
    }
}

/// A token of a service account for an audience and a time.
async fn token(ctx: &Arc<Ctx>, res: &Arc<Resource>, incoming: Incoming) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Posted, false)?;
    let options = WriteOptions::parse(&ctx.query, "CreateOptions", false)?;
    let body = ctx.body(incoming).await?;
    let mut req = decode::decode(ctx, body, expected(ctx, "authentication.k8s.io", "v1", "TokenRequest")?, options.validation)?;
    let ns = ctx.info.namespace.clone();
    ctx.server.objects.reflector.barrier().await?;
    let account = load(&ctx.server, res, &*write::current(ctx, res, &ctx.info.name, false).await?)?;
    let name = req.at("metadata.name").str().to_owned();
    if !name.is_empty() && name != ctx.info.name {
        let mut errors = ErrorList::new();
        errors.push(FieldError::invalid("metadata.name", name, "must match the service account name if specified"));
        return Err(ApiError::invalid(Group("authentication.k8s.io", "TokenRequest"), &ctx.info.name, &errors));
    }
    let given = req.at("metadata.namespace").str();
    if !given.is_empty() && given != ns {
        return Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    if !req.at("spec.expirationSeconds").exists() {
        write::set(&mut req, "spec.expirationSeconds", 3600)?;
    }
    let mut empty = Doc::new(&ctx.server.objects.schema, req.type_id());
    empty.set_type_meta(req.api_version(), req.kind());
    meta::track(res, &mut req, &empty, &ctx.manager(&options.manager), "token", &[]);
    write::set(&mut req, "metadata.uid", uuid::Uuid::new_v4().to_string())?;
    posted(ctx, res, "token", options.dry_run, &mut req).await?;
    let issuer = &ctx.server.tokens;
    let mut seconds = req.at("spec.expirationSeconds").as_i64().unwrap_or(3600);
    let mut audiences: Vec<String> = req.at("spec.audiences").iter().map(|a| a.str().to_owned()).collect();
    let mut errors = ErrorList::new();
    if seconds < 600 {
        errors.push(FieldError::invalid("spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > 1 << 32 {
        errors.push(FieldError::invalid("spec.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(Group("authentication.k8s.io", "TokenRequest"), "", &errors));
    }
    if audiences.is_empty() {
        audiences = issuer.api_audiences.clone();
    }
    if let Some(max) = issuer.max_lifetime.filter(|m| seconds > *m) {
        ctx.warn(format!("requested expiration of {seconds} seconds shortened to {max} seconds"));
        seconds = max;
    }
    let bound = bound_object(ctx, &req, &ns, &account)?;
    req.set("spec.audiences", Value::from(audiences.clone())).map_err(ApiError::internal)?;
    req.set("spec.expirationSeconds", seconds).map_err(ApiError::internal)?;
    let of_pod = bound.as_ref().is_some_and(|b| b.kind == "pod");
    let unchosen = issuer.extends && of_pod && audiences == issuer.api_audiences;
    let lifetime = Lifetime::of(seconds, unchosen, issuer.max_lifetime);
    let (account_name, uid) = (account.at("metadata.name").str(), account.at("metadata.uid").str());
    let issued = issuer.issue(&ns, (account_name, uid), &audiences, lifetime, bound.as_ref(), Timestamp::now());
    let (token, until) = issued.ok_or_else(|| ApiError::internal("no token can be signed"))?;
    write::set(&mut req, "metadata.name", account_name)?;
    write::set(&mut req, "metadata.namespace", ns.as_str())?;
    write::set(&mut req, "metadata.creationTimestamp", write::now())?;
    req.set("status", json!({"token": token, "expirationTimestamp": until.to_string()})).map_err(ApiError::internal)?;
    Ok(encode_doc(ctx, 201, res, &req, wanted))
}

fn bound_object(ctx: &Ctx, req: &Doc, ns: &str, account: &Doc) -> Result<Option<Bound>, ApiError> {
    let r = req.at("spec.boundObjectRef");
    if !r.exists() {
        return Ok(None);
    }
    let (kind, name, uid) = (r.get("kind").str(), r.get("name").str(), r.get("uid").str());
    let objects = &ctx.server.objects;
    let (prefix, plural, key, field) = match (r.get("apiVersion").str(), kind) {
        ("v1", "Pod") => ("pods", "pods", format!("{ns}/{name}"), "pod"),
        ("v1", "Node") => ("minions", "nodes", name.to_owned(), "node"),
        ("v1", "Secret") => ("secrets", "secrets", format!("{ns}/{name}"), "secret"),
        (av, _) => {
            let (g, v) = av.split_once('/').unwrap_or(("", av));
            return Err(ApiError::bad_request(format!("cannot bind token to object of type {g}/{v}, Kind={kind}")));
        }
    };
    let object = objects.get(prefix, &key).ok_or_else(|| ApiError::not_found(Group("", plural), name))?;
    let real = object.at("metadata.uid").str().to_owned();
    if !uid.is_empty() && uid != real {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(Group("", kind), name, why));
    }
    let mut node = None;
    if field == "pod" {
        if object.at("spec.serviceAccountName").str() != account.at("metadata.name").str() {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                account.at("metadata.name").str()
            )));
        }
        let on = object.at("spec.nodeName").str().to_owned();
        if !on.is_empty() {
            let node_uid = objects.get("minions", &on).map(|n| n.at("metadata.uid").str().to_owned()).unwrap_or_default();
            node = Some((on, node_uid));
        }
    }
    Ok(Some(Bound { kind: field, name: name.to_owned(), uid: real, node }))
}
