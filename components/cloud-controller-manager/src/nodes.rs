//! Initialises nodes: who the machine is, where it can be reached, what kind it is. Then the taint that kept workloads away is removed.
//!
//! The kubelet says its addresses (annotation `alpha.kubernetes.io/provided-node-ip`, or its status) and its machine id; on bare metal nobody
//! knows them better. Addresses are kept in order afterwards, should the annotation change.

use std::net::IpAddr;
use std::time::Duration;

use k8s_client::{
    Action, CancellationToken, Change, Client, Error, EventRecorder, EventType, Informer, LabelMap, ObjectKey, ObjectReference, WorkQueue,
    resources::NODES, run_workers,
};
use serde_json::json;

use crate::api::{Node, NodeAddress};

const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
const PROVIDED_IP: &str = "alpha.kubernetes.io/provided-node-ip";
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";

/// What to write to a node.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    provider_id: Option<String>,
    labels: LabelMap,
    remove_taint: bool,
    addresses: Option<Vec<NodeAddress>>,
}

/// What a node lacks before it can be initialised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Missing {
    #[error("the kubelet has not reported a machine id")]
    MachineId,
    #[error("the kubelet has not reported an internal address")]
    Address,
    #[error("annotation {PROVIDED_IP} holds {0:?}, which is not an address")]
    BadAddress(String),
}

fn plan(node: &Node) -> Result<Plan, Missing> {
    let uninitialized = node.spec.taints.iter().any(|taint| taint.key == UNINITIALIZED);
    let mut plan = Plan::default();
    let internal = internal_addresses(node)?;
    if internal.is_empty() {
        return if uninitialized { Err(Missing::Address) } else { Ok(plan) };
    }
    let addresses = addresses(node, &internal);
    if addresses != node.status.addresses {
        plan.addresses = Some(addresses);
    }
    if node.spec.provider_id.is_empty() {
        let id = node.status.node_info.machine_id.trim();
        if id.is_empty() {
            return if uninitialized { Err(Missing::MachineId) } else { Ok(plan) };
        }
        plan.provider_id = Some(format!("strake://{id}"));
    }
    if uninitialized {
        plan.remove_taint = true;
        if !node.metadata.labels.contains_key(INSTANCE_TYPE) {
            plan.labels.insert(INSTANCE_TYPE.into(), "bare-metal".into());
        }
    }
    Ok(plan)
}

fn internal_addresses(node: &Node) -> Result<Vec<IpAddr>, Missing> {
    match node.metadata.annotations.get(PROVIDED_IP) {
        Some(text) => text.split(',').map(|ip| ip.trim().parse().map_err(|_| Missing::BadAddress(text.clone()))).collect(),
        None => Ok(node.addresses("InternalIP").filter_map(|text| text.parse().ok()).collect()),
    }
}

/// The internal addresses first, then whatever else the kubelet said, and always a host name.
fn addresses(node: &Node, internal: &[IpAddr]) -> Vec<NodeAddress> {
    let mut addresses: Vec<NodeAddress> =
        internal.iter().map(|ip| NodeAddress { kind: "InternalIP".into(), address: ip.to_string() }).collect();
    addresses.extend(node.status.addresses.iter().filter(|address| address.kind != "InternalIP").cloned());
    if !addresses.iter().any(|address| address.kind == "Hostname") {
        addresses.push(NodeAddress { kind: "Hostname".into(), address: node.metadata.name.clone() });
    }
    addresses
}

/// Runs until `stop`.
pub async fn run(client: Client, nodes: Informer<Node>, recorder: EventRecorder, stop: CancellationToken) {
    let queue = WorkQueue::new("nodes");
    let sink = queue.clone();
    nodes.add_handler(move |change: Change<'_, Node>| {
        if !matches!(change, Change::Deleted(_)) {
            sink.add(change.object().metadata.key());
        }
    });
    nodes.wait_synced().await;
    run_workers(queue, 1, stop, move |key: ObjectKey| {
        let (client, nodes, recorder) = (client.clone(), nodes.clone(), recorder.clone());
        async move {
            match nodes.get_key(&key) {
                Some(node) => sync(&client, &recorder, &node).await,
                None => Ok(Action::Done),
            }
        }
    })
    .await;
}

async fn sync(client: &Client, recorder: &EventRecorder, node: &Node) -> Result<Action, Error> {
    let name = node.metadata.name.as_str();
    let plan = match plan(node) {
        Ok(plan) if plan == Plan::default() => return Ok(Action::Done),
        Ok(plan) => plan,
        Err(missing) => {
            tracing::info!(node = name, reason = %missing, "the node cannot be initialised yet");
            return Ok(Action::After(Duration::from_secs(10)));
        }
    };
    // Addresses first: what waits for the taint to go may use them at once.
    if let Some(addresses) = &plan.addresses {
        client.update(&NODES, ("", name), &node.metadata.uid, "status", |object| object["status"]["addresses"] = json!(addresses)).await?;
    }
    if plan.provider_id.is_none() && plan.labels.is_empty() && !plan.remove_taint {
        return Ok(Action::Done);
    }
    let mut initialised = false;
    client
        .update(&NODES, ("", name), &node.metadata.uid, "", |object| {
            if let Some(id) = &plan.provider_id {
                object["spec"]["providerID"] = json!(id);
            }
            for (key, value) in &plan.labels {
                object["metadata"]["labels"][key] = json!(value);
            }
            if let Some(taints) = object["spec"]["taints"].as_array_mut() {
                let before = taints.len();
                taints.retain(|taint| !(plan.remove_taint && taint["key"] == UNINITIALIZED));
                initialised = taints.len() < before;
            }
        })
        .await?;
    if initialised {
        tracing::info!(node = name, "node initialised");
        recorder.event(&ObjectReference::to(&NODES, &node.metadata), EventType::Normal, "Synced", "Node synced successfully");
    }
    Ok(Action::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_new_node_is_initialised_once_its_kubelet_said_who_it_is() {
        let mut fresh = json!({"metadata": {"name": "n1", "annotations": {PROVIDED_IP: "10.5.0.21"}}, "spec": {"taints": [{"key": UNINITIALIZED, "effect": "NoSchedule"}]},
            "status": {"nodeInfo": {"machineID": ""}}});
        assert_eq!(plan(&node(fresh.clone())), Err(Missing::MachineId));
        fresh["status"]["nodeInfo"]["machineID"] = json!("abc");
        let planned = plan(&node(fresh.clone())).unwrap();
        assert_eq!(planned.provider_id.as_deref(), Some("strake://abc"));
        assert!(planned.remove_taint);
        assert_eq!(planned.labels[INSTANCE_TYPE], "bare-metal");
        assert_eq!(
            json!(planned.addresses.unwrap()),
            json!([{"type": "InternalIP", "address": "10.5.0.21"}, {"type": "Hostname", "address": "n1"}])
        );
        fresh["metadata"]["annotations"] = json!({});
        assert_eq!(plan(&node(fresh.clone())), Err(Missing::Address));
        fresh["metadata"]["annotations"] = json!({PROVIDED_IP: "here"});
        assert_eq!(plan(&node(fresh)), Err(Missing::BadAddress("here".into())));
    }

    #[test]
    fn an_initialised_node_is_left_alone_until_its_address_changes() {
        let mut known = json!({"metadata": {"name": "n1", "annotations": {PROVIDED_IP: "10.5.0.21"}}, "spec": {"providerID": "strake://abc"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.5.0.21"}, {"type": "Hostname", "address": "n1.example"}]}});
        assert_eq!(plan(&node(known.clone())), Ok(Plan::default()));
        known["metadata"]["annotations"][PROVIDED_IP] = json!("10.5.0.99,fd00::9");
        let addresses = plan(&node(known)).unwrap().addresses.unwrap();
        assert_eq!(addresses.iter().map(|a| a.address.as_str()).collect::<Vec<_>>(), ["10.5.0.99", "fd00::9", "n1.example"]);
    }
}
