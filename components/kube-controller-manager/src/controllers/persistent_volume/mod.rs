//! Binds claims to volumes: those that name each other, those that fit each other, and those a provisioner makes on request.
//!
//! A binding is written in four steps, volume first, each on top of the object that was planned on; whatever a crash leaves half done the next
//! round completes.

mod plan;
#[cfg(test)]
mod tests;

use k8s_client::{
    Action, Change, Client, Error, EventType, FullObject, Informer, Named, Object, ObjectKey, Request, WorkQueue,
    resources::PERSISTENT_VOLUME_CLAIMS,
};
use serde_json::{Value, json};

use self::plan::{BIND_COMPLETED, BOUND_BY_CONTROLLER, ClaimStep, Told, VolumeStep, is_for, plan_claim, plan_volume};
use crate::api::{PersistentVolume, PersistentVolumeClaim, StorageClass};
use crate::context::Context;
use crate::reconcile::{Reconcile, follow, work};

/// On a claim: who is to provision it, in both spellings provisioners look for.
const PROVISIONER: [&str; 2] = ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("persistent-volume-binder"),
        claims: context.informers.claims(),
        volumes: context.informers.volumes(),
        classes: context.informers.storage_classes(),
        context: context.clone(),
    };
    // Claims have a namespace and volumes have none, so one queue serves both and no volume is planned on while it is being bound.
    let queue = WorkQueue::new("persistentvolume");
    follow(&queue, &controller.volumes);
    let sink = queue.clone();
    controller.claims.add_handler(move |change: Change<'_, PersistentVolumeClaim>| {
        let claim = change.object();
        sink.add(claim.metadata.key());
        if !claim.spec.volume_name.is_empty() {
            sink.add(ObjectKey::new("", claim.spec.volume_name.clone()));
        }
    });
    let (sink, claims) = (queue.clone(), controller.claims.clone());
    controller.volumes.add_handler(move |change: Change<'_, PersistentVolume>| {
        let volume = change.object();
        if let Some(claim) = &volume.spec.claim_ref {
            sink.add(ObjectKey::new(claim.namespace.clone(), claim.name.clone()));
        } else if volume.status.phase == "Available" {
            let waiting = claims.list().into_iter().filter(|claim| claim.status.phase != "Bound" && claim.class() == volume.class());
            waiting.for_each(|claim| sink.add(claim.metadata.key()));
        }
    });
    let (sink, claims) = (queue.clone(), controller.claims.clone());
    controller.classes.add_handler(move |_: Change<'_, StorageClass>| {
        claims.list().iter().filter(|claim| claim.spec.volume_name.is_empty()).for_each(|claim| sink.add(claim.metadata.key()));
    });
    controller.claims.wait_synced().await;
    controller.volumes.wait_synced().await;
    controller.classes.wait_synced().await;
    work(&context, queue, 1, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let done = if key.namespace.is_empty() { self.sync_volume(&key).await } else { self.sync_claim(&key).await };
        match done {
            // Somebody was faster: the newer object comes through the cache.
            Err(error) if error.is_conflict() => Ok(Action::Retry),
            Err(error) if error.is_not_found() => Ok(Action::Done),
            other => other,
        }
    }
}

impl Controller {
    async fn sync_claim(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(Action::Done) };
        match plan_claim(&claim, &self.volumes.list(), &self.classes.list()) {
            ClaimStep::Nothing => {}
            ClaimStep::Bind(volume) => self.bind(&volume, &claim).await?,
            ClaimStep::SetClass(class) => {
                self.change(claim.as_ref(), |object| object["spec"]["storageClassName"] = json!(class)).await?;
            }
            ClaimStep::Provision(provisioner) => {
                self.change(claim.as_ref(), |object| PROVISIONER.iter().for_each(|key| set_annotation(object, key, &provisioner))).await?;
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
                     administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
                );
                self.tell(claim.as_ref(), &Told { kind: EventType::Normal, reason: "ExternalProvisioning", message });
                self.set_phase(claim.as_ref(), &claim.status.phase, "Pending").await?;
            }
            ClaimStep::Phase(phase, news) => {
                if let Some(news) = news {
                    self.tell(claim.as_ref(), &news);
                }
                self.set_phase(claim.as_ref(), &claim.status.phase, phase).await?;
            }
        }
        Ok(Action::Done)
    }

    async fn sync_volume(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(volume) = self.volumes.get_key(key) else { return Ok(Action::Done) };
        let claim = match &volume.spec.claim_ref {
            Some(reference) => match self.claims.get(&reference.namespace, &reference.name) {
                Some(claim) => Some(claim.as_ref().clone()),
                // A volume is not given up because a cache is behind.
                None => self.live_claim(&reference.namespace, &reference.name).await?,
            },
            None => None,
        };
        match plan_volume(&volume, claim.as_ref()) {
            VolumeStep::Nothing => {}
            VolumeStep::Phase(phase, news) => {
                self.set_phase(volume.as_ref(), &volume.status.phase, phase).await?;
                if let Some(news) = news {
                    self.tell(volume.as_ref(), &news);
                }
            }
            VolumeStep::Claim => {
                if let Some(claim) = claim.filter(|claim| is_for(&volume, claim)) {
                    return self.sync_claim(&claim.metadata.key()).await;
                }
            }
            VolumeStep::Unbind => {
                let ours = volume.metadata.annotations.contains_key(BOUND_BY_CONTROLLER);
                self.change(volume.as_ref(), |object| {
                    if ours {
                        object["spec"]["claimRef"] = Value::Null;
                        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
                            annotations.remove(BOUND_BY_CONTROLLER);
                        }
                    } else if let Some(reference) = object["spec"]["claimRef"].as_object_mut() {
                        reference.remove("uid");
                        reference.remove("resourceVersion");
                    }
                })
                .await?;
                self.set_phase(volume.as_ref(), &volume.status.phase, "Available").await?;
            }
        }
        Ok(Action::Done)
    }

    async fn live_claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, Error> {
        match self.client.call(&Request::get(&PERSISTENT_VOLUME_CLAIMS, namespace, name)).await {
            Ok(claim) => Ok(Some(claim)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let reserved = is_for(volume, claim);
        let meta = &claim.metadata;
        let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta.namespace, "name": meta.name,
            "uid": meta.uid, "resourceVersion": meta.resource_version});
        if volume.spec.claim_ref.as_ref().is_none_or(|reference| reference.uid != meta.uid) {
            self.change(volume, |object| {
                object["spec"]["claimRef"] = reference;
                if !reserved {
                    set_annotation(object, BOUND_BY_CONTROLLER, "yes");
                }
            })
            .await?;
        }
        self.set_phase(volume, &volume.status.phase, "Bound").await?;
        if claim.spec.volume_name.is_empty() || !meta.annotations.contains_key(BIND_COMPLETED) {
            self.change(claim, |object| {
                if claim.spec.volume_name.is_empty() {
                    object["spec"]["volumeName"] = json!(volume.metadata.name);
                    set_annotation(object, BOUND_BY_CONTROLLER, "yes");
                }
                set_annotation(object, BIND_COMPLETED, "yes");
            })
            .await?;
        }
        let key = (meta.namespace.as_str(), meta.name.as_str());
        let becoming = claim.status.phase != "Bound" || claim.status.capacity.is_empty();
        self.client
            .update(&PERSISTENT_VOLUME_CLAIMS, key, &meta.uid, "status", |object| {
                object["status"]["phase"] = json!("Bound");
                object["status"]["accessModes"] = json!(volume.spec.access_modes);
                // Once bound, a different size means that the file system is still to grow.
                if becoming {
                    object["status"]["capacity"] = json!(volume.spec.capacity);
                }
            })
            .await?;
        Ok(())
    }

    /// Changes exactly the object that was planned on.
    async fn change<T: Named>(&self, planned: &T, change: impl FnOnce(&mut Value)) -> Result<FullObject, Error> {
        let meta = planned.meta();
        self.client
            .update(&T::RESOURCE, (&meta.namespace, &meta.name), &meta.uid, "", |object| {
                let before = object.clone();
                change(object);
                if *object != before {
                    object["metadata"]["resourceVersion"] = json!(meta.resource_version);
                }
            })
            .await
    }

    async fn set_phase<T: Named>(&self, object: &T, current: &str, phase: &str) -> Result<(), Error> {
        if current == phase {
            return Ok(());
        }
        let meta = object.meta();
        let set = |object: &mut Value| object["status"]["phase"] = json!(phase);
        self.client.update(&T::RESOURCE, (&meta.namespace, &meta.name), &meta.uid, "status", set).await.map(drop)
    }

    fn tell<T: Object + Named>(&self, about: &T, news: &Told) {
        self.context.event(&T::RESOURCE, about.meta(), news.kind, news.reason, news.message.clone());
    }
}

fn set_annotation(object: &mut Value, key: &str, value: &str) {
    object["metadata"]["annotations"][key] = json!(value);
}
