//! `strakectl gen recovery-key`: the key that opens a machine's encrypted volumes when nothing else does.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use machine_api::recovery_key::RecoveryKey;
use rand::RngExt as _;

/// Write a recovery key for a machine's encrypted volumes.
///
/// `apply-config --recovery-key FILE` takes it when the machine is installed (and makes one itself when FILE is not there). It opens the machine's volumes on the day when its TPM, key
/// file or passphrase does not: keep it where the machine's thief does not find it. Nothing that exists is overwritten.
#[derive(Debug, clap::Args)]
pub struct RecoveryKeyFile {
    /// The file to write; it must not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl RecoveryKeyFile {
    pub fn run(self) -> anyhow::Result<()> {
        make(&self.file).with_context(|| format!("write the recovery key to {}", self.file.display()))?;
        eprintln!("wrote a recovery key to {}; keep it off the machine it opens", self.file.display());
        Ok(())
    }
}

/// The key in a file, or a new one that is in it then.
pub fn read_or_make(file: &Path) -> anyhow::Result<RecoveryKey> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = make(file).with_context(|| format!("write the recovery key to {}", file.display()))?;
            eprintln!("the recovery key of this machine is in {} now: keep it where the machine's thief does not find it", file.display());
            return Ok(key);
        }
        other => other.with_context(|| format!("read {}", file.display()))?,
    };
    text.parse::<RecoveryKey>().with_context(|| format!("read {}", file.display()))
}

fn make(file: &Path) -> io::Result<RecoveryKey> {
    let key = RecoveryKey::new(&rand::rng().random());
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(new, "{key}")?;
    new.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("machine.key");
        let made = read_or_make(&file).expect("make");
        assert_eq!(fs::metadata(&file).expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_make(&file).expect("read"), made);
        assert!(make(&file).is_err(), "nothing is overwritten");
        assert!(RecoveryKeyFile { file: file.clone() }.run().is_err());
        fs::write(&file, "no key\n").expect("write");
        assert!(format!("{:#}", read_or_make(&file).expect_err("refused")).contains("32 letters and digits"));
        let other = dir.path().join("other.key");
        assert_ne!(read_or_make(&other).expect("make"), made);
    }
}
