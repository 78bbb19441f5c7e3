//! What one object uses of a quota, and which scopes a pod is in.

use jiff::Timestamp;
use k8s_client::Quantity;
use serde_json::Value;

use crate::api::{Container, PersistentVolumeClaim, Pod, ResourceList, ResourceRequirements, ScopeRequirement, Service};

/// Compute resources a quota may also name without a prefix.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const ONE: Quantity = Quantity::units(1);
/// The suffix of what a storage class's claims use.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Who counts a resource a quota may limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted {
    Pods,
    Services,
    Claims,
    /// Objects of any resource: its plural and group.
    Objects {
        plural: String,
        group: String,
    },
}

/// Who counts `name`; nothing for names no quota knows.
pub fn counted_by(name: &str) -> Option<Counted> {
    let objects = |plural: &str, group: &str| Counted::Objects { plural: plural.into(), group: group.into() };
    Some(match name {
        "pods" | "count/pods" => Counted::Pods,
        "services" | "services.nodeports" | "services.loadbalancers" | "count/services" => Counted::Services,
        "persistentvolumeclaims" | "requests.storage" | "count/persistentvolumeclaims" => Counted::Claims,
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => objects(name, ""),
        _ if name.contains(OF_CLASS) => Counted::Claims,
        _ => match name.strip_prefix("count/") {
            Some(resource) => {
                let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
                objects(plural, group)
            }
            None => {
                let bare = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
                let request = !name.starts_with("limits.");
                let known = COMPUTE.contains(&bare)
                    || (request && bare.starts_with("hugepages-"))
                    || (name.starts_with("requests.") && bare.contains('/'));
                return known.then_some(Counted::Pods);
            }
        },
    })
}

fn add(into: &mut ResourceList, what: &ResourceList) {
    for (name, amount) in what {
        let sum = into.entry(name.clone()).or_default();
        *sum = sum.plus(*amount);
    }
}

fn raise(into: &mut ResourceList, what: &ResourceList) {
    for (name, amount) in what {
        let most = into.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

/// What a pod asks for at its peak: its containers with the sidecars started before them, or the dearest step of its initialization.
fn peak(pod: &Pod, of: fn(&ResourceRequirements) -> &ResourceList) -> ResourceList {
    let (mut running, mut sidecars, mut steps) = (ResourceList::new(), ResourceList::new(), ResourceList::new());
    for container in &pod.spec.containers {
        add(&mut running, of(&container.resources));
    }
    for container in &pod.spec.init_containers {
        let own = of(&container.resources);
        let mut step = sidecars.clone();
        add(&mut step, own);
        if container.restart_policy == "Always" {
            add(&mut running, own);
            sidecars.clone_from(&step);
        }
        raise(&mut steps, &step);
    }
    raise(&mut running, &steps);
    if let Some(whole) = &pod.spec.resources {
        // What is said for the pod as a whole replaces the sum.
        running.extend(of(whole).clone());
    }
    running
}

/// What a pod uses. One that has ended, or should be gone by now, still exists but uses nothing else.
pub fn of_pod(pod: &Pod, now: Timestamp) -> ResourceList {
    let mut usage = ResourceList::from([("count/pods".into(), ONE)]);
    let overdue = pod.metadata.deletion_timestamp.is_some_and(|at| {
        let grace = u64::try_from(pod.metadata.deletion_grace_period_seconds.unwrap_or(0)).unwrap_or(0);
        now > at.plus(std::time::Duration::from_secs(grace)).0
    });
    if pod.is_terminal() || overdue {
        return usage;
    }
    usage.insert("pods".into(), ONE);
    let mut requests = peak(pod, |resources| &resources.requests);
    add(&mut requests, &pod.spec.overhead);
    let mut limits = peak(pod, |resources| &resources.limits);
    for (name, amount) in &pod.spec.overhead {
        if let Some(limit) = limits.get_mut(name) {
            *limit = limit.plus(*amount);
        }
    }
    for (name, amount) in requests {
        if COMPUTE.contains(&name.as_str()) || name.starts_with("hugepages-") {
            usage.insert(name.clone(), amount);
        }
        usage.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in limits {
        usage.insert(format!("limits.{name}"), amount);
    }
    usage
}

/// What a service uses.
pub fn of_service(service: &Service) -> ResourceList {
    let mut usage = ResourceList::from([("services".into(), ONE), ("count/services".into(), ONE)]);
    let ports = &service.spec.ports;
    let node_ports = match service.spec.kind.as_str() {
        "NodePort" => ports.len(),
        "LoadBalancer" => {
            usage.insert("services.loadbalancers".into(), ONE);
            let allocated = service.spec.allocate_load_balancer_node_ports != Some(false);
            ports.iter().filter(|port| allocated || port.node_port != 0).count()
        }
        _ => 0,
    };
    usage.insert("services.nodeports".into(), Quantity::units(i64::try_from(node_ports).unwrap_or(i64::MAX)));
    usage
}

/// What a claim uses.
pub fn of_claim(claim: &PersistentVolumeClaim) -> ResourceList {
    let storage = claim.spec.resources.requests.get("storage").copied().unwrap_or_default();
    let mut usage = ResourceList::from([
        ("persistentvolumeclaims".into(), ONE),
        ("count/persistentvolumeclaims".into(), ONE),
        ("requests.storage".into(), storage),
    ]);
    if !claim.class().is_empty() {
        usage.insert(format!("{}{OF_CLASS}persistentvolumeclaims", claim.class()), ONE);
        usage.insert(format!("{}{OF_CLASS}requests.storage", claim.class()), storage);
    }
    usage
}

/// Whether a pod is in a scope.
pub fn pod_in(pod: &Pod, scope: &ScopeRequirement) -> bool {
    match scope.scope_name.as_str() {
        "Terminating" => pod.spec.active_deadline_seconds.is_some_and(|seconds| seconds >= 0),
        "NotTerminating" => pod.spec.active_deadline_seconds.is_none_or(|seconds| seconds < 0),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => named(scope, &pod.spec.priority_class_name),
        "CrossNamespacePodAffinity" => pod.spec.affinity.as_ref().is_some_and(reaches_other_namespaces),
        _ => false,
    }
}

/// Whether a claim is in a scope.
pub fn claim_in(claim: &PersistentVolumeClaim, scope: &ScopeRequirement) -> bool {
    scope.scope_name == "VolumeAttributesClass" && named(scope, claim.spec.volume_attributes_class_name.as_deref().unwrap_or(""))
}

fn named(scope: &ScopeRequirement, name: &str) -> bool {
    let listed = scope.values.iter().any(|value| value == name);
    match scope.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => !name.is_empty(),
        "DoesNotExist" => name.is_empty(),
        _ => false,
    }
}

fn is_best_effort(pod: &Pod) -> bool {
    let asks = |resources: &ResourceRequirements| {
        resources
            .requests
            .iter()
            .chain(&resources.limits)
            .any(|(name, amount)| ["cpu", "memory"].contains(&name.as_str()) && !amount.is_zero())
    };
    let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    !containers.map(|container: &Container| &container.resources).chain(&pod.spec.resources).any(asks)
}

fn reaches_other_namespaces(affinity: &Value) -> bool {
    let reaches = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|list| !list.is_empty()) || term.get("namespaceSelector").is_some_and(|s| !s.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |when: &str| affinity[*kind][when].as_array().map_or(&[][..], Vec::as_slice);
        terms("requiredDuringSchedulingIgnoredDuringExecution").iter().any(reaches)
            || terms("preferredDuringSchedulingIgnoredDuringExecution").iter().any(|weighted| reaches(&weighted["podAffinityTerm"]))
    })
}
