//! A stored object's message with its resourceVersion, without decoding it: storage keeps objects with that field empty, and readers get
//! them with the revision they have.

use std::ops::Range;

use super::MAGIC;
use super::wire::{BYTES, Reader, field_len, put_bytes, put_tag, put_varint};

/// `metadata` of every kind, and `resourceVersion` in it.
const METADATA: u32 = 1;
const RESOURCE_VERSION: u32 = 6;

/// Where in a stored body the message is, its metadata, and in that the resourceVersion.
#[derive(Debug, Clone)]
pub struct Revisable<'a> {
    body: &'a [u8],
    raw: Range<usize>,
    metadata: Range<usize>,
    version: Range<usize>,
}

impl<'a> Revisable<'a> {
    /// None: the body is no enveloped message that begins with metadata in which a resourceVersion stands, as it does in whatever
    /// upstream's code wrote.
    pub fn of(body: &'a [u8]) -> Option<Self> {
        let raw = find(body, body.starts_with(MAGIC).then_some(MAGIC.len())?..body.len(), 2)?.1;
        let mut first = Reader::part(body, raw.start, raw.end);
        if first.tag() != Ok((METADATA, BYTES)) {
            return None;
        }
        let (start, end) = first.bytes().ok()?;
        let version = find(body, start..end, RESOURCE_VERSION)?.0;
        Some(Self { body, raw, metadata: start..end, version })
    }

    fn metadata_len(&self, version: &str) -> usize {
        self.metadata.len() - self.version.len() + field_len(version.len())
    }

    /// How long the message is with this resourceVersion.
    pub fn len(&self, version: &str) -> usize {
        field_len(self.metadata_len(version)) + self.raw.end - self.metadata.end
    }

    /// Appends the bare message, as it stands in lists.
    pub fn write(&self, version: &str, out: &mut Vec<u8>) {
        put_tag(out, METADATA, BYTES);
        put_varint(out, self.metadata_len(version) as u64);
        out.extend_from_slice(&self.body[self.metadata.start..self.version.start]);
        put_bytes(out, RESOURCE_VERSION, version.as_bytes());
        out.extend_from_slice(&self.body[self.version.end..self.metadata.end]);
        out.extend_from_slice(&self.body[self.metadata.end..self.raw.end]);
    }
}

/// The only length-delimited field of this number in a message: where it is with its tag, and its content.
fn find(body: &[u8], within: Range<usize>, wanted: u32) -> Option<(Range<usize>, Range<usize>)> {
    let mut r = Reader::part(body, within.start, within.end);
    let mut found = None;
    while !r.done() {
        let begin = r.at;
        match r.tag().ok()? {
            (number, BYTES) => {
                let (start, end) = r.bytes().ok()?;
                if number == wanted && found.replace((begin..end, start..end)).is_some() {
                    return None;
                }
            }
            (_, wire_type) => r.skip(wire_type).ok()?,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{Doc, Schema, value};

    /// What is stored, and the message of the same object with a revision.
    fn stored(labels: usize, revision: &str) -> (Vec<u8>, Vec<u8>) {
        let schema = Schema::builtin();
        let labels: serde_json::Map<_, _> = (0..labels).map(|n| (format!("label-{n}"), "value".into())).collect();
        let object = value!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": labels,
            "generation": 3, "creationTimestamp": "2026-01-02T03:04:05Z"}, "data": {"k": "v"}});
        let mut doc = Doc::from_value(&schema, schema.kind("", "v1", "ConfigMap").unwrap(), &object).unwrap().doc;
        let at_rest = doc.to_protobuf();
        doc.set("metadata.resourceVersion", revision).unwrap();
        (at_rest, doc.to_protobuf_message())
    }

    #[test]
    fn a_revision_is_put_where_the_codec_puts_it() {
        // Lengths of metadata around one and two bytes of varint.
        for labels in 0..900 {
            for revision in ["7", "12345678901234567"] {
                let (body, want) = stored(labels, revision);
                let r = Revisable::of(&body).unwrap();
                let mut got = Vec::new();
                r.write(revision, &mut got);
                assert!(got == want && r.len(revision) == want.len(), "{labels} labels, revision {revision}");
            }
        }
    }

    #[test]
    fn what_is_no_such_body_is_left_to_the_codec() {
        let (body, message) = stored(1, "7");
        assert!(Revisable::of(&message).is_none() && Revisable::of(b"{}").is_none() && Revisable::of(b"").is_none());
        assert!(Revisable::of(&body[..body.len() - 5]).is_none());
        let doubled = [&body[..], &body[MAGIC.len()..]].concat();
        assert!(Revisable::of(&doubled).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(mut body in proptest::collection::vec(any::<u8>(), 0..300), with_magic: bool) {
            if with_magic {
                body.splice(0..0, MAGIC.iter().copied());
            }
            if let Some(r) = Revisable::of(&body) {
                let mut out = Vec::new();
                r.write("1", &mut out);
                prop_assert_eq!(out.len(), r.len("1"));
            }
        }

        #[test]
        fn damaged_bodies_are_read_without_harm(at in 0usize..200, byte: u8) {
            let (mut body, _) = stored(3, "7");
            let len = body.len();
            body[at % len] = byte;
            if let Some(r) = Revisable::of(&Bytes::from(body)) {
                let mut out = Vec::new();
                r.write("1", &mut out);
                prop_assert_eq!(out.len(), r.len("1"));
            }
        }
    }
}
