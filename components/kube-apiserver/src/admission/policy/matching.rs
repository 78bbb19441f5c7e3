//! Whether a request is one that a policy or a binding is about.

use std::{borrow::Cow, sync::Arc};

use k8s_schema::{Doc, Ref, selector::LabelSelector};

use crate::{
    admission::{
        Attributes, Operation,
        webhooks::{
            self,
            rules::{Asked, Rule},
        },
    },
    custom::conversion,
    http::{ApiError, Group},
    registry::Resource,
};

/// A rule that may also name objects.
#[derive(Debug)]
struct NamedRule {
    rule: Rule,
    names: Vec<String>,
}

/// Rules and selectors. Without rules everything is meant.
#[derive(Debug)]
pub struct Constraints {
    rules: Vec<NamedRule>,
    exclude: Vec<NamedRule>,
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
    equivalent: bool,
}

impl Constraints {
    pub fn of(r: Ref<'_>) -> Self {
        let selector = |f: &str| if r.get(f).exists() { LabelSelector::from_ref(r.get(f)).ok() } else { Some(LabelSelector::everything()) };
        let rules = |f: &str| {
            let named = |r: Ref<'_>| NamedRule { rule: Rule::of(r), names: r.get("resourceNames").strings().map(str::to_owned).collect() };
            r.get(f).iter().map(named).collect()
        };
        Self {
            rules: rules("resourceRules"),
            exclude: rules("excludeResourceRules"),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            equivalent: r.get("matchPolicy").str() != "Exact",
        }
    }
}

fn any(rules: &[NamedRule], asked: &Asked<'_>, name: &str) -> bool {
    rules.iter().any(|r| r.rule.matches(asked) && (r.names.is_empty() || r.names.iter().any(|n| n == name)))
}

/// None: it is not about this request. Otherwise the resource whose version the rules name, when that is another one.
#[expect(clippy::option_option, reason = "whether it matches, and as what")]
pub fn matches(
    a: &Attributes<'_>,
    c: &Constraints,
    doc: Option<&Doc>,
    old: Option<&Doc>,
) -> Result<Option<Option<Arc<Resource>>>, ApiError> {
    let (namespace, name) = (webhooks::namespace_of(a, doc, old), webhooks::name_of(a, doc, old));
    let asked = |res: &'_ Resource, rules: &[NamedRule]| {
        let q = Asked {
            group: &res.group,
            version: &res.version,
            resource: &res.plural,
            subresource: a.subresource,
            namespace,
            operation: a.operation,
        };
        any(rules, &q, name)
    };
    let others = || if c.equivalent { a.ctx.server.registry.equivalents(a.res) } else { Vec::new() };
    if !c.exclude.is_empty() && (asked(a.res, &c.exclude) || others().iter().any(|r| asked(r, &c.exclude))) {
        return Ok(None);
    }
    let as_ = if c.rules.is_empty() || asked(a.res, &c.rules) {
        None
    } else {
        match others().into_iter().find(|r| asked(r, &c.rules)) {
            Some(other) => Some(other),
            None => return Ok(None),
        }
    };
    let unreadable = |field: &str| ApiError::internal(format!("the {field} of an admission policy cannot be read"));
    let objects = c.objects.as_ref().ok_or_else(|| unreadable("objectSelector"))?;
    let labelled = |d: Option<&Doc>| d.is_some_and(|d| objects.matches_ref(d.at("metadata.labels")));
    if !objects.is_empty() && !labelled(doc) && !labelled(old) {
        return Ok(None);
    }
    let selector = c.namespaces.as_ref().ok_or_else(|| unreadable("namespaceSelector"))?;
    Ok(in_namespaces(a, selector, namespace, doc)?.then_some(as_))
}

fn in_namespaces(a: &Attributes<'_>, selector: &LabelSelector, namespace: &str, doc: Option<&Doc>) -> Result<bool, ApiError> {
    if namespace.is_empty() || selector.is_empty() {
        return Ok(true);
    }
    let itself = a.res.group.is_empty() && a.res.plural == "namespaces" && a.subresource.is_empty();
    if let Some(new) = doc.filter(|_| itself && matches!(a.operation, Operation::Create | Operation::Update)) {
        return Ok(selector.matches_ref(new.at("metadata.labels")));
    }
    let cached = a.ctx.server.objects.reflector.cache("namespaces").and_then(|c| c.get(namespace));
    let stored = cached.ok_or_else(|| ApiError::not_found(Group("", "namespaces"), namespace))?;
    Ok(selector.matches(|k| stored.label(k)))
}

/// The object in the version that the rules name.
pub async fn view<'d>(a: &Attributes<'_>, as_: Option<&Resource>, doc: Option<&'d Doc>) -> Result<Option<Cow<'d, Doc>>, ApiError> {
    Ok(match (doc, as_) {
        (Some(d), Some(other)) if a.subresource.is_empty() || a.subresource == "status" => {
            Some(Cow::Owned(conversion::between(&a.ctx.server, a.res, other, d).await?))
        }
        (d, _) => d.map(Cow::Borrowed),
    })
}
