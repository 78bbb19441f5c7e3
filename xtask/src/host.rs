//! Packages the builder's machine must have: few, because newer tools come from the cache. They are installed with apt when this runs as
//! root or sudo asks for no password; otherwise the exact line to type is the error.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::project::succeed;

/// A package, and a file that shows that it (or a replacement) is there.
const NEEDED: &[(&str, &[&str])] = &[
    ("gcc", &["/usr/bin/cc"]),
    ("libc6-dev", &["/usr/lib/x86_64-linux-gnu/rcrt1.o"]),
    ("make", &["/usr/bin/make"]),
    ("git", &["/usr/bin/git"]),
    ("protobuf-compiler", &["/usr/bin/protoc"]),
    ("libprotobuf-dev", &["/usr/include/google/protobuf/descriptor.proto"]),
    ("nftables", &["/usr/sbin/nft"]),
    ("e2fsprogs", &["/usr/sbin/e2fsck", "/sbin/e2fsck"]),
    ("iproute2", &["/usr/sbin/ip", "/usr/bin/ip", "/bin/ip", "/sbin/ip"]),
    ("cryptsetup-bin", &["/usr/sbin/cryptsetup"]),
    ("swtpm", &["/usr/bin/swtpm"]),
    ("debian-archive-keyring", &["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"]),
];

/// Makes sure that the packages are there.
pub fn prepare() -> Result<()> {
    if !Path::new("/usr/bin/dpkg-deb").exists() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("the image is made from Debian packages and needs a Debian machine with apt");
    }
    let missing = missing(|file| Path::new(file).exists());
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    let prefix: &[&str] = if is_root()? {
        &[]
    } else if succeeds(Command::new("sudo").args(["-n", "true"])) {
        &["sudo", "-n"]
    } else {
        bail!("this machine lacks some packages; as root, run:\n    apt-get update && {line}");
    };
    println!("installing host packages: {}", missing.join(" "));
    let apt = |words: &[&str]| -> Result<()> {
        // On a machine that was just started, something else may be installing.
        let patient = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"];
        let all: Vec<&str> = prefix.iter().chain(patient.iter()).chain(words).copied().collect();
        succeed(Command::new(all[0]).args(&all[1..]).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
    };
    apt(&["update"])
        .and_then(|()| apt(&[&["install", "-y", "--no-install-recommends"][..], &missing].concat()))
        .with_context(|| format!("cannot install host packages; as root, run:\n    apt-get update && {line}"))
}

fn missing(exists: impl Fn(&str) -> bool) -> Vec<&'static str> {
    NEEDED.iter().filter(|(_, files)| !files.iter().any(|file| exists(file))).map(|(package, _)| *package).collect()
}

/// Whether this process has root's rights.
pub fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(line.and_then(|line| line.split_whitespace().nth(1)) == Some("0"))
}

fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_asked_for() {
        assert!(missing(|_| true).is_empty());
        assert_eq!(missing(|file| !file.contains("nft") && !file.ends_with("/ip")), ["nftables", "iproute2"]);
        assert!(!missing(|file| file == "/sbin/ip").contains(&"iproute2"), "one of a package's places is enough");
    }
}
