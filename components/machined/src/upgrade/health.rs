//! How healthy this machine is, by what can be seen on it alone: whether its services run, whether its containerd and its kubelet answer, whether
//! the containers of its own static pods run.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use node_ipc::init::ServiceState;
use slots::gate::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::containerd::{Containerd, RunningContainer};
use crate::machine::Machine;

const KUBELET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10248);
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks. What cannot be asked for is not healthy.
pub async fn observe(machine: &Machine) -> Health {
    let services = machine.init.services().await;
    let mut health = Health::from([("init".to_owned(), services.is_ok()), ("machined".to_owned(), machine.milestones.has("machine-api"))]);
    for service in services.unwrap_or_default() {
        // One that nobody asked for is no part of this machine.
        if service.name != "machined" && service.state != ServiceState::Stopped {
            health.insert(service.name, service.state == ServiceState::Running);
        }
    }
    // One that runs and does not answer is of no use to anybody.
    let asked =
        tokio::time::timeout(PATIENCE, async { Containerd::connect(&machine.paths.containerd_socket()).await.ok()?.running().await.ok() });
    let running = if health.contains_key("containerd") { asked.await.ok().flatten() } else { None };
    if let Some(runs) = health.get_mut("containerd") {
        *runs = *runs && running.is_some();
    }
    if let Some(runs) = health.get_mut("kubelet") {
        *runs = *runs && kubelet_answers().await;
    }
    let wanted = static_pods(&machine.paths.at("/etc/kubernetes/manifests"));
    health.extend(pods(&wanted, &running.unwrap_or_default()));
    health
}

/// The names of the static pods' manifests.
fn static_pods(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_suffix(".yaml").map(str::to_owned)).collect()
}

/// Each static pod and whether its container runs; a static pod's manifest and its container have one name.
fn pods(wanted: &BTreeSet<String>, running: &[RunningContainer]) -> Health {
    let runs = |name: &str| running.iter().any(|container| container.namespace == "kube-system" && container.name == name);
    wanted.iter().map(|name| (format!("pod {name}"), runs(name))).collect()
}

async fn kubelet_answers() -> bool {
    let ask = async {
        let mut socket = tokio::net::TcpStream::connect(KUBELET).await.ok()?;
        socket.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        socket.take(4096).read_to_end(&mut answer).await.ok()?;
        ok(&String::from_utf8_lossy(&answer)).then_some(())
    };
    tokio::time::timeout(PATIENCE, ask).await.ok().flatten().is_some()
}

fn ok(answer: &str) -> bool {
    answer.lines().next().is_some_and(|line| line.starts_with("HTTP/1.") && line.split(' ').nth(1) == Some("200"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_pod_is_healthy_while_its_container_runs() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["etcd.yaml", "kube-apiserver.yaml", "README"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let wanted = static_pods(dir.path());
        let container = |namespace: &str, name: &str| RunningContainer { namespace: namespace.into(), name: name.into() };
        let running = [container("kube-system", "etcd"), container("default", "kube-apiserver")];
        assert_eq!(pods(&wanted, &running), Health::from([("pod etcd".into(), true), ("pod kube-apiserver".into(), false)]));
        assert!(static_pods(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn only_200_is_an_answer() {
        for (answer, expected) in [("HTTP/1.0 200 OK\r\n\r\nok", true), ("HTTP/1.1 500 no\r\n", false), ("", false), ("200", false)] {
            assert_eq!(ok(answer), expected, "{answer:?}");
        }
    }
}
