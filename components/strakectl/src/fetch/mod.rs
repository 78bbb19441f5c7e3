//! From what a person names to a file on this computer: a file that is here already, a URL, or an artifact of an OCI registry. The machine is sent
//! the file; it needs neither a route to where the file came from nor a word of HTTP, and who made the file is told by its signature.

#[cfg(test)]
mod bad_servers;
mod http;
mod oci;
#[cfg(test)]
mod tests;

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

pub use self::http::HttpError;
pub use self::oci::Reference;

use self::http::Http;

/// The most bytes of a file that is fetched: a slot and a boot partition have room for less.
pub const MOST: u64 = 2 << 30;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It is nothing that can be fetched.
    #[error("{0:?} is no file here, no URL (http://, https://) and no reference to a registry (registry.example/name:tag)")]
    Source(String),
    /// The file can't be read.
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// There is no place for it.
    #[error("keep what is fetched in a temporary file")]
    Keep(#[source] std::io::Error),
    /// HTTP failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The registry's answer is not what the specification says.
    #[error("{reference}: {problem}")]
    Registry { reference: String, problem: String },
    /// What came is something else.
    #[error("{reference}: what came has the digest sha256:{found}, and not {wanted}")]
    Digest { reference: String, wanted: String, found: String },
}

/// What a person named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// What a web server has.
    Url(String),
    /// What a registry has.
    Registry(Reference),
}

impl Source {
    /// What is meant: a file that is there first, then what looks like a URL or a reference.
    pub fn parse(text: &str, is_file: impl Fn(&Path) -> bool) -> Result<Source, FetchError> {
        let unknown = || FetchError::Source(text.to_owned());
        if is_file(Path::new(text)) {
            return Ok(Source::File(PathBuf::from(text)));
        }
        match text.split_once("://") {
            Some(("http" | "https", _)) => Ok(Source::Url(text.to_owned())),
            Some(("oci", rest)) => Reference::parse(rest).map(Source::Registry).ok_or_else(unknown),
            Some(_) => Err(unknown()),
            None => Reference::parse(text).map(Source::Registry).ok_or_else(unknown),
        }
    }
}

/// A file that is here; one that was fetched goes away with it.
#[derive(Debug)]
pub struct Fetched {
    path: PathBuf,
    _temporary: Option<tempfile::NamedTempFile>,
}

impl Fetched {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Brings it here. `authorities` are PEM certificates of who is believed beside those that this computer believes.
pub async fn fetch(source: &Source, authorities: Option<&Path>, bar: &ProgressBar) -> Result<Fetched, FetchError> {
    let file = match source {
        Source::File(path) => return Ok(Fetched { path: path.clone(), _temporary: None }),
        Source::Url(_) | Source::Registry(_) => tempfile::NamedTempFile::new().map_err(FetchError::Keep)?,
    };
    let mut target = file.reopen().map_err(FetchError::Keep)?;
    let mut http = Http::new(authorities)?;
    match source {
        Source::Url(url) => {
            let response = http.get(url, &[]).await?;
            http::save(url, response, MOST, &mut target, bar).await?;
        }
        Source::Registry(reference) => oci::pull(&mut http, reference, oci::docker().as_deref(), &mut target, bar).await?,
        Source::File(_) => {}
    }
    target.flush().and_then(|()| target.rewind()).map_err(FetchError::Keep)?;
    Ok(Fetched { path: file.path().to_owned(), _temporary: Some(file) })
}
