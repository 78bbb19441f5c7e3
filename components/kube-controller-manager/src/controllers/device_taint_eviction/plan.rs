//! When a pod has to go because of the taints of devices that it uses. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::{AllocatedDevice, Pod, ResourceClaim, ResourceSlice, Taint};

/// The name under which a pool of devices is looked up: other drivers may have a pool of the same name. Neither part has a slash at its end.
pub fn pool(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

/// The pools whose devices a claim has.
pub fn pools(claim: &ResourceClaim) -> Vec<String> {
    let mut all: Vec<String> = results(claim).iter().map(|r| pool(&r.driver, &r.pool)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn results(claim: &ResourceClaim) -> &[AllocatedDevice] {
    claim.status.allocation.as_ref().map_or(&[], |a| &a.devices.results)
}

/// Whether a device of these slices evicts.
pub fn evicts(slices: &[Arc<ResourceSlice>]) -> bool {
    slices.iter().flat_map(|s| &s.spec.devices).flat_map(|d| &d.taints).any(|t| t.effect == EVICTS)
}

const EVICTS: &str = "NoExecute";

/// The names of the claims that the pod uses, as its spec and its status say.
pub fn claims(pod: &Pod) -> Vec<&str> {
    let made = |name: &str| pod.status.resource_claim_statuses.iter().find(|s| s.name == name)?.resource_claim_name.as_deref();
    let entries = pod.spec.resource_claims.iter();
    entries.filter_map(|e| if e.resource_claim_name.is_empty() { made(&e.name) } else { Some(&e.resource_claim_name) }).collect()
}

/// How long the pod may stay, if it has to go: that of the taint whose time is up first. A claim counts when this very pod reserved it;
/// `slices` are those of a pool, of which the newest generation says what is.
pub fn patience(
    pod: &Pod,
    claims: &[Arc<ResourceClaim>],
    slices: &dyn Fn(&str) -> Vec<Arc<ResourceSlice>>,
    now: Timestamp,
) -> Option<Duration> {
    let reserved = |c: &&Arc<ResourceClaim>| c.status.reserved_for.iter().any(|r| r.is_pod() && r.uid == pod.metadata.uid);
    let used = claims.iter().filter(reserved).flat_map(|c| results(c));
    used.filter_map(|r| {
        let pool = slices(&pool(&r.driver, &r.pool));
        let newest = pool.iter().map(|s| s.spec.pool.generation).max()?;
        let devices = pool.iter().filter(|s| s.spec.pool.generation == newest).flat_map(|s| &s.spec.devices);
        devices.filter(|d| d.name == r.device).flat_map(|d| &d.taints).filter_map(|t| left(r, t, now)).min()
    })
    .min()
}

/// What is left of the time that the device's user tolerates the taint; none: for ever.
fn left(device: &AllocatedDevice, taint: &Taint, now: Timestamp) -> Option<Duration> {
    if taint.effect != EVICTS {
        return None;
    }
    let mut matching = device.tolerations.iter().filter(|t| t.tolerates(taint)).peekable();
    if matching.peek().is_none() {
        return Some(Duration::ZERO);
    }
    // One that is without a limit holds against all others.
    let seconds = matching.map(|t| t.toleration_seconds).collect::<Option<Vec<i64>>>()?.into_iter().min()?;
    let elapsed = taint.time_added.map_or(Duration::ZERO, |added| added.age(now));
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_sub(elapsed))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {"nodeName": "n", "resourceClaims": [
            {"name": "a", "resourceClaimName": "shared"}, {"name": "b", "resourceClaimTemplateName": "t"}, {"name": "c", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-x"}, {"name": "c"}]}}))
        .unwrap()
    }

    fn claim(uid: &str, tolerations: Value) -> Arc<ResourceClaim> {
        let result = json!({"request": "r", "driver": "d.io", "pool": "n", "device": "gpu-0", "tolerations": tolerations});
        let status =
            json!({"allocation": {"devices": {"results": [result]}}, "reservedFor": [{"resource": "pods", "name": "p", "uid": uid}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "shared", "namespace": "d"}, "status": status})).unwrap())
    }

    fn slice(generation: i64, device: &str, taints: Value) -> Arc<ResourceSlice> {
        let spec = json!({"driver": "d.io", "pool": {"name": "n", "generation": generation}, "devices": [{"name": "other"}, {"name": device, "taints": taints}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap())
    }

    #[test]
    fn a_pod_goes_when_a_device_of_its_own_is_tainted_and_it_does_not_tolerate_that() {
        let taint = |effect: &str| json!([{"key": "k", "value": "v", "effect": effect, "timeAdded": "2026-01-01T00:09:00Z"}]);
        let gone = taint("NoExecute");
        let exists = |seconds: Value| json!({"operator": "Exists", "tolerationSeconds": seconds});
        let equal = |value: &str| json!({"key": "k", "operator": "Equal", "value": value, "effect": "NoExecute"});
        let seconds = |n| Some(Duration::from_secs(n));
        let one = |s: Arc<ResourceSlice>| vec![s];
        for (name, uid, tolerations, slices, want) in [
            ("not tainted", "u", json!([]), one(slice(1, "gpu-0", json!([]))), None),
            ("another device", "u", json!([]), one(slice(1, "gpu-1", gone.clone())), None),
            ("only against new pods", "u", json!([]), one(slice(1, "gpu-0", taint("NoSchedule"))), None),
            ("no effect", "u", json!([]), one(slice(1, "gpu-0", taint("None"))), None),
            ("not tolerated", "u", json!([]), one(slice(1, "gpu-0", gone.clone())), seconds(0)),
            ("another pod's", "w", json!([]), one(slice(1, "gpu-0", gone.clone())), None),
            ("tolerated for ever", "u", json!([exists(json!(null))]), one(slice(1, "gpu-0", gone.clone())), None),
            ("the value", "u", json!([equal("v")]), one(slice(1, "gpu-0", gone.clone())), None),
            ("another value", "u", json!([equal("w")]), one(slice(1, "gpu-0", gone.clone())), seconds(0)),
            ("for five minutes, one gone", "u", json!([exists(json!(300))]), one(slice(1, "gpu-0", gone.clone())), seconds(240)),
            ("negative", "u", json!([exists(json!(-1))]), one(slice(1, "gpu-0", gone.clone())), seconds(0)),
            ("the shorter", "u", json!([exists(json!(300)), exists(json!(90))]), one(slice(1, "gpu-0", gone.clone())), seconds(30)),
            ("for ever beside limited", "u", json!([exists(json!(1)), exists(json!(null))]), one(slice(1, "gpu-0", gone.clone())), None),
            ("an old slice", "u", json!([]), vec![slice(1, "gpu-0", gone.clone()), slice(2, "gpu-0", json!([]))], None),
            ("the pool went", "u", json!([]), vec![], None),
        ] {
            let now = "2026-01-01T00:10:00Z".parse().unwrap();
            assert_eq!(patience(&pod(), &[claim(uid, tolerations)], &|_| slices.clone(), now), want, "{name}");
        }
    }

    #[test]
    fn claims_are_those_named_and_those_made() {
        assert_eq!(claims(&pod()), ["shared", "p-b-x"]);
        assert_eq!(pools(&claim("u", json!([]))), ["d.io/n"]);
        assert!(evicts(&[slice(1, "g", json!([{"key": "k", "effect": "NoExecute"}]))]) && !evicts(&[slice(1, "g", json!([]))]));
    }
}
