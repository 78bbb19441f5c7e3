//! What an upgrade has to know of the machines around this one: which versions they run, whether they are well, and whether etcd can do without
//! this machine's member for a while. Only looks; what follows from it is decided in `slots::checks`.

use std::time::Duration;

use k8s_client::resources::NODES;
use k8s_client::{ListOptions, Request};
use serde_json::Value;
use slots::checks::{Members, Peer};

use crate::machine::Machine;
use crate::{etcd, kubernetes};

/// How long the API server may take, and each of etcd's members.
const TIMEOUT: Duration = Duration::from_secs(10);
const MEMBER: Duration = Duration::from_secs(5);
/// kube-proxy's user may look at every node; a kubelet's may look at its own alone.
const KUBECONFIG: &str = "/etc/kubernetes/kube-proxy/kubeconfig";
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// The other machines of the cluster; nothing when this one is in none yet, or why they are not known.
pub async fn peers(machine: &Machine) -> Option<Result<Vec<Peer>, String>> {
    let loaded = machine.loaded()?;
    if loaded.config.is_control_plane() && !matches!(machine.state.cluster_id(), Ok(Some(_))) {
        return None;
    }
    let client = match kubernetes::client(&machine.paths, KUBECONFIG) {
        Ok(client) => client,
        // A machine that never joined.
        Err(k8s_client::ConfigError::Read(..)) => return None,
        Err(error) => return Some(Err(crate::api::chain(&error))),
    };
    let request = Request::list(&NODES, "", &ListOptions::default()).with_timeout(TIMEOUT);
    let list = client.call::<Value>(&request).await;
    Some(list.map(|list| others(&list, &machine.hostname())).map_err(|error| crate::api::chain(&error)))
}

/// The nodes of a list but for this machine's own.
fn others(list: &Value, own: &str) -> Vec<Peer> {
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let nodes = list["items"].as_array().into_iter().flatten();
    let peers = nodes.map(|node| Peer {
        name: node["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        control_plane: node["metadata"]["labels"].get(CONTROL_PLANE).is_some(),
        kubernetes: node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default().to_owned(),
        ready: ready(node),
    });
    peers.filter(|peer| peer.name != own).collect()
}

/// etcd's members; nothing when this machine has none.
pub async fn members(machine: &Machine) -> Option<Result<Members, String>> {
    let loaded = machine.loaded().filter(|loaded| loaded.config.is_control_plane())?;
    if loaded.config.cluster.etcd.image.is_some() || !matches!(machine.state.cluster_id(), Ok(Some(_))) {
        // Not bootstrapped, or an etcd that is not ours to judge.
        return None;
    }
    match tokio::time::timeout(4 * MEMBER, ask(machine)).await {
        Ok(found) => Some(found),
        Err(_) => Some(Err(format!("no answer within {} s", 4 * MEMBER.as_secs()))),
    }
}

async fn ask(machine: &Machine) -> Result<Members, String> {
    let told = |error: &dyn std::error::Error| crate::api::chain(error);
    let mut client = etcd::connect(&machine.paths).await.map_err(|error| told(&error))?;
    let status = client.status().await.map_err(|error| told(&error))?;
    let own = status.header().map_or(0, |header| header.member_id());
    let list = client.member_list().await.map_err(|error| told(&error))?;
    let mut members = Members::default();
    let voters: Vec<_> = list.members().iter().filter(|member| !member.is_learner()).collect();
    members.voters = voters.len();
    members.own_votes = voters.iter().any(|member| member.id() == own);
    let others = voters.into_iter().filter(|member| member.id() != own).map(|member| async move {
        let urls = member.client_urls().to_vec();
        let answers = async { etcd::connect_to(&machine.paths, &urls).await.ok()?.status().await.ok() };
        let well = !urls.is_empty() && tokio::time::timeout(MEMBER, answers).await.ok().flatten().is_some();
        (member.name().to_owned(), well)
    });
    for (name, well) in futures_util::future::join_all(others).await {
        if well {
            members.others_well += 1;
        } else {
            members.ill.push(name);
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_told_apart_by_role_version_and_condition() {
        let node = |name: &str, labels: Value, version: &str, ready: &str| {
            json!({
                "metadata": {"name": name, "labels": labels},
                "status": {
                    "nodeInfo": {"kubeletVersion": version},
                    "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
                },
            })
        };
        let list = json!({"items": [
            node("own", json!({}), "v1.36.2", "True"),
            node("cp", json!({CONTROL_PLANE: ""}), "v1.36.2", "True"),
            node("gone", json!({}), "v1.35.0", "Unknown"),
            json!({"metadata": {"name": "new"}}),
        ]});
        let peer = |name: &str, control_plane, kubernetes: &str, ready| Peer {
            name: name.into(),
            control_plane,
            kubernetes: kubernetes.into(),
            ready,
        };
        let expected = [peer("cp", true, "v1.36.2", true), peer("gone", false, "v1.35.0", false), peer("new", false, "", false)];
        assert_eq!(others(&list, "own"), expected);
        assert!(others(&json!({}), "own").is_empty());
    }
}
