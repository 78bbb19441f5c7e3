//! Kubeconfigs for administrators, with a client certificate issued on the spot.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use machine_config::Config;
use pki::{Authority, Certificate, LeafSpec, PkiError};

/// How long an administrator's certificate is good.
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// Why there is no kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// Workers can't issue certificates.
    #[error("this machine is a worker and holds no CA key: ask a control plane")]
    Worker,
    /// The server or the user is not one.
    #[error("{0}")]
    Argument(String),
    /// The certificate could not be issued.
    #[error("issue the client certificate")]
    Issue(#[from] PkiError),
}

/// A kubeconfig, and until when it is good.
#[derive(Debug)]
pub struct Kubeconfig {
    /// The file's text.
    pub text: String,
    /// When its certificate expires.
    pub not_after: Timestamp,
}

/// A kubeconfig for a member of `system:masters`. An empty server is the cluster's endpoint.
pub fn admin(config: &Config, server: &str, user: &str, now: Timestamp) -> Result<Kubeconfig, KubeconfigError> {
    let authority = &config.secrets.authorities.cluster;
    let key = authority.key.as_ref().ok_or(KubeconfigError::Worker)?;
    let printable = |text: &str| text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'));
    if !user.is_empty() && (user.len() > 64 || !printable(user)) || user.starts_with("system:") {
        return Err(KubeconfigError::Argument(format!("{user:?} can't be a user's name: up to 64 characters, not beginning with system:")));
    }
    let endpoint = format!("https://{}", config.cluster.control_plane.endpoint.authority());
    let server = if server.is_empty() { endpoint.as_str() } else { server };
    if !server.starts_with("https://") || !printable(server) {
        return Err(KubeconfigError::Argument(format!("{server:?} is not a server's URL: it begins with https://")));
    }
    let spec = LeafSpec {
        common_name: if user.is_empty() { "admin".to_owned() } else { user.to_owned() },
        organization: Some("system:masters".to_owned()),
        dns_names: Vec::new(),
        addresses: Vec::new(),
        server: false,
        client: true,
        lifetime: LIFETIME,
    };
    let issued = Authority::from_pem(authority.cert.as_str(), key.reveal())?.issue(&spec, now)?;
    let not_after = Certificate::from_pem(&issued.cert_pem)?.not_after;
    let (cluster, name) = (&config.cluster.name, &spec.common_name);
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: \"{cluster}\"\n  cluster:\n    server: \"{server}\"\n    \
         certificate-authority-data: {}\nusers:\n- name: \"{name}@{cluster}\"\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: \"{name}@{cluster}\"\n  context:\n    cluster: \"{cluster}\"\n    \
         user: \"{name}@{cluster}\"\ncurrent-context: \"{name}@{cluster}\"\npreferences: {{}}\n",
        STANDARD.encode(authority.cert.as_str()),
        STANDARD.encode(&issued.cert_pem),
        STANDARD.encode(&issued.key_pem),
    );
    Ok(Kubeconfig { text, not_after })
}
