//! The main job, from the ISO to a workload that survives a reboot of every machine.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::cluster::Clients;
use crate::cluster::plan::ClusterPlan;
use crate::error::{Error, FileContext};
use crate::http;
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "first-cluster",
    protects: "two machines booted from the ISO become a cluster, run a Deployment behind a Service, and find everything back after a reboot",
    run,
};

const LABEL: &str = "app=hello";

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.new_cluster()?;
    let clients = cluster.clients();

    context.say("deploying the example");
    deploy(context, &clients)?;
    context.say("the Service by name from a pod, and by node port from outside");
    reach(context, &clients, cluster.plan())?;
    context.say("exec and logs");
    exec_and_logs(context, &clients)?;
    context.say("what the host services may do");
    confined(&clients, cluster.plan())?;
    context.say("etcd snapshot");
    snapshot(context, &clients)?;

    context.say("rebooting every machine");
    let before = boot_ids(&clients)?;
    for node in &cluster.plan().nodes {
        clients.strakectl(["--timeout", "60", "-n", &node.local_api(), "reboot"])?;
    }
    context.eventually("every node to report a new boot", context.patience(120), || {
        let Ok(now) = boot_ids(&clients) else { return Ok(None) };
        Ok((now.len() == before.len() && now.is_disjoint(&before)).then_some(()))
    })?;
    cluster.wait_nodes(context)?;
    context.say("every node is Ready again; the workload too?");
    wait_deployment(context, &clients)?;
    reach(context, &clients, cluster.plan())?;
    exec_and_logs(context, &clients)?;
    context.say("shutting down in order, for other scenarios to start from");
    cluster.save()
}

/// Applies the example and waits until both copies are ready, on two nodes.
pub fn deploy(context: &Context, clients: &Clients) -> Result<(), Error> {
    let manifest = context.project.join("configs/examples/hello.yaml");
    clients.kubectl(["apply", "-f", &manifest.to_string_lossy()])?;
    wait_deployment(context, clients)?;
    let pods = clients.get(&["pods", "-l", LABEL])?;
    let nodes: BTreeSet<&str> = items(&pods).filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
    if nodes.len() == 2 { Ok(()) } else { Err(unexpected("the nodes of the two copies", "2", &format!("{nodes:?}"))) }
}

/// Waits until the Deployment has both copies ready.
pub fn wait_deployment(context: &Context, clients: &Clients) -> Result<(), Error> {
    context.eventually("two ready copies of hello", context.patience(60), || {
        let Ok(deployment) = clients.get(&["deployment", "hello"]) else { return Ok(None) };
        Ok((deployment["status"]["readyReplicas"] == 2).then_some(()))
    })
}

/// Calls the Service by its DNS name from a pod, until both copies have answered, and its node port on every machine.
pub fn reach(context: &Context, clients: &Clients, plan: &ClusterPlan) -> Result<(), Error> {
    let pods = pod_names(clients)?;
    let from = pods.iter().next().cloned().unwrap_or_default();
    let name = "hello.default.svc.cluster.local";
    context.eventually("the Service's name in DNS", context.patience(30), || {
        Ok(clients.kubectl(["exec", &from, "--", "nslookup", name]).ok().filter(|answer| answer.contains("10.96.")))
    })?;
    let mut answered = BTreeSet::new();
    context.eventually("an answer of each copy through the Service", context.patience(30), || {
        if let Ok(answer) = clients.kubectl(["exec", &from, "--", "wget", "-q", "-T", "10", "-O", "-", &format!("http://{name}/")]) {
            answered.insert(answer.trim().to_owned());
        }
        Ok(answered.is_superset(&pods).then_some(()))
    })?;
    for node in &plan.nodes {
        context.eventually(&format!("an answer at the node port of {}", node.name), context.patience(30), || {
            Ok(http::get(node.hello_port, "/").ok().filter(|body| pods.contains(body.trim())))
        })?;
    }
    Ok(())
}

fn exec_and_logs(context: &Context, clients: &Clients) -> Result<(), Error> {
    for pod in pod_names(clients)? {
        let name = context
            .eventually(&format!("exec in {pod}"), context.patience(20), || Ok(clients.kubectl(["exec", &pod, "--", "hostname"]).ok()))?;
        if name.trim() != pod {
            return Err(unexpected("the host name in the pod", &pod, name.trim()));
        }
        let log = clients.kubectl(["logs", &pod])?;
        let wanted = format!("hello: {pod} serves");
        if !log.contains(&wanted) {
            return Err(unexpected("the pod's log", &wanted, &log));
        }
    }
    Ok(())
}

/// Every host service but containerd runs without the privileges that it does not need.
fn confined(clients: &Clients, plan: &ClusterPlan) -> Result<(), Error> {
    let api = plan.control_plane().local_api();
    let text = clients.strakectl(["-n", &api, "services", "-o", "json"])?;
    let services: Value = serde_json::from_str(&text).map_err(|problem| unexpected("services", "JSON", &format!("{problem}: {text}")))?;
    let mut seen = 0;
    for service in items(&services).chain(services.as_array().into_iter().flatten()) {
        let (Some(name), Some(pid)) = (service["name"].as_str(), service["pid"].as_i64()) else { continue };
        let status = clients.strakectl(["-n", &api, "read", &format!("/proc/{pid}/status")])?;
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim).unwrap_or_default().to_owned();
        let found = (value("NoNewPrivs:"), value("Seccomp:"));
        let expected = if name == "containerd" { ("0", "0") } else { ("1", "2") };
        if (found.0.as_str(), found.1.as_str()) != expected {
            return Err(unexpected(&format!("new privileges and system calls of {name}"), &format!("{expected:?}"), &format!("{found:?}")));
        }
        seen += 1;
    }
    if seen == 5 { Ok(()) } else { Err(unexpected("the running host services", "5", &text)) }
}

fn snapshot(context: &Context, clients: &Clients) -> Result<(), Error> {
    let file = context.dir.join("etcd.snapshot");
    clients.strakectl(["--timeout", "60", "etcd", "snapshot", &file.to_string_lossy()])?;
    check_snapshot(context, &file)
}

/// Lets etcd's own tool read the snapshot.
fn check_snapshot(context: &Context, file: &Path) -> Result<(), Error> {
    let mut command = context.programs.tools.command("etcdutl")?;
    let text = crate::machine::run(command.args(["snapshot", "status", "-w", "json"]).arg(file))?;
    let status: Value = serde_json::from_str(&text).map_err(std::io::Error::other).on("read the status of", file)?;
    if status["totalKey"].as_u64().is_some_and(|keys| keys > 50) {
        Ok(())
    } else {
        Err(unexpected("the snapshot's keys", "more than 50", &text))
    }
}

fn pod_names(clients: &Clients) -> Result<BTreeSet<String>, Error> {
    let pods = clients.get(&["pods", "-l", LABEL, "--field-selector", "status.phase=Running"])?;
    let live = items(&pods).filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(live.filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect())
}

/// The boot IDs of all nodes: another one after every boot.
pub fn boot_ids(clients: &Clients) -> Result<BTreeSet<String>, Error> {
    let nodes = clients.get(&["nodes"])?;
    Ok(items(&nodes).filter_map(|node| node["status"]["nodeInfo"]["bootID"].as_str()).map(str::to_owned).collect())
}

pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

pub fn unexpected(what: &str, expected: &str, found: &str) -> Error {
    Error::Unexpected { what: what.to_owned(), expected: expected.to_owned(), found: found.to_owned() }
}
