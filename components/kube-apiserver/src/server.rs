//! The server: everything a request may need, put together once.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
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
        self,
        policy::{MutatingPolicy, Policies, Policy},
        webhooks::{self, Configured},
    },
    aggregation::{self, Aggregator},
    audit::{self, Audit},
    authn::{self, Authenticator, ClientCa, TokenIssuer, X509, jwt, oidc},
    authz::{self, Authorizer, Mode},
    bootstrap, flow_control,
    handlers::{openapi::OpenApi, zpages::Started},
    http::{
        ApiError,
        drain::{self, Drain},
        memory, options, serve, tls,
    },
    kubelet::{KubeletClient, KubeletConfig},
    metrics::Metrics,
    objects::{Objects, SchemaIngest},
    registry::{Registry, Resource},
    services::NodePorts,
    storage::{EncodedCache, Encryption, Etcd, EtcdConfig, Reflector},
    webhook::{self, Webhooks},
};

/// Where other issuers of tokens are configured.
#[derive(Debug, Clone, Default)]
pub enum Issuers {
    #[default]
    None,
    File(PathBuf),
    Flags(oidc::config::Flags),
}

impl Issuers {
    /// Reads the configuration and begins to follow the issuers' keys.
    fn read(&self, own: &[String]) -> Result<oidc::Issuers, oidc::config::ConfigError> {
        let settings = match self {
            Self::None => return Ok(oidc::Issuers::default()),
            Self::File(path) => crate::config_file::read("authentication configuration", path, |text| oidc::config::parse(text, own))?,
            Self::Flags(f) => f.settings(own)?,
        };
        oidc::Issuers::start(&settings)
    }
}

/// Where authorizers are configured.
#[derive(Debug, Clone)]
pub enum Authorizers {
    File(PathBuf),
    /// By `--authorization-mode`, with what its webhook needs.
    Flags {
        modes: Vec<String>,
        webhook: Option<(PathBuf, String)>,
        allowed_ttl: Duration,
        refused_ttl: Duration,
    },
}

impl Authorizers {
    fn read(&self) -> Result<Vec<Mode>, authz::config::ConfigError> {
        match self {
            Self::File(path) => authz::config::load(path),
            Self::Flags { modes, webhook, allowed_ttl, refused_ttl } => {
                let mode = |m: &String| match (m.as_str(), webhook) {
                    ("Node", _) => Some(Ok(Mode::Node)),
                    ("RBAC", _) => Some(Ok(Mode::Rbac)),
                    (_, Some((file, version))) => Some(authz::config::of_flags(file, version, *allowed_ttl, *refused_ttl)),
                    // Flags let no other mode in, and none without a file.
                    (_, None) => None,
                };
                modes.iter().filter_map(mode).collect()
            }
        }
    }
}

/// A webhook that knows tokens.
#[derive(Debug, Clone)]
pub struct TokenHook {
    pub file: PathBuf,
    pub version: String,
    pub ttl: Duration,
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
    pub protocols: tls::Protocols,
    pub client_ca: Option<PathBuf>,
    pub authorizers: Authorizers,
    pub token_webhook: Option<TokenHook>,
    pub bootstrap_tokens: bool,
    pub anonymous: bool,
    /// Who this server's own tokens are from.
    pub token_issuers: Vec<String>,
    pub api_audiences: Vec<String>,
    pub signing_key: PathBuf,
    pub token_keys: Vec<PathBuf>,
    pub max_token_lifetime: Option<i64>,
    pub extend_tokens: bool,
    pub service_ranges: Vec<IpNet>,
    pub node_ports: NodePorts,
    pub kubelet: KubeletConfig,
    /// The authority of proxies that name users in headers.
    pub request_header: Option<(PathBuf, authn::Names)>,
    /// The certificate and key that extension servers are shown.
    pub proxy_client: Option<(PathBuf, PathBuf)>,
    pub aggregator_routing: bool,
    pub encryption: Option<PathBuf>,
    pub encryption_reload: bool,
    /// Other issuers of tokens.
    pub issuers: Issuers,
    pub event_ttl: i64,
    pub admission: admission::Configuration,
    pub audit: Option<audit::Config>,
    pub flow_control: flow_control::Config,
    pub drain: drain::Config,
    /// The command line, without the program's name.
    pub arguments: Vec<String>,
    pub http: options::Options,
    pub token_file: Option<PathBuf>,
    /// Where the keys of this server's tokens are said to be; none: here.
    pub jwks_uri: Option<String>,
    /// Seconds that pods stay on a node that is not ready, and on one that cannot be reached.
    pub toleration_seconds: (i64, i64),
    pub compaction_interval: Duration,
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
    pub admission: admission::Configuration,
    pub audit: Option<Arc<Audit>>,
    pub gate: flow_control::Gate,
    pub bodies: memory::Budget,
    pub encoded: EncodedCache,
    pub encryption: Arc<Encryption>,
    pub aggregator: Aggregator,
    pub authn: Authenticator,
    pub authz: Authorizer,
    pub tokens: Arc<TokenIssuer>,
    pub kubelet: Arc<KubeletClient>,
    pub metrics: Arc<Metrics>,
    pub openapi: OpenApi,
    pub service_ranges: Vec<IpNet>,
    pub node_ports: NodePorts,
    pub advertise_address: String,
    pub advertise_port: u16,
    pub public_address: String,
    pub ready: AtomicBool,
    /// The server was asked to stop.
    pub stop: CancellationToken,
    pub drain: Drain,
    pub started: Started,
    pub http: options::Options,
    pub jwks_uri: Option<String>,
    pub toleration_seconds: (i64, i64),
    /// Zero: nothing is compacted.
    pub compaction_interval: Duration,
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
        *self.event_lease.lock() = Some((id, Instant::now() + Duration::from_secs(60)));
        Ok(id)
    }
}

async fn build(c: &Config, stop: CancellationToken) -> anyhow::Result<Arc<Server>> {
    let schema = Schema::builtin();
    let registry = Arc::new(Registry::builtin(&schema));
    let stored = registry.all().iter().filter(|r| !r.prefix.is_empty() && r.group == r.storage_group);
    let stored = stored.map(|r| (r.prefix.clone(), (r.group.clone(), r.plural.clone()))).collect();
    let encryption = Arc::new(Encryption::load(&c.root, stored, c.encryption.clone()).context("--encryption-provider-config")?);
    let etcd = Etcd::connect(&c.etcd, Arc::clone(&encryption)).await?;
    let ingest = SchemaIngest { schema: schema.clone(), registry: Arc::clone(&registry) };
    let reflector = Reflector::new(etcd.clone(), &c.root, registry.prefixes(), Box::new(ingest));
    let objects = Arc::new(Objects { schema, reflector });
    let signing = jwt::SigningKey::load(&c.signing_key)?;
    let mut keys = Vec::new();
    for path in &c.token_keys {
        keys.extend(jwt::VerifyingKey::load(path)?);
    }
    if keys.is_empty() {
        keys.extend(signing.verifying());
    }
    let tokens = Arc::new(TokenIssuer {
        issuers: c.token_issuers.clone(),
        api_audiences: c.api_audiences.clone(),
        signing: Some(signing),
        keys: Arc::new(keys),
        max_lifetime: c.max_token_lifetime,
        extends: c.extend_tokens,
        used: authn::Used::default(),
    });
    let mut authn = Authenticator::new(Arc::clone(&tokens), Arc::clone(&objects));
    if let Some((path, names)) = &c.request_header {
        let x509 = Arc::new(X509 { ca: ClientCa::load(path.clone())? });
        authn.request_header = Some(authn::RequestHeader { x509, names: names.clone() });
    }
    authn.x509 = c.client_ca.clone().map(ClientCa::load).transpose()?.map(|ca| Arc::new(X509 { ca }));
    authn.issuers = arc_swap::ArcSwap::from_pointee(c.issuers.read(&c.token_issuers).context("--authentication-config or --oidc-*")?);
    authn.token_file = c.token_file.as_deref().map(authn::TokenFile::load).transpose().context("--token-auth-file")?;
    (authn.bootstrap_tokens, authn.anonymous) = (c.bootstrap_tokens, c.anonymous);
    if let Some(w) = &c.token_webhook {
        let hook = webhook::Configured::load(&w.file).context("--authentication-token-webhook-config-file")?;
        authn.webhook = Some(authn::TokenWebhook::new(hook, w.version.clone(), w.ttl));
    }
    let metrics: Arc<Metrics> = Arc::default();
    let audit = c.audit.as_ref().map(|a| Audit::start(a, objects.schema.clone(), Arc::clone(&metrics.audit))).transpose()?;
    let gate = flow_control::Gate::new(c.flow_control, &flow_control::upkeep::Defaults::new(&objects.schema));
    let host = if c.advertise.is_ipv6() { format!("[{}]", c.advertise) } else { c.advertise.to_string() };
    Ok(Arc::new(Server {
        registry,
        etcd,
        root: c.root.clone(),
        authn,
        encryption,
        aggregator: Aggregator::new(c.proxy_client.clone(), c.aggregator_routing)?,
        authz: Authorizer::new(
            c.authorizers.read().context("--authorization-config or --authorization-webhook-config-file")?,
            Arc::clone(&objects),
        ),
        webhooks: Webhooks::new(Arc::clone(&objects)),
        mutating: Configured::new(webhooks::MUTATING),
        validating: Configured::new(webhooks::VALIDATING),
        policies: Policies::default(),
        mutating_policies: Policies::default(),
        objects,
        admission: c.admission.clone(),
        audit,
        gate,
        bodies: memory::Budget::default(),
        encoded: EncodedCache::new(ENCODED_BUDGET),
        tokens,
        kubelet: KubeletClient::new(c.kubelet.clone())?,
        metrics,
        openapi: OpenApi::default(),
        service_ranges: c.service_ranges.clone(),
        node_ports: c.node_ports,
        advertise_address: c.advertise.to_string(),
        advertise_port: c.port,
        public_address: format!("{host}:{}", c.port),
        ready: AtomicBool::new(false),
        stop,
        drain: Drain::new(c.drain),
        started: Started::now(c.arguments.iter().cloned()),
        http: c.http.clone(),
        jwks_uri: c.jwks_uri.clone(),
        toleration_seconds: c.toleration_seconds,
        compaction_interval: c.compaction_interval,
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
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(Arc::clone(&cert), &config.protocols)?));
    let listener =
        TcpListener::bind((config.bind, config.port)).await.with_context(|| format!("cannot listen on {}:{}", config.bind, config.port))?;
    watch_files(&server, &cert, &config);
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
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        server.objects.reflector.barrier().await.context("waiting for the bootstrap objects to arrive")?;
        flow_control::upkeep::begin(&server);
        server.ready.store(true, Ordering::Release);
        tracing::info!(milliseconds = started.elapsed().as_millis() as u64, port = config.port, "ready");
        upkeep = Some(tokio::spawn(bootstrap::keep(Arc::clone(&server))));
        tokio::spawn(crate::custom::controller::run(Arc::clone(&server)));
        aggregation::start(&server);
        tokio::spawn(flow_control::upkeep::run(Arc::clone(&server)));
        let follower = Arc::clone(&server);
        tokio::spawn(async move { follower.authz.node.follow().await });
    }
    stop.cancelled().await;
    tracing::info!("shutting down");
    if let Some(u) = upkeep {
        // It takes this server out of the endpoints before connections are closed.
        let _ = tokio::time::timeout(Duration::from_secs(2), u).await;
    }
    server.drain.run().await;
    accepting.cancel();
    serving.await.context("the listener ended badly")?;
    if let Some(audit) = &server.audit
        && tokio::time::timeout(Duration::from_secs(5), audit.close()).await.is_err()
    {
        tracing::warn!("audit events were still waiting to be written");
    }
    Ok(())
}

/// Follows files that the server was started with. Whether they could be taken again when they changed is counted and logged.
fn follow<E>(server: &Arc<Server>, what: &'static str, paths: Vec<PathBuf>, mut reload: impl FnMut() -> Result<(), E> + Send + 'static)
where
    E: std::error::Error + Send + 'static,
{
    let server = Arc::downgrade(server);
    tokio::spawn(tls::on_change(what, paths, move || {
        let result = reload();
        if let Some(s) = server.upgrade() {
            s.metrics.file_reloads.add(&[what, if result.is_ok() { "success" } else { "failure" }]);
        }
        result
    }));
}

fn watch_files(server: &Arc<Server>, cert: &Arc<tls::ServingCert>, config: &Config) {
    if let Issuers::File(path) = &config.issuers {
        let (issuers, own, weak) = (config.issuers.clone(), config.token_issuers.clone(), Arc::downgrade(server));
        follow(server, "authentication-config", vec![path.clone()], move || {
            let new = issuers.read(&own);
            if let Some(s) = weak.upgrade() {
                s.metrics.authentication_reloads.note(new.is_ok());
                s.authn.replace_issuers(new?);
            }
            Ok::<_, oidc::config::ConfigError>(())
        });
    }
    if let Some(path) = server.encryption.path().filter(|_| config.encryption_reload) {
        let (e, reflector, weak) = (Arc::clone(&server.encryption), Arc::clone(&server.objects.reflector), Arc::downgrade(server));
        follow(server, "encryption-provider-config", vec![path], move || {
            let read = e.reload();
            if let Some(s) = weak.upgrade() {
                s.metrics.encryption_reloads.note(read.is_ok());
            }
            read?;
            if e.take_unreadable() {
                reflector.read_again();
            }
            Ok::<_, crate::config_file::ConfigFileError>(())
        });
    }
    let c = Arc::clone(cert);
    follow(server, "serving-certificate", cert.paths(), move || c.reload());
    if let Authorizers::File(path) = &config.authorizers {
        let (authorizers, weak) = (config.authorizers.clone(), Arc::downgrade(server));
        follow(server, "authorization-config", vec![path.clone()], move || {
            let modes = authorizers.read();
            if let Some(s) = weak.upgrade() {
                s.metrics.authorization_reloads.note(modes.is_ok());
                s.authz.replace(modes?);
            }
            Ok::<_, authz::config::ConfigError>(())
        });
    }
    let clients = server.authn.x509.as_ref().map(|x| ("client-ca", x));
    let proxies = server.authn.request_header.as_ref().map(|r| ("requestheader-client-ca", &r.x509));
    for (what, x) in clients.into_iter().chain(proxies) {
        let ca = Arc::clone(&x.ca);
        follow(server, what, vec![ca.path()], move || ca.reload());
    }
    if let Some(own) = server.aggregator.identity() {
        let (own, weak) = (Arc::clone(own), Arc::downgrade(server));
        follow(server, "proxy-client-certificate", own.paths(), move || {
            own.reload()?;
            if let Some(s) = weak.upgrade() {
                s.aggregator.refresh(&s.objects);
            }
            Ok::<_, tls::TlsError>(())
        });
    }
    let k = Arc::clone(&server.kubelet);
    if !k.paths().is_empty() {
        follow(server, "kubelet-client-certificate", k.paths(), move || k.reload());
    }
}
