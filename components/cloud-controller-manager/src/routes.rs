//! Plans the routes between the nodes' pod ranges.
//!
//! The plan is ConfigMap `kube-system/strake-pod-routes`, key `routes.json`; every machine applies the routes of the other nodes. A node that is
//! in the plan no longer has the condition NetworkUnavailable.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_client::{
    Action, CancellationToken, Change, Client, Condition, Error, Informer, Request, Time, WorkQueue,
    resources::{CONFIG_MAPS, NODES},
    run_workers,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::Node;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "strake-pod-routes";
const KEY: &str = "routes.json";

/// One route: packets for the range go to that address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Route {
    node: String,
    #[serde(rename = "podCIDR")]
    pod_cidr: IpNet,
    via: IpAddr,
}

/// The routes to all nodes that have a range and an address of its family, ordered by node. Ranges outside `allowed` are left out, unless it
/// is empty; of two nodes with the same range the older keeps it.
fn plan(nodes: &[Arc<Node>], allowed: &[IpNet]) -> Vec<Route> {
    let mut by_age: Vec<&Arc<Node>> = nodes.iter().filter(|node| !node.metadata.is_deleting()).collect();
    by_age.sort_by(|a, b| (a.metadata.creation_timestamp, &a.metadata.name).cmp(&(b.metadata.creation_timestamp, &b.metadata.name)));
    let mut routes: Vec<Route> = Vec::new();
    for node in by_age {
        let addresses: Vec<IpAddr> = node.addresses("InternalIP").filter_map(|text| text.parse().ok()).collect();
        for range in node.spec.pod_cidrs.iter().filter_map(|text| text.parse::<IpNet>().ok()).map(|range| range.trunc()) {
            if !allowed.is_empty() && !allowed.iter().any(|net| net.contains(&range)) {
                continue;
            }
            if routes.iter().any(|route| route.pod_cidr.contains(&range) || range.contains(&route.pod_cidr)) {
                tracing::warn!(node = node.metadata.name, range = %range, "the pod range overlaps another node's: no route");
                continue;
            }
            let is_v6 = matches!(range, IpNet::V6(_));
            if let Some(via) = addresses.iter().find(|address| address.is_ipv6() == is_v6) {
                routes.push(Route { node: node.metadata.name.clone(), pod_cidr: range, via: *via });
            }
        }
    }
    routes.sort();
    routes
}

/// Runs until `stop`.
pub async fn run(client: Client, nodes: Informer<Node>, allowed: Vec<IpNet>, stop: CancellationToken) {
    let queue = WorkQueue::new("routes");
    let sink = queue.clone();
    nodes.add_handler(move |_: Change<'_, Node>| sink.add(()));
    nodes.wait_synced().await;
    queue.add(());
    run_workers(queue, 1, stop, move |()| {
        let (client, nodes, allowed) = (client.clone(), nodes.clone(), allowed.clone());
        async move {
            let all = nodes.list();
            let routes = plan(&all, &allowed);
            publish(&client, &routes).await?;
            for node in all.iter().filter(|node| routes.iter().any(|route| route.node == node.metadata.name)) {
                clear_unavailable(&client, node).await?;
            }
            Ok::<_, Error>(Action::Done)
        }
    })
    .await;
}

async fn publish(client: &Client, routes: &[Route]) -> Result<(), Error> {
    let text = json!(routes).to_string();
    let change = |object: &mut Value| object["data"] = json!({KEY: text});
    match client.update(&CONFIG_MAPS, (NAMESPACE, NAME), "", "", change).await {
        Err(error) if error.is_not_found() => {
            let body =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}, "data": {KEY: text}});
            client.execute(&Request::create(&CONFIG_MAPS, NAMESPACE, &body)).await
        }
        other => other.map(drop),
    }
}

/// Whether the node still says that its network is not there.
fn needs_clearing(node: &Node) -> bool {
    Condition::find(&node.status.conditions, "NetworkUnavailable").is_none_or(|condition| condition.status != "False")
}

async fn clear_unavailable(client: &Client, node: &Node) -> Result<(), Error> {
    if !needs_clearing(node) {
        return Ok(());
    }
    let now = Time::now();
    let change = |object: &mut Value| {
        let condition = json!({"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated", "message": "The route to this node's pods is planned",
            "lastHeartbeatTime": now, "lastTransitionTime": now});
        match object["status"]["conditions"].as_array_mut() {
            Some(conditions) => {
                conditions.retain(|condition| condition["type"] != "NetworkUnavailable");
                conditions.push(condition);
            }
            None => object["status"]["conditions"] = json!([condition]),
        }
    };
    match client.update(&NODES, ("", &node.metadata.name), &node.metadata.uid, "status", change).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, created: u32, ranges: &[&str], addresses: &[&str]) -> Arc<Node> {
        let addresses: Vec<_> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")},
                "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses}}))
            .unwrap(),
        )
    }

    fn planned(nodes: &[Arc<Node>], allowed: &[&str]) -> String {
        json!(plan(nodes, &allowed.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())).to_string()
    }

    #[test]
    fn every_node_with_a_range_and_an_address_has_a_route() {
        let nodes = [
            node("worker-1", 2, &["10.244.1.0/24"], &["10.5.0.21"]),
            node("cp-1", 1, &["10.244.0.0/24", "fd00:1::/64"], &["10.5.0.11", "fd00::11"]),
            node("no-range", 3, &[], &["10.5.0.22"]),
            node("no-address", 4, &["10.244.3.0/24"], &[]),
            node("other-family", 5, &["10.244.4.0/24"], &["fd00::5"]),
        ];
        assert_eq!(
            planned(&nodes, &[]),
            r#"[{"node":"cp-1","podCIDR":"10.244.0.0/24","via":"10.5.0.11"},{"node":"cp-1","podCIDR":"fd00:1::/64","via":"fd00::11"},{"node":"worker-1","podCIDR":"10.244.1.0/24","via":"10.5.0.21"}]"#
        );
        assert_eq!(planned(&nodes, &["10.244.1.0/24"]), r#"[{"node":"worker-1","podCIDR":"10.244.1.0/24","via":"10.5.0.21"}]"#);
    }

    #[test]
    fn a_duplicate_range_stays_with_the_older_node() {
        let nodes = [node("new", 9, &["10.244.1.0/24"], &["10.5.0.9"]), node("old", 1, &["10.244.1.0/24"], &["10.5.0.1"])];
        assert_eq!(planned(&nodes, &[]), r#"[{"node":"old","podCIDR":"10.244.1.0/24","via":"10.5.0.1"}]"#);
    }
}
