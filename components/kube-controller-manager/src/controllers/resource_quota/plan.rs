//! The status of one quota.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_client::Quantity;
use serde_json::{Value, json};

use super::usage::{self, Counted, counted_by};
use crate::api::{PersistentVolumeClaim, Pod, ResourceList, ResourceQuota, ScopeRequirement, Service};

/// What planning looks at: the quota and all objects of its namespace.
pub struct Observed<'a> {
    pub quota: &'a ResourceQuota,
    pub pods: &'a [Arc<Pod>],
    pub services: &'a [Arc<Service>],
    pub claims: &'a [Arc<PersistentVolumeClaim>],
    /// How many objects of each resource that is only counted exist, by the name the quota has for it.
    pub counts: &'a BTreeMap<String, usize>,
    pub now: Timestamp,
}

/// The status to write, or nothing when it is right already.
pub fn plan(observed: &Observed<'_>) -> Option<Value> {
    let Observed { quota, pods, services, claims, counts, now } = observed;
    let scopes = scopes(quota);
    let in_all = |is_in: &dyn Fn(&ScopeRequirement) -> bool| scopes.iter().all(is_in);
    let pods = sum(pods.iter().filter(|pod| in_all(&|scope| usage::pod_in(pod, scope))).map(|pod| usage::of_pod(pod, *now)));
    let claims = sum(claims.iter().filter(|claim| in_all(&|scope| usage::claim_in(claim, scope))).map(|claim| usage::of_claim(claim)));
    // Services and plain objects are in no scope.
    let services = sum(services.iter().filter(|_| scopes.is_empty()).map(|service| usage::of_service(service)));
    let before = quota.status.used.clone().unwrap_or_default();
    let mut used = ResourceList::new();
    for name in quota.spec.hard.keys() {
        let now = match counted_by(name) {
            Some(Counted::Pods) => Some(pods.get(name).copied().unwrap_or_default()),
            Some(Counted::Services) => Some(services.get(name).copied().unwrap_or_default()),
            Some(Counted::Claims) => Some(claims.get(name).copied().unwrap_or_default()),
            Some(Counted::Objects { .. }) => counts.get(name).map(|count| {
                let count = if scopes.is_empty() { *count } else { 0 };
                Quantity::units(i64::try_from(count).unwrap_or(i64::MAX))
            }),
            None => None,
        };
        // What nobody here counts stays as whoever counts it left it.
        if let Some(amount) = now.or_else(|| before.get(name).copied()) {
            used.insert(name.clone(), amount);
        }
    }
    let right = quota.status.hard.as_ref() == Some(&quota.spec.hard) && quota.status.used.as_ref() == Some(&used);
    let text: BTreeMap<&String, String> = used.iter().map(|(name, amount)| (name, canonical(*amount))).collect();
    (!right).then(|| json!({"hard": quota.spec.hard, "used": text}))
}

fn scopes(quota: &ResourceQuota) -> Vec<ScopeRequirement> {
    let plain =
        quota.spec.scopes.iter().map(|scope| ScopeRequirement { scope_name: scope.clone(), operator: "Exists".into(), values: Vec::new() });
    plain.chain(quota.spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.clone())).collect()
}

fn sum(usages: impl Iterator<Item = ResourceList>) -> ResourceList {
    let mut total = ResourceList::new();
    for (name, amount) in usages.flatten() {
        let sum = total.entry(name).or_default();
        *sum = sum.plus(amount);
    }
    total
}

/// The shortest of an amount's canonical forms, so that `1Gi` stays `1Gi` and `2G` stays `2G`.
pub fn canonical(amount: Quantity) -> String {
    let units = amount.value();
    if Quantity::units(units) != amount {
        return format!("{}m", amount.milli_value());
    }
    let decimal = [(1_000_000_000_000_000_000, "E"), (1_000_000_000_000_000, "P"), (1_000_000_000_000, "T"), (1_000_000_000, "G")]
        .into_iter()
        .chain([(1_000_000, "M"), (1000, "k")])
        .find(|(factor, _)| units != 0 && units % factor == 0)
        .map_or_else(|| units.to_string(), |(factor, suffix)| format!("{}{suffix}", units / factor));
    let binary = amount.to_string();
    if binary.len() < decimal.len() { binary } else { decimal }
}
