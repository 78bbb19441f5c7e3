//! The objects controllers read, as narrow structs that decode only what is used. They can never be put back.

use std::collections::BTreeMap;

use k8s_client::{
    Condition, IntOrString, LabelMap, LabelSelector, Named, Object, ObjectMeta, ObjectReference, Resource, Time, null_default, resources::*,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

macro_rules! object {
    ($name:ident, $resource:ident, { $($(#[$meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        #[doc = concat!("A `", stringify!($name), "` as its controllers see it.")]
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            pub metadata: ObjectMeta,
            $($(#[$meta])* pub $field: $type,)*
        }
        impl Object for $name {
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
        }
        impl Named for $name {
            const RESOURCE: Resource = $resource;
        }
    };
}

macro_rules! part {
    ($name:ident, { $($(#[$meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        #[allow(missing_docs)]
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$meta])* pub $field: $type,)*
        }
    };
}

/// As [`part`], for what is also written.
macro_rules! written {
    ($name:ident, { $($(#[$meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        #[allow(missing_docs)]
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$meta])* pub $field: $type,)*
        }
    };
}

macro_rules! selecting {
    ($($name:ident),*) => {
        $(impl crate::reconcile::Selecting for $name {
            fn selector(&self) -> &LabelSelector {
                &self.spec.selector
            }
        })*
    };
}

mod autoscaling;
mod devices;
mod job;
mod quota;
mod replication_controller;
mod storage;

pub use self::autoscaling::*;
pub use self::devices::*;
pub use self::job::*;
pub use self::quota::*;
pub use self::replication_controller::ReplicationController;
pub use self::storage::*;

// --- core ---------------------------------------------------------------------------------------------------------------------------

object!(Namespace, NAMESPACES, { spec: NamespaceSpec, status: NamespaceStatus });
part!(NamespaceSpec, { #[serde(deserialize_with = "null_default")] finalizers: Vec<String> });
part!(NamespaceStatus, { phase: String, #[serde(deserialize_with = "null_default")] conditions: Vec<Condition> });

object!(ServiceAccount, SERVICE_ACCOUNTS, { #[serde(deserialize_with = "null_default")] secrets: Vec<SecretName> });
part!(SecretName, { #[serde(deserialize_with = "null_default")] name: String });
object!(ConfigMap, CONFIG_MAPS, { #[serde(deserialize_with = "null_default")] data: BTreeMap<String, String> });
object!(Secret, SECRETS, {
    #[serde(rename = "type")] kind: String,
    #[serde(deserialize_with = "null_default")] data: BTreeMap<String, String>,
});

object!(Pod, PODS, { spec: PodSpec, status: PodStatus });
part!(PodSpec, {
    #[serde(deserialize_with = "null_default")] node_name: String,
    #[serde(deserialize_with = "null_default")] hostname: String,
    #[serde(deserialize_with = "null_default")] subdomain: String,
    #[serde(deserialize_with = "null_default")] containers: Vec<Container>,
    #[serde(deserialize_with = "null_default")] tolerations: Vec<Toleration>,
    affinity: Option<Value>,
    #[serde(deserialize_with = "null_default")] init_containers: Vec<Container>,
    #[serde(deserialize_with = "null_default")] overhead: ResourceList,
    resources: Option<ResourceRequirements>,
    active_deadline_seconds: Option<i64>,
    #[serde(deserialize_with = "null_default")] priority_class_name: String,
    #[serde(deserialize_with = "null_default")] volumes: Vec<Volume>,
    #[serde(deserialize_with = "null_default")] resource_claims: Vec<PodResourceClaim>,
});
part!(PodResourceClaim, {
    name: String,
    #[serde(deserialize_with = "null_default")] resource_claim_name: String,
    #[serde(deserialize_with = "null_default")] resource_claim_template_name: String,
});
part!(PodResourceClaimStatus, { name: String, resource_claim_name: Option<String> });
part!(Container, {
    name: String,
    #[serde(deserialize_with = "null_default")] ports: Vec<ContainerPort>,
    #[serde(deserialize_with = "null_default")] resources: ResourceRequirements,
    #[serde(deserialize_with = "null_default")] restart_policy: String,
});
part!(ResourceRequirements, {
    #[serde(deserialize_with = "null_default")] requests: ResourceList,
    #[serde(deserialize_with = "null_default")] limits: ResourceList,
});
part!(ContainerPort, { name: String, container_port: i32, protocol: String });
part!(PodStatus, {
    #[serde(deserialize_with = "null_default")] phase: String,
    #[serde(deserialize_with = "null_default")] reason: String,
    #[serde(deserialize_with = "null_default")] qos_class: String,
    #[serde(deserialize_with = "null_default")] conditions: Vec<Condition>,
    #[serde(rename = "podIP", deserialize_with = "null_default")] pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "null_default")] pod_ips: Vec<PodIp>,
    start_time: Option<Time>,
    #[serde(deserialize_with = "null_default")] init_container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "null_default")] container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "null_default")] resource_claim_statuses: Vec<PodResourceClaimStatus>,
});
part!(PodIp, { ip: String });
part!(ContainerStatus, { name: String, restart_count: i32, state: ContainerState });
part!(ContainerState, { terminated: Option<Terminated> });
part!(Terminated, { exit_code: i32, finished_at: Option<Time> });

/// core/v1 Toleration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    /// core/v1's rule: an empty effect or key matches all, `Exists` ignores the value.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() && self.operator == "Exists" || self.key == taint.key)
            && (self.operator == "Exists" || self.value == taint.value)
    }
}

/// core/v1 Taint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    pub effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_added: Option<Time>,
}

impl Pod {
    /// Neither finished nor being deleted.
    pub fn is_active(&self) -> bool {
        !self.is_terminal() && !self.metadata.is_deleting()
    }

    /// Succeeded or Failed.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The condition `Ready` is true.
    pub fn is_ready(&self) -> bool {
        Condition::find(&self.status.conditions, "Ready").is_some_and(Condition::is_true)
    }

    /// Ready, and for at least that long.
    pub fn is_available(&self, min_ready_seconds: i32, now: jiff::Timestamp) -> bool {
        let ready = Condition::find(&self.status.conditions, "Ready").filter(|condition| condition.is_true());
        match ready {
            None => false,
            Some(_) if min_ready_seconds <= 0 => true,
            Some(condition) => {
                condition.last_transition_time.is_some_and(|since| now.duration_since(since.0).as_secs() >= i64::from(min_ready_seconds))
            }
        }
    }

    /// Uid of the controller that owns the pod, or nothing.
    pub fn controller_uid(&self) -> Option<&str> {
        self.metadata.controller().map(|owner| owner.uid.as_str())
    }
}

object!(Node, NODES, { spec: NodeSpec, status: NodeStatus });
part!(NodeSpec, {
    #[serde(rename = "podCIDR", deserialize_with = "null_default")] pod_cidr: String,
    #[serde(rename = "podCIDRs", deserialize_with = "null_default")] pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "null_default")] taints: Vec<Taint>,
    #[serde(deserialize_with = "null_default")] unschedulable: bool,
});
part!(NodeStatus, {
    #[serde(deserialize_with = "null_default")] conditions: Vec<Condition>,
    #[serde(deserialize_with = "null_default")] addresses: Vec<NodeAddress>,
    #[serde(deserialize_with = "null_default")] volumes_in_use: Vec<String>,
    #[serde(deserialize_with = "null_default")] volumes_attached: Vec<AttachedVolume>,
});
part!(AttachedVolume, { name: String });
part!(NodeAddress, { #[serde(rename = "type")] kind: String, address: String });

object!(Service, SERVICES, { spec: ServiceSpec });
part!(ServiceSpec, {
    #[serde(rename = "type")] kind: String,
    #[serde(rename = "clusterIP", deserialize_with = "null_default")] cluster_ip: String,
    #[serde(deserialize_with = "null_default")] selector: LabelMap,
    #[serde(deserialize_with = "null_default")] ports: Vec<ServicePort>,
    #[serde(deserialize_with = "null_default")] ip_families: Vec<String>,
    #[serde(deserialize_with = "null_default")] publish_not_ready_addresses: bool,
    allocate_load_balancer_node_ports: Option<bool>,
});
part!(ServicePort, {
    name: String,
    protocol: String,
    port: i32,
    target_port: Option<IntOrString>,
    #[serde(deserialize_with = "null_default")] node_port: i32,
    app_protocol: Option<String>,
});

object!(Endpoints, ENDPOINTS, { #[serde(deserialize_with = "null_default")] subsets: Vec<EndpointSubset> });
written!(EndpointSubset, {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")] addresses: Vec<EndpointAddress>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")] not_ready_addresses: Vec<EndpointAddress>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")] ports: Vec<EndpointPort>,
});

/// core/v1 EndpointAddress.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointAddress {
    pub ip: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
}

/// The part of an ObjectReference that endpoints carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// A port of an Endpoints subset or of an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub port: i32,
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

// --- discovery ----------------------------------------------------------------------------------------------------------------------

object!(EndpointSlice, ENDPOINT_SLICES, {
    address_type: String,
    #[serde(deserialize_with = "null_default")] endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "null_default")] ports: Vec<EndpointPort>,
});

/// discovery.k8s.io/v1 Endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    pub addresses: Vec<String>,
    pub conditions: EndpointConditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// discovery.k8s.io/v1 EndpointConditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

// --- apps ---------------------------------------------------------------------------------------------------------------------------

object!(ReplicaSet, REPLICA_SETS, { spec: ReplicaSetSpec, status: ReplicaSetStatus });
selecting!(ReplicaSet, Deployment, DaemonSet, StatefulSet);
part!(ReplicaSetSpec, {
    replicas: Option<i32>,
    #[serde(deserialize_with = "null_default")] min_ready_seconds: i32,
    selector: LabelSelector,
    template: Value,
});
written!(ReplicaSetStatus, {
    replicas: i32,
    fully_labeled_replicas: i32,
    ready_replicas: i32,
    available_replicas: i32,
    #[serde(skip_serializing_if = "Option::is_none")] terminating_replicas: Option<i32>,
    observed_generation: i64,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")] conditions: Vec<Condition>,
});

object!(Deployment, DEPLOYMENTS, { spec: DeploymentSpec, status: DeploymentStatus });
part!(DeploymentSpec, {
    replicas: Option<i32>,
    selector: LabelSelector,
    template: Value,
    strategy: DeploymentStrategy,
    #[serde(deserialize_with = "null_default")] min_ready_seconds: i32,
    revision_history_limit: Option<i32>,
    #[serde(deserialize_with = "null_default")] paused: bool,
    progress_deadline_seconds: Option<i32>,
});
part!(DeploymentStrategy, { #[serde(rename = "type")] kind: String, rolling_update: Option<RollingUpdate> });
part!(RollingUpdate, { max_unavailable: Option<IntOrString>, max_surge: Option<IntOrString> });
written!(DeploymentStatus, {
    observed_generation: i64,
    replicas: i32,
    updated_replicas: i32,
    ready_replicas: i32,
    available_replicas: i32,
    unavailable_replicas: i32,
    #[serde(skip_serializing_if = "Option::is_none")] terminating_replicas: Option<i32>,
    #[serde(deserialize_with = "null_default")] conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")] collision_count: Option<i32>,
});

object!(DaemonSet, DAEMON_SETS, { spec: DaemonSetSpec, status: DaemonSetStatus });
part!(DaemonSetSpec, {
    selector: LabelSelector,
    template: Value,
    update_strategy: DeploymentStrategy,
    #[serde(deserialize_with = "null_default")] min_ready_seconds: i32,
    revision_history_limit: Option<i32>,
});
written!(DaemonSetStatus, {
    current_number_scheduled: i32,
    number_misscheduled: i32,
    desired_number_scheduled: i32,
    number_ready: i32,
    observed_generation: i64,
    updated_number_scheduled: i32,
    number_available: i32,
    number_unavailable: i32,
    #[serde(skip_serializing_if = "Option::is_none")] collision_count: Option<i32>,
});

object!(StatefulSet, STATEFUL_SETS, { spec: StatefulSetSpec, status: StatefulSetStatus });
part!(StatefulSetSpec, {
    replicas: Option<i32>,
    selector: LabelSelector,
    template: Value,
    service_name: String,
    pod_management_policy: String,
    update_strategy: StatefulSetStrategy,
    #[serde(deserialize_with = "null_default")] min_ready_seconds: i32,
    revision_history_limit: Option<i32>,
    ordinals: Option<Ordinals>,
    #[serde(deserialize_with = "null_default")] volume_claim_templates: Vec<Value>,
    persistent_volume_claim_retention_policy: Option<ClaimRetention>,
});
part!(ClaimRetention, {
    #[serde(deserialize_with = "null_default")] when_deleted: String,
    #[serde(deserialize_with = "null_default")] when_scaled: String,
});
part!(Ordinals, { start: i32 });
part!(StatefulSetStrategy, { #[serde(rename = "type")] kind: String, rolling_update: Option<StatefulRollingUpdate> });
part!(StatefulRollingUpdate, { partition: Option<i32>, max_unavailable: Option<IntOrString> });
written!(StatefulSetStatus, {
    observed_generation: i64,
    replicas: i32,
    ready_replicas: i32,
    current_replicas: i32,
    updated_replicas: i32,
    available_replicas: i32,
    current_revision: String,
    update_revision: String,
    #[serde(skip_serializing_if = "Option::is_none")] collision_count: Option<i32>,
});

object!(ControllerRevision, CONTROLLER_REVISIONS, { revision: i64, data: Value });

// --- batch --------------------------------------------------------------------------------------------------------------------------

object!(CronJob, CRON_JOBS, { spec: CronJobSpec, status: CronJobStatus });
part!(CronJobSpec, {
    schedule: String,
    time_zone: Option<String>,
    starting_deadline_seconds: Option<i64>,
    concurrency_policy: String,
    suspend: Option<bool>,
    job_template: Value,
    successful_jobs_history_limit: Option<i32>,
    failed_jobs_history_limit: Option<i32>,
});
written!(CronJobStatus, {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")] active: Vec<ObjectReference>,
    #[serde(skip_serializing_if = "Option::is_none")] last_schedule_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")] last_successful_time: Option<Time>,
});

// --- certificates, policy -----------------------------------------------------------------------------------------------------------

object!(CertificateSigningRequest, CERTIFICATE_SIGNING_REQUESTS, { spec: CsrSpec, status: CsrStatus });
part!(CsrSpec, {
    request: String,
    signer_name: String,
    expiration_seconds: Option<i32>,
    #[serde(deserialize_with = "null_default")] usages: Vec<String>,
    #[serde(deserialize_with = "null_default")] username: String,
    #[serde(deserialize_with = "null_default")] uid: String,
    #[serde(deserialize_with = "null_default")] groups: Vec<String>,
    #[serde(deserialize_with = "null_default")] extra: BTreeMap<String, Vec<String>>,
});
part!(CsrStatus, {
    #[serde(deserialize_with = "null_default")] conditions: Vec<Condition>,
    #[serde(deserialize_with = "null_default")] certificate: String,
});

object!(PodDisruptionBudget, POD_DISRUPTION_BUDGETS, { spec: BudgetSpec, status: BudgetStatus });
part!(BudgetSpec, { min_available: Option<IntOrString>, max_unavailable: Option<IntOrString>, selector: Option<LabelSelector> });
written!(BudgetStatus, {
    observed_generation: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")] disrupted_pods: BTreeMap<String, Time>,
    disruptions_allowed: i32,
    current_healthy: i32,
    desired_healthy: i32,
    expected_pods: i32,
    #[serde(deserialize_with = "null_default")] conditions: Vec<Condition>,
});

/// A pod template's labels, or none.
pub fn template_labels(template: &Value) -> LabelMap {
    template.get("metadata").and_then(|m| m.get("labels")).and_then(|l| serde_json::from_value(l.clone()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_follow_the_reference() {
        let taint = Taint { key: "k".into(), value: "v".into(), effect: "NoExecute".into(), time_added: None };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: key.into(),
            operator: operator.into(),
            value: value.into(),
            effect: effect.into(),
            toleration_seconds: None,
        };
        for (t, want) in [
            (toleration("k", "Equal", "v", "NoExecute"), true),
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Equal", "x", ""), false),
            (toleration("k", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "Equal", "v", ""), false),
            (toleration("k", "Exists", "", "NoSchedule"), false),
        ] {
            assert_eq!(t.tolerates(&taint), want, "{t:?}");
        }
    }

    #[test]
    fn objects_decode_with_nulls_and_without_fields() {
        let pod: Pod = serde_json::from_str(
            r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","ports":null}]},"status":{"conditions":null}}"#,
        )
        .unwrap();
        assert_eq!(pod.spec.containers[0].name, "c");
        let job: Job = serde_json::from_str(r#"{"metadata":{},"spec":{"template":{}},"status":{}}"#).unwrap();
        assert_eq!(job.status, JobStatus::default());
    }
}
