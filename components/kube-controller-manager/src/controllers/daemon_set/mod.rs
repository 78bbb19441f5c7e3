//! DaemonSets: one pod on every node that fits.

mod node_fit;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_client::{
    Action, Change, Client, Error, EventType, Informer, ObjectKey, Request, WorkQueue, owner_reference,
    resources::{DAEMON_SETS, PODS},
};
use parking_lot::Mutex;
use serde_json::json;

use self::plan::{Observed, Plan, plan};
use super::revisions;
use crate::api::{ControllerRevision, DaemonSet, Node, Pod};
use crate::context::{Context, Pods};
use crate::expectations::Expectations;
use crate::ownership::{self, claim_all, slow_start};
use crate::reconcile::{Reconcile, follow, follow_owned, put_status, work};

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    sets: Informer<DaemonSet>,
    revisions: Informer<ControllerRevision>,
    nodes: Informer<Node>,
    pods: Pods,
    expectations: Arc<Expectations>,
    failures: Arc<Mutex<Failures>>,
}

/// Nodes where a daemon's pod failed: it is replaced after a pause that doubles from one second to fifteen minutes. Bounded by sets × nodes
/// that had a failure within the last half hour.
#[derive(Default)]
struct Failures {
    by_place: HashMap<(String, String), (u32, Instant)>,
}

impl Failures {
    /// Time to wait before the failed pod may be replaced; counts the replacement when it is zero.
    fn wait(&mut self, uid: &str, node: &str) -> Duration {
        self.by_place.retain(|_, (_, last)| last.elapsed() < Duration::from_secs(1800));
        let place = (uid.to_string(), node.to_string());
        let Some((count, last)) = self.by_place.get_mut(&place) else {
            self.by_place.insert(place, (0, Instant::now()));
            return Duration::ZERO;
        };
        let pause = Duration::from_secs(1_u64 << (*count).min(10)).min(Duration::from_secs(900));
        let left = pause.saturating_sub(last.elapsed());
        if left.is_zero() {
            *count += 1;
            *last = Instant::now();
        }
        left
    }
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("daemon-set-controller"),
        sets: context.informers.daemon_sets(),
        revisions: context.informers.controller_revisions(),
        nodes: context.informers.nodes(),
        pods: context.informers.pods(),
        expectations: Arc::default(),
        failures: Arc::default(),
        context: context.clone(),
    };
    let queue = WorkQueue::new("daemonset");
    follow(&queue, &controller.sets);
    follow_owned(&queue, &controller.sets, &controller.pods.informer);
    let (sink, sets) = (queue.clone(), controller.sets.clone());
    controller.nodes.add_handler(move |change: Change<'_, Node>| {
        let matters = match change {
            Change::Updated { old, new } => {
                old.metadata.labels != new.metadata.labels
                    || old.spec.taints != new.spec.taints
                    || old.spec.unschedulable != new.spec.unschedulable
            }
            _ => true,
        };
        if matters {
            sets.list().iter().for_each(|set| sink.add(set.metadata.key()));
        }
    });
    controller.sets.wait_synced().await;
    controller.revisions.wait_synced().await;
    controller.nodes.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Done);
        };
        if set.spec.selector.is_empty() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.context.event(&DAEMON_SETS, &set.metadata, EventType::Warning, "SelectingAll", message);
            return Ok(Action::Done);
        }
        if set.metadata.is_deleting() {
            return Ok(Action::Done);
        }
        let owner = owner_reference(&DAEMON_SETS, &set.metadata);
        let history = revisions::of(&self.revisions, &set.metadata);
        let revision = revisions::plan(&set.spec.template, &history, set.status.collision_count);
        if revisions::version_pending(&self.expectations, &key, self.revisions.version()) {
            return Ok(Action::Retry);
        }
        match revisions::apply(&self.client, &revision, &set.metadata, &owner, &set.spec.template).await? {
            revisions::Applied::Done { version: Some(version) } => revisions::expect_version(&self.expectations, &key, &version),
            revisions::Applied::Done { version: None } => {}
            revisions::Applied::Collision => {
                let count = set.status.collision_count.unwrap_or(0).saturating_add(1);
                let key = (key.namespace.as_str(), key.name.as_str());
                self.client
                    .update(&DAEMON_SETS, key, &set.metadata.uid, "status", |object| object["status"]["collisionCount"] = json!(count))
                    .await?;
                return Ok(Action::Retry);
            }
        }
        let alive =
            |uid: &str| self.pods.by_owner.get(&set.metadata.uid).iter().any(|pod| pod.metadata.uid == uid && !pod.metadata.is_deleting());
        let current = self.expectations.met(&key, self.pods.informer.version(), alive);
        let candidates = self.pods.informer.list_namespace(&key.namespace);
        let pods = claim_all(&self.client, set.as_ref(), candidates, |_: &Pod| true).await?;
        let observed = Observed { set: &set, nodes: &self.nodes.list(), pods: &pods, hash: revision.hash(), now: jiff::Timestamp::now() };
        let mut plan = plan(&observed);
        if current {
            self.apply(&set, &key, &mut plan, revision.hash()).await?;
        }
        if plan.status != set.status {
            put_status(&self.client, set.as_ref(), &plan.status).await?;
        }
        let live: Vec<&str> = pods.iter().filter_map(|pod| pod.metadata.labels.get(revisions::HASH)).map(String::as_str).collect();
        let limit = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
        revisions::prune(&self.client, &history, revision.hash(), &live, limit).await?;
        Ok(plan.again.map_or(Action::Done, Action::After))
    }
}

impl Controller {
    async fn apply(&self, set: &DaemonSet, key: &ObjectKey, plan: &mut Plan, hash: &str) -> Result<(), Error> {
        // A node whose pod just failed waits before it gets another.
        let mut waiting: Option<Duration> = None;
        let failed = std::mem::take(&mut plan.failed);
        for (node, pod) in failed {
            let left = self.failures.lock().wait(&set.metadata.uid, &node);
            if left.is_zero() {
                let message = format!("Found failed daemon pod {}/{} on node {node}, will try to kill it", pod.namespace, pod.name);
                self.context.event(&DAEMON_SETS, &set.metadata, EventType::Warning, "FailedDaemonPod", message);
                plan.delete.push(pod);
            } else {
                waiting = Some(waiting.map_or(left, |known| known.min(left)));
            }
        }
        plan.again = plan.again.into_iter().chain(waiting).min();
        let owner = owner_reference(&DAEMON_SETS, &set.metadata);
        let create = |index: usize| {
            let body = plan::pod_for_node(set, &plan.create[index], hash, &owner);
            async move {
                match self.client.call::<Pod>(&Request::create(&PODS, &set.metadata.namespace, &body)).await {
                    Ok(pod) => {
                        self.expectations.wrote(key, &pod.metadata.resource_version);
                        let message = format!("Created pod: {}", pod.metadata.name);
                        self.context.event(&DAEMON_SETS, &set.metadata, EventType::Normal, "SuccessfulCreate", message);
                        Ok(())
                    }
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    Err(error) => Err(error),
                }
            }
        };
        let (_, created) = slow_start(plan.create.len(), create).await;
        if let Err(error) = &created {
            self.context.event(&DAEMON_SETS, &set.metadata, EventType::Warning, "FailedCreate", format!("Error creating: {error}"));
        }
        for pod in &plan.delete {
            self.expectations.deleted(key, &pod.uid);
            if let Err(error) = ownership::ignore_missing(&self.client, &ownership::delete_pod(pod)).await {
                self.expectations.forget(key);
                return Err(error);
            }
            self.context.event(&DAEMON_SETS, &set.metadata, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name));
        }
        created
    }
}
