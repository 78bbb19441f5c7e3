//! ServiceCIDRs: a range is ready, and stays as long as addresses of Services are from it and from no other.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_client::{
    Action, Change, Client, Condition, Error, Informer, ListOptions, ObjectKey, Partial, Time, WorkQueue,
    resources::{IP_ADDRESSES, SERVICE_CIDRS},
};
use serde_json::json;

use crate::api::{ServiceCidr, ServiceCidrStatus};
use crate::context::Context;
use crate::reconcile::{Reconcile, put_status, work};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

/// What to do about one range.
#[derive(Clone, Debug, PartialEq)]
enum Plan {
    /// It carries the finalizer and says that it is ready.
    Ready { add_finalizer: bool },
    /// It is to go, and holds addresses that no other range holds.
    Wait,
    /// Nothing needs it.
    Release,
}

fn ranges(cidr: &ServiceCidr) -> impl Iterator<Item = IpNet> {
    cidr.spec.cidrs.iter().filter_map(|text| text.parse().ok())
}

/// The plan; `addresses` are those given to Services, and matter only when the range is to go.
fn plan(cidr: &ServiceCidr, all: &[Arc<ServiceCidr>], addresses: &[IpAddr]) -> Plan {
    let holds = cidr.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    if !cidr.metadata.is_deleting() {
        return Plan::Ready { add_finalizer: !holds };
    }
    let others: Vec<IpNet> = all
        .iter()
        .filter(|other| other.metadata.name != cidr.metadata.name && !other.metadata.is_deleting())
        .flat_map(|other| ranges(other))
        .collect();
    let orphan =
        |address: &&IpAddr| ranges(cidr).any(|range| range.contains(*address)) && !others.iter().any(|range| range.contains(*address));
    if addresses.iter().any(|address| orphan(&address)) { Plan::Wait } else { Plan::Release }
}

#[derive(Clone)]
struct Controller {
    client: Client,
    cidrs: Informer<ServiceCidr>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller { client: context.client("service-cidrs-controller"), cidrs: context.informers.service_ranges() };
    let queue = WorkQueue::new("service-cidr");
    let (sink, cidrs) = (queue.clone(), controller.cidrs.clone());
    controller.cidrs.add_handler(move |change: Change<'_, ServiceCidr>| {
        sink.add(change.object().metadata.key());
        // Another range may hold what one that is to go waits for.
        cidrs.list().iter().filter(|cidr| cidr.metadata.is_deleting()).for_each(|cidr| sink.add(cidr.metadata.key()));
    });
    controller.cidrs.wait_synced().await;
    work(&context, queue, 1, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(cidr) = self.cidrs.get_key(&key) else { return Ok(Action::Done) };
        // Ranges go seldom, so the addresses are asked for then and not kept.
        let addresses = if cidr.metadata.is_deleting() {
            let options = ListOptions { metadata_only: true, ..ListOptions::default() };
            let list = self.client.list::<Partial>(&IP_ADDRESSES, "", &options).await?;
            list.items.iter().filter_map(|address| address.metadata.name.parse().ok()).collect()
        } else {
            Vec::new()
        };
        let plan = plan(&cidr, &self.cidrs.list(), &addresses);
        match plan {
            Plan::Ready { add_finalizer } => {
                if add_finalizer {
                    self.finalizer(&cidr, true).await?;
                }
                self.say(&cidr, true, "NetworkReady", "Kubernetes Service CIDR is ready").await?;
            }
            Plan::Wait => {
                let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
                self.say(&cidr, false, "ServiceCIDRTerminating", message).await?;
                return Ok(Action::After(std::time::Duration::from_secs(10)));
            }
            Plan::Release => self.finalizer(&cidr, false).await?,
        }
        Ok(Action::Done)
    }
}

impl Controller {
    async fn finalizer(&self, cidr: &ServiceCidr, wanted: bool) -> Result<(), Error> {
        let change = |object: &mut serde_json::Value| {
            let mut all: Vec<_> = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            all.retain(|finalizer| finalizer != FINALIZER);
            if wanted {
                all.push(json!(FINALIZER));
            }
            object["metadata"]["finalizers"] = json!(all);
        };
        match self.client.update(&SERVICE_CIDRS, ("", &cidr.metadata.name), &cidr.metadata.uid, "", change).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn say(&self, cidr: &ServiceCidr, ready: bool, reason: &str, message: &str) -> Result<(), Error> {
        let status = if ready { "True" } else { "False" };
        if Condition::find(&cidr.status.conditions, "Ready").is_some_and(|known| known.status == status && known.reason == reason) {
            return Ok(());
        }
        let ready = Condition {
            kind: "Ready".into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: Some(Time::now()),
            ..Condition::default()
        };
        let mut conditions: Vec<_> = cidr.status.conditions.iter().filter(|known| known.kind != "Ready").cloned().collect();
        conditions.push(ready);
        put_status(&self.client, cidr, &ServiceCidrStatus { conditions }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_goes_when_no_address_needs_it() {
        let cidr = |name: &str, ranges: &[&str], gone: bool, finalizer: bool| -> Arc<ServiceCidr> {
            let mut object = json!({"metadata": {"name": name}, "spec": {"cidrs": ranges}});
            if gone {
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            if finalizer {
                object["metadata"]["finalizers"] = json!([FINALIZER]);
            }
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let wide = cidr("wide", &["10.0.0.0/16"], false, true);
        for (range, others, addresses, want) in [
            (cidr("a", &["10.0.1.0/24"], false, false), vec![], &["10.0.1.1"][..], Plan::Ready { add_finalizer: true }),
            (cidr("a", &["10.0.1.0/24"], false, true), vec![], &[], Plan::Ready { add_finalizer: false }),
            (cidr("a", &["10.0.1.0/24"], true, true), vec![], &["10.0.1.1"], Plan::Wait),
            (cidr("a", &["10.0.1.0/24"], true, true), vec![wide.clone()], &["10.0.1.1"], Plan::Release),
            (cidr("a", &["10.0.1.0/24"], true, true), vec![cidr("b", &["10.0.0.0/16"], true, true)], &["10.0.1.1"], Plan::Wait),
            (cidr("a", &["10.0.1.0/24"], true, true), vec![], &["10.0.2.1"], Plan::Release),
            (cidr("a", &["10.0.1.0/24", "fd00::/64"], true, true), vec![wide], &["10.0.1.1", "fd00::7"], Plan::Wait),
        ] {
            let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(plan(&range, &others, &addresses), want, "{range:?}");
        }
    }
}
