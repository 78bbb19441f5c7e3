//! Moving pods away before a restart: the node takes no new ones, and those it has are evicted, which PodDisruptionBudgets may refuse for a
//! while. When the time is over, who stands in the way is named, and nothing is forced.

use std::time::Duration;

use k8s_client::resources::{NODES, PODS};
use k8s_client::{Client, Error, ListOptions, Patch, Request};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kubernetes;
use crate::machine::Machine;

const TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(2);
/// Names that a message has room for.
const NAMED: usize = 10;

/// A pod, and what keeps it here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    namespace: String,
    name: String,
    /// It was told to end already.
    ending: bool,
}

/// A client with what this machine may do; none where there is no node yet, as on a control plane that was not bootstrapped.
fn client(machine: &Machine) -> Option<Client> {
    let loaded = machine.loaded()?;
    if loaded.config.is_control_plane() && !matches!(machine.state.cluster_id(), Ok(Some(_))) {
        return None;
    }
    kubernetes::client(&machine.paths, kubernetes::own_kubeconfig(&loaded.config)).ok()
}

/// Cordons the node and evicts its pods. Whether there was a node to cordon; or who blocks.
pub async fn drain(machine: &Machine, limit: Duration, say: &mut (dyn FnMut(String) + Send)) -> Result<bool, String> {
    match client(machine) {
        Some(client) => drain_node(&client, &machine.hostname(), limit, say).await,
        None => Ok(false),
    }
}

/// The same for any node. One that could not be drained takes pods again.
pub async fn drain_node(client: &Client, name: &str, limit: Duration, say: &mut (dyn FnMut(String) + Send)) -> Result<bool, String> {
    match unschedulable(client, name, true).await {
        Ok(()) => {}
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => {
            return Err(format!("cordon the node {name}: {}; --drain-seconds 0 upgrades without moving pods", crate::api::chain(&error)));
        }
    }
    let deadline = Instant::now() + limit;
    let mut said = (Vec::new(), Vec::new());
    loop {
        let now = match tokio::time::timeout_at(deadline, round(client, name)).await {
            Ok(Ok(round)) => round,
            Ok(Err(error)) => (vec!["?".to_owned()], vec![crate::api::chain(&error)]),
            // What was seen in the round before is the best that is known.
            Err(_) if !said.0.is_empty() => said.clone(),
            Err(_) => (vec!["?".to_owned()], vec!["the API server did not answer in time".to_owned()]),
        };
        if now.0.is_empty() {
            return Ok(true);
        }
        if said != now {
            let (left, blocked) = &now;
            let held = if blocked.is_empty() { String::new() } else { format!("; held by {}", some(blocked)) };
            say(format!("{} pods left: {}{held}", left.len(), some(left)));
            said = now;
        }
        if Instant::now() >= deadline {
            let (left, blocked) = &said;
            let why = if blocked.is_empty() { format!("still ending: {}", some(left)) } else { some(blocked) };
            let open = match unschedulable(client, name, false).await {
                Ok(()) => "takes pods again".to_owned(),
                Err(error) => format!("is still cordoned ({})", crate::api::chain(&error)),
            };
            return Err(format!("the node was not drained within {} s and {open}; {why}", limit.as_secs()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Evicts what is there. The pods that are left, and why those that may not go may not.
async fn round(client: &Client, node: &str) -> Result<(Vec<String>, Vec<String>), Error> {
    let options = ListOptions { field_selector: format!("spec.nodeName={node}"), ..ListOptions::default() };
    let list = client.call::<Value>(&Request::list(&PODS, "", &options).with_timeout(TIMEOUT)).await?;
    let pods = to_evict(&list);
    let mut blocked = Vec::new();
    for pod in pods.iter().filter(|pod| !pod.ending) {
        let Pod { namespace, name, .. } = pod;
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"namespace": namespace, "name": name}});
        let request = Request::create_subresource(&PODS, namespace, name, "eviction", &eviction).with_timeout(TIMEOUT);
        // What a budget refuses is asked for again in the next round, and not by the client for as long as the server says.
        match client.stream(&request).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => blocked.push(format!("{namespace}/{name}: {}", why(&error))),
        }
    }
    Ok((pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect(), blocked))
}

/// Why a pod may not be evicted: the server's words, with the budget that it names.
fn why(error: &Error) -> String {
    let causes = error.status().and_then(|status| status.details.as_ref()).map(|details| details.causes.as_slice()).unwrap_or_default();
    match causes.iter().find(|cause| cause.reason == "DisruptionBudget") {
        Some(cause) => cause.message.clone(),
        None => crate::api::chain(error),
    }
}

/// What has to go: not what belongs to the node (static pods and those of DaemonSets), nor what has ended.
fn to_evict(list: &Value) -> Vec<Pod> {
    let of_the_node = |pod: &Value| {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string()
            || owners.into_iter().flatten().any(|owner| owner["kind"] == "DaemonSet" && owner["controller"] == true)
    };
    let ended = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let pods = list["items"].as_array().into_iter().flatten().filter(|pod| !of_the_node(pod) && !ended(pod));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    pods.map(|pod| Pod {
        namespace: text(&pod["metadata"]["namespace"]),
        name: text(&pod["metadata"]["name"]),
        ending: pod["metadata"]["deletionTimestamp"].is_string(),
    })
    .collect()
}

fn some(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

/// Lets the node take pods again. Whether it does.
pub async fn uncordon(machine: &Machine) -> bool {
    let Some(client) = client(machine) else { return false };
    let done = unschedulable(&client, &machine.hostname(), false).await;
    done.is_ok() || done.is_err_and(|error| error.is_not_found())
}

async fn unschedulable(client: &Client, node: &str, wanted: bool) -> Result<(), Error> {
    let patch = Patch::merge(&json!({"spec": {"unschedulable": if wanted { Value::from(true) } else { Value::Null }}}));
    client.execute(&Request::patch(&NODES, "", node, &patch).with_timeout(TIMEOUT)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_node_stays_and_the_rest_goes() {
        let pod = |name: &str, more: Value| {
            let mut pod = json!({"metadata": {"namespace": "default", "name": name}, "status": {"phase": "Running"}});
            for (key, value) in more.as_object().unwrap() {
                for (field, value) in value.as_object().unwrap() {
                    pod[key][field] = value.clone();
                }
            }
            pod
        };
        let owner = |kind: &str| json!({"metadata": {"ownerReferences": [{"kind": kind, "controller": true}]}});
        let list = json!({"items": [
            pod("plain", json!({})),
            pod("replicated", owner("ReplicaSet")),
            pod("daemon", owner("DaemonSet")),
            pod("static", json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}})),
            pod("done", json!({"status": {"phase": "Succeeded"}})),
            pod("ending", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        ]});
        let found: Vec<_> = to_evict(&list).into_iter().map(|pod| (pod.name, pod.ending)).collect();
        assert_eq!(found, [("plain".to_owned(), false), ("replicated".to_owned(), false), ("ending".to_owned(), true)]);
        assert!(to_evict(&json!({})).is_empty());
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..12).map(|number| format!("p{number}")).collect();
        assert!(some(&names).ends_with("p9 and 2 more"));
        assert_eq!(some(&names[..2]), "p0, p1");
    }
}
