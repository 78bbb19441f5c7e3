//! Resource descriptors: which group, version, plural and kind, and whether it is namespaced.

use std::borrow::Cow;
use std::fmt;

/// Where objects of one kind live.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// Empty for the core group.
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub plural: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub namespaced: bool,
}

impl Resource {
    /// A descriptor known at compile time.
    pub const fn new(group: &'static str, version: &'static str, plural: &'static str, kind: &'static str, namespaced: bool) -> Self {
        Self {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            plural: Cow::Borrowed(plural),
            kind: Cow::Borrowed(kind),
            namespaced,
        }
    }

    /// `v1`, or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `/api/v1` or `/apis/group/version`.
    pub fn base_path(&self) -> String {
        if self.group.is_empty() { format!("/api/{}", self.version) } else { format!("/apis/{}/{}", self.group, self.version) }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.plural) } else { write!(f, "{}.{}", self.plural, self.group) }
    }
}

/// The built-in resources our components use.
pub mod resources {
    use super::Resource;

    macro_rules! resources {
        ($($name:ident = $group:literal, $version:literal, $plural:literal, $kind:literal, $namespaced:literal;)*) => {
            $(#[doc = concat!("`", $plural, "` of group `", $group, "`.")] pub const $name: Resource = Resource::new($group, $version, $plural, $kind, $namespaced);)*
        };
    }

    resources! {
        NAMESPACES = "", "v1", "namespaces", "Namespace", false;
        NODES = "", "v1", "nodes", "Node", false;
        PERSISTENT_VOLUMES = "", "v1", "persistentvolumes", "PersistentVolume", false;
        PODS = "", "v1", "pods", "Pod", true;
        SERVICES = "", "v1", "services", "Service", true;
        ENDPOINTS = "", "v1", "endpoints", "Endpoints", true;
        EVENTS = "", "v1", "events", "Event", true;
        CONFIG_MAPS = "", "v1", "configmaps", "ConfigMap", true;
        SECRETS = "", "v1", "secrets", "Secret", true;
        SERVICE_ACCOUNTS = "", "v1", "serviceaccounts", "ServiceAccount", true;
        REPLICATION_CONTROLLERS = "", "v1", "replicationcontrollers", "ReplicationController", true;
        PERSISTENT_VOLUME_CLAIMS = "", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true;
        RESOURCE_QUOTAS = "", "v1", "resourcequotas", "ResourceQuota", true;
        LIMIT_RANGES = "", "v1", "limitranges", "LimitRange", true;
        DEPLOYMENTS = "apps", "v1", "deployments", "Deployment", true;
        REPLICA_SETS = "apps", "v1", "replicasets", "ReplicaSet", true;
        DAEMON_SETS = "apps", "v1", "daemonsets", "DaemonSet", true;
        STATEFUL_SETS = "apps", "v1", "statefulsets", "StatefulSet", true;
        CONTROLLER_REVISIONS = "apps", "v1", "controllerrevisions", "ControllerRevision", true;
        JOBS = "batch", "v1", "jobs", "Job", true;
        CRON_JOBS = "batch", "v1", "cronjobs", "CronJob", true;
        HORIZONTAL_POD_AUTOSCALERS = "autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", true;
        ENDPOINT_SLICES = "discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true;
        LEASES = "coordination.k8s.io", "v1", "leases", "Lease", true;
        CERTIFICATE_SIGNING_REQUESTS = "certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest", false;
        POD_DISRUPTION_BUDGETS = "policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", true;
        PRIORITY_CLASSES = "scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", false;
        RUNTIME_CLASSES = "node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", false;
        STORAGE_CLASSES = "storage.k8s.io", "v1", "storageclasses", "StorageClass", false;
        CSI_NODES = "storage.k8s.io", "v1", "csinodes", "CSINode", false;
        CSI_DRIVERS = "storage.k8s.io", "v1", "csidrivers", "CSIDriver", false;
        VOLUME_ATTRIBUTES_CLASSES = "storage.k8s.io", "v1", "volumeattributesclasses", "VolumeAttributesClass", false;
        VOLUME_ATTACHMENTS = "storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment", false;
        CLUSTER_ROLES = "rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", false;
        VALIDATING_ADMISSION_POLICIES = "admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", false;
        RESOURCE_CLAIMS = "resource.k8s.io", "v1", "resourceclaims", "ResourceClaim", true;
        RESOURCE_SLICES = "resource.k8s.io", "v1", "resourceslices", "ResourceSlice", false;
        RESOURCE_CLAIM_TEMPLATES = "resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate", true;
        SERVICE_CIDRS = "networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR", false;
        IP_ADDRESSES = "networking.k8s.io", "v1", "ipaddresses", "IPAddress", false;
        TOKEN_REVIEWS = "authentication.k8s.io", "v1", "tokenreviews", "TokenReview", false;
        SUBJECT_ACCESS_REVIEWS = "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", false;
        SELF_SUBJECT_ACCESS_REVIEWS = "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", false;
    }
}
