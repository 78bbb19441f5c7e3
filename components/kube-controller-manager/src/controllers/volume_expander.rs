//! Volumes that are to grow. No volume is grown here: drivers' own resizers do it, and all that is left is to tell the owner of a claim who is
//! waited for.

use std::sync::Arc;

use k8s_client::{Action, Change, Error, EventType, Informer, ObjectKey, WorkQueue, resources::PERSISTENT_VOLUME_CLAIMS};

use crate::api::{PersistentVolume, PersistentVolumeClaim};
use crate::context::Context;
use crate::reconcile::{Reconcile, work};

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    /// Its driver's resizer will see it.
    Tell,
    /// The volume is another's.
    NotBound,
}

fn storage(list: &crate::api::ResourceList) -> k8s_client::Quantity {
    list.get("storage").copied().unwrap_or_default()
}

/// Whether a bound claim asks for more than it has.
fn grows(claim: &PersistentVolumeClaim) -> bool {
    claim.status.phase == "Bound" && storage(&claim.spec.resources.requests) > storage(&claim.status.capacity)
}

fn plan(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Plan {
    if !grows(claim) {
        return Plan::Nothing;
    }
    let meta = &claim.metadata;
    match &volume.spec.claim_ref {
        Some(owner) if owner.namespace == meta.namespace && owner.uid == meta.uid => Plan::Tell,
        _ => Plan::NotBound,
    }
}

#[derive(Clone)]
struct Controller {
    context: Context,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller { claims: context.informers.claims(), volumes: context.informers.volumes(), context: context.clone() };
    let queue = WorkQueue::new("volume-expand");
    let sink = queue.clone();
    controller.claims.add_handler(move |change: Change<'_, PersistentVolumeClaim>| {
        let wanted = |claim: &Arc<PersistentVolumeClaim>| storage(&claim.spec.resources.requests);
        let looked_at = match change {
            Change::Added(claim) => grows(claim),
            Change::Updated { old, new } => grows(new) && (wanted(new) > wanted(old) || old.status.phase != "Bound"),
            Change::Deleted(_) => false,
        };
        if looked_at {
            sink.add(change.object().metadata.key());
        }
    });
    controller.claims.wait_synced().await;
    controller.volumes.wait_synced().await;
    work(&context, queue, 2, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(claim) = self.claims.get_key(&key) else { return Ok(Action::Done) };
        let Some(volume) = self.volumes.get("", &claim.spec.volume_name) else {
            // The volume's informer may be behind.
            return Ok(if grows(&claim) { Action::Retry } else { Action::Done });
        };
        match plan(&claim, &volume) {
            Plan::Nothing => Ok(Action::Done),
            Plan::NotBound => Ok(Action::Retry),
            Plan::Tell => {
                let message = "waiting for an external controller to expand this PVC";
                self.context.event(&PERSISTENT_VOLUME_CLAIMS, &claim.metadata, EventType::Normal, "ExternalExpanding", message);
                Ok(Action::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bound_claim_that_asks_for_more_waits_for_its_driver() {
        let claim = |phase: &str, asks: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "d", "uid": "u"}, "spec": {"volumeName": "v",
                "resources": {"requests": {"storage": asks}}}, "status": {"phase": phase, "capacity": {"storage": "1Gi"}}}))
            .unwrap()
        };
        let volume = |uid: &str| -> PersistentVolume {
            let owner = json!({"namespace": "d", "name": "c", "uid": uid});
            serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": {"claimRef": owner}})).unwrap()
        };
        for (claim, volume, want) in [
            (claim("Bound", "2Gi"), volume("u"), Plan::Tell),
            (claim("Bound", "1Gi"), volume("u"), Plan::Nothing),
            (claim("Pending", "2Gi"), volume("u"), Plan::Nothing),
            (claim("Bound", "2Gi"), volume("another"), Plan::NotBound),
        ] {
            assert_eq!(plan(&claim, &volume), want, "{claim:?}");
        }
    }
}
