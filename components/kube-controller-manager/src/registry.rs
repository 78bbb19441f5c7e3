//! The list of all controllers, and which of them the flags select.

use std::future::Future;
use std::pin::Pin;

use crate::context::Context;
use crate::controllers as c;

type Start = fn(Context) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// One controller.
pub struct Controller {
    /// Upstream's name, as `--controllers` takes it.
    pub name: &'static str,
    /// Names older releases used.
    pub aliases: &'static [&'static str],
    pub on_by_default: bool,
    /// Its service account in kube-system.
    pub account: &'static str,
    pub start: Start,
}

macro_rules! controller {
    ($name:literal, $aliases:expr, $on:literal, $account:literal, $run:path) => {
        Controller { name: $name, aliases: &$aliases, on_by_default: $on, account: $account, start: |context| Box::pin($run(context)) }
    };
}

/// Every controller there is.
pub const CONTROLLERS: &[Controller] = &[
    controller!("namespace-controller", ["namespace"], true, "namespace-controller", c::namespace::run),
    controller!("serviceaccount-controller", ["serviceaccount"], true, "service-account-controller", c::service_account::run),
    controller!(
        "serviceaccount-token-controller",
        ["serviceaccount-token"],
        true,
        "service-account-controller",
        c::service_account_token::run
    ),
    controller!(
        "horizontal-pod-autoscaler-controller",
        ["horizontalpodautoscaling"],
        true,
        "horizontal-pod-autoscaler",
        c::horizontal_pod_autoscaler::run
    ),
    controller!("service-cidr-controller", [], true, "service-cidrs-controller", c::service_cidr::run),
    controller!("root-ca-certificate-publisher-controller", ["root-ca-cert-publisher"], true, "root-ca-cert-publisher", c::root_ca::run),
    controller!("replicaset-controller", ["replicaset"], true, "replicaset-controller", c::replica_set::run),
    controller!(
        "replicationcontroller-controller",
        ["replicationcontroller"],
        true,
        "replication-controller",
        c::replica_set::run_replication_controllers
    ),
    controller!("resourcequota-controller", ["resourcequota"], true, "resourcequota-controller", c::resource_quota::run),
    controller!("deployment-controller", ["deployment"], true, "deployment-controller", c::deployment::run),
    controller!("daemonset-controller", ["daemonset"], true, "daemon-set-controller", c::daemon_set::run),
    controller!("job-controller", ["job"], true, "job-controller", c::job::run),
    controller!("statefulset-controller", ["statefulset"], true, "statefulset-controller", c::stateful_set::run),
    controller!("cronjob-controller", ["cronjob"], true, "cronjob-controller", c::cron_job::run),
    controller!("disruption-controller", ["disruption"], true, "disruption-controller", c::disruption::run),
    controller!("ttl-after-finished-controller", ["ttl-after-finished"], true, "ttl-after-finished-controller", c::ttl_after_finished::run),
    controller!("token-cleaner-controller", ["tokencleaner"], false, "token-cleaner", c::token_cleaner::run),
    controller!("endpoints-controller", ["endpoint"], true, "endpoint-controller", c::endpoints::run),
    controller!("endpointslice-controller", ["endpointslice"], true, "endpointslice-controller", c::endpoint_slice::run),
    controller!(
        "endpointslice-mirroring-controller",
        ["endpointslicemirroring"],
        true,
        "endpointslicemirroring-controller",
        c::endpoint_slice_mirroring::run
    ),
    controller!(
        "persistentvolume-binder-controller",
        ["persistentvolume-binder"],
        true,
        "persistent-volume-binder",
        c::persistent_volume::run
    ),
    controller!(
        "persistentvolumeclaim-protection-controller",
        ["pvc-protection"],
        true,
        "pvc-protection-controller",
        c::storage_protection::run_claims
    ),
    controller!(
        "persistentvolume-protection-controller",
        ["pv-protection"],
        true,
        "pv-protection-controller",
        c::storage_protection::run_volumes
    ),
    controller!(
        "volumeattributesclass-protection-controller",
        [],
        true,
        "volumeattributesclass-protection-controller",
        c::storage_protection::run_attributes_classes
    ),
    controller!("persistentvolume-attach-detach-controller", ["attachdetach"], true, "attachdetach-controller", c::attach_detach::run),
    controller!("persistentvolume-expander-controller", ["persistentvolume-expander"], true, "expand-controller", c::volume_expander::run),
    controller!(
        "legacy-serviceaccount-token-cleaner-controller",
        ["legacy-service-account-token-cleaner"],
        true,
        "legacy-service-account-token-cleaner",
        c::legacy_token_cleaner::run
    ),
    controller!("ephemeral-volume-controller", ["ephemeral-volume"], true, "ephemeral-volume-controller", c::ephemeral_volume::run),
    controller!("ttl-controller", ["ttl"], true, "ttl-controller", c::ttl::run),
    controller!("bootstrap-signer-controller", ["bootstrapsigner"], false, "bootstrap-signer", c::bootstrap_signer::run),
    controller!("node-ipam-controller", ["nodeipam"], true, "node-controller", c::node_ipam::run),
    controller!("node-lifecycle-controller", ["nodelifecycle"], true, "node-controller", c::node_lifecycle::run),
    controller!("taint-eviction-controller", [], true, "node-controller", c::taint_eviction::run),
    controller!("garbage-collector-controller", ["garbagecollector"], true, "generic-garbage-collector", c::garbage_collector::run),
    controller!("pod-garbage-collector-controller", ["podgc"], true, "pod-garbage-collector", c::pod_gc::run),
    controller!(
        "clusterrole-aggregation-controller",
        ["clusterrole-aggregation"],
        true,
        "clusterrole-aggregation-controller",
        c::cluster_role_aggregation::run
    ),
    controller!("resourceclaim-controller", ["resource-claim-controller"], true, "resource-claim-controller", c::resource_claim::run),
    controller!("device-taint-eviction-controller", [], true, "device-taint-eviction-controller", c::device_taint_eviction::run),
    controller!(
        "validatingadmissionpolicy-status-controller",
        [],
        true,
        "validatingadmissionpolicy-status-controller",
        c::admission_policy_status::run
    ),
    controller!("certificatesigningrequest-approving-controller", ["csrapproving"], true, "certificate-controller", c::csr_approving::run),
    controller!("certificatesigningrequest-cleaner-controller", ["csrcleaner"], true, "certificate-controller", c::csr_cleaner::run),
    controller!("certificatesigningrequest-signing-controller", ["csrsigning"], true, "certificate-controller", c::csr_signing::run),
];

/// Controllers upstream has and `--controllers` may name, which do not exist here. Asking for one by name is said in the log. With its default
/// feature gates upstream runs none of them either: the warning about SELinux is off by default (and no node of ours has SELinux), the migrator, the
/// two about storage versions, pod certificates and groups, pools of devices and trust bundles need APIs that are not served by default, and the
/// last are of cloud providers.
const NOT_HERE: &[&str] = &[
    "selinux-warning-controller",
    "storageversion-garbage-collector-controller",
    "storage-version-gc",
    "storage-version-migrator-controller",
    "podcertificaterequest-cleaner-controller",
    "podgroup-protection-controller",
    "resourcepoolstatusrequest-controller",
    "kube-apiserver-serving-clustertrustbundle-publisher-controller",
    "cloud-node-lifecycle-controller",
    "service-lb-controller",
    "service",
    "node-route-controller",
    "route",
];

/// `--controllers` names something unknown.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("--controllers: there is no controller {0:?}")]
pub struct UnknownController(String);

/// The selected controllers. A name or `-name` wins over `*`, and of both the first, as upstream decides.
pub fn select(wanted: &[String]) -> Result<Vec<&'static Controller>, UnknownController> {
    let is = |controller: &Controller, name: &str| controller.name == name || controller.aliases.contains(&name);
    for want in wanted.iter().filter(|want| *want != "*") {
        let name = want.strip_prefix('-').unwrap_or(want);
        if !CONTROLLERS.iter().any(|controller| is(controller, name)) {
            if !NOT_HERE.contains(&name) {
                return Err(UnknownController(name.to_string()));
            }
            if !want.starts_with('-') {
                tracing::warn!(controller = name, "this controller is not implemented yet");
            }
        }
    }
    let selected = CONTROLLERS.iter().filter(|controller| {
        let named = wanted.iter().find_map(|want| match want.strip_prefix('-') {
            Some(name) if is(controller, name) => Some(false),
            None if is(controller, want) => Some(true),
            _ => None,
        });
        named.unwrap_or(controller.on_by_default && wanted.iter().any(|want| want == "*"))
    });
    Ok(selected.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_follows_upstream() {
        let names = |wanted: &[&str]| {
            select(&wanted.iter().map(|w| w.to_string()).collect::<Vec<_>>()).map(|found| found.iter().map(|c| c.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["*", "bootstrapsigner", "tokencleaner"]).unwrap().len(), CONTROLLERS.len());
        assert!(!names(&["*"]).unwrap().contains(&"token-cleaner-controller"), "off by default");
        assert_eq!(names(&["deployment"]).unwrap(), ["deployment-controller"]);
        assert!(!names(&["-deployment-controller", "*"]).unwrap().contains(&"deployment-controller"));
        assert_eq!(names(&["*", "deploymnet"]), Err(UnknownController("deploymnet".into())));
        let mut seen = std::collections::HashSet::new();
        assert!(CONTROLLERS.iter().all(|c| seen.insert(c.name)), "names are unique");
    }
}
