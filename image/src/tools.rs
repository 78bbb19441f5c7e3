//! Programs that are newer than the builder's own (QEMU, mkfs.erofs, ukify, xorriso, etcd …), run straight from their unpacked
//! packages through those packages' own dynamic loader and libraries: no chroot, no root rights, nothing installed.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::debian::store::{self, Unpacked, Versions};
use crate::debian::{SIGNING, TOOLS};
use crate::elf;
use crate::error::{Error, FileContext};

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// Programs that tests and people start by name.
const WRAPPED: &[&str] = &["etcd", "etcdctl", "etcdutl", "kubectl"];

/// The tools, ready to run.
#[derive(Clone, Debug)]
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Makes sure that the tools are in the cache.
    pub fn prepare(cache: &Cache, lock_dir: &Path, versions: Versions, say: &dyn Fn(&str)) -> Result<Self, Error> {
        let Unpacked { dir, .. } = store::prepare(cache, lock_dir, &TOOLS, versions, say)?;
        Ok(Self { dir })
    }

    /// The tools that sign, likewise.
    pub fn signing(cache: &Cache, lock_dir: &Path, versions: Versions, say: &dyn Fn(&str)) -> Result<Self, Error> {
        let Unpacked { dir, .. } = store::prepare(cache, lock_dir, &SIGNING, versions, say)?;
        Ok(Self { dir })
    }

    /// A file of the tools' packages, by its path on an installed system without the leading slash.
    pub fn file(&self, path: &str) -> Result<PathBuf, Error> {
        let full = self.dir.join(path);
        if full.exists() {
            return Ok(full);
        }
        Err(Error::Missing { what: format!("/{path} of the tools"), hint: "run `cargo xtask image --relock`".into() })
    }

    /// The command that runs a tool.
    pub fn command(&self, name: &str) -> Result<Command, Error> {
        let words = self.command_line(name)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("LC_ALL", "C.UTF-8");
        if name == "ukify" {
            command.env("PYTHONHOME", self.dir.join("usr")).env("PYTHONDONTWRITEBYTECODE", "1").env_remove("PYTHONPATH");
        }
        Ok(command)
    }

    /// QEMU's emulator with its firmware and option ROMs.
    pub fn qemu(&self) -> Result<Command, Error> {
        let mut command = self.command("qemu-system-x86_64")?;
        command.env("QEMU_MODULE_DIR", self.dir.join(LIBRARIES).join("qemu"));
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.dir.join(firmware));
        }
        Ok(command)
    }

    /// The directory of small start scripts, for programs that look a tool up by name (`PATH`).
    pub fn wrappers(&self, cache: &Cache) -> Result<PathBuf, Error> {
        let bin = cache.dir("bin")?;
        for name in WRAPPED {
            let words = self.command_line(name)?;
            let line: Vec<String> = words.iter().map(|word| shell_quote(&word.to_string_lossy())).collect();
            write_executable(&bin.join(name), &format!("#!/bin/sh\nexec {} \"$@\"\n", line.join(" ")))?;
        }
        Ok(bin)
    }

    fn command_line(&self, name: &str) -> Result<Vec<PathBuf>, Error> {
        let program = ["usr/bin", "usr/sbin", "bin", "sbin"].iter().find_map(|place| self.file(&format!("{place}/{name}")).ok());
        let program =
            program.ok_or_else(|| Error::Missing { what: format!("tool {name}"), hint: "run `cargo xtask image --relock`".into() })?;
        let script = !elf::is_elf(&program)?;
        if !script && !elf::read(&program)?.is_dynamic {
            return Ok(vec![program]);
        }
        let libraries = [LIBRARIES, "usr/lib/x86_64-linux-gnu/systemd", "usr/lib/x86_64-linux-gnu/pulseaudio"];
        let path: Vec<String> = libraries.iter().map(|place| self.dir.join(place).display().to_string()).collect();
        let mut words = vec![self.file(LOADER)?, "--library-path".into(), path.join(":").into()];
        if script {
            words.push(self.file("usr/bin/python3")?);
        }
        words.push(program);
        Ok(words)
    }
}

fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn write_executable(path: &Path, content: &str) -> Result<(), Error> {
    if std::fs::read(path).is_ok_and(|present| present == content.as_bytes()) {
        return Ok(());
    }
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let mut file = std::fs::File::create(&partial).on("create", &partial)?;
    file.write_all(content.as_bytes()).on("write", &partial)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).on("set the mode of", &partial)?;
    drop(file);
    std::fs::rename(&partial, path).on("rename", &partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_the_shell() {
        for word in ["plain", "with space", "it's", "$HOME `x` \"y\""] {
            let echoed = Command::new("sh").args(["-c", &format!("printf %s {}", shell_quote(word))]).output().unwrap();
            assert_eq!(String::from_utf8(echoed.stdout).unwrap(), word);
        }
    }
}
