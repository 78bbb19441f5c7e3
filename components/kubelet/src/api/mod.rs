//! What the kubelet asks of the API server. None of it is needed by static pods, and nothing here blocks on a server that is not there:
//! calls fail at once until a client exists, and are retried by whoever made them.

pub mod credentials;

use crate::model::node::{Node, Service};
use crate::model::pod::Pod;
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use k8s_client::resources::{CONFIG_MAPS, NODES, PODS, SECRETS, SERVICE_ACCOUNTS};
use k8s_client::{Client, EventRecorder, EventType, Informer, ObjectReference, Request};
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Content of a ConfigMap or Secret.
pub type Data = BTreeMap<String, Vec<u8>>;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the API server is not reachable yet")]
    NotConnected,
    #[error("{operation}: {source}")]
    Request { operation: String, source: k8s_client::Error },
    #[error("{0}: {1}")]
    Decode(String, String),
}

/// How long content is used before it is read again.
const OBJECT_TTL: Duration = Duration::from_secs(60);
/// Cached objects and tokens; beyond it the stalest go.
const MAX_CACHED: usize = 2048;

#[derive(Debug, Clone)]
struct CachedObject {
    read: Instant,
    data: Option<Arc<Data>>,
}

#[derive(Debug, Clone)]
struct CachedToken {
    token: String,
    issued: Instant,
    lifetime: Duration,
}

/// The connection to the API server and what was read through it.
pub struct Api {
    client: ArcSwapOption<Client>,
    /// Pods bound to this node.
    pub pods: OnceLock<Informer<Pod>>,
    pub services: OnceLock<Informer<Service>>,
    recorder: OnceLock<EventRecorder>,
    /// This node's object as last read.
    pub node: ArcSwapOption<Node>,
    node_name: String,
    objects: Mutex<HashMap<(bool, String, String), CachedObject>>,
    tokens: Mutex<HashMap<TokenKey, CachedToken>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    pod_uid: String,
    account: String,
    audience: String,
    seconds: i64,
}

impl Api {
    pub fn new(node_name: &str) -> Self {
        Self {
            client: ArcSwapOption::empty(),
            pods: OnceLock::new(),
            services: OnceLock::new(),
            recorder: OnceLock::new(),
            node: ArcSwapOption::empty(),
            node_name: node_name.to_owned(),
            objects: Mutex::new(HashMap::new()),
            tokens: Mutex::new(HashMap::new()),
        }
    }

    /// Starts using a client.
    pub fn connect(&self, client: Client, recorder: EventRecorder) {
        let _ = self.recorder.set(recorder);
        self.client.store(Some(Arc::new(client)));
    }

    pub fn client(&self) -> Result<Arc<Client>, ApiError> {
        self.client.load_full().ok_or(ApiError::NotConnected)
    }

    /// Whether the pods of this node have been read at least once.
    pub fn pods_synced(&self) -> bool {
        self.pods.get().is_some_and(Informer::has_synced)
    }

    /// Records an event about a pod, or about one of its containers.
    pub fn pod_event(&self, pod: &Pod, container: Option<&str>, kind: EventType, reason: &str, message: impl Into<String>) {
        let message = message.into();
        match kind {
            EventType::Warning => tracing::warn!(pod = %pod.full_name(), container, reason, message = %message, "pod event"),
            EventType::Normal => tracing::info!(pod = %pod.full_name(), container, reason, message = %message, "pod event"),
        }
        if let Some(recorder) = self.recorder.get() {
            let mut reference = ObjectReference::to(&PODS, &pod.metadata);
            if let Some(name) = container {
                let list = if pod.spec.init_containers.iter().any(|c| c.name == name) { "initContainers" } else { "containers" };
                reference.field_path = format!("spec.{list}{{{name}}}");
            }
            recorder.event(&reference, kind, reason, message);
        }
    }

    /// Records an event about this node.
    pub fn node_event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        if let Some(recorder) = self.recorder.get() {
            // Upstream's kubelet uses the node's name as the UID of its events' subject.
            let reference = ObjectReference {
                api_version: NODES.api_version(),
                kind: "Node".into(),
                name: self.node_name.clone(),
                uid: self.node_name.clone(),
                ..Default::default()
            };
            recorder.event(&reference, kind, reason, message);
        }
    }

    /// A ConfigMap's content; `None` when it does not exist.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<Data>>, ApiError> {
        self.object(false, namespace, name).await
    }

    /// A Secret's content; `None` when it does not exist.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Data>>, ApiError> {
        self.object(true, namespace, name).await
    }

    async fn object(&self, secret: bool, namespace: &str, name: &str) -> Result<Option<Arc<Data>>, ApiError> {
        let key = (secret, namespace.to_owned(), name.to_owned());
        let cached = self.objects.lock().get(&key).cloned();
        if let Some(cached) = &cached
            && cached.read.elapsed() < OBJECT_TTL
            // What was missing is asked for again at once: somebody is waiting for it.
            && cached.data.is_some()
        {
            return Ok(cached.data.clone());
        }
        match self.read_object(secret, namespace, name).await {
            Ok(data) => {
                let mut objects = self.objects.lock();
                if objects.len() >= MAX_CACHED {
                    objects.retain(|_, o| o.read.elapsed() < OBJECT_TTL);
                }
                if objects.len() < MAX_CACHED {
                    objects.insert(key, CachedObject { read: Instant::now(), data: data.clone() });
                }
                Ok(data)
            }
            // With the server away the last known content is better than none.
            Err(error) => match cached.and_then(|c| c.data) {
                Some(data) => {
                    tracing::debug!(namespace, name, error = %error, "using content read earlier");
                    Ok(Some(data))
                }
                None => Err(error),
            },
        }
    }

    async fn read_object(&self, secret: bool, namespace: &str, name: &str) -> Result<Option<Arc<Data>>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[derive(Default)]
        struct Object {
            #[serde(deserialize_with = "k8s_client::null_default")]
            data: BTreeMap<String, String>,
            #[serde(deserialize_with = "k8s_client::null_default")]
            binary_data: BTreeMap<String, String>,
        }
        let resource = if secret { &SECRETS } else { &CONFIG_MAPS };
        let operation = || format!("read {} {namespace}/{name}", resource.plural);
        let object: Object = match self.client()?.call(&Request::get(resource, namespace, name)).await {
            Ok(object) => object,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(source) => return Err(ApiError::Request { operation: operation(), source }),
        };
        let decode = |map: BTreeMap<String, String>| -> Result<Data, ApiError> {
            map.into_iter()
                .map(|(key, text)| {
                    let bytes = base64::engine::general_purpose::STANDARD
                        .decode(&text)
                        .map_err(|e| ApiError::Decode(operation(), format!("key {key}: {e}")))?;
                    Ok((key, bytes))
                })
                .collect()
        };
        let mut data: Data =
            if secret { decode(object.data)? } else { object.data.into_iter().map(|(k, v)| (k, v.into_bytes())).collect() };
        data.extend(decode(object.binary_data)?);
        Ok(Some(Arc::new(data)))
    }

    /// A token for the pod's service account, renewed when 80 % of its life (at most a day) has passed.
    pub async fn service_account_token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, ApiError> {
        let account = if pod.spec.service_account_name.is_empty() { "default" } else { &pod.spec.service_account_name };
        let key = TokenKey { pod_uid: pod.metadata.uid.clone(), account: account.to_owned(), audience: audience.to_owned(), seconds };
        let cached = self.tokens.lock().get(&key).cloned();
        if let Some(cached) = &cached
            && !needs_refresh(cached.issued.elapsed(), cached.lifetime)
        {
            return Ok(cached.token.clone());
        }
        match self.request_token(pod, account, &key).await {
            Ok(fresh) => {
                let token = fresh.token.clone();
                let mut tokens = self.tokens.lock();
                if tokens.len() >= MAX_CACHED {
                    tokens.retain(|_, t| t.issued.elapsed() < t.lifetime);
                }
                if tokens.len() < MAX_CACHED {
                    tokens.insert(key, fresh);
                }
                Ok(token)
            }
            Err(error) => match cached.filter(|c| c.issued.elapsed() < c.lifetime) {
                Some(cached) => {
                    tracing::warn!(pod = %pod.full_name(), error = %error, "could not renew a service account token, the old one is still valid");
                    Ok(cached.token)
                }
                None => Err(error),
            },
        }
    }

    async fn request_token(&self, pod: &Pod, account: &str, key: &TokenKey) -> Result<CachedToken, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            status: AnswerStatus,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct AnswerStatus {
            token: String,
            expiration_timestamp: k8s_client::Time,
        }
        let audiences: Vec<&str> = if key.audience.is_empty() { Vec::new() } else { vec![&key.audience] };
        let body = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {"name": account, "namespace": pod.metadata.namespace},
            "spec": {"audiences": audiences, "expirationSeconds": key.seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid}}
        });
        let request = Request::create_subresource(&SERVICE_ACCOUNTS, &pod.metadata.namespace, account, "token", &body);
        let answer: Answer = self.client()?.call(&request).await.map_err(|source| ApiError::Request {
            operation: format!("request a token for service account {}/{account}", pod.metadata.namespace),
            source,
        })?;
        let left = answer.status.expiration_timestamp.0.as_second() - jiff::Timestamp::now().as_second();
        Ok(CachedToken {
            token: answer.status.token,
            issued: Instant::now(),
            lifetime: Duration::from_secs(u64::try_from(left).unwrap_or(0)),
        })
    }

    /// Forgets what belongs to a pod that is gone.
    pub fn forget_pod(&self, uid: &str) {
        self.tokens.lock().retain(|key, _| key.pod_uid != uid);
    }
}

/// Whether a token of this age is to be replaced.
fn needs_refresh(age: Duration, lifetime: Duration) -> bool {
    age >= lifetime.mul_f64(0.8) || age >= Duration::from_secs(24 * 3600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_eighty_percent_or_daily() {
        for (age, lifetime, expected) in
            [(0, 3600, false), (2879, 3600, false), (2880, 3600, true), (86_399, 1_000_000, false), (86_400, 1_000_000, true)]
        {
            assert_eq!(needs_refresh(Duration::from_secs(age), Duration::from_secs(lifetime)), expected, "{age}/{lifetime}");
        }
    }
}
