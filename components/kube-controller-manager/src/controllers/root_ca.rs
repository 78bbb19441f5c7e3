//! Publishes the cluster's CA to every namespace as ConfigMap `kube-root-ca.crt`, which projected service account volumes mount.

use std::collections::BTreeMap;

use k8s_client::{Action, Change, Error, FullObject, ObjectKey, Request, WorkQueue, resources::CONFIG_MAPS, run_workers};
use serde_json::{Value, json};

use crate::api::{ConfigMap, Namespace};
use crate::context::Context;

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service \
                           IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Create,
    Replace,
}

fn plan(namespace: Option<&Namespace>, current: Option<&ConfigMap>, ca: &str) -> Plan {
    match (namespace, current) {
        (Some(namespace), _) if namespace.metadata.is_deleting() || namespace.status.phase == "Terminating" => Plan::Nothing,
        (None, _) => Plan::Nothing,
        (Some(_), None) => Plan::Create,
        (Some(_), Some(map)) if map.data == BTreeMap::from([("ca.crt".to_string(), ca.to_string())]) => Plan::Nothing,
        (Some(_), Some(_)) => Plan::Replace,
    }
}

fn desired(namespace: &str, ca: &str, resource_version: Option<&str>) -> Value {
    let mut map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace, "annotations": {"kubernetes.io/description": DESCRIPTION}},
        "data": {"ca.crt": ca},
    });
    if let Some(version) = resource_version {
        map["metadata"]["resourceVersion"] = json!(version);
    }
    map
}

/// Runs until the context stops; does nothing without `--root-ca-file`.
pub async fn run(context: Context) {
    let Some(path) = context.options.root_ca_file.clone() else {
        tracing::info!("no --root-ca-file: the cluster CA is not published");
        return context.stop.cancelled().await;
    };
    let client = context.client("root-ca-cert-publisher");
    let namespaces = context.informers.namespaces();
    let maps = context.informers.narrow::<ConfigMap>("", &format!("metadata.name={NAME}"));
    let queue = WorkQueue::new("root-ca");
    let sink = queue.clone();
    namespaces.add_handler(move |change: Change<'_, Namespace>| sink.add(change.object().metadata.key()));
    let sink = queue.clone();
    maps.add_handler(move |change: Change<'_, ConfigMap>| {
        if !matches!(change, Change::Added(_)) {
            sink.add(ObjectKey::new("", change.object().metadata.namespace.clone()));
        }
    });
    namespaces.wait_synced().await;
    maps.wait_synced().await;
    let process = move |key: ObjectKey| {
        let (client, namespaces, maps, path) = (client.clone(), namespaces.clone(), maps.clone(), path.clone());
        async move {
            // Read each time: a rotated bundle reaches namespaces as they change.
            let ca = match tokio::fs::read_to_string(&path).await {
                Ok(ca) => ca,
                Err(error) => {
                    tracing::error!(file = %path.display(), error = &error as &dyn std::error::Error, "reading --root-ca-file");
                    return Ok(Action::Retry);
                }
            };
            let current = maps.get(&key.name, NAME);
            let request = match plan(namespaces.get_key(&key).as_deref(), current.as_deref(), &ca) {
                Plan::Nothing => return Ok(Action::Done),
                Plan::Create => Request::create(&CONFIG_MAPS, &key.name, &desired(&key.name, &ca, None)),
                Plan::Replace => {
                    let version = current.as_ref().map(|map| map.metadata.resource_version.as_str());
                    // The map is ours completely, and its metadata is in the value.
                    let Some(object) = FullObject::new(desired(&key.name, &ca, version)) else { return Ok(Action::Done) };
                    Request::replace(&CONFIG_MAPS, &object)
                }
            };
            match client.execute(&request).await {
                Err(error) if !error.is_already_exists() && !error.is_not_found() && !error.is_namespace_terminating() => {
                    Err::<_, Error>(error)
                }
                _ => Ok(Action::Done),
            }
        }
    };
    run_workers(queue, 1, context.stop.clone(), process).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_restored_when_changed_and_left_alone_when_right() {
        let namespace = Namespace::default();
        let map = |ca: &str| ConfigMap { data: BTreeMap::from([("ca.crt".to_string(), ca.to_string())]), ..Default::default() };
        assert_eq!(plan(Some(&namespace), None, "x"), Plan::Create);
        assert_eq!(plan(Some(&namespace), Some(&map("x")), "x"), Plan::Nothing);
        assert_eq!(plan(Some(&namespace), Some(&map("y")), "x"), Plan::Replace);
        assert_eq!(plan(Some(&namespace), Some(&ConfigMap::default()), "x"), Plan::Replace);
        assert_eq!(plan(None, Some(&map("y")), "x"), Plan::Nothing);
        let mut ending = Namespace::default();
        ending.metadata.deletion_timestamp = Some(k8s_client::Time::now());
        assert_eq!(plan(Some(&ending), None, "x"), Plan::Nothing);
    }
}
