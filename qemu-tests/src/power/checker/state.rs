//! STATE as machined finds it: checked by e2fsck, which replays the journal, then the files that decide what the machine is. On a copy.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use sha2::{Digest as _, Sha256};
use verity::Digest;

use super::{Config, Disk, Partition};

/// machined's second try.
const SECOND_SUPERBLOCK: &[&str] = &["-y", "-b", "32768", "-B", "4096"];

/// What is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The config, if there is one, and whether everything is to be wiped at the next start.
    Opens { config: Option<String>, reset: bool },
    /// It could not be repaired without loss; what e2fsck says.
    Broken(String),
}

impl State {
    /// Looks.
    pub fn read(disk: &dyn Disk, partition: &Partition, scratch: &Path) -> io::Result<Self> {
        // Without the magic number of ext4 no program needs to be asked.
        let mut magic = [0; 2];
        disk.read_at(partition.start + 1024 + 56, &mut magic)?;
        if magic != [0x53, 0xef] {
            return Ok(State::Broken("no file system".to_owned()));
        }
        let path = scratch.join("state");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(partition.size)?;
        disk.copy(partition.start, partition.size, &file)?;
        let mut checked = run("e2fsck", &["-p"], &path)?;
        if !matches!(checked.status.code(), Some(0..=2)) {
            // As machined does: the superblock may be torn, and there are copies of it.
            checked = run("e2fsck", SECOND_SUPERBLOCK, &path)?;
        }
        if !matches!(checked.status.code(), Some(0..=2)) {
            let said = String::from_utf8_lossy(&checked.stdout).into_owned();
            return Ok(State::Broken(said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("e2fsck failed").trim().to_owned()));
        }
        let listed = text(&run("debugfs", &["-R", "ls -p /"], &path)?)?;
        let there = |name: &str| listed.lines().any(|line| line.split('/').nth(5) == Some(name));
        let config = if there("config.yaml") {
            let content = run("debugfs", &["-R", "cat /config.yaml"], &path)?;
            Some(Digest(Sha256::digest(&content.stdout).into()).to_string())
        } else {
            None
        };
        Ok(State::Opens { config, reset: there("reset-requested") })
    }

    /// The config that the machine comes up with.
    pub fn config(self) -> Config {
        match self {
            State::Opens { reset: true, .. } | State::Opens { config: None, .. } => Config::None,
            State::Opens { config: Some(digest), .. } => Config::Text(digest),
            State::Broken(why) => Config::Unusable(why),
        }
    }
}

fn text(output: &Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("debugfs failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// Runs one of e2fsprogs' programs, which lie where only root's path leads on some hosts.
fn run(program: &str, arguments: &[&str], on: &Path) -> io::Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    let program = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{program} of the package e2fsprogs is missing")))?;
    Command::new(program).args(arguments).arg(on).env("LC_ALL", "C").stdin(Stdio::null()).output()
}
