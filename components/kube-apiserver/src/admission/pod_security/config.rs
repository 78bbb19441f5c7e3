//! `PodSecurityConfiguration`: the policy of namespaces without labels, and who is left alone.

use serde::Deserialize;
use serde_yaml::Value;

use crate::config_file::{ConfigFile, DecodeError, decode_value};

use super::policy::{BAD_LEVEL, BAD_VERSION, Level, Policy, Standard, Version};

/// What the plugin goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub defaults: Policy,
    pub users: Vec<String>,
    pub namespaces: Vec<String>,
    pub runtime_classes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("defaults.{field}: {value:?} {expected}")]
    Default { field: &'static str, value: String, expected: &'static str },
    #[error("exemptions.{field}[{index}]: {problem}")]
    Exemption { field: &'static str, index: usize, problem: &'static str },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    exemptions: Exemptions,
}

impl ConfigFile for File {
    const KIND: &str = "PodSecurityConfiguration";
    const VERSIONS: &[&str] = &[
        "pod-security.admission.config.k8s.io/v1",
        "pod-security.admission.config.k8s.io/v1beta1",
        "pod-security.admission.config.k8s.io/v1alpha1",
    ];

    fn head(&self) -> (&str, &str) {
        (&self.api_version, &self.kind)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Defaults {
    enforce: String,
    enforce_version: String,
    audit: String,
    audit_version: String,
    warn: String,
    warn_version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Exemptions {
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

impl Config {
    pub fn parse(v: Value) -> Result<Self, ConfigError> {
        let f: File = decode_value(v)?;
        let standard = |(lf, l): (&'static str, &str), (vf, v): (&'static str, &str)| {
            let bad = |field, value: &str, expected| ConfigError::Default { field, value: value.to_owned(), expected };
            let level = if l.is_empty() { Some(Level::Privileged) } else { Level::parse(l) };
            let version = if v.is_empty() { Some(Version::Latest) } else { Version::parse(v) };
            Ok::<_, ConfigError>(Standard {
                level: level.ok_or_else(|| bad(lf, l, BAD_LEVEL))?,
                version: version.ok_or_else(|| bad(vf, v, BAD_VERSION))?,
            })
        };
        let d = &f.defaults;
        let defaults = Policy {
            enforce: standard(("enforce", &d.enforce), ("enforce-version", &d.enforce_version))?,
            audit: standard(("audit", &d.audit), ("audit-version", &d.audit_version))?,
            warn: standard(("warn", &d.warn), ("warn-version", &d.warn_version))?,
        };
        let e = f.exemptions;
        for (field, list) in [("usernames", &e.usernames), ("namespaces", &e.namespaces), ("runtimeClasses", &e.runtime_classes)] {
            for (index, v) in list.iter().enumerate() {
                let problem = if v.is_empty() {
                    "must not be empty"
                } else if list[..index].contains(v) {
                    "is there twice"
                } else {
                    continue;
                };
                return Err(ConfigError::Exemption { field, index, problem });
            }
        }
        Ok(Self { defaults, users: e.usernames, namespaces: e.namespaces, runtime_classes: e.runtime_classes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(serde_yaml::from_str(text).unwrap())
    }

    const HEAD: &str = "apiVersion: pod-security.admission.config.k8s.io/v1\nkind: PodSecurityConfiguration\n";

    #[test]
    fn defaults_and_exemptions_are_read() {
        let c = parse(&format!(
            "{HEAD}defaults: {{enforce: baseline, enforce-version: v1.30, warn: restricted}}\nexemptions: {{usernames: [u], namespaces: [kube-system], runtimeClasses: [kata]}}"
        ))
        .unwrap();
        assert_eq!(c.defaults.enforce.to_string(), "baseline:v1.30");
        assert_eq!(c.defaults.audit.to_string(), "privileged:latest");
        assert_eq!(c.defaults.warn.to_string(), "restricted:latest");
        assert_eq!((c.users, c.namespaces, c.runtime_classes), (vec!["u".into()], vec!["kube-system".into()], vec!["kata".into()]));
        assert_eq!(parse(HEAD).unwrap(), Config::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("apiVersion: v1\nkind: PodSecurityConfiguration", "v1 PodSecurityConfiguration is not"),
            ("apiVersion: pod-security.admission.config.k8s.io/v1\nkind: Pod", "v1 Pod is not"),
            (&format!("{HEAD}defaults: {{enforce: zzz}}"), "defaults.enforce"),
            (&format!("{HEAD}defaults: {{warn-version: v2}}"), "defaults.warn-version"),
            (&format!("{HEAD}defaults: {{enforced: baseline}}"), "enforced"),
            (&format!("{HEAD}exemptions: {{namespaces: [a, a]}}"), "exemptions.namespaces[1]"),
            (&format!("{HEAD}exemptions: {{usernames: ['']}}"), "exemptions.usernames[0]"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(named), "{e}");
        }
    }
}
