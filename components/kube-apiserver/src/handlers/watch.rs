//! Watch: a cursor into the resource's ring of events, with the selectors of this watcher.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use k8s_schema::{
    proto::{field_len, put_bytes, put_tag, put_varint},
    selector::FieldSelector,
};
use rand::RngExt;
use serde_json::{Value, json};

use super::{
    Ctx, enveloped, json_of, load,
    options::{ListOptions, parse_rv},
    protobuf_of, read, table,
};
use crate::{
    custom::conversion,
    http::{Answer, ApiError, As, Body, Media, Offers, Wanted, body::answer},
    kinds,
    registry::Resource,
    storage::{Cursor, Event, EventKind, ResourceCache, Stored},
};

/// How often a watcher that asked for it hears how far it is.
const BOOKMARK: Duration = Duration::from_secs(60);
/// The last bookmark comes this long before the end.
const BEFORE_END: Duration = Duration::from_secs(2);
/// Events taken from the ring at a time.
const BATCH: usize = 256;

struct Watcher {
    ctx: Arc<Ctx>,
    res: Arc<Resource>,
    cache: Arc<ResourceCache>,
    options: ListOptions,
    wanted: Wanted,
    prefix: String,
    cursor: Cursor,
    /// Objects that are sent as ADDED before the events.
    initial: std::vec::IntoIter<Arc<Stored>>,
    /// Events after this revision are news; what is not is part of the initial objects.
    since: i64,
    /// A bookmark that ends the initial objects is still to be sent.
    end_of_initial: Option<i64>,
    ready: VecDeque<Bytes>,
    deadline: Instant,
    next_bookmark: Instant,
    sent_columns: bool,
    include: table::Include,
    over: bool,
    heads: tokio::sync::watch::Receiver<u64>,
}

pub async fn watch(ctx: &Arc<Ctx>, res: &Arc<Resource>) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, true)?;
    if wanted.media == Media::Yaml {
        return Err(ApiError::not_acceptable(&["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"]));
    }
    let include = table::Include::parse(ctx.query.get("includeObject"))?;
    let mut options = ListOptions::parse(&ctx.query, true, &ctx.info.name)?;
    if !ctx.info.name.is_empty() && ctx.info.parts >= 2 {
        let mut text = options.fields.to_string();
        text.push_str(if text.is_empty() { "metadata.name=" } else { ",metadata.name=" });
        text.push_str(&ctx.info.name);
        options.fields = FieldSelector::parse(&text).map_err(|e| ApiError::bad_request(e.to_string()))?;
    }
    kinds::check_field_selector(res, &options.fields)?;
    let rv = parse_rv(&options.resource_version)?;
    let cache = read::cache(ctx, res)?;
    let reflector = &ctx.server.objects.reflector;
    let initial_events = options.send_initial_events == Some(true);
    let prefix = read::key_prefix(ctx, res);
    let (mut initial, mut end_of_initial) = (Vec::new(), None);
    let (cursor, since);
    if rv == 0 || initial_events {
        if options.resource_version.is_empty() {
            reflector.barrier().await?;
        } else if rv > 0 {
            read::wait_for(ctx, rv).await?;
        }
        // With sendInitialEvents=false only news is wanted.
        let (map, changed, c) = cache.snapshot_and_cursor();
        let observed = reflector.observed().max(changed);
        cursor = c;
        since = changed;
        if options.send_initial_events != Some(false) {
            initial = map.range(&prefix, None).map(|(_, s)| Arc::clone(s)).filter(|s| read::matches(&options, s)).collect();
        }
        if initial_events && options.bookmarks {
            end_of_initial = Some(observed);
        }
    } else {
        match cache.cursor_after(rv) {
            Ok(c) => cursor = c,
            Err(e) => {
                let e = ApiError::expired(format!("too old resource version: {} ({})", e.asked, e.oldest));
                return Ok(one_error(&e, wanted));
            }
        }
        since = rv;
    }
    let seconds = match options.timeout {
        Some(t) if t > 0 => u64::try_from(t).unwrap_or(1800),
        _ => {
            let least = ctx.server.http.min_request_timeout.as_secs().max(1);
            rand::rng().random_range(least..least * 2)
        }
    };
    let now = Instant::now();
    let heads = cache.subscribe();
    let w = Watcher {
        ctx: Arc::clone(ctx),
        res: Arc::clone(res),
        cache,
        wanted,
        prefix,
        cursor,
        initial: initial.into_iter(),
        since,
        end_of_initial,
        ready: VecDeque::new(),
        deadline: now + Duration::from_secs(seconds),
        // A watch that ends before there could be one has none.
        next_bookmark: now
            + Some(Duration::from_secs(seconds).saturating_sub(BEFORE_END)).filter(|d| !d.is_zero()).unwrap_or(BOOKMARK).min(BOOKMARK),
        sent_columns: false,
        include,
        over: false,
        heads,
        options,
    };
    let content = content_type(wanted);
    let body = stream::unfold(w, |mut w| async move { w.next().await.map(|b| (b, w)) });
    Ok(answer(200, content, Body::stream(body)))
}

/// A watch that only tells why there is none.
fn one_error(e: &ApiError, wanted: Wanted) -> Answer {
    answer(200, content_type(wanted), Body::Full(value_frame(wanted, "ERROR", &e.to_value())))
}

fn content_type(wanted: Wanted) -> &'static str {
    match wanted.media {
        // A table has no protobuf form.
        Media::Protobuf if wanted.shape != As::Table => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    }
}

/// A frame with something that is no stored object: an error, a bookmark, metadata alone.
fn value_frame(wanted: Wanted, kind: &str, v: &Value) -> Bytes {
    let binary = if content_type(wanted) == "application/json" { None } else { protobuf_of(v) };
    binary.map_or_else(|| frame_of(kind, v.to_string().as_bytes()), |b| protobuf_frame(kind, &b))
}

fn frame_of(kind: &str, object: &[u8]) -> Bytes {
    let mut b = BytesMut::with_capacity(object.len() + 40);
    b.extend_from_slice(b"{\"type\":\"");
    b.extend_from_slice(kind.as_bytes());
    b.extend_from_slice(b"\",\"object\":");
    b.extend_from_slice(object);
    b.extend_from_slice(b"}\n");
    b.freeze()
}

/// A `WatchEvent` message whose object is a whole protobuf answer, behind its length in four bytes.
fn protobuf_frame(kind: &str, object: &[u8]) -> Bytes {
    let raw = field_len(object.len());
    let event = field_len(kind.len()) + field_len(raw);
    let mut out = Vec::with_capacity(4 + event);
    out.extend_from_slice(&u32::try_from(event).unwrap_or(u32::MAX).to_be_bytes());
    put_bytes(&mut out, 1, kind.as_bytes());
    put_tag(&mut out, 2, 2);
    put_varint(&mut out, raw as u64);
    put_bytes(&mut out, 1, object);
    out.into()
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(b) = self.ready.pop_front() {
                if self.ready.is_empty() {
                    return Some(b);
                }
                // What is ready at once goes out in one write.
                let mut all = BytesMut::from(&b[..]);
                while let Some(b) = self.ready.pop_front() {
                    all.extend_from_slice(&b);
                    if all.len() > 64 << 10 {
                        break;
                    }
                }
                return Some(all.freeze());
            }
            if self.over {
                return None;
            }
            self.fill().await;
        }
    }

    fn send(&mut self, kind: &str, stored: &Arc<Stored>) {
        let server = &self.ctx.server;
        let frame = match (self.wanted.shape, self.wanted.media) {
            (As::Object | As::Discovery, Media::Protobuf) => enveloped(server, &self.res, stored).map(|b| protobuf_frame(kind, &b)),
            (As::Object | As::Discovery, _) => json_of(server, &self.res, stored).map(|j| frame_of(kind, &j)),
            (As::Table, _) => load(server, &self.res, stored).map(|d| {
                let table = table::of_objects(&self.res, std::slice::from_ref(&d), self.include, &table::list_meta(&d));
                let mut v = table::versioned(table, self.wanted);
                if self.sent_columns {
                    v["columnDefinitions"] = Value::Null;
                }
                frame_of(kind, v.to_string().as_bytes())
            }),
            (As::PartialMetadata | As::PartialMetadataList, _) => {
                load(server, &self.res, stored).map(|d| value_frame(self.wanted, kind, &table::partial(&d)))
            }
        };
        self.sent_columns = true;
        match frame {
            Ok(f) => self.ready.push_back(f),
            Err(e) => {
                self.ready.push_back(value_frame(self.wanted, "ERROR", &e.to_value()));
                self.over = true;
            }
        }
    }

    /// Sends several, converted together where a webhook does that.
    async fn send_all(&mut self, events: Vec<(&'static str, Arc<Stored>)>) {
        let (kinds, objects): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        match conversion::shown(&self.ctx.server, &self.res, objects).await {
            Ok(objects) => kinds.iter().zip(&objects).for_each(|(kind, object)| self.send(kind, object)),
            Err(e) => {
                let e = ApiError::from(e);
                self.ready.push_back(value_frame(self.wanted, "ERROR", &e.to_value()));
                self.over = true;
            }
        }
    }

    fn bookmark(&mut self, rev: i64, end_of_initial: bool) {
        let mut meta = json!({"resourceVersion": rev.to_string()});
        if end_of_initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let frame = if self.wanted.media == Media::Protobuf && self.wanted.shape == As::Object {
            let Some(ty) = self.res.type_id else { return };
            let mut d = k8s_schema::Doc::new(&self.ctx.server.objects.schema, ty);
            if d.set("metadata", meta).is_err() {
                return;
            }
            protobuf_frame("BOOKMARK", &d.to_protobuf())
        } else {
            let object = match self.wanted.shape {
                As::Table => {
                    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": null, "rows": []})
                }
                As::PartialMetadata | As::PartialMetadataList => {
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta})
                }
                _ => match self.res.type_id {
                    Some(ty) => {
                        let mut d = k8s_schema::Doc::new(&self.ctx.server.objects.schema, ty);
                        if d.set("metadata", meta).is_err() {
                            return;
                        }
                        d.to_value()
                    }
                    None => json!({"kind": self.res.kind, "apiVersion": self.res.api_version(), "metadata": meta}),
                },
            };
            value_frame(self.wanted, "BOOKMARK", &object)
        };
        self.ready.push_back(frame);
    }

    /// How an event looks through this watcher's selectors; none: not at all.
    fn seen(&self, e: &Event) -> Option<(&'static str, Arc<Stored>)> {
        if !e.object.key.starts_with(&self.prefix) || e.rev() <= self.since {
            return None;
        }
        let before = e.previous.as_ref().is_some_and(|p| read::matches(&self.options, p));
        let now = e.kind == EventKind::Put && read::matches(&self.options, &e.object);
        match (before, now) {
            (false, true) => Some(("ADDED", Arc::clone(&e.object))),
            (true, true) => Some(("MODIFIED", Arc::clone(&e.object))),
            // An object that left the selector is shown as it was, at the revision at which it left.
            (true, false) => {
                let last =
                    if e.kind == EventKind::Delete { Arc::clone(&e.object) } else { Arc::new(e.previous.as_ref()?.at_revision(e.rev())) };
                Some(("DELETED", last))
            }
            (false, false) => None,
        }
    }

    /// A custom resource whose definition changed is another one: clients begin again with what it is now.
    fn outdated(&self) -> bool {
        let r = &self.res;
        let now = || self.ctx.server.registry.resource(&r.group, &r.version, &r.plural);
        r.custom.is_some() && !now().is_some_and(|n| Arc::ptr_eq(&n, r))
    }

    async fn fill(&mut self) {
        if self.outdated() {
            self.over = true;
            return;
        }
        if self.initial.len() > 0 {
            let some = self.initial.by_ref().take(BATCH).map(|s| ("ADDED", s)).collect();
            self.send_all(some).await;
            return;
        }
        if let Some(rev) = self.end_of_initial.take() {
            self.bookmark(rev, true);
            return;
        }
        // Read the revision first: everything up to it is in the ring by then.
        let observed = self.ctx.server.objects.reflector.observed();
        match self.cache.read(&mut self.cursor, BATCH) {
            Err(e) => {
                let e = ApiError::expired(format!("too old resource version: {} ({})", self.since, e.oldest));
                self.ready.push_back(value_frame(self.wanted, "ERROR", &e.to_value()));
                self.over = true;
                return;
            }
            Ok(events) if !events.is_empty() => {
                let mut news = Vec::new();
                for e in &events {
                    news.extend(self.seen(e));
                    self.since = e.rev();
                }
                self.send_all(news).await;
                return;
            }
            Ok(_) => {}
        }
        let now = Instant::now();
        if now >= self.deadline {
            self.over = true;
            return;
        }
        if self.options.bookmarks && now >= self.next_bookmark {
            let last = self.deadline.checked_sub(BEFORE_END).filter(|l| *l > now);
            self.next_bookmark = (now + BOOKMARK).min(last.unwrap_or(self.deadline + BOOKMARK));
            if observed > 0 {
                self.bookmark(observed.max(self.since), false);
            }
            return;
        }
        let until = if self.options.bookmarks { self.next_bookmark.min(self.deadline) } else { self.deadline };
        tokio::select! {
            _ = self.heads.changed() => {}
            () = tokio::time::sleep_until(until.into()) => {}
            () = self.ctx.server.drain.over.cancelled() => self.over = true,
        }
    }
}
