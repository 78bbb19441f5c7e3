//! What systemd-boot on an installation medium shows: the system, which is started after some seconds, and the same in maintenance mode. The second
//! entry starts the same kernel image with the same command line, so that nothing more has to be signed; the loader notes in a variable of the
//! firmware which one was chosen, and machined looks there (`components/machined/src/medium.rs`).

use std::path::{Path, PathBuf};

use crate::error::{Error, FileContext};

/// How long the menu is shown.
const SECONDS: u32 = 3;
/// The system on the medium.
pub const SYSTEM: &str = "EFI/Linux/strake.efi";
/// The loader's name of an entry is its file's.
const MAINTENANCE: &str = "loader/entries/maintenance.conf";
const ENTRY: &str = "title Strake: maintenance mode, whatever is installed\nversion maintenance\nefi /EFI/Linux/strake.efi\n";

/// The menu's files: path on the medium, file. `more` are further lines of the loader's configuration, and `seconds` another time for the menu.
pub fn files(scratch: &Path, more: &str, seconds: Option<u32>) -> Result<Vec<(String, PathBuf)>, Error> {
    let conf = format!("default strake.efi\ntimeout {}\neditor no\n{more}", seconds.unwrap_or(SECONDS));
    let mut files = Vec::new();
    for (path, name, content) in [("loader/loader.conf", "loader.conf", conf.as_str()), (MAINTENANCE, "maintenance.conf", ENTRY)] {
        let file = scratch.join(name);
        std::fs::write(&file, content).on("write", &file)?;
        files.push((path.to_owned(), file));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_entries_start_the_same_system_and_the_first_is_the_default() {
        let scratch = tempfile::tempdir().unwrap();
        let files = files(scratch.path(), "secure-boot-enroll force\n", Some(5)).unwrap();
        let text = |path: &str| {
            let (_, file) = files.iter().find(|(found, _)| found == path).unwrap();
            std::fs::read_to_string(file).unwrap()
        };
        assert_eq!(text("loader/loader.conf"), "default strake.efi\ntimeout 5\neditor no\nsecure-boot-enroll force\n");
        assert!(text(MAINTENANCE).contains(&format!("efi /{SYSTEM}\n")) && !text(MAINTENANCE).contains("options"));
        assert!(SYSTEM.ends_with("/strake.efi"), "the default is named by its file");
    }
}
