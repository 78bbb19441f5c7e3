//! The configuration of one container.

use super::expansion::expand;
use super::{cgroup, security};
use crate::config::Config;
use crate::cri::v1;
use crate::model::pod::{Container, Pod};
use crate::pod::hash::container_hash;
use crate::pod::observe::{
    ANNOTATION_GRACE_PERIOD, ANNOTATION_HASH, ANNOTATION_PRE_STOP, ANNOTATION_RESTART_COUNT, ANNOTATION_TERMINATION_PATH,
    ANNOTATION_TERMINATION_POLICY, LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID,
};
use crate::pod::qos;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A volume that is ready on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct MountedVolume {
    pub host_path: PathBuf,
    /// The volume's content must not be written, whatever the mount says.
    pub read_only: bool,
}

/// Facts of the machine the configuration depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine {
    pub memory: i64,
    /// cgroup v2 with the controllers this kubelet sets.
    pub cgroup_v2: bool,
}

/// Everything one container is made from.
pub struct Inputs<'a> {
    pub config: &'a Config,
    pub machine: Machine,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub image: v1::ImageSpec,
    pub image_user: &'a security::ImageUser,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<v1::Mount>,
    pub restart_count: u32,
}

/// Builds the container's configuration. The error is what its waiting state shows.
pub fn config(inputs: Inputs<'_>) -> Result<v1::ContainerConfig, String> {
    let Inputs { config, machine, pod, container, image, image_user, env, mounts, restart_count } = inputs;
    let lookup: HashMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expand_all = |list: &[String]| list.iter().map(|text| expand(text, |n| lookup.get(n).map(|v| (*v).to_owned()))).collect::<Vec<_>>();
    let meta = &pod.metadata;
    let labels = HashMap::from([
        (LABEL_POD_NAME.to_owned(), meta.name.clone()),
        (LABEL_POD_NAMESPACE.to_owned(), meta.namespace.clone()),
        (LABEL_POD_UID.to_owned(), meta.uid.clone()),
        (LABEL_CONTAINER_NAME.to_owned(), container.name.clone()),
    ]);
    let mut annotations = HashMap::from([
        (ANNOTATION_HASH.to_owned(), container_hash(container)),
        (ANNOTATION_RESTART_COUNT.to_owned(), restart_count.to_string()),
        (ANNOTATION_TERMINATION_PATH.to_owned(), termination_path(container).to_owned()),
        (ANNOTATION_TERMINATION_POLICY.to_owned(), container.termination_message_policy.clone()),
    ]);
    if let Some(grace) = pod.spec.termination_grace_period_seconds {
        annotations.insert(ANNOTATION_GRACE_PERIOD.into(), grace.to_string());
    }
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        // So that a container whose pod is no longer known is still stopped as it asked for.
        annotations.insert(ANNOTATION_PRE_STOP.into(), serde_json::to_string(hook).unwrap_or_default());
    }
    let stop_signal = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.as_deref())
        .and_then(v1::Signal::from_str_name)
        .unwrap_or(v1::Signal::RuntimeDefault);
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt: restart_count }),
        image: Some(image),
        command: expand_all(&container.command),
        args: expand_all(&container.args),
        working_dir: container.working_dir.clone(),
        labels,
        annotations,
        log_path: format!("{}/{restart_count}.log", container.name),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        mounts,
        stop_signal: stop_signal.into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources(config, machine, pod, container)),
            security_context: Some(security::container_context(
                pod,
                container,
                image_user,
                &config.root_dir.join("seccomp"),
                config.seccomp_default,
            )?),
        }),
        envs: env.into_iter().map(|(key, value)| v1::KeyValue { key, value: value.into_bytes() }).collect(),
        ..Default::default()
    })
}

/// Where the container writes its last words.
pub fn termination_path(container: &Container) -> &str {
    if container.termination_message_path.is_empty() { "/dev/termination-log" } else { &container.termination_message_path }
}

/// The container's limits in the numbers of its cgroup.
pub fn resources(config: &Config, machine: Machine, pod: &Pod, container: &Container) -> v1::LinuxContainerResources {
    let mut result = v1::LinuxContainerResources {
        cpu_shares: cgroup::cpu_shares(qos::request_milli(container, "cpu")),
        memory_limit_in_bytes: qos::limit_milli(container, "memory").map_or(0, |m| m / 1000),
        oom_score_adj: qos::oom_score_adj(pod, container, machine.memory),
        ..Default::default()
    };
    if config.cpu_cfs_quota
        && let Some(limit) = qos::limit_milli(container, "cpu")
    {
        let period = i64::try_from(config.cpu_cfs_period.as_micros()).unwrap_or(100_000);
        result.cpu_period = period;
        result.cpu_quota = cgroup::cpu_quota(limit) * period / 100_000;
    }
    if machine.cgroup_v2 {
        // When one process of a container runs out of memory the whole container ends, so that no half-dead one is left behind.
        result.unified.insert("memory.oom.group".into(), "1".into());
    }
    result
}

/// The bind mounts of a container: its volume mounts (sub-paths already resolved to host paths by `volumes`).
pub fn volume_mounts(
    container: &Container,
    volumes: &BTreeMap<String, MountedVolume>,
    sub_path: impl Fn(usize) -> Option<PathBuf>,
) -> Result<Vec<v1::Mount>, String> {
    let mut mounts = Vec::with_capacity(container.volume_mounts.len());
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let volume = volumes
            .get(&mount.name)
            .ok_or_else(|| format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name))?;
        let host_path = sub_path(index).unwrap_or_else(|| volume.host_path.clone());
        let container_path = if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
        mounts.push(v1::Mount {
            container_path,
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only || volume.read_only,
            recursive_read_only: mount.recursive_read_only.as_deref() == Some("Enabled"),
            propagation: match mount.mount_propagation.as_deref() {
                Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
                Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
                _ => v1::MountPropagation::PropagationPrivate,
            }
            .into(),
            ..Default::default()
        });
    }
    Ok(mounts)
}

/// A plain bind mount.
pub fn bind(host: &Path, container_path: &str, readonly: bool) -> v1::Mount {
    v1::Mount { host_path: host.to_string_lossy().into_owned(), container_path: container_path.into(), readonly, ..Default::default() }
}
