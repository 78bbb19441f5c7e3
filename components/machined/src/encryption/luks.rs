//! LUKS2 by Debian's cryptsetup, each time a short-lived child process with a limit: nobody else's code is trusted with other people's data as
//! long as this one is. Secrets go through its standard input, and a second one through a file in memory that only root reads.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::metadata::{Metadata, Token};

const CRYPTSETUP: &str = "/usr/sbin/cryptsetup";
/// Argon2id on a slow processor takes seconds; a disk that takes longer than this for a header is broken.
const LIMIT: Duration = Duration::from_secs(180);
/// More than a header of LUKS2 has.
const MOST: u64 = 8 << 20;
/// What it ends with when no key slot opens (cryptsetup(8)).
const WRONG_KEY: i32 = 2;

/// Why cryptsetup did not do something.
#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    /// The program could not be run.
    #[error("run {CRYPTSETUP} to {0}")]
    Run(&'static str, #[source] io::Error),
    /// It failed; this is what it said.
    #[error("{CRYPTSETUP} could not {operation} ({status}): {said}")]
    Failed { operation: &'static str, status: ExitStatus, said: String },
    /// It did not end.
    #[error("{CRYPTSETUP} did not {operation} within {} s", LIMIT.as_secs())]
    TimedOut { operation: &'static str },
    /// It said something else than metadata.
    #[error("read the LUKS2 header")]
    Metadata(#[source] serde_json::Error),
    /// A secret could not be handed over.
    #[error("hand a key over in {0}")]
    Secret(PathBuf, #[source] io::Error),
}

impl LuksError {
    /// Whether it was just the wrong key.
    pub fn is_wrong_key(&self) -> bool {
        matches!(self, Self::Failed { status, .. } if status.code() == Some(WRONG_KEY))
    }
}

/// How a key slot makes its key from what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derivation {
    /// For keys that a machine made: there is nothing to guess, so it costs nothing.
    Random,
    /// For what people think up: Argon2id with so much memory.
    Passphrase { memory_mib: u32 },
}

impl Derivation {
    fn arguments(self) -> Vec<String> {
        let words = match self {
            Self::Random => vec!["--pbkdf", "pbkdf2", "--hash", "sha256", "--pbkdf-force-iterations", "1000"],
            Self::Passphrase { .. } => vec!["--pbkdf", "argon2id", "--pbkdf-parallel", "1", "--pbkdf-force-iterations", "4"],
        };
        let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        if let Self::Passphrase { memory_mib } = self {
            words.extend(["--pbkdf-memory".to_owned(), (u64::from(memory_mib) * 1024).to_string()]);
        }
        words
    }
}

/// Makes a volume anew that this key opens.
pub fn format(device: &Path, label: &str, slot: u8, key: &[u8], derivation: Derivation) -> Result<(), LuksError> {
    let mut command = command("luksFormat", device);
    command.args(["--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512", "--label", label, "--key-file", "-"]);
    command.args(["--key-slot", &slot.to_string()]).args(derivation.arguments());
    run("make an encrypted volume", command, key).map(drop)
}

/// Adds a key; `with` is one that opens the volume already. `scratch` is a directory in memory.
pub fn add_key(device: &Path, with: &[u8], slot: u8, key: &[u8], derivation: Derivation, scratch: &Path) -> Result<(), LuksError> {
    let file = SecretFile::new(scratch, key)?;
    let mut command = command("luksAddKey", device);
    command.arg(&file.0).args(["--key-file", "-", "--key-slot", &slot.to_string()]).args(derivation.arguments());
    run("add a key", command, with).map(drop)
}

/// Removes what a key slot holds; `with` is in another.
pub fn remove_key(device: &Path, with: &[u8], slot: u8) -> Result<(), LuksError> {
    let mut command = command("luksKillSlot", device);
    command.args([&slot.to_string(), "--key-file", "-"]);
    run("remove a key", command, with).map(drop)
}

/// Writes a token.
pub fn add_token(device: &Path, id: u8, token: &Token) -> Result<(), LuksError> {
    let mut command = command("token", Path::new("import"));
    command.arg(device).args(["--token-id", &id.to_string(), "--json-file", "-"]);
    run("write what a key is", command, &serde_json::to_vec(token).map_err(LuksError::Metadata)?).map(drop)
}

/// Removes a token.
pub fn remove_token(device: &Path, id: u8) -> Result<(), LuksError> {
    let mut command = command("token", Path::new("remove"));
    command.arg(device).args(["--token-id", &id.to_string()]);
    run("remove what a key was", command, b"").map(drop)
}

/// What the header says.
pub fn metadata(device: &Path) -> Result<Metadata, LuksError> {
    let mut command = command("luksDump", device);
    command.arg("--dump-json-metadata");
    serde_json::from_slice(&run("read the header", command, b"")?).map_err(LuksError::Metadata)
}

/// Opens a volume as `/dev/mapper/<name>`.
pub fn open(device: &Path, name: &str, slot: u8, key: &[u8]) -> Result<(), LuksError> {
    let mut command = command("open", device);
    command.arg(name).args(["--type", "luks2", "--key-file", "-", "--key-slot", &slot.to_string()]);
    run("open the volume", command, key).map(drop)
}

/// Whether a key opens a volume.
pub fn test(device: &Path, slot: u8, key: &[u8]) -> Result<(), LuksError> {
    let mut command = command("open", device);
    command.args(["--test-passphrase", "--type", "luks2", "--key-file", "-", "--key-slot", &slot.to_string()]);
    run("try a key", command, key).map(drop)
}

/// Closes an open volume.
pub fn close(name: &str) -> Result<(), LuksError> {
    run("close the volume", command("close", Path::new(name)), b"").map(drop)
}

/// Destroys every key slot: nobody opens the volume again.
pub fn erase(device: &Path) -> Result<(), LuksError> {
    run("destroy the keys", command("erase", device), b"").map(drop)
}

/// The keyring is another way to hand keys to the kernel, and one that confined services have no use for; there is no udev to wait for.
fn command(action: &str, device: &Path) -> Command {
    let mut command = Command::new(CRYPTSETUP);
    command.env_clear().env("DM_DISABLE_UDEV", "1").env("LC_ALL", "C").env("PATH", "/usr/bin");
    command.args(["--batch-mode", "--disable-keyring"]).arg(action).arg(device);
    command
}

fn run(operation: &'static str, mut command: Command, input: &[u8]) -> Result<Vec<u8>, LuksError> {
    let failed = |error| LuksError::Run(operation, error);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    // Shorter than a pipe holds; and one who does not read it says why at its end.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
    let said = child.stderr.take().map(|stream| std::thread::spawn(move || kept(stream, 4096)));
    let output = child.stdout.take().map(|stream| std::thread::spawn(move || kept(stream, MOST)));
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(LuksError::TimedOut { operation });
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let text = |thread: Option<std::thread::JoinHandle<Vec<u8>>>| thread.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let (said, output) = (text(said), text(output));
    if status.success() {
        return Ok(output);
    }
    Err(LuksError::Failed { operation, status, said: String::from_utf8_lossy(&said).trim().replace('\n', " / ") })
}

/// Reads to the end, so that the child never waits, and keeps the beginning.
fn kept(mut stream: impl Read, most: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = stream.by_ref().take(most).read_to_end(&mut kept);
    let _ = io::copy(&mut stream, &mut io::sink());
    kept
}

/// A key in a file in memory, for as long as it is needed.
struct SecretFile(PathBuf);

impl SecretFile {
    fn new(directory: &Path, key: &[u8]) -> Result<Self, LuksError> {
        let path = directory.join(format!("key-{}", uuid::Uuid::new_v4()));
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(key)
        };
        let written = write();
        let file = Self(path);
        written.map_err(|error| LuksError::Secret(file.0.clone(), error))?;
        Ok(file)
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_think_up_costs_memory_and_what_machines_make_does_not() {
        let passphrase = Derivation::Passphrase { memory_mib: 64 }.arguments().join(" ");
        assert!(passphrase.contains("argon2id") && passphrase.ends_with("--pbkdf-memory 65536"), "{passphrase}");
        assert!(!Derivation::Random.arguments().join(" ").contains("argon2"));
    }

    /// Headers alone: a file is never mapped here, which takes the kernel's device mapper.
    #[test]
    fn each_key_opens_until_it_is_removed_and_none_after_they_are_destroyed() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::File::create(&volume).unwrap().set_len(32 << 20).unwrap();
        let (machine, passphrase) = (&b"a key that a machine made"[..], &b"open sesame"[..]);
        format(&volume, "STATE", 0, machine, Derivation::Random).unwrap();
        add_key(&volume, machine, 7, passphrase, Derivation::Passphrase { memory_mib: 16 }, dir.path()).unwrap();
        let token = Token::Passphrase { keyslots: vec!["7".into()] };
        add_token(&volume, 7, &token).unwrap();
        assert!(super::super::is_encrypted(&volume).unwrap());

        let header = metadata(&volume).unwrap();
        assert_eq!((header.keyslots.len(), header.tokens()), (2, vec![(7, token)]));
        assert_eq!(header.keyslots["7"]["kdf"]["type"], "argon2id");
        assert_eq!((&header.keyslots["7"]["kdf"]["memory"], &header.keyslots["0"]["kdf"]["iterations"]), (&16384.into(), &1000.into()));
        test(&volume, 0, machine).unwrap();
        test(&volume, 7, passphrase).unwrap();
        assert!(test(&volume, 7, b"open sesam").unwrap_err().is_wrong_key());
        assert!(test(&volume, 7, machine).unwrap_err().is_wrong_key());

        remove_token(&volume, 7).unwrap();
        assert!(remove_key(&volume, b"wrong", 0).is_err());
        remove_key(&volume, passphrase, 0).unwrap();
        assert!(test(&volume, 0, machine).is_err());
        test(&volume, 7, passphrase).unwrap();
        erase(&volume).unwrap();
        assert!(test(&volume, 7, passphrase).is_err());
        assert!(metadata(&volume).unwrap().is_erased());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no key is left in a file");
    }

    #[test]
    fn a_key_in_a_file_is_gone_after_its_use() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = SecretFile::new(&dir.path().join("keys"), b"secret").unwrap();
        let path = file.0.clone();
        assert_eq!(fs::read(&path).unwrap(), b"secret");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }
}
