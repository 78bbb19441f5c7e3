//! The server on a real etcd over TLS, driven by the client and the runtime of the crate `kube`, as operators written in Rust do.

#[path = "../examples/dev-cluster/cluster.rs"]
mod cluster;

use std::time::Duration;

use cluster::Cluster;
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube_client::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube_client::config::{KubeConfigOptions, Kubeconfig};
use kube_client::core::response::Status;
use kube_client::{Api, Client, Config, Discovery, Error, ResourceExt};
use kube_runtime::watcher::{self, Event, watcher};
use kube_runtime::{WatchStreamExt, reflector};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A new server with the administrator's client.
async fn serve(dir: &tempfile::TempDir) -> (Cluster, Client) {
    let path = dir.path().to_owned();
    let cluster = tokio::task::spawn_blocking(move || Cluster::start(&path)).await.unwrap();
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join("admin.kubeconfig")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    (cluster, Client::try_from(config).unwrap())
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn configmap(name: &str, data: Value) -> ConfigMap {
    object(json!({"metadata": {"name": name, "labels": {"app": "client"}}, "data": data}))
}

/// The Status of a refused request.
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> Box<Status> {
    match answer {
        Err(Error::Api(status)) => status,
        other => panic!("this should have been refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_created_listed_replaced_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");

    let made = api.create(&PostParams::default(), &configmap("one", json!({"x": "1"}))).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.creation_timestamp().is_some());
    assert_eq!(api.get("one").await.unwrap(), made);
    let status = refused(api.create(&PostParams::default(), &made_again("one")).await);
    assert_eq!((status.code, &*status.reason), (409, "AlreadyExists"));
    assert!(api.get_opt("none").await.unwrap().is_none());
    let status = refused(api.create(&PostParams::default(), &configmap("two", json!({"not/a/key": ""}))).await);
    assert_eq!((status.code, &*status.reason), (422, "Invalid"));
    assert_eq!(status.details.unwrap().causes[0].field, "data[not/a/key]");

    for turn in 0..7 {
        api.create(&PostParams { dry_run: turn == 6, ..PostParams::default() }, &configmap(&format!("page-{turn}"), json!({})))
            .await
            .unwrap();
    }
    let mut names = Vec::new();
    let mut page = ListParams::default().labels("app=client").limit(3);
    loop {
        let found = api.list(&page).await.unwrap();
        assert!(found.items.len() <= 3);
        names.extend(found.items.iter().map(ResourceExt::name_any));
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, ["one", "page-0", "page-1", "page-2", "page-3", "page-4", "page-5"], "a dry run leaves nothing");
    let metadata = api.list_metadata(&ListParams::default().fields("metadata.name=one")).await.unwrap();
    assert_eq!(metadata.items.len(), 1);
    assert_eq!(metadata.items[0].metadata.uid, made.metadata.uid);

    let mut changed = made.clone();
    changed.data.get_or_insert_default().insert("x".into(), "2".into());
    let replaced = api.replace("one", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(replaced.resource_version(), made.resource_version());
    let status = refused(api.replace("one", &PostParams::default(), &changed).await);
    assert_eq!((status.code, &*status.reason), (409, "Conflict"), "the old revision is not replaced");

    let stale =
        DeleteParams::default().preconditions(kube_client::api::Preconditions { uid: Some("other".into()), resource_version: None });
    assert_eq!(refused(api.delete("one", &stale).await).code, 409);
    api.delete("one", &DeleteParams::default()).await.unwrap();
    api.delete_collection(&DeleteParams::default(), &ListParams::default().labels("app=client")).await.unwrap();
    assert!(api.list(&ListParams::default().labels("app=client")).await.unwrap().items.is_empty());

    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
    let discovery = Discovery::new(client).run().await.unwrap();
    let (apps, _) = discovery.get("apps").unwrap().recommended_kind("Deployment").unwrap();
    assert_eq!((&*apps.api_version, &*apps.plural), ("apps/v1", "deployments"));
}

fn made_again(name: &str) -> ConfigMap {
    configmap(name, json!({"x": "other"}))
}

/// The next event, which must come in time.
async fn next(events: &mut (impl Stream<Item = watcher::Result<Event<ConfigMap>>> + Unpin)) -> Event<ConfigMap> {
    let event = tokio::time::timeout(Duration::from_secs(60), events.next()).await;
    event.expect("no event came").expect("the watch ended").expect("the watch failed")
}

async fn follows_every_change(client: Client, config: watcher::Config) {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    for name in ["first", "second"] {
        api.create(&PostParams::default(), &configmap(name, json!({}))).await.unwrap();
    }
    let (reader, writer) = reflector::store();
    let mut events = Box::pin(reflector(writer, watcher(api.clone(), config.labels("app=client"))).default_backoff());

    assert!(matches!(next(&mut events).await, Event::Init));
    let mut initial = Vec::new();
    loop {
        match next(&mut events).await {
            Event::InitApply(object) => initial.push(object.name_any()),
            Event::InitDone => break,
            other => panic!("{other:?} before the initial list ended"),
        }
    }
    initial.sort();
    assert_eq!(initial, ["first", "second"]);
    assert_eq!(reader.len(), 2);

    // A change, one that leaves the selector, a new object, a deletion: each is one event, in order.
    let change = |data: Value| Patch::Merge(json!({"data": data}));
    api.patch("first", &PatchParams::default(), &change(json!({"x": "1"}))).await.unwrap();
    let relabel = Patch::Merge(json!({"metadata": {"labels": {"app": "other"}}}));
    api.patch("second", &PatchParams::default(), &relabel).await.unwrap();
    api.create(&PostParams::default(), &configmap("third", json!({"x": "3"}))).await.unwrap();
    api.delete("first", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(match next(&mut events).await {
            Event::Apply(object) => format!("apply {} {:?}", object.name_any(), object.data.unwrap_or_default()),
            Event::Delete(object) => format!("delete {}", object.name_any()),
            other => panic!("{other:?} is no change"),
        });
    }
    assert_eq!(seen, [r#"apply first {"x": "1"}"#, "delete second", r#"apply third {"x": "3"}"#, "delete first"]);
    let names: Vec<String> = reader.state().iter().map(|object| object.name_any()).collect();
    assert_eq!(names, ["third"], "the reflector's store is what the server has");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_lists_first_follows_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    follows_every_change(client, watcher::Config::default().page_size(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_streams_its_list_follows_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    follows_every_change(client, watcher::Config::default().streaming_lists()).await;
}
