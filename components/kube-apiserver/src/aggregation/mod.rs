//! Extension API servers: groups and versions that an APIService says another server answers for.
//!
//! Requests for them are authenticated and authorized here and handed on with the user's name in headers; what the other servers
//! describe of themselves is merged into discovery and OpenAPI. Nothing of this costs anything while there is no such APIService.

mod availability;
mod connect;
pub mod discovery;
pub mod openapi;
mod openapi_v3;
pub mod proxy;
mod register;
mod remote;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

pub use connect::Identity;
pub use remote::Remote;

use crate::{http::tls::TlsError, objects::Objects, server::Server};

/// Where APIServices are stored.
pub const PREFIX: &str = "apiregistration.k8s.io/apiservices";

/// A group and one of its versions.
pub type GroupVersion = (String, String);

/// What the APIServices say, as a whole.
#[derive(Debug, Default)]
pub struct Services {
    remotes: HashMap<GroupVersion, Arc<Remote>>,
    /// Named groups and their versions in the order in which discovery shows them.
    order: Vec<(String, Vec<String>)>,
}

pub struct Aggregator {
    services: ArcSwap<Services>,
    identity: Option<Arc<Identity>>,
    /// Connections go to endpoints instead of cluster addresses.
    routing: bool,
    /// What extension servers described, by group and version.
    described: Mutex<HashMap<GroupVersion, Arc<discovery::Described>>>,
    /// Grows with every change of what is described, so that documents made of it are made again.
    generation: AtomicU64,
    /// Tells that `services` were read anew.
    refreshed: watch::Sender<()>,
}

impl Aggregator {
    /// `certificate`: the files of the certificate and key that this server shows to extension servers.
    pub fn new(certificate: Option<(PathBuf, PathBuf)>, routing: bool) -> Result<Self, TlsError> {
        Ok(Self {
            services: ArcSwap::default(),
            identity: certificate.map(|(cert, key)| Identity::load(cert, key)).transpose()?,
            routing,
            described: Mutex::default(),
            generation: AtomicU64::new(0),
            refreshed: watch::Sender::default(),
        })
    }

    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }

    /// The extension server that answers for a path.
    pub fn route(&self, path: &str) -> Option<Arc<Remote>> {
        let services = self.services.load();
        if services.remotes.is_empty() {
            return None;
        }
        let mut parts = path.strip_prefix("/apis/")?.splitn(3, '/');
        let (group, version) = (parts.next()?, parts.next()?);
        services.remotes.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// All extension servers' groups and versions.
    pub fn remotes(&self) -> Vec<Arc<Remote>> {
        self.services.load().remotes.values().cloned().collect()
    }

    /// `local` with the groups and versions of extension servers, in the order that their APIServices ask for.
    pub fn groups(&self, local: Vec<(String, Vec<String>)>) -> Vec<(String, Vec<String>)> {
        let services = self.services.load();
        if services.remotes.is_empty() { local } else { services.merge(local) }
    }

    /// Reads all APIServices anew. Servers that stay as they were keep their connections.
    pub fn refresh(&self, objects: &Objects) {
        let docs: Vec<_> = objects.list(PREFIX, "").iter().filter_map(|s| objects.doc(s)).collect();
        let old = self.services.load_full();
        let new = Services::of(&docs, &old, self.identity.as_ref());
        let gone: Vec<_> = old.remotes.keys().filter(|k| !new.remotes.contains_key(*k)).cloned().collect();
        self.services.store(Arc::new(new));
        self.refreshed.send_replace(());
        if !gone.is_empty() {
            let mut described = self.described.lock();
            gone.iter().for_each(|k| drop(described.remove(k)));
            drop(described);
            self.changed();
        }
    }
}

/// Starts everything that keeps APIServices true.
pub fn start(server: &Arc<Server>) {
    server.aggregator.refresh(&server.objects);
    tokio::spawn(follow(Arc::clone(server)));
    tokio::spawn(register::run(Arc::clone(server)));
    tokio::spawn(availability::run(Arc::clone(server)));
}

/// Keeps the routes as the APIServices are.
async fn follow(server: Arc<Server>) {
    let Some(cache) = server.objects.reflector.cache(PREFIX) else { return };
    let mut changes = cache.subscribe();
    loop {
        server.aggregator.refresh(&server.objects);
        tokio::select! {
            r = changes.changed() => if r.is_err() { return },
            () = server.stop.cancelled() => return,
        }
    }
}
