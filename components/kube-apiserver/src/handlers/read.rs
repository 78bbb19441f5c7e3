//! Get and list, from the watch cache; only older revisions are read from etcd.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use bytes::{Bytes, BytesMut};
use k8s_schema::Doc;
use serde_json::{Value, json};

use super::{
    Ctx, encode_doc, encode_value, enveloped, json_line_of, json_of, load,
    options::{ListOptions, Match, parse_rv},
    protobuf_list, table,
};
use crate::{
    custom::conversion,
    http::{
        Answer, ApiError, As, Body, Group, Media, Offers, Wanted,
        body::answer,
        gzip::{self, Tail},
    },
    kinds,
    registry::Resource,
    storage::{ResourceCache, Stored, prefix_end},
};

/// Lists are written in pieces of about this size, so that one costs no more memory than a piece.
pub const PIECE: usize = 128 << 10;
/// Lists that are longer than this are compressed as they are sent, and not kept.
const MOST_KEPT: usize = 16 << 20;

pub fn cache(ctx: &Ctx, res: &Resource) -> Result<Arc<ResourceCache>, ApiError> {
    ctx.server.objects.reflector.cache(&res.prefix).ok_or_else(ApiError::no_resource)
}

/// The type of an object, or of a list of them, as upstream's code names it.
fn go_type(res: &Resource, suffix: &str) -> String {
    if res.custom.is_some() {
        return format!("*unstructured.Unstructured{suffix}");
    }
    let package = match res.group.split('.').next().unwrap_or("") {
        "" => "core",
        group => group,
    };
    format!("*{package}.{}{suffix}", res.kind)
}

pub async fn get(ctx: &Ctx, res: &Resource) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, false)?;
    if wanted.shape == As::Table {
        table::Include::parse(ctx.query.get("includeObject"))?;
    }
    let rv = ctx.query.get("resourceVersion").unwrap_or("");
    match parse_rv(rv)? {
        0 if rv.is_empty() => {
            ctx.server.objects.reflector.barrier().await?;
        }
        0 => {}
        n => wait_for(ctx, n).await?,
    }
    let stored = cache(ctx, res)?
        .get(&res.key(&ctx.info.namespace, &ctx.info.name))
        .ok_or_else(|| ApiError::not_found(Group(&res.group, &res.plural), &ctx.info.name))?;
    let stored = conversion::one(&ctx.server, res, &stored).await?;
    if wanted.shape == As::PartialMetadataList {
        let why = format!("you requested PartialObjectMetadataList, but the requested object is not a list ({})", go_type(res, ""));
        return Err(ApiError::new(406, "NotAcceptable", why));
    }
    if wanted == Wanted::JSON {
        return Ok(answer(200, Media::Json.content_type(), Body::Full(json_line_of(&ctx.server, res, &stored)?)));
    }
    if wanted.media == Media::Protobuf && wanted.shape == As::Object {
        return Ok(answer(200, Media::Protobuf.content_type(), Body::Full(enveloped(&ctx.server, res, &stored)?)));
    }
    Ok(encode_doc(ctx, 200, res, &load(&ctx.server, res, &stored)?, wanted))
}

/// Waits for a revision a client named; one that is far in the future is an error it can retry.
pub async fn wait_for(ctx: &Ctx, rev: i64) -> Result<(), ApiError> {
    let reflector = &ctx.server.objects.reflector;
    match reflector.wait_for(rev).await {
        Ok(()) => Ok(()),
        Err(_) => {
            let mut e = ApiError::timeout(format!("Too large resource version: {rev}, current: {}", reflector.observed()), 1);
            e = e.with_cause("ResourceVersionTooLarge", "Too large resource version", "");
            Err(e)
        }
    }
}

/// What a list selects: a snapshot of the objects at `rev`.
pub struct Selection {
    pub items: Vec<Arc<Stored>>,
    pub rev: i64,
    pub token: String,
    pub remaining: Option<i64>,
    /// Made of the cache as it is since this revision.
    pub changed: Option<i64>,
}

/// The keys a list may give: those of a namespace, or all.
pub fn key_prefix(ctx: &Ctx, res: &Resource) -> String {
    if res.namespaced && !ctx.info.namespace.is_empty() { format!("{}/", ctx.info.namespace) } else { String::new() }
}

pub fn matches(o: &ListOptions, s: &Stored) -> bool {
    o.labels.matches(|k| s.label(k)) && o.fields.matches(|k| s.field(k).unwrap_or(""))
}

fn encode_token(rev: i64, start: &str) -> String {
    B64.encode(json!({"v": "meta.k8s.io/v1", "rv": rev, "start": start}).to_string())
}

fn decode_token(token: &str) -> Result<(i64, String), ApiError> {
    let bad = |why: &str| ApiError::bad_request(format!("continue key is not valid: {why}"));
    let bytes = B64.decode(token.trim_end_matches('=')).map_err(|_| bad("illegal base64 data at input byte 0"))?;
    let v: Value = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
    if v["v"] != "meta.k8s.io/v1" {
        return Err(bad(&format!("server does not recognize this encoded version {:?}", v["v"].as_str().unwrap_or(""))));
    }
    let start = v["start"].as_str().unwrap_or("");
    if start.is_empty() {
        return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
    }
    if start.split('/').any(|p| p == "..") {
        return Err(bad(start));
    }
    Ok((v["rv"].as_i64().unwrap_or(0), start.trim_start_matches('/').to_owned()))
}

pub async fn select(ctx: &Ctx, res: &Resource, o: &ListOptions) -> Result<Selection, ApiError> {
    kinds::check_field_selector(res, &o.fields)?;
    let reflector = &ctx.server.objects.reflector;
    let rv = parse_rv(&o.resource_version).map_err(|e| ApiError::bad_request(format!("invalid resource version: {}", e.message)))?;
    let cache = cache(ctx, res)?;
    let (mut at, mut start) = (0, None);
    if !o.token.is_empty() {
        if !o.resource_version.is_empty() && rv != 0 {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        let (rev, from) = decode_token(&o.token)?;
        start = Some(from);
        // -1: whatever is there now, for clients whose first pages are gone.
        at = rev.max(0);
        if rev < 0 {
            reflector.barrier().await?;
        }
    } else if o.resource_version.is_empty() {
        reflector.barrier().await?;
    } else if rv > 0 {
        wait_for(ctx, rv).await?;
        if o.match_ == Match::Exact || (o.match_ == Match::Unset && o.limit > 0) {
            at = rv;
        }
    }
    let prefix = key_prefix(ctx, res);
    let observed = reflector.observed();
    let (map, changed) = cache.snapshot();
    // Nothing changed since the revision asked for: the cache is that revision.
    if at == 0 || at >= changed {
        let rev = if at > 0 { at } else { observed.max(changed) };
        let s = page(map.range(&prefix, start.as_deref()).map(|(_, s)| Arc::clone(s)), o, rev);
        return Ok(Selection { changed: Some(changed), ..s });
    }
    from_etcd(ctx, res, o, &prefix, start, at).await
}

fn page(all: impl Iterator<Item = Arc<Stored>>, o: &ListOptions, rev: i64) -> Selection {
    let mut items = Vec::new();
    let mut all = all.filter(|s| matches(o, s));
    if o.limit <= 0 {
        items.extend(all);
        return Selection { items, rev, token: String::new(), remaining: None, changed: None };
    }
    items.extend(all.by_ref().take(usize::try_from(o.limit).unwrap_or(usize::MAX)));
    let rest = all.count();
    let token = match items.last() {
        Some(last) if rest > 0 => encode_token(rev, &format!("{}\0", last.key)),
        _ => String::new(),
    };
    let plain = o.labels.is_empty() && o.fields.is_empty();
    Selection { items, rev, token, remaining: (rest > 0 && plain).then_some(rest as i64), changed: None }
}

/// Reads at an older revision; the objects pass through and are not kept.
async fn from_etcd(
    ctx: &Ctx,
    res: &Resource,
    o: &ListOptions,
    prefix: &str,
    start: Option<String>,
    at: i64,
) -> Result<Selection, ApiError> {
    let reflector = &ctx.server.objects.reflector;
    let root = format!("{}{}/", ctx.server.root, res.prefix);
    let end = prefix_end(&format!("{root}{prefix}"));
    let mut from = format!("{root}{}", start.as_deref().filter(|s| *s > prefix).unwrap_or(prefix));
    let mut items = Vec::new();
    let limit = usize::try_from(o.limit).unwrap_or(usize::MAX);
    loop {
        let page = match ctx.server.etcd.range(&from, end.clone(), 500, at).await {
            Ok(p) => p,
            Err(crate::storage::StoreError::Compacted) => return Err(expired(o, &from[root.len()..])),
            Err(e) => return Err(e.into()),
        };
        let plain = o.labels.is_empty() && o.fields.is_empty();
        let mut seen = 0;
        for kv in &page.kvs {
            seen += 1;
            let key = &kv.key[root.len()..];
            let s = reflector.make_stored(&res.prefix, key, kv.rev, kv.value.clone()).map_err(ApiError::internal)?;
            if matches(o, &s) {
                items.push(Arc::new(s));
            }
            if o.limit > 0 && items.len() == limit {
                let rest = page.count - seen;
                let token = if rest > 0 { encode_token(at, &format!("{key}\0")) } else { String::new() };
                return Ok(Selection { items, rev: at, token, remaining: (rest > 0 && plain).then_some(rest), changed: None });
            }
        }
        match page.kvs.last() {
            Some(last) if page.more => from = format!("{}\0", last.key),
            _ => return Ok(Selection { items, rev: at, token: String::new(), remaining: None, changed: None }),
        }
    }
}

fn expired(o: &ListOptions, start: &str) -> ApiError {
    if o.token.is_empty() {
        return ApiError::expired("The resourceVersion for the provided list is too old.");
    }
    let mut e = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue \
         parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided \
         token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was \
         returned and now may show up in the list.",
    );
    e.metadata = Some(json!({"continue": encode_token(-1, start)}));
    e
}

pub fn list_meta(s: &Selection) -> Value {
    meta_of(s, false)
}

/// Lists of custom resources say that they do not go on; others leave that out.
fn meta_of(s: &Selection, custom: bool) -> Value {
    let mut m = json!({"resourceVersion": s.rev.to_string()});
    if custom {
        m["continue"] = "".into();
    }
    if !s.token.is_empty() {
        m["continue"] = s.token.as_str().into();
    }
    if let Some(r) = s.remaining {
        m["remainingItemCount"] = r.into();
    }
    m
}

pub async fn list(ctx: &Ctx, res: &Arc<Resource>) -> Result<Answer, ApiError> {
    let wanted = ctx.wanted(Offers::Objects, true)?;
    let o = ListOptions::parse(&ctx.query, false, &ctx.info.name)?;
    let s = select(ctx, res, &o).await?;
    encode_list(ctx, res, s, wanted).await
}

pub async fn encode_list(ctx: &Ctx, res: &Arc<Resource>, mut s: Selection, wanted: Wanted) -> Result<Answer, ApiError> {
    if wanted.shape == As::PartialMetadata {
        let why = format!("you requested PartialObjectMetadata, but the requested object is a list ({})", go_type(res, "List"));
        return Err(ApiError::new(406, "NotAcceptable", why));
    }
    let kind = match &res.custom {
        Some(c) => c.definition.list_kind.clone(),
        None => format!("{}List", res.kind),
    };
    let keep = Keep::of(ctx, &s, wanted);
    if let Some(keep) = &keep
        && let Some(tail) = ctx.server.encoded.list(&keep.key, keep.changed, res)
    {
        let head = match wanted.media {
            Media::Protobuf => protobuf_list::head(ctx, res, &s, &kind, tail.plain_len() - protobuf_list::END.len())?,
            _ => json_head(res, &s, &kind).into_bytes(),
        };
        let body = Body::stream(futures_util::stream::iter(tail.after(&head)));
        return Ok(gzip::compressed(200, wanted.media.content_type(), body));
    }
    s.items = conversion::shown(&ctx.server, res, s.items).await?;
    let docs = || s.items.iter().map(|i| load(&ctx.server, res, i)).collect::<Result<Vec<Doc>, _>>();
    match (wanted.shape, wanted.media) {
        (As::Table, _) => {
            let include = table::Include::parse(ctx.query.get("includeObject"))?;
            Ok(encode_value(200, &table::versioned(table::of_objects(res, &docs()?, include, &list_meta(&s)), wanted), wanted))
        }
        (As::PartialMetadata | As::PartialMetadataList, _) => {
            let items: Vec<Value> = docs()?.iter().map(table::partial).collect();
            // No items are no list, as Go writes it.
            let items = if items.is_empty() { Value::Null } else { items.into() };
            let v = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta(&s), "items": items});
            Ok(encode_value(200, &v, wanted))
        }
        (As::Object | As::Discovery, Media::Json) if !wanted.pretty => Ok(stream_json(ctx, res, s, &kind, keep)),
        (As::Object | As::Discovery, Media::Protobuf) => {
            let list = protobuf_list::List::of(&ctx.server, res, s.items.clone())?;
            let head = protobuf_list::head(ctx, res, &s, &kind, list.len())?;
            let Some(keep) = keep.filter(|_| (gzip::THRESHOLD..=MOST_KEPT).contains(&list.len())) else {
                return list.answer(head);
            };
            let tail = Arc::new(Tail::new(&list.whole()?));
            let body = Body::stream(futures_util::stream::iter(tail.after(&head)));
            ctx.server.encoded.keep_list(keep.key, keep.changed, res, tail);
            Ok(gzip::compressed(200, Media::Protobuf.content_type(), body))
        }
        _ => {
            let items: Vec<Value> = docs()?
                .iter()
                .map(|d| {
                    let mut v = d.to_value();
                    if res.custom.is_none()
                        && let Some(m) = v.as_object_mut()
                    {
                        m.remove("kind");
                        m.remove("apiVersion");
                    }
                    v
                })
                .collect();
            let v = json!({"kind": kind, "apiVersion": res.api_version(), "metadata": meta_of(&s, res.custom.is_some()), "items": items});
            Ok(encode_value(200, &v, wanted))
        }
    }
}

/// Where the compressed items of a list are kept.
struct Keep {
    key: String,
    changed: i64,
}

impl Keep {
    /// None: the client does not take gzip, or another such list would not be the same.
    fn of(ctx: &Ctx, s: &Selection, wanted: Wanted) -> Option<Self> {
        let plain = matches!(wanted.shape, As::Object | As::Discovery) && !wanted.pretty && wanted.media != Media::Yaml;
        let changed = s.changed.filter(|_| plain && ctx.info.verb == "list" && ctx.takes_gzip())?;
        // The query selects, so it is part of what a list is; so is the path, with its namespace.
        Some(Self { key: format!("{}?{} {:?}", ctx.info.path, ctx.uri.query().unwrap_or(""), wanted.media), changed })
    }
}

/// Items of a list don't repeat their kind and version, which every object's JSON begins with.
fn strip_type<'a>(json: &'a [u8], head: &[u8]) -> (&'static str, &'a [u8]) {
    match json.strip_prefix(head) {
        Some(rest) => ("{", rest.strip_prefix(b",").unwrap_or(rest)),
        None => ("", json),
    }
}

/// Writes a list piece by piece.
struct ListWriter {
    server: Arc<crate::server::Server>,
    res: Arc<Resource>,
    /// How every item's JSON begins.
    head: Vec<u8>,
    items: std::vec::IntoIter<Arc<Stored>>,
    piece: BytesMut,
    first: bool,
    done: bool,
}

impl Iterator for ListWriter {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        for item in self.items.by_ref() {
            let json = match json_of(&self.server, &self.res, &item) {
                Ok(j) => j,
                Err(e) => {
                    tracing::error!(key = &*item.key, error = %e, "an object of a list cannot be encoded");
                    continue;
                }
            };
            if !std::mem::replace(&mut self.first, false) {
                self.piece.extend_from_slice(b",");
            }
            let (open, rest) = if self.res.custom.is_some() { ("", &json[..]) } else { strip_type(&json, &self.head) };
            self.piece.extend_from_slice(open.as_bytes());
            self.piece.extend_from_slice(rest);
            if self.piece.len() >= PIECE {
                return Some(self.piece.split().freeze());
            }
        }
        self.done = true;
        self.piece.extend_from_slice(b"]}\n");
        Some(std::mem::take(&mut self.piece).freeze())
    }
}

fn json_head(res: &Resource, s: &Selection, kind: &str) -> String {
    format!("{{\"kind\":{kind:?},\"apiVersion\":{:?},\"metadata\":{},\"items\":[", res.api_version(), meta_of(s, res.custom.is_some()))
}

fn stream_json(ctx: &Ctx, res: &Arc<Resource>, s: Selection, kind: &str, keep: Option<Keep>) -> Answer {
    let begin = json_head(res, &s, kind);
    let mut w = ListWriter {
        server: Arc::clone(&ctx.server),
        res: Arc::clone(res),
        head: format!("{{\"kind\":{:?},\"apiVersion\":{:?}", res.kind, res.api_version()).into_bytes(),
        items: s.items.into_iter(),
        piece: BytesMut::from(begin.as_bytes()),
        first: true,
        done: false,
    };
    // A list that fits one piece is sent with its length.
    let mut one = w.next().unwrap_or_default();
    if w.done {
        return answer(200, Media::Json.content_type(), Body::Full(one));
    }
    let Some(keep) = keep else {
        return answer(200, Media::Json.content_type(), Body::stream(futures_util::stream::iter(std::iter::once(one).chain(w))));
    };
    let head = one.split_to(begin.len());
    let (server, res, most) = (Arc::clone(&ctx.server), Arc::clone(res), ctx.server.encoded.largest());
    let pieces = gzip::Pieces::new(head, std::iter::once(one).chain(w), most, move |tail| {
        server.encoded.keep_list(keep.key, keep.changed, &res, tail);
    });
    gzip::compressed(200, Media::Json.content_type(), Body::stream(futures_util::stream::iter(pieces)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_come_back_as_they_went() {
        let t = encode_token(42, "ns/name\0");
        assert_eq!(decode_token(&t).unwrap(), (42, "ns/name\0".to_owned()));
        for bad in ["", "x", "!!!", &B64.encode("{}"), &B64.encode(r#"{"v":"v2","rv":1,"start":"a"}"#)] {
            assert_eq!(decode_token(bad).unwrap_err().code, 400, "{bad}");
        }
    }

    #[test]
    fn list_items_lose_their_type() {
        let head = br#"{"kind":"A","apiVersion":"v1""#;
        let (open, rest) = strip_type(br#"{"kind":"A","apiVersion":"v1","metadata":{}}"#, head);
        assert_eq!([open.as_bytes(), rest].concat(), br#"{"metadata":{}}"#);
    }
}
