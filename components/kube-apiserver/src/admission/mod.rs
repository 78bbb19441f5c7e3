//! Admission: the plugins in upstream's order, those that change objects first, then those that only judge.

mod escalation;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod small;

use k8s_schema::Doc;

use crate::{handlers::Ctx, http::ApiError, registry::Resource};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// What a plugin is asked about. `object` is absent for a deletion, `old` for a creation.
pub struct Attributes<'a> {
    pub ctx: &'a Ctx,
    pub res: &'a Resource,
    pub subresource: &'a str,
    pub operation: Operation,
}

impl Attributes<'_> {
    fn is(&self, group: &str, plural: &str) -> bool {
        self.res.group == group && self.res.plural == plural && self.subresource.is_empty()
    }
}

type Mutate = fn(&Attributes<'_>, &mut Doc, Option<&Doc>) -> Result<(), ApiError>;
type Validate = fn(&Attributes<'_>, Option<&Doc>, Option<&Doc>) -> Result<(), ApiError>;

/// A plugin under upstream's name.
struct Plugin {
    name: &'static str,
    mutate: Option<Mutate>,
    validate: Option<Validate>,
}

/// All plugins, in the order in which they run.
static PLUGINS: &[Plugin] = &[
    Plugin { name: "NamespaceLifecycle", mutate: Some(namespace_lifecycle::admit), validate: Some(namespace_lifecycle::delete) },
    Plugin { name: "LimitRanger", mutate: Some(limit_ranger::admit), validate: Some(limit_ranger::validate) },
    Plugin { name: "ServiceAccount", mutate: Some(service_account::admit), validate: None },
    Plugin { name: "NodeRestriction", mutate: Some(node_restriction::admit), validate: Some(node_restriction::delete) },
    Plugin { name: "TaintNodesByCondition", mutate: Some(small::taint_nodes), validate: None },
    Plugin { name: "Priority", mutate: Some(priority::admit), validate: None },
    Plugin { name: "DefaultTolerationSeconds", mutate: Some(small::default_tolerations), validate: None },
    Plugin { name: "DefaultStorageClass", mutate: Some(small::default_storage_class), validate: None },
    Plugin { name: "StorageObjectInUseProtection", mutate: Some(small::in_use_protection), validate: None },
    Plugin { name: "RuntimeClass", mutate: Some(runtime_class::admit), validate: None },
    Plugin { name: "CertificateApproval", mutate: None, validate: Some(small::certificate_approval) },
    Plugin { name: "CertificateSubjectRestriction", mutate: None, validate: Some(small::certificate_subject) },
    Plugin { name: "RBACEscalation", mutate: None, validate: Some(escalation::check) },
];

/// The names a `--enable-admission-plugins` may have, beside those above; they are always on or have nothing to do here yet.
pub fn known(name: &str) -> bool {
    PLUGINS.iter().any(|p| p.name == name) || UPSTREAM.contains(&name)
}

const UPSTREAM: &[&str] = &[
    "PodSecurity",
    "PodGroupProtection",
    "PersistentVolumeClaimResize",
    "CertificateSigning",
    "ClusterTrustBundleAttest",
    "DefaultIngressClass",
    "PodTopologyLabels",
    "NodeDeclaredFeatureValidator",
    "PodResizeValidator",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
    "ResourceQuota",
    "PodTolerationRestriction",
    "AlwaysPullImages",
    "EventRateLimit",
    "ImagePolicyWebhook",
    "PodNodeSelector",
    "OwnerReferencesPermissionEnforcement",
    "NamespaceAutoProvision",
    "NamespaceExists",
    "ExtendedResourceToleration",
    "LimitPodHardAntiAffinityTopology",
    "DenyServiceExternalIPs",
    "AlwaysAdmit",
    "AlwaysDeny",
];

pub fn mutate(
    ctx: &Ctx,
    res: &Resource,
    subresource: &str,
    operation: Operation,
    doc: &mut Doc,
    old: Option<&Doc>,
) -> Result<(), ApiError> {
    let a = Attributes { ctx, res, subresource, operation };
    PLUGINS.iter().filter_map(|p| p.mutate).try_for_each(|m| m(&a, doc, old))
}

pub async fn validate(
    ctx: &Ctx,
    res: &Resource,
    subresource: &str,
    operation: Operation,
    doc: Option<&Doc>,
    old: Option<&Doc>,
) -> Result<(), ApiError> {
    let a = Attributes { ctx, res, subresource, operation };
    PLUGINS.iter().filter_map(|p| p.validate).try_for_each(|v| v(&a, doc, old))?;
    // Last, as it is the one that writes.
    resource_quota::validate(&a, doc, old).await
}
