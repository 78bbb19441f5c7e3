//! Certificates that are read again when their files change, so that a renewal needs no restart.
//!
//! The files are looked at during a handshake, at most every [`INTERVAL`]: no task, no thread. A pair that cannot be read, or whose key does not
//! belong to its certificate (someone is writing it just now), leaves the last good pair in use and is tried again.

use std::fmt;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::{PkiError, tls};

/// How often the files are looked at, at most.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What tells one state of a file from another.
type Stamp = Option<(SystemTime, u64, u64)>;

#[derive(Debug)]
struct State {
    pair: Arc<CertifiedKey>,
    stamps: [Stamp; 2],
    looked: Instant,
}

/// A certificate and key in two files (which may be one and the same file).
pub struct KeyPairFiles {
    cert: PathBuf,
    key: PathBuf,
    interval: Duration,
    state: Mutex<State>,
}

impl fmt::Debug for KeyPairFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPairFiles({})", self.cert.display())
    }
}

impl KeyPairFiles {
    /// Reads the files; they must be right now.
    pub fn open(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Arc<Self>, PkiError> {
        Self::open_every(cert, key, INTERVAL)
    }

    /// Like [`Self::open`] with another interval.
    pub fn open_every(cert: impl Into<PathBuf>, key: impl Into<PathBuf>, interval: Duration) -> Result<Arc<Self>, PkiError> {
        let (cert, key) = (cert.into(), key.into());
        let stamps = [stamp(&cert), stamp(&key)];
        let pair = Arc::new(load(&cert, &key)?);
        let state = Mutex::new(State { pair, stamps, looked: Instant::now() });
        Ok(Arc::new(Self { cert, key, interval, state }))
    }

    /// The pair as of now.
    pub fn current(&self) -> Arc<CertifiedKey> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= self.interval {
            state.looked = Instant::now();
            let stamps = [stamp(&self.cert), stamp(&self.key)];
            if stamps != state.stamps
                && let Ok(pair) = load(&self.cert, &self.key)
            {
                state.pair = Arc::new(pair);
                state.stamps = stamps;
            }
        }
        Arc::clone(&state.pair)
    }
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
}

fn read(path: &Path) -> Result<String, PkiError> {
    let failed = |source| PkiError::ReadFile { path: path.to_owned(), source };
    let mut text = String::new();
    fs::File::open(path).map_err(failed)?.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn load(cert: &Path, key: &Path) -> Result<CertifiedKey, PkiError> {
    tls::certified_key(&read(cert)?, &read(key)?)
}

/// Gives a server's handshakes the current certificate.
#[derive(Debug, Clone)]
pub struct ServerCert(pub Arc<KeyPairFiles>);

impl ServerCert {
    /// Reads the files; they must be right now.
    pub fn open(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Arc<Self>, PkiError> {
        KeyPairFiles::open(cert, key).map(|files| Arc::new(Self(files)))
    }
}

impl ResolvesServerCert for ServerCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current())
    }
}

/// Gives a client's handshakes the current certificate.
#[derive(Debug, Clone)]
pub struct ClientCert(pub Arc<KeyPairFiles>);

impl ClientCert {
    /// Reads the files; they must be right now.
    pub fn open(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Arc<Self>, PkiError> {
        KeyPairFiles::open(cert, key).map(|files| Arc::new(Self(files)))
    }
}

impl ResolvesClientCert for ClientCert {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
