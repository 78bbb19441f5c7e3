//! What the machine's console shows: name, addresses, stage, the pairing string, and everything that is wrong.

use std::sync::Arc;
use std::time::Duration;

use machine_api::pairing::Pairing;
use node_ipc::init::ConsoleStatus;
use tokio::sync::watch;

use super::Standing;
use crate::machine::Machine;

/// Changes within this time are shown together.
const TOGETHER: Duration = Duration::from_millis(300);
/// Lines that a console has room for, and their length.
const MAX_ERRORS: usize = 8;
const MAX_LINE: usize = 200;

/// What the console is told about.
pub struct Console {
    /// The machine.
    pub machine: Arc<Machine>,
    /// How the reconcilers stand.
    pub board: watch::Receiver<std::collections::BTreeMap<&'static str, Standing>>,
    /// The pairing string, in maintenance mode.
    pub pairing: Option<watch::Receiver<Pairing>>,
    /// What people should know besides, while it is so.
    pub notice: watch::Receiver<Option<String>>,
    /// What was wrong when the machine came up.
    pub trouble: Vec<String>,
}

impl Console {
    /// Shows changes until it is dropped.
    pub async fn run(mut self) {
        let mut shown = None;
        let mut addresses = self.machine.addresses.clone();
        loop {
            let status = self.status();
            if shown.as_ref() != Some(&status) {
                match self.machine.init.set_console(status.clone()).await {
                    Ok(()) => shown = Some(status),
                    Err(error) => tracing::warn!(error = %crate::api::chain(&error), "show the state on the console"),
                }
            }
            let pairing = async {
                match &mut self.pairing {
                    Some(pairing) => pairing.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            // Each ends when its sender is gone, which is when machined is.
            tokio::select! {
                changed = addresses.changed() => if changed.is_err() { return },
                changed = self.board.changed() => if changed.is_err() { return },
                there = pairing => if !there { return },
                Ok(()) = self.notice.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(30)) => {}
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }

    fn status(&self) -> ConsoleStatus {
        let board = self.board.borrow();
        let failed = board.iter().filter_map(|(name, standing)| match standing {
            Standing::Failed(reason) => Some(format!("{name}: {reason}")),
            _ => None,
        });
        let errors = self
            .trouble
            .iter()
            .cloned()
            .chain(self.notice.borrow().clone())
            .chain(failed)
            .map(|line| cut(&line))
            .take(MAX_ERRORS)
            .collect();
        ConsoleStatus {
            hostname: self.machine.hostname(),
            addresses: self.machine.addresses().iter().map(ToString::to_string).collect(),
            stage: stage(self.pairing.is_some(), board.values()).to_owned(),
            role: self.machine.loaded().map(|loaded| loaded.config.machine.role.to_string()).unwrap_or_default(),
            slot: match self.machine.boot.slot {
                Some(slot) => slot.label().to_owned(),
                None => "medium".to_owned(),
            },
            health: if self.pairing.is_some() { String::new() } else { health(board.values()) },
            errors,
            pairing: self.pairing.as_ref().map(|pairing| pairing.borrow().to_string()),
        }
    }
}

/// How many of the parts are ready.
fn health<'a>(standings: impl Iterator<Item = &'a Standing>) -> String {
    let (ready, all) = standings.fold((0, 0), |(ready, all), one| (ready + usize::from(matches!(one, Standing::Ready(_))), all + 1));
    format!("{ready}/{all}")
}

fn stage<'a>(maintenance: bool, mut standings: impl Iterator<Item = &'a Standing>) -> &'static str {
    match () {
        () if maintenance => "maintenance",
        () if standings.all(|standing| matches!(standing, Standing::Ready(_))) => "running",
        () => "starting",
    }
}

/// One line of bounded length, without anything that moves a cursor.
fn cut(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_is_one_word() {
        let (ready, failed) = (Standing::Ready(String::new()), Standing::Failed(String::new()));
        assert_eq!(stage(true, [].iter()), "maintenance");
        assert_eq!(stage(false, [&ready, &ready].into_iter()), "running");
        assert_eq!(stage(false, [&ready, &failed].into_iter()), "starting");
    }

    #[test]
    fn health_is_how_many_are_ready() {
        let (ready, failed) = (Standing::Ready(String::new()), Standing::Failed(String::new()));
        assert_eq!(health([&ready, &failed, &ready].into_iter()), "2/3");
        assert_eq!(health([].iter()), "0/0");
    }

    #[test]
    fn lines_are_cut_and_harmless() {
        assert_eq!(cut("a\u{1b}[2Jb\nc"), "a [2Jb c");
        assert_eq!(cut(&"x".repeat(500)).len(), MAX_LINE);
    }
}
