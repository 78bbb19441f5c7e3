//! Killing each program that carries a node in turn, under a running Deployment: all come back, and pods that were not touched keep their
//! start time.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::first_cluster::{deploy, reach, unexpected, wait_deployment};
use crate::cluster::Clients;
use crate::error::{Error, FileContext};
use crate::scenario::{Context, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "restarts",
    protects: "containerd, logd, machined, kubelet, kube-proxy and every static pod come back when they are killed, and disturb nothing else",
    run,
};

/// The host services, by how their command line begins.
const SERVICES: &[(&str, &str)] = &[
    ("logd", "/usr/bin/logd"),
    ("machined", "/usr/bin/machined"),
    ("kube-proxy", "/usr/bin/kube-proxy"),
    ("kubelet", "/usr/bin/kube kubelet"),
    ("containerd", "/usr/bin/containerd --"),
];
/// The static pods.
const STATIC_PODS: &[(&str, &str)] = &[
    ("kube-scheduler", "/usr/bin/kube kube-scheduler"),
    ("kube-controller-manager", "/usr/bin/kube kube-controller-manager"),
    ("cloud-controller-manager", "/usr/bin/kube cloud-controller-manager"),
    ("kube-apiserver", "/usr/bin/kube kube-apiserver"),
    ("etcd", "/usr/bin/etcd "),
];
/// The pod that sees every process of its node.
pub const HAND: &str = "hand";

fn run(context: &Context) -> Result<(), Error> {
    let cluster = context.ready_cluster()?;
    let clients = cluster.clients();
    let first = cluster.plan().control_plane();
    deploy(context, &clients)?;
    make_hand(context, &clients, &first.name)?;
    let untouched = start_times(&clients)?;

    for (name, command) in SERVICES {
        let before = pid(&clients, command)?.ok_or_else(|| unexpected(name, "a running process", "none"))?;
        kill(&clients, before);
        context.eventually(&format!("{name} to run again"), context.patience(30), || {
            // exec needs the API server, the kubelet and containerd, so a failure here is one that passes.
            Ok(pid(&clients, command).ok().flatten().filter(|now| *now != before))
        })?;
        cluster.wait_nodes(context)?;
        context.eventually(&format!("the machine API to report {name} as running"), context.patience(20), || {
            let Ok(services) = clients.strakectl(["-n", &first.local_api(), "services", "-o", "json"]) else { return Ok(None) };
            Ok(runs(&services, name).then_some(()))
        })?;
        check_untouched(&clients, &untouched, name)?;
        context.say(&format!("{name} was killed and is back; every pod kept its start time"));
    }
    for (name, command) in STATIC_PODS {
        let before = context.eventually(name, context.patience(20), || Ok(pid(&clients, command).ok().flatten()))?;
        kill(&clients, before);
        let pod = format!("{name}-{}", first.name);
        context.eventually(&format!("{name} to run again"), context.patience(60), || {
            let Some(now) = pid(&clients, command).ok().flatten().filter(|now| *now != before) else { return Ok(None) };
            let Ok(found) = clients.get(&["pod", "-n", "kube-system", &pod]) else { return Ok(None) };
            let status = &found["status"]["containerStatuses"][0];
            Ok((status["restartCount"].as_u64() > Some(0) && status["ready"] == true).then_some(now))
        })?;
        let others: BTreeMap<String, String> = untouched
            .iter()
            .filter(|(other, _)| !STATIC_PODS.iter().any(|(name, _)| other.contains(name)))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        check_untouched(&clients, &others, name)?;
        context.say(&format!("{name} was killed and is back; the other pods kept their start time"));
    }
    cluster.wait_nodes(context)?;
    wait_deployment(context, &clients)?;
    reach(context, &clients, cluster.plan())
}

/// A pod on the node that sees and may end every process: it stands for whatever may kill one.
pub fn make_hand(context: &Context, clients: &Clients, node: &str) -> Result<(), Error> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": HAND},
        "spec": {
            "nodeName": node, "hostPID": true, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{
                "name": HAND, "image": "strake.dev/hello:v1", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "86400"],
                "securityContext": {"runAsUser": 0, "runAsGroup": 0, "privileged": true},
            }],
        },
    });
    let file = context.dir.join("hand.json");
    std::fs::write(&file, pod.to_string()).on("write", &file)?;
    clients.kubectl(["apply", "-f", &file.to_string_lossy()])?;
    context.eventually("the pod that kills", context.patience(60), || {
        Ok(clients.get(&["pod", HAND]).ok().filter(|pod| pod["status"]["phase"] == "Running").map(drop))
    })
}

/// The process whose command line begins so; the lowest when there are several.
fn pid(clients: &Clients, command: &str) -> Result<Option<u32>, Error> {
    let list = clients.kubectl([
        "exec",
        HAND,
        "--",
        "sh",
        "-c",
        "for p in /proc/[0-9]*; do echo \"${p#/proc/} $(tr '\\0' ' ' < $p/cmdline)\"; done 2>/dev/null",
    ])?;
    Ok(find(&list, command))
}

fn find(list: &str, command: &str) -> Option<u32> {
    let of = |line: &str| {
        let (pid, found) = line.split_once(' ')?;
        // A program without arguments ends its line with its name.
        format!("{} ", found.trim_end()).starts_with(command).then(|| pid.parse::<u32>().ok())?
    };
    list.lines().filter_map(of).min()
}

fn kill(clients: &Clients, pid: u32) {
    // Killing the API server or the kubelet cuts the very connection this runs over, so its outcome says nothing.
    let _ = clients.kubectl(["exec", HAND, "--", "sh", "-c", &format!("kill -9 {pid}")]);
}

/// When each container of each pod started.
fn start_times(clients: &Clients) -> Result<BTreeMap<String, String>, Error> {
    let pods = clients.get(&["pods", "--all-namespaces"])?;
    let mut times = BTreeMap::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let started = container["state"]["running"]["startedAt"].as_str().unwrap_or("not running");
            times.insert(format!("{name}/{}", container["name"].as_str().unwrap_or_default()), started.to_owned());
        }
    }
    Ok(times)
}

fn check_untouched(clients: &Clients, before: &BTreeMap<String, String>, killed: &str) -> Result<(), Error> {
    let now = start_times(clients)?;
    let changed: BTreeSet<String> = before
        .iter()
        .filter(|(name, started)| now.get(*name) != Some(started))
        .map(|(name, started)| format!("{name} started at {started}, now {:?}", now.get(name)))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(unexpected(&format!("the pods' start times after {killed} was killed"), "unchanged", &format!("{changed:?}")))
}

/// Whether a list of services says that one runs.
fn runs(services: &str, name: &str) -> bool {
    let Ok(found) = serde_json::from_str::<Value>(services) else { return false };
    let lists = [&found, &found["services"], &found["items"]];
    let service = lists.iter().filter_map(|list| list.as_array()).flatten().find(|service| service["name"] == name);
    service.is_some_and(|service| service["state"].as_str().is_some_and(|state| state.eq_ignore_ascii_case("running")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_how_its_command_line_begins() {
        let list = "1 /usr/bin/init \n40 /usr/bin/kube kubelet --config=x \n55 /usr/bin/kube kube-apiserver \n61 /usr/bin/containerd-shim-runc-v2 -id\n62 /usr/bin/containerd --config=y \n70 \n39 /usr/bin/logd\n";
        for (command, expected) in [
            ("/usr/bin/kube kubelet", Some(40)),
            ("/usr/bin/kube kube-apiserver", Some(55)),
            ("/usr/bin/containerd --", Some(62)),
            ("/usr/bin/logd ", Some(39)),
            ("/usr/bin/etcd ", None),
        ] {
            assert_eq!(find(list, command), expected, "{command}");
        }
    }
}
