//! Makes the claims of pods' ephemeral volumes, owned by their pod and gone with it.

use k8s_client::{
    Action, Client, Error, EventType, Informer, ObjectKey, Request, WorkQueue, owner_reference,
    resources::{PERSISTENT_VOLUME_CLAIMS, PODS},
};
use serde_json::{Value, json};

use crate::api::{PersistentVolumeClaim, Pod};
use crate::context::Context;
use crate::reconcile::{Reconcile, follow, work};

/// Claims to create, and claims in the way: those of that name which are not the pod's.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<Value>,
    foreign: Vec<String>,
}

fn plan(pod: &Pod, existing: &dyn Fn(&str) -> Option<std::sync::Arc<PersistentVolumeClaim>>) -> Plan {
    let mut plan = Plan::default();
    if pod.metadata.is_deleting() {
        return plan;
    }
    for volume in &pod.spec.volumes {
        let (Some(source), Some(name)) = (&volume.ephemeral, volume.claim_name(&pod.metadata)) else { continue };
        match existing(&name) {
            Some(claim) if claim.metadata.controller().is_some_and(|owner| owner.uid == pod.metadata.uid) => {}
            Some(_) => plan.foreign.push(name),
            None => {
                let template = &source.volume_claim_template;
                let mut metadata = json!({
                    "name": name,
                    "namespace": pod.metadata.namespace,
                    "ownerReferences": [owner_reference(&PODS, &pod.metadata)],
                });
                for field in ["labels", "annotations"] {
                    if template["metadata"][field].is_object() {
                        metadata[field] = template["metadata"][field].clone();
                    }
                }
                plan.create.push(
                    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": template["spec"].clone()}),
                );
            }
        }
    }
    plan
}

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("ephemeral-volume-controller"),
        pods: context.informers.pods().informer,
        claims: context.informers.claims(),
        context: context.clone(),
    };
    let queue = WorkQueue::new("ephemeral-volume");
    follow(&queue, &controller.pods);
    let sink = queue.clone();
    controller.claims.add_handler(move |change: k8s_client::Change<'_, PersistentVolumeClaim>| {
        // A claim that was in the way, or that somebody deleted.
        if let k8s_client::Change::Deleted(claim) = change
            && let Some(owner) = claim.metadata.controller().filter(|owner| owner.kind == "Pod")
        {
            sink.add(ObjectKey::new(claim.metadata.namespace.clone(), owner.name.clone()));
        }
    });
    controller.pods.wait_synced().await;
    controller.claims.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(pod) = self.pods.get_key(&key) else { return Ok(Action::Done) };
        let plan = plan(&pod, &|name| self.claims.get(&key.namespace, name));
        let fail = |problem: String| {
            let message = format!("ephemeral volume controller failed: {problem}");
            self.context.event(&PODS, &pod.metadata, EventType::Warning, "FailedBinding", message);
        };
        for claim in &plan.create {
            match self.client.execute(&Request::create(&PERSISTENT_VOLUME_CLAIMS, &key.namespace, claim)).await {
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                Err(error) => {
                    fail(error.to_string());
                    return Err(error);
                }
                Ok(()) => {}
            }
        }
        for claim in &plan.foreign {
            fail(format!("PVC {}/{claim} was not created for pod {}/{} (pod is not owner)", key.namespace, key.namespace, key.name));
        }
        Ok(if plan.foreign.is_empty() { Action::Done } else { Action::After(std::time::Duration::from_secs(30)) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_claim_is_made_once_and_a_foreign_one_is_left_alone() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {"volumes": [{"name": "plain"},
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}))
        .unwrap();
        let made = plan(&pod, &|_| None).create;
        assert_eq!(made.len(), 1);
        assert_eq!((&made[0]["metadata"]["name"], &made[0]["metadata"]["labels"]), (&json!("p-scratch"), &json!({"a": "b"})));
        assert_eq!(made[0]["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(made[0]["spec"], json!({"accessModes": ["ReadWriteOnce"]}));
        let ours: Arc<PersistentVolumeClaim> = Arc::new(serde_json::from_value(made[0].clone()).unwrap());
        assert_eq!(plan(&pod, &|_| Some(ours.clone())), Plan::default());
        assert_eq!(plan(&pod, &|_| Some(Arc::default())), Plan { create: vec![], foreign: vec!["p-scratch".into()] });
    }
}
