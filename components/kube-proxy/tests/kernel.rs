//! The kernel's word: tables are committed to a real nf_tables in network namespaces the test makes, read back with `nft`, and real connections go
//! through them. Each test runs itself again inside `unshare`, as root or with a user namespace.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube_proxy::plan::{Settings, TABLE, plan};
use kube_proxy::ruleset::{Ruleset, replace, update};
use kube_proxy::services::forwards;
use kube_proxy::types::{EndpointSlice, Service};
use nftables::{Family, Socket};
use serde_json::json;

const INSIDE: &str = "KUBE_PROXY_TEST_INSIDE";

/// Runs the named test again in new network and mount namespaces; true in that inner run.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]);
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let status = command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside its namespaces");
    false
}

fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn settings() -> Settings {
    Settings {
        family: Family::Ip,
        node_port_addresses: BTreeSet::from([IpAddr::from([192, 0, 2, 1])]),
        cluster_cidr: Some((IpAddr::from([10, 244, 0, 0]), 16)),
        service_cidrs: vec![(IpAddr::from([10, 96, 0, 0]), 16)],
        masquerade_mark: 0x4000,
        masquerade_all: false,
    }
}

fn table(pods: &[&str], affinity: bool) -> Ruleset {
    let service: Service = serde_json::from_value(
        json!({"metadata": {"namespace": "d", "name": "s"}, "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.7"],
        "sessionAffinity": if affinity { "ClientIP" } else { "None" },
        "ports": [{"name": "web", "protocol": "TCP", "port": 80, "nodePort": 30080}, {"name": "dns", "protocol": "UDP", "port": 53}]}}),
    )
    .unwrap();
    let endpoints: Vec<_> = pods.iter().map(|ip| json!({"addresses": [ip], "nodeName": "me"})).collect();
    let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "s-x", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "ports": [{"name": "web", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}], "endpoints": endpoints}))
    .unwrap();
    plan(&settings(), &forwards(&[service], &[slice], Family::Ip, "me").0)
}

#[test]
fn nft_reads_back_what_was_committed_and_updates_are_incremental() {
    if !inside("nft_reads_back_what_was_committed_and_updates_are_incremental") {
        return;
    }
    let mut socket = Socket::open().unwrap();
    let two = table(&["10.244.0.2", "10.244.0.3"], true);
    socket.commit(replace(Family::Ip, TABLE, &two)).unwrap();
    let listed = run("nft list table ip kube-proxy");
    for part in [
        "type nat hook prerouting priority dstnat",
        "ip daddr . meta l4proto . th dport vmap @service-ips",
        "10.96.0.7 . tcp . 80 : goto service-",
        "tcp . 30080 : goto external-",
        "numgen random mod 2 vmap { 0 : goto endpoint-",
        "dnat to 10.244.0.3:8080",
        "masquerade fully-random",
        "ct state new jump service-endpoints-check",
        "ip daddr 10.96.0.0/16 drop",
        "elements = { 192.0.2.1 }",
        "ip saddr != 10.244.0.0/16 jump mark-for-masquerade",
    ] {
        assert!(listed.contains(part), "no {part:?} in\n{listed}");
    }
    // Every rule the plan prints is one the kernel has, in the same number per chain.
    let count = |text: &str| text.lines().filter(|l| l.contains("dnat to") || l.contains("numgen") || l.contains("vmap @")).count();
    assert_eq!(count(&two.to_string()), count(&listed), "{listed}");

    let one = table(&["10.244.0.3"], true);
    socket.commit(update(Family::Ip, TABLE, &two, &one)).unwrap();
    let after = run("nft list table ip kube-proxy");
    assert!(!after.contains("10.244.0.2"), "{after}");
    let none = table(&[], true);
    socket.commit(update(Family::Ip, TABLE, &one, &none)).unwrap();
    assert!(run("nft list table ip kube-proxy").contains("10.96.0.7 . tcp . 80 : goto reject-chain"));
    socket.commit(update(Family::Ip, TABLE, &none, &two)).unwrap();
    let strip = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(|l| l.trim().to_string()).collect();
        lines.sort();
        lines
    };
    assert_eq!(strip(&run("nft list table ip kube-proxy")), strip(&listed), "there and back again is the same table");

    // A transaction the kernel refuses changes nothing and says which operation it was.
    let wrong = update(Family::Ip, TABLE, &table(&["10.244.0.9"], true), &none);
    let error = socket.commit(wrong).unwrap_err();
    assert!(error.to_string().contains("10.244.0.9"), "{error}");
    assert_eq!(strip(&run("nft list table ip kube-proxy")), strip(&listed));
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SERVE: &str = "KUBE_PROXY_TEST_SERVE";

/// A pod: a namespace with an address, and a server that answers every connection with `<its name> <client address>`.
fn pod(name: &str, address: &str) -> Server {
    run(&format!(
        "ip netns add {name} && ip link add v{name} type veth peer name eth0 netns {name} && ip link set v{name} up && ip route add {address}/32 dev v{name} && \
         ip addr add 10.244.255.254/32 dev v{name} && ip -n {name} addr add {address}/32 dev eth0 && ip -n {name} link set eth0 up && ip -n {name} link set lo up && \
         ip -n {name} route add 10.244.255.254 dev eth0 && ip -n {name} route add default via 10.244.255.254"
    ));
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", name])
        .arg(exe)
        .args(["--exact", "serve", "--nocapture"])
        .env(SERVE, name)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Server(command.spawn().unwrap())
}

/// Not a test of its own: the server that [`pod`] starts.
#[test]
fn serve() {
    let Some(name) = std::env::var_os(SERVE) else { return };
    let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        let (mut stream, client) = listener.accept().unwrap();
        let _ = write!(stream, "{} {}", name.to_string_lossy(), client.ip());
    }
}

fn ask(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse::<SocketAddr>().unwrap(), Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

const ASK: &str = "KUBE_PROXY_TEST_ASK";

/// Not a test of its own: a client in another namespace.
#[test]
fn ask_from_elsewhere() {
    let Some(address) = std::env::var_os(ASK) else { return };
    println!("answer={}", ask(&address.to_string_lossy()).unwrap_or_else(|| "none".into()));
}

fn ask_in(namespace: &str, address: &str) -> String {
    let exe = std::env::current_exe().unwrap();
    let output = Command::new("ip")
        .args(["netns", "exec", namespace])
        .arg(exe)
        .args(["--exact", "ask_from_elsewhere", "--nocapture"])
        .env(ASK, address)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The harness prints its own words on the same line.
    text.split("answer=").nth(1).and_then(|rest| rest.lines().next()).unwrap_or("none").to_string()
}

#[test]
fn connections_reach_endpoints_through_cluster_ip_and_node_port() {
    if !inside("connections_reach_endpoints_through_cluster_ip_and_node_port") {
        return;
    }
    run("mount -t tmpfs none /run && mkdir -p /run/netns && ip link set lo up && echo 1 > /proc/sys/net/ipv4/ip_forward");
    let _a = pod("a", "10.244.0.2");
    let _b = pod("b", "10.244.0.3");
    run(
        "ip netns add client && ip link add vclient type veth peer name eth0 netns client && ip addr add 192.0.2.1/24 dev vclient && ip link set vclient up && ip route add default via 192.0.2.9 && \
         ip -n client addr add 192.0.2.9/24 dev eth0 && ip -n client link set eth0 up && ip -n client route add default via 192.0.2.1",
    );
    let mut socket = Socket::open().unwrap();
    let both = table(&["10.244.0.2", "10.244.0.3"], false);
    socket.commit(replace(Family::Ip, TABLE, &both)).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while (ask("10.244.0.2:8080").is_none() || ask("10.244.0.3:8080").is_none()) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }

    let answers: BTreeSet<_> = (0..30).filter_map(|_| ask("10.96.0.7:80")).map(|t| t[..1].to_string()).collect();
    assert_eq!(answers, BTreeSet::from(["a".to_string(), "b".to_string()]), "both endpoints are used from the node itself");
    let through_node_port = ask_in("client", "192.0.2.1:30080");
    assert!(through_node_port.ends_with(" 10.244.255.254"), "a node port masks the client: {through_node_port}");
    let from_pod = ask_in("a", "10.96.0.7:80");
    assert!(
        from_pod == "b 10.244.0.2" || from_pod.starts_with("a 10.244.255.254"),
        "a pod keeps its address, or is masked on the way to itself: {from_pod}"
    );
    assert_eq!(ask_in("client", "192.0.2.1:30081"), "none", "a port nobody has");

    socket.commit(update(Family::Ip, TABLE, &both, &table(&[], false))).unwrap();
    let started = Instant::now();
    assert_eq!(ask("10.96.0.7:80"), None);
    assert!(started.elapsed() < Duration::from_millis(1500), "a service without endpoints is refused at once, not left to time out");
}
