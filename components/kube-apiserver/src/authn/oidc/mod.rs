//! Tokens of other issuers (OpenID Connect): whose keys are found by discovery and kept current, and whose claims become users by the
//! rules of a configuration.

mod claims;
pub mod config;
mod fetch;
mod jwk;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use claims::Claims;
use config::{ConfigError, Settings, invalid};
use jiff::Timestamp;
use jwk::{Key, Unverified};
use rustls::ClientConfig;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{Rejected, User};
use crate::webhook::{Trust, tls_config};

/// Keys are read again after this time, so that those the issuer takes back are not believed for ever.
const REFRESH: Duration = Duration::from_secs(600);
/// A token with a key that is not known makes them be read again, but not more often than this.
const PAUSE: Duration = Duration::from_secs(5);
/// Such a token waits this long for them.
const WAIT: Duration = Duration::from_secs(5);
/// Clocks differ.
const LEEWAY: i64 = 10;

/// One issuer.
pub struct Issuer {
    url: String,
    discovery: String,
    audiences: Vec<String>,
    /// Empty: all that are known.
    algorithms: Vec<String>,
    claims: Claims,
    tls: Arc<ClientConfig>,
    keys: ArcSwap<Vec<Key>>,
    /// Asks for the keys to be read.
    wanted: Notify,
    /// How often they were.
    read: watch::Sender<u64>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("url", &self.url).finish_non_exhaustive()
    }
}

/// All issuers of a configuration.
#[derive(Debug, Default)]
pub struct Issuers {
    all: Vec<Arc<Issuer>>,
    pub anonymous: Option<config::Anonymous>,
}

impl Issuers {
    /// Compiles a configuration, and begins to follow the keys of its issuers as long as the result lives.
    pub fn start(settings: &Settings) -> Result<Self, ConfigError> {
        let mut all = Vec::new();
        for (i, j) in settings.jwt.iter().enumerate() {
            let at = format!("jwt[{i}]");
            let claims = Claims::compile(&at, j)?;
            let pem = j.issuer.certificate_authority.as_bytes();
            let tls = tls_config(Trust::Bundle(pem), None).map_err(|e| invalid(format!("{at}.issuer.certificateAuthority"), e))?;
            let discovery = if j.issuer.discovery_url.is_empty() {
                format!("{}/.well-known/openid-configuration", j.issuer.url.trim_end_matches('/'))
            } else {
                j.issuer.discovery_url.clone()
            };
            all.push(Arc::new(Issuer {
                url: j.issuer.url.clone(),
                discovery,
                audiences: j.issuer.audiences.clone(),
                algorithms: j.algorithms.clone(),
                claims,
                tls: Arc::new(tls),
                keys: ArcSwap::default(),
                wanted: Notify::new(),
                read: watch::channel(0).0,
            }));
        }
        // Nothing is begun for a configuration that is refused.
        for i in &all {
            tokio::spawn(follow(Arc::downgrade(i)));
        }
        Ok(Self { all, anonymous: settings.anonymous.clone() })
    }

    /// The user of a token; none: it is of none of these issuers.
    pub async fn authenticate(&self, token: &str) -> Option<Result<User, Rejected>> {
        if self.all.is_empty() {
            return None;
        }
        let token = Unverified::parse(token)?;
        let issuer = token.claims["iss"].as_str()?;
        let issuer = self.all.iter().find(|i| i.url == issuer)?;
        Some(issuer.authenticate(&token).await.map_err(|why| Rejected(format!("token of {}: {why}", issuer.url))))
    }
}

impl Issuer {
    async fn authenticate(&self, token: &Unverified<'_>) -> Result<User, String> {
        let allowed = if self.algorithms.is_empty() { jwk::known(&token.algorithm) } else { self.algorithms.contains(&token.algorithm) };
        if !allowed {
            return Err(format!("it is signed with {:?}, which is not taken", token.algorithm));
        }
        if !token.has_key(&self.keys.load()) {
            // A key that is new, or keys that were not read yet: it is worth a look, and a look is shared by all who wait.
            let mut read = self.read.subscribe();
            self.wanted.notify_one();
            let _ = tokio::time::timeout(WAIT, read.changed()).await;
        }
        if !token.verified(&self.keys.load()) {
            return Err("failed to verify signature: no key fits it".into());
        }
        let now = Timestamp::now().as_second();
        let time = |c: &str| token.claims[c].as_f64();
        match time("exp") {
            Some(exp) if exp > now as f64 => {}
            Some(_) => return Err("it is expired".into()),
            None => return Err("it has no end".into()),
        }
        if time("nbf").is_some_and(|nbf| nbf > (now + LEEWAY) as f64) {
            return Err("it is not valid yet".into());
        }
        let aud = &token.claims["aud"];
        let meant = |a: &String| aud == a.as_str() || aud.as_array().is_some_and(|l| l.iter().any(|x| x == a.as_str()));
        if !self.audiences.iter().any(meant) {
            return Err(format!("it is for another audience than {:?}", self.audiences));
        }
        self.claims.user(&token.claims)
    }

    /// Finds the keys by the issuer's discovery document.
    async fn read_keys(&self) -> Result<Vec<Key>, String> {
        let document = fetch::json(&self.discovery, &self.tls).await?;
        if document["issuer"] != self.url.as_str() {
            return Err(format!("{}: it is the document of another issuer, {}", self.discovery, document["issuer"]));
        }
        let url = document["jwks_uri"].as_str().ok_or_else(|| format!("{}: it names no jwks_uri", self.discovery))?;
        let keys = Key::set(&fetch::json(url, &self.tls).await?);
        if keys.is_empty() { Err(format!("{url}: there is no key in it that can be used")) } else { Ok(keys) }
    }
}

/// Reads an issuer's keys again and again, until nobody has the issuer any more.
async fn follow(issuer: Weak<Issuer>) {
    loop {
        let Some(i) = issuer.upgrade() else { return };
        let started = Instant::now();
        let mut next = REFRESH;
        match i.read_keys().await {
            Ok(keys) => {
                if **i.keys.load() != keys {
                    tracing::info!(issuer = i.url, keys = keys.len(), "read the issuer's keys");
                    i.keys.store(Arc::new(keys));
                }
                i.read.send_modify(|n| *n += 1);
            }
            Err(reason) => {
                tracing::warn!(issuer = i.url, reason, "the issuer's keys cannot be read; those that were read before stay");
                next = PAUSE * 2;
            }
        }
        let wanted = async {
            tokio::time::sleep_until(started + PAUSE).await;
            i.wanted.notified().await;
        };
        // A configuration that was replaced is let go within this time.
        let _ = tokio::time::timeout(next, wanted).await;
    }
}
