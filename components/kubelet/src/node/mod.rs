//! This machine as a Node: registration, status and lease.

pub mod facts;
pub mod lease;
pub mod status;

use crate::kubelet::Shared;
use crate::model::node::Node;
use k8s_client::resources::NODES;
use k8s_client::{Client, Patch, Request};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Taint that a cloud controller manager removes once it has completed the node.
const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// Annotation with the address the cloud controller manager is to accept.
const PROVIDED_IP: &str = "alpha.kubernetes.io/provided-node-ip";

/// Labels every node has.
fn default_labels(name: &str) -> Vec<(&'static str, String)> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    vec![
        ("kubernetes.io/hostname", name.to_owned()),
        ("kubernetes.io/os", "linux".to_owned()),
        ("kubernetes.io/arch", arch.to_owned()),
        ("beta.kubernetes.io/os", "linux".to_owned()),
        ("beta.kubernetes.io/arch", arch.to_owned()),
    ]
}

/// The object a new node is registered with.
pub fn registration(config: &crate::config::Config, status: Value) -> Value {
    let mut labels = serde_json::Map::new();
    for (key, value) in default_labels(&config.node_name) {
        labels.insert(key.into(), value.into());
    }
    for (key, value) in &config.node_labels {
        labels.insert(key.clone(), value.clone().into());
    }
    let mut annotations = json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    let mut taints: Vec<Value> = config.register_with_taints.iter().filter_map(|t| serde_json::to_value(t).ok()).collect();
    if config.external_cloud_provider {
        taints.push(json!({"key": UNINITIALIZED, "value": "true", "effect": "NoSchedule"}));
        if !config.node_ips.is_empty() {
            let list: Vec<String> = config.node_ips.iter().map(ToString::to_string).collect();
            annotations[PROVIDED_IP] = list.join(",").into();
        }
    }
    let mut spec = serde_json::Map::new();
    if !taints.is_empty() {
        spec.insert("taints".into(), taints.into());
    }
    if let Some(id) = &config.provider_id {
        spec.insert("providerID".into(), id.clone().into());
    }
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": config.node_name, "labels": labels, "annotations": annotations},
        "spec": spec, "status": status,
    })
}

/// What has to change of a node that was registered earlier.
fn adoption_patch(config: &crate::config::Config, node: &Node) -> Option<Value> {
    let mut labels = serde_json::Map::new();
    for (key, value) in default_labels(&config.node_name) {
        if node.metadata.labels.get(key) != Some(&value) {
            labels.insert(key.into(), value.into());
        }
    }
    for (key, value) in &config.node_labels {
        if node.metadata.labels.get(key) != Some(value) {
            labels.insert(key.clone(), value.clone().into());
        }
    }
    let mut annotations = serde_json::Map::new();
    let ips: Vec<String> = config.node_ips.iter().map(ToString::to_string).collect();
    if config.external_cloud_provider && !ips.is_empty() && node.metadata.annotations.get(PROVIDED_IP) != Some(&ips.join(",")) {
        annotations.insert(PROVIDED_IP.into(), ips.join(",").into());
    }
    if labels.is_empty() && annotations.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"labels": labels, "annotations": annotations}}))
}

/// Registers the node, however long that takes.
pub async fn register(shared: &Shared, client: &Client) -> Arc<Node> {
    let config = &shared.config;
    let mut delay = Duration::from_millis(200);
    loop {
        match register_once(shared, client).await {
            Ok(node) => {
                let node = Arc::new(node);
                shared.api.node.store(Some(node.clone()));
                tracing::info!(node = %config.node_name, uid = %node.metadata.uid, "node registered");
                return node;
            }
            Err(error) => tracing::warn!(node = %config.node_name, error = %crate::pod::apply::error_chain(&error), "register the node"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(7));
    }
}

async fn register_once(shared: &Shared, client: &Client) -> Result<Node, k8s_client::Error> {
    let config = &shared.config;
    let get = Request::get(&NODES, "", &config.node_name);
    let existing: Node = match client.call(&get).await {
        Ok(node) => node,
        Err(error) if error.is_not_found() && config.register_node => {
            let (status, _) = status::collect(shared, None).await;
            match client.call(&Request::create(&NODES, "", &registration(config, status))).await {
                Ok(node) => return Ok(node),
                Err(error) if error.is_already_exists() => client.call(&get).await?,
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    match adoption_patch(config, &existing).filter(|_| config.register_node) {
        Some(patch) => client.call(&Request::patch(&NODES, "", &config.node_name, &Patch::strategic(&patch))).await,
        None => Ok(existing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(args: &[&str]) -> crate::config::Config {
        let flags = crate::flags::Flags::parse_from([&["kubelet", "--hostname-override=n1"], args].concat());
        crate::config::Config::resolve(&flags, crate::config::File::default(), "h").unwrap()
    }

    #[test]
    fn an_external_provider_completes_the_node() {
        let node = registration(
            &config(&["--cloud-provider=external", "--node-ip=10.5.0.11", "--node-labels=a=b", "--register-with-taints=x=y:NoExecute"]),
            json!({}),
        );
        assert_eq!(node["metadata"]["labels"]["a"], "b");
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
        assert_eq!(node["metadata"]["annotations"][PROVIDED_IP], "10.5.0.11");
        let taints: Vec<&str> = node["spec"]["taints"].as_array().unwrap().iter().map(|t| t["key"].as_str().unwrap()).collect();
        assert_eq!(taints, ["x", UNINITIALIZED]);
        assert!(registration(&config(&[]), json!({}))["spec"].get("taints").is_none());
    }

    #[test]
    fn a_known_node_is_only_patched_where_it_differs() {
        let c = config(&["--node-labels=a=b"]);
        let mut node = Node::default();
        node.metadata.labels = default_labels("n1").into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        assert_eq!(adoption_patch(&c, &node).unwrap()["metadata"]["labels"], json!({"a": "b"}));
        node.metadata.labels.insert("a".into(), "b".into());
        assert_eq!(adoption_patch(&c, &node), None);
    }
}
