//! EndpointSlices: the addresses behind each service, in pieces of at most a hundred.
//!
//! A change touches as few slices as possible: endpoints stay in the slice they are in, gone ones leave it, new ones fill what has room.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_client::{
    Action, Change, Client, DeleteOptions, Error, Informer, LabelMap, ObjectKey, Request, WorkQueue, owner_reference,
    resources::{ENDPOINT_SLICES, SERVICES},
    run_workers,
};
use serde_json::{Value, json};

use super::service_pods;
use crate::api::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice, Node, Pod, Service};
use crate::context::{Context, Pods};
use crate::expectations::Expectations;

const MAX_ENDPOINTS: usize = 100;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What a slice should contain.
#[derive(Clone, Debug, PartialEq)]
struct Content {
    address_type: &'static str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// What to do to a service's slices.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    create: Vec<Content>,
    /// Name and uid of the slice, and what it should contain.
    update: Vec<(String, String, Content)>,
    delete: Vec<(String, String)>,
}

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("endpointslice-controller"),
        services: context.informers.services(),
        slices: context.informers.endpoint_slices(),
        nodes: context.informers.nodes(),
        pods: context.informers.pods(),
        expectations: Arc::default(),
    };
    let queue = WorkQueue::new("endpointslice");
    let sink = queue.clone();
    controller.services.add_handler(move |change: Change<'_, Service>| sink.add(change.object().metadata.key()));
    service_pods::watch_pods(&controller.pods.informer, &controller.services, queue.clone());
    let sink = queue.clone();
    controller.slices.add_handler(move |change: Change<'_, EndpointSlice>| {
        let slice = change.object();
        if is_ours(slice)
            && let Some(service) = slice.metadata.labels.get(SERVICE_NAME)
        {
            sink.add(ObjectKey::new(slice.metadata.namespace.clone(), service.clone()));
        }
    });
    // Slices carry the zone of each endpoint's node.
    let (sink, services) = (queue.clone(), controller.services.clone());
    controller.nodes.add_handler(move |change: Change<'_, Node>| {
        if let Change::Updated { old, new } = change
            && old.metadata.labels.get(ZONE) != new.metadata.labels.get(ZONE)
        {
            services.list().iter().filter(|service| service_pods::has_pods(service)).for_each(|service| sink.add(service.metadata.key()));
        }
    });
    controller.services.wait_synced().await;
    controller.slices.wait_synced().await;
    controller.nodes.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    run_workers(queue, 5, context.stop.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(key).await }
    })
    .await;
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

#[derive(Clone)]
struct Controller {
    client: Client,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    pods: Pods,
    expectations: Arc<Expectations>,
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        // A service that is gone takes its slices with it through their owner references.
        let Some(service) =
            self.services.get_key(&key).filter(|service| service_pods::has_pods(service) && !service.metadata.is_deleting())
        else {
            self.expectations.forget(&key);
            return Ok(Action::Done);
        };
        let alive = |uid: &str| self.slices.list_namespace(&key.namespace).iter().any(|slice| slice.metadata.uid == uid);
        if !self.expectations.met(&key, self.slices.version(), alive) {
            return Ok(Action::Retry);
        }
        let pods: Vec<Arc<Pod>> =
            self.pods.informer.list_namespace(&key.namespace).into_iter().filter(|pod| service_pods::selects(&service, pod)).collect();
        let zone = |node: &str| self.nodes.get("", node).and_then(|node| node.metadata.labels.get(ZONE).cloned());
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|slice| is_ours(slice) && slice.metadata.labels.get(SERVICE_NAME) == Some(&key.name))
            .collect();
        let labels = labels(&service);
        let plan = plan(desired(&service, &pods, &zone), &existing, &labels);
        self.apply(&service, &key, &labels, plan).await?;
        Ok(Action::Done)
    }

    async fn apply(&self, service: &Service, key: &ObjectKey, labels: &LabelMap, plan: Plan) -> Result<(), Error> {
        for content in &plan.create {
            let mut body = body(content);
            body["metadata"] = json!({
                "generateName": format!("{}-", key.name),
                "namespace": key.namespace,
                "labels": labels,
                "ownerReferences": [owner_reference(&SERVICES, &service.metadata)],
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
                    object["metadata"]["labels"] = json!(labels);
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

fn body(content: &Content) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": content.address_type,
        "endpoints": content.endpoints,
        "ports": content.ports,
    })
}

fn labels(service: &Service) -> LabelMap {
    let mut labels: LabelMap = service.metadata.labels.clone();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.cluster_ip == "None" {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

/// Endpoints by address family and set of ports.
fn desired(service: &Service, pods: &[Arc<Pod>], zone: &dyn Fn(&str) -> Option<String>) -> Vec<Content> {
    let families: Vec<(&'static str, bool)> = if service.spec.ip_families.is_empty() {
        vec![("IPv4", false)]
    } else {
        service.spec.ip_families.iter().map(|family| if family == "IPv6" { ("IPv6", true) } else { ("IPv4", false) }).collect()
    };
    let mut contents = Vec::new();
    for (address_type, ipv6) in families {
        let mut by_ports: BTreeMap<Vec<EndpointPort>, Vec<Endpoint>> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| !pod.is_terminal()) {
            let Some(address) = service_pods::address(pod, ipv6) else { continue };
            let (ready, terminating) = (pod.is_ready(), pod.metadata.is_deleting());
            let node = Some(pod.spec.node_name.clone()).filter(|node| !node.is_empty());
            let endpoint = Endpoint {
                addresses: vec![address.to_string()],
                conditions: EndpointConditions {
                    ready: Some(service.spec.publish_not_ready_addresses || (ready && !terminating)),
                    serving: Some(ready),
                    terminating: Some(terminating),
                },
                hostname: service_pods::hostname(service, pod),
                target_ref: Some(service_pods::target(pod)),
                zone: node.as_deref().and_then(zone),
                node_name: node,
            };
            by_ports.entry(service_pods::ports_on(service, pod)).or_default().push(endpoint);
        }
        if by_ports.is_empty() {
            // A slice without endpoints says that the service is known and empty.
            by_ports.insert(Vec::new(), Vec::new());
        }
        contents.extend(by_ports.into_iter().map(|(ports, endpoints)| Content { address_type, ports, endpoints }));
    }
    contents
}

fn plan(desired: Vec<Content>, existing: &[Arc<EndpointSlice>], labels: &LabelMap) -> Plan {
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
    endpoint.target_ref.as_ref().map_or_else(|| endpoint.addresses.join(","), |target| target.uid.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d", "labels": {"x": "y"}},
            "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}))
        .unwrap()
    }

    fn pods(from: usize, to: usize) -> Vec<Arc<Pod>> {
        (from..to)
            .map(|n| {
                Arc::new(
                    serde_json::from_value(
                        json!({"metadata": {"name": format!("p{n}"), "uid": format!("u{n}"), "namespace": "d", "labels": {"app": "web"}},
                        "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", n / 250, n % 250 + 1),
                        "conditions": [{"type": "Ready", "status": "True"}]}}),
                    )
                    .unwrap(),
                )
            })
            .collect()
    }

    /// Applies a plan as the server would.
    fn applied(existing: &[Arc<EndpointSlice>], plan: &Plan, labels: &LabelMap) -> Vec<Arc<EndpointSlice>> {
        let mut slices: Vec<EndpointSlice> = existing.iter().map(|slice| (**slice).clone()).collect();
        slices.retain(|slice| !plan.delete.iter().any(|(_, uid)| *uid == slice.metadata.uid));
        for (_, uid, content) in &plan.update {
            let slice = slices.iter_mut().find(|slice| slice.metadata.uid == *uid).unwrap();
            slice.endpoints.clone_from(&content.endpoints);
            slice.metadata.labels.clone_from(labels);
        }
        for (n, content) in plan.create.iter().enumerate() {
            let mut slice: EndpointSlice = serde_json::from_value(body(content)).unwrap();
            slice.metadata.uid = format!("s{}-{n}", existing.len());
            slice.metadata.name = slice.metadata.uid.clone();
            slice.metadata.labels.clone_from(labels);
            slices.push(slice);
        }
        slices.into_iter().map(Arc::new).collect()
    }

    #[test]
    fn slices_hold_a_hundred_and_change_as_little_as_possible() {
        let service = service();
        let labels = labels(&service);
        let zone = |_: &str| None;
        let first = plan(desired(&service, &pods(0, 250), &zone), &[], &labels);
        assert_eq!(first.create.iter().map(|c| c.endpoints.len()).collect::<Vec<_>>(), [100, 100, 50]);
        let state = applied(&[], &first, &labels);
        assert_eq!(plan(desired(&service, &pods(0, 250), &zone), &state, &labels), Plan::default(), "nothing to do the second time");
        // One pod replaced: one slice changes.
        let mut changed = pods(1, 250);
        changed.extend(pods(900, 901));
        let next = plan(desired(&service, &changed, &zone), &state, &labels);
        assert_eq!((next.create.len(), next.update.len(), next.delete.len()), (0, 1, 0));
        // Everything gone: one empty slice of the placeholder kind remains.
        let empty = plan(desired(&service, &[], &zone), &state, &labels);
        assert_eq!((empty.create.len(), empty.delete.len()), (1, 3));
        let state = applied(&state, &empty, &labels);
        assert_eq!(plan(desired(&service, &[], &zone), &state, &labels), Plan::default());
        assert!(state.len() == 1 && state[0].endpoints.is_empty());
    }

    #[test]
    fn conditions_follow_readiness_and_termination() {
        let mut service = service();
        let mut pod = (*pods(0, 1)[0]).clone();
        let conditions = |service: &Service, pod: &Pod| {
            let c = desired(service, &[Arc::new(pod.clone())], &|_| None)[0].endpoints[0].conditions;
            (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
        };
        assert_eq!(conditions(&service, &pod), (true, true, false));
        pod.metadata.deletion_timestamp = Some(k8s_client::Time::now());
        assert_eq!(conditions(&service, &pod), (false, true, true));
        pod.status.conditions.clear();
        assert_eq!(conditions(&service, &pod), (false, false, true));
        service.spec.publish_not_ready_addresses = true;
        assert_eq!(conditions(&service, &pod), (true, false, true));
        pod.status.phase = "Failed".into();
        assert!(desired(&service, &[Arc::new(pod)], &|_| None)[0].endpoints.is_empty());
    }

    #[test]
    fn labels_come_from_the_service_and_say_headless() {
        let labels = labels(&service());
        assert_eq!(labels[SERVICE_NAME], "web");
        assert_eq!(labels["x"], "y");
        assert_eq!(labels[HEADLESS], "");
    }
}
