//! Metrics under upstream's stable names, in the Prometheus text format.

mod counter;
mod histogram;
mod plugins;
mod process;
mod requests;

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

pub use counter::Counter;
pub use histogram::Histogram;
pub use requests::Of;

use crate::{flow_control::Gate, server::Server};

const ADMISSION: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOKS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const POLICIES: &[f64] = &[5e-7, 0.001, 0.01, 0.1, 1.0];

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

/// How long admission takes: its two halves, its plugins, its webhooks, and what its policies find.
#[derive(Debug)]
pub struct Admission {
    pub steps: Histogram,
    pub plugins: plugins::Plugins,
    pub webhooks: Histogram,
    pub checks: Counter,
    pub check_seconds: Histogram,
}

impl Default for Admission {
    fn default() -> Self {
        const OF_PLUGIN: &[&str] = &["name", "operation", "rejected", "type"];
        const OF_POLICY: &[&str] = &["enforcement_action", "error_type", "policy", "policy_binding"];
        Self {
            steps: Histogram::new(
                "apiserver_admission_step_admission_duration_seconds",
                "[STABLE] Time of the halves of admission.",
                &["operation", "rejected", "type"],
                ADMISSION,
            ),
            plugins: plugins::Plugins::default(),
            webhooks: Histogram::new(
                "apiserver_admission_webhook_admission_duration_seconds",
                "[STABLE] Time of admission webhooks.",
                OF_PLUGIN,
                WEBHOOKS,
            ),
            checks: Counter::new(
                "apiserver_validating_admission_policy_check_total",
                "[BETA] Checks of admission policies by what came of them.",
                OF_POLICY,
            ),
            check_seconds: Histogram::new(
                "apiserver_validating_admission_policy_check_duration_seconds",
                "[BETA] Time of the checks of admission policies.",
                OF_POLICY,
                POLICIES,
            ),
        }
    }
}

/// Reloads of a configuration file.
#[derive(Debug)]
pub struct Reloads {
    total: Counter,
    last: Mutex<BTreeMap<bool, i64>>,
    last_name: &'static str,
}

impl Reloads {
    const fn new(total: &'static str, last_name: &'static str) -> Self {
        let help = "[BETA] Reloads of the configuration when its file changed.";
        Self { total: Counter::new(total, help, &["status"]), last: Mutex::new(BTreeMap::new()), last_name }
    }

    pub fn note(&self, ok: bool) {
        self.total.add(&[if ok { "success" } else { "failure" }]);
        self.last.lock().insert(ok, jiff::Timestamp::now().as_second());
    }

    fn render(&self, w: &mut String) {
        self.total.render(w);
        let name = self.last_name;
        // Writing to a String cannot fail.
        let _ = writeln!(w, "# HELP {name} [BETA] When the configuration was reloaded last.\n# TYPE {name} gauge");
        for (ok, at) in self.last.lock().iter() {
            let _ = writeln!(w, "{name}{{status=\"{}\"}} {at}", if *ok { "success" } else { "failure" });
        }
    }
}

/// Checks of health: how each ended last, and how often it ended how.
#[derive(Debug)]
pub struct Health {
    total: Counter,
    last: Mutex<BTreeMap<(&'static str, String), bool>>,
}

impl Health {
    pub fn note(&self, check: &'static str, endpoint: &str, ok: bool) {
        self.total.add(&[check, if ok { "success" } else { "error" }, endpoint]);
        self.last.lock().insert((check, endpoint.to_owned()), ok);
    }

    pub fn render(&self, w: &mut String) {
        let name = "kubernetes_healthcheck";
        // Writing to a String cannot fail.
        let _ = writeln!(w, "# HELP {name} [STABLE] How a check of health ended last.\n# TYPE {name} gauge");
        for ((check, endpoint), ok) in self.last.lock().iter() {
            let _ = writeln!(w, "{name}{{name={check:?},type={endpoint:?}}} {}", u8::from(*ok));
        }
        self.total.render(w);
    }
}

#[derive(Debug)]
pub struct Metrics {
    pub requests: requests::Requests,
    long_running: Mutex<BTreeMap<String, Arc<AtomicI64>>>,
    deprecated: Mutex<BTreeMap<String, ()>>,
    pub admission: Admission,
    pub pod_security: PodSecurity,
    pub audit: Arc<crate::audit::Metrics>,
    pub authentication_reloads: Reloads,
    pub authorization_reloads: Reloads,
    pub encryption_reloads: Reloads,
    /// Of every file that is followed.
    pub file_reloads: Counter,
    pub health: Health,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: requests::Requests::default(),
            long_running: Mutex::default(),
            deprecated: Mutex::default(),
            admission: Admission::default(),
            pod_security: PodSecurity::default(),
            audit: Arc::default(),
            authentication_reloads: Reloads::new(
                "apiserver_authentication_config_controller_automatic_reloads_total",
                "apiserver_authentication_config_controller_automatic_reload_last_timestamp_seconds",
            ),
            authorization_reloads: Reloads::new(
                "apiserver_authorization_config_controller_automatic_reloads_total",
                "apiserver_authorization_config_controller_automatic_reload_last_timestamp_seconds",
            ),
            encryption_reloads: Reloads::new(
                "apiserver_encryption_config_controller_automatic_reloads_total",
                "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds",
            ),
            file_reloads: Counter::new(
                "strake_apiserver_file_reloads_total",
                "[ALPHA] Files that were read again because they changed; after a failure what was read before stays.",
                &["file", "status"],
            ),
            health: Health {
                total: Counter::new(
                    "kubernetes_healthchecks_total",
                    "[STABLE] Checks of health by how they ended.",
                    &["name", "status", "type"],
                ),
                last: Mutex::default(),
            },
        }
    }
}

/// A request that runs long, as long as it does.
#[derive(Debug)]
pub struct LongRunning(Arc<AtomicI64>);

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub fn request(&self, of: &Of<'_>, code: u16, took: Duration, size: Option<u64>) {
        self.requests.observe(of, code, took, size);
    }

    /// Counts a request for as long as what is given back lives.
    pub fn long_running(&self, of: &Of<'_>) -> LongRunning {
        let labels = format!(
            "component=\"apiserver\",group={:?},resource={:?},scope={:?},subresource={:?},verb={:?},version={:?}",
            of.group, of.resource, of.scope, of.subresource, of.verb, of.version
        );
        let n = Arc::clone(self.long_running.lock().entry(labels).or_default());
        n.fetch_add(1, Ordering::Relaxed);
        LongRunning(n)
    }

    /// Somebody asked for something that will go away.
    pub fn deprecated(&self, group: &str, version: &str, resource: &str, subresource: &str) {
        let labels = format!("group={group:?},removed_release=\"\",resource={resource:?},subresource={subresource:?},version={version:?}");
        self.deprecated.lock().insert(labels, ());
    }

    /// `database`: how many bytes etcd's file has.
    pub fn render(&self, server: &Server, database: Option<i64>) -> String {
        let mut out = String::new();
        let w = &mut out;
        self.requests.render(w);
        // Writing to a String cannot fail.
        let name = "apiserver_longrunning_requests";
        let _ = writeln!(w, "# HELP {name} [STABLE] Long-running requests that are active.\n# TYPE {name} gauge");
        for (labels, n) in self.long_running.lock().iter() {
            let _ = writeln!(w, "{name}{{{labels}}} {}", n.load(Ordering::Relaxed));
        }
        let name = "apiserver_requested_deprecated_apis";
        let _ = writeln!(w, "# HELP {name} [STABLE] Deprecated APIs that were asked for.\n# TYPE {name} gauge");
        for labels in self.deprecated.lock().keys() {
            let _ = writeln!(w, "{name}{{{labels}}} 1");
        }
        objects(w, server);
        let name = "strake_apiserver_encodings_total";
        let _ = writeln!(
            w,
            "# HELP {name} [ALPHA] Encodings of stored objects that were made for readers, who share them.\n# TYPE {name} counter"
        );
        let _ = writeln!(w, "{name} {}", server.encoded.made());
        if let Some(size) = database {
            let name = "apiserver_storage_size_bytes";
            let _ = writeln!(w, "# HELP {name} [STABLE] Size of the storage's file.\n# TYPE {name} gauge");
            let _ = writeln!(w, "{name}{{storage_cluster_id=\"etcd-0\"}} {size}");
        }
        let a = &self.admission;
        [&a.steps, &a.webhooks, &a.check_seconds].into_iter().for_each(|h| h.render(w));
        a.plugins.render(w);
        let (security, audit) = (&self.pod_security, &self.audit);
        let counters = [&a.checks, &security.evaluations, &security.exemptions, &security.errors];
        counters.into_iter().chain([&audit.events, &audit.errors, &audit.levels, &audit.rejected]).for_each(|c| c.render(w));
        self.authentication_reloads.render(w);
        self.authorization_reloads.render(w);
        self.encryption_reloads.render(w);
        self.file_reloads.render(w);
        self.health.render(w);
        match &server.gate {
            Gate::Fair(f) => f.render(w),
            Gate::Plain(m) => {
                let (reading, changing) = m.running();
                let name = "apiserver_current_inflight_requests";
                let _ = writeln!(w, "# HELP {name} [STABLE] Requests that run.\n# TYPE {name} gauge");
                let _ = writeln!(w, "{name}{{request_kind=\"mutating\"}} {changing}\n{name}{{request_kind=\"readOnly\"}} {reading}");
            }
        }
        server.bodies.render(w);
        process::render(w);
        own(w);
        out
    }
}

/// The objects of each resource, under the name that upstream has now and the one it had before.
fn objects(w: &mut String, server: &Server) {
    let mut counts = Vec::new();
    for res in server.registry.all() {
        if res.is_storage_version()
            && let Some(c) = server.objects.reflector.cache(&res.prefix)
        {
            counts.push((res, c.len()));
        }
    }
    // Writing to a String cannot fail.
    let _ = writeln!(w, "# HELP apiserver_storage_objects [STABLE] Stored objects by resource.\n# TYPE apiserver_storage_objects gauge");
    for (res, n) in &counts {
        let _ = writeln!(w, "apiserver_storage_objects{{resource=\"{}\"}} {n}", res.group_resource());
    }
    let _ = writeln!(w, "# HELP apiserver_resource_objects [ALPHA] Stored objects by resource.\n# TYPE apiserver_resource_objects gauge");
    for (res, n) in &counts {
        let _ = writeln!(w, "apiserver_resource_objects{{group={:?},resource={:?}}} {n}", res.group, res.plural);
    }
}

/// What is said of the metrics themselves: nothing is hidden or disabled here.
fn own(w: &mut String) {
    let version = crate::handlers::discovery::KUBERNETES;
    // Writing to a String cannot fail.
    let _ = writeln!(w, "# HELP kubernetes_build_info [ALPHA] The version.\n# TYPE kubernetes_build_info gauge");
    let _ = writeln!(w, "kubernetes_build_info{{git_version={version:?},major=\"1\",minor=\"36\",platform=\"linux/amd64\"}} 1");
    for name in ["disabled_metrics_total", "hidden_metrics_total"] {
        let _ = writeln!(w, "# HELP {name} [BETA] Always 0.\n# TYPE {name} counter\n{name} 0");
    }
    let name = "registered_metrics_total";
    let _ = writeln!(w, "# HELP {name} [BETA] Metrics by their stability.\n# TYPE {name} counter");
    for level in ["ALPHA", "BETA", "STABLE"] {
        let mark = format!("[{level}]");
        let n = w.lines().filter(|l| l.starts_with("# HELP ") && l.contains(&mark)).count();
        let _ = writeln!(w, "{name}{{deprecated_version=\"\",stability_level={level:?}}} {n}");
    }
}
