//! Tables of the status: phases, conditions, container states.

use super::*;
use crate::model::time::from_seconds;
use crate::pod::observe::Sandbox;
use serde_json::json;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3}, "spec": spec})).unwrap()
}

fn obs(name: &str, state: RunState, exit_code: i32) -> ContainerObs {
    ContainerObs { id: format!("id-{name}"), name: name.into(), sandbox_id: "s".into(), state, exit_code, ..Default::default() }
}

fn compute(pod: &Pod, containers: Vec<ContainerObs>, waiting: &[Waiting], terminal: bool, previous: &PodStatus) -> PodStatus {
    let sandbox = Sandbox { id: "s".into(), ready: true, ips: vec!["10.244.0.5".into()], ..Default::default() };
    compute_status(&Input {
        pod,
        runtime: &PodRuntime { sandboxes: vec![sandbox], containers },
        probes: &ProbeResults::default(),
        waiting,
        previous,
        host_ips: &["10.5.0.11".to_owned()],
        now: from_seconds(1000),
        terminal,
        failure: None,
    })
}

#[test]
fn phases() {
    use RunState::*;
    let two = |policy: &str| pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
    for (what, policy, a, b, terminal, expected) in [
        ("nothing yet", "Always", None, None, false, "Pending"),
        ("one created", "Always", Some((Running, 0)), None, false, "Pending"),
        ("both run", "Always", Some((Running, 0)), Some((Running, 0)), false, "Running"),
        ("one ended", "Always", Some((Running, 0)), Some((Exited, 1)), false, "Running"),
        ("all ended, always", "Always", Some((Exited, 0)), Some((Exited, 0)), false, "Running"),
        ("all succeeded", "OnFailure", Some((Exited, 0)), Some((Exited, 0)), false, "Succeeded"),
        ("one failed, retried", "OnFailure", Some((Exited, 0)), Some((Exited, 1)), false, "Running"),
        ("one failed, final", "Never", Some((Exited, 0)), Some((Exited, 1)), false, "Failed"),
        ("deleted while running", "Always", Some((Exited, 137)), Some((Exited, 0)), true, "Failed"),
        ("deleted, clean exit", "Always", Some((Exited, 0)), Some((Exited, 0)), true, "Succeeded"),
    ] {
        let p = two(policy);
        let list = [("a", a), ("b", b)].into_iter().filter_map(|(n, s)| s.map(|(s, e)| obs(n, s, e))).collect();
        assert_eq!(compute(&p, list, &[], terminal, &PodStatus::default()).phase, expected, "{what}");
    }
}

#[test]
fn init_containers_hold_the_phase_and_the_condition() {
    let p = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let running = compute(&p, vec![obs("i", RunState::Running, 0)], &[], false, &PodStatus::default());
    assert_eq!((running.phase.as_str(), running.condition("Initialized").unwrap().status.as_str()), ("Pending", "False"));
    assert_eq!(running.container_statuses[0].state.waiting.as_ref().unwrap().reason, "PodInitializing");
    let failed = compute(&p, vec![obs("i", RunState::Exited, 1)], &[], false, &PodStatus::default());
    assert_eq!(failed.phase, "Failed");
    let done = compute(&p, vec![obs("a", RunState::Running, 0), obs("i", RunState::Exited, 0)], &[], false, &PodStatus::default());
    assert_eq!((done.phase.as_str(), done.condition("Initialized").unwrap().status.as_str()), ("Running", "True"));
}

#[test]
fn a_crash_loop_shows_the_wait_and_the_last_end() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let waiting = [Waiting { name: "a".into(), reason: "CrashLoopBackOff", message: "back-off".into() }];
    let s = compute(&p, vec![obs("a", RunState::Exited, 2)], &waiting, false, &PodStatus::default());
    let c = &s.container_statuses[0];
    assert_eq!(c.state.waiting.as_ref().unwrap().reason, "CrashLoopBackOff");
    assert_eq!(c.last_state.terminated.as_ref().unwrap().exit_code, 2);
    assert_eq!((s.phase.as_str(), s.condition("Ready").unwrap().message.as_str()), ("Running", "containers with unready status: [a]"));
}

#[test]
fn readiness_follows_the_probe_and_times_change_only_with_the_status() {
    let mut p = pod(json!({"containers": [{"name": "a"}]}));
    let ready = compute(&p, vec![obs("a", RunState::Running, 0)], &[], false, &PodStatus::default());
    assert_eq!(ready.condition("Ready").unwrap().status, "True");
    assert_eq!((ready.pod_ip.as_str(), ready.host_ip.as_str(), ready.observed_generation), ("10.244.0.5", "10.5.0.11", 3));
    let mut previous = ready.clone();
    for c in &mut previous.conditions {
        c.last_transition_time = Some(from_seconds(1));
    }
    p.spec.containers[0].readiness_probe = Some(Default::default());
    let unready = compute(&p, vec![obs("a", RunState::Running, 0)], &[], false, &previous);
    assert_eq!(unready.condition("Ready").unwrap().last_transition_time, Some(from_seconds(1000)));
    assert_eq!(unready.condition("PodScheduled").unwrap().last_transition_time, Some(from_seconds(1)));
}

#[test]
fn a_lost_container_counts_as_a_restart() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let before = compute(&p, vec![obs("a", RunState::Running, 0)], &[], false, &PodStatus::default());
    let after = compute(&p, vec![], &[], false, &before);
    let c = &after.container_statuses[0];
    assert_eq!((c.restart_count, c.last_state.terminated.as_ref().unwrap().exit_code), (1, 137));
}

#[test]
fn an_ended_pod_stays_ended() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let previous = PodStatus { phase: "Failed".into(), reason: "DeadlineExceeded".into(), ..Default::default() };
    let s = compute(&p, vec![obs("a", RunState::Running, 0)], &[], false, &previous);
    assert_eq!((s.phase.as_str(), s.reason.as_str()), ("Failed", "DeadlineExceeded"));
}
