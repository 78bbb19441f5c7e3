//! Tables of order, scaling and updates.

use std::sync::Arc;

use k8s_client::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::plan::{Observed, Plan, Step, claim_names, claim_owners, claims, ordinal, plan, pod as new_pod};
use crate::api::{Pod, StatefulSet};

fn set(spec: Value) -> StatefulSet {
    let mut set = json!({"metadata": {"name": "db", "namespace": "d", "uid": "s"}, "status": {"currentRevision": "db-old"},
        "spec": {"serviceName": "db", "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {}}, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}});
    for (key, value) in spec.as_object().unwrap() {
        set["spec"][key] = value.clone();
    }
    serde_json::from_value(set).unwrap()
}

/// `ordinal:revision:state`, where state is `ok`, `bad`, `failed` or `gone`.
fn pod(text: &str) -> Arc<Pod> {
    let parts: Vec<&str> = text.split(':').collect();
    let name = format!("db-{}", parts[0]);
    let mut pod = json!({"metadata": {"name": name, "uid": name, "labels": {"controller-revision-hash": format!("db-{}", parts[1])}},
        "status": {"phase": if parts[2] == "failed" {"Failed"} else {"Running"}, "conditions": [{"type": "Ready", "status": if parts[2] == "ok" {"True"} else {"False"}}]}});
    if parts[2] == "gone" {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn planned(set: &StatefulSet, pods: &[&str]) -> Plan {
    let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
    plan(&Observed { set, pods: &pods, update_revision: "db-new", now: "2026-01-01T01:00:00Z".parse().unwrap() })
}

fn show(plan: &Plan) -> String {
    let step = |step: &Step| match step {
        Step::Create { ordinal, revision } => format!("+{ordinal}{}", if revision == "db-old" { "old" } else { "" }),
        Step::Delete(meta) => format!("-{}", meta.name.trim_start_matches("db-")),
    };
    plan.steps.iter().map(step).collect::<Vec<_>>().join(" ")
}

#[test]
fn pods_start_and_stop_in_order() {
    for (spec, pods, want) in [
        (json!({"replicas": 3}), &[][..], "+0"),
        (json!({"replicas": 3}), &["0:new:bad"], ""),
        (json!({"replicas": 3}), &["0:new:ok"], "+1"),
        (json!({"replicas": 3}), &["0:new:ok", "2:new:ok"], "+1"),
        (json!({"replicas": 3}), &["0:new:failed", "1:new:ok"], "-0"),
        (json!({"replicas": 3}), &["0:new:gone"], ""),
        (json!({"replicas": 1}), &["0:new:ok", "1:new:ok", "2:new:ok"], "-2"),
        (json!({"replicas": 1}), &["0:new:ok", "1:new:ok", "2:new:gone"], ""),
        (json!({"replicas": 1}), &["0:new:bad", "1:new:ok"], ""),
        (json!({"replicas": 3, "podManagementPolicy": "Parallel"}), &["1:new:bad"], "+0 +2"),
        (json!({"replicas": 0, "podManagementPolicy": "Parallel"}), &["0:new:ok", "1:new:ok"], "-1 -0"),
        (json!({"replicas": 2, "ordinals": {"start": 5}}), &["5:new:ok"], "+6"),
        (json!({"replicas": 2, "ordinals": {"start": 5}}), &["4:new:ok", "5:new:ok", "6:new:ok"], "-4"),
    ] {
        assert_eq!(show(&planned(&set(spec.clone()), pods)), want, "{spec} {pods:?}");
    }
}

#[test]
fn updates_go_from_the_highest_down_to_the_partition() {
    let partition = |n: i32| json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": n}}});
    for (spec, pods, want) in [
        (partition(0), &["0:old:ok", "1:old:ok", "2:old:ok"][..], "-2"),
        (partition(0), &["0:old:ok", "1:old:ok", "2:new:bad"], ""),
        (partition(0), &["0:old:ok", "1:old:ok", "2:new:ok"], "-1"),
        (partition(0), &["0:old:ok", "1:old:ok"], "+2"),
        (partition(2), &["0:old:ok", "1:old:ok", "2:old:ok"], "-2"),
        (partition(2), &["0:old:ok", "1:old:ok", "2:new:ok"], ""),
        (partition(2), &["0:old:ok", "2:new:ok"], "+1old"),
        (json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}}), &["0:old:ok", "1:old:ok", "2:old:ok"], ""),
    ] {
        assert_eq!(show(&planned(&set(spec.clone()), pods)), want, "{spec} {pods:?}");
    }
    let done = planned(&set(partition(0)), &["0:new:ok", "1:new:ok", "2:new:ok"]).status;
    assert_eq!((done.current_revision.as_str(), done.current_replicas, done.updated_replicas), ("db-new", 3, 3));
    let half = planned(&set(partition(0)), &["0:old:ok", "1:new:ok", "2:new:ok"]).status;
    assert_eq!((half.current_revision.as_str(), half.current_replicas, half.updated_replicas), ("db-old", 1, 2));
}

#[test]
fn a_pod_has_its_name_its_host_name_and_its_claims() {
    let set =
        set(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}]}));
    let body = new_pod(
        &set,
        &json!({"spec": {"volumes": [{"name": "data", "emptyDir": {}}]}}),
        &OwnerReference { name: "db".into(), ..Default::default() },
        4,
        "db-new",
    );
    assert_eq!(body["metadata"]["name"], "db-4");
    assert!(body["metadata"].get("generateName").is_none());
    assert_eq!(
        body["spec"],
        json!({"hostname": "db-4", "subdomain": "db", "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-4"}}]})
    );
    assert_eq!(claims(&set, 4)[0]["metadata"], json!({"name": "data-db-4", "namespace": "d", "labels": {"a": "b"}}));
    for (name, want) in
        [("db-0", Some(0)), ("db-12", Some(12)), ("db-01", None), ("db", None), ("db-x", None), ("db2-1", None), ("db--1", None)]
    {
        assert_eq!(ordinal("db", name), want, "{name}");
    }
}

#[test]
fn as_many_are_replaced_at_once_as_may_be_away() {
    let many = |n: Value| {
        set(json!({"replicas": 4, "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": n}}}))
    };
    for (most, pods, want) in [
        (json!(2), &["0:old:ok", "1:old:ok", "2:old:ok", "3:old:ok"][..], "-3 -2"),
        (json!(2), &["0:old:ok", "1:old:ok", "2:old:ok", "3:new:bad"], "-2"),
        (json!(2), &["0:old:ok", "1:old:ok", "2:new:bad", "3:new:bad"], ""),
        (json!(2), &["0:old:bad", "1:old:ok", "2:old:ok", "3:old:ok"], "-3 -0"),
        (json!("50%"), &["0:old:ok", "1:old:ok", "2:old:ok", "3:new:ok"], "-2 -1"),
        (json!(1), &["0:old:ok", "1:old:ok", "2:old:ok", "3:new:bad"], ""),
        (json!(1), &["0:old:ok", "1:old:ok", "2:old:ok", "3:old:bad"], "-3"),
    ] {
        assert_eq!(show(&planned(&many(most.clone()), pods)), want, "{most} {pods:?}");
    }
}

#[test]
fn claims_are_owned_by_what_they_go_with() {
    let own = |owner: &str| match owner {
        "set" => OwnerReference { kind: "StatefulSet".into(), name: "db".into(), uid: "s".into(), ..OwnerReference::default() },
        "pod" => OwnerReference { kind: "Pod".into(), name: "db-1".into(), uid: "p".into(), ..OwnerReference::default() },
        "older pod" => OwnerReference { kind: "Pod".into(), name: "db-1".into(), uid: "gone".into(), ..OwnerReference::default() },
        other => OwnerReference { kind: other.into(), uid: other.into(), controller: Some(true), ..OwnerReference::default() },
    };
    let pod = ObjectMeta { name: "db-1".into(), uid: "p".into(), ..ObjectMeta::default() };
    for (deleted, scaled, replicas, before, want) in [
        ("Retain", "Retain", 2, &[][..], None),
        ("Retain", "Retain", 2, &["set", "pod"], Some(vec![])),
        ("Delete", "Retain", 2, &[], Some(vec!["s"])),
        ("Delete", "Retain", 1, &["set"], None),
        ("Retain", "Delete", 2, &[], None),
        ("Retain", "Delete", 1, &[], Some(vec!["p"])),
        ("Retain", "Delete", 2, &["pod"], Some(vec![])),
        ("Delete", "Delete", 1, &["set"], Some(vec!["p"])),
        ("Delete", "Delete", 2, &["pod"], Some(vec!["s"])),
        ("Retain", "Delete", 1, &["older pod"], Some(vec!["p"])),
        ("Delete", "Delete", 2, &["Somebody"], None),
    ] {
        let set = set(json!({"replicas": replicas, "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}}));
        let claim = ObjectMeta { owner_references: before.iter().map(|owner| own(owner)).collect(), ..ObjectMeta::default() };
        let found = claim_owners(&set, &pod, &claim);
        let uids = found.as_ref().map(|owners| owners.as_array().unwrap().iter().map(|o| o["uid"].as_str().unwrap()).collect::<Vec<_>>());
        assert_eq!(uids, want, "{deleted} {scaled} {replicas} {before:?}");
        assert_eq!(claim_names(&set, &pod), ["data-db-1"]);
    }
}
