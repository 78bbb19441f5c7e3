//! The built-in resources, as one visible table: what is served, under which names, with which verbs, and where it is stored.
//!
//! Storage prefixes and storage versions are upstream's, so that either API server can be pointed at the other's etcd.

use super::{Row, RowSub};

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const GPU: &[&str] = &["get", "patch", "update"];

const fn sub(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> RowSub {
    RowSub { name, group: "", version: "", kind, verbs }
}

const fn sub_of(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> RowSub {
    RowSub { name, group, version, kind, verbs }
}

/// Groups in discovery order with their versions, the preferred one first.
pub(super) const GROUPS: &[(&str, &[&str])] = &[
    ("apiregistration.k8s.io", &["v1"]),
    ("apps", &["v1"]),
    ("events.k8s.io", &["v1"]),
    ("authentication.k8s.io", &["v1"]),
    ("authorization.k8s.io", &["v1"]),
    ("autoscaling", &["v2", "v1"]),
    ("batch", &["v1"]),
    ("certificates.k8s.io", &["v1"]),
    ("networking.k8s.io", &["v1"]),
    ("policy", &["v1"]),
    ("rbac.authorization.k8s.io", &["v1"]),
    ("storage.k8s.io", &["v1"]),
    ("admissionregistration.k8s.io", &["v1"]),
    ("apiextensions.k8s.io", &["v1"]),
    ("scheduling.k8s.io", &["v1"]),
    ("coordination.k8s.io", &["v1"]),
    ("node.k8s.io", &["v1"]),
    ("discovery.k8s.io", &["v1"]),
    ("resource.k8s.io", &["v1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1"]),
];

/// Every built-in resource, sorted by name within its group version. One resource a line: it is a table.
#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row { gv: ("", "v1"), kind: "Binding", names: ("bindings", "binding"), short: &[], categories: &[], namespaced: true, verbs: &["create"], prefix: "", storage: ("", "v1"), subs: &[] },
    Row { gv: ("", "v1"), kind: "ComponentStatus", names: ("componentstatuses", "componentstatus"), short: &["cs"], categories: &[], namespaced: false, verbs: &["get", "list"], prefix: "", storage: ("", "v1"), subs: &[] },
    Row { gv: ("", "v1"), kind: "ConfigMap", names: ("configmaps", "configmap"), short: &["cm"], categories: &[], namespaced: true, verbs: ALL, prefix: "configmaps", storage: ("", "v1"), subs: &[] },
    Row { gv: ("", "v1"), kind: "Endpoints", names: ("endpoints", "endpoints"), short: &["ep"], categories: &[], namespaced: true, verbs: ALL, prefix: "services/endpoints", storage: ("", "v1"), subs: &[] },
    Row { gv: ("", "v1"), kind: "Event", names: ("events", "event"), short: &["ev"], categories: &[], namespaced: true, verbs: ALL, prefix: "events", storage: ("", "v1"), subs: &[] },
    Row { gv: ("", "v1"), kind: "LimitRange", names: ("limitranges", "limitrange"), short: &["limits"], categories: &[], namespaced: true, verbs: ALL, prefix: "limitranges", storage: ("", "v1"), subs: &[] },
    Row { gv: ("", "v1"), kind: "Namespace", names: ("namespaces", "namespace"), short: &["ns"], categories: &[], namespaced: false, verbs: &["create", "delete", "get", "list", "patch", "update", "watch"], prefix: "namespaces", storage: ("", "v1"), subs: &[sub("finalize", "Namespace", &["update"]), sub("status", "Namespace", GPU)] },
    Row { gv: ("", "v1"), kind: "Node", names: ("nodes", "node"), short: &["no"], categories: &[], namespaced: false, verbs: ALL, prefix: "minions", storage: ("", "v1"), subs: &[sub("proxy", "NodeProxyOptions", &["create", "delete", "get", "patch", "update"]), sub("status", "Node", GPU)] },
    Row { gv: ("", "v1"), kind: "PersistentVolumeClaim", names: ("persistentvolumeclaims", "persistentvolumeclaim"), short: &["pvc"], categories: &[], namespaced: true, verbs: ALL, prefix: "persistentvolumeclaims", storage: ("", "v1"), subs: &[sub("status", "PersistentVolumeClaim", GPU)] },
    Row { gv: ("", "v1"), kind: "PersistentVolume", names: ("persistentvolumes", "persistentvolume"), short: &["pv"], categories: &[], namespaced: false, verbs: ALL, prefix: "persistentvolumes", storage: ("", "v1"), subs: &[sub("status", "PersistentVolume", GPU)] },
    Row { gv: ("", "v1"), kind: "Pod", names: ("pods", "pod"), short: &["po"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "pods", storage: ("", "v1"), subs: &[sub("attach", "PodAttachOptions", &["create", "get"]), sub("binding", "Binding", &["create"]), sub("ephemeralcontainers", "Pod", GPU), sub_of("eviction", "policy", "v1", "Eviction", &["create"]), sub("exec", "PodExecOptions", &["create", "get"]), sub("log", "Pod", &["get"]), sub("portforward", "PodPortForwardOptions", &["create", "get"]), sub("proxy", "PodProxyOptions", &["create", "delete", "get", "patch", "update"]), sub("resize", "Pod", GPU), sub("status", "Pod", GPU)] },
    Row { gv: ("", "v1"), kind: "PodTemplate", names: ("podtemplates", "podtemplate"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "podtemplates", storage: ("", "v1"), subs: &[] },
    Row { gv: ("", "v1"), kind: "ReplicationController", names: ("replicationcontrollers", "replicationcontroller"), short: &["rc"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "controllers", storage: ("", "v1"), subs: &[sub_of("scale", "autoscaling", "v1", "Scale", GPU), sub("status", "ReplicationController", GPU)] },
    Row { gv: ("", "v1"), kind: "ResourceQuota", names: ("resourcequotas", "resourcequota"), short: &["quota"], categories: &[], namespaced: true, verbs: ALL, prefix: "resourcequotas", storage: ("", "v1"), subs: &[sub("status", "ResourceQuota", GPU)] },
    Row { gv: ("", "v1"), kind: "Secret", names: ("secrets", "secret"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "secrets", storage: ("", "v1"), subs: &[] },
    Row { gv: ("", "v1"), kind: "ServiceAccount", names: ("serviceaccounts", "serviceaccount"), short: &["sa"], categories: &[], namespaced: true, verbs: ALL, prefix: "serviceaccounts", storage: ("", "v1"), subs: &[sub_of("token", "authentication.k8s.io", "v1", "TokenRequest", &["create"])] },
    Row { gv: ("", "v1"), kind: "Service", names: ("services", "service"), short: &["svc"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "services/specs", storage: ("", "v1"), subs: &[sub("proxy", "ServiceProxyOptions", &["create", "delete", "get", "patch", "update"]), sub("status", "Service", GPU)] },
    Row { gv: ("apiregistration.k8s.io", "v1"), kind: "APIService", names: ("apiservices", "apiservice"), short: &[], categories: &["api-extensions"], namespaced: false, verbs: ALL, prefix: "apiregistration.k8s.io/apiservices", storage: ("apiregistration.k8s.io", "v1"), subs: &[sub("status", "APIService", GPU)] },
    Row { gv: ("apps", "v1"), kind: "ControllerRevision", names: ("controllerrevisions", "controllerrevision"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "controllerrevisions", storage: ("apps", "v1"), subs: &[] },
    Row { gv: ("apps", "v1"), kind: "DaemonSet", names: ("daemonsets", "daemonset"), short: &["ds"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "daemonsets", storage: ("apps", "v1"), subs: &[sub("status", "DaemonSet", GPU)] },
    Row { gv: ("apps", "v1"), kind: "Deployment", names: ("deployments", "deployment"), short: &["deploy"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "deployments", storage: ("apps", "v1"), subs: &[sub_of("scale", "autoscaling", "v1", "Scale", GPU), sub("status", "Deployment", GPU)] },
    Row { gv: ("apps", "v1"), kind: "ReplicaSet", names: ("replicasets", "replicaset"), short: &["rs"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "replicasets", storage: ("apps", "v1"), subs: &[sub_of("scale", "autoscaling", "v1", "Scale", GPU), sub("status", "ReplicaSet", GPU)] },
    Row { gv: ("apps", "v1"), kind: "StatefulSet", names: ("statefulsets", "statefulset"), short: &["sts"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "statefulsets", storage: ("apps", "v1"), subs: &[sub_of("scale", "autoscaling", "v1", "Scale", GPU), sub("status", "StatefulSet", GPU)] },
    Row { gv: ("events.k8s.io", "v1"), kind: "Event", names: ("events", "event"), short: &["ev"], categories: &[], namespaced: true, verbs: ALL, prefix: "events", storage: ("", "v1"), subs: &[] },
    Row { gv: ("authentication.k8s.io", "v1"), kind: "SelfSubjectReview", names: ("selfsubjectreviews", "selfsubjectreview"), short: &[], categories: &[], namespaced: false, verbs: &["create"], prefix: "", storage: ("authentication.k8s.io", "v1"), subs: &[] },
    Row { gv: ("authentication.k8s.io", "v1"), kind: "TokenReview", names: ("tokenreviews", "tokenreview"), short: &[], categories: &[], namespaced: false, verbs: &["create"], prefix: "", storage: ("authentication.k8s.io", "v1"), subs: &[] },
    Row { gv: ("authorization.k8s.io", "v1"), kind: "LocalSubjectAccessReview", names: ("localsubjectaccessreviews", "localsubjectaccessreview"), short: &[], categories: &[], namespaced: true, verbs: &["create"], prefix: "", storage: ("authorization.k8s.io", "v1"), subs: &[] },
    Row { gv: ("authorization.k8s.io", "v1"), kind: "SelfSubjectAccessReview", names: ("selfsubjectaccessreviews", "selfsubjectaccessreview"), short: &[], categories: &[], namespaced: false, verbs: &["create"], prefix: "", storage: ("authorization.k8s.io", "v1"), subs: &[] },
    Row { gv: ("authorization.k8s.io", "v1"), kind: "SelfSubjectRulesReview", names: ("selfsubjectrulesreviews", "selfsubjectrulesreview"), short: &[], categories: &[], namespaced: false, verbs: &["create"], prefix: "", storage: ("authorization.k8s.io", "v1"), subs: &[] },
    Row { gv: ("authorization.k8s.io", "v1"), kind: "SubjectAccessReview", names: ("subjectaccessreviews", "subjectaccessreview"), short: &[], categories: &[], namespaced: false, verbs: &["create"], prefix: "", storage: ("authorization.k8s.io", "v1"), subs: &[] },
    Row { gv: ("autoscaling", "v2"), kind: "HorizontalPodAutoscaler", names: ("horizontalpodautoscalers", "horizontalpodautoscaler"), short: &["hpa"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "horizontalpodautoscalers", storage: ("autoscaling", "v2"), subs: &[sub("status", "HorizontalPodAutoscaler", GPU)] },
    Row { gv: ("autoscaling", "v1"), kind: "HorizontalPodAutoscaler", names: ("horizontalpodautoscalers", "horizontalpodautoscaler"), short: &["hpa"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "horizontalpodautoscalers", storage: ("autoscaling", "v2"), subs: &[sub("status", "HorizontalPodAutoscaler", GPU)] },
    Row { gv: ("batch", "v1"), kind: "CronJob", names: ("cronjobs", "cronjob"), short: &["cj"], categories: &["all"], namespaced: true, verbs: ALL, prefix: "cronjobs", storage: ("batch", "v1"), subs: &[sub("status", "CronJob", GPU)] },
    Row { gv: ("batch", "v1"), kind: "Job", names: ("jobs", "job"), short: &[], categories: &["all"], namespaced: true, verbs: ALL, prefix: "jobs", storage: ("batch", "v1"), subs: &[sub("status", "Job", GPU)] },
    Row { gv: ("certificates.k8s.io", "v1"), kind: "CertificateSigningRequest", names: ("certificatesigningrequests", "certificatesigningrequest"), short: &["csr"], categories: &[], namespaced: false, verbs: ALL, prefix: "certificatesigningrequests", storage: ("certificates.k8s.io", "v1"), subs: &[sub("approval", "CertificateSigningRequest", GPU), sub("status", "CertificateSigningRequest", GPU)] },
    Row { gv: ("networking.k8s.io", "v1"), kind: "IngressClass", names: ("ingressclasses", "ingressclass"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "ingressclasses", storage: ("networking.k8s.io", "v1"), subs: &[] },
    Row { gv: ("networking.k8s.io", "v1"), kind: "Ingress", names: ("ingresses", "ingress"), short: &["ing"], categories: &[], namespaced: true, verbs: ALL, prefix: "ingress", storage: ("networking.k8s.io", "v1"), subs: &[sub("status", "Ingress", GPU)] },
    Row { gv: ("networking.k8s.io", "v1"), kind: "IPAddress", names: ("ipaddresses", "ipaddress"), short: &["ip"], categories: &[], namespaced: false, verbs: ALL, prefix: "ipaddresses", storage: ("networking.k8s.io", "v1"), subs: &[] },
    Row { gv: ("networking.k8s.io", "v1"), kind: "NetworkPolicy", names: ("networkpolicies", "networkpolicy"), short: &["netpol"], categories: &[], namespaced: true, verbs: ALL, prefix: "networkpolicies", storage: ("networking.k8s.io", "v1"), subs: &[] },
    Row { gv: ("networking.k8s.io", "v1"), kind: "ServiceCIDR", names: ("servicecidrs", "servicecidr"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "servicecidrs", storage: ("networking.k8s.io", "v1"), subs: &[sub("status", "ServiceCIDR", GPU)] },
    Row { gv: ("policy", "v1"), kind: "PodDisruptionBudget", names: ("poddisruptionbudgets", "poddisruptionbudget"), short: &["pdb"], categories: &[], namespaced: true, verbs: ALL, prefix: "poddisruptionbudgets", storage: ("policy", "v1"), subs: &[sub("status", "PodDisruptionBudget", GPU)] },
    Row { gv: ("rbac.authorization.k8s.io", "v1"), kind: "ClusterRoleBinding", names: ("clusterrolebindings", "clusterrolebinding"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "clusterrolebindings", storage: ("rbac.authorization.k8s.io", "v1"), subs: &[] },
    Row { gv: ("rbac.authorization.k8s.io", "v1"), kind: "ClusterRole", names: ("clusterroles", "clusterrole"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "clusterroles", storage: ("rbac.authorization.k8s.io", "v1"), subs: &[] },
    Row { gv: ("rbac.authorization.k8s.io", "v1"), kind: "RoleBinding", names: ("rolebindings", "rolebinding"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "rolebindings", storage: ("rbac.authorization.k8s.io", "v1"), subs: &[] },
    Row { gv: ("rbac.authorization.k8s.io", "v1"), kind: "Role", names: ("roles", "role"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "roles", storage: ("rbac.authorization.k8s.io", "v1"), subs: &[] },
    Row { gv: ("storage.k8s.io", "v1"), kind: "CSIDriver", names: ("csidrivers", "csidriver"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "csidrivers", storage: ("storage.k8s.io", "v1"), subs: &[] },
    Row { gv: ("storage.k8s.io", "v1"), kind: "CSINode", names: ("csinodes", "csinode"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "csinodes", storage: ("storage.k8s.io", "v1"), subs: &[] },
    Row { gv: ("storage.k8s.io", "v1"), kind: "CSIStorageCapacity", names: ("csistoragecapacities", "csistoragecapacity"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "csistoragecapacities", storage: ("storage.k8s.io", "v1"), subs: &[] },
    Row { gv: ("storage.k8s.io", "v1"), kind: "StorageClass", names: ("storageclasses", "storageclass"), short: &["sc"], categories: &[], namespaced: false, verbs: ALL, prefix: "storageclasses", storage: ("storage.k8s.io", "v1"), subs: &[] },
    Row { gv: ("storage.k8s.io", "v1"), kind: "VolumeAttachment", names: ("volumeattachments", "volumeattachment"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "volumeattachments", storage: ("storage.k8s.io", "v1"), subs: &[sub("status", "VolumeAttachment", GPU)] },
    Row { gv: ("storage.k8s.io", "v1"), kind: "VolumeAttributesClass", names: ("volumeattributesclasses", "volumeattributesclass"), short: &["vac"], categories: &[], namespaced: false, verbs: ALL, prefix: "volumeattributesclasses", storage: ("storage.k8s.io", "v1"), subs: &[] },
    Row { gv: ("admissionregistration.k8s.io", "v1"), kind: "MutatingAdmissionPolicy", names: ("mutatingadmissionpolicies", "mutatingadmissionpolicy"), short: &[], categories: &["api-extensions"], namespaced: false, verbs: ALL, prefix: "mutatingadmissionpolicies", storage: ("admissionregistration.k8s.io", "v1beta1"), subs: &[] },
    Row { gv: ("admissionregistration.k8s.io", "v1"), kind: "MutatingAdmissionPolicyBinding", names: ("mutatingadmissionpolicybindings", "mutatingadmissionpolicybinding"), short: &[], categories: &["api-extensions"], namespaced: false, verbs: ALL, prefix: "mutatingadmissionpolicybindings", storage: ("admissionregistration.k8s.io", "v1beta1"), subs: &[] },
    Row { gv: ("admissionregistration.k8s.io", "v1"), kind: "MutatingWebhookConfiguration", names: ("mutatingwebhookconfigurations", "mutatingwebhookconfiguration"), short: &[], categories: &["api-extensions"], namespaced: false, verbs: ALL, prefix: "mutatingwebhookconfigurations", storage: ("admissionregistration.k8s.io", "v1"), subs: &[] },
    Row { gv: ("admissionregistration.k8s.io", "v1"), kind: "ValidatingAdmissionPolicy", names: ("validatingadmissionpolicies", "validatingadmissionpolicy"), short: &[], categories: &["api-extensions"], namespaced: false, verbs: ALL, prefix: "validatingadmissionpolicies", storage: ("admissionregistration.k8s.io", "v1"), subs: &[sub("status", "ValidatingAdmissionPolicy", GPU)] },
    Row { gv: ("admissionregistration.k8s.io", "v1"), kind: "ValidatingAdmissionPolicyBinding", names: ("validatingadmissionpolicybindings", "validatingadmissionpolicybinding"), short: &[], categories: &["api-extensions"], namespaced: false, verbs: ALL, prefix: "validatingadmissionpolicybindings", storage: ("admissionregistration.k8s.io", "v1"), subs: &[] },
    Row { gv: ("admissionregistration.k8s.io", "v1"), kind: "ValidatingWebhookConfiguration", names: ("validatingwebhookconfigurations", "validatingwebhookconfiguration"), short: &[], categories: &["api-extensions"], namespaced: false, verbs: ALL, prefix: "validatingwebhookconfigurations", storage: ("admissionregistration.k8s.io", "v1"), subs: &[] },
    Row { gv: ("apiextensions.k8s.io", "v1"), kind: "CustomResourceDefinition", names: ("customresourcedefinitions", "customresourcedefinition"), short: &["crd", "crds"], categories: &["api-extensions"], namespaced: false, verbs: ALL, prefix: "apiextensions.k8s.io/customresourcedefinitions", storage: ("apiextensions.k8s.io", "v1"), subs: &[sub("status", "CustomResourceDefinition", GPU)] },
    Row { gv: ("scheduling.k8s.io", "v1"), kind: "PriorityClass", names: ("priorityclasses", "priorityclass"), short: &["pc"], categories: &[], namespaced: false, verbs: ALL, prefix: "priorityclasses", storage: ("scheduling.k8s.io", "v1"), subs: &[] },
    Row { gv: ("coordination.k8s.io", "v1"), kind: "Lease", names: ("leases", "lease"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "leases", storage: ("coordination.k8s.io", "v1"), subs: &[] },
    Row { gv: ("node.k8s.io", "v1"), kind: "RuntimeClass", names: ("runtimeclasses", "runtimeclass"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "runtimeclasses", storage: ("node.k8s.io", "v1"), subs: &[] },
    Row { gv: ("discovery.k8s.io", "v1"), kind: "EndpointSlice", names: ("endpointslices", "endpointslice"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "endpointslices", storage: ("discovery.k8s.io", "v1"), subs: &[] },
    Row { gv: ("resource.k8s.io", "v1"), kind: "DeviceClass", names: ("deviceclasses", "deviceclass"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "deviceclasses", storage: ("resource.k8s.io", "v1"), subs: &[] },
    Row { gv: ("resource.k8s.io", "v1"), kind: "ResourceClaim", names: ("resourceclaims", "resourceclaim"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "resourceclaims", storage: ("resource.k8s.io", "v1"), subs: &[sub("status", "ResourceClaim", GPU)] },
    Row { gv: ("resource.k8s.io", "v1"), kind: "ResourceClaimTemplate", names: ("resourceclaimtemplates", "resourceclaimtemplate"), short: &[], categories: &[], namespaced: true, verbs: ALL, prefix: "resourceclaimtemplates", storage: ("resource.k8s.io", "v1"), subs: &[] },
    Row { gv: ("resource.k8s.io", "v1"), kind: "ResourceSlice", names: ("resourceslices", "resourceslice"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "resourceslices", storage: ("resource.k8s.io", "v1"), subs: &[] },
    Row { gv: ("flowcontrol.apiserver.k8s.io", "v1"), kind: "FlowSchema", names: ("flowschemas", "flowschema"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "flowschemas", storage: ("flowcontrol.apiserver.k8s.io", "v1"), subs: &[sub("status", "FlowSchema", GPU)] },
    Row { gv: ("flowcontrol.apiserver.k8s.io", "v1"), kind: "PriorityLevelConfiguration", names: ("prioritylevelconfigurations", "prioritylevelconfiguration"), short: &[], categories: &[], namespaced: false, verbs: ALL, prefix: "prioritylevelconfigurations", storage: ("flowcontrol.apiserver.k8s.io", "v1"), subs: &[sub("status", "PriorityLevelConfiguration", GPU)] },
];
