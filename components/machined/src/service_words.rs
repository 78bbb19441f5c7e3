//! init's view of a service in words.

use node_ipc::init::{Exit, ServiceState, ServiceStatus};

/// A word for a state.
pub fn state_name(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Stopped => "stopped",
        ServiceState::Waiting => "waiting",
        ServiceState::Running => "running",
        ServiceState::BackOff => "back-off",
        ServiceState::Stopping => "stopping",
    }
}

/// What there is to say about a service beside its state.
pub fn detail(service: &ServiceStatus) -> String {
    let exit = match service.last_exit {
        Some(Exit::Code(code)) => format!("last exit: code {code}"),
        Some(Exit::Signal(signal)) => format!("last exit: signal {signal}"),
        Some(Exit::NotStarted) => "could not be started".to_owned(),
        None => String::new(),
    };
    [service.detail.as_str(), exit.as_str()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}
