//! `strakectl unlock`: opens a machine's encrypted volumes with a passphrase or the recovery key.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use machine_api::v1alpha1::UnlockRequest;
use serde_json::json;

use super::{Cx, refused};

/// More than a passphrase has.
const MOST: u64 = 512;

/// Open a machine's encrypted volumes with a passphrase or the recovery key.
///
/// A machine that cannot open its STATE says so on its console and waits in maintenance mode: name it with --nodes and the string on its console with --pairing. Once STATE is open the
/// machine goes on by itself. After its TPM was replaced or cleared, or its firmware's keys changed on purpose, --reseal gives the volumes new keys in the TPM as it is now.
#[derive(Debug, clap::Args)]
pub struct Unlock {
    /// The file with the passphrase or recovery key (its end of line does not count); `-` is standard input.
    #[arg(long, value_name = "FILE", default_value = "-")]
    key_file: PathBuf,
    /// Also seal new keys to the machine's TPM, in place of those that it does not give any more.
    #[arg(long)]
    reseal: bool,
}

impl Unlock {
    pub async fn run(self, cx: &Cx) -> anyhow::Result<()> {
        let secret = secret(&self.key_file)?;
        let machine = cx.one().await?;
        let request = UnlockRequest { secret, reseal: self.reseal };
        let done = machine.machine().unlock(request).await.map_err(refused)?.into_inner();
        for warning in &done.warnings {
            eprintln!("warning: {warning}");
        }
        let values = done.opened.iter().map(|volume| json!({"volume": volume, "state": "open"})).collect();
        super::show(cx, &machine.node, &["VOLUME", "STATE"], values)
    }
}

/// The text of a file without the end of its line.
pub fn secret(file: &Path) -> anyhow::Result<String> {
    let what = || format!("read {}", file.display());
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(MOST + 2).read_to_string(&mut text).context("read standard input")?;
    } else {
        std::fs::File::open(file).with_context(what)?.take(MOST + 2).read_to_string(&mut text).with_context(what)?;
    }
    let secret = text.trim_end_matches(['\r', '\n']);
    ensure!(!secret.is_empty() && secret.len() as u64 <= MOST, "{}: a passphrase or recovery key has 1 to {MOST} bytes", file.display());
    Ok(secret.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_line_is_no_part_of_a_passphrase() {
        let file = tempfile::NamedTempFile::new().expect("file");
        for (content, expected) in
            [("open sesame\n", Some("open sesame")), (" a b \r\n", Some(" a b ")), ("\n", None), (&"x".repeat(600), None)]
        {
            std::fs::write(file.path(), content).expect("write");
            assert_eq!(secret(file.path()).ok().as_deref(), expected, "{content:?}");
        }
        assert!(secret(Path::new("/nonexistent")).is_err());
    }
}
