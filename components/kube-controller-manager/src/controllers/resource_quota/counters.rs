//! Informers of what quotas only count. One starts when the first quota asks for its resource and then stays: their number is bounded by the
//! resources the API serves, and they read metadata only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_client::{
    Change, Error, Informer, ObjectKey, Partial, ReflectorOptions, Resource, WorkQueue, resources::RESOURCE_QUOTAS, spawn_reflector,
};
use parking_lot::Mutex;

use crate::api::ResourceQuota;
use crate::context::Context;

/// How soon an unknown resource may be looked for again.
const REDISCOVER: Duration = Duration::from_secs(30);

/// What is known about a resource to count.
pub enum Count {
    Known(usize),
    /// The informer has not read everything yet.
    Starting,
    /// The API does not serve it.
    Unknown,
}

#[derive(Default)]
struct State {
    informers: HashMap<Resource, Informer<Partial>>,
    resources: HashMap<(String, String), Resource>,
    looked: Option<Instant>,
}

/// All counters; cheap to clone.
#[derive(Clone)]
pub struct Counters {
    context: Context,
    quotas: Informer<ResourceQuota>,
    queue: Arc<WorkQueue<ObjectKey>>,
    state: Arc<Mutex<State>>,
}

impl Counters {
    /// Nothing is counted yet.
    pub fn new(context: Context, quotas: Informer<ResourceQuota>, queue: Arc<WorkQueue<ObjectKey>>) -> Self {
        Self { context, quotas, queue, state: Arc::default() }
    }

    /// How many objects of the resource the namespace has.
    pub async fn count(&self, namespace: &str, plural: &str, group: &str) -> Result<Count, Error> {
        if (plural, group) == (RESOURCE_QUOTAS.plural.as_ref(), "") {
            // Another watch of them might not know the quota yet that this is asked for.
            return Ok(Count::Known(self.quotas.list_namespace(namespace).len()));
        }
        let Some(resource) = self.resolve(plural, group).await? else { return Ok(Count::Unknown) };
        let informer = self.informer(resource);
        Ok(if informer.has_synced() { Count::Known(informer.list_namespace(namespace).len()) } else { Count::Starting })
    }

    async fn resolve(&self, plural: &str, group: &str) -> Result<Option<Resource>, Error> {
        let key = (plural.to_string(), group.to_string());
        {
            let state = self.state.lock();
            let known = state.resources.get(&key).cloned();
            if known.is_some() || state.looked.is_some_and(|at| at.elapsed() < REDISCOVER) {
                return Ok(known);
            }
        }
        let found = self.context.root.discover().await?;
        let countable = found.resources.into_iter().filter(|found| found.resource.namespaced && found.supports(&["list", "watch"]));
        let mut state = self.state.lock();
        state.resources =
            countable.map(|found| ((found.resource.plural.to_string(), found.resource.group.to_string()), found.resource)).collect();
        state.looked = Some(Instant::now());
        Ok(state.resources.get(&key).cloned())
    }

    fn informer(&self, resource: Resource) -> Informer<Partial> {
        let mut state = self.state.lock();
        if let Some(known) = state.informers.get(&resource) {
            return known.clone();
        }
        let options = ReflectorOptions { metadata_only: true, ..ReflectorOptions::all(resource.clone()) };
        let informer = spawn_reflector::<Partial>(self.context.root.clone(), options, self.context.stop.clone());
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        informer.add_handler(move |change: Change<'_, Partial>| {
            if let Change::Deleted(object) = change {
                quotas.list_namespace(&object.metadata.namespace).iter().for_each(|quota| queue.add(quota.metadata.key()));
            }
        });
        state.informers.insert(resource, informer.clone());
        informer
    }
}
