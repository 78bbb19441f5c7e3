//! Takes etcd snapshots on the config's schedule, checks them, and removes the oldest. What fails is a failed status.

use std::time::Duration;

use machine_api::limits;

use super::{Context, Outcome, ReconcileError, Reconciler};
use crate::etcd;

pub struct EtcdSnapshots;

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
        if !config.is_control_plane() || !schedule.enabled {
            return Ok(Outcome::ready("none on this machine", Duration::from_secs(3600)));
        }
        if !cx.bootstrapped()? {
            return Ok(Outcome::ready("none before the cluster is bootstrapped", Duration::from_secs(10)));
        }
        let directory = cx.machine.paths.snapshots();
        let newest = etcd::kept(&directory)?.last().map(|(_, info)| info.taken_unix);
        let pause = due_in(newest, crate::clock::unix_seconds(), schedule.interval.0);
        if !pause.is_zero() {
            return Ok(Outcome::ready(format!("next in {} s", pause.as_secs()), pause));
        }
        // Connecting is lazy, so that only a question shows whether someone is there.
        let answers = async { etcd::connect(&cx.machine.paths).await.ok()?.status().await.ok() };
        if answers.await.is_none() {
            return Ok(Outcome::waiting("etcd does not answer"));
        }
        let (name, info) = etcd::keep(&cx.machine.paths, limits::SNAPSHOT_BYTES).await?;
        tracing::info!(name, size = info.size, revision = info.revision, "etcd snapshot taken and checked");
        let kept = etcd::kept(&directory)?;
        for name in etcd::surplus(&kept, usize::from(schedule.keep)) {
            etcd::remove(&directory, &name)?;
        }
        Ok(Outcome::ready(format!("took {name} of revision {}", info.revision), schedule.interval.0))
    }
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
}
