//! ReplicationControllers, which are ReplicaSets with an older form of selector.

use k8s_client::{LabelMap, LabelSelector, Named, Object, ObjectMeta, Resource, null_default, resources::REPLICATION_CONTROLLERS};
use serde::Deserialize;
use serde_json::Value;

use super::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};

/// A `ReplicationController`, seen as the ReplicaSet it could be.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "Wire")]
pub struct ReplicationController(pub ReplicaSet);

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Wire {
    metadata: ObjectMeta,
    spec: WireSpec,
    #[serde(deserialize_with = "null_default")]
    status: ReplicaSetStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireSpec {
    replicas: Option<i32>,
    #[serde(deserialize_with = "null_default")]
    min_ready_seconds: i32,
    #[serde(deserialize_with = "null_default")]
    selector: LabelMap,
    template: Value,
}

impl From<Wire> for ReplicationController {
    fn from(wire: Wire) -> Self {
        let WireSpec { replicas, min_ready_seconds, selector, template } = wire.spec;
        let spec = ReplicaSetSpec { replicas, min_ready_seconds, selector: LabelSelector::labels(selector), template };
        Self(ReplicaSet { metadata: wire.metadata, spec, status: wire.status })
    }
}

impl Object for ReplicationController {
    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }
}

impl Named for ReplicationController {
    const RESOURCE: Resource = REPLICATION_CONTROLLERS;
}

impl crate::reconcile::Selecting for ReplicationController {
    fn selector(&self) -> &LabelSelector {
        &self.0.spec.selector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_selector_selects() {
        let controller: ReplicationController = serde_json::from_str(
            r#"{"metadata":{"name":"a"},"spec":{"replicas":2,"selector":{"app":"web"},"template":{}},"status":{"replicas":1,"observedGeneration":3}}"#,
        )
        .unwrap();
        let labels = |value: &str| LabelMap::from([("app".to_string(), value.to_string())]);
        let selector = &controller.0.spec.selector;
        assert!(selector.matches(&labels("web")) && !selector.matches(&labels("db")));
        assert_eq!((controller.0.spec.replicas, controller.0.status.replicas, controller.0.status.observed_generation), (Some(2), 1, 3));
    }
}
