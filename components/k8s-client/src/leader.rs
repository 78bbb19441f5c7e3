//! Leader election over a coordination.k8s.io/v1 Lease, with upstream's timings and rules.
//!
//! Who leads is decided by the server's optimistic concurrency, never by comparing clocks of two machines: a lease counts as expired when
//! this process has seen it unchanged for the lease's duration by its own monotonic clock. Losing the lease ends the process.

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, FullObject};
use crate::error::Error;
use crate::meta::{Named, Object, ObjectMeta};
use crate::request::Request;
use crate::resource::{Resource, resources::LEASES};
use crate::time::MicroTime;

/// coordination.k8s.io/v1 Lease.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Lease {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: LeaseSpec,
}

impl Object for Lease {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Named for Lease {
    const RESOURCE: Resource = LEASES;
}

/// The spec of a [`Lease`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    #[serde(deserialize_with = "crate::meta::null_default")]
    pub holder_identity: String,
    #[serde(deserialize_with = "crate::meta::null_default")]
    pub lease_duration_seconds: i32,
    pub acquire_time: Option<MicroTime>,
    pub renew_time: Option<MicroTime>,
    #[serde(deserialize_with = "crate::meta::null_default")]
    pub lease_transitions: i32,
}

/// Which lease, for whom, and how patiently.
#[derive(Clone, Debug)]
pub struct LeaderConfig {
    pub namespace: String,
    pub name: String,
    /// Unique per process: host name and a random part.
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl LeaderConfig {
    /// Upstream's defaults for a lease in kube-system: 15 s, 10 s, 2 s.
    pub fn new(name: &str, host: &str) -> Self {
        Self {
            namespace: "kube-system".into(),
            name: name.into(),
            identity: format!("{host}_{:016x}", rand::random::<u64>()),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Why leading ended.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    #[error("lost the lease {0}: it could not be renewed within {1:?}")]
    Lost(String, Duration),
    #[error("the leader's work ended before it was told to stop")]
    Ended,
}

/// What is known of the lease when deciding.
#[derive(Clone, Debug, PartialEq)]
pub struct LockView<'a> {
    pub lease: Option<&'a LeaseSpec>,
    /// How long this process has seen the lease unchanged.
    pub unchanged_for: Duration,
}

/// What to do about the lease.
#[derive(Clone, Debug, PartialEq)]
pub enum LockAction {
    Create(LeaseSpec),
    Update(LeaseSpec),
    Wait,
}

/// Decides the next step towards, or in, leadership.
pub fn plan_lock(config: &LeaderConfig, view: &LockView<'_>, now: MicroTime) -> LockAction {
    let mine = |acquired: MicroTime, transitions: i32| LeaseSpec {
        holder_identity: config.identity.clone(),
        lease_duration_seconds: i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX),
        acquire_time: Some(acquired),
        renew_time: Some(now),
        lease_transitions: transitions,
    };
    match view.lease {
        None => LockAction::Create(mine(now, 0)),
        Some(lease) if lease.holder_identity == config.identity => {
            LockAction::Update(mine(lease.acquire_time.unwrap_or(now), lease.lease_transitions))
        }
        Some(lease) => {
            let lasts = Duration::from_secs(u64::try_from(lease.lease_duration_seconds).unwrap_or(0));
            let held = !lease.holder_identity.is_empty() && view.unchanged_for < lasts;
            if held { LockAction::Wait } else { LockAction::Update(mine(now, lease.lease_transitions.saturating_add(1))) }
        }
    }
}

struct Seen {
    spec: LeaseSpec,
    object: FullObject,
    since: Instant,
}

/// Runs work while holding a lease.
pub struct LeaderElector {
    client: Client,
    config: LeaderConfig,
    seen: Option<Seen>,
}

impl LeaderElector {
    /// An elector that has not looked yet.
    pub fn new(client: Client, config: LeaderConfig) -> Self {
        Self { client, config, seen: None }
    }

    /// Waits for leadership, then runs `lead` until `stop` is cancelled. The token given to `lead` is cancelled with `stop`; the lease is
    /// given up after it returned. On an error the caller must end the process.
    pub async fn run<F, Fut>(mut self, stop: CancellationToken, lead: F) -> Result<(), LeaderError>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        tracing::info!(lease = self.config.name, identity = self.config.identity, "waiting for leadership");
        loop {
            if self.try_lock().await {
                break;
            }
            let pause = self.config.retry_period.mul_f64(1.0 + rand::random_range(0.0..0.2));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
        tracing::info!(lease = self.config.name, identity = self.config.identity, "became the leader");
        let work = lead(stop.clone());
        tokio::pin!(work);
        let outcome = tokio::select! {
            () = &mut work => if stop.is_cancelled() { Ok(()) } else { Err(LeaderError::Ended) },
            error = self.keep() => Err(error),
        };
        if outcome.is_ok() {
            self.release().await;
        }
        outcome
    }

    async fn keep(&mut self) -> LeaderError {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            let deadline = renewed + self.config.renew_deadline;
            match tokio::time::timeout_at(deadline, self.try_lock()).await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) if Instant::now() < deadline => {}
                Ok(false) | Err(_) => return LeaderError::Lost(self.config.name.clone(), self.config.renew_deadline),
            }
        }
    }

    /// One attempt; true when the lease is now ours.
    async fn try_lock(&mut self) -> bool {
        match self.attempt().await {
            Ok(held) => held,
            Err(error) if error.is_conflict() || error.is_already_exists() => false,
            Err(error) => {
                tracing::warn!(lease = self.config.name, error = &error as &dyn std::error::Error, "leader election request failed");
                false
            }
        }
    }

    async fn attempt(&mut self) -> Result<bool, Error> {
        let (namespace, name) = (self.config.namespace.clone(), self.config.name.clone());
        let timeout = self.config.renew_deadline / 2;
        match self.client.get_full(&Request::get(&LEASES, &namespace, &name).with_timeout(timeout)).await {
            Ok(lease) => self.observe(lease)?,
            Err(error) if error.is_not_found() => self.seen = None,
            Err(error) => return Err(error),
        }
        let view = LockView {
            lease: self.seen.as_ref().map(|seen| &seen.spec),
            unchanged_for: self.seen.as_ref().map(|seen| seen.since.elapsed()).unwrap_or_default(),
        };
        let request = match (plan_lock(&self.config, &view, MicroTime::now()), &self.seen) {
            (LockAction::Wait, _) => return Ok(false),
            (LockAction::Update(spec), Some(seen)) => update(seen, &spec),
            (LockAction::Create(spec) | LockAction::Update(spec), _) => {
                let body = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": namespace}, "spec": spec});
                Request::create(&LEASES, &namespace, &body)
            }
        };
        let lease = self.client.get_full(&request.with_timeout(timeout)).await?;
        self.observe(lease)?;
        Ok(true)
    }

    fn observe(&mut self, object: FullObject) -> Result<(), Error> {
        let lease = Lease::deserialize(object.value()).map_err(|error| Error::Decode(format!("lease {}", self.config.name), error))?;
        let since = self.seen.as_ref().filter(|seen| seen.spec == lease.spec).map_or_else(Instant::now, |seen| seen.since);
        self.seen = Some(Seen { spec: lease.spec, object, since });
        Ok(())
    }

    /// Gives the lease up, so that the next leader need not wait for it to expire.
    async fn release(&mut self) {
        let Some(seen) = &self.seen else { return };
        if seen.spec.holder_identity != self.config.identity {
            return;
        }
        let spec = LeaseSpec {
            holder_identity: String::new(),
            lease_duration_seconds: 1,
            renew_time: Some(MicroTime::now()),
            ..seen.spec.clone()
        };
        let request = update(seen, &spec).with_timeout(Duration::from_secs(2));
        if let Err(error) = self.client.execute(&request).await {
            tracing::debug!(
                lease = self.config.name,
                error = &error as &dyn std::error::Error,
                "the lease could not be given up and will expire"
            );
        }
    }
}

/// Upstream's roles allow update, not patch, of leases.
fn update(seen: &Seen, spec: &LeaseSpec) -> Request {
    let mut object = seen.object.clone();
    object.value_mut()["spec"] = json!(spec);
    Request::replace(&LEASES, &object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_free_or_expired() {
        let config = LeaderConfig { identity: "me".into(), ..LeaderConfig::new("x", "h") };
        let now = MicroTime("2026-01-01T00:00:00Z".parse().unwrap());
        let lease = |holder: &str| LeaseSpec {
            holder_identity: holder.into(),
            lease_duration_seconds: 15,
            lease_transitions: 3,
            ..Default::default()
        };
        let decide = |spec: Option<LeaseSpec>, secs| match plan_lock(
            &config,
            &LockView { lease: spec.as_ref(), unchanged_for: Duration::from_secs(secs) },
            now,
        ) {
            LockAction::Create(s) => format!("create {}", s.lease_transitions),
            LockAction::Update(s) => format!("update {} {}", s.holder_identity, s.lease_transitions),
            LockAction::Wait => "wait".into(),
        };
        for (spec, secs, want) in [
            (None, 0, "create 0"),
            (Some(lease("other")), 0, "wait"),
            (Some(lease("other")), 14, "wait"),
            (Some(lease("other")), 15, "update me 4"),
            (Some(lease("")), 0, "update me 4"),
            (Some(lease("me")), 0, "update me 3"),
            (Some(lease("me")), 100, "update me 3"),
        ] {
            assert_eq!(decide(spec, secs), want);
        }
    }
}
