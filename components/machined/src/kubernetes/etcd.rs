//! etcd's life on this machine: when it may run, how it is first begun, and how it is recovered from a snapshot.
//!
//! `bootstrap` records the cluster's id on STATE and on the ETCD partition. An id on STATE without its twin on ETCD, or without data once there was data, means that
//! the data is gone: then etcd stays halted, because an empty data directory would become a new, empty cluster under the old name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use machine_config::Config;
use serde::Deserialize;
use tokio::process::Command;

use super::files::{self, Directory, File, FileError};
use super::{NodeFacts, static_pods, uid};
use crate::paths::Paths;

/// etcd's data.
pub const DATA_DIR: &str = "/system/etcd/data";
/// The cluster's id on the ETCD partition.
const MARKER: &str = "/system/etcd/cluster-id";
/// The cluster's id on STATE.
const STATE_ID: &str = "/system/state/cluster-id";
/// On STATE once etcd had data.
const INITIALISED: &str = "/system/state/etcd-initialised";
/// There while a recovery holds etcd.
const HOLD: &str = "/run/strake/etcd-hold";
/// The store itself.
const STORE: &str = "/system/etcd/data/member/snap/db";
/// The data directory before a recovery.
const BEFORE: &str = "/system/etcd/data.before-recover";
/// The data directory that a recovery builds.
const RESTORED: &str = "/system/etcd/data.restored";

/// What is seen of etcd's past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The id on STATE.
    pub state_id: Option<String>,
    /// The id on ETCD.
    pub marker: Option<String>,
    /// Whether etcd had data once.
    pub initialised: bool,
    /// Whether it has data now.
    pub data: bool,
    /// Whether a recovery holds it.
    pub held: bool,
}

/// Whether etcd may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The machine was not bootstrapped.
    NotBootstrapped,
    /// It runs.
    Run,
    /// It must not run, and why.
    Halt(String),
}

/// Decides whether etcd may run.
pub fn verdict(observed: &Observed) -> Verdict {
    let Some(id) = &observed.state_id else { return Verdict::NotBootstrapped };
    const WAY_OUT: &str = "bring its data back with `strakectl etcd recover FILE`, or reset the machine";
    if observed.held {
        return Verdict::Halt("etcd is held by a recovery; if none is running, run `strakectl etcd recover FILE` again".to_owned());
    }
    match &observed.marker {
        None => Verdict::Halt(format!("this machine belongs to cluster {id}, but its ETCD partition is empty: {WAY_OUT}")),
        Some(other) if other != id => {
            Verdict::Halt(format!("this machine belongs to cluster {id}, but its ETCD partition holds data of cluster {other}: {WAY_OUT}"))
        }
        Some(_) if observed.initialised && !observed.data => {
            Verdict::Halt(format!("this machine belongs to cluster {id}, but etcd's data is gone: {WAY_OUT}"))
        }
        Some(_) => Verdict::Run,
    }
}

/// Why etcd is halted on this machine, if it is.
pub fn halted(paths: &Paths) -> Option<String> {
    match verdict(&observe(paths)) {
        Verdict::Halt(reason) => Some(reason),
        Verdict::NotBootstrapped | Verdict::Run => None,
    }
}

/// Looks at etcd's past.
pub fn observe(paths: &Paths) -> Observed {
    let id = |path: &str| files::read_text(paths, path).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    Observed {
        state_id: id(STATE_ID),
        marker: id(MARKER),
        initialised: paths.at(INITIALISED).exists(),
        data: paths.at(STORE).exists(),
        held: paths.at(HOLD).exists(),
    }
}

/// Remembers that etcd has data, from the first time on that it does.
pub fn remember_data(paths: &Paths, observed: &Observed) -> Result<(), FileError> {
    if observed.data && !observed.initialised && verdict(observed) == Verdict::Run {
        return files::write(paths, &File::private(INITIALISED, "", 0));
    }
    Ok(())
}

/// Why bootstrap or recover did not happen.
#[derive(Debug, thiserror::Error)]
pub enum EtcdLifeError {
    /// There is data that would be lost.
    #[error("this machine's ETCD partition holds data already; a machine is bootstrapped once")]
    DataPresent,
    /// Workers have no etcd.
    #[error("this machine is a worker and has no etcd")]
    Worker,
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory could not be handled.
    #[error("{operation} {path}")]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The snapshot is not whole.
    #[error("the snapshot cannot be used")]
    Snapshot(#[from] crate::etcd::EtcdError),
    /// The old process does not end.
    #[error("etcd (pid {0}) is still running; its data is left as it was")]
    StillRunning(i32),
    /// etcdutl failed.
    #[error("etcdutl {operation}: {message}")]
    Tool {
        /// What it was to do.
        operation: &'static str,
        /// What it said.
        message: String,
    },
}

/// Makes the ETCD partition ready for a new cluster. Call it before the id is recorded on STATE: a crash in between leaves a machine that can be bootstrapped again.
pub fn prepare_bootstrap(paths: &Paths, cluster_id: &str) -> Result<(), EtcdLifeError> {
    if paths.at(STORE).exists() {
        return Err(EtcdLifeError::DataPresent);
    }
    files::write(paths, &marker(cluster_id))?;
    Ok(())
}

fn marker(cluster_id: &str) -> File {
    File::private(MARKER, format!("{cluster_id}\n"), 0)
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The revision of the snapshot.
    pub revision: i64,
    /// How many entries it holds, etcd's own among them.
    pub keys: i64,
}

/// How long the old etcd may take to end by itself before it is told to, and then killed.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// How long etcdutl may take.
const TOOL_TIMEOUT: Duration = Duration::from_secs(600);
/// Revisions are moved ahead by so many, so that no client that saw later ones takes old objects for new (Kubernetes: operating etcd, restoring).
const REVISION_BUMP: u64 = 1_000_000_000;

/// Puts a snapshot in the place of etcd's data. etcd is stopped first, and nothing is touched before its process is proven dead; kubelet and containerd
/// need not work for that. The data before is kept beside it until the next recovery.
pub async fn recover(paths: &Paths, config: &Config, facts: &NodeFacts, snapshot: &Path) -> Result<Recovered, EtcdLifeError> {
    if !config.is_control_plane() {
        return Err(EtcdLifeError::Worker);
    }
    crate::etcd::check(snapshot)?;
    let recovered = status(paths, snapshot).await?;
    files::write(paths, &File::private(HOLD, "", 0))?;
    let replaced = match stop(paths, Path::new("/proc")).await {
        Ok(()) => restore(paths, config, facts, snapshot).await,
        Err(error) => Err(error),
    };
    if let Err(error) = replaced {
        // As long as the old data is in its place, etcd goes on with it.
        if paths.at(STORE).exists() {
            files::remove(paths, HOLD)?;
        }
        return Err(error);
    }
    files::write(paths, &marker(&config.secrets.cluster_id))?;
    files::write(paths, &File::private(INITIALISED, "", 0))?;
    if observe(paths).state_id.is_none() {
        // A machine that was installed anew belongs to the cluster again.
        files::write(paths, &File::private(STATE_ID, format!("{}\n", config.secrets.cluster_id), 0))?;
    }
    files::remove(paths, HOLD)?;
    Ok(recovered)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotStatus {
    revision: i64,
    total_key: i64,
}

/// What etcd's own tool says of a snapshot; it reads the whole store.
pub async fn status(paths: &Paths, snapshot: &Path) -> Result<Recovered, EtcdLifeError> {
    let mut command = tool(paths);
    command.args(["snapshot", "status", "--write-out=json"]).arg(snapshot);
    let out = run("snapshot status", command).await?;
    let status: SnapshotStatus = serde_json::from_slice(&out)
        .map_err(|e| EtcdLifeError::Tool { operation: "snapshot status", message: format!("its answer is not understood: {e}") })?;
    Ok(Recovered { revision: status.revision, keys: status.total_key })
}

async fn restore(paths: &Paths, config: &Config, facts: &NodeFacts, snapshot: &Path) -> Result<(), EtcdLifeError> {
    let (data, before, restored) = (paths.at(DATA_DIR), paths.at(BEFORE), paths.at(RESTORED));
    remove_tree(&before)?;
    remove_tree(&restored)?;
    let peer = static_pods::etcd_peer_url(facts);
    let mut command = tool(paths);
    command
        .args(["snapshot", "restore"])
        .arg(snapshot)
        .arg("--data-dir")
        .arg(&restored)
        .args(["--name", &facts.hostname])
        .args(["--initial-cluster", &format!("{}={peer}", facts.hostname)])
        .args(["--initial-cluster-token", &config.secrets.cluster_id])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--bump-revision", &REVISION_BUMP.to_string(), "--mark-compacted"]);
    run("snapshot restore", command).await?;
    files::give_tree(&restored, uid::ETCD)?;
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| EtcdLifeError::Directory { operation, path, source }
    };
    if data.exists() {
        fs::rename(&data, &before).map_err(failed("set aside", &data))?;
    }
    fs::rename(&restored, &data).map_err(failed("put in place", &data))
}

fn tool(paths: &Paths) -> Command {
    let at = paths.at("/usr/bin/etcdutl");
    let mut command = Command::new(at);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn run(operation: &'static str, mut command: Command) -> Result<Vec<u8>, EtcdLifeError> {
    let failed = |message: String| EtcdLifeError::Tool { operation, message };
    let output = tokio::time::timeout(TOOL_TIMEOUT, command.output())
        .await
        .map_err(|_| failed(format!("did not end within {} seconds", TOOL_TIMEOUT.as_secs())))?
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failed(text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("failed without a word").to_owned()))
}

/// Takes the manifest away, waits until no etcd works on our data directory, tells it to end, and kills it.
async fn stop(paths: &Paths, proc: &Path) -> Result<(), EtcdLifeError> {
    let began = Instant::now();
    let (mut told, mut killed) = (false, false);
    loop {
        // Again each time: a round of the reconciler that began before the hold may have put it back.
        files::remove(paths, &format!("{}/etcd.yaml", static_pods::DIRECTORY))?;
        let Some(pid) = running(proc) else { return Ok(()) };
        let waited = began.elapsed();
        let signal = match (waited > STOP_GRACE, waited > 2 * STOP_GRACE) {
            (_, true) if !killed => {
                killed = true;
                Some(rustix::process::Signal::KILL)
            }
            (true, _) if !told => {
                told = true;
                Some(rustix::process::Signal::TERM)
            }
            _ => None,
        };
        if waited > 3 * STOP_GRACE {
            return Err(EtcdLifeError::StillRunning(pid));
        }
        if let (Some(signal), Some(pid)) = (signal, rustix::process::Pid::from_raw(pid)) {
            // It may have ended meanwhile; the next look tells.
            let _ = rustix::process::kill_process(pid, signal);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The process that works on our data directory, found by its command line.
fn running(proc: &Path) -> Option<i32> {
    let data_flag = format!("--data-dir={DATA_DIR}");
    for entry in fs::read_dir(proc).ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let mut words = line.split(|b| *b == 0);
        let etcd = words.next().is_some_and(|w| w == b"etcd" || w.ends_with(b"/etcd"));
        if etcd && words.any(|w| w == data_flag.as_bytes()) {
            return Some(pid);
        }
    }
    None
}

fn remove_tree(path: &Path) -> Result<(), EtcdLifeError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(EtcdLifeError::Directory { operation: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The directories etcd needs.
pub fn directories() -> Vec<Directory> {
    vec![Directory { path: DATA_DIR.to_owned(), uid: uid::ETCD, mode: 0o700 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_data_directory_never_becomes_a_new_cluster() {
        let id = || Some("one".to_owned());
        let run = Observed { state_id: id(), marker: id(), initialised: true, data: true, held: false };
        let cases: Vec<(Observed, &str)> = vec![
            (Observed::default(), "not bootstrapped"),
            (Observed { state_id: None, ..run.clone() }, "not bootstrapped"),
            (run.clone(), "run"),
            // The very first start: the marker is there, data never was.
            (Observed { initialised: false, data: false, ..run.clone() }, "run"),
            (Observed { marker: None, data: false, ..run.clone() }, "ETCD partition is empty"),
            (Observed { marker: None, data: false, initialised: false, ..run.clone() }, "ETCD partition is empty"),
            (Observed { data: false, ..run.clone() }, "etcd's data is gone"),
            (Observed { marker: Some("two".into()), ..run.clone() }, "holds data of cluster two"),
            (Observed { held: true, ..run }, "held by a recovery"),
        ];
        for (observed, expected) in cases {
            let found = match verdict(&observed) {
                Verdict::NotBootstrapped => "not bootstrapped".to_owned(),
                Verdict::Run => "run".to_owned(),
                Verdict::Halt(reason) => reason,
            };
            assert!(found.contains(expected), "{observed:?}: {found}");
        }
    }

    #[test]
    fn bootstrap_refuses_data_and_data_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        prepare_bootstrap(&paths, "one").unwrap();
        fs::create_dir_all(paths.state()).unwrap();
        fs::write(paths.at(STATE_ID), "one\n").unwrap();
        assert_eq!(verdict(&observe(&paths)), Verdict::Run);
        remember_data(&paths, &observe(&paths)).unwrap();
        assert!(!observe(&paths).initialised);
        fs::create_dir_all(paths.at(STORE).parent().unwrap()).unwrap();
        fs::write(paths.at(STORE), "data").unwrap();
        remember_data(&paths, &observe(&paths)).unwrap();
        assert!(observe(&paths).initialised);
        assert!(matches!(prepare_bootstrap(&paths, "two"), Err(EtcdLifeError::DataPresent)));
        fs::remove_dir_all(paths.at(DATA_DIR)).unwrap();
        assert!(matches!(verdict(&observe(&paths)), Verdict::Halt(_)));
    }

    #[test]
    fn only_an_etcd_on_our_data_counts_as_running() {
        let dir = tempfile::tempdir().unwrap();
        let process = |pid: &str, words: &[&str]| {
            fs::create_dir(dir.path().join(pid)).unwrap();
            fs::write(dir.path().join(pid).join("cmdline"), words.join("\0")).unwrap();
        };
        process("10", &["/usr/bin/etcd", "--data-dir=/somewhere"]);
        process("11", &["/usr/bin/etcdutl", "--data-dir=/system/etcd/data"]);
        process("self", &["etcd", "--data-dir=/system/etcd/data"]);
        assert_eq!(running(dir.path()), None);
        process("12", &["/usr/bin/etcd", "--name=a", "--data-dir=/system/etcd/data"]);
        assert_eq!(running(dir.path()), Some(12));
    }
}

#[cfg(test)]
mod real_etcd {
    //! Against Debian's etcd, where it is: `STRAKE_TOOLS` (set by `cargo xtask test`) or PATH.

    use super::*;
    use crate::kubernetes::testing;
    use std::process::{Child, Command as StdCommand, Output};

    /// Where the programs are. Only a machine without them skips; where `STRAKE_TOOLS` is set they must be there.
    fn tools() -> Option<PathBuf> {
        if let Some(tools) = std::env::var_os("STRAKE_TOOLS") {
            return Some(PathBuf::from(tools));
        }
        let places: Vec<PathBuf> = std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
        let found = places.into_iter().find(|p| ["etcd", "etcdctl", "etcdutl"].iter().all(|t| p.join(t).exists()));
        if found.is_none() {
            eprintln!("skipped: no etcd here");
        }
        found
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    struct Etcd {
        child: Child,
        endpoint: String,
        tools: PathBuf,
    }

    impl Etcd {
        fn start(tools: &Path, data: &Path) -> Self {
            use std::os::unix::process::CommandExt as _;
            let endpoint = format!("http://127.0.0.1:{}", free_port());
            let peer = format!("http://127.0.0.1:{}", free_port());
            let child = StdCommand::new(tools.join("etcd"))
                .args(["--name=cp-1", "--logger=zap", "--log-level=error", &format!("--data-dir={}", data.display())])
                .args([format!("--listen-client-urls={endpoint}"), format!("--advertise-client-urls={endpoint}")])
                .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
                .arg(format!("--initial-cluster=cp-1={peer}"))
                .process_group(0)
                .spawn()
                .unwrap();
            let etcd = Self { child, endpoint, tools: tools.to_owned() };
            for _ in 0..150 {
                if etcd.ctl(&["endpoint", "health"]).status.success() {
                    return etcd;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            panic!("etcd does not answer");
        }

        fn ctl(&self, args: &[&str]) -> Output {
            StdCommand::new(self.tools.join("etcdctl")).arg(format!("--endpoints={}", self.endpoint)).args(args).output().unwrap()
        }
    }

    impl Drop for Etcd {
        fn drop(&mut self) {
            let pid = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            let _ = self.child.wait();
        }
    }

    #[tokio::test]
    async fn a_snapshot_brings_everything_back_and_a_damaged_one_changes_nothing() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let config = testing::control_plane_config();
        let facts = NodeFacts { node_ip: [127, 0, 0, 1].into(), ..testing::facts() };
        fs::create_dir_all(paths.at("/usr/bin")).unwrap();
        std::os::unix::fs::symlink(tools.join("etcdutl"), paths.at("/usr/bin/etcdutl")).unwrap();

        let snapshot = dir.path().join("snapshot.db");
        {
            let etcd = Etcd::start(&tools, &dir.path().join("old"));
            for i in 0..20 {
                assert!(etcd.ctl(&["put", &format!("key{i}"), "value"]).status.success());
            }
            assert!(etcd.ctl(&["snapshot", "save", snapshot.to_str().unwrap()]).status.success());
        }

        let whole = fs::read(&snapshot).unwrap();
        let damaged = dir.path().join("damaged.db");
        fs::write(&damaged, &whole[..whole.len() - 512]).unwrap();
        assert!(recover(&paths, &config, &facts, &damaged).await.is_err());
        assert!(!paths.at(DATA_DIR).exists() && !observe(&paths).held);

        let recovered = recover(&paths, &config, &facts, &snapshot).await.unwrap();
        assert_eq!(recovered.revision, 21);
        assert!(recovered.keys >= 20);
        assert_eq!(verdict(&observe(&paths)), Verdict::Run);

        let etcd = Etcd::start(&tools, &paths.at(DATA_DIR));
        let got = etcd.ctl(&["get", "key7", "--write-out=json"]);
        let answer: serde_json::Value = serde_json::from_slice(&got.stdout).unwrap();
        assert_eq!(answer["count"], 1);
        assert!(answer["header"]["revision"].as_u64() >= Some(REVISION_BUMP), "{answer}");
    }
}
