//! Empties namespaces that are being deleted, then gives them up by removing the finalizer `kubernetes`.
//!
//! Pods go first and everything else only when no pod is left, so that a pod never outlives the policies and secrets it runs under (KEP-5080).

use std::sync::Arc;
use std::time::Duration;

use k8s_client::{
    Action, ApiResource, Change, Client, Condition, DeleteOptions, Error, List, ListOptions, ObjectKey, Partial, Propagation, Request,
    Resource, Time, WorkQueue, resources::NAMESPACES, run_workers,
};
use serde_json::{Value, json};

use crate::api::Namespace;
use crate::context::Context;

const FINALIZER: &str = "kubernetes";

/// What one pass over a namespace saw.
#[derive(Clone, Debug, Default, PartialEq)]
struct Observed {
    /// Resources that still have objects, with how many.
    remaining: Vec<(Resource, usize)>,
    /// Finalizers that keep them, with how many.
    finalizers: Vec<(String, usize)>,
    /// What could not be listed or deleted.
    failures: Vec<String>,
    /// What could not be discovered.
    undiscovered: Vec<String>,
}

/// What to do after a pass.
#[derive(Clone, Debug, PartialEq)]
enum Next {
    Finalize,
    /// Write these conditions, then look again after a while.
    Wait {
        conditions: Vec<(&'static str, bool, &'static str, String)>,
        again: Duration,
    },
}

fn plan(observed: &Observed) -> Next {
    if observed.remaining.is_empty() && observed.failures.is_empty() && observed.undiscovered.is_empty() {
        return Next::Finalize;
    }
    let list = |items: &[(String, usize)]| {
        items.iter().map(|(name, count)| format!("{name} has {count} resource instances")).collect::<Vec<_>>().join(", ")
    };
    let remaining: Vec<(String, usize)> = observed.remaining.iter().map(|(r, n)| (format!("{}.{}", r.plural, r.group), *n)).collect();
    let finalizers =
        observed.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect::<Vec<_>>().join(", ");
    let conditions = vec![
        (
            "NamespaceDeletionDiscoveryFailure",
            !observed.undiscovered.is_empty(),
            if observed.undiscovered.is_empty() { "ResourcesDiscovered" } else { "DiscoveryFailed" },
            if observed.undiscovered.is_empty() {
                "All resources successfully discovered".to_string()
            } else {
                format!("Discovery failed for some groups: {}", observed.undiscovered.join(", "))
            },
        ),
        (
            "NamespaceDeletionContentFailure",
            !observed.failures.is_empty(),
            if observed.failures.is_empty() { "ContentDeleted" } else { "ContentDeletionFailed" },
            if observed.failures.is_empty() {
                "All content successfully deleted, may be waiting on finalization".to_string()
            } else {
                format!("Failed to delete all resource types, {} remaining: {}", observed.failures.len(), observed.failures.join(", "))
            },
        ),
        (
            "NamespaceContentRemaining",
            !remaining.is_empty(),
            if remaining.is_empty() { "ContentRemoved" } else { "SomeResourcesRemain" },
            if remaining.is_empty() {
                "All content successfully removed".to_string()
            } else {
                format!("Some resources are remaining: {}", list(&remaining))
            },
        ),
        (
            "NamespaceFinalizersRemaining",
            !observed.finalizers.is_empty(),
            if observed.finalizers.is_empty() { "ContentHasNoFinalizers" } else { "SomeFinalizersRemain" },
            if observed.finalizers.is_empty() {
                "All content-preserving finalizers finished".to_string()
            } else {
                format!("Some content in the namespace has finalizers remaining: {finalizers}")
            },
        ),
    ];
    let again = if observed.failures.is_empty() { Duration::from_secs(2) } else { Duration::from_secs(10) };
    Next::Wait { conditions, again }
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("namespace-controller");
    let namespaces = context.informers.namespaces();
    let queue = WorkQueue::new("namespace");
    let sink = queue.clone();
    namespaces.add_handler(move |change: Change<'_, Namespace>| {
        let namespace = change.object();
        if namespace.metadata.is_deleting() {
            sink.add(namespace.metadata.key());
        }
    });
    let process = move |key: ObjectKey| {
        let (client, namespaces) = (client.clone(), namespaces.clone());
        async move {
            match namespaces.get_key(&key) {
                Some(namespace) if namespace.metadata.is_deleting() && namespace.spec.finalizers.iter().any(|f| f == FINALIZER) => {
                    sync(&client, &namespace).await
                }
                _ => Ok(Action::Done),
            }
        }
    };
    run_workers(queue, 5, context.stop.clone(), process).await;
}

async fn sync(client: &Client, namespace: &Arc<Namespace>) -> Result<Action, Error> {
    let name = namespace.metadata.name.as_str();
    if namespace.status.phase != "Terminating" {
        client
            .update(&NAMESPACES, ("", name), &namespace.metadata.uid, "status", |object| object["status"]["phase"] = json!("Terminating"))
            .await?;
    }
    let observed = empty(client, name).await?;
    match plan(&observed) {
        Next::Finalize => client
            .update(&NAMESPACES, ("", name), &namespace.metadata.uid, "finalize", |object| {
                if let Some(finalizers) = object["spec"]["finalizers"].as_array_mut() {
                    finalizers.retain(|finalizer| finalizer != FINALIZER);
                }
            })
            .await
            .map(|_| Action::Done)
            .or_else(|error| if error.is_not_found() { Ok(Action::Done) } else { Err(error) }),
        Next::Wait { conditions, again } => {
            let now = Time::now();
            client
                .update(&NAMESPACES, ("", name), &namespace.metadata.uid, "status", |object| {
                    for (kind, status, reason, message) in &conditions {
                        set_condition(&mut object["status"], kind, *status, reason, message, now);
                    }
                })
                .await?;
            Ok(Action::After(again))
        }
    }
}

fn set_condition(status: &mut Value, kind: &str, on: bool, reason: &str, message: &str, now: Time) {
    let wanted = if on { "True" } else { "False" };
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let mut condition = Condition {
        kind: kind.into(),
        status: wanted.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Some(now),
        ..Condition::default()
    };
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(known) => {
            if known["status"] == wanted {
                condition.last_transition_time = serde_json::from_value(known["lastTransitionTime"].clone()).ok();
            }
            *known = json!(condition);
        }
        None => conditions.push(json!(condition)),
    }
}

/// Deletes everything there is, pods first, and says what is left.
async fn empty(client: &Client, namespace: &str) -> Result<Observed, Error> {
    let discovered = client.discover().await?;
    let mut observed = Observed { undiscovered: discovered.failed, ..Observed::default() };
    let all: Vec<&ApiResource> = discovered.resources.iter().filter(|r| r.resource.namespaced && r.supports(&["delete", "list"])).collect();
    let is_pod = |r: &ApiResource| r.resource.group.is_empty() && r.resource.plural == "pods";
    for api in all.iter().filter(|r| is_pod(r)) {
        delete_all(client, api, namespace, &mut observed).await;
    }
    if observed.remaining.is_empty() && observed.failures.is_empty() {
        for api in all.iter().filter(|r| !is_pod(r)) {
            delete_all(client, api, namespace, &mut observed).await;
        }
    }
    Ok(observed)
}

async fn delete_all(client: &Client, api: &ApiResource, namespace: &str, observed: &mut Observed) {
    if let Err(error) = try_delete_all(client, api, namespace, observed).await
        && !error.is_not_found()
        && error.status().is_none_or(|status| status.code != 405)
    {
        tracing::warn!(namespace, resource = %api.resource, error = &error as &dyn std::error::Error, "emptying a namespace");
        observed.failures.push(format!("{}: {error}", api.resource));
    }
}

async fn try_delete_all(client: &Client, api: &ApiResource, namespace: &str, observed: &mut Observed) -> Result<(), Error> {
    let options = ListOptions { metadata_only: true, ..ListOptions::default() };
    let present: List<Partial> = client.list(&api.resource, namespace, &options).await?;
    if present.items.is_empty() {
        return Ok(());
    }
    let how = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
    if api.supports(&["deletecollection"]) {
        client.execute(&Request::delete_collection(&api.resource, namespace, &ListOptions::default(), &how)).await?;
    } else {
        for object in present.items.iter().filter(|object| !object.metadata.is_deleting()) {
            crate::ownership::ignore_missing(client, &Request::delete(&api.resource, namespace, &object.metadata.name, &how)).await?;
        }
    }
    let left: List<Partial> = client.list(&api.resource, namespace, &options).await?;
    if !left.items.is_empty() {
        observed.remaining.push((api.resource.clone(), left.items.len()));
    }
    for finalizer in left.items.iter().flat_map(|object| &object.metadata.finalizers) {
        match observed.finalizers.iter_mut().find(|(name, _)| name == finalizer) {
            Some((_, count)) => *count += 1,
            None => observed.finalizers.push((finalizer.clone(), 1)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_client::resources::PODS;

    use super::*;

    #[test]
    fn a_namespace_is_given_up_only_when_known_to_be_empty() {
        assert_eq!(plan(&Observed::default()), Next::Finalize);
        for observed in [
            Observed { remaining: vec![(PODS, 2)], ..Default::default() },
            Observed { failures: vec!["pods: forbidden".into()], ..Default::default() },
            Observed { undiscovered: vec!["/apis/x/v1".into()], ..Default::default() },
        ] {
            let Next::Wait { conditions, .. } = plan(&observed) else { panic!("{observed:?}") };
            assert_eq!(conditions.iter().filter(|(_, on, ..)| *on).count(), 1, "{conditions:?}");
        }
    }

    #[test]
    fn a_condition_keeps_its_transition_time_while_its_status_stays() {
        let then = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let now = Time("2026-01-02T00:00:00Z".parse().unwrap());
        let mut status = json!({});
        set_condition(&mut status, "A", true, "R", "m", then);
        set_condition(&mut status, "A", true, "R", "m2", now);
        assert_eq!(status["conditions"][0]["lastTransitionTime"], json!(then));
        set_condition(&mut status, "A", false, "R", "m2", now);
        assert_eq!(
            status["conditions"],
            json!([{"type": "A", "status": "False", "lastTransitionTime": now, "reason": "R", "message": "m2"}])
        );
    }
}
