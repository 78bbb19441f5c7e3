//! `strakectl gen config-key` and `strakectl config sign`: the key with which somebody vouches for configs that install machines by themselves.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use pki::{SigningKey, signed_text};

/// Write a key that signs configs for unattended installations: NAME.key, which stays with you, and NAME.pub, which `strakectl media` puts on media.
#[derive(Debug, clap::Args)]
pub struct ConfigKey {
    /// The files' name without what stands behind the dot.
    #[arg(default_value = "config", value_name = "NAME")]
    name: PathBuf,
}

/// Print a config with a signature in front, for `config.yaml` on a volume labelled STRAKE-CFG.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The complete config of a machine.
    config: PathBuf,
    /// The key (`strakectl gen config-key`).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

impl ConfigKey {
    pub fn run(self) -> anyhow::Result<()> {
        let key = SigningKey::generate()?;
        let file = |end: &str| PathBuf::from(format!("{}.{end}", self.name.display()));
        write(&file("key"), &key.to_pem()?, 0o600)?;
        write(&file("pub"), &key.public_pem(), 0o644)?;
        eprintln!("wrote {} and {}", file("key").display(), file("pub").display());
        Ok(())
    }
}

impl Sign {
    /// The signed text.
    pub fn signed(&self) -> anyhow::Result<String> {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let (text, key) = (read(&self.config)?, SigningKey::from_pem(&read(&self.key)?).with_context(|| self.key.display().to_string())?);
        // A machine would find it out when nobody is there.
        machine_config::Config::parse(&self.config.display().to_string(), &text).map_err(|errors| anyhow::anyhow!("{errors}"))?;
        Ok(signed_text::sign(&key, &text))
    }
}

/// Writes a file that was not there.
fn write(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).with_context(what)?;
    file.write_all(content.as_bytes()).with_context(what)
}

#[cfg(test)]
mod tests {
    use pki::VerifyingKey;
    use pki::signed_text::Signed;

    use super::*;

    #[test]
    fn a_key_is_written_once_and_signs_what_is_a_config() {
        let dir = tempfile::tempdir().expect("tempdir");
        let verb = || ConfigKey { name: dir.path().join("site") };
        verb().run().expect("write");
        assert!(verb().run().is_err(), "nothing is overwritten");
        let public = VerifyingKey::all_from_pem(&fs::read_to_string(dir.path().join("site.pub")).expect("read")).expect("keys");
        let config = dir.path().join("config.yaml");
        fs::write(&config, "apiVersion: strake.dev/v1alpha1\nkind: HostnameConfig\nhostname: a\n").expect("write");
        let sign = Sign { config: config.clone(), key: dir.path().join("site.key") };
        assert!(sign.signed().is_err(), "one document is no machine's config");
        assert!(matches!(signed_text::check(&public, "a"), Signed::Not));
    }
}
