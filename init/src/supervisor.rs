//! What each service is to do next, as a pure state machine: requests, exits and the time go in, actions come out.

use std::time::Duration;

use node_ipc::init::{EnvVar, ErrorCode, Exit, ServiceState, ServiceStatus};

use crate::services::ServiceDef;

const FIRST_DELAY: Duration = Duration::from_secs(1);
const LAST_DELAY: Duration = Duration::from_secs(60);
/// A process that ran for this long starts the back-off anew.
const HEALTHY_RUN: Duration = Duration::from_secs(60);

/// What the event loop must do for a service, by its place in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Spawn {
        service: usize,
        args: Vec<String>,
        env: Vec<EnvVar>,
    },
    Terminate {
        service: usize,
        pid: i32,
    },
    Kill {
        service: usize,
        pid: i32,
    },
    /// Its process is gone: remove what it left in its cgroup.
    KillLeftovers {
        service: usize,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no service named {0}")]
    Unknown(String),
    #[error("{0} was never started")]
    NotStarted(String),
    #[error("the machine is going down")]
    ShuttingDown,
}

impl Refusal {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown(_) => ErrorCode::UnknownService,
            Self::NotStarted(_) => ErrorCode::NotStarted,
            Self::ShuttingDown => ErrorCode::ShuttingDown,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Invocation {
    args: Vec<String>,
    env: Vec<EnvVar>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Stopped,
    Waiting,
    Running { pid: i32 },
    BackOff { until: Duration },
    Stopping { pid: i32, kill_at: Option<Duration> },
}

#[derive(Debug)]
struct Service {
    def: &'static ServiceDef,
    wanted: Option<Invocation>,
    last_wanted: Option<Invocation>,
    state: State,
    since: Duration,
    delay: Duration,
    restarts: u32,
    last_exit: Option<Exit>,
    detail: String,
}

/// Every service of the table. Times are those of one clock that never goes back.
#[derive(Debug)]
pub struct Supervisor {
    services: Vec<Service>,
    shutting_down: bool,
}

impl Supervisor {
    pub fn new(table: &'static [ServiceDef], now: Duration) -> Self {
        let services = table
            .iter()
            .map(|def| Service {
                def,
                wanted: def.at_boot.then(Invocation::default),
                last_wanted: None,
                state: if def.at_boot { State::Waiting } else { State::Stopped },
                since: now,
                delay: FIRST_DELAY,
                restarts: 0,
                last_exit: None,
                detail: String::new(),
            })
            .collect();
        Self { services, shutting_down: false }
    }

    /// Makes a service run with these arguments. The same ones again change nothing.
    pub fn start(&mut self, name: &str, args: Vec<String>, env: Vec<EnvVar>, now: Duration) -> Result<Vec<Action>, Refusal> {
        let index = self.find(name)?;
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        let invocation = Invocation { args, env };
        let service = &mut self.services[index];
        if service.wanted.as_ref() == Some(&invocation) {
            return Ok(Vec::new());
        }
        service.wanted = Some(invocation);
        Ok(service.begin_anew(index, now))
    }

    /// Ends a service until somebody starts it again.
    pub fn stop(&mut self, name: &str, now: Duration) -> Result<Vec<Action>, Refusal> {
        let index = self.find(name)?;
        let service = &mut self.services[index];
        if let Some(invocation) = service.wanted.take() {
            service.last_wanted = Some(invocation);
        }
        Ok(match service.state {
            State::Running { pid } => service.terminate(index, pid, now),
            State::Stopping { .. } | State::Stopped => Vec::new(),
            State::Waiting | State::BackOff { .. } => {
                service.enter(State::Stopped, now);
                Vec::new()
            }
        })
    }

    /// Ends a service and starts it with what it has, or had before it was stopped.
    pub fn restart(&mut self, name: &str, now: Duration) -> Result<Vec<Action>, Refusal> {
        let index = self.find(name)?;
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        let service = &mut self.services[index];
        if service.wanted.is_none() {
            service.wanted = service.last_wanted.take();
        }
        if service.wanted.is_none() {
            return Err(Refusal::NotStarted(name.to_owned()));
        }
        Ok(service.begin_anew(index, now))
    }

    /// From now on nothing is started.
    pub fn begin_shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// The answer to [`Action::Spawn`].
    pub fn spawned(&mut self, index: usize, result: Result<i32, String>, now: Duration) {
        let service = &mut self.services[index];
        match result {
            Ok(pid) => service.enter(State::Running { pid }, now),
            Err(detail) => {
                service.last_exit = Some(Exit::NotStarted);
                service.back_off(now);
                service.detail = detail;
            }
        }
    }

    /// A process ended. `None` when it is no service's.
    pub fn exited(&mut self, pid: i32, exit: Exit, now: Duration) -> Option<(&'static ServiceDef, Vec<Action>)> {
        let (index, service) = self.services.iter_mut().enumerate().find(|(_, service)| service.pid() == Some(pid))?;
        service.last_exit = Some(exit);
        if matches!(service.state, State::Stopping { .. }) {
            service.delay = FIRST_DELAY;
            let next = if service.wanted.is_some() { State::Waiting } else { State::Stopped };
            service.enter(next, now);
        } else {
            if now.saturating_sub(service.since) >= HEALTHY_RUN {
                service.delay = FIRST_DELAY;
            }
            service.back_off(now);
        }
        let leftovers = if service.def.kill_leftovers { vec![Action::KillLeftovers { service: index }] } else { Vec::new() };
        Some((service.def, leftovers))
    }

    /// What is due. `ready` says whether a running service is ready for those after it.
    pub fn due(&mut self, now: Duration, ready: impl Fn(&ServiceDef) -> bool) -> Vec<Action> {
        let mut actions = Vec::new();
        for index in 0..self.services.len() {
            let missing = self.missing_dependency(index, &ready);
            let shutting_down = self.shutting_down;
            let service = &mut self.services[index];
            match service.state {
                State::Stopping { pid, kill_at: Some(at) } if now >= at => {
                    service.state = State::Stopping { pid, kill_at: None };
                    actions.push(Action::Kill { service: index, pid });
                }
                State::BackOff { until } if now >= until => service.enter(State::Waiting, now),
                _ => {}
            }
            if service.state == State::Waiting && !shutting_down {
                match missing {
                    Some(name) => service.detail = format!("waits for {name}"),
                    None => {
                        service.detail.clear();
                        let wanted = service.wanted.clone().unwrap_or_default();
                        actions.push(Action::Spawn { service: index, args: wanted.args, env: wanted.env });
                    }
                }
            }
        }
        actions
    }

    /// When [`Self::due`] has something to do at the latest. Readiness files are not watched, so a waiting service is looked at often.
    pub fn next_due(&self) -> Option<Duration> {
        self.services
            .iter()
            .filter_map(|service| match service.state {
                State::BackOff { until } => Some(until),
                State::Stopping { kill_at, .. } => kill_at,
                State::Waiting => Some(Duration::ZERO),
                State::Stopped | State::Running { .. } => None,
            })
            .min()
    }

    pub fn def(&self, index: usize) -> &'static ServiceDef {
        self.services[index].def
    }

    /// Whether a service has a process.
    pub fn has_process(&self, name: &str) -> bool {
        self.services.iter().any(|service| service.def.name == name && service.pid().is_some())
    }

    pub fn statuses(&self) -> Vec<ServiceStatus> {
        self.services
            .iter()
            .map(|service| ServiceStatus {
                name: service.def.name.to_owned(),
                state: match service.state {
                    State::Stopped => ServiceState::Stopped,
                    State::Waiting => ServiceState::Waiting,
                    State::Running { .. } => ServiceState::Running,
                    State::BackOff { .. } => ServiceState::BackOff,
                    State::Stopping { .. } => ServiceState::Stopping,
                },
                pid: service.pid(),
                restarts: service.restarts,
                last_exit: service.last_exit,
                since_boottime_us: u64::try_from(service.since.as_micros()).unwrap_or(u64::MAX),
                detail: service.detail.clone(),
            })
            .collect()
    }

    fn find(&self, name: &str) -> Result<usize, Refusal> {
        let found = self.services.iter().position(|service| service.def.name == name);
        found.ok_or_else(|| Refusal::Unknown(name.chars().take(64).collect()))
    }

    fn missing_dependency(&self, index: usize, ready: &impl Fn(&ServiceDef) -> bool) -> Option<&'static str> {
        self.services[index].def.after.iter().copied().find(|name| {
            !self.services.iter().any(|other| other.def.name == *name && matches!(other.state, State::Running { .. }) && ready(other.def))
        })
    }
}

impl Service {
    fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid } | State::Stopping { pid, .. } => Some(pid),
            _ => None,
        }
    }

    fn enter(&mut self, state: State, now: Duration) {
        self.state = state;
        self.since = now;
        self.detail.clear();
    }

    fn begin_anew(&mut self, index: usize, now: Duration) -> Vec<Action> {
        self.delay = FIRST_DELAY;
        match self.state {
            State::Running { pid } => self.terminate(index, pid, now),
            State::Stopping { .. } => Vec::new(),
            State::Stopped | State::Waiting | State::BackOff { .. } => {
                self.enter(State::Waiting, now);
                Vec::new()
            }
        }
    }

    fn terminate(&mut self, index: usize, pid: i32, now: Duration) -> Vec<Action> {
        self.enter(State::Stopping { pid, kill_at: Some(now + self.def.stop_timeout) }, now);
        vec![Action::Terminate { service: index, pid }]
    }

    fn back_off(&mut self, now: Duration) {
        self.restarts = self.restarts.saturating_add(1);
        self.enter(State::BackOff { until: now + self.delay }, now);
        self.delay = (self.delay * 2).min(LAST_DELAY);
    }
}

#[cfg(test)]
mod tests;
