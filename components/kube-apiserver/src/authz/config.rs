//! The file of `--authorization-config` (`AuthorizationConfiguration`, apiserver.config.k8s.io): who is asked, and in which order.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;

use super::{
    Mode,
    webhook::{Settings, WebhookAuthorizer, condition},
};
use crate::{
    config_file::{self, ConfigFile, ConfigFileError, DecodeError, decode},
    webhook::{Configured, FileError},
};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    File(#[from] ConfigFileError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{path}: {why}")]
    Invalid { path: String, why: String },
    #[error("the webhook's file cannot be used")]
    Webhook(#[from] FileError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    authorizers: Vec<Entry>,
}

impl ConfigFile for File {
    const KIND: &str = "AuthorizationConfiguration";
    const VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

    fn head(&self) -> (&str, &str) {
        (&self.api_version, &self.kind)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    name: String,
    webhook: Option<Hook>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hook {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: Option<String>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: Option<String>,
    cache_authorized_requests: Option<bool>,
    cache_unauthorized_requests: Option<bool>,
    #[serde(default)]
    timeout: String,
    #[serde(default)]
    subject_access_review_version: String,
    #[serde(default)]
    match_condition_subject_access_review_version: String,
    #[serde(default)]
    failure_policy: String,
    connection_info: Connection,
    #[serde(default)]
    match_conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Connection {
    #[serde(rename = "type", default)]
    kind: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    expression: String,
}

fn invalid(path: impl Into<String>, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { path: path.into(), why: why.into() }
}

fn duration(path: String, text: Option<&str>, default: u64) -> Result<Duration, ConfigError> {
    let seconds = match text {
        None => return Ok(Duration::from_secs(default)),
        Some(t) => crate::flags::go_seconds(t).map_err(|e| invalid(&path, e.to_string()))?,
    };
    u64::try_from(seconds).map(Duration::from_secs).map_err(|_| invalid(path, "a duration is not negative"))
}

fn hook(at: &str, h: &Hook) -> Result<Mode, ConfigError> {
    let path = |p: &str| format!("{at}.webhook.{p}");
    let timeout = duration(path("timeout"), Some(&h.timeout).filter(|t| !t.is_empty()).map(String::as_str), 0)?;
    if timeout.is_zero() || timeout > Duration::from_secs(30) {
        return Err(invalid(path("timeout"), "it is required, more than 0s and 30s at most"));
    }
    if !matches!(h.subject_access_review_version.as_str(), "v1" | "v1beta1") {
        return Err(invalid(path("subjectAccessReviewVersion"), "it is v1 or v1beta1"));
    }
    if !h.match_conditions.is_empty() && h.match_condition_subject_access_review_version != "v1" {
        return Err(invalid(path("matchConditionSubjectAccessReviewVersion"), "it must be v1 when there are matchConditions"));
    }
    let deny_on_failure = match h.failure_policy.as_str() {
        "Deny" => true,
        "NoOpinion" => false,
        _ => return Err(invalid(path("failurePolicy"), "it is Deny or NoOpinion")),
    };
    let mut conditions = Vec::new();
    for (i, c) in h.match_conditions.iter().enumerate() {
        conditions.push(condition(&c.expression).map_err(|e| invalid(path(&format!("matchConditions[{i}].expression")), e))?);
    }
    let file = match (h.connection_info.kind.as_str(), &h.connection_info.kube_config_file) {
        ("KubeConfigFile", Some(f)) => f,
        ("KubeConfigFile", None) => return Err(invalid(path("connectionInfo.kubeConfigFile"), "it is required")),
        ("InClusterConfig", _) => return Err(invalid(path("connectionInfo.type"), "this server runs in no pod; use KubeConfigFile")),
        _ => return Err(invalid(path("connectionInfo.type"), "it is KubeConfigFile")),
    };
    let ttl = |name: &str, text: &Option<String>, default, cached: Option<bool>| {
        let t = duration(path(name), text.as_deref(), default)?;
        Ok::<_, ConfigError>(if cached == Some(false) { Duration::ZERO } else { t })
    };
    let settings = Settings {
        version: h.subject_access_review_version.clone(),
        timeout,
        allowed_ttl: ttl("authorizedTTL", &h.authorized_ttl, 300, h.cache_authorized_requests)?,
        refused_ttl: ttl("unauthorizedTTL", &h.unauthorized_ttl, 30, h.cache_unauthorized_requests)?,
        deny_on_failure,
    };
    Ok(Mode::Webhook(Arc::new(WebhookAuthorizer::new(Configured::load(file)?, settings, conditions))))
}

fn parse(text: &str) -> Result<Vec<Mode>, ConfigError> {
    let file: File = decode(text)?;
    if file.authorizers.is_empty() {
        return Err(invalid("authorizers", "at least one authorizer is required"));
    }
    let mut modes = Vec::new();
    for (i, e) in file.authorizers.iter().enumerate() {
        let at = format!("authorizers[{i}]");
        let before = &file.authorizers[..i];
        if e.name.is_empty() {
            return Err(invalid(format!("{at}.name"), "a name is required"));
        }
        if before.iter().any(|o| o.name == e.name) {
            return Err(invalid(format!("{at}.name"), format!("{:?} is there twice", e.name)));
        }
        if e.kind != "Webhook" && (e.webhook.is_some() || before.iter().any(|o| o.kind == e.kind)) {
            return Err(invalid(at, format!("{} is there once at most, and has no webhook", e.kind)));
        }
        modes.push(match (e.kind.as_str(), &e.webhook) {
            ("Node", _) => Mode::Node,
            ("RBAC", _) => Mode::Rbac,
            ("Webhook", Some(h)) => hook(&at, h)?,
            ("Webhook", None) => return Err(invalid(format!("{at}.webhook"), "it is required")),
            ("AlwaysAllow", _) => return Err(invalid(at, "AlwaysAllow is refused: it would let everybody do everything")),
            (other, _) => return Err(invalid(at, format!("{other:?} is not one of Node, RBAC, Webhook"))),
        });
    }
    Ok(modes)
}

/// Reads who is asked.
pub fn load(path: &Path) -> Result<Vec<Mode>, ConfigError> {
    Ok(config_file::read("authorization configuration", path, parse)?)
}

/// The webhook of flags. Without an answer others are asked.
pub fn of_flags(file: &Path, version: &str, allowed_ttl: Duration, refused_ttl: Duration) -> Result<Mode, ConfigError> {
    let settings =
        Settings { version: version.to_owned(), timeout: Duration::from_secs(30), allowed_ttl, refused_ttl, deny_on_failure: false };
    Ok(Mode::Webhook(Arc::new(WebhookAuthorizer::new(Configured::load(file)?, settings, Vec::new()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(authorizers: &str) -> String {
        format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: {authorizers}\n")
    }

    const HOOK: &str = "timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Deny";

    #[test]
    fn what_is_wrong_is_named() {
        let hook = |more: &str| file(&format!("[{{type: Webhook, name: w, webhook: {{{more}}}}}]"));
        let to = "connectionInfo: {type: KubeConfigFile, kubeConfigFile: /no/such/file}";
        for (text, named) in [
            (file("[]"), "at least one"),
            (file("[{type: RBAC}]"), "authorizers[0].name"),
            (file("[{type: RBAC, name: a}, {type: RBAC, name: b}]"), "once at most"),
            (file("[{type: RBAC, name: a}, {type: Node, name: a}]"), "twice"),
            (file("[{type: AlwaysAllow, name: a}]"), "AlwaysAllow"),
            (file("[{type: Webhook, name: a}]"), "authorizers[0].webhook"),
            (hook(&format!("{HOOK}, connectionInfo: {{type: InClusterConfig}}")), "runs in no pod"),
            (hook(&format!("subjectAccessReviewVersion: v1, failurePolicy: Deny, {to}")), "timeout"),
            (hook(&format!("timeout: 31s, subjectAccessReviewVersion: v1, failurePolicy: Deny, {to}")), "timeout"),
            (hook(&format!("timeout: 3s, failurePolicy: Deny, {to}")), "subjectAccessReviewVersion"),
            (hook(&format!("timeout: 3s, subjectAccessReviewVersion: v1, {to}")), "failurePolicy"),
            (hook(&format!("{HOOK}, {to}, matchConditions: [{{expression: 'true'}}]")), "matchConditionSubjectAccessReviewVersion"),
            (hook(&format!("{HOOK}, {to}")), "webhook's file"),
            ("apiVersion: v1\nkind: AuthorizationConfiguration\n".to_owned(), "is not apiserver.config.k8s.io/v1"),
        ] {
            let e = parse(&text).err().unwrap_or_else(|| panic!("{text} is taken")).to_string();
            assert!(e.contains(named), "{text}\n{e}");
        }
        assert_eq!(parse(&file("[{type: Node, name: n}, {type: RBAC, name: r}]")).unwrap().len(), 2);
    }
}
