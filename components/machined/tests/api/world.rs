//! A machine's surroundings, and a machine that serves its API in them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Duration;

use clap::Parser;
use machine_api::pairing::Pairing;
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
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

pub const GIB: u64 = 1 << 30;

/// The root on the medium: an image of equal blocks with its hash tree.
static ROOT: LazyLock<(Vec<u8>, verity::Parameters)> = LazyLock::new(|| {
    let (mut image, salt) = (vec![7; 3 << 20], verity::Digest([9; 32]));
    let blocks = (image.len() / verity::BLOCK) as u64;
    let tree = verity::build(&mut &image[..], blocks, &salt).unwrap();
    image.extend(tree.bytes);
    (image, verity::Parameters::new(tree.root_hash, salt, blocks).unwrap())
});

/// A machine's surroundings: a directory that is its root, an init that notes what it is asked, and files of a cluster.
pub struct World {
    pub dir: tempfile::TempDir,
    pub asked: Arc<Mutex<Vec<Request>>>,
}

pub struct FileDisks(Vec<ObservedDisk>);

impl Disks for FileDisks {
    fn observe(&self) -> std::io::Result<Vec<ObservedDisk>> {
        Ok(self.0.clone())
    }

    fn system_partition(&self, _label: &str) -> std::io::Result<Option<(PathBuf, u64)>> {
        Ok(None)
    }

    fn installations(&self) -> std::io::Result<Vec<machined::machine::Installed>> {
        Ok(Vec::new())
    }
}

/// A machine that serves its API, and how to reach it.
pub struct Served {
    pub machine: Arc<Machine>,
    pub address: String,
    stop: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    pub async fn new() -> World {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        log();
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

    pub fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    /// A file of the person's.
    pub fn file(&self, name: &str) -> String {
        let dir = self.dir.path().join("person");
        std::fs::create_dir_all(&dir).unwrap();
        dir.join(name).display().to_string()
    }

    pub async fn strakectl(&self, arguments: &[&str]) -> anyhow::Result<()> {
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
    pub fn serve_logs(&self, lines: &'static [&'static str]) {
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

    pub fn went_down(&self) -> bool {
        self.asked.lock().unwrap().iter().any(|request| matches!(request, Request::Reboot { .. } | Request::PowerOff { .. }))
    }

    fn machine(&self, paths: Paths, mode: Mode, config: Option<(&str, Config)>, disks: Vec<ObservedDisk>) -> Arc<Machine> {
        let loaded = config.map(|(text, config)| Arc::new(Loaded { text: text.to_owned(), config }));
        let (_, addresses) = watch::channel(vec!["127.0.0.1".parse().unwrap()]);
        let store = Store::default();
        Arc::new(Machine {
            mode,
            release: Release { name: "strake".into(), version: "0.1.0".into(), ..Release::default() },
            boot: BootInfo { source: BootSource::Media, device: "/dev/sr0".into(), root: ROOT.1, slot: None, trial_seconds: None },
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
            given: Default::default(),
            store,
            paths,
        })
    }

    /// A machine in maintenance mode with these disks, and its gate.
    pub async fn maintenance(&self, disks: Vec<ObservedDisk>) -> (Served, Arc<Gate>) {
        let certificate = Issued::self_signed(&spec("strake-maintenance", None, true), jiff::Timestamp::now()).unwrap();
        let der = pki::pem::certificates(&certificate.cert_pem).unwrap();
        let gate = Arc::new(Gate::new(Sha256::digest(&der[0]).into()));
        let serving = ServingCertificate::new(&certificate.cert_pem, &certificate.key_pem).unwrap();
        let machine = self.machine(Paths::under(self.root("")), Mode::Maintenance, None, disks);
        let served = serve(machine, Policy::Pairing(gate.clone()), tls::without_client_certificates(serving)).await;
        (served, gate)
    }

    /// A control plane of the cluster that was generated.
    pub async fn running(&self) -> Served {
        self.running_beside("https://127.0.0.1:1", "").await
    }

    /// The same beside an etcd at this address, and with more documents.
    pub async fn running_beside(&self, etcd: &str, more: &str) -> Served {
        let text = [self.file("controlplane.yaml"), self.file("hostname.yaml")].map(|path| std::fs::read_to_string(path).unwrap());
        let text = text.join("---\n") + more;
        let config = Config::parse("test", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let authority = &config.secrets.authorities.machine;
        let issuer = Authority::from_pem(authority.cert.as_str(), authority.key.as_ref().unwrap().reveal()).unwrap();
        let issued = issuer.issue(&spec("cp-1", None, true), jiff::Timestamp::now()).unwrap();
        let serving = ServingCertificate::new(&issued.cert_pem, &issued.key_pem).unwrap();
        let tls = tls::with_client_ca(serving, authority.cert.as_str()).unwrap();
        let paths = Paths::under(self.root("")).with_etcd(etcd);
        let machine = self.machine(paths, Mode::Running, Some((&text, config)), Vec::new());
        machine.state.set_config(&text).unwrap();
        serve(machine, Policy::Roles, tls).await
    }

    pub fn disk(&self, name: &str, size: u64) -> ObservedDisk {
        let node = self.dir.path().join(name);
        std::fs::File::create(&node).unwrap().set_len(size).unwrap();
        let disk = Disk { name: name.into(), paths: vec![node.display().to_string()], size, bus: "virtio".into(), ..Disk::default() };
        ObservedDisk { disk, node, sector: 512 }
    }

    pub fn put_media(&self) {
        for (path, content) in [
            (format!("strake/{}.erofs", ROOT.1.root_uuid()), ROOT.0.clone()),
            ("EFI/Linux/strake.efi".into(), program(1 << 20)),
            ("EFI/systemd/systemd-bootx64.efi".into(), program(1 << 16)),
        ] {
            let path = self.root("run/strake/media").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }
}

/// A program for the firmware of this size, with one section.
fn program(size: u32) -> Vec<u8> {
    let mut file = vec![0; 0x40];
    file[0x3c] = 0x40;
    file.extend(b"PE\0\0\x64\x86\x01\0");
    file.extend([0; 16]);
    file.extend(b".linux\0\0");
    for number in [size - 512, 0, size - 512, 512, 0, 0, 0, 0] {
        file.extend(number.to_le_bytes());
    }
    file.resize(size as usize, 7);
    file
}

pub fn spec(name: &str, organization: Option<&str>, server: bool) -> LeafSpec {
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
    pub async fn connect(&self, trust: &Trust) -> Result<Connection, strakectl::client::ConnectError> {
        Connection::open(&self.address, trust, Duration::from_secs(5)).await
    }

    /// A connection of someone with this role.
    pub async fn as_role(&self, authority: &Issued, role: Option<&str>) -> Connection {
        self.as_user(authority, "eve", role).await
    }

    /// A connection of this person with this role.
    pub async fn as_user(&self, authority: &Issued, user: &str, role: Option<&str>) -> Connection {
        let issuer = Authority::from_pem(&authority.cert_pem, &authority.key_pem).unwrap();
        let issued = issuer.issue(&spec(user, role, false), jiff::Timestamp::now()).unwrap();
        let loaded = self.machine.loaded().unwrap();
        let ca = loaded.config.secrets.authorities.machine.cert.as_str().to_owned();
        let credentials = Credentials { ca, certificate: issued.cert_pem, key: issued.key_pem };
        self.connect(&Trust::Cluster(credentials)).await.unwrap()
    }

    pub fn machine_ca(&self) -> Issued {
        let loaded = self.machine.loaded().unwrap();
        let authority = &loaded.config.secrets.authorities.machine;
        Issued { cert_pem: authority.cert.as_str().into(), key_pem: authority.key.as_ref().unwrap().reveal().into() }
    }
}

pub fn last_chars(pairing: &Pairing, replacement: &str) -> String {
    let text = pairing.to_string();
    format!("{}{replacement}", &text[..text.len() - replacement.len()])
}

pub fn first_bytes(path: &Path) -> [u8; 1024] {
    let mut bytes = [0; 1024];
    std::io::Read::read_exact(&mut std::fs::File::open(path).unwrap(), &mut bytes).unwrap();
    bytes
}

/// What the process logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        self.clone()
    }
}

fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).with_max_level(tracing::Level::INFO).finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    })
}

/// Waits for a line of the audit log with all of these words. Tests share the log, so the words must be this test's alone.
pub async fn audited(words: &[&str]) -> String {
    for _ in 0..100 {
        let text = String::from_utf8_lossy(&log().0.lock().unwrap()).into_owned();
        let found = text.lines().find(|line| line.contains("machined::audit") && words.iter().all(|word| line.contains(word)));
        if let Some(line) = found {
            return line.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let text = String::from_utf8_lossy(&log().0.lock().unwrap()).into_owned();
    panic!("the audit log has no line with {words:?}:\n{text}");
}
