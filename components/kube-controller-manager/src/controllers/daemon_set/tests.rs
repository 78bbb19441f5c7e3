//! Tables of placement and rolling updates.

use std::sync::Arc;

use k8s_client::OwnerReference;
use serde_json::{Value, json};

use super::node_fit::Rules;
use super::plan::{Observed, Plan, plan, pod_for_node, target_node};
use crate::api::{DaemonSet, Node, Pod};

fn node(name: &str, labels: Value, taints: Value) -> Arc<Node> {
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}})).unwrap())
}

fn plain(name: &str) -> Arc<Node> {
    node(name, json!({}), json!([]))
}

fn set(strategy: Value, spec: Value) -> DaemonSet {
    serde_json::from_value(json!({"metadata": {"name": "ds", "namespace": "d", "uid": "ds", "generation": 2},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "updateStrategy": strategy, "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}}}))
    .unwrap()
}

/// `name:node:hash:state`, where state is `ok`, `bad`, `failed` or `gone`.
fn pod(text: &str) -> Arc<Pod> {
    let parts: Vec<&str> = text.split(':').collect();
    let mut pod = json!({"metadata": {"name": parts[0], "uid": parts[0], "namespace": "d", "labels": {"controller-revision-hash": parts[2]}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": parts[1]}, "status": {"phase": if parts[3] == "failed" {"Failed"} else {"Running"},
        "conditions": [{"type": "Ready", "status": if parts[3] == "ok" {"True"} else {"False"}}]}});
    if parts[3] == "gone" {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn planned(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[&str]) -> Plan {
    let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
    plan(&Observed { set, nodes, pods: &pods, hash: "new", now: "2026-01-01T01:00:00Z".parse().unwrap() })
}

fn deleted(plan: &Plan) -> String {
    let mut names: Vec<_> = plan.delete.iter().map(|pod| pod.name.as_str()).collect();
    names.sort_unstable();
    names.join(",")
}

#[test]
fn nodes_are_chosen_by_selector_affinity_and_taints() {
    let no_schedule = json!([{"key": "gpu", "effect": "NoSchedule"}]);
    let no_execute = json!([{"key": "gpu", "effect": "NoExecute"}]);
    let broken = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}, {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
    let no_network = json!([{"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}]);
    let affinity = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
    let is = |key: &str, value: &str| json!([{"key": key, "operator": "In", "values": [value]}]);
    for (name, spec, node, run, stay) in [
        ("plain", json!({}), plain("n"), true, true),
        ("selector", json!({"nodeSelector": {"x": "y"}}), plain("n"), false, false),
        ("selector met", json!({"nodeSelector": {"x": "y"}}), node("n", json!({"x": "y"}), json!([])), true, true),
        ("affinity", affinity(json!([{"matchExpressions": is("x", "z")}])), node("n", json!({"x": "y"}), json!([])), false, false),
        (
            "one of two terms",
            affinity(json!([{"matchExpressions": is("x", "z")}, {"matchFields": is("metadata.name", "n")}])),
            plain("n"),
            true,
            true,
        ),
        ("an empty term matches nothing", affinity(json!([{}])), plain("n"), false, false),
        ("not schedulable", json!({}), node("n", json!({}), no_schedule.clone()), false, true),
        ("tolerated", json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]}), node("n", json!({}), no_schedule), true, true),
        ("evicting", json!({}), node("n", json!({}), no_execute), false, false),
        ("in trouble", json!({}), node("n", json!({}), broken), true, true),
        ("no network yet", json!({}), node("n", json!({}), no_network.clone()), false, true),
        ("no network yet, needs none", json!({"hostNetwork": true}), node("n", json!({}), no_network), true, true),
    ] {
        let fit = Rules::of(&json!({"spec": spec})).fit(&node);
        assert_eq!((fit.should_run, fit.may_stay), (run, stay), "{name}");
    }
}

#[test]
fn every_fitting_node_has_exactly_one_pod() {
    let set = set(json!({"type": "OnDelete"}), json!({}));
    let nodes = [plain("a"), plain("b"), node("c", json!({}), json!([{"key": "x", "effect": "NoExecute"}]))];
    for (pods, create, delete) in [
        (&[][..], "a,b", ""),
        (&["p:a:new:ok"], "b", ""),
        (&["p:a:new:ok", "q:b:new:ok", "r:b:new:ok"], "", "r"),
        (&["p:a:new:ok", "q:b:new:ok", "r:c:new:ok"], "", "r"),
        (&["p:a:new:gone", "q:b:new:ok"], "", ""),
        (&["p:a:new:failed", "q:b:new:ok"], "", ""),
    ] {
        let plan = planned(&set, &nodes, pods);
        assert_eq!((plan.create.join(","), deleted(&plan)), (create.to_string(), delete.to_string()), "{pods:?}");
    }
    assert_eq!(planned(&set, &nodes, &["p:a:new:failed"]).failed.len(), 1);
    let status = planned(&set, &nodes, &["p:a:new:ok", "q:b:old:bad", "r:c:new:ok"]).status;
    assert_eq!(
        (
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_misscheduled,
            status.number_ready,
            status.updated_number_scheduled,
            status.number_unavailable
        ),
        (2, 2, 1, 1, 1, 1)
    );
}

#[test]
fn updates_roll_within_their_limits() {
    let unavailable = |n: i32| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": n}});
    let surge = |n: i32| json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": n, "maxUnavailable": 0}});
    let nodes = [plain("a"), plain("b"), plain("c")];
    for (name, strategy, pods, create, delete) in [
        ("one at a time", unavailable(1), &["p:a:old:ok", "q:b:old:ok", "r:c:old:ok"][..], "", "p"),
        ("two at a time", unavailable(2), &["p:a:old:ok", "q:b:old:ok", "r:c:old:ok"], "", "p,q"),
        ("waits for the new one", unavailable(1), &["p:a:new:bad", "q:b:old:ok", "r:c:old:ok"], "", ""),
        ("goes on", unavailable(1), &["p:a:new:ok", "q:b:old:ok", "r:c:old:ok"], "", "q"),
        ("broken old ones go at once", unavailable(1), &["p:a:old:bad", "q:b:old:bad", "r:c:old:ok"], "", "p,q"),
        ("a node without pod counts", unavailable(1), &["q:b:old:ok", "r:c:old:ok"], "a", ""),
        ("on delete", json!({"type": "OnDelete"}), &["p:a:old:ok", "q:b:old:ok", "r:c:old:ok"], "", ""),
        ("surge starts one", surge(1), &["p:a:old:ok", "q:b:old:ok", "r:c:old:ok"], "a", ""),
        ("surge waits", surge(1), &["p:a:old:ok", "s:a:new:bad", "q:b:old:ok", "r:c:old:ok"], "", ""),
        ("surge replaces", surge(1), &["p:a:old:ok", "s:a:new:ok", "q:b:old:ok", "r:c:old:ok"], "b", "p"),
    ] {
        let plan = planned(&set(strategy, json!({})), &nodes, pods);
        assert_eq!((plan.create.join(","), deleted(&plan)), (create.to_string(), delete.to_string()), "{name}");
    }
}

#[test]
fn a_daemons_pod_names_its_node_and_tolerates_trouble() {
    let set = set(json!({}), json!({"tolerations": [{"key": "x", "operator": "Exists"}], "affinity": {"podAffinity": {}}}));
    let body = pod_for_node(&set, "a", "h", &OwnerReference { name: "ds".into(), ..Default::default() });
    let pod: Pod = serde_json::from_value(body.clone()).unwrap();
    assert_eq!(target_node(&pod).as_deref(), Some("a"));
    assert_eq!(pod.metadata.labels["controller-revision-hash"], "h");
    assert_eq!(pod.spec.tolerations.len(), 7);
    assert!(body["spec"]["affinity"]["podAffinity"].is_object());
}
