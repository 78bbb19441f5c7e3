//! The client against a TLS server on loopback: HTTP/2, client certificates that are renewed, retries when asked, and an informer that survives
//! a watch that is too old.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_client::{
    CancellationToken, Client, Config, Material, Method, Partial, ReflectorOptions, Request, resources::PODS, spawn_reflector,
};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem }
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn write(&self, name: &str, directory: &Path) {
        let (certificate, key) = self.issue(name);
        std::fs::write(directory.join("client.key"), key.serialize_pem()).unwrap();
        std::fs::write(directory.join("client.crt"), certificate.pem()).unwrap();
    }
}

/// One request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    path: String,
    version: http::Version,
    /// The client certificate, in DER.
    client: Vec<u8>,
}

type Answer = Arc<dyn Fn(&Seen) -> http::Response<Full<Bytes>> + Send + Sync>;

async fn start(authority: &Authority, answer: Answer) -> u16 {
    let (certificate, key) = authority.issue("server");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in rustls::pki_types::CertificateDer::pem_slice_iter(authority.pem.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let client = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let seen = Seen {
                        path: request.uri().path_and_query().unwrap().to_string(),
                        version: request.version(),
                        client: client.clone(),
                    };
                    let response = answer(&seen);
                    async move { Ok::<_, Infallible>(response) }
                });
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    port
}

fn config(authority: &Authority, directory: &Path, port: u16) -> Config {
    let mut config = Config::new(format!("https://localhost:{port}"));
    config.ca = Some(Material::Inline(authority.pem.clone().into_bytes()));
    config.identity = Some((Material::File(directory.join("client.crt")), Material::File(directory.join("client.key"))));
    config
}

fn json(code: u16, body: &str) -> http::Response<Full<Bytes>> {
    http::Response::builder().status(code).body(Full::new(Bytes::from(body.to_string()))).unwrap()
}

use rustls::pki_types::pem::PemObject as _;

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    authority.write("first", directory.path());
    let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let sink = log.clone();
    let port = start(
        &authority,
        Arc::new(move |seen| {
            sink.lock().push(seen.clone());
            json(200, "{}")
        }),
    )
    .await;
    let client = Client::new(config(&authority, directory.path(), port)).unwrap();
    let request = Request::raw(Method::Get, "/version");
    client.execute(&request).await.unwrap();
    client.execute(&request).await.unwrap();
    authority.write("second, renewed", directory.path());
    // The files are looked at every five seconds.
    tokio::time::sleep(Duration::from_millis(5200)).await;
    client.execute(&request).await.unwrap();
    let log = log.lock();
    assert!(log.iter().all(|seen| seen.version == http::Version::HTTP_2));
    let has = |seen: &Seen, name: &str| seen.client.windows(name.len()).any(|window| window == name.as_bytes());
    assert!(has(&log[0], "first") && has(&log[1], "first") && has(&log[2], "second, renewed"));
}

#[tokio::test]
async fn failures_are_typed_and_retried_only_when_asked() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    authority.write("me", directory.path());
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let port = start(
        &authority,
        Arc::new(move |seen| match seen.path.as_str() {
            "/busy" if counter.fetch_add(1, Ordering::SeqCst) < 2 => {
                http::Response::builder().status(429).header("retry-after", "0").body(Full::default()).unwrap()
            }
            "/busy" => json(200, "{}"),
            "/api/v1/namespaces/d/pods/gone" => {
                json(404, r#"{"kind":"Status","status":"Failure","reason":"NotFound","message":"pods \"gone\" not found","code":404}"#)
            }
            _ => json(500, "not json"),
        }),
    )
    .await;
    let client = Client::new(config(&authority, directory.path(), port)).unwrap();
    client.execute(&Request::raw(Method::Get, "/busy")).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let missing = client.call::<Partial>(&Request::get(&PODS, "d", "gone")).await.unwrap_err();
    assert!(missing.is_not_found() && missing.to_string().contains("pods \"gone\" not found"), "{missing}");
    let broken = client.execute(&Request::raw(Method::Get, "/x")).await.unwrap_err();
    assert_eq!(broken.status().unwrap().code, 500);
    assert!(broken.is_retryable() && !broken.is_not_found());
    // A server of another authority is not spoken to.
    let mut other = config(&Authority::new(), directory.path(), port);
    other.user_agent = "test".into();
    assert!(Client::new(other).unwrap().execute(&Request::raw(Method::Get, "/busy")).await.is_err());
}

#[tokio::test]
async fn an_informer_lists_again_when_its_version_is_too_old() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    authority.write("me", directory.path());
    let pod = |name: &str, version: u32| {
        format!(r#"{{"metadata":{{"name":"{name}","namespace":"d","uid":"{name}","resourceVersion":"{version}"}}}}"#)
    };
    let lists = Arc::new(AtomicUsize::new(0));
    let counter = lists.clone();
    let port = start(
        &authority,
        Arc::new(move |seen| {
            if !seen.path.contains("watch=true") {
                // Two pages, then a later state.
                return match (counter.load(Ordering::SeqCst), seen.path.contains("continue=more")) {
                    (0, false) => {
                        json(200, &format!(r#"{{"metadata":{{"resourceVersion":"5","continue":"more"}},"items":[{}]}}"#, pod("a", 1)))
                    }
                    (0, true) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        json(200, &format!(r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{}]}}"#, pod("b", 2)))
                    }
                    _ => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        json(200, &format!(r#"{{"metadata":{{"resourceVersion":"20"}},"items":[{},{}]}}"#, pod("b", 11), pod("c", 12)))
                    }
                };
            }
            if seen.path.contains("resourceVersion=5") {
                let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
                return json(200, &format!("{{\"type\":\"ADDED\",\"object\":{}}}\n{gone}\n", pod("x", 6)));
            }
            json(200, &format!("{{\"type\":\"DELETED\",\"object\":{}}}", pod("c", 21)))
        }),
    )
    .await;
    let client = Client::new(config(&authority, directory.path(), port)).unwrap();
    let stop = CancellationToken::new();
    let pods = spawn_reflector::<Partial>(client, ReflectorOptions::all(PODS), stop.clone());
    pods.wait_synced().await;
    let settled = async {
        while pods.version() < 21 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), settled).await.expect("the informer lists again and follows");
    let names: Vec<_> = pods.list().iter().map(|pod| format!("{}@{}", pod.metadata.name, pod.metadata.resource_version)).collect();
    assert_eq!(names, ["b@11"]);
    assert!(lists.load(Ordering::SeqCst) >= 2);
    stop.cancel();
}
