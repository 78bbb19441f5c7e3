//! Where the slots of this disk are, and META.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Mutex;

use host::loader_variables::{self, LoaderVariables};
use machine_config::layout::Partition;
use node_ipc::init::Slot;
use slots::loader::other;
use slots::meta::{self, Meta};
use slots::record::System;

use super::UpgradeError;
use crate::install::esp::BootPartition;
use crate::machine::{Machine, SystemDisk, SystemPartition};

/// One change at a time.
static CHANGING: Mutex<()> = Mutex::new(());

/// The disk's parts, as upgrades see them.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The whole disk.
    pub disk: SystemDisk,
    /// The slot that runs.
    pub own: Slot,
    /// What runs.
    pub running: System,
    /// The other slot's partition.
    pub idle: SystemPartition,
    /// The boot partition.
    pub boot: BootPartition,
    /// What the firmware tells the boot loader.
    pub variables: LoaderVariables,
    meta: PathBuf,
}

impl Layout {
    /// Looks.
    pub fn of(machine: &Machine) -> Result<Layout, UpgradeError> {
        let disk = machine.disks.system_disk().map_err(UpgradeError::Disks)?.ok_or(UpgradeError::NoSlots)?;
        let own = machine.boot.slot.ok_or(UpgradeError::NoSlots)?;
        let find = |label: &'static str| {
            let found = disk.partitions.iter().find(|partition| partition.label == label);
            found.cloned().ok_or(UpgradeError::NoPartition(label))
        };
        let (esp, idle, meta) = (find("ESP")?, find(other(own).label())?, find(meta::LABEL)?);
        let release = &machine.release;
        let running = System { version: release.version.clone(), kubernetes: release.kubernetes.clone(), root: machine.boot.root };
        let boot = BootPartition { node: esp.node, size: esp.size };
        let variables = LoaderVariables::at(&machine.paths.at(loader_variables::DIRECTORY));
        Ok(Layout { own, running, idle, boot, variables, meta: meta.node, disk })
    }

    /// The slot that does not run.
    pub fn other(&self) -> Slot {
        other(self.own)
    }

    /// The idle slot as what is written through its own node.
    pub fn idle_window(&self) -> Partition {
        Partition { label: self.other().label(), start: 0, size: self.idle.size, type_guid: "" }
    }

    /// What META says.
    pub fn read(&self) -> Result<Meta, UpgradeError> {
        let mut file = std::fs::File::open(&self.meta).map_err(UpgradeError::ReadMeta)?;
        meta::read(&mut file).map_err(UpgradeError::ReadMeta)
    }

    /// Changes META; when this returns, the change is on the disk. What is as it was is not written again.
    pub fn change(&self, change: impl FnOnce(&mut Meta)) -> Result<(), UpgradeError> {
        // No code panics while it holds the lock.
        let _one = CHANGING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = self.read()?;
        let mut meta = before.clone();
        change(&mut meta);
        if meta == before {
            return Ok(());
        }
        let written = || -> Result<(), slots::meta::WriteError> {
            let mut file = OpenOptions::new().write(true).open(&self.meta)?;
            meta::write(&mut file, &meta)?;
            Ok(file.sync_all()?)
        };
        Ok(written()?)
    }
}
