//! The client of init's control socket.

use std::path::PathBuf;
use std::time::Duration;

use node_ipc::init::{ConsoleStatus, EnvVar, ErrorCode, Request, Response, ServiceStatus};

/// How long init may take to answer; it only ever accepts or refuses.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why init did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The socket could not be reached or did not answer.
    #[error("ask init")]
    Call(#[source] host::seqpacket::CallError),
    /// A packet could not be made or read.
    #[error("talk to init")]
    Codec(#[from] node_ipc::CodecError),
    /// init said no.
    #[error("init refused: {message}")]
    Refused { code: ErrorCode, message: String },
    /// init answered something that does not fit the question.
    #[error("init gave an answer to another question: {0:?}")]
    Unexpected(Box<Response>),
    /// machined is going down.
    #[error("machined is stopping")]
    Stopping,
}

/// Talks to init; each call is a connection of its own, so that a restarted init is no trouble.
#[derive(Clone, Debug)]
pub struct InitHandle {
    socket: PathBuf,
}

impl InitHandle {
    /// The init behind this socket.
    pub fn new(socket: PathBuf) -> InitHandle {
        InitHandle { socket }
    }

    /// Every service init knows.
    pub async fn services(&self) -> Result<Vec<ServiceStatus>, InitError> {
        match self.call(Request::List).await? {
            Response::Services { services } => Ok(services),
            other => Err(InitError::Unexpected(Box::new(other))),
        }
    }

    /// Runs a service with these arguments; no change when it already has them.
    pub async fn start(&self, name: &str, args: Vec<String>, env: Vec<EnvVar>) -> Result<(), InitError> {
        self.done(Request::Start { name: name.to_owned(), args, env }).await
    }

    /// Stops a service.
    pub async fn stop(&self, name: &str) -> Result<(), InitError> {
        self.done(Request::Stop { name: name.to_owned() }).await
    }

    /// Stops a service and starts it with what it had.
    pub async fn restart(&self, name: &str) -> Result<(), InitError> {
        self.done(Request::Restart { name: name.to_owned() }).await
    }

    /// Goes down in order and comes back.
    pub async fn reboot(&self, reason: &str) -> Result<(), InitError> {
        self.done(Request::Reboot { reason: reason.to_owned() }).await
    }

    /// Goes down in order and stays down.
    pub async fn power_off(&self, reason: &str) -> Result<(), InitError> {
        self.done(Request::PowerOff { reason: reason.to_owned() }).await
    }

    /// The system on trial is good; init need not restart the machine.
    pub async fn trial_passed(&self) -> Result<(), InitError> {
        self.done(Request::TrialPassed).await
    }

    /// Replaces what the console shows.
    pub async fn set_console(&self, status: ConsoleStatus) -> Result<(), InitError> {
        self.done(Request::SetConsole(status)).await
    }

    async fn done(&self, request: Request) -> Result<(), InitError> {
        match self.call(request).await? {
            Response::Done => Ok(()),
            other => Err(InitError::Unexpected(Box::new(other))),
        }
    }

    async fn call(&self, request: Request) -> Result<Response, InitError> {
        let packet = node_ipc::encode_packet(&request)?;
        let path = self.socket.clone();
        let answer = tokio::task::spawn_blocking(move || {
            host::seqpacket::call(&path, &packet, node_ipc::MAX_PACKET, TIMEOUT).map_err(InitError::Call)
        })
        .await
        .map_err(|_| InitError::Stopping)??;
        match node_ipc::decode(&answer)? {
            Response::Error { code, message } => Err(InitError::Refused { code, message }),
            response => Ok(response),
        }
    }
}
