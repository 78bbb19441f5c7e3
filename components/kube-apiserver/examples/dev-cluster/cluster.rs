//! A control plane on loopback for tests and for trying things: a real etcd and this API server, with certificates made on the spot.

use std::{
    ffi::OsString,
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use pki::{Authority, Issued, LeafSpec};

pub struct Cluster {
    pub dir: PathBuf,
    #[allow(dead_code, reason = "the example prints no address")]
    pub port: u16,
    #[allow(dead_code, reason = "only some tests look into etcd")]
    pub etcd_url: String,
    etcd: Child,
    /// How etcd was started: program and arguments.
    etcd_line: (PathBuf, Vec<OsString>),
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A free port of a range that is this process's own. Tests run in processes of their own, side by side: what the kernel gave one of them
/// it would give the next one too before anything listens there.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const OWN: u16 = 16;
    const RANGES: u32 = 1_375;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Below the ports that the kernel gives to those who ask for any.
    let range = FIRST + (std::process::id() % RANGES) as u16 * OWN;
    let mut own = std::iter::repeat_with(|| TAKEN.fetch_add(1, Ordering::Relaxed)).take(usize::from(OWN)).map(|n| range + n % OWN);
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).map(|a| a.port());
    own.find(|port| is_free(*port)).or_else(|| any().ok()).expect("loopback has a free port")
}

/// etcd of the path, or where the project's tools are cached.
pub fn etcd_binary() -> Option<PathBuf> {
    let cached = std::env::var_os("HOME").map(|h| Path::new(&h).join(".cache/strake/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    cached.into_iter().chain(std::env::split_paths(&path)).map(|d| d.join("etcd")).find(|p| p.is_file())
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("the directory can be written");
    path
}

fn leaf(ca: &Authority, cn: &str, organization: Option<&str>, server: bool) -> Issued {
    let spec = LeafSpec {
        common_name: cn.into(),
        organization: organization.map(str::to_owned),
        dns_names: if server { ["localhost", "kubernetes", "kubernetes.default.svc"].map(str::to_owned).to_vec() } else { Vec::new() },
        addresses: if server { vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1))] } else { Vec::new() },
        server,
        client: true,
        lifetime: 30 * DAY,
    };
    ca.issue(&spec, jiff::Timestamp::now()).expect("a leaf can be issued")
}

fn kubeconfig(dir: &Path, name: &str, server: &str, issued: &Issued) {
    let cert = write(dir, &format!("{name}.crt"), &issued.cert_pem);
    let key = write(dir, &format!("{name}.key"), &issued.key_pem);
    let ca = dir.join("ca.crt");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: dev\nclusters:\n- name: dev\n  cluster:\n    server: {server}\n    \
         certificate-authority: {}\nusers:\n- name: {name}\n  user:\n    client-certificate: {}\n    client-key: {}\n\
         contexts:\n- name: dev\n  context: {{cluster: dev, user: {name}}}\n",
        ca.display(),
        cert.display(),
        key.display()
    );
    write(dir, &format!("{name}.kubeconfig"), &text);
}

fn run_etcd(dir: &Path, (program, line): &(PathBuf, Vec<OsString>)) -> Child {
    let log = fs::File::options().append(true).create(true).open(dir.join("etcd.log")).expect("the directory can be written");
    Command::new(program).args(line).stdout(Stdio::null()).stderr(log).spawn().expect("etcd starts")
}

/// Tries until `look` gives something.
#[allow(dead_code, reason = "only some tests wait for what comes by itself")]
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(90);
    while Instant::now() < end {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("waited in vain for {what}");
}

impl Cluster {
    /// Kills etcd as a lost machine would, and starts it again on what it had written.
    #[allow(dead_code, reason = "only some tests disturb etcd")]
    pub fn restart_etcd(&mut self, pause: Duration) {
        // It may have ended by itself.
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
        std::thread::sleep(pause);
        self.etcd = run_etcd(&self.dir, &self.etcd_line);
    }

    /// Starts etcd and prepares everything; the caller runs the server with the arguments.
    pub fn prepare(dir: &Path, port: Option<u16>) -> (Self, Vec<OsString>) {
        fs::create_dir_all(dir).expect("the directory can be made");
        let dir = dir.canonicalize().expect("it was just made");
        let port = port.unwrap_or_else(free_port);
        let (client, peer) = (free_port(), free_port());
        let etcd = etcd_binary().expect("etcd must be in PATH or in ~/.cache/strake/bin");
        let mut line: Vec<OsString> = ["--name", "dev", "--data-dir"].map(OsString::from).to_vec();
        line.push(dir.join("etcd").into());
        let urls = [(client, "listen-client-urls"), (client, "advertise-client-urls"), (peer, "listen-peer-urls")];
        for (port, flag) in urls.into_iter().chain([(peer, "initial-advertise-peer-urls")]) {
            line.extend([format!("--{flag}").into(), format!("http://127.0.0.1:{port}").into()]);
        }
        line.extend(["--initial-cluster".into(), format!("dev=http://127.0.0.1:{peer}").into()]);
        line.extend(["--unsafe-no-fsync", "--log-level", "warn"].map(OsString::from));
        let etcd_line = (etcd, line);
        let etcd = run_etcd(&dir, &etcd_line);
        let cluster = Self { dir: dir.clone(), port, etcd_url: format!("http://127.0.0.1:{client}"), etcd, etcd_line };
        if !dir.join("ca.crt").exists() {
            let ca = Authority::generate("dev-ca", jiff::Timestamp::now(), 30 * DAY).expect("a CA can be made");
            write(&dir, "ca.crt", &ca.cert_pem);
            write(&dir, "ca.key", &ca.key_pem);
            let sa = pki::PrivateKey::generate().expect("a key can be made");
            write(&dir, "sa.key", &sa.to_pem());
            write(&dir, "sa.pub", &sa.public_pem());
        }
        if !dir.join("front-proxy-ca.crt").exists() {
            let ca = Authority::generate("front-proxy-ca", jiff::Timestamp::now(), 30 * DAY).expect("a CA can be made");
            write(&dir, "front-proxy-ca.crt", &ca.cert_pem);
            write(&dir, "front-proxy-ca.key", &ca.key_pem);
        }
        let read = |n: &str| fs::read_to_string(dir.join(n)).expect("the file was written before");
        let ca = Authority::from_pem(&read("ca.crt"), &read("ca.key")).expect("the CA is good");
        let serving = leaf(&ca, "kube-apiserver", None, true);
        write(&dir, "server.crt", &serving.cert_pem);
        write(&dir, "server.key", &serving.key_pem);
        let kubelet_client = leaf(&ca, "kube-apiserver-kubelet-client", None, false);
        write(&dir, "kubelet-client.crt", &kubelet_client.cert_pem);
        write(&dir, "kubelet-client.key", &kubelet_client.key_pem);
        let url = format!("https://127.0.0.1:{port}");
        kubeconfig(&dir, "admin", &url, &leaf(&ca, "admin", Some("system:masters"), false));
        for name in ["kube-scheduler", "kube-controller-manager", "cloud-controller-manager"] {
            kubeconfig(&dir, name, &url, &leaf(&ca, &format!("system:{name}"), None, false));
        }
        let front = Authority::from_pem(&read("front-proxy-ca.crt"), &read("front-proxy-ca.key")).expect("the CA is good");
        for name in ["front-proxy-client", "front-proxy-stranger"] {
            kubeconfig(&dir, name, &url, &leaf(&front, name, None, false));
        }
        kubeconfig(&dir, "kubelet", &url, &leaf(&ca, "system:node:dev", Some("system:nodes"), false));
        kubeconfig(&dir, "kube-proxy", &url, &leaf(&ca, "system:kube-proxy", Some("system:node-proxier"), false));
        let file = |n: &str| dir.join(n).display().to_string();
        let args = [
            "kube-apiserver".to_owned(),
            format!("--etcd-servers=http://127.0.0.1:{client}"),
            "--advertise-address=127.0.0.1".into(),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--enable-bootstrap-token-auth=true".into(),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP,Hostname".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            format!("--requestheader-client-ca-file={}", file("front-proxy-ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".into(),
            "--requestheader-username-headers=X-Remote-User".into(),
            "--requestheader-group-headers=X-Remote-Group".into(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            format!("--proxy-client-cert-file={}", file("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", file("front-proxy-client.key")),
        ];
        (cluster, args.into_iter().map(OsString::from).collect())
    }

    /// Runs the server in a thread of this process and waits until it is ready.
    #[allow(dead_code, reason = "the example runs the server in its main thread")]
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, Vec::new())
    }

    /// As [`Self::start`], with more flags.
    #[allow(dead_code, reason = "the example runs the server in its main thread")]
    pub fn start_with(dir: &Path, more: Vec<OsString>) -> Self {
        let (cluster, mut args) = Self::prepare(dir, None);
        args.extend(more);
        std::thread::spawn(move || kube_apiserver::main(args.into_iter()));
        cluster.wait_ready();
        cluster
    }

    #[allow(dead_code, reason = "the example does not wait")]
    pub fn wait_ready(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Ok(out) = self.kubectl(&["get", "--raw", "/readyz"]).output()
                && out.stdout == b"ok"
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the API server did not become ready; see {}", self.dir.display());
    }

    #[allow(dead_code, reason = "the example does not call it")]
    pub fn kubectl(&self, args: &[&str]) -> Command {
        let mut c = Command::new("kubectl");
        c.arg("--kubeconfig").arg(self.dir.join("admin.kubeconfig")).arg("--cache-dir").arg(self.dir.join("cache")).args(args);
        c
    }
}
