//! Keeps claims that pods use, volumes bound to claims, and classes of attributes that either names from going away under their users:
//! deletion waits for a finalizer.

use k8s_client::{
    Action, Change, Client, Error, Informer, List, ListOptions, Named, ObjectKey, ObjectMeta, WorkQueue,
    resources::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS},
};
use serde_json::{Value, json};

use crate::api::{PersistentVolume, PersistentVolumeClaim, Pod, VolumeAttributesClass};
use crate::context::Context;
use crate::reconcile::{Reconcile, follow, work};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES: &str = "kubernetes.io/vac-protection";

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

/// The classes of attributes that a claim has, wants or is being given.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &str> {
    let wanted = claim.spec.volume_attributes_class_name.as_deref();
    let given = claim.status.modify_volume_status.as_ref().map(|status| status.target_volume_attributes_class_name.as_str());
    let has = claim.status.current_volume_attributes_class_name.as_str();
    [wanted, given, Some(has)].into_iter().flatten().filter(|name| !name.is_empty())
}

fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.volume_attributes_class_name.as_deref().filter(|name| !name.is_empty())
}

#[derive(Clone)]
struct AttributesClasses {
    client: Client,
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

/// Protects classes of attributes until the context stops.
pub async fn run_attributes_classes(context: Context) {
    let controller = AttributesClasses {
        client: context.client("volumeattributesclass-protection-controller"),
        classes: context.informers.attributes_classes(),
        claims: context.informers.claims(),
        volumes: context.informers.volumes(),
    };
    let queue = WorkQueue::new("volumeattributesclass-protection");
    follow(&queue, &controller.classes);
    // Whoever stops to use a class may be the last who did.
    let sink = queue.clone();
    controller.claims.add_handler(move |change: Change<'_, PersistentVolumeClaim>| {
        let former = match change {
            Change::Added(_) => return,
            Change::Updated { old, .. } => old,
            Change::Deleted(claim) => claim,
        };
        classes_of_claim(former).for_each(|name| sink.add(ObjectKey::new("", name)));
    });
    let sink = queue.clone();
    controller.volumes.add_handler(move |change: Change<'_, PersistentVolume>| {
        let former = match change {
            Change::Added(_) => return,
            Change::Updated { old, .. } => old,
            Change::Deleted(volume) => volume,
        };
        class_of_volume(former).into_iter().for_each(|name| sink.add(ObjectKey::new("", name)));
    });
    controller.classes.wait_synced().await;
    controller.claims.wait_synced().await;
    controller.volumes.wait_synced().await;
    work(&context, queue, 1, controller).await;
}

impl Reconcile for AttributesClasses {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(class) = self.classes.get_key(&key) else { return Ok(Action::Done) };
        // Nobody is asked of a class that stays.
        let in_use = class.metadata.is_deleting()
            && (self.claims.list().iter().any(|claim| classes_of_claim(claim).any(|name| name == key.name))
                || self.volumes.list().iter().any(|volume| class_of_volume(volume) == Some(key.name.as_str())));
        match plan(&class.metadata, ATTRIBUTES, in_use) {
            Plan::Nothing => {}
            Plan::Protect => set_finalizer(&self.client, class.as_ref(), ATTRIBUTES, true).await?,
            Plan::Release => {
                // The caches may not know the newest claim yet.
                let claims: List<PersistentVolumeClaim> = self.client.list(&PERSISTENT_VOLUME_CLAIMS, "", &ListOptions::default()).await?;
                let volumes: List<PersistentVolume> = self.client.list(&PERSISTENT_VOLUMES, "", &ListOptions::default()).await?;
                let claimed = claims.items.iter().any(|claim| classes_of_claim(claim).any(|name| name == key.name));
                if !claimed && !volumes.items.iter().any(|volume| class_of_volume(volume) == Some(key.name.as_str())) {
                    set_finalizer(&self.client, class.as_ref(), ATTRIBUTES, false).await?;
                }
            }
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

    #[test]
    fn a_class_is_used_by_who_has_it_wants_it_or_is_given_it() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"volumeAttributesClassName": "wanted"},
            "status": {"currentVolumeAttributesClassName": "had", "modifyVolumeStatus": {"targetVolumeAttributesClassName": "given", "status": "Pending"}}}))
        .unwrap();
        assert_eq!(classes_of_claim(&claim).collect::<Vec<_>>(), ["wanted", "given", "had"]);
        assert_eq!(classes_of_claim(&PersistentVolumeClaim::default()).count(), 0);
        let volume = |class: Value| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": {"volumeAttributesClassName": class}})).unwrap()
        };
        assert_eq!(class_of_volume(&volume(json!("fast"))), Some("fast"));
        assert_eq!((class_of_volume(&volume(json!(""))), class_of_volume(&volume(Value::Null))), (None, None));
    }
}
