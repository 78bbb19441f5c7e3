//! Watches over node health: marks silent nodes unknown, keeps the taints that follow from conditions, and makes pods of lost nodes not ready.
//!
//! Whether a node is silent is judged by this process's own clock: a heartbeat counts when it *changes*, whatever time it carries.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_client::{
    Action, Client, Condition, Error, EventType, Informer, Lease, Request, Time,
    resources::{NODES, PODS},
};
use serde_json::json;

use self::plan::{Health, NodePlan, Observed, plan};
use crate::api::{Node, Pod};
use crate::context::{Context, Pods};

#[derive(Clone)]
struct Controller {
    context: Context,
    client: Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Pods,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("node-controller"),
        nodes: context.informers.nodes(),
        leases: context.informers.node_leases(),
        pods: context.informers.pods(),
        context: context.clone(),
    };
    controller.nodes.wait_synced().await;
    controller.leases.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    let mut heartbeats: HashMap<String, Heartbeat> = HashMap::new();
    let mut evictions = EvictionRate::default();
    loop {
        controller.round(&mut heartbeats, &mut evictions).await;
        tokio::select! {
            () = tokio::time::sleep(context.options.node_monitor_period) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

/// The last sign of life and when it was seen.
struct Heartbeat {
    uid: String,
    sign: (Option<k8s_client::MicroTime>, Option<Time>),
    seen: Instant,
}

/// One node may start losing its pods every ten seconds, as upstream's default; the first at once.
#[derive(Default)]
struct EvictionRate {
    last: Option<Instant>,
}

impl EvictionRate {
    const PAUSE: Duration = Duration::from_secs(10);

    fn may(&mut self) -> bool {
        if self.last.is_some_and(|last| last.elapsed() < Self::PAUSE) {
            return false;
        }
        self.last = Some(Instant::now());
        true
    }
}

impl Controller {
    async fn round(&self, heartbeats: &mut HashMap<String, Heartbeat>, evictions: &mut EvictionRate) {
        let nodes = self.nodes.list();
        heartbeats.retain(|name, _| nodes.iter().any(|node| node.metadata.name == *name));
        let mut plans: Vec<(Arc<Node>, NodePlan)> = Vec::new();
        let now = Time::now();
        for node in nodes {
            let silent_for = self.silent_for(&node, heartbeats);
            let observed = Observed { node: &node, silent_for, grace: self.context.options.node_monitor_grace_period, now };
            let plan = plan(&observed);
            plans.push((node, plan));
        }
        // When no node is healthy the trouble is more likely here: nobody loses pods.
        let any_ready = plans.iter().any(|(_, plan)| plan.health == Health::Ready);
        for (node, mut plan) in plans {
            if plan.evicts && (!any_ready || !evictions.may()) {
                plan.without_eviction(&node);
            }
            if let Err(error) = self.apply(&node, &plan).await
                && !error.is_conflict()
                && !error.is_not_found()
            {
                tracing::warn!(node = node.metadata.name, error = &error as &dyn std::error::Error, "keeping node health failed");
            }
        }
    }

    fn silent_for(&self, node: &Node, heartbeats: &mut HashMap<String, Heartbeat>) -> Duration {
        let name = &node.metadata.name;
        let renewed = self.leases.get("kube-node-lease", name).and_then(|lease| lease.spec.renew_time);
        let reported = Condition::find(&node.status.conditions, "Ready")
            .filter(|c| c.reason != "NodeStatusUnknown")
            .and_then(|c| c.last_heartbeat_time);
        let sign = (renewed, reported);
        let heartbeat =
            heartbeats.entry(name.clone()).or_insert_with(|| Heartbeat { uid: node.metadata.uid.clone(), sign, seen: Instant::now() });
        if heartbeat.sign != sign || heartbeat.uid != node.metadata.uid {
            *heartbeat = Heartbeat { uid: node.metadata.uid.clone(), sign, seen: Instant::now() };
        }
        heartbeat.seen.elapsed()
    }

    async fn apply(&self, node: &Node, plan: &NodePlan) -> Result<Action, Error> {
        let name = node.metadata.name.as_str();
        if let Some(conditions) = &plan.conditions {
            self.client
                .update(&NODES, ("", name), &node.metadata.uid, "status", |object| {
                    // The kubelet may have come back since we looked; its heartbeat is in the live object.
                    let live: Vec<Condition> = serde_json::from_value(object["status"]["conditions"].clone()).unwrap_or_default();
                    if live == node.status.conditions {
                        object["status"]["conditions"] = json!(conditions);
                    }
                })
                .await?;
            tracing::warn!(node = name, "the node is silent: its state is unknown");
            self.context.event(
                &NODES,
                &node.metadata,
                EventType::Normal,
                "NodeNotReady",
                format!("Node {name} status is now: NodeNotReady"),
            );
        }
        if let Some(taints) = &plan.taints {
            self.client
                .update(&NODES, ("", name), &node.metadata.uid, "", |object| {
                    let live: Vec<crate::api::Taint> = serde_json::from_value(object["spec"]["taints"].clone()).unwrap_or_default();
                    if live == node.spec.taints {
                        object["spec"]["taints"] = json!(taints);
                    }
                })
                .await?;
        }
        if plan.health != Health::Ready {
            for pod in self.pods.by_node.get(name) {
                self.mark_not_ready(&pod).await?;
            }
        }
        Ok(Action::Done)
    }

    /// A pod of a lost node takes no more traffic.
    async fn mark_not_ready(&self, pod: &Pod) -> Result<(), Error> {
        if !pod.is_ready() || pod.metadata.is_deleting() {
            return Ok(());
        }
        let Some(ready) = Condition::find(&pod.status.conditions, "Ready") else { return Ok(()) };
        let ready =
            Condition { status: "False".into(), reason: "NodeNotReady".into(), last_transition_time: Some(Time::now()), ..ready.clone() };
        // Conditions merge by type, so the others stay.
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [ready]}});
        let request =
            Request::patch(&PODS, &pod.metadata.namespace, &pod.metadata.name, &k8s_client::Patch::strategic(&patch)).subresource("status");
        crate::ownership::ignore_missing(&self.client, &request).await
    }
}
