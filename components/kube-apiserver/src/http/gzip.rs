//! Compressed answers: gzip, for whoever takes it, of bodies that are long enough to be worth it.
//!
//! A list is compressed in two parts that make one gzip member: its head, which names the revision and so is always new, and its items,
//! which stay the same while the resource does. Deflate's blocks are byte-aligned after a flush, so kept items can follow any head.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress, Status};
use http::{HeaderMap, HeaderValue, header};

use super::{Answer, Body};

/// Bodies shorter than this are sent as they are.
pub const THRESHOLD: usize = 128 << 10;
/// gzip, deflate, no flags, no time, fastest, unknown system (RFC 1952).
const HEADER: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];
/// What the output grows by.
const STEP: usize = 32 << 10;

/// Whether a client takes gzip. As upstream, weights are not looked at.
pub fn accepted(headers: &HeaderMap) -> bool {
    let all = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).any(|t| t.trim() == "gzip")
}

/// Deflates a stream of bytes and sums them up.
struct Deflater {
    state: Compress,
    sum: Hasher,
    len: u64,
}

impl Deflater {
    fn new() -> Self {
        Self { state: Compress::new(Compression::fast(), false), sum: Hasher::new(), len: 0 }
    }

    fn push(&mut self, mut data: &[u8], flush: FlushCompress, out: &mut Vec<u8>) {
        self.sum.update(data);
        self.len += data.len() as u64;
        loop {
            out.reserve(STEP);
            let before = self.state.total_in();
            // A deflater that was made with no more than a level can always go on; only a caller who mixes flushes can confuse it.
            let status = self.state.compress_vec(data, out, flush).unwrap_or(Status::BufError);
            let taken = usize::try_from(self.state.total_in() - before).unwrap_or(data.len());
            data = &data[taken..];
            let room = out.len() < out.capacity();
            match status {
                Status::StreamEnd => return,
                Status::BufError if data.is_empty() => return,
                Status::Ok if data.is_empty() && room && flush != FlushCompress::Finish => return,
                _ => {}
            }
        }
    }
}

/// Compressed bytes that can end any gzip member.
#[derive(Debug)]
pub struct Tail {
    deflated: Bytes,
    sum: u32,
    len: u64,
}

impl Tail {
    pub fn new(plain: &[u8]) -> Self {
        let mut d = Deflater::new();
        let mut out = Vec::new();
        d.push(plain, FlushCompress::Finish, &mut out);
        out.shrink_to_fit();
        Self { deflated: out.into(), sum: d.sum.finalize(), len: d.len }
    }

    /// What keeping it costs.
    pub fn cost(&self) -> usize {
        self.deflated.len()
    }

    /// The length before it was compressed.
    pub fn plain_len(&self) -> usize {
        usize::try_from(self.len).unwrap_or(usize::MAX)
    }

    /// The whole member with `head` before it.
    pub fn after(&self, head: &[u8]) -> [Bytes; 3] {
        let mut d = Deflater::new();
        let mut out = HEADER.to_vec();
        d.push(head, FlushCompress::Sync, &mut out);
        let mut sum = d.sum;
        sum.combine(&Hasher::new_with_initial_len(self.sum, self.len));
        [out.into(), self.deflated.clone(), trailer(sum.finalize(), d.len + self.len)]
    }
}

fn trailer(sum: u32, len: u64) -> Bytes {
    let mut t = BytesMut::with_capacity(8);
    t.put_u32_le(sum);
    // Modulo 2³², as the format says.
    t.put_u32_le((len & 0xffff_ffff) as u32);
    t.freeze()
}

/// Compresses pieces as they come, and gives what they were compressed to, if that is not too much, to `keep` at the end.
pub struct Pieces<I, K> {
    head: Option<Bytes>,
    pieces: I,
    tail: Option<Deflater>,
    sum: Hasher,
    len: u64,
    kept: Vec<u8>,
    limit: usize,
    keep: Option<K>,
}

impl<I: Iterator<Item = Bytes>, K: FnOnce(Arc<Tail>)> Pieces<I, K> {
    pub fn new(head: Bytes, pieces: I, limit: usize, keep: K) -> Self {
        Self {
            head: Some(head),
            pieces,
            tail: Some(Deflater::new()),
            sum: Hasher::new(),
            len: 0,
            kept: Vec::new(),
            limit,
            keep: Some(keep),
        }
    }

    fn note(&mut self, out: &[u8]) {
        if self.keep.is_some() && self.kept.len() + out.len() <= self.limit {
            self.kept.extend_from_slice(out);
        } else {
            (self.keep, self.kept) = (None, Vec::new());
        }
    }
}

impl<I: Iterator<Item = Bytes>, K: FnOnce(Arc<Tail>)> Iterator for Pieces<I, K> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(head) = self.head.take() {
            let mut d = Deflater::new();
            let mut out = HEADER.to_vec();
            d.push(&head, FlushCompress::Sync, &mut out);
            (self.sum, self.len) = (d.sum, d.len);
            return Some(out.into());
        }
        let mut tail = self.tail.take()?;
        let mut out = Vec::new();
        for piece in self.pieces.by_ref() {
            tail.push(&piece, FlushCompress::None, &mut out);
            if !out.is_empty() {
                self.note(&out);
                self.tail = Some(tail);
                return Some(out.into());
            }
        }
        tail.push(&[], FlushCompress::Finish, &mut out);
        self.note(&out);
        let sum = tail.sum.finalize();
        if let Some(keep) = self.keep.take() {
            let mut deflated = std::mem::take(&mut self.kept);
            deflated.shrink_to_fit();
            keep(Arc::new(Tail { deflated: deflated.into(), sum, len: tail.len }));
        }
        self.sum.combine(&Hasher::new_with_initial_len(sum, tail.len));
        out.extend_from_slice(&trailer(self.sum.clone().finalize(), self.len + tail.len));
        Some(out.into())
    }
}

fn mark(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.remove(header::CONTENT_LENGTH);
}

/// An answer whose body already is compressed.
pub fn compressed(code: u16, content_type: &'static str, body: Body) -> Answer {
    let mut a = super::body::answer(code, content_type, body);
    mark(a.headers_mut());
    a
}

/// Compresses an answer when its body is at hand, long, and not compressed yet.
pub fn compress(a: Answer) -> Answer {
    let long = matches!(a.body(), Body::Full(b) if b.len() >= THRESHOLD);
    if !long || a.headers().contains_key(header::CONTENT_ENCODING) {
        return a;
    }
    let (mut parts, body) = a.into_parts();
    let body = match body {
        Body::Full(plain) => {
            mark(&mut parts.headers);
            let mut out = Vec::new();
            Tail::new(&plain).after(b"").iter().for_each(|p| out.extend_from_slice(p));
            Body::Full(out.into())
        }
        other => other,
    };
    Answer::from_parts(parts, body)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use proptest::prelude::*;

    use super::*;

    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        // One member only: what follows it would be left over.
        let mut d = GzDecoder::new(bytes);
        d.read_to_end(&mut out).unwrap();
        assert!(d.into_inner().is_empty(), "something follows the member");
        out
    }

    #[test]
    fn only_gzip_itself_is_taken_for_gzip() {
        for (value, takes) in [("gzip", true), ("deflate, gzip", true), ("gzip;q=0", false), ("br", false), ("", false)] {
            let mut h = HeaderMap::new();
            h.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            assert_eq!(accepted(&h), takes, "{value}");
        }
    }

    #[test]
    fn short_answers_stay_as_they_are() {
        let of = |n: usize| compress(super::super::body::answer(200, "application/json", Body::Full(vec![b'x'; n].into())));
        assert!(!of(THRESHOLD - 1).headers().contains_key(header::CONTENT_ENCODING));
        let a = of(THRESHOLD);
        assert_eq!(a.headers()[header::CONTENT_ENCODING], "gzip");
        let Body::Full(b) = a.into_body() else { panic!("the body is one piece") };
        assert_eq!(gunzip(&b), vec![b'x'; THRESHOLD]);
    }

    proptest! {
        #[test]
        fn heads_and_tails_make_one_member(
            heads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..3),
            pieces in proptest::collection::vec(proptest::collection::vec(0u8..4, 0..70_000), 0..4),
        ) {
            let all: Vec<u8> = pieces.concat();
            let mut kept = None;
            let first: Vec<Bytes> =
                Pieces::new(heads[0].clone().into(), pieces.into_iter().map(Bytes::from), 1 << 20, |t| kept = Some(t)).collect();
            prop_assert_eq!(gunzip(&first.concat()), [&heads[0][..], &all].concat());
            let kept = kept.unwrap();
            for tail in [&*kept, &Tail::new(&all)] {
                prop_assert_eq!(tail.plain_len(), all.len());
                for head in &heads {
                    prop_assert_eq!(gunzip(&tail.after(head).concat()), [&head[..], &all].concat());
                }
            }
        }
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut kept = None;
        let out: Vec<Bytes> = Pieces::new(Bytes::new(), std::iter::once(noise.clone().into()), 100, |t| kept = Some(t)).collect();
        assert!(kept.is_none());
        assert_eq!(gunzip(&out.concat()), noise);
    }
}
