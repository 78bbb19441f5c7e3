//! What is counted of every request: how many there were, how long they took, how large the answers to reads were.
//!
//! A request costs one lookup under one lock, by a hash of what its labels are made of, and no allocation once its series is there.

use std::{
    collections::HashMap,
    fmt::Write,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use parking_lot::Mutex;

use super::histogram::write_series;
use crate::http::RequestInfo;

const SECONDS: &[f64] =
    &[0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];
const BYTES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Series are labelled by resource; paths of nobody's resource must not make more of them.
const MAX_SERIES: usize = 4000;

/// What of a request its series are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Of<'a> {
    pub verb: &'static str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub scope: &'static str,
    pub dry_run: bool,
}

impl<'a> Of<'a> {
    /// As upstream reports it: verbs are methods, but for those that only the API has.
    pub fn request(info: &'a RequestInfo, dry_run: bool, apply: bool) -> Self {
        let connect = matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy");
        let verb = match info.verb.as_str() {
            _ if connect => "CONNECT",
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" if apply => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            "head" => "HEAD",
            "options" => "OPTIONS",
            _ => "other",
        };
        let scope = match () {
            () if !info.is_resource => "",
            () if !info.name.is_empty() => "resource",
            () if !info.namespace.is_empty() => "namespace",
            () => "cluster",
        };
        let (group, version) = (info.group.as_str(), info.version.as_str());
        Self { verb, group, version, resource: &info.resource, subresource: &info.subresource, scope, dry_run }
    }

    fn labels(&self) -> (String, String) {
        let tail = format!(
            "group={:?},resource={:?},scope={:?},subresource={:?},verb={:?},version={:?}",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        );
        (format!("dry_run={:?},{tail}", if self.dry_run { "All" } else { "" }), tail)
    }
}

#[derive(Debug)]
struct Series {
    /// With `dry_run`, and without.
    labels: (String, String),
    codes: Vec<(u16, u64)>,
    seconds: [u64; SECONDS.len()],
    sum: f64,
    count: u64,
    /// Of reads.
    bytes: Option<Box<([u64; BYTES.len()], f64, u64)>>,
}

#[derive(Debug, Default)]
pub struct Requests {
    hasher: RandomState,
    all: Mutex<HashMap<u64, Series>>,
}

impl Requests {
    pub fn observe(&self, of: &Of<'_>, code: u16, took: Duration, size: Option<u64>) {
        let key = self.hasher.hash_one(of);
        let mut all = self.all.lock();
        if all.len() >= MAX_SERIES && !all.contains_key(&key) {
            return;
        }
        let s = all.entry(key).or_insert_with(|| Series {
            labels: of.labels(),
            codes: Vec::new(),
            seconds: [0; SECONDS.len()],
            sum: 0.0,
            count: 0,
            bytes: None,
        });
        match s.codes.iter_mut().find(|(c, _)| *c == code) {
            Some((_, n)) => *n += 1,
            None => s.codes.push((code, 1)),
        }
        let seconds = took.as_secs_f64();
        if let Some(b) = SECONDS.iter().position(|b| seconds <= *b) {
            s.seconds[b] += 1;
        }
        s.sum += seconds;
        s.count += 1;
        if let Some(size) = size.filter(|_| matches!(of.verb, "GET" | "LIST")) {
            let bytes = s.bytes.get_or_insert_default();
            let size = size as f64;
            if let Some(b) = BYTES.iter().position(|b| size <= *b) {
                bytes.0[b] += 1;
            }
            bytes.1 += size;
            bytes.2 += 1;
        }
    }

    pub fn render(&self, w: &mut String) {
        let all = self.all.lock();
        let mut all: Vec<&Series> = all.values().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        // Writing to a String cannot fail.
        let (name, help) = ("apiserver_request_total", "[STABLE] Requests by verb, resource and code.");
        let _ = writeln!(w, "# HELP {name} {help}\n# TYPE {name} counter");
        for s in &all {
            for (code, n) in &s.codes {
                let _ = writeln!(w, "{name}{{code=\"{code}\",component=\"apiserver\",{}}} {n}", s.labels.0);
            }
        }
        let (name, help) = ("apiserver_request_duration_seconds", "[STABLE] Time to answer.");
        let _ = writeln!(w, "# HELP {name} {help}\n# TYPE {name} histogram");
        for s in &all {
            write_series(w, name, &format!("component=\"apiserver\",{}", s.labels.0), SECONDS, &s.seconds, s.sum, s.count);
        }
        let (name, help) = ("apiserver_response_sizes", "[STABLE] Bytes of answers to reads.");
        let _ = writeln!(w, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (s, bytes) in all.iter().filter_map(|s| Some((s, s.bytes.as_deref()?))) {
            write_series(w, name, &format!("component=\"apiserver\",{}", s.labels.1), BYTES, &bytes.0, bytes.1, bytes.2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_as_upstream_does() {
        let info = |verb: &str, name: &str, sub: &str| RequestInfo {
            is_resource: true,
            verb: verb.into(),
            version: "v1".into(),
            namespace: "ns".into(),
            resource: "pods".into(),
            name: name.into(),
            subresource: sub.into(),
            ..RequestInfo::default()
        };
        let of = |i: &RequestInfo| {
            let of = Of::request(i, false, false);
            (of.verb, of.scope)
        };
        assert_eq!(of(&info("list", "", "")), ("LIST", "namespace"));
        assert_eq!(of(&info("update", "x", "")), ("PUT", "resource"));
        assert_eq!(of(&info("create", "x", "exec")), ("CONNECT", "resource"));
        assert_eq!(of(&RequestInfo { verb: "get".into(), path: "/healthz".into(), ..RequestInfo::default() }), ("GET", ""));
        assert_eq!(Of::request(&info("patch", "x", ""), true, true).verb, "APPLY");
        let requests = Requests::default();
        let list = info("list", "", "");
        for code in [200, 200, 410] {
            requests.observe(&Of::request(&list, false, false), code, Duration::from_millis(30), Some(5000));
        }
        let mut out = String::new();
        requests.render(&mut out);
        let labels = "group=\"\",resource=\"pods\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\"";
        assert!(
            out.contains(&format!("apiserver_request_total{{code=\"200\",component=\"apiserver\",dry_run=\"\",{labels}}} 2\n")),
            "{out}"
        );
        assert!(out.contains(&format!("apiserver_response_sizes_bucket{{component=\"apiserver\",{labels},le=\"10000\"}} 3\n")), "{out}");
    }
}
