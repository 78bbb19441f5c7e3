//! The watch stream: JSON documents, one per line, decoded as they arrive.

use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Status};

/// The largest single event accepted; the server's own limit on objects is 3 MiB.
const MAX_EVENT: usize = 8 << 20;

/// One event of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent<T> {
    Added(T),
    Modified(T),
    Deleted(T),
    /// Nothing changed up to this resourceVersion.
    Bookmark {
        resource_version: String,
        initial_events_end: bool,
    },
    /// The watch failed, for example with code 410; nothing follows.
    Error(Status),
}

/// A running watch.
pub struct WatchStream<T> {
    request: String,
    body: Incoming,
    buffer: BytesMut,
    scanned: usize,
    kind: std::marker::PhantomData<fn() -> T>,
}

// The type comes first on the wire, so the object decodes straight into `T` without a detour.
#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE", bound = "T: DeserializeOwned")]
enum Wire<T> {
    Added(T),
    Modified(T),
    Deleted(T),
    Bookmark(BookmarkObject),
    Error(Status),
}

#[derive(Deserialize)]
struct BookmarkObject {
    metadata: crate::meta::ObjectMeta,
}

impl<T: DeserializeOwned> WatchStream<T> {
    pub(crate) fn new(request: String, body: Incoming) -> Self {
        Self { request, body, buffer: BytesMut::new(), scanned: 0, kind: std::marker::PhantomData }
    }

    /// The next event; `None` when the server ended the watch, which is normal. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Result<WatchEvent<T>, Error>> {
        loop {
            if let Some(offset) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.scanned + offset);
                self.buffer.advance(1);
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Some(decode(&line).map_err(|error| Error::Decode(self.request.clone(), error)));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > MAX_EVENT {
                return Some(Err(Error::TooLarge(self.request.clone(), MAX_EVENT)));
            }
            match self.body.frame().await {
                None => {
                    // A last line need not end with a newline.
                    let line = self.buffer.split();
                    self.scanned = 0;
                    if line.iter().all(u8::is_ascii_whitespace) {
                        return None;
                    }
                    return Some(decode(&line).map_err(|error| Error::Decode(self.request.clone(), error)));
                }
                Some(Err(error)) => return Some(Err(Error::ReadBody(self.request.clone(), Box::new(error)))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<WatchEvent<T>, serde_json::Error> {
    Ok(match serde_json::from_slice(line)? {
        Wire::Added(object) => WatchEvent::Added(object),
        Wire::Modified(object) => WatchEvent::Modified(object),
        Wire::Deleted(object) => WatchEvent::Deleted(object),
        Wire::Bookmark(BookmarkObject { metadata }) => {
            let initial_events_end = metadata.annotations.get("k8s.io/initial-events-end").is_some_and(|v| v == "true");
            WatchEvent::Bookmark { resource_version: metadata.resource_version, initial_events_end }
        }
        Wire::Error(status) => WatchEvent::Error(status),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Partial;

    #[test]
    fn events_decode_by_type() {
        let added: WatchEvent<Partial> = decode(br#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"a"}}}"#).unwrap();
        assert!(matches!(added, WatchEvent::Added(p) if p.metadata.name == "a"));
        let mark: WatchEvent<Partial> = decode(
            br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
        )
        .unwrap();
        assert_eq!(mark, WatchEvent::Bookmark { resource_version: "7".into(), initial_events_end: true });
        let gone: WatchEvent<Partial> =
            decode(br#"{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}"#).unwrap();
        assert!(matches!(gone, WatchEvent::Error(s) if s.code == 410));
        assert!(decode::<Partial>(br#"{"type":"NEW","object":{}}"#).is_err());
        assert!(decode::<Partial>(b"{").is_err());
    }
}
