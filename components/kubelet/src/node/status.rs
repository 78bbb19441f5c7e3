//! The node's status: what it has, how it is, and when that is worth telling.

use super::facts::{self, Filesystem, Memory};
use crate::cri::v1;
use crate::kubelet::Shared;
use crate::model::node::{Node, NodeCondition};
use crate::model::quantity::Quantity;
use crate::model::time::Time;
use crate::runtime::env::Allocatable;
use k8s_client::resources::NODES;
use k8s_client::{EventType, Patch, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The machine at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    pub cpus: i64,
    pub memory: Memory,
    pub disk: Filesystem,
    pub pid_max: i64,
    pub pids: i64,
    /// Why the node is not ready; empty when it is.
    pub not_ready: Vec<String>,
}

/// A threshold such as `100Mi` or `10%`.
fn threshold(text: &str, total: u64) -> u64 {
    match text.strip_suffix('%').and_then(|p| p.trim().parse::<f64>().ok()) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
        Some(percent) => (total as f64 * (percent / 100.0).clamp(0.0, 1.0)) as u64,
        None => Quantity(text.into()).value().and_then(|v| u64::try_from(v).ok()).unwrap_or(0),
    }
}

/// What pods may use: capacity less what is reserved and the eviction thresholds.
pub fn allocatable(config: &crate::config::Config, seen: &Observed) -> Allocatable {
    let reserved = |name: &str, milli: bool| -> i64 {
        [&config.system_reserved, &config.kube_reserved]
            .into_iter()
            .filter_map(|map| map.get(name))
            .filter_map(|q| if milli { Quantity(q.clone()).milli() } else { Quantity(q.clone()).value() })
            .sum()
    };
    let signed = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
    let total = u64::try_from(seen.memory.total).unwrap_or(0);
    let eviction = |name: &str, total: u64| config.eviction_hard.get(name).map_or(0, |t| signed(threshold(t, total)));
    Allocatable {
        cpu_milli: (seen.cpus * 1000 - reserved("cpu", true)).max(0),
        memory: (seen.memory.total - reserved("memory", false) - eviction("memory.available", total)).max(0),
        ephemeral_storage: (signed(seen.disk.size) - reserved("ephemeral-storage", false) - eviction("nodefs.available", seen.disk.size))
            .max(0),
    }
}

/// The four conditions. Times are kept while a condition's status stays.
pub fn conditions(config: &crate::config::Config, seen: &Observed, previous: &[NodeCondition], now: Time) -> Vec<NodeCondition> {
    let hard = |name: &str| config.eviction_hard.get(name).map_or("0", String::as_str);
    let below = |available: u64, name: &str, total: u64| total > 0 && available < threshold(hard(name), total);
    let unsigned = |v: i64| u64::try_from(v).unwrap_or(0);
    let memory = below(unsigned(seen.memory.available), "memory.available", unsigned(seen.memory.total));
    let disk = below(seen.disk.available, "nodefs.available", seen.disk.size)
        || below(seen.disk.inodes_free, "nodefs.inodesFree", seen.disk.inodes);
    let pid = seen.pid_max > 0 && seen.pids * 10 > seen.pid_max * 9;
    let pressure = |on: bool, name: &'static str, bad: [&'static str; 2], good: [&'static str; 2]| {
        let [reason, message] = if on { bad } else { good };
        (name, on, reason.to_owned(), message.to_owned())
    };
    let ready = if seen.not_ready.is_empty() {
        ("Ready", true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned())
    } else {
        ("Ready", false, "KubeletNotReady".to_owned(), seen.not_ready.join(", "))
    };
    [
        pressure(
            memory,
            "MemoryPressure",
            ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
            ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
        ),
        pressure(
            disk,
            "DiskPressure",
            ["KubeletHasDiskPressure", "kubelet has disk pressure"],
            ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
        ),
        pressure(
            pid,
            "PIDPressure",
            ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
            ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
        ),
        ready,
    ]
    .into_iter()
    .map(|(kind, on, reason, message)| {
        let status = if on { "True" } else { "False" };
        let old = previous.iter().find(|c| c.r#type == kind && c.status == status);
        NodeCondition {
            r#type: kind.into(),
            status: status.into(),
            last_heartbeat_time: Some(now),
            last_transition_time: old.and_then(|c| c.last_transition_time).or(Some(now)),
            reason,
            message,
        }
    })
    .collect()
}

fn resources(seen: &Observed, pods: u32, limits: Option<Allocatable>) -> Value {
    let kibi = |bytes: i64| format!("{}Ki", bytes / 1024);
    let (cpu, memory, storage) = match limits {
        None => (seen.cpus.to_string(), kibi(seen.memory.total), kibi(i64::try_from(seen.disk.size).unwrap_or(i64::MAX))),
        Some(a) => {
            let cpu = if a.cpu_milli % 1000 == 0 { (a.cpu_milli / 1000).to_string() } else { format!("{}m", a.cpu_milli) };
            (cpu, kibi(a.memory), a.ephemeral_storage.to_string())
        }
    };
    json!({"cpu": cpu, "memory": memory, "ephemeral-storage": storage, "pods": pods.to_string(), "hugepages-1Gi": "0", "hugepages-2Mi": "0"})
}

/// The addresses to report. With an external cloud provider the kubelet only fills in a node that has none.
fn addresses(shared: &Shared, node: Option<&Node>) -> Option<Value> {
    if shared.config.external_cloud_provider && node.is_some_and(|n| !n.status.addresses.is_empty()) {
        return None;
    }
    let mut list: Vec<Value> = shared.host_ips().iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    list.push(json!({"type": "Hostname", "address": shared.config.node_name}));
    Some(list.into())
}

/// Looks at the machine and the runtime and makes the status. Also returns what of it is worth telling at once.
pub async fn collect(shared: &Shared, node: Option<&Node>) -> (Value, Value) {
    let config = &shared.config;
    let mut not_ready = Vec::new();
    let (runtime_status, version) = tokio::join!(shared.cri.status(), shared.cri.version());
    match &runtime_status {
        Ok(status) => {
            let conditions = status.status.clone().unwrap_or_default().conditions;
            let is = |kind: &str| conditions.iter().find(|c| c.r#type == kind);
            if let Some(c) = is("RuntimeReady").filter(|c| !c.status) {
                not_ready.push(format!("container runtime not ready: RuntimeReady=false reason:{} message:{}", c.reason, c.message));
            }
            let network = is("NetworkReady");
            shared.set_network_ready(network.is_none_or(|c| c.status));
            if let Some(c) = network.filter(|c| !c.status) {
                not_ready
                    .push(format!("container runtime network not ready: NetworkReady=false reason:{} message:{}", c.reason, c.message));
            }
        }
        Err(error) => not_ready.push(format!("container runtime is down: {error}")),
    }
    if runtime_status.is_ok() && !shared.pleg.is_healthy() {
        not_ready.push("PLEG is not healthy: pleg has yet to be successful".into());
    }
    let (pid_max, pids) = facts::pids();
    let seen =
        Observed { cpus: facts::cpus(), memory: facts::memory(), disk: facts::filesystem(&config.root_dir), pid_max, pids, not_ready };
    let limits = allocatable(config, &seen);
    shared.set_allocatable(limits);
    let previous = node.map(|n| n.status.conditions.as_slice()).unwrap_or_default();
    let conditions = conditions(config, &seen, previous, Time::now());
    let runtime = version.map(|v| format!("{}://{}", v.runtime_name, v.runtime_version)).unwrap_or_else(|_| "containerd://unknown".into());
    let images = shared.cri.list_images().await.map(|list| image_list(list, config.node_status_max_images)).unwrap_or_default();
    let mut status = json!({
        "capacity": resources(&seen, config.max_pods, None),
        "allocatable": resources(&seen, config.max_pods, Some(limits)),
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.port}},
        "nodeInfo": facts::node_info(&runtime),
        "images": images,
    });
    if let Ok(answer) = &runtime_status
        && !answer.runtime_handlers.is_empty()
    {
        status["runtimeHandlers"] = answer.runtime_handlers.iter().map(handler).collect();
    }
    if let Some(list) = addresses(shared, node) {
        status["addresses"] = list;
    }
    let mut essence = status.clone();
    for condition in essence["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(object) = condition.as_object_mut() {
            object.remove("lastHeartbeatTime");
        }
    }
    (status, essence)
}

fn handler(handler: &v1::RuntimeHandler) -> Value {
    let features = handler.features.unwrap_or_default();
    json!({"name": handler.name, "features": {"recursiveReadOnlyMounts": features.recursive_read_only_mounts, "userNamespaces": features.user_namespaces}})
}

/// The largest images with their names.
fn image_list(mut images: Vec<v1::Image>, max: usize) -> Vec<Value> {
    images.sort_by_key(|i| std::cmp::Reverse(i.size));
    images.truncate(max);
    images
        .into_iter()
        .map(|image| {
            let mut names: Vec<String> = image.repo_digests.into_iter().chain(image.repo_tags).collect();
            names.truncate(5);
            json!({"names": names, "sizeBytes": image.size})
        })
        .collect()
}

/// Reports for ever: at once when something changed, otherwise every few minutes.
pub async fn run(shared: Arc<Shared>) {
    let mut last: Option<(Value, Instant)> = None;
    let mut was_ready: BTreeMap<String, String> = BTreeMap::new();
    let mut ticks = tokio::time::interval(shared.config.status_update);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ready = false;
    loop {
        // Until the node is ready for the first time it is looked at more often.
        if ready {
            ticks.tick().await;
        } else {
            tokio::time::sleep(Duration::from_secs(1).min(shared.config.status_update)).await;
        }
        let known = shared.api.node.load_full();
        let (status, essence) = collect(&shared, known.as_deref()).await;
        ready = status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let (Some(_), Ok(client)) = (known, shared.api.client()) else { continue };
        let unchanged = last.as_ref().is_some_and(|(sent, at)| *sent == essence && at.elapsed() < shared.config.status_report);
        if unchanged {
            continue;
        }
        for condition in status["conditions"].as_array().into_iter().flatten() {
            let (kind, value) = (condition["type"].as_str().unwrap_or_default(), condition["status"].as_str().unwrap_or_default());
            let old = was_ready.insert(kind.to_owned(), value.to_owned());
            if kind == "Ready" && old.as_deref() != Some(value) {
                let reason = if value == "True" { "NodeReady" } else { "NodeNotReady" };
                let message = format!("Node {} status is now: {reason}", shared.config.node_name);
                shared.api.node_event(EventType::Normal, reason, message);
            }
        }
        let body = json!({"status": status});
        let request = Request::patch(&NODES, "", &shared.config.node_name, &Patch::strategic(&body)).subresource("status");
        match client.call::<Node>(&request).await {
            Ok(node) => {
                shared.api.node.store(Some(Arc::new(node)));
                last = Some((essence, Instant::now()));
            }
            Err(error) if error.is_not_found() => {
                // Somebody deleted the node: it registers again.
                tracing::warn!("the node object is gone");
                super::register(&shared, &client).await;
                last = None;
            }
            Err(error) => {
                tracing::warn!(error = %error, "report node status");
                last = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::from_seconds;
    use clap::Parser;

    fn config(file: crate::config::File) -> crate::config::Config {
        let flags = crate::flags::Flags::parse_from(["kubelet"]);
        crate::config::Config::resolve(&flags, file, "n").unwrap()
    }

    fn seen() -> Observed {
        Observed {
            cpus: 2,
            memory: Memory { total: 1 << 30, available: 512 << 20 },
            disk: Filesystem { size: 1000, available: 500, inodes: 100, inodes_free: 50 },
            pid_max: 1000,
            pids: 10,
            not_ready: vec![],
        }
    }

    #[test]
    fn allocatable_is_less_than_capacity() {
        let reserved = |c: &str, m: &str| BTreeMap::from([("cpu".to_owned(), c.to_owned()), ("memory".to_owned(), m.to_owned())]);
        let c = config(crate::config::File {
            system_reserved: reserved("100m", "64Mi"),
            kube_reserved: reserved("200m", "0"),
            ..Default::default()
        });
        let a = allocatable(&c, &seen());
        assert_eq!(a, Allocatable { cpu_milli: 1700, memory: (1024 - 64 - 100) << 20, ephemeral_storage: 900 });
        assert_eq!(resources(&seen(), 110, Some(a))["cpu"], "1700m");
        assert_eq!(resources(&seen(), 110, None)["memory"], "1048576Ki");
    }

    #[test]
    fn pressure_and_readiness() {
        let c = config(crate::config::File::default());
        let status =
            |o: &Observed, kind: &str| conditions(&c, o, &[], from_seconds(5)).into_iter().find(|x| x.r#type == kind).unwrap().status;
        for (kind, change) in [
            ("MemoryPressure", Observed { memory: Memory { total: 1 << 30, available: 50 << 20 }, ..seen() }),
            ("DiskPressure", Observed { disk: Filesystem { available: 99, ..seen().disk }, ..seen() }),
            ("DiskPressure", Observed { disk: Filesystem { inodes_free: 4, ..seen().disk }, ..seen() }),
            ("PIDPressure", Observed { pids: 950, ..seen() }),
        ] {
            assert_eq!((status(&seen(), kind).as_str(), status(&change, kind).as_str()), ("False", "True"), "{kind}");
        }
        assert_eq!(status(&seen(), "Ready"), "True");
        assert_eq!(status(&Observed { not_ready: vec!["x".into()], ..seen() }, "Ready"), "False");
        let old = conditions(&c, &seen(), &[], from_seconds(5));
        let new = conditions(&c, &seen(), &old, from_seconds(9));
        assert_eq!((new[3].last_transition_time, new[3].last_heartbeat_time), (Some(from_seconds(5)), Some(from_seconds(9))));
    }
}
