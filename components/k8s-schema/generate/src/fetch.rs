//! Fetches the pinned packages with apt into a directory of their own, leaving the host's apt state alone.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;

const LOCK: &str = include_str!("../packages.lock");
const SUITE: &str = "sid";

/// Downloads and unpacks every package of `packages.lock` into `dir/root`. What is there already, with the right hash,
/// is kept. A version that the mirror no longer has is an error that names it: the committed table stays valid.
pub fn fetch(dir: &Path) -> Result<()> {
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
    std::fs::write(
        dir.join("apt/etc/apt/sources.list.d/sid.sources"),
        format!(
            "Types: deb\nURIs: {}\nSuites: {SUITE}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            mirror()?
        ),
    )?;
    let mut updated = false;
    for line in LOCK.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let [package, version, sha256] = line.split_whitespace().collect::<Vec<_>>()[..] else { bail!("packages.lock: {line:?}") };
        let file = dir.join(format!("{package}_{}_all.deb", version.replace(':', "%3a")));
        if !file.exists() {
            if !updated {
                run(apt(&dir).arg("update"))?;
                updated = true;
            }
            run(apt(&dir).arg("download").arg(format!("{package}={version}")))
                .with_context(|| format!("{package} {version} is not on the mirror any more; take the version that is (apt-cache policy) into packages.lock and compare the tables"))?;
        }
        let found = Sha256::digest(std::fs::read(&file).with_context(|| format!("read {}", file.display()))?);
        let found: String = found.iter().map(|b| format!("{b:02x}")).collect();
        if found != sha256 {
            bail!("{}: its hash is {found}, packages.lock says {sha256}", file.display());
        }
        run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(dir.join("root")))?;
    }
    Ok(())
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
    let mut command = Command::new("apt-get");
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
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
