//! What the runtime has of a pod.

use crate::cri::{Cri, CriError, v1};
use crate::model::time::{Time, from_nanos};
use std::collections::HashMap;

/// CRI label keys, upstream's.
pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// CRI annotation keys, upstream's.
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
pub const ANNOTATION_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const ANNOTATION_TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const ANNOTATION_TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const ANNOTATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
pub const ANNOTATION_PRE_STOP: &str = "io.kubernetes.container.preStopHandler";

/// Everything of one pod in the runtime, newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodRuntime {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<ContainerObs>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: i64,
    pub host_network: bool,
    pub ips: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunState {
    Created,
    Running,
    Exited,
    #[default]
    Unknown,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerObs {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub state: RunState,
    pub restart_count: u32,
    pub hash: String,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub log_path: String,
    pub grace_period: Option<i64>,
    /// The preStop handler as JSON, for a container whose pod is no longer known.
    pub pre_stop: String,
}

impl PodRuntime {
    /// The newest container of that name.
    pub fn newest(&self, name: &str) -> Option<&ContainerObs> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest container of that name in one sandbox.
    pub fn newest_in(&self, name: &str, sandbox: &str) -> Option<&ContainerObs> {
        self.containers.iter().find(|c| c.name == name && c.sandbox_id == sandbox)
    }

    /// The sandbox in use: the newest one.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// Addresses of the pod while its sandbox is ready.
    pub fn ips(&self) -> &[String] {
        self.sandbox().filter(|s| s.ready).map_or(&[], |s| &s.ips)
    }

    /// Whether anything may still be running. A container that was only created is not, whatever it may become while its sandbox is
    /// ready: after a power cut the runtime knows no better of containers that had just been started.
    pub fn is_running(&self) -> bool {
        self.sandboxes.iter().any(|s| s.ready) || self.containers.iter().any(|c| matches!(c.state, RunState::Running | RunState::Unknown))
    }
}

/// Remembers statuses that cannot change any more, so that looking at a pod costs calls only for what lives.
#[derive(Debug, Default)]
pub struct Observer {
    exited: HashMap<String, ContainerObs>,
}

impl Observer {
    /// Asks the runtime about one pod.
    pub async fn observe(&mut self, cri: &Cri, uid: &str) -> Result<PodRuntime, CriError> {
        let selector = HashMap::from([(LABEL_POD_UID.to_owned(), uid.to_owned())]);
        let filter = v1::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
        let mut listed = cri.list_pod_sandboxes(Some(filter)).await?;
        listed.sort_by_key(|s| std::cmp::Reverse(s.created_at));
        let mut sandboxes = Vec::with_capacity(listed.len());
        for (index, item) in listed.into_iter().enumerate() {
            let mut sandbox = Sandbox {
                attempt: item.metadata.as_ref().map_or(0, |m| m.attempt),
                ready: item.state() == v1::PodSandboxState::SandboxReady,
                created_at: item.created_at,
                id: item.id,
                ..Default::default()
            };
            // Addresses matter for the sandbox in use only.
            if index == 0 || sandbox.ready {
                match cri.pod_sandbox_status(&sandbox.id).await? {
                    None => continue,
                    Some(status) => fill_sandbox(&mut sandbox, &status),
                }
            }
            sandboxes.push(sandbox);
        }
        let filter = v1::ContainerFilter { label_selector: selector, ..Default::default() };
        let mut listed = cri.list_containers(Some(filter)).await?;
        listed.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        let mut containers = Vec::with_capacity(listed.len());
        let mut exited = HashMap::new();
        for item in listed {
            let known = self.exited.remove(&item.id);
            let observed = match known {
                Some(known) => known,
                None => match cri.container_status(&item.id).await? {
                    None => continue,
                    Some(status) => container_obs(&status, &item.pod_sandbox_id),
                },
            };
            if observed.state == RunState::Exited {
                exited.insert(observed.id.clone(), observed.clone());
            }
            containers.push(observed);
        }
        self.exited = exited;
        Ok(PodRuntime { sandboxes, containers })
    }
}

fn fill_sandbox(sandbox: &mut Sandbox, status: &v1::PodSandboxStatus) {
    sandbox.ready = status.state() == v1::PodSandboxState::SandboxReady;
    sandbox.host_network = status
        .linux
        .as_ref()
        .and_then(|l| l.namespaces.as_ref())
        .and_then(|n| n.options.as_ref())
        .is_some_and(|o| o.network() == v1::NamespaceMode::Node);
    if let Some(network) = &status.network {
        sandbox.ips = std::iter::once(network.ip.clone())
            .chain(network.additional_ips.iter().map(|i| i.ip.clone()))
            .filter(|ip| !ip.is_empty())
            .collect();
    }
}

/// Converts one container status, reading the termination message if the container wrote one.
fn container_obs(status: &v1::ContainerStatus, sandbox_id: &str) -> ContainerObs {
    let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let metadata = status.metadata.clone().unwrap_or_default();
    let state = match status.state() {
        v1::ContainerState::ContainerCreated => RunState::Created,
        v1::ContainerState::ContainerRunning => RunState::Running,
        v1::ContainerState::ContainerExited => RunState::Exited,
        v1::ContainerState::ContainerUnknown => RunState::Unknown,
    };
    let mut message = status.message.clone();
    if state == RunState::Exited
        && let Some(text) = termination_message(
            status,
            &annotation(ANNOTATION_TERMINATION_PATH),
            annotation(ANNOTATION_TERMINATION_POLICY) == "FallbackToLogsOnError",
        )
    {
        message = text;
    }
    ContainerObs {
        id: status.id.clone(),
        name: status.labels.get(LABEL_CONTAINER_NAME).cloned().unwrap_or(metadata.name),
        sandbox_id: sandbox_id.into(),
        state,
        restart_count: annotation(ANNOTATION_RESTART_COUNT).parse().unwrap_or(metadata.attempt),
        hash: annotation(ANNOTATION_HASH),
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message,
        image: status
            .image
            .as_ref()
            .map(|i| i.user_specified_image.clone())
            .filter(|i| !i.is_empty())
            .unwrap_or_else(|| status.image.as_ref().map(|i| i.image.clone()).unwrap_or_default()),
        image_ref: status.image_ref.clone(),
        log_path: status.log_path.clone(),
        grace_period: annotation(ANNOTATION_GRACE_PERIOD).parse().ok(),
        pre_stop: annotation(ANNOTATION_PRE_STOP),
    }
}

/// At most this much of a termination message is kept, as upstream.
const MAX_MESSAGE: u64 = 4096;
/// At most this much of the log's end stands in for a message.
const MAX_LOG_MESSAGE: usize = 2048;

fn termination_message(status: &v1::ContainerStatus, path: &str, fall_back_to_log: bool) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    if !path.is_empty()
        && let Some(mount) = status.mounts.iter().find(|m| m.container_path == path)
        && let Ok(file) = std::fs::File::open(&mount.host_path)
    {
        let mut bytes = Vec::new();
        if file.take(MAX_MESSAGE).read_to_end(&mut bytes).is_ok() {
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
    if text.is_empty() && fall_back_to_log && status.exit_code != 0 {
        text = crate::runtime::log_file::tail_text(std::path::Path::new(&status.log_path), 80, MAX_LOG_MESSAGE);
    }
    (!text.is_empty()).then_some(text)
}

/// Seconds of a CRI time stamp, `None` for "never".
pub fn time_of(nanos: i64) -> Option<Time> {
    (nanos > 0).then(|| from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_run() {
        let runtime = |ready, state| PodRuntime {
            sandboxes: vec![Sandbox { ready, ..Default::default() }],
            containers: vec![ContainerObs { state, ..Default::default() }],
        };
        for (ready, state, running) in [
            (true, RunState::Exited, true),
            (true, RunState::Created, true),
            (false, RunState::Running, true),
            (false, RunState::Unknown, true),
            // Stopping it changes nothing, and nothing starts it any more.
            (false, RunState::Created, false),
            (false, RunState::Exited, false),
        ] {
            assert_eq!(runtime(ready, state).is_running(), running, "{ready} {state:?}");
        }
    }
}
