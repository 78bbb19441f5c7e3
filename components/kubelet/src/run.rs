//! Start: flags and configuration, then everything that runs for as long as the kubelet does.

use crate::api::Api;
use crate::api::credentials::{self, Purpose};
use crate::config::{Config, File};
use crate::cri::Cri;
use crate::flags::Flags;
use crate::kubelet::{Manager, Shared};
use crate::model::pod::Pod;
use crate::node::{self, facts};
use crate::runtime::cgroup::Cgroups;
use crate::runtime::container::Machine;
use crate::runtime::log_rotation;
use crate::sources::static_pods;
use crate::{pleg, server};
use anyhow::Context as _;
use clap::Parser as _;
use k8s_client::{CancellationToken, EventRecorder, EventType, ReflectorOptions, spawn_reflector};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Entry point: `args` as `clap` expects them, with the program's name first.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => error.exit(),
    };
    component_base::start_logging("kubelet", flags.verbosity);
    // Fails only when a provider was installed before, which is then the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(16).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kubelet: start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let file = match &flags.config {
        Some(path) => File::load(path)?,
        None => File::default(),
    };
    for name in file.unsupported() {
        tracing::warn!(field = name, "this field of the kubelet configuration has no effect yet");
    }
    if !flags.feature_gates.is_empty() || !file.feature_gates.is_empty() {
        tracing::warn!("feature gates are accepted and ignored: features are at the defaults of Kubernetes {}", facts::KUBERNETES);
    }
    if let Some(endpoint) = flags.image_service_endpoint.as_ref().or(file.image_service_endpoint.as_ref()).filter(|e| !e.is_empty()) {
        tracing::warn!(endpoint, "the image service of the container runtime's own endpoint is used");
    }
    let config = Config::resolve(&flags, file, &facts::hostname())?;
    std::fs::create_dir_all(config.root_dir.join("pods")).with_context(|| format!("create {}", config.root_dir.display()))?;
    set_private(&config.root_dir);

    let cgroups = Cgroups::detect(&config.cgroup_root);
    if !cgroups.usable() {
        anyhow::ensure!(
            !config.fail_cgroup_v1,
            "cgroup v2 with the controllers cpu, memory and pids is not available at /sys/fs/cgroup (failCgroupV1: false runs pods without limits)"
        );
        tracing::warn!("no usable cgroup v2 hierarchy: pods run without limits");
    }
    let machine = Machine { memory: facts::memory().total, cgroup_v2: cgroups.usable() };
    let cri = Cri::connect(&config.container_runtime_endpoint, config.runtime_request_timeout);
    let api = Arc::new(Api::new(&config.node_name));
    let shared = Arc::new(Shared::new(config, cri, api, cgroups, machine));
    if shared.host_ips().is_empty()
        && let Some(ip) = facts::detect_address()
    {
        shared.set_host_ips(vec![ip.to_string()]);
    }
    tracing::info!(
        node = %shared.config.node_name, version = facts::KUBERNETES, addresses = ?shared.host_ips(),
        runtime = %shared.config.container_runtime_endpoint.display(), "kubelet starts"
    );

    // One look at the machine sets what pods may use, before the first of them starts.
    let _ = node::status::collect(&shared, None).await;
    let limits = shared.allocatable();
    shared.cgroups.setup(limits.cpu_milli, shared.config.enforce_pods.then_some(limits.memory)).context("set up the cgroups of pods")?;

    let changed = Arc::new(Notify::new());
    tokio::spawn(pleg::run(shared.pleg.clone(), shared.cri.clone(), changed.clone()));
    let (static_sender, statics) = watch::channel(None);
    match &shared.config.static_pod_path {
        Some(path) => drop(tokio::spawn(static_pods::run(path.clone(), shared.config.node_name.clone(), static_sender.clone()))),
        None => drop(static_sender.send_replace(Some(Arc::new(Vec::new())))),
    }
    tokio::spawn(Manager::new(shared.clone(), statics, changed.clone()).run());
    tokio::spawn(shared.statuses.clone().run(shared.api.clone()));
    tokio::spawn(node::status::run(shared.clone()));
    tokio::spawn(rotate_logs(shared.clone()));
    tokio::spawn(keep_serving("kubelet API", shared.clone(), |s| Box::pin(server::serve(s))));
    tokio::spawn(keep_serving("health endpoint", shared.clone(), |s| Box::pin(server::serve_health(s))));

    let stop = CancellationToken::new();
    match &flags.kubeconfig {
        Some(kubeconfig) => {
            drop(tokio::spawn(connect(shared.clone(), kubeconfig.clone(), flags.bootstrap_kubeconfig.clone(), changed, stop.clone())));
        }
        None => tracing::info!("no --kubeconfig: only static pods are run"),
    }

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Pods go on without the kubelet; the next one finds them by their labels.
    tracing::info!("kubelet stops");
    stop.cancel();
    Ok(())
}

/// Pod volumes may hold secrets: others have no business below.
fn set_private(dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    for path in [dir.to_path_buf(), dir.join("pods")] {
        if let Err(error) = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)) {
            tracing::warn!(path = %path.display(), error = %error, "restrict a directory");
        }
    }
}

/// Gets credentials, registers the node and starts everything that needs the API server.
async fn connect(shared: Arc<Shared>, kubeconfig: PathBuf, bootstrap: Option<PathBuf>, changed: Arc<Notify>, stop: CancellationToken) {
    let client = match credentials::client(&shared.config, &kubeconfig, bootstrap.as_deref()).await {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(error = %crate::pod::apply::error_chain(&error), "connect to the API server");
            return;
        }
    };
    let recorder = EventRecorder::spawn(client.clone(), "kubelet", &shared.config.node_name, stop.clone());
    shared.api.connect(client.clone(), recorder);
    shared.api.node_event(EventType::Normal, "Starting", "Starting kubelet.");

    let selector = format!("spec.nodeName={}", shared.config.node_name);
    let pods =
        spawn_reflector(client.clone(), ReflectorOptions { field_selector: selector, ..ReflectorOptions::of::<Pod>() }, stop.clone());
    let notify = changed.clone();
    pods.add_handler(move |_| notify.notify_one());
    let _ = shared.api.pods.set(pods);
    let services = spawn_reflector(client.clone(), ReflectorOptions::of::<crate::model::node::Service>(), stop.clone());
    let _ = shared.api.services.set(services);

    tokio::spawn(node::lease::run(shared.clone()));
    if shared.config.rotate_certificates {
        // Only certificates that are our own are ours to renew.
        let own = credentials::current_path(&shared.config.cert_dir, Purpose::Client);
        let in_use = client.config().identity.as_ref().is_some_and(|(cert, _)| *cert == k8s_client::Material::File(own));
        if in_use {
            tokio::spawn(credentials::rotate(shared.clone(), Purpose::Client));
        }
    }
    node::register(&shared, &client).await;
    changed.notify_one();
    if shared.config.server_tls_bootstrap && shared.config.tls_cert_file.is_none() {
        tokio::spawn(credentials::rotate(shared.clone(), Purpose::Serving));
    }
}

type Serving = std::pin::Pin<Box<dyn Future<Output = Result<(), server::ServerError>> + Send>>;

/// A server that could not start (a port still taken, a CA not written yet) is tried again: pods do not depend on it.
async fn keep_serving(name: &'static str, shared: Arc<Shared>, serve: fn(Arc<Shared>) -> Serving) {
    loop {
        match serve(shared.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(error = %crate::pod::apply::error_chain(&error), "{name}"),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn rotate_logs(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let filter = crate::cri::v1::ContainerFilter {
            state: Some(crate::cri::v1::ContainerStateValue { state: crate::cri::v1::ContainerState::ContainerRunning.into() }),
            ..Default::default()
        };
        let Ok(running) = shared.cri.list_containers(Some(filter)).await else { continue };
        for container in running {
            let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
            let dir = shared.config.pod_log_dir(
                &label(crate::pod::observe::LABEL_POD_NAMESPACE),
                &label(crate::pod::observe::LABEL_POD_NAME),
                &label(crate::pod::observe::LABEL_POD_UID),
            );
            let count = container
                .annotations
                .get(crate::pod::observe::ANNOTATION_RESTART_COUNT)
                .cloned()
                .unwrap_or_else(|| container.metadata.as_ref().map_or(0, |m| m.attempt).to_string());
            let log = dir.join(label(crate::pod::observe::LABEL_CONTAINER_NAME)).join(format!("{count}.log"));
            let config = &shared.config;
            let result =
                log_rotation::rotate(&shared.cri, &container.id, &log, config.container_log_max_size, config.container_log_max_files).await;
            if let Err(error) = result {
                tracing::warn!(log = %log.display(), error = %error, "rotate a container log");
            }
        }
    }
}
