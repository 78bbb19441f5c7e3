//! What a request asks for, read from its method and path alone, so that authorization and the handlers agree on it.

use http::Method;

/// A parsed request line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    /// get, list, watch, create, update, patch, delete, deletecollection; or the lower-case method for what is no resource.
    pub verb: String,
    /// `api` or `apis`.
    pub prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource (of a proxy).
    pub rest: Vec<String>,
    pub path: String,
    /// Path segments after group and version; their number tells a collection from an object from nonsense.
    pub parts: usize,
}

/// `metadata.name=x` alone in a field selector names the object that a list or watch is about.
fn name_of_selector(selector: &str) -> Option<&str> {
    selector.split(',').find_map(|r| r.strip_prefix("metadata.name=").map(|v| v.strip_prefix('=').unwrap_or(v))).filter(|v| !v.is_empty())
}

impl RequestInfo {
    /// `query` looks up a query parameter.
    pub fn parse(method: &Method, path: &str, query: impl Fn(&str) -> Option<String>) -> Self {
        let mut info = Self { verb: method.as_str().to_ascii_lowercase(), path: path.to_owned(), ..Self::default() };
        let decoded: Vec<String> = path.trim_matches('/').split('/').map(percent_decode).collect();
        let mut parts: &[String] = &decoded;
        if parts.len() < 3 || !(parts[0] == "api" || parts[0] == "apis") {
            return info;
        }
        info.prefix = parts[0].clone();
        parts = &parts[1..];
        if info.prefix == "apis" {
            if parts.len() < 3 {
                return info;
            }
            info.group = parts[0].clone();
            parts = &parts[1..];
        }
        info.version = parts[0].clone();
        parts = &parts[1..];
        info.is_resource = true;
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        let mut legacy_watch = false;
        if parts[0] == "watch" || parts[0] == "proxy" {
            if parts.len() < 2 {
                info.is_resource = false;
                return info;
            }
            legacy_watch = parts[0] == "watch";
            parts = &parts[1..];
        }
        if parts[0] == "namespaces"
            && let Some(ns) = parts.get(1)
        {
            info.namespace = ns.clone();
            // A namespace's own subresources are those of the resource, not of something in the namespace.
            if parts.len() > 2 && parts[2] != "status" && parts[2] != "finalize" {
                parts = &parts[2..];
            }
        }
        info.parts = parts.len();
        info.resource = parts[0].clone();
        if let Some(n) = parts.get(1) {
            info.name = n.clone();
        }
        if let Some(s) = parts.get(2) {
            info.subresource = s.clone();
        }
        info.rest = parts.get(3..).unwrap_or_default().to_vec();
        if info.resource == "namespaces" && info.namespace.is_empty() {
            info.namespace = info.name.clone();
        }
        if legacy_watch {
            info.verb = "watch".into();
        } else if info.name.is_empty() && info.verb == "get" {
            let watch = query("watch").is_some_and(|w| !matches!(w.to_ascii_lowercase().as_str(), "false" | "0"));
            info.verb = if watch { "watch" } else { "list" }.into();
            if let Some(n) = query("fieldSelector").as_deref().and_then(name_of_selector) {
                info.name = n.to_owned();
            }
        } else if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".into();
        }
        info
    }

    /// Lives as long as the client likes: no deadline, not counted in flight.
    pub fn is_long_running(&self) -> bool {
        self.is_resource
            && (self.verb == "watch" || matches!(self.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy"))
    }
}

/// `%41` → `A`; what is not valid stays as it is.
pub fn percent_decode(s: &str) -> String {
    decode(s, false)
}

/// As in query strings, where `+` is a space.
pub fn query_decode(s: &str) -> String {
    decode(s, true)
}

fn decode(s: &str, plus: bool) -> String {
    let encoded = s.contains('%') || (plus && s.contains('+'));
    if !encoded {
        return s.to_owned();
    }
    let b = s.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        let hex = |c: Option<&u8>| c.and_then(|c| (*c as char).to_digit(16));
        match (b[i], hex(b.get(i + 1)), hex(b.get(i + 2))) {
            (b'%', Some(h), Some(l)) => {
                out.push((h * 16 + l) as u8);
                i += 2;
            }
            (b'+', ..) if plus => out.push(b' '),
            (c, ..) => out.push(c),
        }
        i += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Query parameters in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(q: Option<&str>) -> Self {
        Self(
            q.unwrap_or_default()
                .split('&')
                .filter(|p| !p.is_empty())
                .map(|p| {
                    let (k, v) = p.split_once('=').unwrap_or((p, ""));
                    (query_decode(k), query_decode(v))
                })
                .collect(),
        )
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Set, and not to a false value, as upstream converts strings to booleans.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        // method, path and query → verb, group, version, namespace, resource, subresource, name, rest
        let cases: &[(&str, &str, [&str; 8])] = &[
            ("GET", "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", "", ""]),
            ("GET", "/api/v1/namespaces/x", ["get", "", "v1", "x", "namespaces", "", "x", ""]),
            ("PUT", "/api/v1/namespaces/x/finalize", ["update", "", "v1", "x", "namespaces", "finalize", "x", ""]),
            ("GET", "/api/v1/namespaces/x/pods", ["list", "", "v1", "x", "pods", "", "", ""]),
            ("GET", "/api/v1/namespaces/x/pods?watch=1", ["watch", "", "v1", "x", "pods", "", "", ""]),
            ("GET", "/api/v1/watch/namespaces/x/pods/p", ["watch", "", "v1", "x", "pods", "", "p", ""]),
            ("DELETE", "/api/v1/namespaces/x/pods", ["deletecollection", "", "v1", "x", "pods", "", "", ""]),
            ("GET", "/apis/apps/v1/deployments", ["list", "apps", "v1", "", "deployments", "", "", ""]),
            ("GET", "/apis/apps/v1/namespaces/n/deployments/d/scale", ["get", "apps", "v1", "n", "deployments", "scale", "d", ""]),
            ("POST", "/api/v1/nodes/n/proxy/metrics/x", ["create", "", "v1", "", "nodes", "proxy", "n", "metrics/x"]),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dp", ["list", "", "v1", "", "pods", "", "p", ""]),
            ("GET", "/apis/apps", ["get", "", "", "", "", "", "", ""]),
            ("GET", "/healthz", ["get", "", "", "", "", "", "", ""]),
        ];
        for (method, uri, want) in cases {
            let (path, q) = uri.split_once('?').unwrap_or((uri, ""));
            let query = Query::parse(Some(q));
            let i = RequestInfo::parse(&method.parse().unwrap(), path, |k| query.get(k).map(str::to_owned));
            let got = [&i.verb, &i.group, &i.version, &i.namespace, &i.resource, &i.subresource, &i.name, &i.rest.join("/")];
            assert_eq!(got.map(String::as_str), *want, "{method} {uri}");
        }
    }

    #[test]
    fn percent_decoding_leaves_nonsense_alone() {
        assert_eq!(percent_decode("a%2Fb%zz%4"), "a/b%zz%4");
        assert_eq!(query_decode("a+b%20c"), "a b c");
    }
}
