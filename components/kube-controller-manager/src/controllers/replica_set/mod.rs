//! ReplicaSets and ReplicationControllers: as many pods of a template as asked for.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_client::{
    Action, Client, Condition, Error, EventType, Informer, LabelMap, ObjectKey, Request, WorkQueue, owner_reference, resources::PODS,
};

pub use self::plan::until_available;
use self::plan::{Observed, plan};
use crate::api::{Pod, ReplicaSet, ReplicationController};
use crate::context::{Context, Pods};
use crate::expectations::Expectations;
use crate::ownership::{self, claim_all, slow_start};
use crate::reconcile::{Reconcile, Selecting, follow, follow_owned, put_status, work};

/// A kind that keeps a number of pods of one template.
pub trait Replicated: Selecting + Clone {
    /// Its controller's service account.
    const ACCOUNT: &'static str;
    /// Whether its status counts pods that are ending.
    const COUNTS_TERMINATING: bool;
    /// What is asked for, as a replica set.
    fn set(&self) -> &ReplicaSet;
}

impl Replicated for ReplicaSet {
    const ACCOUNT: &'static str = "replicaset-controller";
    const COUNTS_TERMINATING: bool = true;
    fn set(&self) -> &ReplicaSet {
        self
    }
}

impl Replicated for ReplicationController {
    const ACCOUNT: &'static str = "replication-controller";
    const COUNTS_TERMINATING: bool = false;
    fn set(&self) -> &ReplicaSet {
        &self.0
    }
}

#[derive(Clone)]
struct Controller<K> {
    context: Context,
    client: Client,
    sets: Informer<K>,
    pods: Pods,
    expectations: Arc<Expectations>,
}

/// Runs the controller of ReplicaSets until the context stops.
pub async fn run(context: Context) {
    let sets = context.informers.replica_sets();
    run_kind(context, sets).await;
}

/// Runs the controller of ReplicationControllers until the context stops.
pub async fn run_replication_controllers(context: Context) {
    let sets = context.informers.replication_controllers();
    run_kind(context, sets).await;
}

async fn run_kind<K: Replicated>(context: Context, sets: Informer<K>) {
    let controller = Controller {
        client: context.client(K::ACCOUNT),
        sets,
        pods: context.informers.pods(),
        expectations: Arc::default(),
        context: context.clone(),
    };
    let queue = WorkQueue::new(K::RESOURCE.kind.to_lowercase());
    follow(&queue, &controller.sets);
    follow_owned(&queue, &controller.sets, &controller.pods.informer);
    controller.sets.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

impl<K: Replicated> Reconcile for Controller<K> {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(object) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Done);
        };
        let set = object.set();
        let alive =
            |uid: &str| self.pods.by_owner.get(&set.metadata.uid).iter().any(|pod| pod.metadata.uid == uid && !pod.metadata.is_deleting());
        let current = self.expectations.met(&key, self.pods.informer.version(), alive);
        let candidates = self.pods.informer.list_namespace(&set.metadata.namespace);
        let owned = claim_all(&self.client, object.as_ref(), candidates, |pod: &Pod| pod.is_active()).await?;
        let observed = Observed { set, pods: &owned, related: &self.related(set), now: jiff::Timestamp::now() };
        let mut plan = plan(&observed);
        if !K::COUNTS_TERMINATING {
            plan.status.terminating_replicas = None;
        }
        let changed = if current && !set.metadata.is_deleting() { self.scale(set, &key, &plan).await } else { Ok(()) };
        self.write_status(&object, &plan, changed.as_ref().err()).await?;
        changed?;
        Ok(plan.again.map_or(Action::Done, Action::After))
    }
}

impl<K: Replicated> Controller<K> {
    /// Pods of all sets with the same owner, for spreading what a scale-down leaves.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let owner = set.metadata.controller().map(|owner| owner.uid.as_str());
        let siblings = self.sets.list_namespace(&set.metadata.namespace).into_iter().filter(|other| {
            let other = other.set();
            other.metadata.uid == set.metadata.uid || (owner.is_some() && other.metadata.controller().map(|o| o.uid.as_str()) == owner)
        });
        siblings.flat_map(|sibling| self.pods.by_owner.get(&sibling.meta().uid)).collect()
    }

    async fn scale(&self, set: &ReplicaSet, key: &ObjectKey, plan: &plan::Plan) -> Result<(), Error> {
        let owner = owner_reference(&K::RESOURCE, &set.metadata);
        let create = |_| async {
            let body =
                ownership::pod_from_template(&set.spec.template, &set.metadata.namespace, &owner, &LabelMap::new(), &LabelMap::new());
            let request = Request::create(&PODS, &set.metadata.namespace, &body);
            match self.client.call::<Pod>(&request).await {
                Ok(pod) => {
                    self.expectations.wrote(key, &pod.metadata.resource_version);
                    let message = format!("Created pod: {}", pod.metadata.name);
                    self.context.event(&K::RESOURCE, &set.metadata, EventType::Normal, "SuccessfulCreate", message);
                    Ok(())
                }
                Err(error) if error.is_namespace_terminating() => Ok(()),
                Err(error) => Err(error),
            }
        };
        let (_, created) = slow_start(plan.create, create).await;
        if let Err(error) = &created {
            let message = format!("Error creating: {}", error.status().map_or_else(|| error.to_string(), |status| status.message.clone()));
            self.context.event(&K::RESOURCE, &set.metadata, EventType::Warning, "FailedCreate", message);
        }
        let deletions = plan.delete.iter().map(|pod| async {
            self.expectations.deleted(key, &pod.uid);
            let outcome = ownership::ignore_missing(&self.client, &ownership::delete_pod(pod)).await;
            match &outcome {
                Ok(()) => {
                    let message = format!("Deleted pod: {}", pod.name);
                    self.context.event(&K::RESOURCE, &set.metadata, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(error) => {
                    self.expectations.forget(key);
                    self.context.event(&K::RESOURCE, &set.metadata, EventType::Warning, "FailedDelete", format!("Error deleting: {error}"));
                }
            }
            outcome
        });
        let deleted: Result<(), Error> = futures_util::future::join_all(deletions).await.into_iter().collect();
        created.and(deleted)
    }

    async fn write_status(&self, object: &K, plan: &plan::Plan, failure: Option<&Error>) -> Result<(), Error> {
        let mut status = plan.status.clone();
        status.conditions.retain(|condition| condition.kind != "ReplicaFailure" || failure.is_some());
        if let Some(failure) = failure
            && Condition::find(&status.conditions, "ReplicaFailure").is_none()
        {
            status.conditions.push(Condition {
                kind: "ReplicaFailure".into(),
                status: "True".into(),
                reason: if plan.create > 0 { "FailedCreate" } else { "FailedDelete" }.into(),
                message: failure.to_string(),
                last_transition_time: Some(k8s_client::Time::now()),
                ..Condition::default()
            });
        }
        if status == object.set().status { Ok(()) } else { put_status(&self.client, object, &status).await }
    }
}
