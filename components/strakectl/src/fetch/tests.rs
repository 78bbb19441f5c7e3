//! Fetching from a registry and from a web server that are there: on the loopback, with and without TLS, asking for a token, sending blobs from another
//! address.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use super::*;

/// What a server has, by path, and the paths that it only gives to those who have its token.
#[derive(Default)]
struct Content {
    plain: HashMap<String, Vec<u8>>,
    guarded: HashMap<String, Vec<u8>>,
    elsewhere: HashMap<String, String>,
}

const TOKEN: &str = "t0ken";

fn answer(content: &Content, address: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let body = |bytes: &[u8]| Full::new(Bytes::copy_from_slice(bytes));
    let status = |status: StatusCode| Response::builder().status(status);
    let authorized = request.headers().get(AUTHORIZATION).is_some_and(|value| value == &format!("Bearer {TOKEN}"));
    if path == "/token" {
        let query = request.uri().query().unwrap_or_default();
        let token = if query == "service=here&scope=repository:a/strake:pull" { TOKEN } else { "none" };
        return Response::new(body(json!({"token": token}).to_string().as_bytes()));
    }
    if let Some(bytes) = content.plain.get(path) {
        // Somebody else's credentials are none of its business.
        let code = if request.headers().contains_key(AUTHORIZATION) { StatusCode::BAD_REQUEST } else { StatusCode::OK };
        return status(code).body(body(bytes)).unwrap();
    }
    if !authorized && (content.guarded.contains_key(path) || content.elsewhere.contains_key(path)) {
        let wanted = format!("Bearer realm=\"http://{address}/token\",service=\"here\",scope=\"repository:a/strake:pull\"");
        return status(StatusCode::UNAUTHORIZED).header(WWW_AUTHENTICATE, wanted).body(body(b"")).unwrap();
    }
    match (content.guarded.get(path), content.elsewhere.get(path)) {
        (Some(bytes), _) => Response::new(body(bytes)),
        (_, Some(to)) => status(StatusCode::TEMPORARY_REDIRECT).header(LOCATION, to).body(body(b"")).unwrap(),
        _ => status(StatusCode::NOT_FOUND).body(body(b"there is no such thing")).unwrap(),
    }
}

async fn serve(make: impl FnOnce(&str) -> Content) -> String {
    serve_with(None, make).await
}

/// The same behind TLS, if there is a certificate for it.
async fn serve_with(tls: Option<TlsAcceptor>, make: impl FnOnce(&str) -> Content) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (content, own) = (Arc::new(make(&address)), address.clone());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (content, own, tls) = (content.clone(), own.clone(), tls.clone());
            let service = service_fn(move |request| {
                let response = answer(&content, &own, &request);
                async { Ok::<_, Infallible>(response) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(async move {
                match tls {
                    None => drop(http.serve_connection(TokioIo::new(socket), service).await),
                    Some(tls) => {
                        // Who does not believe the certificate goes away.
                        if let Ok(stream) = tls.accept(socket).await {
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                }
            });
        }
    });
    address
}

/// An authority's PEM, and what a server with a certificate of it for these addresses and names accepts connections with.
fn tls(addresses: &[IpAddr], names: &[&str]) -> (String, TlsAcceptor) {
    let (now, day) = (jiff::Timestamp::now(), Duration::from_secs(86_400));
    let authority = pki::Authority::generate("registry", now, day).unwrap();
    let issuer = pki::Authority::from_pem(&authority.cert_pem, &authority.key_pem).unwrap();
    let spec = pki::LeafSpec {
        common_name: "registry".into(),
        addresses: addresses.to_vec(),
        dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
        server: true,
        lifetime: day,
        ..Default::default()
    };
    let issued = issuer.issue(&spec, now).unwrap();
    let (certificates, key) = (pki::pem::certificates(&issued.cert_pem).unwrap(), pki::pem::private_key(&issued.key_pem).unwrap());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    (authority.cert_pem, TlsAcceptor::from(Arc::new(builder.with_single_cert(certificates, key).unwrap())))
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn layer(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

async fn fetched(source: &str) -> Result<Vec<u8>, FetchError> {
    let source = Source::parse(source, |_| false)?;
    let fetched = fetch(&source, None, &ProgressBar::hidden()).await?;
    Ok(std::fs::read(fetched.path()).unwrap())
}

fn told(error: &FetchError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[tokio::test]
async fn an_upgrade_file_is_pulled_from_a_registry_and_compared_with_its_digest() {
    let file: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
    let blobs = serve(|_| Content { plain: HashMap::from([("/store".to_owned(), file.clone())]), ..Content::default() }).await;
    let (blob, other) = (digest(&file), b"another file".to_vec());
    let manifest = json!({"layers": [layer("text/plain", b"read me"), layer(oci::MEDIA_TYPE, &file)]}).to_string().into_bytes();
    let index = json!({"manifests": [
        {"digest": digest(b"arm"), "size": 3, "platform": {"architecture": "arm64"}},
        {"digest": digest(&manifest), "size": manifest.len(), "platform": {"architecture": "amd64"}},
    ]});
    let ambiguous = json!({"layers": [layer("text/plain", &file), layer("text/plain", &other)]});
    let (single, wrong) = (json!({"layers": [layer("", &other)]}), json!({"layers": [layer("", b"what it should be")]}));
    let large = json!({"layers": [{"digest": blob, "size": MOST + 1}]});
    let registry = serve(|_| {
        let at = |what: &str| format!("/v2/a/strake/{what}");
        let mut content =
            Content { elsewhere: HashMap::from([(at(&format!("blobs/{blob}")), format!("http://{blobs}/store"))]), ..Content::default() };
        for (name, value) in [("0.2.0", &index), ("ambiguous", &ambiguous), ("single", &single), ("wrong", &wrong), ("large", &large)] {
            content.guarded.insert(at(&format!("manifests/{name}")), value.to_string().into_bytes());
        }
        content.guarded.insert(at(&format!("manifests/{}", digest(&manifest))), manifest.clone());
        content.guarded.insert(at(&format!("manifests/{}", digest(b"pinned"))), b"{}".to_vec());
        content.guarded.insert(at(&format!("blobs/{}", digest(&other))), other.clone());
        // As long as what it should be.
        content.guarded.insert(at(&format!("blobs/{}", digest(b"what it should be"))), b"what it was once.".to_vec());
        content
    })
    .await;
    assert_eq!(fetched(&format!("{registry}/a/strake:0.2.0")).await.unwrap(), file);
    assert_eq!(fetched(&format!("oci://{registry}/a/strake@{}", digest(&manifest))).await.unwrap(), file);
    assert_eq!(fetched(&format!("{registry}/a/strake:single")).await.unwrap(), other);
    let pinned = digest(b"pinned");
    for (version, expected) in [
        (":ambiguous".to_owned(), "none of them alone"),
        (":wrong".to_owned(), "what came has the digest"),
        (":large".to_owned(), "at most"),
        (":missing".to_owned(), "there is no such thing"),
        (format!("@{pinned}"), "what came has the digest"),
    ] {
        let error = told(&fetched(&format!("{registry}/a/strake{version}")).await.unwrap_err());
        assert!(error.contains(expected), "{error}: {expected}");
    }
}

#[tokio::test]
async fn a_file_comes_from_a_url_whole_or_not_at_all() {
    let server = serve(|address| Content {
        plain: HashMap::from([("/strake.upgrade".to_owned(), b"file".to_vec())]),
        guarded: HashMap::new(),
        elsewhere: HashMap::from([("/loop".to_owned(), format!("http://{address}/loop"))]),
    })
    .await;
    assert_eq!(fetched(&format!("http://{server}/strake.upgrade")).await.unwrap(), b"file");
    let error = told(&fetched(&format!("http://{server}/other")).await.unwrap_err());
    assert!(error.contains("404") && error.contains("no such thing"), "{error}");
    let error = told(&fetched("http://127.0.0.1:1/x").await.unwrap_err());
    assert!(error.contains("connect to 127.0.0.1:1"), "{error}");

    let mut http = Http::new(None).unwrap();
    let url = format!("http://{server}/strake.upgrade");
    let response = http.get(&url, &[]).await.unwrap();
    assert!(matches!(http::read(&url, response, 3).await, Err(HttpError::TooLarge { limit: 3, .. })));
    let url = format!("http://{server}/loop");
    let token = [(AUTHORIZATION, format!("Bearer {TOKEN}"))];
    assert!(matches!(http.get(&url, &token).await, Err(HttpError::Redirects(_))));
}

#[tokio::test]
async fn a_server_behind_tls_is_believed_by_the_authority_that_is_named_and_by_no_other() {
    let here = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let ((ours, acceptor), (other, misnamed)) = (tls(&here, &[]), tls(&[], &["registry.example"]));
    let files = |plain: &str| Content {
        plain: HashMap::from([("/strake.upgrade".to_owned(), b"file".to_vec())]),
        elsewhere: HashMap::from([("/unprotected".to_owned(), format!("http://{plain}/strake.upgrade"))]),
        ..Content::default()
    };
    let plain = serve(|_| files("")).await;
    let secure = serve_with(Some(acceptor), |address| {
        let mut content = files(&plain);
        content.elsewhere.insert("/moved".to_owned(), format!("https://{address}/guarded"));
        content.guarded.insert("/guarded".to_owned(), b"guarded".to_vec());
        content
    })
    .await;
    let misnamed = serve_with(Some(misnamed), |_| files(&plain)).await;
    let dir = tempfile::tempdir().unwrap();
    let authorities = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (ours, other) = (authorities("ours", &ours), authorities("other", &other));
    let fetch = async |url: String, authorities: &Path| {
        let fetched = fetch(&Source::Url(url), Some(authorities), &ProgressBar::hidden()).await;
        fetched.map(|file| std::fs::read(file.path()).unwrap()).map_err(|error| told(&error))
    };
    assert_eq!(fetch(format!("https://{secure}/strake.upgrade"), &ours).await.unwrap(), b"file");
    for (url, authorities, expected) in [
        (format!("https://{secure}/strake.upgrade"), &other, "invalid peer certificate"),
        (format!("https://{misnamed}/strake.upgrade"), &other, "not valid for name"),
        (format!("https://{secure}/strake.upgrade"), &dir.path().join("missing"), "read the certificates of"),
        (format!("https://{plain}/strake.upgrade"), &ours, "connect to"),
        (format!("https://{secure}/guarded"), &ours, "401"),
    ] {
        let error = fetch(url.clone(), authorities).await.unwrap_err();
        assert!(error.contains(expected), "{url}: {error}: {expected}");
    }

    let mut http = Http::new(Some(&ours)).unwrap();
    let token = [(AUTHORIZATION, format!("Bearer {TOKEN}"))];
    let left = http.get(&format!("https://{secure}/unprotected"), &token).await.unwrap_err();
    assert!(matches!(left, HttpError::Unprotected { .. }), "{left}");
    let url = format!("https://{secure}/moved");
    let moved = http.get(&url, &token).await.unwrap();
    assert_eq!(http::read(&url, moved, 10).await.unwrap(), b"guarded", "on the same server the token goes along");
}

#[test]
fn what_is_here_goes_first() {
    assert_eq!(Source::parse("r.example/s:1", |_| true).unwrap(), Source::File("r.example/s:1".into()));
    assert!(matches!(Source::parse("https://r.example/s", |_| false).unwrap(), Source::Url(_)));
    assert!(matches!(Source::parse("r.example/s:1", |_| false).unwrap(), Source::Registry(_)));
    for text in ["strake.upgrade", "ftp://r.example/s", "oci://strake"] {
        assert!(Source::parse(text, |_| false).unwrap_err().to_string().contains("is no file here"), "{text}");
    }
}
