//! Server-side apply and managedFields: structured-merge-diff and upstream's field manager, as pure functions.
//!
//! [`update`] is for create, update and the patches that are not applies; [`apply`] for apply patches. The time and the
//! manager's name are inputs. What a resource's strategy resets (`status` on the main resource, `spec` on `/status`) is
//! given as the fields to ignore.
//!
//! Entries of other API versions are taken to have the same paths; kinds for which that is wrong (autoscaling/v1 and v2)
//! need a conversion first.

mod managed;
mod merge;
mod set;
mod typed;

pub use managed::{Managed, Manager, Managers, decode as managers_of};
pub use set::{Path, PathElement, Scalar, Set};

use crate::doc::Doc;
use crate::table::{Schema, TypeId, split_api_version};
use serde_json::Value;
use std::sync::LazyLock;
use typed::{Comparison, TypeRef};

/// What an operation is done as.
#[derive(Debug, Clone)]
pub struct Operation<'a> {
    /// The field manager, or what the client is called when it gave none.
    pub manager: &'a str,
    /// The subresource, empty for the object itself.
    pub subresource: &'a str,
    /// Now, in Unix seconds.
    pub now: i64,
    /// Fields that this operation cannot set.
    pub ignored: &'a Set,
    /// The type that the object merges by, when its document is untyped (custom resources).
    pub typed_by: Option<(&'a Schema, TypeId)>,
}

impl Operation<'_> {
    fn types<'s>(&'s self, doc: &'s Doc) -> (&'s Schema, TypeRef) {
        match self.typed_by {
            Some((schema, ty)) => (schema, TypeRef::of(ty)),
            None => (doc.schema(), TypeRef::of(doc.type_id())),
        }
    }
}

/// Why an apply was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// 400 BadRequest.
    #[error("{0}")]
    BadRequest(String),
    /// 409 Conflict with a cause for each.
    #[error("{}", conflict_message(.0))]
    Conflict(Vec<Conflict>),
    /// 500 with this message.
    #[error("{0}")]
    Internal(String),
}

/// A field that another manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Who owns it, as the cause's message names it: `conflict with <manager>`.
    pub manager: Manager,
    /// Which field.
    pub path: Path,
}

impl Conflict {
    /// The message of the cause `FieldManagerConflict`.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.path);
    }
    let mut lines = Vec::new();
    let mut last = None;
    for c in conflicts {
        if last != Some(&c.manager) {
            lines.push(format!("conflicts with {}:", c.manager));
            last = Some(&c.manager);
        }
        lines.push(format!("- {}", c.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Managers by update beyond this many are put together as `ancient-changes`.
const MAX_UPDATE_MANAGERS: usize = 10;
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const KUBECTL: &str = "kubectl";

/// Fields that nobody manages.
static UNMANAGED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// Sets the managedFields of `new`, which is about to replace `live` (for a create: an empty object of the same kind).
/// As upstream, what cannot be understood leaves the object without managedFields rather than failing the request.
pub fn update(live: &Doc, new: &mut Doc, operation: &Operation<'_>) {
    let managers = if operation.subresource.is_empty() {
        if managed::is_reset(new) {
            Managers::new()
        } else {
            match managed::decode(new) {
                Ok(managers) if !managers.is_empty() => managers,
                _ => managed::decode(live).unwrap_or_default(),
            }
        }
    } else {
        managed::decode(live).unwrap_or_default()
    };
    new.remove("metadata.managedFields");
    // An object that was stored without managedFields is not tracked until it is applied to.
    if managers.is_empty() && !live.meta().uid().is_empty() {
        return;
    }
    let (mut old_value, new_value) = live.root().differing(new.root());
    if let Some(Value::Object(meta)) = old_value.get_mut("metadata") {
        meta.shift_remove("managedFields");
    }
    let managers = cap(record_update(new, &old_value, &new_value, managers, operation));
    // The list is made of what the schema says managedFields are.
    let _ = managed::encode(new, &managers);
}

/// [`update`] for a write through the scale subresource, which is made of the replicas at `path` alone: it notes nothing when nobody manages them,
/// and none of them, which a Scale leaves out, is nobody's.
pub fn update_scale(live: &Doc, new: &mut Doc, operation: &Operation<'_>, path: &[&str]) {
    let set = Set::of_fields(&[path]);
    let mut managers = managed::decode(live).unwrap_or_default();
    let is_managed = managers.values().any(|m| !m.set.intersection(&set).is_empty());
    let none = path.iter().fold(new.root(), |r, field| r.get(field)).int() == 0;
    if is_managed && none {
        managers.values_mut().for_each(|m| m.set.subtract(&set));
        managers.retain(|_, m| !m.set.is_empty());
        // The list is made of what the schema says managedFields are.
        let _ = managed::encode(new, &managers);
    } else if is_managed {
        update(live, new, operation);
    } else {
        // The same list in the same field: this cannot fail.
        let _ = new.copy_from("metadata.managedFields", live.at("metadata.managedFields"));
    }
}

fn without_managed_fields(doc: &Doc) -> Value {
    let mut bare = doc.clone();
    bare.remove("metadata.managedFields");
    bare.to_value()
}

fn record_update(doc: &Doc, old: &Value, new: &Value, mut managers: Managers, operation: &Operation<'_>) -> Managers {
    let (schema, tr) = operation.types(doc);
    let compared = typed::compare(schema, tr, old, new).exclude(operation.ignored);
    take_away(&mut managers, None, &compared);
    let Comparison { modified, added, .. } = compared;
    let mut set = modified.joined(added);
    set.subtract(&UNMANAGED);
    if !set.is_empty() {
        let manager = Manager {
            name: if operation.manager.is_empty() { "unknown".to_owned() } else { operation.manager.to_owned() },
            applied: false,
            api_version: doc.api_version().to_owned(),
            subresource: operation.subresource.to_owned(),
        };
        let set = managers.remove(&manager).map_or_else(Set::default, |m| m.set).joined(set);
        // Upstream notes no time for what came through the scale subresource.
        let time = (operation.subresource != "scale").then_some(operation.now);
        let managed = Managed { set, api_version: doc.api_version().to_owned(), time };
        managers.insert(manager, managed);
    }
    managers
}

/// What others lose: fields that changed and fields that are gone.
fn take_away(managers: &mut Managers, except: Option<&Manager>, compared: &Comparison) {
    for (manager, managed) in managers.iter_mut() {
        if Some(manager) != except {
            for gone in [&compared.modified, &compared.added, &compared.removed] {
                managed.set.subtract(gone);
            }
        }
    }
    managers.retain(|_, m| !m.set.is_empty());
}

/// Puts the oldest managers by update together, per version, until few enough are left.
fn cap(mut managers: Managers) -> Managers {
    let mut updaters: Vec<(i64, Manager)> =
        managers.iter().filter(|(m, _)| !m.applied).map(|(m, v)| (v.time.unwrap_or(0), m.clone())).collect();
    let mut count = updaters.len();
    if count <= MAX_UPDATE_MANAGERS {
        return managers;
    }
    updaters.sort();
    let mut first_of_version: Vec<(String, Manager)> = Vec::new();
    for (_, manager) in updaters {
        if count <= MAX_UPDATE_MANAGERS {
            break;
        }
        let Some(managed) = managers.get(&manager).cloned() else { continue };
        let bucket = Manager {
            name: "ancient-changes".to_owned(),
            applied: false,
            api_version: managed.api_version.clone(),
            subresource: String::new(),
        };
        let Some((_, first)) = first_of_version.iter().find(|(v, _)| *v == managed.api_version) else {
            first_of_version.push((managed.api_version.clone(), manager));
            continue;
        };
        if !managers.contains_key(&bucket)
            && let Some(former) = managers.remove(first)
        {
            managers.insert(bucket.clone(), former);
        }
        managers.remove(&manager);
        if let Some(entry) = managers.get_mut(&bucket) {
            entry.set = managed.set.union(&entry.set);
            entry.time = managed.time;
        }
        count -= 1;
    }
    managers
}

/// Lays a configuration over an object, as the object's types merge. Who manages which field stays as it is; fields that the types do not
/// know are refused, with upstream's text.
pub fn overlay(live: &Doc, config: &Value, typed_by: Option<(&Schema, TypeId)>) -> Result<Doc, String> {
    let (schema, ty) = typed_by.unwrap_or_else(|| (live.schema(), live.type_id()));
    let ty = TypeRef::of(ty);
    typed::validate(schema, ty, config).map_err(|e| format!("failed to convert patch object to typed object: {e}"))?;
    let merged = merge::merge(schema, ty, &live.to_value(), config)?;
    let mut doc = Doc::from_value(live.schema(), live.type_id(), &merged).map_err(|e| e.to_string())?.doc;
    doc.set_type_meta(live.api_version(), live.kind());
    Ok(doc)
}

/// Applies a configuration to the live object (for a create: an empty object of the kind). The answer has its
/// managedFields set and no defaults applied to what is new; it equals the live object when nothing changes.
///
/// `config` is the applied object as it came. `force` takes over what others own.
pub fn apply(live: &Doc, config: &Value, operation: &Operation<'_>, force: bool) -> Result<Doc, ApplyError> {
    let schema = live.schema();
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let gvk = |api_version: &str, kind: &str| match split_api_version(api_version) {
        Some((group, version)) => format!("{group}/{version}, Kind={kind}"),
        None => format!("/, Kind={kind}"),
    };
    if (api_version, kind) != (live.api_version(), live.kind()) {
        return Err(ApplyError::BadRequest(format!("invalid object type: {}", gvk(api_version, kind))));
    }
    let meta = |key: &str| config.get("metadata").and_then(|m| m.get(key));
    if meta("managedFields").is_some_and(|m| !m.is_null()) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    let mut managers = managed::decode(live).map_err(|e| ApplyError::Internal(format!("failed to decode managed fields: {e}")))?;
    let old = without_managed_fields(live);
    if managers.is_empty() {
        let empty = Doc::of_kind(
            schema,
            split_api_version(api_version).map_or("", |v| v.0),
            split_api_version(api_version).map_or("", |v| v.1),
            kind,
        )
        .unwrap_or_else(|| Doc::new(schema, live.type_id()));
        let before = Operation { manager: "before-first-apply", ..operation.clone() };
        managers = record_update(live, &empty.to_value(), &old, managers, &before);
    }
    typed::validate(operation.types(live).0, operation.types(live).1, config).map_err(|e| {
        let name = |key| meta(key).and_then(Value::as_str).unwrap_or("");
        ApplyError::Internal(format!(
            "failed to create typed patch object ({}/{}; {}): {e}",
            name("namespace"),
            name("name"),
            gvk(api_version, kind)
        ))
    })?;
    let merged = Applier { live, old: &old, config, operation, managers: &managers };
    let (new, managers) = match merged.run(force) {
        Err(ApplyError::Conflict(conflicts)) if operation.manager == KUBECTL => {
            // What `kubectl apply` itself set, before it applied on the server, is no conflict.
            let allowed = last_applied_set(live, &old, operation);
            let left: Vec<Conflict> = conflicts.into_iter().filter(|c| !allowed.as_ref().is_some_and(|a| a.has(&c.path.0))).collect();
            if !left.is_empty() {
                return Err(ApplyError::Conflict(left));
            }
            merged.run(true)?
        }
        other => other?,
    };
    let mut doc = match new {
        None => live.clone(),
        Some(value) => {
            let decoded = Doc::from_value(schema, live.type_id(), &value);
            let mut doc = decoded
                .map_err(|e| ApplyError::Internal(format!("failed to convert new typed object ({}): {e}", gvk(api_version, kind))))?
                .doc;
            doc.set_type_meta(live.api_version(), live.kind());
            doc
        }
    };
    let internal = |e: crate::EditError| ApplyError::Internal(format!("failed to encode managed fields: {e}"));
    managed::encode(&mut doc, &managers).map_err(internal)?;
    if operation.manager == KUBECTL && doc.meta().annotation(LAST_APPLIED).is_some_and(|a| !a.is_empty()) {
        let mut applied = config.clone();
        if let Some(Value::Object(annotations)) = applied.get_mut("metadata").and_then(|m| m.get_mut("annotations")) {
            annotations.shift_remove(LAST_APPLIED);
        }
        sort_keys(&mut applied);
        doc.set(&format!("metadata.annotations[{LAST_APPLIED}]"), format!("{applied}\n")).map_err(internal)?;
    }
    Ok(doc)
}

fn sort_keys(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.sort_keys();
            map.values_mut().for_each(sort_keys);
        }
        Value::Array(list) => list.iter_mut().for_each(sort_keys),
        _ => {}
    }
}

/// What the last-applied annotation says was set, and still is.
fn last_applied_set(live: &Doc, old: &Value, operation: &Operation<'_>) -> Option<Set> {
    let applied: Value = serde_json::from_str(live.meta().annotation(LAST_APPLIED)?).ok()?;
    if applied.get("apiVersion").and_then(Value::as_str) != Some(live.api_version()) {
        return None;
    }
    let (schema, tr) = operation.types(live);
    typed::validate(schema, tr, &applied).ok()?;
    let set = typed::field_set(schema, tr, &applied);
    let compared = typed::compare(schema, tr, &applied, old);
    Some(set.difference(&compared.modified).difference(&compared.added).difference(&compared.removed))
}

struct Applier<'a> {
    live: &'a Doc,
    old: &'a Value,
    config: &'a Value,
    operation: &'a Operation<'a>,
    managers: &'a Managers,
}

impl Applier<'_> {
    /// The new object, or none when nothing changes, and its managers.
    fn run(&self, force: bool) -> Result<(Option<Value>, Managers), ApplyError> {
        let (schema, tr) = self.operation.types(self.live);
        let mut managers = self.managers.clone();
        let me = Manager {
            name: self.operation.manager.to_owned(),
            applied: true,
            api_version: String::new(),
            subresource: self.operation.subresource.to_owned(),
        };
        let merged =
            merge::merge(schema, tr, self.old, self.config).map_err(|e| ApplyError::Internal(format!("failed to merge config: {e}")))?;
        let last = managers.get(&me).cloned();
        let set = typed::field_set(schema, tr, self.config).recursive_difference(self.operation.ignored);
        let api_version = self.live.api_version().to_owned();
        managers.insert(me.clone(), Managed { set, api_version, time: last.as_ref().and_then(|l| l.time) });
        let new = match last.filter(|l| !l.set.is_empty()) {
            Some(last) => self.prune(&merged, &managers, &last.set),
            None => merged,
        };
        let compared = typed::compare(schema, tr, self.old, &new).exclude(self.operation.ignored);
        let changed = compared.modified.clone().union(&compared.added);
        let mut conflicts = Vec::new();
        for (manager, managed) in managers.iter().filter(|(m, _)| **m != me) {
            managed
                .set
                .intersection(&changed)
                .for_each(&mut |p| conflicts.push(Conflict { manager: manager.clone(), path: Path(p.to_vec()) }));
        }
        if !force && !conflicts.is_empty() {
            return Err(ApplyError::Conflict(conflicts));
        }
        take_away(&mut managers, Some(&me), &compared);
        let unchanged = typed::equal(self.old, &new);
        if let Some(mut mine) = managers.remove(&me) {
            mine.set.subtract(&UNMANAGED);
            if !unchanged {
                mine.time = Some(self.operation.now);
            }
            if !mine.set.is_empty() {
                managers.insert(me, mine);
            }
        }
        Ok(((!unchanged).then_some(new), managers))
    }

    /// Removes what this manager applied before, does not apply now, and nobody else manages.
    fn prune(&self, merged: &Value, managers: &Managers, last: &Set) -> Value {
        let (schema, tr) = self.operation.types(self.live);
        let named = |set: &Set| typed::with_named_fields(schema, tr, set);
        let last = named(last);
        let pruned = merge::remove(schema, tr, merged, &last);
        let owned = managers.values().fold(Set::default(), |all, m| all.union(&m.set));
        let merged_set = named(&typed::field_set(schema, tr, merged));
        let keep = named(&typed::field_set(schema, tr, &pruned)).union(&named(&owned));
        let pruned = merge::remove(schema, tr, merged, &merged_set.difference(&keep));
        // Fields that were not this manager's before stay, even when nobody manages them.
        let pruned_set = named(&typed::field_set(schema, tr, &pruned));
        merge::remove(schema, tr, merged, &merged_set.difference(&pruned_set).intersection(&last))
    }
}

/// Keeps the old managedFields when `new` differs from `old` in nothing but their times, so that a request that changes
/// nothing writes nothing. Whether all but the managedFields is equal.
pub fn ignore_times(old: &Doc, new: &mut Doc) -> bool {
    let rest_is_equal = if old.type_id() == TypeId::ANY {
        let (mut a, mut b) = (old.clone(), new.clone());
        for doc in [&mut a, &mut b] {
            doc.remove("metadata.managedFields");
        }
        a == b
    } else {
        old.root().eq_but(new.root(), &["metadata", "managedFields"])
    };
    if !rest_is_equal {
        return false;
    }
    let (Ok(before), Ok(after)) = (managed::decode(old), managed::decode(new)) else { return true };
    let same = before.len() == after.len()
        && before.iter().zip(&after).all(|((a, x), (b, y))| a == b && x.set == y.set && x.api_version == y.api_version);
    if same {
        // The same list of the same type.
        let _ = new.copy_from("metadata.managedFields", old.at("metadata.managedFields"));
    }
    true
}
