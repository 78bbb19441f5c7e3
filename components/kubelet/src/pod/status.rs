//! What the API is told about a pod: phase, conditions and container statuses, as a pure function of definition and runtime.

use super::observe::{ContainerObs, PodRuntime, RunState, time_of};
use super::plan::{ProbeResults, Waiting};
use super::qos;
use crate::model::pod::{Container, Pod, RestartPolicy};
use crate::model::status::{ContainerState, ContainerStatus, Ip, PodCondition, PodStatus, StateRunning, StateTerminated, StateWaiting};
use crate::model::time::Time;

/// What the status is made from.
pub struct Input<'a> {
    pub pod: &'a Pod,
    pub runtime: &'a PodRuntime,
    pub probes: &'a ProbeResults,
    /// Why containers are not running yet.
    pub waiting: &'a [Waiting],
    /// The status last computed or read; times of unchanged conditions are kept.
    pub previous: &'a PodStatus,
    pub host_ips: &'a [String],
    pub now: Time,
    /// The pod has ended for good: nothing of it runs and nothing will be started.
    pub terminal: bool,
    /// A verdict that overrides the phase: (reason, message), as for an exceeded deadline.
    pub failure: Option<(&'a str, &'a str)>,
}

/// Computes the status.
pub fn compute_status(input: &Input<'_>) -> PodStatus {
    let Input { pod, runtime, previous, .. } = input;
    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        start_time: previous.start_time.or(Some(input.now)),
        qos_class: qos::class_of(pod).as_str().into(),
        ..Default::default()
    };
    status.init_container_statuses =
        pod.spec.init_containers.iter().map(|c| container_status(input, c, &previous.init_container_statuses, true)).collect();
    status.container_statuses =
        pod.spec.containers.iter().map(|c| container_status(input, c, &previous.container_statuses, false)).collect();
    set_readiness(input, &mut status);
    status.phase = phase(input, &status).into();
    if let Some((reason, message)) = input.failure {
        status.phase = "Failed".into();
        status.reason = reason.into();
        status.message = message.into();
    }
    // A pod that ended never comes back to life.
    if previous.is_terminal() && !status.is_terminal() {
        status.phase.clone_from(&previous.phase);
        status.reason.clone_from(&previous.reason);
        status.message.clone_from(&previous.message);
    }
    status.host_ips = input.host_ips.iter().map(|ip| Ip { ip: ip.clone() }).collect();
    status.host_ip = input.host_ips.first().cloned().unwrap_or_default();
    let ips: Vec<String> = if pod.spec.host_network {
        // A pod on the host's network has the host's addresses once it was accepted.
        input.host_ips.to_vec()
    } else if runtime.ips().is_empty() {
        previous.pod_ips.iter().map(|i| i.ip.clone()).collect()
    } else {
        runtime.ips().to_vec()
    };
    status.pod_ip = ips.first().cloned().unwrap_or_default();
    status.pod_ips = ips.into_iter().map(|ip| Ip { ip }).collect();
    conditions(input, &mut status);
    status
}

fn terminated(observed: &ContainerObs) -> StateTerminated {
    let reason = match (observed.reason.as_str(), observed.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    StateTerminated {
        exit_code: observed.exit_code,
        reason: reason.into(),
        message: observed.message.clone(),
        started_at: time_of(observed.started_at),
        finished_at: time_of(observed.finished_at),
        container_id: container_id(&observed.id),
    }
}

/// `containerd://<id>`.
pub fn container_id(id: &str) -> String {
    format!("containerd://{id}")
}

fn container_status(input: &Input<'_>, container: &Container, previous: &[ContainerStatus], is_init: bool) -> ContainerStatus {
    let Input { pod, runtime, waiting, .. } = input;
    let known: Vec<&ContainerObs> = runtime.containers.iter().filter(|c| c.name == container.name).collect();
    let old = previous.iter().find(|s| s.name == container.name);
    let mut status =
        ContainerStatus { name: container.name.clone(), image: container.image.clone(), started: Some(false), ..Default::default() };
    if !container.resources.limits.is_empty() || !container.resources.requests.is_empty() {
        status.resources = Some(container.resources.clone());
    }
    let Some(newest) = known.first() else {
        // Nothing in the runtime: never created, or its record is gone.
        if let Some(old) = old {
            status.restart_count = old.restart_count;
            status.last_state = old.last_state.clone();
            status.image_id.clone_from(&old.image_id);
            status.container_id.clone_from(&old.container_id);
            if old.state.terminated.is_some() {
                status.state = old.state.clone();
                return status;
            }
            if let Some(running) = &old.state.running {
                let lost = StateTerminated {
                    exit_code: 137,
                    reason: "ContainerStatusUnknown".into(),
                    message: "The container could not be located when the pod was terminated".into(),
                    started_at: running.started_at,
                    ..Default::default()
                };
                if input.terminal {
                    status.state.terminated = Some(lost);
                    return status;
                }
                status.last_state.terminated = Some(lost);
                status.restart_count += 1;
            }
        }
        let default = if !is_init && !pod.spec.init_containers.is_empty()
            || is_init && pod.spec.init_containers.first().is_some_and(|f| f.name != container.name)
        {
            "PodInitializing"
        } else {
            "ContainerCreating"
        };
        status.state.waiting = Some(waiting_state(waiting, &container.name, default));
        return status;
    };
    status.restart_count = i32::try_from(newest.restart_count).unwrap_or(i32::MAX).max(old.map_or(0, |o| o.restart_count));
    status.container_id = container_id(&newest.id);
    if !newest.image.is_empty() {
        status.image.clone_from(&newest.image);
    }
    status.image_id.clone_from(&newest.image_ref);
    let last_ended = known.iter().skip(1).find(|c| c.state == RunState::Exited);
    let last_state = |observed: Option<&&ContainerObs>| match observed {
        Some(c) => ContainerState { terminated: Some(terminated(c)), ..Default::default() },
        None => old.map(|o| o.last_state.clone()).unwrap_or_default(),
    };
    match newest.state {
        RunState::Running => {
            status.state.running = Some(StateRunning { started_at: time_of(newest.started_at) });
            status.last_state = last_state(last_ended);
            status.started = Some(is_started(input.probes, container, newest));
        }
        RunState::Exited => {
            let will_wait = waiting.iter().any(|w| w.name == container.name);
            if will_wait && !input.terminal {
                status.state.waiting = Some(waiting_state(waiting, &container.name, "CrashLoopBackOff"));
                status.last_state = last_state(Some(newest));
            } else {
                status.state.terminated = Some(terminated(newest));
                status.last_state = last_state(last_ended);
            }
        }
        RunState::Created | RunState::Unknown => {
            status.state.waiting = Some(waiting_state(waiting, &container.name, "ContainerCreating"));
            status.last_state = last_state(last_ended);
        }
    }
    status
}

fn waiting_state(waiting: &[Waiting], name: &str, default: &str) -> StateWaiting {
    match waiting.iter().find(|w| w.name == name) {
        Some(w) => StateWaiting { reason: w.reason.into(), message: w.message.clone() },
        None => StateWaiting { reason: default.into(), ..Default::default() },
    }
}

fn is_started(probes: &ProbeResults, container: &Container, observed: &ContainerObs) -> bool {
    container.startup_probe.is_none() || probes.startup.get(&observed.id) == Some(&true)
}

fn set_readiness(input: &Input<'_>, status: &mut PodStatus) {
    let Input { pod, runtime, probes, .. } = input;
    let ready_of = |container: &Container, status: &ContainerStatus| {
        let Some(observed) = runtime.newest(&container.name) else { return false };
        status.state.running.is_some()
            && status.started == Some(true)
            && (container.readiness_probe.is_none() || probes.readiness.get(&observed.id) == Some(&true))
    };
    for (container, status) in pod.spec.containers.iter().zip(&mut status.container_statuses) {
        status.ready = ready_of(container, status);
    }
    for (container, status) in pod.spec.init_containers.iter().zip(&mut status.init_container_statuses) {
        status.ready = if container.is_sidecar() {
            ready_of(container, status)
        } else {
            status.state.terminated.as_ref().is_some_and(|t| t.exit_code == 0)
        };
    }
}

/// Whether the pod's regular containers have begun to run at some time.
fn has_begun(status: &PodStatus) -> bool {
    status.container_statuses.iter().any(|s| s.state.running.is_some() || s.state.terminated.is_some() || s.last_state.terminated.is_some())
}

fn phase(input: &Input<'_>, status: &PodStatus) -> &'static str {
    let pod = input.pod;
    let (mut pending_init, mut failed_init) = (0, 0);
    for (container, s) in pod.spec.init_containers.iter().zip(&status.init_container_statuses) {
        if container.is_sidecar() {
            if s.started != Some(true) && s.state.terminated.is_none() {
                pending_init += 1;
            }
            continue;
        }
        match (&s.state.terminated, &s.last_state.terminated) {
            (Some(t), _) if t.exit_code != 0 => failed_init += 1,
            (Some(_), _) => {}
            (None, Some(t)) if s.state.waiting.is_some() && t.exit_code != 0 => failed_init += 1,
            (None, _) => pending_init += 1,
        }
    }
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for s in &status.container_statuses {
        if s.state.running.is_some() {
            running += 1;
        } else if let Some(t) = &s.state.terminated {
            stopped += 1;
            succeeded += i32::from(t.exit_code == 0);
        } else if s.last_state.terminated.is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    if failed_init > 0 && pod.restart_policy() == RestartPolicy::Never {
        return "Failed";
    }
    if input.terminal && !pod.is_static() {
        return if stopped == succeeded && waiting == 0 && failed_init == 0 && stopped > 0 { "Succeeded" } else { "Failed" };
    }
    if (pending_init > 0 || failed_init > 0) && !has_begun(status) {
        return "Pending";
    }
    if waiting > 0 {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    // Everything has ended; whether that is final is up to the restart policy.
    let will_restart = pod.spec.containers.iter().zip(&status.container_statuses).any(|(c, s)| {
        let code = s.state.terminated.as_ref().or(s.last_state.terminated.as_ref()).map_or(0, |t| t.exit_code);
        c.restarts_after(pod, code)
    });
    match (will_restart, stopped == succeeded) {
        (true, _) => "Running",
        (false, true) => "Succeeded",
        (false, false) => "Failed",
    }
}

fn conditions(input: &Input<'_>, status: &mut PodStatus) {
    let Input { pod, runtime, previous, now, .. } = input;
    let mut list: Vec<PodCondition> = Vec::new();
    let generation = pod.metadata.generation;
    let mut push = |kind: &str, ok: bool, reason: &str, message: String| {
        let value = if ok { "True" } else { "False" };
        let transition = previous
            .condition(kind)
            .filter(|c| c.status == value && c.last_transition_time.is_some())
            .map_or(Some(*now), |c| c.last_transition_time);
        list.push(PodCondition {
            r#type: kind.into(),
            observed_generation: generation,
            status: value.into(),
            last_transition_time: transition,
            reason: reason.into(),
            message,
            ..Default::default()
        });
    };
    let sandbox_ready = runtime.sandbox().is_some_and(|s| s.ready && (s.host_network || !s.ips.is_empty()));
    push("PodReadyToStartContainers", sandbox_ready, "", String::new());

    let incomplete: Vec<&str> = pod
        .spec
        .init_containers
        .iter()
        .zip(&status.init_container_statuses)
        .filter(|(c, s)| if c.is_sidecar() { s.started != Some(true) } else { !s.ready })
        .map(|(_, s)| s.name.as_str())
        .collect();
    let completed = status.phase == "Succeeded";
    let failed = status.phase == "Failed";
    if completed {
        push("Initialized", true, "PodCompleted", String::new());
    } else if incomplete.is_empty() || has_begun(status) {
        push("Initialized", true, "", String::new());
    } else {
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        push("Initialized", false, "ContainersNotInitialized", message);
    }

    let unready: Vec<&str> = pod
        .spec
        .init_containers
        .iter()
        .zip(&status.init_container_statuses)
        .filter(|(c, _)| c.is_sidecar())
        .map(|(_, s)| s)
        .chain(&status.container_statuses)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    let unknown: Vec<&str> = pod
        .spec
        .readiness_gates
        .iter()
        .map(|gate| gate.condition_type.as_str())
        .filter(|gate| pod.status.condition(gate).is_none_or(|c| c.status != "True"))
        .collect();
    if completed {
        push("Ready", false, "PodCompleted", String::new());
        push("ContainersReady", false, "PodCompleted", String::new());
    } else if failed {
        push("Ready", false, "PodFailed", String::new());
        push("ContainersReady", false, "PodFailed", String::new());
    } else if !unready.is_empty() {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        push("Ready", false, "ContainersNotReady", message.clone());
        push("ContainersReady", false, "ContainersNotReady", message);
    } else {
        if unknown.is_empty() {
            push("Ready", true, "", String::new());
        } else {
            let missing: Vec<String> = unknown
                .iter()
                .map(|g| format!("corresponding condition of pod readiness gate \"{g}\" does not exist or is not True."))
                .collect();
            push("Ready", false, "ReadinessGatesNotReady", missing.join(", "));
        }
        push("ContainersReady", true, "", String::new());
    }
    push("PodScheduled", true, "", String::new());
    status.conditions = list;
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
