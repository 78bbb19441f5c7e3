//! UDP and TCP on the DNS port.
//!
//! Every UDP datagram is answered by a task of its own, at most [`MAX_TASKS`] at once; beyond that datagrams are dropped and clients ask again. TCP
//! connections are bounded too, and closed when idle.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use k8s_client::{CancellationToken, Index, Informer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::message::{Parsed, Question, failure, parse, pass_on, write};
use crate::resolver::Resolver;
use crate::types::{EndpointSlice, Service};
use crate::zone::{Cluster, Zone};

const MAX_TASKS: usize = 1024;
const MAX_CONNECTIONS: usize = 128;
const IDLE: Duration = Duration::from_secs(10);

/// The cluster as the informers know it.
pub struct Watched {
    /// Services.
    pub services: Informer<Service>,
    /// Services by cluster address.
    pub by_address: Arc<Index<Service>>,
    /// Services by namespace.
    pub by_namespace: Arc<Index<Service>>,
    /// Slices by `namespace/service`.
    pub slices: Arc<Index<EndpointSlice>>,
    /// Slices by endpoint address.
    pub slices_by_address: Arc<Index<EndpointSlice>>,
}

impl Cluster for Watched {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.get(&format!("{namespace}/{name}"))
    }

    fn services_by_address(&self, address: IpAddr) -> Vec<Arc<Service>> {
        self.by_address.get(&address.to_string())
    }

    fn slices_by_address(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices_by_address.get(&address.to_string())
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        !self.by_namespace.get(namespace).is_empty()
    }
}

/// Answers questions.
pub struct Server<C> {
    /// Zone.
    pub zone: Zone,
    /// What the zone is made of.
    pub cluster: C,
    /// Everything else.
    pub resolver: Resolver,
    /// Counts answers, which rotates records.
    pub answered: AtomicUsize,
}

impl<C: Cluster + Send + Sync + 'static> Server<C> {
    async fn reply(&self, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
        match parse(bytes) {
            Parsed::Ignore => None,
            Parsed::Refuse(answer) => Some(answer),
            Parsed::Question(question) => Some(self.answer(&question, udp).await),
        }
    }

    async fn answer(&self, question: &Question, udp: bool) -> Vec<u8> {
        let rotate = self.answered.fetch_add(1, Ordering::Relaxed);
        if matches!(question.kind, RecordType::AXFR | RecordType::IXFR) {
            return failure(question, ResponseCode::Refused);
        }
        match self.zone.answer(&self.cluster, &question.name, question.kind) {
            Some(answer) => {
                let more = match &answer.external {
                    Some(target) => self.resolver.resolve(target, question.kind).await.map(|r| r.answers.clone()).unwrap_or_default(),
                    None => vec![],
                };
                write(question, &self.zone, &answer, more, rotate, udp)
            }
            None => match self.resolver.resolve(&question.name, question.kind).await {
                Some(resolved) => pass_on(question, &resolved, udp),
                None => failure(question, ResponseCode::ServFail),
            },
        }
    }

    /// Serves a UDP socket until told to stop.
    pub async fn udp(self: Arc<Self>, socket: UdpSocket, stop: CancellationToken) {
        let socket = Arc::new(socket);
        let tasks = Arc::new(Semaphore::new(MAX_TASKS));
        let mut buffer = vec![0; 4096];
        loop {
            let (n, peer) = tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok(received) => received,
                    Err(error) => {
                        tracing::debug!(%error, "receive");
                        continue;
                    }
                },
                () = stop.cancelled() => return,
            };
            let Ok(permit) = tasks.clone().try_acquire_owned() else { continue };
            let (this, socket, bytes) = (Arc::clone(&self), Arc::clone(&socket), buffer[..n].to_vec());
            tokio::spawn(async move {
                if let Some(answer) = this.reply(&bytes, true).await {
                    // A client that is gone asks no more.
                    let _ = socket.send_to(&answer, peer).await;
                }
                drop(permit);
            });
        }
    }

    /// Serves TCP connections until told to stop.
    pub async fn tcp(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let permit = connections.clone().acquire_owned().await;
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                // Ends when the client does, or is idle.
                let _ = this.connection(stream).await;
                drop(permit);
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let len = tokio::time::timeout(IDLE, stream.read_u16()).await??;
            let mut bytes = vec![0; usize::from(len)];
            tokio::time::timeout(IDLE, stream.read_exact(&mut bytes)).await??;
            let Some(answer) = self.reply(&bytes, false).await else { return Ok(()) };
            let mut framed = u16::try_from(answer.len()).unwrap_or(0).to_be_bytes().to_vec();
            framed.extend(&answer);
            tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }
}

/// Binds both sockets of an address; with port 0, both get the same one.
pub async fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let listener = TcpListener::bind(address).await?;
    let socket = UdpSocket::bind(listener.local_addr()?).await?;
    Ok((socket, listener))
}
