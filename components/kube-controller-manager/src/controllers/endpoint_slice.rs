//! EndpointSlices: the addresses of the pods behind each service, in pieces of at most a hundred.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_client::{Action, Change, Error, Informer, LabelMap, ObjectKey, WorkQueue, owner_reference, resources::SERVICES};

use super::service_pods;
use super::slices::{Content, Head, MANAGED_BY, SERVICE_NAME, Slices, plan};
use crate::api::{Endpoint, EndpointConditions, EndpointPort, Node, Pod, Service};
use crate::context::{Context, Pods};
use crate::reconcile::{Reconcile, follow, work};

const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        services: context.informers.services(),
        slices: Slices::new(context.client("endpointslice-controller"), context.informers.endpoint_slices(), MANAGER),
        nodes: context.informers.nodes(),
        pods: context.informers.pods(),
    };
    let queue = WorkQueue::new("endpointslice");
    follow(&queue, &controller.services);
    service_pods::watch_pods(&controller.pods.informer, &controller.services, queue.clone());
    controller.slices.follow(&queue);
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
    work(&context, queue, 5, controller).await;
}

#[derive(Clone)]
struct Controller {
    services: Informer<Service>,
    slices: Slices,
    nodes: Informer<Node>,
    pods: Pods,
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        // A service that is gone takes its slices with it through their owner references.
        let Some(service) =
            self.services.get_key(&key).filter(|service| service_pods::has_pods(service) && !service.metadata.is_deleting())
        else {
            self.slices.forget(&key);
            return Ok(Action::Done);
        };
        let Some(existing) = self.slices.of(&key) else { return Ok(Action::Retry) };
        let pods: Vec<Arc<Pod>> =
            self.pods.informer.list_namespace(&key.namespace).into_iter().filter(|pod| service_pods::selects(&service, pod)).collect();
        let zone = |node: &str| self.nodes.get("", node).and_then(|node| node.metadata.labels.get(ZONE).cloned());
        let owner = owner_reference(&SERVICES, &service.metadata);
        let head = Head { owner, labels: labels(&service), annotations: LabelMap::new() };
        let plan = plan(desired(&service, &pods, &zone), &existing, &head.labels);
        self.slices.apply(&key, &head, plan).await?;
        Ok(Action::Done)
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::slices::{Plan, body};
    use super::*;
    use crate::api::EndpointSlice;

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
