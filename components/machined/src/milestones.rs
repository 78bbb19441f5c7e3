//! When what was reached in this boot: seconds on the boot clock, which starts with the kernel, as resources of kind
//! `boot`. What the firmware and the loader took before comes from the variables that the loader leaves. A machined that
//! was restarted knows what the one before it saw.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_client::resources::NODES;
use k8s_client::{Client, Request};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::clock::Now;
use crate::kubernetes;
use crate::machine::Machine;
use crate::paths::Paths;
use crate::reconcilers::Standing;
use crate::resources::Store;

/// The resources' kind.
pub const KIND: &str = "boot";
/// Where this boot's milestones are kept; gone with the boot.
const KEPT: &str = "/run/strake/milestones.json";
/// The boot loader's vendor (systemd's boot loader interface).
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// How often what has not been reached yet is asked for: while the machine is coming up, and when it takes longer than that.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// When a boot takes longer than usual: nobody measures it in fractions of a second.
const LONG: u64 = 600_000_000;
/// What etcd's static pod serves metrics and health on, without TLS.
const ETCD_HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2381);

/// The milestones of this boot.
#[derive(Debug)]
pub struct Milestones {
    /// Microseconds on the boot clock.
    reached: Mutex<BTreeMap<String, u64>>,
    /// Microseconds of firmware, and of firmware and loader together.
    before: Option<(u64, u64)>,
    kept: PathBuf,
    store: Store,
}

impl Milestones {
    /// What is known already: from before a restart of machined, from the kernel's log and the loader's variables.
    pub fn new(paths: &Paths, store: Store) -> Milestones {
        let kept = paths.at(KEPT);
        let known = fs::read(&kept).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let variable = |name: &str| fs::read(paths.at(&format!("/sys/firmware/efi/efivars/{name}-{LOADER}"))).ok();
        let time = |name: &str| variable(name).and_then(|content| loader_time(&content));
        let before = time("LoaderTimeInitUSec").zip(time("LoaderTimeExecUSec")).filter(|(firmware, loader)| firmware <= loader);
        let milestones = Milestones { reached: Mutex::new(known), before, kept, store };
        if let Some((firmware, loader)) = before {
            for (id, at) in [("firmware", firmware), ("loader", loader)] {
                milestones.store.set(KIND, id, json!({"seconds": null, "sincePowerOn": seconds(at)}));
            }
        }
        if let Some(at) = init_started(&kernel_log(paths)) {
            milestones.reach_at("init", at);
        }
        milestones.show();
        milestones
    }

    /// Notes that something is reached now. Only the first time counts.
    pub fn reach(&self, id: &str) {
        self.reach_at(id, Now::read().boottime_us);
    }

    fn reach_at(&self, id: &str, at: u64) {
        let text = {
            let mut reached = self.reached.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if reached.contains_key(id) {
                return;
            }
            reached.insert(id.to_owned(), at);
            serde_json::to_vec(&*reached).unwrap_or_default()
        };
        self.show();
        // Only a machined that is restarted misses it.
        let _ = fs::File::create(&self.kept).and_then(|mut file| file.write_all(&text));
    }

    /// Whether it was reached in this boot.
    pub fn has(&self, id: &str) -> bool {
        self.reached.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains_key(id)
    }

    fn show(&self) {
        let reached = self.reached.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        for (id, at) in reached {
            let since_power_on = self.before.map(|(_, loader)| seconds(at + loader));
            self.store.set(KIND, &id, json!({"seconds": seconds(at), "sincePowerOn": since_power_on}));
        }
    }
}

/// Seconds with milliseconds.
fn seconds(microseconds: u64) -> f64 {
    // Exact: nobody measures for longer than 2^53 ms.
    #[allow(clippy::cast_precision_loss)]
    let milliseconds = (microseconds / 1000) as f64;
    milliseconds / 1000.0
}

/// The number in a variable of the loader: four bytes of attributes, then digits in UTF-16, ended by a zero.
fn loader_time(content: &[u8]) -> Option<u64> {
    let (units, _) = content.get(4..)?.as_chunks::<2>();
    let text: String = char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0))
        .collect::<Result<_, _>>()
        .ok()?;
    text.parse().ok()
}

/// The kernel's log, as far as it is still there.
fn kernel_log(paths: &Paths) -> Vec<String> {
    /// More records than any kernel has written when machined starts.
    const RECORDS: usize = 20_000;
    let opened = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(paths.at("/dev/kmsg"));
    let Ok(mut log) = opened else { return Vec::new() };
    let (mut lines, mut record) = (Vec::new(), vec![0; 8192]);
    for _ in 0..RECORDS {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(count) => lines.push(String::from_utf8_lossy(&record[..count]).into_owned()),
            // Overwritten while it was read; the next read goes on.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(_) => break,
        }
    }
    lines
}

/// When the kernel started init, from records `priority,sequence,microseconds,flags;message` (the kernel's /dev/kmsg ABI).
fn init_started(log: &[String]) -> Option<u64> {
    let record = log.iter().find(|record| record.contains(" as init process"))?;
    record.split_once(';')?.0.split(',').nth(2)?.parse().ok()
}

/// The reconcilers whose first time of being ready says something about the boot; others are ready at once when there is
/// nothing for them to do.
const STAGES: &[&str] = &["volumes", "network", "time", "certificates", "containerd", "images", "services", "pod-network"];

/// Notes the first time that each stage is ready.
pub async fn watch_reconcilers(machine: Arc<Machine>, mut board: watch::Receiver<BTreeMap<&'static str, Standing>>) {
    loop {
        let ready: Vec<&str> = board
            .borrow_and_update()
            .iter()
            .filter(|(_, standing)| matches!(standing, Standing::Ready(_)))
            .map(|(name, _)| *name)
            .collect();
        for name in ready.into_iter().filter(|name| STAGES.contains(name)) {
            machine.milestones.reach(name);
        }
        if board.changed().await.is_err() {
            return;
        }
    }
}

/// Asks for what the cluster reaches until all of it is reached.
pub async fn watch_cluster(machine: Arc<Machine>) {
    let Some(loaded) = machine.loaded() else { return };
    let control_plane = loaded.config.is_control_plane();
    let mut client = None;
    loop {
        if control_plane && !machine.milestones.has("etcd") && etcd_is_healthy().await {
            machine.milestones.reach("etcd");
        }
        if client.is_none() {
            client = kubernetes::client(&machine.paths, kubernetes::own_kubeconfig(&loaded.config)).ok();
        }
        if let Some(client) = &client {
            if !machine.milestones.has("kube-apiserver") && is_ready(client).await {
                machine.milestones.reach("kube-apiserver");
            }
            if machine.milestones.has("kube-apiserver") && node_is_ready(client, &machine.hostname()).await {
                machine.milestones.reach("node-ready");
                return;
            }
        }
        tokio::time::sleep(if Now::read().boottime_us < LONG { EVERY.0 } else { EVERY.1 }).await;
    }
}

async fn is_ready(client: &Client) -> bool {
    client.execute(&Request::raw(k8s_client::Method::Get, "/readyz").with_timeout(Duration::from_secs(2))).await.is_ok()
}

async fn node_is_ready(client: &Client, name: &str) -> bool {
    match client.call::<Value>(&Request::get(&NODES, "", name).with_timeout(Duration::from_secs(2))).await {
        Ok(node) => ready_condition(&node),
        Err(_) => false,
    }
}

/// Whether a Node says that it is ready.
fn ready_condition(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

async fn etcd_is_healthy() -> bool {
    let ask = async {
        let mut socket = tokio::net::TcpStream::connect(ETCD_HEALTH).await.ok()?;
        socket.write_all(b"GET /health HTTP/1.0\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        socket.take(4096).read_to_end(&mut answer).await.ok()?;
        String::from_utf8_lossy(&answer).contains(r#""health":"true""#).then_some(())
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.ok().flatten().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_when_it_started_init() {
        let log = ["6,1,100,-;Linux version", "6,300,812345,-;Run /init as init process", "6,301,812400,-;  with arguments:"];
        assert_eq!(init_started(&log.map(str::to_owned)), Some(812_345));
        assert_eq!(init_started(&[]), None);
        assert_eq!(init_started(&["no semicolon as init process".to_owned()]), None);
    }

    #[test]
    fn the_loaders_times_are_text_in_utf_16() {
        let mut content = vec![6, 0, 0, 0];
        content.extend("1234567\0".encode_utf16().flat_map(u16::to_le_bytes));
        assert_eq!(loader_time(&content), Some(1_234_567));
        for bad in [&[][..], &[6, 0, 0, 0], &[6, 0, 0, 0, b'x', 0]] {
            assert_eq!(loader_time(bad), None);
        }
    }

    #[test]
    fn the_first_time_counts_and_outlives_machined() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        fs::create_dir_all(paths.at("/run/strake")).unwrap();
        let efivars = paths.at("/sys/firmware/efi/efivars");
        fs::create_dir_all(&efivars).unwrap();
        for (name, digits) in [("LoaderTimeInitUSec", "1500000"), ("LoaderTimeExecUSec", "2000000")] {
            let text: Vec<u8> = [6, 0, 0, 0].into_iter().chain(digits.encode_utf16().flat_map(u16::to_le_bytes)).collect();
            fs::write(efivars.join(format!("{name}-{LOADER}")), text).unwrap();
        }
        let first = Milestones::new(&paths, Store::default());
        first.reach_at("machine-api", 3_456_789);
        first.reach_at("machine-api", 9_000_000);
        let store = Store::default();
        let again = Milestones::new(&paths, store.clone());
        again.reach_at("node-ready", 20_000_000);
        let spec = |id: &str| store.get(KIND, Some(id))[0].spec.clone();
        assert_eq!(*spec("machine-api"), json!({"seconds": 3.456, "sincePowerOn": 5.456}));
        assert_eq!(spec("node-ready")["seconds"], 20.0);
        assert_eq!(*spec("loader"), json!({"seconds": null, "sincePowerOn": 2.0}));
        assert_eq!(spec("firmware")["sincePowerOn"], 1.5);
    }

    #[test]
    fn a_node_is_ready_when_it_says_so() {
        let node = |status: &str| json!({"status": {"conditions": [{"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": status}]}});
        assert!(ready_condition(&node("True")) && !ready_condition(&node("Unknown")) && !ready_condition(&json!({})));
    }
}
