//! Tables of the plan: what is done in which situation.

use super::*;
use crate::pod::observe::Sandbox;
use serde_json::json;

const S: i64 = 1_000_000_000;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec})).unwrap()
}

fn sandbox(id: &str, attempt: u32, ready: bool) -> Sandbox {
    Sandbox { id: id.into(), attempt, ready, ips: vec!["10.0.0.1".into()], ..Default::default() }
}

fn obs(pod: &Pod, name: &str, sandbox: &str, state: RunState, exit_code: i32) -> ContainerObs {
    let container = pod.all_containers().find(|c| c.name == name).unwrap();
    ContainerObs {
        id: format!("{name}-{sandbox}"),
        name: name.into(),
        sandbox_id: sandbox.into(),
        state,
        exit_code,
        hash: container_hash(container),
        finished_at: 100 * S,
        ..Default::default()
    }
}

struct Case {
    pod: Pod,
    runtime: PodRuntime,
    probes: ProbeResults,
    backoff: Backoff,
    now: i64,
}

impl Case {
    fn new(pod: Pod, sandboxes: Vec<Sandbox>, containers: Vec<ContainerObs>) -> Self {
        Self {
            pod,
            runtime: PodRuntime { sandboxes, containers },
            probes: ProbeResults::default(),
            backoff: Backoff::new(Duration::from_secs(300)),
            now: 101 * S,
        }
    }

    fn plan(&self) -> PodActions {
        compute_pod_actions(&Input { pod: &self.pod, runtime: &self.runtime, probes: &self.probes, backoff: &self.backoff, now: self.now })
    }
}

fn two() -> Pod {
    pod(json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}))
}

#[test]
fn a_new_pod_gets_a_sandbox_and_all_its_containers() {
    let plan = Case::new(two(), vec![], vec![]).plan();
    assert_eq!((plan.create_sandbox, plan.attempt, plan.to_start), (true, 0, vec![0, 1]));
}

#[test]
fn a_running_pod_is_left_alone() {
    let p = two();
    let c = vec![obs(&p, "a", "s", RunState::Running, 0), obs(&p, "b", "s", RunState::Running, 0)];
    let plan = Case::new(p, vec![sandbox("s", 0, true)], c).plan();
    assert_eq!(plan, PodActions { sandbox_id: Some("s".into()), ..Default::default() });
}

#[test]
fn sandbox_changes() {
    let p = two();
    let running = |s: &str| vec![obs(&p, "a", s, RunState::Running, 0), obs(&p, "b", s, RunState::Running, 0)];
    let no_ip = Sandbox { ips: vec![], ..sandbox("s", 0, true) };
    let host = Sandbox { host_network: true, ..sandbox("s", 0, true) };
    for (what, sandboxes, attempt) in [
        ("dead", vec![sandbox("s", 3, false)], 4),
        ("two ready", vec![sandbox("s", 1, true), sandbox("r", 0, true)], 2),
        ("no address", vec![no_ip], 1),
        ("other network namespace", vec![host], 1),
    ] {
        let plan = Case::new(p.clone(), sandboxes, running("s")).plan();
        assert!(plan.kill_pod && plan.create_sandbox, "{what}");
        assert_eq!((plan.attempt, plan.to_start), (attempt, vec![0, 1]), "{what}");
    }
}

#[test]
fn restart_policies_after_exit() {
    for (policy, code, starts, kills) in [
        ("Always", 0, true, false),
        ("Always", 1, true, false),
        ("OnFailure", 0, false, true),
        ("OnFailure", 1, true, false),
        ("Never", 1, false, true),
    ] {
        let p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]}));
        let c = vec![obs(&p, "a", "s", RunState::Exited, code)];
        let plan = Case::new(p, vec![sandbox("s", 0, true)], c).plan();
        assert_eq!((!plan.to_start.is_empty(), plan.kill_pod), (starts, kills), "{policy} {code}");
        assert!(!plan.create_sandbox);
    }
}

#[test]
fn a_dead_sandbox_is_not_recreated_for_a_pod_that_is_done() {
    for (policy, code, create) in
        [("Never", 0, false), ("Never", 1, false), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Always", 0, true)]
    {
        let p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]}));
        let c = vec![obs(&p, "a", "s", RunState::Exited, code)];
        let plan = Case::new(p, vec![sandbox("s", 0, false)], c).plan();
        assert_eq!((plan.kill_pod, plan.create_sandbox), (true, create), "{policy} {code}");
    }
}

#[test]
fn a_container_rule_can_restart_what_the_policy_would_not() {
    let p = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}));
    for (code, starts) in [(42, 1), (1, 0)] {
        let c = vec![obs(&p, "a", "s", RunState::Exited, code)];
        assert_eq!(Case::new(p.clone(), vec![sandbox("s", 0, true)], c).plan().to_start.len(), starts, "{code}");
    }
}

#[test]
fn changed_and_unhealthy_containers_are_killed_and_started_again() {
    let p = pod(json!({"containers": [
        {"name": "a", "image": "i", "livenessProbe": {"exec": {"command": ["x"]}}, "startupProbe": {"exec": {"command": ["x"]}}},
        {"name": "b", "image": "i"}]}));
    let c = vec![obs(&p, "a", "s", RunState::Running, 0), obs(&p, "b", "s", RunState::Running, 0)];
    let mut case = Case::new(p, vec![sandbox("s", 0, true)], c);
    case.probes.liveness.insert("a-s".into(), false);
    let plan = case.plan();
    assert_eq!((plan.to_kill[0].reason, plan.to_start, plan.kill_pod), (KillReason::Liveness, vec![0], false));
    case.probes.liveness.clear();
    case.probes.startup.insert("a-s".into(), false);
    assert_eq!(case.plan().to_kill[0].reason, KillReason::Startup);
    case.probes.startup.clear();
    case.pod.spec.containers[1].image = "i2".into();
    let plan = case.plan();
    assert_eq!((plan.to_kill[0].reason, plan.to_start), (KillReason::Changed, vec![1]));
    case.pod.spec.restart_policy = "Never".into();
    assert_eq!(case.plan().to_start, vec![1], "a changed container is started whatever the policy");
}

fn with_init() -> Pod {
    pod(json!({
        "initContainers": [{"name": "i1", "image": "i"}, {"name": "side", "image": "i", "restartPolicy": "Always"}, {"name": "i2", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}]}))
}

#[test]
fn init_containers_run_in_order_and_sidecars_keep_running() {
    use RunState::*;
    let p = with_init();
    for (what, containers, init, main) in [
        ("none yet", vec![], vec![0], vec![]),
        ("first runs", vec![("i1", Running, 0)], vec![], vec![]),
        ("first failed", vec![("i1", Exited, 1)], vec![0], vec![]),
        ("first done", vec![("i1", Exited, 0)], vec![1], vec![]),
        ("sidecar runs", vec![("i1", Exited, 0), ("side", Running, 0)], vec![2], vec![]),
        ("sidecar died while the next runs", vec![("i1", Exited, 0), ("side", Exited, 1), ("i2", Running, 0)], vec![1], vec![]),
        ("all done", vec![("i1", Exited, 0), ("side", Running, 0), ("i2", Exited, 0)], vec![], vec![0]),
        ("main runs, sidecar died", vec![("i1", Exited, 0), ("side", Exited, 0), ("i2", Exited, 0), ("a", Running, 0)], vec![1], vec![]),
        ("main died", vec![("side", Running, 0), ("a", Exited, 1)], vec![], vec![0]),
    ] {
        let c = containers.into_iter().map(|(n, s, e)| obs(&p, n, "s", s, e)).collect();
        let plan = Case::new(p.clone(), vec![sandbox("s", 0, true)], c).plan();
        assert_eq!((plan.init_to_start, plan.to_start, plan.kill_pod), (init, main, false), "{what}");
    }
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_back_the_next() {
    let mut p = with_init();
    p.spec.init_containers[1].startup_probe = Some(Default::default());
    let c = vec![obs(&p, "i1", "s", RunState::Exited, 0), obs(&p, "side", "s", RunState::Running, 0)];
    let mut case = Case::new(p, vec![sandbox("s", 0, true)], c);
    assert!(case.plan().init_to_start.is_empty());
    case.probes.startup.insert("side-s".into(), true);
    assert_eq!(case.plan().init_to_start, vec![2]);
    case.probes.startup.insert("side-s".into(), false);
    let plan = case.plan();
    assert_eq!((plan.to_kill.len(), plan.init_to_start), (1, vec![1]));
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let mut p = with_init();
    p.spec.restart_policy = "Never".into();
    let c = vec![obs(&p, "i1", "s", RunState::Exited, 1)];
    let plan = Case::new(p, vec![sandbox("s", 0, true)], c).plan();
    assert!(plan.kill_pod && plan.init_to_start.is_empty() && plan.to_start.is_empty());
}

#[test]
fn a_new_sandbox_initialises_anew() {
    use RunState::*;
    let p = with_init();
    let old = vec![obs(&p, "a", "old", Exited, 1), obs(&p, "i2", "old", Exited, 0), obs(&p, "i1", "old", Exited, 0)];
    let dead = Case::new(p.clone(), vec![sandbox("old", 0, false)], old.clone()).plan();
    assert_eq!((dead.create_sandbox, dead.init_to_start, dead.to_start), (true, vec![0], vec![]));
    let fresh = Case::new(p, vec![sandbox("new", 1, true), sandbox("old", 0, false)], old).plan();
    assert_eq!((fresh.init_to_start, fresh.to_start, fresh.kill_pod), (vec![0], vec![], false));
}

#[test]
fn crash_loops_wait() {
    let p = pod(json!({"containers": [{"name": "a", "image": "i"}]}));
    let c = vec![obs(&p, "a", "s", RunState::Exited, 1)];
    let mut case = Case::new(p, vec![sandbox("s", 0, true)], c);
    assert_eq!(case.plan().to_start, vec![0], "the first restart is immediate");
    let key = backoff_key(&case.pod.spec.containers[0]);
    case.backoff.restarted(&key, 90 * S, 90 * S);
    let plan = case.plan();
    assert!(plan.to_start.is_empty() && !plan.kill_pod);
    assert_eq!(plan.retry_after, Some(Duration::from_secs(9)));
    assert_eq!(plan.waiting[0].message, "back-off 10s restarting failed container=a pod=p_ns(u)");
    case.now = 110 * S;
    assert_eq!(case.plan().to_start, vec![0]);
}

#[test]
fn unknown_and_never_started_containers_are_replaced() {
    let p = two();
    let c = vec![obs(&p, "a", "s", RunState::Unknown, 0), obs(&p, "b", "s", RunState::Created, 0)];
    let plan = Case::new(p, vec![sandbox("s", 0, true)], c).plan();
    assert_eq!((plan.to_kill.len(), plan.to_start), (1, vec![0, 1]));
}
