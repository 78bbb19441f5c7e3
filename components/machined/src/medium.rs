//! A medium that is started on a machine with an installed system goes on to that system, and never takes over what it keeps: it counts down, tells the
//! firmware to start the disk's own loader once, and restarts the machine. So the system comes up as it does without the medium: from its own loader,
//! which chooses the slot, with its own measurements.
//!
//! Whoever wants maintenance mode instead chooses it in the medium's menu, or says anything with the pairing string while it counts. A machine that
//! comes back here from its disk several times is left in maintenance mode too, so that it does not restart for ever.

use std::sync::Arc;
use std::time::Duration;

use host::boot_option::{BootOption, BootOptions};
use host::loader_variables::{LoaderVariables, VariableError};
use node_ipc::init::BootSource;
use tokio::sync::watch;

use crate::api::chain;
use crate::machine::{Installed, Machine};
use crate::paths::Paths;

/// How long it waits.
pub const SECONDS: u32 = 30;
/// The console shows it this often, and more often at the end.
const SHOWN: u32 = 10;
/// How often a disk is started before it is left to people.
const ATTEMPTS: u32 = 3;
/// The medium's menu entry for maintenance mode, as its loader calls it (`image/src/menu.rs` writes it), and the loader's variable with the one chosen.
const MAINTENANCE_ENTRY: &str = "maintenance.conf";
const CHOSEN: &str = "LoaderEntrySelected";
/// The same on the kernel's command line, for those who start machines from the network.
const MAINTENANCE_WORD: &str = "strake.maintenance";
/// Whose variables are ours, and the one that counts the restarts into the disk.
const VENDOR: &str = "9d4c1f64-2b7e-4d53-8a1e-6f0a53547261";
const COUNT: &str = "StrakeContinued";
/// What the installation puts where firmware looks on a disk.
const PROGRAM: &str = "/EFI/BOOT/BOOTX64.EFI";
const DESCRIPTION: &str = "Strake (installed)";

/// What is known when a medium was started.
#[derive(Clone, Debug)]
struct Facts<'a> {
    installed: &'a [Installed],
    /// Somebody wants maintenance mode.
    asked: bool,
    /// How often the disk was started before, without its system having come up.
    attempts: u32,
    /// The firmware keeps variables.
    variables: bool,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision<'a> {
    /// Nothing is installed.
    Nothing,
    /// Maintenance mode, with what people are told.
    Stay(String),
    /// Start this disk, unless somebody says otherwise in time.
    Continue(&'a Installed),
}

fn decide<'a>(facts: &Facts<'a>) -> Decision<'a> {
    let names: Vec<&str> = facts.installed.iter().map(|installed| installed.disk.as_str()).collect();
    let there = format!("booted from the medium, and a system is installed on {}", names.join(", "));
    let stay = |why: &str| Decision::Stay(format!("{there}: {why}; installing again needs install.wipe"));
    match facts.installed {
        [] => Decision::Nothing,
        _ if facts.asked => stay("maintenance mode was asked for"),
        [_, _, ..] => stay("remove the medium to start the one that the firmware chooses"),
        [installed] if installed.boot.is_none() => stay("it has no boot partition"),
        _ if !facts.variables => stay("remove the medium to start it, as this firmware keeps no variables"),
        _ if facts.attempts >= ATTEMPTS => {
            stay(&format!("it was started {ATTEMPTS} times and did not come up; remove the medium, or repair it"))
        }
        [installed] => Decision::Continue(installed),
    }
}

/// What the console shows while it counts.
fn counting(disk: &str, left: u32) -> String {
    format!(
        "a system is installed on {disk}, and is started in {left} s; any call with the pairing string stops this, and so does the medium's menu entry for \
         maintenance"
    )
}

/// Whether the console shows a new number.
fn is_shown(left: u32) -> bool {
    left > 0 && (left.is_multiple_of(SHOWN) || left == SHOWN / 2)
}

/// Whether somebody wants maintenance mode, by the menu or by the command line.
fn asked(chosen: Option<&str>, command_line: &str) -> bool {
    chosen == Some(MAINTENANCE_ENTRY) || command_line.split_ascii_whitespace().any(|word| word == MAINTENANCE_WORD)
}

fn ours(paths: &Paths) -> LoaderVariables {
    LoaderVariables::of_vendor(&paths.at(host::loader_variables::DIRECTORY), VENDOR)
}

/// How often the disk was started; what is no number is not counted.
fn attempts(paths: &Paths) -> u32 {
    ours(paths).read(COUNT).ok().flatten().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The installed system came up: what a medium counted is over.
pub fn came_up(paths: &Paths) {
    if let Err(error) = ours(paths).remove(COUNT) {
        tracing::warn!(error = chain(&error), "forget how often a medium started this disk");
    }
}

/// Makes the firmware start the disk next.
fn arm(paths: &Paths, installed: &Installed, attempts: u32) -> Result<(), VariableError> {
    let Some(boot) = &installed.boot else { return Ok(()) };
    ours(paths).write(COUNT, &(attempts + 1).to_string())?;
    let option = BootOption {
        description: DESCRIPTION,
        number: boot.number,
        first_sector: boot.first_sector,
        sectors: boot.sectors,
        uuid: &boot.uuid,
        file: PROGRAM,
    };
    BootOptions::at(&paths.at(host::loader_variables::DIRECTORY)).start_next(&option)
}

/// Goes on to the installed system, if there is one and nobody wants otherwise. What people should know is shown by `notice`; `used` tells that
/// somebody used the pairing string.
pub async fn go_on(machine: Arc<Machine>, notice: watch::Sender<Option<String>>, mut used: watch::Receiver<bool>) {
    if machine.boot.source != BootSource::Media {
        return;
    }
    let installed = match machine.disks.installations() {
        Ok(installed) => installed,
        Err(error) => return tracing::warn!(error = chain(&error), "look for installed systems"),
    };
    let loader = LoaderVariables::at(&machine.paths.at(host::loader_variables::DIRECTORY));
    let chosen = loader.read(CHOSEN).ok().flatten();
    let command_line = std::fs::read_to_string(machine.paths.at("/proc/cmdline")).unwrap_or_default();
    let attempts = attempts(&machine.paths);
    let facts = Facts { installed: &installed, asked: asked(chosen.as_deref(), &command_line), attempts, variables: loader.are_kept() };
    let disk = match decide(&facts) {
        Decision::Nothing => return,
        Decision::Stay(why) => {
            // Whoever starts the machine again wants it to be tried again.
            came_up(&machine.paths);
            tracing::warn!(why, "a system is installed");
            notice.send_replace(Some(why));
            return;
        }
        Decision::Continue(disk) => disk,
    };
    for left in (1..=SECONDS).rev() {
        if left == SECONDS || is_shown(left) {
            notice.send_replace(Some(counting(&disk.disk, left)));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            stopped = used.wait_for(|used| *used) => {
                if stopped.is_ok() {
                    let why = format!("a system is installed on {}; it is not started, as the pairing string was used", disk.disk);
                    tracing::warn!(why, "maintenance mode");
                    notice.send_replace(Some(why));
                }
                return;
            }
        }
    }
    // Held to the end: nothing else changes the machine any more.
    let Ok(_changing) = machine.changing.clone().try_lock_owned() else { return };
    if let Err(error) = arm(&machine.paths, disk, attempts) {
        let error = chain(&error);
        tracing::error!(error, disk = disk.disk, "start the installed system");
        notice.send_replace(Some(format!("the system on {} can't be started from here: {error}; remove the medium", disk.disk)));
        return;
    }
    notice.send_replace(Some(format!("starting the system on {}", disk.disk)));
    if let Err(error) = machine.init.reboot(&format!("from the medium to the system on {}", disk.disk)).await {
        let error = chain(&error);
        tracing::error!(error, "restart into the installed system");
        notice.send_replace(Some(format!("restart into the system on {}: {error}", disk.disk)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::BootPlace;

    fn installed(disk: &str) -> Installed {
        let uuid = "0b1c2d3e-1122-4000-8000-0000a0b0c0d0".to_owned();
        Installed { disk: disk.to_owned(), boot: Some(BootPlace { number: 1, first_sector: 2048, sectors: 2_097_152, uuid }) }
    }

    #[test]
    fn a_medium_goes_on_to_the_one_installed_system_unless_somebody_or_something_is_against_it() {
        let (none, one, two) = (vec![], vec![installed("vda")], vec![installed("sda"), installed("sdb")]);
        let no_boot = vec![Installed { boot: None, ..installed("vda") }];
        for (installed, asked, attempts, variables, expected) in [
            (&none, false, 0, true, None),
            (&none, true, 9, false, None),
            (&one, false, 0, true, Some("")),
            (&one, false, ATTEMPTS - 1, true, Some("")),
            (&one, true, 0, true, Some("maintenance mode was asked for")),
            (&one, false, ATTEMPTS, true, Some("started 3 times")),
            (&one, false, u32::MAX, true, Some("did not come up")),
            (&one, false, 0, false, Some("keeps no variables")),
            (&two, false, 0, true, Some("sda, sdb: remove the medium")),
            (&two, true, 0, true, Some("asked for")),
            (&no_boot, false, 0, true, Some("no boot partition")),
        ] {
            let found = decide(&Facts { installed, asked, attempts, variables });
            match (&found, expected) {
                (Decision::Nothing, None) => {}
                (Decision::Continue(disk), Some("")) => assert_eq!(disk.disk, "vda"),
                (Decision::Stay(why), Some(expected)) if !expected.is_empty() => assert!(why.contains(expected), "{why}"),
                _ => panic!("{installed:?} {asked} {attempts} {variables}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn maintenance_is_asked_for_by_the_menu_or_by_a_word() {
        for (chosen, line, expected) in [
            (None, "", false),
            (Some("strake.efi"), "console=ttyS0 strake.maintenancex xstrake.maintenance", false),
            (Some("maintenance.conf"), "", true),
            (None, "panic=10 strake.maintenance\n", true),
        ] {
            assert_eq!(asked(chosen, line), expected, "{chosen:?} {line}");
        }
        let shown: Vec<u32> = (0..=SECONDS).filter(|left| is_shown(*left)).collect();
        assert_eq!(shown, [5, 10, 20, 30]);
    }

    #[test]
    fn restarts_into_the_disk_are_counted_until_its_system_comes_up() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let variables = paths.at(host::loader_variables::DIRECTORY);
        std::fs::create_dir_all(&variables).unwrap();
        for before in 0..ATTEMPTS {
            assert_eq!(attempts(&paths), before);
            arm(&paths, &installed("vda"), before).unwrap();
        }
        assert_eq!(attempts(&paths), ATTEMPTS);
        let names: Vec<_> = std::fs::read_dir(&variables).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(names.iter().any(|name| name.starts_with("BootNext-")), "{names:?}");
        came_up(&paths);
        came_up(&paths);
        assert_eq!(attempts(&paths), 0);
        ours(&paths).write(COUNT, "nonsense").unwrap();
        assert_eq!(attempts(&paths), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pairing_string_stops_the_countdown_and_its_end_arms_the_firmware() {
        struct OneDisk;
        impl crate::machine::Disks for OneDisk {
            fn observe(&self) -> std::io::Result<Vec<crate::machine::ObservedDisk>> {
                Ok(Vec::new())
            }

            fn system_partition(&self, _label: &str) -> std::io::Result<Option<(std::path::PathBuf, u64)>> {
                Ok(None)
            }

            fn installations(&self) -> std::io::Result<Vec<Installed>> {
                Ok(vec![installed("vda")])
            }
        }
        for stopped in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let paths = Paths::under(dir.path());
            let variables = paths.at(host::loader_variables::DIRECTORY);
            std::fs::create_dir_all(&variables).unwrap();
            std::fs::write(variables.join("StubInfo-x"), "x").unwrap();
            let (text, _) = crate::testing::worker_text("{disk: {name: vda}}");
            let config = machine_config::Config::parse("test", &text).unwrap();
            let boot = node_ipc::init::BootInfo {
                source: BootSource::Media,
                device: "/dev/sr0".into(),
                root: crate::testing::root_image(2, 0).1,
                slot: None,
                trial_seconds: None,
            };
            let loaded = crate::machine::Loaded { text, config };
            let machine = crate::testing::machine_on(dir.path(), loaded, boot, Default::default(), Box::new(OneDisk));
            let (notice, shown) = watch::channel(None);
            let (use_it, used) = watch::channel(false);
            let counting = tokio::spawn(go_on(machine, notice, used));
            tokio::time::sleep(Duration::from_secs(u64::from(SECONDS) - 1)).await;
            assert!(shown.borrow().as_deref().is_some_and(|text| text.contains("started in 5 s")), "{:?}", shown.borrow());
            assert!(!counting.is_finished());
            if stopped {
                use_it.send_replace(true);
            }
            counting.await.unwrap();
            let armed =
                std::fs::read_dir(&variables).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with("BootNext"));
            assert_eq!(armed, !stopped);
            // Nobody is init here, so that it is told why there is no restart.
            let expected = if stopped { "pairing string was used" } else { "restart into the system on vda" };
            assert!(shown.borrow().as_deref().is_some_and(|text| text.contains(expected)), "{:?}", shown.borrow());
        }
    }
}
