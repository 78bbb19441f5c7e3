//! The pod network of this node: the CNI config from the node's own pod range, masquerading of what leaves the cluster, and routes to the pods of other nodes, which the
//! cloud controller manager plans.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use host::net::{Desired, DesiredRoute, LinuxNetwork, Network as _};
use ipnet::IpNet;
use k8s_client::resources::{CONFIG_MAPS, NODES};
use k8s_client::{Informer, Object, ObjectMeta, ReflectorOptions, spawn_reflector};
use machine_config::Config;
use nftables::{BaseChain, Batch, Family, Hook, PRIORITY_SRCNAT, Socket, rule};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::manifests::ROUTES_CONFIG_MAP;
use super::{KUBELET_KUBECONFIG, NodeFacts, files, node_files};
use crate::paths::Paths;
use crate::reconcilers::{Context, Outcome, ReconcileError, Reconciler};

/// Marks the routes that are ours (rtm_protocol), apart from those of the links' own configs.
const ROUTE_PROTOCOL: u8 = 84;
/// The nftables table that is ours.
const TABLE: &str = "strake";
/// How often the kernel's routes are compared with the plan when nothing is heard.
const EVERY: Duration = Duration::from_secs(60);
/// Routes of more nodes than this are not believed.
const MAX_ROUTES: usize = 5000;
/// What pods on different nodes need of the kernel.
const SYSCTLS: &[(&str, &str)] =
    &[("net/ipv4/ip_forward", "1"), ("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")];

/// One planned route, as the cloud controller manager writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodRoute {
    node: String,
    #[serde(rename = "podCIDR")]
    pod_cidr: IpNet,
    via: IpAddr,
}

/// What is read of this machine's Node.
#[derive(Deserialize)]
struct Node {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

impl Object for Node {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// What is read of the planned routes.
#[derive(Deserialize)]
struct Plan {
    metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

impl Object for Plan {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// The node's pod ranges, as its spec says.
fn pod_cidrs(spec: &NodeSpec) -> Vec<IpNet> {
    let all: Vec<IpNet> = spec.pod_cidrs.iter().filter_map(|s| s.parse().ok()).collect();
    if all.is_empty() { spec.pod_cidr.parse().into_iter().collect() } else { all }
}

/// The routes to other nodes' pods. What would lead outside the cluster's pod ranges, to this machine, or to a gateway that is not beside it is left out:
/// the plan is data from outside.
fn routes(text: &str, config: &Config, facts: &NodeFacts, neighbours: &[IpNet]) -> Result<Vec<DesiredRoute>, serde_json::Error> {
    let planned: Vec<PodRoute> = serde_json::from_str(text)?;
    let inside = |net: &IpNet| config.cluster.network.pod_subnets.iter().any(|s| s.0.contains(net) && s.0.prefix_len() < net.prefix_len());
    let beside = |via: &IpAddr| neighbours.iter().any(|n| n.contains(via)) && !facts.addresses.contains(via);
    Ok(planned
        .into_iter()
        .take(MAX_ROUTES)
        .filter(|r| r.node != facts.hostname && inside(&r.pod_cidr) && beside(&r.via) && r.pod_cidr.addr().is_ipv4() == r.via.is_ipv4())
        .map(|r| DesiredRoute { destination: r.pod_cidr.trunc(), gateway: Some(r.via), link: None, metric: 0 })
        .collect())
}

/// Masquerades what pods send out of the cluster, and nothing between pods. The table is replaced as a whole, in one transaction.
fn masquerade(config: &Config) -> Batch {
    let mut batch = Batch::new();
    for family in [Family::Ip, Family::Ip6] {
        let subnets: Vec<IpNet> =
            config.cluster.network.pod_subnets.iter().map(|s| s.0).filter(|s| Family::of(s.addr()) == family).collect();
        if subnets.is_empty() {
            continue;
        }
        batch.add_table(family, TABLE);
        batch.delete_table(family, TABLE);
        batch.add_table(family, TABLE);
        let base = BaseChain { kind: "nat", hook: Hook::Postrouting, priority: PRIORITY_SRCNAT };
        batch.add_chain(family, TABLE, "postrouting", Some(base));
        for subnet in subnets {
            let (address, prefix) = (subnet.network(), subnet.prefix_len());
            batch.add_rule(TABLE, "postrouting", &rule(family).source(address, prefix).destination_not(address, prefix).masquerade());
        }
    }
    batch
}

/// This machine's Node and the planned routes, as the API server has them.
struct View {
    hostname: String,
    node: Informer<Node>,
    plan: Informer<Plan>,
    changed: Arc<Notify>,
    _stop: DropGuard,
}

impl View {
    fn new(paths: &Paths, hostname: &str) -> Result<View, ReconcileError> {
        let client = super::client(paths, KUBELET_KUBECONFIG)?;
        let named = |resource, namespace: &str, name: &str| ReflectorOptions {
            namespace: namespace.to_owned(),
            field_selector: format!("metadata.name={name}"),
            ..ReflectorOptions::all(resource)
        };
        let stop = CancellationToken::new();
        let node = spawn_reflector(client.clone(), named(NODES, "", hostname), stop.clone());
        let plan = spawn_reflector(client, named(CONFIG_MAPS, "kube-system", ROUTES_CONFIG_MAP), stop.clone());
        let changed = Arc::new(Notify::new());
        let tell = changed.clone();
        node.add_handler(move |_| tell.notify_one());
        let tell = changed.clone();
        plan.add_handler(move |_| tell.notify_one());
        Ok(View { hostname: hostname.to_owned(), node, plan, changed, _stop: stop.drop_guard() })
    }
}

/// Keeps the pod network of this node.
#[derive(Default)]
pub struct PodNetwork {
    view: Option<View>,
    /// The pod ranges that were masqueraded last.
    masqueraded: Option<Vec<machine_config::values::Cidr>>,
}

#[tonic::async_trait]
impl Reconciler for PodNetwork {
    fn name(&self) -> &'static str {
        "pod-network"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["kubernetes", "network"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let (config, paths) = (cx.config(), &cx.machine.paths);
        let facts = super::facts(cx)?;
        set_sysctls(paths)?;
        if self.masqueraded.as_ref() != Some(&config.cluster.network.pod_subnets) {
            let batch = masquerade(config);
            tokio::task::spawn_blocking(move || Socket::open()?.commit(batch)).await??;
            self.masqueraded = Some(config.cluster.network.pod_subnets.clone());
        }
        if !paths.at(node_files::KUBELET_CLIENT_PEM).exists() {
            return Ok(Outcome::waiting("the kubelet has no certificate yet"));
        }
        let view = match self.view.take().filter(|view| view.hostname == facts.hostname) {
            Some(view) => self.view.insert(view),
            None => self.view.insert(View::new(paths, &facts.hostname)?),
        };
        // The network stays as it is while the API is away.
        if !view.node.has_synced() {
            return Ok(Outcome::waiting("the API server does not answer"));
        }
        let Some(node) = view.node.list().into_iter().next() else {
            return Ok(Outcome::waiting("the node has not registered yet"));
        };
        let own = pod_cidrs(&node.spec);
        if own.is_empty() {
            return Ok(Outcome::waiting("the node has no pod range yet"));
        }
        for file in files::plan(&[node_files::cni(&own, None)], |path| files::observe(paths, path)) {
            files::write(paths, file)?;
            tracing::info!(path = file.path, "written");
        }
        // Nothing may be planned yet, and this node may not be allowed to read it yet (its role is one of the default manifests).
        let plan = view.plan.list().into_iter().next();
        let text = plan.as_ref().and_then(|plan| plan.data.get("routes.json")).map_or("[]", String::as_str);
        let own: Vec<String> = own.iter().map(ToString::to_string).collect();
        let count = if view.plan.has_synced() { install_routes(text, config, &facts).await? } else { 0 };
        Ok(Outcome::ready(format!("{} here, {count} routes to other nodes", own.join(" and ")), EVERY))
    }

    async fn changed(&mut self) {
        match &self.view {
            Some(view) => view.changed.notified().await,
            None => std::future::pending().await,
        }
    }
}

/// Makes the kernel's routes those of this plan; how many there are.
async fn install_routes(text: &str, config: &Config, facts: &NodeFacts) -> Result<usize, ReconcileError> {
    let network = LinuxNetwork::connect()?;
    let observed = network.observe().await?;
    let neighbours: Vec<IpNet> = observed.addresses.iter().map(|a| a.net).collect();
    let routes = routes(text, config, facts, &neighbours)?;
    let count = routes.len();
    let steps = host::net::plan(&Desired { links: Vec::new(), routes, route_protocol: ROUTE_PROTOCOL }, &observed);
    let mut failures = Vec::new();
    for (step, result) in host::net::apply_all(&network, steps).await {
        match result {
            Ok(()) => tracing::info!(%step, "done"),
            Err(error) => failures.push(crate::api::chain(&error)),
        }
    }
    if failures.is_empty() { Ok(count) } else { Err(failures.join("; ").into()) }
}

/// Sets what differs. The bridge's knobs are there once its module is loaded.
fn set_sysctls(paths: &Paths) -> Result<(), ReconcileError> {
    for (key, value) in SYSCTLS {
        let path = paths.at(&format!("/proc/sys/{key}"));
        match fs::read_to_string(&path) {
            Ok(current) if current.trim() == *value => {}
            Ok(_) => fs::write(&path, value).map_err(|e| format!("set {key}: {e}"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && key.starts_with("net/bridge") => {}
            Err(error) => return Err(format!("read {key}: {error}").into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod kernel;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing;
    use serde_json::json;

    #[test]
    fn only_sensible_routes_of_other_nodes_are_taken() {
        let config = testing::control_plane_config();
        let facts = testing::facts();
        let neighbours: Vec<IpNet> = vec!["10.5.0.11/24".parse().unwrap()];
        let text = r#"[
            {"node":"cp-1","podCIDR":"10.244.0.0/24","via":"10.5.0.11"},
            {"node":"worker-1","podCIDR":"10.244.1.0/24","via":"10.5.0.21"},
            {"node":"far","podCIDR":"10.244.2.0/24","via":"192.168.7.1"},
            {"node":"evil","podCIDR":"0.0.0.0/0","via":"10.5.0.22"},
            {"node":"greedy","podCIDR":"10.244.0.0/16","via":"10.5.0.22"},
            {"node":"self","podCIDR":"10.244.3.0/24","via":"10.5.0.11"}
        ]"#;
        let found = routes(text, &config, &facts, &neighbours).unwrap();
        let shown: Vec<String> = found.iter().map(|r| format!("{} via {}", r.destination, r.gateway.unwrap())).collect();
        assert_eq!(shown, ["10.244.1.0/24 via 10.5.0.21"]);
        assert!(routes("{}", &config, &facts, &neighbours).is_err());
        assert!(routes("[]", &config, &facts, &neighbours).unwrap().is_empty());
    }

    #[test]
    fn pod_ranges_of_a_node() {
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        let ranges = |node: serde_json::Value| pod_cidrs(&serde_json::from_value::<Node>(node).unwrap().spec);
        assert_eq!(
            ranges(json!({"metadata": {}, "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}})),
            [net("10.244.1.0/24")]
        );
        assert_eq!(ranges(json!({"metadata": {}, "spec": {"podCIDR": "10.244.1.0/24"}})), [net("10.244.1.0/24")]);
        assert!(ranges(json!({"metadata": {}, "spec": {}})).is_empty());
    }
}
