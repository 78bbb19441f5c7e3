//! Puts the daemon together and runs it until it is told to end.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use machine_api::PORT;
use machine_config::Config;
use node_ipc::init::{BootInfo, BootSource};
use pki::{Issued, LeafSpec};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::api::authorize::Policy;
use crate::api::tls::{self, ServingCertificate};
use crate::boot::{self, Found};
use crate::disks::LinuxDisks;
use crate::events::Events;
use crate::init::InitHandle;
use crate::machine::{Machine, Mode, Release};
use crate::milestones::{self, Milestones};
use crate::pairing::Gate;
use crate::paths::Paths;
use crate::reconcilers::{self, Board, Console, Network, Outcome, Standing};
use crate::resources::Store;
use crate::root;
use crate::security;
use crate::state::StateDir;
use crate::trial::{self, Trials};
use crate::{install, medium, unattended, upgrade};

/// Runs the daemon.
pub async fn run() -> anyhow::Result<()> {
    let paths = Paths::default();
    let boot: BootInfo = json(&paths.boot_info()).context("read how the system was booted")?;
    let release: Release = json(&paths.release()).context("read what the image says about itself")?;
    let boot_id = std::fs::read_to_string(paths.at("/proc/sys/kernel/random/boot_id")).context("read the boot id")?.trim().to_owned();
    tracing::info!(version = release.version, source = ?boot.source, device = boot.device, root = %boot.root.root_hash(), "machined starts");
    let disks = LinuxDisks::new(boot.clone());
    let found = boot::find(&paths, &boot, &disks).await;
    let store = Store::default();
    let (mode, loaded, trouble) = match found {
        Found::NoConfig { trouble } => (Mode::Maintenance, None, trouble),
        Found::Locked { why } => {
            reconcilers::show_locked(&store, "STATE", &why);
            (Mode::Maintenance, None, Some(format!("STATE is locked: {why}")))
        }
        Found::Config { loaded, trouble } => (Mode::Running, Some(Arc::new(*loaded)), trouble),
    };
    let state = StateDir::new(paths.state());
    let name_seed = match mode {
        Mode::Maintenance => String::new(),
        Mode::Running => name_seed(&state, &paths).context("find what the machine's name is made of")?,
    };
    let network = Network::connect().context("connect to the kernel's network")?;
    root::show(&store, &boot);
    security::show(&store, &paths);
    let milestones = Milestones::new(&paths, store.clone());
    milestones.reach("machined");
    if boot.source == BootSource::Disk {
        medium::came_up(&paths);
    }
    let machine = Arc::new(Machine {
        mode,
        release,
        boot,
        boot_id,
        name_seed,
        store,
        init: InitHandle::new(paths.init_socket()),
        state,
        config: watch::Sender::new(loaded),
        wake: watch::Sender::new(0),
        changing: Arc::new(Mutex::new(())),
        disks: Box::new(disks),
        addresses: network.addresses(),
        events: Events::default(),
        milestones,
        trials: Trials::default(),
        given: Default::default(),
        paths,
    });
    let stop = CancellationToken::new();
    tokio::spawn(reconcilers::observe(machine.clone()));
    let serving = match mode {
        Mode::Maintenance => tokio::spawn(maintenance(machine, network, trouble, stop.clone())),
        Mode::Running => tokio::spawn(running(machine, network, trouble, stop.clone())),
    };
    let mut terminate = signal(SignalKind::terminate()).context("wait for signals")?;
    tokio::select! {
        _ = terminate.recv() => {
            tracing::info!("machined ends");
            stop.cancel();
            Ok(())
        }
        ended = serving => ended.context("serve")?,
    }
}

/// The hardware address of the first link at the first boot, kept, so that another card does not give another name.
fn name_seed(state: &StateDir, paths: &Paths) -> anyhow::Result<String> {
    const KEPT: &str = "name-seed";
    if let Some(seed) = state.text(KEPT)? {
        return Ok(seed);
    }
    let links = std::fs::read_dir(paths.at("/sys/class/net")).context("list the links")?;
    let mut links: Vec<_> = links.filter_map(Result::ok).map(|entry| entry.path()).filter(|link| link.join("device").exists()).collect();
    links.sort();
    let address = links.first().and_then(|link| std::fs::read_to_string(link.join("address")).ok());
    let seed = address.map(|address| address.trim().to_owned()).unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    state.write(KEPT, seed.as_bytes())?;
    Ok(seed)
}

async fn maintenance(machine: Arc<Machine>, mut network: Network, trouble: Option<String>, stop: CancellationToken) -> anyhow::Result<()> {
    let certificate = self_signed("strake-maintenance")?;
    let der = pki::pem::certificates(&certificate.cert_pem)?;
    let fingerprint = Sha256::digest(der.first().context("the certificate that was just made is empty")?).into();
    let gate = Arc::new(Gate::new(fingerprint));
    let board = Board::default();
    let notice = watch::Sender::new(None);
    let console = Console {
        machine: machine.clone(),
        board: board.subscribe(),
        pairing: Some(gate.shown()),
        notice: notice.subscribe(),
        trouble: trouble.into_iter().collect(),
    };
    tokio::spawn(console.run());
    tokio::spawn(medium::go_on(machine.clone(), notice, gate.used()));
    tokio::spawn(install_by_itself(machine.clone(), board.clone()));
    let paths = machine.paths.clone();
    tokio::spawn(async move {
        loop {
            let (standing, pause) = match network.round(&paths, None, "").await {
                Ok(Outcome::Ready { detail, again }) => (Standing::Ready(detail), again),
                Ok(Outcome::Waiting { reason }) => (Standing::Pending(reason), Duration::from_secs(2)),
                Err(error) => (Standing::Failed(api::chain(error.as_ref())), Duration::from_secs(5)),
            };
            board.send_if_modified(|board| board.insert("network", standing.clone()) != Some(standing));
            tokio::time::sleep(pause).await;
        }
    });
    let serving = ServingCertificate::new(&certificate.cert_pem, &certificate.key_pem)?;
    let listener = listen().await?;
    machine.milestones.reach("machine-api");
    tracing::info!("maintenance mode");
    Ok(api::serve(machine, Policy::Pairing(gate), tls::without_client_certificates(serving), listener, stop).await?)
}

/// Installs what lies ready, once, on a machine that was started from a medium, or from the raw disk image, and has no installed disk. Whatever comes
/// of it, the machine stays reachable as it is without.
async fn install_by_itself(machine: Arc<Machine>, board: Board) {
    let show = |standing: Standing| board.send_modify(|board| drop(board.insert("unattended", standing)));
    let boot_partition = match machine.boot.source {
        BootSource::Media => None,
        BootSource::Disk => match machine.disks.system_disk() {
            Ok(Some(disk)) if install::rest::is_missing(&disk) => disk.partitions.into_iter().next().map(|esp| esp.node),
            _ => return,
        },
    };
    let reached = async {
        let keys = unattended::keys(&machine.paths, boot_partition.as_deref())?;
        let trust = unattended::Trust::parse(&keys)?;
        let found = match unattended::url::given(&machine.paths, &keys)? {
            Some(url) => from_url(&machine, &url, &show).await.map(Some),
            None => at_the_machine(&machine).await,
        };
        Ok::<_, unattended::UnattendedError>(found?.map(|found| (trust, found)))
    };
    let (trust, found) = match reached.await {
        Ok(Some(both)) => both,
        Ok(None) => return,
        Err(error) => {
            let reason = api::chain(&error);
            tracing::error!(reason, "there is no config to install with");
            return show(Standing::Failed(reason));
        }
    };
    let installed = machine.disks.installations().unwrap_or_default();
    if !installed.is_empty() {
        let disks = installed.iter().map(|installed| installed.disk.as_str()).collect::<Vec<_>>().join(", ");
        tracing::info!(place = found.place, disks, "a config lies ready, and a system is installed already");
        return show(Standing::Pending(format!("there is a config on {}, and a system on {disks} already", found.place)));
    }
    let done = match trust.check(&found) {
        Ok(text) => api::install_by_itself(&machine, &found.place, text).await,
        Err(error) => Err(api::chain(&error)),
    };
    if let Err(reason) = done {
        tracing::error!(reason, "the unattended installation failed");
        show(Standing::Failed(reason));
    }
}

/// Asks a server for the config until it gives one, for some minutes; the console shows why it is not there yet.
async fn from_url(machine: &Machine, url: &str, show: &impl Fn(Standing)) -> Result<unattended::Found, unattended::UnattendedError> {
    use unattended::url::{PAUSE, TRIES, fetch};
    for tries in 1..TRIES {
        match fetch(&machine.paths, url).await {
            Ok(found) => {
                show(Standing::Ready(format!("got the config from {}", found.place)));
                return Ok(found);
            }
            Err(error) => {
                let reason = api::chain(&error);
                tracing::warn!(reason, tries, "fetch the config");
                show(Standing::Failed(format!("{reason}; this was try {tries} of {TRIES}, the next is in {} s", PAUSE.as_secs())));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    fetch(&machine.paths, url).await
}

/// Looks for a config on volumes and in the firmware for a minute.
async fn at_the_machine(machine: &Arc<Machine>) -> Result<Option<unattended::Found>, unattended::UnattendedError> {
    const AGAIN: Duration = Duration::from_secs(3);
    // A stick takes its time to appear.
    const LOOKS: usize = 20;
    for _ in 0..LOOKS {
        let seen = machine.clone();
        match tokio::task::spawn_blocking(move || unattended::look(&seen.paths)).await {
            Ok(Ok(None)) => tokio::time::sleep(AGAIN).await,
            Ok(done) => return done,
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

async fn running(machine: Arc<Machine>, network: Network, trouble: Option<String>, stop: CancellationToken) -> anyhow::Result<()> {
    let serving = match reconcilers::kept_certificate(&machine.state) {
        Some((cert_pem, key_pem)) => ServingCertificate::new(&cert_pem, &key_pem)?,
        None => {
            // Nobody trusts this one; the certificates' reconciler replaces it.
            let unknown = self_signed("strake-machine-without-certificate")?;
            ServingCertificate::new(&unknown.cert_pem, &unknown.key_pem)?
        }
    };
    let loaded = machine.loaded().context("a running machine has a config")?;
    let tls = tls::with_client_ca(serving.clone(), machine_ca(&loaded.config))?;
    let board = reconcilers::spawn(reconcilers::registry(network), &machine, &serving, &stop);
    let trouble = trouble.into_iter().chain(upgrade::at_boot(&machine)).collect();
    upgrade::restart_for_trial(&machine).await;
    let notice = watch::Sender::new(None).subscribe();
    let console = Console { machine: machine.clone(), board: board.subscribe(), pairing: None, notice, trouble };
    tokio::spawn(console.run());
    tokio::spawn(upgrade::watch(machine.clone()));
    tokio::spawn(trial::remember_good_config(machine.clone(), board.subscribe()));
    tokio::spawn(trial::fall_back_when_cut_off(machine.clone(), board.subscribe()));
    tokio::spawn(crate::metrics::serve(machine.clone()));
    tokio::spawn(crate::events::tell_kubernetes(machine.clone()));
    tokio::spawn(milestones::watch_reconcilers(machine.clone(), board.subscribe()));
    tokio::spawn(milestones::watch_cluster(machine.clone()));
    let listener = listen().await?;
    machine.milestones.reach("machine-api");
    tracing::info!(hostname = machine.hostname(), role = %loaded.config.machine.role, "running");
    Ok(api::serve(machine, Policy::Roles, tls, listener, stop).await?)
}

fn machine_ca(config: &Config) -> &str {
    config.secrets.authorities.machine.cert.as_str()
}

/// On IPv6 and IPv4; on IPv4 alone when the kernel has no IPv6.
async fn listen() -> anyhow::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT))).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], PORT))).await.context("listen on the machine API's port"),
    }
}

fn self_signed(name: &str) -> anyhow::Result<Issued> {
    let spec = LeafSpec {
        common_name: name.to_owned(),
        organization: None,
        dns_names: vec![machine_api::SERVER_NAME.to_owned()],
        addresses: Vec::new(),
        server: true,
        client: false,
        lifetime: Duration::from_secs(365 * 86_400),
    };
    Issued::self_signed(&spec, Timestamp::now()).context("make a certificate")
}

fn json<T: DeserializeOwned>(path: &std::path::Path) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
