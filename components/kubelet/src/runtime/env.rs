//! The environment of a container.

use super::expansion::expand;
use crate::model::node::Service;
use crate::model::pod::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Contents of a ConfigMap or Secret by key; `None` when the object does not exist.
pub type Objects = HashMap<String, Option<Arc<BTreeMap<String, Vec<u8>>>>>;

/// What an environment is made from.
#[derive(Default)]
pub struct Inputs<'a> {
    pub config_maps: Objects,
    pub secrets: Objects,
    pub services: &'a [(String, String)],
    pub pod_ips: &'a [String],
    pub host_ips: &'a [String],
    /// Allocatable cpu in thousandths and memory in bytes, standing in for missing limits.
    pub allocatable: Allocatable,
}

/// Allocatable resources of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Allocatable {
    pub cpu_milli: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
}

/// Names of the ConfigMaps and Secrets a container's environment needs.
pub fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut config_maps = BTreeSet::new();
    let mut secrets = BTreeSet::new();
    for source in &container.env_from {
        config_maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (config_maps, secrets)
}

/// Builds the environment in order. The error is what the container's waiting state shows.
pub fn build(pod: &Pod, container: &Container, inputs: &Inputs<'_>) -> Result<Vec<(String, String)>, String> {
    let services: HashMap<&str, &str> = inputs.services.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut order: Vec<String> = Vec::new();
    let mut values: HashMap<String, String> = HashMap::new();
    let mut set = |values: &mut HashMap<String, String>, name: String, value: String| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for source in &container.env_from {
        for (reference, objects, kind) in
            [(&source.config_map_ref, &inputs.config_maps, "configmap"), (&source.secret_ref, &inputs.secrets, "secret")]
        {
            let Some(reference) = reference else { continue };
            let Some(data) = objects.get(&reference.name).cloned().flatten() else {
                if reference.optional == Some(true) {
                    continue;
                }
                return Err(format!("{kind} \"{}\" not found", reference.name));
            };
            for (key, value) in data.iter() {
                let name = format!("{}{key}", source.prefix);
                if is_env_name(&name) {
                    set(&mut values, name, String::from_utf8_lossy(value).into_owned());
                }
            }
        }
    }
    for env in &container.env {
        let value = match &env.value_from {
            None => expand(&env.value, |name| values.get(name).cloned().or_else(|| services.get(name).map(|v| (*v).to_owned()))),
            Some(from) => {
                if let Some(field) = &from.field_ref {
                    field_value(pod, field, inputs.pod_ips, inputs.host_ips)?
                } else if let Some(resource) = &from.resource_field_ref {
                    let target = if resource.container_name.is_empty() {
                        container
                    } else {
                        pod.all_containers()
                            .find(|c| c.name == resource.container_name)
                            .ok_or_else(|| format!("container {} not found", resource.container_name))?
                    };
                    resource_value(target, resource, inputs.allocatable)?
                } else {
                    let (reference, objects, kind) = match (&from.config_map_key_ref, &from.secret_key_ref) {
                        (Some(r), _) => (r, &inputs.config_maps, "configmap"),
                        (None, Some(r)) => (r, &inputs.secrets, "secret"),
                        (None, None) => return Err(format!("env {}: valueFrom names no source", env.name)),
                    };
                    let optional = reference.optional == Some(true);
                    let object = objects.get(&reference.name).cloned().flatten();
                    match object.as_ref().map(|data| data.get(&reference.key)) {
                        Some(Some(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
                        _ if optional => continue,
                        None => return Err(format!("{kind} \"{}\" not found", reference.name)),
                        Some(None) => {
                            let title = if kind == "secret" { "Secret" } else { "ConfigMap" };
                            return Err(format!(
                                "couldn't find key {} in {title} {}/{}",
                                reference.key, pod.metadata.namespace, reference.name
                            ));
                        }
                    }
                }
            }
        };
        set(&mut values, env.name.clone(), value);
    }
    for (name, value) in inputs.services {
        if !values.contains_key(name) {
            set(&mut values, name.clone(), value.clone());
        }
    }
    Ok(order.into_iter().map(|name| values.remove_entry(&name).unwrap_or_default()).collect())
}

/// Environment names are printable ASCII without `=`.
fn is_env_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// The value of a downward-API field.
pub fn field_value(pod: &Pod, field: &ObjectFieldSelector, pod_ips: &[String], host_ips: &[String]) -> Result<String, String> {
    let meta = &pod.metadata;
    let path = field.field_path.as_str();
    for (prefix, map) in [("metadata.annotations['", &meta.annotations), ("metadata.labels['", &meta.labels)] {
        if let Some(key) = path.strip_prefix(prefix).and_then(|p| p.strip_suffix("']")) {
            return Ok(map.get(key).cloned().unwrap_or_default());
        }
    }
    Ok(match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => format_map(&meta.labels),
        "metadata.annotations" => format_map(&meta.annotations),
        "spec.nodeName" => pod.spec.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" => host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => host_ips.join(","),
        "status.podIP" => pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => pod_ips.join(","),
        other => return Err(format!("unsupported fieldPath: {other}")),
    })
}

/// One `key="value"` per line, sorted, values quoted as Go does for plain text.
pub fn format_map(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map
        .iter()
        .map(|(k, v)| {
            let mut quoted = String::with_capacity(v.len() + 2);
            for c in v.chars() {
                match c {
                    '"' => quoted.push_str("\\\""),
                    '\\' => quoted.push_str("\\\\"),
                    '\n' => quoted.push_str("\\n"),
                    '\r' => quoted.push_str("\\r"),
                    '\t' => quoted.push_str("\\t"),
                    c => quoted.push(c),
                }
            }
            format!("{k}=\"{quoted}\"")
        })
        .collect();
    lines.join("\n")
}

/// The value of a resource field in units of its divisor, rounded up.
pub fn resource_value(container: &Container, field: &ResourceFieldSelector, allocatable: Allocatable) -> Result<String, String> {
    let unsupported = || format!("unsupported container resource: {}", field.resource);
    let (list, name) = field.resource.split_once('.').ok_or_else(unsupported)?;
    let (limits, requests) = (&container.resources.limits, &container.resources.requests);
    let quantity = match list {
        "limits" => limits.get(name),
        "requests" => requests.get(name).or_else(|| limits.get(name)),
        _ => return Err(unsupported()),
    };
    let is_cpu = name == "cpu";
    let amount = match quantity {
        Some(q) => if is_cpu { q.milli() } else { q.value() }.ok_or_else(|| format!("{}: {:?} is not a quantity", field.resource, q.0))?,
        None if list == "limits" => match name {
            "cpu" => allocatable.cpu_milli,
            "memory" => allocatable.memory,
            "ephemeral-storage" => allocatable.ephemeral_storage,
            _ => 0,
        },
        None => 0,
    };
    let divisor = match &field.divisor {
        None => None,
        Some(q) => if is_cpu { q.milli() } else { q.value() }.filter(|d| *d > 0),
    }
    .unwrap_or(if is_cpu { 1000 } else { 1 });
    Ok((amount / divisor + i64::from(amount % divisor != 0)).to_string())
}

/// Variables that tell a pod about services: those of its own namespace when it wants them, and always the API server's.
pub fn service_variables<'a>(services: impl Iterator<Item = &'a Service>, namespace: &str, enable_links: bool) -> Vec<(String, String)> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let ip = service.spec.cluster_ip.as_str();
        if ip.is_empty() || ip == "None" {
            continue;
        }
        let name = service.metadata.name.as_str();
        let master = service.metadata.namespace == "default" && name == "kubernetes";
        if service.metadata.namespace == namespace && (enable_links || master) {
            chosen.insert(name, service);
        } else if master {
            chosen.entry(name).or_insert(service);
        }
    }
    let mut variables = Vec::new();
    for (name, service) in chosen {
        let name = name.to_ascii_uppercase().replace('-', "_");
        let ip = &service.spec.cluster_ip;
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        variables.push((format!("{name}_SERVICE_HOST"), ip.clone()));
        let Some(first) = service.spec.ports.first() else { continue };
        variables.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in service.spec.ports.iter().filter(|p| !p.name.is_empty()) {
            let suffix = port.name.to_ascii_uppercase().replace('-', "_");
            variables.push((format!("{name}_SERVICE_PORT_{suffix}"), port.port.to_string()));
        }
        for (index, port) in service.spec.ports.iter().enumerate() {
            let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
            let url = format!("{}://{host}:{}", protocol.to_ascii_lowercase(), port.port);
            if index == 0 {
                variables.push((format!("{name}_PORT"), url.clone()));
            }
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_ascii_uppercase());
            variables.push((prefix.clone(), url));
            variables.push((format!("{prefix}_PROTO"), protocol.to_ascii_lowercase()));
            variables.push((format!("{prefix}_PORT"), port.port.to_string()));
            variables.push((format!("{prefix}_ADDR"), ip.clone()));
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "1", "b": "x\"y"}},
            "spec": {"nodeName": "n", "containers": [container]}}))
        .unwrap()
    }

    fn object(pairs: &[(&str, &str)]) -> Option<Arc<BTreeMap<String, Vec<u8>>>> {
        Some(Arc::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect()))
    }

    fn inputs<'a>(services: &'a [(String, String)], ips: &'a [String]) -> Inputs<'a> {
        Inputs {
            config_maps: HashMap::from([("cm".to_owned(), object(&[("K", "v"), ("k=bad", "x")])), ("gone".to_owned(), None)]),
            secrets: HashMap::from([("s".to_owned(), object(&[("P", "secret")]))]),
            services,
            pod_ips: ips,
            host_ips: ips,
            allocatable: Allocatable { cpu_milli: 1900, memory: 1 << 30, ephemeral_storage: 0 },
        }
    }

    #[test]
    fn sources_in_order_with_expansion() {
        let p = pod(json!({"name": "c",
            "envFrom": [{"prefix": "X_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}, {"configMapRef": {"name": "gone", "optional": true}}],
            "env": [{"name": "A", "value": "$(X_K)-$(SVC)-$(NOPE)-$$(A)"},
                    {"name": "B", "value": "$(A)"},
                    {"name": "P", "value": "override"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                    {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "P"}}},
                    {"name": "O", "valueFrom": {"secretKeyRef": {"name": "none", "key": "P", "optional": true}}}]}));
        let services = [("SVC".to_owned(), "10.96.0.1".to_owned()), ("A".to_owned(), "hidden".to_owned())];
        let ips = ["10.0.0.9".to_owned()];
        let env = build(&p, &p.spec.containers[0], &inputs(&services, &ips)).unwrap();
        let pairs: Vec<String> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            pairs,
            [
                "X_K=v",
                "P=override",
                "A=v-10.96.0.1-$(NOPE)-$(A)",
                "B=v-10.96.0.1-$(NOPE)-$(A)",
                "IP=10.0.0.9",
                "L=1",
                "S=secret",
                "SVC=10.96.0.1"
            ]
        );
    }

    #[test]
    fn missing_things_are_named() {
        for (env, expected) in [
            (json!({"configMapKeyRef": {"name": "gone", "key": "k"}}), "configmap \"gone\" not found"),
            (json!({"configMapKeyRef": {"name": "cm", "key": "no"}}), "couldn't find key no in ConfigMap ns/cm"),
            (json!({"secretKeyRef": {"name": "x", "key": "no"}}), "secret \"x\" not found"),
            (json!({"fieldRef": {"fieldPath": "spec.nope"}}), "unsupported fieldPath: spec.nope"),
        ] {
            let p = pod(json!({"name": "c", "env": [{"name": "A", "valueFrom": env}]}));
            assert_eq!(build(&p, &p.spec.containers[0], &inputs(&[], &[])).unwrap_err(), expected);
        }
    }

    #[test]
    fn resource_fields_divide_and_round_up() {
        let p = pod(json!({"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}}));
        for (resource, divisor, expected) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("requests.cpu", Some("1m"), "1500"),
            ("requests.memory", Some("1Mi"), "64"),
            ("limits.memory", Some("1Mi"), "1024"),
            ("requests.memory", None, "67108864"),
        ] {
            let field = ResourceFieldSelector {
                resource: resource.into(),
                divisor: divisor.map(|d| crate::model::quantity::Quantity(d.into())),
                ..Default::default()
            };
            let value = resource_value(&p.spec.containers[0], &field, inputs(&[], &[]).allocatable);
            assert_eq!(value.as_deref(), Ok(expected), "{resource} {divisor:?}");
        }
    }

    #[test]
    fn labels_are_quoted_one_per_line() {
        assert_eq!(format_map(&pod(json!({"name": "c"})).metadata.labels), "a=\"1\"\nb=\"x\\\"y\"");
    }

    #[test]
    fn services_of_the_namespace_and_the_api_server() {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}},
            {"metadata": {"name": "my-db", "namespace": "ns"}, "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 53, "protocol": "UDP"}]}},
            {"metadata": {"name": "headless", "namespace": "ns"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}},
            {"metadata": {"name": "other", "namespace": "else"}, "spec": {"clusterIP": "10.96.0.8", "ports": [{"port": 1}]}}]))
        .unwrap();
        let linked = service_variables(services.iter(), "ns", true);
        let get = |k: &str| linked.iter().find(|(n, _)| n == k).map(|(_, v)| v.as_str());
        assert_eq!(get("KUBERNETES_SERVICE_PORT_HTTPS"), Some("443"));
        assert_eq!(get("KUBERNETES_PORT_443_TCP"), Some("tcp://10.96.0.1:443"));
        assert_eq!(get("MY_DB_PORT"), Some("udp://10.96.0.7:53"));
        assert_eq!(get("MY_DB_PORT_53_UDP_ADDR"), Some("10.96.0.7"));
        assert_eq!((get("HEADLESS_SERVICE_HOST"), get("OTHER_SERVICE_HOST")), (None, None));
        let unlinked = service_variables(services.iter(), "ns", false);
        assert!(unlinked.iter().all(|(k, _)| k.starts_with("KUBERNETES_")) && !unlinked.is_empty());
    }
}
