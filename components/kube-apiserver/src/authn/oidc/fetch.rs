//! Reading a document of an issuer: one GET over TLS, bounded in size and time, followed nowhere.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const LIMIT: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(15);

async fn get(url: &str, tls: &Arc<ClientConfig>) -> Result<Value, String> {
    let uri: Uri = url.parse().map_err(|e| format!("{url:?}: {e}"))?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(|| format!("{url:?} is no https URL"))?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|e| format!("dial tcp {host}:{port}: {e}"))?;
    let name = ServerName::try_from(host.clone()).map_err(|e| format!("{host:?}: {e}"))?;
    let tls = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await.map_err(|e| format!("{host}: tls: {e}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
    // It ends with the sender.
    tokio::spawn(connection);
    let authority = uri.authority().map_or(host.as_str(), |a| a.as_str());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json, application/jwk-set+json")
        .header(header::USER_AGENT, "kube-apiserver")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LIMIT).collect().await.map_err(|e| e.to_string())?.to_bytes();
    if status != 200 {
        return Err(format!("{url}: {status}"));
    }
    serde_json::from_slice(&body).map_err(|e| format!("{url}: {e}"))
}

/// The JSON document at `url`.
pub async fn json(url: &str, tls: &Arc<ClientConfig>) -> Result<Value, String> {
    tokio::time::timeout(TIMEOUT, get(url, tls)).await.map_err(|_| format!("{url}: no answer in time"))?
}
