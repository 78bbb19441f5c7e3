//! What protects a cluster, on a real server and a real etcd: Pod Security Standards, the audit log, priority and fairness.

#[path = "../examples/dev-cluster/cluster.rs"]
mod cluster;

use std::{ffi::OsString, fs, path::Path, sync::Arc, time::Duration};

use cluster::Cluster;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, body::Bytes};
use hyper_util::rt::TokioIo;
use kube_client::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A server with more flags, and the administrator's client.
async fn serve(dir: &Path, more: &[String]) -> (Cluster, Client) {
    let (path, more) = (dir.to_owned(), more.iter().map(OsString::from).collect::<Vec<_>>());
    let cluster = tokio::task::spawn_blocking(move || Cluster::start_with(&path, more)).await.unwrap();
    let client = client(&cluster, "admin").await;
    (cluster, client)
}

async fn client(cluster: &Cluster, who: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join(format!("{who}.kubeconfig"))).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().map(|w| w.to_str().unwrap()).collect()
    }
}

async fn call(client: &Client, method: Method, path: &str, body: Value) -> Answer {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).header("accept", "application/json");
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let response = client.send(request.body(Body::from(bytes)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into());
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

/// A request over a connection of its own. The client above asks again by itself when it is told to come back.
async fn once(cluster: &Cluster, who: &str, path: &str) -> Answer {
    let file = |name: String| cluster.dir.join(name);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.crt".into())).unwrap()).unwrap();
    let certs = vec![CertificateDer::from_pem_file(file(format!("{who}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(file(format!("{who}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_client_auth_cert(certs, key).unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", cluster.port)).await.unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = Request::builder().uri(path).header("host", "localhost").body(Full::new(Bytes::new())).unwrap();
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    driver.abort();
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into());
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

async fn done(client: &Client, method: Method, path: &str, body: Value) -> Answer {
    let a = call(client, method, path, body).await;
    assert!(a.code < 300, "{path}: {} {}", a.code, a.body);
    a
}

async fn namespace(client: &Client, name: &str, labels: Value) {
    done(client, Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}})).await;
    let account = json!({"metadata": {"name": "default"}});
    done(client, Method::POST, &format!("/api/v1/namespaces/{name}/serviceaccounts"), account).await;
}

const PRIVILEGED: &str = "container \\\"c\\\" must not set securityContext.privileged=true";

fn pod(name: &str, privileged: bool) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": privileged}}]}})
}

fn events(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

/// Waits for an event, as those of streams are written when nobody waits for them.
async fn event(path: &Path, what: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..200 {
        if let Some(e) = events(path).into_iter().find(&what) {
            return e;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no such event among {:#?}", events(path));
}

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- {level: None, nonResourceURLs: ["/readyz*", "/metrics"]}
- {level: RequestResponse, resources: [{resources: [configmaps, pods, deployments]}, {group: apps, resources: [deployments]}]}
- {level: Metadata, omitStages: [RequestReceived]}
"#;

const ADMISSION: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {warn: baseline, audit: baseline}
    exemptions: {namespaces: [exempt]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_judged_and_everything_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (policy, admission, log) = (dir.path().join("policy.yaml"), dir.path().join("admission.yaml"), dir.path().join("logs/audit.log"));
    fs::write(&policy, POLICY).unwrap();
    fs::write(&admission, ADMISSION).unwrap();
    let flags = [
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", log.display()),
        format!("--admission-control-config-file={}", admission.display()),
    ];
    let (cluster, admin) = serve(&dir.path().join("c"), &flags).await;

    // Refused, warned of, exempt.
    namespace(&admin, "strict", json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "privileged"}))
        .await;
    let refused = call(&admin, Method::POST, "/api/v1/namespaces/strict/pods", pod("p", true)).await;
    assert_eq!(refused.code, 403);
    let why = format!("violates PodSecurity \"baseline:latest\": privileged ({})", PRIVILEGED.replace('\\', ""));
    assert_eq!(refused.body["message"], format!("pods \"p\" is forbidden: {why}"));
    let e = event(&log, |e| e["stage"] == "ResponseComplete" && e["verb"] == "create" && e["objectRef"]["name"] == "p").await;
    assert_eq!(e["level"], "RequestResponse");
    assert_eq!(e["responseStatus"]["code"], 403);
    assert_eq!(e["responseStatus"]["reason"], "Forbidden");
    assert_eq!(e["annotations"]["pod-security.kubernetes.io/enforce-policy"], "baseline:latest");
    assert_eq!(e["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(e["auditID"], refused.headers["audit-id"].to_str().unwrap());
    let violations = e["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().unwrap();
    assert!(violations.starts_with("would violate PodSecurity \"baseline:latest\": privileged"), "{violations}");
    namespace(&admin, "lax", Value::Null).await;
    let warned = done(&admin, Method::POST, "/api/v1/namespaces/lax/pods", pod("p", true)).await;
    assert_eq!(warned.warnings(), [format!("299 - \"would violate PodSecurity \\\"baseline:latest\\\": privileged ({PRIVILEGED})\"")]);
    let labels = json!({"a": "b"});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"hostPID": true, "containers": [{"name": "c", "image": "i"}]}}}});
    let warned = done(&admin, Method::POST, "/apis/apps/v1/namespaces/strict/deployments", deployment.clone()).await;
    assert!(warned.warnings().is_empty(), "{:?}", warned.warnings());
    let e = event(&log, |e| e["stage"] == "ResponseComplete" && e["objectRef"]["resource"] == "deployments").await;
    assert!(e["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().unwrap().contains("host namespaces (hostPID=true)"));
    let warned = done(&admin, Method::POST, "/apis/apps/v1/namespaces/lax/deployments", deployment).await;
    assert_eq!(warned.warnings(), ["299 - \"would violate PodSecurity \\\"baseline:latest\\\": host namespaces (hostPID=true)\""]);
    namespace(&admin, "exempt", json!({"pod-security.kubernetes.io/enforce": "restricted"})).await;
    assert!(done(&admin, Method::POST, "/api/v1/namespaces/exempt/pods", pod("p", true)).await.warnings().is_empty());
    let e = event(&log, |e| {
        e["objectRef"]["namespace"] == "exempt"
            && e["stage"] == "ResponseComplete"
            && e["verb"] == "create"
            && e["objectRef"]["resource"] == "pods"
    })
    .await;
    assert_eq!(e["annotations"]["pod-security.kubernetes.io/exempt"], "namespace");

    // A stricter namespace tells of the pods that are there.
    let patch = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    let told = done(&admin, Method::PATCH, "/api/v1/namespaces/lax", patch).await;
    assert_eq!(
        told.warnings(),
        [
            "299 - \"existing pods in namespace \\\"lax\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"",
            "299 - \"p: privileged\""
        ]
    );
    let bad = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "zzz"}}});
    assert_eq!(call(&admin, Method::PATCH, "/api/v1/namespaces/lax", bad).await.code, 422);

    // Bodies, stages, a watch, a list that is a stream, and who nobody knows.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": "v".repeat(1000)}});
    done(&admin, Method::POST, "/api/v1/namespaces/lax/configmaps", map).await;
    let of = |verb: &'static str, stage: &'static str| {
        move |e: &Value| {
            e["verb"] == verb && e["stage"] == stage && e["objectRef"]["resource"] == "configmaps" && e["objectRef"]["namespace"] == "lax"
        }
    };
    let e = event(&log, of("create", "ResponseComplete")).await;
    assert_eq!((&e["requestObject"]["metadata"]["name"], &e["responseObject"]["data"]["k"]), (&json!("m"), &json!("v".repeat(1000))));
    assert!(e["responseObject"]["metadata"]["managedFields"].is_null() && !e["responseObject"]["metadata"]["uid"].is_null());
    let received = event(&log, of("create", "RequestReceived")).await;
    assert_eq!(received["auditID"], e["auditID"]);
    assert!(received["responseStatus"].is_null() && received["user"]["groups"].as_array().unwrap().contains(&json!("system:masters")));
    done(&admin, Method::GET, "/api/v1/namespaces/lax/configmaps", Value::Null).await;
    let e = event(&log, of("list", "ResponseComplete")).await;
    assert_eq!(e["responseObject"]["items"][0]["metadata"]["name"], "m");
    done(&admin, Method::GET, "/api/v1/namespaces/lax/configmaps?watch=true&timeoutSeconds=1", Value::Null).await;
    event(&log, of("watch", "ResponseStarted")).await;
    event(&log, of("watch", "ResponseComplete")).await;
    let kubelet = client(&cluster, "kubelet").await;
    assert_eq!(call(&kubelet, Method::GET, "/api/v1/namespaces/lax/secrets", Value::Null).await.code, 403);
    let e = event(&log, |e| e["objectRef"]["resource"] == "secrets").await;
    assert_eq!((&e["stage"], &e["level"]), (&json!("ResponseComplete"), &json!("Metadata")));
    assert_eq!((&e["annotations"]["authorization.k8s.io/decision"], &e["user"]["username"]), (&json!("forbid"), &json!("system:node:dev")));
    assert!(!events(&log).iter().any(|e| e["requestURI"].as_str().unwrap().starts_with("/readyz")));
    let metrics = done(&admin, Method::GET, "/metrics", Value::Null).await.body;
    for name in [
        "apiserver_audit_event_total ",
        "apiserver_audit_level_total{level=\"RequestResponse\"}",
        "pod_security_evaluations_total{decision=\"deny\",policy_level=\"baseline\"",
        "pod_security_exemptions_total{",
    ] {
        assert!(metrics.as_str().unwrap().contains(name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_belong_to_levels_and_a_level_without_seats_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, admin) = serve(&dir.path().join("c"), &[]).await;
    let base = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let exempt = done(&admin, Method::GET, &format!("{base}/prioritylevelconfigurations/exempt"), Value::Null).await;
    let header = |a: &Answer, h: &str| a.headers.get(h).map_or_else(String::new, |v| v.to_str().unwrap().to_owned());
    assert_eq!(header(&exempt, "x-kubernetes-pf-prioritylevel-uid"), exempt.body["metadata"]["uid"]);
    let mut settled = false;
    for _ in 0..200 {
        let schemas = done(&admin, Method::GET, &format!("{base}/flowschemas"), Value::Null).await.body;
        let items = schemas["items"].as_array().unwrap().clone();
        assert_eq!(items.len(), 11);
        settled = items.iter().all(|s| s["status"]["conditions"][0]["status"] == "False");
        if settled {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(settled, "every schema says that its level is there");

    let level = json!({"metadata": {"name": "jail"}, "spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}}});
    let schema = json!({"metadata": {"name": "jailed"}, "spec": {"matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "jail"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "system:node:dev"}}],
            "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"], "clusterScope": true}]}]}});
    let level = done(&admin, Method::POST, &format!("{base}/prioritylevelconfigurations"), level).await.body;
    let schema = done(&admin, Method::POST, &format!("{base}/flowschemas"), schema).await.body;
    let kubelet = client(&cluster, "kubelet").await;
    let until = async |code: u16| {
        for _ in 0..200 {
            let a = once(&cluster, "kubelet", "/api/v1/nodes/dev").await;
            if a.code == code {
                return a;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never {code}");
    };
    let refused = until(429).await;
    assert_eq!(refused.body, "Too many requests, please try again later.\n");
    assert_eq!(header(&refused, "retry-after"), "1");
    assert_eq!(header(&refused, "x-kubernetes-pf-flowschema-uid"), schema["metadata"]["uid"]);
    assert_eq!(header(&refused, "x-kubernetes-pf-prioritylevel-uid"), level["metadata"]["uid"]);
    // Other requests of the same user go elsewhere.
    assert_eq!(call(&kubelet, Method::GET, "/version", Value::Null).await.code, 200);
    let metrics = done(&admin, Method::GET, "/metrics", Value::Null).await.body;
    let metrics = metrics.as_str().unwrap();
    for line in [
        "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"jailed\",priority_level=\"jail\",reason=\"concurrency-limit\"}",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"jail\"} 0",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} 245",
        "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"exempt\",priority_level=\"exempt\"}",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    // A schema without its level is as if it were not there, and says so.
    done(&admin, Method::DELETE, &format!("{base}/prioritylevelconfigurations/jail"), Value::Null).await;
    until(404).await;
    for _ in 0..200 {
        let s = done(&admin, Method::GET, &format!("{base}/flowschemas/jailed"), Value::Null).await.body;
        if s["status"]["conditions"][0]["status"] == "True" && s["status"]["conditions"][0]["reason"] == "NotFound" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the schema does not say that its level is gone");
}
