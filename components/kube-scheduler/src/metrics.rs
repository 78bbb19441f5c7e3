//! Metrics, under upstream's names.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::queue::Counts;
use crate::state::Attempt;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    profile: &'static str,
    result: &'static str,
}

/// The scheduler's metrics.
pub struct Metrics {
    registry: Registry,
    pending: Family<QueueLabel, Gauge>,
    attempts: Family<ResultLabels, Counter>,
    duration: Family<ResultLabels, Histogram>,
    victims: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let pending = Family::default();
        let attempts = Family::default();
        let seconds = || Histogram::new((0..15).map(|i| 0.001 * f64::from(1 << i)));
        let duration = Family::new_with_constructor(seconds as fn() -> Histogram);
        let victims = Histogram::new((0..7).map(|i| f64::from(1 << i)));
        registry.register("scheduler_pending_pods", "Pending pods, by the queue they wait in", pending.clone());
        registry.register("scheduler_schedule_attempts", "Attempts to schedule pods, by result", attempts.clone());
        registry.register("scheduler_scheduling_attempt_duration_seconds", "Time to choose a node, without binding", duration.clone());
        registry.register("scheduler_preemption_victims", "Pods removed by one preemption", victims.clone());
        Self { registry, pending, attempts, duration, victims }
    }
}

impl Metrics {
    /// Records where pods wait.
    pub fn pending(&self, counts: Counts) {
        let queues =
            [("active", counts.active), ("backoff", counts.backoff), ("unschedulable", counts.unschedulable), ("gated", counts.gated)];
        for (queue, count) in queues {
            self.pending.get_or_create(&QueueLabel { queue }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Records an attempt.
    pub fn attempt(&self, attempt: &Attempt, took: Duration) {
        let result = match attempt {
            Attempt::Bind { .. } => "scheduled",
            Attempt::Unschedulable { .. } => "unschedulable",
        };
        let labels = ResultLabels { profile: crate::state::SCHEDULER_NAME, result };
        self.attempts.get_or_create(&labels).inc();
        self.duration.get_or_create(&labels).observe(took.as_secs_f64());
        if let Attempt::Unschedulable { preemption: Some(p), .. } = attempt {
            self.victims.observe(p.victims.len() as f64);
        }
    }

    /// Prometheus text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut out, &self.registry);
        out
    }
}
