//! ResourceQuotas: what a namespace uses of what it may use.
//!
//! Admission adds to `status.used` before an object exists; this controller sets it right when something goes away, when a quota changes and
//! every few minutes. It must not recalculate when something appears: its cache may lack what admission has already counted.

mod counters;
mod plan;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_client::{
    Action, Change, Client, Error, FullObject, Informer, ListOptions, ObjectKey, Request, WorkQueue, resources::RESOURCE_QUOTAS,
};
use serde_json::{Value, json};

use self::counters::{Count, Counters};
use self::plan::{Observed, plan};
use self::usage::{Counted, counted_by};
use crate::api::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use crate::context::Context;
use crate::reconcile::{Reconcile, work};

/// Upstream's --resource-quota-sync-period.
const RESYNC: Duration = Duration::from_secs(300);

#[derive(Clone)]
struct Controller {
    client: Client,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    counters: Counters,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let queue = WorkQueue::new("resourcequota");
    let quotas = context.informers.resource_quotas();
    let controller = Controller {
        client: context.client("resourcequota-controller"),
        quotas: quotas.clone(),
        pods: context.informers.pods().informer,
        services: context.informers.services(),
        claims: context.informers.claims(),
        counters: Counters::new(context.clone(), quotas.clone(), queue.clone()),
    };
    let sink = queue.clone();
    quotas.add_handler(move |change: Change<'_, ResourceQuota>| match change {
        // The status is written by admission all the time, and by us.
        Change::Updated { old, new } if old.spec == new.spec && new.status.hard.is_some() => {}
        _ => sink.add(change.object().metadata.key()),
    });
    let freed = {
        let (queue, quotas) = (queue.clone(), quotas.clone());
        move |namespace: &str| quotas.list_namespace(namespace).iter().for_each(|quota| queue.add(quota.metadata.key()))
    };
    let tell = freed.clone();
    controller.pods.add_handler(move |change: Change<'_, Pod>| match change {
        Change::Updated { old, new } if old.is_terminal() == new.is_terminal() && old.spec == new.spec => {}
        Change::Added(_) => {}
        Change::Updated { new: pod, .. } | Change::Deleted(pod) => tell(&pod.metadata.namespace),
    });
    let tell = freed.clone();
    controller.services.add_handler(move |change: Change<'_, Service>| match change {
        Change::Updated { old, new } if old.spec == new.spec => {}
        Change::Added(_) => {}
        Change::Updated { new: service, .. } | Change::Deleted(service) => tell(&service.metadata.namespace),
    });
    controller.claims.add_handler(move |change: Change<'_, PersistentVolumeClaim>| match change {
        Change::Updated { old, new } if old.spec == new.spec => {}
        Change::Added(_) => {}
        Change::Updated { new: claim, .. } | Change::Deleted(claim) => freed(&claim.metadata.namespace),
    });
    quotas.wait_synced().await;
    controller.pods.wait_synced().await;
    controller.services.wait_synced().await;
    controller.claims.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(quota) = self.quotas.get_key(&key) else { return Ok(Action::Done) };
        let mut counts = BTreeMap::new();
        for name in quota.spec.hard.keys() {
            if let Some(Counted::Objects { plural, group }) = counted_by(name) {
                match self.counters.count(&key.namespace, &plural, &group).await? {
                    Count::Known(count) => drop(counts.insert(name.clone(), count)),
                    Count::Starting => return Ok(Action::After(Duration::from_millis(500))),
                    Count::Unknown => {}
                }
            }
        }
        let (pods, services, claims) = (
            self.pods.list_namespace(&key.namespace),
            self.services.list_namespace(&key.namespace),
            self.claims.list_namespace(&key.namespace),
        );
        let observed =
            Observed { quota: &quota, pods: &pods, services: &services, claims: &claims, counts: &counts, now: jiff::Timestamp::now() };
        if let Some(status) = plan(&observed) {
            self.write(&quota, status).await?;
        }
        Ok(Action::After(RESYNC))
    }
}

impl Controller {
    /// Writes the status onto exactly the object it was planned from: admission may have counted more meanwhile.
    async fn write(&self, quota: &ResourceQuota, status: Value) -> Result<(), Error> {
        // The controller's role lists quotas and may not get one.
        let options = ListOptions { field_selector: format!("metadata.name={}", quota.metadata.name), ..ListOptions::default() };
        let found = self.client.list::<Value>(&RESOURCE_QUOTAS, &quota.metadata.namespace, &options).await?;
        let Some(mut object) = found.items.into_iter().next() else { return Ok(()) };
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("ResourceQuota");
        object["metadata"]["resourceVersion"] = json!(quota.metadata.resource_version);
        object["status"] = status;
        let Some(object) = FullObject::new(object) else { return Ok(()) };
        self.client.execute(&Request::replace(&RESOURCE_QUOTAS, &object).subresource("status")).await
    }
}
