//! One identity per controller: service accounts of kube-system and their tokens, as `--use-service-account-credentials` asks for.
//!
//! Tokens come from the TokenRequest API, last an hour and are renewed after 48 minutes. A controller starts only once it has its token.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_client::{Client, ConfigError, Error, Request, resources::SERVICE_ACCOUNTS};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;

const NAMESPACE: &str = "kube-system";
const LIFETIME_SECONDS: u64 = 3600;

/// The clients of all controllers; cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
}

struct Inner {
    root: Client,
    /// Without identity of its own; `None` when all controllers share the root identity.
    anonymous: Option<Client>,
    clients: Mutex<HashMap<String, Client>>,
}

#[derive(Deserialize)]
struct TokenRequest {
    status: TokenStatus,
}

#[derive(Deserialize)]
struct TokenStatus {
    token: String,
}

impl Credentials {
    /// All controllers use `root`, or each its own service account.
    pub fn new(root: Client, separate: bool) -> Result<Self, ConfigError> {
        let anonymous = if separate { Some(root.anonymous()?) } else { None };
        Ok(Self { inner: Arc::new(Inner { root, anonymous, clients: Mutex::new(HashMap::new()) }) })
    }

    /// The client of a service account. Requests fail as unauthorized until [`Credentials::prepare`] got its token.
    pub fn client(&self, account: &str) -> Client {
        match &self.inner.anonymous {
            None => self.inner.root.clone(),
            Some(anonymous) => {
                let mut clients = self.inner.clients.lock();
                clients.entry(account.to_string()).or_insert_with(|| anonymous.share(&format!("kube-controller-manager/{account}"))).clone()
            }
        }
    }

    /// Gets the token of an account, making the account when it is missing.
    pub async fn prepare(&self, account: &str) -> Result<(), Error> {
        if self.inner.anonymous.is_none() {
            return Ok(());
        }
        let client = self.client(account);
        let body =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": LIFETIME_SECONDS}});
        let request = Request::create_subresource(&SERVICE_ACCOUNTS, NAMESPACE, account, "token", &body);
        let answer = match self.inner.root.call::<TokenRequest>(&request).await {
            Err(error) if error.is_not_found() => {
                let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": NAMESPACE}});
                match self.inner.root.execute(&Request::create(&SERVICE_ACCOUNTS, NAMESPACE, &object)).await {
                    Err(error) if !error.is_already_exists() => return Err(error),
                    _ => self.inner.root.call::<TokenRequest>(&request).await?,
                }
            }
            other => other?,
        };
        client.set_bearer(&answer.status.token);
        Ok(())
    }

    /// Keeps all tokens fresh; never returns.
    pub async fn keep_fresh(&self) {
        let mut pause = Duration::from_secs(LIFETIME_SECONDS * 4 / 5);
        loop {
            tokio::time::sleep(pause).await;
            pause = Duration::from_secs(LIFETIME_SECONDS * 4 / 5);
            let accounts: Vec<String> = self.inner.clients.lock().keys().cloned().collect();
            for account in accounts {
                if let Err(error) = self.prepare(&account).await {
                    tracing::warn!(account, error = &error as &dyn std::error::Error, "renewing a service account token failed");
                    pause = Duration::from_secs(30);
                }
            }
        }
    }
}
