//! Who is asking: whom a proxy names, then client certificates, then bearer tokens, then nobody.

mod bootstrap_token;
pub mod jwt;
mod memo;
pub mod oidc;
mod request_header;
mod service_account;
mod token_file;
mod webhook;
mod x509;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::objects::Objects;

pub use request_header::{Names, RequestHeader};
pub use service_account::{Bound, Lifetime, TokenIssuer, Used};
pub use token_file::TokenFile;
pub use webhook::TokenWebhook;
pub use x509::{ClientCa, Peer, X509};

/// Who a request is made as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: Vec<(String, Vec<String>)>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const MASTERS: &str = "system:masters";

impl User {
    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Everyone who proved who they are is in `system:authenticated`.
    fn authenticated(mut self) -> Self {
        if self.name != ANONYMOUS && !self.in_group(AUTHENTICATED) && !self.in_group(UNAUTHENTICATED) {
            self.groups.push(AUTHENTICATED.into());
        }
        self
    }
}

/// The client gave credentials that are not good; why is for the log alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected(pub String);

/// Results of good tokens are kept this long, as upstream keeps them.
const TOKEN_CACHE: Duration = Duration::from_secs(10);
const TOKEN_CACHE_SIZE: usize = 4096;

/// The authenticators in their order.
pub struct Authenticator {
    pub request_header: Option<RequestHeader>,
    pub x509: Option<Arc<X509>>,
    pub tokens: Arc<TokenIssuer>,
    /// Asked first.
    pub token_file: Option<TokenFile>,
    pub bootstrap_tokens: bool,
    pub anonymous: bool,
    /// Other issuers of tokens, and who may be anonymous; replaced when the configuration's file changes.
    pub issuers: ArcSwap<oidc::Issuers>,
    /// Asked about tokens that nobody else knows.
    pub webhook: Option<TokenWebhook>,
    objects: Arc<Objects>,
    seen: Mutex<HashMap<[u8; 32], (Instant, User)>>,
}

/// Paths that an anonymous request may ask for, when anonymous requests are taken at all.
const ANONYMOUS_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

impl Authenticator {
    pub fn new(tokens: Arc<TokenIssuer>, objects: Arc<Objects>) -> Self {
        Self {
            request_header: None,
            x509: None,
            tokens,
            token_file: None,
            bootstrap_tokens: false,
            anonymous: false,
            issuers: ArcSwap::default(),
            webhook: None,
            objects,
            seen: Mutex::default(),
        }
    }

    /// `peer`: the certificates of the TLS connection.
    pub async fn authenticate(&self, peer: &Peer, headers: &HeaderMap, path: &str) -> Result<User, Rejected> {
        let mut rejected = None;
        if let (Some(r), false) = (&self.request_header, peer.is_empty()) {
            match r.authenticate(peer, headers) {
                Ok(Some(user)) => return Ok(user.authenticated()),
                Ok(None) => {}
                Err(e) => rejected = Some(e),
            }
        }
        if let (Some(x509), false) = (&self.x509, peer.is_empty()) {
            match x509.authenticate(peer) {
                Ok(user) => return Ok(user.authenticated()),
                Err(e) => rejected = Some(e),
            }
        }
        if let Some(token) = bearer(headers) {
            return self.token(token, &self.tokens.api_audiences).await.map(|(u, _)| u);
        }
        if let Some(e) = rejected {
            return Err(e);
        }
        if self.takes_anonymous(path) { Ok(User::anonymous()) } else { Err(Rejected("no credentials".into())) }
    }

    /// Goes on with another configuration; what was found good by the one before is looked at again.
    pub fn replace_issuers(&self, new: oidc::Issuers) {
        self.issuers.store(Arc::new(new));
        self.seen.lock().clear();
    }

    /// A configuration says who may be anonymous; without one only health and version are for everybody.
    fn takes_anonymous(&self, path: &str) -> bool {
        match &self.issuers.load().anonymous {
            Some(a) => a.enabled && (a.conditions.is_empty() || a.conditions.iter().any(|c| c.path == path)),
            None => {
                let open = |p: &&str| path == *p || path.strip_prefix(p).is_some_and(|r| r.starts_with('/'));
                self.anonymous && ANONYMOUS_PATHS.iter().any(open)
            }
        }
    }

    /// The user of a token that is meant for one of `audiences`, and which of them it is meant for.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), Rejected> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let usual = audiences == self.tokens.api_audiences;
        if let Some(user) = self.token_file.as_ref().and_then(|f| f.user(&digest)) {
            // They are for this server.
            let meant: Vec<String> = audiences.iter().filter(|a| self.tokens.api_audiences.contains(a)).cloned().collect();
            return if meant.is_empty() { Err(Rejected("another audience".into())) } else { Ok((user.clone().authenticated(), meant)) };
        }
        if usual
            && let Some((at, user)) = self.seen.lock().get(&digest)
            && at.elapsed() < TOKEN_CACHE
        {
            return Ok((user.clone(), audiences.to_vec()));
        }
        let (user, auds) = self.judge(token, audiences).await?;
        let user = user.authenticated();
        if usual {
            let mut seen = self.seen.lock();
            if seen.len() >= TOKEN_CACHE_SIZE {
                seen.retain(|_, (at, _)| at.elapsed() < TOKEN_CACHE);
            }
            if seen.len() < TOKEN_CACHE_SIZE {
                seen.insert(digest, (Instant::now(), user.clone()));
            }
        }
        Ok((user, auds))
    }

    async fn judge(&self, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), Rejected> {
        let own = if jwt::looks_like(token) {
            service_account::authenticate(&self.tokens, &self.objects, token, audiences)
        } else if self.bootstrap_tokens {
            bootstrap_token::authenticate(&self.objects, token).map(|u| (u, Vec::new()))
        } else {
            Err(Rejected("unknown kind of token".into()))
        };
        let rejected = match own {
            Ok(found) => return Ok(found),
            Err(e) => e,
        };
        let issuers = self.issuers.load_full();
        let rejected = match issuers.authenticate(token).await {
            None => rejected,
            Some(Err(e)) => e,
            Some(Ok(user)) => {
                // Their audiences are their configuration's: here such a token is one for this server.
                let meant: Vec<String> = audiences.iter().filter(|a| self.tokens.api_audiences.contains(a)).cloned().collect();
                if !meant.is_empty() {
                    return Ok((user, meant));
                }
                Rejected("another audience".into())
            }
        };
        match &self.webhook {
            Some(w) => w.authenticate(token, audiences).await,
            None => Err(rejected),
        }
    }
}

/// The token of an `Authorization: Bearer` header, or of a WebSocket's subprotocol, where browsers put it.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then(|| token.trim())
}
