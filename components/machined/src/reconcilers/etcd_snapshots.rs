//! Takes etcd snapshots on the config's schedule, checks them, and removes the oldest. What fails is a failed status, an
//! event and a metric.

use std::time::Duration;

use machine_api::limits;
use serde_json::json;
use tokio::time::Instant;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::etcd::{self, SnapshotInfo};
use crate::events::Severity;
use crate::resources::Store;

/// How long etcd may be silent when a snapshot is due, before that is a failure.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the kept snapshots are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Keeps the schedule.
#[derive(Default)]
pub struct EtcdSnapshots {
    /// Since when etcd has been silent while a snapshot was due.
    asked: Option<Instant>,
}

#[tonic::async_trait]
impl Reconciler for EtcdSnapshots {
    fn name(&self) -> &'static str {
        "etcd-snapshots"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["volumes", "time", "kubernetes"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let config = cx.config();
        let schedule = &config.cluster.etcd.snapshots;
        if !schedule.enabled {
            return Ok(Outcome::ready("none on this machine", Duration::from_secs(3600)));
        }
        if let Some(idle) = cx.idle_here()? {
            return Ok(idle);
        }
        let directory = cx.machine.paths.snapshots();
        let kept = etcd::kept(&directory)?;
        show(&cx.machine.store, &kept);
        let (now, interval) = (crate::clock::unix_seconds(), schedule.interval.0);
        let newest = kept.last().map(|(_, info)| info.taken_unix);
        let pause = due_in(newest, now, interval);
        if !pause.is_zero() {
            self.asked = None;
            return Ok(Outcome::ready(format!("next in {} s", pause.as_secs()), pause.min(LOOK)));
        }
        // Connecting is lazy, so that only a question shows whether someone is there.
        let answers = async { etcd::connect(&cx.machine.paths).await.ok()?.status().await.ok() };
        if answers.await.is_none() {
            let since = *self.asked.get_or_insert_with(Instant::now);
            if since.elapsed() < PATIENCE {
                return Ok(Outcome::waiting("etcd does not answer"));
            }
            // From now on it is a failure, which is said once for each interval.
            self.asked = Some(Instant::now() + interval);
            return Err(failed(cx, "a snapshot is due and etcd does not answer"));
        }
        self.asked = None;
        let most = usize::from(schedule.keep).max(1);
        let (name, info) = match etcd::keep(&cx.machine.paths, limits::SNAPSHOT_BYTES, most).await {
            Ok(taken) => taken,
            Err(error) => return Err(failed(cx, &crate::api::chain(&error))),
        };
        tracing::info!(name, size = info.size, revision = info.revision, keys = info.keys, "etcd snapshot taken and checked");
        show(&cx.machine.store, &etcd::kept(&directory)?);
        Ok(Outcome::ready(format!("took {name} of revision {}", info.revision), interval.min(LOOK)))
    }
}

/// A failed snapshot is an event, by which it is also counted.
fn failed(cx: &Context, why: &str) -> ReconcileError {
    cx.machine.event(Severity::Warning, etcd::SNAPSHOT_FAILED, why);
    why.into()
}

/// The kept snapshots as resources.
fn show(store: &Store, kept: &[(String, SnapshotInfo)]) {
    let shown = kept.iter().map(|(name, info)| {
        let taken = jiff::Timestamp::from_second(info.taken_unix).map(|time| time.to_string()).unwrap_or_default();
        let spec = json!({"taken": taken, "size": info.size, "revision": info.revision, "keys": info.keys, "sha256": info.sha256});
        (name.clone(), spec)
    });
    store.replace("etcd-snapshots", shown.collect());
}

/// How long until the next snapshot. One from the future, taken with a wrong clock, does not stop the schedule.
fn due_in(newest_unix: Option<i64>, now_unix: i64, interval: Duration) -> Duration {
    let age = newest_unix.and_then(|newest| u64::try_from(now_unix - newest).ok());
    age.map_or(Duration::ZERO, |age| interval.saturating_sub(Duration::from_secs(age)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_due_by_age() {
        let interval = Duration::from_secs(1800);
        for (newest, now, seconds) in
            [(None, 0, 0), (Some(1000), 1000, 1800), (Some(1000), 2000, 800), (Some(1000), 9000, 0), (Some(5000), 1000, 0)]
        {
            assert_eq!(due_in(newest, now, interval).as_secs(), seconds, "{newest:?} {now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_etcd_that_stays_silent_is_a_failure_that_is_said_once_an_interval() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::kubernetes::testing::control_plane_config();
        let machine = crate::testing::machine(dir.path(), crate::machine::Loaded { text: config.render(), config });
        machine.state.set_cluster_id("one").unwrap();
        let cx = crate::testing::context(&machine);
        let mut snapshots = EtcdSnapshots::default();
        let failures = || machine.events.totals().get(etcd::SNAPSHOT_FAILED).copied().unwrap_or(0);
        let waiting = |outcome: &Result<Outcome, ReconcileError>| matches!(outcome, Ok(Outcome::Waiting { .. }));
        assert!(waiting(&snapshots.reconcile(&cx).await), "it may just be starting");
        tokio::time::advance(PATIENCE).await;
        assert!(snapshots.reconcile(&cx).await.is_err());
        assert_eq!(failures(), 1);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(waiting(&snapshots.reconcile(&cx).await));
        assert_eq!(failures(), 1);
        tokio::time::advance(Duration::from_secs(1800) + PATIENCE).await;
        assert!(snapshots.reconcile(&cx).await.is_err());
        assert_eq!(failures(), 2);
    }
}
