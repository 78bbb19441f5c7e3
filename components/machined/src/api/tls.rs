//! The listening side of the API's TLS: handshakes bounded in number and time, client certificates asked for but not
//! demanded (the method table decides), and a serving certificate that can be replaced while connections are open.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Connections that are open or in their handshake. More wait in the kernel's backlog.
const CONNECTIONS: usize = 256;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text holds no certificate or key.
    #[error("read {what}")]
    Pem { what: &'static str, source: rustls::pki_types::pem::Error },
    /// The PEM text holds no certificate at all.
    #[error("{0} holds no certificate")]
    NoCertificate(&'static str),
    /// Certificate and key do not fit together, or are of a kind that isn't supported.
    #[error("use the serving certificate")]
    Certificate(#[source] rustls::Error),
    /// The CA that clients are checked against can't be used.
    #[error("use the CA for client certificates")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
}

/// A serving certificate that can be replaced.
#[derive(Clone, Debug)]
pub struct ServingCertificate(Arc<RwLock<Arc<CertifiedKey>>>);

impl ServingCertificate {
    /// A certificate (leaf first) and its key, both PEM.
    pub fn new(certificate: &str, key: &str) -> Result<ServingCertificate, TlsError> {
        Ok(ServingCertificate(Arc::new(RwLock::new(Arc::new(certified_key(certificate, key)?)))))
    }

    /// Serves another certificate from the next handshake on.
    pub fn replace(&self, certificate: &str, key: &str) -> Result<(), TlsError> {
        let next = Arc::new(certified_key(certificate, key)?);
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = next;
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

fn certified_key(certificate: &str, key: &str) -> Result<CertifiedKey, TlsError> {
    let chain = certificates("the serving certificate", certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|source| TlsError::Pem { what: "the serving key", source })?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).map_err(TlsError::Certificate)
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|source| TlsError::Pem { what, source })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(what));
    }
    Ok(chain)
}

/// TLS for a machine in a cluster: clients may present a certificate of this CA.
pub fn with_client_ca(serving: ServingCertificate, client_ca: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("the machine CA", client_ca)? {
        roots.add(certificate).map_err(TlsError::Certificate)?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build().map_err(TlsError::ClientCa)?;
    let verifier = Arc::new(Audited(verifier));
    let builder = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]).with_client_cert_verifier(verifier);
    Ok(finish(builder.with_cert_resolver(Arc::new(serving))))
}

tokio::task_local! {
    /// Who is at the other end of the handshake that the task is in.
    static PEER: SocketAddr;
}

/// Verifies as the one inside does, and writes into the audit log whose certificate was refused.
#[derive(Debug)]
struct Audited(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Audited {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify_client_cert(end_entity, intermediates, now).inspect_err(|error| {
            let who = match pki::Certificate::from_der(end_entity) {
                Ok(certificate) => format!("{:?}, as a certificate of {:?} says", certificate.common_name, certificate.issuer),
                Err(_) => "a certificate that can't be read".to_owned(),
            };
            let peer = PEER.try_with(ToString::to_string).unwrap_or_default();
            tracing::warn!(target: "machined::audit", who = format!("{who}, from {peer}"), what = "connect", why = %error, "refused");
        })
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// TLS for maintenance mode: clients know the certificate's fingerprint and have none of their own.
pub fn without_client_certificates(serving: ServingCertificate) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]).with_no_client_auth();
    finish(builder.with_cert_resolver(Arc::new(serving)))
}

fn finish(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A connection that counts against the limit while it is open.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// Accepts connections and yields those whose handshake succeeded. When the receiver does not keep up, handshakes wait.
pub fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    stop: CancellationToken,
) -> ReceiverStream<Result<Connection, std::io::Error>> {
    let (accepted, stream) = mpsc::channel(16);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(config);
        let limit = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => return,
                permit = limit.clone().acquire_owned() => match permit {
                    Ok(permit) => permit,
                    Err(_) => return,
                },
            };
            let connection = tokio::select! {
                () = stop.cancelled() => return,
                connection = listener.accept() => connection,
            };
            let (socket, peer) = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    // Out of descriptors, most likely: waiting lets some be closed.
                    tracing::warn!(%error, "accept a connection to the machine API");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
            tokio::spawn(PEER.scope(peer, async move {
                let _ = socket.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
                    Ok(Ok(stream)) => {
                        let _ = accepted.send(Ok(Connection { stream, _permit: permit })).await;
                    }
                    Ok(Err(error)) => tracing::info!(%peer, %error, "refused a TLS handshake on the machine API"),
                    Err(_) => tracing::info!(%peer, "a TLS handshake on the machine API took too long"),
                }
            }));
        }
    });
    ReceiverStream::new(stream)
}

mod io {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tonic::transport::server::Connected;

    use super::Connection;

    impl Connected for Connection {
        type ConnectInfo = <tokio_rustls::server::TlsStream<tokio::net::TcpStream> as Connected>::ConnectInfo;

        fn connect_info(&self) -> Self::ConnectInfo {
            self.stream.connect_info()
        }
    }

    impl AsyncRead for Connection {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Connection {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(cx, data)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }
}
