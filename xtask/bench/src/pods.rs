//! Memory with very many pods: of a server that was started with them, after each kind of list, and while slow clients read one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Programs;
use crate::apiserver::make_service_account;
use crate::client::Client;
use crate::control_plane::ControlPlane;
use crate::figure::print;
use crate::load::Load;
use crate::process::memory;

const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const IN_FLIGHT: usize = 32;
const SLOW_READERS: usize = 20;
/// Bytes a second that each of them reads.
const PACE: f64 = 1e6;
/// How long they are watched.
const READING: Duration = Duration::from_secs(30);

/// Makes the pods, starts the server anew and measures it.
pub async fn measure(programs: &Programs, pods: usize) -> Result<()> {
    let plane = ControlPlane::prepare(programs).await?;
    let (server, _) = plane.start_apiserver().await?;
    let client = Arc::new(Client::connect(plane.port, &plane.identity, 4).await?);
    make_service_account(&client).await?;
    let load = Load { pid: server.pid(), in_flight: IN_FLIGHT };
    let held = Arc::clone(&client);
    load.run("fill", pods, move |turn| {
        let client = Arc::clone(&held);
        async move { client.send(Method::POST, PODS, JSON, pod(turn).to_string()).await.map(drop) }
    })
    .await?;
    drop((client, server));
    let (server, took) = plane.start_apiserver().await?;
    let pid = server.pid();
    print("many pods: start to readyz", took.as_secs_f64() * 1000.0, "ms");
    print("many pods: RSS at start", memory(pid)?.rss, "MiB");
    let client = Arc::new(Client::connect(plane.port, &plane.identity, 1).await?);
    let length = client.read(PODS, &[("accept", PROTOBUF)], None).await?;
    print("many pods: size of one in protobuf", length as f64 / pods as f64, "B");
    print("many pods: RSS with protobuf", memory(pid)?.rss, "MiB");
    let length = client.read(PODS, &[("accept", JSON)], None).await?;
    print("many pods: size of one in JSON", length as f64 / pods as f64, "B");
    let before = memory(pid)?.rss;
    print("many pods: RSS with JSON", before, "MiB");
    print("many pods: slow readers add", slow_readers(&plane, &client, pid, pods).await? - before, "MiB");
    Ok(())
}

/// About 2 KiB as it is stored.
fn pod(turn: usize) -> Value {
    let text = "0123456789abcdef".repeat(90);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("many-{turn}"), "labels": {"app": "many", "tenth": (turn % 10).to_string()},
        "annotations": {"example.org/text": text}},
        "spec": {"nodeName": format!("node-{}", turn % 1000), "containers": [{"name": "main", "image": "example.org/app:1",
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]}})
}

/// The most memory that the server has while clients read the whole list slowly and pods are updated.
async fn slow_readers(plane: &ControlPlane, client: &Arc<Client>, pid: u32, pods: usize) -> Result<f64> {
    let mut readers = JoinSet::new();
    for _ in 0..SLOW_READERS {
        let reader = Client::connect(plane.port, &plane.identity, 1).await?;
        readers.spawn(async move { reader.read(PODS, &[("accept", JSON)], Some(PACE)).await });
    }
    let (begin, mut most, mut turn) = (Instant::now(), 0.0_f64, 0);
    while begin.elapsed() < READING {
        let patch = json!({"metadata": {"annotations": {"turn": turn.to_string()}}}).to_string();
        let path = format!("{PODS}/many-{}", turn % pods.max(1));
        client.send(Method::PATCH, &path, "application/merge-patch+json", patch).await?;
        turn += 1;
        most = most.max(memory(pid)?.rss);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if let Some(ended) = readers.try_join_next() {
        let length = ended.context("a reader was lost")??;
        eprintln!("{length} bytes were read before the time was over: with so few pods this says little");
    }
    // What is left of the lists is of no interest.
    readers.abort_all();
    Ok(most)
}
