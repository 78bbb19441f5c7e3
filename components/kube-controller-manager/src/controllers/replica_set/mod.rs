//! ReplicaSets: as many pods of a template as asked for.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_client::{
    Action, Change, Client, Condition, Error, EventType, Informer, LabelMap, ObjectKey, Request, WorkQueue, owner_reference,
    resources::{PODS, REPLICA_SETS},
    run_workers,
};
use serde_json::json;

pub use self::plan::until_available;
use self::plan::{Observed, plan};
use crate::api::{Pod, ReplicaSet};
use crate::context::{Context, Pods};
use crate::expectations::Expectations;
use crate::ownership::{self, Claim, claim, slow_start};

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    sets: Informer<ReplicaSet>,
    pods: Pods,
    expectations: Arc<Expectations>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("replicaset-controller"),
        sets: context.informers.replica_sets(),
        pods: context.informers.pods(),
        expectations: Arc::default(),
        context: context.clone(),
    };
    let queue = WorkQueue::new("replicaset");
    let sink = queue.clone();
    controller.sets.add_handler(move |change: Change<'_, ReplicaSet>| sink.add(change.object().metadata.key()));
    let (sink, sets) = (queue.clone(), controller.sets.clone());
    controller.pods.informer.add_handler(move |change: Change<'_, Pod>| {
        let mut touched = vec![change.object()];
        if let Change::Updated { old, .. } = change {
            touched.push(old);
        }
        for pod in touched {
            match pod.metadata.controller() {
                Some(owner) if owner.kind == "ReplicaSet" => sink.add(ObjectKey::new(pod.metadata.namespace.clone(), owner.name.clone())),
                Some(_) => {}
                None => {
                    for set in sets.list_namespace(&pod.metadata.namespace) {
                        if !set.spec.selector.is_empty() && set.spec.selector.matches(&pod.metadata.labels) {
                            sink.add(set.metadata.key());
                        }
                    }
                }
            }
        }
    });
    controller.sets.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    run_workers(queue, 5, context.stop.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(key).await }
    })
    .await;
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Done);
        };
        let alive =
            |uid: &str| self.pods.by_owner.get(&set.metadata.uid).iter().any(|pod| pod.metadata.uid == uid && !pod.metadata.is_deleting());
        let current = self.expectations.met(&key, self.pods.informer.version(), alive);
        let owned = self.claim_pods(&set).await?;
        let observed = Observed { set: &set, pods: &owned, related: &self.related(&set), now: jiff::Timestamp::now() };
        let plan = plan(&observed);
        let changed = if current && !set.metadata.is_deleting() { self.scale(&set, &key, &plan).await } else { Ok(()) };
        self.write_status(&set, &plan, changed.as_ref().err()).await?;
        changed?;
        Ok(plan.again.map_or(Action::Done, Action::After))
    }

    /// Pods of this set: those that name it, and those it adopts.
    async fn claim_pods(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, Error> {
        let mut owned = Vec::new();
        for pod in self.pods.informer.list_namespace(&set.metadata.namespace) {
            match claim(&set.metadata, &set.spec.selector, &pod.metadata) {
                Claim::Keep => owned.push(pod),
                Claim::Adopt if pod.is_active() => {
                    let request = ownership::adopt_request(&PODS, &pod.metadata, &owner_reference(&REPLICA_SETS, &set.metadata));
                    ownership::ignore_missing(&self.client, &request).await?;
                    owned.push(pod);
                }
                Claim::Release => {
                    let request = ownership::release_request(&PODS, &pod.metadata, &set.metadata.uid);
                    ownership::ignore_missing(&self.client, &request).await?;
                }
                Claim::Adopt | Claim::Ignore => {}
            }
        }
        Ok(owned)
    }

    /// Pods of all sets with the same owner, for spreading what a scale-down leaves.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let owner = set.metadata.controller().map(|owner| owner.uid.as_str());
        let siblings = self.sets.list_namespace(&set.metadata.namespace).into_iter().filter(|other| {
            other.metadata.uid == set.metadata.uid || (owner.is_some() && other.metadata.controller().map(|o| o.uid.as_str()) == owner)
        });
        siblings.flat_map(|sibling| self.pods.by_owner.get(&sibling.metadata.uid)).collect()
    }

    async fn scale(&self, set: &ReplicaSet, key: &ObjectKey, plan: &plan::Plan) -> Result<(), Error> {
        let owner = owner_reference(&REPLICA_SETS, &set.metadata);
        let create = |_| async {
            let body =
                ownership::pod_from_template(&set.spec.template, &set.metadata.namespace, &owner, &LabelMap::new(), &LabelMap::new());
            let request = Request::create(&PODS, &set.metadata.namespace, &body);
            match self.client.call::<Pod>(&request).await {
                Ok(pod) => {
                    self.expectations.wrote(key, &pod.metadata.resource_version);
                    let message = format!("Created pod: {}", pod.metadata.name);
                    self.context.event(&REPLICA_SETS, &set.metadata, EventType::Normal, "SuccessfulCreate", message);
                    Ok(())
                }
                Err(error) if error.is_namespace_terminating() => Ok(()),
                Err(error) => Err(error),
            }
        };
        let (_, created) = slow_start(plan.create, create).await;
        if let Err(error) = &created {
            let message = format!("Error creating: {}", error.status().map_or_else(|| error.to_string(), |status| status.message.clone()));
            self.context.event(&REPLICA_SETS, &set.metadata, EventType::Warning, "FailedCreate", message);
        }
        let deletions = plan.delete.iter().map(|pod| async {
            self.expectations.deleted(key, &pod.uid);
            let outcome = ownership::ignore_missing(&self.client, &ownership::delete_pod(pod)).await;
            match &outcome {
                Ok(()) => {
                    let message = format!("Deleted pod: {}", pod.name);
                    self.context.event(&REPLICA_SETS, &set.metadata, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(error) => {
                    self.expectations.forget(key);
                    self.context.event(
                        &REPLICA_SETS,
                        &set.metadata,
                        EventType::Warning,
                        "FailedDelete",
                        format!("Error deleting: {error}"),
                    );
                }
            }
            outcome
        });
        let deleted: Result<(), Error> = futures_util::future::join_all(deletions).await.into_iter().collect();
        created.and(deleted)
    }

    async fn write_status(&self, set: &ReplicaSet, plan: &plan::Plan, failure: Option<&Error>) -> Result<(), Error> {
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
        if status == set.status {
            return Ok(());
        }
        let key = (set.metadata.namespace.as_str(), set.metadata.name.as_str());
        let updated = self.client.update(&REPLICA_SETS, key, &set.metadata.uid, "status", |object| object["status"] = json!(status)).await;
        match updated {
            // The next round sees the newer object, or none.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }
}
