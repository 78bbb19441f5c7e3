//! MachineService: version, config, installation, the cluster's first boot, going down, kubeconfigs.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use machine_api::limits;
use machine_api::v1alpha1::machine_service_server::MachineService;
use machine_api::v1alpha1::{
    self as api, ApplyConfigRequest, ApplyConfigResponse, ApplyMode, BootstrapRequest, BootstrapResponse, ConfigChange, ConfigFile,
    ConfirmConfigRequest, ConfirmConfigResponse, InstallProgress, InstallRequest, KubeconfigRequest, KubeconfigResponse, RebootRequest,
    RebootResponse, ResetRequest, ResetResponse, RollbackRequest, RollbackResponse, ShutdownRequest, ShutdownResponse, UnlockRequest,
    UnlockResponse, UpgradeRequest, VersionRequest, VersionResponse, VolumeSecrets,
};
use machine_config::diff::{Change, Effect, diff};
use machine_config::{Config, ConfigErrors, Documents};
use node_ipc::init::BootSource;
use slots::manifest::Allow;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::authorize::Caller;
use crate::encryption::{self, Given, Secret};
use crate::install::{self, InstallError, Media, Progress, Volumes};
use crate::machine::{Loaded, Machine, Mode, ObservedDisk};
use crate::state::StateError;
use crate::trial;

pub struct Handler(pub Arc<Machine>);

/// How long a caller gets to read the answer before the machine goes down.
pub const FAREWELL: Duration = Duration::from_millis(500);
/// How long a worker that is reset tries to give its name back.
/// Bytes of a passphrase.
const MAX_SECRET: usize = 512;
const LEAVE: Duration = Duration::from_secs(5);

#[tonic::async_trait]
impl MachineService for Handler {
    type InstallStream = Pin<Box<dyn Stream<Item = Result<InstallProgress, Status>> + Send>>;
    type UpgradeStream = super::upgrade::ProgressStream;

    async fn version(&self, _request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        let machine = &self.0;
        let mode = match machine.mode {
            Mode::Maintenance => api::Mode::Maintenance,
            Mode::Running => api::Mode::Running,
        };
        let role = machine.loaded().map(|loaded| loaded.config.machine.role.to_string()).unwrap_or_default();
        Ok(Response::new(VersionResponse {
            name: machine.release.name.clone(),
            version: machine.release.version.clone(),
            kubernetes: machine.release.kubernetes.clone(),
            kernel: machine.release.kernel.clone(),
            root_uuid: machine.boot.root.root_uuid(),
            mode: mode.into(),
            hostname: machine.hostname(),
            role,
            boot_id: machine.boot_id.clone(),
        }))
    }

    async fn apply_config(&self, request: Request<ApplyConfigRequest>) -> Result<Response<ApplyConfigResponse>, Status> {
        let caller = Caller::of(&request)?;
        let ApplyConfigRequest { files, dry_run, mode, try_seconds } = request.into_inner();
        let mode = ApplyMode::try_from(mode).map_err(|_| Status::invalid_argument("unknown apply mode"))?;
        let time = match try_seconds {
            0 => trial::TRY,
            seconds => Duration::from_secs(seconds.into()).min(trial::LONGEST),
        };
        let (config, text) = read(&files)?;
        let warnings = doubts(&self.0, &config).await;
        let response = match self.0.loaded() {
            None if dry_run => self.describe_installation(&config, &text),
            None => Err(Status::failed_precondition("the machine has no config yet: install it")),
            Some(current) => self.apply(&caller, &current, Loaded { text, config }, dry_run, mode, time).await,
        }?;
        Ok(Response::new(ApplyConfigResponse { warnings, ..response }))
    }

    async fn confirm_config(&self, request: Request<ConfirmConfigRequest>) -> Result<Response<ConfirmConfigResponse>, Status> {
        let caller = Caller::of(&request)?;
        match self.0.confirm_config() {
            Ok(true) => {
                caller.did("confirm the config that was tried");
                Ok(Response::new(ConfirmConfigResponse { outcome: "the config that was tried is kept".to_owned() }))
            }
            Ok(false) => {
                Err(Status::failed_precondition("no config is being tried; if one was, its time is over and the one before is back"))
            }
            Err(error) => Err(super::internal(&error)),
        }
    }

    async fn install(&self, request: Request<InstallRequest>) -> Result<Response<Self::InstallStream>, Status> {
        let caller = Caller::of(&request)?;
        let InstallRequest { files, secrets } = request.into_inner();
        let (config, text) = read(&files)?;
        let given = given(secrets.unwrap_or_default())?;
        let changing = self.0.changing.clone().try_lock_owned().map_err(|_| busy())?;
        let mut work = self.prepare(&config, &text)?;
        let (paths, planned) = (self.0.paths.clone(), config.clone());
        let planned = tokio::task::spawn_blocking(move || encryption::plan(&paths, &planned, &given)).await;
        let planned = planned.map_err(|error| super::internal(&error))?;
        work.encrypt(planned.map_err(|error| Status::failed_precondition(super::chain(&error)))?);
        caller.did(format_args!("install to {}", work.target()));
        let (messages, stream) = mpsc::channel(64);
        let machine = self.0.clone();
        // Runs to its end whether or not the caller stays: a disk that is half written helps nobody.
        tokio::spawn(async move {
            let _changing = changing;
            let progress = messages.clone();
            let target = work.target();
            let done = tokio::task::spawn_blocking(move || {
                work.run(&mut |step: Progress| {
                    let Progress { stage, done, total, detail } = step;
                    // A caller who does not read misses progress, nothing else.
                    let _ = progress.try_send(Ok(InstallProgress { stage: stage.to_owned(), done, total, complete: false, detail }));
                })
            })
            .await;
            let failure = match done {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(super::internal(&error)),
                Err(error) => Some(super::internal(&error)),
            };
            if let Some(status) = failure {
                tracing::error!(target, error = status.message(), "the installation failed");
                let _ = messages.send(Err(status)).await;
                return;
            }
            tracing::info!(target, "installed");
            let last = InstallProgress { stage: "reboot".to_owned(), complete: true, ..InstallProgress::default() };
            let _ = messages.send(Ok(last)).await;
            drop(messages);
            tokio::time::sleep(FAREWELL).await;
            if let Err(error) = machine.init.reboot("installed; starting from the disk").await {
                tracing::error!(error = %super::chain(&error), "reboot after the installation");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let caller = Caller::of(&request)?;
        let UnlockRequest { secret, reseal } = request.into_inner();
        if secret.is_empty() || secret.len() > MAX_SECRET {
            return Err(Status::invalid_argument(format!("a passphrase or recovery key has 1 to {MAX_SECRET} bytes")));
        }
        let _changing = self.0.changing.try_lock().map_err(|_| busy())?;
        let machine = self.0.clone();
        let user = machine.user_volumes();
        // Volumes that are to be made take it as one of their keys.
        let waiting = machine.given.give(&secret);
        let done =
            tokio::task::spawn_blocking(move || encryption::unlock(&machine.paths, machine.disks.as_ref(), &user, &secret, reseal)).await;
        let mut done = done.map_err(|error| super::internal(&error))?.map_err(|error| super::internal(&error))?;
        if !waiting.is_empty() {
            caller.did(format_args!("give a key for {}", waiting.join(", ")));
            done.warnings
                .extend(waiting.iter().map(|label| format!("{label}: it is made with this key, if that is what its config asks for")));
            if done.opened.is_empty() {
                self.0.wake();
                return Ok(Response::new(UnlockResponse { opened: done.opened, warnings: done.warnings }));
            }
        }
        if done.opened.is_empty() {
            let why = if done.warnings.is_empty() { "no volume is encrypted".to_owned() } else { done.warnings.join("; ") };
            caller.refused("unlock", &why);
            return Err(Status::failed_precondition(why));
        }
        let sealed = if reseal { ", with new keys in the TPM" } else { "" };
        caller.did(format_args!("unlock {}{sealed}", done.opened.join(", ")));
        if self.0.mode == Mode::Running {
            self.0.wake();
        } else if done.opened.iter().any(|label| label == "STATE") {
            self.begin_again();
        }
        Ok(Response::new(UnlockResponse { opened: done.opened, warnings: done.warnings }))
    }

    async fn bootstrap(&self, request: Request<BootstrapRequest>) -> Result<Response<BootstrapResponse>, Status> {
        let caller = Caller::of(&request)?;
        let loaded = self.running()?;
        if !loaded.config.is_control_plane() {
            return Err(Status::failed_precondition("this machine is a worker: bootstrap a control plane"));
        }
        let _changing = self.0.changing.try_lock().map_err(|_| busy())?;
        let cluster_id = loaded.config.secrets.cluster_id.clone();
        let refuse = |error: &dyn std::error::Error| {
            caller.refused("bootstrap", super::chain(error));
            Status::already_exists(super::chain(error))
        };
        if let Some(id) = self.0.state.cluster_id().map_err(|error| super::internal(&error))? {
            return Err(refuse(&StateError::HasClusterId(id)));
        }
        // A crash between the two leaves a machine that can be bootstrapped again.
        crate::kubernetes::etcd::prepare_bootstrap(&self.0.paths, &cluster_id).map_err(|error| refuse(&error))?;
        self.0.state.set_cluster_id(&cluster_id).map_err(|error| super::internal(&error))?;
        caller.did(format_args!("bootstrap cluster {cluster_id}"));
        self.0.wake();
        Ok(Response::new(BootstrapResponse { cluster_id }))
    }

    async fn reboot(&self, request: Request<RebootRequest>) -> Result<Response<RebootResponse>, Status> {
        let caller = Caller::of(&request)?;
        let _changing = self.0.changing.try_lock().map_err(|_| busy())?;
        caller.did("reboot");
        self.go_down(format!("asked for by {}", caller.name), true);
        Ok(Response::new(RebootResponse {}))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Result<Response<ShutdownResponse>, Status> {
        let caller = Caller::of(&request)?;
        let _changing = self.0.changing.try_lock().map_err(|_| busy())?;
        caller.did("shut down");
        self.go_down(format!("asked for by {}", caller.name), false);
        Ok(Response::new(ShutdownResponse {}))
    }

    async fn reset(&self, request: Request<ResetRequest>) -> Result<Response<ResetResponse>, Status> {
        let caller = Caller::of(&request)?;
        let loaded = self.running()?;
        let confirmed = request.into_inner().confirm_hostname;
        let hostname = self.0.hostname();
        if confirmed != hostname {
            caller.refused("reset", "another hostname was confirmed");
            return Err(Status::failed_precondition(format!("this machine is {hostname}, not {confirmed}")));
        }
        let _changing = self.0.changing.try_lock().map_err(|_| busy())?;
        caller.did("reset: wipe STATE, ETCD and DATA");
        self.0.state.request_reset().map_err(|error| super::internal(&error))?;
        let machine = self.0.clone();
        // From here on nobody opens the encrypted ones again, whatever becomes of the machine.
        let erased = tokio::task::spawn_blocking(move || encryption::erase(machine.disks.as_ref())).await;
        let erased = erased.map_err(|error| super::internal(&error))?.map_err(|error| super::internal(&error))?;
        if !erased.is_empty() {
            tracing::warn!(volumes = erased.join(", "), "the keys of encrypted volumes are destroyed");
        }
        if !loaded.config.is_control_plane() {
            // Without an answer the name stays taken until the Node is deleted.
            let left = tokio::time::timeout(LEAVE, crate::join::leave(&loaded.config, &hostname)).await;
            let problem = left.map_or(Some("no answer".to_owned()), |left| left.err().map(|error| super::chain(&error)));
            if let Some(problem) = problem {
                tracing::warn!(problem, hostname, "give the machine's name back");
            }
        }
        self.go_down(format!("reset by {}", caller.name), true);
        Ok(Response::new(ResetResponse {}))
    }

    async fn upgrade(&self, request: Request<Streaming<UpgradeRequest>>) -> Result<Response<Self::UpgradeStream>, Status> {
        super::upgrade::upgrade(&self.0, request).await
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<RollbackResponse>, Status> {
        let caller = Caller::of(&request)?;
        let _changing = self.0.changing.try_lock().map_err(|_| busy())?;
        let allow = Allow { locked_volumes: request.into_inner().allow_locked_volumes, ..Allow::default() };
        let outcome = super::upgrade::roll_back(&self.0, &caller, allow).await?;
        self.go_down(format!("rolled back by {}", caller.name), true);
        Ok(Response::new(RollbackResponse { outcome }))
    }

    async fn kubeconfig(&self, request: Request<KubeconfigRequest>) -> Result<Response<KubeconfigResponse>, Status> {
        let caller = Caller::of(&request)?;
        let KubeconfigRequest { server, user } = request.into_inner();
        super::bounded("the server's URL", &server)?;
        super::bounded("the user's name", &user)?;
        let loaded = self.running()?;
        let user = if user.is_empty() { caller.name.clone() } else { user };
        let issued = crate::kubeconfig::admin(&loaded.config, &server, &user, jiff::Timestamp::now()).map_err(|error| match error {
            crate::kubeconfig::KubeconfigError::Worker | crate::kubeconfig::KubeconfigError::Argument(_) => {
                Status::failed_precondition(super::chain(&error))
            }
            other => super::internal(&other),
        })?;
        caller.did(format_args!("issue an administrator's kubeconfig for {user}"));
        Ok(Response::new(KubeconfigResponse { kubeconfig: issued.text, not_after_unix: issued.not_after.as_second() }))
    }
}

/// Installs what a config that lay ready says, as if somebody had sent it, and restarts from the disk.
pub async fn install_by_itself(machine: &Arc<Machine>, place: &str, text: &str) -> Result<(), String> {
    let told = |status: Status| format!("the config on {place}: {}", status.message());
    let file = ConfigFile { name: place.to_owned(), content: text.to_owned() };
    let (config, text) = read(&[file]).map_err(told)?;
    let changing = machine.changing.clone().try_lock_owned().map_err(|_| told(busy()))?;
    let mut work = Handler(machine.clone()).prepare(&config, &text).map_err(told)?;
    // Nobody is there to give a recovery key or a passphrase: a config that needs one is refused here.
    let paths = machine.paths.clone();
    let planned = tokio::task::spawn_blocking(move || encryption::plan(&paths, &config, &Given::default())).await;
    let planned = planned.map_err(|error| super::chain(&error))?;
    work.encrypt(planned.map_err(|error| format!("the config on {place}: {}", super::chain(&error)))?);
    let target = work.target();
    tracing::warn!(place, target, "installing unattended");
    let mut said = "";
    let done = tokio::task::spawn_blocking(move || {
        work.run(&mut |step: Progress| {
            if step.stage != said {
                said = step.stage;
                tracing::info!(stage = step.stage, detail = step.detail, "installing unattended");
            }
        })
    });
    let done = done.await.map_err(|error| super::chain(&error))?;
    done.map_err(|error| format!("install to {target}: {}", super::chain(&error)))?;
    drop(changing);
    let restarted = machine.init.reboot("installed unattended; starting from the disk").await;
    restarted.map_err(|error| format!("restart after the installation: {}", super::chain(&error)))
}

/// What opens volumes, as it was sent.
fn given(secrets: VolumeSecrets) -> Result<Given, Status> {
    let VolumeSecrets { recovery_key, passphrase } = secrets;
    if passphrase.len() > MAX_SECRET {
        return Err(Status::invalid_argument(format!("a passphrase has at most {MAX_SECRET} bytes")));
    }
    let recovery_key = if recovery_key.is_empty() {
        None
    } else {
        Some(recovery_key.parse().map_err(|error: machine_api::recovery_key::NoRecoveryKey| Status::invalid_argument(error.to_string()))?)
    };
    Ok(Given { recovery_key, passphrase: (!passphrase.is_empty()).then(|| Secret(passphrase.into_bytes())) })
}

pub fn busy() -> Status {
    Status::aborted("another change of this machine is under way")
}

/// Reads a config as it was sent. All problems are in the refusal, each with its place.
fn read(files: &[ConfigFile]) -> Result<(Config, String), Status> {
    let size: usize = files.iter().map(|file| file.content.len()).sum();
    if files.is_empty() || files.len() > limits::CONFIG_FILES || size > limits::CONFIG_BYTES {
        return Err(Status::invalid_argument(format!(
            "a config has 1 to {} files and at most {} bytes; this one has {} and {size}",
            limits::CONFIG_FILES,
            limits::CONFIG_BYTES,
            files.len()
        )));
    }
    let refused = |errors: ConfigErrors| Status::invalid_argument(errors.to_string());
    let documents = Documents::parse_all(files.iter().map(|file| (file.name.as_str(), file.content.as_str()))).map_err(refused)?;
    let config = Config::from_documents(&documents).map_err(refused)?;
    Ok((config, documents.render()))
}

/// What an installation does on this machine.
enum Work {
    /// Everything, from a medium.
    Whole(Box<install::Installation>),
    /// The rest of the disk that the system runs from, which was written from the raw disk image.
    Rest(Box<install::rest::Rest>),
    /// The system is installed and only lacks a config (after a reset).
    ConfigOnly { state: PathBuf, parts: Vec<(&'static str, PathBuf, u64)>, text: String, volumes: Volumes, meta: Option<PathBuf> },
}

impl Work {
    fn target(&self) -> String {
        match self {
            Work::Whole(installation) => installation.disk.display().to_string(),
            Work::Rest(rest) => rest.disk.display().to_string(),
            Work::ConfigOnly { state, .. } => state.display().to_string(),
        }
    }

    /// Some of the volumes are encrypted.
    fn encrypt(&mut self, planned: Vec<encryption::Planned>) {
        match self {
            Work::Whole(installation) => installation.volumes.encrypted = planned,
            Work::Rest(rest) => rest.volumes.encrypted = planned,
            Work::ConfigOnly { volumes, .. } => volumes.encrypted = planned,
        }
    }

    fn run(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
        match self {
            Work::Whole(installation) => installation.run(progress),
            Work::Rest(rest) => rest.run(progress),
            Work::ConfigOnly { state, parts, text, volumes, meta } => {
                progress(Progress { stage: "write the machine config", done: 0, total: 0, detail: state.display().to_string() });
                install::write_volumes(parts, text, volumes)?;
                // A reset that failed is over: the next boot must not wipe this config.
                let over = meta.as_ref().map_or(Ok(()), |meta| crate::reset::note(meta, false));
                over.map_err(|source| InstallError::Step {
                    step: "note in META that the reset is over",
                    disk: state.clone(),
                    source: std::io::Error::other(source),
                })
            }
        }
    }
}

impl Handler {
    fn running(&self) -> Result<Arc<Loaded>, Status> {
        self.0.loaded().ok_or_else(|| Status::failed_precondition("the machine has no config yet"))
    }

    fn selected(&self, config: &Config) -> Result<ObservedDisk, Status> {
        let observed = self.0.disks.observe().map_err(|error| super::internal(&error))?;
        let disks: Vec<_> = observed.iter().map(|observed| observed.disk.clone()).collect();
        let selected = install::select_disk(config, &disks).map_err(|error| refusal(&error))?;
        let found = observed.iter().find(|observed| observed.disk.name == selected.name);
        found.cloned().ok_or_else(|| Status::internal("the selected disk is gone"))
    }

    /// Checks an installation without changing anything.
    fn prepare(&self, config: &Config, text: &str) -> Result<Work, Status> {
        let machine = &self.0;
        let target = self.selected(config)?;
        let volumes = Volumes { paths: machine.paths.clone(), encrypted: Vec::new() };
        let system = machine.disks.system_disk().map_err(|error| super::internal(&error))?;
        if let Some(system) = system.filter(install::rest::is_missing) {
            if system.node != target.node {
                let text = format!("the config selects {}, and this system is on {}", target.disk.name, system.node.display());
                return Err(Status::failed_precondition(text));
            }
            let rest = install::rest::prepare(config, text, &target.disk, &system, machine.boot.root.root_hash(), volumes);
            return rest.map(|rest| Work::Rest(Box::new(rest))).map_err(|error| refusal(&error));
        }
        if machine.boot.source == BootSource::Disk {
            let state = machine.disks.system_partition("STATE").map_err(|error| super::internal(&error))?;
            let (state, size) =
                state.ok_or_else(|| Status::failed_precondition("the disk this system runs from has no STATE partition"))?;
            if !state.display().to_string().starts_with(&target.node.display().to_string()) {
                let text = format!(
                    "the config selects {}, but this system is installed on another disk: boot the ISO to install anew",
                    target.disk.name
                );
                return Err(Status::failed_precondition(text));
            }
            let etcd = machine.disks.system_partition("ETCD").map_err(|error| super::internal(&error))?;
            if config.is_control_plane() && etcd.is_none() {
                let text = "this disk was laid out for a worker and has no ETCD partition: boot the ISO to install a control plane";
                return Err(Status::failed_precondition(text));
            }
            if !config.machine.install.wipe && encryption::is_encrypted(&state).map_err(|error| super::internal(&error))? {
                let text = "this machine is installed and its STATE is locked: open it with `strakectl unlock`, or set install.wipe to true if what it \
                            holds may be lost";
                return Err(Status::failed_precondition(text));
            }
            let data = machine.disks.system_partition("DATA").map_err(|error| super::internal(&error))?;
            let parts = [("ETCD", etcd), ("DATA", data), ("STATE", Some((state.clone(), size)))];
            let parts = parts.into_iter().filter_map(|(label, part)| part.map(|(node, size)| (label, node, size))).collect();
            let meta = machine.disks.system_partition(slots::meta::LABEL).map_err(|error| super::internal(&error))?.map(|(node, _)| node);
            return Ok(Work::ConfigOnly { state, parts, text: text.to_owned(), volumes, meta });
        }
        let media = Media::at(&machine.paths.media(), machine.boot.root);
        let installation = install::prepare(config, text, &target.disk, &target.node, target.sector, media, volumes);
        installation.map(|installation| Work::Whole(Box::new(installation))).map_err(|error| refusal(&error))
    }

    fn describe_installation(&self, config: &Config, text: &str) -> Result<ApplyConfigResponse, Status> {
        let work = self.prepare(config, text)?;
        let outcome = format!("would install a {} to {}", config.machine.role, work.target());
        Ok(ApplyConfigResponse { outcome, ..ApplyConfigResponse::default() })
    }

    async fn apply(
        &self,
        caller: &Caller,
        current: &Loaded,
        wanted: Loaded,
        dry_run: bool,
        mode: ApplyMode,
        time: Duration,
    ) -> Result<ApplyConfigResponse, Status> {
        let changes = diff(&current.config, &wanted.config);
        let refuse = |why: String| {
            if !dry_run {
                caller.refused("apply config", &why);
            }
            Status::failed_precondition(why)
        };
        let decision = decide(&changes, mode).map_err(refuse)?;
        let shown = changes.iter().map(wire).collect();
        if dry_run {
            return Ok(ApplyConfigResponse { changes: shown, outcome: decision.would().to_owned(), ..ApplyConfigResponse::default() });
        }
        let _changing = self.0.changing.try_lock().map_err(|_| busy())?;
        let trial = match decision {
            // Applying what is on trial for good is as good as confirming it.
            Decision::Nothing => {
                let kept = mode != ApplyMode::Try && self.0.confirm_config().map_err(|error| super::internal(&error))?;
                if kept {
                    caller.did("confirm the config that was tried, by applying it");
                }
                None
            }
            Decision::Try => Some(time),
            Decision::Prove => Some(trial::REACH),
            Decision::Now | Decision::Reboot | Decision::Stage => {
                self.0.state.set_config(&wanted.text).map_err(|error| super::internal(&error))?;
                if decision != Decision::Stage {
                    self.0.trials.forget();
                }
                None
            }
        };
        for change in &changes {
            caller.did(format_args!("{} config: {change}", if trial.is_some() { "try" } else { "apply" }));
        }
        match (decision, trial) {
            (_, Some(time)) => self.0.try_config(wanted, time),
            (Decision::Now, None) => {
                self.0.config.send_replace(Some(Arc::new(wanted)));
            }
            (Decision::Reboot, None) => self.go_down(format!("config applied by {}", caller.name), true),
            _ => {}
        }
        let confirm_seconds = trial.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        Ok(ApplyConfigResponse { changes: shown, outcome: decision.did().to_owned(), warnings: Vec::new(), confirm_seconds })
    }

    /// Asks init to start machined anew, which then finds STATE open.
    fn begin_again(&self) {
        let machine = self.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            if let Err(error) = machine.init.restart("machined").await {
                tracing::error!(error = %super::chain(&error), "ask init to start machined anew");
            }
        });
    }

    /// Asks init to end everything, after the answer had time to leave.
    fn go_down(&self, reason: String, reboot: bool) {
        let machine = self.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            let asked = if reboot { machine.init.reboot(&reason).await } else { machine.init.power_off(&reason).await };
            if let Err(error) = asked {
                tracing::error!(error = %super::chain(&error), "ask init to go down");
            }
        });
    }
}

/// Problems of the request are the caller's, the rest is the machine's.
fn refusal(error: &InstallError) -> Status {
    let text = super::chain(error);
    match error {
        InstallError::Disk(_) | InstallError::TooSmall { .. } | InstallError::InUse { .. } => Status::failed_precondition(text),
        _ => Status::internal(text),
    }
}

/// What is done with a changed config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Nothing,
    Now,
    Reboot,
    Stage,
    /// As the caller wants it.
    Try,
    /// Links change: the machine must be reached again, or it goes back.
    Prove,
}

impl Decision {
    fn would(self) -> &'static str {
        match self {
            Decision::Nothing => "nothing would change",
            Decision::Now => "would take effect at once",
            Decision::Reboot => "would take effect after a reboot that follows at once",
            Decision::Stage => "would take effect at the next boot",
            Decision::Try => "would take effect at once, until its time is over or it is confirmed",
            Decision::Prove => "would take effect at once, and go away again unless the machine is reached under it",
        }
    }

    fn did(self) -> &'static str {
        match self {
            Decision::Nothing => "nothing changed",
            Decision::Now => "in effect",
            Decision::Reboot => "written; the machine reboots",
            Decision::Stage => "written; in effect after the next boot",
            Decision::Try => "in effect until its time is over or it is confirmed",
            Decision::Prove => "in effect; it is kept when it is confirmed over a new connection",
        }
    }
}

fn decide(changes: &[Change], mode: ApplyMode) -> Result<Decision, String> {
    let those = |effect: Effect| {
        let list: Vec<String> = changes.iter().filter(|change| change.effect == effect).map(ToString::to_string).collect();
        list.join("; ")
    };
    if changes.is_empty() {
        return Ok(Decision::Nothing);
    }
    let reinstall = those(Effect::Reinstall);
    if !reinstall.is_empty() {
        return Err(format!("only a new installation can change this: {reinstall}"));
    }
    let reboot = those(Effect::Reboot);
    match (mode, reboot.is_empty()) {
        (ApplyMode::Staged, _) => Ok(Decision::Stage),
        (ApplyMode::Reboot, _) | (ApplyMode::Auto, false) => Ok(Decision::Reboot),
        (ApplyMode::NoReboot, false) => Err(format!("this needs a reboot, so --mode auto, reboot or staged: {reboot}")),
        (ApplyMode::Try, false) => Err(format!("this needs a reboot and can't be tried: {reboot}")),
        (ApplyMode::Try, true) => Ok(Decision::Try),
        (ApplyMode::Auto | ApplyMode::NoReboot, true) => {
            let links = changes.iter().any(|change| change.document.starts_with("LinkConfig"));
            Ok(if links { Decision::Prove } else { Decision::Now })
        }
    }
}

/// What is right by itself and does not fit this machine as it is now. No reason to refuse: the card may come later.
async fn doubts(machine: &Machine, config: &Config) -> Vec<String> {
    crate::reconcilers::missing_links(&machine.paths, config).await.unwrap_or_else(|error| {
        tracing::warn!(error = %super::chain(error.as_ref()), "compare a config with the machine's links");
        Vec::new()
    })
}

fn wire(change: &Change) -> ConfigChange {
    let show = |node: &Option<machine_config::Node>| {
        node.as_ref().map(|node| machine_config::model::to_json(node).to_string()).unwrap_or_default()
    };
    let separator = if change.path.0.is_empty() { "" } else { ": " };
    ConfigChange { path: format!("{}{separator}{}", change.document, change.path), old: show(&change.old), new: show(&change.new) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine_config::FieldPath;

    fn change(effect: Effect) -> Change {
        Change { document: "MachineConfig".into(), path: FieldPath::fields("role"), old: None, new: None, effect }
    }

    #[test]
    fn a_change_takes_effect_as_early_as_it_can() {
        use ApplyMode::{Auto, NoReboot, Reboot, Staged, Try};
        let (live, reboot, reinstall) = (change(Effect::Live), change(Effect::Reboot), change(Effect::Reinstall));
        let link = Change { document: "LinkConfig eth0".into(), ..live.clone() };
        let cases: &[(&[&Change], ApplyMode, Result<Decision, &str>)] = &[
            (&[], Reboot, Ok(Decision::Nothing)),
            (&[&live], Auto, Ok(Decision::Now)),
            (&[&live], NoReboot, Ok(Decision::Now)),
            (&[&live], Staged, Ok(Decision::Stage)),
            (&[&live], Reboot, Ok(Decision::Reboot)),
            (&[&live], Try, Ok(Decision::Try)),
            (&[&live, &link], Auto, Ok(Decision::Prove)),
            (&[&link], Try, Ok(Decision::Try)),
            (&[&link], Staged, Ok(Decision::Stage)),
            (&[&live, &reboot], Auto, Ok(Decision::Reboot)),
            (&[&live, &reboot], NoReboot, Err("this needs a reboot")),
            (&[&live, &reboot], Try, Err("can't be tried")),
            (&[&live, &reinstall], Reboot, Err("installation")),
            (&[&reinstall], Try, Err("installation")),
        ];
        for (changes, mode, expected) in cases {
            let changes: Vec<Change> = changes.iter().map(|change| (*change).clone()).collect();
            match (decide(&changes, *mode), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, *expected, "{changes:?} {mode:?}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{changes:?} {mode:?}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn configs_are_bounded_and_their_problems_named() {
        let file = |content: &str| ConfigFile { name: "a.yaml".into(), content: content.to_owned() };
        assert!(read(&[]).is_err());
        assert!(read(&vec![file(""); limits::CONFIG_FILES + 1]).is_err());
        assert!(read(&[file(&"#".repeat(limits::CONFIG_BYTES + 1))]).is_err());
        let status = read(&[file("apiVersion: strake.dev/v1alpha1\nkind: HostnameConfig\nhostname: a\nbogus: 1\n")]).unwrap_err();
        assert!(status.message().starts_with("a.yaml:4:"), "{}", status.message());
    }
}
