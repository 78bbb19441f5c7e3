//! PodDisruptionBudgets: how many pods may be evicted now, which is what the eviction API asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_client::{
    Action, Change, Client, Condition, Error, Informer, IntOrString, ObjectKey, Time, WorkQueue, resources::POD_DISRUPTION_BUDGETS,
    run_workers,
};
use serde_json::json;

use crate::api::{BudgetStatus, Deployment, Pod, PodDisruptionBudget, ReplicaSet, ReplicationController, StatefulSet};
use crate::context::{Context, Pods};

/// A pod that was evicted must be gone by then, or counts again.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);

/// The budget in pods, or why it cannot be said.
fn bounds(budget: &PodDisruptionBudget, pods: i32, scale: Option<i32>) -> Result<(i32, i32), &'static str> {
    match (&budget.spec.max_unavailable, &budget.spec.min_available) {
        (Some(most), _) => {
            let expected = scale.ok_or("found no controller whose scale counts the pods")?;
            let gone = most.scaled(expected, true).ok_or("maxUnavailable is neither a number nor a percentage")?;
            Ok((expected, (expected - gone).max(0)))
        }
        (None, Some(IntOrString::Int(least))) => Ok((pods, *least)),
        (None, Some(least)) => {
            let expected = scale.ok_or("found no controller whose scale counts the pods")?;
            Ok((expected, least.scaled(expected, true).ok_or("minAvailable is neither a number nor a percentage")?))
        }
        // The default of the API: one may be missing.
        (None, None) => Ok((pods, (pods - 1).max(0))),
    }
}

/// The status for these pods; `scale` is the sum of what their controllers ask for. Also when a pending eviction stops counting.
fn plan(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scale: Option<i32>, now: Time) -> (BudgetStatus, Option<Duration>) {
    let pending: BTreeMap<String, Time> = budget
        .status
        .disrupted_pods
        .iter()
        .filter(|(name, at)| {
            at.age(now.0) < DELETION_TIMEOUT && pods.iter().any(|pod| pod.metadata.name == **name && !pod.metadata.is_deleting())
        })
        .map(|(name, at)| (name.clone(), *at))
        .collect();
    let again = pending.values().map(|at| DELETION_TIMEOUT.saturating_sub(at.age(now.0)) + Duration::from_secs(1)).min();
    let healthy =
        pods.iter().filter(|pod| pod.is_ready() && !pod.metadata.is_deleting() && !pending.contains_key(&pod.metadata.name)).count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let alive = i32::try_from(pods.iter().filter(|pod| !pod.is_terminal()).count()).unwrap_or(i32::MAX);
    let mut status = BudgetStatus {
        observed_generation: budget.metadata.generation,
        disrupted_pods: pending,
        current_healthy: healthy,
        conditions: budget.status.conditions.clone(),
        ..BudgetStatus::default()
    };
    let (allowed, reason, message) = match bounds(budget, alive, scale) {
        Ok((expected, desired)) => {
            status.expected_pods = expected;
            status.desired_healthy = desired;
            // Nothing may go when there is nothing, however low the bar.
            status.disruptions_allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
            let allowed = status.disruptions_allowed > 0;
            (allowed, if allowed { "SufficientPods" } else { "InsufficientPods" }, String::new())
        }
        // Without knowing the scale nothing may be evicted.
        Err(problem) => (false, "SyncFailed", problem.to_string()),
    };
    let wanted = if allowed { "True" } else { "False" };
    let known = Condition::find(&status.conditions, "DisruptionAllowed");
    if known.is_none_or(|known| {
        known.status != wanted || known.reason != reason || known.observed_generation != Some(budget.metadata.generation)
    }) {
        let since = known.filter(|known| known.status == wanted).and_then(|known| known.last_transition_time).unwrap_or(now);
        status.conditions.retain(|condition| condition.kind != "DisruptionAllowed");
        status.conditions.push(Condition {
            kind: "DisruptionAllowed".into(),
            status: wanted.into(),
            reason: reason.into(),
            message,
            observed_generation: Some(budget.metadata.generation),
            last_transition_time: Some(since),
            ..Condition::default()
        });
    }
    (status, again)
}

#[derive(Clone)]
struct Controller {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Pods,
    sets: Informer<ReplicaSet>,
    replication_controllers: Informer<ReplicationController>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("disruption-controller"),
        budgets: context.informers.disruption_budgets(),
        pods: context.informers.pods(),
        sets: context.informers.replica_sets(),
        replication_controllers: context.informers.replication_controllers(),
        deployments: context.informers.deployments(),
        stateful: context.informers.stateful_sets(),
    };
    let queue = WorkQueue::new("disruption");
    let sink = queue.clone();
    controller.budgets.add_handler(move |change: Change<'_, PodDisruptionBudget>| sink.add(change.object().metadata.key()));
    let (sink, budgets) = (queue.clone(), controller.budgets.clone());
    controller.pods.informer.add_handler(move |change: Change<'_, Pod>| {
        let pod = change.object();
        for budget in budgets.list_namespace(&pod.metadata.namespace) {
            let selects = |pod: &Pod| budget.spec.selector.as_ref().is_some_and(|selector| selector.matches(&pod.metadata.labels));
            if selects(pod) || matches!(change, Change::Updated { old, .. } if selects(old)) {
                sink.add(budget.metadata.key());
            }
        }
    });
    controller.budgets.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    controller.sets.wait_synced().await;
    controller.replication_controllers.wait_synced().await;
    controller.deployments.wait_synced().await;
    controller.stateful.wait_synced().await;
    run_workers(queue, 1, context.stop.clone(), move |key: ObjectKey| {
        let controller = controller.clone();
        async move { controller.sync(key).await }
    })
    .await;
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(budget) = self.budgets.get_key(&key) else { return Ok(Action::Done) };
        let Some(selector) = &budget.spec.selector else { return Ok(Action::Done) };
        let pods: Vec<Arc<Pod>> =
            self.pods.informer.list_namespace(&key.namespace).into_iter().filter(|pod| selector.matches(&pod.metadata.labels)).collect();
        let (status, again) = plan(&budget, &pods, self.scale(&pods), Time::now());
        if status != budget.status {
            let key = (key.namespace.as_str(), key.name.as_str());
            match self
                .client
                .update(&POD_DISRUPTION_BUDGETS, key, &budget.metadata.uid, "status", |object| object["status"] = json!(status))
                .await
            {
                Err(error) if error.is_conflict() => return Ok(Action::Retry),
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(again.map_or(Action::Done, Action::After))
    }

    /// What the controllers of these pods ask for together; nothing when a pod has none we know.
    fn scale(&self, pods: &[Arc<Pod>]) -> Option<i32> {
        let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let owner = pod.metadata.controller()?;
            let namespace = pod.metadata.namespace.as_str();
            let (uid, size) = match owner.kind.as_str() {
                "ReplicaSet" => {
                    let set = self.sets.get(namespace, &owner.name)?;
                    let deployment = set.metadata.controller().filter(|owner| owner.kind == "Deployment");
                    match deployment.and_then(|owner| self.deployments.get(namespace, &owner.name)) {
                        Some(deployment) => (deployment.metadata.uid.clone(), deployment.spec.replicas.unwrap_or(1)),
                        None => (set.metadata.uid.clone(), set.spec.replicas.unwrap_or(1)),
                    }
                }
                "ReplicationController" => {
                    let set = &self.replication_controllers.get(namespace, &owner.name)?.0;
                    (set.metadata.uid.clone(), set.spec.replicas.unwrap_or(1))
                }
                "StatefulSet" => {
                    let set = self.stateful.get(namespace, &owner.name)?;
                    (set.metadata.uid.clone(), set.spec.replicas.unwrap_or(1))
                }
                _ => return None,
            };
            sizes.insert(uid, size);
        }
        Some(sizes.values().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_allow_what_health_leaves_over() {
        let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let pods = |ready: usize, broken: usize| -> Vec<Arc<Pod>> {
            (0..ready + broken)
                .map(|n| {
                    let ready = if n < ready { "True" } else { "False" };
                    Arc::new(serde_json::from_value(json!({"metadata": {"name": format!("p{n}")}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})).unwrap())
                })
                .collect()
        };
        for (spec, ready, broken, scale, want) in [
            (json!({"minAvailable": 2}), 3, 0, None, (3, 2, 1)),
            (json!({"minAvailable": 2}), 2, 1, None, (3, 2, 0)),
            (json!({"minAvailable": "50%"}), 4, 0, Some(5), (5, 3, 1)),
            (json!({"maxUnavailable": 1}), 5, 0, Some(5), (5, 4, 1)),
            (json!({"maxUnavailable": "30%"}), 9, 1, Some(10), (10, 7, 2)),
            (json!({"maxUnavailable": 1}), 5, 0, None, (0, 0, 0)),
            (json!({"minAvailable": 0}), 0, 0, None, (0, 0, 0)),
        ] {
            let budget: PodDisruptionBudget = serde_json::from_value(json!({"metadata": {"generation": 1}, "spec": spec})).unwrap();
            let (status, _) = plan(&budget, &pods(ready, broken), scale, now);
            assert_eq!(
                (status.expected_pods, status.desired_healthy, status.disruptions_allowed),
                want,
                "{spec} {ready}+{broken} of {scale:?}"
            );
            let settled = PodDisruptionBudget { status: status.clone(), ..budget };
            assert_eq!(plan(&settled, &pods(ready, broken), scale, now).0, status, "settled");
        }
    }

    #[test]
    fn a_pending_eviction_counts_until_its_time_is_over() {
        let at = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let budget: PodDisruptionBudget =
            serde_json::from_value(json!({"metadata": {}, "spec": {"minAvailable": 0}, "status": {"disruptedPods": {"p": at}}})).unwrap();
        let pod: Arc<Pod> = Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}))
                .unwrap(),
        );
        let (status, again) = plan(&budget, std::slice::from_ref(&pod), None, at.plus(Duration::from_secs(20)));
        assert_eq!((status.current_healthy, again.map(|d| d.as_secs())), (0, Some(101)));
        let (status, again) = plan(&budget, &[pod], None, at.plus(Duration::from_secs(120)));
        assert_eq!((status.current_healthy, status.disrupted_pods.len(), again), (1, 0, None));
    }
}
