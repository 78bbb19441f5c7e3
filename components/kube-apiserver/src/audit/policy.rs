//! The audit policy: which requests are recorded, and how much of each.

use std::path::Path;

use serde::Deserialize;

use crate::{
    authn::User,
    config_file::{self, ConfigFile, ConfigFileError, DecodeError, decode},
    http::RequestInfo,
};

/// How much of a request is recorded; each level holds what the one before does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// The points of a request at which events are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    RequestReceived,
    /// The headers are sent; only of requests that live long.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the audit policy has no rules")]
    Empty,
    #[error("rules[{0}]: {1}")]
    Rule(usize, String),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "a name for people")]
    metadata: serde_yaml::Value,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

impl ConfigFile for Policy {
    const KIND: &str = "Policy";
    const VERSIONS: &[&str] = &["audit.k8s.io/v1"];

    fn head(&self) -> (&str, &str) {
        (&self.api_version, &self.kind)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Rule {
    level: Option<Level>,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What the policy says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    pub level: Level,
    pub omit: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    pub fn load(path: &Path) -> Result<Self, ConfigFileError> {
        config_file::read("audit policy", path, Self::parse)
    }

    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = decode(text)?;
        if policy.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            rule.check().map_err(|why| PolicyError::Rule(i, why))?;
        }
        Ok(policy)
    }

    /// The first rule that matches decides; without one nothing is recorded.
    pub fn ruling(&self, user: &User, info: &RequestInfo) -> Ruling {
        let Some(rule) = self.rules.iter().find(|r| r.matches(user, info)) else {
            return Ruling { level: Level::None, omit: Vec::new(), omit_managed_fields: false };
        };
        let mut omit = self.omit_stages.clone();
        omit.extend(&rule.omit_stages);
        Ruling {
            level: rule.level.unwrap_or(Level::None),
            omit,
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        if self.level.is_none() {
            return Err("level is required: one of None, Metadata, Request, RequestResponse".into());
        }
        let about_objects = !(self.resources.is_empty() && self.namespaces.is_empty());
        if about_objects && !self.non_resource_urls.is_empty() {
            return Err("rules cannot apply to both regular resources and non-resource URLs".into());
        }
        for url in &self.non_resource_urls {
            if url != "*" && !url.starts_with('/') {
                return Err(format!("nonResourceURLs: {url:?} must begin with '/' or be '*'"));
            }
            if url.trim_end_matches('*').contains('*') || url.ends_with("**") {
                return Err(format!("nonResourceURLs: {url:?} may have '*' only at its end"));
            }
        }
        for r in &self.resources {
            if r.group.contains('/') {
                return Err(format!("resources: group {:?} must not name a version", r.group));
            }
            if !r.resource_names.is_empty() && r.resources.is_empty() {
                return Err("resources: resourceNames without resources".into());
            }
        }
        Ok(())
    }

    fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        let any = |list: &[String], v: &str| list.is_empty() || list.iter().any(|x| x == v);
        if !any(&self.users, &user.name) || !any(&self.verbs, &info.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !self.user_groups.iter().any(|g| user.in_group(g)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && any(&self.namespaces, &info.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(info)));
        }
        self.non_resource_urls.is_empty() || (!info.is_resource && self.non_resource_urls.iter().any(|u| path_matches(u, &info.path)))
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    pattern == path || pattern.strip_suffix('*').is_some_and(|p| path.starts_with(p))
}

impl Resources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&info.name) {
            return false;
        }
        let (resource, sub) = (info.resource.as_str(), info.subresource.as_str());
        self.resources.iter().any(|r| match r.split_once('/') {
            _ if r == "*" => true,
            None => sub.is_empty() && r == resource,
            Some(("*", s)) => !sub.is_empty() && s == sub,
            Some((r, "*")) => r == resource,
            Some((r, s)) => r == resource && s == sub,
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn info(method: &str, path: &str) -> RequestInfo {
        RequestInfo::parse(&method.parse::<Method>().unwrap(), path, |_| None)
    }

    fn policy(rules: &str) -> Policy {
        Policy::parse(&format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n{rules}"
        ))
        .unwrap()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let p = policy(
            r#"
- {level: None, users: ["system:kube-proxy"], verbs: [watch], resources: [{group: "", resources: [endpoints, services]}]}
- {level: None, userGroups: ["system:authenticated"], nonResourceURLs: ["/api*", /version]}
- {level: Request, resources: [{group: "", resources: [configmaps], resourceNames: [x]}], namespaces: [kube-system], omitManagedFields: false}
- {level: Metadata, resources: [{resources: ["pods/log", "*/status", "secrets/*"]}], omitStages: [ResponseStarted]}
- {level: RequestResponse, resources: [{group: apps}]}
- {level: Metadata, namespaces: [""]}
"#,
        );
        let (proxy, user) = (
            User { name: "system:kube-proxy".into(), ..User::default() },
            User { name: "u".into(), groups: vec!["system:authenticated".into()], ..User::default() },
        );
        let cases = [
            (&proxy, "GET", "/api/v1/watch/services", Level::None),
            (&user, "GET", "/api/v1/watch/services", Level::Metadata),
            (&user, "GET", "/apis/apps", Level::None),
            (&proxy, "GET", "/version", Level::None),
            (&user, "PUT", "/api/v1/namespaces/kube-system/configmaps/x", Level::Request),
            (&user, "PUT", "/api/v1/namespaces/kube-system/configmaps/y", Level::None),
            (&user, "PUT", "/api/v1/namespaces/a/configmaps/x", Level::None),
            (&user, "GET", "/api/v1/namespaces/a/pods/p/log", Level::Metadata),
            (&user, "GET", "/api/v1/namespaces/a/pods/p", Level::None),
            (&user, "PUT", "/api/v1/namespaces/a/pods/p/status", Level::Metadata),
            (&user, "GET", "/api/v1/namespaces/a/secrets/s", Level::Metadata),
            (&user, "GET", "/apis/apps/v1/namespaces/a/deployments/d/scale", Level::RequestResponse),
            (&user, "GET", "/api/v1/nodes/n", Level::Metadata),
        ];
        for (user, method, path, want) in cases {
            assert_eq!(p.ruling(user, &info(method, path)).level, want, "{} {method} {path}", user.name);
        }
        let r = p.ruling(&user, &info("GET", "/api/v1/namespaces/a/pods/p/log"));
        assert_eq!((r.omit, r.omit_managed_fields), (vec![Stage::RequestReceived, Stage::ResponseStarted], true));
        assert!(!p.ruling(&user, &info("PUT", "/api/v1/namespaces/kube-system/configmaps/x")).omit_managed_fields);
    }

    #[test]
    fn a_policy_that_cannot_be_followed_is_refused() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, named) in [
            (format!("{head}rules: []"), "no rules"),
            (head.to_owned(), "missing field `rules`"),
            ("apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]".into(), "audit.k8s.io/v1beta1"),
            (format!("{head}rules: [{{users: [a]}}]"), "rules[0]: level is required"),
            (format!("{head}rules: [{{level: All}}]"), "unknown variant `All`"),
            (format!("{head}rules: [{{level: None, verb: [get]}}]"), "unknown field `verb`"),
            (format!("{head}rules: [{{level: None}}, {{level: None, nonResourceURLs: [x]}}]"), "rules[1]: nonResourceURLs: \"x\""),
            (format!("{head}rules: [{{level: None, nonResourceURLs: [\"/a*b\"]}}]"), "only at its end"),
            (format!("{head}rules: [{{level: None, nonResourceURLs: [/a], namespaces: [b]}}]"), "both"),
            (format!("{head}rules: [{{level: None, resources: [{{group: apps/v1}}]}}]"), "version"),
            (format!("{head}rules: [{{level: None, resources: [{{resourceNames: [a]}}]}}]"), "resourceNames"),
        ] {
            let e = Policy::parse(&text).unwrap_err().to_string();
            assert!(e.contains(named), "{e}");
        }
    }
}
