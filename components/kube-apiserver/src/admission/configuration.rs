//! Which plugins run, and what `--admission-control-config-file` says to those that take a configuration.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use serde_yaml::Value;

use super::{
    EVENT_RATE_LIMIT, IMAGE_POLICY, Mutate, OFF_BY_DEFAULT, PLUGINS, TOLERATIONS, Validate,
    event_rate_limit::{self, EventRateLimit},
    image_policy::{self, ImagePolicy},
    known, pod_security, pod_tolerations,
};
use crate::config_file::{self, ConfigFile, ConfigFileError, DecodeError, decode};

#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error(transparent)]
    File(#[from] ConfigFileError),
    #[error("{path}: there is no plugin {plugin:?}")]
    Unknown { path: PathBuf, plugin: String },
    #[error("{path}: the plugin {plugin} is named twice")]
    Twice { path: PathBuf, plugin: String },
    #[error("{path}: the plugin {plugin} takes no configuration")]
    Unconfigurable { path: PathBuf, plugin: String },
    #[error("the configuration of PodSecurity in {path} is wrong")]
    PodSecurity { path: PathBuf, source: pod_security::ConfigError },
    #[error("the configuration of EventRateLimit in {path} is wrong")]
    EventRateLimit { path: PathBuf, source: event_rate_limit::ConfigError },
    #[error("the configuration of ImagePolicyWebhook in {path} is wrong")]
    ImagePolicy { path: PathBuf, source: image_policy::ConfigError },
    #[error("the configuration of PodTolerationRestriction in {path} is wrong")]
    Tolerations { path: PathBuf, source: DecodeError },
    #[error("the plugin {plugin} needs a configuration: name it in the file of --admission-control-config-file")]
    Missing { plugin: &'static str },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    plugins: Vec<Plugin>,
}

impl ConfigFile for File {
    const KIND: &str = "AdmissionConfiguration";
    const VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1"];

    fn head(&self) -> (&str, &str) {
        (&self.api_version, &self.kind)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    configuration: Value,
}

/// What admission goes by.
#[derive(Debug, Clone)]
pub struct Configuration {
    pub(super) mutating: Vec<(&'static str, Mutate)>,
    pub(super) validating: Vec<(&'static str, Validate)>,
    /// Turned off by name.
    off: Vec<String>,
    pub pod_security: pod_security::Config,
    /// There when the plugin is on.
    pub(super) event_rate_limit: Option<Arc<EventRateLimit>>,
    /// There when the plugin is on.
    pub(super) image_policy: Option<Arc<ImagePolicy>>,
    pub(super) tolerations: pod_tolerations::Config,
}

impl Default for Configuration {
    fn default() -> Self {
        Self::of(&[], &[])
    }
}

impl Configuration {
    /// The plugins that are on by default and those turned on, but those turned off. One that is both is on.
    pub fn of(on: &[String], off: &[String]) -> Self {
        let unwanted = OFF_BY_DEFAULT.iter().map(|p| (*p).to_owned());
        let off: Vec<String> = off.iter().cloned().chain(unwanted).filter(|p| !on.contains(p)).collect();
        let on = || PLUGINS.iter().filter(|p| !off.iter().any(|o| o == p.name));
        Self {
            mutating: on().filter_map(|p| Some((p.name, p.mutate?))).collect(),
            validating: on().filter_map(|p| Some((p.name, p.validate?))).collect(),
            off,
            pod_security: pod_security::Config::default(),
            event_rate_limit: None,
            image_policy: None,
            tolerations: pod_tolerations::Config::default(),
        }
    }

    /// Whether every plugin that is on has what it cannot do without.
    pub fn checked(self) -> Result<Self, ConfigurationError> {
        let needed = [(EVENT_RATE_LIMIT, self.event_rate_limit.is_some()), (IMAGE_POLICY, self.image_policy.is_some())];
        match needed.into_iter().find(|(plugin, there)| self.is_on(plugin) && !there) {
            Some((plugin, _)) => Err(ConfigurationError::Missing { plugin }),
            None => Ok(self),
        }
    }

    pub fn is_on(&self, plugin: &str) -> bool {
        !self.off.iter().any(|o| o == plugin)
    }

    /// Reads an `AdmissionConfiguration`; paths in it are relative to the file.
    pub fn load(mut self, path: &Path) -> Result<Self, ConfigurationError> {
        let file: File = config_file::read("admission configuration", path, decode)?;
        let mut seen: Vec<String> = Vec::new();
        for p in file.plugins {
            let (path, plugin) = (path.to_owned(), p.name.clone());
            if !known(&plugin) {
                return Err(ConfigurationError::Unknown { path, plugin });
            }
            if seen.contains(&plugin) {
                return Err(ConfigurationError::Twice { path, plugin });
            }
            seen.push(plugin.clone());
            let mut beside = path.parent().unwrap_or(Path::new("")).to_owned();
            let value = match (&p.configuration, p.path.as_str()) {
                (Value::Null, "") => continue,
                (Value::Null, named) => {
                    let file = beside.join(named);
                    beside = file.parent().unwrap_or(Path::new("")).to_owned();
                    config_file::read("configuration of an admission plugin", &file, |text| serde_yaml::from_str(text))?
                }
                _ => p.configuration,
            };
            match plugin.as_str() {
                "PodSecurity" => {
                    self.pod_security =
                        pod_security::Config::parse(value).map_err(|source| ConfigurationError::PodSecurity { path, source })?;
                }
                // What a plugin that is off would do is not looked at.
                EVENT_RATE_LIMIT | IMAGE_POLICY | TOLERATIONS if !self.is_on(&plugin) => {}
                EVENT_RATE_LIMIT => {
                    let limits = EventRateLimit::parse(value).map_err(|source| ConfigurationError::EventRateLimit { path, source })?;
                    self.event_rate_limit = Some(Arc::new(limits));
                }
                IMAGE_POLICY => {
                    let policy = ImagePolicy::parse(value, &beside).map_err(|source| ConfigurationError::ImagePolicy { path, source })?;
                    self.image_policy = Some(Arc::new(policy));
                }
                TOLERATIONS => {
                    let config = pod_tolerations::Config::parse(value);
                    self.tolerations = config.map_err(|source| ConfigurationError::Tolerations { path, source })?;
                }
                _ => return Err(ConfigurationError::Unconfigurable { path, plugin }),
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load(text: &str) -> Result<Configuration, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("ps.yaml"),
            "apiVersion: pod-security.admission.config.k8s.io/v1\nkind: PodSecurityConfiguration\ndefaults: {enforce: baseline}\n",
        )
        .unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n{text}")).unwrap();
        Configuration::default().load(&path).map_err(|e| {
            let source = std::error::Error::source(&e).map(ToString::to_string);
            format!("{e}: {}", source.unwrap_or_default())
        })
    }

    #[test]
    fn plugins_are_configured_in_place_or_in_a_file_beside() {
        let inline = "plugins: [{name: PodSecurity, configuration: {apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration, defaults: {enforce: baseline}}}]";
        let a = load(inline).unwrap();
        assert_eq!(a.pod_security, load("plugins: [{name: PodSecurity, path: ps.yaml}]").unwrap().pod_security);
        assert_eq!(a.pod_security.defaults.enforce.to_string(), "baseline:latest");
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        for (text, named) in [
            ("plugins: [{name: Nonsense}]", "Nonsense"),
            ("plugins: [{name: PodSecurity}, {name: PodSecurity}]", "twice"),
            ("plugins: [{name: Priority, configuration: {a: b}}]", "Priority"),
            ("plugins: [{name: PodSecurity, path: missing.yaml}]", "missing.yaml"),
            ("plugins: [{name: PodSecurity, configuration: {kind: x, apiVersion: y}}]", "y x is not"),
            ("pluggins: []", "pluggins"),
        ] {
            let e = load(text).unwrap_err();
            assert!(e.contains(named), "{e}");
        }
    }

    #[test]
    fn a_plugin_that_cannot_do_without_a_configuration_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let limits = "configuration: {apiVersion: eventratelimit.admission.k8s.io/v1alpha1, kind: Configuration, limits: [{type: Server, qps: 1, burst: 1}]}";
        fs::write(
            &path,
            format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins: [{{name: EventRateLimit, {limits}}}]"),
        )
        .unwrap();
        let on = || Configuration::of(&["EventRateLimit".into()], &[]);
        assert!(on().checked().unwrap_err().to_string().contains("EventRateLimit needs a configuration"));
        assert!(on().load(&path).unwrap().checked().unwrap().event_rate_limit.is_some());
        assert!(Configuration::default().load(&path).unwrap().checked().unwrap().event_rate_limit.is_none(), "it is off");
        let e = Configuration::of(&["ImagePolicyWebhook".into()], &[]).checked().unwrap_err();
        assert!(e.to_string().contains("ImagePolicyWebhook"), "{e}");
    }

    #[test]
    fn a_plugin_that_is_off_is_not_asked() {
        let (all, less) = (Configuration::default(), Configuration::of(&[], &["PodSecurity".into()]));
        assert_eq!(all.validating.len(), less.validating.len() + 1);
        assert!(!less.is_on("PodSecurity") && less.is_on("ResourceQuota"));
        let more = Configuration::of(&["AlwaysPullImages".into()], &[]);
        assert_eq!(all.mutating.len() + 1, more.mutating.len());
        assert!(!all.is_on("AlwaysPullImages") && more.is_on("AlwaysPullImages"));
    }
}
