//! Brings definitions to what their status says: names accepted, established, and when they are deleted, first all their objects.
//!
//! Every server does it for itself; the writes are conditional and the plan is a function of what is stored, so several do not disturb
//! each other.

use std::{sync::Arc, time::Duration};

use k8s_schema::Doc;
use serde_json::{Value, json};

use super::{Definition, PREFIX, crd, definition::is_true};
use crate::{
    handlers::{self, Ctx, load, write},
    http::ApiError,
    registry::Resource,
    server::Server,
    storage::{StoreError, Stored},
};

pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Between looks at definitions that wait for their objects to go.
const RETRY: Duration = Duration::from_millis(500);

/// A condition as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn set_condition(d: &mut Doc, c: &Condition) -> Result<(), k8s_schema::EditError> {
    let mut all: Vec<Value> = d.at("status.conditions").iter().map(|c| c.to_value()).collect();
    let old = all.iter_mut().find(|x| x["type"] == c.type_);
    let since = match &old {
        Some(x) if x["status"] == c.status => x["lastTransitionTime"].clone(),
        _ => write::now().into(),
    };
    let new = json!({"type": c.type_, "status": c.status, "lastTransitionTime": since, "reason": c.reason, "message": c.message});
    match old {
        Some(x) => *x = new,
        None => all.push(new),
    }
    d.set("status.conditions", Value::from(all))
}

/// The names of a group that other definitions have.
struct Taken {
    names: Vec<String>,
    kinds: Vec<String>,
}

fn taken(group: &str, but: &str, all: &[Doc]) -> Taken {
    let mut t = Taken { names: Vec::new(), kinds: Vec::new() };
    for d in all.iter().filter(|d| d.at("spec.group").str() == group && d.meta().name() != but) {
        let n = d.at("status.acceptedNames");
        t.names.extend([n.get("plural").str(), n.get("singular").str()].map(str::to_owned));
        t.names.extend(n.get("shortNames").strings().map(str::to_owned));
        t.kinds.extend([n.get("kind").str(), n.get("listKind").str()].map(str::to_owned));
    }
    t.names.retain(|n| !n.is_empty());
    t.kinds.retain(|n| !n.is_empty());
    t
}

/// The status a definition should have, given all of them; none: it has it.
fn plan(d: &Doc, all: &[Doc]) -> Result<Option<Doc>, k8s_schema::EditError> {
    let mut new = d.clone();
    let (spec, had) = (d.at("spec.names"), d.at("status.acceptedNames"));
    let taken = taken(d.at("spec.group").str(), d.meta().name(), all);
    let mut conflict = None;
    let mut accepted = serde_json::Map::new();
    let mut keep = |field: &str, value: Value| {
        if !super::is_nothing(&value) {
            accepted.insert(field.to_owned(), value);
        }
    };
    for (field, pool, reason) in [
        ("plural", &taken.names, "PluralConflict"),
        ("singular", &taken.names, "SingularConflict"),
        ("kind", &taken.kinds, "KindConflict"),
        ("listKind", &taken.kinds, "ListKindConflict"),
    ] {
        let wanted = spec.get(field).str();
        if wanted.is_empty() || !pool.iter().any(|n| n == wanted) {
            keep(field, wanted.into());
        } else {
            keep(field, had.get(field).str().into());
            conflict = Some((reason, format!("{wanted:?} is already in use")));
        }
    }
    let short: Vec<&str> = spec.get("shortNames").strings().collect();
    let clashes: Vec<String> =
        short.iter().filter(|s| taken.names.iter().any(|n| n == *s)).map(|s| format!("{s:?} is already in use")).collect();
    if clashes.is_empty() {
        keep("shortNames", short.into());
    } else {
        keep("shortNames", had.get("shortNames").to_value());
        conflict = Some(("ShortNamesConflict", clashes.join(", ")));
    }
    keep("categories", spec.get("categories").to_value());
    new.set("status.acceptedNames", Value::Object(accepted))?;
    let names = match &conflict {
        None => Condition { type_: "NamesAccepted", status: "True", reason: "NoConflicts", message: "no conflicts found".into() },
        Some((reason, message)) => Condition { type_: "NamesAccepted", status: "False", reason, message: message.clone() },
    };
    set_condition(&mut new, &names)?;
    if !is_true(d, "Established") {
        let (status, reason, message) = match conflict {
            None => ("True", "InitialNamesAccepted", "the initial names have been accepted"),
            Some(_) => ("False", "NotAccepted", "not all names are accepted"),
        };
        set_condition(&mut new, &Condition { type_: "Established", status, reason, message: message.into() })?;
    }
    if crd::is_protected(d.at("spec.group").str()) {
        let (status, reason, message) = match crd::approval(d) {
            Ok((url, true)) => ("True", "ApprovedAnnotation", format!("approved in {url}")),
            Ok((why, false)) => ("False", "UnapprovedAnnotation", format!("not approved: {why:?}")),
            Err(false) => ("False", "MissingAnnotation", "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111".into()),
            Err(true) => ("False", "InvalidAnnotation", "the approval annotation is neither a URL nor a reason".into()),
        };
        set_condition(&mut new, &Condition { type_: "KubernetesAPIApprovalPolicyConformant", status, reason, message })?;
    }
    Ok((!new.at("status").semantic_eq(d.at("status"))).then_some(new))
}

/// Runs until the server stops.
pub async fn run(server: Arc<Server>) {
    let Some(cache) = server.objects.reflector.cache(PREFIX) else { return };
    let mut heads = cache.subscribe();
    loop {
        heads.borrow_and_update();
        let waiting = match step(&server).await {
            Ok(w) => w,
            Err(e) => {
                tracing::warn!(error = %e, "custom resource definitions cannot be looked after; trying again");
                true
            }
        };
        let pause = if waiting { RETRY } else { Duration::from_secs(60) };
        tokio::select! {
            _ = heads.changed() => {}
            () = tokio::time::sleep(pause) => {}
            () = server.stop.cancelled() => return,
        }
    }
}

/// One look at all definitions; whether some wait for objects to go.
async fn step(server: &Arc<Server>) -> Result<bool, ApiError> {
    let stored = server.objects.list(PREFIX, "");
    let mut docs: Vec<Doc> = stored.iter().filter_map(|s| server.objects.doc(s)).collect();
    let mut waiting = false;
    for (i, s) in stored.iter().enumerate() {
        let Some(d) = docs.get(i).filter(|d| d.meta().name() == s.name()).cloned() else { continue };
        if d.at("metadata.deletionTimestamp").exists() {
            if d.meta().finalizers().any(|f| f == FINALIZER) {
                waiting |= !clean_up(server, s, &d).await?;
            }
            continue;
        }
        if let Some(new) = plan(&d, &docs).map_err(ApiError::internal)? {
            store(server, s, &new).await?;
            docs[i] = new;
        }
    }
    Ok(waiting)
}

fn definition_resource(server: &Server) -> Result<Arc<Resource>, ApiError> {
    server.registry.stored("apiextensions.k8s.io", "customresourcedefinitions").cloned().ok_or_else(ApiError::no_resource)
}

/// Writes a definition unless somebody else did meanwhile, which brings it here again.
async fn store(server: &Arc<Server>, s: &Stored, new: &Doc) -> Result<(), ApiError> {
    let res = definition_resource(server)?;
    let value = write::to_storage(&server.objects.schema, &res, new)?;
    let key = format!("{}{PREFIX}/{}", server.root, s.key);
    match server.etcd.update(&key, s.rev, value, 0).await {
        Ok(_) | Err(StoreError::Changed { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Deletes the objects of a definition, and when none is left, the definition. Whether it is gone.
async fn clean_up(server: &Arc<Server>, s: &Arc<Stored>, d: &Doc) -> Result<bool, ApiError> {
    let def = Arc::new(Definition::of(d));
    let left = match def.storage_resource() {
        Some(res) if is_true(d, "Established") => {
            server.objects.reflector.barrier().await?;
            let objects = server.objects.list(&res.prefix, "");
            for o in &objects {
                let ctx = Ctx::internal(server, &res, o.namespace(), o.name());
                // One that is gone meanwhile or cannot be deleted yet is seen again at the next look.
                if let Err(e) = handlers::delete_for_server(&ctx, &res, o.name()).await
                    && e.code != 404
                {
                    tracing::warn!(object = &*o.key, error = %e, "an object of a deleted definition cannot be deleted yet");
                }
            }
            server.objects.reflector.barrier().await?;
            server.objects.list(&res.prefix, "").len()
        }
        _ => 0,
    };
    if left > 0 {
        let mut new = d.clone();
        let message = format!("CustomResource deletion is in progress, {left} left");
        set_condition(&mut new, &Condition { type_: "Terminating", status: "True", reason: "InstanceDeletionInProgress", message })
            .map_err(ApiError::internal)?;
        if !new.at("status").semantic_eq(d.at("status")) {
            store(server, s, &new).await?;
        }
        return Ok(false);
    }
    let res = definition_resource(server)?;
    let rest: Vec<&str> = d.meta().finalizers().filter(|f| *f != FINALIZER).collect();
    if rest.is_empty() {
        let key = format!("{}{PREFIX}/{}", server.root, s.key);
        return match server.etcd.delete(&key, s.rev).await {
            Ok(_) => Ok(true),
            Err(StoreError::Changed { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        };
    }
    let mut new = load(server, &res, s)?;
    new.set("metadata.finalizers", Value::from(rest)).map_err(ApiError::internal)?;
    let done =
        Condition { type_: "Terminating", status: "False", reason: "InstanceDeletionCompleted", message: "removed all instances".into() };
    set_condition(&mut new, &done).map_err(ApiError::internal)?;
    store(server, s, &new).await?;
    Ok(true)
}

/// Marks a definition that is asked to be deleted: its objects go first.
pub fn mark_deleted(d: &mut Doc) -> Result<(), ApiError> {
    let mut finalizers: Vec<String> = d.meta().finalizers().map(str::to_owned).collect();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    d.set("metadata.finalizers", Value::from(finalizers)).map_err(ApiError::internal)?;
    d.set("metadata.deletionTimestamp", write::now()).map_err(ApiError::internal)?;
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon".to_owned();
    set_condition(d, &Condition { type_: "Terminating", status: "True", reason: "InstanceDeletionPending", message })
        .map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;

    use super::*;

    fn definition(name: &str, names: Value, accepted: Value) -> Doc {
        let schema = Schema::builtin();
        let ty = schema.kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let v = json!({"metadata": {"name": name}, "spec": {"group": "g.io", "scope": "Cluster", "names": names,
            "versions": [{"name": "v1", "served": true, "storage": true}]}, "status": {"acceptedNames": accepted}});
        Doc::from_value(&schema, ty, &v).unwrap().doc
    }

    fn status(d: &Doc, condition: &str) -> (String, String) {
        let c = d.at("status.conditions").find("type", condition);
        (c.get("status").str().to_owned(), c.get("message").str().to_owned())
    }

    #[test]
    fn free_names_are_accepted_and_a_settled_definition_is_left_alone() {
        let names = json!({"plural": "as", "singular": "a", "kind": "A", "listKind": "AList", "shortNames": ["x"]});
        let d = definition("as.g.io", names.clone(), json!({"plural": "", "kind": ""}));
        let new = plan(&d, std::slice::from_ref(&d)).unwrap().unwrap();
        assert_eq!(status(&new, "NamesAccepted").0, "True");
        assert!(is_true(&new, "Established"));
        assert_eq!(new.at("status.acceptedNames").to_value(), names);
        assert!(plan(&new, std::slice::from_ref(&new)).unwrap().is_none());
    }

    #[test]
    fn a_name_in_use_is_not_accepted() {
        let other = definition("bs.g.io", json!({"plural": "bs", "kind": "B"}), json!({"plural": "bs", "singular": "b", "kind": "B"}));
        let d = definition(
            "cs.g.io",
            json!({"plural": "cs", "singular": "c", "kind": "B", "listKind": "BList", "shortNames": ["b"]}),
            json!({"plural": "", "kind": ""}),
        );
        let new = plan(&d, &[d.clone(), other]).unwrap().unwrap();
        assert_eq!(status(&new, "NamesAccepted"), ("False".into(), "\"b\" is already in use".into()));
        assert_eq!(status(&new, "Established").0, "False");
        assert_eq!(new.at("status.acceptedNames.plural").str(), "cs");
    }
}
