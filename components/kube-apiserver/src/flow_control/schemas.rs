//! Flow schemas: which requests belong together, and to which priority level they go.

use k8s_schema::{Doc, Ref};
use sha2::{Digest, Sha256};

use super::queues::Shape;
use crate::{authn::User, http::RequestInfo};

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    /// A whole user name, or a prefix of all of a namespace.
    ServiceAccount(String),
    ServiceAccounts(String),
}

impl Subject {
    fn of(s: Ref<'_>) -> Option<Self> {
        let part = |f: &str| s.get(f);
        Some(match s.get("kind").str() {
            "User" => Self::User(part("user").get("name").str().to_owned()),
            "Group" => Self::Group(part("group").get("name").str().to_owned()),
            "ServiceAccount" => {
                let a = part("serviceAccount");
                let of_namespace = format!("system:serviceaccount:{}:", a.get("namespace").str());
                match a.get("name").str() {
                    "*" => Self::ServiceAccounts(of_namespace),
                    name => Self::ServiceAccount(of_namespace + name),
                }
            }
            _ => return None,
        })
    }

    fn matches(&self, user: &User) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(name) => name == "*" || user.in_group(name),
            Self::ServiceAccount(name) => *name == user.name,
            Self::ServiceAccounts(prefix) => user.name.starts_with(prefix.as_str()),
        }
    }
}

#[derive(Debug)]
struct Resources {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    cluster: bool,
    namespaces: Vec<String>,
}

#[derive(Debug)]
struct Paths {
    verbs: Vec<String>,
    urls: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<Resources>,
    paths: Vec<Paths>,
}

fn list(r: Ref<'_>) -> Vec<String> {
    r.strings().map(str::to_owned).collect()
}

fn has(list: &[String], v: &str) -> bool {
    list.iter().any(|x| x == "*" || x == v)
}

impl Resources {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = || match info.subresource.as_str() {
            "" => has(&self.resources, &info.resource),
            sub => self.resources.iter().any(|r| r == "*" || r.split_once('/') == Some((info.resource.as_str(), sub))),
        };
        let place = || if info.namespace.is_empty() { self.cluster } else { has(&self.namespaces, &info.namespace) };
        has(&self.verbs, &info.verb) && has(&self.groups, &info.group) && resource() && place()
    }
}

impl Paths {
    fn matches(&self, info: &RequestInfo) -> bool {
        let url = |u: &String| *u == info.path || u.strip_suffix('*').is_some_and(|p| info.path.starts_with(p));
        has(&self.verbs, &info.verb) && self.urls.iter().any(url)
    }
}

/// What makes flows of a schema's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

#[derive(Debug)]
pub struct FlowSchema {
    pub name: String,
    pub uid: String,
    pub precedence: i64,
    /// By name.
    pub level: String,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

impl FlowSchema {
    pub fn of(d: &Doc) -> Self {
        let spec = d.at("spec");
        let rule = |r: Ref<'_>| Rule {
            subjects: r.get("subjects").iter().filter_map(Subject::of).collect(),
            resources: r
                .get("resourceRules")
                .iter()
                .map(|r| Resources {
                    verbs: list(r.get("verbs")),
                    groups: list(r.get("apiGroups")),
                    resources: list(r.get("resources")),
                    cluster: r.get("clusterScope").bool(),
                    namespaces: list(r.get("namespaces")),
                })
                .collect(),
            paths: r
                .get("nonResourceRules")
                .iter()
                .map(|r| Paths { verbs: list(r.get("verbs")), urls: list(r.get("nonResourceURLs")) })
                .collect(),
        };
        Self {
            name: d.meta().name().to_owned(),
            uid: d.meta().uid().to_owned(),
            precedence: spec.get("matchingPrecedence").int(),
            level: spec.get("priorityLevelConfiguration").get("name").str().to_owned(),
            distinguisher: match spec.get("distinguisherMethod").get("type").str() {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: spec.get("rules").iter().map(rule).collect(),
        }
    }

    pub fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        self.rules.iter().any(|r| {
            let asked =
                if info.is_resource { r.resources.iter().any(|x| x.matches(info)) } else { r.paths.iter().any(|x| x.matches(info)) };
            asked && r.subjects.iter().any(|s| s.matches(user))
        })
    }

    /// The flow of a request, as a number that is the same for all its requests.
    pub fn flow(&self, user: &User, info: &RequestInfo) -> u64 {
        let by = match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &info.namespace,
        };
        let mut hash = Sha256::new();
        hash.update(self.name.as_bytes());
        hash.update([0]);
        hash.update(by.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        u64::from_le_bytes(first)
    }
}

/// A priority level as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelSpec {
    pub name: String,
    pub uid: String,
    pub exempt: bool,
    pub shares: u64,
    pub lendable_percent: u64,
    /// None: it may borrow everything.
    pub borrowing_percent: Option<u64>,
    pub shape: Shape,
}

impl LevelSpec {
    pub fn of(d: &Doc) -> Self {
        let spec = d.at("spec");
        let exempt = spec.get("type").str() == "Exempt";
        let part = spec.get(if exempt { "exempt" } else { "limited" });
        let count = |r: Ref<'_>, otherwise: u64| r.as_i64().map_or(otherwise, |v| u64::try_from(v).unwrap_or(0));
        let response = part.get("limitResponse");
        let q = response.get("queuing");
        let size = |f: &str, otherwise: u64, most: u64| usize::try_from(count(q.get(f), otherwise).clamp(1, most)).unwrap_or(1);
        let shape = if !exempt && response.get("type").str() == "Queue" {
            let queues = size("queues", 64, 10_000_000).min(1 << 14);
            Shape { queues, hand: size("handSize", 8, 64).min(queues), length: size("queueLengthLimit", 50, 100_000) }
        } else {
            Shape { queues: 0, hand: 0, length: 0 }
        };
        Self {
            name: d.meta().name().to_owned(),
            uid: d.meta().uid().to_owned(),
            exempt,
            shares: count(part.get("nominalConcurrencyShares"), if exempt { 0 } else { 30 }),
            lendable_percent: count(part.get("lendablePercent"), 0).min(100),
            borrowing_percent: part.get("borrowingLimitPercent").as_i64().map(|v| u64::try_from(v).unwrap_or(0)),
            shape,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use k8s_schema::Schema;
    use serde_json::{Value, json};

    use super::*;

    fn schema(rule: Value) -> FlowSchema {
        let s = Schema::builtin();
        let ty = s.kind("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema").unwrap();
        let v = json!({"metadata": {"name": "f"}, "spec": {"matchingPrecedence": 5, "distinguisherMethod": {"type": "ByUser"}, "priorityLevelConfiguration": {"name": "l"}, "rules": [rule]}});
        FlowSchema::of(&Doc::from_value(&s, ty, &v).unwrap().doc)
    }

    #[test]
    fn rules_say_who_asks_and_what_for() {
        let node = json!({"subjects": [{"kind": "Group", "group": {"name": "system:nodes"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["nodes", "pods/status"], "clusterScope": true, "namespaces": ["a"]}]});
        let account = |name: &str| json!({"subjects": [{"kind": "ServiceAccount", "serviceAccount": {"namespace": "a", "name": name}}], "resourceRules": [{"verbs": ["get", "update"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}]});
        let health = json!({"subjects": [{"kind": "Group", "group": {"name": "system:unauthenticated"}}, {"kind": "User", "user": {"name": "u"}}], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez/*"]}]});
        let user = |name: &str, group: &str| User { name: name.into(), groups: vec![group.into()], ..User::default() };
        let (kubelet, bot) = (user("n", "system:nodes"), user("system:serviceaccount:a:bot", "x"));
        let cases = [
            (&node, &kubelet, "GET", "/api/v1/nodes/n", true),
            (&node, &bot, "GET", "/api/v1/nodes/n", false),
            (&node, &kubelet, "PATCH", "/api/v1/namespaces/a/pods/p/status", true),
            (&node, &kubelet, "PATCH", "/api/v1/namespaces/b/pods/p/status", false),
            (&node, &kubelet, "GET", "/api/v1/namespaces/a/pods/p", false),
            (&node, &kubelet, "GET", "/healthz", false),
            (&account("*"), &bot, "GET", "/apis/apps/v1/namespaces/x/deployments/d", true),
            (&account("bot"), &bot, "PUT", "/apis/apps/v1/namespaces/x/deployments/d/scale", true),
            (&account("other"), &bot, "GET", "/apis/apps/v1/namespaces/x/deployments/d", false),
            (&account("*"), &bot, "DELETE", "/apis/apps/v1/namespaces/x/deployments/d", false),
            (&account("*"), &bot, "GET", "/api/v1/nodes/n", false),
            (&health, &user("u", ""), "GET", "/livez/etcd", true),
            (&health, &user("x", "system:unauthenticated"), "GET", "/healthz", true),
            (&health, &user("u", ""), "GET", "/healthz/etcd", false),
        ];
        for (rule, user, method, path, want) in cases {
            let info = RequestInfo::parse(&method.parse::<Method>().unwrap(), path, |_| None);
            assert_eq!(schema(rule.clone()).matches(user, &info), want, "{rule} {} {method} {path}", user.name);
        }
    }

    #[test]
    fn flows_are_told_apart_by_user() {
        let (f, info) = (schema(json!({})), RequestInfo::default());
        let flow = |name: &str| f.flow(&User { name: name.into(), ..User::default() }, &info);
        assert_eq!(flow("a"), flow("a"));
        assert_ne!(flow("a"), flow("b"));
    }
}
