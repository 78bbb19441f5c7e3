//! The kubelet's certificates: the first one by bootstrap token, renewed in process, and the serving certificate. All come from the cluster
//! by certificate signing requests.

use crate::config::Config;
use jiff::Timestamp;
use k8s_client::resources::CERTIFICATE_SIGNING_REQUESTS;
use k8s_client::{Client, Material, Request};
use pki::{Certificate, LeafSpec, PrivateKey};
use serde::Deserialize;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What went wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("make a key or request")]
    Pki(#[from] pki::PkiError),
    #[error("{operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{operation}")]
    Api { operation: &'static str, source: Box<k8s_client::Error> },
    #[error("the certificate signing request {name} was denied: {message}")]
    Denied { name: String, message: String },
    #[error("the certificate signing request {0} was not answered in time; is it approved?")]
    Timeout(String),
    #[error("read {path}")]
    Kubeconfig { path: PathBuf, source: k8s_client::ConfigError },
    #[error("there is no usable client certificate and no --bootstrap-kubeconfig to ask for one")]
    NoBootstrap,
}

/// Which of the two certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    fn signer(self) -> &'static str {
        match self {
            Purpose::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Purpose::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    fn usages(self) -> [&'static str; 2] {
        ["digital signature", if self == Purpose::Client { "client auth" } else { "server auth" }]
    }

    fn file_prefix(self) -> &'static str {
        match self {
            Purpose::Client => "kubelet-client",
            Purpose::Serving => "kubelet-server",
        }
    }
}

/// How long one request may wait for its approval before another is made.
const APPROVAL: Duration = Duration::from_secs(15 * 60);
const POLL: Duration = Duration::from_secs(2);
/// Pause after a failed attempt.
const RETRY: Duration = Duration::from_secs(10);

/// The certificate and key in use, in one file.
pub fn current_path(dir: &Path, purpose: Purpose) -> PathBuf {
    dir.join(format!("{}-current.pem", purpose.file_prefix()))
}

fn spec(purpose: Purpose, node: &str, addresses: &[IpAddr]) -> LeafSpec {
    let mut spec = LeafSpec { common_name: format!("system:node:{node}"), organization: Some("system:nodes".into()), ..Default::default() };
    if purpose == Purpose::Serving {
        spec.dns_names = vec![node.to_owned()];
        spec.addresses = addresses.to_vec();
    }
    spec
}

#[derive(Deserialize)]
struct Csr {
    metadata: k8s_client::ObjectMeta,
    #[serde(default)]
    status: CsrStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CsrStatus {
    certificate: String,
    conditions: Vec<k8s_client::Condition>,
}

/// Asks for a certificate and waits for it. Returns certificate and key in PEM.
async fn request(client: &Client, purpose: Purpose, node: &str, addresses: &[IpAddr]) -> Result<(String, String), CredentialError> {
    use base64::Engine as _;
    let standard = base64::engine::general_purpose::STANDARD;
    let key = PrivateKey::generate()?;
    let pem = pki::create_request(&key, &spec(purpose, node, addresses))?;
    let body = serde_json::json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "csr-"},
        "spec": {"request": standard.encode(pem), "signerName": purpose.signer(), "usages": purpose.usages()}
    });
    let api = |operation: &'static str| move |source: k8s_client::Error| CredentialError::Api { operation, source: Box::new(source) };
    let created: Csr = client
        .call(&Request::create(&CERTIFICATE_SIGNING_REQUESTS, "", &body))
        .await
        .map_err(api("create a certificate signing request"))?;
    let name = created.metadata.name;
    tracing::info!(csr = %name, signer = purpose.signer(), "waiting for the certificate");
    let deadline = tokio::time::Instant::now() + APPROVAL;
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
        let csr: Csr = match client.call(&Request::get(&CERTIFICATE_SIGNING_REQUESTS, "", &name)).await {
            Ok(csr) => csr,
            Err(error) if error.is_retryable() => continue,
            Err(source) => return Err(api("read a certificate signing request")(source)),
        };
        if let Some(denied) = csr.status.conditions.iter().find(|c| ["Denied", "Failed"].contains(&c.kind.as_str())) {
            return Err(CredentialError::Denied { name, message: denied.message.clone() });
        }
        if !csr.status.certificate.is_empty() {
            let bytes = standard.decode(csr.status.certificate).unwrap_or_default();
            let certificate = String::from_utf8_lossy(&bytes).into_owned();
            // What does not parse or is for another key must not replace what works.
            pki::tls::certified_key(&certificate, &key.to_pem())?;
            return Ok((certificate, key.to_pem()));
        }
    }
    Err(CredentialError::Timeout(name))
}

/// Writes certificate and key to a new file and points the `-current` link to it.
fn store(dir: &Path, purpose: Purpose, certificate: &str, key: &str) -> Result<(), CredentialError> {
    use std::io::Write as _;
    let io = |operation: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| CredentialError::Io { operation, path, source }
    };
    std::fs::create_dir_all(dir).map_err(io("create", dir))?;
    let stamp = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S").to_string();
    let name = format!("{}-{stamp}.pem", purpose.file_prefix());
    let path = dir.join(&name);
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(io("create", &path))?;
    file.write_all(format!("{}\n{}", certificate.trim_end(), key).as_bytes()).and_then(|()| file.sync_all()).map_err(io("write", &path))?;
    let link = dir.join(format!("{}-updated.pem", purpose.file_prefix()));
    let _ = std::fs::remove_file(&link);
    symlink(&name, &link).map_err(io("link", &link))?;
    let current = current_path(dir, purpose);
    std::fs::rename(&link, &current).map_err(io("replace", &current))?;
    remove_old(dir, purpose, &name);
    Ok(())
}

/// Keeps the newest few files.
fn remove_old(dir: &Path, purpose: Purpose, current: &str) {
    let prefix = format!("{}-2", purpose.file_prefix());
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(&prefix) && n != current).collect();
    names.sort();
    let surplus = names.len().saturating_sub(2);
    for name in &names[..surplus] {
        if let Err(error) = std::fs::remove_file(dir.join(name)) {
            tracing::warn!(file = %name, error = %error, "remove an old certificate");
        }
    }
}

/// The certificate in a file, if it is usable now.
fn usable(path: &Path, now: Timestamp) -> Option<Certificate> {
    let text = std::fs::read_to_string(path).ok()?;
    pki::tls::certified_key(&text, &text).ok()?;
    Certificate::from_pem(&text).ok().filter(|c| c.valid_at(now))
}

/// When a certificate is to be replaced: between 70 and 90 percent of its life, at random so that many nodes do not ask at once.
fn rotation_at(certificate: &Certificate, random: f64) -> Timestamp {
    let (from, to) = (certificate.not_before.as_second(), certificate.not_after.as_second());
    let part = 0.7 + 0.2 * random.clamp(0.0, 1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    let at = from + ((to - from) as f64 * part) as i64;
    Timestamp::from_second(at).unwrap_or(certificate.not_after)
}

/// The client for the API server, once there is a certificate for it. Bootstraps as long as it takes.
pub async fn client(config: &Config, kubeconfig: &Path, bootstrap: Option<&Path>) -> Result<Client, CredentialError> {
    loop {
        match k8s_client::Config::load(Some(kubeconfig)) {
            Ok(loaded) => {
                let file = match &loaded.identity {
                    Some((Material::File(path), _)) => Some(path.clone()),
                    _ => None,
                };
                let ready = file.as_ref().is_none_or(|path| {
                    // A certificate and key in two files is somebody else's to renew; all that is asked is that it is there.
                    usable(path, Timestamp::now()).is_some() || (path.exists() && !is_own(config, path))
                });
                if ready {
                    match Client::new(loaded.with_user_agent("kubelet")) {
                        Ok(client) => return Ok(client),
                        Err(source) => {
                            let error = CredentialError::Kubeconfig { path: kubeconfig.into(), source };
                            tracing::warn!(error = %crate::pod::apply::error_chain(&error), "open the kubeconfig");
                        }
                    }
                } else {
                    tracing::info!(file = ?file, "no usable client certificate yet");
                }
            }
            Err(source) if kubeconfig.exists() => {
                let error = CredentialError::Kubeconfig { path: kubeconfig.into(), source };
                tracing::warn!(error = %crate::pod::apply::error_chain(&error), "open the kubeconfig");
            }
            Err(_) => {}
        }
        let outcome = match bootstrap {
            Some(bootstrap) if bootstrap.exists() => bootstrap_once(config, kubeconfig, bootstrap).await,
            _ => Err(CredentialError::NoBootstrap),
        };
        if let Err(error) = outcome {
            tracing::warn!(error = %crate::pod::apply::error_chain(&error), "get a client certificate");
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn is_own(config: &Config, path: &Path) -> bool {
    path == current_path(&config.cert_dir, Purpose::Client)
}

async fn bootstrap_once(config: &Config, kubeconfig: &Path, bootstrap: &Path) -> Result<(), CredentialError> {
    let load = |source| CredentialError::Kubeconfig { path: bootstrap.into(), source };
    let settings = k8s_client::Config::load(Some(bootstrap)).map_err(load)?;
    let client = Client::new(settings.clone().with_user_agent("kubelet")).map_err(load)?;
    let (certificate, key) = request(&client, Purpose::Client, &config.node_name, &[]).await?;
    store(&config.cert_dir, Purpose::Client, &certificate, &key)?;
    if !kubeconfig.exists() {
        let text = kubeconfig_text(&settings, &current_path(&config.cert_dir, Purpose::Client));
        let io = |source| CredentialError::Io { operation: "write", path: kubeconfig.into(), source };
        let temporary = kubeconfig.with_extension("new");
        std::fs::write(&temporary, text).map_err(io)?;
        std::fs::rename(&temporary, kubeconfig).map_err(io)?;
    }
    tracing::info!(node = %config.node_name, "client certificate issued");
    Ok(())
}

/// A kubeconfig for the same server with the certificate instead of the token.
fn kubeconfig_text(settings: &k8s_client::Config, certificate: &Path) -> String {
    use base64::Engine as _;
    let mut cluster = serde_json::json!({"server": settings.server});
    match &settings.ca {
        Some(Material::File(path)) => cluster["certificate-authority"] = path.to_string_lossy().into(),
        Some(Material::Inline(bytes)) => {
            cluster["certificate-authority-data"] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
        }
        None => {}
    }
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default-context",
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "users": [{"name": "default-auth", "user": {"client-certificate": certificate, "client-key": certificate}}],
        "contexts": [{"name": "default-context", "context": {"cluster": "default-cluster", "user": "default-auth", "namespace": "default"}}],
    });
    serde_yaml::to_string(&value).unwrap_or_default()
}

/// Keeps one certificate renewed for ever. The serving certificate is also asked for anew when the node's addresses change.
pub async fn rotate(shared: std::sync::Arc<crate::kubelet::Shared>, purpose: Purpose) {
    let config = &shared.config;
    loop {
        let path = current_path(&config.cert_dir, purpose);
        let addresses: Vec<IpAddr> = shared.host_ips().iter().filter_map(|ip| ip.parse().ok()).collect();
        if let Some(certificate) = usable(&path, Timestamp::now()) {
            let fits = purpose == Purpose::Client || addresses.iter().all(|a| certificate.addresses.contains(a));
            let at = rotation_at(&certificate, rand::random());
            if fits && Timestamp::now() < at {
                let wait = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
                // Looked at in between, because the clock may jump and addresses change.
                tokio::time::sleep(wait.min(Duration::from_secs(300))).await;
                continue;
            }
        }
        let outcome = match shared.api.client() {
            Err(_) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Ok(client) => match request(&client, purpose, &config.node_name, &addresses).await {
                Ok((certificate, key)) => store(&config.cert_dir, purpose, &certificate, &key),
                Err(error) => Err(error),
            },
        };
        match outcome {
            Ok(()) => tracing::info!(purpose = ?purpose, "certificate renewed"),
            Err(error) => {
                tracing::warn!(purpose = ?purpose, error = %crate::pod::apply::error_chain(&error), "renew a certificate");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::Authority;

    fn issue(lifetime: Duration) -> pki::Issued {
        let now = Timestamp::now();
        let ca = Authority::generate("ca", now, Duration::from_secs(86_400)).unwrap();
        let ca = Authority::from_pem(&ca.cert_pem, &ca.key_pem).unwrap();
        ca.issue(&LeafSpec { client: true, lifetime, ..spec(Purpose::Client, "n", &[]) }, now).unwrap()
    }

    #[test]
    fn the_current_certificate_is_swapped_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let pair = issue(Duration::from_secs(3600));
        for i in 0..5 {
            std::fs::write(dir.path().join(format!("kubelet-client-2020-01-0{i}.pem")), "x").unwrap();
        }
        store(dir.path(), Purpose::Client, &pair.cert_pem, &pair.key_pem).unwrap();
        let current = current_path(dir.path(), Purpose::Client);
        let certificate = usable(&current, Timestamp::now()).unwrap();
        assert_eq!((certificate.common_name.as_str(), certificate.organizations[0].as_str()), ("system:node:n", "system:nodes"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4, "the new file, its link and two old ones");
        assert!(usable(&current, Timestamp::now() + jiff::SignedDuration::from_hours(2)).is_none(), "expired");
        std::fs::write(dir.path().join("bad"), "not a certificate").unwrap();
        assert!(usable(&dir.path().join("bad"), Timestamp::now()).is_none());
    }

    #[test]
    fn rotation_lies_between_70_and_90_percent() {
        let pair = issue(Duration::from_secs(1000));
        let certificate = Certificate::from_pem(&pair.cert_pem).unwrap();
        let life = certificate.not_after.as_second() - certificate.not_before.as_second();
        for (random, part) in [(0.0, 0.7), (0.5, 0.8), (1.0, 0.9)] {
            let at = rotation_at(&certificate, random).as_second() - certificate.not_before.as_second();
            assert!((at as f64 - life as f64 * part).abs() <= 1.0);
        }
    }

    #[test]
    fn the_written_kubeconfig_names_the_certificate_file() {
        let settings = k8s_client::Config { ca: Some(Material::Inline(b"ca".to_vec())), ..k8s_client::Config::new("https://1.2.3.4:6443") };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let text = kubeconfig_text(&settings, Path::new("/pki/current.pem"));
        let read = k8s_client::Config::from_kubeconfig_text(&path, &text).unwrap();
        assert_eq!(read.server, "https://1.2.3.4:6443");
        assert_eq!(read.identity.unwrap().0, Material::File("/pki/current.pem".into()));
    }
}
