//! What a scenario is, and what it is given. The list of all of them is [`crate::scenarios::ALL`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::Image;

use crate::accel::Accelerator;
use crate::cluster::plan::ClusterSpec;
use crate::cluster::{Cluster, Programs, Progress};
use crate::error::{Error, FileContext};
use crate::machine::{Firmware, Machine, MachineSpec, create_disk};
use crate::power::recorder::Recorder;

/// A named run on virtual machines.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// The behaviour it protects.
    pub protects: &'static str,
    /// The run.
    pub run: fn(&Context) -> Result<(), Error>,
}

/// What a scenario is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// The project's root directory.
    pub project: PathBuf,
    /// QEMU, strakectl, kubectl.
    pub programs: Programs,
    /// The image under test.
    pub image: Image,
    /// What runs the guests.
    pub accelerator: Accelerator,
    /// A directory of its own, empty at the start and kept afterwards.
    pub dir: PathBuf,
    /// Where saved clusters are kept, by image.
    pub saved: PathBuf,
    /// A directory with a short name, for sockets.
    pub run: PathBuf,
    /// When the scenario started.
    pub started: Instant,
}

impl Context {
    /// Empties and creates the directories.
    pub fn prepare(&self) -> Result<(), Error> {
        for place in [&self.dir, &self.run] {
            if place.exists() {
                std::fs::remove_dir_all(place).on("remove", place)?;
            }
            std::fs::create_dir_all(place).on("create", place)?;
        }
        Ok(())
    }

    /// Says how far the scenario is.
    pub fn say(&self, message: &str) {
        println!("  [{:>6.1} s] {message}", self.started.elapsed().as_secs_f32());
    }

    /// A machine with the ISO in its drive and nothing else; change what the scenario needs otherwise.
    pub fn spec(&self, name: &str, address: u8) -> MachineSpec {
        MachineSpec {
            name: name.to_owned(),
            memory_mib: 1024,
            processors: 1,
            address,
            disk: None,
            iso: Some(self.image.iso.clone()),
            medium_first: false,
            switch: None,
            disk_errors: None,
            firmware: Firmware::Uefi,
            recorder: None,
            oem_string: None,
            clock: None,
            network_boot: None,
            tpm: None,
            dir: self.dir.join(name),
            run: self.run.clone(),
        }
    }

    /// Starts a machine that is ended with the scenario.
    pub fn start(&self, spec: &MachineSpec) -> Result<Running, Error> {
        Machine::start(&self.programs.tools, self.accelerator, spec).map(Running)
    }

    /// A new two-machine cluster, booted from the ISO, that other scenarios start from once it is saved.
    pub fn new_cluster(&self) -> Result<RunningCluster, Error> {
        let (base, run) = (self.saved.join(&self.image.root_uuid), self.run.join("saved"));
        std::fs::create_dir_all(&self.saved).on("create", &self.saved)?;
        // Saved clusters of earlier images are of no use any more, and large; and one that was left half-way is none.
        for entry in std::fs::read_dir(&self.saved).on("list", &self.saved)? {
            let entry = entry.on("list", &self.saved)?;
            std::fs::remove_dir_all(entry.path()).on("remove", entry.path())?;
        }
        let cluster = Cluster::open(&base, &run, &self.programs, &ClusterSpec::small()).map(RunningCluster)?;
        cluster.up(&self.image.iso, std::slice::from_ref(&self.image.hello), self.accelerator, self)?;
        Ok(cluster)
    }

    /// A single machine that was installed from the ISO and runs from its disk, without Kubernetes.
    pub fn installed_machine(&self) -> Result<RunningCluster, Error> {
        self.installed_from(&self.image.iso, Firmware::Uefi)
    }

    /// The same from another medium and with other firmware.
    pub fn installed_from(&self, iso: &Path, firmware: Firmware) -> Result<RunningCluster, Error> {
        self.installed_as(iso, &ClusterSpec { workers: 0, firmware, ..ClusterSpec::small() })
    }

    /// The machines of a plan, installed, without Kubernetes.
    pub fn installed_as(&self, iso: &Path, spec: &ClusterSpec) -> Result<RunningCluster, Error> {
        let cluster = Cluster::open(&self.dir.join("cluster"), &self.run.join("cluster"), &self.programs, spec).map(RunningCluster)?;
        cluster.install_machines(iso, self.accelerator, self)?;
        Ok(cluster)
    }

    /// A single machine that is not installed yet, everything of which that it writes is recorded in this file.
    pub fn recorded_machine(&self, log: &Path) -> Result<(RunningCluster, Recorder), Error> {
        let spec = ClusterSpec { workers: 0, ..ClusterSpec::small() };
        let cluster = Cluster::open(&self.dir.join("cluster"), &self.run.join("cluster"), &self.programs, &spec)?;
        let machine = cluster.machine(cluster.plan().control_plane());
        let (dir, socket) = (&machine.spec().dir, self.run.join("recorder"));
        std::fs::create_dir_all(dir).on("create", dir)?;
        let variables = dir.join("firmware-variables.fd");
        std::fs::copy(self.programs.tools.file("usr/share/OVMF/OVMF_VARS_4M.fd")?, &variables).on("copy", &variables)?;
        let disk = create_disk(&dir.join("disk.img"), spec.disk_bytes)?;
        let recorder = Recorder::start(&socket, log, &disk.path, &variables)?;
        Ok((RunningCluster(cluster.recorded(&socket)), recorder))
    }

    /// A running two-machine cluster with the example's image, started from a saved one, which is made first when this image has none.
    pub fn ready_cluster(&self) -> Result<RunningCluster, Error> {
        let base = self.saved.join(&self.image.root_uuid);
        let saved = if Cluster::is_saved_in(&base) {
            Cluster::open(&base, &self.run.join("saved"), &self.programs, &ClusterSpec::small())?
        } else {
            self.say("making a saved cluster");
            let made = self.new_cluster()?;
            made.save()?;
            (*made).clone()
        };
        let cluster = RunningCluster(saved.copy_to(&self.dir.join("cluster"), &self.run.join("cluster"))?);
        cluster.start(self.accelerator, self)?;
        Ok(cluster)
    }

    /// Tries until there is a value; an error of `attempt` ends it.
    pub fn eventually<T>(&self, what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<Option<T>, Error>) -> Result<T, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(value) = attempt()? {
                return Ok(value);
            }
            if Instant::now() > deadline {
                let found = format!("not so after {} s", limit.as_secs());
                return Err(Error::Unexpected { what: "the cluster".into(), expected: what.to_owned(), found });
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// A limit for something that takes `seconds` on an idle host: hosts are busy, and slow ones must not fail a correct system.
    pub fn patience(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds * 6)
    }
}

impl Progress for Context {
    fn phase(&self, name: &str) {
        self.say(name);
    }

    fn note(&self, machine: &str, what: &str) {
        self.say(&format!("  {machine}: {what}"));
    }
}

/// A cluster that ends when it goes out of scope; its files stay.
#[derive(Debug)]
pub struct RunningCluster(Cluster);

impl From<Cluster> for RunningCluster {
    fn from(cluster: Cluster) -> Self {
        Self(cluster)
    }
}

impl std::ops::Deref for RunningCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for RunningCluster {
    fn drop(&mut self) {
        if let Err(problem) = self.0.down() {
            eprintln!("cannot end the cluster: {problem}");
        }
    }
}

/// A machine that ends when it goes out of scope.
#[derive(Debug)]
pub struct Running(Machine);

impl std::ops::Deref for Running {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(problem) = self.0.pull_plug() {
            eprintln!("{}: {problem}", self.0.spec().name);
        }
    }
}
