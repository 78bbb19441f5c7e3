//! Choosing a node for one pod. Pure: the tie between equal scores is broken by a number the caller passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::framework::{PLUGINS, Unfit};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// A node was found, or why none was.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Bind to this node.
    Node(String),
    /// No node fits.
    Unschedulable(FitError),
}

/// Why no node fits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FitError {
    /// Nodes looked at.
    pub nodes: usize,
    /// What each plugin-refused node lacked.
    pub unfit: BTreeMap<String, Unfit>,
    /// Plugins that refused, for the queue: what may make the pod fit.
    pub plugins: Vec<&'static str>,
    /// What preemption says, appended to the message.
    pub preemption: Option<String>,
}

impl FitError {
    /// The event people read: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.unfit.values().flat_map(|u| &u.reasons) {
            *counts.entry(reason).or_default() += 1;
        }
        let mut clauses: Vec<_> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        clauses.sort();
        let mut message = format!("0/{} nodes are available: {}.", self.nodes, clauses.join(", "));
        if let Some(preemption) = &self.preemption {
            message.push(' ');
            message.push_str(preemption);
        }
        message
    }
}

/// Runs every filter on a node; the first refusal decides, as upstream's.
pub fn filter_node(prepared: &[(&'static str, Box<dyn crate::framework::Prepared>)], node: &NodeInfo) -> Result<(), (&'static str, Unfit)> {
    prepared.iter().try_for_each(|(name, plugin)| plugin.filter(node).map_err(|unfit| (*name, unfit)))
}

/// Prepares all plugins for a pod.
pub fn prepare(pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Vec<(&'static str, Box<dyn crate::framework::Prepared>)> {
    PLUGINS.iter().filter_map(|p| (p.prepare)(pod, snapshot).map(|prepared| (p.name, prepared))).collect()
}

/// Chooses a node. `tie` breaks ties between equally good nodes.
pub fn schedule(pod: &Arc<PodInfo>, snapshot: &Snapshot, tie: u64) -> Decision {
    let prepared = prepare(pod, snapshot);
    let mut error = FitError { nodes: snapshot.nodes.len(), ..FitError::default() };
    let mut feasible: Vec<&Arc<NodeInfo>> = vec![];
    for node in snapshot.nodes.values() {
        match filter_node(&prepared, node) {
            Ok(()) => feasible.push(node),
            Err((plugin, unfit)) => {
                if !error.plugins.contains(&plugin) {
                    error.plugins.push(plugin);
                }
                error.unfit.insert(node.name().to_string(), unfit);
            }
        }
    }
    if feasible.is_empty() {
        return Decision::Unschedulable(error);
    }
    let mut totals = vec![0i64; feasible.len()];
    if feasible.len() > 1 {
        for (name, plugin) in &prepared {
            // The name came from the list, so it is there.
            let Some(weight) = PLUGINS.iter().find(|p| p.name == *name).map(|p| p.weight).filter(|w| *w > 0) else { continue };
            let mut scores: Vec<i64> = feasible.iter().map(|node| plugin.score(node)).collect();
            plugin.normalize(&mut scores);
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += weight * score;
            }
        }
    }
    let best = totals.iter().copied().max().unwrap_or(0);
    let candidates: Vec<_> = feasible.iter().zip(&totals).filter(|(_, total)| **total == best).map(|(node, _)| node).collect();
    let chosen = candidates[(tie % candidates.len() as u64) as usize];
    Decision::Node(chosen.name().to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::fixtures::{pod, snapshot};

    fn node(name: &str, cpu: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "110"}}})
    }

    fn wants(cpu: &str) -> Arc<PodInfo> {
        pod(json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}}))
    }

    #[test]
    fn the_message_counts_reasons() {
        let mut cordoned = node("c", "4");
        cordoned["spec"] = json!({"unschedulable": true});
        let s = snapshot(&[node("a", "1"), node("b", "1"), cordoned], &[]);
        let Decision::Unschedulable(error) = schedule(&wants("2"), &s, 0) else { panic!("fits") };
        assert_eq!(error.message(), "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.");
        assert_eq!(error.plugins, ["NodeResourcesFit", "NodeUnschedulable"]);
        let Decision::Unschedulable(error) = schedule(&wants("2"), &snapshot(&[], &[]), 0) else { panic!("fits") };
        assert_eq!(error.message(), "no nodes available to schedule pods");
    }

    #[test]
    fn two_replicas_land_on_two_nodes() {
        let first = json!({"metadata": {"uid": "1", "labels": {"app": "x"}}, "spec": {"nodeName": "a", "containers": [{}]}});
        for tie in 0..4 {
            assert_eq!(
                schedule(&wants("10m"), &snapshot(&[node("a", "2"), node("b", "2")], std::slice::from_ref(&first)), tie),
                Decision::Node("b".into())
            );
        }
    }

    proptest! {
        #[test]
        fn a_chosen_node_has_room(cpus in proptest::collection::vec(1u32..8, 1..6), used in proptest::collection::vec(0u32..8, 6), want in 1u32..8, tie: u64) {
            let nodes: Vec<_> = cpus.iter().enumerate().map(|(i, c)| node(&format!("n{i}"), &c.to_string())).collect();
            let pods: Vec<_> = used.iter().enumerate().map(|(i, c)| json!({"metadata": {"uid": i.to_string()}, "spec": {"nodeName": format!("n{i}"),
                "containers": [{"resources": {"requests": {"cpu": c.to_string()}}}]}})).collect();
            let fits: Vec<_> = cpus.iter().zip(&used).map(|(c, u)| *u <= *c && want <= c - u).collect();
            match schedule(&wants(&want.to_string()), &snapshot(&nodes, &pods), tie) {
                Decision::Node(name) => prop_assert!(fits[name[1..].parse::<usize>().unwrap()]),
                Decision::Unschedulable(_) => prop_assert!(!fits.contains(&true)),
            }
        }
    }
}
