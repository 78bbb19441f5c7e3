//! What is to be done for a pod, as a pure function of its definition and what the runtime has of it.

use super::backoff::Backoff;
use super::hash::container_hash;
use super::observe::{ContainerObs, PodRuntime, RunState};
use crate::model::pod::{Container, Pod, RestartPolicy};
use std::collections::HashMap;
use std::time::Duration;

/// Results of probes by container id. A container without an entry has not been probed yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProbeResults {
    pub liveness: HashMap<String, bool>,
    pub readiness: HashMap<String, bool>,
    pub startup: HashMap<String, bool>,
}

/// What the plan is made from.
pub struct Input<'a> {
    pub pod: &'a Pod,
    pub runtime: &'a PodRuntime,
    pub probes: &'a ProbeResults,
    pub backoff: &'a Backoff,
    /// Wall clock in nanoseconds.
    pub now: i64,
}

/// What is to be done, in this order: kill, create the sandbox, start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodActions {
    /// Stop everything of the pod, sandbox included.
    pub kill_pod: bool,
    pub create_sandbox: bool,
    /// The sandbox to start containers in, when none is to be created.
    pub sandbox_id: Option<String>,
    /// Attempt number of the sandbox to create.
    pub attempt: u32,
    /// Indices into `initContainers`, in order.
    pub init_to_start: Vec<usize>,
    /// Indices into `containers`.
    pub to_start: Vec<usize>,
    pub to_kill: Vec<Kill>,
    /// Containers that are to be started but not yet.
    pub waiting: Vec<Waiting>,
    /// When to plan again because a back-off ends.
    pub retry_after: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub reason: KillReason,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillReason {
    Changed,
    Unknown,
    Liveness,
    Startup,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    pub name: String,
    pub reason: &'static str,
    pub message: String,
}

/// Key of a container's back-off: a changed container starts anew.
pub fn backoff_key(container: &Container) -> String {
    format!("{}/{}", container.name, container_hash(container))
}

/// Plans one step for a pod that is meant to run.
pub fn compute_pod_actions(input: &Input<'_>) -> PodActions {
    let mut actions = plan_without_backoff(input);
    hold_back(input, &mut actions);
    actions
}

fn plan_without_backoff(input: &Input<'_>) -> PodActions {
    let Input { pod, runtime, probes, .. } = input;
    let mut actions = PodActions::default();
    let create = sandbox_change(pod, runtime, &mut actions);
    if create {
        actions.kill_pod = true;
        actions.create_sandbox = true;
        // A pod that never restarts and has run already is not given a second sandbox.
        if pod.restart_policy() == RestartPolicy::Never && actions.attempt != 0 && !runtime.containers.is_empty() {
            actions.create_sandbox = false;
        }
        let to_start: Vec<usize> = (0..pod.spec.containers.len())
            .filter(|i| match runtime.newest(&pod.spec.containers[*i].name) {
                Some(c) if c.state == RunState::Exited => {
                    !(pod.spec.containers[*i].effective_restart_policy(pod) == RestartPolicy::OnFailure && c.exit_code == 0)
                }
                _ => true,
            })
            .collect();
        if to_start.is_empty() {
            actions.create_sandbox = false;
        }
        if actions.create_sandbox {
            if pod.spec.init_containers.is_empty() { actions.to_start = to_start } else { actions.init_to_start = vec![0] }
        }
        return actions;
    }

    let sandbox = actions.sandbox_id.clone().unwrap_or_default();
    let initialized = plan_init(input, &sandbox, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }

    let mut kept = 0;
    for (index, container) in pod.spec.containers.iter().enumerate() {
        let Some(observed) = runtime.newest(&container.name) else {
            actions.to_start.push(index);
            continue;
        };
        match observed.state {
            RunState::Running => {
                match why_kill(container, observed, probes) {
                    None => kept += 1,
                    Some((reason, message)) => {
                        actions.to_kill.push(kill(observed, reason, message));
                        // A probe failure follows the restart policy, a changed definition always restarts.
                        if reason == KillReason::Changed || container.effective_restart_policy(pod) != RestartPolicy::Never {
                            actions.to_start.push(index);
                        }
                    }
                }
            }
            RunState::Created => actions.to_start.push(index),
            RunState::Unknown => {
                let message = format!("Container {} is in unknown state, try killing it before restart", container.name);
                actions.to_kill.push(kill(observed, KillReason::Unknown, message));
                actions.to_start.push(index);
            }
            RunState::Exited if container.restarts_after(pod, observed.exit_code) => actions.to_start.push(index),
            RunState::Exited => {}
        }
    }
    if kept == 0 && actions.to_start.is_empty() {
        actions.kill_pod = true;
        actions.init_to_start.clear();
    }
    actions
}

/// Decides about the sandbox; fills in its id and the next attempt. True when a new one is needed.
fn sandbox_change(pod: &Pod, runtime: &PodRuntime, actions: &mut PodActions) -> bool {
    let Some(newest) = runtime.sandbox() else { return true };
    let ready = runtime.sandboxes.iter().filter(|s| s.ready).count();
    actions.attempt = newest.attempt;
    actions.sandbox_id = Some(newest.id.clone());
    let usable =
        ready == 1 && newest.ready && newest.host_network == pod.spec.host_network && (newest.host_network || !newest.ips.is_empty());
    if !usable {
        actions.attempt = newest.attempt + 1;
    }
    !usable
}

/// Plans the init containers of the current sandbox. True when the regular containers may run.
///
/// Only containers of the current sandbox count: a new sandbox initialises anew.
fn plan_init(input: &Input<'_>, sandbox: &str, actions: &mut PodActions) -> bool {
    let Input { pod, runtime, probes, .. } = input;
    let init = &pod.spec.init_containers;
    if init.is_empty() {
        return true;
    }
    let begun = |c: &Container| runtime.newest_in(&c.name, sandbox).is_some_and(|o| o.state != RunState::Unknown);
    let was_initialized = pod.spec.containers.iter().any(begun);
    // The furthest init container that has been created. Those before it are done; sidecars among them must be kept running.
    let furthest = (0..init.len()).rev().find(|i| runtime.newest_in(&init[*i].name, sandbox).is_some());
    let mut initialized = was_initialized;
    for (index, container) in init.iter().enumerate() {
        let observed = runtime.newest_in(&container.name, sandbox);
        let passed = was_initialized || furthest.is_some_and(|f| index < f);
        if passed && !container.is_sidecar() {
            continue;
        }
        let is_frontier = !was_initialized && furthest == Some(index);
        let Some(observed) = observed else {
            // A sidecar whose record was lost is started again; what lies beyond the frontier waits.
            if passed {
                actions.init_to_start.push(index);
            }
            continue;
        };
        let mut advance = false;
        match observed.state {
            RunState::Created if container.is_sidecar() && passed => actions.init_to_start.push(index),
            // Created but never started, as after a crash in between: make a new one.
            RunState::Created => actions.init_to_start.push(index),
            RunState::Unknown => {
                let message = format!("Init container {} is in unknown state, try killing it before restart", container.name);
                actions.to_kill.push(kill(observed, KillReason::Unknown, message));
                actions.init_to_start.push(index);
            }
            RunState::Running if container.is_sidecar() => match why_kill(container, observed, probes) {
                Some((reason, message)) => {
                    actions.to_kill.push(kill(observed, reason, message));
                    actions.init_to_start.push(index);
                }
                None => advance = container.startup_probe.is_none() || probes.startup.get(&observed.id) == Some(&true),
            },
            RunState::Running => {}
            RunState::Exited if container.is_sidecar() => actions.init_to_start.push(index),
            RunState::Exited if observed.exit_code == 0 => advance = true,
            RunState::Exited if container.restarts_after_init_failure(pod) => actions.init_to_start.push(index),
            RunState::Exited => {
                actions.kill_pod = true;
                actions.init_to_start.clear();
                return false;
            }
        }
        if is_frontier && advance {
            if index + 1 == init.len() {
                initialized = true;
            } else {
                actions.init_to_start.push(index + 1);
            }
        }
    }
    if furthest.is_none() && !was_initialized {
        actions.init_to_start = vec![0];
    }
    initialized
}

impl Container {
    /// Whether a failed init container is tried again: Always means "on failure" for these.
    fn restarts_after_init_failure(&self, pod: &Pod) -> bool {
        self.effective_restart_policy(pod) != RestartPolicy::Never
    }
}

/// Why a running container must be killed, if it must.
fn why_kill(container: &Container, observed: &ContainerObs, probes: &ProbeResults) -> Option<(KillReason, String)> {
    let name = &container.name;
    if !observed.hash.is_empty() && observed.hash != container_hash(container) {
        return Some((KillReason::Changed, format!("Container {name} definition changed, will be restarted")));
    }
    if container.liveness_probe.is_some() && probes.liveness.get(&observed.id) == Some(&false) {
        return Some((KillReason::Liveness, format!("Container {name} failed liveness probe, will be restarted")));
    }
    if container.startup_probe.is_some() && probes.startup.get(&observed.id) == Some(&false) {
        return Some((KillReason::Startup, format!("Container {name} failed startup probe, will be restarted")));
    }
    None
}

fn kill(observed: &ContainerObs, reason: KillReason, message: String) -> Kill {
    Kill { id: observed.id.clone(), name: observed.name.clone(), reason, message }
}

/// Takes out what must wait for its back-off.
fn hold_back(input: &Input<'_>, actions: &mut PodActions) {
    let Input { pod, runtime, backoff, now, .. } = input;
    let mut waiting = Vec::new();
    let mut retry: Option<Duration> = None;
    let mut hold = |container: &Container| {
        let Some(last) = runtime.newest(&container.name).filter(|c| c.state == RunState::Exited) else { return false };
        let Some((delay, remaining)) = backoff.remaining(&backoff_key(container), last.finished_at, *now) else { return false };
        waiting.push(Waiting {
            name: container.name.clone(),
            reason: "CrashLoopBackOff",
            message: format!(
                "back-off {} restarting failed container={} pod={}_{}({})",
                go_seconds(delay),
                container.name,
                pod.metadata.name,
                pod.metadata.namespace,
                pod.metadata.uid
            ),
        });
        retry = Some(retry.map_or(remaining, |r| r.min(remaining)));
        true
    };
    actions.init_to_start.retain(|i| !hold(&pod.spec.init_containers[*i]));
    actions.to_start.retain(|i| !hold(&pod.spec.containers[*i]));
    actions.waiting = waiting;
    actions.retry_after = retry;
}

/// Whole seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn go_seconds(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
