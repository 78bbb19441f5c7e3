//! The pod lifecycle event generator: lists the runtime when it says that something happened, and wakes the workers of pods that changed.
//! What the runtime says only starts a look, so an event that is lost or doubled does no harm; and it is listed every few seconds all the same.

use crate::cri::{Cri, CriError};
use crate::model::pod::CONFIG_SOURCE;
use crate::pod::observe::{LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// One pod in the runtime.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuntimePod {
    pub namespace: String,
    pub name: String,
    /// It came from a manifest on this machine.
    pub from_file: bool,
    signature: u64,
}

/// The runtime at a glance, kept current by [`run`].
#[derive(Default)]
pub struct Pleg {
    pods: Mutex<HashMap<String, RuntimePod>>,
    listed: Mutex<Option<Instant>>,
    wakers: Mutex<HashMap<String, Arc<Notify>>>,
}

/// Time between two looks at a runtime that sends no events.
const PERIOD: Duration = Duration::from_secs(1);
/// Time between two looks at one that does.
const PERIOD_WITH_EVENTS: Duration = Duration::from_secs(10);
/// Events come in bunches (a sandbox and its container); one look serves all of this time.
const TOGETHER: Duration = Duration::from_millis(50);
/// Without a successful look for this long the node is not ready.
pub const HEALTHY_WITHIN: Duration = Duration::from_secs(180);

impl Pleg {
    /// Pods in the runtime; `None` until it was listed once.
    pub fn pods(&self) -> Option<HashMap<String, RuntimePod>> {
        self.listed.lock().is_some().then(|| self.pods.lock().clone())
    }

    /// Whether the runtime answered lately.
    pub fn is_healthy(&self) -> bool {
        self.listed.lock().is_some_and(|at| at.elapsed() < HEALTHY_WITHIN)
    }

    /// Has a worker woken when its pod changes.
    pub fn register(&self, uid: &str, wake: Arc<Notify>) {
        self.wakers.lock().insert(uid.to_owned(), wake);
    }

    /// Forgets a pod whose worker removed the last of it, rather than seeing it until the next look.
    pub fn forget(&self, uid: &str) {
        self.pods.lock().remove(uid);
        self.wakers.lock().remove(uid);
    }

    /// Takes in a list; wakes the workers of pods that changed. True when a pod appeared or disappeared.
    fn update(&self, fresh: HashMap<String, RuntimePod>) -> bool {
        let mut pods = self.pods.lock();
        let wakers = self.wakers.lock();
        let mut membership = false;
        for (uid, pod) in &fresh {
            match pods.get(uid) {
                Some(old) if old.signature == pod.signature => continue,
                Some(_) => {}
                None => membership = true,
            }
            if let Some(wake) = wakers.get(uid) {
                wake.notify_one();
            }
        }
        for uid in pods.keys().filter(|uid| !fresh.contains_key(*uid)) {
            membership = true;
            if let Some(wake) = wakers.get(uid) {
                wake.notify_one();
            }
        }
        drop(wakers);
        *pods = fresh;
        let first = self.listed.lock().replace(Instant::now()).is_none();
        membership || first
    }
}

async fn list(cri: &Cri) -> Result<HashMap<String, RuntimePod>, CriError> {
    let mut pods: HashMap<String, RuntimePod> = HashMap::new();
    // The order of a list means nothing, so signatures are sums.
    fn sign(parts: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        parts.hash(&mut hasher);
        hasher.finish()
    }
    for sandbox in cri.list_pod_sandboxes(None).await? {
        let label = |key: &str| sandbox.labels.get(key).cloned().unwrap_or_default();
        let uid = label(LABEL_POD_UID);
        if uid.is_empty() {
            continue;
        }
        let pod = pods.entry(uid).or_default();
        pod.name = label(LABEL_POD_NAME);
        pod.namespace = label(LABEL_POD_NAMESPACE);
        pod.from_file |= sandbox.annotations.get(CONFIG_SOURCE).is_some_and(|s| s == "file");
        pod.signature = pod.signature.wrapping_add(sign((&sandbox.id, sandbox.state)));
    }
    for container in cri.list_containers(None).await? {
        let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
        let uid = label(LABEL_POD_UID);
        if uid.is_empty() {
            continue;
        }
        let pod = pods.entry(uid).or_insert_with(|| RuntimePod {
            name: label(LABEL_POD_NAME),
            namespace: label(LABEL_POD_NAMESPACE),
            ..Default::default()
        });
        pod.signature = pod.signature.wrapping_add(sign((&container.id, container.state)));
    }
    Ok(pods)
}

/// Looks for ever. `changed` is notified when pods appear or disappear.
pub async fn run(pleg: Arc<Pleg>, cri: Cri, changed: Arc<Notify>) {
    let events = Arc::new(Events::default());
    tokio::spawn(events.clone().listen(cri.clone()));
    let mut failing = false;
    loop {
        match list(&cri).await {
            Ok(fresh) => {
                if failing {
                    tracing::info!("the container runtime answers again");
                    failing = false;
                }
                if pleg.update(fresh) {
                    changed.notify_one();
                }
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(error = %error, "list the container runtime");
                    failing = true;
                }
            }
        }
        let pause = if !failing && events.flowing.load(Ordering::Relaxed) { PERIOD_WITH_EVENTS } else { PERIOD };
        if tokio::time::timeout(pause, events.happened.notified()).await.is_ok() {
            tokio::time::sleep(TOGETHER).await;
        }
    }
}

/// What the runtime's event stream tells.
#[derive(Default)]
struct Events {
    happened: Notify,
    flowing: AtomicBool,
}

impl Events {
    /// Follows the stream for ever; while there is none, looks are as frequent as without it.
    async fn listen(self: Arc<Self>, cri: Cri) {
        loop {
            match cri.container_events().await {
                Ok(mut stream) => {
                    self.flowing.store(true, Ordering::Relaxed);
                    // What happened before the stream began was not in it.
                    self.happened.notify_one();
                    while let Ok(Some(_)) = stream.message().await {
                        self.happened.notify_one();
                    }
                    self.flowing.store(false, Ordering::Relaxed);
                    self.happened.notify_one();
                }
                Err(error) => tracing::debug!(error = %error, "follow the runtime's events"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_changed_pods_are_woken() {
        let pleg = Pleg::default();
        let (a, b) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        pleg.register("a", a.clone());
        pleg.register("b", b.clone());
        let pod = |signature| RuntimePod { signature, ..Default::default() };
        let woken = async |n: &Notify| tokio::time::timeout(Duration::from_millis(10), n.notified()).await.is_ok();
        assert!(pleg.pods().is_none());
        assert!(pleg.update(HashMap::from([("a".into(), pod(1)), ("b".into(), pod(1))])));
        assert!(woken(&a).await && woken(&b).await);
        assert!(!pleg.update(HashMap::from([("a".into(), pod(2)), ("b".into(), pod(1))])));
        assert!(woken(&a).await && !woken(&b).await);
        assert!(pleg.update(HashMap::from([("a".into(), pod(2))])));
        assert!(!woken(&a).await && woken(&b).await);
    }
}
