//! Endpoints: the older form of endpointslices, one object per service, kept for those who still read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_client::{
    Action, Change, Client, DeleteOptions, Error, Informer, LabelMap, ObjectKey, Request, WorkQueue, resources::ENDPOINTS, run_workers,
};
use serde_json::json;

use super::service_pods;
use crate::api::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use crate::context::{Context, Pods};

const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

/// Runs until the context stops.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client("endpoint-controller"),
        services: context.informers.services(),
        endpoints: context.informers.endpoints(),
        pods: context.informers.pods(),
    };
    let queue = WorkQueue::new("endpoints");
    let sink = queue.clone();
    controller.services.add_handler(move |change: Change<'_, Service>| sink.add(change.object().metadata.key()));
    service_pods::watch_pods(&controller.pods.informer, &controller.services, queue.clone());
    let sink = queue.clone();
    controller.endpoints.add_handler(move |change: Change<'_, Endpoints>| sink.add(change.object().metadata.key()));
    controller.services.wait_synced().await;
    controller.endpoints.wait_synced().await;
    controller.pods.informer.wait_synced().await;
    run_workers(queue, 5, context.stop.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(key).await }
    })
    .await;
}

#[derive(Clone)]
struct Controller {
    client: Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    pods: Pods,
}

impl Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let current = self.endpoints.get_key(&key);
        let Some(service) = self.services.get_key(&key) else {
            // Endpoints someone made without a service are theirs.
            if let Some(current) = current.filter(|current| current.metadata.labels.contains_key(MANAGED_BY)) {
                let request = Request::delete(&ENDPOINTS, &key.namespace, &key.name, &DeleteOptions::uid(&current.metadata.uid));
                crate::ownership::ignore_missing(&self.client, &request).await?;
            }
            return Ok(Action::Done);
        };
        if !service_pods::has_pods(&service) || service.metadata.is_deleting() {
            return Ok(Action::Done);
        }
        let pods: Vec<Arc<Pod>> =
            self.pods.informer.list_namespace(&key.namespace).into_iter().filter(|pod| service_pods::selects(&service, pod)).collect();
        let (subsets, truncated) = subsets(&service, &pods);
        let labels = labels(&service);
        match current {
            None => {
                let mut body = json!({"apiVersion": "v1", "kind": "Endpoints",
                    "metadata": {"name": key.name, "namespace": key.namespace, "labels": labels}, "subsets": subsets});
                if truncated {
                    body["metadata"]["annotations"] = json!({OVER_CAPACITY: "truncated"});
                }
                match self.client.execute(&Request::create(&ENDPOINTS, &key.namespace, &body)).await {
                    Err(error) if !error.is_already_exists() && !error.is_namespace_terminating() => return Err(error),
                    _ => {}
                }
            }
            Some(current) if current.subsets == subsets && current.metadata.labels == labels => {}
            Some(current) => {
                let change = |object: &mut serde_json::Value| {
                    object["subsets"] = json!(subsets);
                    object["metadata"]["labels"] = json!(labels);
                    if truncated {
                        object["metadata"]["annotations"][OVER_CAPACITY] = json!("truncated");
                    } else if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
                        annotations.remove(OVER_CAPACITY);
                    }
                };
                self.client.update(&ENDPOINTS, (&key.namespace, &key.name), &current.metadata.uid, "", change).await?;
            }
        }
        Ok(Action::Done)
    }
}

fn labels(service: &Service) -> LabelMap {
    let mut labels = service.metadata.labels.clone();
    labels.remove(HEADLESS);
    if service.spec.cluster_ip == "None" {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    labels
}

type Addresses = (BTreeSet<EndpointAddress>, BTreeSet<EndpointAddress>);

/// Subsets in upstream's canonical form: ports with exactly the same addresses share one, addresses are sorted. True when addresses had to be
/// left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let ipv6 = service.spec.ip_families.first().is_some_and(|family| family == "IPv6");
    let mut by_port: BTreeMap<Option<EndpointPort>, Addresses> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.is_active() || (service.spec.publish_not_ready_addresses && !pod.is_terminal())) {
        let Some(ip) = service_pods::address(pod, ipv6) else { continue };
        let address = EndpointAddress {
            ip: ip.to_string(),
            hostname: service_pods::hostname(service, pod).unwrap_or_default(),
            node_name: Some(pod.spec.node_name.clone()).filter(|node| !node.is_empty()),
            target_ref: Some(service_pods::target(pod)),
        };
        let ready = service.spec.publish_not_ready_addresses || pod.is_ready();
        let ports: Vec<Option<EndpointPort>> = if service.spec.ports.is_empty() {
            vec![None]
        } else {
            service_pods::ports_on(service, pod)
                .into_iter()
                .map(|port| Some(EndpointPort { name: port.name.filter(|name| !name.is_empty()), ..port }))
                .collect()
        };
        for port in ports {
            let (yes, no) = by_port.entry(port).or_default();
            if ready {
                yes.insert(address.clone())
            } else {
                no.insert(address.clone())
            };
        }
    }
    let mut grouped: Vec<(Addresses, Vec<EndpointPort>)> = Vec::new();
    for (port, addresses) in by_port {
        match grouped.iter_mut().find(|(known, ports)| *known == addresses && !ports.is_empty() && port.is_some()) {
            Some((_, ports)) => ports.extend(port),
            None => grouped.push((addresses, port.into_iter().collect())),
        }
    }
    let mut left = MAX_ADDRESSES;
    let mut truncated = false;
    let mut take = |addresses: BTreeSet<EndpointAddress>| -> Vec<EndpointAddress> {
        truncated |= addresses.len() > left;
        let taken: Vec<_> = addresses.into_iter().take(left).collect();
        left -= taken.len();
        taken
    };
    let subsets = grouped
        .into_iter()
        .map(|((ready, not_ready), ports)| EndpointSubset { addresses: take(ready), not_ready_addresses: take(not_ready), ports })
        .collect();
    (subsets, truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(n: usize, ready: bool, named: i32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": format!("p{n}"), "uid": format!("u{n}"), "namespace": "d"},
                "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": named}]}]},
                "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", n / 250, n % 250 + 1), "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn ports_with_the_same_addresses_share_a_subset() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": {"selector": {"a": "b"},
            "ports": [{"name": "a", "port": 80, "targetPort": "web"}, {"name": "b", "port": 443}]}}))
        .unwrap();
        let show = |pods: &[Arc<Pod>]| {
            subsets(&service, pods)
                .0
                .iter()
                .map(|s| {
                    format!(
                        "{}+{}:{}",
                        s.addresses.len(),
                        s.not_ready_addresses.len(),
                        s.ports.iter().map(|p| p.port.to_string()).collect::<Vec<_>>().join(",")
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(show(&[pod(1, true, 8080), pod(2, false, 8080)]), ["1+1:8080,443"]);
        assert_eq!(show(&[pod(1, true, 8080), pod(2, true, 9090)]), ["1+0:8080", "1+0:9090", "2+0:443"]);
        assert!(show(&[]).is_empty());
        let many: Vec<_> = (0..1500).map(|n| pod(n, true, 80)).collect();
        let (found, truncated) = subsets(&service, &many);
        assert_eq!((found[0].addresses.len(), truncated), (1000, true));
    }
}
