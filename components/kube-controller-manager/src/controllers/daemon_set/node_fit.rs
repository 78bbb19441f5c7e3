//! Whether a daemon's pod belongs on a node: selector, affinity, taints.

use k8s_client::{LabelMap, Requirement};
use serde::Deserialize;
use serde_json::Value;

use crate::api::{Node, Taint, Toleration};

/// What a daemon does about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    pub should_run: bool,
    /// A pod already there may stay.
    pub may_stay: bool,
}

/// Tolerations every daemon pod gets: daemons run on nodes in trouble.
pub fn tolerations(host_network: bool) -> Vec<Toleration> {
    let toleration =
        |key: &str, effect: &str| Toleration { key: key.into(), operator: "Exists".into(), effect: effect.into(), ..Toleration::default() };
    let mut all = vec![
        toleration("node.kubernetes.io/not-ready", "NoExecute"),
        toleration("node.kubernetes.io/unreachable", "NoExecute"),
        toleration("node.kubernetes.io/disk-pressure", "NoSchedule"),
        toleration("node.kubernetes.io/memory-pressure", "NoSchedule"),
        toleration("node.kubernetes.io/pid-pressure", "NoSchedule"),
        toleration("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if host_network {
        all.push(toleration("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    all
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodParts {
    node_name: String,
    node_selector: LabelMap,
    affinity: Option<Affinity>,
    tolerations: Vec<Toleration>,
    host_network: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Affinity {
    node_affinity: Option<NodeAffinity>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeAffinity {
    required_during_scheduling_ignored_during_execution: Option<NodeSelector>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeSelector {
    node_selector_terms: Vec<Term>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Term {
    match_expressions: Vec<Requirement>,
    match_fields: Vec<Requirement>,
}

/// The template's part in the decision, read once per set.
pub struct Rules(PodParts);

impl Rules {
    /// Reads a pod template; a part that cannot be read fits nowhere special.
    pub fn of(template: &Value) -> Self {
        Self(template.get("spec").and_then(|spec| PodParts::deserialize(spec).ok()).unwrap_or_default())
    }

    /// The decision for one node.
    pub fn fit(&self, node: &Node) -> Fit {
        let rules = &self.0;
        let never = Fit { should_run: false, may_stay: false };
        if !rules.node_name.is_empty() && rules.node_name != node.metadata.name {
            return never;
        }
        if !rules.node_selector.iter().all(|(key, value)| node.metadata.labels.get(key) == Some(value)) || !self.affinity_matches(node) {
            return never;
        }
        let automatic = tolerations(rules.host_network);
        let tolerated = |taint: &Taint| rules.tolerations.iter().chain(&automatic).any(|toleration| toleration.tolerates(taint));
        let refused = |effects: &[&str]| node.spec.taints.iter().any(|taint| effects.contains(&taint.effect.as_str()) && !tolerated(taint));
        Fit { should_run: !refused(&["NoSchedule", "NoExecute"]), may_stay: !refused(&["NoExecute"]) }
    }

    fn affinity_matches(&self, node: &Node) -> bool {
        let required = self
            .0
            .affinity
            .as_ref()
            .and_then(|a| a.node_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let Some(required) = required else { return true };
        let fields: LabelMap = [("metadata.name".to_string(), node.metadata.name.clone())].into();
        required.node_selector_terms.iter().any(|term| {
            // A term without conditions matches nothing.
            !(term.match_expressions.is_empty() && term.match_fields.is_empty())
                && term.match_expressions.iter().all(|requirement| requirement.matches(&node.metadata.labels))
                && term.match_fields.iter().all(|requirement| requirement.matches(&fields))
        })
    }
}
