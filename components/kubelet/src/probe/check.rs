//! One probe: exec, HTTP, TCP or gRPC. Also used by lifecycle hooks.

use crate::cri::Cri;
use crate::model::pod::{Container, GrpcAction, HttpGetAction, Probe};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// What is kept of a body or output, for messages.
const MAX_BODY: usize = 10 * 1024;

/// Runs a probe once; the error says why it failed.
pub async fn run(cri: &Cri, id: &str, container: &Container, probe: &Probe, pod_ip: &str) -> Result<(), String> {
    let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.max(1)).unwrap_or(1));
    if let Some(exec) = &probe.exec {
        return run_exec(cri, id, &exec.command, timeout).await.map(drop);
    }
    let work = async {
        if let Some(http) = &probe.http_get {
            http_get(container, http, pod_ip, "kube-probe/1.36").await
        } else if let Some(tcp) = &probe.tcp_socket {
            let port = container.resolve_port(&tcp.port).ok_or("invalid port")?;
            let host = if tcp.host.is_empty() { pod_ip } else { &tcp.host };
            TcpStream::connect((host, port)).await.map(drop).map_err(|e| format!("dial tcp {host}:{port}: {}", plain(&e)))
        } else if let Some(grpc) = &probe.grpc {
            grpc_health(grpc, pod_ip).await
        } else {
            Err("missing probe handler".into())
        }
    };
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(format!("no answer within {}s", timeout.as_secs())))
}

/// Runs a command in a container; an exit code other than 0 is a failure with the output as message.
pub async fn run_exec(cri: &Cri, id: &str, command: &[String], timeout: Duration) -> Result<String, String> {
    let answer = cri.exec_sync(id, command.to_vec(), timeout).await.map_err(|e| e.to_string())?;
    let mut output = answer.stdout;
    output.extend_from_slice(&answer.stderr);
    output.truncate(MAX_BODY);
    let output = String::from_utf8_lossy(&output).into_owned();
    if answer.exit_code == 0 { Ok(output) } else { Err(output) }
}

/// An I/O error without the number that Rust adds to it.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// Asks by HTTP; 200 to 399 is success.
pub async fn http_get(container: &Container, action: &HttpGetAction, pod_ip: &str, user_agent: &str) -> Result<(), String> {
    let port = container.resolve_port(&action.port).ok_or("invalid port")?;
    let host = if action.host.is_empty() { pod_ip } else { &action.host };
    let tls = action.scheme.eq_ignore_ascii_case("HTTPS");
    let path = if action.path.starts_with('/') { action.path.clone() } else { format!("/{}", action.path) };
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = http::Request::builder().method("GET").uri(&path).header("Connection", "close");
    let mut has = (false, false, false);
    for header in &action.http_headers {
        let lower = header.name.to_ascii_lowercase();
        has = (has.0 || lower == "host", has.1 || lower == "user-agent", has.2 || lower == "accept");
        request = request.header(&header.name, &header.value);
    }
    if !has.0 {
        request = request.header("Host", &authority);
    }
    if !has.1 {
        request = request.header("User-Agent", user_agent);
    }
    if !has.2 {
        request = request.header("Accept", "*/*");
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let url = format!("{}://{authority}{path}", if tls { "https" } else { "http" });
    let stream = TcpStream::connect((host, port)).await.map_err(|e| format!("Get \"{url}\": dial tcp {authority}: {}", plain(&e)))?;
    let response = if tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(unverified_tls());
        let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        exchange(TokioIo::new(stream), request).await?
    } else {
        exchange(TokioIo::new(stream), request).await?
    };
    let (status, body) = response;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status} {body}").trim_end().to_owned())
    }
}

async fn exchange<I>(io: I, request: http::Request<Empty<Bytes>>) -> Result<(u16, String), String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let result = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        Ok((status, String::from_utf8_lossy(&body).chars().take(200).collect()))
    }
    .await;
    driver.abort();
    result
}

/// The gRPC health protocol (grpc.health.v1).
async fn grpc_health(action: &GrpcAction, pod_ip: &str) -> Result<(), String> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthCheckRequest {
        #[prost(string, tag = "1")]
        service: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthCheckResponse {
        #[prost(int32, tag = "1")]
        status: i32,
    }
    let host = if pod_ip.contains(':') { format!("[{pod_ip}]") } else { pod_ip.to_owned() };
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{host}:{}", action.port)).map_err(|e| e.to_string())?;
    let channel = endpoint.connect().await.map_err(|e| format!("connect: {e}"))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| e.to_string())?;
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = tonic::Request::new(HealthCheckRequest { service: action.service.clone().unwrap_or_default() });
    let answer = client.unary(request, path, codec).await.map_err(|s| format!("rpc failed: {}", s.message()))?;
    match answer.into_inner().status {
        1 => Ok(()),
        other => Err(format!("service unhealthy (responded with status {other})")),
    }
}

/// TLS that trusts whatever the container shows: a probe asks whether it answers, over a connection inside the machine.
fn unverified_tls() -> Arc<rustls::ClientConfig> {
    #[derive(Debug)]
    struct TrustAll(Arc<rustls::crypto::CryptoProvider>);
    impl ServerCertVerifier for TrustAll {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    static CONFIG: std::sync::OnceLock<Arc<rustls::ClientConfig>> = std::sync::OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let builder = rustls::ClientConfig::builder_with_provider(provider.clone());
            // The provider supports the default versions: it is the one these were written for.
            let builder = builder.with_safe_default_protocol_versions().expect("the provider supports TLS 1.2 and 1.3");
            Arc::new(builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAll(provider))).with_no_client_auth())
        })
        .clone()
}
