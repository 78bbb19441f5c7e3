//! Sparse presence through the server: each field of what objects are made of, absent, null, zero and set, by update in JSON, by update in
//! protobuf and by server-side apply. All ways lead to the same object, or to the same refusal, and what was set is there.
//!
//! Every request is a dry run on an object that is there, so none sees what another did.

#[path = "../examples/dev-cluster/cluster.rs"]
mod cluster;

use bytes::Bytes;
use cluster::Cluster;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::{Method, Request};
use k8s_schema::{Doc, Kind, Schema, Type};
use kube_client::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const APPLY: &str = "application/apply-patch+yaml";

/// Fields that are dropped because their feature gates are off.
const GATED: [(&str, &str); 3] =
    [("StatefulSet", "spec.updateStrategy.rollingUpdate.maxUnavailable"), ("Lease", "spec.strategy"), ("Lease", "spec.preferredHolder")];

/// Of which objects the fields are tried: the kind's group, version and name, its collection, and the object.
fn objects() -> Vec<(&'static str, &'static str, &'static str, &'static str, Value)> {
    let labels = json!({"app": "a"});
    let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}, "securityContext": {}, "lifecycle": {},
        "ports": [{"containerPort": 80}], "env": [{"name": "E", "value": "v"}], "readinessProbe": {"httpGet": {"path": "/", "port": 80}}});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [container], "securityContext": {},
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "m", "configMap": {"name": "x"}}]}});
    let job = json!({"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": labels});
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    vec![
        ("", "v1", "ConfigMap", "/api/v1/namespaces/default/configmaps", json!({"data": {"k": "v"}})),
        ("", "v1", "Secret", "/api/v1/namespaces/default/secrets", json!({"data": {"k": "dg=="}})),
        ("", "v1", "ServiceAccount", "/api/v1/namespaces/default/serviceaccounts", json!({})),
        ("", "v1", "Service", "/api/v1/namespaces/default/services", json!({"spec": {"selector": labels, "ports": [{"port": 80}]}})),
        (
            "",
            "v1",
            "PersistentVolumeClaim",
            "/api/v1/namespaces/default/persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1"}}}}),
        ),
        ("", "v1", "Node", "/api/v1/nodes", json!({"spec": {}})),
        ("", "v1", "PodTemplate", "/api/v1/namespaces/default/podtemplates", json!({"template": template})),
        (
            "apps",
            "v1",
            "Deployment",
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"spec": {"selector": selector, "template": template, "strategy": {}}}),
        ),
        (
            "apps",
            "v1",
            "DaemonSet",
            "/apis/apps/v1/namespaces/default/daemonsets",
            json!({"spec": {"selector": selector, "template": template}}),
        ),
        (
            "apps",
            "v1",
            "StatefulSet",
            "/apis/apps/v1/namespaces/default/statefulsets",
            json!({"spec": {"selector": selector, "serviceName": "s", "template": template}}),
        ),
        (
            "batch",
            "v1",
            "CronJob",
            "/apis/batch/v1/namespaces/default/cronjobs",
            json!({"spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": job}}}}),
        ),
        (
            "networking.k8s.io",
            "v1",
            "Ingress",
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            json!({"spec": {"defaultBackend": backend, "rules": [{"host": "h", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]}}),
        ),
        (
            "networking.k8s.io",
            "v1",
            "NetworkPolicy",
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            json!({"spec": {"podSelector": selector, "ingress": [{"ports": [{"port": 80}], "from": [{"podSelector": selector}]}]}}),
        ),
        (
            "policy",
            "v1",
            "PodDisruptionBudget",
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            json!({"spec": {"selector": selector, "minAvailable": 1}}),
        ),
        (
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "x", "apiVersion": "apps/v1"}}}),
        ),
        (
            "coordination.k8s.io",
            "v1",
            "Lease",
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            json!({"spec": {"holderIdentity": "x"}}),
        ),
        ("storage.k8s.io", "v1", "CSIDriver", "/apis/storage.k8s.io/v1/csidrivers", json!({"spec": {}})),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "ClusterRole",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
        ),
    ]
}

/// One state of one field.
struct Case {
    path: Vec<String>,
    state: &'static str,
    value: Option<Value>,
    /// Nobody gave the field before.
    new: bool,
}

fn zero(t: Type<'_>) -> Option<Value> {
    Some(match t.kind() {
        Kind::Bool => json!(false),
        Kind::Int32 | Kind::Int64 | Kind::IntOrString => json!(0),
        Kind::String | Kind::Bytes => json!(""),
        Kind::Quantity => json!("0"),
        Kind::Map | Kind::Struct => json!({}),
        _ => return None,
    })
}

fn set(t: Type<'_>) -> Option<Value> {
    Some(match t.kind() {
        Kind::Bool => json!(true),
        Kind::Int32 | Kind::Int64 => json!(7),
        Kind::String => json!("x"),
        Kind::Bytes => json!("YQ=="),
        Kind::Quantity => json!("5"),
        Kind::IntOrString => json!("25%"),
        _ => return None,
    })
}

/// The cases of every struct that the object has, but what the server alone writes.
fn cases(schema: &Schema, t: Type<'_>, at: &Value, given: &Value, path: &[String], out: &mut Vec<Case>) {
    match (t.kind(), at) {
        (Kind::Struct, Value::Object(fields)) => {
            for f in t.fields() {
                let name = f.name();
                if path.is_empty() && ["metadata", "status", "kind", "apiVersion"].contains(&name) {
                    continue;
                }
                let mut path = path.to_vec();
                path.push(name.to_owned());
                let new = !fields.contains_key(name) && given.get(name).is_none();
                for (state, value) in [("absent", None), ("null", Some(Value::Null)), ("zero", zero(f.ty())), ("set", set(f.ty()))] {
                    if state == "absent" || value.is_some() {
                        out.push(Case { path: path.clone(), state, value, new });
                    }
                }
                if let Some(inner) = fields.get(name) {
                    cases(schema, f.ty(), inner, given.get(name).unwrap_or(&Value::Null), &path, out);
                }
            }
        }
        (Kind::List, Value::Array(items)) => {
            if let Some(first) = items.first() {
                let mut path = path.to_vec();
                path.push("0".to_owned());
                cases(schema, schema.ty(t.elem()), first, given.get(0).unwrap_or(&Value::Null), &path, out);
            }
        }
        _ => {}
    }
}

/// The object with the field as the case says.
fn with(object: &Value, case: &Case) -> Option<Value> {
    let mut out = object.clone();
    let (last, parents) = case.path.split_last()?;
    let mut at = &mut out;
    for p in parents {
        at = if let Ok(i) = p.parse::<usize>() { at.get_mut(i)? } else { at.get_mut(p)? };
    }
    let fields = at.as_object_mut()?;
    match &case.value {
        Some(v) => fields.insert(last.clone(), v.clone()),
        None => fields.remove(last),
    };
    Some(out)
}

fn field<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |at, p| if let Ok(i) = p.parse::<usize>() { at.get(i) } else { at.get(p) })
}

/// An answer: its code, and what it says but for what the server writes about it.
async fn send(client: &Client, method: Method, path: &str, kind: &str, body: Vec<u8>) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", kind).header("accept", JSON);
    let response = client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut v: Value = serde_json::from_slice(&body).unwrap();
    if code < 300
        && let Some(metadata) = v.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.remove("managedFields");
    }
    (code, v)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_write_a_field_leads_to_the_same_object() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let cluster = tokio::task::spawn_blocking(move || Cluster::start(&path)).await.unwrap();
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join("admin.kubeconfig")).unwrap();
    let client = Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()).unwrap();
    let schema = Schema::builtin();
    let (mut tried, mut taken, mut wrong) = (0, 0, Vec::new());
    for (group, version, kind, collection, mut object) in objects() {
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        object["apiVersion"] = api_version.clone().into();
        object["kind"] = kind.into();
        object["metadata"] = json!({"name": "presence"});
        let (code, mut live) = send(&client, Method::POST, collection, JSON, object.to_string().into_bytes()).await;
        assert_eq!(code, 201, "{kind}: {live}");
        live.as_object_mut().unwrap().remove("status");
        let id = schema.kind(group, version, kind).unwrap();
        let mut all = Vec::new();
        cases(&schema, schema.ty(id), &live, &object, &[], &mut all);
        let results = stream::iter(&all).map(|case| {
            let (client, schema, live, object) = (&client, &schema, &live, &object);
            let one = format!("{collection}/presence?dryRun=All&fieldManager=presence");
            async move {
                let put = with(live, case)?;
                let text = put.to_string();
                let by_json = send(client, Method::PUT, &one, JSON, text.clone().into_bytes()).await;
                let name = format!("{kind} {} {}", case.path.join("."), case.state);
                let mut wrong = Vec::new();
                // What is no such object at all has no form in protobuf.
                let message = Doc::from_json(schema, id, Bytes::from(text)).ok().map(|d| d.doc.to_protobuf());
                if let Some(message) = message {
                    let by_protobuf = send(client, Method::PUT, &one, PROTOBUF, message).await;
                    // Protobuf knows no empty map: a refusal that shows one shows null.
                    let empty = case.value == Some(json!({})) && by_json.0 == 422;
                    let differs = if empty { by_protobuf.0 != by_json.0 } else { by_protobuf != by_json };
                    if differs {
                        wrong.push(format!("{name}: JSON {by_json:?}\n    protobuf {by_protobuf:?}"));
                    }
                }
                let gated = GATED.contains(&(kind, case.path.join(".").as_str()));
                if by_json.0 == 200 && case.state == "set" && !gated && field(&by_json.1, &case.path).is_none() {
                    wrong.push(format!("{name}: it was set and is gone"));
                }
                if case.new
                    && let Some(applied) = with(object, case)
                {
                    let force = format!("{one}&force=true");
                    let by_apply = send(client, Method::PATCH, &force, APPLY, applied.to_string().into_bytes()).await;
                    let same = by_apply.0 == by_json.0 && (by_json.0 != 200 || by_apply.1 == by_json.1);
                    if !same {
                        wrong.push(format!("{name}: update {by_json:?}\n    apply {by_apply:?}"));
                    }
                }
                Some((by_json.0 == 200, wrong))
            }
        });
        let results: Vec<_> = results.buffer_unordered(8).collect().await;
        for (ok, faults) in results.into_iter().flatten() {
            tried += 1;
            taken += usize::from(ok);
            wrong.extend(faults);
        }
    }
    println!("{tried} cases, {taken} of them good, {} faults", wrong.len());
    assert!(tried > 1000 && taken > tried / 3, "{tried} cases, {taken} of them good: too few to be all");
    let shown = wrong.iter().take(30).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {tried} differ:\n{shown}", wrong.len());
}
