//! As much of an HTTP client as fetching a file takes: GET over HTTP/1.1, with or without TLS, following a few redirects. Everything is bounded
//! in size and time.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use indicatif::ProgressBar;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a connection may take, and the silence between two pieces of an answer.
const CONNECT: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 5;
/// Where computers keep the authorities that they believe.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL is none.
    #[error("{0:?} is no URL that can be fetched")]
    Url(String),
    /// It leads from TLS to no TLS.
    #[error("{from} leads to {to}, which is not protected")]
    Unprotected { from: String, to: String },
    /// It leads on and on.
    #[error("{0} leads to more than {REDIRECTS} other places")]
    Redirects(String),
    /// The authorities can't be read.
    #[error("read the certificates of {path}: {problem}")]
    Authorities { path: PathBuf, problem: String },
    /// The server was not reached.
    #[error("connect to {authority}")]
    Connect { authority: String, source: std::io::Error },
    /// It stopped talking.
    #[error("{0} does not answer")]
    Silence(String),
    /// It does not talk HTTP.
    #[error("ask for {url}")]
    Talk { url: String, source: hyper::Error },
    /// It says no.
    #[error("{url}: {status}{message}")]
    Status { url: String, status: StatusCode, message: String },
    /// More came than is taken.
    #[error("{url} has more than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    /// Less came than was announced.
    #[error("{url} ended after {has} of {announced} bytes")]
    Short { url: String, has: u64, announced: u64 },
    /// It can't be kept.
    #[error("keep {url}")]
    Keep { url: String, source: std::io::Error },
}

/// Asks servers.
pub struct Http {
    authorities: Option<PathBuf>,
    tls: Option<Arc<ClientConfig>>,
}

impl Http {
    /// One that believes what this computer believes, and these PEM certificates.
    pub fn new(authorities: Option<&Path>) -> Result<Http, HttpError> {
        Ok(Http { authorities: authorities.map(Path::to_owned), tls: None })
    }

    /// Made when it is needed: plain connections need no certificates.
    fn tls(&mut self) -> Result<Arc<ClientConfig>, HttpError> {
        if let Some(tls) = &self.tls {
            return Ok(tls.clone());
        }
        let mut roots = RootCertStore::empty();
        let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let bundle = own.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()));
        for path in bundle.iter().chain(&self.authorities) {
            let told = |problem: String| HttpError::Authorities { path: path.clone(), problem };
            let text = std::fs::read(path).map_err(|error| told(error.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                // A bundle may hold one that is of no use; what matters is whether the server's is believed in the end.
                roots.add_parsable_certificates(certificate);
            }
        }
        if roots.is_empty() {
            let path = self.authorities.clone().unwrap_or_else(|| BUNDLES[0].into());
            return Err(HttpError::Authorities { path, problem: "there are none; name some with --image-ca or SSL_CERT_FILE".to_owned() });
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| HttpError::Authorities { path: PathBuf::new(), problem: error.to_string() })?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(self.tls.insert(Arc::new(config)).clone())
    }

    /// Asks, and goes where it is sent. The answer is a good one; another is an error.
    pub async fn get(&mut self, url: &str, headers: &[(HeaderName, String)]) -> Result<Response<Incoming>, HttpError> {
        let response = self.ask(url, headers).await?;
        if response.status().is_success() { Ok(response) } else { Err(refused(url, response).await) }
    }

    /// Asks, and goes where it is sent. The answer may say no.
    pub async fn ask(&mut self, url: &str, headers: &[(HeaderName, String)]) -> Result<Response<Incoming>, HttpError> {
        let mut at: Uri = url.parse().map_err(|_| HttpError::Url(url.to_owned()))?;
        let first = at.clone();
        for _ in 0..=REDIRECTS {
            // Another server has no business with the credentials of this one.
            let same = at.authority() == first.authority() && at.scheme() == first.scheme();
            let sent = headers.iter().filter(|(name, _)| same || *name != AUTHORIZATION);
            let response = self.once(&at, sent).await?;
            let to =
                response.status().is_redirection().then(|| response.headers().get(LOCATION)?.to_str().ok().map(str::to_owned)).flatten();
            let Some(to) = to else { return Ok(response) };
            let next = resolve(&at, &to).ok_or(HttpError::Url(to))?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(HttpError::Unprotected { from: at.to_string(), to: next.to_string() });
            }
            at = next;
        }
        Err(HttpError::Redirects(url.to_owned()))
    }

    async fn once(&mut self, uri: &Uri, headers: impl Iterator<Item = &(HeaderName, String)>) -> Result<Response<Incoming>, HttpError> {
        let bad = || HttpError::Url(uri.to_string());
        let (host, authority) = (uri.host().ok_or_else(bad)?.to_owned(), uri.authority().ok_or_else(bad)?.to_string());
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let unreachable = |source| HttpError::Connect { authority: authority.clone(), source };
        let silent = |_| HttpError::Silence(authority.clone());
        let socket =
            tokio::time::timeout(CONNECT, TcpStream::connect((bare.as_str(), port))).await.map_err(silent)?.map_err(unreachable)?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let mut request =
            Request::get(target).header(HOST, &authority).header(USER_AGENT, concat!("strakectl/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| bad())?;
        if !secure {
            return talk(uri, &authority, TokioIo::new(socket), request).await;
        }
        let name = ServerName::try_from(bare).map_err(|_| bad())?;
        let connecting = TlsConnector::from(self.tls()?).connect(name, socket);
        let stream = tokio::time::timeout(CONNECT, connecting).await.map_err(silent)?.map_err(unreachable)?;
        talk(uri, &authority, TokioIo::new(stream), request).await
    }
}

async fn talk(
    uri: &Uri,
    authority: &str,
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, HttpError> {
    let failed = |source| HttpError::Talk { url: uri.to_string(), source };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
    // It ends with the answer's body; what goes wrong is seen there.
    tokio::spawn(connection);
    let answer = tokio::time::timeout(SILENCE, sender.send_request(request)).await;
    answer.map_err(|_| HttpError::Silence(authority.to_owned()))?.map_err(failed)
}

/// Where a `Location` leads.
fn resolve(from: &Uri, to: &str) -> Option<Uri> {
    if to.starts_with('/') && !to.starts_with("//") {
        return format!("{}://{}{to}", from.scheme_str()?, from.authority()?).parse().ok();
    }
    to.parse().ok().filter(|uri: &Uri| uri.host().is_some() && uri.scheme().is_some())
}

/// An answer that says no, with the beginning of what it says.
pub async fn refused(url: &str, response: Response<Incoming>) -> HttpError {
    const MOST: u64 = 64 << 10;
    let status = response.status();
    let text = read(url, response, MOST).await.unwrap_or_default();
    let text: String = String::from_utf8_lossy(&text).chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    let message = if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) };
    HttpError::Status { url: url.to_owned(), status, message }
}

/// A whole answer that is small.
pub async fn read(url: &str, response: Response<Incoming>, limit: u64) -> Result<Vec<u8>, HttpError> {
    let mut all = Vec::new();
    save(url, response, limit, &mut all, &ProgressBar::hidden()).await?;
    Ok(all)
}

/// Writes an answer's body to where it is kept. Gives its size and its SHA-256.
pub async fn save(
    url: &str,
    response: Response<Incoming>,
    limit: u64,
    target: &mut impl Write,
    bar: &ProgressBar,
) -> Result<(u64, [u8; 32]), HttpError> {
    let announced = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let too_large = || HttpError::TooLarge { url: url.to_owned(), limit };
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    if let Some(length) = announced {
        bar.set_length(length);
    }
    let (mut body, mut size, mut digest) = (response.into_body(), 0, Sha256::new());
    while let Some(frame) = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| HttpError::Silence(url.to_owned()))? {
        let frame = frame.map_err(|source| HttpError::Talk { url: url.to_owned(), source })?;
        let Some(data) = frame.data_ref() else { continue };
        size += data.len() as u64;
        if size > limit {
            return Err(too_large());
        }
        digest.update(data);
        target.write_all(data).map_err(|source| HttpError::Keep { url: url.to_owned(), source })?;
        bar.set_position(size);
    }
    match announced {
        Some(announced) if announced != size => Err(HttpError::Short { url: url.to_owned(), has: size, announced }),
        _ => Ok((size, digest.finalize().into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_whole_or_a_path() {
        let from: Uri = "https://a.example:5000/v2/x?y=z".parse().unwrap();
        for (to, expected) in [
            ("/blob", Some("https://a.example:5000/blob")),
            ("https://b.example/blob?c=d", Some("https://b.example/blob?c=d")),
            ("//b.example/blob", None),
            ("blob", None),
            ("", None),
        ] {
            assert_eq!(resolve(&from, to).map(|uri| uri.to_string()).as_deref(), expected, "{to}");
        }
    }
}
