//! The pod network on real kernels' ground: Debian's CNI plugins read the config that a node writes, and connections run between pods of one node, of
//! two nodes, and out of the cluster. Two nodes are two network namespaces beside each other on a bridge; as root or with a user namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::kubernetes::testing;

const INSIDE: &str = "POD_NETWORK_TEST_INSIDE";
const ARGUMENT: &str = "POD_NETWORK_TEST_ARGUMENT";
/// Where the plugins are, as `cargo xtask test` says.
const PLUGINS: &str = "STRAKE_CNI";

/// What the cloud controller manager plans for the two nodes.
const PLAN: &str =
    r#"[{"node":"cp-1","podCIDR":"10.244.0.0/24","via":"10.5.0.11"},{"node":"worker-1","podCIDR":"10.244.1.0/24","via":"10.5.0.21"}]"#;

/// Where the plugins are. Only a machine without them skips; where `STRAKE_CNI` is set they must be there.
fn plugins() -> Option<PathBuf> {
    let named = std::env::var_os(PLUGINS).map(PathBuf::from);
    let dir = named.clone().unwrap_or_else(|| "/usr/lib/cni".into());
    assert!(named.is_none() || dir.join("bridge").exists(), "no CNI plugins in {}", dir.display());
    dir.join("bridge").exists().then_some(dir)
}

fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The command that runs a part of this file, one of its ignored tests, in a namespace.
fn part(namespace: &str, name: &str, argument: &str) -> Command {
    let mut command = Command::new("ip");
    let test = format!("kubernetes::pod_network::kernel::{name}");
    command.args(["netns", "exec", namespace]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture", "--include-ignored"]).env(ARGUMENT, argument);
    command
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server on port 8080 that answers each connection with the address it came from.
fn serve_in(namespace: &str) -> Server {
    Server(part(namespace, "serve", "").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
#[ignore = "a server that the test starts in a namespace"]
fn serve() {
    let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    while Instant::now() < until {
        let (mut stream, client) = listener.accept().unwrap();
        let _ = write!(stream, "{}", client.ip());
    }
}

/// What `address` answers a client in a namespace.
fn ask_in(namespace: &str, address: &str) -> Option<String> {
    let output = part(namespace, "ask", address).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = text.split("answer=").nth(1)?.lines().next()?.to_owned();
    (answer != "none").then_some(answer)
}

#[test]
#[ignore = "a client that the test starts in a namespace"]
fn ask() {
    let address: SocketAddr = std::env::var(ARGUMENT).unwrap().parse().unwrap();
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    println!("answer={}", ask().unwrap_or_else(|_| "none".into()));
}

/// A node: a namespace on the bridge `lan`, with what machined does for the pod network.
fn node(facts: &NodeFacts) {
    let (name, address) = (&facts.hostname, facts.node_ip);
    run(&format!(
        "ip netns add {name} && ip link add v{name} type veth peer name eth0 netns {name} && ip link set v{name} master lan up && \
         ip -n {name} addr add {address}/24 dev eth0 && ip -n {name} link set eth0 up && ip -n {name} link set lo up && \
         ip -n {name} route add default via 10.5.0.1 && mkdir /run/{name}"
    ));
    let status = part(name, "prepare", name).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "prepare {name}");
}

#[tokio::test]
#[ignore = "what machined does, started by the test in a node's namespace"]
async fn prepare() {
    let name = std::env::var(ARGUMENT).unwrap();
    let config = testing::control_plane_config();
    let facts = if name == "cp-1" { testing::facts() } else { testing::worker_facts() };
    set_sysctls(&Paths::under("/")).unwrap();
    Socket::open().unwrap().commit(masquerade(&config)).unwrap();
    assert_eq!(install_routes(PLAN, &config, &facts).await.unwrap(), 1);
    assert_eq!(install_routes(PLAN, &config, &facts).await.unwrap(), 1, "a second time changes nothing");
}

/// Calls one plugin as a container runtime does (the CNI specification, section 2), in a node's namespace.
fn plugin(dir: &Path, node: &str, pod: &str, interface: &str, command: &str, config: &Value) -> Value {
    let kind = config["type"].as_str().unwrap();
    // Each node keeps its addresses for itself: `ip netns exec` makes a mount namespace for the command.
    let script = format!("mkdir -p /run/cni && mount --bind /run/{node} /run/cni && exec {}", dir.join(kind).display());
    let mut child = Command::new("ip")
        .args(["netns", "exec", node, "sh", "-c", &script])
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", pod)
        .env("CNI_NETNS", format!("/run/netns/{pod}"))
        .env("CNI_IFNAME", interface)
        .env("CNI_PATH", dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{kind} {command} for {pod}: {text}");
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

struct Pod<'a> {
    dir: &'a Path,
    node: &'a str,
    name: &'a str,
    list: Value,
    ports: Value,
    address: String,
    _server: Server,
}

impl<'a> Pod<'a> {
    /// Makes a pod's namespace and adds it to the node's network.
    fn add(dir: &'a Path, node: &'a str, name: &'a str, range: &str, ports: Value) -> Pod<'a> {
        run(&format!("ip netns add {name}"));
        plugin(dir, node, name, "lo", "ADD", &json!({"cniVersion": "1.0.0", "name": "loopback", "type": "loopback"}));
        let file = node_files::cni(&[range.parse().unwrap()], None);
        let list: Value = serde_json::from_slice(&file.content).unwrap();
        let mut result = Value::Null;
        for config in configs(&list, &ports) {
            let mut config = config;
            config["prevResult"] = result;
            result = plugin(dir, node, name, "eth0", "ADD", &config);
        }
        let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        Pod { dir, node, name, list, ports, address, _server: serve_in(name) }
    }

    fn remove(&self) {
        let mut all: Vec<Value> = configs(&self.list, &self.ports).collect();
        all.reverse();
        for config in all {
            plugin(self.dir, self.node, self.name, "eth0", "DEL", &config);
        }
    }

    fn endpoint(&self) -> String {
        format!("{}:8080", self.address)
    }
}

/// The config of each plugin of the list, completed as a runtime does.
fn configs<'a>(list: &'a Value, ports: &'a Value) -> impl Iterator<Item = Value> + 'a {
    list["plugins"].as_array().unwrap().iter().map(move |plugin| {
        let mut config = plugin.clone();
        config["cniVersion"] = list["cniVersion"].clone();
        config["name"] = list["name"].clone();
        if plugin["capabilities"]["portMappings"] == json!(true) {
            config["runtimeConfig"] = json!({"portMappings": ports});
        }
        config
    })
}

#[test]
fn pods_reach_each_other_across_nodes_and_leave_the_cluster_as_their_node() {
    let Some(dir) = plugins() else {
        println!("skipped: no CNI plugins here; `cargo xtask test` brings them");
        return;
    };
    if std::env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount"]);
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let test = "kubernetes::pod_network::kernel::pods_reach_each_other_across_nodes_and_leave_the_cluster_as_their_node";
        command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
        assert!(command.status().unwrap().success(), "failed inside its namespaces");
        return;
    }
    run("mount -t tmpfs none /run && mkdir -p /run/netns && ip link set lo up && ip link add lan type bridge && \
         ip addr add 10.5.0.1/24 dev lan && ip link set lan up && ip netns add outside && ip link add voutside type veth peer name eth0 netns outside && \
         ip link set voutside master lan up && ip -n outside addr add 10.5.0.9/24 dev eth0 && ip -n outside link set eth0 up && ip -n outside link set lo up");
    node(&testing::facts());
    node(&testing::worker_facts());
    let _outside = serve_in("outside");
    let a = Pod::add(&dir, "cp-1", "a", "10.244.0.0/24", json!([{"hostPort": 8081, "containerPort": 8080, "protocol": "tcp"}]));
    let b = Pod::add(&dir, "cp-1", "b", "10.244.0.0/24", json!([]));
    let c = Pod::add(&dir, "worker-1", "c", "10.244.1.0/24", json!([]));
    assert_eq!([&*a.address, &*b.address, &*c.address], ["10.244.0.2", "10.244.0.3", "10.244.1.2"]);
    let until = Instant::now() + Duration::from_secs(20);
    let up = |namespace: &str, endpoint: &str| ask_in(namespace, endpoint).is_some();
    while !(up("b", &a.endpoint()) && up("a", &b.endpoint()) && up("worker-1", &c.endpoint()) && up("cp-1", "10.5.0.9:8080")) {
        assert!(Instant::now() < until, "the pods do not answer on their own nodes");
    }

    let asked = |namespace: &str, endpoint: &str| ask_in(namespace, endpoint).unwrap_or_else(|| "nothing".to_owned());
    assert_eq!(asked("a", &b.endpoint()), a.address, "pods of one node see each other");
    assert_eq!(asked("a", &c.endpoint()), a.address, "pods of two nodes see each other, unmasked");
    assert_eq!(asked("c", &a.endpoint()), c.address, "and the other way round");
    assert_eq!(asked("a", "10.5.0.9:8080"), "10.5.0.11", "what leaves the cluster comes from the node");
    assert_eq!(asked("c", "10.5.0.9:8080"), "10.5.0.21");
    assert_eq!(asked("a", "127.0.0.1:8080"), "127.0.0.1", "the loopback plugin brings lo up");
    assert_eq!(asked("outside", "10.5.0.11:8081"), "10.5.0.9", "a host port leads to the pod and keeps the client's address");
    assert_eq!(asked("a", "10.5.0.11:8081"), "10.244.0.1", "a pod reaches itself through its host port: hairpin");

    a.remove();
    assert_eq!(ask_in("outside", "10.5.0.11:8081"), None, "the host port goes with the pod");
    assert_eq!(run("ls /run/cp-1/networks/strake | grep '^10[.]'"), "10.244.0.3\n", "and its address is free again");
    for pod in [&b, &c] {
        pod.remove();
    }
    assert_eq!(run("ip -n cp-1 -o link show type veth | grep -vc eth0 || true").trim(), "0", "no link of a pod is left");
}
