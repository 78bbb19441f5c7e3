//! What every request goes through, in upstream's order: its line is read, the user is found, impersonation, authorization, the handler.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, OnceLock, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use http::{HeaderValue, Method, header};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::{
    Answer, ApiError, Body, Group, Query, RequestInfo, Wanted,
    impersonation::impersonate,
    negotiate::{self, Media},
    serve::Conn,
};
use crate::{
    audit::{self, Record},
    authn::User,
    authz::{Attributes, Decision, refusal},
    flow_control::Marks,
    handlers::{self, Ctx},
    metrics::{LongRunning, Of},
    server::Server,
};

pub async fn handle(server: Arc<Server>, conn: Arc<Conn>, req: hyper::Request<Incoming>) -> Answer {
    let started = std::time::Instant::now();
    let _running = match server.drain.enter(req.uri().path()) {
        Ok(running) => running,
        Err(refusal) => return *refusal,
    };
    let origin = server.http.origin(req.headers());
    if let Some(mut a) = server.http.preflight(req.method(), origin.as_ref()) {
        server.http.mark(&mut a, origin);
        return a;
    }
    let id = audit::id_of(req.headers());
    let record = OnceLock::new();
    let marks = Mutex::new(None);
    let headers = req.headers().clone();
    let method = req.method().clone();
    let query = Query::parse(req.uri().query());
    let info = Arc::new(RequestInfo::parse(&method, req.uri().path(), |k| query.get(k).map(str::to_owned)));
    if req.version() == http::Version::HTTP_2 && info.verb != "get" {
        // Only what is short is answered by the connection's task: its other requests wait meanwhile.
        tokio::task::yield_now().await;
    }
    let counted = Arc::clone(&info);
    let apply = headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/apply-patch"));
    let dry_run = query.get("dryRun").is_some_and(|d| d == "All");
    let kept = Arc::clone(&server);
    let work = AssertUnwindSafe(run(Arc::clone(&server), conn, req, info, query, &id, &record, &marks)).catch_unwind();
    let worked = work.await;
    let panicked = worked.is_err();
    let mut answer = match worked {
        Ok(Ok(a)) => a,
        Ok(Err(e)) => error_answer(&e, &headers),
        Err(_) => {
            tracing::error!(%method, path = counted.path, "a handler panicked");
            error_answer(&ApiError::new(500, "", "This request caused apiserver to panic. Look in the logs for details."), &headers)
        }
    };
    let h = answer.headers_mut();
    h.entry("cache-control").or_insert(HeaderValue::from_static("no-cache, private"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        h.insert("audit-id", id);
    }
    if let Some((schema, level)) = marks.into_inner() {
        h.insert("x-kubernetes-pf-flowschema-uid", schema);
        h.insert("x-kubernetes-pf-prioritylevel-uid", level);
    }
    if let Some(r) = record.get() {
        answer = r.answered(answer, panicked).await;
    }
    let of = Of::request(&counted, dry_run, apply);
    let size = if let Body::Full(bytes) = answer.body() { Some(bytes.len() as u64) } else { None };
    kept.http.mark(&mut answer, origin);
    kept.metrics.request(&of, answer.status().as_u16(), started.elapsed(), size);
    if counted.is_long_running() && size.is_none() {
        let running = kept.metrics.long_running(&of);
        answer = answer.map(|body| Body::stream(Counted { body, _running: running }));
    }
    tracing::debug!(%method, path = counted.path, code = answer.status().as_u16(), "request");
    answer
}

/// A stream that is counted as long as it runs.
struct Counted {
    body: Body,
    _running: LongRunning,
}

impl Stream for Counted {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match hyper::body::Body::poll_frame(Pin::new(&mut self.body), cx) {
            Poll::Pending => Poll::Pending,
            // A node that stops in the middle ends the stream, as it would without us.
            Poll::Ready(None | Some(Err(_))) => Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(frame.into_data().unwrap_or_default())),
        }
    }
}

/// An error in the encoding the client takes, JSON when that is none of ours.
pub fn error_answer(e: &ApiError, headers: &http::HeaderMap) -> Answer {
    let accepts = negotiate::wanted(headers, false, negotiate::Offers::Plain, false).map_or(Media::Json, |w| w.media);
    let wanted = Wanted { media: accepts, ..Wanted::JSON };
    let mut a = handlers::encode_value(e.code, &e.to_value(), wanted);
    for (k, v) in &e.headers {
        if let Ok(v) = HeaderValue::from_str(v) {
            a.headers_mut().insert(*k, v);
        }
    }
    a
}

async fn run(
    server: Arc<Server>,
    conn: Arc<Conn>,
    req: hyper::Request<Incoming>,
    info: Arc<RequestInfo>,
    query: Query,
    id: &str,
    record: &OnceLock<Arc<Record>>,
    marks: &Mutex<Marks>,
) -> Result<Answer, ApiError> {
    let found = server.authn.authenticate(&conn.certificates, req.headers(), &info.path).await;
    let begin = |user: &User| server.audit.as_ref()?.begin(user, &info, req.uri(), req.headers(), conn.peer, id);
    let user = match found {
        Ok(user) => user,
        Err(e) => {
            tracing::debug!(peer = %conn.peer, path = info.path, reason = e.0, "unauthenticated");
            // A token is good as long as its account is there, and accounts are still being read.
            if !server.ready.load(Ordering::Acquire) && req.headers().contains_key(header::AUTHORIZATION) {
                return Err(ApiError::too_many_requests("storage is (re)initializing", 1));
            }
            if let Some(r) = begin(&User::default()) {
                let how = if req.headers().contains_key(header::AUTHORIZATION) { "bearer" } else { "x509" };
                r.unauthenticated(&format!("Authentication failed, attempted: {how}")).await;
            }
            return Err(ApiError::unauthorized());
        }
    };
    if let Some(r) = begin(&user) {
        if !r.received().await {
            return Err(ApiError::internal("the request cannot be audited"));
        }
        // It is set here alone.
        let _ = record.set(r);
    }
    let attributes = Attributes {
        verb: info.verb.clone(),
        is_resource: info.is_resource,
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        path: info.path.clone(),
        field_selector: query.get("fieldSelector").unwrap_or("").to_owned(),
    };
    let (user, constraint) = impersonate(&server.authz, user, req.headers(), &attributes).await?;
    if let Some(r) = record.get() {
        r.impersonated(&user, constraint);
    }
    let mut mark = None;
    let pass = server.gate.pass(&server, &user, &info, &query, &mut mark).await;
    *marks.lock() = mark;
    // Its seats are free when this function returns.
    let _pass = match pass {
        Ok(pass) => pass,
        Err(refusal) => return Ok(*refusal),
    };
    let decision = server.authz.decide(&user, &attributes).await;
    if let Some(r) = record.get() {
        let (decision, reason) = match &decision {
            Decision::Allow(reason) => ("allow", reason),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => ("forbid", reason),
        };
        r.annotate("authorization.k8s.io/decision", decision);
        r.annotate("authorization.k8s.io/reason", reason);
    }
    if let Decision::Deny(reason) | Decision::NoOpinion(reason) = decision {
        // While roles are still being read or written, a refusal would be a guess that clients take for final. Health is told then.
        let health = ["healthz", "livez", "readyz"].contains(&info.path.split('/').nth(1).unwrap_or(""));
        let starting = !server.ready.load(Ordering::Acquire);
        if starting && !health {
            return Err(ApiError::too_many_requests("storage is (re)initializing", 1));
        }
        if !starting {
            let why = refusal(&user, &attributes, &reason);
            return Err(ApiError::forbidden(Group(&info.group, &info.resource), &info.name, why));
        }
    }
    let long = info.is_long_running();
    let limit = server.http.request_timeout;
    let upgrade = req.headers().contains_key(header::UPGRADE) || req.method() == Method::CONNECT;
    let (mut parts, body) = req.into_parts();
    if let Some(r) = &server.authn.request_header {
        r.names.clear(&mut parts.headers);
    }
    let ctx = Ctx {
        server,
        info,
        query,
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        user,
        warnings: Mutex::default(),
        audit: record.get().cloned(),
        internal: false,
        wrote: OnceLock::new(),
        held: OnceLock::new(),
    };
    let extensions = parts.extensions;
    let work = Box::pin(handlers::dispatch(ctx, body, extensions));
    if long || upgrade {
        return work.await;
    }
    match tokio::time::timeout(limit, work).await {
        Ok(r) => r,
        Err(_) => Err(ApiError::timeout("request did not complete within the allotted timeout", 0)),
    }
}
