//! A worker whose config is tried and taken back, and who is wiped and installed again under its own name.

use serde_json::Value;

use super::first_cluster::{items, unexpected};
use crate::cluster::Clients;
use crate::cluster::plan::Node;
use crate::error::{Error, FileContext};
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "rejoin",
    protects: "a config that cuts a worker off is taken back by itself, and a worker that was reset joins again under its name",
    run,
};

/// An address that nothing leads to.
const ASTRAY: &str = "10.5.0.77";

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.ready_cluster()?;
    let clients = cluster.clients();
    let first = cluster.plan().control_plane().clone();
    let worker = cluster.plan().nodes[1].clone();

    let config = cluster.config(&worker);
    let text = std::fs::read_to_string(&config).on("read", &config)?;
    let tried = context.dir.join("tried.yaml");
    std::fs::write(&tried, text.replace(&worker.address.to_string(), ASTRAY)).on("write", &tried)?;
    let api = worker.local_api();
    let tried = tried.to_string_lossy().into_owned();
    // The machine moves away from under this very call, so its outcome says nothing.
    let words = ["--timeout", "10", "-n", &api, "apply-config", "-f", &tried, "--mode", "try", "--try-seconds", "20"];
    let outcome = clients.strakectl(words);
    context.say(&format!("tried an address that nothing leads to; strakectl: {}", outcome.map_or_else(|e| e.to_string(), |_| "ok".into())));
    let event = context
        .eventually("the machine to take the config back", context.patience(60), || Ok(event(&clients, &worker, "ConfigReverted")))?;
    context.say(&format!("the worker is back: {event}"));
    if !event.contains("nobody confirmed") {
        return Err(unexpected("the event", "a reason that says that nobody confirmed", &event));
    }

    let before = clients.get(&["node", &worker.name])?["status"]["nodeInfo"]["machineID"].clone();
    let machine = cluster.machine(&worker);
    let position = machine.console().position();
    clients.strakectl(["--timeout", "60", "-n", &api, "reset", "--yes"])?;
    context.say("the worker is reset");
    context.eventually("the control plane to give the name back", context.patience(60), || {
        let Ok(joined) = resources(&clients, &first, "joined") else { return Ok(None) };
        Ok(joined.iter().all(|machine| machine["id"] != worker.name.as_str()).then_some(()))
    })?;
    cluster.install_again(&worker, position, context)?;
    context.eventually("the node to be the new installation", context.patience(120), || {
        let Ok(node) = clients.get(&["node", &worker.name]) else { return Ok(None) };
        Ok((node["status"]["nodeInfo"]["machineID"] != before).then_some(()))
    })?;
    cluster.wait_nodes(context)?;
    let joined = resources(&clients, &first, "joined")?;
    if joined.iter().filter(|machine| machine["id"] == worker.name.as_str()).count() != 1 {
        return Err(unexpected("the machines that joined", &format!("{} once", worker.name), &Value::from(joined).to_string()));
    }
    let nodes = clients.get(&["nodes"])?;
    if items(&nodes).count() == cluster.plan().nodes.len() {
        Ok(())
    } else {
        Err(unexpected("the nodes", "as many as machines", &nodes.to_string()))
    }
}

fn resources(clients: &Clients, node: &Node, kind: &str) -> Result<Vec<Value>, Error> {
    let text = clients.strakectl(["-n", &node.local_api(), "-o", "json", "get", kind])?;
    serde_json::from_str(&text).map_err(|problem| unexpected(kind, "a list", &problem.to_string()))
}

/// The message of the machine's event with this reason.
fn event(clients: &Clients, node: &Node, reason: &str) -> Option<String> {
    let events = resources(clients, node, "events").ok()?;
    events.into_iter().map(|event| event.to_string()).find(|event| event.contains(reason))
}
