//! What the command line says of how HTTP is spoken.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};
use regex::Regex;

use super::{Answer, Body, body::answer};

#[derive(Debug, Clone)]
pub struct Options {
    /// Requests that are not watches or streams must be done by then.
    pub request_timeout: Duration,
    /// A watch that names no end has one between this and twice as long.
    pub min_request_timeout: Duration,
    pub max_streams: u32,
    /// The value of `Strict-Transport-Security`.
    pub strict_transport: Option<HeaderValue>,
    /// Web pages from these origins may read answers.
    pub origins: Vec<Regex>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            min_request_timeout: Duration::from_secs(1800),
            max_streams: 250,
            strict_transport: None,
            origins: Vec::new(),
        }
    }
}

const METHODS: &str = "POST, GET, OPTIONS, PUT, DELETE, PATCH";
const HEADERS: &str = "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, If-Modified-Since";
const EXPOSED: &str = "Date";

impl Options {
    /// The origin of a request, when pages from there may read the answer.
    pub fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.origins.is_empty() {
            return None;
        }
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        self.origins.iter().any(|o| o.is_match(text)).then(|| origin.clone())
    }

    /// Says in an answer what a browser may do with it.
    pub fn mark(&self, answer: &mut Answer, origin: Option<HeaderValue>) {
        let h = answer.headers_mut();
        if let Some(v) = &self.strict_transport {
            h.insert(header::STRICT_TRANSPORT_SECURITY, v.clone());
        }
        let Some(origin) = origin else { return };
        h.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        h.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        h.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
        h.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        h.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }

    /// The answer to a browser that asks what it may do, before anybody is authenticated.
    pub fn preflight(&self, method: &Method, origin: Option<&HeaderValue>) -> Option<Answer> {
        (*method == Method::OPTIONS && origin.is_some()).then(|| answer(204, "", Body::Full(bytes::Bytes::new())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_configured_origins_may_read_answers() {
        let o = Options { origins: vec![Regex::new("^https://console\\.example\\.com(:|$)").unwrap()], ..Options::default() };
        let from = |origin: &str| o.origin(&HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_str(origin).unwrap())]));
        assert!(from("https://evil.example.com").is_none() && o.origin(&HeaderMap::new()).is_none());
        let origin = from("https://console.example.com");
        let mut a = o.preflight(&Method::OPTIONS, origin.as_ref()).unwrap();
        o.mark(&mut a, origin);
        assert_eq!(
            (a.status().as_u16(), a.headers()["access-control-allow-origin"].as_bytes()),
            (204, &b"https://console.example.com"[..])
        );
        assert!(o.preflight(&Method::GET, from("https://console.example.com").as_ref()).is_none());
    }

    #[test]
    fn without_flags_nothing_is_said() {
        let (o, mut a) = (Options::default(), answer(200, "", Body::Full(bytes::Bytes::new())));
        o.mark(&mut a, None);
        assert!(a.headers().is_empty());
    }
}
