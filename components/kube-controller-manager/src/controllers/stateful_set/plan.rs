//! The next steps of a set, in order, and its status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{LabelMap, ObjectMeta, OwnerReference};
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
    // Over: from the highest ordinal down to the partition, one at a time.
    for (ordinal, pod) in mine.iter().rev().filter(|(ordinal, _)| (range.partition.max(range.start)..range.end).contains(ordinal)) {
        if revision_of(pod) != *update_revision && !pod.metadata.is_deleting() {
            tracing::debug!(pod = pod.metadata.name, ordinal, "replaced by the new revision");
            return vec![Step::Delete(Box::new(pod.metadata.clone()))];
        }
        if !healthy(pod) {
            return steps;
        }
    }
    steps
}

fn status(observed: &Observed<'_>, mine: &[(i32, &Pod)], current: &str, replicas: i32) -> StatefulSetStatus {
    let Observed { set, update_revision, now, .. } = observed;
    let count = |test: &dyn Fn(&Pod) -> bool| i32::try_from(mine.iter().filter(|(_, pod)| test(pod)).count()).unwrap_or(i32::MAX);
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
