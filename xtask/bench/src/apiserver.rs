//! Requests to kube-apiserver: ConfigMaps of 1 KiB as upstream's figures were measured, then Pods.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Programs;
use crate::client::Client;
use crate::control_plane::ControlPlane;
use crate::figure::{percentile, print};
use crate::load::Load;
use crate::process::{memory, processor_ms};

const CONNECTIONS: usize = 4;
const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: &str = "application/json";
const LISTS: usize = 40;
const WATCHERS: usize = 100;
const UPDATES: usize = 200;
const PODS_MADE: usize = 1000;
/// How long a watch may keep silent before something is wrong.
const SILENCE: Duration = Duration::from_secs(30);

/// Runs all loads one after the other against one server.
pub async fn measure(programs: &Programs, objects: usize, in_flight: usize) -> Result<()> {
    let plane = ControlPlane::prepare(programs).await?;
    let (server, _) = plane.start_apiserver().await?;
    let load = Load { pid: server.pid(), in_flight };
    let client = Arc::new(Client::connect(plane.port, &plane.identity, CONNECTIONS).await?);
    print("kube-apiserver RSS before", memory(load.pid)?.rss, "MiB");
    make_service_account(&client).await?;
    configmaps(&client, load, objects).await?;
    pods(&client, load).await?;
    let found = memory(load.pid)?;
    print("kube-apiserver RSS after", found.rss, "MiB");
    print("kube-apiserver RssAnon after", found.anonymous, "MiB");
    Ok(())
}

/// Pods need one, and no controller runs here: it is made.
pub async fn make_service_account(client: &Client) -> Result<()> {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    client.send(Method::POST, "/api/v1/namespaces/default/serviceaccounts", JSON, account.to_string()).await?;
    Ok(())
}

fn configmap(turn: usize, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"text": text.repeat(1024 / text.len().max(1))},
        "metadata": {"name": format!("load-{turn}"), "labels": {"tenth": (turn % 10).to_string()}}})
}

async fn configmaps(client: &Arc<Client>, load: Load, objects: usize) -> Result<()> {
    let each = |f: fn(Arc<Client>, usize) -> Sent| {
        let client = Arc::clone(client);
        move |turn: usize| f(Arc::clone(&client), turn)
    };
    load.run(
        "create",
        objects,
        each(|client, turn| {
            Box::pin(
                async move { done(client.send(Method::POST, CONFIGMAPS, JSON, configmap(turn, "0123456789abcdef").to_string()).await) },
            )
        }),
    )
    .await?;
    load.run("get", objects, each(|client, turn| Box::pin(async move { done(client.get(&format!("{CONFIGMAPS}/load-{turn}")).await) })))
        .await?;
    let total = count(client, CONFIGMAPS).await?;
    if total < objects {
        bail!("{total} of {objects} ConfigMaps are listed");
    }
    load.run("list", LISTS, each(|client, _| Box::pin(async move { done(client.get(CONFIGMAPS).await) }))).await?;
    // It is repeated that is measured.
    gzip_list(client).await?;
    load.run("gzip list", LISTS, each(|client, _| Box::pin(async move { gzip_list(&client).await }))).await?;
    let tenth = format!("{CONFIGMAPS}?labelSelector=tenth%3D3");
    let selected = count(client, &tenth).await?;
    if selected != (objects + 6) / 10 {
        bail!("{selected} of {objects} ConfigMaps have the label tenth=3");
    }
    load.run(
        "list by label",
        5 * LISTS,
        each(|client, _| Box::pin(async move { done(client.get(&format!("{CONFIGMAPS}?labelSelector=tenth%3D3")).await) })),
    )
    .await?;
    load.run("paged list", LISTS, each(|client, _| Box::pin(async move { all_pages(&client).await }))).await?;
    fan_out(client, load).await?;
    load.run(
        "merge patch",
        objects,
        each(|client, turn| {
            let patch = json!({"data": {"more": turn.to_string()}}).to_string();
            Box::pin(async move {
                done(client.send(Method::PATCH, &format!("{CONFIGMAPS}/load-{turn}"), "application/merge-patch+json", patch).await)
            })
        }),
    )
    .await?;
    load.run(
        "apply",
        objects,
        each(|client, turn| {
            let path = format!("{CONFIGMAPS}/load-{turn}?fieldManager=bench-apply&force=true");
            let body = configmap(turn, "fedcba9876543210").to_string();
            Box::pin(async move { done(client.send(Method::PATCH, &path, "application/apply-patch+yaml", body).await) })
        }),
    )
    .await?;
    load.run(
        "delete",
        objects,
        each(|client, turn| {
            Box::pin(async move { done(client.send(Method::DELETE, &format!("{CONFIGMAPS}/load-{turn}"), JSON, Bytes::new()).await) })
        }),
    )
    .await
}

type Sent = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>;

fn done(answer: Result<Bytes>) -> Result<()> {
    answer.map(|_| ())
}

async fn gzip_list(client: &Client) -> Result<()> {
    client.read(CONFIGMAPS, &[("accept", JSON), ("accept-encoding", "gzip")], None).await.map(drop)
}

async fn list(client: &Client, path: &str) -> Result<Value> {
    serde_json::from_slice(&client.get(path).await?).with_context(|| format!("{path} gave no JSON"))
}

async fn count(client: &Client, path: &str) -> Result<usize> {
    Ok(list(client, path).await?["items"].as_array().map_or(0, Vec::len))
}

/// One whole list in pages of 500. The token is found in the text: parsing megabytes here would measure us.
async fn all_pages(client: &Client) -> Result<()> {
    let mut path = format!("{CONFIGMAPS}?limit=500");
    loop {
        let page = client.get(&path).await?;
        let head = String::from_utf8_lossy(&page[..page.len().min(1000)]).into_owned();
        let Some((_, rest)) = head.split_once("\"continue\":\"") else { return Ok(()) };
        let token = rest.split('"').next().unwrap_or_default();
        path = format!("{CONFIGMAPS}?limit=500&continue={token}");
    }
}

/// The revision to watch from: that of the collection now.
async fn revision(client: &Client, collection: &str) -> Result<String> {
    let found = list(client, &format!("{collection}?limit=1")).await?;
    found["metadata"]["resourceVersion"].as_str().map(str::to_owned).context("a list without a resourceVersion")
}

/// Follows a collection; sends the time of arrival of each event's end.
async fn watch(client: &Client, collection: &str, from: &str, events: mpsc::Sender<Instant>) -> Result<()> {
    let path = format!("{collection}?watch=true&resourceVersion={from}");
    let answer = client.open(Method::GET, &path, JSON, Bytes::new()).await?;
    if !answer.status().is_success() {
        bail!("{path} was answered with {}", answer.status());
    }
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let ends = frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
        let now = Instant::now();
        for _ in 0..ends {
            if events.send(now).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Many watchers of the same objects while those are updated.
async fn fan_out(client: &Arc<Client>, load: Load) -> Result<()> {
    eprintln!("watch: {WATCHERS} watchers, {UPDATES} updates");
    let from = revision(client, CONFIGMAPS).await?;
    let (sender, mut arrived) = mpsc::channel(WATCHERS * UPDATES);
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let (client, from, sender) = (Arc::clone(client), from.clone(), sender.clone());
        watchers.spawn(async move { watch(&client, CONFIGMAPS, &from, sender).await });
    }
    drop(sender);
    // Watches are open when this update was seen by all.
    update(client, 0, usize::MAX).await?;
    receive(&mut arrived, WATCHERS).await?;
    let (before, begin) = (processor_ms(load.pid)?, Instant::now());
    for turn in 0..UPDATES {
        update(client, turn, turn).await?;
    }
    let last = receive(&mut arrived, WATCHERS * UPDATES).await?;
    let spent = processor_ms(load.pid)? - before;
    let events = (WATCHERS * UPDATES) as f64;
    print("watch: rate", events / last.duration_since(begin).as_secs_f64(), "/s");
    print("watch: processor", spent * 1000.0 / events, "µs");
    burst(client, load, &mut arrived).await
}

/// The same watchers, while many updates come at once.
async fn burst(client: &Arc<Client>, load: Load, arrived: &mut mpsc::Receiver<Instant>) -> Result<()> {
    let encodings = encodings(client).await?;
    let (before, begin) = (processor_ms(load.pid)?, Instant::now());
    let mut updates = JoinSet::new();
    for turn in 0..UPDATES {
        if updates.len() == load.in_flight {
            updates.join_next().await.context("an update was lost")???;
        }
        let client = Arc::clone(client);
        updates.spawn(async move { update(&client, turn, turn + UPDATES).await });
    }
    while let Some(update) = updates.join_next().await {
        update.context("an update was lost")??;
    }
    let last = receive(arrived, WATCHERS * UPDATES).await?;
    let spent = processor_ms(load.pid)? - before;
    let events = (WATCHERS * UPDATES) as f64;
    print("watch burst: rate", events / last.duration_since(begin).as_secs_f64(), "/s");
    print("watch burst: processor", spent * 1000.0 / events, "µs");
    print("watch burst: encodings", self::encodings(client).await? - encodings, "");
    Ok(())
}

/// How many objects the server encoded for readers.
async fn encodings(client: &Client) -> Result<f64> {
    let text = client.get("/metrics").await?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|line| line.strip_prefix("strake_apiserver_encodings_total ")).context("no count of encodings")?;
    line.trim().parse().context("the count of encodings is no number")
}

async fn update(client: &Client, name: usize, value: usize) -> Result<()> {
    let patch = json!({"data": {"turn": value.to_string()}}).to_string();
    done(client.send(Method::PATCH, &format!("{CONFIGMAPS}/load-{name}"), "application/merge-patch+json", patch).await)
}

/// Takes so many events; gives when the last of them arrived.
async fn receive(arrived: &mut mpsc::Receiver<Instant>, events: usize) -> Result<Instant> {
    let mut last = Instant::now();
    for taken in 0..events {
        let event = tokio::time::timeout(SILENCE, arrived.recv()).await;
        last = event.with_context(|| format!("after {taken} of {events} events the watches are silent"))?.context("all watches ended")?;
    }
    Ok(last)
}

fn pod(turn: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("load-{turn}"), "labels": {"app": "load"}}, "spec": {
        "containers": [{"name": "main", "image": "example.org/app:1", "ports": [{"containerPort": 80}],
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}}}]}})
}

async fn pods(client: &Arc<Client>, load: Load) -> Result<()> {
    let held = Arc::clone(client);
    load.run("pod create", PODS_MADE, move |turn| {
        let client = Arc::clone(&held);
        async move { done(client.send(Method::POST, PODS, JSON, pod(turn).to_string()).await) }
    })
    .await?;
    let held = Arc::clone(client);
    load.run("pod get", PODS_MADE, move |turn| {
        let client = Arc::clone(&held);
        async move { done(client.get(&format!("{PODS}/load-{turn}")).await) }
    })
    .await?;
    let held = Arc::clone(client);
    load.run("pod list", LISTS, move |_| {
        let client = Arc::clone(&held);
        async move { done(client.get(PODS).await) }
    })
    .await?;
    delivery(client).await
}

/// How long after an update was sent a watcher has it.
async fn delivery(client: &Arc<Client>) -> Result<()> {
    let from = revision(client, PODS).await?;
    let (sender, mut arrived) = mpsc::channel(16);
    let held = Arc::clone(client);
    let mut watcher = JoinSet::new();
    watcher.spawn(async move { watch(&held, PODS, &from, sender).await });
    let mut samples = Vec::with_capacity(UPDATES);
    for turn in 0..UPDATES {
        let patch = json!({"metadata": {"annotations": {"turn": turn.to_string()}}}).to_string();
        let sent = Instant::now();
        done(client.send(Method::PATCH, &format!("{PODS}/load-{turn}"), "application/merge-patch+json", patch).await)?;
        samples.push(receive(&mut arrived, 1).await?.duration_since(sent).as_secs_f64() * 1000.0);
    }
    print("pod watch delivery: p50", percentile(&mut samples, 0.5), "ms");
    print("pod watch delivery: p99", percentile(&mut samples, 0.99), "ms");
    Ok(())
}
