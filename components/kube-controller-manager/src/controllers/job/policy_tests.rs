//! Tables of the failure policy, of failures by index, of the success policy and of what is replaced when.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_client::{Condition, OwnerReference, Time};
use serde_json::{Value, json};

use super::plan::{FINALIZER, Observed, Plan, plan, pod as new_pod};
use super::policy::{self, Verdict};
use crate::api::{Job, Pod};

const NOW: &str = "2026-01-01T01:00:00Z";

fn job(spec: Value) -> Job {
    let mut job = json!({"metadata": {"name": "j", "namespace": "d", "uid": "j"}, "spec": {"backoffLimit": 1000, "template": {"spec": {"containers": [{"name": "c"}]}}}, "status": {}});
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

/// A pod of an index that failed with that exit code after so many failures before it.
fn failure(name: &str, index: i32, code: i32, before: i32) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": name, "finalizers": [FINALIZER], "annotations": {
        "batch.kubernetes.io/job-completion-index": index.to_string(), policy::FAILURES: before.to_string()}},
        "status": {"phase": "Failed", "containerStatuses": [{"name": "c", "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z"}}}]}}))
    .unwrap()
}

fn other(name: &str, index: i32, phase: &str) -> Pod {
    Pod { status: crate::api::PodStatus { phase: phase.into(), ..Default::default() }, ..failure(name, index, 0, 0) }
}

fn planned(job: &Job, pods: &[Pod]) -> Plan {
    let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
    plan(&Observed { job, pods: &pods, now: Time(NOW.parse().unwrap()) })
}

fn reason(plan: &Plan, kind: &str) -> String {
    Condition::find(&plan.status.conditions, kind).map(|c| c.reason.clone()).unwrap_or_default()
}

#[test]
fn the_first_rule_that_matches_a_failure_decides() {
    let rules = json!([
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [7, 8]}},
        {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [1, 2]}},
    ]);
    let j = job(json!({"podFailurePolicy": {"rules": rules}}));
    let evicted = |status: &str| {
        let mut pod = failure("p", 0, 42, 0);
        pod.status.conditions = vec![Condition { kind: "DisruptionTarget".into(), status: status.into(), ..Condition::default() }];
        pod
    };
    let dead = Verdict::FailJob("Container c for pod d/p failed with exit code 42 matching FailJob rule at index 1".into());
    for (pod, want) in [
        (evicted("True"), Verdict::Ignore),
        (evicted("False"), dead.clone()),
        (failure("p", 0, 42, 0), dead),
        (failure("p", 0, 8, 0), Verdict::FailIndex),
        (failure("p", 0, 1, 0), Verdict::Count),
        (failure("p", 0, 0, 0), Verdict::Count),
    ] {
        assert_eq!(policy::judge(&j, &pod), want, "{:?}", pod.status);
    }
}

#[test]
fn a_failure_may_end_the_job_or_not_count_at_all() {
    let fail = json!({"podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}, "parallelism": 2, "completions": 2});
    let ending = planned(&job(fail.clone()), &[failure("a", 0, 42, 0), other("b", 1, "Running")]);
    assert_eq!((reason(&ending, "FailureTarget").as_str(), ending.delete.len()), ("PodFailurePolicy", 1));
    assert_eq!(planned(&job(fail), &[failure("a", 0, 1, 0)]).create.len(), 2);

    let ignore = json!({"podFailurePolicy": {"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [42]}}]}, "backoffLimit": 0});
    let ignored = planned(&job(ignore), &[failure("a", 0, 42, 0)]);
    assert_eq!((ignored.create.len(), ignored.status.failed, ignored.release.contains("a")), (1, 0, true));
    assert!(ignored.status.uncounted_terminated_pods.unwrap().failed.is_empty());
}

#[test]
fn an_index_fails_by_itself_and_the_others_go_on() {
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 1});
    let j = job(spec.clone());
    let first = planned(&j, &[]);
    assert_eq!((first.create.len(), first.failures[&2]), (3, (0, 0)));
    assert_eq!(first.status.failed_indexes.as_deref(), Some(""));

    // The first failure of index 0: a second pod, and the failed one keeps its finalizer until that exists.
    let second = planned(&j, &[failure("a", 0, 1, 0), other("b", 1, "Running"), other("c", 2, "Running")]);
    assert_eq!((second.create.clone(), second.failures[&0]), (vec![Some(0)], (1, 0)));
    assert!(!second.release.contains("a") && second.status.uncounted_terminated_pods.unwrap().failed.is_empty());
    let body = new_pod(&j, &OwnerReference { name: "j".into(), ..Default::default() }, Some(0), Some((1, 0)));
    assert_eq!(body["metadata"]["annotations"][policy::FAILURES], "1");
    assert!(body["metadata"]["labels"][policy::FAILURES].is_null());
    let third = planned(&j, &[failure("a", 0, 1, 0), other("a2", 0, "Running"), other("b", 1, "Running"), other("c", 2, "Running")]);
    assert!(third.create.is_empty() && third.release.contains("a"));

    // The second: the index is lost, the others run to their end, and then the job has failed.
    let fourth = planned(&j, &[failure("a2", 0, 1, 1), other("b", 1, "Running"), other("c", 2, "Succeeded")]);
    assert_eq!(
        (fourth.status.failed_indexes.as_deref(), fourth.create.len(), reason(&fourth, "FailureTarget").as_str()),
        (Some("0"), 0, "")
    );
    let last = planned(&j, &[failure("a2", 0, 1, 1), other("b", 1, "Succeeded"), other("c", 2, "Succeeded")]);
    assert_eq!(reason(&last, "FailureTarget"), "FailedIndexes");
    assert_eq!((last.status.completed_indexes.as_str(), last.status.succeeded), ("1,2", 2));

    let mut bounded = spec;
    bounded["maxFailedIndexes"] = json!(0);
    let over = planned(&job(bounded), &[failure("a2", 0, 1, 1), other("b", 1, "Running"), other("c", 2, "Running")]);
    assert_eq!((reason(&over, "FailureTarget").as_str(), over.delete.len()), ("MaxFailedIndexesExceeded", 2));
}

#[test]
fn each_index_waits_for_its_own_failures() {
    let j = job(json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 9}));
    let mut recent = failure("a", 0, 1, 3);
    recent.status.container_statuses[0].state.terminated.as_mut().unwrap().finished_at =
        Some(Time("2026-01-01T00:59:30Z".parse().unwrap()));
    let plan = planned(&j, &[recent]);
    // The fourth failure of index 0: 80 s, of which 30 have passed. Index 1 has none.
    assert_eq!((plan.create, plan.again.map(|d| d.as_secs())), (vec![Some(1)], Some(50)));
}

#[test]
fn a_success_policy_ends_the_job_early() {
    for (rule, done, want) in [
        (json!({"succeededIndexes": "0,2-3"}), &[0, 2, 3][..], true),
        (json!({"succeededIndexes": "0,2-3"}), &[0, 2], false),
        (json!({"succeededIndexes": "0-3", "succeededCount": 2}), &[1, 3], true),
        (json!({"succeededIndexes": "0-3", "succeededCount": 2}), &[1, 7], false),
        (json!({"succeededCount": 1}), &[9], true),
        (json!({"succeededCount": 1}), &[], false),
    ] {
        let j = job(json!({"completionMode": "Indexed", "completions": 10, "parallelism": 10, "successPolicy": {"rules": [rule]}}));
        let met = policy::success(&j, &done.iter().copied().collect::<BTreeSet<i32>>());
        assert_eq!(met.is_some(), want, "{done:?}");
    }
    let j = job(
        json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "successPolicy": {"rules": [{"succeededIndexes": "0"}]}}),
    );
    let plan = planned(&j, &[other("a", 0, "Succeeded"), other("b", 1, "Running")]);
    assert_eq!(
        (reason(&plan, "SuccessCriteriaMet").as_str(), plan.delete.len(), reason(&plan, "Complete").as_str()),
        ("SuccessPolicy", 1, "")
    );
    let mut settled = Job { status: plan.status, ..j };
    settled.status.uncounted_terminated_pods = None;
    assert_eq!(reason(&planned(&settled, &[]), "Complete"), "SuccessPolicy");
}

#[test]
fn a_pod_that_is_ending_is_replaced_now_or_when_it_has_failed() {
    let ending = || {
        let mut pod = other("a", 0, "Running");
        pod.metadata.deletion_timestamp = Some(Time(NOW.parse().unwrap()));
        pod.metadata.creation_timestamp = Some(Time("2026-01-01T00:00:00Z".parse().unwrap()));
        pod
    };
    for (policy, create) in [("Failed", 0), ("TerminatingOrFailed", 1)] {
        let mut pod = ending();
        // Long enough ago that no pause is left.
        pod.metadata.deletion_timestamp = Some(Time("2026-01-01T00:30:00Z".parse().unwrap()));
        let plan = planned(&job(json!({"podReplacementPolicy": policy})), &[pod]);
        assert_eq!((plan.create.len(), plan.status.terminating), (create, Some(1)), "{policy}");
    }
}

#[test]
fn a_job_of_another_manager_is_left_alone() {
    assert!(job(json!({"managedBy": "example.com/queue"})).spec.is_foreign());
    assert!(!job(json!({"managedBy": "kubernetes.io/job-controller"})).spec.is_foreign() && !job(json!({})).spec.is_foreign());
}
