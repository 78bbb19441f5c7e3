//! What every controller is given: clients, shared informers, the event recorder, options.

use std::sync::{Arc, OnceLock};

use k8s_client::{
    CancellationToken, Client, EventRecorder, Index, Informer, Lease, Named, ObjectReference, ReflectorOptions, Resource, spawn_reflector,
};

use crate::api::*;
use crate::credentials::Credentials;
use crate::options::Options;

/// Shared by all controllers of this process; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The process's own identity: informers read with it.
    pub root: Client,
    pub credentials: Credentials,
    pub options: Arc<Options>,
    pub recorder: EventRecorder,
    pub informers: Arc<Informers>,
    pub stop: CancellationToken,
}

impl Context {
    /// The client of one controller: its service account's when the flag says so.
    pub fn client(&self, service_account: &str) -> Client {
        self.credentials.client(service_account)
    }

    /// Records an event about an object.
    pub fn event(
        &self,
        resource: &Resource,
        meta: &k8s_client::ObjectMeta,
        kind: k8s_client::EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder.event(&ObjectReference::to(resource, meta), kind, reason, message);
    }
}

/// One informer per resource, started when the first controller asks for it.
pub struct Informers {
    client: Client,
    stop: CancellationToken,
    pods: OnceLock<Pods>,
    slots: Slots,
}

/// The pod informer with the indexes controllers share.
#[derive(Clone)]
pub struct Pods {
    pub informer: Informer<Pod>,
    pub by_owner: Arc<Index<Pod>>,
    pub by_node: Arc<Index<Pod>>,
}

macro_rules! informers {
    ($($method:ident: $type:ty),* $(,)?) => {
        #[derive(Default)]
        struct Slots { $($method: OnceLock<Informer<$type>>,)* }

        impl Informers {
            $(
                #[doc = concat!("The shared informer of `", stringify!($type), "`.")]
                pub fn $method(&self) -> Informer<$type> {
                    self.slots.$method.get_or_init(|| self.spawn::<$type>()).clone()
                }
            )*
        }
    };
}

informers! {
    namespaces: Namespace,
    service_accounts: ServiceAccount,
    nodes: Node,
    services: Service,
    endpoints: Endpoints,
    endpoint_slices: EndpointSlice,
    replica_sets: ReplicaSet,
    replication_controllers: ReplicationController,
    resource_quotas: ResourceQuota,
    claims: PersistentVolumeClaim,
    volumes: PersistentVolume,
    storage_classes: StorageClass,
    attachments: VolumeAttachment,
    csi_drivers: CsiDriver,
    attributes_classes: VolumeAttributesClass,
    deployments: Deployment,
    daemon_sets: DaemonSet,
    stateful_sets: StatefulSet,
    controller_revisions: ControllerRevision,
    jobs: Job,
    autoscalers: HorizontalPodAutoscaler,
    service_ranges: ServiceCidr,
    cron_jobs: CronJob,
    signing_requests: CertificateSigningRequest,
    disruption_budgets: PodDisruptionBudget,
    resource_claims: ResourceClaim,
}

impl Informers {
    /// No informer runs yet.
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        Self { client, stop, pods: OnceLock::new(), slots: Slots::default() }
    }

    fn spawn<T: Named>(&self) -> Informer<T> {
        spawn_reflector(self.client.clone(), ReflectorOptions::of::<T>(), self.stop.clone())
    }

    /// The shared informer of pods.
    pub fn pods(&self) -> Pods {
        self.pods
            .get_or_init(|| {
                let informer = self.spawn::<Pod>();
                let by_owner = informer.index(|pod: &Pod| pod.controller_uid().map(str::to_string).into_iter().collect());
                let by_node =
                    informer.index(|pod: &Pod| (!pod.spec.node_name.is_empty()).then(|| pod.spec.node_name.clone()).into_iter().collect());
                Pods { informer, by_owner, by_node }
            })
            .clone()
    }

    /// An informer of ConfigMaps or Leases limited to what one controller needs.
    pub fn narrow<T: Named>(&self, namespace: &str, field_selector: &str) -> Informer<T> {
        let options = ReflectorOptions {
            namespace: namespace.to_string(),
            field_selector: field_selector.to_string(),
            ..ReflectorOptions::of::<T>()
        };
        spawn_reflector(self.client.clone(), options, self.stop.clone())
    }

    /// Node heartbeats.
    pub fn node_leases(&self) -> Informer<Lease> {
        self.narrow("kube-node-lease", "")
    }
}
