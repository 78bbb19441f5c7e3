//! Create and update: the pipeline of decoding, managed fields, admission, strategy, validation and the write itself.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_schema::Doc;
use rand::RngExt;
use uuid::Uuid;

use super::{
    Ctx, WriteOptions,
    decode::{self, Expected},
    encode_written, load_shown,
};
use crate::{
    admission::{self, Attributes, Operation},
    custom::{conversion, objects},
    http::{Answer, ApiError, Group, Offers},
    kinds::{self, Action, Strategy, meta},
    registry::Resource,
    server::Server,
    storage::{StoreError, Stored},
    validation::{ErrorList, FieldError},
};

/// A write that keeps losing against others gives up after this many tries.
const TRIES: usize = 16;

pub fn expected<'a>(ctx: &Ctx, res: &'a Resource) -> Result<Expected<'a>, ApiError> {
    let _ = ctx;
    let ty = res.type_id.ok_or_else(|| ApiError::internal(format!("kind {} is not in the schema", res.kind)))?;
    Ok(Expected { group: &res.group, version: &res.version, kind: &res.kind, ty, custom: res.custom.as_ref() })
}

pub fn now() -> String {
    // Kubernetes keeps whole seconds.
    let t = Timestamp::now();
    Timestamp::from_second(t.as_second()).unwrap_or(t).to_string()
}

/// `base` with five random characters, cut so that the whole is a valid name.
pub fn generate_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut name: String = base.chars().take(58).collect();
    let mut rng = rand::rng();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    }
    name
}

/// A document in the storage version. Only a definition's webhook may be able to convert it.
pub async fn stored_form(server: &Server, res: &Resource, doc: &Doc) -> Result<Doc, ApiError> {
    match &res.custom {
        Some(custom) => Ok(conversion::for_storage(server, custom, doc).await?),
        None => kinds::convert::to_storage(&server.objects.schema, doc.clone(), res).map_err(ApiError::internal),
    }
}

/// The bytes of a built-in object as they go to etcd: in the storage version, without a resourceVersion.
pub fn to_storage(schema: &k8s_schema::Schema, res: &Resource, doc: &Doc) -> Result<Bytes, ApiError> {
    Ok(encode(res, kinds::convert::to_storage(schema, doc.clone(), res).map_err(ApiError::internal)?))
}

/// Whether the objects of a resource are kept in protobuf.
fn as_protobuf(res: &Resource) -> bool {
    res.custom.is_none() && !matches!(res.group.as_str(), "apiextensions.k8s.io" | "apiregistration.k8s.io")
}

/// The bytes of a document that is in its storage version.
pub fn encode(res: &Resource, mut doc: Doc) -> Bytes {
    doc.remove("metadata.resourceVersion");
    doc.remove("metadata.selfLink");
    if !as_protobuf(res) {
        let mut json = doc.to_json();
        json.push(b'\n');
        return json.into();
    }
    doc.to_protobuf().into()
}

/// The etcd key of an object.
pub fn etcd_key(ctx: &Ctx, res: &Resource, name: &str) -> String {
    format!("{}{}/{}", ctx.server.root, res.prefix, res.key(&ctx.info.namespace, name))
}

fn check_namespace(ctx: &Ctx, res: &Resource, doc: &mut Doc) -> Result<(), ApiError> {
    let ns = doc.at("metadata.namespace").str().to_owned();
    if res.namespaced {
        if ns.is_empty() {
            doc.set("metadata.namespace", ctx.info.namespace.as_str()).map_err(ApiError::internal)?;
        } else if ns != ctx.info.namespace {
            return Err(ApiError::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
        }
    } else {
        doc.remove("metadata.namespace");
    }
    Ok(())
}

pub async fn create(ctx: &Arc<Ctx>, res: &Arc<Resource>, body: Bytes) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, false)?;
    let options = WriteOptions::parse(&ctx.query, "CreateOptions", false)?;
    let doc = decode::decode(ctx, body, expected(ctx, res)?, options.validation)?;
    if let Some(r) = &ctx.audit {
        r.about(&doc);
    }
    let doc = create_doc(ctx, res, doc, &options).await?;
    Ok(encode_written(ctx, 201, res, &doc, wanted))
}

/// Creates `doc`, already decoded, with everything a create does. Also what an update or apply of something absent comes to.
pub async fn create_doc(ctx: &Ctx, res: &Resource, mut doc: Doc, options: &WriteOptions) -> Result<Doc, ApiError> {
    let strategy = kinds::strategy_of(res);
    check_namespace(ctx, res, &mut doc)?;
    kinds::defaults::apply(res, &mut doc);
    meta::dedup_owners(&mut doc, &mut |w| ctx.warn(w));
    for gone in ["metadata.deletionTimestamp", "metadata.deletionGracePeriodSeconds", "metadata.selfLink"] {
        doc.remove(gone);
    }
    if options.manager != MANAGED_ALREADY {
        let mut empty = Doc::new(&ctx.server.objects.schema, doc.type_id());
        empty.set_type_meta(&res.api_version(), &res.kind);
        meta::track(res, &mut doc, &empty, &ctx.manager(&options.manager), "", strategy.reset_on_create());
    }
    let asked = Attributes { ctx, res, subresource: "", operation: Operation::Create, dry_run: options.dry_run, delete: None };
    admission::mutate(&asked, &mut doc, None).await?;
    meta::dedup_owners(&mut doc, &mut |w| ctx.warn(w));
    let generate = doc.at("metadata.generateName").str().to_owned();
    let generated = doc.at("metadata.name").str().is_empty() && !generate.is_empty();
    if !doc.at("metadata.resourceVersion").str().is_empty() && !doc.at("metadata.resourceVersion").str().eq("0") {
        return Err(ApiError::new(500, "", "resourceVersion should not be set on objects to be created"));
    }
    set(&mut doc, "metadata.creationTimestamp", now())?;
    set(&mut doc, "metadata.uid", Uuid::new_v4().to_string())?;
    for gone in ["metadata.deletionTimestamp", "metadata.deletionGracePeriodSeconds", "metadata.selfLink", "metadata.resourceVersion"] {
        doc.remove(gone);
    }
    if strategy.status {
        doc.remove("status");
    }
    (strategy.prepare_create)(&mut doc);
    if res.plural == "certificatesigningrequests" {
        kinds::certificates::record_requester(&mut doc, &ctx.user).map_err(ApiError::internal)?;
    }
    strategy.set_first_generation(&mut doc);
    for attempt in 0..8 {
        if generated {
            set(&mut doc, "metadata.name", generate_name(&generate))?;
        }
        let name = doc.at("metadata.name").str().to_owned();
        let mut claimed = crate::services::claim_for_create(ctx, res, &mut doc, options.dry_run).await?;
        let result = store_new(ctx, res, strategy, &doc, &name, options.dry_run).await;
        match result {
            Ok((mut doc, rev)) => {
                claimed.keep();
                if let Some(rev) = rev {
                    set(&mut doc, "metadata.resourceVersion", rev.to_string())?;
                }
                return Ok(doc);
            }
            Err(e) => {
                claimed.release().await;
                match e {
                    e if e.reason == "AlreadyExists" && generated && attempt < 7 => {}
                    e => return Err(e),
                }
            }
        }
    }
    Err(ApiError::internal("no free name was found"))
}

/// The group that errors name: all events are those of the core group.
fn kind_group(res: &Resource) -> &str {
    if res.prefix == "events" { &res.storage_group } else { &res.group }
}

/// Marks options of a write whose managed fields are already right.
pub const MANAGED_ALREADY: &str = "\0managed";

/// Stores a new object. Gives it as its writer sees it, and the revision unless this is a dry run.
async fn store_new(
    ctx: &Ctx,
    res: &Resource,
    strategy: &Strategy,
    doc: &Doc,
    name: &str,
    dry_run: bool,
) -> Result<(Doc, Option<i64>), ApiError> {
    let mut errors = ErrorList::new();
    meta::validate_create(doc, res.namespaced, strategy.name, &mut errors);
    (strategy.validate_create)(doc, &mut errors);
    if res.group == "resource.k8s.io" && matches!(res.plural.as_str(), "resourceclaims" | "resourceclaimtemplates") {
        let namespace = ctx.server.objects.get("namespaces", &ctx.info.namespace);
        crate::kinds::dra::admin_access(doc, namespace.as_ref(), &mut errors);
    }
    if let Some(custom) = &res.custom {
        objects::validate_create(custom, doc, &mut errors);
        objects::warnings(doc, None).into_iter().for_each(|w| ctx.warn(w));
    }
    // A custom resource may say that it is of another kind, which is one of the errors then.
    let kind = Group(kind_group(res), if res.custom.is_some() { doc.kind() } else { &res.kind });
    if !errors.is_empty() {
        return Err(ApiError::invalid(kind, name, &errors));
    }
    for w in (strategy.warnings)(doc, None) {
        ctx.warn(w);
    }
    let asked = Attributes { ctx, res, subresource: "", operation: Operation::Create, dry_run, delete: None };
    admission::validate(&asked, Some(doc), None).await?;
    let key = etcd_key(ctx, res, name);
    let exists = || {
        let mut e = ApiError::already_exists(Group(&res.group, &res.plural), name);
        let there = ctx.server.objects.get(&res.prefix, &res.key(&ctx.info.namespace, name));
        if there.is_some_and(|d| d.at("metadata.deletionTimestamp").exists()) {
            e.message = format!("object is being deleted: {}", e.message);
        }
        e
    };
    let stored = stored_form(&ctx.server, res, doc).await?;
    let mut seen = doc.clone();
    // Its writer sees what is kept of it.
    if as_protobuf(res) {
        seen.forget_empty();
    }
    if let Some(custom) = &res.custom {
        conversion::settle(&ctx.server, custom, &mut seen, &stored).await?;
    }
    if dry_run {
        return match ctx.server.etcd.get(&key).await?.0 {
            Some(_) => Err(exists()),
            None => Ok((seen, None)),
        };
    }
    let value = encode(res, stored);
    let lease = ctx.server.lease_for(res).await?;
    match ctx.server.etcd.create(&key, value, lease).await {
        Ok(rev) => {
            // A request stores one object; what it stores beside that does not come here.
            let _ = ctx.wrote.set(rev);
            Ok((seen, Some(rev)))
        }
        Err(StoreError::Exists { .. }) => Err(exists()),
        Err(e) => Err(e.into()),
    }
}

pub fn set(doc: &mut Doc, path: &str, value: impl Into<serde_json::Value>) -> Result<(), ApiError> {
    doc.set(path, value).map_err(ApiError::internal)
}

pub async fn update(ctx: &Arc<Ctx>, res: &Arc<Resource>, body: Bytes) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, false)?;
    let options = WriteOptions::parse(&ctx.query, "UpdateOptions", false)?;
    let mut new = decode::decode(ctx, body, expected(ctx, res)?, options.validation)?;
    if let Some(r) = &ctx.audit {
        r.about(&new);
    }
    check_namespace(ctx, res, &mut new)?;
    check_name(ctx, &new)?;
    kinds::defaults::apply(res, &mut new);
    meta::dedup_owners(&mut new, &mut |w| ctx.warn(w));
    let manager = ctx.manager(&options.manager);
    let sub = ctx.info.subresource.clone();
    let strategy = kinds::strategy_of(res);
    let given = new.clone();
    let result = change(ctx, res, options.dry_run, |old| {
        let mut new = given.clone();
        meta::track(res, &mut new, old, &manager, &sub, strategy.reset_on_update(&sub));
        Ok(new)
    })
    .await;
    let (code, doc) = match result {
        Ok(doc) => (200, doc),
        Err(e) if e.code == 404 && strategy.create_on_update && sub.is_empty() && e.reason == "NotFound" => {
            (201, create_doc(ctx, res, new, &options).await?)
        }
        Err(e) => return Err(e),
    };
    Ok(encode_written(ctx, code, res, &doc, wanted))
}

fn check_name(ctx: &Ctx, new: &Doc) -> Result<(), ApiError> {
    let name = new.at("metadata.name").str().to_owned();
    if name.is_empty() {
        let why = "was undeterminable: name must be provided";
        Err(ApiError::bad_request(format!("the name of the object ({} based on URL) {why}", ctx.info.name)))
    } else if name != ctx.info.name {
        Err(ApiError::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", ctx.info.name)))
    } else {
        Ok(())
    }
}

/// The current object of the request's path, from the cache when it is there.
pub async fn current(ctx: &Ctx, res: &Resource, name: &str, fresh: bool) -> Result<Arc<Stored>, ApiError> {
    let key = res.key(&ctx.info.namespace, name);
    let reflector = &ctx.server.objects.reflector;
    let not_found = || ApiError::not_found(Group(&res.group, &res.plural), name);
    if !fresh && let Some(s) = reflector.cache(&res.prefix).and_then(|c| c.get(&key)) {
        return Ok(s);
    }
    let (kv, _) = ctx.server.etcd.get(&etcd_key(ctx, res, name)).await?;
    let kv = kv.ok_or_else(not_found)?;
    reflector.make_stored(&res.prefix, &key, kv.rev, kv.value).map(Arc::new).map_err(ApiError::internal)
}

/// Changes the object of the request's path: `make` computes the new object from the one that is there, again when someone was faster.
/// When the last finalizer of a deleted object goes, the object goes.
pub async fn change(
    ctx: &Ctx,
    res: &Resource,
    dry_run: bool,
    mut make: impl FnMut(&Doc) -> Result<Doc, ApiError>,
) -> Result<Doc, ApiError> {
    let strategy = kinds::strategy_of(res);
    let name = ctx.info.name.clone();
    let sub = ctx.info.subresource.as_str();
    let mut fresh = false;
    for _ in 0..TRIES {
        let stored = current(ctx, res, &name, fresh).await?;
        let old = load_shown(&ctx.server, res, &stored).await?;
        let attempt = attempt(ctx, res, strategy, sub, &stored, &old, dry_run, &mut make).await;
        match attempt {
            Ok(Some(doc)) => return Ok(doc),
            Ok(None) => fresh = true,
            // What the cache showed may be old: decide only by what etcd has.
            Err(e) if !fresh => {
                fresh = true;
                let newer = current(ctx, res, &name, true).await?;
                if newer.rev == stored.rev {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
    }
    Err(ApiError::modified(Group(&res.group, &res.plural), &name))
}

async fn attempt(
    ctx: &Ctx,
    res: &Resource,
    strategy: &Strategy,
    sub: &str,
    stored: &Stored,
    old: &Doc,
    dry_run: bool,
    make: &mut impl FnMut(&Doc) -> Result<Doc, ApiError>,
) -> Result<Option<Doc>, ApiError> {
    let name = stored.name();
    let plural = Group(&res.group, &res.plural);
    let mut new = make(old)?;
    let rv = new.at("metadata.resourceVersion").str().to_owned();
    if rv.is_empty() || rv == "0" {
        if !strategy.unconditional_update && ctx.info.verb == "update" {
            let mut e = ErrorList::new();
            e.push(FieldError::invalid_raw("metadata.resourceVersion", "0", "must be specified for an update"));
            return Err(ApiError::invalid(plural, name, &e));
        }
    } else if rv.parse::<u64>().is_err() {
        return Err(ApiError::new(500, "", format!("strconv.ParseUint: parsing {rv:?}: invalid syntax")));
    } else if rv.parse::<i64>() != Ok(stored.rev) {
        return Err(ApiError::modified(plural, name));
    }
    let (new_uid, old_uid) = (new.at("metadata.uid").str().to_owned(), old.at("metadata.uid").str().to_owned());
    // A patch that changes it fails as a change of what is immutable.
    if !new_uid.is_empty() && new_uid != old_uid && ctx.info.verb != "patch" {
        return Err(ApiError::conflict(
            plural,
            name,
            format!(
                "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {new_uid}, UID in object meta: {old_uid}",
                // A dry run does not get as far as to the whole key.
                if dry_run { format!("/{}/{}", res.prefix, res.key(&ctx.info.namespace, name)) } else { etcd_key(ctx, res, name) }
            ),
        ));
    }
    let asked = Attributes { ctx, res, subresource: sub, operation: Operation::Update, dry_run, delete: None };
    admission::mutate(&asked, &mut new, Some(old)).await?;
    for kept in [
        "metadata.creationTimestamp",
        "metadata.uid",
        "metadata.namespace",
        "metadata.deletionTimestamp",
        "metadata.deletionGracePeriodSeconds",
        "metadata.generation",
        "metadata.selfLink",
    ] {
        // An immutable field that the client left out stays; one that it changed is an error further down.
        let keep = match kept {
            "metadata.generation" | "metadata.creationTimestamp" => true,
            "metadata.deletionTimestamp" => old.at(kept).exists(),
            _ => !new.at(kept).exists(),
        };
        if keep {
            new.copy_from(kept, old.at(kept)).map_err(ApiError::internal)?;
        }
    }
    new.remove("metadata.selfLink");
    let action = Action::of(sub);
    strategy.prepare_update(action, &mut new, old);
    let mut claimed = crate::services::claim_for_update(ctx, res, &mut new, old, dry_run).await?;
    let result = async {
        let mut errors = ErrorList::new();
        meta::validate_update(&new, old, &mut errors);
        strategy.validate_update(action, &new, old, &mut errors);
        if let Some(custom) = &res.custom {
            objects::validate_update(custom, action, &new, old, &mut errors).into_iter().for_each(|w| ctx.warn(w));
            objects::warnings(&new, Some(old)).into_iter().for_each(|w| ctx.warn(w));
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(Group(kind_group(res), &res.kind), name, &errors));
        }
        if action == Action::Main {
            for w in (strategy.warnings)(&new, Some(old)) {
                ctx.warn(w);
            }
        }
        admission::validate(&asked, Some(&new), Some(old)).await?;
        let key = etcd_key(ctx, res, name);
        let gone = new.at("metadata.deletionTimestamp").exists()
            && new.at("metadata.finalizers").is_empty()
            && new.at("metadata.deletionGracePeriodSeconds").as_i64().unwrap_or(0) == 0
            && (res.plural != "namespaces" || new.at("spec.finalizers").is_empty());
        let equal = k8s_schema::apply::ignore_times(old, &mut new);
        if as_protobuf(res) {
            new.forget_empty();
        }
        let form = stored_form(&ctx.server, res, &new).await?;
        if let Some(custom) = &res.custom {
            conversion::settle(&ctx.server, custom, &mut new, &form).await?;
        }
        let value = encode(res, form);
        // What is stored of a custom resource may be of another version, or lack new defaults: writing it again mends that.
        let same = match &res.custom {
            Some(_) => value == stored.body,
            None => value == stored.body || equal && value == to_storage(&ctx.server.objects.schema, res, old)?,
        };
        // What an older key sealed is written again though nothing else changes.
        if same && !gone && (dry_run || !ctx.server.etcd.is_stale(&key).await?) {
            set(&mut new, "metadata.resourceVersion", stored.rev.to_string())?;
            return Ok(Some(new.clone()));
        }
        if dry_run {
            set(&mut new, "metadata.resourceVersion", stored.rev.to_string())?;
            return Ok(Some(new.clone()));
        }
        let write = if gone {
            ctx.server.etcd.delete(&key, stored.rev).await
        } else {
            let lease = ctx.server.lease_for(res).await?;
            ctx.server.etcd.update(&key, stored.rev, value, lease).await
        };
        match write {
            Ok(rev) => {
                set(&mut new, "metadata.resourceVersion", if gone { stored.rev } else { rev }.to_string())?;
                if gone {
                    crate::services::released(ctx, res, &new).await;
                } else {
                    let _ = ctx.wrote.set(rev);
                }
                Ok(Some(new.clone()))
            }
            Err(StoreError::Changed { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
    .await;
    match &result {
        Ok(Some(_)) => claimed.keep(),
        _ => claimed.release().await,
    }
    result
}
