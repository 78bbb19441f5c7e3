//! `cargo xtask test`: everything CI runs, cheapest first, with the time each stage took. Lints and tests share the dev profile, which
//! compiles several times faster than the image's; with the image's profile only the image's programs are built.

use std::ffi::{OsStr, OsString};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::image::Versions;
use ::image::cache::Cache;
use ::image::debian::{ROOT, store};
use ::image::tools::Tools;
use anyhow::{Context, Result, bail};

use crate::containers::Containers;
use crate::project::{Project, describe, succeed};
use crate::{host, image, scenarios, tidy};

/// The tests that need a real containerd.
const WITH_CONTAINERS: &str = "package(kubelet) & binary(containerd)";

/// A hanging test must not hold CI until it is cut off without a word.
const TEST_LIMIT: Duration = Duration::from_secs(45 * 60);

/// Runs all stages; the first that fails ends the run.
pub fn all(project: &Project) -> Result<()> {
    let started = Instant::now();
    let mut times = Vec::new();
    let mut stage = |name: &str, run: &dyn Fn() -> Result<()>| -> Result<()> {
        println!("==> {name}");
        let begin = Instant::now();
        run().with_context(|| format!("stage {name}"))?;
        times.push(format!("{name} {:.0} s", begin.elapsed().as_secs_f32()));
        Ok(())
    };
    stage("host packages", &host::prepare)?;
    stage("format", &|| succeed(&mut project.cargo(&["fmt", "--all", "--check"])))?;
    stage("tidy", &|| tidy::check(project))?;
    stage("lints", &|| succeed(&mut project.cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])))?;
    stage("tests", &|| tests(project))?;
    stage("image", &|| image::reproducible(project, &|step| println!("{step}")).map(drop))?;
    stage("scenarios", &|| scenarios::run(project, &scenarios::of_ci(project)))?;
    println!("everything passed in {:.0} s: {}", started.elapsed().as_secs_f32(), times.join(", "));
    Ok(())
}

/// The workspace's tests, with the real programs they drive (etcd, kubectl …) on the path.
fn tests(project: &Project) -> Result<()> {
    let cache = Cache::open()?;
    let tools = Tools::prepare(&cache, &project.root.join("image/locks"), Versions::Locked, &|step| println!("{step}"))?;
    let wrappers = tools.wrappers(&cache)?;
    let packages = store::prepare(&cache, &project.root.join("image/locks"), &ROOT, Versions::Locked, &|step| println!("{step}"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(wrappers.clone()).chain(std::env::split_paths(&path)).chain(["/usr/sbin".into(), "/sbin".into()]);
    let path = std::env::join_paths(places).context("a directory of PATH has a colon in its name")?;
    nextest(project)?;
    let others = format!("not ({WITH_CONTAINERS})");
    let mut command = project.cargo(&["nextest", "run", "--workspace", "--no-fail-fast", "--cargo-quiet", "--filterset", &others]);
    command.env("PATH", &path).env("STRAKE_TOOLS", wrappers).env("STRAKE_CNI", packages.dir.join("usr/lib/cni")).stdin(Stdio::null());
    bounded(&mut command, TEST_LIMIT)?;
    with_containers(project, &cache, &path)
}

/// Those that need a real containerd. They were compiled with the others.
fn with_containers(project: &Project, cache: &Cache, path: &OsStr) -> Result<()> {
    let Some(containers) = Containers::prepare(project, cache)? else {
        println!("the kubelet is not tested on a real containerd, which needs root");
        return Ok(());
    };
    let cargo = project.cargo(&["nextest", "run", "--workspace", "--cargo-quiet", "--filterset", WITH_CONTAINERS]);
    let words: Vec<OsString> = std::iter::once(cargo.get_program()).chain(cargo.get_args()).map(Into::into).collect();
    let words = containers.enter(&words);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(&project.root).env("CARGO_TARGET_DIR", &project.target);
    command.env("PATH", path).env("STRAKE_CONTAINERD_DIR", &containers.dir).stdin(Stdio::null());
    bounded(&mut command, TEST_LIMIT)
}

/// The test runner: every test in a process of its own, with a limit of its own (`.config/nextest.toml`). Installed where it is missing.
fn nextest(project: &Project) -> Result<()> {
    let found = project.cargo(&["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    println!("installing cargo-nextest");
    succeed(&mut project.cargo(&["install", "--quiet", "--locked", "cargo-nextest"]))
}

/// Runs a command, and ends it with its children when it takes too long.
fn bounded(command: &mut Command, limit: Duration) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let line = describe(command);
    let mut child = command.process_group(0).spawn().with_context(|| format!("cannot run {line}"))?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {line}"))? {
            return if status.success() { Ok(()) } else { bail!("{line} failed ({status})") };
        }
        if Instant::now() > deadline {
            end_group(&mut child);
            bail!("{line} did not end in {} minutes", limit.as_secs() / 60);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn end_group(child: &mut Child) {
    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let begin = Instant::now();
        let problem = bounded(Command::new("sh").args(["-c", "sleep 60 & wait"]), Duration::from_millis(300)).unwrap_err();
        assert!(problem.to_string().contains("did not end"), "{problem}");
        assert!(begin.elapsed() < Duration::from_secs(20));
        bounded(Command::new("sh").args(["-c", "exit 0"]), Duration::from_secs(20)).unwrap();
        assert!(bounded(Command::new("sh").args(["-c", "exit 4"]), Duration::from_secs(20)).is_err());
    }
}
