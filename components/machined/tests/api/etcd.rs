//! A real etcd beside machined: snapshots, what is refused, and recovery. Debian's etcd, where it is: `STRAKE_TOOLS` (set by
//! `cargo xtask test`) or PATH.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use machine_api::v1alpha1::{Chunk, EtcdListSnapshotsRequest, EtcdMembersRequest, EtcdSnapshotInfo, EtcdStatusRequest, ResourceGetRequest};
use machine_config::{CertificateAuthority, Config};
use pki::{Authority, LeafSpec};
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::world::{Served, World, audited};

/// Where the programs are. Only a machine without them skips; where `STRAKE_TOOLS` is set they must be there.
fn tools() -> Option<PathBuf> {
    if let Some(tools) = std::env::var_os("STRAKE_TOOLS") {
        return Some(PathBuf::from(tools));
    }
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).find(|place| ["etcd", "etcdutl"].iter().all(|tool| place.join(tool).exists()));
    if found.is_none() {
        eprintln!("skipped: no etcd here");
    }
    found
}

struct Etcd {
    child: Child,
    port: u16,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // The programs may be wrappers: the whole group ends.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Credentials as the "kubernetes" reconciler leaves them, of the generated cluster's etcd authority.
fn credentials(world: &World) {
    let text = std::fs::read_to_string(world.file("controlplane.yaml")).unwrap();
    let config = Config::parse("test", &text).unwrap();
    let CertificateAuthority { cert, key } = config.secrets.authorities.etcd.clone().unwrap();
    let issuer = Authority::from_pem(cert.as_str(), key.unwrap().reveal()).unwrap();
    let issue = |directory: &str, name: &str, server: bool| {
        let spec = LeafSpec {
            common_name: name.into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            server,
            client: true,
            lifetime: Duration::from_secs(3600),
            ..LeafSpec::default()
        };
        let issued = issuer.issue(&spec, jiff::Timestamp::now()).unwrap();
        let at = world.root("etc/kubernetes").join(directory);
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join(format!("{name}.crt")), issued.cert_pem).unwrap();
        std::fs::write(at.join(format!("{name}.key")), issued.key_pem).unwrap();
    };
    issue("etcd", "server", true);
    issue("kube-apiserver", "etcd-client", false);
    for (directory, name) in [("etcd", "ca.crt"), ("kube-apiserver", "etcd-ca.crt")] {
        std::fs::write(world.root("etc/kubernetes").join(directory).join(name), cert.as_str()).unwrap();
    }
}

impl Etcd {
    /// On the data directory of the world, as its static pod would run it.
    async fn start(world: &World, tools: &Path, port: u16) -> Etcd {
        use std::os::unix::process::CommandExt as _;
        let (client, peer) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        let own = world.root("etc/kubernetes/etcd");
        let file = |name: &str| own.join(name).display().to_string();
        let child = Command::new(tools.join("etcd"))
            .args(["--name=cp-1", "--logger=zap", "--log-level=error", "--client-cert-auth=true"])
            .arg(format!("--data-dir={}", world.root("system/etcd/data").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=cp-1={peer}"))
            .args([format!("--cert-file={}", file("server.crt")), format!("--key-file={}", file("server.key"))])
            .arg(format!("--trusted-ca-file={}", file("ca.crt")))
            .process_group(0)
            .spawn()
            .unwrap();
        let etcd = Etcd { child, port };
        for _ in 0..300 {
            if let Ok(mut client) = etcd.client(world).await
                && client.status().await.is_ok()
            {
                return etcd;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("etcd does not answer");
    }

    async fn client(&self, world: &World) -> Result<Client, etcd_client::Error> {
        let read = |name: &str| std::fs::read(world.root("etc/kubernetes/kube-apiserver").join(name)).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read("etcd-ca.crt")))
            .identity(Identity::from_pem(read("etcd-client.crt"), read("etcd-client.key")));
        let options = ConnectOptions::new().with_tls(tls).with_timeout(Duration::from_secs(5));
        Client::connect([format!("https://127.0.0.1:{}", self.port)], Some(options)).await
    }
}

async fn snapshots(served: &Served) -> Vec<EtcdSnapshotInfo> {
    let backup = served.as_user(&served.machine_ca(), "nightly", Some("etcd-backup")).await;
    backup.etcd().list_snapshots(EtcdListSnapshotsRequest {}).await.unwrap().into_inner().snapshots
}

async fn reasons(served: &Served) -> Vec<String> {
    let reader = served.as_role(&served.machine_ca(), Some("reader")).await;
    let request = ResourceGetRequest { kind: "events".into(), id: String::new() };
    let events = reader.resources().get(request).await.unwrap().into_inner().resources;
    let reason = |spec: &str| serde_json::from_str::<serde_json::Value>(spec).unwrap()["reason"].as_str().unwrap().to_owned();
    events.iter().map(|event| reason(&event.spec)).collect()
}

fn hex_sha256(path: &Path) -> String {
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_checked_pruned_downloaded_and_bring_a_lost_etcd_back() {
    let Some(tools) = tools() else { return };
    let world = World::new().await;
    credentials(&world);
    std::fs::create_dir_all(world.root("usr/bin")).unwrap();
    std::os::unix::fs::symlink(tools.join("etcdutl"), world.root("usr/bin/etcdutl")).unwrap();
    let cluster = world.file("controlplane.yaml");
    let text = std::fs::read_to_string(&cluster).unwrap();
    std::fs::write(&cluster, text.replace("kind: ClusterConfig\n", "kind: ClusterConfig\netcd: {snapshots: {keep: 2}}\n")).unwrap();
    let port = free_port();
    let served = world.running_beside(&format!("https://127.0.0.1:{port}"), "").await;
    let here = ["-n", served.address.as_str()];
    let strakectl = async |arguments: &[&str]| world.strakectl(&[arguments, &here].concat()).await;

    // Nobody there: the failure is an event.
    strakectl(&["bootstrap"]).await.unwrap();
    let out = world.file("out.db");
    assert!(strakectl(&["etcd", "snapshot", &out]).await.is_err());
    assert!(!Path::new(&out).exists());
    assert_eq!(reasons(&served).await, ["EtcdSnapshotFailed"]);
    assert_eq!(served.machine.events.totals()["EtcdSnapshotFailed"], 1);

    let etcd = Etcd::start(&world, &tools, port).await;
    let mut client = etcd.client(&world).await.unwrap();
    for i in 0..20 {
        client.put(format!("key{i}"), "value", None).await.unwrap();
    }
    strakectl(&["etcd", "status"]).await.unwrap();
    strakectl(&["etcd", "members", "-o", "json"]).await.unwrap();

    // Taken and downloaded; two are kept of three.
    strakectl(&["etcd", "snapshot", &out]).await.unwrap();
    for i in 20..22 {
        client.put(format!("key{i}"), "value", None).await.unwrap();
        strakectl(&["etcd", "snapshot", &world.file("later.db")]).await.unwrap();
    }
    let kept = snapshots(&served).await;
    assert_eq!(kept.iter().map(|kept| kept.revision).collect::<Vec<_>>(), [22, 23]);
    assert!(kept.iter().all(|kept| kept.keys >= 20), "{kept:?}");
    let older = world.file("older.db");
    strakectl(&["etcd", "snapshot", &older, "--name", &kept[0].name]).await.unwrap();
    assert_eq!(hex_sha256(Path::new(&older)), kept[0].sha256);
    assert_eq!(std::fs::metadata(&older).unwrap().len(), kept[0].size);
    let error = strakectl(&["etcd", "snapshot", &older, "--name", "../../../etc/hosts"]).await.unwrap_err();
    assert!(format!("{error:#}").contains("there is no snapshot"), "{error:#}");
    // One that went bad on the disk is not handed out as a good one.
    let on_disk = world.root("var/lib/strake/snapshots").join(&kept[1].name);
    let mut bytes = std::fs::read(&on_disk).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&on_disk, &bytes).unwrap();
    let rotten = world.file("rotten.db");
    let error = strakectl(&["etcd", "snapshot", &rotten, "--name", &kept[1].name]).await.unwrap_err();
    assert!(format!("{error:#}").contains("is damaged") && !Path::new(&rotten).exists(), "{error:#}");

    // Truncated and damaged ones are refused by strakectl, and by the machine when they come from elsewhere.
    let whole = std::fs::read(&out).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    // Its checksum fits, and etcd's own tool cannot read it.
    let mut nonsense = whole.clone();
    nonsense[..8192].fill(0xaa);
    let end = nonsense.len() - 32;
    let checksum = Sha256::digest(&nonsense[..end]);
    nonsense[end..].copy_from_slice(&checksum);
    let admin = served.as_user(&served.machine_ca(), "restorer", Some("admin")).await;
    for (name, bytes) in [("truncated", whole[..whole.len() - 512].to_vec()), ("flipped", flipped), ("nonsense", nonsense)] {
        let path = world.file(name);
        std::fs::write(&path, &bytes).unwrap();
        assert!(strakectl(&["etcd", "recover", &path]).await.is_err(), "{name}");
        let chunks = tokio_stream::iter(bytes.chunks(100_000).map(|data| Chunk { data: Bytes::copy_from_slice(data) }).collect::<Vec<_>>());
        let status = admin.etcd().recover(chunks).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {}", status.message());
    }
    audited(&["refused", "who=restorer/admin from 127.0.0.1:", "what=recover etcd"]).await;
    assert!(reasons(&served).await.contains(&"EtcdRecoverRefused".to_owned()));
    assert_eq!(client.get("key21", None).await.unwrap().count(), 1, "etcd goes on with what it has");

    // The partition is emptied: etcd is halted, and says how to get it back.
    drop(etcd);
    std::fs::remove_dir_all(world.root("system/etcd")).unwrap();
    let error = strakectl(&["etcd", "status"]).await.unwrap_err();
    assert!(format!("{error:#}").contains("etcd is halted") && format!("{error:#}").contains("strakectl etcd recover"), "{error:#}");
    let status = admin.etcd().members(EtcdMembersRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let error = strakectl(&["bootstrap"]).await.unwrap_err();
    assert!(format!("{error:#}").contains("already belongs to cluster"), "{error:#}");

    strakectl(&["etcd", "recover", &out]).await.unwrap();
    let again = Etcd::start(&world, &tools, port).await;
    let mut client = again.client(&world).await.unwrap();
    assert_eq!(client.get("key7", None).await.unwrap().count(), 1);
    assert_eq!(client.get("key21", None).await.unwrap().count(), 0, "it came after the snapshot");
    let status = admin.etcd().status(EtcdStatusRequest {}).await.unwrap().into_inner();
    assert!(status.revision > 1_000_000_000, "no client takes old objects for new: {}", status.revision);
    assert!(reasons(&served).await.contains(&"EtcdRecovered".to_owned()));
}
