//! What is special about each kind: defaults, what a client may not set, validation, names, deletion. One table names them all.

pub mod convert;
pub mod defaults;
pub mod meta;
pub mod reviews;

mod admission_policies;
mod api_service;
mod autoscaling;
mod batch;
pub mod certificates;
mod config;
mod cron;
mod csi;
mod device_selectors;
mod discovery;
pub mod dra;
mod endpoints;
mod event;
mod flow_control;
mod job_policy;
mod namespace;
mod networking;
mod node;
mod persistent_volume;
pub mod pod;
mod pod_metadata;
mod pod_resources;
mod pod_settings;
mod pod_spec;
mod pod_volumes;
mod policy;
mod rbac;
mod resource_slice;
mod resources;
mod scheduling;
mod selectors;
mod service;
mod service_account;
mod service_ranges;
mod service_rules;
mod storage;
mod warnings;
pub mod webhook_configs;
mod workload_status;
mod workloads;

use k8s_schema::Doc;

pub use selectors::{check_field_selector, selectable};

use crate::{
    registry::Resource,
    validation::{ErrorList, names},
};

/// Which part of an object an update is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Main,
    Status,
    Finalize,
    Approval,
    Resize,
    EphemeralContainers,
    Scale,
}

impl Action {
    pub fn of(subresource: &str) -> Self {
        match subresource {
            "status" => Self::Status,
            "finalize" => Self::Finalize,
            "approval" => Self::Approval,
            "resize" => Self::Resize,
            "ephemeralcontainers" => Self::EphemeralContainers,
            "scale" => Self::Scale,
            _ => Self::Main,
        }
    }
}

type Validate = fn(&Doc, &mut ErrorList);
type ValidateUpdate = fn(Action, &Doc, &Doc, &mut ErrorList);

/// How a kind behaves. Everything has a plain default, so an entry says only what is special.
pub struct Strategy {
    pub name: names::NameRule,
    /// The object has a status that only its subresource may write.
    pub status: bool,
    /// `metadata.generation` counts changes of the spec.
    pub generation: bool,
    /// `metadata.generation` is one and stays.
    pub first_generation: bool,
    /// It counts changes of the annotations too.
    pub annotations_count: bool,
    /// It counts changes of the labels too.
    pub labels_count: bool,
    /// The status is nobody's who creates or updates the object, though a create may set it.
    pub unmanaged_status: bool,
    /// Nothing but metadata comes to be managed by who creates or updates it.
    pub unmanaged_spec: bool,
    /// The labels stay as they are where the status is written, and are nobody's who writes it.
    pub unmanaged_labels: bool,
    pub prepare_create: fn(&mut Doc),
    /// After the generic part, which keeps the status (or, for the status subresource, everything else).
    pub prepare_update: fn(Action, &mut Doc, &Doc),
    pub validate_create: Validate,
    pub validate_update: ValidateUpdate,
    pub warnings: fn(&Doc, Option<&Doc>) -> Vec<String>,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    /// The grace in seconds of a deletion that asked for so much.
    pub graceful: Option<fn(&Doc, Option<i64>) -> i64>,
    /// A deletion that only marks the object while this holds.
    pub delete_instead: Option<fn(&Doc) -> bool>,
    pub returns_deleted: bool,
    pub orphans_by_default: bool,
    pub delete_warning: Option<&'static str>,
    /// A custom resource: its schema says more.
    pub custom: bool,
}

pub const PLAIN: Strategy = Strategy {
    name: names::subdomain_name,
    status: false,
    generation: false,
    first_generation: false,
    annotations_count: false,
    labels_count: false,
    unmanaged_status: false,
    unmanaged_spec: false,
    unmanaged_labels: false,
    prepare_create: |_| {},
    prepare_update: |_, _, _| {},
    validate_create: |_, _| {},
    validate_update: |_, _, _, _| {},
    warnings: |_, _| Vec::new(),
    create_on_update: false,
    unconditional_update: true,
    graceful: None,
    delete_instead: None,
    returns_deleted: false,
    orphans_by_default: false,
    delete_warning: None,
    custom: false,
};

/// A kind with a spec that counts generations and a status of its own.
pub const SPEC_AND_STATUS: Strategy = Strategy { status: true, generation: true, ..PLAIN };

/// Every kind that is not plain, by group and kind.
static STRATEGIES: &[(&str, &str, Strategy)] = &[
    ("", "ConfigMap", config::CONFIG_MAP),
    ("", "Secret", config::SECRET),
    ("", "Endpoints", discovery::ENDPOINTS),
    ("", "Event", event::CORE),
    ("", "LimitRange", resources::LIMIT_RANGE),
    ("", "Namespace", namespace::NAMESPACE),
    ("", "Node", node::NODE),
    ("", "PersistentVolume", persistent_volume::PERSISTENT_VOLUME),
    ("", "PersistentVolumeClaim", storage::PERSISTENT_VOLUME_CLAIM),
    ("", "Pod", pod::POD),
    ("", "PodTemplate", workloads::POD_TEMPLATE),
    ("", "ReplicationController", workloads::REPLICATION_CONTROLLER),
    ("", "ResourceQuota", resources::RESOURCE_QUOTA),
    ("", "Service", service::SERVICE),
    ("", "ServiceAccount", service_account::SERVICE_ACCOUNT),
    ("apps", "ControllerRevision", workloads::CONTROLLER_REVISION),
    ("apps", "DaemonSet", workloads::DAEMON_SET),
    ("apps", "Deployment", workloads::DEPLOYMENT),
    ("apps", "ReplicaSet", workloads::REPLICA_SET),
    ("apps", "StatefulSet", workloads::STATEFUL_SET),
    ("autoscaling", "HorizontalPodAutoscaler", autoscaling::HORIZONTAL_POD_AUTOSCALER),
    ("batch", "CronJob", cron::CRON_JOB),
    ("batch", "Job", batch::JOB),
    ("certificates.k8s.io", "CertificateSigningRequest", certificates::CERTIFICATE_SIGNING_REQUEST),
    ("coordination.k8s.io", "Lease", discovery::LEASE),
    ("discovery.k8s.io", "EndpointSlice", discovery::ENDPOINT_SLICE),
    ("events.k8s.io", "Event", event::EVENTS),
    ("networking.k8s.io", "Ingress", networking::INGRESS),
    ("networking.k8s.io", "IngressClass", networking::INGRESS_CLASS),
    ("networking.k8s.io", "NetworkPolicy", networking::NETWORK_POLICY),
    ("networking.k8s.io", "IPAddress", service_ranges::IP_ADDRESS),
    ("networking.k8s.io", "ServiceCIDR", service_ranges::SERVICE_CIDR),
    ("policy", "PodDisruptionBudget", policy::POD_DISRUPTION_BUDGET),
    ("rbac.authorization.k8s.io", "ClusterRole", rbac::CLUSTER_ROLE),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", rbac::CLUSTER_ROLE_BINDING),
    ("rbac.authorization.k8s.io", "Role", rbac::ROLE),
    ("rbac.authorization.k8s.io", "RoleBinding", rbac::ROLE_BINDING),
    ("scheduling.k8s.io", "PriorityClass", scheduling::PRIORITY_CLASS),
    ("node.k8s.io", "RuntimeClass", scheduling::RUNTIME_CLASS),
    ("storage.k8s.io", "StorageClass", storage::STORAGE_CLASS),
    ("storage.k8s.io", "CSIDriver", csi::CSI_DRIVER),
    ("storage.k8s.io", "CSINode", csi::CSI_NODE),
    ("storage.k8s.io", "VolumeAttachment", storage::VOLUME_ATTACHMENT),
    ("storage.k8s.io", "VolumeAttributesClass", storage::VOLUME_ATTRIBUTES_CLASS),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", webhook_configs::MUTATING),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", webhook_configs::VALIDATING),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", admission_policies::VALIDATING),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", admission_policies::VALIDATING_BINDING),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy", admission_policies::MUTATING),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", admission_policies::MUTATING_BINDING),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", flow_control::FLOW_SCHEMA),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", flow_control::PRIORITY_LEVEL),
    ("apiextensions.k8s.io", "CustomResourceDefinition", crate::custom::crd::CUSTOM_RESOURCE_DEFINITION),
    ("apiregistration.k8s.io", "APIService", api_service::API_SERVICE),
    ("resource.k8s.io", "DeviceClass", dra::DEVICE_CLASS),
    ("resource.k8s.io", "ResourceSlice", resource_slice::RESOURCE_SLICE),
    ("storage.k8s.io", "CSIStorageCapacity", csi::CSI_STORAGE_CAPACITY),
    ("resource.k8s.io", "ResourceClaim", dra::RESOURCE_CLAIM),
    ("resource.k8s.io", "ResourceClaimTemplate", dra::RESOURCE_CLAIM_TEMPLATE),
];

const GENERATION: Strategy = Strategy { generation: true, ..PLAIN };
const SPEC_AND_STATUS_NO_GENERATION: Strategy = Strategy { status: true, ..PLAIN };

static FALLBACK: Strategy = PLAIN;

static CUSTOM: Strategy = Strategy { custom: true, generation: true, unconditional_update: false, ..PLAIN };
static CUSTOM_WITH_STATUS: Strategy = Strategy { custom: true, unconditional_update: false, ..SPEC_AND_STATUS };

/// How the objects of a resource behave.
pub fn strategy_of(res: &Resource) -> &'static Strategy {
    match &res.custom {
        Some(c) if c.version().status => &CUSTOM_WITH_STATUS,
        Some(_) => &CUSTOM,
        None => strategy(&res.group, &res.kind),
    }
}

fn strategy(group: &str, kind: &str) -> &'static Strategy {
    STRATEGIES.iter().find(|(g, k, _)| *g == group && *k == kind).map_or(&FALLBACK, |(_, _, s)| s)
}

/// Whether the parts of an object beside its metadata, and beside its status if that is no part of it, are the same.
fn same_spec(a: &Doc, b: &Doc, status: bool) -> bool {
    let fields = |d: &Doc| d.root().fields().map(|(n, _)| n.to_owned()).collect::<Vec<_>>();
    let mut names = fields(a);
    names.extend(fields(b));
    names
        .iter()
        .filter(|n| !matches!(n.as_str(), "metadata" | "kind" | "apiVersion") && (status || *n != "status"))
        .all(|n| a.root().get(n).semantic_eq(b.root().get(n)))
}

impl Strategy {
    pub fn set_first_generation(&self, doc: &mut Doc) {
        if self.generation || self.first_generation {
            // A number in a field of every kind: this cannot fail.
            let _ = doc.set("metadata.generation", 1i64);
        }
    }

    /// Fields that a create cannot set, so that nobody comes to manage them.
    pub fn reset_on_create(&self) -> &'static [&'static str] {
        if self.unmanaged_spec {
            &["spec", "status"]
        } else if self.status || self.unmanaged_status {
            &["status"]
        } else {
            &[]
        }
    }

    pub fn reset_on_update(&self, subresource: &str) -> &'static [&'static str] {
        match (Action::of(subresource), self.status || self.unmanaged_status) {
            (Action::Main, _) if self.unmanaged_spec => &["spec", "status"],
            (Action::Main, true) => &["status"],
            (Action::Status, _) if self.custom => &["spec", "metadata"],
            (Action::Status, _) if self.unmanaged_labels => &["spec", "metadata.labels"],
            (Action::Status, _) => &["spec"],
            (Action::Finalize, _) => &["status"],
            _ => &[],
        }
    }

    pub fn prepare_update(&self, action: Action, new: &mut Doc, old: &Doc) {
        match action {
            Action::Status if self.custom => {
                let mut kept = old.clone();
                restore(&mut kept, new, "status");
                for f in ["metadata.managedFields", "metadata.resourceVersion"] {
                    restore(&mut kept, new, f);
                }
                *new = kept;
            }
            Action::Status => {
                // Everything but the status and parts of the metadata stays as it was.
                let mut kept = old.clone();
                let copied = kept.copy_from("status", new.at("status")).is_ok()
                    && ["managedFields", "resourceVersion", "annotations", "finalizers", "labels", "ownerReferences"].iter().all(|f| {
                        let path = format!("metadata.{f}");
                        if new.at(&path).exists() {
                            kept.copy_from(&path, new.at(&path)).is_ok()
                        } else {
                            kept.remove(&path);
                            true
                        }
                    });
                if copied {
                    *new = kept;
                }
            }
            Action::Main if self.status => restore(new, old, "status"),
            _ => {}
        }
        (self.prepare_update)(action, new, old);
        let differ = |path: &str| !new.at(path).semantic_eq(old.at(path));
        let noted = (self.annotations_count && differ("metadata.annotations")) || (self.labels_count && differ("metadata.labels"));
        if self.generation && action != Action::Status && (noted || !same_spec(new, old, self.custom && !self.status)) {
            // A number in a field of every kind: this cannot fail.
            let _ = new.set("metadata.generation", old.at("metadata.generation").int() + 1);
        }
    }

    pub fn validate_update(&self, action: Action, new: &Doc, old: &Doc, e: &mut ErrorList) {
        (self.validate_update)(action, new, old, e);
    }
}

/// Puts back what a client must not change here.
pub fn restore(new: &mut Doc, old: &Doc, path: &str) {
    if old.at(path).exists() {
        // Both documents are of one type: this cannot fail.
        let _ = new.copy_from(path, old.at(path));
    } else {
        new.remove(path);
    }
}

/// An immutable field.
pub fn immutable(new: &Doc, old: &Doc, path: &str, e: &mut ErrorList) {
    if !new.at(path).semantic_eq(old.at(path)) {
        e.push(crate::validation::FieldError::invalid(path, new.at(path).to_value(), "field is immutable"));
    }
}
