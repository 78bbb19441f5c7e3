//! Deletes pods that use devices whose NoExecute taints their claims do not tolerate, after the time they do tolerate them (KEP-5055).
//! Taints come from the drivers' slices; rules of administrators (DeviceTaintRule) are no stable API and not served here.

mod plan;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_client::{Action, Change, Error, EventType, Index, Informer, ObjectKey, WorkQueue, resources::PODS};

use crate::api::{Pod, ResourceClaim, ResourceSlice};
use crate::context::Context;
use crate::ownership;
use crate::reconcile::{Reconcile, work};

const ACCOUNT: &str = "device-taint-eviction-controller";

#[derive(Clone)]
struct Evictions {
    context: Context,
    client: k8s_client::Client,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    slices: Arc<Index<ResourceSlice>>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let client = context.client(ACCOUNT);
    let pods = context.informers.pods().informer;
    let claims = context.informers.resource_claims();
    let slices: Informer<ResourceSlice> = context.informers.narrow("", "");
    let of_pool = slices.index(|slice: &ResourceSlice| vec![plan::pool(&slice.spec.driver, &slice.spec.pool.name)]);
    let users = claims.index(plan::pools);
    let queue = WorkQueue::new("device-taint-eviction");
    let sink = queue.clone();
    pods.add_handler(move |change: Change<'_, Pod>| {
        let pod = change.object();
        if !matches!(change, Change::Deleted(_)) && !pod.spec.resource_claims.is_empty() && !pod.spec.node_name.is_empty() {
            sink.add(pod.metadata.key());
        }
    });
    let sink = queue.clone();
    let consumers = move |claim: &ResourceClaim| {
        let pods = claim.status.reserved_for.iter().filter(|consumer| consumer.is_pod());
        pods.for_each(|pod| sink.add(ObjectKey::new(claim.metadata.namespace.clone(), pod.name.clone())));
    };
    let of_claim = consumers.clone();
    claims.add_handler(move |change: Change<'_, ResourceClaim>| of_claim(change.object()));
    let pool = of_pool.clone();
    slices.add_handler(move |change: Change<'_, ResourceSlice>| {
        // Taints that went need no look: a pod that waits is judged anew when its time is up.
        let spec = &change.object().spec;
        let name = plan::pool(&spec.driver, &spec.pool.name);
        if plan::evicts(&pool.get(&name)) {
            users.get(&name).iter().for_each(|claim| consumers(claim));
        }
    });
    pods.wait_synced().await;
    claims.wait_synced().await;
    slices.wait_synced().await;
    let evictions = Evictions { context: context.clone(), client, pods, claims, slices: of_pool };
    work(&context, queue, 4, evictions).await;
}

impl Reconcile for Evictions {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(pod) = self.pods.get_key(&key).filter(|pod| !pod.metadata.is_deleting() && !pod.spec.node_name.is_empty()) else {
            return Ok(Action::Done);
        };
        let claims: Vec<_> = plan::claims(&pod).into_iter().filter_map(|name| self.claims.get(&key.namespace, name)).collect();
        match plan::patience(&pod, &claims, &|pool| self.slices.get(pool), Timestamp::now()) {
            None => Ok(Action::Done),
            Some(wait) if wait.is_zero() => self.evict(&pod).await,
            Some(wait) => Ok(Action::After(wait)),
        }
    }
}

impl Evictions {
    async fn evict(&self, pod: &Pod) -> Result<Action, Error> {
        self.context.event(&PODS, &pod.metadata, EventType::Normal, "DeviceTaintManagerEviction", "Marking for deletion");
        let message = "Device Taint manager: deleting due to NoExecute taint";
        ownership::disrupt_pod(&self.client, &pod.metadata, "DeletionByDeviceTaintManager", message).await?;
        tracing::info!(pod = %pod.metadata.key(), node = pod.spec.node_name, "pod evicted: it does not tolerate a taint of its devices");
        Ok(Action::Done)
    }
}
