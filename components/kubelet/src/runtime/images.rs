//! Getting the image of a container onto the machine.

use super::security::ImageUser;
use crate::api::Api;
use crate::cri::{Cri, v1};
use crate::model::pod::{Container, Pod};
use base64::Engine as _;
use k8s_client::EventType;
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Why a container has no image: the waiting state's reason and message.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageError {
    pub reason: &'static str,
    pub message: String,
}

/// An image that is on the machine.
#[derive(Debug, Clone)]
pub struct Image {
    pub spec: v1::ImageSpec,
    pub user: ImageUser,
}

const INITIAL_BACKOFF: Duration = Duration::from_secs(10);
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// Pulls images, one at a time when so configured, waiting longer after each failure.
pub struct Images {
    cri: Cri,
    pulls: tokio::sync::Semaphore,
    failures: Mutex<HashMap<(String, String), (Instant, Duration)>>,
}

/// What is to be done about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Use,
    Pull,
    Never,
}

fn decide(policy: &str, present: bool) -> Decision {
    match (policy, present) {
        ("Always", _) => Decision::Pull,
        ("Never", false) => Decision::Never,
        (_, true) => Decision::Use,
        (_, false) => Decision::Pull,
    }
}

/// The pull policy, by default Always for `latest` and IfNotPresent otherwise.
pub fn policy(container: &Container) -> &str {
    match container.image_pull_policy.as_str() {
        "" if tag_of(&container.image) == Some("latest") => "Always",
        "" => "IfNotPresent",
        set => set,
    }
}

/// The tag of a reference: `latest` when neither tag nor digest is given, `None` for a digest.
fn tag_of(image: &str) -> Option<&str> {
    if image.contains('@') {
        return None;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    Some(last.split_once(':').map_or("latest", |(_, tag)| tag))
}

/// The registry of a reference.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains('.') || first.contains(':') || first == "localhost" => first,
        _ => "docker.io",
    }
}

impl Images {
    pub fn new(cri: Cri, serialize: bool) -> Self {
        Self { cri, pulls: tokio::sync::Semaphore::new(if serialize { 1 } else { 8 }), failures: Mutex::new(HashMap::new()) }
    }

    /// Makes sure the image is there.
    pub async fn ensure(
        &self,
        api: &Api,
        pod: &Pod,
        container: &Container,
        sandbox_config: &v1::PodSandboxConfig,
    ) -> Result<Image, ImageError> {
        if container.image.is_empty() || container.image.contains(char::is_whitespace) {
            return Err(ImageError {
                reason: "InvalidImageName",
                message: format!("Failed to apply default image tag \"{}\": invalid reference format", container.image),
            });
        }
        let spec = v1::ImageSpec { image: container.image.clone(), ..Default::default() };
        let name = &container.name;
        let present = self.cri.image_status(spec.clone()).await.map_err(|e| ImageError {
            reason: "ImageInspectError",
            message: format!("Failed to inspect image \"{}\": {e}", container.image),
        })?;
        match decide(policy(container), present.is_some()) {
            Decision::Never => {
                let message = format!("Container image \"{}\" is not present with pull policy of Never", container.image);
                api.pod_event(pod, Some(name), EventType::Warning, "ErrImageNeverPull", message.clone());
                return Err(ImageError { reason: "ErrImageNeverPull", message });
            }
            Decision::Use => {
                if let Some(image) = present {
                    let message = format!("Container image \"{}\" already present on machine", container.image);
                    api.pod_event(pod, Some(name), EventType::Normal, "Pulled", message);
                    return Ok(resolved(container, &image));
                }
            }
            Decision::Pull => {}
        }
        let key = (pod.metadata.uid.clone(), container.image.clone());
        if let Some((at, delay)) = self.failures.lock().get(&key).copied()
            && at.elapsed() < delay
        {
            let message = format!("Back-off pulling image \"{}\"", container.image);
            return Err(ImageError { reason: "ImagePullBackOff", message });
        }
        api.pod_event(pod, Some(name), EventType::Normal, "Pulling", format!("Pulling image \"{}\"", container.image));
        let started = Instant::now();
        match self.pull(api, pod, container, &spec, sandbox_config).await {
            Ok(()) => {
                self.failures.lock().remove(&key);
                let message = format!("Successfully pulled image \"{}\" in {:?}", container.image, started.elapsed());
                api.pod_event(pod, Some(name), EventType::Normal, "Pulled", message);
            }
            Err(error) => {
                let mut failures = self.failures.lock();
                failures.retain(|_, (at, delay)| at.elapsed() < *delay + MAX_BACKOFF * 2);
                let delay = failures.get(&key).map_or(INITIAL_BACKOFF, |(_, delay)| (*delay * 2).min(MAX_BACKOFF));
                failures.insert(key, (Instant::now(), delay));
                drop(failures);
                let message = format!("Failed to pull image \"{}\": {error}", container.image);
                api.pod_event(pod, Some(name), EventType::Warning, "Failed", message.clone());
                return Err(ImageError { reason: "ErrImagePull", message });
            }
        }
        match self.cri.image_status(spec).await {
            Ok(Some(image)) => Ok(resolved(container, &image)),
            Ok(None) => {
                Err(ImageError { reason: "ErrImagePull", message: format!("image \"{}\" is gone after its pull", container.image) })
            }
            Err(error) => Err(ImageError { reason: "ImageInspectError", message: error.to_string() }),
        }
    }

    async fn pull(
        &self,
        api: &Api,
        pod: &Pod,
        container: &Container,
        spec: &v1::ImageSpec,
        sandbox_config: &v1::PodSandboxConfig,
    ) -> Result<(), String> {
        let mut credentials = Vec::new();
        for secret in &pod.spec.image_pull_secrets {
            match api.secret(&pod.metadata.namespace, &secret.name).await {
                Ok(Some(data)) => {
                    if let Some(json) = data.get(".dockerconfigjson") {
                        credentials.extend(credentials_for(json, &container.image));
                    }
                }
                Ok(None) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        secret.name
                    );
                    api.pod_event(pod, None, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
                }
                Err(error) => tracing::warn!(pod = %pod.full_name(), secret = %secret.name, error = %error, "image pull secret"),
            }
        }
        let Ok(_permit) = self.pulls.acquire().await else { return Err("the kubelet is stopping".into()) };
        let mut result = Err(String::new());
        let attempts = if credentials.is_empty() { vec![None] } else { credentials.into_iter().map(Some).collect() };
        for auth in attempts {
            result = self.cri.pull_image(spec.clone(), auth, sandbox_config.clone()).await.map(drop).map_err(|e| e.to_string());
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

fn resolved(container: &Container, image: &v1::Image) -> Image {
    Image {
        spec: v1::ImageSpec { image: image.id.clone(), user_specified_image: container.image.clone(), ..Default::default() },
        user: ImageUser { uid: image.uid.as_ref().map(|u| u.value), name: image.username.clone() },
    }
}

/// Credentials in a `.dockerconfigjson` for the registry of an image.
fn credentials_for(json: &[u8], image: &str) -> Vec<v1::AuthConfig> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        auths: BTreeMap<String, Entry>,
    }
    #[derive(Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Entry {
        username: String,
        password: String,
        auth: String,
        identitytoken: String,
    }
    let Ok(file) = serde_json::from_slice::<File>(json) else { return Vec::new() };
    let registry = registry_of(image);
    let mut found = Vec::new();
    for (server, entry) in file.auths {
        let host = server.trim_start_matches("https://").trim_start_matches("http://").split('/').next().unwrap_or_default().to_owned();
        let same = host == registry || registry == "docker.io" && host == "index.docker.io";
        if !same {
            continue;
        }
        let (mut username, mut password) = (entry.username, entry.password);
        if username.is_empty()
            && let Some(decoded) =
                base64::engine::general_purpose::STANDARD.decode(entry.auth.trim()).ok().and_then(|b| String::from_utf8(b).ok())
            && let Some((user, pass)) = decoded.split_once(':')
        {
            (username, password) = (user.to_owned(), pass.to_owned());
        }
        found.push(v1::AuthConfig {
            username,
            password,
            identity_token: entry.identitytoken,
            server_address: server,
            ..Default::default()
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_references() {
        for (image, set, expected) in [
            ("a", "", "Always"),
            ("a:latest", "", "Always"),
            ("a:v1", "", "IfNotPresent"),
            ("host:5000/a", "", "Always"),
            ("host:5000/a:v1", "", "IfNotPresent"),
            ("a@sha256:00", "", "IfNotPresent"),
            ("a:latest", "Never", "Never"),
        ] {
            let container = Container { image: image.into(), image_pull_policy: set.into(), ..Default::default() };
            assert_eq!(policy(&container), expected, "{image}");
        }
        for (image, registry) in
            [("a", "docker.io"), ("lib/a", "docker.io"), ("r.io/a", "r.io"), ("h:5/a", "h:5"), ("localhost/a", "localhost")]
        {
            assert_eq!(registry_of(image), registry);
        }
        for (policy, present, expected) in [
            ("Always", true, Decision::Pull),
            ("IfNotPresent", true, Decision::Use),
            ("IfNotPresent", false, Decision::Pull),
            ("Never", true, Decision::Use),
            ("Never", false, Decision::Never),
        ] {
            assert_eq!(decide(policy, present), expected);
        }
    }

    #[test]
    fn pull_secrets_match_the_registry() {
        let json = br#"{"auths": {"https://r.io/v1/": {"auth": "dTpw"}, "other.io": {"username": "x", "password": "y"}}}"#;
        let found = credentials_for(json, "r.io/app:v1");
        assert_eq!((found.len(), found[0].username.as_str(), found[0].password.as_str()), (1, "u", "p"));
        assert!(credentials_for(json, "app").is_empty() && credentials_for(b"not json", "r.io/a").is_empty());
    }
}
