//! Removes the Node objects of machines that are gone.
//!
//! There is no cloud to ask. A machine counts as gone when its kubelet's Lease has not been renewed for a long time, the node is not Ready,
//! and the machine answers on none of its addresses: a refused connection is an answer. A machine that comes back registers anew.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_client::{
    CancellationToken, Client, Condition, DeleteOptions, EventRecorder, EventType, Informer, Lease, ObjectReference, Request,
    resources::NODES,
};
use tokio::net::TcpStream;

use crate::api::Node;

const PERIOD: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether the cluster has not heard from this node for that long.
fn is_silent(node: &Node, lease: Option<&Lease>, now: Timestamp, gone_after: Duration) -> bool {
    if node.metadata.is_deleting() || Condition::find(&node.status.conditions, "Ready").is_some_and(Condition::is_true) {
        return false;
    }
    let heartbeat = lease.and_then(|lease| lease.spec.renew_time).map(|time| time.0);
    // A node that never had a lease is judged by its own age.
    let last = heartbeat.or(node.metadata.creation_timestamp.map(|time| time.0));
    last.is_some_and(|last| Duration::try_from(now.duration_since(last)).is_ok_and(|age| age > gone_after))
}

/// Runs until `stop`.
pub async fn run(
    client: Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    recorder: EventRecorder,
    options: (Duration, u16),
    stop: CancellationToken,
) {
    let (gone_after, port) = options;
    nodes.wait_synced().await;
    leases.wait_synced().await;
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
        for node in nodes.list() {
            let name = node.metadata.name.as_str();
            if !is_silent(&node, leases.get("kube-node-lease", name).as_deref(), Timestamp::now(), gone_after) {
                continue;
            }
            if answers(&node, port).await {
                tracing::info!(node = name, "the kubelet is silent but the machine answers: the node stays");
                continue;
            }
            recorder.event(
                &ObjectReference::to(&NODES, &node.metadata),
                EventType::Normal,
                "DeletingNode",
                format!("Deleting node {name} because its machine is gone"),
            );
            match client.execute(&Request::delete(&NODES, "", name, &DeleteOptions::uid(&node.metadata.uid))).await {
                Ok(()) => tracing::warn!(node = name, "node removed: its machine is gone"),
                Err(error) if error.is_not_found() => {}
                Err(error) => tracing::warn!(node = name, error = &error as &dyn std::error::Error, "removing a node failed"),
            }
        }
    }
}

/// Whether anything answers on the machine's addresses. A node without usable addresses cannot be asked, and counts as not answering.
async fn answers(node: &Node, port: u16) -> bool {
    for address in node.addresses("InternalIP").filter_map(|text| text.parse().ok()) {
        match tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(SocketAddr::new(address, port))).await {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return true,
            Ok(Err(_)) | Err(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_nodes_long_silent_are_candidates() {
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        let day = Duration::from_secs(86400);
        let node = |ready: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n", "creationTimestamp": "2025-01-01T00:00:00Z"}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})).unwrap()
        };
        let lease = |at: &str| -> Lease { serde_json::from_value(json!({"metadata": {}, "spec": {"renewTime": at}})).unwrap() };
        for (node, lease, want) in [
            (node("Unknown"), Some(lease("2025-12-31T00:00:00.000000Z")), true),
            (node("Unknown"), Some(lease("2026-01-01T12:00:00.000000Z")), false),
            (node("True"), Some(lease("2025-01-01T00:00:00.000000Z")), false),
            (node("Unknown"), None, true),
            // a clock that went back
            (node("Unknown"), Some(lease("2027-01-01T00:00:00.000000Z")), false),
        ] {
            assert_eq!(is_silent(&node, lease.as_ref(), now, day), want, "{node:?} {lease:?}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_an_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}}),
        )
        .unwrap();
        assert!(answers(&node, port).await);
        drop(listener);
        assert!(answers(&node, port).await);
        assert!(!answers(&Node::default(), port).await);
    }
}
