//! The node's Lease, whose renewal is its heartbeat.

use crate::kubelet::Shared;
use k8s_client::resources::LEASES;
use k8s_client::{MicroTime, Patch, Request};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const NAMESPACE: &str = "kube-node-lease";

fn renewal(node: &str, seconds: i32, now: MicroTime) -> Value {
    json!({"spec": {"holderIdentity": node, "leaseDurationSeconds": seconds, "renewTime": now}})
}

/// The object a first heartbeat makes.
fn new_lease(node: &str, node_uid: &str, seconds: i32, now: MicroTime) -> Value {
    let mut lease = renewal(node, seconds, now);
    lease["apiVersion"] = "coordination.k8s.io/v1".into();
    lease["kind"] = "Lease".into();
    lease["metadata"] = json!({"name": node, "namespace": NAMESPACE,
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid}]});
    lease
}

/// Renews for ever, four times within the lease's duration.
pub async fn run(shared: Arc<Shared>) {
    let seconds = shared.config.lease_seconds;
    let node = shared.config.node_name.clone();
    let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(40)) / 4;
    let mut failing = false;
    loop {
        let outcome = renew(&shared, &node, seconds).await;
        match outcome {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::warn!(error = %error, "renew the node lease");
                }
                failing = true;
            }
        }
        let pause = if failing { period / 5 } else { period };
        tokio::time::sleep(pause.mul_f64(1.0 + 0.04 * rand::random::<f64>())).await;
    }
}

async fn renew(shared: &Shared, node: &str, seconds: i32) -> Result<(), crate::api::ApiError> {
    let client = shared.api.client()?;
    let failed = |source| crate::api::ApiError::Request { operation: format!("lease {NAMESPACE}/{node}"), source };
    let timeout = Duration::from_secs(10);
    let patch = Request::patch(&LEASES, NAMESPACE, node, &Patch::merge(&renewal(node, seconds, MicroTime::now()))).with_timeout(timeout);
    match client.execute(&patch).await {
        Err(error) if error.is_not_found() => {
            let Some(uid) = shared.api.node.load().as_ref().map(|n| n.metadata.uid.clone()) else { return Ok(()) };
            let lease = new_lease(node, &uid, seconds, MicroTime::now());
            client.execute(&Request::create(&LEASES, NAMESPACE, &lease).with_timeout(timeout)).await.map_err(failed)
        }
        other => other.map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_belongs_to_the_node() {
        let lease = new_lease("n1", "u1", 40, MicroTime("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "u1");
        assert_eq!(lease["spec"]["renewTime"], "2026-01-01T00:00:00.000000Z");
    }
}
