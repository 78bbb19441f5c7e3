//! Files that a running server follows: what changes in them holds soon after, and a broken one changes nothing and is told in metrics.

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use etcd_client::Client as Etcd;
use hyper::Method;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{oidc::nobody, *};

const HOUR: Duration = Duration::from_secs(3600);
const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// A reader sees the old text or the new.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn encryption(keys: &[(&str, u8)]) -> String {
    let keys: Vec<String> = keys.iter().map(|(name, n)| format!("{{name: {name}, secret: {}}}", STANDARD.encode([*n; 32]))).collect();
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers: [{{secretbox: {{keys: [{}]}}}}]\n",
        keys.join(", ")
    )
}

fn authentication(path: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {{enabled: true, conditions: [{{path: {path}}}]}}\n"
    )
}

fn authorization(modes: &[&str]) -> String {
    let modes: Vec<String> = modes.iter().map(|m| format!("{{type: {m}, name: {}}}", m.to_lowercase())).collect();
    format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: [{}]\n", modes.join(", "))
}

/// A certificate of an authority, for clients or a server.
fn leaf(ca: &Authority, name: &str, server: bool) -> pki::Issued {
    let spec = LeafSpec {
        common_name: name.into(),
        organization: None,
        dns_names: if server { vec!["localhost".into()] } else { Vec::new() },
        addresses: if server { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { Vec::new() },
        server,
        client: !server,
        lifetime: HOUR,
    };
    ca.issue(&spec, jiff::Timestamp::now()).unwrap()
}

/// A client with a certificate of an authority that the server does not know yet, and that authority's certificate.
async fn stranger(cluster: &Cluster, name: &str) -> (Client, String) {
    let issued = Authority::generate("another", jiff::Timestamp::now(), HOUR).unwrap();
    let ca = Authority::from_pem(&issued.cert_pem, &issued.key_pem).unwrap();
    let own = leaf(&ca, name, false);
    let file = |n: &str| cluster.dir.join(format!("{name}-stranger.{n}"));
    std::fs::write(file("crt"), own.cert_pem).unwrap();
    std::fs::write(file("key"), own.key_pem).unwrap();
    let admin = std::fs::read_to_string(cluster.dir.join("admin.kubeconfig")).unwrap();
    let text = ["crt", "key"]
        .iter()
        .fold(admin, |text, n| text.replace(&cluster.dir.join(format!("admin.{n}")).display().to_string(), &file(n).display().to_string()));
    std::fs::write(file("kubeconfig"), text).unwrap();
    (client(cluster, &format!("{name}-stranger")).await, issued.cert_pem)
}

/// The certificate that the server shows a new connection.
async fn shown(cluster: &Cluster, roots: &RootCertStore) -> CertificateDer<'static> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots.clone()).with_no_client_auth();
    let tcp = TcpStream::connect(("127.0.0.1", cluster.port)).await.unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// How often the server could, or could not, take a file again.
async fn reloads(admin: &Client, file: &str, status: &str) -> u64 {
    let metrics = get(admin, "/metrics", &[]).await;
    let series = format!("strake_apiserver_file_reloads_total{{file=\"{file}\",status=\"{status}\"}} ");
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    text.lines().find_map(|l| l.strip_prefix(&series)).map_or(0, |n| n.parse().unwrap())
}

/// A file, what it is followed as, and its next content.
struct Followed {
    what: &'static str,
    path: PathBuf,
    next: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_holds_soon_and_a_broken_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let own = |n: &str| dir.path().join(n);
    let (sealing, people, deciding) = (own("encryption.yaml"), own("authentication.yaml"), own("authorization.yaml"));
    replace(&sealing, &encryption(&[("one", 1)]));
    replace(&people, &authentication("/livez"));
    replace(&deciding, &authorization(&["RBAC"]));
    let flags = vec![
        format!("--encryption-provider-config={}", sealing.display()),
        "--encryption-provider-config-automatic-reload=true".into(),
        format!("--authentication-config={}", people.display()),
        format!("--authorization-config={}", deciding.display()),
    ];
    let cluster = start(&dir, flags).await;
    let file = |n: &str| cluster.dir.join(n);
    let text = |n: &str| std::fs::read_to_string(file(n)).unwrap();
    let (admin, kubelet, nobody) = (client(&cluster, "admin").await, client(&cluster, "kubelet").await, nobody(&cluster).await);
    let etcd = Etcd::connect([cluster.etcd_url.as_str()], None).await.unwrap();
    let ca = Authority::from_pem(&text("ca.crt"), &text("ca.key")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(text("ca.crt").as_bytes()).unwrap()).unwrap();
    let (jane, janes_ca) = stranger(&cluster, "jane").await;
    let (proxy, proxys_ca) = stranger(&cluster, "front-proxy-client").await;
    // The certificate is written before the key: a server that looks between the two keeps what it has, and looks again.
    let serving = leaf(&ca, "kube-apiserver", true);
    let certificate = CertificateDer::from_pem_slice(serving.cert_pem.as_bytes()).unwrap();

    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let mut secrets = 0;
    // What each file says, seen from outside, in the order of the files.
    let mut answers = async || {
        secrets += 1;
        let secret = json!({"metadata": {"name": format!("s-{secrets}")}});
        done(&admin, Method::POST, "/api/v1/namespaces/default/secrets", secret).await;
        let value = etcd.kv_client().get(format!("/registry/secrets/default/s-{secrets}"), None).await.unwrap();
        let john = [("x-remote-user", "john")];
        [
            shown(&cluster, &roots).await == certificate,
            send(&jane, Method::POST, REVIEW, &[], &review).await.code == 201,
            send(&proxy, Method::POST, REVIEW, &john, &review).await.code == 201,
            value.kvs()[0].value().starts_with(b"k8s:enc:secretbox:v1:two:"),
            get(&nobody, "/version", &[]).await.code == 200,
            get(&kubelet, "/api/v1/nodes/dev", &[]).await.code == 404,
        ]
    };
    let followed = [
        Followed { what: "serving-certificate", path: file("server.crt"), next: serving.cert_pem.clone() },
        Followed { what: "client-ca", path: file("ca.crt"), next: format!("{}{janes_ca}", text("ca.crt")) },
        Followed {
            what: "requestheader-client-ca",
            path: file("front-proxy-ca.crt"),
            next: format!("{}{proxys_ca}", text("front-proxy-ca.crt")),
        },
        Followed { what: "encryption-provider-config", path: sealing, next: encryption(&[("two", 2), ("one", 1)]) },
        Followed { what: "authentication-config", path: people, next: authentication("/version") },
        Followed { what: "authorization-config", path: deciding, next: authorization(&["Node", "RBAC"]) },
    ];
    assert_eq!(answers().await, [false; 6]);

    followed.iter().for_each(|f| replace(&f.path, &f.next));
    replace(&file("server.key"), &serving.key_pem);
    until("what the files say now", async || (answers().await == [true; 6]).then_some(())).await;
    let mut before = Vec::new();
    for f in &followed {
        let n = reloads(&admin, f.what, "success").await;
        assert!(n > 0, "{}", f.what);
        before.push((n, reloads(&admin, f.what, "failure").await));
    }

    followed.iter().for_each(|f| replace(&f.path, "{ broken"));
    for (f, (_, failures)) in followed.iter().zip(&before) {
        until(f.what, async || (reloads(&admin, f.what, "failure").await > *failures).then_some(())).await;
    }
    assert_eq!(answers().await, [true; 6], "what held before holds");
    let metrics = String::from_utf8_lossy(&get(&admin, "/metrics", &[]).await.body).into_owned();
    for config in ["authentication", "authorization", "encryption"] {
        let name = format!("apiserver_{config}_config_controller_automatic_reload");
        for series in [format!("{name}s_total{{status=\"failure\"}}"), format!("{name}_last_timestamp_seconds{{status=\"success\"}}")] {
            assert!(metrics.contains(&series), "{series} in {metrics}");
        }
    }

    // A repaired file is taken again, though it says what the server already does.
    followed.iter().for_each(|f| replace(&f.path, &f.next));
    for (f, (successes, _)) in followed.iter().zip(&before) {
        until(f.what, async || (reloads(&admin, f.what, "success").await > *successes).then_some(())).await;
    }
    assert_eq!(answers().await, [true; 6]);
}
