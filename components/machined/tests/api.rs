//! The machine API as people meet it: strakectl against machined's server over real TLS on loopback. init and logd are
//! small servers on real sockets, the disk is a sparse file.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use machine_api::pairing::Pairing;
use machine_api::v1alpha1::{JoinRequest, LogsRequest, RebootRequest, ResourceWatchRequest, VersionRequest};
use machine_config::Config;
use machine_config::disk::Disk;
use machined::InitHandle;
use machined::api::authorize::Policy;
use machined::api::tls::{self, ServingCertificate};
use machined::events::Events;
use machined::machine::{Disks, Loaded, Machine, Mode, ObservedDisk, Release};
use machined::milestones::Milestones;
use machined::pairing::Gate;
use machined::paths::Paths;
use machined::resources::Store;
use machined::state::StateDir;
use machined::trial::Trials;
use node_ipc::init::{BootInfo, BootSource, Request, Response};
use pki::{Authority, Issued, LeafSpec};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use sha2::{Digest, Sha256};
use strakectl::client::{Connection, Trust};
use strakectl::commands::Cli;
use strakectl::context::Credentials;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const GIB: u64 = 1 << 30;
const ROOT_UUID: &str = "7a3c1f0e-1111-4222-8333-444455556666";

/// A machine's surroundings: a directory that is its root, an init that notes what it is asked, and files of a cluster.
struct World {
    dir: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Request>>>,
}

struct FileDisks(Vec<ObservedDisk>);

impl Disks for FileDisks {
    fn observe(&self) -> std::io::Result<Vec<ObservedDisk>> {
        Ok(self.0.clone())
    }

    fn system_partition(&self, _label: &str) -> std::io::Result<Option<(PathBuf, u64)>> {
        Ok(None)
    }

    fn installations(&self) -> std::io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// A machine that serves its API, and how to reach it.
struct Served {
    machine: Arc<Machine>,
    address: String,
    stop: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn new() -> World {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let world = World { dir: tempfile::tempdir().unwrap(), asked: Arc::default() };
        std::fs::create_dir_all(world.root("run/strake")).unwrap();
        std::fs::create_dir_all(world.root("system/state")).unwrap();
        world.serve_init();
        world
            .strakectl(&["gen", "cluster", "test", "https://127.0.0.1:6443", "--install-disk", "size=>= 9GB", "--out", &world.file("")])
            .await
            .unwrap();
        let hostname = "apiVersion: strake.dev/v1alpha1\nkind: HostnameConfig\nhostname: cp-1\n";
        std::fs::write(world.file("hostname.yaml"), hostname).unwrap();
        world
    }

    fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    /// A file of the person's.
    fn file(&self, name: &str) -> String {
        let dir = self.dir.path().join("person");
        std::fs::create_dir_all(&dir).unwrap();
        dir.join(name).display().to_string()
    }

    async fn strakectl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let strakeconfig = self.file("strakeconfig");
        let all = ["strakectl", "--strakeconfig", &strakeconfig].into_iter().chain(arguments.iter().copied());
        Cli::try_parse_from(all)?.run().await
    }

    /// init's protocol on a real socket: every request is noted and accepted.
    fn serve_init(&self) {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(self.root("run/strake/init.sock")).unwrap()).unwrap();
        rustix::net::listen(&socket, 8).unwrap();
        let asked = self.asked.clone();
        std::thread::spawn(move || {
            while let Ok(connection) = rustix::net::accept(&socket) {
                let mut buffer = vec![0; node_ipc::MAX_PACKET];
                while let Ok((count, _)) = rustix::net::recv(&connection, &mut buffer[..], RecvFlags::empty()) {
                    if count == 0 {
                        break;
                    }
                    let request: Request = node_ipc::decode(&buffer[..count]).unwrap();
                    let response = match request {
                        Request::List => Response::Services { services: Vec::new() },
                        _ => Response::Done,
                    };
                    asked.lock().unwrap().push(request);
                    rustix::net::send(&connection, &node_ipc::encode_packet(&response).unwrap(), SendFlags::NOSIGNAL).unwrap();
                }
            }
        });
    }

    /// logd's protocol on a real socket: answers every query with these lines.
    fn serve_logs(&self, lines: &'static [&'static str]) {
        let listener = UnixListener::bind(self.root("run/strake/logd.sock")).unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut query = String::new();
                BufReader::new(connection.try_clone().unwrap()).read_line(&mut query).unwrap();
                for line in lines {
                    writeln!(connection, "{line}").unwrap();
                }
            }
        });
    }

    fn went_down(&self) -> bool {
        self.asked.lock().unwrap().iter().any(|request| matches!(request, Request::Reboot { .. } | Request::PowerOff { .. }))
    }

    fn machine(&self, mode: Mode, config: Option<(&str, Config)>, disks: Vec<ObservedDisk>) -> Arc<Machine> {
        let paths = Paths::under(self.root(""));
        let loaded = config.map(|(text, config)| Arc::new(Loaded { text: text.to_owned(), config }));
        let (_, addresses) = watch::channel(vec!["127.0.0.1".parse().unwrap()]);
        let store = Store::default();
        Arc::new(Machine {
            mode,
            release: Release { name: "strake".into(), version: "0.1.0".into(), ..Release::default() },
            boot: BootInfo { source: BootSource::Media, device: "/dev/sr0".into(), root_uuid: ROOT_UUID.into() },
            boot_id: "boot".into(),
            name_seed: "52:54:00:05:00:0b".into(),
            init: InitHandle::new(paths.init_socket()),
            state: StateDir::new(paths.state()),
            config: watch::Sender::new(loaded),
            wake: watch::Sender::new(0),
            changing: Arc::default(),
            disks: Box::new(FileDisks(disks)),
            addresses,
            events: Events::default(),
            milestones: Milestones::new(&paths, store.clone()),
            trials: Trials::default(),
            store,
            paths,
        })
    }

    /// A machine in maintenance mode with these disks, and its gate.
    async fn maintenance(&self, disks: Vec<ObservedDisk>) -> (Served, Arc<Gate>) {
        let certificate = Issued::self_signed(&spec("strake-maintenance", None, true), jiff::Timestamp::now()).unwrap();
        let der = pki::pem::certificates(&certificate.cert_pem).unwrap();
        let gate = Arc::new(Gate::new(Sha256::digest(&der[0]).into()));
        let serving = ServingCertificate::new(&certificate.cert_pem, &certificate.key_pem).unwrap();
        let machine = self.machine(Mode::Maintenance, None, disks);
        let served = serve(machine, Policy::Pairing(gate.clone()), tls::without_client_certificates(serving)).await;
        (served, gate)
    }

    /// A control plane of the cluster that was generated.
    async fn running(&self) -> Served {
        let text =
            [self.file("controlplane.yaml"), self.file("hostname.yaml")].map(|path| std::fs::read_to_string(path).unwrap()).join("---\n");
        let config = Config::parse("test", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let authority = &config.secrets.authorities.machine;
        let issuer = Authority::from_pem(authority.cert.as_str(), authority.key.as_ref().unwrap().reveal()).unwrap();
        let issued = issuer.issue(&spec("cp-1", None, true), jiff::Timestamp::now()).unwrap();
        let serving = ServingCertificate::new(&issued.cert_pem, &issued.key_pem).unwrap();
        let tls = tls::with_client_ca(serving, authority.cert.as_str()).unwrap();
        let machine = self.machine(Mode::Running, Some((&text, config)), Vec::new());
        machine.state.set_config(&text).unwrap();
        serve(machine, Policy::Roles, tls).await
    }

    fn disk(&self, name: &str, size: u64) -> ObservedDisk {
        let node = self.dir.path().join(name);
        std::fs::File::create(&node).unwrap().set_len(size).unwrap();
        let disk = Disk { name: name.into(), paths: vec![node.display().to_string()], size, bus: "virtio".into(), ..Disk::default() };
        ObservedDisk { disk, node, sector: 512 }
    }

    fn put_media(&self) {
        for (path, size) in [
            (format!("strake/{ROOT_UUID}.erofs"), 3 << 20),
            ("EFI/Linux/strake.efi".into(), 1 << 20),
            ("EFI/systemd/systemd-bootx64.efi".into(), 1 << 16),
        ] {
            let path = self.root("run/strake/media").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![7; size]).unwrap();
        }
    }
}

fn spec(name: &str, organization: Option<&str>, server: bool) -> LeafSpec {
    LeafSpec {
        common_name: name.into(),
        organization: organization.map(str::to_owned),
        dns_names: vec!["strake-machine".into()],
        addresses: Vec::new(),
        server,
        client: !server,
        lifetime: Duration::from_secs(3600),
    }
}

async fn serve(machine: Arc<Machine>, policy: Policy, tls: Arc<rustls::ServerConfig>) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    tokio::spawn(machined::api::serve(machine.clone(), policy, tls, listener, stop.clone()));
    Served { machine, address, stop }
}

impl Served {
    async fn connect(&self, trust: &Trust) -> Result<Connection, strakectl::client::ConnectError> {
        Connection::open(&self.address, trust, Duration::from_secs(5)).await
    }

    /// A connection of someone with this role.
    async fn as_role(&self, authority: &Issued, role: Option<&str>) -> Connection {
        let issuer = Authority::from_pem(&authority.cert_pem, &authority.key_pem).unwrap();
        let issued = issuer.issue(&spec("eve", role, false), jiff::Timestamp::now()).unwrap();
        let loaded = self.machine.loaded().unwrap();
        let ca = loaded.config.secrets.authorities.machine.cert.as_str().to_owned();
        let credentials = Credentials { ca, certificate: issued.cert_pem, key: issued.key_pem };
        self.connect(&Trust::Cluster(credentials)).await.unwrap()
    }

    fn machine_ca(&self) -> Issued {
        let loaded = self.machine.loaded().unwrap();
        let authority = &loaded.config.secrets.authorities.machine;
        Issued { cert_pem: authority.cert.as_str().into(), key_pem: authority.key.as_ref().unwrap().reveal().into() }
    }
}

fn last_chars(pairing: &Pairing, replacement: &str) -> String {
    let text = pairing.to_string();
    format!("{}{replacement}", &text[..text.len() - replacement.len()])
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_mode_needs_the_string_on_the_console() {
    let world = World::new().await;
    let (served, gate) = world.maintenance(Vec::new()).await;
    let pairing = gate.shown().borrow().clone();
    let shown = pairing.to_string();
    world.strakectl(&["version", "-n", &served.address, "--pairing", &shown]).await.unwrap();

    // The fingerprint of another machine: the code never leaves the client.
    let other = format!("0000{}", &shown[4..]);
    let error = world.strakectl(&["version", "-n", &served.address, "--pairing", &other]).await.unwrap_err();
    assert!(format!("{error:#}").contains("belongs to another machine"), "{error:#}");

    // The right machine and a wrong code: five tries, then a new one.
    let wrong = last_chars(&pairing, if shown.ends_with('0') { "1" } else { "0" });
    for attempt in 1..=5 {
        let error = world.strakectl(&["version", "-n", &served.address, "--pairing", &wrong]).await.unwrap_err();
        let expected = if attempt < 5 { "tries until it changes" } else { "shows a new one" };
        assert!(format!("{error:#}").contains(expected), "{attempt}: {error:#}");
    }
    assert!(world.strakectl(&["version", "-n", &served.address, "--pairing", &shown]).await.is_err());
    let now = gate.shown().borrow().to_string();
    world.strakectl(&["version", "-n", &served.address, "--pairing", &now]).await.unwrap();

    // What maintenance mode does not serve, it does not serve to anyone.
    let machine = served.connect(&Trust::Pairing(now.parse().unwrap())).await.unwrap();
    let status = machine.machine().reboot(RebootRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(!world.went_down());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_installed_over_the_api_and_reboots() {
    let world = World::new().await;
    world.put_media();
    let disk = world.disk("vda", 16 * GIB);
    let node = disk.node.clone();
    let (served, gate) = world.maintenance(vec![disk, world.disk("small", GIB)]).await;
    let shown = gate.shown().borrow().to_string();
    let (config, hostname) = (world.file("controlplane.yaml"), world.file("hostname.yaml"));
    let apply = ["apply-config", "-n", &served.address, "--pairing", &shown, "-f", &config, "-f", &hostname];
    let dry_run: Vec<&str> = apply.iter().copied().chain(["--dry-run"]).collect();

    world.strakectl(&dry_run).await.unwrap();
    assert_eq!(first_bytes(&node), [0; 1024], "a dry run writes nothing");
    world.strakectl(&apply).await.unwrap();
    let table = gpt::GptConfig::new().open(&node).unwrap();
    let labels: Vec<_> = table.partitions().values().map(|partition| partition.name.as_str()).collect();
    assert_eq!(labels, ["ESP", "ROOT-A", "ROOT-B", "META", "STATE", "ETCD", "DATA"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.went_down(), "the machine reboots from its disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn configs_that_do_not_fit_the_machine_are_refused_with_the_reason() {
    let world = World::new().await;
    world.put_media();
    let (a, b) = (world.disk("vda", 16 * GIB), world.disk("vdb", 16 * GIB));
    let nodes = [a.node.clone(), b.node.clone()];
    let (served, gate) = world.maintenance(vec![a, b]).await;
    let shown = gate.shown().borrow().to_string();
    let good = std::fs::read_to_string(world.file("worker.yaml")).unwrap();
    let cases = [
        ("ambiguous", good.clone(), "matches 2 disks (vda, vdb)"),
        (
            "none",
            good.replace("'>= 9GB'", "'>= 900GB'").replace("\">= 9GB\"", "'>= 900GB'").replace(">= 9GB", ">= 900GB"),
            "matches no disk",
        ),
        ("unknown", good.clone() + "\n---\napiVersion: strake.dev/v1alpha1\nkind: HostnameConfig\nhostname: a\nhostnam: b\n", "hostnam"),
        ("half", good.split("\n---\n").next().unwrap().to_owned(), "ClusterConfig"),
    ];
    for (name, text, reason) in cases {
        let path = world.file(&format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        let error = world.strakectl(&["apply-config", "-n", &served.address, "--pairing", &shown, "-f", &path]).await.unwrap_err();
        assert!(format!("{error:#}").contains(reason), "{name}: {error:#}");
    }
    assert!(nodes.iter().all(|node| first_bytes(node) == [0; 1024]), "nothing was written");
    assert!(!world.went_down());
}

fn first_bytes(path: &Path) -> [u8; 1024] {
    let mut bytes = [0; 1024];
    std::io::Read::read_exact(&mut std::fs::File::open(path).unwrap(), &mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_enforced_and_strangers_are_turned_away() {
    let world = World::new().await;
    let served = world.running().await;
    let ca = served.machine_ca();
    world.strakectl(&["version", "-n", &served.address]).await.unwrap();

    let reader = served.as_role(&ca, Some("reader")).await;
    reader.machine().version(VersionRequest {}).await.unwrap();
    let status = reader.machine().reboot(RebootRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("eve") && status.message().contains("operator"), "{}", status.message());

    let nobody = served.as_role(&ca, Some("system:masters")).await;
    assert_eq!(nobody.machine().version(VersionRequest {}).await.unwrap_err().code(), Code::PermissionDenied);

    // A certificate of another CA: TLS ends before any call.
    let stranger = Authority::generate("other", jiff::Timestamp::now(), Duration::from_secs(3600)).unwrap();
    let stranger = served.as_role(&stranger, Some("admin")).await;
    assert!(stranger.machine().version(VersionRequest {}).await.is_err());
    assert!(!world.went_down());

    // A machine of another cluster is not believed by the client.
    let elsewhere = World::new().await;
    let error = elsewhere.strakectl(&["version", "-n", &served.address]).await.unwrap_err();
    assert!(format!("{error:#}").contains("certificate"), "{error:#}");

    let operator = served.as_role(&ca, Some("operator")).await;
    operator.machine().reboot(RebootRequest {}).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(world.went_down());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_is_shown_applied_or_refused() {
    let world = World::new().await;
    let served = world.running().await;
    let (config, hostname) = (world.file("controlplane.yaml"), world.file("hostname.yaml"));
    let stored = || served.machine.state.config().unwrap().unwrap();
    let before = stored();
    let with = async |extra: &str, flags: &[&str]| {
        let path = world.file("extra.yaml");
        std::fs::write(&path, extra).unwrap();
        let mut arguments = vec!["apply-config", "-n", &served.address, "-f", &config, "-f", &hostname, "-f", &path];
        arguments.extend(flags);
        world.strakectl(&arguments).await
    };
    let resolver = "apiVersion: strake.dev/v1alpha1\nkind: ResolverConfig\nnameservers: [10.5.0.3]\n";
    with(resolver, &["--dry-run"]).await.unwrap();
    assert_eq!(stored(), before, "a dry run changes nothing");
    let error = with("apiVersion: strake.dev/v1alpha1\nkind: ResolverConfig\nnameserver: [10.5.0.3]\n", &[]).await.unwrap_err();
    assert!(format!("{error:#}").contains("nameserver"), "{error:#}");
    assert_eq!(stored(), before);

    let mut changed = served.machine.config.subscribe();
    with(resolver, &[]).await.unwrap();
    assert!(changed.has_changed().unwrap());
    assert!(changed.borrow_and_update().as_ref().unwrap().config.resolver.is_some());
    assert!(stored().contains("10.5.0.3"));

    // A worker's config for a control plane.
    let error = world.strakectl(&["apply-config", "-n", &served.address, "-f", &world.file("worker.yaml")]).await.unwrap_err();
    assert!(format!("{error:#}").contains("only a new installation can change this"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_bootstrapped_once_and_administered() {
    let world = World::new().await;
    let served = world.running().await;
    world.strakectl(&["bootstrap", "-n", &served.address]).await.unwrap();
    assert!(served.machine.state.cluster_id().unwrap().is_some());
    let error = world.strakectl(&["bootstrap", "-n", &served.address]).await.unwrap_err();
    assert!(format!("{error:#}").contains("already belongs to cluster"), "{error:#}");

    let kubeconfig = world.file("kubeconfig");
    world.strakectl(&["kubeconfig", "-n", &served.address, "--server", "https://127.0.0.1:7443", &kubeconfig]).await.unwrap();
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    assert!(text.contains("https://127.0.0.1:7443") && text.contains("client-certificate-data"), "{text}");
    assert!(world.strakectl(&["kubeconfig", "-n", &served.address, "--user", "system:kube-scheduler", "-"]).await.is_err());
    let error = world.strakectl(&["reset", "-n", &served.address]).await.unwrap_err();
    assert!(format!("{error:#}").contains("--yes"), "{error:#}");
    assert!(!served.machine.state.reset_requested());
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_join_by_token_under_their_own_name_only() {
    let world = World::new().await;
    let served = world.running().await;
    let loaded = served.machine.loaded().unwrap();
    // A joining machine has no certificate; the table lets it call this one method.
    let connection = served.as_role(&served.machine_ca(), None).await;
    let key = pki::PrivateKey::generate().unwrap();
    let csr = pki::create_request(&key, &spec("cp-1", Some("system:masters"), true)).unwrap();
    let join = async |token: &str, hostname: &str| {
        let request = JoinRequest { token: token.into(), hostname: hostname.into(), machine_csr: csr.clone(), kube_proxy_csr: csr.clone() };
        connection.join().join(request).await.map(tonic::Response::into_inner)
    };
    let token = loaded.config.secrets.join_token.reveal();
    let issued = join(token, "worker-1").await.unwrap();
    let certificate = pki::Certificate::from_pem(&issued.machine_certificate).unwrap();
    // What the request asked for is not what it got.
    assert_eq!((certificate.common_name.as_str(), certificate.organizations.len()), ("worker-1", 0));
    assert!(certificate.addresses.contains(&"127.0.0.1".parse().unwrap()) && !certificate.client);
    let kube_proxy = pki::Certificate::from_pem(&issued.kube_proxy_certificate).unwrap();
    assert_eq!(kube_proxy.organizations, ["system:node-proxier"]);

    assert_eq!(join("abcdef.0000000000000000", "worker-1").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(join(token, "cp-1").await.unwrap_err().code(), Code::PermissionDenied);
    served.machine.state.write("joined.json", br#"{"worker-2":"10.9.9.9"}"#).unwrap();
    let status = join(token, "worker-2").await.unwrap_err();
    assert!(status.message().contains("belongs to the machine at 10.9.9.9"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn people_look_into_a_machine() {
    let world = World::new().await;
    world.serve_logs(&[
        r#"{"kind":"entry","time_us":1,"boot":"b","priority":6,"message":"hello","fields":{"REASON":"x","CODE_LINE":"7"}}"#,
        r#"{"kind":"lost","count":3}"#,
        r#"{"kind":"end"}"#,
    ]);
    let served = world.running().await;
    let admin = served.as_role(&served.machine_ca(), Some("admin")).await;
    let request = LogsRequest { service: "kubelet".into(), ..LogsRequest::default() };
    let lines: Vec<_> = admin.logs().logs(request).await.unwrap().into_inner().map(|line| line.unwrap().message).collect().await;
    assert_eq!(lines, ["hello reason=x", "(3 lines were lost)"]);

    served.machine.store.set("links", "eth0", serde_json::json!({"state": "up"}));
    let request = ResourceWatchRequest { kind: "links".into(), id: String::new() };
    let mut events = admin.resources().watch(request).await.unwrap().into_inner();
    let mut next = async || {
        let event = events.next().await.unwrap().unwrap();
        let name = event.resource.map(|resource| resource.id).unwrap_or_default();
        (machine_api::v1alpha1::resource_event::Type::try_from(event.r#type).unwrap().as_str_name(), name)
    };
    assert_eq!(next().await, ("TYPE_SET", "eth0".into()));
    assert_eq!(next().await, ("TYPE_SYNCED", String::new()));
    served.machine.store.remove("links", "eth0");
    assert_eq!(next().await, ("TYPE_DELETED", "eth0".into()));

    std::fs::create_dir_all(world.root("etc")).unwrap();
    std::fs::write(world.root("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    world.strakectl(&["ls", "-n", &served.address, "/etc"]).await.unwrap();
    let error = world.strakectl(&["read", "-n", &served.address, "/etc/nothing"]).await.unwrap_err();
    assert!(format!("{error:#}").contains("No such file"), "{error:#}");
    assert!(world.strakectl(&["read", "-n", &served.address, "/etc"]).await.is_err(), "a directory is not read");
    assert!(world.strakectl(&["get", "-n", &served.address, "nonsense"]).await.is_err());
    // One machine that answers and one that does not: both are told.
    let both = format!("{},127.0.0.1:1", served.address);
    let error = world.strakectl(&["get", "links", "-n", &both]).await.unwrap_err();
    assert!(format!("{error:#}").contains("127.0.0.1:1: "), "{error:#}");
}
