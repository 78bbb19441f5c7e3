//! Keeps claims that pods use, and volumes bound to claims, from going away under their users: deletion waits for a finalizer.

use k8s_client::{Action, Change, Client, Error, Informer, List, ListOptions, Named, ObjectKey, ObjectMeta, WorkQueue, resources::PODS};
use serde_json::{Value, json};

use crate::api::{PersistentVolume, PersistentVolumeClaim, Pod};
use crate::context::Context;
use crate::reconcile::{Reconcile, follow, work};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Protect,
    /// Let it go, unless it turns out to be in use after all.
    Release,
}

fn plan(meta: &ObjectMeta, finalizer: &str, in_use: bool) -> Plan {
    let protected = meta.finalizers.iter().any(|name| name == finalizer);
    match (meta.is_deleting(), protected) {
        (false, false) => Plan::Protect,
        (true, true) if !in_use => Plan::Release,
        _ => Plan::Nothing,
    }
}

/// Kubelets see pods once they are scheduled; until then nobody uses the claim.
fn uses(pod: &Pod, claim: &str) -> bool {
    !pod.spec.node_name.is_empty() && pod.spec.volumes.iter().any(|volume| volume.claim_name(&pod.metadata).as_deref() == Some(claim))
}

async fn set_finalizer<T: Named>(client: &Client, object: &T, finalizer: &str, present: bool) -> Result<(), Error> {
    let meta = object.meta();
    let change = |object: &mut Value| {
        let finalizers = &mut object["metadata"]["finalizers"];
        let mut names: Vec<Value> = finalizers.as_array().cloned().unwrap_or_default();
        names.retain(|name| name != finalizer);
        if present {
            names.push(json!(finalizer));
        }
        *finalizers = json!(names);
    };
    match client.update(&T::RESOURCE, (&meta.namespace, &meta.name), &meta.uid, "", change).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[derive(Clone)]
struct Claims {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

/// Protects claims until the context stops.
pub async fn run_claims(context: Context) {
    let controller = Claims {
        client: context.client("pvc-protection-controller"),
        claims: context.informers.claims(),
        pods: context.informers.pods().informer,
    };
    let queue = WorkQueue::new("pvc-protection");
    follow(&queue, &controller.claims);
    let sink = queue.clone();
    controller.pods.add_handler(move |change: Change<'_, Pod>| {
        let pod = change.object();
        let ends = matches!(change, Change::Deleted(_)) || pod.is_terminal() || pod.spec.node_name.is_empty();
        for claim in pod.spec.volumes.iter().filter(|_| ends).filter_map(|volume| volume.claim_name(&pod.metadata)) {
            sink.add(ObjectKey::new(pod.metadata.namespace.clone(), claim));
        }
    });
    controller.claims.wait_synced().await;
    controller.pods.wait_synced().await;
    work(&context, queue, 1, controller).await;
}

impl Reconcile for Claims {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(claim) = self.claims.get_key(&key) else { return Ok(Action::Done) };
        let in_use = self.pods.list_namespace(&key.namespace).iter().any(|pod| uses(pod, &key.name));
        match plan(&claim.metadata, CLAIM, in_use) {
            Plan::Nothing => {}
            Plan::Protect => set_finalizer(&self.client, claim.as_ref(), CLAIM, true).await?,
            Plan::Release => {
                // The cache may not know the newest pod yet.
                let live: List<Pod> = self.client.list(&PODS, &key.namespace, &ListOptions::default()).await?;
                if !live.items.iter().any(|pod| uses(pod, &key.name)) {
                    set_finalizer(&self.client, claim.as_ref(), CLAIM, false).await?;
                }
            }
        }
        Ok(Action::Done)
    }
}

#[derive(Clone)]
struct Volumes {
    client: Client,
    volumes: Informer<PersistentVolume>,
}

/// Protects volumes until the context stops.
pub async fn run_volumes(context: Context) {
    let controller = Volumes { client: context.client("pv-protection-controller"), volumes: context.informers.volumes() };
    let queue = WorkQueue::new("pv-protection");
    follow(&queue, &controller.volumes);
    controller.volumes.wait_synced().await;
    work(&context, queue, 1, controller).await;
}

impl Reconcile for Volumes {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(volume) = self.volumes.get_key(&key) else { return Ok(Action::Done) };
        match plan(&volume.metadata, VOLUME, volume.status.phase == "Bound") {
            Plan::Nothing => {}
            step => set_finalizer(&self.client, volume.as_ref(), VOLUME, step == Plan::Protect).await?,
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finalizer_comes_first_and_goes_last() {
        let meta = |protected: bool, deleting: bool| ObjectMeta {
            finalizers: protected.then(|| CLAIM.to_string()).into_iter().collect(),
            deletion_timestamp: deleting.then(k8s_client::Time::now),
            ..ObjectMeta::default()
        };
        for (protected, deleting, in_use, want) in [
            (false, false, false, Plan::Protect),
            (true, false, false, Plan::Nothing),
            (true, true, true, Plan::Nothing),
            (true, true, false, Plan::Release),
            (false, true, false, Plan::Nothing),
        ] {
            assert_eq!(plan(&meta(protected, deleting), CLAIM, in_use), want, "{protected} {deleting} {in_use}");
        }
    }

    #[test]
    fn scheduled_pods_use_the_claims_they_name_and_those_made_for_them() {
        let pod = |node: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "b", "ephemeral": {"volumeClaimTemplate": {}}}, {"name": "c"}]}}))
            .unwrap()
        };
        for (node, claim, want) in [("n", "data", true), ("n", "p-b", true), ("n", "p-c", false), ("", "data", false), ("n", "b", false)] {
            assert_eq!(uses(&pod(node), claim), want, "{node} {claim}");
        }
    }
}
