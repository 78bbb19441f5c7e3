//! Making room: which lower-priority pods would have to go, and on which node that costs least (DefaultPreemption).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::schedule::{FitError, filter_node, prepare};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// The plan of a preemption.
#[derive(Debug, Clone, PartialEq)]
pub struct Preemption {
    /// Node the pod is nominated to.
    pub node: String,
    /// Pods that must go, most important first.
    pub victims: Vec<Arc<PodInfo>>,
}

/// Budgets that deny further disruptions, as (namespace, selector) of PodDisruptionBudgets with none left.
pub type ExhaustedBudgets = [(String, crate::types::LabelSelector)];

fn protected(pod: &PodInfo, budgets: &ExhaustedBudgets) -> bool {
    let meta = &pod.pod.metadata;
    budgets.iter().any(|(namespace, selector)| *namespace == meta.namespace && selector.matches(&meta.labels))
}

fn fits(pod: &Arc<PodInfo>, snapshot: &Snapshot, node: &NodeInfo) -> bool {
    let mut changed = snapshot.clone();
    changed.nodes.insert(node.name().to_string(), Arc::new(node.clone()));
    filter_node(&prepare(pod, &changed), node).is_ok()
}

/// Fewest, least important victims on one node; `None` when removing all lower-priority pods does not help.
fn victims(pod: &Arc<PodInfo>, snapshot: &Snapshot, node: &NodeInfo, budgets: &ExhaustedBudgets) -> Option<(usize, Vec<Arc<PodInfo>>)> {
    let mut trial = node.clone();
    let mut candidates: Vec<_> = node.pods.values().filter(|p| p.pod.priority() < pod.pod.priority()).cloned().collect();
    for victim in &candidates {
        trial.remove(&victim.pod.metadata.uid);
    }
    if candidates.is_empty() || !fits(pod, snapshot, &trial) {
        return None;
    }
    // Spare the protected first, then the most important, then the oldest.
    candidates.sort_by_key(|p| {
        (!protected(p, budgets), -i64::from(p.pod.priority()), p.pod.metadata.creation_timestamp, p.pod.metadata.uid.clone())
    });
    let mut chosen = vec![];
    for candidate in candidates {
        trial.add(Arc::clone(&candidate));
        if !fits(pod, snapshot, &trial) {
            trial.remove(&candidate.pod.metadata.uid);
            chosen.push(candidate);
        }
    }
    chosen.sort_by_key(|p| -i64::from(p.pod.priority()));
    Some((chosen.iter().filter(|p| protected(p, budgets)).count(), chosen))
}

/// Plans a preemption for a pod that fits nowhere. Nodes where it can help are compared by upstream's order: broken budgets, the highest
/// victim's priority, the sum of priorities, the number of victims.
pub fn plan(pod: &Arc<PodInfo>, snapshot: &Snapshot, error: &FitError, budgets: &ExhaustedBudgets) -> Option<Preemption> {
    if pod.pod.spec.preemption_policy.as_deref() == Some("Never") {
        return None;
    }
    let mut best: BTreeMap<(usize, i64, i64, usize, String), Vec<Arc<PodInfo>>> = BTreeMap::new();
    for (name, unfit) in &error.unfit {
        let Some(node) = snapshot.nodes.get(name).filter(|_| !unfit.unresolvable) else { continue };
        if let Some((broken, chosen)) = victims(pod, snapshot, node, budgets) {
            let highest = chosen.iter().map(|p| i64::from(p.pod.priority())).max().unwrap_or(i64::MIN);
            // Priorities are shifted so that more victims never look cheaper because of negative ones.
            let sum = chosen.iter().map(|p| i64::from(p.pod.priority()) + i64::from(i32::MAX) + 1).sum();
            best.insert((broken, highest, sum, chosen.len(), name.clone()), chosen);
        }
    }
    best.into_iter().next().map(|((.., node), victims)| Preemption { node, victims })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::fixtures::{pod, snapshot};
    use crate::schedule::{Decision, schedule};

    fn node(name: &str) -> Value {
        json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}}})
    }

    fn bound(uid: &str, node: &str, cpu: &str, priority: i32) -> Value {
        json!({"metadata": {"uid": uid, "name": uid, "namespace": "d", "labels": {"app": uid}},
            "spec": {"nodeName": node, "priority": priority, "containers": [{"resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn planned(incoming: Value, nodes: &[Value], pods: &[Value], budgets: &ExhaustedBudgets) -> Option<(String, Vec<String>)> {
        let (p, s) = (pod(incoming), snapshot(nodes, pods));
        let Decision::Unschedulable(error) = schedule(&p, &s, 0) else { panic!("fits") };
        plan(&p, &s, &error, budgets).map(|x| (x.node, x.victims.iter().map(|v| v.pod.metadata.uid.clone()).collect()))
    }

    #[test]
    fn the_cheapest_node_is_taken_and_only_what_must_go_goes() {
        let nodes = [node("a"), node("b")];
        let pods = [bound("a1", "a", "1500m", 10), bound("b1", "b", "1", 1), bound("b2", "b", "500m", 2), bound("b3", "b", "100m", 50)];
        let incoming =
            |cpu: &str, priority: i32| json!({"spec": {"priority": priority, "containers": [{"resources": {"requests": {"cpu": cpu}}}]}});
        assert_eq!(planned(incoming("1", 100), &nodes, &pods, &[]), Some(("b".into(), vec!["b1".into()])));
        assert_eq!(planned(incoming("1", 1), &nodes, &pods, &[]), None, "equal priority is no victim");
        assert_eq!(planned(incoming("3", 100), &nodes, &pods, &[]), None, "more than a node has");
        let mut never = incoming("1", 100);
        never["spec"]["preemptionPolicy"] = json!("Never");
        assert_eq!(planned(never, &nodes, &pods, &[]), None);
    }

    #[test]
    fn a_spent_disruption_budget_moves_the_choice_elsewhere() {
        let nodes = [node("a"), node("b")];
        let pods = [bound("a1", "a", "1500m", 10), bound("b1", "b", "1500m", 1)];
        let incoming = json!({"spec": {"priority": 100, "containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        let budget = [("d".to_string(), serde_json::from_value(json!({"matchLabels": {"app": "b1"}})).unwrap())];
        assert_eq!(planned(incoming.clone(), &nodes, &pods, &[]), Some(("b".into(), vec!["b1".into()])));
        assert_eq!(planned(incoming, &nodes, &pods, &budget), Some(("a".into(), vec!["a1".into()])));
    }
}
