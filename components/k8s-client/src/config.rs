//! Where the API server is and how to prove who we are: a kubeconfig file, or the service account of a pod.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use crate::error::ConfigError;

/// PEM or token bytes: in a file that may be renewed, or given inline.
#[derive(Clone, PartialEq, Eq)]
pub enum Material {
    File(PathBuf),
    Inline(Vec<u8>),
}

impl Material {
    /// The current content.
    pub fn read(&self) -> Result<Vec<u8>, ConfigError> {
        match self {
            Self::File(path) => std::fs::read(path).map_err(|error| ConfigError::Read(path.clone(), error)),
            Self::Inline(data) => Ok(data.clone()),
        }
    }

    /// What it is called in messages.
    pub fn describe(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inline(_) => "inline data".to_string(),
        }
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// How to reach and authenticate to an API server. Certificates are always verified; there is no insecure mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `https://host:port`; plain `http` is accepted for loopback addresses alone.
    pub server: String,
    /// The name to expect in the server's certificate, when it is not the host of `server`.
    pub tls_server_name: Option<String>,
    /// The CA that signed the server's certificate.
    pub ca: Option<Material>,
    /// Client certificate and key.
    pub identity: Option<(Material, Material)>,
    /// Bearer token.
    pub token: Option<Material>,
    /// The context's namespace.
    pub namespace: String,
    pub user_agent: String,
}

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl Config {
    /// A configuration without credentials.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            tls_server_name: None,
            ca: None,
            identity: None,
            token: None,
            namespace: "default".into(),
            user_agent: concat!("strake/", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// The same configuration naming the component to the server.
    #[must_use]
    pub fn with_user_agent(mut self, component: &str) -> Self {
        self.user_agent = format!("{component}/{}", env!("CARGO_PKG_VERSION"));
        self
    }

    /// A kubeconfig when given, else the pod's service account.
    pub fn load(kubeconfig: Option<&Path>) -> Result<Self, ConfigError> {
        match kubeconfig {
            Some(path) => Self::from_kubeconfig(path),
            None => Self::in_cluster(),
        }
    }

    /// The current context of a kubeconfig file. Relative file names are relative to it.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read(path.to_path_buf(), error))?;
        Self::from_kubeconfig_text(path, &text)
    }

    /// The same from text; `path` names it and anchors relative file names.
    pub fn from_kubeconfig_text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let invalid = |problem: String| ConfigError::Invalid(path.to_path_buf(), problem);
        let file: KubeConfig = serde_yaml::from_str(text).map_err(|error| ConfigError::Parse(path.to_path_buf(), error))?;
        let context = file
            .contexts
            .iter()
            .find(|c| c.name == file.current_context)
            .map(|c| &c.context)
            .ok_or_else(|| invalid(format!("no context {:?}", file.current_context)))?;
        let cluster = file
            .clusters
            .iter()
            .find(|c| c.name == context.cluster)
            .map(|c| &c.cluster)
            .ok_or_else(|| invalid(format!("no cluster {:?}", context.cluster)))?;
        if cluster.insecure_skip_tls_verify {
            return Err(invalid("insecure-skip-tls-verify is not supported; give certificate-authority".into()));
        }
        let directory = path.parent().unwrap_or(Path::new(""));
        let material = |data: &Option<String>, file: &Option<PathBuf>, what: &str| -> Result<Option<Material>, ConfigError> {
            match (data, file) {
                (Some(data), _) => base64::engine::general_purpose::STANDARD
                    .decode(data.trim())
                    .map(|bytes| Some(Material::Inline(bytes)))
                    .map_err(|error| invalid(format!("{what}: {error}"))),
                (None, Some(file)) => Ok(Some(Material::File(directory.join(file)))),
                (None, None) => Ok(None),
            }
        };
        let mut config = Self::new(cluster.server.clone());
        config.tls_server_name.clone_from(&cluster.tls_server_name);
        config.ca = material(&cluster.certificate_authority_data, &cluster.certificate_authority, "certificate-authority-data")?;
        if let Some(namespace) = &context.namespace {
            config.namespace.clone_from(namespace);
        }
        let Some(user) = file.users.iter().find(|u| u.name == context.user).map(|u| &u.user) else {
            if context.user.is_empty() {
                return Ok(config);
            }
            return Err(invalid(format!("no user {:?}", context.user)));
        };
        if user.exec.is_some() || user.auth_provider.is_some() {
            return Err(invalid(format!("user {:?}: exec and auth-provider plugins are not supported", context.user)));
        }
        let certificate = material(&user.client_certificate_data, &user.client_certificate, "client-certificate-data")?;
        let key = material(&user.client_key_data, &user.client_key, "client-key-data")?;
        config.identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid(format!("user {:?}: a client certificate needs its key and a key its certificate", context.user))),
        };
        config.token = match (&user.token, &user.token_file) {
            (_, Some(file)) => Some(Material::File(directory.join(file))),
            (Some(token), None) => Some(Material::Inline(token.clone().into_bytes())),
            (None, None) => None,
        };
        Ok(config)
    }

    /// The service account mounted into this pod.
    pub fn in_cluster() -> Result<Self, ConfigError> {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").map_err(|_| ConfigError::NotInCluster("KUBERNETES_SERVICE_HOST"))?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").map_err(|_| ConfigError::NotInCluster("KUBERNETES_SERVICE_PORT"))?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let directory = Path::new(SERVICE_ACCOUNT);
        let mut config = Self::new(format!("https://{host}:{port}"));
        config.ca = Some(Material::File(directory.join("ca.crt")));
        config.token = Some(Material::File(directory.join("token")));
        if let Ok(namespace) = std::fs::read_to_string(directory.join("namespace")) {
            config.namespace = namespace.trim().to_string();
        }
        Ok(config)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct KubeConfig {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    tls_server_name: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
    namespace: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::from_kubeconfig_text(Path::new("/etc/kubernetes/x/kubeconfig"), text)
    }

    #[test]
    fn files_are_relative_to_the_kubeconfig_and_data_wins() {
        let config = parse(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: k\n  cluster: {server: 'https://10.5.0.11:6443', certificate-authority: ca.crt}\n\
             users:\n- name: u\n  user: {client-certificate: /a/b.crt, client-certificate-data: QUJD, client-key: k.key}\ncontexts:\n- name: c\n  context: {cluster: k, user: u, namespace: n}\n",
        )
        .unwrap();
        assert_eq!(config.ca, Some(Material::File("/etc/kubernetes/x/ca.crt".into())));
        assert_eq!(config.identity, Some((Material::Inline(b"ABC".to_vec()), Material::File("/etc/kubernetes/x/k.key".into()))));
        assert_eq!(config.namespace, "n");
        assert_eq!(config.server, "https://10.5.0.11:6443");
    }

    #[test]
    fn what_we_do_not_support_is_refused_by_name() {
        let with = |cluster: &str, user: &str, current: &str| {
            format!(
                "current-context: {current}\nclusters: [{{name: k, cluster: {{server: 'https://h', {cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n"
            )
        };
        for (text, want) in [
            (with("insecure-skip-tls-verify: true", "", "c"), "insecure-skip-tls-verify"),
            (with("", "exec: {command: x}", "c"), "exec"),
            (with("", "client-key: x", "c"), "needs its key"),
            (with("", "", "other"), "no context \"other\""),
            (with("certificate-authority-data: '!!'", "", "c"), "certificate-authority-data"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
