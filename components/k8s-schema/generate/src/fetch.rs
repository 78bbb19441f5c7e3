//! Fetches the pinned packages with apt into a directory of their own, leaving the host's apt state alone.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SUITE: &str = "sid";

/// The unpacked packages.
pub struct Sources {
    go: PathBuf,
}

impl Sources {
    /// The directory of Go packages by import path.
    pub(crate) fn go(&self) -> &Path {
        &self.go
    }
}

/// A package as the lock names it.
struct Pinned<'a> {
    package: &'a str,
    version: &'a str,
    sha256: &'a str,
}

/// Downloads every package of `lock` into `dir` and unpacks it. A download that is there already, with the right hash, is kept. A version
/// that the mirror no longer has is an error that names it: the committed table stays valid.
pub fn fetch(dir: &Path, lock: &Path) -> Result<Sources> {
    let text = read(lock)?;
    let dir = prepare(dir)?;
    let root = dir.join("root");
    if root.exists() {
        // What an older version had and this one has not must not be read.
        std::fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    let mut updated = false;
    for Pinned { package, version, sha256 } in pinned(&text)? {
        let file = dir.join(file_name(package, version));
        if !file.exists() {
            if !updated {
                run(apt(&dir).arg("update"))?;
                updated = true;
            }
            run(apt(&dir).arg("download").arg(format!("{package}={version}"))).with_context(|| {
                format!("{package} {version} is not on the mirror any more: `cargo xtask schema --relock` takes the versions that are")
            })?;
        }
        let found = hash(&file)?;
        if found != sha256 {
            bail!("{}: its hash is {found}, {} says {sha256}", file.display(), lock.display());
        }
        run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root))?;
    }
    Ok(Sources { go: root.join("usr/share/gocode/src") })
}

/// Writes the lock anew with the versions that the mirror has now, and tells what changed.
pub fn relock(dir: &Path, lock: &Path) -> Result<Vec<String>> {
    let present = read(lock)?;
    let dir = prepare(dir)?;
    run(apt(&dir).arg("update"))?;
    let mut text: String = present.lines().filter(|l| l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    let mut changes = Vec::new();
    for Pinned { package, version: old, .. } in pinned(&present)? {
        let out = apt_tool(&dir, "apt-cache").args(["show", "--no-all-versions", package]).output().context("run apt-cache show")?;
        let shown = String::from_utf8_lossy(&out.stdout).into_owned();
        let version = shown.lines().find_map(|l| l.strip_prefix("Version: ")).with_context(|| format!("{package}: not on the mirror"))?;
        run(apt(&dir).arg("download").arg(format!("{package}={version}")))?;
        if version != old {
            changes.push(format!("{package}: {old} → {version}"));
        }
        text.push_str(&format!("{package} {version} {}\n", hash(&dir.join(file_name(package, version)))?));
    }
    std::fs::write(lock, text).with_context(|| format!("write {}", lock.display()))?;
    Ok(changes)
}

fn read(lock: &Path) -> Result<String> {
    std::fs::read_to_string(lock).with_context(|| format!("read {}", lock.display()))
}

/// The lines of a lock: package, version, SHA-256.
fn pinned(lock: &str) -> Result<Vec<Pinned<'_>>> {
    let lines = lock.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    lines
        .map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [package, version, sha256] => Ok(Pinned { package, version, sha256 }),
            _ => bail!("packages.lock: {line:?} is not a package, a version and a SHA-256"),
        })
        .collect()
}

fn file_name(package: &str, version: &str) -> String {
    format!("{package}_{}_all.deb", version.replace(':', "%3a"))
}

fn hash(file: &Path) -> Result<String> {
    let found = Sha256::digest(std::fs::read(file).with_context(|| format!("read {}", file.display()))?);
    Ok(found.iter().map(|b| format!("{b:02x}")).collect())
}

/// A directory with an apt configuration of its own.
fn prepare(dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    for sub in [
        "apt/etc/apt/sources.list.d",
        "apt/etc/apt/preferences.d",
        "apt/etc/apt/apt.conf.d",
        "apt/var/lib/apt/lists/partial",
        "apt/var/cache/apt/archives/partial",
        "apt/var/lib/dpkg",
    ] {
        std::fs::create_dir_all(dir.join(sub)).with_context(|| format!("make {sub}"))?;
    }
    std::fs::write(dir.join("apt/var/lib/dpkg/status"), "")?;
    let source = format!(
        "Types: deb\nURIs: {}\nSuites: {SUITE}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        mirror()?
    );
    std::fs::write(dir.join("apt/etc/apt/sources.list.d/sid.sources"), source)?;
    Ok(dir)
}

/// The Debian mirror of the host's apt configuration.
fn mirror() -> Result<String> {
    let out = Command::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(SITE) $(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("run apt-get indextargets")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines()
        .filter_map(|l| l.strip_prefix("Debian Debian "))
        .find_map(|l| Some(l.split_whitespace().nth(1)?.to_owned()))
        .context("apt-get indextargets names no Debian mirror: is one in the host's apt sources, and was `apt-get update` run?")
}

fn apt(dir: &Path) -> Command {
    apt_tool(dir, "apt-get")
}

fn apt_tool(dir: &Path, tool: &str) -> Command {
    let mut command = Command::new(tool);
    command
        .current_dir(dir)
        .arg("-o")
        .arg(format!("Dir={}", dir.join("apt").display()))
        .arg("-o")
        .arg(format!("Dir::State::status={}", dir.join("apt/var/lib/dpkg/status").display()))
        .args(["-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=root", "-q"]);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdout(Stdio::null()).status().with_context(|| format!("run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_line_that_is_not_one_is_named() {
        let locked = pinned("# comment\n\na 1:2-3 ff\n").unwrap();
        assert_eq!((locked[0].package, locked[0].version, locked[0].sha256), ("a", "1:2-3", "ff"));
        assert_eq!(file_name(locked[0].package, locked[0].version), "a_1%3a2-3_all.deb");
        assert!(pinned("a 1").err().is_some_and(|e| e.to_string().contains("\"a 1\"")));
    }
}
