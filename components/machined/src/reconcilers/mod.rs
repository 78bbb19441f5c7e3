//! The node's reconcilers and what runs them. Each looks at the config and the machine, plans, applies, and says how it
//! stands; one that fails is tried again with back-off, and one whose needs are not met waits for them. How all of them
//! stand is in the resources of kind `status`, and what is wrong on the console.

mod certificates;
mod console;
mod containerd;
mod etcd_members;
mod etcd_snapshots;
mod hostname;
mod images;
mod joined;
mod logs;
mod network;
mod observe;
mod services;
mod time;
mod user_volumes;
mod volumes;

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use machine_config::Config;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::chain;
use crate::api::tls::ServingCertificate;
use crate::machine::{Loaded, Machine};

pub use certificates::kept_certificate;
pub use console::Console;
pub use network::{Network, missing_links};
pub use observe::observe;
pub use volumes::{mount, show_locked};

/// The shortest and the longest pause after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long one round may take before it counts as failed. Mounting after a power cut checks file systems.
const ROUND: Duration = Duration::from_secs(300);

/// How a round ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as it should be; look again after this time at the latest.
    Ready { detail: String, again: Duration },
    /// Something outside must happen first. Look again soon.
    Waiting { reason: String },
}

impl Outcome {
    /// Ready, with something to say.
    pub fn ready(detail: impl Into<String>, again: Duration) -> Outcome {
        Outcome::Ready { detail: detail.into(), again }
    }

    /// Waiting for something.
    pub fn waiting(reason: impl Into<String>) -> Outcome {
        Outcome::Waiting { reason: reason.into() }
    }
}

/// Why a round failed. Boxed, since nobody but people looks inside.
pub type ReconcileError = Box<dyn Error + Send + Sync>;

/// What a round works with.
#[derive(Clone)]
pub struct Context {
    /// The machine.
    pub machine: Arc<Machine>,
    /// The config of this round.
    pub loaded: Arc<Loaded>,
    /// What the API serves with.
    pub serving: ServingCertificate,
}

impl Context {
    /// The config of this round.
    pub fn config(&self) -> &Config {
        &self.loaded.config
    }

    /// The machine's name.
    pub fn hostname(&self) -> String {
        self.machine.hostname()
    }

    /// The machine's addresses, the node's own first.
    pub fn addresses(&self) -> Vec<std::net::IpAddr> {
        self.machine.addresses()
    }

    /// What a reconciler of control planes says where there is nothing for it to do.
    pub fn idle_here(&self) -> Result<Option<Outcome>, crate::state::StateError> {
        if !self.config().is_control_plane() {
            return Ok(Some(Outcome::ready("none on this machine", Duration::from_secs(3600))));
        }
        Ok((!self.bootstrapped()?).then(|| Outcome::ready("none before the cluster is bootstrapped", Duration::from_secs(10))))
    }

    /// Whether this control plane was bootstrapped or has joined a cluster.
    pub fn bootstrapped(&self) -> Result<bool, crate::state::StateError> {
        Ok(self.machine.state.cluster_id()?.is_some())
    }
}

/// One concern of the node.
#[tonic::async_trait]
pub trait Reconciler: Send {
    /// Its name, as people see it.
    fn name(&self) -> &'static str;

    /// Those that must be ready before it begins. Once it has begun, it goes on without them.
    fn needs(&self) -> &'static [&'static str];

    /// Looks, plans and applies once.
    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError>;

    /// Ends when something outside changed that the next round should see. Dropped when the round comes for another reason.
    async fn changed(&mut self) {
        std::future::pending().await
    }
}

/// How one reconciler stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has not been ready since machined started.
    Pending(String),
    /// It is ready.
    Ready(String),
    /// It was ready, or tried to be, and failed.
    Failed(String),
}

/// How all of them stand; the tasks write it and wait on it.
pub type Board = watch::Sender<BTreeMap<&'static str, Standing>>;

/// The registry: every reconciler of a running machine, in the order in which a machine comes up.
pub fn registry(network: Network) -> Vec<Box<dyn Reconciler>> {
    vec![
        Box::new(volumes::Volumes::default()),
        Box::new(user_volumes::UserVolumes::default()),
        Box::new(logs::Logs),
        Box::new(hostname::Hostname),
        Box::new(network),
        Box::new(time::Time::default()),
        Box::new(certificates::Certificates),
        Box::new(crate::kubernetes::Kubernetes::default()),
        Box::new(crate::kubernetes::ContainerdConfig),
        Box::new(containerd::ContainerRuntime::default()),
        Box::new(images::Images::default()),
        Box::new(services::Services),
        Box::new(crate::kubernetes::Manifests::default()),
        Box::new(crate::kubernetes::PodNetwork::default()),
        Box::new(etcd_members::EtcdMembers::default()),
        Box::new(etcd_snapshots::EtcdSnapshots::default()),
        Box::new(joined::Joined::default()),
    ]
}

/// Runs reconcilers, one task each, until they are told to stop.
pub fn spawn(
    reconcilers: Vec<Box<dyn Reconciler>>,
    machine: &Arc<Machine>,
    serving: &ServingCertificate,
    stop: &CancellationToken,
) -> Board {
    let standings = reconcilers.iter().map(|reconciler| (reconciler.name(), Standing::Pending("not started".to_owned())));
    let board = watch::Sender::new(standings.collect::<BTreeMap<_, _>>());
    for reconciler in reconcilers {
        let task = Task { reconciler, machine: machine.clone(), serving: serving.clone(), board: board.clone() };
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.run() => {}
            }
        });
    }
    board
}

struct Task {
    reconciler: Box<dyn Reconciler>,
    machine: Arc<Machine>,
    serving: ServingCertificate,
    board: Board,
}

impl Task {
    async fn run(mut self) {
        self.wait_for_needs().await;
        let mut config = self.machine.config.subscribe();
        let mut wake = self.machine.wake.subscribe();
        let mut failures = 0;
        loop {
            let loaded = config.borrow_and_update().clone();
            wake.mark_unchanged();
            let pause = match loaded {
                None => Duration::from_secs(3600),
                Some(loaded) => self.round(loaded, &mut failures).await,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = config.changed() => if changed.is_err() { return },
                changed = wake.changed() => if changed.is_err() { return },
                () = self.reconciler.changed() => {}
            }
        }
    }

    async fn round(&mut self, loaded: Arc<Loaded>, failures: &mut u32) -> Duration {
        let cx = Context { machine: self.machine.clone(), loaded, serving: self.serving.clone() };
        let result = match tokio::time::timeout(ROUND, self.reconciler.reconcile(&cx)).await {
            Ok(result) => result,
            Err(_) => Err(format!("it took longer than {} s", ROUND.as_secs()).into()),
        };
        let name = self.reconciler.name();
        let (standing, pause) = match result {
            Ok(Outcome::Ready { detail, again }) => {
                *failures = 0;
                (Standing::Ready(detail), again)
            }
            Ok(Outcome::Waiting { reason }) => {
                *failures = 0;
                (Standing::Pending(reason), BACK_OFF.0 * 2)
            }
            Err(error) => {
                *failures += 1;
                let pause = back_off(*failures);
                let text = chain(error.as_ref());
                tracing::warn!(reconciler = name, error = text, retry_seconds = pause.as_secs(), "failed");
                (Standing::Failed(text), pause)
            }
        };
        self.set(standing);
        pause
    }

    fn set(&self, standing: Standing) {
        let name = self.reconciler.name();
        if self.board.borrow().get(name) == Some(&standing) {
            return;
        }
        match &standing {
            Standing::Ready(detail) => tracing::info!(reconciler = name, detail, "ready"),
            Standing::Pending(reason) => tracing::info!(reconciler = name, reason, "waiting"),
            Standing::Failed(_) => {}
        }
        let (state, detail) = match &standing {
            Standing::Ready(detail) => ("ready", detail),
            Standing::Pending(detail) => ("waiting", detail),
            Standing::Failed(detail) => ("failed", detail),
        };
        let since = jiff::Timestamp::from_second(crate::clock::unix_seconds()).map(|time| time.to_string()).unwrap_or_default();
        self.machine.store.set("status", name, json!({"state": state, "detail": detail, "since": since}));
        self.board.send_modify(|board| {
            board.insert(name, standing);
        });
    }

    async fn wait_for_needs(&mut self) {
        let needs = self.reconciler.needs();
        let mut board = self.board.subscribe();
        loop {
            let missing = {
                let standings = board.borrow_and_update();
                needs.iter().find(|need| !matches!(standings.get(*need), Some(Standing::Ready(_)))).copied()
            };
            match missing {
                None => return,
                Some(need) => self.set(Standing::Pending(format!("waits for {need}"))),
            }
            // What was just set is a change of the board, too; it is not what is waited for.
            if board.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Doubles with every failure.
fn back_off(failures: u32) -> Duration {
    let (least, most) = BACK_OFF;
    least.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_less_and_less_often() {
        let seconds: Vec<_> = (1..=8).map(|failures| back_off(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(back_off(u32::MAX).as_secs(), 30);
    }
}
