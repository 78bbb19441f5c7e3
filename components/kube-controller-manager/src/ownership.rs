//! Owners and what they own: claiming by selector, pods made from a template, and creating many of them without flooding.

use std::future::Future;
use std::sync::Arc;

use k8s_client::{
    Client, DeleteOptions, Error, LabelMap, LabelSelector, Named, ObjectMeta, OwnerReference, Patch, Request, Resource, Time,
    owner_reference, resources::PODS,
};
use serde_json::{Value, json};

use crate::reconcile::Selecting;

/// What to do about one object an owner might own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

/// Upstream's rule: keep what is ours and matches, release what is ours and no longer matches, adopt matching orphans; nothing is adopted or
/// released by an owner that is being deleted, and nothing being deleted is adopted.
fn claim(owner: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
    let matches = selector.matches(&object.labels);
    match object.controller() {
        Some(controller) if controller.uid != owner.uid => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner.is_deleting() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if matches && !selector.is_empty() && !owner.is_deleting() && !object.is_deleting() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// Whether the owner makes an object its own that has no owner.
pub fn adopts<O: Selecting>(owner: &O, object: &ObjectMeta) -> bool {
    claim(owner.meta(), owner.selector(), object) == Claim::Adopt
}

/// What of `candidates` is the owner's, after adopting and releasing as [`claim`] says. An orphan is adopted only if `adoptable`.
pub async fn claim_all<O: Selecting, T: Named>(
    client: &Client,
    owner: &O,
    candidates: Vec<Arc<T>>,
    adoptable: impl Fn(&T) -> bool + Send,
) -> Result<Vec<Arc<T>>, Error> {
    let mut owned = Vec::new();
    for object in candidates {
        match claim(owner.meta(), owner.selector(), object.meta()) {
            Claim::Keep => owned.push(object),
            Claim::Adopt if adoptable(&object) => {
                let request = adopt_request(&T::RESOURCE, object.meta(), &owner_reference(&O::RESOURCE, owner.meta()), O::FINALIZER);
                ignore_missing(client, &request).await?;
                owned.push(object);
            }
            Claim::Release => {
                ignore_missing(client, &release_request(&T::RESOURCE, object.meta(), &owner.meta().uid, O::FINALIZER)).await?
            }
            Claim::Adopt | Claim::Ignore => {}
        }
    }
    Ok(owned)
}

/// Makes the owner the object's controller, with the owner's finalizer beside others.
fn adopt_request(resource: &Resource, object: &ObjectMeta, owner: &OwnerReference, finalizer: Option<&str>) -> Request {
    let mut body = json!({"metadata": {"ownerReferences": [owner], "uid": object.uid}});
    if let Some(finalizer) = finalizer {
        body["metadata"]["finalizers"] = json!([finalizer]);
    }
    Request::patch(resource, &object.namespace, &object.name, &Patch::strategic(&body))
}

/// Takes the owner out of the object's owners, and its finalizer.
fn release_request(resource: &Resource, object: &ObjectMeta, owner_uid: &str, finalizer: Option<&str>) -> Request {
    let mut body = json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner_uid}], "uid": object.uid}});
    if let Some(finalizer) = finalizer {
        body["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    Request::patch(resource, &object.namespace, &object.name, &Patch::strategic(&body))
}

/// A pod from a template, owned by `owner`, named by the server from the owner's name.
pub fn pod_from_template(
    template: &Value,
    namespace: &str,
    owner: &OwnerReference,
    extra_labels: &LabelMap,
    extra_annotations: &LabelMap,
) -> Value {
    let source = template.get("metadata");
    let copy = |field: &str, extra: &LabelMap| {
        let mut map: LabelMap = source.and_then(|m| m.get(field)).and_then(|v| serde_json::from_value(v.clone()).ok()).unwrap_or_default();
        map.extend(extra.iter().map(|(k, v)| (k.clone(), v.clone())));
        map
    };
    let mut metadata = json!({
        "namespace": namespace,
        "generateName": generate_name(&owner.name),
        "labels": copy("labels", extra_labels),
        "ownerReferences": [owner],
    });
    let annotations = copy("annotations", extra_annotations);
    if !annotations.is_empty() {
        metadata["annotations"] = json!(annotations);
    }
    if let Some(finalizers) = source.and_then(|m| m.get("finalizers")).filter(|f| f.is_array()) {
        metadata["finalizers"] = finalizers.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec").cloned().unwrap_or_else(|| json!({}))})
}

/// The owner's name with a dash, without it when that would be no valid prefix of a name.
fn generate_name(owner: &str) -> String {
    if owner.len() < 253 { format!("{owner}-") } else { owner.to_string() }
}

/// A deletion of exactly this pod.
pub fn delete_pod(pod: &ObjectMeta) -> Request {
    Request::delete(&PODS, &pod.namespace, &pod.name, &DeleteOptions::uid(&pod.uid))
}

/// Deletes exactly this pod, whose status says before why it is taken from its user.
pub async fn disrupt_pod(client: &Client, pod: &ObjectMeta, reason: &str, message: &str) -> Result<(), Error> {
    let condition =
        json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastTransitionTime": Time::now()});
    let body = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
    let patch = Request::patch(&PODS, &pod.namespace, &pod.name, &Patch::strategic(&body)).subresource("status");
    ignore_missing(client, &patch).await?;
    ignore_missing(client, &delete_pod(pod)).await
}

/// Runs `count` creations in batches of 1, 2, 4…, stopping at the first batch with a failure, so that a quota or a bad template costs one
/// request instead of all. Returns how many were tried and the first failure.
pub async fn slow_start<F, Fut>(count: usize, create: F) -> (usize, Result<(), Error>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    let mut done = 0;
    let mut batch = 1;
    while done < count {
        let size = batch.min(count - done);
        let results = futures_util::future::join_all((done..done + size).map(&create)).await;
        done += size;
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return (done, Err(error));
        }
        batch *= 2;
    }
    (done, Ok(()))
}

/// Executes a request, taking "not found" for success.
pub async fn ignore_missing(client: &Client, request: &Request) -> Result<(), Error> {
    match client.execute(request).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(uid: &str, label: &str, owner: Option<&str>, deleting: bool) -> ObjectMeta {
        ObjectMeta {
            uid: uid.into(),
            labels: [("app".to_string(), label.to_string())].into(),
            owner_references: owner
                .map(|uid| OwnerReference { uid: uid.into(), controller: Some(true), ..Default::default() })
                .into_iter()
                .collect(),
            deletion_timestamp: deleting.then(k8s_client::Time::now),
            ..Default::default()
        }
    }

    #[test]
    fn claiming_follows_upstream() {
        let selector = LabelSelector::labels([("app", "web")]);
        for (owner_deleting, object, want) in [
            (false, meta("p", "web", Some("me"), false), Claim::Keep),
            (false, meta("p", "db", Some("me"), false), Claim::Release),
            (true, meta("p", "db", Some("me"), false), Claim::Ignore),
            (false, meta("p", "web", Some("other"), false), Claim::Ignore),
            (false, meta("p", "web", None, false), Claim::Adopt),
            (false, meta("p", "web", None, true), Claim::Ignore),
            (true, meta("p", "web", None, false), Claim::Ignore),
            (false, meta("p", "db", None, false), Claim::Ignore),
        ] {
            assert_eq!(claim(&meta("me", "x", None, owner_deleting), &selector, &object), want, "{object:?}");
        }
        assert_eq!(claim(&meta("me", "x", None, false), &LabelSelector::default(), &meta("p", "web", None, false)), Claim::Ignore);
    }

    #[test]
    fn a_pod_takes_the_templates_metadata_and_the_owner() {
        let template = json!({"metadata": {"labels": {"a": "b"}, "creationTimestamp": null}, "spec": {"containers": [{"name": "c"}]}});
        let owner = OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: "web-1".into(),
            uid: "u".into(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        let pod = pod_from_template(&template, "d", &owner, &[("x".to_string(), "y".to_string())].into(), &LabelMap::new());
        assert_eq!(
            pod,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "d", "generateName": "web-1-", "labels": {"a": "b", "x": "y"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "u", "controller": true, "blockOwnerDeletion": true}]},
                "spec": {"containers": [{"name": "c"}]}})
        );
    }

    #[tokio::test]
    async fn slow_start_stops_at_the_first_failing_batch() {
        let fail_at = |bad: usize| move |n: usize| async move { if n == bad { Err(Error::TooLarge(String::new(), 0)) } else { Ok(()) } };
        assert!(matches!(slow_start(10, fail_at(100)).await, (10, Ok(()))));
        assert!(matches!(slow_start(10, fail_at(0)).await, (1, Err(_))));
        assert!(matches!(slow_start(10, fail_at(2)).await, (3, Err(_))));
        assert!(matches!(slow_start(0, fail_at(0)).await, (0, Ok(()))));
    }
}
