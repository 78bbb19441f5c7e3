//! Bodies: reading requests within limits, and the few shapes of an answer.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};

use super::status::ApiError;

/// Upstream's limit of a request body.
pub const MAX_REQUEST_BODY: usize = 3 * 1024 * 1024;

/// An answer's body.
pub enum Body {
    Full(Bytes),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
    /// What a node answered.
    Incoming(Incoming),
}

impl Body {
    pub fn stream(s: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self::Stream(Box::pin(s))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Full(b) => Poll::Ready((!b.is_empty()).then(|| Ok(Frame::data(std::mem::take(b))))),
            Self::Stream(s) => s.as_mut().poll_next(cx).map(|o| o.map(|b| Ok(Frame::data(b)))),
            Self::Incoming(i) => Pin::new(i).poll_frame(cx).map(|o| o.map(|r| r.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(b) => b.is_empty(),
            Self::Stream(_) => false,
            Self::Incoming(i) => i.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(b) => SizeHint::with_exact(b.len() as u64),
            Self::Stream(_) => SizeHint::default(),
            Self::Incoming(i) => i.size_hint(),
        }
    }
}

pub type Answer = Response<Body>;

/// An answer of `code` and content type; both are constants of this crate.
pub fn answer(code: u16, content_type: &'static str, body: Body) -> Answer {
    let mut r = Response::new(body);
    *r.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !content_type.is_empty() {
        r.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    }
    r
}

pub fn text(code: u16, body: impl Into<Bytes>) -> Answer {
    let mut r = answer(code, "text/plain; charset=utf-8", Body::Full(body.into()));
    r.headers_mut().insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
    r
}

/// Reads a request's body, or tells that it is too large.
pub async fn read(mut body: Incoming, headers: &HeaderMap) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::too_large(format!("Request entity too large: limit is {MAX_REQUEST_BODY}"));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if declared.is_some_and(|l| l > MAX_REQUEST_BODY) {
        drain(&mut body).await;
        return Err(too_large());
    }
    let mut out = BytesMut::with_capacity(declared.unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::bad_request(format!("cannot read the request body: {e}")))?;
        if let Ok(data) = frame.into_data() {
            if out.len() + data.len() > MAX_REQUEST_BODY {
                drop(out);
                drain(&mut body).await;
                return Err(too_large());
            }
            out.extend_from_slice(&data);
        }
    }
    let gzip = headers.get(header::CONTENT_ENCODING).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"gzip"));
    if !gzip {
        return Ok(out.freeze());
    }
    let mut plain = Vec::new();
    let limit = MAX_REQUEST_BODY as u64 + 1;
    std::io::Read::read_to_end(&mut std::io::Read::take(flate2::read::GzDecoder::new(&out[..]), limit), &mut plain)
        .map_err(|e| ApiError::bad_request(format!("cannot decompress the request body: {e}")))?;
    if plain.len() > MAX_REQUEST_BODY {
        return Err(too_large());
    }
    Ok(plain.into())
}

/// Reads some of a body that is too large and drops it: a client that is still sending would find its connection reset, and never see the
/// answer.
async fn drain(body: &mut Incoming) {
    let reading = async {
        let mut left = MAX_REQUEST_BODY;
        while let Some(Ok(frame)) = body.frame().await {
            let n = frame.into_data().map_or(0, |d| d.len());
            let Some(rest) = left.checked_sub(n) else { return };
            left = rest;
        }
    };
    // Whoever is slower than this is not waited for.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), reading).await;
}

/// Never fails, as the bodies this server makes never do; used where a type asks for it.
pub type Never = Infallible;
