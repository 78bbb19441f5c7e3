//! Probes: one task per container and kind; results feed the plan and the status.

pub mod check;

use crate::api::Api;
use crate::cri::Cri;
use crate::model::pod::{Container, Pod, Probe};
use crate::pod::observe::{PodRuntime, RunState};
use crate::pod::plan::ProbeResults;
use k8s_client::EventType;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The three kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// Counts successive results until one of the thresholds is reached.
#[derive(Debug, Default)]
pub struct Counter {
    last: Option<bool>,
    run: i32,
}

impl Counter {
    /// Adds a result; a verdict when its threshold is reached.
    pub fn add(&mut self, success: bool, probe: &Probe) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success {
            probe.success_threshold.max(1)
        } else if probe.failure_threshold > 0 {
            probe.failure_threshold
        } else {
            3
        };
        (self.run >= threshold).then_some(success)
    }
}

/// The probes of one pod. Dropping it ends them.
pub struct Probes {
    results: Arc<Mutex<ProbeResults>>,
    tasks: HashMap<(String, Kind), tokio::task::JoinHandle<()>>,
    wake: Arc<Notify>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

impl Probes {
    /// `seed` holds what was known before a restart of the kubelet, so that nothing turns unready because of it.
    pub fn new(seed: ProbeResults, wake: Arc<Notify>) -> Self {
        Self { results: Arc::new(Mutex::new(seed)), tasks: HashMap::new(), wake }
    }

    pub fn results(&self) -> ProbeResults {
        self.results.lock().clone()
    }

    /// Starts probes of new containers and ends those of containers that are gone.
    pub fn update(&mut self, cri: &Cri, api: &Arc<Api>, pod: &Arc<Pod>, runtime: &PodRuntime, pod_ip: &str) {
        let mut alive = HashSet::new();
        for container in pod.all_containers() {
            let Some(observed) = runtime.newest(&container.name).filter(|o| o.state == RunState::Running) else { continue };
            for kind in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
                if kind.of(container).is_none() {
                    continue;
                }
                let key = (observed.id.clone(), kind);
                alive.insert(key.clone());
                if self.tasks.get(&key).is_some_and(|t| !t.is_finished()) || kind == Kind::Startup && self.has_started(&observed.id) {
                    continue;
                }
                let task = Task {
                    kind,
                    cri: cri.clone(),
                    api: api.clone(),
                    pod: pod.clone(),
                    container: container.clone(),
                    id: observed.id.clone(),
                    started_at: observed.started_at,
                    pod_ip: pod_ip.to_owned(),
                    results: self.results.clone(),
                    wake: self.wake.clone(),
                };
                self.tasks.insert(key, tokio::spawn(task.run()));
            }
        }
        self.tasks.retain(|key, task| {
            let keep = alive.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        let known: HashSet<&str> = runtime.containers.iter().map(|c| c.id.as_str()).collect();
        let mut results = self.results.lock();
        results.liveness.retain(|id, _| known.contains(id.as_str()));
        results.readiness.retain(|id, _| known.contains(id.as_str()));
        results.startup.retain(|id, _| known.contains(id.as_str()));
    }

    fn has_started(&self, id: &str) -> bool {
        self.results.lock().startup.get(id) == Some(&true)
    }
}

struct Task {
    kind: Kind,
    cri: Cri,
    api: Arc<Api>,
    pod: Arc<Pod>,
    container: Container,
    id: String,
    started_at: i64,
    pod_ip: String,
    results: Arc<Mutex<ProbeResults>>,
    wake: Arc<Notify>,
}

impl Task {
    async fn run(self) {
        let Some(probe) = self.kind.of(&self.container).cloned() else { return };
        let period = Duration::from_secs(u64::try_from(probe.period_seconds.max(1)).unwrap_or(1));
        let period = if probe.period_seconds == 0 { Duration::from_secs(10) } else { period };
        let age = crate::model::time::now_nanos().saturating_sub(self.started_at);
        let age = Duration::from_nanos(u64::try_from(age).unwrap_or(0));
        let initial = Duration::from_secs(u64::try_from(probe.initial_delay_seconds).unwrap_or(0));
        tokio::time::sleep(initial.saturating_sub(age)).await;
        // Many probes of one machine do not all start in the same moment.
        tokio::time::sleep(period.min(Duration::from_secs(1)).mul_f64(rand::random::<f64>() * 0.5)).await;
        let mut counter = Counter::default();
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Liveness and readiness wait until the container has started up.
            if self.kind != Kind::Startup
                && self.container.startup_probe.is_some()
                && self.results.lock().startup.get(&self.id) != Some(&true)
            {
                continue;
            }
            let outcome = check::run(&self.cri, &self.id, &self.container, &probe, &self.pod_ip).await;
            if let Err(message) = &outcome {
                let text = format!("{} probe failed: {message}", self.kind.name());
                self.api.pod_event(&self.pod, Some(&self.container.name), EventType::Warning, "Unhealthy", text);
            }
            let Some(verdict) = counter.add(outcome.is_ok(), &probe) else { continue };
            let changed = {
                let mut results = self.results.lock();
                let map = match self.kind {
                    Kind::Startup => &mut results.startup,
                    Kind::Liveness => &mut results.liveness,
                    Kind::Readiness => &mut results.readiness,
                };
                map.insert(self.id.clone(), verdict) != Some(verdict)
            };
            if changed {
                self.wake.notify_one();
            }
            // A started container needs no startup probe any more; a failed one is about to be killed.
            if self.kind == Kind::Startup || self.kind == Kind::Liveness && !verdict {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_come_at_the_thresholds() {
        let probe = Probe { success_threshold: 2, failure_threshold: 3, ..Default::default() };
        let mut counter = Counter::default();
        let verdicts: Vec<Option<bool>> =
            [true, true, false, false, true, false, false, false, false].into_iter().map(|r| counter.add(r, &probe)).collect();
        assert_eq!(verdicts, [None, Some(true), None, None, None, None, None, Some(false), Some(false)]);
        let mut default = Counter::default();
        assert_eq!(default.add(true, &Probe::default()), Some(true));
    }
}
