//! Sends requests: bounded in size and time, with typed errors.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::{Config, Material};
use crate::error::{ConfigError, Error, Status};
use crate::meta::ObjectMeta;
use crate::request::{ListOptions, Request};
use crate::resource::Resource;
use crate::tls::{Endpoint, HttpClient, http_client};
use crate::watch::WatchStream;

/// The largest answer read into memory. A page of a list is the largest thing we ask for.
const MAX_BODY: usize = 64 << 20;
/// How often certificate and token files are looked at.
const REFRESH: Duration = Duration::from_secs(5);
/// Attempts when the server says "come back later".
const MAX_ATTEMPTS: u32 = 5;
/// Objects per page of [`Client::list`].
const PAGE: u32 = 500;

/// A connection to one API server; cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Arc<Transport>,
    user_agent: HeaderValue,
    /// Replaces the configured token.
    bearer: ArcSwapOption<HeaderValue>,
}

struct Transport {
    config: Config,
    endpoint: Endpoint,
    session: ArcSwap<Session>,
    checked: Mutex<Instant>,
}

/// What depends on files that may be renewed.
struct Session {
    http: HttpClient,
    authorization: Option<HeaderValue>,
    stamps: Vec<Option<(SystemTime, u64)>>,
}

/// A decoded answer with its HTTP status.
#[derive(Clone, Debug)]
pub struct Response {
    pub code: u16,
    pub body: Bytes,
}

/// meta/v1 ListMeta.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMeta {
    pub resource_version: String,
    #[serde(rename = "continue")]
    pub continue_token: String,
}

/// A list of any kind.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
pub struct List<T> {
    #[serde(default)]
    pub metadata: ListMeta,
    #[serde(default, deserialize_with = "crate::meta::null_default")]
    pub items: Vec<T>,
}

/// An object with every field the server sent, the only thing that can be put back.
#[derive(Clone, Debug, PartialEq)]
pub struct FullObject {
    value: serde_json::Value,
    meta: ObjectMeta,
}

impl FullObject {
    /// An object this component defines completely, so that putting it can lose nothing. `None` without metadata.
    pub fn new(value: serde_json::Value) -> Option<Self> {
        let meta = serde_json::from_value(value.get("metadata")?.clone()).ok()?;
        Some(Self { value, meta })
    }

    /// The metadata as it was read.
    pub fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    /// The object.
    pub fn value(&self) -> &serde_json::Value {
        &self.value
    }

    /// The object, to be changed before it is put back.
    pub fn value_mut(&mut self) -> &mut serde_json::Value {
        &mut self.value
    }
}

impl Client {
    /// A client; no connection is made yet. Needs a tokio runtime when used.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let endpoint = Endpoint::parse(&config.server)?;
        let session = Session::open(&config, &endpoint)?;
        let user_agent = header(&config.user_agent);
        let transport = Transport { config, endpoint, session: ArcSwap::from_pointee(session), checked: Mutex::new(Instant::now()) };
        Ok(Self { inner: Arc::new(Inner { transport: Arc::new(transport), user_agent, bearer: ArcSwapOption::empty() }) })
    }

    /// The configuration this client was made from.
    pub fn config(&self) -> &Config {
        &self.inner.transport.config
    }

    /// A client for the same server that proves no identity of its own: the start of token clients.
    pub fn anonymous(&self) -> Result<Self, ConfigError> {
        Self::new(Config { identity: None, token: None, ..self.config().clone() })
    }

    /// A client over the same connections with another user agent, whose requests carry the token last given to [`Client::set_bearer`].
    #[must_use]
    pub fn share(&self, user_agent: &str) -> Self {
        let inner = Inner { transport: self.inner.transport.clone(), user_agent: header(user_agent), bearer: ArcSwapOption::empty() };
        Self { inner: Arc::new(inner) }
    }

    /// Sets the bearer token of this client and its clones. A token that is no header value is ignored and said in the log.
    pub fn set_bearer(&self, token: &str) {
        match HeaderValue::from_str(&format!("Bearer {}", token.trim())) {
            Ok(mut value) => {
                value.set_sensitive(true);
                self.inner.bearer.store(Some(Arc::new(value)));
            }
            Err(_) => tracing::warn!("a bearer token with invalid characters was ignored"),
        }
    }

    /// Reads an object whole, changes it and puts it back (to `subresource` unless that is empty). A conflict is an error; `uid`, when not
    /// empty, must still be the object's. Nothing is sent when `change` changed nothing.
    pub async fn update(
        &self,
        resource: &Resource,
        key: (&str, &str),
        uid: &str,
        subresource: &str,
        change: impl FnOnce(&mut serde_json::Value),
    ) -> Result<FullObject, Error> {
        let request = Request::get(resource, key.0, key.1);
        let mut object = self.get_full(&request).await?;
        if !uid.is_empty() && object.meta.uid != uid {
            let message = format!("{resource} {}/{} was replaced by another of the same name", key.0, key.1);
            let status = Status { status: "Failure".into(), reason: "Conflict".into(), message, code: 409, details: None };
            return Err(Error::Api { request: request.to_string(), status: Box::new(status) });
        }
        let before = object.value.clone();
        change(&mut object.value);
        if object.value == before {
            return Ok(object);
        }
        let put = Request::replace(resource, &object);
        self.get_full(&if subresource.is_empty() { put } else { put.subresource(subresource) }).await
    }

    /// Sends a request and decodes the answer.
    pub async fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Error> {
        let response = self.send(request).await?;
        serde_json::from_slice(&response.body).map_err(|error| Error::Decode(request.to_string(), error))
    }

    /// Sends a request whose answer does not matter beyond success.
    pub async fn execute(&self, request: &Request) -> Result<(), Error> {
        self.send(request).await.map(drop)
    }

    /// Reads an object whole, so that it can be put back.
    pub async fn get_full(&self, request: &Request) -> Result<FullObject, Error> {
        #[derive(Deserialize)]
        struct WithMeta {
            metadata: ObjectMeta,
        }
        let response = self.send(request).await?;
        let decode = |error| Error::Decode(request.to_string(), error);
        let value = serde_json::from_slice(&response.body).map_err(decode)?;
        let WithMeta { metadata } = serde_json::from_slice(&response.body).map_err(decode)?;
        Ok(FullObject { value, meta: metadata })
    }

    /// Lists everything that matches, page by page.
    pub async fn list<T: DeserializeOwned>(&self, resource: &Resource, namespace: &str, options: &ListOptions) -> Result<List<T>, Error> {
        let mut page = ListOptions { limit: if options.limit == 0 { PAGE } else { options.limit }, ..options.clone() };
        let mut whole: Option<List<T>> = None;
        loop {
            let request = Request::list(resource, namespace, &page).with_timeout(Duration::from_secs(60));
            let part: List<T> = self.call(&request).await?;
            page.continue_token.clone_from(&part.metadata.continue_token);
            page.resource_version.clear();
            match &mut whole {
                None => whole = Some(part),
                Some(list) => {
                    list.items.extend(part.items);
                    list.metadata = part.metadata;
                }
            }
            if page.continue_token.is_empty() {
                // The loop body always stores a page before it gets here.
                return Ok(whole.unwrap_or(List { metadata: ListMeta::default(), items: Vec::new() }));
            }
        }
    }

    /// Opens a watch. Errors of the stream itself, such as 410, are its items.
    pub async fn watch<T: DeserializeOwned>(&self, request: &Request) -> Result<WatchStream<T>, Error> {
        let response = self.exchange(request, request.timeout).await?;
        if !response.status().is_success() {
            return Err(self.failure(request, response).await);
        }
        Ok(WatchStream::new(request.to_string(), response.into_body()))
    }

    /// Opens a streaming answer of any kind, for example a followed log.
    pub async fn stream(&self, request: &Request) -> Result<hyper::body::Incoming, Error> {
        let response = self.exchange(request, request.timeout).await?;
        if response.status().is_success() { Ok(response.into_body()) } else { Err(self.failure(request, response).await) }
    }

    /// Sends a request; a failure status is an error. Retries, a few times, what the server asked to be retried.
    pub async fn send(&self, request: &Request) -> Result<Response, Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let deadline = Instant::now() + request.timeout;
            let response = self.exchange(request, request.timeout).await?;
            let code = response.status().as_u16();
            let wait = retry_after(&response).filter(|_| matches!(code, 429 | 503) && attempt < MAX_ATTEMPTS);
            let body = self.body(request, response, deadline.saturating_duration_since(Instant::now())).await?;
            if (200..300).contains(&code) {
                return Ok(Response { code, body });
            }
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(api_error(request, code, &body)),
            }
        }
    }

    async fn failure(&self, request: &Request, response: http::Response<hyper::body::Incoming>) -> Error {
        let code = response.status().as_u16();
        match self.body(request, response, request.timeout).await {
            Ok(body) => api_error(request, code, &body),
            Err(error) => error,
        }
    }

    async fn body(&self, request: &Request, response: http::Response<hyper::body::Incoming>, timeout: Duration) -> Result<Bytes, Error> {
        let collected = tokio::time::timeout(timeout, Limited::new(response.into_body(), MAX_BODY).collect())
            .await
            .map_err(|_| Error::Timeout(request.to_string(), request.timeout))?;
        match collected {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Error::TooLarge(request.to_string(), MAX_BODY)),
            Err(error) => Err(Error::ReadBody(request.to_string(), error)),
        }
    }

    async fn exchange(&self, request: &Request, timeout: Duration) -> Result<http::Response<hyper::body::Incoming>, Error> {
        let transport = &self.inner.transport;
        transport.refresh();
        let session = transport.session.load_full();
        let uri = http::Uri::builder()
            .scheme(transport.endpoint.scheme.clone())
            .authority(transport.endpoint.authority.clone())
            .path_and_query(format!("{}{}", transport.endpoint.prefix, request.path_and_query()))
            .build()
            .map_err(|error| Error::BuildRequest(request.to_string(), error))?;
        let mut builder = http::Request::builder()
            .method(request.method.http())
            .uri(uri)
            .header(ACCEPT, request.accept)
            .header(USER_AGENT, self.inner.user_agent.clone());
        if let Some(content_type) = request.content_type {
            builder = builder.header(CONTENT_TYPE, content_type);
        }
        let bearer = self.inner.bearer.load_full();
        if let Some(authorization) = bearer.as_deref().or(session.authorization.as_ref()) {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        let message = builder.body(Full::new(request.body.clone())).map_err(|error| Error::BuildRequest(request.to_string(), error))?;
        tokio::time::timeout(timeout, session.http.request(message))
            .await
            .map_err(|_| Error::Timeout(request.to_string(), timeout))?
            .map_err(|error| Error::Send(request.to_string(), error))
    }
}

impl Transport {
    /// Takes up renewed certificate and token files. One that cannot be read leaves the session as it is.
    fn refresh(&self) {
        {
            let mut checked = self.checked.lock();
            if checked.elapsed() < REFRESH {
                return;
            }
            *checked = Instant::now();
        }
        if stamps(&self.config) == self.session.load().stamps {
            return;
        }
        match Session::open(&self.config, &self.endpoint) {
            Ok(session) => {
                self.session.store(Arc::new(session));
                tracing::info!(server = self.config.server, "client credentials reloaded");
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "client credentials changed but cannot be used; keeping the old ones"
            ),
        }
    }
}

impl Session {
    fn open(config: &Config, endpoint: &Endpoint) -> Result<Self, ConfigError> {
        // Stamps first: a file that changes while it is read is read again next time.
        let stamps = stamps(config);
        let authorization = match &config.token {
            None => None,
            Some(token) => {
                let text = String::from_utf8_lossy(&token.read()?).trim().to_string();
                let mut value = HeaderValue::from_str(&format!("Bearer {text}"))
                    .map_err(|_| ConfigError::Pem { what: token.describe(), kind: "token" })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { http: http_client(config, endpoint)?, authorization, stamps })
    }
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("strake"))
}

fn stamps(config: &Config) -> Vec<Option<(SystemTime, u64)>> {
    let identity = config.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
    let materials = config.ca.iter().chain(identity).chain(config.token.iter());
    materials
        .map(|material| match material {
            Material::File(path) => std::fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len()))),
            Material::Inline(_) => None,
        })
        .collect()
}

fn retry_after(response: &http::Response<hyper::body::Incoming>) -> Option<Duration> {
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.min(10)))
}

pub(crate) fn api_error(request: &Request, code: u16, body: &[u8]) -> Error {
    let status = match serde_json::from_slice::<Status>(body) {
        Ok(status) if status.code != 0 || !status.reason.is_empty() => {
            Status { code: if status.code == 0 { code } else { status.code }, ..status }
        }
        _ => {
            let text: String = String::from_utf8_lossy(body).chars().take(256).collect();
            Status { status: "Failure".into(), message: format!("HTTP {code}: {}", text.trim()), code, ..Status::default() }
        }
    };
    Error::Api { request: request.to_string(), status: Box::new(status) }
}
