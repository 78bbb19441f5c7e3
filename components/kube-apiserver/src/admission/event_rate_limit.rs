//! `EventRateLimit`: events are written no faster than `eventratelimit.admission.k8s.io` `Configuration` says, for the server as a whole
//! and for each namespace, user, or source and object.
//!
//! Each limit is a bucket of `burst` tokens that fills by `qps` a second. Buckets are kept for as many keys as the limit's `cacheSize`
//! says; the one that was not used for longest makes room, and whoever it was for begins with a full one again.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use k8s_schema::Doc;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_yaml::Value;

use super::{Attributes, Operation};
use crate::{
    config_file::{ConfigFile, DecodeError, decode_value},
    http::ApiError,
};

/// Keys of a limit that names no number.
const KEYS: usize = 4096;
/// No limit keeps more.
const MAX_KEYS: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("limits: at least one limit is required")]
    Empty,
    #[error("limits[{index}].{field}: {problem}")]
    Limit { index: usize, field: &'static str, problem: &'static str },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    limits: Vec<Limit>,
}

impl ConfigFile for File {
    const KIND: &str = "Configuration";
    const VERSIONS: &[&str] = &["eventratelimit.admission.k8s.io/v1alpha1"];

    fn head(&self) -> (&str, &str) {
        (&self.api_version, &self.kind)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Limit {
    #[serde(rename = "type")]
    of: Of,
    #[serde(default)]
    qps: i32,
    #[serde(default)]
    burst: i32,
    #[serde(default)]
    cache_size: i32,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Of {
    Server,
    Namespace,
    User,
    SourceAndObject,
}

/// Tokens of one key.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    /// Its place among the buckets by their last use.
    used: u64,
}

#[derive(Debug, Default)]
struct Buckets {
    of: HashMap<String, Bucket>,
    by_use: BTreeMap<u64, String>,
    uses: u64,
}

/// One limit and its buckets.
#[derive(Debug)]
struct Enforcer {
    of: Of,
    qps: f64,
    burst: f64,
    keys: usize,
    buckets: Mutex<Buckets>,
}

impl Enforcer {
    /// Takes a token of the key; false: there is none.
    fn take(&self, key: &str, now: Instant) -> bool {
        let mut all = self.buckets.lock();
        let all = &mut *all;
        all.uses += 1;
        if let Some(b) = all.of.get_mut(key) {
            all.by_use.remove(&b.used);
            b.tokens = (b.tokens + now.saturating_duration_since(b.at).as_secs_f64() * self.qps).min(self.burst);
            b.at = now.max(b.at);
            b.used = all.uses;
        } else {
            if all.of.len() >= self.keys
                && let Some((_, oldest)) = all.by_use.pop_first()
            {
                all.of.remove(&oldest);
            }
            all.of.insert(key.to_owned(), Bucket { tokens: self.burst, at: now, used: all.uses });
        }
        all.by_use.insert(all.uses, key.to_owned());
        let Some(b) = all.of.get_mut(key).filter(|b| b.tokens >= 1.0) else { return false };
        b.tokens -= 1.0;
        true
    }
}

/// The limits.
#[derive(Debug)]
pub struct EventRateLimit(Vec<Enforcer>);

impl EventRateLimit {
    pub fn parse(v: Value) -> Result<Self, ConfigError> {
        let file: File = decode_value(v)?;
        if file.limits.is_empty() {
            return Err(ConfigError::Empty);
        }
        let enforcer = |(index, l): (usize, Limit)| {
            let bad = |field, problem| Err(ConfigError::Limit { index, field, problem });
            if l.burst <= 0 {
                return bad("burst", "must be positive");
            }
            if l.qps <= 0 {
                return bad("qps", "must be positive");
            }
            let keys = match usize::try_from(l.cache_size) {
                Err(_) => return bad("cacheSize", "must not be negative"),
                Ok(n) if n > MAX_KEYS => return bad("cacheSize", "must be at most 1048576"),
                Ok(0) => KEYS,
                Ok(n) => n,
            };
            Ok(Enforcer { of: l.of, qps: l.qps.into(), burst: l.burst.into(), keys, buckets: Mutex::default() })
        };
        file.limits.into_iter().enumerate().map(enforcer).collect::<Result<_, _>>().map(Self)
    }

    /// Takes a token of every limit; gives what is said of those that have none.
    fn refused(&self, key: impl Fn(Of) -> String, now: Instant) -> Option<String> {
        let mut reached = Vec::new();
        for e in &self.0 {
            let key = key(e.of);
            if !e.take(&key, now) {
                reached.push(format!("limit reached on type {:?} for key {key}", e.of));
            }
        }
        match reached.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            all => Some(format!("[{}]", all.join(", "))),
        }
    }
}

/// Who and what an event is about, in one word.
fn source_and_object(event: &Doc) -> String {
    let parts = [
        "source.component",
        "source.host",
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
    ];
    parts.iter().map(|p| event.at(p).str()).collect()
}

pub fn validate(a: &Attributes<'_>, new: Option<&Doc>, _: Option<&Doc>) -> Result<(), ApiError> {
    let written = matches!(a.operation, Operation::Create | Operation::Update) && !a.dry_run && a.is("", "events");
    let (Some(limits), Some(event), true) = (&a.ctx.server.admission.event_rate_limit, new, written) else { return Ok(()) };
    let key = |of: Of| match of {
        Of::Server => String::new(),
        Of::Namespace => a.ctx.info.namespace.clone(),
        Of::User => a.ctx.user.name.clone(),
        Of::SourceAndObject => source_and_object(event),
    };
    match limits.refused(key, Instant::now()) {
        None => Ok(()),
        Some(why) => Err(ApiError::new(429, "TooManyRequests", format!("Too many requests: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(limits: &str) -> Result<EventRateLimit, ConfigError> {
        let head = "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\n";
        EventRateLimit::parse(serde_yaml::from_str(&format!("{head}limits: {limits}")).unwrap())
    }

    #[test]
    fn a_bucket_gives_its_burst_and_fills_by_its_rate() {
        let limits = parse("[{type: Namespace, qps: 2, burst: 3}, {type: Server, qps: 100, burst: 100}]").unwrap();
        let start = Instant::now();
        let ask = |namespace: &str, after: u64| {
            let key = |of: Of| if of == Of::Namespace { namespace.to_owned() } else { String::new() };
            limits.refused(key, start + Duration::from_millis(after))
        };
        assert!((0..3).all(|_| ask("a", 0).is_none()));
        assert_eq!(ask("a", 0).unwrap(), "limit reached on type Namespace for key a");
        assert!(ask("b", 0).is_none(), "others are counted by themselves");
        assert!(ask("a", 400).is_some() && ask("a", 500).is_none() && ask("a", 501).is_some());
        assert!((0..3).all(|_| ask("a", 60_000).is_none()) && ask("a", 60_000).is_some(), "no more than the burst is saved");
    }

    #[test]
    fn every_limit_is_told_and_the_one_unused_longest_is_forgotten() {
        let limits = parse("[{type: User, qps: 1, burst: 1, cacheSize: 2}, {type: Server, qps: 1, burst: 4}]").unwrap();
        let now = Instant::now();
        let ask = |user: &str| limits.refused(|of: Of| if of == Of::User { user.to_owned() } else { String::new() }, now);
        assert!(ask("a").is_none() && ask("b").is_none());
        assert!(ask("a").is_some(), "a is used later than b");
        assert!(ask("c").is_none());
        assert_eq!(ask("a").unwrap(), "[limit reached on type User for key a, limit reached on type Server for key ]");
        assert_eq!(ask("b").unwrap(), "limit reached on type Server for key ", "b was forgotten and begins again");
        assert!(limits.0.iter().all(|e| e.buckets.lock().of.len() <= e.keys && e.buckets.lock().by_use.len() <= e.keys));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (limits, named) in [
            ("[]", "at least one"),
            ("[{type: Node, qps: 1, burst: 1}]", "Node"),
            ("[{type: Server, qps: 1}]", "limits[0].burst"),
            ("[{type: Server, burst: 1}]", "limits[0].qps"),
            ("[{type: User, qps: 1, burst: 1, cacheSize: -1}]", "limits[0].cacheSize"),
            ("[{type: User, qps: 1, burst: 1, cachesize: 1}]", "cachesize"),
        ] {
            let e = parse(limits).unwrap_err().to_string();
            assert!(e.contains(named), "{e}");
        }
    }
}
