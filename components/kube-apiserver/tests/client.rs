//! The server on a real etcd over TLS, driven by the client and the runtime of the crate `kube`, as operators written in Rust do.

#[path = "../examples/dev-cluster/cluster.rs"]
mod cluster;

use std::time::Duration;

use cluster::Cluster;
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube_client::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
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
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    // Refusals are what is looked at here: the client is not to hide them by asking again.
    config.default_retry = false;
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

fn deployment(image: &str) -> Deployment {
    object(json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "image": image}, {"name": "side", "image": "example.org/side:1"}]}}}}))
}

fn images(deployment: &Deployment) -> Vec<String> {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    pod.into_iter().flat_map(|pod| &pod.containers).filter_map(|container| container.image.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_patch_changes_what_it_says_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    let api: Api<Deployment> = Api::namespaced(client, "default");
    api.create(&PostParams::default(), &deployment("example.org/web:1")).await.unwrap();
    let spec_of_main = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}});

    // Containers are merged by their names; a merge patch replaces the list.
    let strategic = Patch::Strategic(spec_of_main("example.org/web:2"));
    let patched = api.patch("web", &PatchParams::default(), &strategic).await.unwrap();
    assert_eq!(images(&patched), ["example.org/web:2", "example.org/side:1"]);
    let annotated = Patch::Merge(json!({"metadata": {"annotations": {"a": "1"}}}));
    assert_eq!(api.patch("web", &PatchParams::default(), &annotated).await.unwrap().annotations()["a"], "1");
    let merged = api.patch("web", &PatchParams::default(), &Patch::Merge(spec_of_main("example.org/web:3"))).await.unwrap();
    assert_eq!(images(&merged), ["example.org/web:3"]);
    let status = refused(api.patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": "many"}}))).await);
    assert_eq!(status.code, 422, "{status:?}");

    // Server-side apply: fields have owners, conflicts name them, force takes over, leaving a field out gives it up.
    let applied = |replicas: Value, image: &str| {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "image": image}]}}}});
        if !replicas.is_null() {
            object["spec"]["replicas"] = replicas;
        }
        Patch::Apply(object)
    };
    let status = refused(api.patch("web", &PatchParams::apply("operator"), &applied(json!(4), "example.org/web:4")).await);
    assert_eq!((status.code, &*status.reason), (409, "Conflict"));
    let causes = status.details.unwrap().causes;
    assert!(causes.iter().any(|cause| cause.reason == "FieldManagerConflict" && cause.field == ".spec.replicas"), "{causes:?}");
    let force = PatchParams::apply("operator").force();
    let taken = api.patch("web", &force, &applied(json!(4), "example.org/web:4")).await.unwrap();
    assert_eq!((taken.spec.as_ref().unwrap().replicas, images(&taken)), (Some(4), vec!["example.org/web:4".to_owned()]));
    let manager = taken.managed_fields().iter().find(|entry| entry.manager.as_deref() == Some("operator")).unwrap();
    assert_eq!(manager.operation.as_deref(), Some("Apply"));
    let again = api.patch("web", &force, &applied(json!(4), "example.org/web:4")).await.unwrap();
    assert_eq!(again.resource_version(), taken.resource_version(), "applying the same again writes nothing");
    let given_up = api.patch("web", &force, &applied(Value::Null, "example.org/web:4")).await.unwrap();
    assert_eq!(given_up.spec.unwrap().replicas, Some(1), "nobody owns replicas any more: the default returns");

    // A status is written apart from the rest.
    let counted = Patch::Merge(json!({"status": {"observedGeneration": 1, "replicas": 3}, "spec": {"replicas": 9}}));
    let counted = api.patch_status("web", &PatchParams::default(), &counted).await.unwrap();
    assert_eq!((counted.status.unwrap().replicas, counted.spec.unwrap().replicas), (Some(3), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_scale_and_pods_are_evicted_as_their_budget_allows() {
    let dir = tempfile::tempdir().unwrap();
    let (_cluster, client) = serve(&dir).await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    deployments.create(&PostParams::default(), &deployment("example.org/web:1")).await.unwrap();
    assert_eq!(deployments.get_scale("web").await.unwrap().spec.unwrap().replicas, Some(1));
    let scaled = Patch::Merge(json!({"spec": {"replicas": 5}}));
    deployments.patch_scale("web", &PatchParams::default(), &scaled).await.unwrap();
    let mut scale = deployments.get_scale("web").await.unwrap();
    assert_eq!(scale.status.as_ref().unwrap().selector.as_deref(), Some("app=web"));
    scale.spec.as_mut().unwrap().replicas = Some(2);
    deployments.replace_scale("web", &PostParams::default(), &scale).await.unwrap();
    assert_eq!(deployments.get("web").await.unwrap().spec.unwrap().replicas, Some(2));

    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    accounts.create(&PostParams::default(), &object(json!({"metadata": {"name": "default"}}))).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod = json!({"metadata": {"name": "web-1", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "x"}]}});
    pods.create(&PostParams::default(), &object(pod)).await.unwrap();
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status("web-1", &PatchParams::default(), &Patch::Strategic(running)).await.unwrap();
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client, "default");
    let budget = json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    let generation = budgets.create(&PostParams::default(), &object(budget)).await.unwrap().metadata.generation;
    let allow = async |allowed: i32| {
        let status = json!({"status": {"observedGeneration": generation, "currentHealthy": 1, "desiredHealthy": 1 - allowed,
            "disruptionsAllowed": allowed, "expectedPods": 1}});
        budgets.patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    };
    allow(0).await;
    let status = refused(pods.evict("web-1", &EvictParams::default()).await);
    assert_eq!((status.code, &*status.reason), (429, "TooManyRequests"));
    assert!(status.details.unwrap().causes.iter().any(|cause| cause.reason == "DisruptionBudget"));
    allow(1).await;
    pods.evict("web-1", &EvictParams::default()).await.unwrap();
    // It is on no node, so nobody has to stop it first.
    assert!(pods.get_opt("web-1").await.unwrap().is_none());
    let status = budgets.get_status("web").await.unwrap().status.unwrap();
    assert_eq!(status.disruptions_allowed, Some(0), "the eviction used the budget up");
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
    // A watch may begin with what the server's cache had a moment ago; whoever asked for the latest will not see less again.
    assert_eq!(api.list(&ListParams::default().labels("app=client")).await.unwrap().items.len(), 2);
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
