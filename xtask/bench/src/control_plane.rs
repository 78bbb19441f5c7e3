//! etcd and the components, with the flags that machined gives them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustls::ClientConfig;

use crate::Programs;
use crate::certificates::{self, Authority};
use crate::client::{self, Client};
use crate::process::Running;

const LIMIT: Duration = Duration::from_secs(60);
/// Components whose identity is `system:<name>`.
const COMPONENTS: &[&str] = &["kube-scheduler", "kube-controller-manager", "cloud-controller-manager"];

/// A control plane; what runs of it ends with it.
pub struct ControlPlane {
    pub dir: PathBuf,
    pub port: u16,
    pub identity: Arc<ClientConfig>,
    programs: Programs,
    etcd_client: u16,
    etcd: Running,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).context("loopback has no free port")?.port())
}

impl ControlPlane {
    /// Makes certificates and starts an empty etcd; when this returns, it serves.
    pub async fn prepare(programs: &Programs) -> Result<Self> {
        let dir = programs.dir.clone();
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
        let port = free_port()?;
        write_identities(&dir, port)?;
        let (etcd_client, peer, metrics) = (free_port()?, free_port()?, free_port()?);
        let mut command = Command::new(&programs.etcd);
        command.args(etcd_flags(&dir, programs.plain_etcd, etcd_client, peer, metrics));
        let mut etcd = Running::start("etcd", &mut command, &dir)?;
        let begin = Instant::now();
        while !etcd_is_healthy(metrics) {
            etcd.still_runs()?;
            if begin.elapsed() > LIMIT {
                bail!("etcd did not become healthy; the end of its log:\n{}", etcd.end_of_log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let identity = client::identity(&dir)?;
        Ok(Self { dir, port, identity, programs: programs.clone(), etcd_client, etcd })
    }

    /// Starts a component of the multi-call binary.
    pub fn component(&self, name: &str, flags: impl IntoIterator<Item = String>) -> Result<Running> {
        Running::start(name, Command::new(self.programs.binaries.join("kube")).arg(name).args(flags), &self.dir)
    }

    /// Starts kube-proxy, an executable of its own.
    pub fn kube_proxy(&self) -> Result<Running> {
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nbindAddress: 0.0.0.0\nclientConnection:\n  kubeconfig: {}\n\
             clusterCIDR: 10.244.0.0/16\nhealthzBindAddress: 127.0.0.1:10256\nhostnameOverride: bench\nmetricsBindAddress: 127.0.0.1:10249\nmode: nftables\n",
            self.file("kube-proxy.kubeconfig")
        );
        let config = certificates::write(&self.dir, "kube-proxy.yaml", &text)?;
        let mut command = Command::new(self.programs.binaries.join("kube-proxy"));
        Running::start("kube-proxy", command.arg(format!("--config={}", config.display())), &self.dir)
    }

    pub fn etcd(&mut self) -> &mut Running {
        &mut self.etcd
    }

    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Starts the API server and waits for its first good answer to /readyz; gives how long that took.
    pub async fn start_apiserver(&self) -> Result<(Running, Duration)> {
        let begin = Instant::now();
        let mut server = self.component("kube-apiserver", self.apiserver_flags())?;
        loop {
            if self.is_ready().await {
                return Ok((server, begin.elapsed()));
            }
            server.still_runs()?;
            if begin.elapsed() > LIMIT {
                bail!("kube-apiserver did not become ready; the end of its log:\n{}", server.end_of_log());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let Ok(client) = Client::connect(self.port, &self.identity, 1).await else { return false };
        client.get("/readyz").await.is_ok_and(|body| &body[..] == b"ok")
    }

    fn apiserver_flags(&self) -> Vec<String> {
        let scheme = if self.programs.plain_etcd { "http" } else { "https" };
        let mut flags = vec![
            "--advertise-address=127.0.0.1".to_owned(),
            "--allow-privileged=true".into(),
            "--authorization-mode=Node,RBAC".into(),
            "--bind-address=127.0.0.1".into(),
            format!("--client-ca-file={}", self.file("ca.crt")),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--enable-bootstrap-token-auth=true".into(),
            format!("--etcd-servers={scheme}://127.0.0.1:{}", self.etcd_client),
            format!("--kubelet-certificate-authority={}", self.file("ca.crt")),
            format!("--kubelet-client-certificate={}", self.file("admin.crt")),
            format!("--kubelet-client-key={}", self.file("admin.key")),
            "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname".into(),
            format!("--secure-port={}", self.port),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-key-file={}", self.file("sa.pub")),
            format!("--service-account-signing-key-file={}", self.file("sa.key")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            format!("--tls-cert-file={}", self.file("server.crt")),
            format!("--tls-private-key-file={}", self.file("server.key")),
        ];
        if !self.programs.plain_etcd {
            flags.push(format!("--etcd-cafile={}", self.file("etcd-ca.crt")));
            flags.push(format!("--etcd-certfile={}", self.file("etcd.crt")));
            flags.push(format!("--etcd-keyfile={}", self.file("etcd.key")));
        }
        flags
    }

    /// The flags that the three components beside the API server share, and those of each.
    pub fn controller_flags(&self, name: &str) -> Result<Vec<String>> {
        let kubeconfig = self.file(&format!("{name}.kubeconfig"));
        let mut flags = vec![
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".into(),
            format!("--kubeconfig={kubeconfig}"),
            "--leader-elect=true".into(),
            format!("--secure-port={}", free_port()?),
        ];
        match name {
            "kube-controller-manager" => flags.extend([
                "--allocate-node-cidrs=true".into(),
                format!("--client-ca-file={}", self.file("ca.crt")),
                "--cluster-cidr=10.244.0.0/16".into(),
                "--cluster-name=bench".into(),
                format!("--cluster-signing-cert-file={}", self.file("ca.crt")),
                format!("--cluster-signing-key-file={}", self.file("ca.key")),
                "--node-cidr-mask-size=24".into(),
                format!("--root-ca-file={}", self.file("ca.crt")),
                format!("--service-account-private-key-file={}", self.file("sa.key")),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
                "--use-service-account-credentials=true".into(),
            ]),
            "cloud-controller-manager" => {
                flags.extend(["--cloud-provider=strake", "--cluster-cidr=10.244.0.0/16", "--cluster-name=bench"].map(str::to_owned));
            }
            _ => {}
        }
        Ok(flags)
    }
}

fn write_identities(dir: &Path, port: u16) -> Result<()> {
    let cluster = Authority::make(dir, "ca")?;
    cluster.issue(dir, "server", "kube-apiserver", None)?;
    certificates::key_pair(dir, "sa")?;
    let mut clients = vec![
        ("admin", "admin".to_owned(), Some("system:masters")),
        ("kubelet", "system:node:bench".to_owned(), Some("system:nodes")),
        ("kube-proxy", "system:kube-proxy".to_owned(), Some("system:node-proxier")),
    ];
    clients.extend(COMPONENTS.iter().map(|name| (*name, format!("system:{name}"), None)));
    for (name, common_name, organization) in clients {
        cluster.issue(dir, name, &common_name, organization)?;
        certificates::kubeconfig(dir, name, port)?;
    }
    let etcd = Authority::make(dir, "etcd-ca")?;
    etcd.issue(dir, "etcd", "etcd", None)
}

fn etcd_flags(dir: &Path, plain: bool, client: u16, peer: u16, metrics: u16) -> Vec<String> {
    let scheme = if plain { "http" } else { "https" };
    let file = |name: &str| dir.join(name).display().to_string();
    let mut flags = vec![
        "--name=bench".to_owned(),
        format!("--data-dir={}", file("etcd-data")),
        format!("--advertise-client-urls={scheme}://127.0.0.1:{client}"),
        format!("--listen-client-urls={scheme}://127.0.0.1:{client}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-cluster=bench=http://127.0.0.1:{peer}"),
        format!("--listen-metrics-urls=http://127.0.0.1:{metrics}"),
        "--experimental-watch-progress-notify-interval=5s".into(),
        "--log-level=warn".into(),
    ];
    if !plain {
        flags.extend([
            format!("--cert-file={}", file("etcd.crt")),
            format!("--key-file={}", file("etcd.key")),
            format!("--trusted-ca-file={}", file("etcd-ca.crt")),
            "--client-cert-auth=true".into(),
        ]);
    }
    flags
}

/// Asks etcd's plain health endpoint.
fn etcd_is_healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"health\":\"true\""))
}
