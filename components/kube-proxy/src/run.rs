//! Watches, and keeps the kernel's table as [`crate::plan`] wants it.
//!
//! Changes within [`SETTLE`] are taken together. A transaction that fails changes nothing, and the whole table is made anew on the next try.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use k8s_client::resources::{ENDPOINT_SLICES, NODES, SERVICE_CIDRS, SERVICES};
use k8s_client::{
    CancellationToken, Client, Informer, Named, Object, ObjectMeta, ReflectorOptions, Resource, null_default, spawn_reflector,
};
use nftables::{Family, Socket};
use serde::Deserialize;
use tokio::sync::Notify;

use crate::config::Config;
use crate::conntrack::Conntrack;
use crate::health::Health;
use crate::plan::{Settings, TABLE, plan};
use crate::ruleset::{Ruleset, replace, update};
use crate::services::{Forward, forwards};
use crate::types::{EndpointSlice, Service};

/// How long changes are gathered before they are programmed.
pub const SETTLE: Duration = Duration::from_millis(100);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(30);

/// This node's addresses.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    metadata: ObjectMeta,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    #[serde(deserialize_with = "null_default")]
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl Object for Node {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for Node {
    const RESOURCE: Resource = NODES;
}

/// The ranges cluster addresses come from.
#[derive(Debug, Clone, Deserialize)]
pub struct ServiceCidr {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: ServiceCidrSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ServiceCidrSpec {
    #[serde(deserialize_with = "null_default")]
    cidrs: Vec<String>,
}

impl Object for ServiceCidr {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for ServiceCidr {
    const RESOURCE: Resource = SERVICE_CIDRS;
}

/// What is watched.
struct Watched {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    node: Informer<Node>,
    service_cidrs: Informer<ServiceCidr>,
}

/// One address family's table.
struct Table {
    family: Family,
    socket: Socket,
    conntrack: Conntrack,
    /// What the kernel has; `None` when that is not known.
    applied: Option<Ruleset>,
    forwards: Vec<Forward>,
    problems: Vec<String>,
}

fn of_family(networks: &[IpNet], family: Family) -> Vec<(IpAddr, u8)> {
    networks.iter().filter(|n| Family::of(n.addr()) == family).map(|n| (n.network(), n.prefix_len())).collect()
}

/// The addresses that take node ports: the primary one, or those in the given networks.
fn node_port_addresses(node: Option<&Node>, networks: Option<&[IpNet]>) -> BTreeSet<IpAddr> {
    let all = node.map(|n| n.status.addresses.as_slice()).unwrap_or_default();
    let addresses = all.iter().filter(|a| a.kind == "InternalIP").filter_map(|a| a.address.parse::<IpAddr>().ok());
    match networks {
        Some(networks) => addresses.filter(|a| networks.iter().any(|n| n.contains(a))).collect(),
        None => {
            let mut seen = vec![];
            addresses
                .filter(|a| {
                    let family = Family::of(*a);
                    let new = !seen.contains(&family);
                    seen.push(family);
                    new
                })
                .collect()
        }
    }
}

impl Table {
    fn sync(&mut self, config: &Config, watched: &Watched) -> anyhow::Result<()> {
        let node = watched.node.get("", &config.node);
        let addresses = node_port_addresses(node.as_deref(), config.node_port_networks.as_deref());
        let cidrs: Vec<IpNet> = watched
            .service_cidrs
            .list()
            .iter()
            .flat_map(|c| c.spec.cidrs.iter().filter_map(|c| c.parse().ok()).collect::<Vec<_>>())
            .collect();
        let settings = Settings {
            family: self.family,
            node_port_addresses: addresses.clone(),
            cluster_cidr: of_family(&config.cluster_cidrs, self.family).first().copied(),
            service_cidrs: of_family(&cidrs, self.family),
            masquerade_mark: config.masquerade_mark,
            masquerade_all: config.masquerade_all,
        };
        let (services, slices) = (watched.services.list(), watched.slices.list());
        let (wanted, problems) = forwards(services.iter().map(|s| &**s), slices.iter().map(|s| &**s), self.family, &config.node);
        for problem in problems.iter().filter(|p| !self.problems.contains(p)) {
            tracing::warn!(problem, "left out");
        }
        self.problems = problems;
        let rules = plan(&settings, &wanted);
        let batch = match &self.applied {
            Some(applied) => update(self.family, TABLE, applied, &rules),
            None => replace(self.family, TABLE, &rules),
        };
        let changed = !batch.is_empty();
        if changed {
            let operations = batch.len();
            self.applied = None;
            self.socket.commit(batch)?;
            tracing::info!(family = ?self.family, operations, services = wanted.len(), "rules committed");
        }
        self.applied = Some(rules);
        if self.forwards != wanted {
            let removed = self.conntrack.remove_stale(&wanted, &addresses.into_iter().collect::<Vec<_>>())?;
            if removed > 0 {
                tracing::info!(removed, "stale UDP flows removed");
            }
            self.forwards = wanted;
        }
        Ok(())
    }
}

fn mark_dirty<T: Object>(informer: &Informer<T>, dirty: &Arc<Notify>, health: &Arc<Health>) {
    let (dirty, health) = (Arc::clone(dirty), Arc::clone(health));
    informer.add_handler(move |_| {
        health.pending();
        dirty.notify_one();
    });
}

/// Watches and programs until told to stop.
pub async fn run(config: Config, client: Client, health: Arc<Health>, stop: CancellationToken) -> anyhow::Result<()> {
    let dirty = Arc::new(Notify::new());
    let ours = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
    let labelled = |resource| ReflectorOptions { label_selector: ours.into(), ..ReflectorOptions::all(resource) };
    let this_node = ReflectorOptions { field_selector: format!("metadata.name={}", config.node), ..ReflectorOptions::of::<Node>() };
    let watched = Watched {
        services: spawn_reflector(client.clone(), labelled(SERVICES), stop.clone()),
        slices: spawn_reflector(client.clone(), labelled(ENDPOINT_SLICES), stop.clone()),
        node: spawn_reflector(client.clone(), this_node, stop.clone()),
        service_cidrs: spawn_reflector(client, ReflectorOptions::of::<ServiceCidr>(), stop.clone()),
    };
    mark_dirty(&watched.services, &dirty, &health);
    mark_dirty(&watched.slices, &dirty, &health);
    mark_dirty(&watched.node, &dirty, &health);
    mark_dirty(&watched.service_cidrs, &dirty, &health);
    tokio::select! {
        _ = async { tokio::join!(watched.services.wait_synced(), watched.slices.wait_synced(), watched.node.wait_synced(), watched.service_cidrs.wait_synced()) } => {}
        () = stop.cancelled() => return Ok(()),
    }
    let mut table = Table {
        family: Family::Ip,
        socket: Socket::open()?,
        conntrack: Conntrack::open(Family::Ip)?,
        applied: None,
        forwards: vec![],
        problems: vec![],
    };
    let mut retry = RETRY_FIRST;
    loop {
        let begun = Instant::now();
        let outcome = tokio::task::block_in_place(|| table.sync(&config, &watched));
        health.sync_seconds.observe(begun.elapsed().as_secs_f64());
        let wait = match outcome {
            Ok(()) => {
                retry = RETRY_FIRST;
                health.synced();
                None
            }
            Err(error) => {
                health.failures.inc();
                tracing::error!("program the rules: {error:#}; again in {retry:?}");
                let wait = retry;
                retry = (retry * 2).min(RETRY_MOST);
                Some(wait)
            }
        };
        tokio::select! {
            () = dirty.notified() => tokio::time::sleep(SETTLE).await,
            () = async { match wait { Some(wait) => tokio::time::sleep(wait).await, None => std::future::pending().await } } => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_answer_on_the_primary_address_or_in_the_given_networks() {
        let node: Node = serde_json::from_value(serde_json::json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.5.0.11"}, {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "fd00::1"}]}}))
        .unwrap();
        let set = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        assert_eq!(node_port_addresses(Some(&node), None), set(&["10.5.0.11", "fd00::1"]));
        assert_eq!(node_port_addresses(Some(&node), Some(&["192.0.2.0/24".parse().unwrap()])), set(&["192.0.2.1"]));
        assert_eq!(node_port_addresses(None, None), set(&[]));
    }
}
