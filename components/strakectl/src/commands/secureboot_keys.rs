//! `strakectl gen secureboot-keys`: the keys with which somebody who owns machines signs what these may start, and what they may be upgraded to.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use pki::{Issued, PrivateKey, SigningKey};

/// The firmware looks at no dates; a certificate that ends would only confuse people.
const LIFETIME: Duration = Duration::from_secs(30 * 365 * 86400);

/// Write the keys that sign the boot chain and upgrade files.
///
/// PK, KEK and db are the firmware's keys of UEFI Secure Boot (RSA 2048, self-signed certificates in PEM), owner.guid names their owner to the firmware, and upgrade.key signs upgrade
/// files (Ed25519), and pcr.key (ECDSA P-256) what a kernel image measures, for which TPMs open the machines' disks. `cargo xtask image --secureboot-keys DIR` builds signed media with them. Whoever has db.key, pcr.key or upgrade.key can make a system that your machines
/// start: keep the directory off the machines. Nothing that exists is overwritten.
#[derive(Debug, clap::Args)]
pub struct SecurebootKeys {
    /// The directory to write to; it is made when it is not there.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Whose keys they are: part of the certificates' names.
    #[arg(long, default_value = "Strake", value_name = "NAME")]
    owner: String,
}

impl SecurebootKeys {
    pub fn run(self) -> anyhow::Result<()> {
        let files = files(&self.owner, Timestamp::now())?;
        if let Some((name, _)) = files.iter().find(|(name, _)| fs::symlink_metadata(self.dir.join(name)).is_ok()) {
            bail!("{} exists, and keys that machines trust cannot be made again; use another directory", self.dir.join(name).display());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        for (name, content) in &files {
            write(&self.dir.join(name), content)?;
        }
        eprintln!("wrote {} files to {}", files.len(), self.dir.display());
        eprintln!("next: cargo xtask image --secureboot-keys {}", self.dir.display());
        Ok(())
    }
}

/// Every file with its content.
fn files(owner: &str, now: Timestamp) -> anyhow::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for (name, what) in [("PK", "platform key"), ("KEK", "key exchange key"), ("db", "signature database key")] {
        let Issued { cert_pem, key_pem } = Issued::for_firmware(&format!("{owner} {what}"), now, LIFETIME)?;
        files.push((format!("{name}.pem"), cert_pem));
        files.push((format!("{name}.key"), key_pem));
    }
    let upgrade = SigningKey::generate()?;
    files.push(("upgrade.pub".to_owned(), upgrade.public_pem()));
    files.push(("upgrade.key".to_owned(), upgrade.to_pem()?));
    let measured = PrivateKey::generate()?;
    files.push(("pcr.pub".to_owned(), measured.public_pem()));
    files.push(("pcr.key".to_owned(), measured.to_pem()));
    files.push(("owner.guid".to_owned(), format!("{}\n", uuid::Uuid::new_v4())));
    Ok(files)
}

/// Writes a file that only its owner can read, and that was not there.
fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(what)?;
    file.write_all(content.as_bytes()).with_context(what)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_written_once_and_only_their_owner_reads_them() {
        let dir = tempfile::tempdir().expect("tempdir");
        let keys = dir.path().join("keys");
        let verb = || SecurebootKeys { dir: keys.clone(), owner: "Example".into() };
        verb().run().expect("write");
        let mut names: Vec<String> =
            fs::read_dir(&keys).expect("list").map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let expected = [
            "KEK.key",
            "KEK.pem",
            "PK.key",
            "PK.pem",
            "db.key",
            "db.pem",
            "owner.guid",
            "pcr.key",
            "pcr.pub",
            "upgrade.key",
            "upgrade.pub",
        ];
        assert_eq!(names, expected);
        for name in &names {
            assert_eq!(fs::metadata(keys.join(name)).expect(name).permissions().mode() & 0o777, 0o600, "{name}");
        }
        let text = |name: &str| fs::read_to_string(keys.join(name)).expect(name);
        let db = pki::Certificate::from_pem(&text("db.pem")).expect("certificate");
        assert_eq!(db.common_name, "Example signature database key");
        let upgrade = SigningKey::from_pem(&text("upgrade.key")).expect("key");
        assert_eq!(upgrade.public_pem(), text("upgrade.pub"));

        let before = text("PK.key");
        fs::remove_file(keys.join("db.key")).expect("remove");
        assert!(verb().run().expect_err("exists").to_string().contains("use another directory"));
        assert_eq!(text("PK.key"), before);
        assert!(!keys.join("db.key").exists());
    }
}
