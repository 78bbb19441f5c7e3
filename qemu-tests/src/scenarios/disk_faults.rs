//! Disks that are full, slow, or whose file system found errors: the machine says so, keeps its API and what was acknowledged, and etcd does not
//! notice a full DATA.

use serde_json::{Value, json};

use super::restarts::{HAND, make_hand};
use crate::cluster::Clients;
use crate::error::{Error, FileContext};
use crate::scenario::{Context, RunningCluster, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "disk-faults",
    protects: "a control plane with a full DATA, a full STATE, a slow disk or a read-only STATE says so, keeps its API and everything that was acknowledged",
    run,
};

/// Objects written in each trouble.
const OBJECTS: usize = 5;
/// Operations and bytes in a second that a bad disk does.
const SLOW: (u64, u64) = (60, 2 << 20);

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.ready_cluster()?;
    let clients = cluster.clients();
    let node = cluster.plan().control_plane();
    make_hand(context, &clients, &node.name)?;
    let etcd = restarts_of_etcd(&clients, &node.name)?;
    let subject = Subject { context, cluster: &cluster, clients: &clients };

    subject.fill("/var")?;
    subject.says("DATA", "is full")?;
    subject.keeps("data")?;
    subject.hand("rm /proc/1/root/var/fill")?;
    subject.is_well("DATA")?;
    let now = restarts_of_etcd(&clients, &node.name)?;
    if now != etcd {
        return Err(unexpected("an etcd that does not notice", format!("{now} restarts after {etcd}")));
    }
    context.say("a full DATA: told, etcd did not notice, and it is well again");

    let config = subject.strakectl(&["read", "/system/state/config.yaml"])?;
    subject.fill("/system/state")?;
    subject.says("STATE", "is full")?;
    subject.refuses_config("state-full")?;
    subject.keeps("state")?;
    subject.hand("rm /proc/1/root/system/state/fill")?;
    subject.is_well("STATE")?;
    if subject.strakectl(&["read", "/system/state/config.yaml"])? != config {
        return Err(unexpected("the config as it was", "another".to_owned()));
    }
    context.say("a full STATE: told, a config is refused and the one before is whole");

    subject.throttle(SLOW)?;
    subject.keeps("slow")?;
    subject.strakectl(&["version"])?;
    subject.throttle((0, 0))?;
    cluster.wait_nodes(context)?;
    context.say("a slow disk: what was acknowledged is there, and the machine API answers");

    let device = subject.volume("STATE")?["device"].as_str().unwrap_or_default().replace("/dev/", "");
    subject.hand(&format!("echo test > /sys/fs/ext4/{device}/trigger_fs_error"))?;
    subject.says("STATE", "read-only")?;
    subject.refuses_config("state-read-only")?;
    subject.keeps("read-only")?;
    let boot = subject.strakectl(&["read", BOOT_ID])?;
    subject.strakectl(&["reboot"])?;
    context
        .eventually("another boot", context.patience(180), || Ok(subject.strakectl(&["read", BOOT_ID]).ok().filter(|now| *now != boot)))?;
    subject.is_well("STATE")?;
    cluster.wait_nodes(context)?;
    for trouble in ["data", "state", "slow", "read-only"] {
        subject.has(trouble)?;
    }
    context.say("errors made STATE read-only: told, kept, and repaired by a reboot; every acknowledged object is there");
    Ok(())
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

struct Subject<'a> {
    context: &'a Context,
    cluster: &'a RunningCluster,
    clients: &'a Clients,
}

impl Subject<'_> {
    fn strakectl(&self, words: &[&str]) -> Result<String, Error> {
        let api = self.cluster.plan().control_plane().local_api();
        self.clients.strakectl([&["--timeout", "20", "-n", &api], words].concat())
    }

    /// Runs something on the machine as root.
    fn hand(&self, script: &str) -> Result<String, Error> {
        self.clients.kubectl(["exec", HAND, "--", "sh", "-c", script])
    }

    /// Leaves no room on the file system of this directory.
    fn fill(&self, directory: &str) -> Result<(), Error> {
        let at = format!("/proc/1/root{directory}");
        // Most of it in one piece, the rest until nothing more fits.
        let script = format!(
            "free=$(busybox df -kP {at} | tail -n 1 | busybox awk '{{print $4}}'); busybox fallocate -l $((free - 8192))k {at}/fill; \
             cat /dev/zero >> {at}/fill; sync; busybox df -kP {at} | tail -n 1"
        );
        let said = self.hand(&script)?;
        self.context.say(&format!("{directory} is full: {}", said.trim()));
        Ok(())
    }

    fn volume(&self, label: &str) -> Result<Value, Error> {
        let text = self.strakectl(&["get", "volumes", label, "-o", "json"])?;
        let rows: Value = serde_json::from_str(&text).map_err(|problem| unexpected("JSON", problem.to_string()))?;
        Ok(rows[0].clone())
    }

    /// Waits until the machine says so of a volume, where people look and in an event.
    fn says(&self, label: &str, trouble: &str) -> Result<(), Error> {
        self.context.eventually(&format!("{label} {trouble}"), self.context.patience(60), || {
            let told = self.volume(label).ok().and_then(|volume| volume["problem"].as_str().map(str::to_owned));
            Ok(told.filter(|told| told.contains(trouble)).map(drop))
        })?;
        let events = self.strakectl(&["get", "events", "-o", "json"])?;
        if events.contains(trouble) { Ok(()) } else { Err(unexpected(&format!("an event with {trouble:?}"), events)) }
    }

    fn is_well(&self, label: &str) -> Result<(), Error> {
        self.context.eventually(&format!("{label} without trouble"), self.context.patience(60), || {
            Ok(self.volume(label).ok().filter(|volume| volume["problem"].is_null() && volume["readOnly"] == false).map(drop))
        })
    }

    /// Writes objects, which must be there afterwards.
    fn keeps(&self, trouble: &str) -> Result<(), Error> {
        for number in 0..OBJECTS {
            let name = format!("{trouble}-{number}");
            self.context.eventually(&format!("configmap {name} to be taken"), self.context.patience(60), || {
                Ok(self.clients.kubectl(["create", "configmap", &name, "--from-literal=kept=yes"]).ok())
            })?;
        }
        self.has(trouble)
    }

    fn has(&self, trouble: &str) -> Result<(), Error> {
        for number in 0..OBJECTS {
            let found = self.clients.get(&["configmap", &format!("{trouble}-{number}")])?;
            if found["data"]["kept"] != "yes" {
                return Err(unexpected("what was acknowledged", found.to_string()));
            }
        }
        Ok(())
    }

    /// A config that cannot be written is refused in words that name it.
    fn refuses_config(&self, name: &str) -> Result<(), Error> {
        let file = self.cluster.config(self.cluster.plan().control_plane());
        let text = std::fs::read_to_string(&file).on("read", &file)?;
        let changed = self.context.dir.join(format!("{name}.yaml"));
        std::fs::write(&changed, text.replace("10.5.0.3", "10.5.0.2")).on("write", &changed)?;
        match self.strakectl(&["apply-config", "--mode", "no-reboot", "-f", &changed.to_string_lossy()]) {
            Ok(said) => Err(unexpected("a config that is refused", said)),
            Err(problem) => {
                self.context.say(&format!("  the config is refused: {}", problem.to_string().lines().last().unwrap_or_default()));
                Ok(())
            }
        }
    }

    /// Makes the disk slow; zeroes make it as it was.
    fn throttle(&self, (operations, bytes): (u64, u64)) -> Result<(), Error> {
        let limits = json!({"device": "disk", "bps": bytes, "bps_rd": 0, "bps_wr": 0, "iops": operations, "iops_rd": 0, "iops_wr": 0});
        let machine = self.cluster.machine(self.cluster.plan().control_plane());
        machine.monitor().execute("block_set_io_throttle", limits).map(drop)
    }
}

fn restarts_of_etcd(clients: &Clients, node: &str) -> Result<u64, Error> {
    let pod = clients.get(&["pod", "-n", "kube-system", &format!("etcd-{node}")])?;
    Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default())
}

fn unexpected(expected: &str, found: String) -> Error {
    Error::Unexpected { what: "the machine".into(), expected: expected.to_owned(), found }
}
