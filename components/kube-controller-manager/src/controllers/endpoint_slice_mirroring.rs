//! EndpointSlices for Endpoints that people made for services without a selector: who routes traffic reads slices only.

use std::net::IpAddr;

use k8s_client::{Action, Error, EventType, Informer, LabelMap, ObjectKey, WorkQueue, owner_reference, resources::ENDPOINTS};

use super::slices::{Content, Head, MANAGED_BY, SERVICE_NAME, Slices, plan};
use crate::api::{Endpoint, EndpointAddress, EndpointConditions, EndpointPort, EndpointSubset, Endpoints, Service};
use crate::context::Context;
use crate::reconcile::{Reconcile, follow, work};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// On Endpoints that somebody else mirrors, or nobody shall.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On Endpoints that only serve as a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that speak of the Endpoints object itself.
const NOT_COPIED: [&str; 2] = ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];
/// Addresses mirrored of one subset.
const MAX_PER_SUBSET: usize = 1000;

/// Whether slices are made from these Endpoints.
fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let meta = &endpoints.metadata;
    service.spec.selector.is_empty()
        && !meta.is_deleting()
        && !meta.annotations.contains_key(LEADER)
        && meta.labels.get(SKIP).is_none_or(|value| value != "true")
}

/// What the slices should contain, and how many addresses were too many.
fn desired(endpoints: &Endpoints) -> (Vec<Content>, usize) {
    let mut contents: Vec<Content> = Vec::new();
    let mut skipped = 0;
    for subset in &endpoints.subsets {
        let ports = ports(subset);
        let ready = subset.addresses.iter().map(|address| (address, true));
        let all: Vec<_> = ready.chain(subset.not_ready_addresses.iter().map(|address| (address, false))).collect();
        skipped += all.len().saturating_sub(MAX_PER_SUBSET);
        for (address, ready) in all.into_iter().take(MAX_PER_SUBSET) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
            let address_type = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let endpoint = endpoint(address, ready);
            match contents.iter_mut().find(|content| content.address_type == address_type && content.ports == ports) {
                Some(content) => content.endpoints.push(endpoint),
                None => contents.push(Content { address_type, ports: ports.clone(), endpoints: vec![endpoint] }),
            }
        }
    }
    (contents, skipped)
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let named = |port: &EndpointPort| EndpointPort { name: Some(port.name.clone().unwrap_or_default()), ..port.clone() };
    let mut ports: Vec<EndpointPort> = subset.ports.iter().map(named).collect();
    ports.sort();
    ports
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: EndpointConditions { ready: Some(ready), ..EndpointConditions::default() },
        hostname: Some(address.hostname.clone()).filter(|name| !name.is_empty()),
        target_ref: address.target_ref.clone(),
        node_name: address.node_name.clone(),
        zone: None,
    }
}

fn head(endpoints: &Endpoints) -> Head {
    let mut labels = endpoints.metadata.labels.clone();
    labels.insert(SERVICE_NAME.into(), endpoints.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations: LabelMap = endpoints.metadata.annotations.clone();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    Head { owner: owner_reference(&ENDPOINTS, &endpoints.metadata), labels, annotations }
}

#[derive(Clone)]
struct Controller {
    context: Context,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Slices,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        endpoints: context.informers.endpoints(),
        services: context.informers.services(),
        slices: Slices::new(context.client("endpointslicemirroring-controller"), context.informers.endpoint_slices(), MANAGER),
        context: context.clone(),
    };
    let queue = WorkQueue::new("endpointslice-mirroring");
    follow(&queue, &controller.endpoints);
    follow(&queue, &controller.services);
    controller.slices.follow(&queue);
    controller.endpoints.wait_synced().await;
    controller.services.wait_synced().await;
    controller.slices.wait_synced().await;
    work(&context, queue, 5, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        // Endpoints that are gone take their slices with them through their owner references.
        let Some(endpoints) = self.endpoints.get_key(&key) else {
            self.slices.forget(&key);
            return Ok(Action::Done);
        };
        let Some(existing) = self.slices.of(&key) else { return Ok(Action::Retry) };
        let mirrored = self.services.get_key(&key).is_some_and(|service| is_mirrored(&endpoints, &service));
        let (contents, skipped) = if mirrored { desired(&endpoints) } else { (Vec::new(), 0) };
        let head = head(&endpoints);
        let plan = plan(contents, &existing, &head.labels);
        if skipped > 0 && plan != super::slices::Plan::default() {
            let message = format!(
                "A max of {MAX_PER_SUBSET} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
            );
            self.context.event(&ENDPOINTS, &endpoints.metadata, EventType::Warning, "TooManyAddressesToMirror", message);
        }
        self.slices.apply(&key, &head, plan).await?;
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::slices::{Plan, body};
    use super::*;
    use crate::api::EndpointSlice;

    fn endpoints() -> Endpoints {
        serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "d", "uid": "e", "labels": {"app": "db"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "x"}}, "subsets": [
            {"addresses": [{"ip": "10.1.1.1", "hostname": "a"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.1.1.2"}], "ports": [{"port": 5432, "protocol": "TCP"}]}]}))
        .unwrap()
    }

    #[test]
    fn a_subset_becomes_a_slice_per_family_once() {
        let endpoints = endpoints();
        let (contents, skipped) = desired(&endpoints);
        assert_eq!((contents.len(), skipped), (2, 0));
        let ready: Vec<_> = contents[0].endpoints.iter().map(|e| (e.addresses[0].as_str(), e.conditions.ready)).collect();
        assert_eq!((contents[0].address_type, ready), ("IPv4", vec![("10.1.1.1", Some(true)), ("10.1.1.2", Some(false))]));
        assert_eq!((contents[1].address_type, contents[1].endpoints.len()), ("IPv6", 1));
        let head = head(&endpoints);
        assert_eq!((head.labels[SERVICE_NAME].as_str(), head.labels["app"].as_str(), head.annotations.len()), ("db", "db", 1));
        let existing: Vec<Arc<EndpointSlice>> = contents
            .iter()
            .enumerate()
            .map(|(n, content)| {
                let mut slice: EndpointSlice = serde_json::from_value(body(content)).unwrap();
                slice.metadata.uid = n.to_string();
                slice.metadata.labels.clone_from(&head.labels);
                Arc::new(slice)
            })
            .collect();
        assert_eq!(plan(contents, &existing, &head.labels), Plan::default(), "nothing to do the second time");
        assert_eq!(plan(Vec::new(), &existing, &head.labels).delete.len(), 2, "what is no longer mirrored goes");
    }

    #[test]
    fn only_what_nobody_else_writes_is_mirrored() {
        let plain = Service::default();
        let mut selecting = Service::default();
        selecting.spec.selector.insert("app".into(), "db".into());
        let (mut skipped, mut lock) = (endpoints(), endpoints());
        skipped.metadata.labels.insert(SKIP.into(), "true".into());
        lock.metadata.annotations.insert(LEADER.into(), "{}".into());
        for (endpoints, service, want) in
            [(&endpoints(), &plain, true), (&endpoints(), &selecting, false), (&skipped, &plain, false), (&lock, &plain, false)]
        {
            assert_eq!(is_mirrored(endpoints, service), want);
        }
    }
}
