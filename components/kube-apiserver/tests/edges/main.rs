//! The edges of the server, on a real etcd: compressed answers, values encrypted at rest, users whom proxies name, extension servers.

#[path = "../../examples/dev-cluster/cluster.rs"]
mod cluster;

mod aggregation;
mod encryption;
mod gzip;
mod oidc;
mod proxies;

use std::time::{Duration, Instant};

use cluster::Cluster;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Method, Request, body::Bytes};
use kube_client::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

/// A new server, with more flags than usual.
async fn start(dir: &tempfile::TempDir, more: Vec<String>) -> Cluster {
    let path = dir.path().to_owned();
    tokio::task::spawn_blocking(move || Cluster::start_with(&path, &more)).await.unwrap()
}

/// A client by the name of its kubeconfig.
async fn client(cluster: &Cluster, name: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join(format!("{name}.kubeconfig"))).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

async fn send(client: &Client, method: Method, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (k, v) in headers {
        request = request.header(*k, *v);
    }
    let body = if body.is_null() {
        Vec::new()
    } else {
        request = request.header("content-type", "application/json");
        body.to_string().into_bytes()
    };
    let response = client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer { code: parts.status.as_u16(), headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
}

async fn get(client: &Client, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(client, Method::GET, path, headers, &Value::Null).await
}

/// A call that must succeed; gives the object.
async fn done(client: &Client, method: Method, path: &str, body: Value) -> Value {
    let a = send(client, method, path, &[], &body).await;
    assert!(a.code < 300, "{path}: {} {}", a.code, String::from_utf8_lossy(&a.body));
    a.json()
}

/// Tries until `look` gives something.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(90);
    while Instant::now() < end {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("waited in vain for {what}");
}
