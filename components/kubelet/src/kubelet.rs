//! The kubelet as a whole: what its parts share, and the loop that gives every pod its worker.

use crate::api::Api;
use crate::config::Config;
use crate::cri::Cri;
use crate::model::pod::{ObjectMeta, Pod};
use crate::pleg::Pleg;
use crate::pod::worker::{self, Desired, Handle};
use crate::runtime::cgroup::Cgroups;
use crate::runtime::container::Machine;
use crate::runtime::env::Allocatable;
use crate::runtime::images::Images;
use crate::sources::mirror;
use crate::sources::static_pods::{StaticPod, StaticPods};
use crate::statuses::Statuses;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// What every part of the kubelet may use.
pub struct Shared {
    pub config: Config,
    pub cri: Cri,
    pub api: Arc<Api>,
    pub images: Images,
    pub cgroups: Cgroups,
    pub machine: Machine,
    pub statuses: Arc<Statuses>,
    pub pleg: Arc<Pleg>,
    host_ips: ArcSwap<Vec<String>>,
    allocatable: Mutex<Allocatable>,
    network_ready: AtomicBool,
    /// Pods with a worker, for the API and for status reports.
    active: Mutex<HashMap<String, Arc<Pod>>>,
}

impl Shared {
    pub fn new(config: Config, cri: Cri, api: Arc<Api>, cgroups: Cgroups, machine: Machine) -> Self {
        Self {
            images: Images::new(cri.clone(), config.serialize_image_pulls),
            host_ips: ArcSwap::from_pointee(config.node_ips.iter().map(ToString::to_string).collect()),
            config,
            cri,
            api,
            cgroups,
            machine,
            statuses: Arc::new(Statuses::default()),
            pleg: Arc::new(Pleg::default()),
            allocatable: Mutex::new(Allocatable::default()),
            network_ready: AtomicBool::new(false),
            active: Mutex::new(HashMap::new()),
        }
    }

    /// Addresses of this node.
    pub fn host_ips(&self) -> Vec<String> {
        self.host_ips.load().to_vec()
    }

    pub fn set_host_ips(&self, ips: Vec<String>) {
        self.host_ips.store(Arc::new(ips));
    }

    pub fn allocatable(&self) -> Allocatable {
        *self.allocatable.lock()
    }

    pub fn set_allocatable(&self, allocatable: Allocatable) {
        *self.allocatable.lock() = allocatable;
    }

    /// Whether the runtime can give pods a network.
    pub fn network_ready(&self) -> bool {
        self.network_ready.load(Ordering::Relaxed)
    }

    pub fn set_network_ready(&self, ready: bool) {
        self.network_ready.store(ready, Ordering::Relaxed);
    }

    /// Pods this node is running or ending.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.active.lock().values().cloned().collect()
    }

    /// A pod by UID, or by namespace and name.
    pub fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Arc<Pod>> {
        let active = self.active.lock();
        active
            .values()
            .find(|p| p.metadata.namespace == namespace && p.metadata.name == name && uid.is_none_or(|u| u == p.metadata.uid))
            .cloned()
    }

    /// The runtime's handler of a pod's runtime class.
    pub async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        #[derive(serde::Deserialize)]
        struct RuntimeClass {
            handler: String,
        }
        let Some(name) = pod.spec.runtime_class_name.as_deref().filter(|n| !n.is_empty()) else { return Ok(String::new()) };
        let client = self.api.client().map_err(|e| e.to_string())?;
        let request = k8s_client::Request::get(&k8s_client::resources::RUNTIME_CLASSES, "", name);
        let class: RuntimeClass = client.call(&request).await.map_err(|e| format!("failed to get RuntimeClass {name:?}: {e}"))?;
        Ok(class.handler)
    }

    /// Where probes and hooks of a pod go.
    pub async fn probe_ip(&self, pod: &Pod) -> String {
        if pod.spec.host_network {
            return self.host_ips().into_iter().next().unwrap_or_else(|| "127.0.0.1".into());
        }
        self.statuses.get(&pod.metadata.uid).map(|s| s.pod_ip).unwrap_or_default()
    }
}

/// Gives every pod its worker.
pub struct Manager {
    shared: Arc<Shared>,
    statics: watch::Receiver<StaticPods>,
    changed: Arc<Notify>,
    workers: HashMap<String, Handle>,
    housekeeping: Instant,
}

const HOUSEKEEPING: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_secs(2);

impl Manager {
    /// `changed` is notified when pods at the API server or in the runtime changed.
    pub fn new(shared: Arc<Shared>, statics: watch::Receiver<StaticPods>, changed: Arc<Notify>) -> Self {
        Self { shared, statics, changed, workers: HashMap::new(), housekeeping: Instant::now() }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mirror_wake = Arc::new(Notify::new());
        tokio::spawn(keep_mirrors(self.shared.api.clone(), self.statics.clone(), mirror_wake.clone()));
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                result = self.statics.changed() => if result.is_err() { return },
                _ = ticks.tick() => {}
            }
            self.reconcile();
            mirror_wake.notify_one();
            self.shared.statuses.poke();
        }
    }

    fn reconcile(&mut self) {
        let statics = self.statics.borrow_and_update().clone();
        let api_synced = self.shared.api.pods_synced();
        let api_pods = self.shared.api.pods.get().map(|informer| informer.list()).unwrap_or_default();
        let mut wanted: BTreeMap<String, Arc<Pod>> = BTreeMap::new();
        for fixed in statics.iter().flat_map(|s| s.iter()) {
            wanted.insert(fixed.pod.metadata.uid.clone(), fixed.pod.clone());
        }
        for pod in api_pods.iter().filter(|p| !p.is_mirror() && !p.metadata.uid.is_empty()) {
            wanted.insert(pod.metadata.uid.clone(), pod.clone());
        }
        let in_runtime = self.shared.pleg.pods();

        // Ends first: what is no longer wanted, as far as its source has been read.
        for (uid, handle) in self.workers.iter().filter(|(uid, _)| !wanted.contains_key(*uid)) {
            let pod = handle.desired.borrow().pod.clone();
            let source_known = if pod.is_static() { statics.is_some() } else { api_synced };
            if source_known && !handle.desired.borrow().removed {
                tracing::info!(uid, pod = %pod.full_name(), "pod is gone from its source");
                handle.update(&pod, true);
            }
        }
        for (uid, found) in in_runtime.iter().flatten() {
            let source_known = statics.is_some() && (found.from_file || api_synced);
            if source_known && !wanted.contains_key(uid) && !self.workers.contains_key(uid) {
                tracing::info!(uid, pod = %format_args!("{}/{}", found.namespace, found.name), "ending a pod nobody wants");
                let metadata =
                    ObjectMeta { name: found.name.clone(), namespace: found.namespace.clone(), uid: uid.clone(), ..Default::default() };
                self.start(Arc::new(Pod { metadata, ..Default::default() }), true);
            }
        }
        for (uid, pod) in &wanted {
            match self.workers.get(uid) {
                Some(handle) => handle.update(pod, false),
                // Nothing starts before it is known what runs already, and never beside another version of the same static pod.
                None if in_runtime.is_none() => {}
                None if pod.is_static() && self.is_blocked(uid, pod, in_runtime.as_ref()) => {}
                None => self.start(pod.clone(), false),
            }
        }
        let finished: Vec<String> = self.workers.iter().filter(|(_, h)| h.is_finished()).map(|(uid, _)| uid.clone()).collect();
        for uid in finished {
            self.workers.remove(&uid);
            self.shared.pleg.forget(&uid);
            // What was held back by it may start now.
            self.changed.notify_one();
        }
        let active = self.workers.iter().map(|(uid, h)| (uid.clone(), h.desired.borrow().pod.clone())).collect();
        *self.shared.active.lock() = active;
        if let Err(error) = self.shared.cgroups.set_burstable(wanted.values().map(AsRef::as_ref)) {
            tracing::debug!(error = %error, "weigh the burstable class");
        }
        if self.housekeeping.elapsed() > HOUSEKEEPING && statics.is_some() && api_synced {
            self.housekeeping = Instant::now();
            self.sweep(&wanted, in_runtime.as_ref());
        }
    }

    /// Whether another version of a static pod is still there.
    fn is_blocked(&self, uid: &str, pod: &Pod, in_runtime: Option<&HashMap<String, crate::pleg::RuntimePod>>) -> bool {
        let same = |namespace: &str, name: &str| namespace == pod.metadata.namespace && name == pod.metadata.name;
        self.workers.iter().any(|(other, handle)| {
            let metadata = &handle.desired.borrow().pod.metadata;
            other != uid && same(&metadata.namespace, &metadata.name)
        }) || in_runtime.into_iter().flatten().any(|(other, found)| other != uid && found.from_file && same(&found.namespace, &found.name))
    }

    fn start(&mut self, pod: Arc<Pod>, removed: bool) {
        let uid = pod.metadata.uid.clone();
        tracing::info!(pod = %pod.full_name(), uid = %uid, source = if pod.is_static() { "file" } else { "api" }, removed, "pod worker starts");
        let handle = worker::spawn(self.shared.clone(), Desired { pod, removed });
        self.shared.pleg.register(&uid, handle.wake.clone());
        self.workers.insert(uid, handle);
    }

    /// Removes directories and cgroups of pods that nobody knows any more.
    fn sweep(&self, wanted: &BTreeMap<String, Arc<Pod>>, in_runtime: Option<&HashMap<String, crate::pleg::RuntimePod>>) {
        let known =
            |uid: &str| wanted.contains_key(uid) || self.workers.contains_key(uid) || in_runtime.is_some_and(|pods| pods.contains_key(uid));
        let dirs = std::fs::read_dir(self.shared.config.root_dir.join("pods")).into_iter().flatten().flatten();
        let mut orphans: HashSet<String> = dirs.filter_map(|e| e.file_name().into_string().ok()).collect();
        orphans.extend(self.shared.cgroups.pod_uids());
        for uid in orphans.into_iter().filter(|uid| !known(uid)) {
            let shared = self.shared.clone();
            tokio::task::spawn_blocking(move || {
                tracing::info!(uid, "removing what is left of an unknown pod");
                if let Err(error) = crate::volumes::teardown(&shared.config, &uid) {
                    tracing::warn!(uid, error = %error, "remove an orphaned pod directory");
                } else if let Err(error) = shared.cgroups.remove_pod(&uid) {
                    tracing::warn!(uid, error = %error, "remove an orphaned cgroup");
                }
            });
        }
    }
}

async fn keep_mirrors(api: Arc<Api>, statics: watch::Receiver<StaticPods>, wake: Arc<Notify>) {
    loop {
        wake.notified().await;
        let current: Option<Arc<Vec<StaticPod>>> = statics.borrow().clone();
        if let Some(statics) = current {
            mirror::sync(&api, &statics).await;
            // A server that refuses is not asked more than twice a second.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
