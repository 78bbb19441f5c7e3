//! A worker that dies: its pods are replaced on the other node after their tolerations, and it comes back clean.

use serde_json::{Value, json};

use super::first_cluster::{items, unexpected};
use crate::cluster::Clients;
use crate::error::{Error, FileContext};
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "dead-worker",
    protects: "the pods of a worker that died are replaced on another node after their tolerations, and the worker comes back clean",
    run,
};

const LABEL: &str = "app=moved";
/// From the last sign of life to the taint (node-monitor-grace-period), in seconds.
const GRACE: u64 = 50;
/// How long the pods tolerate it.
const TOLERATION: u64 = 5;

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.ready_cluster()?;
    let clients = cluster.clients();
    let worker = cluster.plan().nodes[1].clone();
    let other = cluster.plan().control_plane().name.clone();
    let file = context.dir.join("moved.json");
    std::fs::write(&file, deployment(&worker.name).to_string()).on("write", &file)?;
    clients.kubectl(["apply", "-f", &file.to_string_lossy()])?;
    let old = context.eventually("the pod on the worker", context.patience(60), || Ok(ready_on(&clients, &worker.name)))?;

    cluster.machine(&worker).pull_plug()?;
    context.say("the worker's plug was pulled");
    let new =
        context.eventually("a copy on the other node", context.patience(GRACE + TOLERATION + 30), || Ok(ready_on(&clients, &other)))?;
    context.say(&format!("{old} was replaced by {new}"));
    let node = clients.get(&["node", &worker.name])?;
    let taints = node["spec"]["taints"].to_string();
    if !(taints.contains("node.kubernetes.io/unreachable") && taints.contains("NoExecute")) {
        return Err(unexpected("the dead node's taints", "node.kubernetes.io/unreachable:NoExecute", &taints));
    }

    cluster.start_installed(&worker, context.accelerator)?;
    cluster.wait_nodes(context)?;
    context.say("the worker is Ready again");
    context.eventually("the old pod and the taint to be gone", context.patience(60), || {
        let Ok(node) = clients.get(&["node", &worker.name]) else { return Ok(None) };
        let gone = clients.get(&["pods", "-l", LABEL]).is_ok_and(|pods| items(&pods).all(|pod| pod["metadata"]["name"] != old.as_str()));
        Ok((gone && node["spec"]["taints"].is_null()).then_some(()))
    })?;
    if ready_on(&clients, &other).as_deref() == Some(new.as_str()) {
        Ok(())
    } else {
        Err(unexpected("the replacement", "left where it is", "gone"))
    }
}

fn deployment(preferred: &str) -> Value {
    let toleration = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "moved"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "moved"}},
            "template": {
                "metadata": {"labels": {"app": "moved"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "tolerations": [toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable")],
                    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 100, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [preferred]}]}},
                    ]}},
                    "containers": [{"name": "hello", "image": "strake.dev/hello:v1", "imagePullPolicy": "IfNotPresent"}],
                },
            },
        },
    })
}

/// The name of the copy that is ready on a node.
fn ready_on(clients: &Clients, node: &str) -> Option<String> {
    let pods = clients.get(&["pods", "-l", LABEL]).ok()?;
    let ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        pod["spec"]["nodeName"] == node
            && pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.clone().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    items(&pods).find(ready)?["metadata"]["name"].as_str().map(str::to_owned)
}
