//! What every controller with a work queue shares: whose change makes whom be looked at again, and the loop that looks.

use std::future::Future;
use std::sync::Arc;

use k8s_client::{Action, Change, Client, Error, Informer, LabelSelector, Named, ObjectKey, ObjectMeta, WorkQueue, run_workers};
use serde::Serialize;
use serde_json::json;

use crate::context::Context;

/// A controller that brings one object at a time to what it should be.
pub trait Reconcile: Clone + Send + Sync + 'static {
    /// One round for one object; the object may be gone.
    fn sync(&self, key: ObjectKey) -> impl Future<Output = Result<Action, Error>> + Send;
}

/// Works off the queue until the context stops.
pub async fn work<R: Reconcile>(context: &Context, queue: Arc<WorkQueue<ObjectKey>>, workers: usize, reconciler: R) {
    run_workers(queue, workers, context.stop.clone(), move |key| {
        let reconciler = reconciler.clone();
        async move { reconciler.sync(key).await }
    })
    .await;
}

/// A kind that owns what its selector matches.
pub trait Selecting: Named {
    /// The finalizer that what it owns carries for it.
    const FINALIZER: Option<&'static str> = None;
    /// What it wants to own.
    fn selector(&self) -> &LabelSelector;
}

/// Enqueues every object of the informer that changes.
pub fn follow<T: Named>(queue: &Arc<WorkQueue<ObjectKey>>, informer: &Informer<T>) {
    let sink = queue.clone();
    informer.add_handler(move |change: Change<'_, T>| sink.add(change.object().meta().key()));
}

/// Enqueues the owner of what changes: the one it names or named, or those that would adopt it.
pub fn follow_owned<O: Selecting, T: Named>(queue: &Arc<WorkQueue<ObjectKey>>, owners: &Informer<O>, owned: &Informer<T>) {
    let (sink, owners) = (queue.clone(), owners.clone());
    owned.add_handler(move |change: Change<'_, T>| {
        let old = if let Change::Updated { old, .. } = change { Some(old) } else { None };
        for object in [Some(change.object()), old].into_iter().flatten() {
            owners_of(&owners, object.meta(), |key| sink.add(key));
        }
    });
}

fn owners_of<O: Selecting>(owners: &Informer<O>, object: &ObjectMeta, mut found: impl FnMut(ObjectKey)) {
    match object.controller() {
        Some(owner) if owner.kind == O::RESOURCE.kind => found(ObjectKey::new(object.namespace.clone(), owner.name.clone())),
        Some(_) => {}
        None => owners
            .list_namespace(&object.namespace)
            .iter()
            .filter(|owner| !owner.selector().is_empty() && owner.selector().matches(&object.labels))
            .for_each(|owner| found(owner.meta().key())),
    }
}

/// Writes the status of an object that may have changed or gone meanwhile: the next round sees the newer object, or none.
pub async fn put_status<T: Named>(client: &Client, object: &T, status: &impl Serialize) -> Result<(), Error> {
    let meta = object.meta();
    let key = (meta.namespace.as_str(), meta.name.as_str());
    match client.update(&T::RESOURCE, key, &meta.uid, "status", |object| object["status"] = json!(status)).await {
        Err(error) if !error.is_conflict() && !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
