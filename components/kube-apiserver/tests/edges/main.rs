//! The edges of the server, on a real etcd: compressed answers, values encrypted at rest, users whom proxies name, extension servers,
//! audit events that are posted, files that are followed, plugins of admission, metrics, bad input in bulk.

#[path = "../../examples/dev-cluster/cluster.rs"]
mod cluster;

mod admission;
mod aggregation;
mod audit_webhook;
mod bad_input;
mod encryption;
mod gzip;
mod metrics;
mod oidc;
mod proxies;
mod reload;
mod reviews;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use cluster::{Cluster, until};
use http_body_util::BodyExt;
use hyper::{HeaderMap, Method, Request, body::Bytes};
use kube_client::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use pki::{Authority, LeafSpec};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A listener on loopback with a certificate of an authority of its own.
struct Listener {
    port: u16,
    ca: String,
    tcp: TcpListener,
    tls: TlsAcceptor,
}

/// Listens as `name`; with `clients`, only for those who have a certificate of that authority.
async fn listen(name: &str, clients: Option<&str>) -> Listener {
    let now = jiff::Timestamp::now();
    let hour = Duration::from_secs(3600);
    let issued = Authority::generate("test", now, hour).unwrap();
    let ca = Authority::from_pem(&issued.cert_pem, &issued.key_pem).unwrap();
    let spec = LeafSpec {
        common_name: name.into(),
        organization: None,
        dns_names: vec![name.into()],
        addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        server: true,
        client: false,
        lifetime: hour,
    };
    let leaf = ca.issue(&spec, now).unwrap();
    let certs = vec![CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let tls = match clients {
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
            tls.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap())
        }
        None => tls.with_no_client_auth(),
    };
    let tls = TlsAcceptor::from(Arc::new(tls.with_single_cert(certs, key).unwrap()));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Listener { port: tcp.local_addr().unwrap().port(), ca: issued.cert_pem, tcp, tls }
}

/// A new server, with more flags than usual.
async fn start(dir: &tempfile::TempDir, more: Vec<String>) -> Cluster {
    let path = dir.path().to_owned();
    let more = more.into_iter().map(Into::into).collect();
    tokio::task::spawn_blocking(move || Cluster::start_with(&path, more)).await.unwrap()
}

/// A client by the name of its kubeconfig.
async fn client(cluster: &Cluster, name: &str) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join(format!("{name}.kubeconfig"))).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

async fn send(client: &Client, method: Method, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (k, v) in headers {
        request = request.header(*k, *v);
    }
    let body = if body.is_null() {
        Vec::new()
    } else {
        request = request.header("content-type", "application/json");
        body.to_string().into_bytes()
    };
    let response = client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer { code: parts.status.as_u16(), headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
}

async fn get(client: &Client, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(client, Method::GET, path, headers, &Value::Null).await
}

/// A call that must succeed; gives the object.
async fn done(client: &Client, method: Method, path: &str, body: Value) -> Value {
    let a = send(client, method, path, &[], &body).await;
    assert!(a.code < 300, "{path}: {} {}", a.code, String::from_utf8_lossy(&a.body));
    a.json()
}
