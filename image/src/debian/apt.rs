//! A private apt: its own sources, pins, lists and an empty package status, so that the builder's machine neither matters nor
//! changes. It answers one question: which files does a set of packages consist of today?

use std::path::{Path, PathBuf};
use std::process::Command;

use super::lock::{Archive, Lock, LockedDeb};
use super::mirror::Mirror;
use super::{FROM_SID, PackageSet, SUITE};
use crate::error::{Error, FileContext};
use crate::process::run;

/// The private apt's directory, ready for use.
#[derive(Debug)]
pub struct PrivateApt {
    config: PathBuf,
    mirror: Mirror,
}

impl PrivateApt {
    /// Writes the configuration below `dir` and fetches the signed package lists.
    pub fn update(dir: &Path, mirror: &Mirror, keyring: &Path) -> Result<Self, Error> {
        for part in ["etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "state/lists/partial", "cache/archives/partial", "log"] {
            let path = dir.join(part);
            std::fs::create_dir_all(&path).on("create", &path)?;
        }
        for (name, content) in [
            ("etc/apt.conf", configuration(dir)),
            ("etc/sources.list", sources(mirror, keyring)),
            ("etc/preferences", preferences()),
            ("state/status", String::new()),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, content).on("write", &path)?;
        }
        let apt = Self { config: dir.join("etc/apt.conf"), mirror: mirror.clone() };
        run(apt.command("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]))?;
        Ok(apt)
    }

    /// What the set consists of, with all it depends on if it says so.
    pub fn resolve(&self, set: &PackageSet) -> Result<Lock, Error> {
        let mut command = self.command("apt-get");
        command.args(["-q", "-o", "Acquire::ForceHash=SHA256", "--print-uris", "-y", "--no-install-recommends"]);
        command.arg(if set.with_dependencies { "install" } else { "download" });
        let output = run(command.args(set.packages))?;
        let text = String::from_utf8_lossy(&output);
        let debs = text.lines().filter(|line| line.starts_with('\'')).map(|line| {
            parse_uri_line(line, &self.mirror).map_err(|problem| Error::malformed("apt-get --print-uris", format!("{problem}: {line}")))
        });
        Ok(Lock::new(debs.collect::<Result<Vec<_>, _>>()?))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

fn configuration(dir: &Path) -> String {
    format!(
        "Dir \"{dir}\";\nDir::State \"state\";\nDir::State::status \"state/status\";\nDir::Cache \"cache\";\nDir::Log \"log\";\nDir::Etc \"etc\";\n\
         Dir::Etc::sourcelist \"sources.list\";\nDir::Etc::sourceparts \"sources.list.d\";\nDir::Etc::preferences \"preferences\";\n\
         Dir::Etc::parts \"apt.conf.d\";\nDir::Etc::trusted \"no-trusted\";\nDir::Etc::trustedparts \"no-trusted.d\";\n\
         APT::Sandbox::User \"root\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Install-Recommends \"false\";\n\
         Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n",
        dir = dir.display()
    )
}

fn sources(mirror: &Mirror, keyring: &Path) -> String {
    let key = keyring.display();
    let Mirror { debian, security } = mirror;
    // A mirror that is a day behind, or frozen, serves a sid whose signed file says it is out of date. The signature is checked
    // all the same, and the lock file fixes what is taken.
    format!(
        "deb [signed-by={key}] {debian} {SUITE} main non-free-firmware\ndeb [signed-by={key}] {debian} {SUITE}-updates main non-free-firmware\n\
         deb [signed-by={key}] {security} {SUITE}-security main non-free-firmware\ndeb [signed-by={key} check-valid-until=no] {debian} sid main\n"
    )
}

fn preferences() -> String {
    let newer = FROM_SID.join(" ");
    format!("Package: *\nPin: release n=sid\nPin-Priority: 100\n\nPackage: {newer}\nPin: release n=sid\nPin-Priority: 990\n")
}

/// Parses `'URL' FILE SIZE SHA256:HASH`.
fn parse_uri_line(line: &str, mirror: &Mirror) -> Result<LockedDeb, &'static str> {
    let (url, rest) = line.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).ok_or("no quoted address")?;
    let [file, size, hash] = rest.split_whitespace().collect::<Vec<_>>()[..] else {
        return Err("expected a file, a size and a hash");
    };
    let mut parts = file.strip_suffix(".deb").ok_or("not a .deb")?.splitn(3, '_');
    let (Some(name), Some(version), Some(_architecture)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("the file name is not NAME_VERSION_ARCH.deb");
    };
    let below = |base: &str| url.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned);
    let (archive, path) = match (below(&mirror.security), below(&mirror.debian)) {
        (Some(path), _) => (Archive::Security, path),
        (None, Some(path)) => (Archive::Debian, path),
        (None, None) => return Err("the address is not on the mirror"),
    };
    Ok(LockedDeb {
        name: name.to_owned(),
        version: version.replace("%3a", ":"),
        sha256: hash.strip_prefix("SHA256:").ok_or("no SHA-256")?.to_owned(),
        size: size.parse().map_err(|_| "the size is not a number")?,
        archive,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_answer_becomes_a_locked_package() {
        let mirror = Mirror { debian: "http://m.example/debian".into(), security: "http://m.example/debian-security".into() };
        let line =
            "'http://m.example/debian-security/pool/updates/main/l/l/linux_6.12%2bdeb13.deb' linux_1%3a6.12+deb13_amd64.deb 42 SHA256:abcd";
        let deb = parse_uri_line(line, &mirror).unwrap();
        assert_eq!((deb.name.as_str(), deb.version.as_str(), deb.size), ("linux", "1:6.12+deb13", 42));
        assert_eq!((deb.archive, deb.path.as_str()), (Archive::Security, "pool/updates/main/l/l/linux_6.12%2bdeb13.deb"));
        assert_eq!(deb.url(&mirror), "http://m.example/debian-security/pool/updates/main/l/l/linux_6.12%2bdeb13.deb");
        for (bad, problem) in [
            ("http://x", "no quoted address"),
            ("'http://m.example/debian/a' a_1_amd64.deb 4", "expected a file, a size and a hash"),
            ("'http://m.example/debian/a' a.deb 4 SHA256:a", "the file name is not NAME_VERSION_ARCH.deb"),
            ("'http://other/a' a_1_amd64.deb 4 SHA256:a", "the address is not on the mirror"),
            ("'http://m.example/debian/a' a_1_amd64.deb 4 MD5Sum:a", "no SHA-256"),
        ] {
            assert_eq!(parse_uri_line(bad, &mirror), Err(problem), "{bad}");
        }
    }

    #[test]
    fn only_the_named_packages_come_from_sid() {
        let text = preferences();
        assert!(text.contains("Package: *\nPin: release n=sid\nPin-Priority: 100"), "{text}");
        assert!(text.contains("containerd runc etcd-server"), "{text}");
    }
}
