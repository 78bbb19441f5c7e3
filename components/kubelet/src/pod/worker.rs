//! The worker of one pod: syncs while the pod is meant to run, then ends it, then cleans up when it is gone from its source.

use super::apply::{self, collect_garbage};
use super::backoff::Backoff;
use super::observe::{Observer, PodRuntime};
use super::plan::{self, ProbeResults, Waiting, compute_pod_actions};
use super::status::{self, compute_status};
use super::terminate;
use crate::kubelet::Shared;
use crate::model::pod::Pod;
use crate::model::status::PodStatus;
use crate::model::time::{Time, now_nanos};
use crate::probe::Probes;
use crate::volumes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// What a worker is to bring about.
#[derive(Debug, Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// The pod is gone from its source: end it and forget it.
    pub removed: bool,
}

impl Desired {
    fn must_end(&self) -> bool {
        self.removed || self.pod.metadata.deletion_timestamp.is_some() || !self.pod.is_static() && self.pod.status.is_terminal()
    }
}

/// A running worker.
pub struct Handle {
    pub desired: watch::Sender<Desired>,
    pub wake: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Handle {
    /// Whether the worker has done everything there was to do.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Hands over a newer definition, or the removal.
    pub fn update(&self, pod: &Arc<Pod>, removed: bool) {
        self.desired.send_if_modified(|desired| {
            let changed = !Arc::ptr_eq(&desired.pod, pod) || removed && !desired.removed;
            if changed {
                desired.pod = pod.clone();
                desired.removed |= removed;
            }
            changed
        });
    }
}

/// Starts a worker.
pub fn spawn(shared: Arc<Shared>, desired: Desired) -> Handle {
    let wake = Arc::new(Notify::new());
    let (sender, receiver) = watch::channel(desired);
    let worker = Worker::new(shared, wake.clone(), &receiver.borrow().pod);
    Handle { desired: sender, wake, task: tokio::spawn(worker.run(receiver)) }
}

struct Worker {
    shared: Arc<Shared>,
    uid: String,
    wake: Arc<Notify>,
    observer: Observer,
    backoff: Backoff,
    probes: Probes,
    waiting: Vec<Waiting>,
    /// The status last published.
    status: PodStatus,
    failure: Option<(String, String)>,
    volumes_refreshed: tokio::time::Instant,
    /// Syncs in a row in which something failed.
    failures: u32,
}

/// What to do after a sync.
enum Next {
    Wait(Duration),
    End,
}

/// Pause after something failed.
const RETRY: Duration = Duration::from_secs(2);

impl Worker {
    fn new(shared: Arc<Shared>, wake: Arc<Notify>, pod: &Arc<Pod>) -> Self {
        let status = shared.statuses.initial(&shared.api, pod);
        let probes = Probes::new(seed(&status), wake.clone());
        Self {
            uid: pod.metadata.uid.clone(),
            backoff: Backoff::new(shared.config.max_restart_period),
            observer: Observer::default(),
            waiting: Vec::new(),
            failure: None,
            failures: 0,
            volumes_refreshed: tokio::time::Instant::now(),
            shared,
            wake,
            probes,
            status,
        }
    }

    async fn run(mut self, mut desired: watch::Receiver<Desired>) {
        loop {
            let current = desired.borrow_and_update().clone();
            if current.must_end() {
                break;
            }
            let next = tokio::select! {
                next = self.sync(&current.pod) => next,
                // Nothing a sync may be waiting for (a pull, a hook) delays the end of a pod.
                () = must_end(&mut desired) => break,
            };
            let delay = match next {
                Next::End => break,
                Next::Wait(delay) => delay,
            };
            if !Arc::ptr_eq(&desired.borrow().pod, &current.pod) {
                continue;
            }
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.terminate(&mut desired).await;
        // An ended pod keeps its records (logs, exit codes) until it is gone from its source.
        loop {
            let current = desired.borrow_and_update().clone();
            if current.removed {
                break;
            }
            self.shared.statuses.terminated(&current.pod);
            if desired.changed().await.is_err() {
                return;
            }
        }
        let pod = desired.borrow().pod.clone();
        self.clean_up(&pod).await;
    }

    /// One round of observe, plan, apply.
    async fn sync(&mut self, pod: &Arc<Pod>) -> Next {
        let shared = self.shared.clone();
        let runtime = match self.observer.observe(&shared.cri, &self.uid).await {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::warn!(pod = %pod.full_name(), error = %error, "look at a pod");
                return Next::Wait(RETRY);
            }
        };
        self.update_probes(pod, &runtime);
        if let Some(failure) = self.verdict(pod, &runtime) {
            self.failure = Some(failure);
            self.publish(pod, &runtime, false);
            return Next::End;
        }
        let results = self.probes.results();
        let now = now_nanos();
        let actions = compute_pod_actions(&plan::Input { pod, runtime: &runtime, probes: &results, backoff: &self.backoff, now });
        let hopeful: std::collections::HashSet<&str> = actions
            .init_to_start
            .iter()
            .filter_map(|i| pod.spec.init_containers.get(*i))
            .chain(actions.to_start.iter().filter_map(|i| pod.spec.containers.get(*i)))
            .map(|c| c.name.as_str())
            .collect();
        // Old reasons hold while their container is still being tried.
        self.waiting.retain(|w| hopeful.contains(w.name.as_str()));
        self.waiting.retain(|w| !actions.waiting.iter().any(|a| a.name == w.name));
        for waiting in &actions.waiting {
            let known = self.status.init_container_statuses.iter().chain(&self.status.container_statuses).any(|s| {
                s.name == waiting.name
                    && s.state.waiting.as_ref().is_some_and(|w| w.reason == waiting.reason && w.message == waiting.message)
            });
            if !known {
                let text = format!(
                    "Back-off restarting failed container {} in pod {}_{}({})",
                    waiting.name, pod.metadata.name, pod.metadata.namespace, self.uid
                );
                shared.api.pod_event(pod, Some(&waiting.name), k8s_client::EventType::Warning, "BackOff", text);
            }
        }
        self.waiting.extend(actions.waiting.iter().cloned());
        self.publish(pod, &runtime, false);
        if self.status.is_terminal() {
            return Next::End;
        }
        let keys: Vec<String> = pod.all_containers().map(plan::backoff_key).collect();
        self.backoff.retain(|key| keys.iter().any(|k| k == key));
        let idle = !actions.kill_pod
            && !actions.create_sandbox
            && actions.to_kill.is_empty()
            && actions.init_to_start.is_empty()
            && actions.to_start.is_empty();
        let frequency = shared.config.sync_frequency;
        let mut wait = frequency.mul_f64(1.0 + rand::random::<f64>() * 0.5);
        if let Some(deadline) = self.deadline_left(pod) {
            wait = wait.min(deadline);
        }
        if let Some(retry) = actions.retry_after {
            wait = wait.min(retry + Duration::from_millis(100));
        }
        if idle {
            self.refresh_volumes(pod, &runtime).await;
            collect_garbage(&shared, &runtime).await;
            return Next::Wait(wait);
        }
        let outcome = apply::apply(&shared, pod, &runtime, &actions, &mut self.backoff).await;
        for waiting in outcome.waiting {
            self.waiting.retain(|w| w.name != waiting.name);
            self.waiting.push(waiting);
        }
        if outcome.failed {
            if let Ok(runtime) = self.observer.observe(&shared.cri, &self.uid).await {
                self.publish(pod, &runtime, false);
            }
            self.failures = self.failures.saturating_add(1);
            return Next::Wait(wait.min(retry_pause(self.failures)));
        }
        self.failures = 0;
        Next::Wait(if outcome.progress { Duration::ZERO } else { wait })
    }

    fn update_probes(&mut self, pod: &Arc<Pod>, runtime: &PodRuntime) {
        let ip = if pod.spec.host_network { self.shared.host_ips() } else { runtime.ips().to_vec() }.into_iter().next().unwrap_or_default();
        self.probes.update(&self.shared.cri, &self.shared.api, pod, runtime, &ip);
    }

    /// A reason for the pod to fail as a whole.
    fn verdict(&self, pod: &Pod, runtime: &PodRuntime) -> Option<(String, String)> {
        if self.deadline_left(pod) == Some(Duration::ZERO) {
            return Some(("DeadlineExceeded".into(), "Pod was active on the node longer than the specified deadline".into()));
        }
        if runtime.sandboxes.is_empty()
            && let Some(name) = crate::runtime::security::forbidden_sysctl(pod, &self.shared.config.allowed_unsafe_sysctls)
        {
            return Some(("SysctlForbidden".into(), format!("forbidden sysctl: \"{name}\" not allowlisted")));
        }
        None
    }

    fn deadline_left(&self, pod: &Pod) -> Option<Duration> {
        let limit = Duration::from_secs(u64::try_from(pod.spec.active_deadline_seconds?).unwrap_or(0));
        let start = self.status.start_time?;
        Some(limit.saturating_sub(start.age(jiff::Timestamp::now())))
    }

    /// Brings the content of volumes up to date from time to time.
    async fn refresh_volumes(&mut self, pod: &Pod, runtime: &PodRuntime) {
        if pod.spec.volumes.is_empty() || self.volumes_refreshed.elapsed() < self.shared.config.sync_frequency {
            return;
        }
        self.volumes_refreshed = tokio::time::Instant::now();
        let facts = volumes::content::Facts {
            pod,
            pod_ips: runtime.ips(),
            host_ips: &self.shared.host_ips(),
            allocatable: self.shared.allocatable(),
        };
        if let Err(error) = volumes::setup(&self.shared.config, &self.shared.api, &facts).await {
            tracing::warn!(pod = %pod.full_name(), error = %error, "refresh volumes");
        }
    }

    fn publish(&mut self, pod: &Pod, runtime: &PodRuntime, terminal: bool) {
        let results = self.probes.results();
        self.status = compute_status(&status::Input {
            pod,
            runtime,
            probes: &results,
            waiting: &self.waiting,
            previous: &self.status,
            host_ips: &self.shared.host_ips(),
            now: Time::now(),
            terminal,
            failure: self.failure.as_ref().map(|(r, m)| (r.as_str(), m.as_str())),
        });
        self.shared.statuses.set(pod, self.status.clone());
    }

    /// Ends everything of the pod, however often that has to be tried.
    async fn terminate(&mut self, desired: &mut watch::Receiver<Desired>) {
        self.waiting.clear();
        let mut killed = false;
        loop {
            let current = desired.borrow_and_update().clone();
            let pod = &current.pod;
            let runtime = match self.observer.observe(&self.shared.cri, &self.uid).await {
                Ok(runtime) => runtime,
                Err(error) => {
                    tracing::warn!(pod = %pod.full_name(), error = %error, "look at a pod that is to end");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            if !runtime.is_running() {
                if !current.removed || pod.metadata.deletion_timestamp.is_some() {
                    self.publish(pod, &runtime, true);
                }
                break;
            }
            if std::mem::take(&mut killed) {
                // The runtime said that all was stopped, and some of it runs all the same: nothing that asking at once would mend.
                tracing::warn!(pod = %pod.full_name(), "a pod that was stopped still runs; it is stopped again");
                tokio::time::sleep(RETRY).await;
            }
            if pod.metadata.deletion_timestamp.is_some() {
                self.update_probes(pod, &runtime);
                self.publish(pod, &runtime, false);
            }
            let grace = grace_of(pod, &runtime);
            let shared = self.shared.clone();
            let result = tokio::select! {
                result = terminate::kill_pod(&shared, pod, &runtime, grace, "") => result,
                // A second deletion may shorten the grace period.
                () = shorter_grace(desired, grace) => continue,
            };
            match result {
                Ok(()) => killed = true,
                Err(error) => {
                    tracing::warn!(pod = %pod.full_name(), error = %error, "end a pod");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        self.probes = Probes::new(ProbeResults::default(), self.wake.clone());
        loop {
            let shared = self.shared.clone();
            let uid = self.uid.clone();
            // Unmounting and removing may block on the disk.
            let result = tokio::task::spawn_blocking(move || {
                volumes::teardown(&shared.config, &uid).map_err(|e| e.to_string())?;
                shared.cgroups.remove_pod(&uid).map_err(|e| apply::error_chain(&e))
            })
            .await;
            match result {
                Ok(Ok(())) | Err(_) => break,
                Ok(Err(error)) => {
                    tracing::warn!(uid = %self.uid, error = %error, "take down a pod's volumes and cgroup");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Removes the last traces of a pod that is gone.
    async fn clean_up(&mut self, pod: &Pod) {
        loop {
            match self.remove_records().await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(pod = %pod.full_name(), error = %error, "remove the records of a pod");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        let logs = self.shared.config.pod_log_dir(&pod.metadata.namespace, &pod.metadata.name, &self.uid);
        if let Err(error) = std::fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %logs.display(), error = %error, "remove a pod's logs");
        }
        self.shared.api.forget_pod(&self.uid);
        self.shared.statuses.forget(&self.uid);
        tracing::info!(pod = %pod.full_name(), uid = %self.uid, "pod is gone");
    }

    async fn remove_records(&mut self) -> Result<(), crate::cri::CriError> {
        let runtime = self.observer.observe(&self.shared.cri, &self.uid).await?;
        for container in &runtime.containers {
            self.shared.cri.remove_container(&container.id).await?;
        }
        for sandbox in &runtime.sandboxes {
            self.shared.cri.stop_pod_sandbox(&sandbox.id).await?;
            self.shared.cri.remove_pod_sandbox(&sandbox.id).await?;
        }
        Ok(())
    }
}

/// The pause after a number of failures in a row: what may come right by itself soon (a volume's object, the network) is tried soon, what
/// does not is not tried all the time.
fn retry_pause(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.clamp(1, 4)).min(Duration::from_secs(10))
}

/// The grace period of a pod that ends now. One that is only known from the runtime has it in its containers' annotations.
fn grace_of(pod: &Pod, runtime: &PodRuntime) -> i64 {
    if pod.metadata.deletion_grace_period_seconds.is_none() && pod.spec.containers.is_empty() {
        return runtime.containers.iter().filter_map(|c| c.grace_period).max().unwrap_or(30);
    }
    pod.grace_period()
}

async fn must_end(desired: &mut watch::Receiver<Desired>) {
    loop {
        if desired.borrow_and_update().must_end() {
            return;
        }
        if desired.changed().await.is_err() {
            // The kubelet is stopping; its tasks are about to be dropped.
            std::future::pending::<()>().await;
        }
    }
}

async fn shorter_grace(desired: &mut watch::Receiver<Desired>, grace: i64) {
    loop {
        if desired.borrow_and_update().pod.metadata.deletion_grace_period_seconds.is_some_and(|g| g < grace) {
            return;
        }
        if desired.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What the last published status says about containers that may still run.
fn seed(status: &PodStatus) -> ProbeResults {
    let mut results = ProbeResults::default();
    for container in status.init_container_statuses.iter().chain(&status.container_statuses) {
        let Some((_, id)) = container.container_id.split_once("://") else { continue };
        if container.state.running.is_none() {
            continue;
        }
        if container.ready {
            results.readiness.insert(id.to_owned(), true);
        }
        if container.started == Some(true) {
            results.startup.insert(id.to_owned(), true);
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_ten_seconds() {
        let pauses: Vec<u64> = (1..7).map(|n| retry_pause(n).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 10, 10, 10]);
    }

    #[test]
    fn what_was_ready_before_a_restart_stays_ready() {
        let status: PodStatus = serde_json::from_value(serde_json::json!({"containerStatuses": [
            {"name": "a", "containerID": "containerd://1", "ready": true, "started": true, "state": {"running": {}}},
            {"name": "b", "containerID": "containerd://2", "ready": false, "started": true, "state": {"running": {}}},
            {"name": "c", "containerID": "containerd://3", "ready": true, "started": true, "state": {"terminated": {"exitCode": 0}}}]}))
        .unwrap();
        let results = seed(&status);
        assert_eq!(results.readiness.keys().collect::<Vec<_>>(), ["1"]);
        assert_eq!(results.startup.len(), 2);
    }

    #[test]
    fn a_pod_known_only_from_the_runtime_keeps_its_grace_period() {
        let container = |grace| super::super::observe::ContainerObs { grace_period: grace, ..Default::default() };
        let runtime = PodRuntime { containers: vec![container(Some(5)), container(Some(7)), container(None)], ..Default::default() };
        assert_eq!(grace_of(&Pod::default(), &runtime), 7);
        let mut deleting = Pod::default();
        deleting.metadata.deletion_grace_period_seconds = Some(1);
        assert_eq!(grace_of(&deleting, &runtime), 1);
    }
}
