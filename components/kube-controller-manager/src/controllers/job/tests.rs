//! Tables of counting, completion and failure, and jobs played to their end with crashes in between.

use std::sync::Arc;

use k8s_client::{Condition, OwnerReference, Time};
use serde_json::{Value, json};

use super::plan::{FINALIZER, Observed, Plan, is_finished, plan, pod as new_pod};
use crate::api::{Job, Pod};

const NOW: &str = "2026-01-01T01:00:00Z";

fn job(spec: Value) -> Job {
    let mut job = json!({"metadata": {"name": "j", "namespace": "d", "uid": "j"}, "spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}, "status": {}});
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

/// `name:phase` with optional `:done` (no finalizer), `:gone` (being deleted), `:index=N`, `:at=MM` (finished at minute).
fn pod(text: &str) -> Arc<Pod> {
    let mut parts = text.split(':');
    let (name, phase) = (parts.next().unwrap(), parts.next().unwrap());
    let mut pod = json!({"metadata": {"name": name, "uid": name, "finalizers": [FINALIZER], "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n"}, "status": {"phase": phase}});
    for extra in parts {
        match extra.split_once('=') {
            Some(("index", n)) => pod["metadata"]["annotations"] = json!({"batch.kubernetes.io/job-completion-index": n}),
            Some((_, minute)) => {
                pod["status"]["containerStatuses"] = json!([{"name": "c", "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": format!("2026-01-01T00:{minute}:00Z")}}}]);
            }
            None if extra == "done" => pod["metadata"]["finalizers"] = json!([]),
            None => pod["metadata"]["deletionTimestamp"] = json!(NOW),
        }
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn planned(job: &Job, pods: &[&str]) -> Plan {
    let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
    plan(&Observed { job, pods: &pods, now: Time(NOW.parse().unwrap()) })
}

fn conditions(plan: &Plan) -> String {
    let mut names: Vec<_> = plan.status.conditions.iter().filter(|c| c.is_true()).map(|c| c.kind.as_str()).collect();
    names.sort_unstable();
    names.join(",")
}

#[test]
fn the_right_number_of_pods_runs() {
    for (spec, pods, create, delete) in [
        (json!({}), &[][..], 1, 0),
        (json!({"parallelism": 3, "completions": 5}), &[], 3, 0),
        (json!({"parallelism": 3, "completions": 2}), &[], 2, 0),
        (json!({"parallelism": 3, "completions": 5}), &["a:Running", "b:Running"], 1, 0),
        (json!({"parallelism": 2, "completions": 3}), &["a:Succeeded", "b:Succeeded"], 1, 0),
        (json!({"parallelism": 1, "completions": 5}), &["a:Running", "b:Pending"], 0, 1),
        (json!({"parallelism": 0, "completions": 5}), &["a:Running"], 0, 1),
        // a work queue: nothing new once one succeeded
        (json!({"parallelism": 3}), &["a:Succeeded", "b:Running"], 0, 0),
        (json!({"parallelism": 2, "completions": 5, "suspend": true}), &["a:Running"], 0, 1),
        (json!({"parallelism": 1000, "completions": 1000}), &[], 500, 0),
    ] {
        let plan = planned(&job(spec.clone()), pods);
        assert_eq!((plan.create.len(), plan.delete.len()), (create, delete), "{spec} {pods:?}");
    }
}

#[test]
fn a_pod_is_counted_in_three_stages_and_never_twice() {
    let mut j = job(json!({"completions": 2}));
    let first = planned(&j, &["a:Succeeded"]);
    let uncounted = first.status.uncounted_terminated_pods.clone().unwrap();
    assert_eq!((uncounted.succeeded, first.status.succeeded), (vec!["a".to_string()], 0));
    assert!(first.release.contains("a"));
    // The same again, as after a crash before the finalizer went.
    j.status = first.status;
    assert_eq!(planned(&j, &["a:Succeeded"]).status, j.status);
    let second = planned(&j, &["a:Succeeded:done"]);
    assert_eq!((second.status.succeeded, second.status.uncounted_terminated_pods.clone().unwrap().succeeded.len()), (1, 0));
    j.status = second.status;
    assert_eq!(planned(&j, &["a:Succeeded:done"]).status.succeeded, 1);
    assert_eq!(planned(&j, &[]).status.succeeded, 1, "the pod itself may be gone");
    // A pod that vanished while it was being counted counts too.
    j.status.uncounted_terminated_pods = Some(crate::api::Uncounted { succeeded: vec![], failed: vec!["b".into()] });
    assert_eq!(planned(&j, &[]).status.failed, 1);
}

#[test]
fn completion_and_failure_wait_for_the_last_pod() {
    let mut j = job(json!({"completions": 1}));
    j.status.succeeded = 1;
    let plan = planned(&j, &["a:Succeeded:done"]);
    assert_eq!(conditions(&plan), "Complete,SuccessCriteriaMet");
    assert!(plan.status.completion_time.is_some());
    assert_eq!(conditions(&planned(&j, &["b:Running:gone"])), "SuccessCriteriaMet");

    let mut j = job(json!({"backoffLimit": 1}));
    j.status.failed = 2;
    let failing = planned(&j, &["a:Running"]);
    assert_eq!((conditions(&failing).as_str(), failing.delete.len()), ("FailureTarget", 1));
    j.status = failing.status;
    let failed = planned(&j, &[]);
    assert_eq!(conditions(&failed), "Failed,FailureTarget");
    assert_eq!(Condition::find(&failed.status.conditions, "Failed").unwrap().reason, "BackoffLimitExceeded");
    j.status = failed.status;
    assert!(is_finished(&j) && planned(&j, &["x:Failed"]).release.contains("x"));

    let mut j = job(json!({"activeDeadlineSeconds": 60}));
    j.status.start_time = Some(Time("2026-01-01T00:59:30Z".parse().unwrap()));
    let waiting = planned(&j, &["a:Running"]);
    assert_eq!(waiting.again.map(|d| d.as_secs()), Some(31));
    j.status.start_time = Some(Time("2026-01-01T00:58:00Z".parse().unwrap()));
    let late = planned(&j, &["a:Running"]);
    assert_eq!((conditions(&late).as_str(), late.delete.len()), ("FailureTarget", 1));
}

#[test]
fn failed_pods_are_replaced_after_a_growing_pause() {
    let j = job(json!({"completions": 1}));
    assert_eq!(planned(&j, &["a:Failed:at=59"]).create.len(), 1, "10 s after the first failure are over");
    let mut j2 = job(json!({"completions": 1}));
    j2.status.failed = 3;
    let plan = planned(&j2, &["a:Failed:at=59"]);
    // The fourth failure: 80 s, of which 60 have passed.
    assert_eq!((plan.create.len(), plan.again.map(|d| d.as_secs())), (0, Some(20)));
}

#[test]
fn suspending_and_resuming_moves_the_start() {
    let mut j = job(json!({"suspend": true}));
    let suspended = planned(&j, &[]);
    assert_eq!((conditions(&suspended).as_str(), suspended.status.start_time), ("Suspended", None));
    j.status = suspended.status;
    j.spec.suspend = Some(false);
    let resumed = planned(&j, &[]);
    assert_eq!((conditions(&resumed).as_str(), resumed.create.len()), ("", 1));
    assert!(resumed.status.start_time.is_some());
}

#[test]
fn an_indexed_job_runs_each_index_once() {
    let mut j = job(json!({"completionMode": "Indexed", "completions": 4, "parallelism": 2}));
    let first = planned(&j, &[]);
    assert_eq!(first.create, [Some(0), Some(1)]);
    let second = planned(&j, &["a:Succeeded:index=0", "b:Running:index=1", "c:Running:index=1"]);
    assert_eq!(second.status.completed_indexes, "0");
    assert_eq!((second.create, second.delete[0].name.as_str()), (vec![Some(2)], "c"));
    j.status = second.status;
    let body = new_pod(&j, &OwnerReference { name: "j".into(), ..Default::default() }, Some(2), None);
    assert_eq!(body["spec"]["hostname"], "j-2");
    assert_eq!(body["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    assert_eq!(body["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"], "2");
    let last = planned(&j, &["p:Succeeded:index=1", "q:Succeeded:index=2", "r:Succeeded:index=3"]);
    assert_eq!((last.status.succeeded, last.status.completed_indexes.as_str()), (4, "0-3"));
}

/// Plays a job against a tiny server, losing the status write or the finalizer removal now and then.
#[test]
fn counts_survive_crashes_at_every_step() {
    for crash_every in [0, 3, 4, 5] {
        let mut j = job(json!({"completions": 6, "parallelism": 3, "backoffLimit": 100}));
        let mut pods: Vec<Pod> = Vec::new();
        let (mut step, mut made, mut failures) = (0, 0, 0);
        while !is_finished(&j) {
            step += 1;
            assert!(step < 500, "does not end: {:?}", j.status);
            for pod in pods.iter_mut().filter(|pod| pod.status.phase == "Running") {
                // Every fourth pod fails.
                let fails = pod.metadata.name[1..].parse::<i32>().unwrap() % 4 == 0;
                failures += i32::from(fails);
                pod.status.phase = if fails { "Failed" } else { "Succeeded" }.into();
            }
            let shared: Vec<Arc<Pod>> = pods.iter().cloned().map(Arc::new).collect();
            let plan = plan(&Observed { job: &j, pods: &shared, now: Time("2027-01-01T00:00:00Z".parse().unwrap()) });
            for _ in &plan.create {
                made += 1;
                pods.push((*pod(&format!("p{made}:Running"))).clone());
            }
            if crash_every > 0 && step % crash_every == 0 {
                continue;
            }
            j.status = plan.status.clone();
            if crash_every > 0 && step % crash_every == 1 {
                continue;
            }
            for pod in pods.iter_mut().filter(|pod| plan.release.contains(&pod.metadata.uid)) {
                pod.metadata.finalizers.clear();
            }
        }
        assert_eq!((j.status.succeeded, j.status.failed), (6, failures), "crash every {crash_every}");
    }
}
