//! Starting a service's process. PID 1 does nothing between fork and exec: the child is this binary again (`--exec-service`),
//! which puts itself into its cgroup, sets its limits, gives up what the service need not do, and only then becomes the service. So no
//! moment of the service's life is outside its cgroup or with more rights.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use node_ipc::init::EnvVar;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::confinement::Confinement;
use crate::report;
use crate::services::{ServiceDef, TABLE};

pub const HELPER: &str = "--exec-service";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const OPEN_FILES: u64 = 1_048_576;

/// The standard streams of a service.
pub struct Streams {
    pub input: Option<OwnedFd>,
    pub output: Stdio,
    pub error: Stdio,
}

/// Starts the service and returns its pid. init reaps every child itself, so no handle is kept.
pub fn service(def: &ServiceDef, args: &[String], env: &[EnvVar], streams: Streams) -> io::Result<i32> {
    if let Some(file) = def.ready_file {
        // A socket left by the process before would say "ready" too early.
        let _ = fs::remove_file(file);
    }
    fs::create_dir_all(Path::new(CGROUP_ROOT).join(def.cgroup))?;
    let child = Command::new("/proc/self/exe")
        .args([HELPER, def.name])
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/usr/sbin")
        .env("HOME", "/")
        .envs(env.iter().map(|variable| (&variable.name, &variable.value)))
        .stdin(streams.input.map_or_else(Stdio::null, Stdio::from))
        .stdout(streams.output)
        .stderr(streams.error)
        .spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// The child's half: `--exec-service <name> [args…]`. Returns only when it failed.
pub fn exec_service(args: &[String]) -> i32 {
    let Some((def, rest)) = args.split_first().and_then(|(name, rest)| Some((TABLE.iter().find(|def| def.name == *name)?, rest))) else {
        eprintln!("init: {HELPER}: there is no such service: {args:?}");
        return 2;
    };
    let ServiceDef { oom_score_adj, program, .. } = def;
    let procs = Path::new(CGROUP_ROOT).join(def.cgroup).join("cgroup.procs");
    if let Err(error) = fs::write(&procs, "0") {
        eprintln!("init: enter {}: {error}", procs.display());
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", oom_score_adj.to_string()) {
        eprintln!("init: set oom_score_adj to {oom_score_adj}: {error}");
    }
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        eprintln!("init: allow {OPEN_FILES} open files: {error}");
    }
    let _ = rustix::process::setsid();
    unblock_signals();
    // Last, because what came before needs some of it.
    if let Some(Err(error)) = def.confinement.map(Confinement::enter) {
        eprintln!("init: confine {}: {}", def.name, report::chain(&error));
        return 126;
    }
    let mut command = Command::new(program);
    // So that a program knows that logd reads its output, and gives it events instead of lines (systemd.exec(5)).
    if let Ok(found) = rustix::fs::fstat(std::io::stderr()) {
        command.env("JOURNAL_STREAM", format!("{}:{}", found.st_dev, found.st_ino));
    }
    let error = command.args(def.leading_args).args(rest).exec();
    eprintln!("init: execute {program}: {error}");
    127
}

/// PID 1 blocks the signals that it reads from a descriptor, and children inherit that, through exec too.
pub fn unblock_signals() {
    if let Err(error) = nix::sys::signal::SigSet::empty().thread_set_mask() {
        eprintln!("init: unblock signals: {error}");
    }
}

/// Kills what is left in a cgroup and below it.
pub fn kill_cgroup(cgroup: &str) {
    let _ = fs::write(Path::new(CGROUP_ROOT).join(cgroup).join("cgroup.kill"), "1");
}

/// The processes of a cgroup and of those below it.
pub fn cgroup_pids(cgroup: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    let mut pending = vec![Path::new(CGROUP_ROOT).join(cgroup)];
    while let Some(dir) = pending.pop() {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1));
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    pids
}
