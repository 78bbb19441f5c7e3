//! Removes pods nobody else will: finished ones past the threshold, those of nodes that are gone, and unscheduled ones being deleted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_client::{
    Client, DeleteOptions, Error, ObjectMeta, Patch, Request, Time,
    resources::{NODES, PODS},
};
use serde_json::json;

use crate::api::{Node, Pod};
use crate::context::Context;
use crate::ownership;

const PERIOD: Duration = Duration::from_secs(20);
/// How long a node must be missing before its pods go: it may just not have been seen yet.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Pods to remove, and why.
#[derive(Debug, Default, PartialEq)]
struct Plan<'a> {
    finished: Vec<&'a Pod>,
    orphaned: Vec<&'a Pod>,
    unscheduled: Vec<&'a Pod>,
    out_of_service: Vec<&'a Pod>,
}

/// `gone` are nodes missing for long enough.
fn plan<'a>(pods: &'a [Arc<Pod>], nodes: &[Arc<Node>], gone: &HashSet<String>, threshold: usize) -> Plan<'a> {
    let mut plan = Plan::default();
    let mut finished: Vec<&Pod> = pods.iter().map(Arc::as_ref).filter(|pod| pod.is_terminal() && !pod.metadata.is_deleting()).collect();
    if threshold > 0 && finished.len() > threshold {
        finished.sort_by(|a, b| (a.metadata.creation_timestamp, &a.metadata.name).cmp(&(b.metadata.creation_timestamp, &b.metadata.name)));
        finished.truncate(finished.len() - threshold);
        plan.finished = finished;
    }
    for pod in pods.iter().map(Arc::as_ref) {
        let node = pod.spec.node_name.as_str();
        if gone.contains(node) {
            plan.orphaned.push(pod);
        } else if node.is_empty() && pod.metadata.is_deleting() {
            plan.unscheduled.push(pod);
        } else if pod.metadata.is_deleting()
            && let Some(node) = nodes.iter().find(|known| known.metadata.name == node)
        {
            let ready = k8s_client::Condition::find(&node.status.conditions, "Ready").is_some_and(k8s_client::Condition::is_true);
            if !ready && node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
                plan.out_of_service.push(pod);
            }
        }
    }
    plan
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client("pod-garbage-collector");
    let nodes = context.informers.nodes();
    let pods = context.informers.pods().informer;
    nodes.wait_synced().await;
    pods.wait_synced().await;
    let mut missing: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = context.stop.cancelled() => return,
        }
        let (all_pods, all_nodes) = (pods.list(), nodes.list());
        let known: HashSet<&str> = all_nodes.iter().map(|node| node.metadata.name.as_str()).collect();
        let used: HashSet<&str> = all_pods.iter().map(|pod| pod.spec.node_name.as_str()).filter(|name| !name.is_empty()).collect();
        missing.retain(|name, _| used.contains(name.as_str()) && !known.contains(name.as_str()));
        for name in used.iter().filter(|name| !known.contains(**name)) {
            missing.entry((*name).to_string()).or_insert_with(Instant::now);
        }
        let mut gone = HashSet::new();
        for (name, since) in &missing {
            if since.elapsed() >= QUARANTINE {
                match client.execute(&Request::get_metadata(&NODES, "", name)).await {
                    Err(error) if error.is_not_found() => drop(gone.insert(name.clone())),
                    Err(error) => tracing::warn!(node = name, error = &error as &dyn std::error::Error, "checking for a node failed"),
                    Ok(()) => {}
                }
            }
        }
        let plan = plan(&all_pods, &all_nodes, &gone, context.options.terminated_pod_gc_threshold);
        let all = [
            (plan.finished, "finished, past the threshold", false),
            (plan.orphaned, "its node is gone", true),
            (plan.unscheduled, "deleted before it was scheduled", false),
            (plan.out_of_service, "its node is out of service", true),
        ];
        for (found, reason, disrupted) in all {
            for pod in found {
                match remove(&client, pod, disrupted).await {
                    Ok(()) => tracing::info!(pod = %pod.metadata.key(), reason, "pod removed"),
                    Err(error) => {
                        tracing::warn!(pod = %pod.metadata.key(), reason, error = &error as &dyn std::error::Error, "removing a pod failed")
                    }
                }
            }
        }
    }
}

async fn remove(client: &Client, pod: &Pod, disrupted: bool) -> Result<(), Error> {
    let ObjectMeta { namespace, name, uid, .. } = &pod.metadata;
    if !pod.is_terminal() {
        // Owners count it as failed rather than lost; nobody else will ever say how it ended.
        let mut body = json!({"metadata": {"uid": uid}, "status": {"phase": "Failed"}});
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": Time::now()});
        if disrupted {
            body["status"]["conditions"] = json!([condition]);
        }
        ownership::ignore_missing(client, &Request::patch(&PODS, namespace, name, &Patch::strategic(&body)).subresource("status")).await?;
    }
    let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(uid) };
    ownership::ignore_missing(client, &Request::delete(&PODS, namespace, name, &options)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, deleting: bool) -> Arc<Pod> {
        let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": node}, "status": {"phase": phase}})).unwrap();
        pod.metadata.deletion_timestamp = deleting.then(Time::now);
        Arc::new(pod)
    }

    #[test]
    fn only_pods_nobody_else_removes_are_removed() {
        let nodes = [
            Arc::new(serde_json::from_value::<Node>(json!({"metadata": {"name": "here"}})).unwrap()),
            Arc::new(
                serde_json::from_value::<Node>(
                    json!({"metadata": {"name": "off"}, "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]}}),
                )
                .unwrap(),
            ),
        ];
        let pods = [
            pod("a", "here", "Running", false),
            pod("b", "here", "Running", true),
            pod("c", "away", "Running", false),
            pod("d", "", "Pending", true),
            pod("e", "", "Pending", false),
            pod("f", "off", "Running", true),
            pod("g", "off", "Running", false),
            pod("h", "here", "Succeeded", false),
            pod("i", "here", "Failed", false),
        ];
        let names = |pods: &[&Pod]| pods.iter().map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join("");
        let plan = plan(&pods, &nodes, &HashSet::from(["away".to_string()]), 1);
        assert_eq!(
            (names(&plan.finished), names(&plan.orphaned), names(&plan.unscheduled), names(&plan.out_of_service)),
            ("h".into(), "c".into(), "d".into(), "f".into())
        );
        assert!(super::plan(&pods, &nodes, &HashSet::new(), 2).finished.is_empty());
    }
}
