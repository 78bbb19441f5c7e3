//! Scenarios against the real table, with a clock that the test moves.

use proptest::prelude::*;

use super::*;
use crate::services::TABLE;

const LOGD: usize = 0;
const MACHINED: usize = 1;
const CONTAINERD: usize = 2;
const KUBELET: usize = 3;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn args(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn spawn(service: usize, words: &[&str]) -> Action {
    Action::Spawn { service, args: args(words), env: Vec::new() }
}

fn state(supervisor: &Supervisor, service: usize) -> ServiceState {
    supervisor.statuses()[service].state
}

/// logd runs as 10 and machined as 11.
fn booted() -> Supervisor {
    let mut supervisor = Supervisor::new(TABLE, secs(0));
    assert_eq!(supervisor.due(secs(0), |_| true), [spawn(LOGD, &[]), spawn(MACHINED, &[])]);
    supervisor.spawned(LOGD, Ok(10), secs(0));
    supervisor.spawned(MACHINED, Ok(11), secs(0));
    assert_eq!(supervisor.due(secs(0), |_| true), []);
    supervisor
}

#[test]
fn only_the_services_of_boot_start_by_themselves() {
    let supervisor = booted();
    let running: Vec<_> = supervisor.statuses().into_iter().filter(|s| s.state == ServiceState::Running).map(|s| s.name).collect();
    assert_eq!(running, ["logd", "machined"]);
}

#[test]
fn the_same_start_again_changes_nothing_and_another_restarts() {
    let mut supervisor = booted();
    assert_eq!(supervisor.start("containerd", args(&["-c", "a"]), Vec::new(), secs(1)), Ok(vec![]));
    assert_eq!(supervisor.due(secs(1), |_| true), [spawn(CONTAINERD, &["-c", "a"])]);
    supervisor.spawned(CONTAINERD, Ok(20), secs(1));

    assert_eq!(supervisor.start("containerd", args(&["-c", "a"]), Vec::new(), secs(2)), Ok(vec![]));
    assert_eq!(supervisor.due(secs(2), |_| true), []);

    let term = Action::Terminate { service: CONTAINERD, pid: 20 };
    assert_eq!(supervisor.start("containerd", args(&["-c", "b"]), Vec::new(), secs(3)), Ok(vec![term]));
    assert_eq!(supervisor.due(secs(3), |_| true), []);
    let (def, leftovers) = supervisor.exited(20, Exit::Code(0), secs(4)).unwrap();
    assert_eq!((def.name, leftovers), ("containerd", vec![]), "the shims must live");
    assert_eq!(supervisor.due(secs(4), |_| true), [spawn(CONTAINERD, &["-c", "b"])]);
    assert_eq!(supervisor.statuses()[CONTAINERD].restarts, 0, "an ordered restart is no failure");
}

#[test]
fn a_dependent_waits_until_the_dependency_is_ready_and_outlives_its_restart() {
    let mut supervisor = booted();
    supervisor.start("kubelet", args(&["x"]), Vec::new(), secs(1)).unwrap();
    assert_eq!(supervisor.due(secs(1), |_| true), []);
    assert_eq!(supervisor.statuses()[KUBELET].detail, "waits for containerd");

    supervisor.start("containerd", Vec::new(), Vec::new(), secs(2)).unwrap();
    supervisor.due(secs(2), |_| false);
    supervisor.spawned(CONTAINERD, Ok(20), secs(2));
    assert_eq!(supervisor.due(secs(2), |def| def.name != "containerd"), [], "its socket is not there");
    assert_eq!(supervisor.due(secs(3), |_| true), [spawn(KUBELET, &["x"])]);
    supervisor.spawned(KUBELET, Ok(21), secs(3));

    supervisor.exited(20, Exit::Signal(9), secs(4)).unwrap();
    assert_eq!(state(&supervisor, CONTAINERD), ServiceState::BackOff);
    assert_eq!(state(&supervisor, KUBELET), ServiceState::Running);
}

#[test]
fn the_back_off_doubles_up_to_a_minute_and_a_healthy_run_resets_it() {
    let mut supervisor = booted();
    let mut now = secs(0);
    let mut waits = Vec::new();
    for pid in 100..109 {
        supervisor.exited(if pid == 100 { 11 } else { pid - 1 }, Exit::Code(1), now).unwrap();
        let until = supervisor.next_due().unwrap();
        waits.push((until - now).as_secs());
        assert_eq!(supervisor.due(until - Duration::from_millis(1), |_| true), []);
        now = until;
        assert_eq!(supervisor.due(now, |_| true), [spawn(MACHINED, &[])]);
        supervisor.spawned(MACHINED, Ok(pid), now);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    assert_eq!(supervisor.statuses()[MACHINED].restarts, 9);

    now += HEALTHY_RUN;
    let (_, leftovers) = supervisor.exited(108, Exit::Signal(11), now).unwrap();
    assert_eq!(leftovers, [Action::KillLeftovers { service: MACHINED }]);
    assert_eq!(supervisor.next_due(), Some(now + secs(1)));
    assert_eq!(supervisor.statuses()[MACHINED].last_exit, Some(Exit::Signal(11)));
}

#[test]
fn a_program_that_cannot_be_executed_backs_off_and_says_why() {
    let mut supervisor = Supervisor::new(TABLE, secs(0));
    supervisor.due(secs(0), |_| true);
    supervisor.spawned(LOGD, Err("exec: no such file".into()), secs(0));
    let status = &supervisor.statuses()[LOGD];
    assert_eq!(
        (status.state, status.last_exit, status.detail.as_str()),
        (ServiceState::BackOff, Some(Exit::NotStarted), "exec: no such file")
    );
    assert!(supervisor.due(secs(1), |_| true).contains(&spawn(LOGD, &[])));
}

#[test]
fn a_service_that_ignores_term_is_killed_once_when_its_time_is_over() {
    let mut supervisor = booted();
    assert_eq!(supervisor.stop("machined", secs(5)), Ok(vec![Action::Terminate { service: MACHINED, pid: 11 }]));
    assert_eq!(supervisor.stop("machined", secs(6)), Ok(vec![]));
    assert_eq!(supervisor.due(secs(14), |_| true), []);
    assert_eq!(supervisor.due(secs(15), |_| true), [Action::Kill { service: MACHINED, pid: 11 }]);
    assert_eq!(supervisor.due(secs(16), |_| true), []);
    supervisor.exited(11, Exit::Signal(9), secs(16)).unwrap();
    assert_eq!(state(&supervisor, MACHINED), ServiceState::Stopped);
    assert_eq!(supervisor.due(secs(100), |_| true), []);

    assert_eq!(supervisor.restart("machined", secs(101)), Ok(vec![]));
    assert_eq!(supervisor.due(secs(101), |_| true), [spawn(MACHINED, &[])]);
}

#[test]
fn a_start_while_stopping_runs_it_again_with_the_new_arguments() {
    let mut supervisor = booted();
    supervisor.stop("machined", secs(1)).unwrap();
    assert_eq!(supervisor.start("machined", args(&["-v"]), Vec::new(), secs(2)), Ok(vec![]));
    supervisor.exited(11, Exit::Code(0), secs(3)).unwrap();
    assert_eq!(supervisor.due(secs(3), |_| true), [spawn(MACHINED, &["-v"])]);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut supervisor = booted();
    assert_eq!(supervisor.start("sshd", Vec::new(), Vec::new(), secs(1)), Err(Refusal::Unknown("sshd".into())));
    assert_eq!(supervisor.stop("", secs(1)), Err(Refusal::Unknown(String::new())));
    assert_eq!(supervisor.restart("kubelet", secs(1)), Err(Refusal::NotStarted("kubelet".into())));
    assert!(supervisor.exited(4711, Exit::Code(0), secs(1)).is_none());
}

#[test]
fn nothing_starts_during_a_shutdown() {
    let mut supervisor = booted();
    supervisor.begin_shutdown();
    supervisor.exited(11, Exit::Code(1), secs(1)).unwrap();
    assert_eq!(supervisor.due(secs(100), |_| true), []);
    assert_eq!(supervisor.start("kubelet", Vec::new(), Vec::new(), secs(2)), Err(Refusal::ShuttingDown));
    assert_eq!(supervisor.restart("logd", secs(2)), Err(Refusal::ShuttingDown));
    assert_eq!(supervisor.stop("logd", secs(2)), Ok(vec![Action::Terminate { service: LOGD, pid: 10 }]));
}

#[derive(Debug, Clone)]
enum Event {
    Start(usize, u8),
    Stop(usize),
    Restart(usize),
    Exit(usize),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let service = 0..TABLE.len();
    prop::collection::vec(
        prop_oneof![
            (service.clone(), 0u8..2).prop_map(|(s, a)| Event::Start(s, a)),
            service.clone().prop_map(Event::Stop),
            service.clone().prop_map(Event::Restart),
            service.prop_map(Event::Exit),
            (0u64..70).prop_map(Event::Wait),
        ],
        0..60,
    )
}

proptest! {
    #[test]
    fn no_history_runs_a_service_twice_or_forgets_one_that_is_wanted(history in events()) {
        let mut supervisor = Supervisor::new(TABLE, secs(0));
        let mut alive: Vec<Option<i32>> = vec![None; TABLE.len()];
        let mut wanted: Vec<bool> = TABLE.iter().map(|def| def.at_boot).collect();
        let mut ever = wanted.clone();
        let mut now = secs(0);
        let mut next_pid = 100;
        let idle = [Event::Wait(70), Event::Wait(70), Event::Wait(70)];
        for event in history.iter().chain(&idle) {
            match event {
                Event::Start(s, a) => {
                    supervisor.start(TABLE[*s].name, vec![a.to_string()], Vec::new(), now).unwrap();
                    wanted[*s] = true;
                    ever[*s] = true;
                }
                Event::Stop(s) => {
                    supervisor.stop(TABLE[*s].name, now).unwrap();
                    wanted[*s] = false;
                }
                Event::Restart(s) => {
                    prop_assert_eq!(supervisor.restart(TABLE[*s].name, now).is_ok(), ever[*s]);
                    wanted[*s] |= ever[*s];
                }
                Event::Exit(s) => {
                    if let Some(pid) = alive[*s].take() {
                        prop_assert!(supervisor.exited(pid, Exit::Code(0), now).is_some());
                    }
                }
                Event::Wait(seconds) => now += secs(*seconds),
            }
            for action in supervisor.due(now, |_| true) {
                match action {
                    Action::Spawn { service, .. } => {
                        prop_assert!(alive[service].is_none(), "{} spawned twice", TABLE[service].name);
                        prop_assert!(wanted[service], "{} spawned unwanted", TABLE[service].name);
                        next_pid += 1;
                        alive[service] = Some(next_pid);
                        supervisor.spawned(service, Ok(next_pid), now);
                    }
                    Action::Kill { service, pid } => {
                        prop_assert_eq!(alive[service].take(), Some(pid));
                        supervisor.exited(pid, Exit::Signal(9), now);
                    }
                    _ => {}
                }
            }
        }
        for (service, def) in TABLE.iter().enumerate() {
            let dependencies_wanted = def.after.iter().all(|name| wanted[TABLE.iter().position(|d| d.name == *name).unwrap()]);
            if !wanted[service] {
                prop_assert!(alive[service].is_none(), "{} still runs", def.name);
            } else if dependencies_wanted {
                prop_assert!(alive[service].is_some(), "{} was forgotten", def.name);
            }
        }
    }
}
