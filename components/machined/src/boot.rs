//! From power-on to knowing what this machine is: STATE is found and mounted, a reset that was asked for is carried out,
//! and the config is read. Whatever goes wrong leads to maintenance mode with the reason, never to an open machine: it
//! still takes the console's pairing string to do anything.

use std::path::Path;

use host::mount::{LinuxMounts, Mounts};
use machine_config::Config;
use node_ipc::init::{BootInfo, BootSource};

use crate::api::chain;
use crate::encryption::{self, Opened};
use crate::install;
use crate::machine::{Disks, Loaded};
use crate::paths::Paths;
use crate::reconcilers::mount;
use crate::reset;
use crate::state::StateDir;

/// What the machine is.
#[derive(Debug)]
pub enum Found {
    /// It has no config; with what is wrong, if that is why.
    NoConfig { trouble: Option<String> },
    /// STATE is encrypted, and nothing the machine has opens it; with the reason, and what would.
    Locked { why: String },
    /// It has this config; with what is wrong, if it is not the one it should be.
    Config { loaded: Box<Loaded>, trouble: Option<String> },
}

/// Finds out.
pub async fn find(paths: &Paths, boot: &BootInfo, disks: &dyn Disks) -> Found {
    if boot.source == BootSource::Media {
        return Found::NoConfig { trouble: None };
    }
    match load(paths, disks).await {
        Ok(found) => found,
        Err(error) => {
            let error = chain(error.as_ref());
            tracing::error!(error, "STATE can't be used");
            Found::NoConfig { trouble: Some(format!("STATE can't be used: {error}")) }
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn load(paths: &Paths, disks: &dyn Disks) -> Result<Found, Failure> {
    if reset::has_begun(disks)? {
        reset::wipe(paths, disks)?;
        return Ok(Found::NoConfig { trouble: None });
    }
    if disks.system_disk()?.is_some_and(|disk| install::rest::is_missing(&disk)) {
        tracing::info!("the disk has the system and nothing else: it was written from a disk image");
        return Ok(Found::NoConfig { trouble: None });
    }
    let (device, _) = disks.system_partition("STATE")?.ok_or("the disk this system runs from has no partition STATE")?;
    let target = paths.state();
    let device = match open(paths, "STATE", &device).await? {
        Opened::Plain(device) | Opened::Mapped(device) => device,
        // A reset got so far.
        Opened::Erased => {
            reset::wipe(paths, disks)?;
            return Ok(Found::NoConfig { trouble: None });
        }
        Opened::Locked(why) => {
            tracing::warn!(why, "STATE is locked");
            return Ok(Found::Locked { why });
        }
    };
    mount(&device, &target).await?;
    let state = StateDir::new(&target);
    if state.reset_requested() {
        reset::begin(disks)?;
        LinuxMounts.unmount(&target, false)?;
        reset::wipe(paths, disks)?;
        return Ok(Found::NoConfig { trouble: None });
    }
    let Some(text) = state.config()? else { return Ok(Found::NoConfig { trouble: None }) };
    let errors = match Config::parse("config.yaml", &text) {
        Ok(config) => return Ok(Found::Config { loaded: Box::new(Loaded { text, config }), trouble: None }),
        Err(errors) => errors,
    };
    tracing::error!(%errors, "the machine config can't be used");
    let text = state.last_good_config()?.ok_or_else(|| format!("the machine config can't be used: {errors}"))?;
    let config = Config::parse("config.last-good.yaml", &text)?;
    let trouble = Some("the machine config can't be used; the last good one is in force".to_owned());
    Ok(Found::Config { loaded: Box::new(Loaded { text, config }), trouble })
}

/// Opens a volume in a thread of its own, since it waits for the TPM and for cryptsetup.
pub async fn open(paths: &Paths, label: &str, device: &Path) -> Result<Opened, Failure> {
    let (paths, label, device) = (paths.clone(), label.to_owned(), device.to_owned());
    Ok(tokio::task::spawn_blocking(move || encryption::open(&paths, &label, &device)).await??)
}
