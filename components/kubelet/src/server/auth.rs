//! Who asks, and whether they may. Client certificates of the cluster's CA and bearer tokens (by TokenReview) say who; a SubjectAccessReview
//! on a subresource of this node says whether. Answers are cached, and no answer is never a yes.

use crate::kubelet::Shared;
use http::{HeaderMap, Method, StatusCode, header};
use k8s_client::Request;
use k8s_client::resources::{SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An authenticated caller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct User {
    #[serde(rename = "username")]
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The caller a verified client certificate names.
pub fn user_of_certificate(der: &[u8]) -> Option<User> {
    let certificate = pki::Certificate::from_der(der).ok()?;
    if certificate.common_name.is_empty() || !certificate.client {
        return None;
    }
    let mut groups = certificate.organizations;
    groups.push("system:authenticated".into());
    Some(User { name: certificate.common_name, groups, ..Default::default() })
}

/// Which verb on which subresources of the node a request is; the first that is allowed suffices.
fn attributes(method: &Method, path: &str) -> (&'static str, Vec<&'static str>) {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let first = path.split('/').find(|p| !p.is_empty()).unwrap_or_default();
    let subresources = match first {
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "checkpoint" => vec!["checkpoint"],
        // These may be allowed one by one, or with everything else by "proxy".
        "configz" => vec!["configz", "proxy"],
        "healthz" | "livez" | "readyz" => vec!["healthz", "proxy"],
        "pods" | "runningpods" => vec!["pods", "proxy"],
        _ => vec!["proxy"],
    };
    (verb, subresources)
}

/// Cached answers; beyond it the cache starts over.
const MAX_CACHED: usize = 1024;

type Decision = (Instant, bool);
type DecisionKey = (User, &'static str, &'static str);

/// Checks callers.
pub struct Access {
    shared: Arc<Shared>,
    tokens: Mutex<HashMap<[u8; 32], (Instant, Option<User>)>>,
    decisions: Mutex<HashMap<DecisionKey, Decision>>,
}

impl Access {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, tokens: Mutex::new(HashMap::new()), decisions: Mutex::new(HashMap::new()) }
    }

    /// Finds out who asks.
    pub async fn authenticate(&self, certificate: Option<&User>, headers: &HeaderMap) -> Result<User, String> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let config = &self.shared.config;
        let token = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer ")).map(str::trim);
        if let Some(token) = token.filter(|t| !t.is_empty()) {
            if !config.token_webhook {
                return Err("bearer tokens are not accepted".into());
            }
            return self.review_token(token).await;
        }
        if config.anonymous_auth {
            return Ok(User { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Default::default() });
        }
        Err("no credentials".into())
    }

    async fn review_token(&self, token: &str) -> Result<User, String> {
        #[derive(Deserialize)]
        struct Review {
            #[serde(default)]
            status: ReviewStatus,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct ReviewStatus {
            authenticated: bool,
            user: User,
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let ttl = self.shared.config.authentication_ttl;
        let cached = self.tokens.lock().get(&digest).filter(|(at, _)| at.elapsed() < ttl).cloned();
        let user = match cached {
            Some((_, user)) => user,
            None => {
                let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
                let client = self.shared.api.client().map_err(|e| e.to_string())?;
                let request = Request::create(&TOKEN_REVIEWS, "", &body).with_timeout(Duration::from_secs(10));
                let review: Review = client.call(&request).await.map_err(|e| e.to_string())?;
                let user = review.status.authenticated.then_some(review.status.user);
                let mut tokens = self.tokens.lock();
                if tokens.len() >= MAX_CACHED {
                    tokens.clear();
                }
                tokens.insert(digest, (Instant::now(), user.clone()));
                user
            }
        };
        user.ok_or_else(|| "the token is not valid".into())
    }

    /// Finds out whether the caller may.
    pub async fn authorize(&self, user: &User, method: &Method, path: &str) -> Result<(), (StatusCode, String)> {
        let config = &self.shared.config;
        if !config.webhook_authorization {
            return Ok(());
        }
        let (verb, subresources) = attributes(method, path);
        for subresource in &subresources {
            match self.allowed(user, verb, subresource).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error = %error, "authorization review");
                    return Err((
                        StatusCode::INTERNAL_SERVER_ERROR,
                        format!("Authorization error (user={}, verb={verb}, resource=nodes, subresource(s)={subresources:?})", user.name),
                    ));
                }
            }
        }
        Err((
            StatusCode::FORBIDDEN,
            format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n", user.name, subresources.join(" ")),
        ))
    }

    async fn allowed(&self, user: &User, verb: &'static str, subresource: &'static str) -> Result<bool, String> {
        #[derive(Deserialize)]
        struct Review {
            #[serde(default)]
            status: ReviewStatus,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct ReviewStatus {
            allowed: bool,
        }
        let config = &self.shared.config;
        let key = (user.clone(), verb, subresource);
        let cached = self.decisions.lock().get(&key).copied();
        if let Some((at, allowed)) = cached
            && at.elapsed() < if allowed { config.authorized_ttl } else { config.unauthorized_ttl }
        {
            return Ok(allowed);
        }
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
                "resourceAttributes": {"verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": config.node_name}}
        });
        let client = self.shared.api.client().map_err(|e| e.to_string())?;
        let request = Request::create(&SUBJECT_ACCESS_REVIEWS, "", &body).with_timeout(Duration::from_secs(10));
        let review: Review = client.call(&request).await.map_err(|e| e.to_string())?;
        let mut decisions = self.decisions.lock();
        if decisions.len() >= MAX_CACHED {
            decisions.clear();
        }
        decisions.insert(key, (Instant::now(), review.status.allowed));
        Ok(review.status.allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_map_to_subresources_of_the_node() {
        for (method, path, verb, subresources) in [
            (Method::GET, "/containerLogs/a/b/c", "get", vec!["proxy"]),
            (Method::POST, "/exec/a/b/c", "create", vec!["proxy"]),
            (Method::GET, "/stats/summary", "get", vec!["stats"]),
            (Method::GET, "/metrics/resource", "get", vec!["metrics"]),
            (Method::GET, "/pods", "get", vec!["pods", "proxy"]),
            (Method::GET, "/healthz", "get", vec!["healthz", "proxy"]),
            (Method::GET, "//logs/x", "get", vec!["log"]),
        ] {
            assert_eq!(attributes(&method, path), (verb, subresources), "{path}");
        }
    }

    #[test]
    fn certificates_name_users() {
        let now = jiff::Timestamp::now();
        let day = Duration::from_secs(86_400);
        let ca = pki::Authority::generate("ca", now, day).unwrap();
        let ca = pki::Authority::from_pem(&ca.cert_pem, &ca.key_pem).unwrap();
        let mut spec = pki::LeafSpec {
            common_name: "alice".into(),
            organization: Some("ops".into()),
            client: true,
            lifetime: day,
            ..Default::default()
        };
        let der = |spec: &pki::LeafSpec| pki::pem::certificates(&ca.issue(spec, now).unwrap().cert_pem).unwrap()[0].to_vec();
        let user = user_of_certificate(&der(&spec)).unwrap();
        assert_eq!((user.name.as_str(), user.groups), ("alice", vec!["ops".to_owned(), "system:authenticated".to_owned()]));
        spec.client = false;
        spec.server = true;
        assert_eq!(user_of_certificate(&der(&spec)), None);
    }
}
