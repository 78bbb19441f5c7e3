//! The one error type of the image builder: every variant names the operation and the object.

use std::path::{Path, PathBuf};

/// Why a step of the image build failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Spawn { program: String, source: std::io::Error },
    /// A program ran and failed.
    #[error("{program} failed ({status}): {tail}")]
    Program { program: String, status: String, tail: String },
    /// A file does not have the form it must have.
    #[error("{}: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    /// Something the build needs is not there.
    #[error("{what} is missing: {hint}")]
    Missing { what: String, hint: String },
    /// A downloaded file is not the one that was locked.
    #[error("{file} has SHA-256 {actual}, the lock says {expected}")]
    Hash { file: String, expected: String, actual: String },
}

/// Attaches the operation and the path to an I/O error.
pub trait FileContext<T> {
    /// Turns the error into [`Error::File`].
    fn on(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> FileContext<T> for std::io::Result<T> {
    fn on(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::File { action, path: path.as_ref().to_owned(), source })
    }
}

impl Error {
    /// A file that does not have the form it must have.
    pub fn malformed(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.as_ref().to_owned(), problem: problem.into() }
    }
}
