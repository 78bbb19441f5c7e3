//! API priority and fairness: every request belongs to a flow of a priority level, and a level runs no more at a time than its seats.
//!
//! `schemas` reads what is configured, `queues` decides who is next, `share` how many seats each level has at the moment, `level` waits.
//! What waits is bounded by the levels' queues, and waits fifteen seconds at most; beyond, a request is refused with 429 and told when to
//! try again. Watches hold a seat only until they have begun, other requests that live long hold none.

mod level;
mod max_in_flight;
mod queues;
mod schemas;
mod share;
#[cfg(test)]
mod tests;
pub mod upkeep;

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, atomic::Ordering},
};

use arc_swap::ArcSwap;
use http::HeaderValue;
use k8s_schema::Doc;
use parking_lot::Mutex;

use level::{BUCKETS, Counts, Level, Rejected, Seats};
pub use max_in_flight::MaxInFlight;
use schemas::{FlowSchema, LevelSpec};
use share::{Class, nominal, share, smooth};

use crate::{
    authn::User,
    http::{Answer, Query, RequestInfo, body},
    server::Server,
};

/// A request takes no more seats than this, nor than a share of its level.
const MAX_SEATS: u64 = 10;
const MAX_SHARE: f64 = 0.15;
/// Bytes of objects that a list takes for one seat.
const BYTES_PER_SEAT: u64 = 100_000;
/// A list of the cache is sent as it is read: it takes no more than this at a time, however long it is.
const MOST_OF_CACHE: u64 = 1_000_000;

/// How requests are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// By flows; otherwise only by the two numbers.
    pub fair: bool,
    /// 0: any number.
    pub read_only: u64,
    pub mutating: u64,
}

/// A schema with the level that its requests go to.
#[derive(Debug)]
struct Flow {
    schema: FlowSchema,
    level: Arc<Level>,
    counts: Arc<Counts>,
    /// Its requests wait in queues, by flow.
    queued: bool,
    marks: Marks,
}

/// The UIDs of schema and level, for the headers of the answer.
pub type Marks = Option<(HeaderValue, HeaderValue)>;

/// Seats within which a level's bound moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bounds {
    nominal: u64,
    min: u64,
    max: u64,
}

#[derive(Debug)]
struct Configured {
    spec: LevelSpec,
    bounds: Bounds,
    level: Arc<Level>,
}

/// What is in force.
#[derive(Debug, Default)]
struct Current {
    /// By precedence.
    flows: Vec<Flow>,
    levels: Vec<Configured>,
}

#[derive(Debug)]
pub struct FlowControl {
    total: u64,
    current: ArcSwap<Current>,
    /// The smoothed demand by level.
    smoothed: Mutex<HashMap<String, f64>>,
}

impl FlowControl {
    /// With the levels and schemas that are always there, until the configured ones are read.
    pub fn new(total: u64, defaults: &upkeep::Defaults) -> Self {
        let this = Self { total, current: ArcSwap::default(), smoothed: Mutex::default() };
        this.configure(&defaults.levels, &defaults.schemas);
        this
    }

    /// Takes a configuration. Levels that stay keep who runs and who waits.
    pub fn configure(&self, levels: &[Doc], schemas: &[Doc]) {
        let before = self.current.load_full();
        let specs: Vec<LevelSpec> = levels.iter().map(LevelSpec::of).collect();
        let shares: u64 = specs.iter().map(|s| s.shares).sum();
        let levels: Vec<Configured> = specs
            .into_iter()
            .map(|spec| {
                let bounds = bounds(&spec, self.total, shares);
                let limit = (!spec.exempt).then_some(bounds.nominal);
                let known = before.levels.iter().find(|l| l.spec.name == spec.name);
                let level = known.map_or_else(|| Arc::new(Level::new(spec.shape, limit)), |l| Arc::clone(&l.level));
                if known.is_none_or(|l| l.spec != spec || l.bounds != bounds) {
                    let most = (bounds.nominal as f64 * MAX_SHARE).ceil() as u64;
                    level.configure(spec.shape, limit, if spec.exempt { MAX_SEATS } else { most.min(MAX_SEATS) });
                }
                Configured { spec, bounds, level }
            })
            .collect();
        let header = |uid: &str| HeaderValue::from_str(uid).ok().filter(|v| !v.is_empty());
        let mut flows: Vec<Flow> = schemas
            .iter()
            .filter_map(|d| {
                let schema = FlowSchema::of(d);
                // A schema without its level is as if it were not there.
                let l = levels.iter().find(|l| l.spec.name == schema.level)?;
                let counts = l.level.counts(&schema.name);
                let marks = header(&schema.uid).zip(header(&l.spec.uid));
                Some(Flow { schema, level: Arc::clone(&l.level), counts, queued: l.spec.shape.queues > 0, marks })
            })
            .collect();
        flows.sort_by(|a, b| (a.schema.precedence, &a.schema.name).cmp(&(b.schema.precedence, &b.schema.name)));
        self.current.store(Arc::new(Current { flows, levels }));
    }

    /// Moves seats to where there is demand.
    pub fn adjust(&self) {
        let current = self.current.load();
        let mut smoothed = self.smoothed.lock();
        smoothed.retain(|name, _| current.levels.iter().any(|l| l.spec.name == *name));
        let classes: Vec<Class> = current
            .levels
            .iter()
            .map(|l| {
                let period = l.level.period();
                let before = smoothed.entry(l.spec.name.clone()).or_default();
                *before = smooth(*before, &period);
                let min = (l.bounds.min as f64).max(period.peak.min(l.bounds.nominal as f64));
                Class { min, max: l.bounds.max as f64, target: before.max(min).max(0.01) }
            })
            .collect();
        for (l, seats) in current.levels.iter().zip(share(self.total as f64, &classes)) {
            if !l.spec.exempt {
                // Only a level without any share may be left with nothing.
                l.level.limit((seats.round() as u64).max(l.spec.shares.min(1)));
            }
        }
    }

    /// Waits until the request may run. The seats are free when what is given is dropped.
    async fn enter(&self, user: &User, info: &RequestInfo, width: u64, mark: &mut Marks) -> Result<Option<Seats>, Rejected> {
        let (level, hash, counts) = {
            let current = self.current.load();
            // There always is one for everybody.
            let Some(flow) = current.flows.iter().find(|f| f.schema.matches(user, info)) else { return Ok(None) };
            mark.clone_from(&flow.marks);
            let hash = if flow.queued { flow.schema.flow(user, info) } else { 0 };
            (Arc::clone(&flow.level), hash, Arc::clone(&flow.counts))
        };
        level.enter(hash, width, &counts).await.map(Some)
    }

    pub fn render(&self, out: &mut String) {
        let current = self.current.load();
        let gauge = |out: &mut String, name: &str, help: &str, value: &dyn Fn(&Configured) -> Option<u64>| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} [BETA] {help}\n# TYPE {name} gauge");
            for l in &current.levels {
                if let Some(v) = value(l) {
                    let _ = writeln!(out, "{name}{{priority_level={:?}}} {v}", l.spec.name);
                }
            }
        };
        let p = "apiserver_flowcontrol_";
        gauge(out, &format!("{p}nominal_limit_seats"), "Nominal number of seats of a level.", &|l| Some(l.bounds.nominal));
        gauge(out, &format!("{p}lower_limit_seats"), "Seats that a level keeps.", &|l| Some(l.bounds.min));
        gauge(out, &format!("{p}upper_limit_seats"), "Seats that a level may have.", &|l| Some(l.bounds.max));
        gauge(out, &format!("{p}current_limit_seats"), "Seats of a level at the moment.", &|l| l.level.seen().limit);
        gauge(out, &format!("{p}current_executing_seats"), "Seats that are taken.", &|l| Some(l.level.seen().seats));
        let mut each = |name: &str, kind: &str, help: &str, lines: &dyn Fn(&Counts, &str, &mut String)| {
            let _ = writeln!(out, "# HELP {p}{name} [BETA] {help}\n# TYPE {p}{name} {kind}");
            for l in &current.levels {
                for (schema, counts) in l.level.all_counts() {
                    lines(&counts, &format!("flow_schema={schema:?},priority_level={:?}", l.spec.name), out);
                }
            }
        };
        each("dispatched_requests_total", "counter", "Requests that ran.", &|c, labels, out| {
            let _ = writeln!(out, "{p}dispatched_requests_total{{{labels}}} {}", c.dispatched.load(Ordering::Relaxed));
        });
        each("rejected_requests_total", "counter", "Requests that were refused.", &|c, labels, out| {
            for (reason, n) in [("queue-full", &c.queue_full), ("concurrency-limit", &c.concurrency_limit), ("time-out", &c.time_out)] {
                let n = n.load(Ordering::Relaxed);
                if n > 0 {
                    let _ = writeln!(out, "{p}rejected_requests_total{{{labels},reason={reason:?}}} {n}");
                }
            }
        });
        each("current_executing_requests", "gauge", "Requests that run.", &|c, labels, out| {
            let _ = writeln!(out, "{p}current_executing_requests{{{labels}}} {}", c.executing.load(Ordering::Relaxed));
        });
        each("current_inqueue_requests", "gauge", "Requests that wait.", &|c, labels, out| {
            let _ = writeln!(out, "{p}current_inqueue_requests{{{labels}}} {}", c.waiting.load(Ordering::Relaxed));
        });
        each("request_wait_duration_seconds", "histogram", "How long requests waited.", &|c, labels, out| {
            let mut sum = 0;
            let all = c.waited.iter().map(|n| n.load(Ordering::Relaxed));
            for (n, le) in all.zip(BUCKETS.iter().map(ToString::to_string).chain(["+Inf".to_owned()])) {
                sum += n;
                let _ = writeln!(out, "{p}request_wait_duration_seconds_bucket{{{labels},execute=\"true\",le=\"{le}\"}} {sum}");
            }
            let seconds = c.wait_sum.load(Ordering::Relaxed) as f64 / 1e6;
            let _ = writeln!(out, "{p}request_wait_duration_seconds_sum{{{labels},execute=\"true\"}} {seconds}");
            let _ = writeln!(out, "{p}request_wait_duration_seconds_count{{{labels},execute=\"true\"}} {sum}");
        });
    }
}

fn bounds(spec: &LevelSpec, total: u64, shares: u64) -> Bounds {
    let nominal = nominal(total, spec.shares, shares);
    let percent = |p: u64| (nominal * p + 50) / 100;
    let max = spec.borrowing_percent.map_or(total, |p| nominal + percent(p));
    Bounds { nominal, min: nominal - percent(spec.lendable_percent), max: if spec.exempt { total } else { max } }
}

/// Holds back what the server cannot do now.
#[derive(Debug)]
pub enum Gate {
    Fair(FlowControl),
    Plain(MaxInFlight),
}

/// Held while a request runs.
pub enum Pass {
    None,
    Seats { _seats: Seats },
    Counted { _counted: max_in_flight::Counted },
}

impl Gate {
    pub fn new(c: Config, defaults: &upkeep::Defaults) -> Self {
        if c.fair {
            Self::Fair(FlowControl::new((c.read_only + c.mutating).max(1), defaults))
        } else {
            Self::Plain(MaxInFlight::new(c.read_only, c.mutating))
        }
    }

    /// Lets a request through, now or after a while, or gives the answer that refuses it. `mark` gets what its answer is marked with.
    pub async fn pass(
        &self,
        server: &Server,
        user: &User,
        info: &RequestInfo,
        query: &Query,
        mark: &mut Marks,
    ) -> Result<Pass, Box<Answer>> {
        // A watch is work until it has begun.
        if info.is_long_running() && info.verb != "watch" {
            return Ok(Pass::None);
        }
        match self {
            Self::Fair(f) => match f.enter(user, info, width(server, info, query), mark).await {
                Ok(seats) => Ok(seats.map_or(Pass::None, |s| Pass::Seats { _seats: s })),
                Err(_) => Err(refusal()),
            },
            Self::Plain(_) if info.verb == "watch" => Ok(Pass::None),
            Self::Plain(m) => m.enter(user, info).map(|c| Pass::Counted { _counted: c }).ok_or_else(refusal),
        }
    }
}

/// As upstream's: no Status, but plain text.
fn refusal() -> Box<Answer> {
    let mut a = body::text(429, "Too many requests, please try again later.\n");
    a.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    Box::new(a)
}

/// The seats of a request: one, or as many as the objects that a list has in hand at a time. A watch that begins with all objects is a list.
fn width(server: &Server, info: &RequestInfo, query: &Query) -> u64 {
    let lists = info.verb == "list" || (info.verb == "watch" && query.flag("sendInitialEvents"));
    if !lists || !info.is_resource || !info.name.is_empty() {
        return 1;
    }
    let Some(res) = server.registry.resource(&info.group, &info.version, &info.resource) else { return 1 };
    let Some(cache) = server.objects.reflector.cache(&res.prefix) else { return 1 };
    let (objects, bytes) = cache.extent();
    let asked = |k: &str| query.get(k).is_some_and(|v| !v.is_empty());
    let of_past = info.verb == "list" && (asked("continue") || query.get("resourceVersionMatch") == Some("Exact"));
    List {
        objects,
        bytes,
        limit: query.get("limit").and_then(|l| l.parse().ok()).filter(|l| *l > 0),
        from_cache: !of_past,
        selective: asked("labelSelector") || asked("fieldSelector"),
    }
    .seats()
}

/// What a list will cost.
#[derive(Debug, Clone, Copy)]
struct List {
    /// Of the resource.
    objects: u64,
    bytes: u64,
    limit: Option<u64>,
    /// Not from etcd.
    from_cache: bool,
    selective: bool,
}

impl List {
    fn seats(self) -> u64 {
        let limited = self.limit.map_or(self.objects, |l| l.min(self.objects));
        // etcd is asked for more than is given when some do not match.
        let in_hand = if !self.from_cache && self.selective { limited.max(self.objects / 2) } else { limited };
        let average = self.bytes.checked_div(self.objects).unwrap_or(0);
        let bytes = in_hand.saturating_mul(average);
        let bytes = if self.from_cache { bytes.min(MOST_OF_CACHE) } else { bytes };
        bytes.div_ceil(BYTES_PER_SEAT).max(1)
    }
}
