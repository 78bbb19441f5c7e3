//! The controllers against a real API server on a real etcd, driven by real kubectl, each controller under its own service account.
//!
//! Only the kubelet is missing: [`run_pods`] says of every pod what a kubelet would.

#[allow(dead_code, reason = "what other users of the cluster need")]
#[path = "../../kube-apiserver/examples/dev-cluster/cluster.rs"]
mod cluster;

use std::ffi::OsString;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use cluster::Cluster;
use serde_json::{Value, json};

fn run(cluster: &Cluster, args: &[&str], input: Option<&Value>) -> Result<String, String> {
    let mut command = cluster.kubectl(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    if let Some(input) = input {
        std::io::Write::write_all(&mut stdin, input.to_string().as_bytes()).unwrap();
    }
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    if out.status.success() { Ok(String::from_utf8(out.stdout).unwrap()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

fn kubectl(cluster: &Cluster, args: &[&str]) -> String {
    run(cluster, args, None).unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
}

fn create(cluster: &Cluster, object: &Value, extra: &[&str]) {
    let args: Vec<&str> = ["create", "-f", "-"].iter().chain(extra).copied().collect();
    run(cluster, &args, Some(object)).unwrap_or_else(|error| panic!("creating {object}: {error}"));
}

fn get(cluster: &Cluster, args: &[&str]) -> Value {
    let all: Vec<&str> = ["get", "-o", "json"].iter().chain(args).copied().collect();
    run(cluster, &all, None).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
}

/// Waits until `done`, playing kubelet meanwhile.
fn eventually(cluster: &Cluster, what: &str, done: impl Fn() -> bool) {
    without_kubelet(cluster, what, || {
        let done = done();
        if !done {
            run_pods(cluster);
        }
        done
    });
}

/// Waits until `done`; pods stay as they are.
fn without_kubelet(cluster: &Cluster, what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "did not happen: {what}\n{}", kubectl(cluster, &["get", "all", "-A"]));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Pods that always restart run and become ready; others succeed.
fn run_pods(cluster: &Cluster) {
    let pods = get(cluster, &["pods", "-A"]);
    for (n, pod) in pods["items"].as_array().into_iter().flatten().enumerate() {
        if pod["status"]["phase"] != "Pending" || pod["metadata"]["deletionTimestamp"].is_string() {
            continue;
        }
        let status = if pod["spec"]["restartPolicy"] == "Always" {
            json!({"phase": "Running", "podIP": format!("10.244.0.{}", n + 1), "podIPs": [{"ip": format!("10.244.0.{}", n + 1)}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
        } else {
            json!({"phase": "Succeeded"})
        };
        let (namespace, name) = (pod["metadata"]["namespace"].as_str().unwrap(), pod["metadata"]["name"].as_str().unwrap());
        let patch = json!({"status": status}).to_string();
        // It may have been deleted meanwhile.
        let _ = run(cluster, &["-n", namespace, "patch", "pod", name, "--subresource=status", "-p", &patch], None);
    }
}

#[test]
fn controllers_move_a_real_cluster_to_what_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(directory.path());
    let file = |name: &str| cluster.dir.join(name).display().to_string();
    let kubeconfig = file("kube-controller-manager.kubeconfig");
    let args = [
        "kube-controller-manager".to_string(),
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--secure-port=0".into(),
        // A machine short of processors is no reason to give up here.
        "--leader-elect=false".into(),
        "--use-service-account-credentials=true".into(),
        "--controllers=*,bootstrapsigner,tokencleaner".into(),
        "--allocate-node-cidrs=true".into(),
        "--cluster-cidr=10.244.0.0/16".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--service-account-private-key-file={}", file("sa.key")),
    ];
    std::thread::spawn(move || kube_controller_manager::main(args.into_iter().map(OsString::from)));

    namespaces_get_what_pods_need(&cluster);
    nodes_get_pod_ranges(&cluster);
    a_deployment_rolls_out_and_its_service_follows(&cluster);
    deleting_an_owner_deletes_what_it_owns(&cluster);
    a_job_completes(&cluster);
    a_job_takes_back_what_lost_it_and_lets_go_what_it_does_not_want(&cluster);
    a_jobs_policies_decide_how_it_ends(&cluster);
    a_sets_claims_go_as_its_policy_says(&cluster);
    an_autoscaler_keeps_its_target_within_bounds(&cluster);
    a_secret_gets_its_accounts_token(&cluster);
    service_ranges_are_ready_and_kept_while_used(&cluster);
    a_drivers_volume_is_attached_for_a_pod_and_detached_after_it(&cluster);
    a_pod_leaves_a_device_that_is_tainted_under_it(&cluster);
    a_bootstrapping_kubelet_gets_its_certificate_and_nobody_else(&cluster);
    a_policys_expressions_are_checked_against_the_kinds_it_is_about(&cluster);
    a_deleted_namespace_is_emptied_and_goes(&cluster);
}

fn a_policys_expressions_are_checked_against_the_kinds_it_is_about(cluster: &Cluster) {
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "typed"},
        "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}]},
            "validations": [{"expression": "object.spec.replicas > 1"}, {"expression": "object.spec.replicas > '1'"}]}});
    create(cluster, &policy, &[]);
    eventually(cluster, "the policy's types are checked", || {
        get(cluster, &["validatingadmissionpolicy", "typed"])["status"]["observedGeneration"] == 1
    });
    let policy = get(cluster, &["validatingadmissionpolicy", "typed", "--show-managed-fields"]);
    let warnings = policy["status"]["typeChecking"]["expressionWarnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{policy}");
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[1].expression");
    let warning = warnings[0]["warning"].as_str().unwrap();
    assert!(warning.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_'"), "{warning}");
    let managers = policy["metadata"]["managedFields"].as_array().unwrap();
    let manager = managers.iter().find(|m| m["manager"] == "validatingadmissionpolicy-status-controller").unwrap();
    assert_eq!((&manager["operation"], &manager["subresource"]), (&json!("Apply"), &json!("status")));
    kubectl(cluster, &["delete", "validatingadmissionpolicy", "typed"]);
}

fn namespaces_get_what_pods_need(cluster: &Cluster) {
    kubectl(cluster, &["create", "namespace", "t"]);
    eventually(cluster, "service account and CA in a new namespace", || {
        get(cluster, &["-n", "t", "serviceaccount", "default"]).is_object()
            && get(cluster, &["-n", "t", "configmap", "kube-root-ca.crt"])["data"]["ca.crt"]
                .as_str()
                .is_some_and(|ca| ca.contains("BEGIN CERTIFICATE"))
    });
}

fn nodes_get_pod_ranges(cluster: &Cluster) {
    for name in ["n1", "n2"] {
        create(cluster, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}), &[]);
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}).to_string();
        kubectl(cluster, &["patch", "node", name, "--subresource=status", "-p", &ready]);
    }
    eventually(cluster, "a range for each node", || {
        let nodes = get(cluster, &["nodes"]);
        let mut ranges: Vec<_> =
            nodes["items"].as_array().unwrap().iter().map(|node| node["spec"]["podCIDR"].as_str().unwrap_or("").to_string()).collect();
        ranges.sort();
        ranges == ["10.244.0.0/24", "10.244.1.0/24"]
    });
}

fn a_deployment_rolls_out_and_its_service_follows(cluster: &Cluster) {
    kubectl(cluster, &["create", "deployment", "web", "--image=web:1", "--replicas=3", "--port=8080"]);
    kubectl(cluster, &["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    eventually(cluster, "three pods behind the service", || {
        let slices = get(cluster, &["endpointslices", "-l", "kubernetes.io/service-name=web"]);
        let endpoints = slices["items"][0]["endpoints"].as_array().map_or(0, Vec::len);
        endpoints == 3 && get(cluster, &["deployment", "web"])["status"]["availableReplicas"] == 3
    });
    let subset = &get(cluster, &["endpoints", "web"])["subsets"][0];
    assert_eq!((subset["addresses"].as_array().unwrap().len(), &subset["ports"][0]["port"]), (3, &json!(8080)));

    let is_rolled_out = |revision: &str| {
        let deployment = get(cluster, &["deployment", "web"]);
        deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == revision
            && deployment["status"]["updatedReplicas"] == 3
            && deployment["status"]["replicas"] == 3
            && deployment["status"]["availableReplicas"] == 3
    };
    kubectl(cluster, &["set", "image", "deployment/web", "web=web:2"]);
    eventually(cluster, "the second revision", || is_rolled_out("2"));
    kubectl(cluster, &["rollout", "undo", "deployment/web"]);
    eventually(cluster, "the first revision again, as the third", || is_rolled_out("3"));
    assert_eq!(get(cluster, &["replicasets", "-l", "app=web"])["items"].as_array().unwrap().len(), 2);
    kubectl(cluster, &["scale", "deployment/web", "--replicas=1"]);
    eventually(cluster, "one pod", || get(cluster, &["pods", "-l", "app=web"])["items"].as_array().unwrap().len() == 1);
}

fn deleting_an_owner_deletes_what_it_owns(cluster: &Cluster) {
    kubectl(cluster, &["delete", "deployment", "web", "--cascade=orphan"]);
    std::thread::sleep(Duration::from_secs(2));
    let sets = get(cluster, &["replicasets", "-l", "app=web"]);
    assert_eq!(sets["items"].as_array().unwrap().len(), 2, "orphans stay");
    assert!(sets["items"][0]["metadata"]["ownerReferences"].is_null());
    kubectl(cluster, &["delete", "replicasets", "-l", "app=web", "--wait=false"]);
    eventually(cluster, "no set and no pod", || {
        get(cluster, &["replicasets,pods", "-l", "app=web"])["items"].as_array().is_some_and(Vec::is_empty)
    });
    kubectl(cluster, &["delete", "service", "web"]);
    eventually(cluster, "no slice", || {
        get(cluster, &["endpointslices", "-l", "kubernetes.io/service-name=web"])["items"].as_array().is_some_and(Vec::is_empty)
    });
}

fn a_job_completes(cluster: &Cluster) {
    kubectl(cluster, &["create", "job", "j", "--image=x"]);
    eventually(cluster, "a complete job", || {
        let status = &get(cluster, &["job", "j"])["status"];
        status["succeeded"] == 1 && status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Complete")
    });
    let pods = get(cluster, &["pods", "-l", "job-name=j"]);
    assert!(pods["items"][0]["metadata"]["finalizers"].is_null(), "a counted pod is free to go");
}

fn a_job_takes_back_what_lost_it_and_lets_go_what_it_does_not_want(cluster: &Cluster) {
    kubectl(cluster, &["create", "job", "orphans", "--image=x"]);
    let pods = || get(cluster, &["pods", "-l", "job-name=orphans"])["items"].as_array().cloned().unwrap_or_default();
    without_kubelet(cluster, "the job's pod", || pods().len() == 1);
    let name = pods()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let pod = || get(cluster, &["pod", &name])["metadata"].clone();
    kubectl(cluster, &["patch", "pod", &name, "--type=merge", "-p", r#"{"metadata": {"ownerReferences": null, "finalizers": null}}"#]);
    without_kubelet(cluster, "the pod to be the job's again", || pod()["ownerReferences"][0]["name"] == "orphans");
    assert_eq!(pod()["finalizers"], json!(["batch.kubernetes.io/job-tracking"]), "it is counted again");

    let labels = r#"{"metadata": {"labels": {"controller-uid": null, "batch.kubernetes.io/controller-uid": null}}}"#;
    kubectl(cluster, &["patch", "pod", &name, "--type=merge", "-p", labels]);
    without_kubelet(cluster, "the pod to be nobody's", || pod()["ownerReferences"].is_null() && pod()["finalizers"].is_null());
    kubectl(cluster, &["delete", "job/orphans", &format!("pod/{name}")]);
}

fn a_jobs_policies_decide_how_it_ends(cluster: &Cluster) {
    let job = |name: &str, spec: Value| {
        let mut job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"completionMode": "Indexed", "completions": 3,
            "parallelism": 3, "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}});
        for (key, value) in spec.as_object().unwrap() {
            job["spec"][key] = value.clone();
        }
        create(cluster, &job, &[]);
    };
    let has = |name: &str, kind: &str, reason: &str| {
        let conditions = get(cluster, &["job", name])["status"]["conditions"].clone();
        conditions.as_array().into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True" && c["reason"] == reason)
    };
    // The first pod of index 0 that is seen fails with that code; the others succeed.
    let fail = |name: &str| {
        let mut pods = Vec::new();
        for _ in 0..300 {
            let list = get(cluster, &["pods", "-l", &format!("job-name={name},batch.kubernetes.io/job-completion-index=0")]);
            pods = list["items"].as_array().cloned().unwrap_or_default();
            if !pods.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let status = json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "c", "image": "x", "imageID": "x", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 42, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z"}}}]}});
        kubectl(
            cluster,
            &["patch", "pod", pods[0]["metadata"]["name"].as_str().unwrap(), "--subresource=status", "-p", &status.to_string()],
        );
    };
    job("indexes", json!({"backoffLimitPerIndex": 0}));
    fail("indexes");
    eventually(cluster, "a job with a failed index", || has("indexes", "Failed", "FailedIndexes"));
    let status = get(cluster, &["job", "indexes"])["status"].clone();
    assert_eq!((&status["failedIndexes"], &status["completedIndexes"], &status["failed"]), (&json!("0"), &json!("1,2"), &json!(1)));

    let rules = json!([{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]);
    job("policy", json!({"podFailurePolicy": {"rules": rules}}));
    fail("policy");
    eventually(cluster, "a job that its policy ended", || has("policy", "Failed", "PodFailurePolicy"));
    job("success", json!({"successPolicy": {"rules": [{"succeededIndexes": "1"}]}}));
    eventually(cluster, "a job that is content with one index", || {
        has("success", "Complete", "SuccessPolicy") || has("success", "Complete", "CompletionsReached")
    });
    job("foreign", json!({"managedBy": "example.com/queue"}));
    std::thread::sleep(Duration::from_secs(1));
    assert!(get(cluster, &["pods", "-l", "job-name=foreign"])["items"].as_array().unwrap().is_empty());
}

fn a_sets_claims_go_as_its_policy_says(cluster: &Cluster) {
    let claim =
        json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {"serviceName": "db", "replicas": 2,
        "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "db"}}, "volumeClaimTemplates": [claim],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    create(cluster, &set, &[]);
    let claims = || {
        let list = get(cluster, &["pvc", "-l", "app=db"]);
        list["items"].as_array().unwrap().iter().map(|c| c["metadata"]["name"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let available = |n: i32| get(cluster, &["statefulset", "db"])["status"]["availableReplicas"] == n;
    eventually(cluster, "two pods with their claims", || available(2) && claims() == ["data-db-0", "data-db-1"]);
    eventually(cluster, "claims owned by the set", || {
        get(cluster, &["pvc", "data-db-1"])["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet"
    });
    kubectl(cluster, &["scale", "statefulset/db", "--replicas=1"]);
    eventually(cluster, "a claim gone with its pod", || claims() == ["data-db-0"]);
    kubectl(cluster, &["delete", "statefulset", "db", "--wait=false"]);
    eventually(cluster, "no claim", || claims().is_empty());
}

fn an_autoscaler_keeps_its_target_within_bounds(cluster: &Cluster) {
    kubectl(cluster, &["create", "deployment", "load", "--image=x", "--replicas=1"]);
    kubectl(cluster, &["autoscale", "deployment", "load", "--min=3", "--max=5", "--cpu-percent=50"]);
    eventually(cluster, "the least number", || get(cluster, &["deployment", "load"])["spec"]["replicas"] == 3);
    let condition = |kind: &str| {
        let conditions = get(cluster, &["hpa", "load"])["status"]["conditions"].clone();
        conditions.as_array().into_iter().flatten().find(|c| c["type"] == kind).map(|c| c["reason"].as_str().unwrap().to_string())
    };
    eventually(cluster, "a new size, and why there are no metrics", || {
        condition("ScalingActive").as_deref() == Some("FailedGetResourceMetric")
            && condition("AbleToScale").as_deref() == Some("SucceededGetScale")
    });
    kubectl(cluster, &["delete", "hpa,deployment", "load"]);
}

fn a_secret_gets_its_accounts_token(cluster: &Cluster) {
    kubectl(cluster, &["create", "serviceaccount", "robot"]);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "robot", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token"});
    create(cluster, &secret, &[]);
    let token = || get(cluster, &["secret", "robot"])["data"]["token"].as_str().map(str::to_string);
    eventually(cluster, "a token", || token().is_some());
    let token = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(token().unwrap()).unwrap()).unwrap();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let answer = run(cluster, &["create", "-o", "json", "-f", "-"], Some(&review)).unwrap();
    let status = serde_json::from_str::<Value>(&answer).unwrap()["status"].clone();
    assert_eq!((&status["authenticated"], &status["user"]["username"]), (&json!(true), &json!("system:serviceaccount:default:robot")));
    kubectl(cluster, &["delete", "serviceaccount", "robot"]);
    eventually(cluster, "the secret goes with its account", || get(cluster, &["secret", "robot"]).is_null());
}

fn service_ranges_are_ready_and_kept_while_used(cluster: &Cluster) {
    let ready = |name: &str, reason: &str| {
        let conditions = get(cluster, &["servicecidr", name])["status"]["conditions"].clone();
        conditions.as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["reason"] == reason)
    };
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/24"]}});
    create(cluster, &range, &[]);
    eventually(cluster, "a ready range", || ready("kubernetes", "NetworkReady") && ready("more", "NetworkReady"));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "there"}, "spec": {"clusterIP": "10.97.0.7", "ports": [{"port": 80}]}});
    eventually(cluster, "an address of the new range", || run(cluster, &["create", "-f", "-"], Some(&service)).is_ok());
    kubectl(cluster, &["delete", "servicecidr", "more", "--wait=false"]);
    eventually(cluster, "a range that waits", || ready("more", "ServiceCIDRTerminating"));
    kubectl(cluster, &["delete", "service", "there"]);
    eventually(cluster, "no range", || get(cluster, &["servicecidr", "more"]).is_null());
}

/// The driver, the kubelet and the scheduler are played; the rest is real.
fn a_drivers_volume_is_attached_for_a_pod_and_detached_after_it(cluster: &Cluster) {
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "with-volumes", "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
    create(cluster, &node, &[]);
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": "silver"}, "driverName": "d.example.com",
        "parameters": {"iops": "1"}});
    create(cluster, &class, &[]);
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "of-driver"}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeAttributesClassName": "silver",
        "persistentVolumeReclaimPolicy": "Retain", "csi": {"driver": "d.example.com", "volumeHandle": "h"},
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default", "name": "data"}}});
    create(cluster, &volume, &[]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "default"},
        "spec": {"storageClassName": "", "volumeName": "of-driver", "volumeAttributesClassName": "silver", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
    create(cluster, &claim, &[]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader", "namespace": "default"}, "spec": {"nodeName": "with-volumes",
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    create(cluster, &pod, &[]);

    let attachment = || get(cluster, &["volumeattachments"])["items"].as_array().and_then(|all| all.first().cloned());
    eventually(cluster, "an attachment", || attachment().is_some());
    let made = attachment().unwrap();
    let wanted = json!({"attacher": "d.example.com", "nodeName": "with-volumes", "source": {"persistentVolumeName": "of-driver"}});
    assert_eq!(made["spec"], wanted);
    let told = || get(cluster, &["node", "with-volumes"])["status"]["volumesAttached"].clone();
    assert!(told().is_null(), "the driver has not answered");
    let name = made["metadata"]["name"].as_str().unwrap();
    kubectl(
        cluster,
        &["patch", "volumeattachment", name, "--subresource=status", "--type=merge", "-p", r#"{"status": {"attached": true}}"#],
    );
    eventually(cluster, "the node is told", || told() == json!([{"name": "kubernetes.io/csi/d.example.com^h", "devicePath": ""}]));

    let in_use = json!({"status": {"volumesInUse": ["kubernetes.io/csi/d.example.com^h"],
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2099-01-01T00:00:00Z"}]}});
    kubectl(cluster, &["patch", "node", "with-volumes", "--subresource=status", "-p", &in_use.to_string()]);
    kubectl(cluster, &["delete", "pod", "reader", "--force"]);
    std::thread::sleep(Duration::from_secs(1));
    assert!(attachment().is_some_and(|a| a["metadata"]["deletionTimestamp"].is_null()), "the node still uses it");
    kubectl(
        cluster,
        &["patch", "node", "with-volumes", "--subresource=status", "--type=merge", "-p", r#"{"status": {"volumesInUse": null}}"#],
    );
    eventually(cluster, "nothing is attached", || attachment().is_none() && told().is_null());

    // The class stays while a volume or a claim names it.
    kubectl(cluster, &["delete", "volumeattributesclass", "silver", "--wait=false"]);
    std::thread::sleep(Duration::from_secs(1));
    assert!(!get(cluster, &["volumeattributesclass", "silver"]).is_null());
    kubectl(cluster, &["delete", "pvc", "data", "--wait=false"]);
    eventually(cluster, "no claim", || get(cluster, &["pvc", "data"]).is_null());
    kubectl(cluster, &["delete", "pv", "of-driver", "--wait=false"]);
    eventually(cluster, "no class", || get(cluster, &["volumeattributesclass", "silver"]).is_null());
    kubectl(cluster, &["delete", "node", "with-volumes"]);
}

fn a_pod_leaves_a_device_that_is_tainted_under_it(cluster: &Cluster) {
    let slice = |device: Value| {
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "of-n1"}, "spec": {"nodeName": "n1",
            "driver": "d.example.com", "pool": {"name": "n1", "generation": 1, "resourceSliceCount": 1}, "devices": [device]}})
    };
    create(cluster, &slice(json!({"name": "gpu-0"})), &[]);
    let request = json!({"name": "r", "exactly": {"deviceClassName": "gpus"}});
    for name in ["patient", "hurt"] {
        let tolerations = if name == "patient" { json!([{"operator": "Exists"}]) } else { json!([]) };
        let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": "default"},
            "spec": {"devices": {"requests": [request]}}});
        create(cluster, &claim, &[]);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": {"nodeName": "n1",
            "containers": [{"name": "c", "image": "i"}], "resourceClaims": [{"name": "gpu", "resourceClaimName": name}]}});
        create(cluster, &pod, &[]);
        let uid = get(cluster, &["pod", name])["metadata"]["uid"].clone();
        let result = json!({"request": "r", "driver": "d.example.com", "pool": "n1", "device": "gpu-0", "tolerations": tolerations});
        let status = json!({"status": {"allocation": {"devices": {"results": [result]}}, "reservedFor": [{"resource": "pods", "name": name, "uid": uid}]}});
        kubectl(cluster, &["patch", "resourceclaim", name, "--subresource=status", "--type=merge", "-p", &status.to_string()]);
    }

    let taint = json!({"name": "gpu-0", "taints": [{"key": "d.example.com/unhealthy", "effect": "NoExecute"}]});
    run(cluster, &["replace", "-f", "-"], Some(&slice(taint))).unwrap();
    eventually(cluster, "the pod goes", || get(cluster, &["pod", "hurt"])["metadata"]["deletionTimestamp"].is_string());
    let conditions = get(cluster, &["pod", "hurt"])["status"]["conditions"].clone();
    let told = conditions.as_array().unwrap().iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&told["status"], &told["reason"]), (&json!("True"), &json!("DeletionByDeviceTaintManager")));
    assert!(get(cluster, &["pod", "patient"])["metadata"]["deletionTimestamp"].is_null(), "it tolerates whatever there is");
    let taints = &get(cluster, &["resourceslice", "of-n1"])["spec"]["devices"][0]["taints"];
    assert!(taints[0]["timeAdded"].is_string(), "taints count from when they came: {taints}");

    kubectl(cluster, &["delete", "pod", "hurt", "patient", "--force"]);
    kubectl(cluster, &["delete", "resourceclaim", "hurt", "patient", "--wait=false"]);
    kubectl(cluster, &["delete", "resourceslice", "of-n1"]);
}

fn request(name: &str, common_name: &str, organization: &str) -> Value {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name}, "spec": {
        "request": base64::engine::general_purpose::STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
        "usages": ["digital signature", "client auth"]}})
}

fn a_bootstrapping_kubelet_gets_its_certificate_and_nobody_else(cluster: &Cluster) {
    for role in ["system:node-bootstrapper", "system:certificates.k8s.io:certificatesigningrequests:nodeclient"] {
        let name = role.rsplit(':').next().unwrap();
        kubectl(cluster, &["create", "clusterrolebinding", name, "--clusterrole", role, "--group=system:bootstrappers"]);
    }
    let bootstrapper = ["--as=system:bootstrap:abcdef", "--as-group=system:bootstrappers", "--as-group=system:authenticated"];
    create(cluster, &request("good", "system:node:n1", "system:nodes"), &bootstrapper);
    create(cluster, &request("greedy", "system:node:n1", "system:masters"), &bootstrapper);
    let certificate = || get(cluster, &["csr", "good"])["status"]["certificate"].as_str().map(str::to_string);
    eventually(cluster, "a certificate", || certificate().is_some());
    let pem = base64::engine::general_purpose::STANDARD.decode(certificate().unwrap()).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    assert_eq!(pem.parse_x509().unwrap().subject().to_string(), "O=system:nodes, CN=system:node:n1");
    assert!(get(cluster, &["csr", "greedy"])["status"]["conditions"].is_null());
}

fn a_deleted_namespace_is_emptied_and_goes(cluster: &Cluster) {
    kubectl(cluster, &["-n", "t", "create", "deployment", "x", "--image=x", "--replicas=2"]);
    kubectl(cluster, &["-n", "t", "create", "secret", "generic", "s", "--from-literal=a=b"]);
    eventually(cluster, "pods in the namespace", || get(cluster, &["-n", "t", "pods"])["items"].as_array().unwrap().len() == 2);
    kubectl(cluster, &["delete", "namespace", "t", "--wait=false"]);
    eventually(cluster, "the namespace is gone", || get(cluster, &["namespace", "t"]).is_null());
    assert!(get(cluster, &["-n", "t", "pods,secrets,deployments"])["items"].as_array().is_none_or(Vec::is_empty));
}
