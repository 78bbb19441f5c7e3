//! Spreads pods over topology domains: `DoNotSchedule` constraints filter, `ScheduleAnyway` ones score (KEP-895).
//!
//! A pod that states no constraint gets upstream's default ones (hostname with skew 3, zone with skew 5, `ScheduleAnyway`) over the pods it belongs
//! with. Which those are is decided by the labels its owner stamped on it: a pod of a workload carries the owner's selector labels.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::node_affinity::required_matches;
use crate::framework::{MAX_SCORE, Prepared, Unfit};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::types::{LabelSelector, TopologySpreadConstraint};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Labels that differ between pods of one workload's generations or identities, so they say nothing about belonging together.
const PER_POD_LABELS: &[&str] = &[
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/controller-uid",
    "controller-uid",
];

struct Constraint {
    key: String,
    max_skew: i64,
    /// Pods of the namespace it counts, per domain.
    counts: HashMap<String, i64>,
    /// The smallest count over the eligible domains.
    min: i64,
    matches_self: bool,
}

struct PodTopologySpread {
    hard: Vec<Constraint>,
    soft: Vec<Constraint>,
}

fn selector(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Option<LabelSelector> {
    let mut selector = constraint.label_selector.clone()?;
    for key in &constraint.match_label_keys {
        if let Some(value) = pod.pod.metadata.labels.get(key) {
            selector.match_labels.insert(key.clone(), value.clone());
        }
    }
    Some(selector)
}

fn default_constraints(pod: &PodInfo) -> Vec<TopologySpreadConstraint> {
    let labels: BTreeMap<_, _> = pod
        .pod
        .metadata
        .labels
        .iter()
        .filter(|(k, _)| !PER_POD_LABELS.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if labels.is_empty() {
        return vec![];
    }
    let selector = LabelSelector { match_labels: labels, match_expressions: vec![] };
    let constraint = |key: &str, max_skew| TopologySpreadConstraint {
        max_skew,
        topology_key: key.to_string(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(selector.clone()),
        ..TopologySpreadConstraint::default()
    };
    vec![constraint(HOSTNAME, 3), constraint(ZONE, 5)]
}

fn eligible(constraint: &TopologySpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    let affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore") || required_matches(pod, node);
    let taints = constraint.node_taints_policy.as_deref() != Some("Honor")
        || !node
            .node
            .spec
            .taints
            .iter()
            .any(|t| t.effect != "PreferNoSchedule" && !pod.pod.spec.tolerations.iter().any(|x| x.tolerates(t)));
    affinity && taints
}

fn count(constraint: &TopologySpreadConstraint, pod: &PodInfo, snapshot: &Snapshot, keys: &[String]) -> Constraint {
    let selector = selector(constraint, pod);
    let mut counts: HashMap<String, i64> = HashMap::new();
    for node in snapshot.nodes.values() {
        let labels = &node.node.metadata.labels;
        let Some(domain) = labels.get(&constraint.topology_key) else { continue };
        if !keys.iter().all(|k| labels.contains_key(k)) || !eligible(constraint, pod, node) {
            continue;
        }
        let matching = node.pods.values().filter(|p| {
            p.pod.metadata.namespace == pod.pod.metadata.namespace
                && p.pod.metadata.deletion_timestamp.is_none()
                && selector.as_ref().is_some_and(|s| s.matches(&p.pod.metadata.labels))
        });
        *counts.entry(domain.clone()).or_default() += matching.count() as i64;
    }
    let mut min = counts.values().copied().min().unwrap_or(0);
    if constraint.min_domains.is_some_and(|wanted| counts.len() < usize::try_from(wanted).unwrap_or(0)) {
        min = 0;
    }
    Constraint {
        key: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        counts,
        min,
        matches_self: selector.as_ref().is_some_and(|s| s.matches(&pod.pod.metadata.labels)),
    }
}

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Option<Box<dyn Prepared>> {
    let stated = &pod.pod.spec.topology_spread_constraints;
    let (hard, soft): (Vec<_>, Vec<_>) = stated.iter().cloned().partition(|c| c.when_unsatisfiable != "ScheduleAnyway");
    let (soft, defaults) = if stated.is_empty() { (default_constraints(pod), true) } else { (soft, false) };
    if hard.is_empty() && soft.is_empty() {
        return None;
    }
    let hard_keys: Vec<_> = hard.iter().map(|c| c.topology_key.clone()).collect();
    let soft_keys: Vec<_> = if defaults { vec![] } else { soft.iter().map(|c| c.topology_key.clone()).collect() };
    Some(Box::new(PodTopologySpread {
        hard: hard.iter().map(|c| count(c, pod, snapshot, &hard_keys)).collect(),
        soft: soft.iter().map(|c| count(c, pod, snapshot, &soft_keys)).collect(),
    }))
}

impl Prepared for PodTopologySpread {
    fn filter(&self, node: &NodeInfo) -> Result<(), Unfit> {
        for c in &self.hard {
            let Some(domain) = node.node.metadata.labels.get(&c.key) else {
                return Err(Unfit::unresolvable("node(s) didn't match pod topology spread constraints (missing required label)"));
            };
            let here = c.counts.get(domain).copied().unwrap_or(0);
            if here + i64::from(c.matches_self) - c.min > c.max_skew {
                return Err(Unfit::because("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }

    /// Fewer pods in the node's domains is better; each constraint weighs by how many domains it has, in thousandths.
    fn score(&self, node: &NodeInfo) -> i64 {
        let mut score = 0f64;
        for c in &self.soft {
            if let Some(domain) = node.node.metadata.labels.get(&c.key) {
                let weight = ((c.counts.len() + 2) as f64).ln();
                score += c.counts.get(domain).copied().unwrap_or(0) as f64 * weight + (c.max_skew - 1) as f64;
            }
        }
        (score * 1000.0).round() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        if self.soft.is_empty() {
            return;
        }
        let distinct: HashSet<_> = scores.iter().copied().collect();
        let (min, max) = (distinct.iter().min().copied().unwrap_or(0), distinct.iter().max().copied().unwrap_or(0));
        for score in scores {
            *score = if max == 0 { MAX_SCORE } else { MAX_SCORE * (max + min - *score) / max };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::plugins::fixtures::{fits, pod, scores, snapshot};

    fn nodes() -> Vec<Value> {
        ["a", "b", "c"]
            .iter()
            .map(|n| json!({"metadata": {"name": n, "labels": {"kubernetes.io/hostname": n, "zone": if *n == "c" { "2" } else { "1" }}}}))
            .collect()
    }

    fn on(uid: &str, node: &str) -> Value {
        json!({"metadata": {"uid": uid, "labels": {"app": "x", "pod-template-hash": uid}}, "spec": {"nodeName": node}})
    }

    #[test]
    fn hard_constraints_hold_the_skew() {
        let s = snapshot(&nodes(), &[on("1", "a"), on("2", "b")]);
        let constraint = |key: &str| {
            pod(json!({"metadata": {"labels": {"app": "x"}}, "spec": {"topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "x"}}}]}}))
        };
        assert_eq!(fits("PodTopologySpread", &constraint("zone"), &s), [false, false, true]);
        assert_eq!(fits("PodTopologySpread", &constraint("kubernetes.io/hostname"), &s), [false, false, true]);
        assert_eq!(fits("PodTopologySpread", &constraint("rack"), &s), [false, false, false]);
    }

    #[test]
    fn replicas_of_one_workload_spread_without_being_told() {
        let s = snapshot(&nodes(), &[on("1", "a")]);
        let scores = scores("PodTopologySpread", &pod(json!({"metadata": {"labels": {"app": "x", "pod-template-hash": "9"}}})), &s);
        assert!(scores[0] < scores[1] && scores[1] == scores[2], "{scores:?}");
    }
}
