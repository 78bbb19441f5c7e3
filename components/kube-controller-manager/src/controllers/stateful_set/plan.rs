//! The next steps of a set, in order, and its status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{
    LabelMap, ObjectMeta, OwnerReference, Resource, owner_reference,
    resources::{PODS, STATEFUL_SETS},
};
use serde_json::{Value, json};

use crate::api::{Pod, StatefulSet, StatefulSetStatus, template_labels};
use crate::controllers::replica_set::until_available;
use crate::controllers::revisions::HASH;
use crate::ownership;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// What planning looks at.
pub struct Observed<'a> {
    pub set: &'a StatefulSet,
    pub pods: &'a [Arc<Pod>],
    /// Name of the revision of the current template.
    pub update_revision: &'a str,
    pub now: Timestamp,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Create { ordinal: i32, revision: String },
    Delete(Box<ObjectMeta>),
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub status: StatefulSetStatus,
    pub again: Option<Duration>,
}

/// The ordinal in a pod's name, if it is one of the set's.
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let number = digits.parse().ok().filter(|number| *number >= 0)?;
    // `web-01` is not `web-1`.
    (format!("{number}") == digits).then_some(number)
}

struct Range {
    start: i32,
    end: i32,
    partition: i32,
}

/// The plan of one round.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { set, pods, update_revision, now } = observed;
    let start = set.spec.ordinals.as_ref().map_or(0, |ordinals| ordinals.start);
    let replicas = set.spec.replicas.unwrap_or(1);
    let rolling = set.spec.update_strategy.rolling_update.as_ref();
    let range = Range { start, end: start + replicas, partition: start + rolling.and_then(|r| r.partition).unwrap_or(0) };
    let mut mine: Vec<(i32, &Pod)> =
        pods.iter().filter_map(|pod| Some((ordinal(&set.metadata.name, &pod.metadata.name)?, pod.as_ref()))).collect();
    mine.sort_by_key(|(ordinal, _)| *ordinal);
    let current = if set.status.current_revision.is_empty() { (*update_revision).to_string() } else { set.status.current_revision.clone() };

    let steps = steps(observed, &mine, &range, &current);
    let status = status(observed, &mine, &current, replicas);
    let again = pods.iter().filter_map(|pod| until_available(pod, set.spec.min_ready_seconds, *now)).min();
    Plan { steps, status, again }
}

fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.get(HASH).map_or("", String::as_str)
}

fn steps(observed: &Observed<'_>, mine: &[(i32, &Pod)], range: &Range, current: &str) -> Vec<Step> {
    let Observed { set, update_revision, now, .. } = observed;
    let ordered = set.spec.pod_management_policy != "Parallel";
    let healthy =
        |pod: &Pod| !pod.metadata.is_deleting() && pod.status.phase == "Running" && pod.is_available(set.spec.min_ready_seconds, *now);
    let mut steps = Vec::new();
    // Up: every ordinal has its pod, in order each only when the one before is healthy.
    for ordinal in range.start..range.end {
        match mine.iter().find(|(have, _)| *have == ordinal).map(|(_, pod)| *pod) {
            None => {
                // Below the partition, or not yet reached by the update, pods keep the old revision.
                let is_old = if set.spec.update_strategy.rolling_update.is_some() {
                    ordinal < range.partition
                } else {
                    ordinal < range.start + set.status.current_replicas
                };
                let revision = if current != *update_revision && is_old { current } else { update_revision };
                steps.push(Step::Create { ordinal, revision: revision.to_string() });
            }
            Some(pod) if pod.metadata.is_deleting() => {}
            Some(pod) if pod.is_terminal() => steps.push(Step::Delete(Box::new(pod.metadata.clone()))),
            Some(pod) if healthy(pod) => continue,
            Some(_) => {}
        }
        if ordered {
            return steps;
        }
    }
    // Down: what is beyond the range goes, the highest first.
    let condemned: Vec<&Pod> =
        mine.iter().filter(|(ordinal, _)| !(range.start..range.end).contains(ordinal)).map(|(_, pod)| *pod).rev().collect();
    for pod in condemned {
        if !pod.metadata.is_deleting() {
            steps.push(Step::Delete(Box::new(pod.metadata.clone())));
        }
        if ordered {
            return steps;
        }
    }
    if set.spec.update_strategy.kind == "OnDelete" || !steps.is_empty() {
        return steps;
    }
    // Over: from the highest ordinal down to the partition, so many at a time as may be away.
    let replicas = range.end - range.start;
    let rolling = set.spec.update_strategy.rolling_update.as_ref();
    let most = rolling.and_then(|r| r.max_unavailable.as_ref()).and_then(|v| v.scaled(replicas, true)).unwrap_or(1).max(1);
    let reached: Vec<&(i32, &Pod)> =
        mine.iter().rev().filter(|(ordinal, _)| (range.partition.max(range.start)..range.end).contains(ordinal)).collect();
    // A pod that is away already takes one of the places, wherever it is; with one place alone the pod in turn decides, so that a revision
    // that never gets healthy can be replaced by one that does.
    let mut room = if most > 1 { most - as_i32(reached.iter().filter(|(_, pod)| !healthy(pod)).count()) } else { 1 };
    for (_, pod) in reached {
        let old = revision_of(pod) != *update_revision && !pod.metadata.is_deleting();
        if old && (room > 0 || !healthy(pod)) {
            steps.push(Step::Delete(Box::new(pod.metadata.clone())));
            room -= i32::from(most == 1 || healthy(pod));
        } else if most == 1 && !healthy(pod) {
            room = 0;
        }
        if room <= 0 && most == 1 {
            break;
        }
    }
    steps
}

fn as_i32(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The owners that a claim of the pod gains or loses, as a patch of its metadata; nothing when they are right.
///
/// A claim that goes with the set is owned by the set; one that goes when the set shrinks is owned by its pod from the moment on that the pod is
/// beyond the set's range, so that it goes when the pod does.
pub fn claim_owners(set: &StatefulSet, pod: &ObjectMeta, claim: &ObjectMeta) -> Option<Value> {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref()?;
    let start = set.spec.ordinals.as_ref().map_or(0, |ordinals| ordinals.start);
    let range = start..start.saturating_add(set.spec.replicas.unwrap_or(1));
    let condemned = ordinal(&set.metadata.name, &pod.name).is_some_and(|ordinal| !range.contains(&ordinal));
    let of_pod = policy.when_scaled == "Delete" && condemned;
    let of_set = policy.when_deleted == "Delete" && !of_pod;
    let mut owners = claim.owner_references.clone();
    // Whoever else controls the claim keeps it.
    if owners.iter().any(|owner| owner.controller == Some(true) && owner.uid != set.metadata.uid && owner.uid != pod.uid) {
        return None;
    }
    let stale = |owner: &OwnerReference, kind: &str, name: &str, uid: &str| owner.kind == kind && owner.name == name && owner.uid != uid;
    let mut want = |resource: &Resource, owner: &ObjectMeta, wanted: bool| {
        owners.retain(|known| (wanted || known.uid != owner.uid) && !stale(known, &resource.kind, &owner.name, &owner.uid));
        if wanted && !owners.iter().any(|known| known.uid == owner.uid) {
            owners.push(owner_reference(resource, owner));
        }
    };
    want(&STATEFUL_SETS, &set.metadata, of_set);
    want(&PODS, pod, of_pod);
    (owners != claim.owner_references).then(|| json!(owners))
}

/// Names of the claims of a pod of the set.
pub fn claim_names(set: &StatefulSet, pod: &ObjectMeta) -> Vec<String> {
    let Some(ordinal) = ordinal(&set.metadata.name, &pod.name) else { return Vec::new() };
    set.spec.volume_claim_templates.iter().filter_map(|template| claim_name(set, template, ordinal)).collect()
}

fn status(observed: &Observed<'_>, mine: &[(i32, &Pod)], current: &str, replicas: i32) -> StatefulSetStatus {
    let Observed { set, update_revision, now, .. } = observed;
    let count = |test: &dyn Fn(&Pod) -> bool| as_i32(mine.iter().filter(|(_, pod)| test(pod)).count());
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: count(&|_| true),
        ready_replicas: count(&|pod| pod.status.phase == "Running" && pod.is_ready()),
        available_replicas: count(&|pod| pod.status.phase == "Running" && pod.is_available(set.spec.min_ready_seconds, *now)),
        current_replicas: count(&|pod| !pod.metadata.is_deleting() && revision_of(pod) == current),
        updated_replicas: count(&|pod| !pod.metadata.is_deleting() && revision_of(pod) == *update_revision),
        current_revision: current.to_string(),
        update_revision: (*update_revision).to_string(),
        collision_count: set.status.collision_count,
    };
    if current != *update_revision
        && status.updated_replicas == replicas
        && status.replicas == replicas
        && status.ready_replicas == replicas
        && set.spec.update_strategy.kind != "OnDelete"
    {
        status.current_revision.clone_from(&status.update_revision);
        status.current_replicas = status.updated_replicas;
    }
    status
}

/// The claims of one pod, which outlive it.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<Value> {
    let labels = set.spec.selector.match_labels.clone();
    set.spec
        .volume_claim_templates
        .iter()
        .filter_map(|template| {
            let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": template.get("spec")});
            let mut all: LabelMap = template_labels(template);
            all.extend(labels.clone());
            claim["metadata"] = json!({"name": claim_name(set, template, ordinal)?, "namespace": set.metadata.namespace, "labels": all});
            if let Some(annotations) = template.pointer("/metadata/annotations") {
                claim["metadata"]["annotations"] = annotations.clone();
            }
            Some(claim)
        })
        .collect()
}

fn claim_name(set: &StatefulSet, template: &Value, ordinal: i32) -> Option<String> {
    Some(format!("{}-{}-{ordinal}", template.pointer("/metadata/name")?.as_str()?, set.metadata.name))
}

/// The pod with that ordinal: its name, its place in the service's domain, its volumes.
pub fn pod(set: &StatefulSet, template: &Value, owner: &OwnerReference, ordinal: i32, revision: &str) -> Value {
    let name = format!("{}-{ordinal}", set.metadata.name);
    let labels: LabelMap =
        [(POD_NAME.to_string(), name.clone()), (POD_INDEX.to_string(), ordinal.to_string()), (HASH.to_string(), revision.to_string())]
            .into();
    let mut pod = ownership::pod_from_template(template, &set.metadata.namespace, owner, &labels, &LabelMap::new());
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("generateName");
        metadata.insert("name".into(), json!(name));
    }
    pod["spec"]["hostname"] = json!(name);
    pod["spec"]["subdomain"] = json!(set.spec.service_name);
    let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    for template in &set.spec.volume_claim_templates {
        if let (Some(volume), Some(claim)) = (template.pointer("/metadata/name"), claim_name(set, template, ordinal)) {
            // A claim takes the place of a volume with its name.
            volumes.retain(|known| known["name"] != *volume);
            volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}}));
        }
    }
    if !volumes.is_empty() {
        pod["spec"]["volumes"] = Value::Array(volumes);
    }
    pod
}
