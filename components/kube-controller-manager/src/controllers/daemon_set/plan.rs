//! Which nodes need a pod, which pods go, and the status; rolling updates included.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{LabelMap, ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::node_fit::{Rules, tolerations};
use crate::api::{DaemonSet, DaemonSetStatus, Node, Pod};
use crate::controllers::replica_set::until_available;
use crate::controllers::revisions::HASH;
use crate::ownership;

/// Pods created in one round at most.
const BURST: usize = 250;

/// What planning looks at.
pub struct Observed<'a> {
    pub set: &'a DaemonSet,
    pub nodes: &'a [Arc<Node>],
    pub pods: &'a [Arc<Pod>],
    /// Of the current template.
    pub hash: &'a str,
    pub now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<ObjectMeta>,
    /// Failed pods, by node: to be deleted after a pause.
    pub failed: Vec<(String, ObjectMeta)>,
    pub status: DaemonSetStatus,
    pub again: Option<Duration>,
}

/// The node a daemon's pod is for: where it runs, or where its affinity sends it.
pub fn target_node(pod: &Pod) -> Option<String> {
    if !pod.spec.node_name.is_empty() {
        return Some(pod.spec.node_name.clone());
    }
    let terms = pod
        .spec
        .affinity
        .as_ref()?
        .pointer("/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms")?
        .as_array()?;
    let field =
        terms.iter().flat_map(|term| term["matchFields"].as_array().into_iter().flatten()).find(|field| field["key"] == "metadata.name")?;
    field["values"].get(0)?.as_str().map(str::to_string)
}

/// The plan of one round.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { set, nodes, pods, hash, now } = observed;
    let rules = Rules::of(&set.spec.template);
    let mut by_node: HashMap<String, Vec<&Pod>> = HashMap::new();
    for pod in pods.iter() {
        if let Some(node) = target_node(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    for found in by_node.values_mut() {
        found.sort_by(|a, b| (a.metadata.creation_timestamp, &a.metadata.name).cmp(&(b.metadata.creation_timestamp, &b.metadata.name)));
    }
    let mut plan = Plan { create: Vec::new(), delete: Vec::new(), failed: Vec::new(), status: DaemonSetStatus::default(), again: None };
    let mut status =
        DaemonSetStatus { observed_generation: set.metadata.generation, collision_count: set.status.collision_count, ..Default::default() };
    let min_ready = set.spec.min_ready_seconds;
    let is_new = |pod: &Pod| pod.metadata.labels.get(HASH).is_some_and(|have| have == hash);
    let surging = limits(set, 1).1 > 0;
    let mut running: BTreeMap<String, (Option<&Pod>, Option<&Pod>)> = BTreeMap::new();

    for node in nodes.iter() {
        let name = &node.metadata.name;
        let fit = rules.fit(node);
        let here = by_node.remove(name).unwrap_or_default();
        let (failed, alive): (Vec<&Pod>, Vec<&Pod>) = here.iter().partition(|pod| pod.is_terminal());
        let staying: Vec<&Pod> = alive.iter().copied().filter(|pod| !pod.metadata.is_deleting()).collect();
        if fit.should_run {
            status.desired_number_scheduled += 1;
            if let Some(first) = alive.first() {
                status.current_number_scheduled += 1;
                // With a surge two pods may be there: the node is as well served as by the better one.
                status.number_ready += i32::from(alive.iter().any(|pod| pod.is_ready()));
                status.number_available += i32::from(alive.iter().any(|pod| pod.is_available(min_ready, *now)));
                status.updated_number_scheduled += i32::from(if surging { alive.iter().any(|pod| is_new(pod)) } else { is_new(first) });
            }
        } else if !alive.is_empty() {
            status.number_misscheduled += 1;
        }
        if !fit.may_stay {
            plan.delete.extend(here.iter().filter(|pod| !pod.metadata.is_deleting()).map(|pod| pod.metadata.clone()));
            continue;
        }
        plan.failed.extend(failed.iter().filter(|pod| !pod.metadata.is_deleting()).map(|pod| (name.clone(), pod.metadata.clone())));
        if alive.is_empty() && failed.is_empty() && fit.should_run {
            plan.create.push(name.clone());
        }
        // One pod per node, the oldest; while surging one of each template.
        let newest = staying.iter().copied().find(|pod| is_new(pod));
        let oldest = staying.iter().copied().find(|pod| !is_new(pod));
        let keep: Vec<&Pod> =
            if surging { newest.into_iter().chain(oldest).collect() } else { staying.first().copied().into_iter().collect() };
        plan.delete
            .extend(staying.iter().filter(|pod| !keep.iter().any(|k| k.metadata.uid == pod.metadata.uid)).map(|pod| pod.metadata.clone()));
        if fit.should_run {
            let kept = |pod: Option<&'_ Pod>| pod.is_some_and(|pod| keep.iter().any(|k| k.metadata.uid == pod.metadata.uid));
            running.insert(name.clone(), (newest.filter(|_| kept(newest)), oldest.filter(|_| kept(oldest))));
        }
    }
    // Pods for nodes that do not exist any more are the pod garbage collector's once they ran; the others never will.
    for pod in by_node.into_values().flatten().filter(|pod| pod.spec.node_name.is_empty() && !pod.metadata.is_deleting()) {
        plan.delete.push(pod.metadata.clone());
    }
    status.number_unavailable = status.desired_number_scheduled - status.number_available;
    if set.spec.update_strategy.kind != "OnDelete" {
        roll(set, &running, status.desired_number_scheduled, *now, &mut plan);
    }
    plan.create.truncate(BURST);
    plan.again = pods.iter().filter_map(|pod| until_available(pod, min_ready, *now)).min();
    plan.status = status;
    plan
}

/// maxUnavailable and maxSurge in nodes; one of them is always positive.
fn limits(set: &DaemonSet, desired: i32) -> (i32, i32) {
    let rolling = set.spec.update_strategy.rolling_update.as_ref();
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).and_then(|v| v.scaled(desired, true)).unwrap_or(0);
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).and_then(|v| v.scaled(desired, true));
    let unavailable = unavailable.unwrap_or(if surge > 0 { 0 } else { 1 });
    (if unavailable == 0 && surge == 0 { 1 } else { unavailable }, surge)
}

/// One step of a rolling update over (new pod, old pod) of each node.
fn roll(set: &DaemonSet, running: &BTreeMap<String, (Option<&Pod>, Option<&Pod>)>, desired: i32, now: Timestamp, plan: &mut Plan) {
    let (max_unavailable, max_surge) = limits(set, desired);
    let available = |pod: &Pod| pod.is_available(set.spec.min_ready_seconds, now);
    if max_surge > 0 {
        let mut surging = running.values().filter(|(new, old)| old.is_some() && new.is_some_and(|new| !available(new))).count() as i32;
        for (node, (new, old)) in running {
            match (new, old) {
                (Some(new), Some(old)) if available(new) => plan.delete.push(old.metadata.clone()),
                // An old pod that serves nobody costs no surge to replace.
                (None, Some(old)) if !available(old) => plan.create.push(node.clone()),
                (None, Some(_)) if surging < max_surge => {
                    surging += 1;
                    plan.create.push(node.clone());
                }
                _ => {}
            }
        }
        return;
    }
    let mut unavailable = 0;
    let mut candidates = Vec::new();
    for (new, old) in running.values() {
        match (new, old) {
            (Some(new), _) if available(new) => {}
            (None, Some(old)) if available(old) => candidates.push(*old),
            (None, Some(old)) => {
                unavailable += 1;
                plan.delete.push(old.metadata.clone());
            }
            _ => unavailable += 1,
        }
    }
    let room = usize::try_from(max_unavailable - unavailable).unwrap_or(0);
    plan.delete.extend(candidates.into_iter().take(room).map(|pod| pod.metadata.clone()));
}

/// The pod for one node, which the scheduler binds there.
pub fn pod_for_node(set: &DaemonSet, node: &str, hash: &str, owner: &OwnerReference) -> Value {
    let labels: LabelMap =
        [(HASH.to_string(), hash.to_string()), ("pod-template-generation".to_string(), set.metadata.generation.to_string())].into();
    let mut pod = ownership::pod_from_template(&set.spec.template, &set.metadata.namespace, owner, &labels, &LabelMap::new());
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
    let spec = &mut pod["spec"];
    spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({"nodeSelectorTerms": [term]});
    let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let host_network = spec["hostNetwork"].as_bool().unwrap_or(false);
    for toleration in tolerations(host_network) {
        let toleration = json!(toleration);
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    spec["tolerations"] = Value::Array(all);
    pod
}
