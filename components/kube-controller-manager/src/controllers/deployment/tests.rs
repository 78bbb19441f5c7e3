//! Tables of rollouts, and whole rollouts played to their end.

use std::sync::Arc;

use serde_json::json;

use super::plan::{Observed, Plan, fenceposts, plan};
use crate::api::{Deployment, ReplicaSet};

const NOW: &str = "2026-01-01T01:00:00Z";

fn template(version: &str) -> serde_json::Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": version}]}})
}

fn deployment(replicas: i32, surge: &str, unavailable: &str, version: &str) -> Deployment {
    let value = |text: &str| text.parse::<i32>().map_or_else(|_| json!(text), |n| json!(n));
    let strategy = if surge == "recreate" {
        json!({"type": "Recreate"})
    } else {
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": value(surge), "maxUnavailable": value(unavailable)}})
    };
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d", "uid": "dep", "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template(version), "strategy": strategy,
            "revisionHistoryLimit": 2, "progressDeadlineSeconds": 600}}))
    .unwrap()
}

fn set(deployment: &Deployment, version: &str, spec: i32, status: i32, available: i32, created: u32) -> Arc<ReplicaSet> {
    let surge = fenceposts(deployment).0;
    let replicas = deployment.spec.replicas.unwrap();
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": version, "uid": version, "namespace": "d", "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z"),
            "annotations": {"deployment.kubernetes.io/revision": (created + 1).to_string(), "deployment.kubernetes.io/desired-replicas": replicas.to_string(),
                "deployment.kubernetes.io/max-replicas": (replicas + surge).to_string()}},
            "spec": {"replicas": spec, "template": template(version)}, "status": {"replicas": status, "readyReplicas": available, "availableReplicas": available}}))
        .unwrap(),
    )
}

fn planned(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Plan {
    let running = |new: Option<&str>| sets.iter().any(|set| Some(set.metadata.uid.as_str()) != new && set.status.replicas > 0);
    plan(&Observed { deployment, sets, old_pods_running: &running, now: NOW.parse().unwrap() })
}

fn sizes(plan: &Plan) -> Vec<(String, i32)> {
    plan.sets.iter().filter_map(|change| Some((change.name.clone(), change.replicas?))).collect()
}

#[test]
fn surge_rounds_up_and_unavailability_down() {
    for (replicas, surge, unavailable, want) in [
        (10, "25%", "25%", (3, 2)),
        (1, "25%", "25%", (1, 0)),
        (4, "0", "0", (0, 1)),
        (4, "0%", "10%", (0, 1)),
        (10, "2", "3", (2, 3)),
        (4, "recreate", "", (0, 0)),
    ] {
        assert_eq!(fenceposts(&deployment(replicas, surge, unavailable, "v1")), want, "{replicas} {surge} {unavailable}");
    }
}

#[test]
fn the_first_set_is_created_at_full_size_with_its_hash() {
    let d = deployment(3, "25%", "25%", "v1");
    let plan = planned(&d, &[]);
    let created = plan.create.unwrap();
    let hash = created["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    assert_eq!(created["metadata"]["name"], format!("web-{hash}"));
    assert_eq!(created["spec"]["replicas"], 3);
    assert_eq!(created["spec"]["selector"]["matchLabels"], json!({"app": "web", "pod-template-hash": hash}));
    assert_eq!(created["spec"]["template"]["metadata"]["labels"]["pod-template-hash"], hash);
    assert_eq!(created["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    assert_eq!(plan.revision.as_deref(), Some("1"));
    assert_eq!(plan.status.conditions.iter().find(|c| c.kind == "Progressing").unwrap().reason, "NewReplicaSetCreated");
}

#[test]
fn rolling_steps_keep_to_surge_and_availability() {
    // (replicas, surge, unavailable), old (spec, available), new (spec, available) → changes
    for (shape, old, new, want) in [
        ((10, "2", "2"), (10, 10), (0, 0), vec![("v2", 2)]),
        ((10, "2", "2"), (10, 10), (2, 0), vec![("v1", 8)]),
        ((10, "2", "2"), (8, 8), (2, 0), vec![("v2", 4)]),
        ((10, "2", "2"), (8, 8), (4, 2), vec![("v1", 6)]),
        ((10, "2", "2"), (8, 8), (4, 0), vec![]),
        ((10, "0", "1"), (10, 10), (0, 0), vec![("v1", 9)]),
        ((10, "0", "1"), (9, 9), (0, 0), vec![("v2", 1)]),
        ((10, "0", "1"), (9, 9), (1, 0), vec![]),
        ((10, "1", "0"), (10, 10), (1, 0), vec![]),
        ((10, "1", "0"), (10, 10), (1, 1), vec![("v1", 9)]),
        // broken old pods go even before new ones are available
        ((10, "2", "2"), (10, 5), (2, 0), vec![("v1", 8)]),
        ((4, "1", "1"), (1, 1), (4, 4), vec![("v1", 0)]),
        ((4, "1", "1"), (0, 0), (5, 5), vec![("v2", 4)]),
    ] {
        let d = deployment(shape.0, shape.1, shape.2, "v2");
        let sets = [set(&d, "v1", old.0, old.0, old.1, 0), set(&d, "v2", new.0, new.0, new.1, 1)];
        let got = sizes(&planned(&d, &sets));
        let want: Vec<_> = want.into_iter().map(|(name, n)| (name.to_string(), n)).collect();
        assert_eq!(got, want, "{shape:?} old {old:?} new {new:?}");
    }
}

/// Plays rounds, with every started pod becoming available one round later, and checks the promises in each.
#[test]
fn every_rollout_ends_and_never_breaks_its_promises() {
    for replicas in [0, 1, 2, 3, 5, 10] {
        for (surge, unavailable) in [("25%", "25%"), ("1", "0"), ("0", "1"), ("100%", "0"), ("0", "100%"), ("3", "2")] {
            let d = deployment(replicas, surge, unavailable, "v2");
            let (max_surge, max_gone) = fenceposts(&d);
            let mut state = [(replicas, replicas), (0, 0)];
            let mut rounds = 0;
            loop {
                rounds += 1;
                assert!(rounds < 200, "{replicas} {surge} {unavailable} does not end: {state:?}");
                let sets = [set(&d, "v1", state[0].0, state[0].0, state[0].1, 0), set(&d, "v2", state[1].0, state[1].0, state[1].1, 1)];
                let plan = planned(&d, &sets);
                let changes = sizes(&plan);
                if changes.is_empty() && state[0] == (0, 0) && state[1] == (replicas, replicas) {
                    break;
                }
                for (at, name) in ["v1", "v2"].iter().enumerate() {
                    // What was started in an earlier round is available by now.
                    state[at].1 = state[at].0;
                    if let Some((_, n)) = changes.iter().find(|(changed, _)| changed == name) {
                        state[at] = (*n, state[at].1.min(*n));
                    }
                }
                let total = state[0].0 + state[1].0;
                let available = state[0].1 + state[1].1;
                assert!(total <= replicas + max_surge, "too many in {replicas} {surge} {unavailable}: {state:?}");
                assert!(available >= replicas - max_gone.min(replicas), "too few in {replicas} {surge} {unavailable}: {state:?}");
            }
        }
    }
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let d = deployment(3, "recreate", "", "v2");
    let plan = planned(&d, &[set(&d, "v1", 3, 3, 3, 0)]);
    assert_eq!((sizes(&plan), plan.create.is_some()), (vec![("v1".to_string(), 0)], false));
    assert!(planned(&d, &[set(&d, "v1", 0, 1, 0, 0)]).create.is_none());
    assert_eq!(planned(&d, &[set(&d, "v1", 0, 0, 0, 0)]).create.unwrap()["spec"]["replicas"], 3);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let before = deployment(10, "2", "2", "v2");
    let sets = [set(&before, "v1", 8, 8, 8, 0), set(&before, "v2", 4, 4, 2, 1)];
    let up = deployment(20, "2", "2", "v2");
    // 22 allowed, 12 there: v1 8·22/12 ≈ 15, v2 4·22/12 ≈ 7
    assert_eq!(sizes(&planned(&up, &sets)), [("v1".to_string(), 15), ("v2".to_string(), 7)]);
    let down = deployment(5, "2", "2", "v2");
    // 7 allowed: v1 8·7/12 ≈ 5, v2 4·7/12 ≈ 2
    assert_eq!(sizes(&planned(&down, &sets)), [("v1".to_string(), 5), ("v2".to_string(), 2)]);
    let zero = deployment(0, "2", "2", "v2");
    assert_eq!(sizes(&planned(&zero, &sets)), [("v1".to_string(), 0), ("v2".to_string(), 0)]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut d = deployment(3, "1", "1", "v2");
    d.spec.paused = true;
    let plan = planned(&d, &[set(&d, "v1", 3, 3, 3, 0)]);
    assert!(plan.create.is_none() && plan.sets.is_empty());
    assert_eq!(plan.status.conditions.iter().find(|c| c.kind == "Progressing").unwrap().reason, "DeploymentPaused");
}

#[test]
fn a_rollback_reuses_the_old_set_with_a_new_revision() {
    let d = deployment(2, "1", "0", "v1");
    let plan = planned(&d, &[set(&d, "v1", 0, 0, 0, 0), set(&d, "v2", 2, 2, 2, 1)]);
    let change = plan.sets.iter().find(|change| change.name == "v1").unwrap();
    assert_eq!(change.replicas, Some(1));
    assert_eq!(change.annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(change.annotations["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!(plan.revision.as_deref(), Some("3"));
}

#[test]
fn history_is_kept_to_its_limit_once_complete() {
    let mut d = deployment(1, "1", "0", "v9");
    let sets = [
        set(&d, "v1", 0, 0, 0, 0),
        set(&d, "v2", 0, 0, 0, 1),
        set(&d, "v3", 0, 0, 0, 2),
        set(&d, "v4", 0, 0, 0, 3),
        set(&d, "v9", 1, 1, 1, 4),
    ];
    assert!(planned(&d, &sets).delete.is_empty(), "the status does not say complete yet");
    d.status = planned(&d, &sets).status;
    assert_eq!(planned(&d, &sets).delete.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["v1", "v2"]);
}

#[test]
fn conditions_tell_progress_completion_and_a_missed_deadline() {
    let reason = |plan: &Plan| plan.status.conditions.iter().find(|c| c.kind == "Progressing").unwrap().reason.clone();
    let mut d = deployment(2, "1", "0", "v1");
    d.status = planned(&d, &[]).status;
    let starting = planned(&d, &[set(&d, "v1", 2, 2, 0, 0)]);
    assert_eq!(reason(&starting), "ReplicaSetUpdated");
    assert!(starting.again.is_some());
    d.status = starting.status;
    for condition in &mut d.status.conditions {
        condition.last_update_time = Some(k8s_client::Time("2026-01-01T00:49:00Z".parse().unwrap()));
    }
    let stuck = planned(&d, &[set(&d, "v1", 2, 2, 0, 0)]);
    assert_eq!(reason(&stuck), "ProgressDeadlineExceeded");
    d.status = stuck.status;
    let done = planned(&d, &[set(&d, "v1", 2, 2, 2, 0)]);
    assert_eq!(reason(&done), "NewReplicaSetAvailable");
    assert!(done.status.conditions.iter().any(|c| c.kind == "Available" && c.status == "True"));
    d.status = done.status.clone();
    assert_eq!(planned(&d, &[set(&d, "v1", 2, 2, 2, 0)]).status, done.status, "a settled status does not change with time");
}
