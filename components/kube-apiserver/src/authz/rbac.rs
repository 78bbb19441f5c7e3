//! Role-based access control over the roles and bindings in the cache.
//!
//! Rules are compiled once per change of any role or binding, then shared.

use std::{collections::HashMap, sync::Arc};

use k8s_schema::Ref;
use parking_lot::Mutex;

use super::{Attributes, Decision};
use crate::{authn::User, objects::Objects};

/// One rule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

fn strings(r: Ref<'_>) -> Vec<String> {
    r.iter().map(|s| s.str().to_owned()).collect()
}

impl Rule {
    pub fn from_ref(r: Ref<'_>) -> Self {
        Self {
            verbs: strings(r.get("verbs")),
            groups: strings(r.get("apiGroups")),
            resources: strings(r.get("resources")),
            names: strings(r.get("resourceNames")),
            urls: strings(r.get("nonResourceURLs")),
        }
    }

    pub fn allows(&self, a: &Attributes) -> bool {
        let verb = self.verbs.iter().any(|v| v == "*" || *v == a.verb);
        if !a.is_resource {
            return verb && self.urls.iter().any(|u| url_matches(u, &a.path));
        }
        verb && self.groups.iter().any(|g| g == "*" || *g == a.group)
            && self.resources.iter().any(|r| resource_matches(r, &a.resource, &a.subresource))
            && (self.names.is_empty() || self.names.contains(&a.name))
    }
}

fn url_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|p| path.starts_with(p))
}

fn resource_matches(rule: &str, resource: &str, sub: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if sub.is_empty() {
        return rule == resource;
    }
    match rule.split_once('/') {
        Some(("*", s)) => s == sub,
        Some((r, s)) => r == resource && (s == sub),
        None => false,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(n) => *n == user.name,
            Self::Group(g) => user.in_group(g),
        }
    }
}

#[derive(Debug)]
struct Binding {
    name: String,
    subjects: Vec<(Subject, String)>,
    role_kind: String,
    role: String,
    rules: Arc<Vec<Rule>>,
}

/// Everything compiled, by namespace; the empty namespace holds cluster role bindings.
#[derive(Debug, Default)]
struct Index {
    revs: [i64; 4],
    bindings: HashMap<String, Vec<Binding>>,
    cluster_roles: HashMap<String, Arc<Vec<Rule>>>,
    roles: HashMap<String, Arc<Vec<Rule>>>,
}

const PREFIXES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

pub struct Rbac {
    objects: Arc<Objects>,
    index: Mutex<Arc<Index>>,
}

impl Rbac {
    pub fn new(objects: Arc<Objects>) -> Self {
        Self { objects, index: Mutex::default() }
    }

    fn index(&self) -> Arc<Index> {
        let revs = PREFIXES.map(|p| self.objects.reflector.cache(p).map_or(0, |c| c.snapshot().1));
        let mut index = self.index.lock();
        if index.revs != revs {
            *index = Arc::new(self.build(revs));
        }
        Arc::clone(&index)
    }

    fn build(&self, revs: [i64; 4]) -> Index {
        let docs = |prefix: &str| {
            self.objects.list(prefix, "").into_iter().filter_map(|s| self.objects.doc(&s).map(|d| (s, d))).collect::<Vec<_>>()
        };
        let rules = |prefix: &str| {
            docs(prefix)
                .into_iter()
                .map(|(s, d)| (s.key.to_string(), Arc::new(d.at("rules").iter().map(Rule::from_ref).collect::<Vec<_>>())))
                .collect::<HashMap<_, _>>()
        };
        let (cluster_roles, roles) = (rules("clusterroles"), rules("roles"));
        let mut bindings: HashMap<String, Vec<Binding>> = HashMap::new();
        let none = Arc::new(Vec::new());
        for prefix in ["clusterrolebindings", "rolebindings"] {
            for (s, d) in docs(prefix) {
                let subjects = d
                    .at("subjects")
                    .iter()
                    .filter_map(|x| {
                        let name = x.get("name").str().to_owned();
                        let (subject, shown) = match x.get("kind").str() {
                            "User" => (Subject::User(name.clone()), format!("User {name:?}")),
                            "Group" => (Subject::Group(name.clone()), format!("Group {name:?}")),
                            "ServiceAccount" => {
                                let ns = match x.get("namespace").str() {
                                    "" => s.namespace().to_owned(),
                                    ns => ns.to_owned(),
                                };
                                (Subject::User(format!("system:serviceaccount:{ns}:{name}")), format!("ServiceAccount \"{name}/{ns}\""))
                            }
                            _ => return None,
                        };
                        Some((subject, shown))
                    })
                    .collect();
                let (kind, role) = (d.at("roleRef.kind").str().to_owned(), d.at("roleRef.name").str().to_owned());
                let rules = match kind.as_str() {
                    "ClusterRole" => cluster_roles.get(&role),
                    _ => roles.get(&format!("{}/{role}", s.namespace())),
                };
                bindings.entry(s.namespace().to_owned()).or_default().push(Binding {
                    name: s.name().to_owned(),
                    subjects,
                    role_kind: kind,
                    role,
                    rules: Arc::clone(rules.unwrap_or(&none)),
                });
            }
        }
        Index { revs, bindings, cluster_roles, roles }
    }

    pub fn authorize(&self, user: &User, a: &Attributes) -> Decision {
        let index = self.index();
        let namespaces: &[&str] = if a.is_resource && !a.namespace.is_empty() { &["", &a.namespace] } else { &[""] };
        for ns in namespaces {
            for b in index.bindings.get(*ns).into_iter().flatten() {
                let Some((_, shown)) = b.subjects.iter().find(|(s, _)| s.is(user)) else { continue };
                if b.rules.iter().any(|r| r.allows(a)) {
                    let binding =
                        if ns.is_empty() { format!("ClusterRoleBinding {:?}", b.name) } else { format!("RoleBinding \"{}/{ns}\"", b.name) };
                    return Decision::Allow(format!("RBAC: allowed by {binding} of {} {:?} to {shown}", b.role_kind, b.role));
                }
            }
        }
        // A binding to a role that is not there is worth telling.
        Decision::NoOpinion(self.missing(&index, user, namespaces))
    }

    fn missing(&self, index: &Index, user: &User, namespaces: &[&str]) -> String {
        let mut missing = Vec::new();
        for ns in namespaces {
            for b in index.bindings.get(*ns).into_iter().flatten() {
                let known = match b.role_kind.as_str() {
                    "ClusterRole" => index.cluster_roles.contains_key(&b.role),
                    _ => index.roles.contains_key(&format!("{ns}/{}", b.role)),
                };
                if !known && b.subjects.iter().any(|(s, _)| s.is(user)) {
                    let kind = if b.role_kind == "ClusterRole" { "clusterrole" } else { "role" };
                    missing.push(format!("{kind}.rbac.authorization.k8s.io {:?} not found", b.role));
                }
            }
        }
        match missing.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        }
    }

    /// Every rule that holds for `user` in `namespace`, cluster-wide ones included.
    pub fn rules_for(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        let namespaces: &[&str] = if namespace.is_empty() { &[""] } else { &["", namespace] };
        namespaces
            .iter()
            .flat_map(|ns| index.bindings.get(*ns).into_iter().flatten())
            .filter(|b| b.subjects.iter().any(|(s, _)| s.is(user)))
            .flat_map(|b| b.rules.iter().cloned())
            .collect()
    }

    /// The rules of a role; `namespace` empty: a cluster role.
    pub fn role(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Vec<Rule>>> {
        let index = self.index();
        match kind {
            "ClusterRole" => index.cluster_roles.get(name).cloned(),
            _ => index.roles.get(&format!("{namespace}/{name}")).cloned(),
        }
    }
}

/// Those of `wanted` that `owned` does not cover, one verb, group and resource (or path) at a time.
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing = Vec::new();
    for rule in wanted {
        for small in breakdown(rule) {
            if !owned.iter().any(|o| covers(o, &small)) {
                missing.push(small);
            }
        }
    }
    missing
}

fn breakdown(r: &Rule) -> Vec<Rule> {
    let mut out = Vec::new();
    for verb in &r.verbs {
        for url in &r.urls {
            out.push(Rule { verbs: vec![verb.clone()], urls: vec![url.clone()], ..Rule::default() });
        }
    }
    for group in &r.groups {
        for resource in &r.resources {
            for verb in &r.verbs {
                let base =
                    Rule { verbs: vec![verb.clone()], groups: vec![group.clone()], resources: vec![resource.clone()], ..Rule::default() };
                if r.names.is_empty() {
                    out.push(base);
                } else {
                    out.extend(r.names.iter().map(|n| Rule { names: vec![n.clone()], ..base.clone() }));
                }
            }
        }
    }
    out
}

fn has(list: &[String], x: &str) -> bool {
    list.iter().any(|l| l == "*" || l == x)
}

fn covers(owner: &Rule, small: &Rule) -> bool {
    let verb = small.verbs.iter().all(|v| has(&owner.verbs, v));
    if !small.urls.is_empty() {
        return verb && small.urls.iter().all(|u| owner.urls.iter().any(|o| url_matches(o, u)));
    }
    let resource = small.resources.iter().all(|r| {
        has(&owner.resources, r) || r.split_once('/').is_some_and(|(_, sub)| owner.resources.iter().any(|o| *o == format!("*/{sub}")))
    });
    verb && resource
        && small.groups.iter().all(|g| has(&owner.groups, g))
        && (owner.names.is_empty() || (!small.names.is_empty() && small.names.iter().all(|n| owner.names.contains(n))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let l = |s: &str| s.split_whitespace().map(|x| if x == "core" { String::new() } else { x.to_owned() }).collect::<Vec<_>>();
        Rule { verbs: l(verbs), groups: l(groups), resources: l(resources), names: l(names), urls: vec![] }
    }

    #[test]
    fn rules_allow_what_they_name() {
        let ask = |verb: &str, group: &str, resource: &str, sub: &str, name: &str| Attributes {
            verb: verb.into(),
            is_resource: true,
            group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            name: name.into(),
            ..Attributes::default()
        };
        let cases = [
            (rule("get", "core", "pods", ""), ask("get", "", "pods", "", "x"), true),
            (rule("get", "core", "pods", ""), ask("get", "", "pods", "log", "x"), false),
            (rule("get", "core", "pods/log", ""), ask("get", "", "pods", "log", "x"), true),
            (rule("*", "*", "*", ""), ask("get", "apps", "deployments", "scale", "x"), true),
            (rule("update", "*", "*/scale", ""), ask("update", "apps", "deployments", "scale", "x"), true),
            (rule("get", "core", "secrets", "a b"), ask("get", "", "secrets", "", "b"), true),
            (rule("get", "core", "secrets", "a b"), ask("list", "", "secrets", "", ""), false),
            (rule("get", "apps", "pods", ""), ask("get", "", "pods", "", "x"), false),
        ];
        for (r, a, want) in cases {
            assert_eq!(r.allows(&a), want, "{r:?} {a:?}");
        }
    }

    #[test]
    fn escalation_is_what_the_owner_lacks() {
        let owned = [rule("get list", "core", "pods secrets", ""), rule("*", "apps", "*", "")];
        assert!(uncovered(&owned, &[rule("get", "core", "pods", ""), rule("delete", "apps", "deployments/scale", "x")]).is_empty());
        assert_eq!(uncovered(&owned, &[rule("get delete", "core", "pods", "")]), [rule("delete", "core", "pods", "")]);
        assert_eq!(uncovered(&[rule("get", "core", "pods", "a")], &[rule("get", "core", "pods", "")]).len(), 1);
    }
}
