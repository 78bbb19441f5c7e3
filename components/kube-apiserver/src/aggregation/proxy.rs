//! Handing a request on to an extension server, as the user it was found to be from, and its answer back: streams, watches and upgraded
//! connections as they come.

use std::sync::Arc;

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, header};
use hyper::body::Incoming;

use super::{Remote, connect};
use crate::{
    authn::User,
    handlers::{
        Ctx,
        proxy::{HOP, relay, upgrade_of},
    },
    http::{Answer, ApiError, Body, body},
};

const REMOTE: &str = "x-remote-";

/// A key of a user's extra as part of a header's name: what no name may hold is percent-encoded.
fn escape(key: &str) -> String {
    use std::fmt::Write;
    key.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b) {
            out.push(char::from(b));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

/// Says who a request is from, and nobody else's word for it.
pub fn name_user(headers: &mut HeaderMap, user: &User) {
    let theirs: Vec<HeaderName> = headers.keys().filter(|k| k.as_str().starts_with(REMOTE)).cloned().collect();
    for k in theirs {
        headers.remove(k);
    }
    let mut add = |name: &str, value: &str| {
        // What cannot be in a header cannot come from one of this server's authenticators either.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for g in &user.groups {
        add("x-remote-group", g);
    }
    for (k, values) in &user.extra {
        for v in values {
            add(&format!("x-remote-extra-{}", escape(k).to_lowercase()), v);
        }
    }
}

/// The headers of the request that is sent on.
fn headers_of(from: &HeaderMap, user: &User) -> HeaderMap {
    let mut headers = from.clone();
    let upgrade = upgrade_of(&headers);
    for h in HOP.iter().chain(&["authorization", "host", "impersonate-user", "impersonate-group", "impersonate-uid"]) {
        headers.remove(*h);
    }
    let extra: Vec<HeaderName> = headers.keys().filter(|k| k.as_str().starts_with("impersonate-extra-")).cloned().collect();
    for k in extra {
        headers.remove(k);
    }
    if let Some(u) = upgrade {
        headers.insert(header::UPGRADE, u);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    name_user(&mut headers, user);
    headers
}

/// Upstream's answer for a server that is not there.
fn unavailable(why: &str) -> Answer {
    body::text(503, format!("{why}\n"))
}

pub async fn serve(ctx: &Arc<Ctx>, remote: &Remote, incoming: Incoming, extensions: Extensions) -> Result<Answer, ApiError> {
    if !remote.available() {
        return Ok(unavailable("service unavailable"));
    }
    let aggregator = &ctx.server.aggregator;
    let to = match connect::resolve(&ctx.server.objects, &remote.spec, aggregator.routing) {
        Ok(to) => to,
        Err(e) => {
            tracing::warn!(group = remote.group, version = remote.version, reason = e, "an extension server cannot be found");
            return Ok(unavailable("service unavailable"));
        }
    };
    let mut request = Request::new(Body::Incoming(incoming));
    *request.method_mut() = ctx.method.clone();
    let path = ctx.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    *request.uri_mut() = path.parse().map_err(|_| ApiError::bad_request(format!("the path {path:?} cannot be requested")))?;
    *request.headers_mut() = headers_of(&ctx.headers, &ctx.user);
    match connect::send(remote, &to, request).await {
        Ok(response) => Ok(relay(ctx, response, extensions)),
        Err(e) => Ok(unavailable(&format!("error trying to reach service: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_named_and_nobody_else_is() {
        let mut h = HeaderMap::new();
        for (k, v) in [
            ("x-remote-user", "somebody-else"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-a", "b"),
            ("authorization", "Bearer x"),
            ("impersonate-user", "jane"),
            ("impersonate-extra-scope", "x"),
            ("connection", "keep-alive"),
            ("accept", "application/json"),
        ] {
            h.append(HeaderName::from_static(k), HeaderValue::from_static(v));
        }
        let user = User {
            name: "jane".into(),
            uid: "7".into(),
            groups: vec!["a".into(), "b".into()],
            extra: vec![("acme.com/project".into(), vec!["x".into()])],
        };
        let sent = headers_of(&h, &user);
        let mut all: Vec<(&str, &str)> = sent.iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
        all.sort_unstable();
        assert_eq!(
            all,
            [
                ("accept", "application/json"),
                ("x-remote-extra-acme.com%2fproject", "x"),
                ("x-remote-group", "a"),
                ("x-remote-group", "b"),
                ("x-remote-uid", "7"),
                ("x-remote-user", "jane"),
            ]
        );
    }

    #[test]
    fn upgrades_are_asked_for_again() {
        let mut h = HeaderMap::new();
        h.insert("connection", HeaderValue::from_static("Upgrade"));
        h.insert("upgrade", HeaderValue::from_static("websocket"));
        let sent = headers_of(&h, &User::default());
        let said = |h: &str| sent.get(h).and_then(|v| v.to_str().ok());
        assert_eq!((said("upgrade"), said("connection")), (Some("websocket"), Some("Upgrade")));
    }
}
