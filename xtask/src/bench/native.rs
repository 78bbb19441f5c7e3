//! Runs the program `bench` where it cannot touch anything: in namespaces of its own for processes and the network, as far as this machine
//! allows them. Whatever it started ends with it, also when it or this program is killed.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use image::cache::Cache;
use image::tools::Tools;
use serde::Deserialize;

use crate::bench::Bench;
use crate::bench::goals::Figure;
use crate::containers::Containers;
use crate::host;
use crate::project::{Project, succeed};

#[derive(Deserialize)]
struct Line {
    name: String,
    value: f64,
    unit: String,
}

/// Builds the measuring program. With the whole workspace's features, as the image's programs are, so that no dependency is compiled twice.
pub fn build(project: &Project) -> Result<()> {
    succeed(&mut project.cargo(&["build", "--release", "--quiet", "--workspace", "--bin", "bench"]))
}

/// Runs it and gives its figures.
pub fn run(project: &Project, cache: &Cache, tools: &Tools, wanted: &Bench, part: &[&str]) -> Result<Vec<Figure>> {
    let isolation = Isolation::detect()?;
    let etcd = tools.wrappers(cache)?.join("etcd");
    let binaries = wanted.binaries.clone().unwrap_or_else(|| project.binaries());
    let dir = project.target.join("bench");
    let mut words: Vec<OsString> = vec![project.binaries().join("bench").into()];
    for (flag, value) in [("--binaries", &binaries), ("--etcd", &etcd), ("--dir", &dir)] {
        words.extend([flag.into(), value.into()]);
    }
    if wanted.plain_etcd {
        words.push("--plain-etcd".into());
    }
    words.extend(part.iter().map(Into::into));
    let mut containers = None;
    if part[0] == "idle" {
        if isolation != Isolation::None {
            words.push("--own-network".into());
        }
        if isolation == Isolation::Root {
            containers = Containers::prepare(project, cache)?;
        }
        match &containers {
            Some(containers) => words.extend(["--containerd".into(), containers.dir.join("containerd").into()]),
            None => eprintln!("without the kubelet, which needs a containerd and so root"),
        }
    }
    let mut command = isolation.command(&containers.as_ref().map_or_else(|| words.clone(), |containers| containers.enter(&words)));
    command.env("PATH", search_path(containers.as_ref())?).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run the measuring program")?;
    let output = child.stdout.take().context("the measuring program has no output")?;
    let mut figures = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read from the measuring program")?;
        let Line { name, value, unit } = serde_json::from_str(&line).with_context(|| format!("not a figure: {line}"))?;
        figures.push(Figure { name, value, unit });
    }
    let status = child.wait().context("cannot wait for the measuring program")?;
    if !status.success() {
        bail!("measuring failed ({status}); logs are in {}", dir.display());
    }
    Ok(figures)
}

/// With the places of `ip` and of the container programs.
fn search_path(containers: Option<&Containers>) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = containers.map(|containers| containers.dir.clone()).into_iter();
    let places = places.chain(std::env::split_paths(&path)).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(places).context("a directory of PATH has a colon in its name")
}

/// How far the measured programs can be kept apart from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isolation {
    /// Namespaces, as root.
    Root,
    /// Namespaces in a user namespace: no containers.
    User,
    /// None allowed: loopback is shared, kube-proxy must not run.
    None,
}

impl Isolation {
    fn detect() -> Result<Self> {
        let wanted = if host::is_root()? { Self::Root } else { Self::User };
        let mut probe = wanted.command(&["true".into()]);
        let works = probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        Ok(if works { wanted } else { Self::None })
    }

    fn command(self, words: &[OsString]) -> Command {
        // When this program dies, so does its child, and with a process namespace everything in it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", if self == Self::None { "TERM" } else { "KILL" }]);
        if self != Self::None {
            command.args(["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]);
            if self == Self::User {
                command.args(["--user", "--map-root-user"]);
            }
            command.args(["--propagation", "private", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
        }
        command.args(words);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_puts_the_program_into_namespaces_where_it_may() {
        let words = |isolation: Isolation| -> Vec<String> {
            let command = isolation.command(&["bench".into(), "start".into()]);
            command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(words(Isolation::None), ["--pdeathsig", "TERM", "bench", "start"]);
        for isolation in [Isolation::Root, Isolation::User] {
            let words = words(isolation);
            assert!(words.iter().any(|word| word == "--net") && words.ends_with(&["bench".to_owned(), "start".to_owned()]), "{words:?}");
            assert_eq!(words.iter().any(|word| word == "--user"), isolation == Isolation::User);
        }
    }
}
