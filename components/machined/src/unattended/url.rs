//! A config behind a URL, over HTTPS or HTTP: whoever signed it is what counts, not the way it came. The URL stands on the kernel's command line
//! (`strake.config=URL`), which a network loader gives and secure boot refuses, or on the medium (`strakectl media --config-url`). `{mac}`, `{uuid}` and
//! `{serial}` in it become what the machine has, so that one medium serves many machines. Everything is bounded in size and time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use machine_api::limits;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Found, UnattendedError, text};
use crate::paths::Paths;

/// The word on the kernel's command line, and the beginning of the line on the medium.
const WORD: &str = "strake.config=";
const LINE: &str = "config-url:";
/// All of one attempt.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it is tried, and how long it rests between: DHCP, switches and servers may come up later than the machine.
pub const TRIES: u32 = 20;
pub const PAUSE: Duration = Duration::from_secs(15);
const REDIRECTS: usize = 5;
/// A longer URL is none.
const URL_MOST: usize = 2048;
/// The authorities of the image.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why a config does not come from a URL.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It is none that can be asked.
    #[error("it is no URL of the form https://HOST/PATH or http://HOST/PATH, without a user and with at most {URL_MOST} bytes")]
    Url,
    /// It holds something in braces that nobody knows, or that this machine does not have.
    #[error("it has {{{0}}}, which is not known here; {{mac}}, {{uuid}} and {{serial}} are, on machines that have them")]
    Placeholder(String),
    /// The image's authorities can't be used.
    #[error("read the authorities in {AUTHORITIES}: {0}")]
    Authorities(String),
    /// The server was not reached.
    #[error("connect to {0}")]
    Connect(String, #[source] std::io::Error),
    /// It does not talk HTTP.
    #[error("ask {0}")]
    Talk(String, #[source] hyper::Error),
    /// It took too long.
    #[error("no answer within {} s", LIMIT.as_secs())]
    Silence,
    /// It says no.
    #[error("the server says {0}")]
    Status(StatusCode),
    /// It leads from TLS to no TLS, or on and on.
    #[error("it leads to {0}, which is not followed")]
    Leads(String),
    /// More came than a config may have.
    #[error("the answer has more than {} bytes", limits::CONFIG_BYTES)]
    TooLarge,
    /// Less came than was announced.
    #[error("the answer ended after {0} of {1} bytes")]
    Short(usize, usize),
}

/// The URL that is given, with what this machine has put in. `keys` is the text on the medium.
pub fn given(paths: &Paths, keys: &str) -> Result<Option<String>, UnattendedError> {
    let command_line = std::fs::read_to_string(paths.at("/proc/cmdline")).unwrap_or_default();
    let word = command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(WORD)).next_back();
    let line = || keys.lines().find_map(|line| line.trim().strip_prefix(LINE)).map(str::trim);
    let Some(template) = word.or_else(line).filter(|url| !url.is_empty()) else { return Ok(None) };
    let failed = |source| UnattendedError::Url { url: shown(template), source };
    let url = expand(template, |name| fact(paths, name)).map_err(failed)?;
    parse(&url).map_err(failed)?;
    Ok(Some(url))
}

/// What of a URL is shown: no control characters, and not without end.
fn shown(url: &str) -> String {
    url.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Puts what is in braces in.
fn expand(template: &str, fact: impl Fn(&str) -> Option<String>) -> Result<String, UrlError> {
    if template.len() > URL_MOST {
        return Err(UrlError::Url);
    }
    let (mut url, mut rest) = (String::new(), template);
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, behind) = behind.split_once('}').ok_or(UrlError::Url)?;
        url.push_str(before);
        url.push_str(&fact(name).ok_or_else(|| UrlError::Placeholder(shown(name)))?);
        rest = behind;
    }
    url.push_str(rest);
    Ok(url)
}

/// What this machine has, as it can stand in a URL.
fn fact(paths: &Paths, name: &str) -> Option<String> {
    let text = match name {
        "uuid" => std::fs::read_to_string(paths.at("/sys/class/dmi/id/product_uuid")).ok()?,
        "serial" => std::fs::read_to_string(paths.at("/sys/class/dmi/id/product_serial")).ok()?,
        "mac" => {
            let mut links: Vec<_> = std::fs::read_dir(paths.at("/sys/class/net")).ok()?.flatten().map(|entry| entry.path()).collect();
            links.retain(|link| link.join("device").exists());
            links.sort();
            std::fs::read_to_string(links.first()?.join("address")).ok()?
        }
        _ => return None,
    };
    let text = text.trim().to_ascii_lowercase();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.' | '_');
    (!text.is_empty() && text.len() <= 64 && text.chars().all(fits)).then_some(text)
}

/// A URL that can be asked: its parts, and whether it takes TLS.
fn parse(url: &str) -> Result<(Uri, bool), UrlError> {
    let uri: Uri = url.parse().map_err(|_| UrlError::Url)?;
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(UrlError::Url),
    };
    let authority = uri.authority().ok_or(UrlError::Url)?;
    if authority.host().is_empty() || authority.as_str().contains('@') || url.len() > URL_MOST {
        return Err(UrlError::Url);
    }
    Ok((uri, secure))
}

/// Asks once.
pub async fn fetch(paths: &Paths, url: &str) -> Result<Found, UnattendedError> {
    let failed = |source| UnattendedError::Url { url: shown(url), source };
    let answer = tokio::time::timeout(LIMIT, get(paths, url)).await.map_err(|_| failed(UrlError::Silence))?;
    text(&shown(url), &answer.map_err(failed)?[..])
}

async fn get(paths: &Paths, url: &str) -> Result<Vec<u8>, UrlError> {
    let (mut at, mut secure) = parse(url)?;
    for _ in 0..=REDIRECTS {
        let response = ask(paths, &at, secure).await?;
        let status = response.status();
        let to = response.headers().get(LOCATION).filter(|_| status.is_redirection()).and_then(|to| to.to_str().ok());
        let Some(to) = to else {
            return if status == StatusCode::OK { body(&at, response).await } else { Err(UrlError::Status(status)) };
        };
        let whole = match to.starts_with('/') && !to.starts_with("//") {
            true => {
                format!("{}://{}{to}", if secure { "https" } else { "http" }, at.authority().map_or("", |authority| authority.as_str()))
            }
            false => to.to_owned(),
        };
        let (next, next_secure) = parse(&whole).map_err(|_| UrlError::Leads(shown(to)))?;
        if secure && !next_secure {
            return Err(UrlError::Leads(shown(to)));
        }
        (at, secure) = (next, next_secure);
    }
    Err(UrlError::Leads(format!("more than {REDIRECTS} other places")))
}

async fn ask(paths: &Paths, uri: &Uri, secure: bool) -> Result<Response<Incoming>, UrlError> {
    let authority = uri.authority().ok_or(UrlError::Url)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let unreachable = |error| UrlError::Connect(authority.to_string(), error);
    let request = Request::get(uri.path_and_query().map_or("/", |target| target.as_str()))
        .header(HOST, authority.as_str())
        .header(USER_AGENT, concat!("strake/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|_| UrlError::Url)?;
    let tls = match secure {
        true => {
            let name = ServerName::try_from(host.clone()).map_err(|_| UrlError::Url)?;
            Some((TlsConnector::from(Arc::new(tls(&paths.at(AUTHORITIES))?)), name))
        }
        false => None,
    };
    let socket = TcpStream::connect((host.as_str(), port)).await.map_err(unreachable)?;
    match tls {
        None => talk(authority.as_str(), TokioIo::new(socket), request).await,
        Some((connector, name)) => {
            let stream = connector.connect(name, socket).await.map_err(unreachable)?;
            talk(authority.as_str(), TokioIo::new(stream), request).await
        }
    }
}

fn tls(authorities: &Path) -> Result<ClientConfig, UrlError> {
    let told = |error: &dyn std::fmt::Display| UrlError::Authorities(error.to_string());
    let bundle = std::fs::read(authorities).map_err(|error| told(&error))?;
    let mut roots = RootCertStore::empty();
    // A bundle may hold one that is of no use; what matters is whether the server's is believed in the end.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bundle).flatten());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| told(&error))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn talk(
    authority: &str,
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, UrlError> {
    let failed = |error| UrlError::Talk(authority.to_owned(), error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
    // It ends with the answer's body; what goes wrong is seen there.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(failed)
}

async fn body(uri: &Uri, response: Response<Incoming>) -> Result<Vec<u8>, UrlError> {
    let announced = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits::CONFIG_BYTES) {
        return Err(UrlError::TooLarge);
    }
    let (mut body, mut all) = (response.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match announced {
            Some(announced) if all.len() < announced => UrlError::Short(all.len(), announced),
            _ => UrlError::Talk(uri.to_string(), error),
        })?;
        if let Some(data) = frame.data_ref() {
            if all.len() + data.len() > limits::CONFIG_BYTES {
                return Err(UrlError::TooLarge);
            }
            all.extend_from_slice(data);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers every path with what the table has for it.
    async fn server(answers: Vec<(&'static str, String)>, tls: Option<tokio_rustls::TlsAcceptor>) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                match &tls {
                    None => answer(socket, &answers).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(socket).await {
                            answer(stream, &answers).await;
                        }
                    }
                }
            }
        });
        port
    }

    async fn answer(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, answers: &[(&'static str, String)]) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_err() {
                return;
            }
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let found = answers.iter().find(|(known, _)| *known == path).map(|(_, answer)| answer.clone());
        let found = found.unwrap_or_else(|| "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned());
        let _ = stream.write_all(found.as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn to(place: &str) -> String {
        format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n")
    }

    #[tokio::test]
    async fn a_config_comes_whole_or_the_reason_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let large = limits::CONFIG_BYTES + 1;
        let port = server(
            vec![
                ("/config", ok("a: 1\n")),
                ("/query?m=1", ok("b: 2\n")),
                ("/moved", to("/config")),
                ("/round", to("/round")),
                ("/elsewhere", to("ftp://host/config")),
                ("/short", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na: 1\n".to_owned()),
                ("/large", ok(&"#".repeat(large))),
                ("/announced", format!("HTTP/1.1 200 OK\r\nContent-Length: {large}\r\n\r\n")),
                ("/endless", format!("HTTP/1.1 200 OK\r\n\r\n{}", "#".repeat(large))),
                ("/strange", "SSH-2.0-x\r\n\r\n".to_owned()),
            ],
            None,
        )
        .await;
        for (path, expected) in [
            ("/config", Ok("a: 1\n")),
            ("/query?m=1", Ok("b: 2\n")),
            ("/moved", Ok("a: 1\n")),
            ("/round", Err("more than 5 other places")),
            ("/elsewhere", Err("leads to ftp://host/config")),
            ("/short", Err("ended after")),
            ("/large", Err("has more than")),
            ("/announced", Err("has more than")),
            ("/endless", Err("has more than")),
            ("/missing", Err("404 Not Found")),
            ("/strange", Err("ask 127.0.0.1")),
        ] {
            let found = fetch(&paths, &format!("http://127.0.0.1:{port}{path}")).await;
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!((found.text.as_str(), found.place.contains(path)), (expected, true)),
                (Err(error), Err(expected)) => {
                    let error = crate::api::chain(&error);
                    assert!(error.contains(expected) && error.contains(path), "{error}: {expected}");
                }
                (found, expected) => panic!("{path}: {found:?}, not {expected:?}"),
            }
        }
        let nobody = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().port();
        let error = fetch(&paths, &format!("http://127.0.0.1:{nobody}/")).await.unwrap_err();
        assert!(crate::api::chain(&error).contains("connect to 127.0.0.1"), "{error}");
    }

    #[tokio::test]
    async fn over_tls_the_images_authorities_vouch_for_the_server() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let bundle = paths.at(AUTHORITIES);
        std::fs::create_dir_all(bundle.parent().unwrap()).unwrap();
        let spec = pki::LeafSpec {
            common_name: "server".into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            lifetime: Duration::from_secs(3600),
            ..Default::default()
        };
        let issued = pki::Issued::self_signed(&spec, jiff::Timestamp::now()).unwrap();
        let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let plain = server(vec![("/", ok("plain: 1\n"))], None).await;
        let answers = vec![("/", ok("a: 1\n")), ("/plain", to(&format!("http://127.0.0.1:{plain}/")))];
        let port = server(answers, Some(tokio_rustls::TlsAcceptor::from(Arc::new(config)))).await;
        let ask =
            async |path: &str| fetch(&paths, &format!("https://127.0.0.1:{port}{path}")).await.map_err(|error| crate::api::chain(&error));

        let error = ask("/").await.unwrap_err();
        assert!(error.contains("authorities"), "{error}");
        std::fs::write(&bundle, crate::testing::authority("another").cert_pem).unwrap();
        let error = ask("/").await.unwrap_err();
        assert!(error.contains("connect to 127.0.0.1"), "{error}");
        std::fs::write(&bundle, &issued.cert_pem).unwrap();
        assert_eq!(ask("/").await.unwrap().text, "a: 1\n");
        assert!(ask("/plain").await.unwrap_err().contains("not followed"), "from TLS to no TLS");
    }

    #[test]
    fn the_url_comes_from_the_command_line_before_the_medium() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let write = |path: &str, text: &str| {
            let path = paths.at(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("/sys/class/net/eth0/address", "52:54:00:AA:00:01\n");
        write("/sys/class/net/eth0/device", "");
        write("/sys/class/net/bond0/address", "00:00:00:00:00:00\n");
        write("/sys/class/dmi/id/product_uuid", "0B1C2D3E-1122-4000-8000-0000A0B0C0D0\n");
        write("/sys/class/dmi/id/product_serial", "../../../etc\n");
        let long = format!("x strake.config=http://a/{}", "b".repeat(3000));
        for (line, keys, expected) in [
            ("panic=10", "# none\n", Ok(None)),
            ("panic=10 strake.config=", "", Ok(None)),
            ("", "config-url: https://a/b\n-----BEGIN", Ok(Some("https://a/b"))),
            ("x strake.config=http://[::1]:8080/c?d=e", "config-url: https://a/b\n", Ok(Some("http://[::1]:8080/c?d=e"))),
            ("strake.config=http://a/1 strake.config=http://a/2", "", Ok(Some("http://a/2"))),
            ("strake.config=http://a/{mac}.yaml", "", Ok(Some("http://a/52:54:00:aa:00:01.yaml"))),
            ("strake.config=http://a/?u={uuid}", "", Ok(Some("http://a/?u=0b1c2d3e-1122-4000-8000-0000a0b0c0d0"))),
            ("strake.config=http://a/{serial}", "", Err("{serial}, which is not known")),
            ("strake.config=http://a/{host}", "", Err("{host}, which is not known")),
            ("strake.config=http://a/{mac", "", Err("no URL")),
            ("strake.config=ftp://a/b", "", Err("no URL")),
            ("strake.config=a/b", "", Err("no URL")),
            ("strake.config=http://user:word@a/b", "", Err("without a user")),
            (long.as_str(), "", Err("at most 2048 bytes")),
        ] {
            write("/proc/cmdline", line);
            match (given(&paths, keys), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{line} {keys}"),
                (Err(error), Err(expected)) => {
                    let error = crate::api::chain(&error);
                    assert!(error.contains(expected), "{error}: {expected}");
                }
                (found, expected) => panic!("{line}: {found:?}, not {expected:?}"),
            }
        }
    }
}
