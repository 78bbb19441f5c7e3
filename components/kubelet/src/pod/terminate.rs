//! Ending containers and pods: preStop hook, stop signal, grace period, and the order of sidecars.

use super::observe::{ContainerObs, PodRuntime, RunState};
use crate::cri::CriError;
use crate::kubelet::Shared;
use crate::model::pod::{Container, LifecycleHandler, Pod};
use crate::probe::check;
use futures_util::future::join_all;
use k8s_client::EventType;
use std::time::{Duration, Instant};

/// A container always gets this long, even when its hook used up the grace period.
const MINIMUM_GRACE: i64 = 2;

/// Stops one container. `grace` overrides the pod's grace period.
pub async fn kill_container(shared: &Shared, pod: &Pod, observed: &ContainerObs, grace: i64, message: &str) -> Result<(), CriError> {
    let definition = pod.all_containers().find(|c| c.name == observed.name);
    let text = if message.is_empty() { format!("Stopping container {}", observed.name) } else { message.to_owned() };
    shared.api.pod_event(pod, Some(&observed.name), EventType::Normal, "Killing", text);
    let started = Instant::now();
    let mut left = grace;
    if grace > 0 && observed.state == RunState::Running {
        let stored: Option<LifecycleHandler> = serde_json::from_str(&observed.pre_stop).ok();
        let hook = definition.and_then(|c| c.lifecycle.as_ref()).and_then(|l| l.pre_stop.clone()).or(stored);
        if let Some(hook) = hook {
            let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            let empty = Container::default();
            let outcome =
                tokio::time::timeout(limit, run_hook(shared, pod, definition.unwrap_or(&empty), &observed.id, &hook, limit)).await;
            if let Err(error) = outcome.unwrap_or_else(|_| Err("the grace period ended".into())) {
                let text = format!("PreStopHook failed: {error}");
                shared.api.pod_event(pod, Some(&observed.name), EventType::Warning, "FailedPreStopHook", text);
            }
            let used = i64::try_from(started.elapsed().as_secs()).unwrap_or(i64::MAX);
            left = (grace - used).max(MINIMUM_GRACE);
        }
    }
    shared.cri.stop_container(&observed.id, left.max(0)).await
}

/// Runs a lifecycle hook.
pub async fn run_hook(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    id: &str,
    hook: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        return check::run_exec(&shared.cri, id, &exec.command, limit).await.map(drop);
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    let ip = shared.probe_ip(pod).await;
    if let Some(http) = &hook.http_get {
        return check::http_get(container, http, &ip, "kube-lifecycle/1.36").await;
    }
    if let Some(tcp) = &hook.tcp_socket {
        let port = container.resolve_port(&tcp.port).ok_or("invalid port")?;
        let host = if tcp.host.is_empty() { &ip } else { &tcp.host };
        return tokio::net::TcpStream::connect((host.as_str(), port)).await.map(drop).map_err(|e| e.to_string());
    }
    Err("the hook has no handler".into())
}

/// Stops everything of a pod: regular containers together, then sidecars in reverse order within what is left of the grace period, then the
/// sandboxes.
pub async fn kill_pod(shared: &Shared, pod: &Pod, runtime: &PodRuntime, grace: i64, message: &str) -> Result<(), CriError> {
    let started = Instant::now();
    let alive = |c: &&ContainerObs| matches!(c.state, RunState::Running | RunState::Unknown);
    let is_sidecar = |c: &ContainerObs| pod.spec.init_containers.iter().any(|i| i.is_sidecar() && i.name == c.name);
    let main: Vec<&ContainerObs> = runtime.containers.iter().filter(alive).filter(|c| !is_sidecar(c)).collect();
    let results = join_all(main.into_iter().map(|c| kill_container(shared, pod, c, grace, message))).await;
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    for definition in pod.spec.init_containers.iter().rev().filter(|c| c.is_sidecar()) {
        for observed in runtime.containers.iter().filter(alive).filter(|c| c.name == definition.name) {
            let used = i64::try_from(started.elapsed().as_secs()).unwrap_or(i64::MAX);
            let left = if grace == 0 { 0 } else { (grace - used).max(MINIMUM_GRACE) };
            kill_container(shared, pod, observed, left, message).await?;
        }
    }
    for sandbox in &runtime.sandboxes {
        shared.cri.stop_pod_sandbox(&sandbox.id).await?;
    }
    Ok(())
}
