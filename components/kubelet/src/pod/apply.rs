//! Doing what the plan says.

use super::backoff::Backoff;
use super::observe::{PodRuntime, RunState};
use super::plan::{KillReason, PodActions, Waiting, backoff_key};
use super::terminate;
use crate::cri::v1;
use crate::kubelet::Shared;
use crate::model::pod::{Container, Pod};
use crate::runtime::container::{self, MountedVolume};
use crate::runtime::{dns, env, hosts, sandbox};
use crate::volumes;
use k8s_client::EventType;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Something was started or stopped: look again at once.
    pub progress: bool,
    /// Containers that could not be started, and why.
    pub waiting: Vec<Waiting>,
    /// Something failed that is worth trying again.
    pub failed: bool,
}

/// Applies one plan.
pub async fn apply(shared: &Shared, pod: &Pod, runtime: &PodRuntime, actions: &PodActions, backoff: &mut Backoff) -> Outcome {
    let mut outcome = Outcome::default();
    if actions.kill_pod && (!runtime.sandboxes.is_empty() || !runtime.containers.is_empty()) && runtime.is_running() {
        if !runtime.sandboxes.is_empty() && actions.create_sandbox {
            shared.api.pod_event(pod, None, EventType::Normal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
        }
        if let Err(error) = terminate::kill_pod(shared, pod, runtime, pod.grace_period(), "").await {
            shared.api.pod_event(pod, None, EventType::Warning, "FailedKillPod", format!("error killing pod: {error}"));
            outcome.failed = true;
            return outcome;
        }
        outcome.progress = true;
    }
    for kill in &actions.to_kill {
        let Some(observed) = runtime.containers.iter().find(|c| c.id == kill.id) else { continue };
        let definition = pod.all_containers().find(|c| c.name == kill.name);
        let probe = match kill.reason {
            KillReason::Liveness => definition.and_then(|c| c.liveness_probe.as_ref()),
            KillReason::Startup => definition.and_then(|c| c.startup_probe.as_ref()),
            KillReason::Changed | KillReason::Unknown => None,
        };
        let grace = probe.and_then(|p| p.termination_grace_period_seconds).unwrap_or_else(|| pod.grace_period());
        match terminate::kill_container(shared, pod, observed, grace, &kill.message).await {
            Ok(()) => outcome.progress = true,
            Err(error) => {
                shared.api.pod_event(pod, Some(&kill.name), EventType::Warning, "FailedKillContainer", error.to_string());
                outcome.failed = true;
            }
        }
    }
    if outcome.failed {
        return outcome;
    }
    let starts = !actions.init_to_start.is_empty() || !actions.to_start.is_empty();
    if !actions.create_sandbox && !starts {
        return outcome;
    }
    if let Err(failure) = start(shared, pod, runtime, actions, backoff, &mut outcome).await {
        shared.api.pod_event(pod, None, EventType::Warning, failure.0, failure.1);
        outcome.failed = true;
    }
    outcome
}

type PodFailure = (&'static str, String);

async fn start(
    shared: &Shared,
    pod: &Pod,
    runtime: &PodRuntime,
    actions: &PodActions,
    backoff: &mut Backoff,
    outcome: &mut Outcome,
) -> Result<(), PodFailure> {
    let config = &shared.config;
    if !pod.spec.host_network && !shared.network_ready() {
        return Err(("NetworkNotReady", "network is not ready: container runtime network not ready: NetworkReady=false".into()));
    }
    let cgroup_parent = shared.cgroups.create_pod(pod, config).map_err(|e| ("FailedToCreatePodContainer", error_chain(&e)))?;
    for dir in ["volumes", "plugins"] {
        let path = config.pod_dir(&pod.metadata.uid).join(dir);
        std::fs::create_dir_all(&path).map_err(|e| ("FailedToMakePodDataDirectories", format!("create {}: {e}", path.display())))?;
    }
    let facts = volumes::content::Facts { pod, pod_ips: runtime.ips(), host_ips: &shared.host_ips(), allocatable: shared.allocatable() };
    let mounted = volumes::setup(config, &shared.api, &facts).await.map_err(|e| ("FailedMount", e.to_string()))?;

    let host_resolver = std::fs::read_to_string(&config.resolv_conf).map(|t| dns::parse_resolv_conf(&t)).unwrap_or_default();
    if config.cluster_dns.is_empty()
        && ["", "ClusterFirst", "ClusterFirstWithHostNet"].contains(&pod.spec.dns_policy.as_str())
        && !pod.is_static()
    {
        shared.api.pod_event(pod, None, EventType::Warning, "MissingClusterDNS",
            "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.");
    }
    let dns = dns::pod_dns(pod, &host_resolver, &config.cluster_dns, &config.cluster_domain);
    let sandbox_config = sandbox::config(pod, actions.attempt, config, dns, &cgroup_parent);
    let log_dir = PathBuf::from(&sandbox_config.log_directory);
    std::fs::create_dir_all(&log_dir).map_err(|e| ("FailedCreatePodSandBox", format!("create {}: {e}", log_dir.display())))?;

    let (sandbox_id, ips) = if actions.create_sandbox {
        let handler = shared.runtime_handler(pod).await.map_err(|e| ("FailedCreatePodSandBox", e))?;
        let id = shared
            .cri
            .run_pod_sandbox(sandbox_config.clone(), handler)
            .await
            .map_err(|e| ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {e}")))?;
        outcome.progress = true;
        let status = shared.cri.pod_sandbox_status(&id).await.ok().flatten();
        let ips: Vec<String> = status
            .and_then(|s| s.network)
            .map(|n| std::iter::once(n.ip).chain(n.additional_ips.into_iter().map(|i| i.ip)).filter(|i| !i.is_empty()).collect())
            .unwrap_or_default();
        (id, ips)
    } else {
        (actions.sandbox_id.clone().unwrap_or_default(), runtime.ips().to_vec())
    };
    let ips = if pod.spec.host_network { shared.host_ips() } else { ips };
    let launch = Launch { shared, pod, runtime, sandbox_id: &sandbox_id, sandbox_config: &sandbox_config, ips: &ips, mounted: &mounted };
    let init = actions.init_to_start.iter().filter_map(|i| pod.spec.init_containers.get(*i));
    let regular = actions.to_start.iter().filter_map(|i| pod.spec.containers.get(*i));
    for container in init.chain(regular) {
        match launch.container(container, backoff).await {
            Ok(()) => outcome.progress = true,
            Err(waiting) => {
                outcome.failed = true;
                outcome.waiting.push(waiting);
            }
        }
    }
    Ok(())
}

/// An error with its causes.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

struct Launch<'a> {
    shared: &'a Shared,
    pod: &'a Pod,
    runtime: &'a PodRuntime,
    sandbox_id: &'a str,
    sandbox_config: &'a v1::PodSandboxConfig,
    ips: &'a [String],
    mounted: &'a BTreeMap<String, MountedVolume>,
}

impl Launch<'_> {
    /// Creates and starts one container.
    async fn container(&self, container: &Container, backoff: &mut Backoff) -> Result<(), Waiting> {
        let Launch { shared, pod, runtime, .. } = self;
        let name = &container.name;
        let fail = |reason: &'static str, message: String| Waiting { name: name.clone(), reason, message };
        let failed = |reason: &'static str, message: String| {
            shared.api.pod_event(pod, Some(name), EventType::Warning, "Failed", format!("Error: {message}"));
            Waiting { name: name.clone(), reason, message }
        };
        let image = shared.images.ensure(&shared.api, pod, container, self.sandbox_config).await.map_err(|e| fail(e.reason, e.message))?;
        let env = self.environment(container).await.map_err(|m| failed("CreateContainerConfigError", m))?;
        let log_dir = Path::new(&self.sandbox_config.log_directory).join(name);
        std::fs::create_dir_all(&log_dir).map_err(|e| failed("CreateContainerError", format!("create {}: {e}", log_dir.display())))?;
        let last = runtime.newest(name);
        let restart_count = match last {
            Some(last) => last.restart_count + 1,
            None => next_log_number(&log_dir),
        };
        let mounts = self.mounts(container, &env).map_err(|m| failed("CreateContainerConfigError", m))?;
        let container_config = container::config(container::Inputs {
            config: &shared.config,
            machine: shared.machine,
            pod,
            container,
            image: image.spec,
            image_user: &image.user,
            env,
            mounts,
            restart_count,
        })
        .map_err(|m| failed("CreateContainerConfigError", m))?;
        let log_path = Path::new(&self.sandbox_config.log_directory).join(&container_config.log_path);
        let id = shared
            .cri
            .create_container(self.sandbox_id, container_config, self.sandbox_config.clone())
            .await
            .map_err(|e| failed("CreateContainerError", e.message))?;
        shared.api.pod_event(pod, Some(name), EventType::Normal, "Created", format!("Created container: {name}"));
        if let Some(last) = last.filter(|l| l.state == RunState::Exited) {
            backoff.restarted(&backoff_key(container), last.finished_at, crate::model::time::now_nanos());
        }
        shared.cri.start_container(&id).await.map_err(|e| failed("RunContainerError", e.message))?;
        shared.api.pod_event(pod, Some(name), EventType::Normal, "Started", format!("Started container {name}"));
        link_log(pod, name, &id, &log_path);
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref())
            && let Err(error) = terminate::run_hook(shared, pod, container, &id, hook, Duration::from_secs(600)).await
        {
            shared.api.pod_event(pod, Some(name), EventType::Warning, "FailedPostStartHook", format!("PostStartHook failed: {error}"));
            if let Err(error) = shared.cri.stop_container(&id, pod.grace_period()).await {
                tracing::warn!(pod = %pod.full_name(), container = %name, error = %error, "stop after a failed hook");
            }
            return Err(fail("PostStartHookError", error));
        }
        Ok(())
    }

    async fn environment(&self, container: &Container) -> Result<Vec<(String, String)>, String> {
        let Launch { shared, pod, .. } = self;
        let (config_maps, secrets) = env::references(container);
        let mut inputs = env::Inputs { allocatable: shared.allocatable(), ..Default::default() };
        for name in config_maps {
            let data = shared.api.config_map(&pod.metadata.namespace, &name).await.map_err(|e| e.to_string())?;
            inputs.config_maps.insert(name, data);
        }
        for name in secrets {
            let data = shared.api.secret(&pod.metadata.namespace, &name).await.map_err(|e| e.to_string())?;
            inputs.secrets.insert(name, data);
        }
        let services: Vec<(String, String)> = match shared.api.services.get() {
            Some(informer) if informer.has_synced() => {
                let list = informer.list();
                env::service_variables(
                    list.iter().map(AsRef::as_ref),
                    &pod.metadata.namespace,
                    pod.spec.enable_service_links != Some(false),
                )
            }
            // A static pod never waits for the API.
            _ if pod.is_static() => Vec::new(),
            _ => return Err("services have not yet been read at least once, cannot construct envs".into()),
        };
        let host_ips = shared.host_ips();
        inputs.services = &services;
        inputs.pod_ips = self.ips;
        inputs.host_ips = &host_ips;
        env::build(pod, container, &inputs)
    }

    fn mounts(&self, container: &Container, env: &[(String, String)]) -> Result<Vec<v1::Mount>, String> {
        let Launch { shared, pod, mounted, .. } = self;
        let pod_dir = shared.config.pod_dir(&pod.metadata.uid);
        let subs = volumes::sub_paths(&shared.config, pod, container, mounted, env).map_err(|e| e.to_string())?;
        let mut mounts = container::volume_mounts(container, mounted, |index| subs.get(&index).cloned())?;
        let taken = |mounts: &[v1::Mount], path: &str| mounts.iter().any(|m| m.container_path.trim_end_matches('/') == path);
        if !taken(&mounts, "/etc/hosts") {
            let path = pod_dir.join("etc-hosts");
            let host_file = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            let text = hosts::content(pod, self.ips, &host_file, &shared.config.cluster_domain);
            write_public(&path, &text, 0o644)?;
            mounts.push(container::bind(&path, "/etc/hosts", false));
        }
        let termination = container::termination_path(container);
        if !taken(&mounts, termination) {
            let dir = pod_dir.join("containers").join(&container.name);
            std::fs::create_dir_all(&dir).map_err(|e| format!("create {}: {e}", dir.display()))?;
            let path = dir.join(format!("{:08x}", rand::random::<u32>()));
            write_public(&path, "", 0o666)?;
            mounts.push(container::bind(&path, termination, false));
        }
        Ok(mounts)
    }
}

fn write_public(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .map_err(|e| format!("write {}: {e}", path.display()))
}

/// One more than the highest numbered log, so that a container whose records are lost does not overwrite its logs.
fn next_log_number(dir: &Path) -> u32 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str().and_then(|n| n.split('.').next().and_then(|n| n.parse::<u32>().ok())))
        .max()
        .map_or(0, |n| n.saturating_add(1))
}

/// The flat name log collectors look for.
fn link_log(pod: &Pod, container: &str, id: &str, log: &Path) {
    let dir = Path::new("/var/log/containers");
    let name = format!("{}_{}_{container}-{id}.log", pod.metadata.name, pod.metadata.namespace);
    let result = std::fs::create_dir_all(dir).and_then(|()| std::os::unix::fs::symlink(log, dir.join(name)));
    if let Err(error) = result {
        tracing::debug!(pod = %pod.full_name(), container, error = %error, "log link");
    }
}

/// Removes what is no longer needed of a pod that goes on: all but the newest ended container of each name, and sandboxes that were replaced.
pub async fn collect_garbage(shared: &Shared, runtime: &PodRuntime) {
    let mut ended: HashMap<&str, u32> = HashMap::new();
    let mut kept_sandboxes = std::collections::HashSet::new();
    for container in &runtime.containers {
        let surplus = container.state == RunState::Exited && {
            let count = ended.entry(&container.name).or_default();
            *count += 1;
            *count > 1
        };
        if surplus {
            if let Err(error) = shared.cri.remove_container(&container.id).await {
                tracing::warn!(container = %container.id, error = %error, "remove an ended container");
            }
            // Its log stays until the pod goes; only the link by id is useless now.
        } else {
            kept_sandboxes.insert(container.sandbox_id.as_str());
        }
    }
    for sandbox in runtime.sandboxes.iter().skip(1).filter(|s| !s.ready && !kept_sandboxes.contains(s.id.as_str())) {
        if let Err(error) = shared.cri.remove_pod_sandbox(&sandbox.id).await {
            tracing::warn!(sandbox = %sandbox.id, error = %error, "remove a replaced sandbox");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_numbers_go_on_where_they_stopped() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next_log_number(dir.path()), 0);
        for name in ["0.log", "3.log", "3.log.20260101-000000", "x"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(next_log_number(dir.path()), 4);
    }
}
