//! The server while things break under it: etcd dies and is compacted, the network falls silent, two servers write at once, and what is
//! cached changes its meaning. Nothing acknowledged is lost, no watch skips or repeats, and recovery takes bounded time.

#[path = "../../examples/dev-cluster/cluster.rs"]
mod cluster;

mod change_under_cache;
mod compaction;
mod half_open;
mod two_servers;
mod watch_model;

use std::{ffi::OsString, path::Path, time::Duration};

use cluster::{Cluster, until};
use futures_util::TryStreamExt;
use http_body_util::BodyExt;
use hyper::{Method, Request};
use kube_client::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A new etcd with one server on it.
async fn start(dir: &tempfile::TempDir) -> Cluster {
    let path = dir.path().to_owned();
    tokio::task::spawn_blocking(move || Cluster::start(&path)).await.unwrap()
}

/// Runs a server with these arguments in a thread of this process.
fn serve(args: Vec<OsString>) {
    std::thread::spawn(move || kube_apiserver::main(args.into_iter()));
}

/// Another port, and the arguments of a server beside the one with these.
fn beside(args: &[OsString]) -> (u16, Vec<OsString>) {
    let port = cluster::free_port();
    let other = args.iter().map(|arg| match arg.to_str() {
        Some(text) if text.starts_with("--secure-port=") => format!("--secure-port={port}").into(),
        _ => arg.clone(),
    });
    (port, other.collect())
}

/// Waits until a server is ready.
async fn ready(client: &Client) {
    until("a ready server", async || {
        let request = Request::builder().uri("/readyz").body(Body::empty()).unwrap();
        client.send(request).await.ok().filter(|r| r.status() == 200)
    })
    .await;
}

/// The administrator's client of the server at that port, over connections of its own.
async fn admin(dir: &Path, port: u16) -> Client {
    let mut kubeconfig = Kubeconfig::read_from(dir.join("admin.kubeconfig")).unwrap();
    kubeconfig.clusters[0].cluster.as_mut().unwrap().server = Some(format!("https://127.0.0.1:{port}"));
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = None;
    Client::try_from(config).unwrap()
}

/// A call's status and body; `Err` when the connection broke before an answer, and what was asked may have been done or not.
async fn call(client: &Client, method: Method, path: &str, headers: &[(&str, &str)], body: &Value) -> Result<(u16, Value), String> {
    let mut request = Request::builder().method(method).uri(path);
    for (k, v) in headers {
        request = request.header(*k, *v);
    }
    let body = if body.is_null() {
        Vec::new()
    } else {
        if !headers.iter().any(|(k, _)| *k == "content-type") {
            request = request.header("content-type", "application/json");
        }
        body.to_string().into_bytes()
    };
    let response = client.send(request.body(Body::from(body)).unwrap()).await.map_err(|e| e.to_string())?;
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    Ok((parts.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}

/// A call that must succeed; gives the object.
async fn done(client: &Client, method: Method, path: &str, body: Value) -> Value {
    let (code, body) = call(client, method, path, &[], &body).await.unwrap();
    assert!(code < 300, "{path}: {code} {body}");
    body
}

async fn get(client: &Client, path: &str) -> Value {
    done(client, Method::GET, path, Value::Null).await
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no version: {object}"))
}

/// Waits for something that must come at some time.
async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(90), work).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// A stream of watch events.
struct Watch {
    lines: Lines<BufReader<Box<dyn tokio::io::AsyncRead + Send + Unpin>>>,
}

impl Watch {
    /// Opens a watch; the code when it is refused.
    async fn open(client: &Client, path: &str) -> Result<Self, u16> {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = client.send(request).await.map_err(|_| 0_u16)?;
        if !response.status().is_success() {
            return Err(response.status().as_u16());
        }
        let stream = response.into_body().into_data_stream().map_err(std::io::Error::other);
        let reader: Box<dyn tokio::io::AsyncRead + Send + Unpin> = Box::new(tokio_util::io::StreamReader::new(Box::pin(stream)));
        Ok(Self { lines: BufReader::new(reader).lines() })
    }

    /// The next event; nothing when the stream has ended or broken.
    async fn next(&mut self) -> Option<Value> {
        let line = self.lines.next_line().await.ok()??;
        Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")))
    }
}
