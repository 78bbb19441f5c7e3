//! The server: everything a request may need, put together once.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::Context;
use ipnet::IpNet;
use k8s_schema::Schema;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{
        policy::{MutatingPolicy, Policies, Policy},
        webhooks::{self, Configured},
    },
    authn::{Authenticator, ClientCa, TokenIssuer, X509, jwt},
    authz::{Authorizer, Mode},
    bootstrap,
    handlers::openapi::OpenApi,
    http::{ApiError, serve, tls},
    kubelet::{KubeletClient, KubeletConfig},
    metrics::Metrics,
    objects::{Objects, SchemaIngest},
    registry::{Registry, Resource},
    services::NodePorts,
    storage::{EncodedCache, Etcd, EtcdConfig, Reflector},
    webhook::Webhooks,
};

/// What the request-header proxy may say about users, published for extension servers.
#[derive(Debug, Clone, Default)]
pub struct RequestHeader {
    pub ca_pem: String,
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_prefixes: Vec<String>,
}

/// The configuration, already checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub etcd: EtcdConfig,
    /// The key space, with a slash at its end.
    pub root: String,
    pub bind: IpAddr,
    pub port: u16,
    pub advertise: IpAddr,
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    pub client_ca: Option<PathBuf>,
    pub modes: Vec<Mode>,
    pub bootstrap_tokens: bool,
    pub anonymous: bool,
    pub issuers: Vec<String>,
    pub api_audiences: Vec<String>,
    pub signing_key: PathBuf,
    pub token_keys: Vec<PathBuf>,
    pub max_token_lifetime: Option<i64>,
    pub service_ranges: Vec<IpNet>,
    pub node_ports: NodePorts,
    pub kubelet: KubeletConfig,
    pub request_header: Option<(PathBuf, RequestHeader)>,
    pub event_ttl: i64,
}

pub struct Server {
    pub registry: Arc<Registry>,
    pub etcd: Etcd,
    pub root: String,
    pub objects: Arc<Objects>,
    pub webhooks: Webhooks,
    /// The configured admission webhooks.
    pub mutating: Configured,
    pub validating: Configured,
    /// The admission policies.
    pub policies: Policies<Policy>,
    pub mutating_policies: Policies<MutatingPolicy>,
    pub encoded: EncodedCache,
    pub authn: Authenticator,
    pub authz: Authorizer,
    pub tokens: Arc<TokenIssuer>,
    pub kubelet: Arc<KubeletClient>,
    pub metrics: Arc<Metrics>,
    pub openapi: OpenApi,
    pub service_ranges: Vec<IpNet>,
    pub node_ports: NodePorts,
    pub request_header: Option<RequestHeader>,
    pub advertise_address: String,
    pub advertise_port: u16,
    pub public_address: String,
    pub ready: AtomicBool,
    pub stop: CancellationToken,
    /// Held while quotas are charged.
    pub quota: tokio::sync::Mutex<()>,
    event_ttl: i64,
    /// The lease of events that are written now, and until when it is used.
    event_lease: Mutex<Option<(i64, Instant)>>,
}

/// JSON kept for readers, at most.
const ENCODED_BUDGET: usize = 32 << 20;

impl Server {
    /// The lease that a new object of a resource is written with; 0: none. Events share a lease for a minute, as upstream's do.
    pub async fn lease_for(&self, res: &Resource) -> Result<i64, ApiError> {
        if res.prefix != "events" {
            return Ok(0);
        }
        if let Some((id, until)) = *self.event_lease.lock()
            && Instant::now() < until
        {
            return Ok(id);
        }
        let id = self.etcd.lease(self.event_ttl + 60).await?;
        *self.event_lease.lock() = Some((id, Instant::now() + std::time::Duration::from_secs(60)));
        Ok(id)
    }
}

async fn build(c: &Config, stop: CancellationToken) -> anyhow::Result<Arc<Server>> {
    let schema = Schema::builtin();
    let registry = Arc::new(Registry::builtin(&schema));
    let etcd = Etcd::connect(&c.etcd).await?;
    let ingest = SchemaIngest { schema: schema.clone(), registry: Arc::clone(&registry) };
    let reflector = Reflector::new(etcd.clone(), &c.root, registry.prefixes(), Box::new(ingest));
    let objects = Arc::new(Objects { schema, reflector });
    let x509 = c.client_ca.clone().map(ClientCa::load).transpose()?.map(|ca| Arc::new(X509 { ca }));
    let signing = jwt::SigningKey::load(&c.signing_key)?;
    let mut keys = Vec::new();
    for path in &c.token_keys {
        keys.extend(jwt::VerifyingKey::load(path)?);
    }
    if keys.is_empty() {
        keys.extend(signing.verifying());
    }
    let tokens = Arc::new(TokenIssuer {
        issuers: c.issuers.clone(),
        api_audiences: c.api_audiences.clone(),
        signing: Some(signing),
        keys: Arc::new(keys),
        max_lifetime: c.max_token_lifetime,
    });
    let request_header = match &c.request_header {
        Some((path, r)) => {
            let ca_pem = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(RequestHeader { ca_pem, ..r.clone() })
        }
        None => None,
    };
    let host = if c.advertise.is_ipv6() { format!("[{}]", c.advertise) } else { c.advertise.to_string() };
    Ok(Arc::new(Server {
        registry,
        etcd,
        root: c.root.clone(),
        authn: Authenticator::new(x509, Arc::clone(&tokens), c.bootstrap_tokens, c.anonymous, Arc::clone(&objects)),
        authz: Authorizer::new(c.modes.clone(), Arc::clone(&objects)),
        webhooks: Webhooks::new(Arc::clone(&objects)),
        mutating: Configured::new(webhooks::MUTATING),
        validating: Configured::new(webhooks::VALIDATING),
        policies: Policies::default(),
        mutating_policies: Policies::default(),
        objects,
        encoded: EncodedCache::new(ENCODED_BUDGET),
        tokens,
        kubelet: KubeletClient::new(c.kubelet.clone())?,
        metrics: Arc::default(),
        openapi: OpenApi::default(),
        service_ranges: c.service_ranges.clone(),
        node_ports: c.node_ports,
        request_header,
        advertise_address: c.advertise.to_string(),
        advertise_port: c.port,
        public_address: format!("{host}:{}", c.port),
        ready: AtomicBool::new(false),
        stop,
        quota: tokio::sync::Mutex::new(()),
        event_ttl: c.event_ttl,
        event_lease: Mutex::new(None),
    }))
}

/// Runs until `stop`. The port is opened at once; it answers readyz with success when everything is there.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let started = Instant::now();
    let server = build(&config, stop.clone()).await?;
    let cert = tls::ServingCert::load(config.tls_cert.clone(), config.tls_key.clone())?;
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(Arc::clone(&cert))?));
    let listener =
        TcpListener::bind((config.bind, config.port)).await.with_context(|| format!("cannot listen on {}:{}", config.bind, config.port))?;
    watch_files(&server, &cert);
    tokio::spawn(Arc::clone(&server.objects.reflector).run());
    let accepting = CancellationToken::new();
    let serving = tokio::spawn(serve::serve(Arc::clone(&server), listener, acceptor, accepting.clone()));
    let mut observed = server.objects.reflector.observed_changes();
    tokio::select! {
        // The sender lives as long as the reflector, which the server holds.
        _ = observed.wait_for(|o| *o > 0) => {}
        () = stop.cancelled() => {}
    }
    let mut upkeep = None;
    if !stop.is_cancelled() {
        while let Err(e) = bootstrap::write_all(&server).await {
            tracing::warn!(error = %e, "bootstrap objects cannot be written; trying again");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        server.objects.reflector.barrier().await.context("waiting for the bootstrap objects to arrive")?;
        server.ready.store(true, Ordering::Release);
        tracing::info!(milliseconds = started.elapsed().as_millis() as u64, port = config.port, "ready");
        upkeep = Some(tokio::spawn(bootstrap::keep(Arc::clone(&server))));
        tokio::spawn(crate::custom::controller::run(Arc::clone(&server)));
    }
    stop.cancelled().await;
    tracing::info!("shutting down");
    if let Some(u) = upkeep {
        // It takes this server out of the endpoints before connections are closed.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), u).await;
    }
    accepting.cancel();
    serving.await.context("the listener ended badly")?;
    Ok(())
}

fn watch_files(server: &Arc<Server>, cert: &Arc<tls::ServingCert>) {
    let c = Arc::clone(cert);
    tokio::spawn(tls::on_change(cert.paths(), move || c.reload()));
    if let Some(x) = &server.authn.x509 {
        let ca = Arc::clone(&x.ca);
        tokio::spawn(tls::on_change(vec![ca.path()], move || ca.reload()));
    }
    let k = Arc::clone(&server.kubelet);
    if !k.paths().is_empty() {
        tokio::spawn(tls::on_change(k.paths(), move || k.reload()));
    }
}
