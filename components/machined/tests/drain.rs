//! Draining a node as a machine does it before a restart: with its kubelet's credentials, against a real API server on a real etcd. Only the kubelet is missing:
//! [`end`] lets a pod go as it would.

#[allow(dead_code, reason = "what other users of the cluster need")]
#[path = "../../kube-apiserver/examples/dev-cluster/cluster.rs"]
mod cluster;

use std::process::Stdio;
use std::time::Duration;

use cluster::Cluster;
use k8s_client::Client;
use machined::drain_node;
use serde_json::{Value, json};

/// The node of the kubelet whose credentials the cluster makes.
const NODE: &str = "dev";

fn kubectl(cluster: &Cluster, args: &[&str], input: Option<&Value>) -> String {
    let mut child = cluster.kubectl(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    if let Some(input) = input {
        std::io::Write::write_all(&mut stdin, input.to_string().as_bytes()).unwrap();
    }
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn create(cluster: &Cluster, object: &Value) {
    kubectl(cluster, &["create", "-f", "-"], Some(object));
}

fn pod(name: &str, node: &str, more: &Value) -> Value {
    let mut metadata = json!({"name": name, "namespace": "default"});
    for (field, value) in more.as_object().unwrap() {
        metadata[field] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "x"}]}})
}

/// Pods with what became of each: whether it was told to end.
fn pods(cluster: &Cluster) -> Vec<(String, bool)> {
    let list: Value = serde_json::from_str(&kubectl(cluster, &["get", "pods", "-o", "json"], None)).unwrap();
    let of = |pod: &Value| (pod["metadata"]["name"].as_str().unwrap().to_owned(), pod["metadata"]["deletionTimestamp"].is_string());
    let mut found: Vec<_> = list["items"].as_array().unwrap().iter().map(of).collect();
    found.sort();
    found
}

fn end(cluster: &Cluster, name: &str) {
    kubectl(cluster, &["delete", "pod", name, "--grace-period=0", "--force"], None);
}

fn is_cordoned(cluster: &Cluster) -> bool {
    kubectl(cluster, &["get", "node", NODE, "-o", "jsonpath={.spec.unschedulable}"], None) == "true"
}

/// What the disruption controller would say of the budget.
fn allow(cluster: &Cluster, disruptions: i32) {
    let status = json!({"status": {"observedGeneration": 1, "currentHealthy": 1, "desiredHealthy": 1 - disruptions,
        "disruptionsAllowed": disruptions, "expectedPods": 1}});
    kubectl(cluster, &["patch", "pdb", "web", "--type=merge", "--subresource=status", "-p", &status.to_string()], None);
}

fn client(cluster: &Cluster, who: &str) -> Client {
    let file = cluster.dir.join(format!("{who}.kubeconfig"));
    Client::new(k8s_client::Config::load(Some(&file)).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_as_budgets_allow_and_who_blocks_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(directory.path());
    let (kubelet, admin) = (client(&cluster, "kubelet"), client(&cluster, "admin"));
    create(&cluster, &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}}));
    create(&cluster, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}));
    create(
        &cluster,
        &json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}}),
    );
    let daemon =
        json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d-1", "controller": true}]});
    for (name, node, more) in [
        ("daemon", NODE, daemon),
        ("elsewhere", "other", json!({})),
        ("plain", NODE, json!({})),
        ("web", NODE, json!({"labels": {"app": "web"}})),
    ] {
        create(&cluster, &pod(name, node, &more));
    }
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}).to_string();
    kubectl(&cluster, &["patch", "pod", "web", "--subresource=status", "-p", &ready], None);
    allow(&cluster, 0);

    // Held by the budget until the time is over: what is not held was told to end, the budget is named, and the node takes pods again.
    let mut said = Vec::new();
    let refused = drain_node(&kubelet, NODE, Duration::from_secs(6), &mut |line| said.push(line)).await.unwrap_err();
    for part in ["was not drained within 6 s and takes pods again", "default/web: The disruption budget web needs 1 healthy pods and has 1"]
    {
        assert!(refused.contains(part), "{refused}: {part}");
    }
    assert!(!refused.contains("plain") && !refused.contains("daemon") && !refused.contains("elsewhere"), "{refused}");
    assert!(said[0].contains("2 pods left: default/plain, default/web; held by default/web: The disruption budget web"), "{said:?}");
    assert!(!is_cordoned(&cluster), "a node that was not drained takes pods again");
    let state = |names: &[(&str, bool)]| names.iter().map(|(name, ending)| ((*name).to_owned(), *ending)).collect::<Vec<_>>();
    assert_eq!(pods(&cluster), state(&[("daemon", false), ("elsewhere", false), ("plain", true), ("web", false)]));

    // A pod that takes longer to end than there is time is named, too.
    allow(&cluster, 1);
    let refused = drain_node(&kubelet, NODE, Duration::from_secs(3), &mut drop).await.unwrap_err();
    assert!(refused.contains("still ending: default/plain, default/web"), "{refused}");

    // They end while it waits.
    let ended = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(is_cordoned(&cluster), "while it is drained nothing new comes");
        ["plain", "web"].iter().for_each(|name| end(&cluster, name));
    };
    let mut unheard = drop;
    let (drained, ()) = tokio::join!(drain_node(&kubelet, NODE, Duration::from_secs(60), &mut unheard), ended);
    assert_eq!(drained, Ok(true));
    assert!(is_cordoned(&cluster), "until the machine has restarted");
    assert_eq!(pods(&cluster), state(&[("daemon", false), ("elsewhere", false)]));

    assert_eq!(drain_node(&admin, "nobody", Duration::from_secs(5), &mut drop).await, Ok(false), "a machine that is no node yet");
    let foreign = drain_node(&kubelet, "other", Duration::from_secs(5), &mut drop).await.unwrap_err();
    assert!(foreign.starts_with("cordon the node other: "), "a machine drains itself alone: {foreign}");
}
