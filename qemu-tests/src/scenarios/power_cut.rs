//! Pulling the plug on every machine at once: the cluster comes back by itself, and nothing that was acknowledged is lost.

use super::first_cluster::{boot_ids, deploy, reach, wait_deployment};
use crate::error::Error;
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "power-cut",
    protects: "a cluster whose machines all lose power comes back by itself with everything that was acknowledged",
    run,
};

/// Objects written right before the cut.
const OBJECTS: usize = 20;

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.ready_cluster()?;
    let clients = cluster.clients();
    deploy(context, &clients)?;
    let before = boot_ids(&clients)?;

    for number in 0..OBJECTS {
        let (name, literal) = (format!("kept-{number}"), format!("--from-literal=number={number}"));
        // On a slow host etcd may ask for another try, after which the object may be there already.
        context.eventually(&format!("{name} to be taken"), context.patience(60), || {
            Ok(clients.kubectl(["create", "configmap", &name, &literal]).is_ok() || clients.get(&["configmap", &name]).is_ok())
                .map(|kept| kept.then_some(()))
        })?;
    }
    for node in &cluster.plan().nodes {
        cluster.machine(node).pull_plug()?;
    }
    context.say("the plug of every machine was pulled right after the last acknowledged write");
    for node in &cluster.plan().nodes {
        cluster.start_installed(node, context.accelerator)?;
    }
    context.eventually("every node to report a new boot", context.patience(120), || {
        let Ok(now) = boot_ids(&clients) else { return Ok(None) };
        Ok((now.len() == before.len() && now.is_disjoint(&before)).then_some(()))
    })?;
    cluster.wait_nodes(context)?;
    context.say("every node is Ready again");
    for number in 0..OBJECTS {
        let kept = clients.get(&["configmap", &format!("kept-{number}")])?;
        if kept["data"]["number"].as_str() != Some(number.to_string().as_str()) {
            return Err(Error::Unexpected {
                what: format!("configmap kept-{number}"),
                expected: number.to_string(),
                found: kept["data"].to_string(),
            });
        }
    }
    context.say("every acknowledged object is there");
    wait_deployment(context, &clients)?;
    reach(context, &clients, cluster.plan())
}
