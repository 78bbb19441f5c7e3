//! What firmware, boot loader and init would make of a disk and a variable store: which slot is started with which config, or why none is.
//! Nothing is written and nothing runs, except that a file system's journal is replayed on a copy, by the same program that a machine
//! checks its own with. The formats are read with the product's own readers (META, slots, the hash tree) and the field's (FAT).
//!
//! Where firmware differs, the checker expects the least: a partition table's first copy is not repaired, an entry that is damaged is
//! not skipped.

mod boot_partition;
mod firmware;
mod state;
mod table;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use node_ipc::init::Slot;
use serde::{Deserialize, Serialize};
use slots::loader::{default_slot, entry, other};
use slots::meta::{self, Meta};
use slots::record::{self, AtBoot};
use verity::{BLOCK, Digest, Parameters};

pub use boot_partition::BootPartition;
pub use firmware::LoaderVariables;
pub use state::State;
pub use table::{Partition, Table};

/// init's key in META for a start that has not come up yet.
const STARTED: &str = "started";
/// A machine that has not settled after so many starts never does.
const STARTS: usize = 6;

/// A disk that can be read.
pub trait Disk {
    /// Its bytes.
    fn size(&self) -> u64;
    /// Reads exactly so many.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// What tells this range's content from others, if that is known without reading it.
    fn fingerprint(&self, _start: u64, _size: u64) -> Option<u128> {
        None
    }
    /// Copies a range to an empty file.
    fn copy(&self, start: u64, size: u64, to: &File) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        for at in (0..size).step_by(1 << 20) {
            let piece = &mut buffer[..(size - at).min(1 << 20) as usize];
            self.read_at(start + at, piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                to.write_all_at(piece, at)?;
            }
        }
        Ok(())
    }
}

/// A system whose parts the checker knows again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct System {
    /// Its version.
    pub version: String,
    /// What its root is verified against.
    pub root: Parameters,
    /// The SHA-256 of its kernel image.
    pub uki: Digest,
    /// Whether its kernel takes the second copy of a partition table when the first is damaged (its argument `gpt`).
    pub takes_second_table: bool,
}

/// What a machine holds after it came up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Config {
    /// None: it waits for one.
    None,
    /// This text, by its SHA-256.
    Text(String),
    /// The file system does not open.
    Unusable(String),
}

/// What becomes of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The firmware finds nothing to start on this disk and goes on to the installation medium.
    NotInstalled(String),
    /// A system runs.
    Runs(Runs),
    /// Nothing runs, and nothing will.
    Never(String),
}

/// The system that runs in the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Runs {
    /// ROOT-A or ROOT-B.
    pub slot: &'static str,
    /// Its version.
    pub version: String,
    /// Whether it has to prove itself.
    pub trial: bool,
    /// The config.
    pub config: Config,
    /// What runs after a trial that fails.
    pub then: Option<Box<Outcome>>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::NotInstalled(why) => write!(formatter, "not installed ({why})"),
            Outcome::Never(why) => write!(formatter, "never boots ({why})"),
            Outcome::Runs(runs) => {
                let trial = if runs.trial { " on trial" } else { "" };
                write!(formatter, "boots {} {}{trial}, ", runs.slot, runs.version)?;
                match &runs.config {
                    Config::None => write!(formatter, "no config")?,
                    Config::Text(digest) => write!(formatter, "config {:.8}", digest)?,
                    Config::Unusable(why) => write!(formatter, "STATE unusable: {why}")?,
                }
                match &runs.then {
                    Some(then) => write!(formatter, "; if that fails: {then}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The checker, with what it has seen already.
#[derive(Debug)]
pub struct Checker {
    loaders: Vec<Digest>,
    systems: Vec<System>,
    scratch: PathBuf,
    boot: RefCell<HashMap<u128, Result<BootPartition, String>>>,
    roots: RefCell<HashMap<(u128, String), bool>>,
    states: RefCell<HashMap<u128, State>>,
}

/// What changes from one start to the next.
struct Memory {
    variables: LoaderVariables,
    meta: Option<Meta>,
}

enum Step {
    Again,
    Done(Outcome),
}

impl Checker {
    /// A checker that knows these boot loaders (by their SHA-256) and systems. `scratch` is a directory for copies.
    pub fn new(loaders: Vec<Digest>, systems: Vec<System>, scratch: PathBuf) -> Self {
        Self { loaders, systems, scratch, boot: RefCell::default(), roots: RefCell::default(), states: RefCell::default() }
    }

    /// What becomes of a machine with this disk and this variable store.
    pub fn predict(&self, disk: &dyn Disk, store: &[u8]) -> io::Result<Outcome> {
        match LoaderVariables::read(store) {
            Ok(variables) => self.predict_with(disk, variables),
            Err(why) => Ok(Outcome::Never(format!("the variable store: {why}"))),
        }
    }

    fn predict_with(&self, disk: &dyn Disk, variables: LoaderVariables) -> io::Result<Outcome> {
        self.predict_from(disk, Memory { variables, meta: None })
    }

    fn predict_from(&self, disk: &dyn Disk, mut memory: Memory) -> io::Result<Outcome> {
        for _ in 0..STARTS {
            if let Step::Done(outcome) = self.start(disk, &mut memory)? {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Never(format!("restarts {STARTS} times and more")))
    }

    /// One start.
    fn start(&self, disk: &dyn Disk, memory: &mut Memory) -> io::Result<Step> {
        let table = Table::read(disk)?;
        let missing = |why: &str| Ok(Step::Done(Outcome::NotInstalled(why.to_owned())));
        let never = |why: String| Ok(Step::Done(Outcome::Never(why)));
        let Some(partitions) = table.firmware() else { return missing("no partition table") };
        let Some(boot) = partitions.iter().find(|partition| partition.is_boot()) else { return missing("no boot partition") };
        let files = match self.boot_partition(disk, boot)? {
            Ok(files) => files,
            Err(why) => return missing(&format!("the boot partition: {why}")),
        };
        if !files.loader.is_some_and(|loader| self.loaders.contains(&loader)) {
            return missing("no boot loader");
        }

        // The loader: what was asked for once, then what was chosen in its menu, then its file.
        let once = memory.variables.one_shot.take();
        let chosen = memory.variables.default.clone();
        let configured = files.conf.as_deref().and_then(default_slot).map(|slot| entry(slot).to_owned());
        let named = [once, chosen, configured].into_iter().flatten().map(|name| name.to_ascii_lowercase());
        let Some((name, image)) = named.into_iter().find_map(|name| files.images.get(&name).map(|image| (name, *image))) else {
            return never("the loader finds no entry that it is to start".to_owned());
        };
        let Some(system) = self.systems.iter().find(|system| system.uki == image) else {
            return never(format!("the kernel image {name} is damaged"));
        };

        // init: the root by its UUID, META beside it.
        let uuid = system.root.root_uuid();
        if !table.kernel(system.takes_second_table) {
            return never("the kernel finds no partitions".to_owned());
        }
        let Some(root) = table.any().iter().find(|partition| partition.uuid == uuid) else {
            return never(format!("no partition has the root {uuid} of {name}"));
        };
        let Some(slot) = [Slot::A, Slot::B].into_iter().find(|slot| slot.label() == root.name) else {
            return never(format!("the root {uuid} is in {}", root.name));
        };
        let find = |name: &str| table.any().iter().find(|partition| partition.name == name);
        if memory.meta.is_none() {
            let Some(partition) = find(meta::LABEL) else { return never("no META".to_owned()) };
            memory.meta = Some(meta::read(&mut Window { disk, partition, position: 0 })?);
        }
        let meta = memory.meta.get_or_insert_default();
        let mut fall_back = |meta: &mut Meta, why: &str| match record::fall_back(meta, slot, why) {
            Some(to) => {
                meta.set(STARTED, None);
                memory.variables.one_shot = Some(entry(to).to_owned());
                Ok(Step::Again)
            }
            None => never(format!("{} is damaged, and there is no other system", slot.label())),
        };
        let whole = || self.root_is_whole(disk, root, &system.root);
        if record::good(meta, other(slot)).is_some() {
            if meta.get(STARTED) == Some(slot.label()) && !whole()? {
                return fall_back(meta, "damaged");
            }
            meta.set(STARTED, Some(slot.label().to_owned()));
        }
        let mut top = [0; BLOCK];
        disk.read_at(root.start + system.root.top_block() * BLOCK as u64, &mut top)?;
        if verity::check_top(&top, &system.root).is_err() {
            return fall_back(meta, "another root");
        }
        if !whole()? {
            // The kernel stops at the damaged block and restarts; a noted start leads to the other slot.
            return match meta.get(STARTED) {
                Some(_) => Ok(Step::Again),
                None => never(format!("{} is damaged", slot.label())),
            };
        }

        let trial = record::trial_seconds(meta, slot, &system.root).is_some();
        let then = if trial {
            let variables = LoaderVariables { one_shot: None, ..memory.variables.clone() };
            // A second trial is known by what the start before wrote.
            let meta = Some(meta.clone()).filter(|meta| record::upgrade(meta).is_some_and(|upgrade| upgrade.again));
            Some(Box::new(self.predict_from(disk, Memory { variables, meta })?))
        } else {
            None
        };
        let Some(partition) = find("STATE") else { return never("no STATE".to_owned()) };
        // A reset that was cut off goes on, whatever it left of STATE.
        let resetting = meta.get(record::RESETTING).is_some();
        let config = if resetting { Config::None } else { self.state(disk, partition)?.config() };
        if matches!(config, Config::Text(_))
            && let Some(broken) = table.any().iter().filter(|partition| matches!(&*partition.name, "ETCD" | "DATA")).find(|partition| {
                let mut magic = [0; 2];
                disk.read_at(partition.start + 1024 + 56, &mut magic).is_err() || magic != [0x53, 0xef]
            })
        {
            return never(format!("{} holds no file system", broken.name));
        }
        // machined, which a machine with a config runs: a trial that was cut off is begun once more.
        if let Some(mut upgrade) = record::upgrade(meta).filter(|upgrade| matches!(config, Config::Text(_)) && upgrade.was_cut_off())
            && upgrade.at_boot(slot, &system.root) == AtBoot::CameBack
            && files.images.contains_key(entry(upgrade.slot))
        {
            upgrade.try_again();
            record::set_upgrade(meta, &upgrade);
            memory.variables = LoaderVariables { one_shot: Some(entry(upgrade.slot).to_owned()), default: None };
            return Ok(Step::Again);
        }
        Ok(Step::Done(Outcome::Runs(Runs { slot: slot.label(), version: system.version.clone(), trial, config, then })))
    }

    fn boot_partition(&self, disk: &dyn Disk, partition: &Partition) -> io::Result<Result<BootPartition, String>> {
        let key = disk.fingerprint(partition.start, partition.size);
        if let Some(known) = key.and_then(|key| self.boot.borrow().get(&key).cloned()) {
            return Ok(known);
        }
        let read = BootPartition::read(Window { disk, partition, position: 0 });
        if let Some(key) = key {
            self.boot.borrow_mut().insert(key, read.clone());
        }
        Ok(read)
    }

    fn root_is_whole(&self, disk: &dyn Disk, partition: &Partition, root: &Parameters) -> io::Result<bool> {
        let key = disk.fingerprint(partition.start, partition.size).map(|print| (print, root.root_uuid()));
        if let Some(known) = key.as_ref().and_then(|key| self.roots.borrow().get(key).copied()) {
            return Ok(known);
        }
        let mut image = io::BufReader::with_capacity(1 << 20, Window { disk, partition, position: 0 });
        let whole = verity::check(&mut image, root).is_ok();
        if let Some(key) = key {
            self.roots.borrow_mut().insert(key, whole);
        }
        Ok(whole)
    }

    fn state(&self, disk: &dyn Disk, partition: &Partition) -> io::Result<State> {
        let key = disk.fingerprint(partition.start, partition.size);
        if let Some(known) = key.and_then(|key| self.states.borrow().get(&key).cloned()) {
            return Ok(known);
        }
        let read = State::read(disk, partition, &self.scratch)?;
        if let Some(key) = key {
            self.states.borrow_mut().insert(key, read.clone());
        }
        Ok(read)
    }
}

/// A partition as a file that can only be read.
pub struct Window<'a> {
    disk: &'a dyn Disk,
    partition: &'a Partition,
    position: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.partition.size.saturating_sub(self.position).min(buffer.len() as u64) as usize;
        self.disk.read_at(self.partition.start + self.position, &mut buffer[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.partition.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl io::Write for Window<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
