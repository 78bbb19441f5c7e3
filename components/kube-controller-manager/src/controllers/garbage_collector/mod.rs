//! Deletes what lost its owners, in the manner the owner's deletion asked for: background, foreground or orphan.
//!
//! Every resource the server offers is watched for its metadata; [`graph`] keeps who owns whom, [`plan`] decides about one object, and this file
//! checks each decision against the live API before acting, because the graph may be behind.

mod graph;
mod plan;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use k8s_client::{
    Action, CancellationToken, Change, Client, DeleteOptions, Discovered, Error, Informer, ObjectMeta, OwnerReference, Partial, Patch,
    Propagation, ReflectorOptions, Request, Resource, WorkQueue, run_workers, spawn_reflector,
};
use parking_lot::Mutex;
use serde_json::json;

use self::graph::{Graph, Slim};
use self::plan::{FOREGROUND, ORPHAN, OwnerState, Step, plan};
use crate::context::Context;

/// How often new kinds are looked for.
const REDISCOVER: Duration = Duration::from_secs(30);
/// Owners known to be gone are remembered, so that a thousand orphans cost one look.
const ABSENT: usize = 500;
/// Resources never collected: too many, and they expire.
const IGNORED: &[(&str, &str)] = &[("", "events"), ("events.k8s.io", "events")];

#[derive(Clone)]
struct Collector {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    kinds: Arc<Mutex<HashMap<(String, String), Resource>>>,
    absent: Arc<Mutex<Absent>>,
    queue: Arc<WorkQueue<String>>,
}

#[derive(Default)]
struct Absent {
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl Absent {
    fn insert(&mut self, uid: &str) {
        if self.known.insert(uid.to_string()) {
            self.order.push_back(uid.to_string());
            if self.order.len() > ABSENT
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let collector = Collector {
        client: context.client("generic-garbage-collector"),
        graph: Arc::default(),
        kinds: Arc::default(),
        absent: Arc::default(),
        queue: WorkQueue::new("garbage-collector"),
    };
    let watcher = collector.clone();
    let (root, stop) = (context.root.clone(), context.stop.clone());
    let (ready, mut is_ready) = tokio::sync::watch::channel(false);
    let watching = watcher.watch_everything(root, stop, ready);
    let working = async {
        // Nothing is collected before the graph is whole; then a kind that cannot be listed does not hold up the others.
        let _ = is_ready.wait_for(|ready| *ready).await;
        let worker = collector.clone();
        run_workers(collector.queue.clone(), 5, context.stop.clone(), move |uid| {
            let worker = worker.clone();
            async move { worker.process(&uid).await }
        })
        .await;
    };
    tokio::join!(watching, working);
}

impl Collector {
    async fn watch_everything(self, root: Client, stop: CancellationToken, ready: tokio::sync::watch::Sender<bool>) {
        let mut watched: HashMap<Resource, (CancellationToken, Informer<Slim>)> = HashMap::new();
        loop {
            match root.discover().await {
                Ok(discovered) => self.follow(&root, &discovered, &mut watched, &stop),
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "discovering what to collect failed"),
            }
            if !*ready.borrow() && !watched.is_empty() {
                let synced = async {
                    for (_, informer) in watched.values() {
                        informer.wait_synced().await;
                    }
                };
                if tokio::time::timeout(REDISCOVER, synced).await.is_err() {
                    let behind: Vec<String> = watched.iter().filter(|(_, (_, i))| !i.has_synced()).map(|(r, _)| r.to_string()).collect();
                    tracing::warn!(resources = behind.join(", "), "collecting garbage without having seen these resources");
                }
                ready.send_replace(true);
            }
            tokio::select! {
                () = tokio::time::sleep(REDISCOVER) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn follow(
        &self,
        root: &Client,
        discovered: &Discovered,
        watched: &mut HashMap<Resource, (CancellationToken, Informer<Slim>)>,
        stop: &CancellationToken,
    ) {
        let mut kinds = HashMap::new();
        let mut wanted = HashSet::new();
        for api in &discovered.resources {
            kinds.insert((api.resource.group.to_string(), api.resource.kind.to_string()), api.resource.clone());
            let ignored = IGNORED.iter().any(|(group, plural)| api.resource.group == *group && api.resource.plural == *plural);
            if !ignored && api.supports(&["list", "watch", "delete"]) {
                wanted.insert(api.resource.clone());
            }
        }
        *self.kinds.lock() = kinds;
        // A group whose discovery failed keeps its watches.
        let lost: Vec<Resource> = watched
            .keys()
            .filter(|resource| !wanted.contains(*resource) && !discovered.failed.iter().any(|path| path.starts_with(&resource.base_path())))
            .cloned()
            .collect();
        for resource in lost {
            if let Some((token, informer)) = watched.remove(&resource) {
                token.cancel();
                let mut graph = self.graph.lock();
                for object in informer.list() {
                    let affected = graph.remove(&object.metadata.uid);
                    affected.into_iter().for_each(|uid| self.queue.add(uid));
                }
            }
        }
        for resource in wanted {
            if watched.contains_key(&resource) {
                continue;
            }
            let token = stop.child_token();
            let options = ReflectorOptions { metadata_only: true, ..ReflectorOptions::all(resource.clone()) };
            let informer: Informer<Slim> = spawn_reflector(root.clone(), options, token.clone());
            let (graph, queue, of) = (self.graph.clone(), self.queue.clone(), resource.clone());
            informer.add_handler(move |change: Change<'_, Slim>| {
                let touched = match change {
                    Change::Added(object) | Change::Updated { new: object, .. } => graph.lock().put(&of, object),
                    Change::Deleted(object) => graph.lock().remove(&object.metadata.uid),
                };
                touched.into_iter().for_each(|uid| queue.add(uid));
            });
            watched.insert(resource, (token, informer));
        }
    }

    /// One round for one object.
    async fn process(&self, uid: &str) -> Result<Action, Error> {
        let Some((resource, known)) = self.graph.lock().get(uid) else { return Ok(Action::Done) };
        // The graph only says where to look; what is there now decides.
        let live: Partial = match self.client.call(&Request::get_metadata(&resource, &known.namespace, &known.name)).await {
            Ok(live) => live,
            Err(error) if error.is_not_found() => return Ok(Action::Done),
            Err(error) => return Err(error),
        };
        if live.metadata.uid != uid {
            return Ok(Action::Done);
        }
        let mut owners = Vec::new();
        for owner in &live.metadata.owner_references {
            owners.push(self.owner_state(&live.metadata, owner).await?);
        }
        let dependents = self.graph.lock().dependents(uid);
        match plan(&live.metadata, &owners, &dependents) {
            Step::Nothing => {}
            Step::Drop(gone) => self.drop_owners(&resource, &live.metadata, &gone).await?,
            Step::Delete(propagation) => {
                let options = DeleteOptions {
                    propagation: Some(propagation),
                    resource_version: Some(live.metadata.resource_version.clone()),
                    ..DeleteOptions::uid(uid)
                };
                let request = Request::delete(&resource, &known.namespace, &known.name, &options);
                match self.client.execute(&request).await {
                    Ok(()) => {
                        tracing::debug!(resource = %resource, namespace = known.namespace, name = known.name, ?propagation, "collected")
                    }
                    Err(error) if error.is_not_found() => {}
                    // It changed since we looked: look again.
                    Err(error) if error.is_conflict() => return Ok(Action::Retry),
                    Err(error) => return Err(error),
                }
            }
            Step::Unblock => {
                self.unblock(&resource, &live.metadata).await?;
                self.queue.add(uid.to_string());
            }
            Step::Orphan => {
                for dependent in &dependents {
                    if let Some((resource, object)) = { self.graph.lock().get(&dependent.uid) } {
                        self.orphan(&resource, &object.namespace, &object.name, &dependent.uid, uid).await?;
                    }
                }
                self.remove_finalizer(&resource, &live.metadata, ORPHAN).await?;
            }
            Step::AwaitDependents(pending) => {
                pending.into_iter().for_each(|uid| self.queue.add(uid));
            }
            Step::FinishForeground => self.remove_finalizer(&resource, &live.metadata, FOREGROUND).await?,
        }
        Ok(Action::Done)
    }

    async fn owner_state(&self, object: &ObjectMeta, owner: &OwnerReference) -> Result<OwnerState, Error> {
        if self.absent.lock().known.contains(&owner.uid) {
            return Ok(OwnerState::Gone);
        }
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group).to_string();
        let Some(resource) = self.kinds.lock().get(&(group, owner.kind.clone())).cloned() else {
            // A kind nobody knows cannot be shown to be gone.
            return Ok(OwnerState::Solid);
        };
        if resource.namespaced && object.namespace.is_empty() {
            return Ok(OwnerState::Solid);
        }
        match self.client.call::<Partial>(&Request::get_metadata(&resource, &object.namespace, &owner.name)).await {
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
            Ok(live) if live.metadata.uid == owner.uid => {
                let waiting = live.metadata.is_deleting() && live.metadata.finalizers.iter().any(|f| f == FOREGROUND);
                return Ok(if waiting { OwnerState::Waiting } else { OwnerState::Solid });
            }
            Ok(_) => {}
        }
        self.absent.lock().insert(&owner.uid);
        Ok(OwnerState::Gone)
    }

    async fn drop_owners(&self, resource: &Resource, object: &ObjectMeta, gone: &[String]) -> Result<(), Error> {
        let left: Vec<&OwnerReference> = object.owner_references.iter().filter(|owner| !gone.contains(&owner.uid)).collect();
        let body = json!({"metadata": {"uid": object.uid, "resourceVersion": object.resource_version, "ownerReferences": left}});
        self.patch(resource, &object.namespace, &object.name, &body).await
    }

    async fn unblock(&self, resource: &Resource, object: &ObjectMeta) -> Result<(), Error> {
        let mut owners = object.owner_references.clone();
        owners.iter_mut().for_each(|owner| owner.block_owner_deletion = owner.block_owner_deletion.map(|_| false));
        let body = json!({"metadata": {"uid": object.uid, "resourceVersion": object.resource_version, "ownerReferences": owners}});
        self.patch(resource, &object.namespace, &object.name, &body).await
    }

    async fn orphan(&self, resource: &Resource, namespace: &str, name: &str, uid: &str, owner: &str) -> Result<(), Error> {
        let live: Partial = match self.client.call(&Request::get_metadata(resource, namespace, name)).await {
            Ok(live) => live,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        if live.metadata.uid == uid && live.metadata.owner_references.iter().any(|reference| reference.uid == owner) {
            self.drop_owners(resource, &live.metadata, &[owner.to_string()]).await?;
        }
        Ok(())
    }

    async fn remove_finalizer(&self, resource: &Resource, object: &ObjectMeta, finalizer: &str) -> Result<(), Error> {
        let left: Vec<&String> = object.finalizers.iter().filter(|name| *name != finalizer).collect();
        let body = json!({"metadata": {"uid": object.uid, "resourceVersion": object.resource_version, "finalizers": left}});
        self.patch(resource, &object.namespace, &object.name, &body).await
    }

    async fn patch(&self, resource: &Resource, namespace: &str, name: &str, body: &serde_json::Value) -> Result<(), Error> {
        crate::ownership::ignore_missing(&self.client, &Request::patch(resource, namespace, name, &Patch::merge(body))).await
    }
}

/// Upstream's names of the ways to delete.
fn propagation_for(object: &ObjectMeta) -> Propagation {
    let has = |finalizer: &str| object.finalizers.iter().any(|name| name == finalizer);
    if has(ORPHAN) {
        Propagation::Orphan
    } else if has(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    }
}
