//! Admission: the plugins in upstream's order, those that change objects first, then those that only judge.

mod arrivals;
mod auto_provision;
mod configuration;
mod escalation;
mod event_rate_limit;
mod image_policy;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod optional;
pub mod pod_security;
mod pod_tolerations;
pub mod policy;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod small;
pub mod webhooks;

use std::time::{Duration, Instant};

pub use configuration::Configuration;
use futures_util::future::BoxFuture;
use k8s_schema::Doc;

use crate::{
    handlers::{Ctx, DeleteOptions},
    http::ApiError,
    registry::Resource,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As rules and reviews name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// What a plugin is asked about. `object` is absent for a deletion, `old` for a creation.
pub struct Attributes<'a> {
    pub ctx: &'a Ctx,
    pub res: &'a Resource,
    pub subresource: &'a str,
    pub operation: Operation,
    pub dry_run: bool,
    /// Of a deletion.
    pub delete: Option<&'a DeleteOptions>,
}

impl Attributes<'_> {
    fn is(&self, group: &str, plural: &str) -> bool {
        self.res.group == group && self.res.plural == plural && self.subresource.is_empty()
    }

    /// The object's name as a refusal gives it: of the path, else its own, else what it is to begin with.
    fn shown_name<'b>(&'b self, object: &'b Doc) -> &'b str {
        let m = object.meta();
        [self.ctx.info.name.as_str(), m.name(), object.at("metadata.generateName").str()]
            .into_iter()
            .find(|n| !n.is_empty())
            .unwrap_or("Unknown")
    }
}

type Mutate = fn(&Attributes<'_>, &mut Doc, Option<&Doc>) -> Result<(), ApiError>;

/// How a plugin judges.
#[derive(Debug, Clone, Copy)]
enum Validate {
    /// By what it is given.
    Looking(fn(&Attributes<'_>, Option<&Doc>, Option<&Doc>) -> Result<(), ApiError>),
    /// Asking who may do what, which may be a webhook's to say.
    Asking(for<'a> fn(&'a Attributes<'a>, Option<&'a Doc>, Option<&'a Doc>) -> BoxFuture<'a, Result<(), ApiError>>),
}

/// A plugin under upstream's name.
struct Plugin {
    name: &'static str,
    mutate: Option<Mutate>,
    validate: Option<Validate>,
}

/// No plugin of upstream's, where storage does it: it cannot be turned off.
const ESCALATION: &str = "RBACEscalation";

use Validate::{Asking, Looking};

/// Plugins that take a configuration and are off by default.
const IMAGE_POLICY: &str = "ImagePolicyWebhook";
const TOLERATIONS: &str = "PodTolerationRestriction";
const EVENT_RATE_LIMIT: &str = "EventRateLimit";

/// All plugins, in the order in which they run.
static PLUGINS: &[Plugin] = &[
    Plugin { name: "NamespaceLifecycle", mutate: Some(namespace_lifecycle::admit), validate: Some(Looking(namespace_lifecycle::delete)) },
    Plugin { name: "LimitRanger", mutate: Some(limit_ranger::admit), validate: Some(Looking(limit_ranger::validate)) },
    Plugin { name: "ServiceAccount", mutate: Some(service_account::admit), validate: None },
    Plugin { name: "NodeRestriction", mutate: Some(node_restriction::admit), validate: Some(Looking(node_restriction::delete)) },
    Plugin { name: "TaintNodesByCondition", mutate: Some(small::taint_nodes), validate: None },
    Plugin { name: IMAGE_POLICY, mutate: None, validate: Some(Asking(|a, new, old| Box::pin(image_policy::validate(a, new, old)))) },
    Plugin { name: "PodSecurity", mutate: None, validate: Some(Looking(pod_security::validate)) },
    Plugin { name: "Priority", mutate: Some(priority::admit), validate: Some(Looking(priority::delete)) },
    Plugin { name: "DefaultTolerationSeconds", mutate: Some(small::default_tolerations), validate: None },
    Plugin { name: TOLERATIONS, mutate: Some(pod_tolerations::admit), validate: Some(Looking(pod_tolerations::validate)) },
    Plugin { name: EVENT_RATE_LIMIT, mutate: None, validate: Some(Looking(event_rate_limit::validate)) },
    Plugin { name: "DefaultStorageClass", mutate: Some(small::default_storage_class), validate: None },
    Plugin { name: "StorageObjectInUseProtection", mutate: Some(small::in_use_protection), validate: None },
    Plugin { name: "PersistentVolumeClaimResize", mutate: None, validate: Some(Looking(small::claim_resize)) },
    Plugin { name: "RuntimeClass", mutate: Some(runtime_class::admit), validate: None },
    Plugin {
        name: "CertificateApproval",
        mutate: None,
        validate: Some(Asking(|a, new, old| Box::pin(small::certificate_approval(a, new, old)))),
    },
    Plugin { name: "CertificateSubjectRestriction", mutate: None, validate: Some(Looking(small::certificate_subject)) },
    Plugin { name: "DefaultIngressClass", mutate: Some(small::default_ingress_class), validate: None },
    Plugin { name: "AlwaysPullImages", mutate: Some(optional::always_pull_images), validate: None },
    Plugin { name: "DenyServiceExternalIPs", mutate: None, validate: Some(Looking(optional::deny_external_ips)) },
    Plugin { name: "ExtendedResourceToleration", mutate: Some(optional::extended_resource_toleration), validate: None },
    Plugin { name: "LimitPodHardAntiAffinityTopology", mutate: None, validate: Some(Looking(optional::limit_anti_affinity)) },
    Plugin { name: "NamespaceExists", mutate: None, validate: Some(Looking(optional::namespace_exists)) },
    Plugin {
        name: "OwnerReferencesPermissionEnforcement",
        mutate: None,
        validate: Some(Asking(|a, new, old| Box::pin(optional::owner_references(a, new, old)))),
    },
    Plugin { name: "PodNodeSelector", mutate: Some(optional::pod_node_selector), validate: None },
    Plugin { name: "AlwaysDeny", mutate: None, validate: Some(Looking(optional::always_deny)) },
    Plugin { name: ESCALATION, mutate: None, validate: Some(Asking(|a, new, old| Box::pin(escalation::check(a, new, old)))) },
];

/// Plugins that are off unless they are named.
const OFF_BY_DEFAULT: &[&str] = &[
    "AlwaysPullImages",
    "DenyServiceExternalIPs",
    "ExtendedResourceToleration",
    "LimitPodHardAntiAffinityTopology",
    "NamespaceExists",
    "OwnerReferencesPermissionEnforcement",
    "PodNodeSelector",
    "AlwaysDeny",
    auto_provision::NAME,
    IMAGE_POLICY,
    TOLERATIONS,
    EVENT_RATE_LIMIT,
];

/// The names that flags and configurations may have.
pub fn known(name: &str) -> bool {
    PLUGINS.iter().any(|p| p.name == name && name != ESCALATION) || UPSTREAM.contains(&name)
}

/// Plugins of upstream that the flag may name.
const UPSTREAM: &[&str] = &[
    "PodGroupProtection",
    "PodGroupWorkloadExists",
    "JobValidation",
    "CertificateSigning",
    "ClusterTrustBundleAttest",
    "PodTopologyLabels",
    "NodeDeclaredFeatureValidator",
    "PodResizeValidator",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
    "ResourceQuota",
    "AlwaysAdmit",
    auto_provision::NAME,
];

/// The plugins that change objects, then the webhooks that do. When a webhook changed something, everybody looks once more.
pub async fn mutate(a: &Attributes<'_>, doc: &mut Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    let started = Instant::now();
    let result = mutating(a, doc, old).await;
    step(a, "admit", started, result.is_err());
    result
}

/// Notes how long one half of admission took.
fn step(a: &Attributes<'_>, half: &str, started: Instant, rejected: bool) {
    let rejected = if rejected { "true" } else { "false" };
    a.ctx.server.metrics.admission.steps.observe(&[a.operation.name(), rejected, half], started.elapsed());
}

async fn mutating(a: &Attributes<'_>, doc: &mut Doc, old: Option<&Doc>) -> Result<(), ApiError> {
    let mut rounds = webhooks::Rounds::default();
    if a.ctx.server.admission.is_on(auto_provision::NAME) {
        auto_provision::provide(a).await?;
    }
    arrivals::wait(a, doc).await?;
    loop {
        let admission = &a.ctx.server.admission;
        let mut times = Times::new(admission.mutating.len());
        let asked = admission.mutating.iter().try_for_each(|(name, m)| times.of(name, m(a, doc, old)));
        times.note(a, "admit", asked.is_err());
        asked?;
        let first = !rounds.is_second();
        if admission.is_on("MutatingAdmissionPolicy") {
            policy::mutate(a, doc, old, !first).await?;
        }
        if admission.is_on("MutatingAdmissionWebhook") {
            webhooks::mutate(a, Some(&mut *doc), old, &mut rounds).await?;
        }
        if !first || !rounds.next() {
            return Ok(());
        }
    }
}

/// How long plugins take that are asked one after the other: one look at the clock for each.
struct Times {
    last: Instant,
    all: Vec<(&'static str, Duration)>,
}

impl Times {
    fn new(plugins: usize) -> Self {
        Self { last: Instant::now(), all: Vec::with_capacity(plugins) }
    }

    fn of<T>(&mut self, plugin: &'static str, result: T) -> T {
        let now = Instant::now();
        self.all.push((plugin, now - self.last));
        self.last = now;
        result
    }

    fn note(&self, a: &Attributes<'_>, half: &'static str, refused: bool) {
        a.ctx.server.metrics.admission.plugins.observe(a.operation.name(), half, &self.all, refused);
    }
}

pub async fn validate(a: &Attributes<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let started = Instant::now();
    let result = validating(a, doc, old).await;
    step(a, "validate", started, result.is_err());
    result
}

async fn validating(a: &Attributes<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let admission = &a.ctx.server.admission;
    let mut times = Times::new(admission.validating.len());
    for (name, v) in &admission.validating {
        let judged = match v {
            Validate::Looking(judge) => judge(a, doc, old),
            Validate::Asking(judge) => judge(a, doc, old).await,
        };
        if let Err(e) = times.of(name, judged) {
            times.note(a, "validate", true);
            return Err(e);
        }
    }
    times.note(a, "validate", false);
    judge(a, doc, old).await?;
    // Last, as it is the one that writes.
    if admission.is_on("ResourceQuota") { resource_quota::validate(a, doc, old).await } else { Ok(()) }
}

/// What users configured: policies, then webhooks.
async fn judge(a: &Attributes<'_>, doc: Option<&Doc>, old: Option<&Doc>) -> Result<(), ApiError> {
    let admission = &a.ctx.server.admission;
    if admission.is_on("ValidatingAdmissionPolicy") {
        policy::validate(a, doc, old).await?;
    }
    if admission.is_on("ValidatingAdmissionWebhook") { webhooks::validate(a, doc, old).await } else { Ok(()) }
}

/// A deletion: nothing of it can be changed, but all are asked.
pub async fn delete(a: &Attributes<'_>, old: &Doc) -> Result<(), ApiError> {
    if a.ctx.server.admission.is_on("MutatingAdmissionWebhook") {
        webhooks::mutate(a, None, Some(old), &mut webhooks::Rounds::default()).await?;
    }
    validate(a, None, Some(old)).await
}

/// What is posted to a subresource and is not stored there (a binding, an eviction, a request of a token), or asked of a connection.
pub async fn posted(a: &Attributes<'_>, doc: &mut Doc) -> Result<(), ApiError> {
    node_restriction::posted(a, doc).await?;
    let mut rounds = webhooks::Rounds::default();
    let admission = &a.ctx.server.admission;
    if admission.is_on("MutatingAdmissionPolicy") {
        policy::mutate(a, doc, None, false).await?;
    }
    if admission.is_on("MutatingAdmissionWebhook") {
        webhooks::mutate(a, Some(&mut *doc), None, &mut rounds).await?;
        if rounds.next() {
            webhooks::mutate(a, Some(&mut *doc), None, &mut rounds).await?;
        }
    }
    judge(a, Some(doc), None).await
}
