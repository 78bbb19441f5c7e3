//! Mirror pods: what the API shows of static pods.

use super::static_pods::StaticPod;
use crate::api::Api;
use crate::model::pod::{CONFIG_MIRROR, Pod};
use k8s_client::resources::PODS;
use k8s_client::{DeleteOptions, Request};
use serde_json::{Value, json};
use std::sync::Arc;

/// One step towards having exactly the right mirrors.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Create the mirror of the static pod with this index.
    Create(usize),
    /// Delete a mirror that is outdated or whose static pod is gone.
    Delete { namespace: String, name: String, uid: String },
}

/// Compares static pods with the mirrors the API server has.
pub fn plan(statics: &[StaticPod], api_pods: &[Arc<Pod>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for mirror in api_pods.iter().filter(|p| p.is_mirror()) {
        let current = statics.iter().find(|s| {
            s.pod.metadata.name == mirror.metadata.name
                && s.pod.metadata.namespace == mirror.metadata.namespace
                && mirror.metadata.annotations.get(CONFIG_MIRROR) == Some(&s.pod.metadata.uid)
        });
        if current.is_none() || mirror.metadata.deletion_timestamp.is_some() {
            steps.push(Step::Delete {
                namespace: mirror.metadata.namespace.clone(),
                name: mirror.metadata.name.clone(),
                uid: mirror.metadata.uid.clone(),
            });
        }
    }
    for (index, fixed) in statics.iter().enumerate() {
        let taken =
            api_pods.iter().any(|p| p.metadata.name == fixed.pod.metadata.name && p.metadata.namespace == fixed.pod.metadata.namespace);
        if !taken {
            steps.push(Step::Create(index));
        }
    }
    steps
}

/// The mirror of a static pod.
pub fn mirror_of(fixed: &StaticPod, node_name: &str, node_uid: &str) -> Value {
    let mut mirror = (*fixed.manifest).clone();
    if let Some(metadata) = mirror.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.insert(CONFIG_MIRROR.into(), fixed.pod.metadata.uid.clone().into());
        }
        metadata.insert(
            "ownerReferences".into(),
            json!([{"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_uid, "controller": true}]),
        );
    }
    mirror
}

/// Brings the mirrors up to date; what fails is tried again at the next call.
pub async fn sync(api: &Api, statics: &[StaticPod]) {
    let (Some(pods), Some(node), Ok(client)) = (api.pods.get(), api.node.load_full(), api.client()) else { return };
    if !pods.has_synced() {
        return;
    }
    for step in plan(statics, &pods.list()) {
        let (what, result) = match &step {
            Step::Create(index) => {
                let body = mirror_of(&statics[*index], &node.metadata.name, &node.metadata.uid);
                ("create mirror pod", client.execute(&Request::create(&PODS, &statics[*index].pod.metadata.namespace, &body)).await)
            }
            Step::Delete { namespace, name, uid } => {
                let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(uid) };
                ("delete mirror pod", client.execute(&Request::delete(&PODS, namespace, name, &options)).await)
            }
        };
        match result {
            Ok(()) => {}
            Err(error) if error.is_not_found() || error.is_already_exists() => {}
            Err(error) => tracing::warn!(step = ?step, error = %error, "{what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::static_pods::pod_from_manifest;

    fn fixed() -> StaticPod {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: ns}\nspec: {containers: [{name: c, image: i}]}";
        pod_from_manifest(text, "f", "n", "now").unwrap()
    }

    fn mirror(hash: &str, deleting: bool) -> Arc<Pod> {
        let deletion = if deleting { json!("2026-01-01T00:00:00Z") } else { Value::Null };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "a-n", "namespace": "ns", "uid": "m", "deletionTimestamp": deletion,
                "annotations": {CONFIG_MIRROR: hash}}}))
            .unwrap(),
        )
    }

    #[test]
    fn mirrors_follow_static_pods() {
        let s = fixed();
        let hash = s.pod.metadata.uid.clone();
        let delete = || Step::Delete { namespace: "ns".into(), name: "a-n".into(), uid: "m".into() };
        assert_eq!(plan(std::slice::from_ref(&s), &[]), [Step::Create(0)]);
        assert_eq!(plan(std::slice::from_ref(&s), &[mirror(&hash, false)]), []);
        assert_eq!(plan(std::slice::from_ref(&s), &[mirror("old", false)]), [delete()]);
        assert_eq!(plan(std::slice::from_ref(&s), &[mirror(&hash, true)]), [delete()]);
        assert_eq!(plan(&[], &[mirror(&hash, false)]), [delete()]);
        let ordinary = Arc::new(Pod::default());
        assert_eq!(plan(&[], &[ordinary]), []);
    }

    #[test]
    fn a_mirror_belongs_to_the_node() {
        let s = fixed();
        let m = mirror_of(&s, "n", "node-uid");
        assert_eq!(m["metadata"]["ownerReferences"][0]["uid"], "node-uid");
        assert_eq!(m["metadata"]["annotations"][CONFIG_MIRROR], s.pod.metadata.uid);
    }
}
