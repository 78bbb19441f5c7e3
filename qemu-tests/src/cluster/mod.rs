//! A cluster of virtual machines, brought up the way a person does it with real servers: boot the ISO, read the pairing string off the
//! console, send the config, bootstrap, wait. Every step looks first whether it is done already, so bringing up a running
//! cluster, or one that was left half-way, is the same call.

pub mod plan;
mod programs;
mod saved;

use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::accel::Accelerator;
use crate::console::last_value;
use crate::error::{Error, FileContext};
use crate::machine::{Disk, Machine, MachineSpec, create_disk};
use crate::network::{Forward, Network, free_port};
use plan::{ClusterPlan, ClusterSpec, MACHINE_API, NAME, Node};
pub use programs::{Clients, Programs};

/// The file of a disk that is a layer over a saved one.
const LAYER: &str = "disk.qcow2";
/// The pace of waits that start a program each time.
const PAUSE: Duration = Duration::from_secs(1);

/// Where a person sees how far it is.
pub trait Progress: Sync {
    /// A phase of the whole cluster begins; the one before it is done.
    fn phase(&self, name: &str);
    /// Something happened in the phase, to a machine.
    fn note(&self, machine: &str, what: &str);
}

/// A cluster in a directory.
#[derive(Clone, Debug)]
pub struct Cluster {
    dir: PathBuf,
    run: PathBuf,
    programs: Programs,
    plan: ClusterPlan,
    /// Serves the control plane's disk, if what it writes is recorded.
    recorder: Option<PathBuf>,
}

/// What a machine that was just started turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It waits for a config at this address with this pairing string.
    Maintenance { address: Ipv4Addr, pairing: String },
    /// It has its config and answers.
    Installed,
}

impl Cluster {
    /// The cluster of a directory: the one that is there, or a new one as asked for. `run` is a directory with a short name.
    pub fn open(dir: &Path, run: &Path, programs: &Programs, spec: &ClusterSpec) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).on("create", dir)?;
        let file = dir.join("cluster.json");
        let plan = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|problem| Error::Unexpected {
                what: file.display().to_string(),
                expected: "a cluster plan; `cargo xtask up --fresh` makes a new one".into(),
                found: problem.to_string(),
            })?,
            Err(_) => {
                let plan = ClusterPlan::new(spec, free_port)?;
                let text = serde_json::to_vec_pretty(&plan).map_err(std::io::Error::other).on("encode", &file)?;
                std::fs::write(&file, text).on("write", &file)?;
                plan
            }
        };
        Ok(Self { dir: dir.to_owned(), run: run.to_owned(), programs: programs.clone(), plan, recorder: None })
    }

    /// The same with the control plane's disk and firmware served by the recorder behind this socket.
    pub fn recorded(self, socket: &Path) -> Self {
        Self { recorder: Some(socket.to_owned()), ..self }
    }

    /// What it consists of.
    pub fn plan(&self) -> &ClusterPlan {
        &self.plan
    }

    /// strakectl and kubectl with its credentials.
    pub fn clients(&self) -> Clients {
        Clients::new(&self.programs, &self.dir)
    }

    /// One of its machines.
    pub fn machine(&self, node: &Node) -> Machine {
        Machine::attach(&self.machine_spec(node, None))
    }

    /// Starts a machine again from its disk, without the ISO.
    pub fn start_installed(&self, node: &Node, accelerator: Accelerator) -> Result<Machine, Error> {
        Machine::start(&self.programs.tools, accelerator, &self.machine_spec(node, None))
    }

    /// Starts an installed machine with a medium in its drive that its firmware prefers to the disk.
    pub fn start_medium(&self, node: &Node, iso: &Path, accelerator: Accelerator) -> Result<Machine, Error> {
        let spec = MachineSpec { medium_first: true, ..self.machine_spec(node, Some(iso)) };
        Machine::start(&self.programs.tools, accelerator, &spec)
    }

    /// The config of a machine.
    pub fn config(&self, node: &Node) -> PathBuf {
        self.dir.join(format!("{}.yaml", node.name))
    }

    /// Gives a running machine its config again, once its console says after `start` that it waits for one.
    pub fn install_again(&self, node: &Node, start: u64, progress: &dyn Progress) -> Result<(), Error> {
        let machine = self.machine(node);
        let limit = Duration::from_secs(600);
        let outcome = machine.wait_console(start, "maintenance mode", limit, maintenance);
        let State::Maintenance { address, pairing } = self.at(node, "waiting for maintenance mode", outcome)? else { return Ok(()) };
        progress.note(&node.name, "in maintenance mode; installing");
        self.at(node, "installing", self.send_config(node, &self.network(), address, &pairing))?;
        self.at(node, "waiting for the installed system", self.wait_installed(node, &machine))
    }

    /// Brings the cluster up: after this every machine is a Ready node and has the images in `archives`.
    pub fn up(&self, iso: &Path, archives: &[PathBuf], accelerator: Accelerator, progress: &dyn Progress) -> Result<(), Error> {
        self.install_machines(iso, accelerator, progress)?;
        self.become_cluster(archives, progress)
    }

    /// Makes a cluster of installed machines.
    pub fn become_cluster(&self, archives: &[PathBuf], progress: &dyn Progress) -> Result<(), Error> {
        progress.phase("bootstrap");
        let first = self.plan.control_plane();
        self.at(first, "bootstrap", self.bootstrap(progress))?;
        progress.phase("Kubernetes API");
        self.at(first, "waiting for the Kubernetes API", self.wait_kubernetes(progress))?;
        progress.phase("nodes Ready");
        self.wait_nodes(progress)?;
        progress.phase("images");
        self.each_node(|node| self.at(node, "importing images", self.import(node, archives)))
    }

    /// Installs every machine: after this each answers from its disk, and there is no Kubernetes yet.
    pub fn install_machines(&self, iso: &Path, accelerator: Accelerator, progress: &dyn Progress) -> Result<(), Error> {
        progress.phase("network");
        let network = self.start_network()?;
        progress.phase("configs");
        self.write_configs()?;
        progress.phase("machines: boot, install, restart from disk");
        self.each_node(|node| self.install(node, iso, accelerator, &network, progress))
    }

    /// Starts the first machine from a medium on which a config lies ready for it, which `ready` puts there; afterwards it answers from its disk, and
    /// nobody told it anything. `ready` gets the config's file and what the machine is made of.
    pub fn install_by_itself(
        &self,
        iso: &Path,
        accelerator: Accelerator,
        progress: &dyn Progress,
        ready: impl FnOnce(&Path, &mut MachineSpec) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.start_network()?;
        self.write_configs()?;
        let node = self.plan.control_plane();
        let mut spec = self.machine_spec(node, Some(iso));
        std::fs::create_dir_all(&spec.dir).on("create", &spec.dir)?;
        if let Some(disk) = &spec.disk {
            create_disk(&disk.path, self.plan.spec.disk_bytes)?;
        }
        ready(&self.config(node), &mut spec)?;
        let machine = self.at(node, "starting QEMU", Machine::start(&self.programs.tools, accelerator, &spec))?;
        progress.note(&node.name, "booting; nobody tells it anything");
        self.at(node, "waiting for the installed system", self.wait_installed(node, &machine))
    }

    /// Starts the first machine from a disk that the disk image was written to, and gives it its config; afterwards it answers from that disk.
    pub fn install_from_disk(&self, raw: &Path, accelerator: Accelerator, progress: &dyn Progress) -> Result<(), Error> {
        let network = self.start_network()?;
        self.write_configs()?;
        let node = self.plan.control_plane();
        let spec = self.machine_spec(node, None);
        std::fs::create_dir_all(&spec.dir).on("create", &spec.dir)?;
        if let Some(disk) = &spec.disk {
            crate::machine::run(Command::new("cp").arg("--sparse=always").arg(raw).arg(&disk.path))?;
            let file = OpenOptions::new().write(true).open(&disk.path).on("open", &disk.path)?;
            file.set_len(self.plan.spec.disk_bytes).on("size", &disk.path)?;
        }
        let machine = self.at(node, "starting QEMU", Machine::start(&self.programs.tools, accelerator, &spec))?;
        progress.note(&node.name, "booting from the disk image");
        match self.at(node, "booting", self.wait_state(node, &machine, 0))? {
            State::Maintenance { address, pairing } => {
                self.at(node, "installing", self.send_config(node, &network, address, &pairing))?;
                progress.note(&node.name, "has its config; restarting");
                self.at(node, "waiting for the installed system", self.wait_installed(node, &machine))
            }
            State::Installed => Ok(()),
        }
    }

    /// Ends every machine and the network.
    pub fn down(&self) -> Result<(), Error> {
        for node in &self.plan.nodes {
            self.machine(node).pull_plug()?;
        }
        self.network().stop()
    }

    /// Waits until every machine is a Ready node.
    pub fn wait_nodes(&self, progress: &dyn Progress) -> Result<(), Error> {
        let limit = Duration::from_secs(900);
        let deadline = Instant::now() + limit;
        let mut seen = Vec::new();
        loop {
            let ready = self.clients().ready_nodes();
            if let Ok(ready) = &ready {
                for name in ready.iter().filter(|name| !seen.contains(*name)) {
                    progress.note(name, "Ready");
                }
                seen = ready.clone();
            }
            let missing: Vec<&Node> = self.plan.nodes.iter().filter(|node| !seen.contains(&node.name)).collect();
            let Some(first) = missing.first() else { return Ok(()) };
            self.alive()?;
            if Instant::now() > deadline {
                let names: Vec<&str> = missing.iter().map(|node| node.name.as_str()).collect();
                let reason = ready.err().map_or_else(String::new, |problem| format!(" ({problem})"));
                return Err(self.machine(first).deadline(&format!("Ready of {}{reason}", names.join(", ")), limit));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Starts the network that its machines are plugged into, unless it is there.
    pub fn start_network(&self) -> Result<Network, Error> {
        let network = self.network();
        network.start(&self.programs.tools, self.programs.switch_command(&network.switch()), &self.plan.forwards())?;
        Ok(network)
    }

    fn network(&self) -> Network {
        Network::new(&self.dir, &self.run)
    }

    fn machine_spec(&self, node: &Node, iso: Option<&Path>) -> MachineSpec {
        let dir = self.dir.join(&node.name);
        MachineSpec {
            name: node.name.clone(),
            memory_mib: if node.control_plane { self.plan.spec.memory_mib } else { self.plan.spec.worker_memory_mib },
            processors: 1,
            address: node.last_byte(),
            disk: Some(disk(&dir)),
            iso: iso.map(Path::to_owned),
            medium_first: false,
            switch: Some(self.network().switch()),
            disk_errors: None,
            firmware: self.plan.spec.firmware,
            recorder: self.recorder.clone().filter(|_| node.control_plane),
            oem_string: None,
            clock: None,
            network_boot: None,
            tpm: self.plan.spec.tpm.then(|| dir.join("tpm")),
            dir,
            run: self.run.clone(),
        }
    }

    /// Runs a step on all machines at once; the first failure is returned after all have ended.
    fn each_node(&self, step: impl Fn(&Node) -> Result<(), Error> + Sync) -> Result<(), Error> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.plan.nodes.iter().map(|node| scope.spawn(|| step(node))).collect();
            let outcomes: Vec<Result<(), Error>> =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
            outcomes.into_iter().collect()
        })
    }

    /// Adds the machine, the stage and the end of its console to an error.
    fn at<T>(&self, node: &Node, stage: &str, outcome: Result<T, Error>) -> Result<T, Error> {
        outcome.map_err(|source| Error::Stage {
            machine: node.name.clone(),
            stage: stage.to_owned(),
            console: self.machine(node).console().tail(40),
            source: Box::new(source),
        })
    }

    fn write_configs(&self) -> Result<(), Error> {
        let clients = self.clients();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        if !self.dir.join("secrets.yaml").exists() {
            let mut words = vec!["gen".to_owned(), "cluster".into(), NAME.into(), self.plan.endpoint(), "--out".into(), text(&self.dir)];
            words.extend(["--additional-sans".into(), "127.0.0.1".into(), "--install-disk".into(), "serial=strake-*".into()]);
            words.extend(["--endpoints".into(), self.plan.control_plane().local_api()]);
            if self.plan.schedules_on_control_plane() {
                words.push("--allow-scheduling-on-control-planes".into());
            }
            clients.strakectl(words)?;
        }
        for node in &self.plan.nodes {
            let config = self.config(node);
            if config.exists() {
                continue;
            }
            let patch = self.dir.join(format!("{}.patch.yaml", node.name));
            let documents = self.plan.spec.documents.as_ref().map(|more| format!("---\n{more}")).unwrap_or_default();
            std::fs::write(&patch, node.patch() + &documents).on("write", &patch)?;
            let base = self.dir.join(if node.control_plane { "controlplane.yaml" } else { "worker.yaml" });
            let words =
                ["gen", "machine", &text(&base), "--hostname", &node.name, "--config-patch", &text(&patch), "--out", &text(&config)];
            clients.strakectl(words)?;
        }
        Ok(())
    }

    /// Boots a machine and gives it its config, unless it has it; afterwards it answers from its disk.
    fn install(&self, node: &Node, iso: &Path, accelerator: Accelerator, network: &Network, progress: &dyn Progress) -> Result<(), Error> {
        let spec = self.machine_spec(node, Some(iso));
        std::fs::create_dir_all(&spec.dir).on("create", &spec.dir)?;
        if let Some(disk) = spec.disk.as_ref().filter(|disk| !disk.path.exists()) {
            create_disk(&disk.path, self.plan.spec.disk_bytes)?;
        }
        let attached = Machine::attach(&spec);
        let start = if attached.is_running() { 0 } else { attached.console().position() };
        let machine = self.at(node, "starting QEMU", Machine::start(&self.programs.tools, accelerator, &spec))?;
        progress.note(&node.name, "booting");
        let state = self.at(node, "booting", self.wait_state(node, &machine, start))?;
        if let State::Maintenance { address, pairing } = state {
            progress.note(&node.name, "in maintenance mode; installing");
            self.at(node, "installing", self.send_config(node, network, address, &pairing))?;
            progress.note(&node.name, "installed; restarting from disk");
            self.at(node, "waiting for the installed system", self.wait_installed(node, &machine))?;
        }
        progress.note(&node.name, "runs from its disk");
        Ok(())
    }

    /// Waits until the machine either says on its console that it is in maintenance mode, or answers as an installed one.
    fn wait_state(&self, node: &Node, machine: &Machine, start: u64) -> Result<State, Error> {
        let limit = Duration::from_secs(600);
        let deadline = Instant::now() + limit;
        loop {
            let text = machine.console().text_from(start)?;
            if let Some(state) = maintenance(&text) {
                return Ok(state);
            }
            if self.answers(node) {
                return Ok(State::Installed);
            }
            self.running(machine, "maintenance mode or the machine API")?;
            if Instant::now() > deadline {
                return Err(machine.deadline("maintenance mode or the machine API", limit));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn send_config(&self, node: &Node, network: &Network, address: Ipv4Addr, pairing: &str) -> Result<(), Error> {
        let [config, recovery, passphrase] =
            [self.config(node), self.recovery_key(node), self.passphrase()].map(|path| path.to_string_lossy().into_owned());
        let words = ["apply-config", "-f", &config, "--recovery-key", &recovery, "--passphrase-file", &passphrase];
        self.in_maintenance(node, network, (address, pairing), &words).map(drop)
    }

    /// The file with a machine's recovery key, which strakectl makes for a config with encrypted volumes.
    pub fn recovery_key(&self, node: &Node) -> PathBuf {
        self.dir.join(format!("{}.recovery", node.name))
    }

    /// The file with the passphrase of encrypted volumes, for a scenario that uses one to write.
    pub fn passphrase(&self) -> PathBuf {
        self.dir.join("passphrase")
    }

    /// Waits until a machine says after `start` on its console that it waits in maintenance mode, with this text beside it, and calls strakectl for it.
    pub fn when_in_maintenance(&self, node: &Node, start: u64, text: &str, words: &[&str]) -> Result<String, Error> {
        let machine = self.machine(node);
        let limit = Duration::from_secs(600);
        machine.wait_text(start, text, limit)?;
        let State::Maintenance { address, pairing } = machine.wait_console(start, "maintenance mode", limit, maintenance)? else {
            return Err(machine.deadline("maintenance mode", limit));
        };
        self.in_maintenance(node, &self.network(), (address, &pairing), words)
    }

    fn in_maintenance(
        &self,
        node: &Node,
        network: &Network,
        (address, pairing): (Ipv4Addr, &str),
        words: &[&str],
    ) -> Result<String, Error> {
        let forward = Forward { host_port: free_port(43000 + u16::from(node.last_byte()))?, address, port: MACHINE_API };
        network.forward(&forward)?;
        let target = format!("127.0.0.1:{}", forward.host_port);
        let answer = self.clients().strakectl([&["--timeout", "120", "-n", &target, "--pairing", pairing], words].concat());
        network.unforward(&forward)?;
        answer
    }

    /// Waits until a machine answers with the cluster's certificates.
    pub fn wait_running(&self, node: &Node) -> Result<(), Error> {
        self.wait_installed(node, &self.machine(node))
    }

    fn wait_installed(&self, node: &Node, machine: &Machine) -> Result<(), Error> {
        let limit = Duration::from_secs(600);
        let deadline = Instant::now() + limit;
        while !self.answers(node) {
            self.running(machine, "the machine API")?;
            if Instant::now() > deadline {
                return Err(machine.deadline("the machine API after the installation", limit));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Whether the machine's API answers with the cluster's certificates.
    fn answers(&self, node: &Node) -> bool {
        self.clients().strakectl(["--timeout", "5", "-n", &node.local_api(), "version"]).is_ok()
    }

    fn bootstrap(&self, progress: &dyn Progress) -> Result<(), Error> {
        let first = self.plan.control_plane();
        let done = self.dir.join("bootstrapped");
        if done.exists() {
            return Ok(());
        }
        self.clients().strakectl(["--timeout", "60", "-n", &first.local_api(), "bootstrap"])?;
        std::fs::write(&done, "").on("write", &done)?;
        progress.note(&first.name, "bootstrapped");
        Ok(())
    }

    fn wait_kubernetes(&self, progress: &dyn Progress) -> Result<(), Error> {
        let first = self.plan.control_plane();
        let clients = self.clients();
        let limit = Duration::from_secs(600);
        let deadline = Instant::now() + limit;
        let kubeconfig = clients.kubeconfig().to_string_lossy().into_owned();
        let endpoint = self.plan.local_endpoint();
        loop {
            let ready = if clients.kubeconfig().exists() {
                clients.kubectl(["get", "--raw=/readyz"]).map(drop)
            } else {
                let words = ["-n", &first.local_api(), "kubeconfig", "--server", &endpoint, &kubeconfig];
                clients.strakectl(words).and_then(|_| clients.kubectl(["get", "--raw=/readyz"]).map(drop))
            };
            let Err(problem) = ready else {
                progress.note(&first.name, "the Kubernetes API is ready");
                return Ok(());
            };
            self.running(&self.machine(first), "the Kubernetes API")?;
            if Instant::now() > deadline {
                return Err(self.machine(first).deadline(&format!("the Kubernetes API ({problem})"), limit));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn import(&self, node: &Node, archives: &[PathBuf]) -> Result<(), Error> {
        for archive in archives {
            let file = archive.to_string_lossy();
            self.clients().strakectl(["--timeout", "60", "-n", &node.local_api(), "images", "import", &*file])?;
        }
        Ok(())
    }

    fn alive(&self) -> Result<(), Error> {
        self.plan.nodes.iter().try_for_each(|node| self.running(&self.machine(node), "Ready nodes"))
    }

    fn running(&self, machine: &Machine, waiting_for: &str) -> Result<(), Error> {
        if machine.is_running() { Ok(()) } else { Err(machine.ended(waiting_for)) }
    }
}

/// A machine's disk: a layer over a saved one when there is one, else a file of its own.
fn disk(dir: &Path) -> Disk {
    let layer = dir.join(LAYER);
    if layer.exists() { Disk { path: layer, overlay: true } } else { Disk { path: dir.join("disk.img"), overlay: false } }
}

/// What the console says of maintenance mode, if that is the last thing it says.
fn maintenance(console: &str) -> Option<State> {
    if last_value(console, "stage") != Some("maintenance") {
        return None;
    }
    let pairing = last_value(console, "pairing")?.to_owned();
    let address = last_value(console, "addresses")?.split(',').find_map(|text| text.split('/').next()?.parse::<Ipv4Addr>().ok())?;
    Some(State::Maintenance { address, pairing })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_mode_is_read_off_the_console() {
        let line = "strake: stage=maintenance name= addresses=10.5.0.100,fe80::1 pairing=ABCD-EFGH\n";
        let state = State::Maintenance { address: Ipv4Addr::new(10, 5, 0, 100), pairing: "ABCD-EFGH".into() };
        for (console, expected) in [
            (line.to_owned(), Some(state.clone())),
            (line.replace("10.5.0.100,fe80::1", "fe80::1,10.5.0.100/24"), Some(state)),
            (format!("{line}strake: stage=running name=cp-1\n"), None),
            (line.replace("10.5.0.100,", ""), None),
            (line.replace("pairing=ABCD-EFGH", "pairing="), None),
            (String::new(), None),
        ] {
            assert_eq!(maintenance(&console), expected, "{console}");
        }
    }
}
