//! Tables of what load asks for, and of how fast it may be followed.

use std::sync::Arc;
use std::time::Duration;

use k8s_client::Time;
use serde_json::{Value, json};

use super::behavior::{History, decide};
use super::replicas::{Calculation, Sample, Samples, Target, Tolerance};
use crate::api::{HorizontalPodAutoscaler, Pod};

fn at(second: u64) -> Time {
    Time("2026-01-01T01:00:00Z".parse().unwrap()).plus(Duration::from_secs(second))
}

/// `usage` in thousandths, or `?` for a pod without sample, `-` for a pending one, `!` for a failed one, `~usage` for one that is not ready yet.
fn measure(current: i32, usages: &str, target: Target) -> Result<i32, String> {
    let mut samples = Samples::new();
    let mut pods = Vec::new();
    for (n, usage) in usages.split(' ').enumerate() {
        let name = format!("p{n}");
        let (phase, ready) = match usage {
            "-" => ("Pending", false),
            "!" => ("Failed", false),
            _ => ("Running", !usage.starts_with('~')),
        };
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": phase, "startTime": at(0), "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": at(1)}]}});
        pods.push(Arc::new(serde_json::from_value::<Pod>(pod).unwrap()));
        if let Ok(value) = usage.trim_start_matches('~').parse() {
            samples.insert(name, Sample { value, at: at(200), window: Duration::from_secs(30) });
        }
    }
    let calculation = Calculation {
        current,
        pods: &pods,
        tolerance: Tolerance { down: 0.1, up: 0.1 },
        now: at(230),
        cpu_initialization: Duration::from_secs(300),
        readiness_delay: Duration::from_secs(30),
    };
    calculation.of_pods(samples, "cpu", "", target).map(|proposal| proposal.replicas)
}

#[test]
fn load_asks_for_replicas() {
    let half = Target::Utilization(50);
    for (current, usages, target, want) in [
        (3, "300 500 700", Target::Utilization(30), 5),
        (3, "500 500 500", half, 3),
        (3, "540 540 540", half, 3), // within the tolerance
        (3, "560 560 560", half, 4),
        (4, "100 100 100 100", half, 1),
        (3, "300 500 700", Target::Average(250), 6),
        // Not yet started: it neither raises nor counts until it is known.
        (3, "1000 ~1000 ~1000", half, 3),
        (2, "900 -", half, 2),
        (2, "1000 !", half, 2),
        // Not measured: full on the way down, idle on the way up.
        (3, "100 100 ?", half, 3),
        (4, "100 100 100 ?", half, 3),
        (3, "1000 1000 ?", half, 4),
        (3, "600 600 ?", half, 3),
    ] {
        let found = measure(current, usages, target).unwrap();
        assert_eq!(found, want, "{current} {usages} {target:?}");
    }
    assert!(measure(1, "?", half).unwrap_err().contains("did not receive metrics"));
}

#[test]
fn what_does_not_say_what_it_requests_has_no_utilization() {
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running"}}))
            .unwrap();
    let pods = [Arc::new(pod)];
    let calculation = Calculation {
        current: 1,
        pods: &pods,
        tolerance: Tolerance { down: 0.1, up: 0.1 },
        now: at(0),
        cpu_initialization: Duration::ZERO,
        readiness_delay: Duration::ZERO,
    };
    let samples: Samples = [("p".to_string(), Sample { value: 1, at: at(0), window: Duration::ZERO })].into();
    let error = calculation.of_pods(samples, "memory", "", Target::Utilization(50)).unwrap_err();
    assert_eq!(error, "missing request for memory in container c of Pod p");
    // Something outside: 30 of 10 wanted per replica.
    assert_eq!(calculation.of_share(30_000, 10_000, 1).replicas, 3);
    assert_eq!(calculation.of_share(30_000, 10_000, 3).replicas, 3);
    assert_eq!(Calculation { current: 0, ..calculation }.of_value(25_000, 10_000).replicas, 3);
    assert_eq!(Calculation { current: 0, ..calculation }.of_value(25_000, 0).replicas, i32::MAX, "bounded by maxReplicas later");
}

fn autoscaler(behavior: Value) -> HorizontalPodAutoscaler {
    let mut spec = json!({"minReplicas": 2, "maxReplicas": 50});
    if !behavior.is_null() {
        spec["behavior"] = behavior;
    }
    serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
}

const FIVE_MINUTES: Duration = Duration::from_secs(300);

#[test]
fn without_rules_it_doubles_at_most_and_goes_down_after_five_minutes() {
    let plain = autoscaler(Value::Null);
    let mut history = History::default();
    let mut step = |current, desired, second| {
        let decision = decide(&plain, &mut history, current, desired, FIVE_MINUTES, at(second));
        (decision.replicas, decision.able.1, decision.limited.1)
    };
    assert_eq!(step(3, 40, 0), (6, "ReadyForNewScale", "ScaleUpLimit"));
    assert_eq!(step(6, 40, 15), (12, "ReadyForNewScale", "ScaleUpLimit"));
    assert_eq!(step(40, 90, 30), (50, "ReadyForNewScale", "TooManyReplicas"));
    assert_eq!(step(50, 5, 100), (50, "ScaleDownStabilized", "TooManyReplicas"));
    assert_eq!(step(50, 5, 335), (5, "ReadyForNewScale", "DesiredWithinRange"));
    assert_eq!(step(5, 0, 700), (2, "ReadyForNewScale", "TooFewReplicas"));
}

#[test]
fn rules_bound_the_change_of_each_period() {
    let rules = json!({
        "scaleUp": {"stabilizationWindowSeconds": 30, "selectPolicy": "Max", "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 60}, {"type": "Percent", "value": 100, "periodSeconds": 60}]},
        "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
            {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]},
    });
    let ruled = autoscaler(rules);
    let run = |history: &mut History, current, desired, second| {
        let decision = decide(&ruled, history, current, desired, FIVE_MINUTES, at(second));
        (decision.replicas, decision.able.1, decision.limited.1)
    };
    // The first recommendation is what runs, so that going up waits for the window.
    let mut history = History::default();
    assert_eq!(run(&mut history, 3, 20, 0), (3, "ScaleUpStabilized", "DesiredWithinRange"));
    assert_eq!(run(&mut history, 3, 20, 31), (7, "ReadyForNewScale", "ScaleUpLimit"));
    history.ups.push((at(31), 4));
    assert_eq!(run(&mut history, 7, 20, 46), (7, "ReadyForNewScale", "ScaleUpLimit"), "the period has had its four");
    assert_eq!(run(&mut history, 7, 20, 95), (14, "ReadyForNewScale", "ScaleUpLimit"));

    let mut history = History::default();
    assert_eq!(run(&mut history, 40, 10, 0), (38, "ReadyForNewScale", "ScaleDownLimit"));
    history.downs.push((at(0), 2));
    assert_eq!(run(&mut history, 38, 10, 15), (38, "ReadyForNewScale", "ScaleDownLimit"));
    assert_eq!(run(&mut history, 38, 10, 61), (36, "ReadyForNewScale", "ScaleDownLimit"));
    let never =
        autoscaler(json!({"scaleDown": {"selectPolicy": "Disabled", "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}}));
    assert_eq!(decide(&never, &mut History::default(), 10, 2, Duration::ZERO, at(0)).replicas, 10);
}

#[test]
fn what_is_remembered_stays_bounded() {
    let plain = autoscaler(Value::Null);
    let mut history = History::default();
    for round in 0..2000 {
        decide(&plain, &mut history, 5, 5, FIVE_MINUTES, at(round * 15));
    }
    assert!(history.recommendations.len() <= 3600 / 15 + 2, "{}", history.recommendations.len());
}
