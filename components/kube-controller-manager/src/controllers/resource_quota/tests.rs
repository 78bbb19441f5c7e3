//! Tables of what counts, in which scopes, and when the status is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::plan::{Observed, canonical, plan};
use super::usage::{Counted, counted_by};
use crate::api::{PersistentVolumeClaim, Pod, ResourceQuota, Service};

fn used(spec: Value, pods: &[Value], services: &[Value], claims: &[Value], counts: &[(&str, usize)]) -> Value {
    fn all<T: serde::de::DeserializeOwned>(values: &[Value]) -> Vec<Arc<T>> {
        values.iter().map(|value| Arc::new(serde_json::from_value(value.clone()).unwrap())).collect()
    }
    let quota: ResourceQuota = serde_json::from_value(json!({"metadata": {"name": "q", "namespace": "d"}, "spec": spec})).unwrap();
    let (pods, services, claims) = (all::<Pod>(pods), all::<Service>(services), all::<PersistentVolumeClaim>(claims));
    let counts: BTreeMap<String, usize> = counts.iter().map(|(name, count)| ((*name).to_string(), *count)).collect();
    let observed = Observed {
        quota: &quota,
        pods: &pods,
        services: &services,
        claims: &claims,
        counts: &counts,
        now: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    let status = plan(&observed).expect("a quota without a status gets one");
    assert_eq!(status["hard"], spec["hard"]);
    status["used"].clone()
}

fn pod(phase: &str, resources: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}, "status": {"phase": phase}})
}

#[test]
fn pods_use_what_they_ask_for_until_they_end() {
    let hard = json!({"pods": "9", "count/pods": "9", "cpu": "9", "requests.cpu": "9", "limits.memory": "9Gi", "requests.example.com/gpu": "9", "limits.cpu": "1"});
    let one = json!({"requests": {"cpu": "300m", "memory": "64Mi", "example.com/gpu": "2"}, "limits": {"memory": "512Mi"}});
    let mut gone = pod("Running", one.clone());
    gone["metadata"]["deletionTimestamp"] = json!("2025-12-31T23:00:00Z");
    let pods = [pod("Running", one.clone()), pod("Pending", one.clone()), pod("Succeeded", one.clone()), pod("Failed", one), gone];
    let want = json!({"pods": "2", "count/pods": "5", "cpu": "600m", "requests.cpu": "600m", "limits.memory": "1Gi", "requests.example.com/gpu": "4", "limits.cpu": "0"});
    assert_eq!(used(json!({"hard": hard}), &pods, &[], &[], &[]), want);
}

#[test]
fn initialization_sidecars_and_overhead_count_at_their_peak() {
    let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
    for (spec, want) in [
        (json!({"containers": [{"name": "c", "resources": cpu("1")}], "initContainers": [{"name": "i", "resources": cpu("3")}]}), "3"),
        (
            json!({"containers": [{"name": "c", "resources": cpu("1")}], "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": cpu("1")}, {"name": "i", "resources": cpu("3")}]}),
            "4",
        ),
        (
            json!({"containers": [{"name": "c", "resources": cpu("5")}], "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": cpu("1")}, {"name": "i", "resources": cpu("3")}]}),
            "6",
        ),
        (json!({"containers": [{"name": "c", "resources": cpu("1")}], "overhead": {"cpu": "250m"}}), "1250m"),
        (json!({"containers": [{"name": "c", "resources": cpu("1")}], "resources": cpu("7")}), "7"),
    ] {
        let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Running"}});
        assert_eq!(used(json!({"hard": {"cpu": "9"}}), &[pod], &[], &[], &[])["cpu"], want, "{spec}");
    }
}

#[test]
fn scopes_choose_the_pods() {
    let mut deadline = pod("Running", json!({"requests": {"cpu": "1"}}));
    deadline["spec"]["activeDeadlineSeconds"] = json!(5);
    let mut important = pod("Running", json!({}));
    important["spec"]["priorityClassName"] = json!("high");
    let mut affine = pod("Running", json!({}));
    affine["spec"]["affinity"] = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {"namespaces": ["x"]}}]}});
    let pods = [deadline, important, affine];
    let selector = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]});
    for (scopes, selector, want) in [
        (json!([]), Value::Null, "3"),
        (json!(["Terminating"]), Value::Null, "1"),
        (json!(["NotTerminating"]), Value::Null, "2"),
        (json!(["BestEffort"]), Value::Null, "2"),
        (json!(["NotBestEffort"]), Value::Null, "1"),
        (json!(["Terminating", "BestEffort"]), Value::Null, "0"),
        (json!(["CrossNamespacePodAffinity"]), Value::Null, "1"),
        (json!([]), selector("In", &["high", "low"]), "1"),
        (json!([]), selector("NotIn", &["high"]), "2"),
        (json!([]), selector("Exists", &[]), "1"),
        (json!(["Unheard"]), Value::Null, "0"),
    ] {
        let spec = json!({"hard": {"pods": "9"}, "scopes": scopes, "scopeSelector": selector});
        assert_eq!(used(spec.clone(), &pods, &[], &[], &[])["pods"], want, "{spec}");
    }
}

#[test]
fn services_claims_and_objects_are_counted() {
    let service = |kind: &str, extra: Value| {
        let mut spec = json!({"type": kind, "ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"metadata": {"name": "s"}, "spec": spec})
    };
    let services = [
        service("ClusterIP", json!({})),
        service("NodePort", json!({})),
        service("LoadBalancer", json!({})),
        service("LoadBalancer", json!({"allocateLoadBalancerNodePorts": false})),
    ];
    let claim = |class: &str, size: &str| json!({"metadata": {"name": "c"}, "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}});
    let claims = [claim("fast", "1Gi"), claim("slow", "3Gi")];
    let hard = json!({"services": "9", "services.nodeports": "9", "services.loadbalancers": "9", "persistentvolumeclaims": "9", "requests.storage": "9Gi",
        "fast.storageclass.storage.k8s.io/requests.storage": "9Gi", "none.storageclass.storage.k8s.io/persistentvolumeclaims": "9",
        "configmaps": "9", "count/deployments.apps": "9", "nonsense": "1", "count/unknown.example.com": "1"});
    let want = json!({"services": "4", "services.nodeports": "5", "services.loadbalancers": "2", "persistentvolumeclaims": "2", "requests.storage": "4Gi",
        "fast.storageclass.storage.k8s.io/requests.storage": "1Gi", "none.storageclass.storage.k8s.io/persistentvolumeclaims": "0",
        "configmaps": "3", "count/deployments.apps": "2"});
    assert_eq!(used(json!({"hard": hard}), &[], &services, &claims, &[("configmaps", 3), ("count/deployments.apps", 2)]), want);
}

#[test]
fn a_right_status_is_left_alone_and_others_figures_stay() {
    let quota: ResourceQuota = serde_json::from_value(json!({"metadata": {}, "spec": {"hard": {"pods": "5", "theirs": "3"}},
        "status": {"hard": {"pods": "5", "theirs": "3"}, "used": {"pods": "0", "theirs": "2"}}}))
    .unwrap();
    let counts = BTreeMap::new();
    let planned = |quota: &ResourceQuota| {
        plan(&Observed { quota, pods: &[], services: &[], claims: &[], counts: &counts, now: "2026-01-01T00:00:00Z".parse().unwrap() })
    };
    assert_eq!(planned(&quota), None);
    let mut raised = quota;
    raised.spec.hard.insert("pods".into(), json!("6"));
    assert_eq!(planned(&raised).unwrap(), json!({"hard": {"pods": "6", "theirs": "3"}, "used": {"pods": "0", "theirs": "2"}}));
}

#[test]
fn names_and_amounts_follow_the_reference() {
    for (name, want) in [
        ("requests.memory", Some(Counted::Pods)),
        ("hugepages-2Mi", Some(Counted::Pods)),
        ("requests.example.com/gpu", Some(Counted::Pods)),
        ("limits.example.com/gpu", None),
        ("example.com/gpu", None),
        ("count/pods", Some(Counted::Pods)),
        ("count/jobs.batch", Some(Counted::Objects { plural: "jobs".into(), group: "batch".into() })),
        ("count/w.stable.example.com", Some(Counted::Objects { plural: "w".into(), group: "stable.example.com".into() })),
        ("secrets", Some(Counted::Objects { plural: "secrets".into(), group: String::new() })),
    ] {
        assert_eq!(counted_by(name), want, "{name}");
    }
    for (text, want) in
        [("0", "0"), ("1024Mi", "1Gi"), ("2G", "2G"), ("1000", "1k"), ("1024", "1Ki"), ("1500m", "1500m"), ("2000m", "2"), ("999", "999")]
    {
        assert_eq!(canonical(text.parse().unwrap()), want, "{text}");
    }
}
