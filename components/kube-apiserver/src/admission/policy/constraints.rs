//! Whether a request is one that a policy or a binding is about.

use std::sync::Arc;

use k8s_schema::{Doc, Ref};

use crate::{
    admission::{
        Attributes,
        matching::{self, Asked, Rule, Selectors},
    },
    http::ApiError,
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
    selectors: Selectors,
    equivalent: bool,
}

impl Constraints {
    pub fn of(r: Ref<'_>) -> Self {
        let rules = |f: &str| {
            let named = |r: Ref<'_>| NamedRule { rule: Rule::of(r), names: r.get("resourceNames").strings().map(str::to_owned).collect() };
            r.get(f).iter().map(named).collect()
        };
        Self {
            rules: rules("resourceRules"),
            exclude: rules("excludeResourceRules"),
            selectors: Selectors::of(r),
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
    let (namespace, name) = (matching::namespace_of(a, doc, old), matching::name_of(a, doc, old));
    let asked = |res: &Resource, rules: &[NamedRule]| any(rules, &Asked::of(a, res, namespace), name);
    if matching::served_as(a, c.equivalent, |res| asked(res, &c.exclude)).is_some() {
        return Ok(None);
    }
    let as_ = if c.rules.is_empty() { Some(None) } else { matching::served_as(a, c.equivalent, |res| asked(res, &c.rules)) };
    let Some(as_) = as_ else { return Ok(None) };
    Ok(c.selectors.match_request(a, "an admission policy", doc, old)?.then_some(as_))
}
