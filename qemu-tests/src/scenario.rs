//! What a scenario is, and what it is given. The list of all of them is [`crate::scenarios::ALL`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use image::Image;
use image::tools::Tools;

use crate::accel::Accelerator;
use crate::error::{Error, FileContext};
use crate::machine::{Firmware, Machine, MachineSpec};

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
    /// QEMU and its firmware.
    pub tools: Tools,
    /// The image under test.
    pub image: Image,
    /// What runs the guests.
    pub accelerator: Accelerator,
    /// A directory of its own, empty at the start and kept afterwards.
    pub dir: PathBuf,
    /// A directory with a short name, for sockets.
    pub run: PathBuf,
    /// When the scenario started.
    pub started: Instant,
}

impl Context {
    /// Prepares the directories of a scenario.
    pub fn new(tools: &Tools, image: &Image, accelerator: Accelerator, dir: PathBuf, run: PathBuf) -> Result<Self, Error> {
        for place in [&dir, &run] {
            if place.exists() {
                std::fs::remove_dir_all(place).on("remove", place)?;
            }
            std::fs::create_dir_all(place).on("create", place)?;
        }
        Ok(Self { tools: tools.clone(), image: image.clone(), accelerator, dir, run, started: Instant::now() })
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
            switch: None,
            firmware: Firmware::Uefi,
            dir: self.dir.join(name),
            run: self.run.clone(),
        }
    }

    /// Starts a machine that is ended with the scenario.
    pub fn start(&self, spec: &MachineSpec) -> Result<Running, Error> {
        Machine::start(&self.tools, self.accelerator, spec).map(Running)
    }

    /// A limit for something that takes `seconds` on an idle host: hosts are busy, and slow ones must not fail a correct system.
    pub fn patience(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds * 6)
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
