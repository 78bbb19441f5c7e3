//! Auditing: who asked for what, when, and what became of it, as far as the policy wants it recorded.
//!
//! Without a policy there is no [`Audit`] and a request pays for nothing. With one, a [`Record`] goes along with every request that the
//! policy names; admission and authorization annotate it, and at each stage an event is made of it and written by the backends: the log, a
//! webhook, or both.

mod event;
mod flags;
pub mod log;
mod policy;
mod rotate;
mod throttle;
pub mod webhook;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc, task::Poll};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::{HeaderMap, header};
use jiff::Timestamp;
use k8s_schema::{Doc, Schema};
use parking_lot::Mutex;
use serde_json::Value;

pub use flags::Flags;
use policy::{Level, Policy, Ruling, Stage};

use crate::{
    authn::User,
    http::{Answer, Body, RequestInfo},
    metrics::Counter,
};

/// Where the policy is and where events go.
#[derive(Debug, Clone)]
pub struct Config {
    pub policy: PathBuf,
    pub log: Option<log::Config>,
    pub webhook: Option<webhook::Config>,
    pub truncate: Truncate,
}

/// The largest event of each backend, in bytes; larger ones lose their objects.
#[derive(Debug, Clone, Copy, Default)]
pub struct Truncate {
    pub log: Option<usize>,
    pub webhook: Option<usize>,
}

/// Upstream's counters of auditing.
#[derive(Debug)]
pub struct Metrics {
    pub events: Counter,
    pub errors: Counter,
    pub levels: Counter,
    pub rejected: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            events: Counter::new("apiserver_audit_event_total", "[ALPHA] Audit events made and sent to the backend.", &[]),
            errors: Counter::new("apiserver_audit_error_total", "[ALPHA] Audit events that were lost.", &["plugin"]),
            levels: Counter::new("apiserver_audit_level_total", "[ALPHA] Requests by the level of their audit.", &["level"]),
            rejected: Counter::new(
                "apiserver_audit_requests_rejected_total",
                "[ALPHA] Requests refused because they could not be audited.",
                &[],
            ),
        }
    }
}

/// Audit IDs of clients are cut here.
const MAX_ID: usize = 64;
/// Objects of answers larger than this are left out of events.
const MAX_OBJECT: usize = 16 << 20;

pub struct Audit {
    policy: Policy,
    log: Option<log::Log>,
    webhook: Option<webhook::Webhook>,
    truncate: Truncate,
    schema: Schema,
    metrics: Arc<Metrics>,
}

/// The ID of a request: the client's, or a new one.
pub fn id_of(headers: &HeaderMap) -> String {
    let given = headers.get("audit-id").and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty());
    given.map_or_else(|| uuid::Uuid::new_v4().to_string(), |v| v.chars().take(MAX_ID).collect())
}

impl Audit {
    pub fn start(c: &Config, schema: Schema, metrics: Arc<Metrics>) -> anyhow::Result<Arc<Self>> {
        let policy = Policy::load(&c.policy).context("--audit-policy-file")?;
        let log = match &c.log {
            Some(l) => {
                Some(log::Log::start(l.clone(), Arc::clone(&metrics)).with_context(|| format!("cannot write {}", l.path.display()))?)
            }
            None => None,
        };
        let webhook = c.webhook.as_ref().map(|w| webhook::Webhook::start(w, Arc::clone(&metrics)));
        let webhook = webhook.transpose().context("--audit-webhook-config-file")?;
        Ok(Arc::new(Self { policy, log, webhook, truncate: c.truncate, schema, metrics }))
    }

    /// The record of a request; none: the policy does not want it. `user` is who authenticated, before any impersonation.
    pub fn begin(
        self: &Arc<Self>,
        user: &User,
        info: &RequestInfo,
        uri: &http::Uri,
        headers: &HeaderMap,
        peer: SocketAddr,
        id: &str,
    ) -> Option<Arc<Record>> {
        let ruling = self.policy.ruling(user, info);
        self.metrics.levels.add(&[ruling.level.name()]);
        if ruling.level == Level::None {
            return None;
        }
        let text = |h: &str| headers.get(h).and_then(|v| v.to_str().ok()).unwrap_or("");
        let mut sources: Vec<String> = text("x-forwarded-for").split(',').map(str::trim).filter(|s| is_ip(s)).map(str::to_owned).collect();
        let real = text("x-real-ip").trim();
        if is_ip(real) && !sources.iter().any(|s| s == real) {
            sources.push(real.to_owned());
        }
        let peer = peer.ip().to_canonical().to_string();
        if !sources.contains(&peer) {
            sources.push(peer);
        }
        let object = info.is_resource.then(|| ObjectRef {
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            group: info.group.clone(),
            version: info.version.clone(),
            subresource: info.subresource.clone(),
            ..ObjectRef::default()
        });
        Some(Arc::new(Record {
            audit: Arc::clone(self),
            ruling,
            id: id.to_owned(),
            uri: uri.to_string(),
            verb: info.verb.clone(),
            user: user.clone(),
            sources,
            agent: text("user-agent").chars().take(1024).collect(),
            received: Timestamp::now(),
            long_running: info.is_long_running(),
            state: Mutex::new(State { object, ..State::default() }),
        }))
    }

    /// Waits until everything is written.
    pub async fn close(&self) {
        if let Some(log) = &self.log {
            log.flush().await;
        }
        if let Some(webhook) = &self.webhook {
            webhook.flush().await;
        }
    }
}

fn is_ip(s: &str) -> bool {
    s.parse::<std::net::IpAddr>().is_ok()
}

/// What a request is about.
#[derive(Debug, Clone, Default)]
struct ObjectRef {
    resource: String,
    namespace: String,
    name: String,
    uid: String,
    group: String,
    version: String,
    resource_version: String,
    subresource: String,
}

/// A body as it went over the wire.
#[derive(Debug, Clone, Default)]
struct Payload {
    content_type: String,
    bytes: Bytes,
}

#[derive(Debug, Default)]
struct State {
    object: Option<ObjectRef>,
    impersonated: Option<User>,
    constraint: Option<String>,
    annotations: BTreeMap<String, String>,
    request: Option<Payload>,
    /// The code of the answer, and its Status when it is an error.
    code: u16,
    status: Option<Value>,
    response: Option<Payload>,
}

/// An event, as each backend takes it.
#[derive(Default)]
struct Lines {
    log: Option<Vec<u8>>,
    webhook: Option<Vec<u8>>,
}

/// One request that is audited.
pub struct Record {
    audit: Arc<Audit>,
    ruling: Ruling,
    id: String,
    uri: String,
    verb: String,
    user: User,
    sources: Vec<String>,
    agent: String,
    received: Timestamp,
    long_running: bool,
    state: Mutex<State>,
}

impl Record {
    /// Whether the answer's body is recorded.
    pub fn reads_answers(&self) -> bool {
        self.ruling.level == Level::RequestResponse
    }

    /// The first value of a key stays.
    pub fn annotate(&self, key: impl Into<String>, value: &str) {
        self.state.lock().annotations.entry(key.into()).or_insert_with(|| value.to_owned());
    }

    /// `constraint`: what allowed it, unless that was the right to do so whatever the request.
    pub fn impersonated(&self, user: &User, constraint: Option<String>) {
        if *user != self.user {
            let mut state = self.state.lock();
            (state.impersonated, state.constraint) = (Some(user.clone()), constraint);
        }
    }

    /// The body of the request, kept when the level asks for it.
    pub fn request(&self, headers: &HeaderMap, body: &Bytes) {
        if self.ruling.level >= Level::Request && !body.is_empty() {
            let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
            self.state.lock().request = Some(Payload { content_type, bytes: body.clone() });
        }
    }

    /// What the request's object says of itself that the path did not.
    pub fn about(&self, doc: &Doc) {
        let meta = doc.meta();
        if let Some(o) = &mut self.state.lock().object {
            for (field, value) in [
                (&mut o.namespace, meta.namespace()),
                (&mut o.name, meta.name()),
                (&mut o.uid, meta.uid()),
                (&mut o.resource_version, meta.resource_version()),
            ] {
                if field.is_empty() {
                    value.clone_into(field);
                }
            }
        }
    }

    /// Writes the event of a stage. False: it could not be written and the request must not go on.
    async fn emit(&self, stage: Stage) -> bool {
        let lines = self.lines(stage);
        let mut written = true;
        if let (Some(line), Some(log)) = (lines.log, &self.audit.log) {
            written &= log.write(line).await;
        }
        if let (Some(line), Some(webhook)) = (lines.webhook, &self.audit.webhook) {
            written &= webhook.write(line).await;
        }
        written
    }

    /// Has the event of a stage written, where nobody can wait for it.
    fn offer(&self, stage: Stage) {
        let lines = self.lines(stage);
        if let (Some(line), Some(log)) = (lines.log, &self.audit.log) {
            log.offer(line);
        }
        if let (Some(line), Some(webhook)) = (lines.webhook, &self.audit.webhook) {
            webhook.offer(line);
        }
    }

    fn lines(&self, stage: Stage) -> Lines {
        if self.ruling.omit.contains(&stage) {
            return Lines::default();
        }
        let audit = &self.audit;
        audit.metrics.events.add(&[]);
        let (state, now) = (self.state.lock(), Timestamp::now());
        let make = |format, limit| {
            let line = event::line(self, &state, stage, now, format, limit);
            if line.is_none() {
                audit.metrics.errors.add(&["truncate"]);
            }
            line
        };
        let log = audit.log.as_ref().and_then(|l| make(l.format, audit.truncate.log));
        let webhook = audit.webhook.as_ref().and_then(|_| match (&log, audit.log.as_ref()) {
            // Made the same way already.
            (Some(line), Some(l)) if l.format == log::Format::Json && audit.truncate.log == audit.truncate.webhook => Some(line.clone()),
            _ => make(log::Format::Json, audit.truncate.webhook),
        });
        Lines { log, webhook }
    }

    /// The request was read and its user is known. False: it must be refused, as it cannot be audited.
    pub async fn received(&self) -> bool {
        let ok = self.emit(Stage::RequestReceived).await;
        if !ok {
            self.audit.metrics.rejected.add(&[]);
        }
        ok
    }

    /// Nobody could be found behind the request.
    pub async fn unauthenticated(&self, message: &str) {
        {
            let mut s = self.state.lock();
            s.code = 401;
            s.status =
                Some(serde_json::json!({"metadata": {}, "status": "Failure", "message": message, "reason": "Unauthorized", "code": 401}));
        }
        self.emit(Stage::ResponseStarted).await;
    }

    /// The answer is there; it is given back, watched when it is a stream.
    pub async fn answered(self: &Arc<Self>, answer: Answer, panicked: bool) -> Answer {
        let code = answer.status().as_u16();
        let content_type = answer.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let wanted = self.reads_answers();
        {
            let mut s = self.state.lock();
            s.code = code;
            if let Body::Full(bytes) = answer.body() {
                let payload = Payload { content_type: content_type.clone(), bytes: bytes.clone() };
                if code >= 400 {
                    s.status = event::decode(&self.audit.schema, &payload).filter(|v| v["kind"] == "Status");
                }
                if wanted && !bytes.is_empty() {
                    s.response = Some(payload);
                }
            }
        }
        if panicked {
            self.emit(Stage::Panic).await;
            return answer;
        }
        let streamed = matches!(answer.body(), Body::Stream(_) | Body::Incoming(_));
        if self.long_running {
            self.emit(Stage::ResponseStarted).await;
        }
        if !streamed {
            self.emit(Stage::ResponseComplete).await;
            return answer;
        }
        let collected = (wanted && !self.long_running).then(|| (content_type, BytesMut::new()));
        answer.map(|body| Body::stream(Watched { body, end: End { record: Arc::clone(self), collected } }))
    }
}

/// Makes the last event when a stream ends, whoever ends it.
struct End {
    record: Arc<Record>,
    collected: Option<(String, BytesMut)>,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some((content_type, bytes)) = self.collected.take() {
            self.record.state.lock().response = Some(Payload { content_type, bytes: bytes.freeze() });
        }
        self.record.offer(Stage::ResponseComplete);
    }
}

struct Watched {
    body: Body,
    end: End,
}

impl Stream for Watched {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<Bytes>> {
        let this = &mut *self;
        let next = match hyper::body::Body::poll_frame(Pin::new(&mut this.body), cx) {
            Poll::Pending => return Poll::Pending,
            // A node that stops in the middle ends the stream, as it would without us.
            Poll::Ready(None | Some(Err(_))) => None,
            Poll::Ready(Some(Ok(frame))) => Some(frame.into_data().unwrap_or_default()),
        };
        if let (Some(data), Some((_, all))) = (&next, &mut this.end.collected) {
            if all.len() + data.len() > MAX_OBJECT {
                this.end.collected = None;
                this.end.record.annotate("audit.k8s.io/truncated", "true");
            } else {
                all.extend_from_slice(data);
            }
        }
        Poll::Ready(next)
    }
}
