//! StatefulSets: pods with names, started and replaced in order, each with its own volumes.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_client::{
    Action, Client, Error, EventType, Informer, ObjectKey, Request, WorkQueue, owner_reference,
    resources::{PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS},
};
use serde_json::json;

use self::plan::{Observed, Step, plan};
use super::revisions;
use crate::api::{ControllerRevision, PersistentVolumeClaim, Pod, StatefulSet};
use crate::context::{Context, Pods};
use crate::expectations::Expectations;
use crate::ownership::{self, claim_all};
use crate::reconcile::{Reconcile, follow, follow_owned, put_status, work};

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    sets: Informer<StatefulSet>,
    revisions: Informer<ControllerRevision>,
    pods: Pods,
    claims: Informer<PersistentVolumeClaim>,
    expectations: Arc<Expectations>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("statefulset-controller"),
        sets: context.informers.stateful_sets(),
        revisions: context.informers.controller_revisions(),
        pods: context.informers.pods(),
        claims: context.informers.claims(),
        expectations: Arc::default(),
        context: context.clone(),
    };
    let queue = WorkQueue::new("statefulset");
    follow(&queue, &controller.sets);
    follow_owned(&queue, &controller.sets, &controller.pods.informer);
    controller.sets.wait_synced().await;
    controller.revisions.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    controller.claims.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Done);
        };
        if set.metadata.is_deleting() || set.spec.selector.is_empty() {
            return Ok(Action::Done);
        }
        if revisions::version_pending(&self.expectations, &key, self.revisions.version()) {
            return Ok(Action::Retry);
        }
        let owner = owner_reference(&STATEFUL_SETS, &set.metadata);
        let history = revisions::of(&self.revisions, &set.metadata);
        let update = revisions::plan(&set.spec.template, &history, set.status.collision_count);
        match revisions::apply(&self.client, &update, &set.metadata, &owner, &set.spec.template).await? {
            revisions::Applied::Done { version: Some(version) } => revisions::expect_version(&self.expectations, &key, &version),
            revisions::Applied::Done { version: None } => {}
            revisions::Applied::Collision => {
                let count = set.status.collision_count.unwrap_or(0).saturating_add(1);
                let key = (key.namespace.as_str(), key.name.as_str());
                self.client
                    .update(&STATEFUL_SETS, key, &set.metadata.uid, "status", |object| object["status"]["collisionCount"] = json!(count))
                    .await?;
                return Ok(Action::Retry);
            }
        }
        let alive =
            |uid: &str| self.pods.by_owner.get(&set.metadata.uid).iter().any(|pod| pod.metadata.uid == uid && !pod.metadata.is_deleting());
        let current = self.expectations.met(&key, self.pods.informer.version(), alive);
        // Only a pod with one of the set's names can be one of its pods.
        let named = |pod: &Pod| plan::ordinal(&set.metadata.name, &pod.metadata.name).is_some();
        let candidates = self.pods.informer.list_namespace(&key.namespace);
        let pods = claim_all(&self.client, set.as_ref(), candidates, named).await?;
        let update_name = format!("{}-{}", set.metadata.name, update.hash());
        let observed = Observed { set: &set, pods: &pods, update_revision: &update_name, now: jiff::Timestamp::now() };
        let plan = plan(&observed);
        self.claim_owners(&set, &pods).await?;
        if current {
            for step in &plan.steps {
                self.apply(&set, &key, step, &history).await?;
            }
        }
        if plan.status != set.status {
            put_status(&self.client, set.as_ref(), &plan.status).await?;
        }
        let mut live: Vec<&str> =
            pods.iter().filter_map(|pod| pod.metadata.labels.get(revisions::HASH)).map(|name| hash_of(&set, name)).collect();
        live.push(hash_of(&set, &plan.status.current_revision));
        let limit = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        revisions::prune(&self.client, &history, update.hash(), &live, limit).await?;
        Ok(plan.again.map_or(Action::Done, Action::After))
    }
}

impl Controller {
    /// Gives the pods' claims the owners that the set's retention policy asks for: before a pod goes, so that its claims go with it.
    async fn claim_owners(&self, set: &StatefulSet, pods: &[Arc<Pod>]) -> Result<(), Error> {
        for pod in pods {
            for name in plan::claim_names(set, &pod.metadata) {
                let Some(claim) = self.claims.get(&pod.metadata.namespace, &name) else { continue };
                let Some(owners) = plan::claim_owners(set, &pod.metadata, &claim.metadata) else { continue };
                let key = (pod.metadata.namespace.as_str(), name.as_str());
                let change = |object: &mut serde_json::Value| object["metadata"]["ownerReferences"] = owners;
                match self.client.update(&PERSISTENT_VOLUME_CLAIMS, key, &claim.metadata.uid, "", change).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    async fn apply(&self, set: &StatefulSet, key: &ObjectKey, step: &Step, history: &[Arc<ControllerRevision>]) -> Result<(), Error> {
        match step {
            Step::Delete(pod) => {
                self.expectations.deleted(key, &pod.uid);
                if let Err(error) = ownership::ignore_missing(&self.client, &ownership::delete_pod(pod)).await {
                    self.expectations.forget(key);
                    return Err(error);
                }
                let message = format!("delete Pod {} in StatefulSet {} successful", pod.name, set.metadata.name);
                self.context.event(&STATEFUL_SETS, &set.metadata, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Step::Create { ordinal, revision } => {
                // A pod of an older revision is made from that revision's template.
                let old = history.iter().find(|known| known.metadata.name == *revision).map(|known| revisions::template_of(known));
                let template = old.as_ref().unwrap_or(&set.spec.template);
                for body in plan::claims(set, *ordinal) {
                    match self.client.execute(&Request::create(&PERSISTENT_VOLUME_CLAIMS, &key.namespace, &body)).await {
                        Err(error) if !error.is_already_exists() => return Err(error),
                        _ => {}
                    }
                }
                let body = plan::pod(set, template, &owner_reference(&STATEFUL_SETS, &set.metadata), *ordinal, revision);
                match self.client.call::<Pod>(&Request::create(&PODS, &key.namespace, &body)).await {
                    Ok(pod) => {
                        self.expectations.wrote(key, &pod.metadata.resource_version);
                        let message = format!("create Pod {} in StatefulSet {} successful", pod.metadata.name, set.metadata.name);
                        self.context.event(&STATEFUL_SETS, &set.metadata, EventType::Normal, "SuccessfulCreate", message);
                        Ok(())
                    }
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    Err(error) => {
                        let message =
                            format!("create Pod {}-{ordinal} in StatefulSet {} failed: {error}", set.metadata.name, set.metadata.name);
                        self.context.event(&STATEFUL_SETS, &set.metadata, EventType::Warning, "FailedCreate", message);
                        Err(error)
                    }
                }
            }
        }
    }
}

/// The hash in a revision's name, which is what a set's pods carry as their label.
fn hash_of<'a>(set: &StatefulSet, revision: &'a str) -> &'a str {
    revision.strip_prefix(set.metadata.name.as_str()).and_then(|rest| rest.strip_prefix('-')).unwrap_or(revision)
}
