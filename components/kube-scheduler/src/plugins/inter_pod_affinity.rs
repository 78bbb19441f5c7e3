//! Affinity to and away from other pods, in both directions: the incoming pod's terms and those of pods already there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::framework::{MAX_SCORE, Prepared, Unfit};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::types::{Pod, PodAffinity, PodAffinityTerm};

/// Weight of an existing pod's required affinity towards the incoming pod (`hardPodAffinityWeight`).
const HARD_AFFINITY_WEIGHT: i64 = 1;

type Domain = (String, String);

struct InterPodAffinity {
    /// Domains in which an existing pod refuses the incoming one.
    refused_by_existing: HashSet<Domain>,
    /// Domains the incoming pod refuses.
    refused: HashSet<Domain>,
    /// Topology keys of the required affinity terms, and where all terms match.
    required_keys: Vec<String>,
    required: Vec<HashSet<Domain>>,
    /// No pod matches the required terms anywhere, and the incoming pod matches its own: the first of its kind may go anywhere.
    first_of_its_kind: bool,
    scores: HashMap<Domain, i64>,
}

fn affinity(pod: &Pod) -> Option<&PodAffinity> {
    pod.spec.affinity.as_ref()?.pod_affinity.as_ref()
}

fn anti_affinity(pod: &Pod) -> Option<&PodAffinity> {
    pod.spec.affinity.as_ref()?.pod_anti_affinity.as_ref()
}

fn term_selects(term: &PodAffinityTerm, owner: &Pod, target: &Pod, snapshot: &Snapshot) -> bool {
    let Some(selector) = &term.label_selector else { return false };
    let namespace = &target.metadata.namespace;
    let in_namespace = if term.namespaces.is_empty() && term.namespace_selector.is_none() {
        owner.metadata.namespace == *namespace
    } else {
        term.namespaces.contains(namespace)
            || term.namespace_selector.as_ref().is_some_and(|s| {
                snapshot
                    .namespace_labels
                    .get(namespace)
                    .map_or(s.match_labels.is_empty() && s.match_expressions.is_empty(), |l| s.matches(l))
            })
    };
    let keys_match = term.match_label_keys.iter().all(|k| match owner.metadata.labels.get(k) {
        Some(value) => target.metadata.labels.get(k) == Some(value),
        None => true,
    });
    in_namespace && keys_match && selector.matches(&target.metadata.labels)
}

fn domain(node: &NodeInfo, key: &str) -> Option<Domain> {
    node.node.metadata.labels.get(key).map(|value| (key.to_string(), value.clone()))
}

/// See [`crate::framework::Plugin::prepare`].
pub fn prepare(info: &Arc<PodInfo>, snapshot: &Snapshot) -> Option<Box<dyn Prepared>> {
    let pod = &*info.pod;
    let mut plugin = InterPodAffinity {
        refused_by_existing: HashSet::new(),
        refused: HashSet::new(),
        required_keys: affinity(pod).map(|a| a.required.iter().map(|t| t.topology_key.clone()).collect()).unwrap_or_default(),
        required: affinity(pod).map(|a| vec![HashSet::new(); a.required.len()]).unwrap_or_default(),
        first_of_its_kind: false,
        scores: HashMap::new(),
    };
    let mut any_match = false;
    let mut busy = affinity(pod).is_some() || anti_affinity(pod).is_some();
    for node in snapshot.nodes.values() {
        for existing in node.pods.values().map(|p| &*p.pod) {
            let mut add = |term: &PodAffinityTerm, weight: i64| {
                if let Some(domain) = domain(node, &term.topology_key) {
                    *plugin.scores.entry(domain).or_default() += weight;
                }
            };
            if let Some(theirs) = anti_affinity(existing) {
                busy = true;
                for term in theirs.required.iter().filter(|t| term_selects(t, existing, pod, snapshot)) {
                    plugin.refused_by_existing.extend(domain(node, &term.topology_key));
                }
                for w in theirs.preferred.iter().filter(|w| term_selects(&w.pod_affinity_term, existing, pod, snapshot)) {
                    add(&w.pod_affinity_term, -i64::from(w.weight));
                }
            }
            if let Some(theirs) = affinity(existing) {
                busy = true;
                for term in theirs.required.iter().filter(|t| term_selects(t, existing, pod, snapshot)) {
                    add(term, HARD_AFFINITY_WEIGHT);
                }
                for w in theirs.preferred.iter().filter(|w| term_selects(&w.pod_affinity_term, existing, pod, snapshot)) {
                    add(&w.pod_affinity_term, i64::from(w.weight));
                }
            }
            if let Some(ours) = affinity(pod) {
                for w in ours.preferred.iter().filter(|w| term_selects(&w.pod_affinity_term, pod, existing, snapshot)) {
                    add(&w.pod_affinity_term, i64::from(w.weight));
                }
                // Required terms count together: an existing pod must match all of them.
                if !ours.required.is_empty() && ours.required.iter().all(|t| term_selects(t, pod, existing, snapshot)) {
                    any_match = true;
                    for (term, domains) in ours.required.iter().zip(&mut plugin.required) {
                        domains.extend(domain(node, &term.topology_key));
                    }
                }
            }
            if let Some(ours) = anti_affinity(pod) {
                for term in ours.required.iter().filter(|t| term_selects(t, pod, existing, snapshot)) {
                    plugin.refused.extend(domain(node, &term.topology_key));
                }
                for w in ours.preferred.iter().filter(|w| term_selects(&w.pod_affinity_term, pod, existing, snapshot)) {
                    add(&w.pod_affinity_term, -i64::from(w.weight));
                }
            }
        }
    }
    if let Some(ours) = affinity(pod) {
        plugin.first_of_its_kind = !any_match && ours.required.iter().all(|t| term_selects(t, pod, pod, snapshot));
    }
    busy.then(|| Box::new(plugin) as _)
}

impl Prepared for InterPodAffinity {
    fn filter(&self, node: &NodeInfo) -> Result<(), Unfit> {
        let labels = &node.node.metadata.labels;
        let held = |set: &HashSet<Domain>| set.iter().any(|(key, value)| labels.get(key) == Some(value));
        let all_keys = self.required_keys.iter().all(|k| labels.contains_key(k));
        let satisfied = self.required_keys.iter().zip(&self.required).all(|(key, set)| domain(node, key).is_some_and(|d| set.contains(&d)));
        if !all_keys || (!satisfied && !self.first_of_its_kind) {
            return Err(Unfit::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if held(&self.refused) {
            return Err(Unfit::because("node(s) didn't match pod anti-affinity rules"));
        }
        if held(&self.refused_by_existing) {
            return Err(Unfit::because("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn score(&self, node: &NodeInfo) -> i64 {
        let labels = &node.node.metadata.labels;
        self.scores.iter().filter(|((key, value), _)| labels.get(key) == Some(value)).map(|(_, weight)| weight).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        if self.scores.is_empty() {
            return;
        }
        let (min, max) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if max == min { 0 } else { MAX_SCORE * (*score - min) / (max - min) };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::plugins::fixtures::{fits, pod, scores, snapshot};

    fn nodes() -> Vec<Value> {
        ["a", "b"].iter().map(|n| json!({"metadata": {"name": n, "labels": {"host": n}}})).collect()
    }

    fn with(affinity: &Value, uid: &str, node: &str) -> Value {
        json!({"metadata": {"uid": uid, "namespace": "d", "labels": {"app": "x"}}, "spec": {"nodeName": node, "affinity": affinity}})
    }

    fn required(kind: &str) -> Value {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "x"}}}]}})
    }

    #[test]
    fn anti_affinity_holds_in_both_directions() {
        let plain = with(&json!({}), "1", "a");
        let s = snapshot(&nodes(), &[plain]);
        assert_eq!(fits("InterPodAffinity", &pod(with(&required("podAntiAffinity"), "2", "")), &s), [false, true]);
        let s = snapshot(&nodes(), &[with(&required("podAntiAffinity"), "1", "a")]);
        assert_eq!(fits("InterPodAffinity", &pod(with(&json!({}), "2", "")), &s), [false, true]);
        let elsewhere = pod(json!({"metadata": {"uid": "2", "namespace": "other", "labels": {"app": "x"}}}));
        assert_eq!(fits("InterPodAffinity", &elsewhere, &s), [true, true]);
    }

    #[test]
    fn affinity_goes_where_the_others_are_and_the_first_goes_anywhere() {
        let incoming = pod(with(&required("podAffinity"), "2", ""));
        assert_eq!(fits("InterPodAffinity", &incoming, &snapshot(&nodes(), &[])), [true, true]);
        assert_eq!(fits("InterPodAffinity", &incoming, &snapshot(&nodes(), &[with(&json!({}), "1", "b")])), [false, true]);
    }

    #[test]
    fn preferences_score() {
        let preferred = json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "podAffinityTerm": {"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "x"}}}}]}});
        let s = snapshot(&nodes(), &[with(&json!({}), "1", "b")]);
        assert_eq!(scores("InterPodAffinity", &pod(with(&preferred, "2", "")), &s), [0, 100]);
    }
}
