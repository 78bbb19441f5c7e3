//! Tables of scaling, ranking and status.

use std::sync::Arc;

use serde_json::json;

use super::plan::{Observed, plan};
use crate::api::{Pod, ReplicaSet};

const NOW: &str = "2026-01-01T01:00:00Z";

fn set(replicas: i32, min_ready_seconds: i32) -> ReplicaSet {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d", "uid": "rs", "generation": 3},
        "spec": {"replicas": replicas, "minReadySeconds": min_ready_seconds, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web", "v": "1"}}}}}))
    .unwrap()
}

/// `name:node:phase:ready` with optional `:cost=N`, `:restarts=N`, `:since=HH:MM`, `:gone`.
fn pod(text: &str) -> Arc<Pod> {
    let mut parts = text.split(':');
    let (name, node, phase, ready) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let mut pod = json!({"metadata": {"name": name, "uid": name, "namespace": "d", "labels": {"app": "web", "v": "1"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node}, "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready == "y" {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    for extra in parts {
        match extra.split_once('=') {
            Some(("cost", n)) => pod["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": n}),
            Some(("restarts", n)) => pod["status"]["containerStatuses"] = json!([{"name": "c", "restartCount": n.parse::<i32>().unwrap()}]),
            Some(("since", minute)) => pod["status"]["conditions"][0]["lastTransitionTime"] = json!(format!("2026-01-01T00:{minute}:00Z")),
            _ => pod["metadata"]["deletionTimestamp"] = json!(NOW),
        }
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn planned(set: &ReplicaSet, pods: &[&str]) -> super::plan::Plan {
    let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
    plan(&Observed { set, pods: &pods, related: &pods, now: NOW.parse().unwrap() })
}

#[test]
fn scaling_creates_and_deletes_the_difference() {
    for (replicas, pods, create, delete) in [
        (3, &[][..], 3, &[][..]),
        (3, &["a:n1:Running:y"], 2, &[]),
        (1, &["a:n1:Running:y"], 0, &[]),
        (2, &["a:n1:Running:y", "b:n1:Failed:n", "c:n1:Running:y:gone"], 1, &[]),
        (0, &["a:n1:Running:y"], 0, &["a"]),
        (2000, &[], 500, &[]),
        // unassigned before assigned, pending before running, unready before ready
        (2, &["a:n1:Running:y", "b::Pending:n", "c:n1:Running:y"], 0, &["b"]),
        (1, &["a:n1:Running:y", "b:n1:Pending:n", "c:n1:Running:n"], 0, &["b", "c"]),
        // lower cost first
        (1, &["a:n1:Running:y:cost=5", "b:n1:Running:y:cost=-5"], 0, &["b"]),
        // the node with more of them first
        (2, &["a:n1:Running:y", "b:n2:Running:y", "c:n2:Running:y"], 0, &["b"]),
        // ready for a shorter time first
        (1, &["a:n1:Running:y:since=10", "b:n2:Running:y:since=59"], 0, &["b"]),
        // more restarts first
        (1, &["a:n1:Running:y:restarts=1", "b:n2:Running:y:restarts=9"], 0, &["b"]),
    ] {
        let plan = planned(&set(replicas, 0), pods);
        let deleted: Vec<_> = plan.delete.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!((plan.create, deleted.as_slice()), (create, delete), "{replicas} of {pods:?}");
    }
}

#[test]
fn status_counts_what_is_there() {
    let plan = planned(&set(3, 0), &["a:n1:Running:y", "b:n1:Running:n", "c:n1:Running:y:gone", "d:n1:Failed:n"]);
    let s = &plan.status;
    assert_eq!(
        (s.replicas, s.fully_labeled_replicas, s.ready_replicas, s.available_replicas, s.terminating_replicas, s.observed_generation),
        (2, 2, 1, 1, Some(1), 3)
    );
}

#[test]
fn a_ready_pod_becomes_available_after_its_time() {
    let plan = planned(&set(2, 120), &["a:n1:Running:y:since=59", "b:n1:Running:y:since=30"]);
    assert_eq!(plan.status.available_replicas, 1);
    assert_eq!(plan.again.map(|d| d.as_secs()), Some(60));
    assert_eq!(planned(&set(1, 60), &["b:n1:Running:y:since=30"]).again, None);
}
