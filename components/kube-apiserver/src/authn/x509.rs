//! Client certificates: the common name is the user, organizations are groups.

use std::{path::PathBuf, sync::Arc};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    Rejected, User,
    memo::{self, Memo},
};
use crate::http::tls::{TlsError, read_certs};

/// A CA bundle that follows its file.
#[derive(Debug)]
pub struct ClientCa {
    path: PathBuf,
    verifier: ArcSwap<Arc<dyn ClientCertVerifier>>,
    pem: ArcSwap<String>,
    /// Chains that were good.
    known: Memo<Known>,
}

impl ClientCa {
    pub fn load(path: PathBuf) -> Result<Arc<Self>, TlsError> {
        let (verifier, pem) = Self::read(&path)?;
        Ok(Arc::new(Self { path, verifier: ArcSwap::from_pointee(verifier), pem: ArcSwap::from_pointee(pem), known: Memo::default() }))
    }

    fn read(path: &PathBuf) -> Result<(Arc<dyn ClientCertVerifier>, String), TlsError> {
        let mut roots = RootCertStore::empty();
        for c in read_certs(path)? {
            roots.add(c).map_err(TlsError::Setup)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| TlsError::Setup(rustls::Error::General(e.to_string())))?;
        let pem = std::fs::read_to_string(path)
            .map_err(|e| TlsError::Read { path: path.clone(), source: rustls::pki_types::pem::Error::Io(e) })?;
        Ok((verifier, pem))
    }

    pub fn reload(&self) -> Result<(), TlsError> {
        let (verifier, pem) = Self::read(&self.path)?;
        self.verifier.store(Arc::new(verifier));
        self.pem.store(Arc::new(pem));
        Ok(())
    }

    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// The bundle as it is in the file.
    pub fn pem(&self) -> Arc<String> {
        self.pem.load_full()
    }
}

#[derive(Debug)]
pub struct X509 {
    pub ca: Arc<ClientCa>,
}

/// A chain that was found good with an authority, and how long all of it is valid.
#[derive(Debug, Clone)]
struct Known {
    user: Arc<User>,
    valid: (i64, i64),
}

impl Known {
    fn holds_at(&self, seconds: i64) -> bool {
        self.valid.0 <= seconds && seconds <= self.valid.1
    }
}

/// The certificates of a connection, and what they were found to be last: its requests are of the same user as a rule.
#[derive(Debug, Default)]
pub struct Peer {
    chain: Vec<CertificateDer<'static>>,
    /// With the authorities that say so.
    seen: ArcSwapOption<(Arc<String>, Known)>,
}

impl Peer {
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self { chain, seen: ArcSwapOption::empty() }
    }

    pub fn is_empty(&self) -> bool {
        self.chain.is_empty()
    }
}

impl X509 {
    pub fn authenticate(&self, peer: &Peer) -> Result<User, Rejected> {
        let chain = peer.chain.as_slice();
        let (leaf, rest) = chain.split_first().ok_or_else(|| Rejected("no certificate".into()))?;
        // The authorities are part of the key: with others, everything is checked again. A reload stores the verifier first, so one
        // that is read after the text is never older than it.
        let pem = self.ca.pem();
        let now = UnixTime::now();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if let Some(seen) = &*peer.seen.load()
            && Arc::ptr_eq(&seen.0, &pem)
            && seen.1.holds_at(seconds)
        {
            return Ok(User::clone(&seen.1.user));
        }
        let verifier = self.ca.verifier.load_full();
        let key = memo::key(chain.iter().map(|c| c.as_ref()).chain([pem.as_bytes()]));
        if let Some(known) = self.ca.known.get(&key).filter(|k| k.holds_at(seconds)) {
            let user = User::clone(&known.user);
            peer.seen.store(Some(Arc::new((pem, known))));
            return Ok(user);
        }
        verifier.verify_client_cert(leaf, rest, now).map_err(|e| Rejected(format!("the client certificate is not good: {e}")))?;
        let user = user_of(leaf)?;
        if let Some(valid) = validity(chain) {
            self.ca.known.put(key, Known { user: Arc::new(user.clone()), valid });
        }
        Ok(user)
    }
}

/// When every certificate of a chain is valid, in Unix seconds.
fn validity(chain: &[CertificateDer<'_>]) -> Option<(i64, i64)> {
    chain.iter().try_fold((i64::MIN, i64::MAX), |(from, to), der| {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let valid = cert.validity();
        Some((from.max(valid.not_before.timestamp()), to.min(valid.not_after.timestamp())))
    })
}

fn user_of(leaf: &CertificateDer<'_>) -> Result<User, Rejected> {
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|e| Rejected(format!("the client certificate cannot be read: {e}")))?;
    let subject = cert.subject();
    let name = subject.iter_common_name().next().and_then(|a| a.as_str().ok()).unwrap_or("").to_owned();
    if name.is_empty() {
        return Err(Rejected("the client certificate has no common name".into()));
    }
    let groups = subject.iter_organization().filter_map(|a| a.as_str().ok()).map(str::to_owned).collect();
    let digest = Sha256::digest(leaf);
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    Ok(User {
        name,
        uid: String::new(),
        groups,
        extra: vec![("authentication.kubernetes.io/credential-id".into(), vec![format!("X509SHA256={hex}")])],
    })
}
