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
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "did not happen: {what}\n{}", kubectl(cluster, &["get", "all", "-A"]));
        run_pods(cluster);
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
        "--use-service-account-credentials=true".into(),
        "--controllers=*,bootstrapsigner,tokencleaner".into(),
        "--allocate-node-cidrs=true".into(),
        "--cluster-cidr=10.244.0.0/16".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        format!("--root-ca-file={}", file("ca.crt")),
    ];
    std::thread::spawn(move || kube_controller_manager::main(args.into_iter().map(OsString::from)));

    namespaces_get_what_pods_need(&cluster);
    nodes_get_pod_ranges(&cluster);
    a_deployment_rolls_out_and_its_service_follows(&cluster);
    deleting_an_owner_deletes_what_it_owns(&cluster);
    a_job_completes(&cluster);
    a_bootstrapping_kubelet_gets_its_certificate_and_nobody_else(&cluster);
    a_deleted_namespace_is_emptied_and_goes(&cluster);
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
