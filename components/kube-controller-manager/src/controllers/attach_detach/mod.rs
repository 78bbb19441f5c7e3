//! Attaches drivers' volumes to the nodes whose pods need them, and detaches them when no pod does.
//!
//! A VolumeAttachment asks a driver to attach; whether it did stands in its status, and nodes are told what is attached to them. Before a
//! volume is detached the node is told that it is not attached any more, and it must have said that it does not use it, unless it is not ready
//! and stays silent for six minutes, or is marked as out of service. A volume for one node at a time is never attached to a second one.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_client::{
    Action, Change, Client, Condition, DeleteOptions, Error, EventType, Index, Informer, ObjectKey, Request, WorkQueue,
    resources::{NODES, PODS, VOLUME_ATTACHMENTS},
};
use serde_json::{Value, json};

use self::plan::{MANAGED, Plan, Seen, Wanted, plan};
use crate::api::{CsiDriver, Node, PersistentVolume, PersistentVolumeClaim, Pod, VolumeAttachment};
use crate::context::{Context, Pods};
use crate::ownership::ignore_missing;
use crate::reconcile::{Reconcile, work};

/// How soon something that waits for others is looked at again.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    nodes: Informer<Node>,
    pods: Pods,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    drivers: Informer<CsiDriver>,
    attachments: Informer<VolumeAttachment>,
    by_node: Arc<Index<VolumeAttachment>>,
    by_volume: Arc<Index<VolumeAttachment>>,
    /// Attachments that were made and are not in the cache yet: volume and node by name.
    made: Arc<Mutex<HashMap<String, (String, String)>>>,
    /// Since when nobody wants them.
    unwanted: Arc<Mutex<HashMap<String, Instant>>>,
}

/// A lock of plain data, good whatever happened to who held it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let attachments = context.informers.attachments();
    let controller = Controller {
        client: context.client("attachdetach-controller"),
        nodes: context.informers.nodes(),
        pods: context.informers.pods(),
        claims: context.informers.claims(),
        volumes: context.informers.volumes(),
        drivers: context.informers.csi_drivers(),
        by_node: attachments.index(|attachment: &VolumeAttachment| vec![attachment.spec.node_name.clone()]),
        by_volume: attachments.index(|attachment: &VolumeAttachment| vec![attachment.spec.source.persistent_volume_name.clone()]),
        attachments,
        made: Arc::default(),
        unwanted: Arc::default(),
        context: context.clone(),
    };
    // By the names of nodes. One worker: what one node gets decides what another may.
    let queue = WorkQueue::new("attachdetach");
    controller.listen(&queue);
    controller.nodes.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    controller.claims.wait_synced().await;
    controller.volumes.wait_synced().await;
    controller.drivers.wait_synced().await;
    controller.attachments.wait_synced().await;
    work(&context, queue, 1, controller).await;
}

/// Whether a change of a node is one that volumes may depend on.
fn matters(old: &Node, new: &Node) -> bool {
    let ready = |node: &Node| Condition::find(&node.status.conditions, "Ready").is_some_and(Condition::is_true);
    old.status.volumes_in_use != new.status.volumes_in_use
        || old.status.volumes_attached != new.status.volumes_attached
        || old.spec.taints != new.spec.taints
        || old.metadata.annotations.get(MANAGED) != new.metadata.annotations.get(MANAGED)
        || ready(old) != ready(new)
}

impl Controller {
    fn listen(&self, queue: &Arc<WorkQueue<ObjectKey>>) {
        let sink = queue.clone();
        self.nodes.add_handler(move |change: Change<'_, Node>| {
            if !matches!(change, Change::Updated { old, new } if !matters(old, new)) {
                sink.add(ObjectKey::new("", change.object().metadata.name.clone()));
            }
        });
        let sink = queue.clone();
        self.pods.informer.add_handler(move |change: Change<'_, Pod>| {
            let pod = change.object();
            let has_claims = pod.spec.volumes.iter().any(|volume| volume.claim_name(&pod.metadata).is_some());
            if has_claims && !pod.spec.node_name.is_empty() {
                sink.add(ObjectKey::new("", pod.spec.node_name.clone()));
            }
        });
        let (sink, made) = (queue.clone(), Arc::clone(&self.made));
        self.attachments.add_handler(move |change: Change<'_, VolumeAttachment>| {
            let attachment = change.object();
            lock(&made).remove(&attachment.metadata.name);
            sink.add(ObjectKey::new("", attachment.spec.node_name.clone()));
        });
        // A claim or a volume that came late, for pods that were scheduled before.
        let (sink, pods) = (queue.clone(), self.pods.informer.clone());
        let users = move |namespace: &str, claim: &str| {
            for pod in pods.list_namespace(namespace) {
                let uses = pod.spec.volumes.iter().any(|volume| volume.claim_name(&pod.metadata).as_deref() == Some(claim));
                if uses && !pod.spec.node_name.is_empty() {
                    sink.add(ObjectKey::new("", pod.spec.node_name.clone()));
                }
            }
        };
        let of_claim = users.clone();
        self.claims.add_handler(move |change: Change<'_, PersistentVolumeClaim>| {
            if !matches!(change, Change::Updated { old, new } if old.status.phase == new.status.phase) {
                of_claim(&change.object().metadata.namespace, &change.object().metadata.name);
            }
        });
        self.volumes.add_handler(move |change: Change<'_, PersistentVolume>| {
            let same = matches!(change, Change::Updated { old, new } if old.spec.claim_ref == new.spec.claim_ref);
            if let Some(owner) = change.object().spec.claim_ref.as_ref().filter(|_| !same) {
                users(&owner.namespace, &owner.name);
            }
        });
        let (sink, nodes) = (queue.clone(), self.nodes.clone());
        self.drivers.add_handler(move |_: Change<'_, CsiDriver>| {
            nodes.list().iter().for_each(|node| sink.add(ObjectKey::new("", node.metadata.name.clone())));
        });
    }

    /// A node other than this one that has a volume, or is being given it.
    fn elsewhere(&self, volume: &str, node: &str) -> Option<String> {
        let there = self.by_volume.get(volume).into_iter().map(|attachment| attachment.spec.node_name.clone()).find(|other| other != node);
        there.or_else(|| {
            let made = lock(&self.made);
            made.values().find(|(of, other)| of == volume && other != node).map(|(_, other)| other.clone())
        })
    }

    fn plan(&self, name: &str, node: Option<&Node>, attachments: &[Arc<VolumeAttachment>]) -> Plan {
        plan(&Seen {
            name,
            node,
            pods: &self.pods.by_node.get(name),
            attachments,
            claim: &|namespace, name| self.claims.get(namespace, name),
            volume: &|name| self.volumes.get("", name),
            attaches: &|driver| self.drivers.get("", driver).is_none_or(|driver| driver.spec.attach_required != Some(false)),
            elsewhere: &|volume| self.elsewhere(volume, name),
            unwanted_for: &|attachment| lock(&self.unwanted).get(attachment).map_or(Duration::ZERO, Instant::elapsed),
            never_by_force: self.context.options.disable_force_detach_on_timeout,
        })
    }

    /// Remembers since when attachments of a node wait to go.
    fn note_unwanted(&self, attachments: &[Arc<VolumeAttachment>], waiting: &std::collections::BTreeSet<String>) {
        let mut unwanted = lock(&self.unwanted);
        for attachment in attachments {
            let name = &attachment.metadata.name;
            if waiting.contains(name) {
                unwanted.entry(name.clone()).or_insert_with(Instant::now);
            } else {
                unwanted.remove(name);
            }
        }
        if unwanted.len() > self.attachments.len() {
            let there: HashSet<String> = self.attachments.list().iter().map(|attachment| attachment.metadata.name.clone()).collect();
            unwanted.retain(|name, _| there.contains(name));
        }
    }

    fn tell(&self, want: &Wanted, kind: EventType, reason: &str, message: &str) {
        for key in &want.pods {
            if let Some(pod) = self.pods.informer.get_key(key) {
                self.context.event(&PODS, &pod.metadata, kind, reason, message);
            }
        }
    }

    async fn attach(&self, want: &Wanted, node: &str) -> Result<(), Error> {
        let object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": want.attachment},
            "spec": {"attacher": want.driver, "nodeName": node, "source": {"persistentVolumeName": want.volume}}});
        // Noted first: the cache may learn of it before the answer is here.
        lock(&self.made).insert(want.attachment.clone(), (want.volume.clone(), node.to_string()));
        match self.client.execute(&Request::create(&VOLUME_ATTACHMENTS, "", &object)).await {
            Ok(()) => {
                tracing::info!(volume = want.volume, node, attachment = want.attachment, "a volume is to be attached");
                Ok(())
            }
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => {
                lock(&self.made).remove(&want.attachment);
                let message = format!("AttachVolume.Attach failed for volume {:?} : {error}", want.volume);
                self.tell(want, EventType::Warning, "FailedAttachVolume", &message);
                Err(error)
            }
        }
    }
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let name = key.name.as_str();
        let node = self.nodes.get("", name);
        let attachments = self.by_node.get(name);
        let plan = self.plan(name, node.as_deref(), &attachments);
        self.note_unwanted(&attachments, &plan.waiting);
        if let (Some(report), Some(node)) = (&plan.report, &node) {
            let attached: Vec<Value> = report.iter().map(|name| json!({"name": name, "devicePath": ""})).collect();
            let change = |object: &mut Value| object["status"]["volumesAttached"] = json!(attached);
            match self.client.update(&NODES, ("", name), &node.metadata.uid, "status", change).await {
                // Others write the status of a node all the time. Nothing is detached before the node was told.
                Err(error) if error.is_conflict() => return Ok(Action::Retry),
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        for want in &plan.attached {
            let message = format!("AttachVolume.Attach succeeded for volume {:?} ", want.volume);
            self.tell(want, EventType::Normal, "SuccessfulAttachVolume", &message);
        }
        for (want, message) in &plan.failed {
            self.tell(want, EventType::Warning, "FailedAttachVolume", message);
        }
        for attachment in attachments.iter().filter(|attachment| plan.detach.contains(&attachment.metadata.name)) {
            let meta = &attachment.metadata;
            tracing::info!(volume = attachment.spec.source.persistent_volume_name, node = name, "a volume is to be detached");
            ignore_missing(&self.client, &Request::delete(&VOLUME_ATTACHMENTS, "", &meta.name, &DeleteOptions::uid(&meta.uid))).await?;
        }
        for want in &plan.attach {
            self.attach(want, name).await?;
        }
        let waits = !plan.waiting.is_empty() || !plan.failed.is_empty();
        Ok(if waits { Action::After(AGAIN) } else { Action::Done })
    }
}
