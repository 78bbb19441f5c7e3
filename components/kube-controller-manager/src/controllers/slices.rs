//! The slices of one service, for the two controllers that write them: one from pods, one from Endpoints people made.
//!
//! A change touches as few slices as possible: endpoints stay in the slice they are in, gone ones leave it, new ones fill what has room.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_client::{
    Change, Client, DeleteOptions, Error, Informer, LabelMap, ObjectKey, OwnerReference, Request, WorkQueue, resources::ENDPOINT_SLICES,
};
use serde_json::{Value, json};

use crate::api::{Endpoint, EndpointPort, EndpointSlice};
use crate::expectations::Expectations;

const MAX_ENDPOINTS: usize = 100;
/// The service a slice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// What a slice should contain.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    pub address_type: &'static str,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// What to do to a service's slices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<Content>,
    /// Name and uid of the slice, and what it should contain.
    pub update: Vec<(String, String, Content)>,
    pub delete: Vec<(String, String)>,
}

/// The metadata a service's slices share.
pub struct Head {
    pub owner: OwnerReference,
    pub labels: LabelMap,
    pub annotations: LabelMap,
}

/// The slices of one manager.
#[derive(Clone)]
pub struct Slices {
    client: Client,
    informer: Informer<EndpointSlice>,
    expectations: Arc<Expectations>,
    manager: &'static str,
}

impl Slices {
    /// Slices labelled as written by `manager`.
    pub fn new(client: Client, informer: Informer<EndpointSlice>, manager: &'static str) -> Self {
        Self { client, informer, expectations: Arc::default(), manager }
    }

    fn is_ours(&self, slice: &EndpointSlice) -> bool {
        slice.metadata.labels.get(MANAGED_BY).is_some_and(|manager| manager == self.manager)
    }

    /// Enqueues the service of every slice of ours that changes.
    pub fn follow(&self, queue: &Arc<WorkQueue<ObjectKey>>) {
        let (ours, sink) = (self.clone(), queue.clone());
        self.informer.add_handler(move |change: Change<'_, EndpointSlice>| {
            let slice = change.object();
            if ours.is_ours(slice)
                && let Some(service) = slice.metadata.labels.get(SERVICE_NAME)
            {
                sink.add(ObjectKey::new(slice.metadata.namespace.clone(), service.clone()));
            }
        });
    }

    /// Waits for the first list.
    pub async fn wait_synced(&self) {
        self.informer.wait_synced().await;
    }

    /// The service needs no slices, or is gone.
    pub fn forget(&self, service: &ObjectKey) {
        self.expectations.forget(service);
    }

    /// The service's slices, or nothing while our last changes are not in the cache.
    pub fn of(&self, service: &ObjectKey) -> Option<Vec<Arc<EndpointSlice>>> {
        let all = self.informer.list_namespace(&service.namespace);
        let alive = |uid: &str| all.iter().any(|slice| slice.metadata.uid == uid);
        let current = self.expectations.met(service, self.informer.version(), alive);
        let ours = |slice: &Arc<EndpointSlice>| self.is_ours(slice) && slice.metadata.labels.get(SERVICE_NAME) == Some(&service.name);
        current.then(|| all.iter().filter(|slice| ours(slice)).cloned().collect())
    }

    /// Carries out a plan.
    pub async fn apply(&self, key: &ObjectKey, head: &Head, plan: Plan) -> Result<(), Error> {
        for content in &plan.create {
            let mut body = body(content);
            body["metadata"] = json!({
                "generateName": format!("{}-", key.name),
                "namespace": key.namespace,
                "labels": head.labels,
                "annotations": head.annotations,
                "ownerReferences": [head.owner],
            });
            match self.client.call::<EndpointSlice>(&Request::create(&ENDPOINT_SLICES, &key.namespace, &body)).await {
                Ok(slice) => self.expectations.wrote(key, &slice.metadata.resource_version),
                Err(error) if error.is_namespace_terminating() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        for (name, uid, content) in &plan.update {
            let wanted = body(content);
            let slice = self
                .client
                .update(&ENDPOINT_SLICES, (&key.namespace, name), uid, "", |object| {
                    object["endpoints"] = wanted["endpoints"].clone();
                    object["ports"] = wanted["ports"].clone();
                    object["metadata"]["labels"] = json!(head.labels);
                    for (key, value) in &head.annotations {
                        object["metadata"]["annotations"][key] = json!(value);
                    }
                })
                .await?;
            self.expectations.wrote(key, &slice.meta().resource_version);
        }
        for (name, uid) in &plan.delete {
            self.expectations.deleted(key, uid);
            let request = Request::delete(&ENDPOINT_SLICES, &key.namespace, name, &DeleteOptions::uid(uid));
            if let Err(error) = crate::ownership::ignore_missing(&self.client, &request).await {
                self.expectations.forget(key);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A slice without its metadata.
pub fn body(content: &Content) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": content.address_type,
        "endpoints": content.endpoints,
        "ports": content.ports,
    })
}

/// Brings the existing slices to what is desired.
pub fn plan(desired: Vec<Content>, existing: &[Arc<EndpointSlice>], labels: &LabelMap) -> Plan {
    let mut plan = Plan::default();
    let mut unused: Vec<&EndpointSlice> = existing.iter().map(Arc::as_ref).collect();
    for content in desired {
        let (matching, rest): (Vec<&EndpointSlice>, Vec<&EndpointSlice>) =
            unused.into_iter().partition(|slice| slice.address_type == content.address_type && same_ports(&slice.ports, &content.ports));
        unused = rest;
        plan_content(content, &matching, labels, &mut plan);
    }
    plan.delete.extend(unused.iter().map(|slice| (slice.metadata.name.clone(), slice.metadata.uid.clone())));
    plan
}

fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    let mut a = a.to_vec();
    a.sort();
    a == b
}

fn plan_content(content: Content, slices: &[&EndpointSlice], labels: &LabelMap, plan: &mut Plan) {
    let mut wanted: HashMap<String, Endpoint> = HashMap::new();
    let mut order: Vec<String> = Vec::new();
    for endpoint in content.endpoints {
        let uid = identity(&endpoint);
        order.push(uid.clone());
        wanted.insert(uid, endpoint);
    }
    // What each slice keeps, with the current data of each endpoint.
    let mut kept: Vec<(&EndpointSlice, Vec<Endpoint>)> = slices
        .iter()
        .map(|slice| (*slice, slice.endpoints.iter().filter_map(|endpoint| wanted.remove(&identity(endpoint))).collect()))
        .collect();
    let mut fresh: Vec<Endpoint> = order.iter().filter_map(|uid| wanted.remove(uid)).collect();
    // Slices that change anyway take new endpoints first, then the fullest with room.
    kept.sort_by_key(|(slice, endpoints)| (*endpoints == slice.endpoints, MAX_ENDPOINTS.saturating_sub(endpoints.len())));
    for (_, endpoints) in &mut kept {
        let room = MAX_ENDPOINTS.saturating_sub(endpoints.len()).min(fresh.len());
        endpoints.extend(fresh.drain(..room));
    }
    let mut holding = kept.iter().filter(|(_, endpoints)| !endpoints.is_empty()).count() + fresh.len().div_ceil(MAX_ENDPOINTS);
    for (slice, endpoints) in kept {
        if endpoints.is_empty() {
            // One empty slice stays when there is nothing else.
            if holding > 0 {
                plan.delete.push((slice.metadata.name.clone(), slice.metadata.uid.clone()));
                continue;
            }
            holding = 1;
        }
        if endpoints != slice.endpoints || slice.metadata.labels != *labels {
            let content = Content { address_type: content.address_type, ports: content.ports.clone(), endpoints };
            plan.update.push((slice.metadata.name.clone(), slice.metadata.uid.clone(), content));
        }
    }
    while !fresh.is_empty() {
        let rest = fresh.split_off(fresh.len().min(MAX_ENDPOINTS));
        plan.create.push(Content { address_type: content.address_type, ports: content.ports.clone(), endpoints: fresh });
        fresh = rest;
    }
    if holding == 0 {
        plan.create.push(Content { address_type: content.address_type, ports: content.ports, endpoints: Vec::new() });
    }
}

fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().map(|target| target.uid.clone()).filter(|uid| !uid.is_empty());
    uid.unwrap_or_else(|| endpoint.addresses.join(","))
}
