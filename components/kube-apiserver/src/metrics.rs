//! Metrics under upstream's stable names, in the Prometheus text format.

mod counter;

use std::{collections::BTreeMap, fmt::Write, sync::Arc, time::Duration};

use parking_lot::Mutex;

pub use counter::Counter;

use crate::{flow_control::Gate, server::Server};

const BUCKETS: &[f64] =
    &[0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];
/// Series are labelled by resource; paths of nobody's resource must not make more of them.
const MAX_SERIES: usize = 4000;

#[derive(Debug, Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: Vec<u64>,
    sum: f64,
    count: u64,
}

/// What PodSecurity decided.
#[derive(Debug)]
pub struct PodSecurity {
    pub evaluations: Counter,
    pub exemptions: Counter,
    pub errors: Counter,
}

impl Default for PodSecurity {
    fn default() -> Self {
        Self {
            evaluations: Counter::new(
                "pod_security_evaluations_total",
                "[STABLE] Policy evaluations, not counting what was ignored or exempt.",
                &["decision", "policy_level", "policy_version", "mode", "request_operation", "resource", "subresource"],
            ),
            exemptions: Counter::new(
                "pod_security_exemptions_total",
                "[STABLE] Requests that were exempt.",
                &["request_operation", "resource", "subresource"],
            ),
            errors: Counter::new(
                "pod_security_errors_total",
                "[STABLE] Errors that prevented normal evaluation.",
                &["fatal", "request_operation", "resource", "subresource"],
            ),
        }
    }
}

#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(String, String), Series>>,
    pub pod_security: PodSecurity,
    pub audit: Arc<crate::audit::Metrics>,
}

impl Metrics {
    pub fn request(&self, verb: &str, resource: &str, code: u16, took: Duration) {
        let mut all = self.requests.lock();
        let key = (verb.to_uppercase(), resource.to_owned());
        if all.len() >= MAX_SERIES && !all.contains_key(&key) {
            return;
        }
        let s = all.entry(key).or_default();
        *s.codes.entry(code).or_default() += 1;
        if s.buckets.is_empty() {
            s.buckets = vec![0; BUCKETS.len()];
        }
        let seconds = took.as_secs_f64();
        for (b, n) in BUCKETS.iter().zip(&mut s.buckets) {
            *n += u64::from(seconds <= *b);
        }
        s.sum += seconds;
        s.count += 1;
    }

    pub fn render(&self, server: &Server) -> String {
        let mut out = String::new();
        let w = &mut out;
        // Writing to a String cannot fail.
        let _ = writeln!(
            w,
            "# HELP apiserver_request_total [STABLE] Requests by verb, resource and code.\n# TYPE apiserver_request_total counter"
        );
        let all = self.requests.lock();
        for ((verb, resource), s) in all.iter() {
            for (code, n) in &s.codes {
                let _ = writeln!(w, "apiserver_request_total{{code=\"{code}\",resource={resource:?},verb=\"{verb}\"}} {n}");
            }
        }
        let _ = writeln!(
            w,
            "# HELP apiserver_request_duration_seconds [STABLE] Time to answer.\n# TYPE apiserver_request_duration_seconds histogram"
        );
        for ((verb, resource), s) in all.iter() {
            let labels = format!("resource={resource:?},verb=\"{verb}\"");
            for (b, n) in BUCKETS.iter().zip(&s.buckets) {
                let _ = writeln!(w, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{b}\"}} {n}");
            }
            let _ = writeln!(w, "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}", s.count);
            let _ = writeln!(w, "apiserver_request_duration_seconds_sum{{{labels}}} {}", s.sum);
            let _ = writeln!(w, "apiserver_request_duration_seconds_count{{{labels}}} {}", s.count);
        }
        drop(all);
        let _ =
            writeln!(w, "# HELP apiserver_storage_objects [STABLE] Stored objects by resource.\n# TYPE apiserver_storage_objects gauge");
        for res in server.registry.all() {
            if res.is_storage_version()
                && let Some(c) = server.objects.reflector.cache(&res.prefix)
            {
                let _ = writeln!(w, "apiserver_storage_objects{{resource=\"{}\"}} {}", res.group_resource(), c.len());
            }
        }
        let (security, audit) = (&self.pod_security, &self.audit);
        let counters = [&security.evaluations, &security.exemptions, &security.errors];
        for c in counters.into_iter().chain([&audit.events, &audit.errors, &audit.levels, &audit.rejected]) {
            c.render(w);
        }
        match &server.gate {
            Gate::Fair(f) => f.render(w),
            Gate::Plain(m) => {
                let (reading, changing) = m.running();
                let name = "apiserver_current_inflight_requests";
                let _ = writeln!(w, "# HELP {name} [STABLE] Requests that run.\n# TYPE {name} gauge");
                let _ = writeln!(w, "{name}{{request_kind=\"mutating\"}} {changing}\n{name}{{request_kind=\"readOnly\"}} {reading}");
            }
        }
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        if let Some(pages) = statm.split_whitespace().nth(1).and_then(|p| p.parse::<u64>().ok()) {
            let _ = writeln!(w, "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}", pages * 4096);
        }
        out
    }
}
