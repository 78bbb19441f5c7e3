//! What can go wrong with a request, and meta/v1 Status.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// meta/v1 Status: what the API server answers when something failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub status: String,
    pub message: String,
    pub reason: String,
    pub code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
}

/// Details of a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<StatusCause>,
    pub retry_after_seconds: u32,
}

/// One cause of a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusCause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("building the request {0}")]
    BuildRequest(String, #[source] http::Error),
    #[error("encoding the body of {0}")]
    EncodeBody(String, #[source] serde_json::Error),
    #[error("sending {0}")]
    Send(String, #[source] hyper_util::client::legacy::Error),
    #[error("{0}: no answer within {1:?}")]
    Timeout(String, Duration),
    #[error("{0}: reading the answer")]
    ReadBody(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}: the answer is larger than {1} bytes")]
    TooLarge(String, usize),
    #[error("{0}: decoding the answer")]
    Decode(String, #[source] serde_json::Error),
    #[error("{request}: {} ({})", status.message, status.reason)]
    Api { request: String, status: Box<Status> },
}

impl Error {
    /// The server's Status, when it answered.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Api { status, .. } => Some(status),
            _ => None,
        }
    }

    fn is(&self, code: u16, reason: &str) -> bool {
        self.status().is_some_and(|s| if s.reason.is_empty() { s.code == code } else { s.reason == reason })
    }

    /// 404 NotFound.
    pub fn is_not_found(&self) -> bool {
        self.is(404, "NotFound")
    }

    /// 409 AlreadyExists.
    pub fn is_already_exists(&self) -> bool {
        self.is(409, "AlreadyExists")
    }

    /// 409 Conflict: a precondition or resourceVersion did not hold.
    pub fn is_conflict(&self) -> bool {
        self.is(409, "Conflict")
    }

    /// 410: the resourceVersion or continue token is too old.
    pub fn is_gone(&self) -> bool {
        self.status().is_some_and(|s| s.code == 410 || s.reason == "Expired" || s.reason == "Gone")
    }

    /// 403 Forbidden.
    pub fn is_forbidden(&self) -> bool {
        self.is(403, "Forbidden")
    }

    /// 422 Invalid.
    pub fn is_invalid(&self) -> bool {
        self.is(422, "Invalid")
    }

    /// 403 because the namespace is being deleted.
    pub fn is_namespace_terminating(&self) -> bool {
        self.status().is_some_and(|s| {
            s.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
                || s.message.contains("being terminated")
        })
    }

    /// 429, or a 5xx that asks to come back.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Api { status, .. } => matches!(status.code, 429 | 500 | 502 | 503 | 504),
            Self::Send(..) | Self::Timeout(..) | Self::ReadBody(..) => true,
            _ => false,
        }
    }
}

/// A client configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("reading {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("parsing the kubeconfig {0}")]
    Parse(PathBuf, #[source] serde_yaml::Error),
    #[error("kubeconfig {0}: {1}")]
    Invalid(PathBuf, String),
    #[error("not in a cluster: {0} is not set")]
    NotInCluster(&'static str),
    #[error("server address {0:?}: {1}")]
    Server(String, &'static str),
    #[error("{what}: no usable PEM {kind}")]
    Pem { what: String, kind: &'static str },
    #[error("setting up TLS with {0}")]
    Tls(String, #[source] rustls::Error),
}
