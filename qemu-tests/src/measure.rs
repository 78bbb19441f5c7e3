//! What a machine takes from power-on to its API and to a Ready node, and what an upgrade costs: one cluster of two machines, installed from
//! the ISO, upgraded under load, and started cold from its disks. The figures are of the host that runs the guests; on an emulated
//! one they say what is large and what is small, and whether a request failed.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::plan::{ClusterSpec, Node};
use crate::cluster::{Cluster, Progress};
use crate::error::{Error, FileContext};
use crate::http;
use crate::scenario::{Context, RunningCluster};
use crate::scenarios::first_cluster::wait_deployment;
use crate::scenarios::upgrade::variant_image;

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// What it is.
    pub name: String,
    /// How much.
    pub value: f64,
    /// In which unit.
    pub unit: &'static str,
}

impl Measure {
    fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit }
    }
}

/// The version that is upgraded to.
const NEW: &str = "0.2.0";
/// How long nothing happens before the memory of the idle system is read.
const IDLE: Duration = Duration::from_secs(30);
/// The pace of the requests to the example.
const REQUESTS: Duration = Duration::from_millis(100);
/// The pace at which the machine API is asked whether it is there.
const ASKED: Duration = Duration::from_millis(200);

/// Measures all of it, once.
pub fn boot(context: &Context) -> Result<Vec<Measure>, Error> {
    let mut found = Vec::new();
    let times = Times { context, noted: Mutex::default() };
    let spec = ClusterSpec::small();
    let cluster = Cluster::open(&context.dir.join("cluster"), &context.run.join("cluster"), &context.programs, &spec)?;
    let cluster = RunningCluster::from(cluster);
    let nodes = cluster.plan().nodes.clone();
    let (first, worker) = (cluster.plan().control_plane().clone(), nodes.last().unwrap_or(&nodes[0]).clone());

    cluster.install_machines(&context.image.iso, context.accelerator, &times)?;
    found.extend(times.between(&first.name, "booting", "in maintenance mode", "ISO: power-on to machine API"));
    cluster.become_cluster(std::slice::from_ref(&context.image.hello), &times)?;
    found.extend(times.between(&first.name, "booting", "Ready", "ISO: power-on to node Ready, installed"));
    found.extend(upgrade(context, &cluster, &first, &worker)?);

    found.push(Measure::new("idle without Kubernetes: memory used", idle_memory(context, &cluster, &worker)?, "MiB"));
    strakectl(&cluster, &first, &["shutdown"])?;
    cluster.machine(&first).wait_off(context.patience(60))?;

    context.say("a cold start from the disk");
    let power = Instant::now();
    cluster.start_installed(&first, context.accelerator)?;
    cluster.wait_running(&first)?;
    let api = power.elapsed().as_secs_f64();
    let milestones = context.eventually("the milestones of a whole boot", context.patience(240), || {
        let Ok(text) = strakectl(&cluster, &first, &["get", "boot", "-o", "json"]) else { return Ok(None) };
        Ok(serde_json::from_str::<Value>(&text).ok().filter(|rows| at(rows, "node-ready", "seconds").is_some()))
    })?;
    found.extend(starts(&milestones, api));
    Ok(found)
}

/// What a machine that waits for a config uses: the last thing that is measured of this one, because it is reset for it.
fn idle_memory(context: &Context, cluster: &Cluster, node: &Node) -> Result<f64, Error> {
    let start = cluster.machine(node).console().position();
    strakectl(cluster, node, &["reset", "--yes"])?;
    context.say("a machine without a config, idle");
    let ask = |words: &[&str]| cluster.when_in_maintenance(node, start, "stage=maintenance", words);
    ask(&["version"])?;
    std::thread::sleep(IDLE);
    let text = ask(&["stats", "-o", "json"])?;
    let rows: Value = serde_json::from_str(&text).unwrap_or_default();
    let machine = rows.as_array().into_iter().flatten().find(|row| row["name"] == "(machine)");
    let used = machine.and_then(|row| row["rss"].as_f64()).ok_or_else(|| unexpected("what the machine uses", text.clone()))?;
    Ok(used / f64::from(1 << 20))
}

/// An upgrade of the worker while the example is asked through the other node.
fn upgrade(context: &Context, cluster: &Cluster, first: &Node, worker: &Node) -> Result<Vec<Measure>, Error> {
    deploy(context, cluster)?;
    let image = variant_image(context, NEW, None)?;
    let written = || bytes_written(cluster, worker);
    let before = written()?;
    let boot = strakectl(cluster, worker, &["read", BOOT_ID])?;
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let load = scope.spawn(|| requests(first.hello_port, &over));
        let asked = scope.spawn(|| longest_silence(cluster, worker, &over));
        let steps = steps(cluster, worker, &image.upgrade).and_then(|steps| {
            let restarts = Instant::now();
            context.eventually("another boot", context.patience(240), || {
                Ok(strakectl(cluster, worker, &["read", BOOT_ID]).ok().filter(|now| *now != boot))
            })?;
            let back = restarts.elapsed();
            context.eventually("the new system to be good", context.patience(300), || {
                let Ok(text) = strakectl(cluster, worker, &["get", "upgrade", "-o", "json"]) else { return Ok(None) };
                let rows: Value = serde_json::from_str(&text).unwrap_or_default();
                Ok((rows[0]["state"] == "good" && rows[0]["to"] == NEW).then_some(()))
            })?;
            Ok((steps, back, restarts.elapsed()))
        });
        // Also after an error, or the threads would never end.
        std::thread::sleep(if steps.is_ok() { Duration::from_secs(5) } else { Duration::ZERO });
        over.store(true, Ordering::Relaxed);
        let joined = load.join().and_then(|load| asked.join().map(|silence| (load, silence)));
        let (load, silence) = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        steps.map(|steps| (steps, load, silence))
    });
    let ((steps, back, good), (asked, failures), silence) = outcome?;
    for failure in failures.iter().take(5) {
        context.say(&format!("a request failed: {failure}"));
    }
    cluster.wait_nodes(context)?;
    let seconds = |duration: Duration| duration.as_secs_f64();
    let file = std::fs::metadata(&image.upgrade).on("find", &image.upgrade)?.len();
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut found: Vec<Measure> =
        steps.into_iter().map(|(stage, took)| Measure::new(format!("upgrade: {stage}"), seconds(took), "s")).collect();
    found.extend([
        Measure::new("upgrade: restart to machine API", seconds(back), "s"),
        Measure::new("upgrade: restart to proved good", seconds(good), "s"),
        Measure::new("upgrade: machine API unavailable", seconds(silence), "s"),
        Measure::new("upgrade: requests to the Deployment", asked as f64, ""),
        Measure::new("upgrade: failed requests", failures.len() as f64, ""),
        Measure::new("upgrade: file", megabytes(file), "MB"),
        Measure::new("upgrade: bytes written", megabytes(written()?.saturating_sub(before)), "MB"),
    ]);
    Ok(found)
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn strakectl(cluster: &Cluster, node: &Node, words: &[&str]) -> Result<String, Error> {
    cluster.clients().strakectl([&["--timeout", "5", "-n", &node.local_api()], words].concat())
}

/// The example, whose pods wait before they end until nobody sends them anything any more.
fn deploy(context: &Context, cluster: &Cluster) -> Result<(), Error> {
    let example = context.project.join("configs/examples/hello.yaml");
    let text = std::fs::read_to_string(&example).on("read", &example)?;
    let before = "          ports:\n            - name: http\n";
    let with = text.replace(
        before,
        &format!("          lifecycle:\n            preStop:\n              sleep:\n                seconds: 10\n{before}"),
    );
    if with == text {
        return Err(unexpected("a container with ports in the example", text));
    }
    let file = context.dir.join("hello.yaml");
    std::fs::write(&file, with).on("write", &file)?;
    let clients = cluster.clients();
    clients.kubectl(["apply", "-f", &file.to_string_lossy()])?;
    wait_deployment(context, &clients)
}

/// Upgrades, and says how long each of its stages took.
fn steps(cluster: &Cluster, node: &Node, image: &std::path::Path) -> Result<Vec<(String, Duration)>, Error> {
    let (api, file) = (node.local_api(), image.to_string_lossy());
    let words = ["--timeout", "5", "-n", &api, "-o", "json", "upgrade", "--image", &file, "--deadline", "1800"];
    let mut command = cluster.clients().strakectl_command(words);
    let failed = |source| Error::Spawn { program: "strakectl".into(), source };
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let said = child.stdout.take().map(|out| stages(out, begun)).unwrap_or_default();
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(unexpected("an upgrade", format!("{status} after {said:?}")));
    }
    Ok(said)
}

fn stages(out: ChildStdout, begun: Instant) -> Vec<(String, Duration)> {
    let lines = BufReader::new(out).lines().map_while(Result::ok).map(|line| (line, begun.elapsed()));
    durations(lines)
}

/// From lines of JSON and when each came: every stage, and how long it lasted until the next.
fn durations(lines: impl Iterator<Item = (String, Duration)>) -> Vec<(String, Duration)> {
    let mut found: Vec<(String, Duration)> = Vec::new();
    let mut since = Duration::ZERO;
    for (line, at) in lines {
        let message: Value = serde_json::from_str(&line).unwrap_or_default();
        let stage = message["stage"].as_str().filter(|_| message["checks"].is_null()).unwrap_or("check");
        if let Some((_, took)) = found.last_mut() {
            *took += at.saturating_sub(since);
        }
        since = at;
        if message["complete"] == true {
            break;
        }
        if found.last().is_none_or(|(last, _)| last != stage) {
            let took = if found.is_empty() { at } else { Duration::ZERO };
            found.push((stage.to_owned(), took));
        }
    }
    found
}

/// Asks until told to stop: how often, and what went wrong.
fn requests(port: u16, over: &AtomicBool) -> (usize, Vec<String>) {
    let (mut asked, mut failures) = (0, Vec::new());
    while !over.load(Ordering::Relaxed) {
        asked += 1;
        if let Err(problem) = http::get(port, "/") {
            failures.push(problem.to_string());
        }
        std::thread::sleep(REQUESTS);
    }
    (asked, failures)
}

/// The longest time between two answers of the machine API.
fn longest_silence(cluster: &Cluster, node: &Node, over: &AtomicBool) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        if strakectl(cluster, node, &["version"]).is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        std::thread::sleep(ASKED);
    }
    longest
}

/// What QEMU wrote to the machine's disk since it was started.
fn bytes_written(cluster: &Cluster, node: &Node) -> Result<u64, Error> {
    let answer = cluster.machine(node).monitor().execute("query-blockstats", serde_json::json!({}))?;
    let disk = answer.as_array().into_iter().flatten().find(|device| device["device"] == "disk");
    disk.and_then(|disk| disk["stats"]["wr_bytes"].as_u64()).ok_or_else(|| unexpected("statistics of the disk", answer.to_string()))
}

fn at(rows: &Value, id: &str, field: &str) -> Option<f64> {
    rows.as_array()?.iter().find(|row| row["id"] == id)?[field].as_f64()
}

/// Times from power-on, and what each part took. Not every firmware tells when it began: then the seconds after which the API answered,
/// by the host's clock, say how much came before the kernel's own.
fn starts(rows: &Value, api: f64) -> Vec<Measure> {
    let kernel = |id: &str| at(rows, id, "seconds");
    let minus = |one: Option<f64>, other: Option<f64>| one.zip(other).map(|(one, other)| one - other);
    let power = |id: &str| at(rows, id, "sincePowerOn").or_else(|| Some(api + minus(kernel(id), kernel("machine-api"))?));
    let before = if power("firmware").is_none() { minus(Some(api), kernel("machine-api")) } else { None };
    let figures = [
        ("disk: power-on to machine API", power("machine-api")),
        ("disk: power-on to node Ready", power("node-ready")),
        ("disk: of it firmware", power("firmware")),
        ("disk: of it loader", minus(power("loader"), power("firmware"))),
        ("disk: of it firmware and loader", before),
        ("disk: of it kernel", kernel("init")),
        ("disk: of it init", minus(kernel("machined"), kernel("init"))),
        ("disk: of it machined to its API", minus(kernel("machine-api"), kernel("machined"))),
        ("disk: of it services to node Ready", minus(kernel("node-ready"), kernel("machine-api"))),
    ];
    figures.into_iter().filter_map(|(name, value)| Some(Measure::new(name, value?, "s"))).collect()
}

/// When something was noted of a machine.
struct Times<'a> {
    context: &'a Context,
    noted: Mutex<Vec<(String, String, Instant)>>,
}

impl Times<'_> {
    fn between(&self, machine: &str, from: &str, to: &str, name: &str) -> Option<Measure> {
        let noted = self.noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let first = |what: &str| noted.iter().find(|(of, said, _)| of == machine && said.starts_with(what)).map(|(_, _, at)| *at);
        Some(Measure::new(name, first(to)?.duration_since(first(from)?).as_secs_f64(), "s"))
    }
}

impl Progress for Times<'_> {
    fn phase(&self, name: &str) {
        self.context.phase(name);
    }

    fn note(&self, machine: &str, what: &str) {
        self.context.note(machine, what);
        let mut noted = self.noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        noted.push((machine.to_owned(), what.to_owned(), Instant::now()));
    }
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the measured machine".into(), expected: expected.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_stage_lasts_until_the_next() {
        let seconds = Duration::from_secs;
        let lines = [
            (json!({"stage": "", "checks": [{"check": "signature"}]}), 1),
            (json!({"stage": "write the system", "done": 0, "total": 2, "complete": false}), 2),
            (json!({"stage": "write the system", "done": 2, "total": 2, "complete": false}), 6),
            (json!({"stage": "verify the system", "complete": false}), 7),
            (json!({"stage": "", "complete": true}), 10),
        ];
        let found = durations(lines.iter().map(|(line, at)| (line.to_string(), seconds(*at))));
        let expected = [("check", 2), ("write the system", 5), ("verify the system", 3)];
        assert_eq!(found, expected.map(|(stage, took)| (stage.to_owned(), seconds(took))));
        assert!(durations(std::iter::empty()).is_empty());
    }

    #[test]
    fn parts_of_a_start_add_up() {
        let rows = json!([
            {"id": "firmware", "seconds": null, "sincePowerOn": 2.0}, {"id": "loader", "seconds": null, "sincePowerOn": 3.0},
            {"id": "init", "seconds": 1.0, "sincePowerOn": 4.0}, {"id": "machined", "seconds": 3.0, "sincePowerOn": 6.0},
            {"id": "machine-api", "seconds": 4.0, "sincePowerOn": 7.0}, {"id": "node-ready", "seconds": 10.0, "sincePowerOn": 13.0},
        ]);
        let found = starts(&rows, 9.0);
        let parts: f64 = found.iter().filter(|figure| figure.name.contains("of it")).map(|figure| figure.value).sum();
        assert_eq!((found.len(), parts), (8, found[1].value));
        assert_eq!(starts(&json!([]), 9.0), []);
    }

    #[test]
    fn the_hosts_clock_says_what_the_firmware_does_not() {
        let rows = json!([
            {"id": "init", "seconds": 1.0}, {"id": "machined", "seconds": 3.0}, {"id": "machine-api", "seconds": 4.0},
            {"id": "node-ready", "seconds": 10.0},
        ]);
        let found = starts(&rows, 7.5);
        let parts: f64 = found.iter().filter(|figure| figure.name.contains("of it")).map(|figure| figure.value).sum();
        assert_eq!((found[0].value, found[1].value, parts), (7.5, 13.5, 13.5));
        assert!(found.contains(&Measure::new("disk: of it firmware and loader", 3.5, "s")));
    }
}
