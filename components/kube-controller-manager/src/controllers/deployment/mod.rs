//! Deployments: rolling out a template through ReplicaSets.
//!
//! [`plan`] decides everything from the deployment, its sets and the clock; this file observes and applies. One round makes one step, as
//! upstream does, and the changes it causes start the next.

pub mod hash;
mod plan;
mod rollout;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_client::{
    Action, Change, Client, DeleteOptions, Error, EventType, Informer, ObjectKey, Request, WorkQueue, owner_reference,
    resources::{DEPLOYMENTS, REPLICA_SETS},
};
use serde_json::json;

use self::plan::{Observed, Plan, plan};
use crate::api::{Deployment, Pod, ReplicaSet};
use crate::context::{Context, Pods};
use crate::expectations::Expectations;
use crate::ownership::{self, claim_all};
use crate::reconcile::{Reconcile, follow, follow_owned, work};

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Pods,
    expectations: Arc<Expectations>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("deployment-controller"),
        deployments: context.informers.deployments(),
        sets: context.informers.replica_sets(),
        pods: context.informers.pods(),
        expectations: Arc::default(),
        context: context.clone(),
    };
    let queue = WorkQueue::new("deployment");
    follow(&queue, &controller.deployments);
    follow_owned(&queue, &controller.deployments, &controller.sets);
    // Recreate waits for the last old pod; nothing else depends on pods directly.
    let (sink, deployments, sets) = (queue.clone(), controller.deployments.clone(), controller.sets.clone());
    controller.pods.informer.add_handler(move |change: Change<'_, Pod>| {
        let Change::Deleted(pod) = change else { return };
        let Some(owner) = pod.metadata.controller().filter(|owner| owner.kind == "ReplicaSet") else { return };
        let deployment = sets
            .get(&pod.metadata.namespace, &owner.name)
            .and_then(|set| set.metadata.controller().cloned())
            .and_then(|owner| deployments.get(&pod.metadata.namespace, &owner.name));
        if let Some(deployment) = deployment.filter(|deployment| deployment.spec.strategy.kind == "Recreate") {
            sink.add(deployment.metadata.key());
        }
    });
    controller.deployments.wait_synced().await;
    controller.sets.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(deployment) = self.deployments.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Done);
        };
        if deployment.spec.selector.is_empty() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.context.event(&DEPLOYMENTS, &deployment.metadata, EventType::Warning, "SelectingAll", message);
            return Ok(Action::Done);
        }
        // A set we changed must be in the cache before the next step is planned; its arrival wakes us again.
        if !self.expectations.met(&key, self.sets.version(), |_| false) {
            return Ok(Action::Retry);
        }
        let candidates = self.sets.list_namespace(&key.namespace);
        let sets = claim_all(&self.client, deployment.as_ref(), candidates, |_: &ReplicaSet| true).await?;
        let old_pods_running = |new: Option<&str>| {
            sets.iter()
                .filter(|set| Some(set.metadata.uid.as_str()) != new)
                .any(|set| self.pods.by_owner.get(&set.metadata.uid).iter().any(|pod| !pod.is_terminal()))
        };
        let observed = Observed { deployment: &deployment, sets: &sets, old_pods_running: &old_pods_running, now: jiff::Timestamp::now() };
        let plan = plan(&observed);
        self.apply(&deployment, &key, &plan).await?;
        Ok(plan.again.map_or(Action::Done, Action::After))
    }
}

impl Controller {
    async fn apply(&self, deployment: &Deployment, key: &ObjectKey, plan: &Plan) -> Result<(), Error> {
        let meta = &deployment.metadata;
        let mut status = plan.status.clone();
        if let Some(create) = &plan.create {
            let mut body = create.clone();
            body["metadata"]["ownerReferences"] = json!([owner_reference(&DEPLOYMENTS, meta)]);
            let name = body["metadata"]["name"].as_str().unwrap_or_default().to_string();
            match self.client.call::<ReplicaSet>(&Request::create(&REPLICA_SETS, &meta.namespace, &body)).await {
                Ok(set) => {
                    self.expectations.wrote(key, &set.metadata.resource_version);
                    let message = format!("Scaled up replica set {name} from 0 to {}", set.spec.replicas.unwrap_or(0));
                    if set.spec.replicas.unwrap_or(0) > 0 {
                        self.context.event(&DEPLOYMENTS, meta, EventType::Normal, "ScalingReplicaSet", message);
                    }
                }
                Err(error) if error.is_already_exists() => {
                    // Another template has the same hash, or our cache lags: look at the server's copy.
                    let existing: ReplicaSet = self.client.call(&Request::get(&REPLICA_SETS, &meta.namespace, &name)).await?;
                    let ours = existing.metadata.controller().is_some_and(|owner| owner.uid == meta.uid);
                    if !(ours && hash::same_template(&existing.spec.template, &deployment.spec.template)) {
                        status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
                    }
                    self.expectations.wrote(key, &existing.metadata.resource_version);
                }
                Err(error) if error.is_namespace_terminating() => return Ok(()),
                Err(error) => {
                    let message = format!("Failed to create new replica set {name:?}: {error}");
                    self.context.event(&DEPLOYMENTS, meta, EventType::Warning, "ReplicaSetCreateError", message);
                    plan::set_progressing(
                        &mut status.conditions,
                        "False",
                        "ReplicaSetCreateError",
                        error.to_string(),
                        k8s_client::Time::now(),
                    );
                    self.write_status(deployment, &status).await?;
                    return Err(error);
                }
            }
        }
        for change in &plan.sets {
            let set = self
                .client
                .update(&REPLICA_SETS, (&meta.namespace, &change.name), &change.uid, "", |object| {
                    if let Some(replicas) = change.replicas {
                        object["spec"]["replicas"] = json!(replicas);
                    }
                    if let Some(seconds) = change.min_ready_seconds {
                        object["spec"]["minReadySeconds"] = json!(seconds);
                    }
                    for (name, value) in &change.annotations {
                        object["metadata"]["annotations"][name] = json!(value);
                    }
                })
                .await?;
            self.expectations.wrote(key, &set.meta().resource_version);
            if let (Some(to), from) = (change.replicas, change.from) {
                let direction = if to > from { "up" } else { "down" };
                let message = format!("Scaled {direction} replica set {} from {from} to {to}", change.name);
                self.context.event(&DEPLOYMENTS, meta, EventType::Normal, "ScalingReplicaSet", message);
            }
        }
        for (name, uid) in &plan.delete {
            ownership::ignore_missing(&self.client, &Request::delete(&REPLICA_SETS, &meta.namespace, name, &DeleteOptions::uid(uid)))
                .await?;
        }
        if let Some(revision) = &plan.revision {
            self.client
                .update(&DEPLOYMENTS, (&meta.namespace, &meta.name), &meta.uid, "", |object| {
                    object["metadata"]["annotations"][plan::REVISION] = json!(revision);
                })
                .await?;
        }
        self.write_status(deployment, &status).await
    }

    async fn write_status(&self, deployment: &Deployment, status: &crate::api::DeploymentStatus) -> Result<(), Error> {
        if *status == deployment.status {
            return Ok(());
        }
        let key = (deployment.metadata.namespace.as_str(), deployment.metadata.name.as_str());
        let updated =
            self.client.update(&DEPLOYMENTS, key, &deployment.metadata.uid, "status", |object| object["status"] = json!(status)).await;
        match updated {
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }
}
