//! Webhooks for real: HTTPS servers on loopback that admit and convert objects of a server on a real etcd.

#[path = "../examples/dev-cluster/cluster.rs"]
mod cluster;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as B64};
use cluster::Cluster;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use kube_client::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use pki::{Authority, LeafSpec};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A new server with the administrator's client.
async fn serve(dir: &tempfile::TempDir) -> (Cluster, Client) {
    let path = dir.path().to_owned();
    let cluster = tokio::task::spawn_blocking(move || Cluster::start(&path)).await.unwrap();
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join("admin.kubeconfig")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    (cluster, Client::try_from(config).unwrap())
}

struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

async fn send(client: &Client, method: Method, path: &str, kind: &str, body: Value) -> Answer {
    let request = Request::builder().method(method).uri(path).header("content-type", kind).header("accept", "application/json");
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let response = client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let warnings = response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer { code, warnings, body: serde_json::from_slice(&body).unwrap_or(Value::Null) }
}

async fn call(client: &Client, method: Method, path: &str, body: Value) -> Answer {
    send(client, method, path, "application/json", body).await
}

/// A call that must succeed; gives the object.
async fn done(client: &Client, method: Method, path: &str, body: Value) -> Value {
    let a = call(client, method, path, body).await;
    assert!(a.code < 300, "{path}: {} {}", a.code, a.body);
    a.body
}

/// A webhook server: what it answers to each path, and what it was asked.
struct Hooks {
    port: u16,
    ca: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Hooks {
    async fn start(answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static) -> Self {
        let now = jiff::Timestamp::now();
        let issued = Authority::generate("webhooks", now, Duration::from_secs(3600)).unwrap();
        let ca = Authority::from_pem(&issued.cert_pem, &issued.key_pem).unwrap();
        let spec = LeafSpec {
            common_name: "webhook".into(),
            organization: None,
            dns_names: vec!["localhost".into()],
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            server: true,
            client: false,
            lifetime: Duration::from_secs(3600),
        };
        let leaf = ca.issue(&spec, now).unwrap();
        let certs = vec![CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = TlsAcceptor::from(Arc::new(tls.with_no_client_auth().with_single_cert(certs, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, log, answer) = (tls.clone(), Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await?.to_bytes();
                            let review: Value = serde_json::from_slice(&body).unwrap();
                            let mut answered = answer(&path, &review["request"]);
                            log.lock().unwrap().push((path, review.clone()));
                            if let Some(code) = answered.as_u64() {
                                let response = Response::builder().status(u16::try_from(code).unwrap());
                                return Ok::<_, hyper::Error>(response.body(Full::new(Bytes::from_static(b"broken"))).unwrap());
                            }
                            answered["uid"] = review["request"]["uid"].clone();
                            let text =
                                json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": answered}).to_string();
                            Ok(Response::new(Full::new(Bytes::from(text))))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { port, ca: B64.encode(&issued.cert_pem), asked }
    }

    fn client(&self, path: &str) -> Value {
        json!({"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.ca})
    }

    fn paths(&self) -> Vec<String> {
        self.asked.lock().unwrap().drain(..).map(|(p, _)| p).collect()
    }

    fn requests(&self) -> Vec<Value> {
        self.asked.lock().unwrap().drain(..).map(|(_, r)| r["request"].clone()).collect()
    }

    /// A webhook for one kind of request, with `more` changed.
    fn hook(&self, name: &str, operations: Value, group: &str, resources: &str, more: Value) -> Value {
        let mut w = json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": self.client(&format!("/{name}")),
            "rules": [{"operations": operations, "apiGroups": [group], "apiVersions": ["v1"], "resources": [resources]}]});
        for (k, v) in more.as_object().unwrap() {
            w[k] = v.clone();
        }
        w
    }
}

async fn configure(client: &Client, kind: &str, name: &str, webhooks: Vec<Value>) {
    let plural = format!("{}s", kind.to_lowercase());
    let v = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": webhooks});
    done(client, Method::POST, &format!("/apis/admissionregistration.k8s.io/v1/{plural}"), v).await;
    settle(client).await;
}

/// What was written before is in the server's caches after a consistent read.
async fn settle(client: &Client) {
    done(client, Method::GET, "/api/v1/namespaces/default", Value::Null).await;
}

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

fn configmap(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}})
}

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": B64.encode(operations.to_string())})
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_webhooks_change_objects_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    let hooks = Hooks::start(|path, request| match path {
        "/first.example.com" => {
            // It counts how often it was asked about an object.
            let n = request["object"]["data"]["first"].as_str().map_or(0, |n| n.parse::<i32>().unwrap()) + 1;
            let data = request["object"]["data"].is_object();
            let op = if data {
                json!({"op": "add", "path": "/data/first", "value": n.to_string()})
            } else {
                json!({"op": "add", "path": "/data", "value": {"first": n.to_string()}})
            };
            let mut a = patch(json!([op]));
            a["warnings"] = json!(["counted"]);
            a
        }
        "/second.example.com" => patch(json!([{"op": "add", "path": "/data/second", "value": "x"}])),
        _ => json!({"allowed": true}),
    })
    .await;
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    // The configurations' names decide, not when they were made.
    configure(
        &client,
        "MutatingWebhookConfiguration",
        "b",
        vec![hooks.hook("second.example.com", json!(["CREATE"]), "", "configmaps", json!({}))],
    )
    .await;
    configure(
        &client,
        "MutatingWebhookConfiguration",
        "a",
        vec![hooks.hook("first.example.com", json!(["CREATE"]), "", "configmaps", again)],
    )
    .await;

    let a = call(&client, Method::POST, CONFIGMAPS, configmap("one", json!({}))).await;
    assert_eq!((a.code, &a.body["data"]), (201, &json!({"first": "2", "second": "x"})), "{}", a.body);
    assert_eq!(a.warnings, ["299 - \"counted\""]);
    assert_eq!(
        hooks.paths(),
        ["/first.example.com", "/second.example.com", "/first.example.com"],
        "asked again, as another changed the object"
    );
    let stored = done(&client, Method::GET, &format!("{CONFIGMAPS}/one"), Value::Null).await;
    assert_eq!(stored["data"], a.body["data"]);
    // Only creations are asked about.
    done(&client, Method::PUT, &format!("{CONFIGMAPS}/one"), configmap("one", json!({}))).await;
    done(&client, Method::DELETE, &format!("{CONFIGMAPS}/one"), Value::Null).await;
    assert_eq!(hooks.paths(), [""; 0]);
    done(&client, Method::POST, &format!("{CONFIGMAPS}?dryRun=All"), configmap("two", json!({}))).await;
    let request = hooks.requests().remove(0);
    assert_eq!((&request["dryRun"], &request["name"], &request["namespace"]), (&json!(true), &json!("two"), &json!("default")));
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["options"], json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "dryRun": ["All"]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn validating_webhooks_judge_what_their_rules_and_selectors_name() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    let hooks = Hooks::start(|path, request| match path {
        "/deny.example.com" => json!({"allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": "not this one"}}),
        "/broken.example.com" => json!(500),
        "/judge.example.com" => {
            json!({"allowed": request["operation"] != "DELETE" || request["oldObject"]["metadata"]["labels"]["keep"].is_null()})
        }
        _ => json!({"allowed": true}),
    })
    .await;
    let labelled = |l: &str| json!({"objectSelector": {"matchLabels": {"hook": l}}});
    let ignored = json!({"objectSelector": {"matchLabels": {"hook": "ignored"}}, "failurePolicy": "Ignore",
        "clientConfig": hooks.client("/broken.example.com")});
    let conditioned = json!({"objectSelector": {"matchLabels": {"hook": "conditions"}}, "failurePolicy": "Ignore",
        "matchConditions": [{"name": "c", "expression": "object.data.wanted == 'yes'"}]});
    let elsewhere = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-public"}},
        "clientConfig": hooks.client("/deny.example.com")});
    configure(
        &client,
        "ValidatingWebhookConfiguration",
        "all",
        vec![
            hooks.hook("deny.example.com", json!(["*"]), "", "configmaps", labelled("deny")),
            hooks.hook("broken.example.com", json!(["CREATE"]), "", "configmaps", labelled("broken")),
            hooks.hook("ignored.example.com", json!(["CREATE"]), "", "configmaps", ignored),
            hooks.hook("judge.example.com", json!(["DELETE", "UPDATE"]), "", "configmaps", labelled("judge")),
            hooks.hook("conditions.example.com", json!(["CREATE"]), "", "configmaps", conditioned),
            hooks.hook("elsewhere.example.com", json!(["CREATE"]), "", "configmaps", elsewhere),
            hooks.hook("scale.example.com", json!(["UPDATE"]), "apps", "deployments/scale", json!({})),
            hooks.hook("exec.example.com", json!(["CONNECT"]), "", "pods/*", json!({"clientConfig": hooks.client("/deny.example.com")})),
            // Version v1 of autoscalers stands for all of them.
            hooks.hook("equivalent.example.com", json!(["CREATE"]), "autoscaling", "horizontalpodautoscalers", json!({})),
        ],
    )
    .await;

    let a = call(&client, Method::POST, CONFIGMAPS, configmap("no", json!({"hook": "deny"}))).await;
    assert_eq!((a.code, &a.body["reason"]), (403, &json!("Forbidden")));
    assert_eq!(a.body["message"], "admission webhook \"deny.example.com\" denied the request: not this one");
    let a = call(&client, Method::POST, CONFIGMAPS, configmap("no", json!({"hook": "broken"}))).await;
    assert_eq!((a.code, &a.body["reason"]), (500, &json!("InternalError")));
    let message = a.body["message"].as_str().unwrap();
    assert!(
        message.starts_with("Internal error occurred: failed calling webhook \"broken.example.com\": failed to call webhook: "),
        "{message}"
    );
    hooks.paths();
    done(&client, Method::POST, CONFIGMAPS, configmap("ignored", json!({"hook": "ignored"}))).await;
    assert_eq!(hooks.paths(), ["/broken.example.com"]);
    let wanted = |name: &str, data: Value| {
        let mut map = configmap(name, json!({"hook": "conditions"}));
        map["data"] = data;
        map
    };
    done(&client, Method::POST, CONFIGMAPS, wanted("met", json!({"wanted": "yes"}))).await;
    assert_eq!(hooks.paths(), ["/conditions.example.com"], "its condition holds");
    done(&client, Method::POST, CONFIGMAPS, wanted("unmet", json!({"wanted": "no"}))).await;
    assert_eq!(hooks.paths(), [""; 0], "its condition does not hold");
    done(&client, Method::POST, CONFIGMAPS, wanted("failing", json!({}))).await;
    assert_eq!(hooks.paths(), [""; 0], "a condition that cannot be evaluated is an error, which is ignored here");

    // Selectors look at the object before, too: no label can be taken off to escape.
    done(&client, Method::POST, CONFIGMAPS, configmap("judged", json!({"hook": "judge", "keep": "yes"}))).await;
    let a = call(&client, Method::DELETE, &format!("{CONFIGMAPS}/judged"), Value::Null).await;
    assert_eq!(
        (a.code, &a.body["message"]),
        (400, &json!("admission webhook \"judge.example.com\" denied the request without explanation"))
    );
    done(&client, Method::PUT, &format!("{CONFIGMAPS}/judged"), configmap("judged", json!({}))).await;
    let operations: Vec<String> = hooks.requests().iter().map(|r| r["operation"].as_str().unwrap().to_owned()).collect();
    assert_eq!(operations, ["DELETE", "UPDATE"]);
    done(&client, Method::DELETE, &format!("{CONFIGMAPS}/judged"), Value::Null).await;

    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    done(&client, Method::POST, "/apis/apps/v1/namespaces/default/deployments", deployment).await;
    let scale = "/apis/apps/v1/namespaces/default/deployments/d/scale";
    let a = send(&client, Method::PATCH, scale, "application/merge-patch+json", json!({"spec": {"replicas": 3}})).await;
    assert_eq!((a.code, &a.body["spec"]["replicas"]), (200, &json!(3)));
    let asked = hooks.requests().remove(0);
    assert_eq!((&asked["object"]["kind"], &asked["object"]["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    assert_eq!((&asked["subResource"], &asked["kind"]["group"]), (&json!("scale"), &json!("autoscaling")));

    let autoscaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 55}}}]}});
    done(&client, Method::POST, "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", autoscaler).await;
    let asked = hooks.requests().remove(0);
    assert_eq!((&asked["resource"]["version"], &asked["requestResource"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(asked["object"]["spec"]["targetCPUUtilizationPercentage"], 55);

    let a = call(&client, Method::GET, "/api/v1/namespaces/default/pods/p/exec?command=ls&stdin=true", Value::Null).await;
    assert_eq!((a.code, &a.body["message"]), (403, &json!("admission webhook \"exec.example.com\" denied the request: not this one")));
    let asked = hooks.requests().remove(0);
    assert_eq!((&asked["operation"], &asked["name"]), (&json!("CONNECT"), &json!("p")));
    assert_eq!((&asked["object"]["kind"], &asked["object"]["command"]), (&json!("PodExecOptions"), &json!(["ls"])));
}

/// Policies, too, see the Scale that the request is about and not the object behind it.
#[tokio::test(flavor = "multi_thread")]
async fn policies_judge_what_a_scale_would_become() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    done(&client, Method::POST, "/apis/apps/v1/namespaces/default/deployments", deployment).await;

    let group = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "few"},
        "spec": {"matchConstraints": {"resourceRules": [
                {"operations": ["UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"]}]},
            "matchConditions": [{"name": "here", "expression": "request.namespace == 'default' && request.userInfo.username != ''"}],
            "validations": [{"expression": "object.kind == 'Scale' && object.spec.replicas <= oldObject.spec.replicas + 2",
                "messageExpression": "'no more than ' + string(oldObject.spec.replicas + 2)"}]}});
    done(&client, Method::POST, &format!("{group}/validatingadmissionpolicies"), policy).await;
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "few"},
        "spec": {"policyName": "few", "validationActions": ["Deny"]}});
    done(&client, Method::POST, &format!("{group}/validatingadmissionpolicybindings"), binding).await;
    settle(&client).await;

    let scale = "/apis/apps/v1/namespaces/default/deployments/d/scale";
    let to = |n: u32| json!({"spec": {"replicas": n}});
    let a = send(&client, Method::PATCH, scale, "application/merge-patch+json", to(4)).await;
    let why = "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few' denied request: no more than 3";
    assert_eq!((a.code, &a.body["message"]), (422, &json!(why)));
    let a = send(&client, Method::PATCH, scale, "application/merge-patch+json", to(3)).await;
    assert_eq!((a.code, &a.body["spec"]["replicas"]), (200, &json!(3)));
}

/// No webhook is asked about webhooks.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_refuses_everything_can_be_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    let hooks = Hooks::start(|_, _| json!({"allowed": false})).await;
    let everything = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]});
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        configure(&client, kind, "x", vec![hooks.hook("all.example.com", json!([]), "", "", everything.clone())]).await;
        let a = call(&client, Method::POST, CONFIGMAPS, configmap("no", json!({}))).await;
        assert_eq!(a.code, 400, "{}", a.body);
        hooks.paths();
        let path = format!("/apis/admissionregistration.k8s.io/v1/{}s/x", kind.to_lowercase());
        done(&client, Method::DELETE, &path, Value::Null).await;
        assert_eq!(hooks.paths(), [""; 0]);
        settle(&client).await;
    }
    done(&client, Method::POST, CONFIGMAPS, configmap("yes", json!({}))).await;
}

fn definition(conversion: Value) -> Value {
    let version = |name: &str, fields: Value| {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}});
        json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": schema}})
    };
    let text = json!({"type": "string"});
    let names = json!({"plural": "ports", "singular": "port", "kind": "Port", "listKind": "PortList"});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "ports.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "conversion": conversion,
            "versions": [version("v1", json!({"address": text})), version("v2", json!({"host": text, "port": text, "more": {"type": "string", "default": "d"}}))]}})
}

/// `address: host:port` in v1 is `host` and `port` in v2.
fn convert(request: &Value) -> Value {
    let desired = request["desiredAPIVersion"].as_str().unwrap();
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let objects = request["objects"].as_array().unwrap().iter().map(|o| {
        let mut new = o.clone();
        new["apiVersion"] = desired.into();
        new["spec"] = if desired == "example.com/v2" {
            let address = text(&o["spec"]["address"]);
            let (host, port) = address.split_once(':').unwrap_or((&address, ""));
            json!({"host": host, "port": port})
        } else {
            json!({"address": format!("{}:{}", text(&o["spec"]["host"]), text(&o["spec"]["port"]))})
        };
        // It may not change these.
        new["metadata"]["finalizers"] = json!(["evil.example.com/f"]);
        new["metadata"]["annotations"] = json!({"converted": desired});
        new
    });
    let objects: Vec<Value> = objects.collect();
    if objects.iter().any(|o| o["metadata"]["name"] == "refused") {
        return json!({"result": {"status": "Failure", "message": "I do not like it"}});
    }
    json!({"result": {"status": "Success"}, "convertedObjects": objects})
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_converted_by_the_webhook_wherever_they_are_read_or_written() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    let hooks = Hooks::start(|_, request| convert(request)).await;
    let conversion =
        json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": hooks.client("/convert")}});
    done(&client, Method::POST, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition(conversion)).await;
    let at = |version: &str, name: &str| format!("/apis/example.com/{version}/namespaces/default/ports{name}");
    for _ in 0..100 {
        if call(&client, Method::GET, &at("v2", ""), Value::Null).await.code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let object = |version: &str, name: &str, spec: Value| json!({"apiVersion": format!("example.com/{version}"), "kind": "Port", "metadata": {"name": name}, "spec": spec});

    let made = done(&client, Method::POST, &at("v2", ""), object("v2", "a", json!({"host": "h", "port": "1"}))).await;
    assert_eq!(made["spec"], json!({"host": "h", "port": "1"}), "{made}");
    assert_eq!(made["metadata"]["finalizers"], Value::Null);
    let old = done(&client, Method::GET, &at("v1", "/a"), Value::Null).await;
    assert_eq!((&old["apiVersion"], &old["spec"]), (&json!("example.com/v1"), &json!({"address": "h:1"})));
    assert_eq!(old["metadata"]["uid"], made["metadata"]["uid"]);
    done(&client, Method::POST, &at("v1", ""), object("v1", "b", json!({"address": "i:2"}))).await;

    hooks.paths();
    let list = done(&client, Method::GET, &at("v2", ""), Value::Null).await;
    let specs: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|i| &i["spec"]).collect();
    assert_eq!(specs, [&json!({"host": "h", "port": "1"}), &json!({"host": "i", "port": "2"})]);
    assert_eq!(list["items"][1]["metadata"]["annotations"], json!({"converted": "example.com/v2"}));
    assert_eq!(hooks.paths().len(), 1, "a list is one call");
    done(&client, Method::GET, &at("v2", ""), Value::Null).await;
    done(&client, Method::GET, &at("v2", "/b"), Value::Null).await;
    assert_eq!(hooks.paths(), [""; 0], "what was converted once is kept");

    let merge = json!({"spec": {"port": "9"}});
    let a = send(&client, Method::PATCH, &at("v2", "/a"), "application/merge-patch+json", merge).await;
    assert_eq!((a.code, &a.body["spec"]["port"]), (200, &json!("9")), "{}", a.body);
    let apply = object("v2", "b", json!({"host": "applied"}));
    let a =
        send(&client, Method::PATCH, &format!("{}?fieldManager=m&force=true", at("v2", "/b")), "application/apply-patch+yaml", apply).await;
    assert_eq!((a.code, &a.body["spec"]), (200, &json!({"host": "applied", "port": "2"})), "{}", a.body);
    let v1 = done(&client, Method::GET, &at("v1", ""), Value::Null).await;
    assert_eq!((&v1["items"][0]["spec"]["address"], &v1["items"][1]["spec"]["address"]), (&json!("h:9"), &json!("applied:2")));
    let version = v1["metadata"]["resourceVersion"].as_str().unwrap();

    done(&client, Method::POST, &at("v1", ""), object("v1", "c", json!({"address": "j:3"}))).await;
    done(&client, Method::DELETE, &at("v1", "/c"), Value::Null).await;
    let watch = format!("{}?watch=true&timeoutSeconds=1&resourceVersion={version}", at("v2", ""));
    let request = Request::builder().uri(watch).body(Body::empty()).unwrap();
    let text = client.send(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let events: Vec<Value> = serde_json::Deserializer::from_slice(&text).into_iter().map(Result::unwrap).collect();
    let seen: Vec<(&str, &str)> =
        events.iter().map(|e| (e["type"].as_str().unwrap(), e["object"]["spec"]["host"].as_str().unwrap())).collect();
    assert_eq!(seen, [("ADDED", "j"), ("DELETED", "j")]);

    // What the webhook refuses is neither stored nor shown as something else.
    let a = call(&client, Method::POST, &at("v2", ""), object("v2", "refused", json!({"host": "x"}))).await;
    let message = "conversion webhook for example.com/v2, Kind=Port failed: I do not like it";
    assert_eq!((a.code, &a.body["message"]), (500, &json!(message)));
    assert_eq!(call(&client, Method::GET, &at("v1", "/refused"), Value::Null).await.code, 404);
    done(&client, Method::POST, &at("v1", ""), object("v1", "refused", json!({"address": "k:4"}))).await;
    assert_eq!(call(&client, Method::GET, &at("v2", "/refused"), Value::Null).await.code, 500);
    assert_eq!(call(&client, Method::GET, &at("v2", ""), Value::Null).await.code, 500);
    assert_eq!(done(&client, Method::GET, &at("v1", "/refused"), Value::Null).await["spec"]["address"], "k:4");
    // Nothing has to be converted for it to go.
    done(&client, Method::DELETE, &at("v1", "/refused"), Value::Null).await;
    assert_eq!(call(&client, Method::GET, &at("v2", ""), Value::Null).await.code, 200);
}
