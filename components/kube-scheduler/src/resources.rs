//! Amounts of resources: what pods request and nodes offer.
//!
//! CPU is counted in thousandths, everything else in whole units, both rounded up, as upstream does; sums saturate.

use std::collections::BTreeMap;

pub use k8s_client::Quantity;

use crate::types::{Pod, ResourceRequirements};

/// CPU request assumed for scoring when a container states none, in millicores.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// Memory request assumed for scoring when a container states none, in bytes.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts by resource name: `cpu` in millicores, all others in units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    /// From the API's map.
    pub fn from_map(map: &BTreeMap<String, Quantity>) -> Self {
        Self(map.iter().map(|(name, q)| (name.clone(), if name == "cpu" { q.milli_value() } else { q.value() })).collect())
    }

    /// Amount of one resource, zero when absent.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Sets one amount.
    pub fn set(&mut self, name: &str, amount: i64) {
        self.0.insert(name.to_string(), amount);
    }

    /// All amounts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(k, v)| (k.as_str(), *v))
    }

    /// Adds, saturating.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let slot = self.0.entry(name.clone()).or_default();
            *slot = slot.saturating_add(*amount);
        }
    }

    /// Takes away, saturating.
    pub fn sub(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let slot = self.0.entry(name.clone()).or_default();
            *slot = slot.saturating_sub(*amount);
        }
    }

    /// The larger of each.
    pub fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let slot = self.0.entry(name.clone()).or_insert(*amount);
            *slot = (*slot).max(*amount);
        }
    }
}

fn requested(requirements: &ResourceRequirements, assume_defaults: bool) -> Resources {
    let mut r = Resources::from_map(&requirements.requests);
    if assume_defaults {
        if !requirements.requests.contains_key("cpu") {
            r.set("cpu", DEFAULT_MILLI_CPU);
        }
        if !requirements.requests.contains_key("memory") {
            r.set("memory", DEFAULT_MEMORY);
        }
    }
    r
}

/// What a pod requests of a node: the sum of its containers and sidecars, or what an init container needs beside the sidecars started before it,
/// whichever is more, plus overhead; pod-level requests take the place of the sum (KEP-753, KEP-2837).
pub fn pod_requests(pod: &Pod, assume_defaults: bool) -> Resources {
    let mut total = Resources::default();
    for c in &pod.spec.containers {
        total.add(&requested(&c.resources, assume_defaults));
    }
    let (mut sidecars, mut init_peak) = (Resources::default(), Resources::default());
    for c in &pod.spec.init_containers {
        let request = requested(&c.resources, assume_defaults);
        let mut with_sidecars = sidecars.clone();
        with_sidecars.add(&request);
        init_peak.max(&with_sidecars);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&request);
        }
    }
    total.add(&sidecars);
    total.max(&init_peak);
    if let Some(pod_level) = &pod.spec.resources {
        for (name, amount) in Resources::from_map(&pod_level.requests).iter() {
            total.set(name, amount);
        }
    }
    total.add(&Resources::from_map(&pod.spec.overhead));
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_init_containers_sidecars_and_overhead() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [{"resources": {"requests": {"cpu": "100m", "memory": "10"}}}, {"resources": {"requests": {"cpu": "200m"}}}],
            "initContainers": [
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"resources": {"requests": {"cpu": "500m"}}}],
            "overhead": {"cpu": "10m"}}}))
        .unwrap();
        let r = pod_requests(&pod, false);
        assert_eq!((r.get("cpu"), r.get("memory")), (560, 10));
        // One container states 10 bytes; the other and the sidecar assume the default.
        assert_eq!(pod_requests(&pod, true).get("memory"), 10 + 2 * DEFAULT_MEMORY);
    }
}
