//! Whether a request is one that a webhook or an admission policy is about, and as what they see it: rules, selectors, and the version of the
//! resource that the rules name.

use std::{borrow::Cow, fmt::Display, sync::Arc};

use k8s_schema::{Doc, Ref, selector::LabelSelector};

use super::{Attributes, Operation, webhooks};
use crate::{
    custom::conversion,
    handlers::scale,
    http::{ApiError, Group},
    kinds,
    registry::Resource,
};

/// What neither webhooks nor policies hear of: a bad one could not be mended.
const EXEMPT: &[&str] = &[
    webhooks::MUTATING,
    webhooks::VALIDATING,
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
];

/// Their own configuration, and the server's own writes.
pub fn exempt(a: &Attributes<'_>) -> bool {
    a.ctx.internal || (a.res.group == "admissionregistration.k8s.io" && EXEMPT.contains(&a.res.plural.as_str()))
}

/// The namespace of the request; of a namespace itself, its name.
pub fn namespace_of<'a>(a: &'a Attributes<'_>, doc: Option<&'a Doc>, old: Option<&'a Doc>) -> &'a str {
    if is_namespace(a.res) {
        return name_of(a, doc, old);
    }
    if a.res.namespaced { &a.ctx.info.namespace } else { "" }
}

/// The name of the object that the request is about.
pub fn name_of<'a>(a: &'a Attributes<'_>, doc: Option<&'a Doc>, old: Option<&'a Doc>) -> &'a str {
    let own = match a.operation {
        Operation::Create if a.subresource.is_empty() => doc,
        Operation::Delete => old,
        _ => None,
    };
    own.map_or(a.ctx.info.name.as_str(), |d| d.meta().name())
}

fn is_namespace(res: &Resource) -> bool {
    res.group.is_empty() && res.plural == "namespaces"
}

/// What a request is, as rules name it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    /// Of a namespace itself: its own name.
    pub namespace: &'a str,
    pub operation: Operation,
}

impl<'a> Asked<'a> {
    /// The request, as one of this version of its resource.
    pub fn of(a: &'a Attributes<'_>, res: &'a Resource, namespace: &'a str) -> Self {
        let (subresource, operation) = (a.subresource, a.operation);
        Self { group: &res.group, version: &res.version, resource: &res.plural, subresource, namespace, operation }
    }
}

/// A rule of a configuration.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|l| l == "*" || l == wanted)
}

impl Rule {
    pub fn of(r: Ref<'_>) -> Self {
        let list = |f: &str| r.get(f).strings().map(str::to_owned).collect();
        Self {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources"),
            scope: r.get("scope").str().to_owned(),
        }
    }

    pub fn matches(&self, a: &Asked<'_>) -> bool {
        // A namespace is no object of a namespace, though its requests name one.
        let itself = a.group.is_empty() && a.resource == "namespaces";
        let in_namespace = !itself && !a.namespace.is_empty();
        let scope = match self.scope.as_str() {
            "Namespaced" => in_namespace,
            "Cluster" => !in_namespace,
            _ => true,
        };
        scope && has(&self.operations, a.operation.name()) && has(&self.groups, a.group) && has(&self.versions, a.version) && self.names(a)
    }

    fn names(&self, a: &Asked<'_>) -> bool {
        self.resources.iter().any(|r| {
            let (resource, sub) = r.split_once('/').unwrap_or((r, ""));
            (resource == "*" || resource == a.resource) && (sub == "*" || sub == a.subresource)
        })
    }
}

/// None: no rule is about this request. Otherwise the resource whose version the rules name, when that is another one, which only counts where
/// equivalent requests do (`matchPolicy`).
#[expect(clippy::option_option, reason = "whether it matches, and as what")]
pub fn served_as(a: &Attributes<'_>, equivalent: bool, asked: impl Fn(&Resource) -> bool) -> Option<Option<Arc<Resource>>> {
    if asked(a.res) {
        return Some(None);
    }
    if !equivalent {
        return None;
    }
    let others = a.ctx.server.registry.equivalents(a.res);
    let fits = |r: &Arc<Resource>| (a.subresource.is_empty() || r.subresource(a.subresource).is_some()) && asked(r);
    others.into_iter().find(fits).map(Some)
}

/// `namespaceSelector` and `objectSelector`. One that cannot be read is an error at every request that the rules match.
#[derive(Debug)]
pub struct Selectors {
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
}

impl Selectors {
    pub fn of(r: Ref<'_>) -> Self {
        let selector = |f: &str| if r.get(f).exists() { LabelSelector::from_ref(r.get(f)).ok() } else { Some(LabelSelector::everything()) };
        Self { namespaces: selector("namespaceSelector"), objects: selector("objectSelector") }
    }

    /// Whether both take the request; `whose` they are, for errors.
    pub fn match_request(&self, a: &Attributes<'_>, whose: impl Display, doc: Option<&Doc>, old: Option<&Doc>) -> Result<bool, ApiError> {
        let unreadable = |field: &str| ApiError::internal(format!("the {field} of {whose} cannot be read"));
        let namespaces = self.namespaces.as_ref().ok_or_else(|| unreadable("namespaceSelector"))?;
        if !in_namespaces(a, namespaces, namespace_of(a, doc, old), doc)? {
            return Ok(false);
        }
        let objects = self.objects.as_ref().ok_or_else(|| unreadable("objectSelector"))?;
        let labelled = |d: Option<&Doc>| d.is_some_and(|d| d.at("metadata").exists() && objects.matches_ref(d.at("metadata.labels")));
        // The object before counts too: no label can be taken off to escape.
        Ok(objects.is_empty() || labelled(doc) || labelled(old))
    }
}

fn in_namespaces(a: &Attributes<'_>, selector: &LabelSelector, namespace: &str, doc: Option<&Doc>) -> Result<bool, ApiError> {
    if namespace.is_empty() || selector.is_empty() {
        return Ok(true);
    }
    // The labels a namespace will have count, which nobody else knows yet.
    let itself = is_namespace(a.res) && a.subresource.is_empty();
    if let Some(new) = doc.filter(|_| itself && matches!(a.operation, Operation::Create | Operation::Update)) {
        return Ok(selector.matches_ref(new.at("metadata.labels")));
    }
    let cached = a.ctx.server.objects.reflector.cache("namespaces").and_then(|c| c.get(namespace));
    let stored = cached.ok_or_else(|| ApiError::not_found(Group("", "namespaces"), namespace))?;
    Ok(selector.matches(|k| stored.label(k)))
}

/// The object and the one before, as they are shown: of scale requests the Scale, of others the object in the version that the rules name.
pub async fn views<'d>(
    a: &Attributes<'_>,
    as_: Option<&Resource>,
    doc: Option<&'d Doc>,
    old: Option<&'d Doc>,
) -> Result<(Option<Cow<'d, Doc>>, Option<Cow<'d, Doc>>), ApiError> {
    let now = match doc {
        Some(d) => Some(view(a, as_, d).await?),
        None => None,
    };
    let before = match old {
        Some(d) => Some(view(a, as_, d).await?),
        None => None,
    };
    Ok((now, before))
}

async fn view<'d>(a: &Attributes<'_>, as_: Option<&Resource>, doc: &'d Doc) -> Result<Cow<'d, Doc>, ApiError> {
    if a.subresource == "scale" {
        return scale::scale_of(a.ctx, a.res, doc).map(Cow::Owned);
    }
    match converted(a, as_) {
        Some(other) => conversion::between(&a.ctx.server, a.res, other, doc).await.map(Cow::Owned),
        None => Ok(Cow::Borrowed(doc)),
    }
}

/// The other way: what somebody made of the view becomes the object's.
pub async fn adopt(a: &Attributes<'_>, as_: Option<&Resource>, doc: &Doc, changed: Doc) -> Result<Doc, ApiError> {
    if a.subresource == "scale" {
        let mut new = doc.clone();
        scale::set_replicas(a.res, &mut new, changed.at("spec.replicas").int())?;
        return Ok(new);
    }
    let mut new = match converted(a, as_) {
        Some(other) => conversion::between(&a.ctx.server, other, a.res, &changed).await?,
        None => changed,
    };
    if a.operation == Operation::Update || a.subresource.is_empty() {
        kinds::defaults::apply(a.res, &mut new);
    }
    Ok(new)
}

/// The version to convert to; other subresources have objects of their own, which have one version.
fn converted<'r>(a: &Attributes<'_>, as_: Option<&'r Resource>) -> Option<&'r Resource> {
    as_.filter(|_| a.subresource.is_empty() || a.subresource == "status")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(resources: &[&str], scope: &str) -> Rule {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            operations: own(&["CREATE", "CONNECT"]),
            groups: own(&["", "apps"]),
            versions: own(&["v1"]),
            resources: own(resources),
            scope: scope.into(),
        }
    }

    fn asked<'a>(resource: &'a str, subresource: &'a str) -> Asked<'a> {
        Asked { group: "", version: "v1", resource, subresource, namespace: "ns", operation: Operation::Create }
    }

    #[test]
    fn resources_and_subresources_are_named_apart() {
        let cases = [
            ("pods", "pods", "", true),
            ("pods", "pods", "status", false),
            ("pods/status", "pods", "status", true),
            ("pods/*", "pods", "status", true),
            ("pods/*", "pods", "", true),
            ("*", "pods", "", true),
            ("*", "pods", "status", false),
            ("*/*", "pods", "status", true),
            ("*/*", "pods", "", true),
            ("*/scale", "pods", "scale", true),
            ("*/scale", "pods", "", false),
        ];
        for (named, resource, sub, want) in cases {
            assert_eq!(rule(&[named], "*").matches(&asked(resource, sub)), want, "{named}: {resource}/{sub}");
        }
    }

    #[test]
    fn everything_else_has_to_fit_too() {
        let r = rule(&["pods", "namespaces"], "*");
        let a = asked("pods", "");
        assert!(r.matches(&a));
        assert!(!r.matches(&Asked { operation: Operation::Update, ..a }));
        assert!(!r.matches(&Asked { group: "batch", ..a }));
        assert!(!r.matches(&Asked { version: "v2", ..a }));
        let namespace = asked("namespaces", "");
        for (scope, pods, namespaces) in [("Namespaced", true, false), ("Cluster", false, true), ("*", true, true), ("", true, true)] {
            let r = rule(&["pods", "namespaces"], scope);
            assert_eq!((r.matches(&a), r.matches(&namespace)), (pods, namespaces), "{scope}");
        }
    }
}
