//! ResourceQuota: what a write would use is added to the quotas of its namespace, or the write is refused.
//!
//! The use is written to the quota's status on condition that nobody changed it meanwhile, so writers through several servers cannot
//! together use more than there is. What deletions free is found by the quota controller.

use std::collections::{BTreeMap, BTreeSet};

use k8s_schema::{Doc, Quantity, Ref};
use serde_json::{Value, json};

use super::{Attributes, Operation, limit_ranger::of_pod};
use crate::{
    handlers::write,
    http::{ApiError, Group},
    kinds::meta,
    storage::StoreError,
};

type Amounts = BTreeMap<String, Quantity>;

const TRIES: usize = 8;
/// Resources that are counted by a plain name beside `count/<name>`.
const COUNTED: [&str; 7] =
    ["configmaps", "secrets", "services", "pods", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas"];

fn one() -> Quantity {
    Quantity::new(1, k8s_schema::quantity::Format::DecimalSi)
}

fn count(n: i64) -> Quantity {
    Quantity::new(n, k8s_schema::quantity::Format::DecimalSi)
}

/// Which of a quota's resources a kind of object uses at all.
fn concerns(resource: &str, group: &str, plural: &str) -> bool {
    let counted = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
    if resource == counted || (group.is_empty() && COUNTED.contains(&plural) && resource == plural) {
        return true;
    }
    match (group, plural) {
        ("", "pods") => compute(resource).is_some(),
        ("", "services") => matches!(resource, "services.nodeports" | "services.loadbalancers"),
        ("", "persistentvolumeclaims") => resource == "requests.storage" || resource.contains(".storageclass.storage.k8s.io/"),
        _ => false,
    }
}

/// The field and name in a pod's resources behind a quota's compute resource.
fn compute(resource: &str) -> Option<(&'static str, &str)> {
    let plain = |r: &str| matches!(r, "cpu" | "memory" | "ephemeral-storage") || r.starts_with("hugepages-");
    if let Some(r) = resource.strip_prefix("limits.") {
        return plain(r).then_some(("limits", r));
    }
    match resource.strip_prefix("requests.") {
        Some("storage") => None,
        // Extended resources have a domain.
        Some(r) if plain(r) || r.contains('/') => Some(("requests", r)),
        Some(_) => None,
        None => plain(resource).then_some(("requests", resource)),
    }
}

/// What an object uses of the resources named.
fn usage(a: &Attributes<'_>, doc: &Doc, names: &BTreeSet<String>) -> Amounts {
    let (group, plural) = (a.res.group.as_str(), a.res.plural.as_str());
    // A pod that ended uses nothing.
    if plural == "pods" && matches!(doc.at("status.phase").str(), "Succeeded" | "Failed") {
        return Amounts::new();
    }
    let mut all = Amounts::new();
    let pod = (group.is_empty() && plural == "pods").then(|| (of_pod(doc.root(), "requests"), of_pod(doc.root(), "limits")));
    for name in names.iter().filter(|n| concerns(n, group, plural)) {
        let amount = if name.starts_with("count/") || name == plural {
            Some(one())
        } else if let Some(((requests, limits), (field, resource))) = pod.as_ref().zip(compute(name)) {
            if field == "requests" { requests.get(resource).cloned() } else { limits.get(resource).cloned() }
        } else if plural == "services" {
            Some(count(service(doc.at("spec"), name)))
        } else {
            claim(doc.at("spec"), name)
        };
        if let Some(q) = amount {
            all.insert(name.clone(), q);
        }
    }
    all
}

fn service(spec: Ref<'_>, resource: &str) -> i64 {
    let ports = spec.get("ports");
    let balanced = spec.get("type").str() == "LoadBalancer";
    match resource {
        "services.loadbalancers" => i64::from(balanced),
        _ if spec.get("type").str() == "NodePort" || (balanced && spec.get("allocateLoadBalancerNodePorts").as_bool() != Some(false)) => {
            i64::try_from(ports.len()).unwrap_or(i64::MAX)
        }
        _ if balanced => i64::try_from(ports.iter().filter(|p| p.get("nodePort").int() != 0).count()).unwrap_or(i64::MAX),
        _ => 0,
    }
}

fn claim(spec: Ref<'_>, resource: &str) -> Option<Quantity> {
    let storage = || spec.at("resources.requests").get("storage").quantity();
    if resource == "requests.storage" {
        return storage();
    }
    let (class, what) = resource.split_once(".storageclass.storage.k8s.io/")?;
    if spec.get("storageClassName").str() != class {
        return None;
    }
    if what == "persistentvolumeclaims" { Some(one()) } else { storage() }
}

fn best_effort(pod: &Doc) -> bool {
    of_pod(pod.root(), "requests").is_empty() && of_pod(pod.root(), "limits").is_empty()
}

fn cross_namespace(pod: &Doc) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = pod.at("spec.affinity").get(kind);
        let elsewhere = |t: Ref<'_>| !t.get("namespaces").is_empty() || t.get("namespaceSelector").exists();
        affinity.get("requiredDuringSchedulingIgnoredDuringExecution").iter().any(elsewhere)
            || affinity.get("preferredDuringSchedulingIgnoredDuringExecution").iter().any(|t| elsewhere(t.get("podAffinityTerm")))
    })
}

fn in_scope(pod: &Doc, scope: &str, operator: &str, values: &[&str]) -> bool {
    let bounded = pod.at("spec.activeDeadlineSeconds").as_i64().is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => bounded,
        "NotTerminating" => !bounded,
        "BestEffort" => best_effort(pod),
        "NotBestEffort" => !best_effort(pod),
        "CrossNamespacePodAffinity" => cross_namespace(pod),
        "PriorityClass" => {
            let class = pod.at("spec.priorityClassName").str();
            match operator {
                "In" => values.contains(&class),
                "NotIn" => !values.contains(&class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

/// Whether a quota counts this object: all its scopes hold; scopes are about pods alone.
fn applies(quota: &Doc, pods: bool, doc: &Doc) -> bool {
    let scopes = quota.at("spec.scopes").strings().map(|s| (s, "Exists", Vec::new()));
    let selected = quota.at("spec.scopeSelector.matchExpressions").iter();
    let selected = selected.map(|e| (e.get("scopeName").str(), e.get("operator").str(), e.get("values").strings().collect::<Vec<_>>()));
    scopes.chain(selected).all(|(scope, operator, values)| pods && in_scope(doc, scope, operator, &values))
}

/// Every container has to say what the quota counts.
fn unspecified(pod: &Doc, names: &BTreeSet<String>) -> Option<String> {
    let mut missing: Vec<String> = Vec::new();
    for name in names {
        let Some((field, resource)) = compute(name).filter(|(_, r)| matches!(*r, "cpu" | "memory")) else { continue };
        let all = pod.at("spec.containers").iter().chain(pod.at("spec.initContainers").iter());
        let without: BTreeSet<&str> =
            all.filter(|c| !c.get("resources").get(field).get(resource).exists()).map(|c| c.get("name").str()).collect();
        if !without.is_empty() {
            missing.push(format!("{name} for: {}", without.into_iter().collect::<Vec<_>>().join(",")));
        }
    }
    (!missing.is_empty()).then(|| format!("must specify {}", missing.join("; ")))
}

fn amounts(r: Ref<'_>) -> Amounts {
    r.entries().filter_map(|(k, v)| Some((k.to_owned(), v.quantity()?))).collect()
}

fn shown(all: &Amounts, names: &[&String]) -> String {
    names.iter().map(|n| format!("{n}={}", all.get(*n).map_or_else(|| "0".to_owned(), ToString::to_string))).collect::<Vec<_>>().join(",")
}

/// The use of a quota with `delta` added, or why that is too much.
fn charge(quota: &Doc, delta: &Amounts) -> Result<Option<Amounts>, String> {
    let (hard, mut used) = (amounts(quota.at("status.hard")), amounts(quota.at("status.used")));
    let delta: Amounts = delta.iter().filter(|(k, q)| hard.contains_key(*k) && !q.is_zero()).map(|(k, q)| (k.clone(), q.clone())).collect();
    if delta.is_empty() {
        return Ok(None);
    }
    let before = used.clone();
    let mut exceeded: Vec<&String> = Vec::new();
    for (name, q) in &delta {
        let sum = used.entry(name.clone()).or_insert_with(|| count(0));
        sum.add(q);
        if q.sign() > 0 && hard.get(name).is_some_and(|h| *sum > *h) {
            exceeded.push(name);
        }
    }
    if exceeded.is_empty() {
        return Ok(Some(used));
    }
    Err(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        quota.meta().name(),
        shown(&delta, &exceeded),
        shown(&before, &exceeded),
        shown(&hard, &exceeded)
    ))
}

/// Charges the quotas of the namespace for what a create or an update uses more than before.
pub async fn validate(a: &Attributes<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let Some(doc) = doc.filter(|_| a.operation != Operation::Delete && a.res.namespaced) else { return Ok(()) };
    let pods = a.res.group.is_empty() && a.res.plural == "pods";
    if !(a.subresource.is_empty() || pods && a.subresource == "resize") {
        return Ok(());
    }
    // An update of a pod changes what it uses only by a resize.
    if a.operation == Operation::Update && pods && a.subresource.is_empty() {
        return Ok(());
    }
    let server = &a.ctx.server;
    let quotas = server.objects.list("resourcequotas", &format!("{}/", a.ctx.info.namespace));
    if quotas.is_empty() {
        return Ok(());
    }
    let refused = |why: String| ApiError::forbidden(Group(&a.res.group, &a.res.plural), doc.meta().name(), why);
    let _one_at_a_time = server.quota.lock().await;
    for stored in &quotas {
        let key = format!("{}resourcequotas/{}", server.root, stored.key);
        let mut tries = 0;
        loop {
            // What the cache has may be behind: the first write of a burst would otherwise be tried in vain.
            let Some(kv) = server.etcd.get(&key).await?.0 else { break };
            let quota = crate::objects::decode(&server.objects.schema, &kv.value).map_err(ApiError::internal)?;
            if !applies(&quota, pods, doc) {
                break;
            }
            let names: BTreeSet<String> =
                quota.at("status.hard").entries().map(|(k, _)| k.to_owned()).filter(|k| concerns(k, &a.res.group, &a.res.plural)).collect();
            if names.is_empty() {
                break;
            }
            if pods
                && a.operation == Operation::Create
                && let Some(why) = unspecified(doc, &names)
            {
                return Err(refused(format!("failed quota: {}: {why}", quota.meta().name())));
            }
            let mut delta = usage(a, doc, &names);
            if let Some(old) = old.filter(|o| applies(&quota, pods, o)) {
                for (name, q) in usage(a, old, &names) {
                    delta.entry(name).or_insert_with(|| count(0)).sub(&q);
                }
            }
            let used = match charge(&quota, &delta).map_err(&refused)? {
                Some(used) if !a.dry_run => used,
                _ => break,
            };
            let mut new = quota.clone();
            let used: serde_json::Map<String, Value> = used.into_iter().map(|(k, q)| (k, json!(q.to_string()))).collect();
            write::set(&mut new, "status.used", Value::Object(used))?;
            if let Some(quotas) = server.registry.stored("", "resourcequotas") {
                meta::track(quotas, &mut new, &quota, "kube-apiserver", "status", &["spec"]);
            }
            match server.etcd.update(&key, kv.rev, new.to_protobuf().into(), 0).await {
                Ok(_) => break,
                Err(StoreError::Changed { .. }) if tries < TRIES => tries += 1,
                Err(StoreError::Changed { .. }) => {
                    return Err(ApiError::conflict(
                        Group("", "resourcequotas"),
                        stored.name(),
                        "the quota is changed by many at once; try again",
                    ));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_schema::Schema;

    use super::*;

    fn quota(hard: Value, used: Value) -> Doc {
        let schema = Schema::builtin();
        let v = json!({"metadata": {"name": "q"}, "status": {"hard": hard, "used": used}});
        Doc::from_value(&schema, schema.kind("", "v1", "ResourceQuota").unwrap(), &v).unwrap().doc
    }

    fn delta(all: &[(&str, &str)]) -> Amounts {
        all.iter().map(|(k, v)| ((*k).to_owned(), Quantity::parse(v).unwrap())).collect()
    }

    #[test]
    fn what_fits_is_added_and_what_does_not_is_named() {
        let q = quota(json!({"pods": "2", "requests.cpu": "1"}), json!({"pods": "1", "requests.cpu": "600m"}));
        let used = charge(&q, &delta(&[("pods", "1"), ("requests.cpu", "400m"), ("services", "1")])).unwrap().unwrap();
        assert_eq!(used, delta(&[("pods", "2"), ("requests.cpu", "1")]));
        assert_eq!(
            charge(&q, &delta(&[("pods", "1"), ("requests.cpu", "600m")])).unwrap_err(),
            "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
        );
        assert_eq!(charge(&q, &delta(&[("services", "1")])), Ok(None));
        // Giving back is always allowed.
        assert!(charge(&quota(json!({"pods": "1"}), json!({"pods": "5"})), &delta(&[("pods", "-1")])).is_ok());
    }

    #[test]
    fn compute_resources_are_read_as_upstream_names_them() {
        assert_eq!(compute("requests.cpu"), Some(("requests", "cpu")));
        assert_eq!(compute("memory"), Some(("requests", "memory")));
        assert_eq!(compute("limits.memory"), Some(("limits", "memory")));
        assert_eq!(compute("requests.example.com/gpu"), Some(("requests", "example.com/gpu")));
        assert_eq!(compute("requests.storage"), None);
        assert_eq!(compute("pods"), None);
        assert!(concerns("count/deployments.apps", "apps", "deployments") && !concerns("count/deployments.apps", "", "pods"));
    }
}
