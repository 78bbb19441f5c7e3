//! What a node's conditions and taints should be.

use std::time::Duration;

use k8s_client::{Condition, Time};

use crate::api::{Node, Taint};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that taint a node while true.
const PRESSURES: &[(&str, &str)] = &[
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// What planning looks at.
pub struct Observed<'a> {
    pub node: &'a Node,
    /// Since the last sign of life, by our clock.
    pub silent_for: Duration,
    pub grace: Duration,
    pub now: Time,
}

/// A node's health as the plan leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    NotReady,
    Unknown,
}

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub struct NodePlan {
    pub health: Health,
    /// All conditions, when they change.
    pub conditions: Option<Vec<Condition>>,
    /// All taints, when they change.
    pub taints: Option<Vec<Taint>>,
    /// The plan newly taints the node so that pods are evicted.
    pub evicts: bool,
}

impl NodePlan {
    /// The same plan without a new eviction taint.
    pub fn without_eviction(&mut self, node: &Node) {
        let is_new = |taint: &Taint| {
            taint.effect == "NoExecute"
                && matches!(taint.key.as_str(), NOT_READY | UNREACHABLE)
                && !node.spec.taints.iter().any(|known| known.key == taint.key && known.effect == taint.effect)
        };
        if let Some(taints) = &mut self.taints {
            taints.retain(|taint| !is_new(taint));
            // An eviction that already runs goes on under its old name.
            for known in
                node.spec.taints.iter().filter(|known| known.effect == "NoExecute" && matches!(known.key.as_str(), NOT_READY | UNREACHABLE))
            {
                if self.health != Health::Ready && !taints.contains(known) {
                    taints.push(known.clone());
                }
            }
        }
        if self.taints.as_deref() == Some(&node.spec.taints) {
            self.taints = None;
        }
        self.evicts = false;
    }
}

/// The plan for one node.
pub fn plan(observed: &Observed<'_>) -> NodePlan {
    let node = observed.node;
    let ready = Condition::find(&node.status.conditions, "Ready");
    let silent = observed.silent_for > observed.grace;
    let conditions = if silent { unknown_conditions(observed) } else { None };
    let health = match ready.map(|ready| ready.status.as_str()) {
        _ if silent => Health::Unknown,
        Some("True") => Health::Ready,
        Some("Unknown") => Health::Unknown,
        _ => Health::NotReady,
    };
    let (taints, evicts) = taints(node, health, observed.now);
    NodePlan { health, conditions, taints: (taints != node.spec.taints).then_some(taints), evicts }
}

fn unknown_conditions(observed: &Observed<'_>) -> Option<Vec<Condition>> {
    let mut conditions = observed.node.status.conditions.clone();
    let mut changed = false;
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|condition| condition.kind == kind) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".into();
                condition.reason = "NodeStatusUnknown".into();
                condition.message = "Kubelet stopped posting node status.".into();
                condition.last_transition_time = Some(observed.now);
                changed = true;
            }
            None => {
                conditions.push(Condition {
                    kind: kind.into(),
                    status: "Unknown".into(),
                    reason: "NodeStatusNeverUpdated".into(),
                    message: "Kubelet never posted node status.".into(),
                    last_heartbeat_time: observed.node.metadata.creation_timestamp,
                    last_transition_time: Some(observed.now),
                    ..Condition::default()
                });
                changed = true;
            }
        }
    }
    changed.then_some(conditions)
}

/// The node's taints with ours brought up to date, and whether an eviction starts.
fn taints(node: &Node, health: Health, now: Time) -> (Vec<Taint>, bool) {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match health {
        Health::Ready => {}
        Health::NotReady => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        Health::Unknown => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
    }
    for (condition, key) in PRESSURES {
        if health != Health::Unknown && Condition::find(&node.status.conditions, condition).is_some_and(Condition::is_true) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        let key = taint.key.as_str();
        match taint.effect.as_str() {
            "NoSchedule" => [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key) || PRESSURES.iter().any(|(_, name)| *name == key),
            "NoExecute" => [NOT_READY, UNREACHABLE].contains(&key),
            _ => false,
        }
    };
    let mut taints: Vec<Taint> = node
        .spec
        .taints
        .iter()
        .filter(|taint| !ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str())))
        .cloned()
        .collect();
    let mut evicts = false;
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            evicts |= effect == "NoExecute";
            taints.push(Taint { key: key.into(), value: String::new(), effect: effect.into(), time_added: Some(now) });
        }
    }
    (taints, evicts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(ready: &str, extra: serde_json::Value, taints: serde_json::Value) -> Node {
        let mut conditions = vec![json!({"type": "Ready", "status": ready, "reason": "KubeletReady"})];
        conditions.extend(extra.as_array().unwrap().iter().cloned());
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn planned(node: &Node, silent: u64) -> NodePlan {
        let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
        plan(&Observed { node, silent_for: Duration::from_secs(silent), grace: Duration::from_secs(50), now })
    }

    fn show(plan: &NodePlan) -> Vec<String> {
        plan.taints.iter().flatten().map(|taint| format!("{}:{}", taint.key.rsplit('/').next().unwrap(), taint.effect)).collect()
    }

    #[test]
    fn taints_follow_conditions() {
        let both = json!([{"key": NOT_READY, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]);
        for (name, node, silent, want) in [
            ("healthy", node("True", json!([]), json!([])), 0, None),
            ("foreign taints stay", node("True", json!([]), json!([{"key": "gpu", "effect": "NoSchedule"}])), 0, None),
            ("not ready", node("False", json!([]), json!([])), 0, Some(vec!["not-ready:NoSchedule", "not-ready:NoExecute"])),
            ("still not ready", node("False", json!([]), both.clone()), 0, None),
            ("ready again", node("True", json!([]), both.clone()), 0, Some(vec![])),
            ("silent", node("True", json!([]), json!([])), 51, Some(vec!["unreachable:NoSchedule", "unreachable:NoExecute"])),
            ("from not ready to silent", node("False", json!([]), both), 51, Some(vec!["unreachable:NoSchedule", "unreachable:NoExecute"])),
            (
                "pressure",
                node("True", json!([{"type": "MemoryPressure", "status": "True"}]), json!([])),
                0,
                Some(vec!["memory-pressure:NoSchedule"]),
            ),
            (
                "no network",
                node("True", json!([{"type": "NetworkUnavailable", "status": "True"}]), json!([])),
                0,
                Some(vec!["network-unavailable:NoSchedule"]),
            ),
        ] {
            let plan = planned(&node, silent);
            assert_eq!(plan.taints.as_ref().map(|_| show(&plan)), want.map(|w| w.into_iter().map(str::to_string).collect()), "{name}");
        }
    }

    #[test]
    fn a_silent_node_becomes_unknown_once() {
        let mut silent = node("True", json!([{"type": "DiskPressure", "status": "False"}]), json!([]));
        assert!(planned(&silent, 50).conditions.is_none());
        let plan = planned(&silent, 51);
        let conditions = plan.conditions.unwrap();
        assert!(conditions.iter().all(|c| c.status == "Unknown") && conditions.len() == 4);
        assert_eq!(conditions[0].reason, "NodeStatusUnknown");
        assert_eq!(conditions[2].reason, "NodeStatusNeverUpdated");
        silent.status.conditions = conditions;
        assert!(planned(&silent, 500).conditions.is_none());
        assert_eq!(planned(&silent, 0).health, Health::Unknown, "until the kubelet itself says otherwise");
    }

    #[test]
    fn an_eviction_can_be_held_back() {
        let node = node("True", json!([]), json!([]));
        let mut plan = planned(&node, 51);
        assert!(plan.evicts);
        plan.without_eviction(&node);
        assert_eq!(show(&plan), ["unreachable:NoSchedule"]);
        assert!(!plan.evicts);
    }
}
