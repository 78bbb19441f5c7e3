//! Watching, binding, telling people: the I/O around [`crate::state::State`].
//!
//! At most [`MAX_WRITES`] bindings, status patches and preemptions are under way at once; scheduling waits when all are taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_client::resources::{NAMESPACES, POD_DISRUPTION_BUDGETS, PODS};
use k8s_client::{
    CancellationToken, Change, Client, DeleteOptions, EventRecorder, EventType, Informer, Named, Object, ObjectMeta, ObjectReference,
    Partial, Patch, ReflectorOptions, Request, Resource, spawn_reflector,
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};

use crate::metrics::Metrics;
use crate::preemption::Preemption;
use crate::schedule::FitError;
use crate::snapshot::PodInfo;
use crate::state::{Attempt, State};
use crate::types::{LabelSelector, Node, Pod};

/// Writes under way at once.
const MAX_WRITES: usize = 64;

/// A PodDisruptionBudget: whom it protects, and whether it still allows disruptions.
#[derive(Debug, Deserialize)]
struct Budget {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: BudgetSpec,
    #[serde(default)]
    status: BudgetStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BudgetSpec {
    selector: Option<LabelSelector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BudgetStatus {
    disruptions_allowed: i32,
}

impl Object for Budget {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for Budget {
    const RESOURCE: Resource = POD_DISRUPTION_BUDGETS;
}

/// Everything a scheduling loop shares with its watches and its writes.
pub struct Scheduler {
    client: Client,
    events: EventRecorder,
    state: Mutex<State>,
    wake: Notify,
    started: Instant,
    writes: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl Scheduler {
    /// A scheduler that has not looked at the cluster yet.
    pub fn new(client: Client, events: EventRecorder, metrics: Arc<Metrics>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            client,
            events,
            state: Mutex::default(),
            wake: Notify::new(),
            started: Instant::now(),
            writes: Arc::new(Semaphore::new(MAX_WRITES)),
            metrics,
            stop,
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Watches and schedules until told to stop.
    pub async fn run(self: Arc<Self>) {
        let nodes: Informer<Node> = spawn_reflector(self.client.clone(), ReflectorOptions::of::<Node>(), self.stop.clone());
        let namespaces: Informer<Partial> = spawn_reflector(
            self.client.clone(),
            ReflectorOptions { metadata_only: true, ..ReflectorOptions::all(NAMESPACES) },
            self.stop.clone(),
        );
        let budgets: Informer<Budget> = spawn_reflector(self.client.clone(), ReflectorOptions::of::<Budget>(), self.stop.clone());
        let unfinished =
            ReflectorOptions { field_selector: "status.phase!=Succeeded,status.phase!=Failed".into(), ..ReflectorOptions::of::<Pod>() };
        let pods: Informer<Pod> = spawn_reflector(self.client.clone(), unfinished, self.stop.clone());
        self.follow(&nodes, &namespaces, &pods);
        tokio::join!(nodes.wait_synced(), namespaces.wait_synced(), budgets.wait_synced(), pods.wait_synced());
        tracing::info!(nodes = nodes.len(), pods = pods.len(), "scheduling");
        while !self.stop.is_cancelled() {
            let Ok(permit) = self.writes.clone().acquire_owned().await else { return };
            let spent: Vec<_> = (budgets.list().iter())
                .filter(|b| b.status.disruptions_allowed <= 0)
                .filter_map(|b| b.spec.selector.clone().map(|s| (b.metadata.namespace.clone(), s)))
                .collect();
            let begun = Instant::now();
            let (attempt, wake_ms) = {
                let mut state = self.state.lock();
                let attempt = state.attempt(&spent, self.now_ms(), rand::random());
                self.metrics.pending(state.counts());
                (attempt, state.next_wake_ms())
            };
            let Some(attempt) = attempt else {
                drop(permit);
                let wait = wake_ms.map_or(Duration::from_secs(60), |at| Duration::from_millis(at.saturating_sub(self.now_ms()).max(1)));
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                    () = self.stop.cancelled() => return,
                }
                continue;
            };
            self.metrics.attempt(&attempt, begun.elapsed());
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                match attempt {
                    Attempt::Bind { pod, node } => this.bind(&pod, &node).await,
                    Attempt::Unschedulable { pod, error, preemption } => this.report(&pod, &error, preemption).await,
                }
                drop(permit);
            });
        }
    }

    fn follow(self: &Arc<Self>, nodes: &Informer<Node>, namespaces: &Informer<Partial>, pods: &Informer<Pod>) {
        let this = Arc::clone(self);
        nodes.add_handler(move |change| {
            let mut state = this.state.lock();
            match change {
                Change::Added(node) => state.set_node(None, node, this.now_ms()),
                Change::Updated { old, new } => state.set_node(Some(old), new, this.now_ms()),
                Change::Deleted(node) => state.remove_node(&node.metadata.name),
            }
            this.wake.notify_one();
        });
        let this = Arc::clone(self);
        namespaces.add_handler(move |change| {
            let mut state = this.state.lock();
            match change {
                Change::Updated { old, new } if old.meta().labels == new.meta().labels => {}
                Change::Added(ns) | Change::Updated { new: ns, .. } => {
                    state.set_namespace(&ns.meta().name, ns.meta().labels.clone(), this.now_ms());
                }
                Change::Deleted(ns) => state.remove_namespace(&ns.meta().name),
            }
            this.wake.notify_one();
        });
        let this = Arc::clone(self);
        pods.add_handler(move |change| {
            let mut state = this.state.lock();
            match change {
                Change::Added(pod) => state.set_pod(None, pod, this.now_ms()),
                Change::Updated { old, new } => state.set_pod(Some(old), new, this.now_ms()),
                Change::Deleted(pod) => state.remove_pod(pod, this.now_ms()),
            }
            this.wake.notify_one();
        });
    }

    async fn bind(&self, pod: &PodInfo, node: &str) {
        let meta = &pod.pod.metadata;
        let binding = json!({"apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        let request = Request::create_subresource(&PODS, &meta.namespace, &meta.name, "binding", &binding);
        match self.client.execute(&request).await {
            Ok(_) => {
                self.state.lock().bound(&meta.uid);
                tracing::info!(pod = pod.pod.key(), node, "bound");
                let message = format!("Successfully assigned {} to {node}", pod.pod.key());
                self.events.event(&ObjectReference::to(&PODS, meta), EventType::Normal, "Scheduled", message);
            }
            Err(error) => {
                tracing::warn!(pod = pod.pod.key(), node, error = &error as &dyn std::error::Error, "binding failed");
                let gone = error.is_not_found() || error.is_conflict();
                self.state.lock().binding_failed(&meta.uid, gone, self.now_ms());
                if !gone {
                    let message = format!("binding rejected: {error}");
                    self.events.event(&ObjectReference::to(&PODS, meta), EventType::Warning, "FailedScheduling", message);
                }
            }
        }
        self.wake.notify_one();
    }

    async fn report(&self, pod: &PodInfo, error: &FitError, preemption: Option<Preemption>) {
        let meta = &pod.pod.metadata;
        let message = error.message();
        tracing::debug!(pod = pod.pod.key(), message, "unschedulable");
        self.events.event(&ObjectReference::to(&PODS, meta), EventType::Warning, "FailedScheduling", message.clone());
        let told = pod.pod.status.conditions.iter().any(|c| c.kind == "PodScheduled" && c.status == "False" && c.message == message);
        let nominated = preemption.as_ref().map(|p| p.node.as_str());
        if !told || nominated.is_some_and(|n| n != pod.pod.status.nominated_node_name) {
            let mut status = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": k8s_client::Time::now()}]});
            if let Some(node) = nominated {
                status["nominatedNodeName"] = json!(node);
            }
            self.patch_status(pod, json!({"metadata": {"uid": meta.uid}, "status": status})).await;
        }
        for victim in preemption.iter().flat_map(|p| &p.victims) {
            self.evict(victim, pod).await;
        }
    }

    async fn evict(&self, victim: &PodInfo, preemptor: &PodInfo) {
        let meta = &victim.pod.metadata;
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", crate::state::SCHEDULER_NAME), "lastTransitionTime": k8s_client::Time::now()});
        self.patch_status(victim, json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [condition]}})).await;
        match self.client.execute(&Request::delete(&PODS, &meta.namespace, &meta.name, &DeleteOptions::uid(&meta.uid))).await {
            Ok(_) => {
                tracing::info!(pod = victim.pod.key(), preemptor = preemptor.pod.key(), "preempted");
                let message = format!("Preempted by pod {} on node {}", preemptor.pod.metadata.uid, victim.pod.spec.node_name);
                self.events.event(&ObjectReference::to(&PODS, meta), EventType::Normal, "Preempted", message);
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => tracing::warn!(pod = victim.pod.key(), error = &error as &dyn std::error::Error, "preemption failed"),
        }
    }

    async fn patch_status(&self, pod: &PodInfo, patch: serde_json::Value) {
        let meta = &pod.pod.metadata;
        let request = Request::patch(&PODS, &meta.namespace, &meta.name, &Patch::strategic(&patch)).subresource("status");
        if let Err(error) = self.client.execute(&request).await
            && !error.is_not_found()
        {
            tracing::warn!(pod = pod.pod.key(), error = &error as &dyn std::error::Error, "updating the pod's status failed");
        }
    }
}
