//! An extension server behind an APIService: found, described, asked as the user, and missed when it is gone.

use std::sync::Mutex;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::{
    Method, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::*;

const GROUP: &str = "/apis/wardle.example.com";
const VERSION: &str = "/apis/wardle.example.com/v1";

/// A request as the extension server saw it.
#[derive(Debug, Clone)]
struct Seen {
    path: String,
    headers: HeaderMap,
}

impl Seen {
    fn all(&self, header: &str) -> Vec<&str> {
        self.headers.get_all(header).iter().map(|v| v.to_str().unwrap()).collect()
    }
}

struct Extension {
    port: u16,
    ca: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

fn answer(code: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let r = Response::builder().status(code).header("content-type", content_type);
    r.body(http_body_util::Full::new(body.into()).boxed()).unwrap()
}

fn described(path: &str) -> Option<(&'static str, Value)> {
    let resource = json!({"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "shortNames": ["fl"],
        "verbs": ["create", "get", "list", "watch"]});
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object"}},
        "x-kubernetes-group-version-kind": [{"group": "wardle.example.com", "version": "v1", "kind": "Flunder"}]});
    let list = json!({"get": {"operationId": "listFlunder", "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Flunder"}}}}});
    Some(match path {
        "/apis" => {
            let resource = json!({"resource": "flunders", "singularResource": "flunder", "scope": "Namespaced", "shortNames": ["fl"],
                "responseKind": {"group": "wardle.example.com", "version": "v1", "kind": "Flunder"}, "verbs": ["create", "get", "list", "watch"]});
            let v = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": [
                {"metadata": {"name": "wardle.example.com"}, "versions": [{"version": "v1", "freshness": "Current", "resources": [resource]}]}]});
            ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", v)
        }
        VERSION => {
            let v =
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1", "resources": [resource]});
            ("application/json", v)
        }
        "/openapi/v2" => {
            let v = json!({"swagger": "2.0", "info": {"title": "Wardle", "version": "v1"}, "paths": {format!("{VERSION}/flunders"): list},
                "definitions": {"Flunder": schema, "Unused": {"type": "object"}}});
            ("application/json", v)
        }
        "/openapi/v3" => {
            let url = format!("/openapi/v3{VERSION}?hash=ABC");
            ("application/json", json!({"paths": {VERSION.trim_start_matches('/'): {"serverRelativeURL": url}}}))
        }
        "/openapi/v3/apis/wardle.example.com/v1" => {
            ("application/json", json!({"openapi": "3.0.0", "info": {"title": "theirs", "version": "1"}}))
        }
        _ => return None,
    })
}

fn flunder(name: &str) -> Value {
    let meta =
        json!({"name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"});
    json!({"apiVersion": "wardle.example.com/v1", "kind": "Flunder", "metadata": meta})
}

async fn serve(mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if let Some((content_type, v)) = described(&path) {
        return answer(200, content_type, v.to_string());
    }
    if request.headers().get("upgrade").is_some_and(|u| u == "echo") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 64];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..n]).await.unwrap();
            }
        });
        let r = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "echo");
        return r.body(http_body_util::Empty::new().boxed()).unwrap();
    }
    let query = request.uri().query().unwrap_or("").to_owned();
    if query.contains("watch=") {
        // The second event comes after the first was read: who waits for the end waits in vain.
        let event = |name: &str| Bytes::from(format!("{}\n", json!({"type": "ADDED", "object": flunder(name)})));
        let events = stream::iter([event("first"), event("second")]).chain(stream::pending());
        return Response::new(BodyExt::boxed(StreamBody::new(events.map(|b| Ok(Frame::data(b))))));
    }
    if request.method() == Method::POST {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        return answer(201, "application/json", body);
    }
    match path.as_str() {
        p if p.ends_with("/flunders") => {
            let list = json!({"apiVersion": "wardle.example.com/v1", "kind": "FlunderList", "metadata": {"resourceVersion": "1"},
                "items": [flunder("one"), flunder("two")]});
            answer(200, "application/json", list.to_string())
        }
        p if p.ends_with("/flunders/one") => answer(200, "application/json", flunder("one").to_string()),
        _ => answer(404, "application/json", json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}).to_string()),
    }
}

impl Extension {
    /// It lets nobody in but the front proxy.
    async fn start(front_proxy_ca: &str) -> Self {
        let Listener { port, ca, tcp, tls } = listen("wardle.default.svc", Some(front_proxy_ca)).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = tcp.accept().await {
                let (tls, log) = (tls.clone(), Arc::clone(&log));
                open.spawn(async move {
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let path = request.uri().path_and_query().unwrap().to_string();
                        log.lock().unwrap().push(Seen { path, headers: request.headers().clone() });
                        async move { Ok::<_, std::convert::Infallible>(serve(request).await) }
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
            }
        });
        Self { port, ca, seen, task }
    }

    fn last(&self, path: &str) -> Seen {
        self.seen.lock().unwrap().iter().rev().find(|s| s.path == path).cloned().unwrap_or_else(|| panic!("nobody asked for {path}"))
    }
}

/// The condition of an APIService: status and reason.
async fn condition(client: &Client, name: &str) -> Option<(String, String)> {
    let a = get(client, &format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}"), &[]).await;
    let conditions = a.json()["status"]["conditions"].as_array()?.clone();
    let c = conditions.iter().find(|c| c["type"] == "Available")?;
    let text = |f: &str| c[f].as_str().unwrap().to_owned();
    Some((text("status"), text("reason")))
}

async fn becomes(client: &Client, status: &str, reason: &str) {
    let wanted = Some((status.to_owned(), reason.to_owned()));
    until(&format!("{status} {reason}"), async || (condition(client, "v1.wardle.example.com").await == wanted).then_some(())).await;
}

async fn register(client: &Client, extension: &Extension) {
    let service = json!({"metadata": {"name": "wardle"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    let v = json!({"metadata": {"name": "v1.wardle.example.com"}, "spec": {"group": "wardle.example.com", "version": "v1",
        "groupPriorityMinimum": 2000, "versionPriority": 15, "caBundle": STANDARD.encode(&extension.ca),
        "service": {"namespace": "default", "name": "wardle", "port": extension.port}}});
    done(client, Method::POST, "/apis/apiregistration.k8s.io/v1/apiservices", v).await;
    becomes(client, "False", "ServiceNotFound").await;
    done(client, Method::POST, "/api/v1/namespaces/default/services", service).await;
    becomes(client, "True", "Passed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_server_is_part_of_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir, Vec::new()).await;
    let client = client(&cluster, "admin").await;
    let extension = Extension::start(&std::fs::read_to_string(cluster.dir.join("front-proxy-ca.crt")).unwrap()).await;
    register(&client, &extension).await;

    // Discovery in all its forms.
    let groups = done(&client, Method::GET, "/apis", Value::Null).await;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|n| **n == "wardle.example.com").count(), 1);
    assert_eq!((names[0], *names.last().unwrap()), ("apiregistration.k8s.io", "wardle.example.com"));
    assert_eq!(done(&client, Method::GET, GROUP, Value::Null).await["preferredVersion"]["groupVersion"], "wardle.example.com/v1");
    assert_eq!(done(&client, Method::GET, VERSION, Value::Null).await["resources"][0]["name"], "flunders");
    let accept = ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    until("the description", async || {
        let all = get(&client, "/apis", &[accept]).await.json();
        let group = all["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "wardle.example.com").cloned()?;
        let version = &group["versions"][0];
        (version["resources"][0]["resource"] == "flunders" && version["freshness"] == "Current").then_some(())
    })
    .await;
    let kubectl = |args: &[&str]| {
        let out = cluster.kubectl(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let resources = kubectl(&["api-resources", "--api-group=wardle.example.com"]);
    assert!(resources.contains("flunders") && resources.contains("Flunder"), "{resources}");
    let got = kubectl(&["get", "fl", "-n", "default"]);
    assert!(got.contains("one") && got.contains("two"), "{got}");
    assert!(kubectl(&["get", "apiservice", "v1.wardle.example.com"]).contains("default/wardle"));

    // OpenAPI: theirs is part of ours.
    let v2 = done(&client, Method::GET, "/openapi/v2", Value::Null).await;
    assert!(v2["paths"][format!("{VERSION}/flunders")].is_object() && v2["definitions"]["Flunder"].is_object());
    assert!(v2["definitions"].get("Unused").is_none() && v2["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let index = done(&client, Method::GET, "/openapi/v3", Value::Null).await;
    let url = index["paths"]["apis/wardle.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert_eq!(done(&client, Method::GET, &url, Value::Null).await["info"]["title"], "theirs");

    // Objects go there and back; the user is named, and nobody can name another.
    let path = format!("{VERSION}/namespaces/default/flunders");
    let forged = [("x-remote-user", "root"), ("x-remote-group", "x"), ("x-remote-extra-a", "b"), ("authorization", "Basic eDp5")];
    assert_eq!(get(&client, &path, &forged).await.json()["items"].as_array().unwrap().len(), 2);
    let seen = extension.last(&path);
    assert_eq!((seen.all("x-remote-user"), seen.all("x-remote-group")), (vec!["admin"], vec!["system:masters", "system:authenticated"]));
    assert!(seen.all("authorization").is_empty() && seen.all("x-remote-extra-a").is_empty());
    let created = send(&client, Method::POST, &path, &[], &flunder("new")).await;
    assert_eq!((created.code, created.json()["metadata"]["name"].as_str()), (201, Some("new")));
    assert_eq!(get(&client, &format!("{path}/missing"), &[]).await.code, 404);
    // Authorization is ours.
    let scheduler = super::client(&cluster, "kube-scheduler").await;
    assert_eq!(get(&scheduler, &path, &[]).await.code, 403);

    // A watch's events come as they are made.
    let request = Request::get(format!("{path}?watch=true")).body(kube_client::client::Body::empty()).unwrap();
    let mut events = client.send(request).await.unwrap().into_body().into_data_stream();
    let mut text = String::new();
    while text.lines().count() < 2 {
        let piece = tokio::time::timeout(Duration::from_secs(60), events.next()).await.expect("an event is held back");
        text.push_str(std::str::from_utf8(&piece.unwrap().unwrap()).unwrap());
    }
    assert!(text.contains("first") && text.contains("second"));
    drop(events);
    upgraded(&cluster, &format!("{path}/one")).await;

    // Gone: its endpoint, then its service, then its registration.
    extension.task.abort();
    until("the failed check", async || {
        let (status, reason) = condition(&client, "v1.wardle.example.com").await?;
        (status == "False" && reason == "FailedDiscoveryCheck").then_some(())
    })
    .await;
    // The client of the other calls would try a 503 again and again.
    assert!(!cluster.kubectl(&["get", "--raw", &path]).output().unwrap().status.success());
    done(&client, Method::DELETE, "/api/v1/namespaces/default/services/wardle", Value::Null).await;
    becomes(&client, "False", "ServiceNotFound").await;
    done(&client, Method::DELETE, "/apis/apiregistration.k8s.io/v1/apiservices/v1.wardle.example.com", Value::Null).await;
    until("the end", async || (get(&client, GROUP, &[]).await.code == 404).then_some(())).await;
    let v2 = done(&client, Method::GET, "/openapi/v2", Value::Null).await;
    assert!(v2["definitions"].get("Flunder").is_none());
}

/// An upgraded connection, by hand: what is written comes back.
async fn upgraded(cluster: &Cluster, path: &str) {
    let read = |n: &str| std::fs::read(cluster.dir.join(n)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca.crt")).unwrap()).unwrap();
    let certs = vec![CertificateDer::from_pem_slice(&read("admin.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(&read("admin.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(roots).with_client_auth_cert(certs, key).unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", cluster.port)).await.unwrap();
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_register_themselves_and_untrusted_servers_are_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(&dir, Vec::new()).await;
    let client = client(&cluster, "admin").await;
    assert_eq!(condition(&client, "v1.apps").await, Some(("True".into(), "Local".into())));
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let crd = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": schema}]}});
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    const OWN: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.example.com";
    done(&client, Method::POST, DEFINITIONS, crd).await;
    let own = until("its APIService", async || {
        let a = get(&client, OWN, &[]).await;
        (a.code == 200).then(|| a.json())
    })
    .await;
    assert_eq!(own["metadata"]["labels"], json!({"kube-aggregator.kubernetes.io/automanaged": "true"}));
    assert_eq!((&own["spec"]["groupPriorityMinimum"], &own["spec"]["versionPriority"]), (&json!(1000), &json!(100)));
    assert_eq!(condition(&client, "v1beta1.example.com").await, Some(("True".into(), "Local".into())));
    done(&client, Method::DELETE, &format!("{DEFINITIONS}/things.example.com"), Value::Null).await;
    until("its end", async || (get(&client, OWN, &[]).await.code == 404).then_some(())).await;

    // Signed by somebody else: the connection is refused, until the configuration says that it does not matter.
    let extension = Extension::start(&std::fs::read_to_string(cluster.dir.join("front-proxy-ca.crt")).unwrap()).await;
    let other = Authority::generate("other", jiff::Timestamp::now(), Duration::from_secs(3600)).unwrap().cert_pem;
    let service = json!({"metadata": {"name": "wardle"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    done(&client, Method::POST, "/api/v1/namespaces/default/services", service).await;
    let mut v = json!({"metadata": {"name": "v1.wardle.example.com"}, "spec": {"group": "wardle.example.com", "version": "v1",
        "groupPriorityMinimum": 2000, "versionPriority": 15, "caBundle": STANDARD.encode(other),
        "service": {"namespace": "default", "name": "wardle", "port": extension.port}}});
    done(&client, Method::POST, "/apis/apiregistration.k8s.io/v1/apiservices", v.clone()).await;
    becomes(&client, "False", "FailedDiscoveryCheck").await;
    assert!(extension.seen.lock().unwrap().is_empty());
    until("an update", async || {
        let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1.wardle.example.com";
        v["metadata"] = get(&client, path, &[]).await.json()["metadata"].clone();
        v["spec"]["caBundle"] = Value::Null;
        v["spec"]["insecureSkipTLSVerify"] = true.into();
        (send(&client, Method::PUT, path, &[], &v).await.code == 200).then_some(())
    })
    .await;
    becomes(&client, "True", "Passed").await;
    assert_eq!(get(&client, &format!("{VERSION}/namespaces/default/flunders/one"), &[]).await.code, 200);
}
