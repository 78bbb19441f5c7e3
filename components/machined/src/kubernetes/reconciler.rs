//! Brings certificates, files and static pods in line with the config. What is written comes from pure functions; this only looks, compares and writes.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use machine_config::{CertificateAuthority, Config};
use pki::Authority;

use super::certificates::{self, Signer, Wanted};
use super::etcd::{self, Verdict};
use super::files::{self, Directory, File};
use super::kubeconfig::{self, Credentials, ServerAuthority};
use super::{ADMIN_KUBECONFIG, NodeFacts, api_server_url, node_files, static_pods, uid};
use crate::events::Severity;
use crate::paths::Paths;
use crate::reconcilers::{Context, Outcome, ReconcileError, Reconciler};

/// How long until another look at the latest; renewal is due days before the end.
const AGAIN: Duration = Duration::from_secs(60);
/// What needs the API server is started when it answers, so that it does not take the processor from it only to fail. After this long it
/// is started all the same.
const HEAD_START: Duration = Duration::from_secs(120);
/// How often to look whether it answers.
const HEAD_START_LOOK: Duration = Duration::from_secs(2);

/// Writes containerd's config, which needs nothing but the image.
#[derive(Default)]
pub struct ContainerdConfig;

#[tonic::async_trait]
impl Reconciler for ContainerdConfig {
    fn name(&self) -> &'static str {
        "containerd-config"
    }

    fn needs(&self) -> &'static [&'static str] {
        &[]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        write_different(&cx.machine.paths, &[node_files::containerd()])?;
        Ok(Outcome::ready("written", Duration::from_secs(300)))
    }
}

/// Certificates, component files, kubelet and kube-proxy files, static pods.
#[derive(Default)]
pub struct Kubernetes {
    /// Why etcd was halted in the round before, if it was.
    halted: Option<String>,
    /// When the control plane was first to run.
    begun: Option<Instant>,
}

#[tonic::async_trait]
impl Reconciler for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn needs(&self) -> &'static [&'static str] {
        // Certificates need a sane clock and the machine's addresses; a worker's kube-proxy certificate comes with its own.
        &["volumes", "hostname", "network", "time", "certificates"]
    }

    async fn reconcile(&mut self, cx: &Context) -> Result<Outcome, ReconcileError> {
        let Ok(facts) = super::facts(cx) else { return Ok(Outcome::waiting("the machine has no address for its node yet")) };
        let (config, paths, now) = (cx.config(), &cx.machine.paths, Timestamp::now());
        directories(config, paths)?;
        let outcome = if config.is_control_plane() {
            let begun = *self.begun.get_or_insert_with(Instant::now);
            let everything = cx.machine.milestones.has("kube-apiserver") || begun.elapsed() > HEAD_START;
            control_plane(config, &facts, paths, now, everything)
        } else {
            worker(config, &facts, paths)
        };
        let halted = outcome.as_ref().err().and_then(|error| error.downcast_ref::<EtcdHalted>()).map(ToString::to_string);
        if halted.is_some() && halted != self.halted {
            cx.machine.event(Severity::Warning, "EtcdHalted", halted.as_deref().unwrap_or_default());
        }
        self.halted = halted;
        outcome
    }
}

/// etcd must not run, and why.
#[derive(Debug, thiserror::Error)]
#[error("etcd is halted: {0}")]
struct EtcdHalted(String);

/// A worker has no authority: its certificates come from the control plane, the kubelet's by its own request.
fn worker(config: &Config, facts: &NodeFacts, paths: &Paths) -> Result<Outcome, ReconcileError> {
    let text = |path: &str| files::read_text(paths, path);
    let (Some(cert), Some(key)) = (text("/system/state/pki/kube-proxy.crt"), text("/system/state/pki/kube-proxy.key")) else {
        return Ok(Outcome::waiting("the control plane has not issued kube-proxy's certificate yet"));
    };
    let mut wanted = vec![
        File::private("/etc/kubernetes/kube-proxy/client.key", key, 0),
        File::private("/etc/kubernetes/kube-proxy/client.crt", cert, 0),
    ];
    wanted.extend(node_files::kubelet(config, facts));
    wanted.extend(node_files::kube_proxy(config, facts));
    write_different(paths, &wanted)?;
    for path in static_pods::all_paths() {
        files::remove(paths, &path)?;
    }
    Ok(Outcome::ready("worker", AGAIN))
}

/// With `everything` unset, what needs the API server is not started yet; what runs already is left alone.
fn control_plane(config: &Config, facts: &NodeFacts, paths: &Paths, now: Timestamp, everything: bool) -> Result<Outcome, ReconcileError> {
    let issued = issue_due(config, facts, paths, now)?;
    issue_kubelet_client(config, facts, paths, now)?;
    let mut wanted = component_files(config)?;
    wanted.extend(node_files::kubelet(config, facts));
    wanted.extend(node_files::kube_proxy(config, facts));
    write_different(paths, &wanted)?;

    let observed = etcd::observe(paths);
    etcd::remember_data(paths, &observed)?;
    let (mut pods, standing) = match etcd::verdict(&observed) {
        Verdict::NotBootstrapped => (Vec::new(), "control plane, not bootstrapped: run `strakectl bootstrap` on one machine".to_owned()),
        Verdict::Run => (static_pods::render(config, facts, true), format!("control plane, {issued} certificates issued in this round")),
        Verdict::Halt(reason) => {
            let pods = static_pods::render(config, facts, false);
            remove_others(paths, &pods)?;
            write_different(paths, &pods)?;
            // An error, so that it is on the console and in every health check.
            return Err(EtcdHalted(reason).into());
        }
    };
    let count = pods.len();
    pods.retain(|file| everything || !static_pods::needs_api_server(&file.path) || paths.at(&file.path).exists());
    remove_others(paths, &pods)?;
    write_different(paths, &pods)?;
    Ok(Outcome::ready(standing, if pods.len() < count { HEAD_START_LOOK } else { AGAIN }))
}

fn remove_others(paths: &Paths, wanted: &[File]) -> Result<(), ReconcileError> {
    for path in static_pods::all_paths().iter().filter(|p| !wanted.iter().any(|f| f.path == **p)) {
        files::remove(paths, path)?;
    }
    Ok(())
}

/// Writes what differs; one failure does not keep the others from being written.
fn write_different(paths: &Paths, wanted: &[File]) -> Result<(), ReconcileError> {
    let mut failures = Vec::new();
    for file in files::plan(wanted, |path| files::observe(paths, path)) {
        match files::write(paths, file) {
            Ok(()) => tracing::info!(path = file.path, "written"),
            Err(error) => failures.push(crate::api::chain(&error)),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

/// Each component's directory is its own and nobody else's.
fn directories(config: &Config, paths: &Paths) -> Result<(), ReconcileError> {
    let mut wanted =
        vec![("/etc/kubernetes/kubelet", 0), ("/etc/kubernetes/kube-proxy", 0), (static_pods::DIRECTORY, 0), ("/var/lib/kubelet/pki", 0)];
    if config.is_control_plane() {
        wanted.extend([
            ("/etc/kubernetes/admin", 0),
            ("/etc/kubernetes/kube-apiserver", uid::API_SERVER),
            ("/etc/kubernetes/kube-controller-manager", uid::CONTROLLER_MANAGER),
            ("/etc/kubernetes/kube-scheduler", uid::SCHEDULER),
            ("/etc/kubernetes/cloud-controller-manager", uid::CLOUD_CONTROLLER_MANAGER),
            ("/etc/kubernetes/etcd", uid::ETCD),
        ]);
        for directory in etcd::directories() {
            files::make_directory(paths, &directory)?;
        }
    }
    for (path, uid) in wanted {
        files::make_directory(paths, &Directory { path: path.to_owned(), uid, mode: 0o700 })?;
    }
    Ok(())
}

/// Authorities that can sign.
struct Signers {
    cluster: Authority,
    etcd: Authority,
    front_proxy: Authority,
}

impl Signers {
    fn load(config: &Config) -> Result<Self, ReconcileError> {
        let load = |ca: &CertificateAuthority| -> Result<Authority, ReconcileError> {
            let key = ca.key.as_ref().ok_or("a control plane's config must hold the authorities' keys")?;
            Ok(Authority::from_pem(ca.cert.as_str(), key.reveal())?)
        };
        let ca = &config.secrets.authorities;
        let (Some(etcd), Some(front_proxy)) = (&ca.etcd, &ca.front_proxy) else {
            return Err("a control plane's config must hold the etcd and front-proxy authorities".into());
        };
        Ok(Self { cluster: load(&ca.cluster)?, etcd: load(etcd)?, front_proxy: load(front_proxy)? })
    }

    fn get(&self, signer: Signer) -> &Authority {
        match signer {
            Signer::Cluster => &self.cluster,
            Signer::Etcd => &self.etcd,
            Signer::FrontProxy => &self.front_proxy,
        }
    }
}

/// Issues every certificate that is due; says how many.
fn issue_due(config: &Config, facts: &NodeFacts, paths: &Paths, now: Timestamp) -> Result<usize, ReconcileError> {
    let wanted = certificates::control_plane(config, facts);
    let mut signers = None;
    let mut count = 0;
    for certificate in &wanted {
        let signer_pem = signer_cert(config, certificate.signer);
        let observed = files::read_text(paths, &certificate.cert)
            .zip(files::read_text(paths, &certificate.key))
            .and_then(|(cert, key)| certificates::observe(&cert, &key, &signer_pem));
        let Err(reason) = certificates::plan(certificate, observed.as_ref(), now) else { continue };
        if signers.is_none() {
            signers = Some(Signers::load(config)?);
        }
        if let Some(signers) = &signers {
            issue(certificate, signers.get(certificate.signer), paths, now)?;
            tracing::info!(certificate = certificate.cert, ?reason, "issued");
            count += 1;
        }
    }
    Ok(count)
}

fn signer_cert(config: &Config, signer: Signer) -> String {
    let ca = &config.secrets.authorities;
    let chosen = match signer {
        Signer::Cluster => Some(&ca.cluster),
        Signer::Etcd => ca.etcd.as_ref(),
        Signer::FrontProxy => ca.front_proxy.as_ref(),
    };
    chosen.map(|ca| ca.cert.as_str().to_owned()).unwrap_or_default()
}

fn issue(wanted: &Wanted, signer: &Authority, paths: &Paths, now: Timestamp) -> Result<(), ReconcileError> {
    let issued = signer.issue(&wanted.spec, now)?;
    // The key first: whoever reads in between finds a pair that does not fit, and keeps the one it has.
    files::write(paths, &File::private(&*wanted.key, issued.key_pem, wanted.uid))?;
    files::write(paths, &File::private(&*wanted.cert, issued.cert_pem, wanted.uid))?;
    Ok(())
}

/// The kubelet's first certificate, in upstream's layout: a dated file and a link to it, which the kubelet moves when it renews.
fn issue_kubelet_client(config: &Config, facts: &NodeFacts, paths: &Paths, now: Timestamp) -> Result<(), ReconcileError> {
    let current = node_files::KUBELET_CLIENT_PEM;
    let observed = files::read_text(paths, current)
        .and_then(|both| certificates::observe(&both, &both, config.secrets.authorities.cluster.cert.as_str()));
    if !certificates::kubelet_client_missing(observed.as_ref(), facts, now) {
        return Ok(());
    }
    let issued = Signers::load(config)?.cluster.issue(&certificates::kubelet_client(facts), now)?;
    let name = format!("kubelet-client-{}.pem", now.strftime("%Y-%m-%d-%H-%M-%S"));
    let path = format!("/var/lib/kubelet/pki/{name}");
    files::write(paths, &File::private(path, format!("{}{}", issued.cert_pem, issued.key_pem), 0))?;
    files::link(paths, current, &name)?;
    tracing::info!("issued the kubelet's first certificate");
    Ok(())
}

/// Authorities, the service-account key and kubeconfigs of the control plane's components.
fn component_files(config: &Config) -> Result<Vec<File>, ReconcileError> {
    let secrets = &config.secrets;
    let key = secrets.service_account_key.as_ref().ok_or("a control plane's config must hold the service-account key")?;
    let cluster = &secrets.authorities.cluster;
    let cluster_key = cluster.key.as_ref().ok_or("a control plane's config must hold the cluster authority's key")?;
    let (etcd, front_proxy) = (signer_cert(config, Signer::Etcd), signer_cert(config, Signer::FrontProxy));
    let sa_pub = pki::public_key_pem(key.reveal())?;
    let file = |path: &str, content: &str, uid: u32| File::private(format!("/etc/kubernetes/{path}"), content, uid);

    let mut wanted = vec![
        file("kube-apiserver/ca.crt", cluster.cert.as_str(), uid::API_SERVER),
        file("kube-apiserver/etcd-ca.crt", &etcd, uid::API_SERVER),
        file("kube-apiserver/front-proxy-ca.crt", &front_proxy, uid::API_SERVER),
        file("kube-apiserver/sa.pub", &sa_pub, uid::API_SERVER),
        file("kube-apiserver/sa.key", key.reveal(), uid::API_SERVER),
        file("kube-controller-manager/ca.key", cluster_key.reveal(), uid::CONTROLLER_MANAGER),
        file("kube-controller-manager/sa.key", key.reveal(), uid::CONTROLLER_MANAGER),
        file("etcd/ca.crt", &etcd, uid::ETCD),
        file("admin/ca.crt", cluster.cert.as_str(), 0),
        file("admin/etcd-ca.crt", &etcd, 0),
    ];
    let components = [
        ("kube-controller-manager", "system:kube-controller-manager", uid::CONTROLLER_MANAGER),
        ("kube-scheduler", "system:kube-scheduler", uid::SCHEDULER),
        ("cloud-controller-manager", "system:cloud-controller-manager", uid::CLOUD_CONTROLLER_MANAGER),
    ];
    for (component, user, uid) in components {
        wanted.push(file(&format!("{component}/ca.crt"), cluster.cert.as_str(), uid));
        wanted.push(file(&format!("{component}/kubeconfig"), &component_kubeconfig(config, component, user), uid));
    }
    wanted.push(File::private(ADMIN_KUBECONFIG, component_kubeconfig(config, "admin", "admin"), 0));
    Ok(wanted)
}

fn component_kubeconfig(config: &Config, directory: &str, user: &str) -> String {
    let at = |file: &str| format!("/etc/kubernetes/{directory}/{file}");
    let (ca, cert, key) = (at("ca.crt"), at("client.crt"), at("client.key"));
    let credentials = Credentials::Files { cert: &cert, key: &key };
    kubeconfig::render(&config.cluster.name, &api_server_url(config), ServerAuthority::File(&ca), user, &credentials)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing;
    use std::collections::BTreeMap;
    use std::fs;

    const DAY: i64 = 86400;

    fn round(config: &Config, paths: &Paths, now: Timestamp) -> Result<Outcome, ReconcileError> {
        directories(config, paths)?;
        if config.is_control_plane() {
            control_plane(config, &testing::facts(), paths, now, true)
        } else {
            worker(config, &testing::worker_facts(), paths)
        }
    }

    /// Every file with its content.
    fn everything(paths: &Paths) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut left = vec![paths.at("/etc"), paths.at("/var"), paths.at("/system")];
        while let Some(at) = left.pop() {
            for entry in fs::read_dir(at).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { left.push(path) } else { drop(found.insert(path.display().to_string(), fs::read(&path).unwrap())) }
            }
        }
        found
    }

    fn bootstrap(config: &Config, paths: &Paths) {
        etcd::prepare_bootstrap(paths, &config.secrets.cluster_id).unwrap();
        files::write(paths, &File::private("/system/state/cluster-id", format!("{}\n", config.secrets.cluster_id), 0)).unwrap();
    }

    fn manifests(paths: &Paths) -> usize {
        fs::read_dir(paths.at(static_pods::DIRECTORY)).unwrap().count()
    }

    #[test]
    fn what_needs_the_api_server_waits_for_it_and_is_left_alone_once_started() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, config, now) = (Paths::under(dir.path()), testing::control_plane_config(), testing::now());
        bootstrap(&config, &paths);
        let round = |everything| control_plane(&config, &testing::facts(), &paths, now, everything).unwrap();
        assert!(matches!(round(false), Outcome::Ready { again, .. } if again == HEAD_START_LOOK));
        assert_eq!(manifests(&paths), 2);
        assert!(paths.at("/etc/kubernetes/manifests/etcd.yaml").exists());
        assert!(matches!(round(true), Outcome::Ready { again, .. } if again == AGAIN));
        assert_eq!(manifests(&paths), 5);
        round(false);
        assert_eq!(manifests(&paths), 5, "a machined that came back does not end what runs");
    }

    #[test]
    fn a_second_round_changes_nothing_and_a_later_one_renews() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, config, now) = (Paths::under(dir.path()), testing::control_plane_config(), testing::now());
        bootstrap(&config, &paths);
        round(&config, &paths, now).unwrap();
        let first = everything(&paths);
        assert_eq!(manifests(&paths), 5);
        round(&config, &paths, now + jiff::SignedDuration::from_secs(DAY)).unwrap();
        assert_eq!(everything(&paths), first);

        round(&config, &paths, now + jiff::SignedDuration::from_secs(5 * DAY)).unwrap();
        let later = everything(&paths);
        let renewed: Vec<&String> = first.keys().filter(|k| later[*k] != first[*k]).collect();
        assert_eq!(renewed.len(), 2 * certificates::control_plane(&config, &testing::facts()).len(), "{renewed:?}");
        assert!(renewed.iter().all(|k| !k.contains("ca.") && !k.contains("kubelet-client-current") && !k.contains("manifests")));
    }

    #[test]
    fn every_certificate_of_a_kubeconfig_and_of_a_flag_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, config) = (Paths::under(dir.path()), testing::control_plane_config());
        bootstrap(&config, &paths);
        round(&config, &paths, testing::now()).unwrap();
        let found = everything(&paths);
        for (path, content) in &found {
            let Ok(text) = std::str::from_utf8(content) else { continue };
            let words = text.split(|c: char| c.is_whitespace() || c == '=' || c == ',');
            for named in words.filter(|w| w.starts_with("/etc/kubernetes/") && w.matches('/').count() > 3) {
                assert!(paths.at(named).is_file(), "{path} names {named}");
            }
        }
    }

    #[test]
    fn nothing_runs_before_bootstrap_and_a_lost_etcd_is_halted_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, config, now) = (Paths::under(dir.path()), testing::control_plane_config(), testing::now());
        let Outcome::Ready { detail, .. } = round(&config, &paths, now).unwrap() else { panic!("not ready") };
        assert!(detail.contains("not bootstrapped"));
        assert_eq!(manifests(&paths), 0);

        bootstrap(&config, &paths);
        round(&config, &paths, now).unwrap();
        fs::remove_file(paths.at("/system/etcd/cluster-id")).unwrap();
        let error = round(&config, &paths, now).unwrap_err().to_string();
        assert!(error.contains("etcd is halted") && error.contains("strakectl etcd recover"), "{error}");
        assert!(!paths.at("/etc/kubernetes/manifests/etcd.yaml").exists());
        assert_eq!(manifests(&paths), 4);
    }

    #[test]
    fn a_worker_waits_for_its_certificates_and_holds_no_key_of_an_authority() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, config) = (Paths::under(dir.path()), testing::worker_config());
        assert!(matches!(round(&config, &paths, testing::now()), Ok(Outcome::Waiting { .. })));
        let ca = testing::authority();
        let issued = ca.issue(&pki::LeafSpec { lifetime: certificates::LIFETIME, ..pki::LeafSpec::default() }, testing::now()).unwrap();
        files::write(&paths, &File::private("/system/state/pki/kube-proxy.crt", issued.cert_pem, 0)).unwrap();
        files::write(&paths, &File::private("/system/state/pki/kube-proxy.key", issued.key_pem, 0)).unwrap();
        assert!(matches!(round(&config, &paths, testing::now()), Ok(Outcome::Ready { .. })));
        assert_eq!(manifests(&paths), 0);
        assert!(everything(&paths).keys().all(|k| !k.ends_with("ca.key") && !k.ends_with("sa.key")));
    }
}
