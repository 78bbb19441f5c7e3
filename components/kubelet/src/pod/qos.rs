//! Quality of service and the sums of a pod's resources.

use crate::model::pod::{Container, Pod};

/// The three classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod: Guaranteed when every container's cpu and memory limits are set and equal its requests, BestEffort when none
/// sets anything, Burstable otherwise.
pub fn class_of(pod: &Pod) -> Qos {
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.all_containers() {
        for resource in ["cpu", "memory"] {
            let request = container.resources.requests.get(resource).and_then(|q| q.milli()).filter(|v| *v > 0);
            let limit = container.resources.limits.get(resource).and_then(|q| q.milli()).filter(|v| *v > 0);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// The request of one container in thousandths; a limit without a request is also the request.
pub fn request_milli(container: &Container, resource: &str) -> i64 {
    container.resources.requests.get(resource).or_else(|| container.resources.limits.get(resource)).and_then(|q| q.milli()).unwrap_or(0)
}

/// The limit of one container in thousandths.
pub fn limit_milli(container: &Container, resource: &str) -> Option<i64> {
    container.resources.limits.get(resource).and_then(|q| q.milli()).filter(|v| *v > 0)
}

/// The pod's request in thousandths: all that run together, or the largest moment of initialisation, plus overhead.
pub fn pod_request_milli(pod: &Pod, resource: &str) -> i64 {
    let main: i64 = pod.spec.containers.iter().map(|c| request_milli(c, resource)).sum();
    let mut sidecars = 0i64;
    let mut peak = 0i64;
    for container in &pod.spec.init_containers {
        let request = request_milli(container, resource);
        if container.is_sidecar() {
            sidecars += request;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + request);
        }
    }
    let overhead = pod.spec.overhead.get(resource).and_then(|q| q.milli()).unwrap_or(0);
    peak.max(main.saturating_add(sidecars)).saturating_add(overhead)
}

/// The pod's limit in thousandths; `None` unless every container has one.
pub fn pod_limit_milli(pod: &Pod, resource: &str) -> Option<i64> {
    let mut main = 0i64;
    for container in &pod.spec.containers {
        main = main.saturating_add(limit_milli(container, resource)?);
    }
    let mut sidecars = 0i64;
    let mut peak = 0i64;
    for container in &pod.spec.init_containers {
        let limit = limit_milli(container, resource)?;
        if container.is_sidecar() {
            sidecars += limit;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + limit);
        }
    }
    let overhead = pod.spec.overhead.get(resource).and_then(|q| q.milli()).unwrap_or(0);
    Some(peak.max(main + sidecars) + overhead)
}

/// The kernel's badness adjustment of a container: critical and Guaranteed first to live, BestEffort first to die, Burstable by its share of
/// the machine's memory.
pub fn oom_score_adj(pod: &Pod, container: &Container, machine_memory: i64) -> i64 {
    if pod.is_critical() {
        return -997;
    }
    match class_of(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = request_milli(container, "memory") / 1000;
            let adjusted = 1000 - 1000 * request / machine_memory.max(1);
            adjusted.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    #[test]
    fn classes() {
        for (resources, expected) in [
            (json!({}), Qos::BestEffort),
            (json!({"requests": {"cpu": "100m"}}), Qos::Burstable),
            (json!({"limits": {"cpu": 1, "memory": "1Gi"}}), Qos::Guaranteed),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}), Qos::Guaranteed),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), Qos::Burstable),
            (json!({"limits": {"memory": "1Gi"}}), Qos::Burstable),
        ] {
            assert_eq!(class_of(&pod(json!({"containers": [{"name": "a", "resources": resources}]}))), expected, "{resources}");
        }
    }

    #[test]
    fn sums_take_the_larger_of_start_and_run() {
        let p = pod(json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "1"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m"}}}, {"name": "b", "resources": {"limits": {"cpu": "300m"}}}]}));
        assert_eq!(pod_request_milli(&p, "cpu"), 1100);
        assert_eq!(pod_limit_milli(&p, "cpu"), None);
    }

    #[test]
    fn burstable_pods_are_ordered_by_their_share() {
        let p = pod(json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "512Mi"}}}]}));
        assert_eq!(oom_score_adj(&p, &p.spec.containers[0], 1 << 30), 500);
    }
}
