//! Which requests a webhook's rules are about.

use k8s_schema::Ref;

use crate::admission::Operation;

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
        let in_namespace = !(a.namespace.is_empty() || a.group.is_empty() && a.resource == "namespaces");
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
