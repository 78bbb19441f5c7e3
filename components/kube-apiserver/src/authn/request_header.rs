//! Users that a proxy in front of this server names in headers. Only a proxy with a certificate of its own authority is believed.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};

use super::{Peer, Rejected, User, X509};
use crate::http::request_info::percent_decode;

/// Which headers a proxy uses, and which proxies there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Common names of certificates; none: any that the authority signed.
    pub allowed: Vec<String>,
    pub username: Vec<String>,
    pub uid: Vec<String>,
    pub group: Vec<String>,
    pub extra_prefix: Vec<String>,
}

#[derive(Debug)]
pub struct RequestHeader {
    pub x509: Arc<X509>,
    pub names: Names,
}

/// The first value of the first header that has one.
fn first(headers: &HeaderMap, names: &[String]) -> Option<String> {
    let value = |n: &String| headers.get(n.as_str()).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty());
    names.iter().find_map(value).map(str::to_owned)
}

impl Names {
    /// What the headers say; none: they name nobody.
    fn user(&self, headers: &HeaderMap) -> Option<User> {
        let name = first(headers, &self.username)?;
        let groups = self.group.iter().flat_map(|n| headers.get_all(n.as_str())).filter_map(|v| v.to_str().ok());
        let mut extra: Vec<(String, Vec<String>)> = Vec::new();
        for (header, value) in headers {
            // Names of headers are of lower case here.
            let stripped = self.extra_prefix.iter().find_map(|p| header.as_str().strip_prefix(p.to_ascii_lowercase().as_str()));
            if let (Some(key), Ok(value)) = (stripped, value.to_str()) {
                let key = percent_decode(key).to_lowercase();
                match extra.iter_mut().find(|(k, _)| *k == key) {
                    Some((_, values)) => values.push(value.to_owned()),
                    None => extra.push((key, vec![value.to_owned()])),
                }
            }
        }
        extra.sort();
        let uid = first(headers, &self.uid).unwrap_or_default();
        Some(User { name, uid, groups: groups.map(str::to_owned).collect(), extra })
    }

    /// Takes the headers out of a request, which have served their purpose and must not be believed further on.
    pub fn clear(&self, headers: &mut HeaderMap) {
        for n in [&self.username, &self.uid, &self.group].into_iter().flatten() {
            headers.remove(n.as_str());
        }
        let prefixes: Vec<String> = self.extra_prefix.iter().map(|p| p.to_ascii_lowercase()).collect();
        let extra: Vec<HeaderName> = headers.keys().filter(|k| prefixes.iter().any(|p| k.as_str().starts_with(p))).cloned().collect();
        for k in extra {
            headers.remove(k);
        }
    }
}

impl RequestHeader {
    /// The user whom a trusted proxy names; none: it names nobody, and speaks for itself.
    pub fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<User>, Rejected> {
        // Without the headers there is nothing to believe, and most requests are spared a check.
        let Some(user) = self.names.user(headers) else { return Ok(None) };
        let proxy = self.x509.authenticate(peer)?;
        if !self.names.allowed.is_empty() && !self.names.allowed.contains(&proxy.name) {
            return Err(Rejected(format!("x509: subject with cn={} is not in the allowed list", proxy.name)));
        }
        Ok(Some(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let own = |s: &str| vec![s.to_owned()];
        Names {
            allowed: Vec::new(),
            username: own("X-Remote-User"),
            uid: own("X-Remote-Uid"),
            group: own("X-Remote-Group"),
            extra_prefix: own("X-Remote-Extra-"),
        }
    }

    #[test]
    fn users_are_read_and_their_headers_taken_out() {
        let mut h = HeaderMap::new();
        for (k, v) in [
            ("x-remote-user", "jane"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("x-remote-uid", "7"),
            ("x-remote-extra-scopes", "openid"),
            ("x-remote-extra-scopes", "profile"),
            ("x-remote-extra-acme.com%2Fproject", "some-project"),
            ("accept", "*/*"),
        ] {
            h.append(HeaderName::from_bytes(k.as_bytes()).unwrap(), v.parse().unwrap());
        }
        let user = names().user(&h).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str(), user.groups.as_slice()), ("jane", "7", &["a".to_owned(), "b".into()][..]));
        let extra: Vec<_> = user.extra.iter().map(|(k, v)| (k.as_str(), v.len())).collect();
        assert_eq!(extra, [("acme.com/project", 1), ("scopes", 2)]);
        names().clear(&mut h);
        assert_eq!(h.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
        assert_eq!(names().user(&h), None);
    }
}
