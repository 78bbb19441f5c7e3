//! Lists in protobuf, written piece by piece as those in JSON are.
//!
//! The envelope says how long the list is before its first item comes, so items are looked at twice. What is stored is what readers get but
//! for the resourceVersion, unless it was written by something that left out a default: that is found out once for each object, by
//! decoding it, and then its bytes are taken as they are.

use std::sync::Arc;

use bytes::Bytes;
use k8s_schema::{
    Doc,
    proto::{Revisable, field_len, put_bytes, put_tag, put_varint},
};

use super::{Ctx, load, read};
use crate::{
    http::{Answer, ApiError, Body, Media, body::answer},
    registry::Resource,
    server::Server,
    storage::Stored,
};

/// What ends an answer's envelope: no content encoding, no content type.
pub const END: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];
/// The wire type of what has a length before it.
const DELIMITED: u32 = 2;

/// What comes before the items: the envelope's begin and the list's metadata (field 1). `items`: how long they are.
pub fn head(ctx: &Ctx, res: &Resource, s: &read::Selection, kind: &str, items: usize) -> Result<Vec<u8>, ApiError> {
    let ty = ctx.server.objects.schema.kind(&res.group, &res.version, kind);
    let Some(ty) = ty else { return Err(ApiError::internal(format!("no type {kind}"))) };
    let mut list = Doc::new(&ctx.server.objects.schema, ty);
    list.set("metadata", read::list_meta(s)).map_err(ApiError::internal)?;
    let list = list.to_protobuf_message();
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, res.api_version().as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = crate::objects::PROTOBUF_MAGIC.to_vec();
    put_bytes(&mut out, 1, &meta);
    put_tag(&mut out, 2, DELIMITED);
    put_varint(&mut out, (list.len() + items) as u64);
    out.extend_from_slice(&list);
    Ok(out)
}

/// The items of a list, and how long they will be.
pub struct List {
    server: Arc<Server>,
    res: Arc<Resource>,
    items: std::vec::IntoIter<Arc<Stored>>,
    len: usize,
}

impl List {
    pub fn of(server: &Arc<Server>, res: &Arc<Resource>, items: Vec<Arc<Stored>>) -> Result<Self, ApiError> {
        let mut len = 0;
        for item in &items {
            let message = match revisable(res, item) {
                Some(r) if item.is_plain() == Some(true) => r.len(&item.rev.to_string()),
                _ => decoded(server, res, item)?.len(),
            };
            len += field_len(message);
        }
        Ok(Self { server: Arc::clone(server), res: Arc::clone(res), items: items.into_iter(), len })
    }

    /// Without what ends the envelope.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All of it at once, with what ends the envelope.
    pub fn whole(self) -> Result<Vec<u8>, ApiError> {
        let mut out = Vec::with_capacity(self.len + END.len());
        for item in self.items {
            write(&self.server, &self.res, &item, &mut out)?;
        }
        out.extend_from_slice(END);
        Ok(out)
    }

    pub fn answer(self, head: Vec<u8>) -> Result<Answer, ApiError> {
        let content = Media::Protobuf.content_type();
        if self.len <= read::PIECE {
            return Ok(answer(200, content, Body::Full([head, self.whole()?].concat().into())));
        }
        let pieces = std::iter::once(Bytes::from(head)).chain(Pieces(Some(self)));
        Ok(answer(200, content, Body::stream(futures_util::stream::iter(pieces))))
    }
}

struct Pieces(Option<List>);

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let list = self.0.as_mut()?;
        let mut piece = Vec::with_capacity(read::PIECE + (4 << 10));
        while piece.len() < read::PIECE {
            let Some(item) = list.items.next() else {
                piece.extend_from_slice(END);
                self.0 = None;
                break;
            };
            // It was encoded for its length a moment ago, and is what it was.
            if let Err(e) = write(&list.server, &list.res, &item, &mut piece) {
                tracing::error!(key = &*item.key, error = %e, "an object of a list cannot be encoded: the list ends here");
                self.0 = None;
                break;
            }
        }
        Some(piece.into())
    }
}

fn write(server: &Server, res: &Resource, item: &Stored, out: &mut Vec<u8>) -> Result<(), ApiError> {
    if item.is_plain() == Some(true)
        && let Some(r) = revisable(res, item)
    {
        let version = item.rev.to_string();
        put_tag(out, 2, DELIMITED);
        put_varint(out, r.len(&version) as u64);
        r.write(&version, out);
    } else {
        put_bytes(out, 2, &decoded(server, res, item)?);
    }
    Ok(())
}

/// Whether readers of this version get the bytes as they are stored.
fn revisable<'a>(res: &Resource, item: &'a Stored) -> Option<Revisable<'a>> {
    if res.custom.is_none() && res.is_storage_version() { Revisable::of(&item.body) } else { None }
}

/// The message of an object that was decoded; notes whether that was needed.
fn decoded(server: &Server, res: &Resource, item: &Stored) -> Result<Vec<u8>, ApiError> {
    let message = load(server, res, item)?.to_protobuf_message();
    if item.is_plain().is_none() && res.custom.is_none() && res.is_storage_version() {
        let mut revised = Vec::new();
        if let Some(r) = revisable(res, item) {
            r.write(&item.rev.to_string(), &mut revised);
        }
        item.note_plain(revised == message);
    }
    Ok(message)
}
