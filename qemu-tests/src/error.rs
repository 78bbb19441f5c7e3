//! Why a virtual machine or a scenario failed, in words that say which machine and what was waited for.

use std::path::{Path, PathBuf};

/// The error of the harness.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or socket operation failed.
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Spawn { program: String, source: std::io::Error },
    /// A program failed.
    #[error("{program} failed ({status}): {output}")]
    Program { program: String, status: String, output: String },
    /// QEMU's monitor answered something else.
    #[error("{machine}: the monitor refused {command}: {answer}")]
    Monitor { machine: String, command: String, answer: String },
    /// A machine did not do in time what it should.
    #[error("{machine}: waited {seconds} s for {what}; the console ends with:\n{console}")]
    Deadline { machine: String, what: String, seconds: u64, console: String },
    /// A machine's process ended.
    #[error("{machine}: QEMU ended while waiting for {what}; it said: {output}; the console ends with:\n{console}")]
    Ended { machine: String, what: String, output: String, console: String },
    /// A machine failed in a stage of bringing up a cluster.
    #[error("{machine}: failed while {stage}; the console ends with:\n{console}")]
    Stage { machine: String, stage: String, console: String, source: Box<Error> },
    /// Something is not as the scenario expects.
    #[error("{what}: expected {expected}, found {found}")]
    Unexpected { what: String, expected: String, found: String },
    /// The tools could not be used.
    #[error(transparent)]
    Tools(#[from] image::Error),
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
