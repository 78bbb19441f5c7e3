//! The plan of one round: which set is new, what to create, scale, annotate and delete, and the status.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{Condition, LabelMap, LabelSelector, Time};
use serde_json::{Value, json};

use super::hash::{LABEL, same_template, template_hash};
use super::rollout;
use crate::api::{Deployment, DeploymentStatus, ReplicaSet, template_labels};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that stay with the deployment.
const NOT_COPIED: &[&str] =
    &["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];

/// What planning looks at.
pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// All sets of the deployment.
    pub sets: &'a [Arc<ReplicaSet>],
    /// Whether a pod of any set but the one with this uid has not finished.
    pub old_pods_running: &'a (dyn Fn(Option<&str>) -> bool + Sync),
    pub now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// A new set, complete but for its owner.
    pub create: Option<Value>,
    pub sets: Vec<SetChange>,
    /// Names and uids of sets past the history limit.
    pub delete: Vec<(String, String)>,
    /// The deployment's own revision annotation, when it must change.
    pub revision: Option<String>,
    pub status: DeploymentStatus,
    pub again: Option<Duration>,
}

/// A change of an existing set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SetChange {
    pub name: String,
    pub uid: String,
    /// The size before.
    pub from: i32,
    pub replicas: Option<i32>,
    pub min_ready_seconds: Option<i32>,
    pub annotations: LabelMap,
}

/// The size a set is asked to have.
pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// The number of replicas asked for.
pub fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

fn is_rolling(deployment: &Deployment) -> bool {
    deployment.spec.strategy.kind != "Recreate"
}

/// Surge and unavailability in pods: surge rounds up, unavailability down, and both are never zero at once.
pub fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let replicas = wanted(deployment);
    let (surge, unavailable) = match &deployment.spec.strategy.rolling_update {
        Some(rolling) => (
            rolling.max_surge.as_ref().and_then(|v| v.scaled(replicas, true)).unwrap_or(0),
            rolling.max_unavailable.as_ref().and_then(|v| v.scaled(replicas, false)).unwrap_or(0),
        ),
        None => ((replicas + 3) / 4, replicas / 4),
    };
    (surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable })
}

/// Pods that may be missing.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    if wanted(deployment) == 0 { 0 } else { fenceposts(deployment).1.min(wanted(deployment)) }
}

fn revision(set: &ReplicaSet) -> i64 {
    set.metadata.annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The plan of one round.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let deployment = observed.deployment;
    let mut sets: Vec<&ReplicaSet> = observed.sets.iter().map(Arc::as_ref).collect();
    sets.sort_by(|a, b| by_age(a, b));
    let new = sets.iter().copied().find(|set| same_template(&set.spec.template, &deployment.spec.template));
    let old: Vec<&ReplicaSet> = sets.iter().copied().filter(|set| new.is_none_or(|new| new.metadata.uid != set.metadata.uid)).collect();

    let mut plan =
        Plan { create: None, sets: Vec::new(), delete: Vec::new(), revision: None, status: DeploymentStatus::default(), again: None };
    let mut conditions = deployment.status.conditions.clone();
    let now = Time(observed.now);
    if !deployment.metadata.is_deleting() {
        pause_condition(deployment, &mut conditions, now);
        let newest = old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1;
        if let Some(new) = new {
            annotate_new(deployment, new, newest, &mut plan);
            if deployment.spec.progress_deadline_seconds.is_some() && Condition::find(&conditions, "Progressing").is_none() {
                set_progressing(
                    &mut conditions,
                    "True",
                    "FoundNewReplicaSet",
                    format!("Found new replica set {:?}", new.metadata.name),
                    now,
                );
            }
        }
        let scaling = sets.iter().filter(|set| size(set) > 0).any(|set| {
            set.metadata
                .annotations
                .get(DESIRED)
                .and_then(|text| text.parse::<i32>().ok())
                .is_some_and(|desired| desired != wanted(deployment))
        });
        let before = plan.sets.len();
        if deployment.spec.paused || scaling {
            rollout::scale_proportionally(deployment, new, &old, &mut plan);
        } else if new.is_none() && (is_rolling(deployment) || recreate_may_start(observed, &old)) {
            let set = new_set(deployment, &old, newest);
            let name = set["metadata"]["name"].as_str().unwrap_or_default().to_string();
            plan.revision = Some(newest.to_string());
            if deployment.spec.progress_deadline_seconds.is_some() {
                set_progressing(&mut conditions, "True", "NewReplicaSetCreated", format!("Created new replica set {name:?}"), now);
            }
            plan.create = Some(set);
        } else if is_rolling(deployment) {
            if let Some(new) = new
                && !rollout::scale_new(deployment, new, &sets, &mut plan)
            {
                rollout::scale_old(deployment, new, &old, &mut plan);
            }
        } else {
            rollout::recreate(deployment, new, &old, (observed.old_pods_running)(new.map(|set| set.metadata.uid.as_str())), &mut plan);
        }
        if plan.sets.len() == before && plan.create.is_none() && !deployment.spec.paused && is_complete(deployment, &deployment.status) {
            plan.delete = past_history(deployment, &old);
        }
    }
    plan.status = status(deployment, new, &sets, conditions, now);
    plan.again = until_deadline(deployment, &plan.status, observed.now);
    merge_changes(&mut plan.sets);
    plan
}

/// Recreate starts the new set when the old ones are scaled down and their pods are gone.
fn recreate_may_start(observed: &Observed<'_>, old: &[&ReplicaSet]) -> bool {
    old.iter().all(|set| size(set) == 0) && !(observed.old_pods_running)(None)
}

fn by_age(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp).then_with(|| a.metadata.name.cmp(&b.metadata.name))
}

fn annotate_new(deployment: &Deployment, new: &ReplicaSet, newest: i64, plan: &mut Plan) {
    let mut annotations = copied_annotations(deployment);
    annotations.retain(|name, value| new.metadata.annotations.get(name) != Some(value));
    let own = revision(new);
    let current = if own < newest {
        annotations.insert(REVISION.into(), newest.to_string());
        if own > 0 {
            let history = new.metadata.annotations.get(REVISION_HISTORY).filter(|history| !history.is_empty());
            let history = history.map_or_else(|| own.to_string(), |history| format!("{history},{own}"));
            annotations.insert(REVISION_HISTORY.into(), history);
        }
        newest
    } else {
        own
    };
    let seconds = (new.spec.min_ready_seconds != deployment.spec.min_ready_seconds).then_some(deployment.spec.min_ready_seconds);
    if !annotations.is_empty() || seconds.is_some() {
        let change = SetChange {
            name: new.metadata.name.clone(),
            uid: new.metadata.uid.clone(),
            from: size(new),
            replicas: None,
            min_ready_seconds: seconds,
            annotations,
        };
        plan.sets.push(change);
    }
    if deployment.metadata.annotations.get(REVISION) != Some(&current.to_string()) {
        plan.revision = Some(current.to_string());
    }
}

fn copied_annotations(deployment: &Deployment) -> LabelMap {
    deployment
        .metadata
        .annotations
        .iter()
        .filter(|(name, _)| !NOT_COPIED.contains(&name.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn new_set(deployment: &Deployment, old: &[&ReplicaSet], revision: i64) -> Value {
    let hash = template_hash(&deployment.spec.template, deployment.status.collision_count);
    let mut template = deployment.spec.template.clone();
    let mut labels = template_labels(&template);
    labels.insert(LABEL.into(), hash.clone());
    template["metadata"]["labels"] = json!(labels);
    let mut selector: LabelSelector = deployment.spec.selector.clone();
    selector.match_labels.insert(LABEL.into(), hash.clone());
    let replicas = rollout::new_size(deployment, 0, old.iter().map(|set| size(set)).sum());
    let (surge, _) = fenceposts(deployment);
    let mut annotations = copied_annotations(deployment);
    annotations.insert(REVISION.into(), revision.to_string());
    annotations.insert(DESIRED.into(), wanted(deployment).to_string());
    annotations.insert(MAX.into(), (wanted(deployment) + surge).to_string());
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", deployment.metadata.name),
            "namespace": deployment.metadata.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {"replicas": replicas, "minReadySeconds": deployment.spec.min_ready_seconds, "selector": selector, "template": template},
    })
}

/// Sets to delete once the rollout is complete: empty old ones beyond the limit, the lowest revisions first.
fn past_history(deployment: &Deployment, old: &[&ReplicaSet]) -> Vec<(String, String)> {
    let Some(limit) = deployment.spec.revision_history_limit.and_then(|limit| usize::try_from(limit).ok()) else { return Vec::new() };
    let mut kept: Vec<&ReplicaSet> = old.iter().copied().filter(|set| !set.metadata.is_deleting()).collect();
    let excess = kept.len().saturating_sub(limit);
    kept.sort_by_key(|set| revision(set));
    kept.into_iter()
        .take(excess)
        .filter(|set| size(set) == 0 && set.status.replicas == 0 && set.metadata.generation <= set.status.observed_generation)
        .map(|set| (set.metadata.name.clone(), set.metadata.uid.clone()))
        .collect()
}

/// One change per set, so that each is written once.
fn merge_changes(changes: &mut Vec<SetChange>) {
    let mut merged: Vec<SetChange> = Vec::new();
    for change in changes.drain(..) {
        match merged.iter_mut().find(|known| known.uid == change.uid) {
            Some(known) => {
                known.replicas = change.replicas.or(known.replicas);
                known.min_ready_seconds = change.min_ready_seconds.or(known.min_ready_seconds);
                known.annotations.extend(change.annotations);
            }
            None => merged.push(change),
        }
    }
    *changes = merged;
}

// --- status -------------------------------------------------------------------------------------------------------------------------

/// All replicas are of the new template and available.
fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let replicas = wanted(deployment);
    status.updated_replicas == replicas
        && status.replicas == replicas
        && status.available_replicas == replicas
        && status.observed_generation >= deployment.metadata.generation
}

fn status(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    sets: &[&ReplicaSet],
    mut conditions: Vec<Condition>,
    now: Time,
) -> DeploymentStatus {
    let old = &deployment.status;
    let sum = |count: fn(&ReplicaSet) -> i32| sets.iter().map(|set| count(set)).sum::<i32>();
    let available = sum(|set| set.status.available_replicas);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: sum(|set| set.status.replicas),
        updated_replicas: new.map_or(0, |set| set.status.replicas),
        ready_replicas: sum(|set| set.status.ready_replicas),
        available_replicas: available,
        unavailable_replicas: (sum(size) - available).max(0),
        terminating_replicas: Some(sum(|set| set.status.terminating_replicas.unwrap_or(0))),
        conditions: Vec::new(),
        collision_count: old.collision_count,
    };
    if available >= wanted(deployment) - max_unavailable(deployment) {
        set_condition(&mut conditions, "Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into(), now);
    } else {
        let message = "Deployment does not have minimum availability.".to_string();
        set_condition(&mut conditions, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
    if deployment.spec.progress_deadline_seconds.is_none() {
        conditions.retain(|condition| condition.kind != "Progressing");
    } else if !deployment.metadata.is_deleting() && !deployment.spec.paused {
        progress(deployment, new, &status, &mut conditions, now);
    }
    status.conditions = conditions;
    status
}

fn progress(deployment: &Deployment, new: Option<&ReplicaSet>, status: &DeploymentStatus, conditions: &mut Vec<Condition>, now: Time) {
    let old = &deployment.status;
    let current = Condition::find(conditions, "Progressing").cloned();
    let settled = status.replicas == status.updated_replicas && current.as_ref().is_some_and(|c| c.reason == "NewReplicaSetAvailable");
    if settled {
        return;
    }
    let name =
        new.map_or_else(|| format!("Deployment {:?}", deployment.metadata.name), |set| format!("ReplicaSet {:?}", set.metadata.name));
    let progressing = status.updated_replicas > old.updated_replicas
        || status.replicas - status.updated_replicas < old.replicas - old.updated_replicas
        || status.ready_replicas > old.ready_replicas
        || status.available_replicas > old.available_replicas;
    if is_complete(deployment, status) {
        set_progressing(conditions, "True", "NewReplicaSetAvailable", format!("{name} has successfully progressed."), now);
    } else if progressing {
        set_progressing(conditions, "True", "ReplicaSetUpdated", format!("{name} is progressing."), now);
    } else if deadline(deployment, current.as_ref()).is_some_and(|due| due.0 <= now.0) {
        set_progressing(conditions, "False", "ProgressDeadlineExceeded", format!("{name} has timed out progressing."), now);
    }
}

/// When the rollout counts as stuck, if it can.
fn deadline(deployment: &Deployment, progressing: Option<&Condition>) -> Option<Time> {
    let seconds = deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    let condition = progressing.filter(|c| !matches!(c.reason.as_str(), "NewReplicaSetAvailable" | "ProgressDeadlineExceeded"))?;
    let since = condition.last_update_time.or(condition.last_transition_time)?;
    Some(since.plus(Duration::from_secs(u64::try_from(seconds).ok()?)))
}

fn until_deadline(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    if deployment.spec.paused || deployment.metadata.is_deleting() || is_complete(deployment, status) {
        return None;
    }
    let due = deadline(deployment, Condition::find(&status.conditions, "Progressing"))?;
    Some(Duration::try_from(due.0.duration_since(now)).unwrap_or_default() + Duration::from_secs(1))
}

fn pause_condition(deployment: &Deployment, conditions: &mut Vec<Condition>, now: Time) {
    if deployment.spec.progress_deadline_seconds.is_none() {
        return;
    }
    let current = Condition::find(conditions, "Progressing").map(|condition| condition.reason.clone());
    match (deployment.spec.paused, current.as_deref()) {
        // A timed-out or a paused rollout keeps saying so.
        (_, Some("ProgressDeadlineExceeded")) | (true, Some("DeploymentPaused")) => {}
        (true, _) => set_progressing(conditions, "Unknown", "DeploymentPaused", "Deployment is paused".into(), now),
        (false, Some("DeploymentPaused")) => {
            set_progressing(conditions, "Unknown", "DeploymentResumed", "Deployment is resumed".into(), now)
        }
        (false, _) => {}
    }
}

/// Sets the condition `Progressing`.
pub fn set_progressing(conditions: &mut Vec<Condition>, status: &str, reason: &str, message: String, now: Time) {
    // Every report of progress moves the deadline, even with the same words.
    conditions.retain(|condition| condition.kind != "Progressing" || condition.status == status);
    let since = Condition::find(conditions, "Progressing").and_then(|condition| condition.last_transition_time).unwrap_or(now);
    conditions.retain(|condition| condition.kind != "Progressing");
    conditions.push(Condition {
        kind: "Progressing".into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_update_time: Some(now),
        last_transition_time: Some(since),
        ..Condition::default()
    });
}

fn set_condition(conditions: &mut Vec<Condition>, kind: &str, status: &str, reason: &str, message: String, now: Time) {
    let known = Condition::find(conditions, kind);
    if known.is_some_and(|known| known.status == status && known.reason == reason) {
        return;
    }
    let since = known.filter(|known| known.status == status).and_then(|known| known.last_transition_time).unwrap_or(now);
    conditions.retain(|condition| condition.kind != kind);
    conditions.push(Condition {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_update_time: Some(now),
        last_transition_time: Some(since),
        ..Condition::default()
    });
}
