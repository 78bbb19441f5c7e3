//! Stage two: prepare the system, then wait for what happens and act on it, until the machine goes down. One thread, one poll.

use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use node_ipc::init::{BOOT_INFO_FILE, BootInfo, Exit, Request, Response, SOCKET};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::system::RebootCommand;

use crate::control::Control;
use crate::output::Output;
use crate::power_button::PowerButtons;
use crate::services::{LOGD, ServiceDef, TABLE};
use crate::shutdown::{self, Kind, Step};
use crate::spawn::{self, Streams};
use crate::supervisor::{Action, Supervisor};
use crate::watchdog::Watchdog;
use crate::{console, helper, mounts, report, setup, uevent};

const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often something is looked at that cannot be waited for.
const SHORT_WAIT: Duration = Duration::from_millis(200);
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
enum StageTwoError {
    #[error("block signals")]
    Signals(#[source] nix::Error),
    #[error("bind {SOCKET}")]
    Control(#[source] io::Error),
    #[error("restart the machine")]
    Reboot(#[source] rustix::io::Errno),
}

/// Everything PID 1 holds.
struct EventLoop {
    supervisor: Supervisor,
    output: Output,
    control: Control,
    signals: SignalFd,
    uevents: Option<OwnedFd>,
    watchdog: Option<Watchdog>,
    buttons: PowerButtons,
    /// Children that are no services.
    helpers: Vec<i32>,
    /// The one among them that loads drivers, and whether devices appeared since it began.
    driver_helper: Option<i32>,
    devices_appeared: bool,
    shutdown: Option<(Kind, String)>,
    /// When a system on trial must have proved good; the machine restarts then, and the loader starts the slot before.
    trial: Option<Duration>,
}

/// Ends only with an error that nothing can be done about; main reboots then.
pub fn run() -> Result<Infallible, Box<dyn Error>> {
    if fs::symlink_metadata("/proc/self").is_err() {
        mounts::mount_all(mounts::STAGE_ONE, |_| {})?;
    }
    mounts::share()?;
    mounts::mount_all(mounts::STAGE_TWO, |skipped| report::info(&skipped))?;
    let release = release();
    console::set_version(&release);
    report::notice(&format!("{release} stage two"));

    setup::copy_tree(&Path::new(setup::SHARE).join("etc"), Path::new("/etc"))?;
    let _ = fs::write("/proc/sys/kernel/hostname", "strake");
    setup::cgroup_tree()?;
    // Ctrl-Alt-Del becomes a SIGINT to PID 1.
    let _ = rustix::system::reboot(RebootCommand::CadOff);

    // Messages that may wait for logd while it restarts, from each program; a socket takes the limit that holds when it is bound.
    let _ = fs::write("/proc/sys/net/unix/max_dgram_qlen", "512");

    let mut this = EventLoop::new()?;
    // Uevents of devices that appear meanwhile wait in their socket.
    let devices = this.uevents.take();
    for step in [helper::LISTED_MODULES, helper::COLDPLUG] {
        this.run_helper(&[step], PREPARE_TIMEOUT);
    }
    this.uevents = devices;
    setup::sysctls(&Path::new(setup::SHARE).join("sysctl.conf"));
    if let Err(error) = setup::loopback_up() {
        report::warn(&report::chain(&error));
    }
    // Before anybody is told that services run: a press that comes earlier than that is lost.
    this.buttons.look(now());
    this.watchdog = Watchdog::open(now());
    report::info(if this.watchdog.is_some() { "the watchdog is armed" } else { "no watchdog" });
    this.supervise()
}

impl EventLoop {
    fn new() -> Result<Self, StageTwoError> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPWR] {
            mask.add(signal);
        }
        mask.thread_block().map_err(StageTwoError::Signals)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self {
            supervisor: Supervisor::new(TABLE, now()),
            output: Output::new(),
            control: Control::bind(Path::new(SOCKET)).map_err(StageTwoError::Control)?,
            signals: SignalFd::with_flags(&mask, flags).map_err(StageTwoError::Signals)?,
            uevents: uevent::open().map_err(|error| report::warn(&format!("listen for devices: {error}"))).ok(),
            watchdog: None,
            buttons: PowerButtons::default(),
            helpers: Vec::new(),
            driver_helper: None,
            devices_appeared: false,
            shutdown: None,
            trial: read_boot_info().ok().and_then(|info| info.trial_seconds).map(Duration::from_secs),
        })
    }

    fn supervise(&mut self) -> Result<Infallible, Box<dyn Error>> {
        loop {
            let actions = self.supervisor.due(now(), is_ready);
            self.act(actions);
            if self.trial.is_some_and(|deadline| now() >= deadline) {
                self.trial = None;
                self.want_shutdown(Kind::Reboot, "the system on trial did not prove good in time");
            }
            if let Some((kind, reason)) = self.shutdown.take() {
                return self.go_down(kind, &reason);
            }
            let wait = self.supervisor.next_due().map_or(LONGEST_WAIT, |due| due.saturating_sub(now()));
            self.turn(wait.clamp(SHORT_WAIT, LONGEST_WAIT));
        }
    }

    /// Waits for something to happen, at most this long, and handles it.
    fn turn(&mut self, longest: Duration) {
        let mut wait = longest;
        if let Some(watchdog) = &mut self.watchdog {
            wait = wait.min(watchdog.feed(now()).saturating_sub(now()));
        }
        if console::flush() {
            wait = wait.min(SHORT_WAIT);
        }
        if !self.supervisor.has_process(LOGD) {
            self.output.drain();
            wait = wait.min(SHORT_WAIT);
        }
        {
            let mut fds = vec![PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
            fds.extend(self.uevents.iter().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)));
            fds.extend(self.buttons.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            fds.extend(self.control.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            // Whatever it says, everything below asks without blocking.
            let _ = poll(&mut fds, Some(&timeout));
        }
        self.take_signals();
        self.reap();
        self.take_uevents();
        self.buttons.refresh(now());
        if self.buttons.pressed() {
            self.want_shutdown(Kind::PowerOff, "the power button");
        }
        self.take_requests();
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGINT) => self.want_shutdown(Kind::Reboot, "Ctrl-Alt-Del"),
                Ok(Signal::SIGTERM) => self.want_shutdown(Kind::Reboot, "SIGTERM"),
                Ok(Signal::SIGPWR) => self.want_shutdown(Kind::PowerOff, "SIGPWR"),
                _ => {}
            }
        }
    }

    fn want_shutdown(&mut self, kind: Kind, reason: &str) {
        if self.shutdown.is_none() {
            self.shutdown = Some((kind, reason.to_owned()));
        }
    }

    /// Reaps services, helpers, and the orphans of containers alike.
    fn reap(&mut self) {
        loop {
            let (pid, exit) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            self.helpers.retain(|helper| *helper != pid);
            if let Some((def, actions)) = self.supervisor.exited(pid, exit, now()) {
                report::notice(&format!("service {} ended pid={pid} {}", def.name, describe(exit)));
                self.act(actions);
            }
        }
    }

    fn take_uevents(&mut self) {
        let Some(socket) = &self.uevents else { return };
        let news = uevent::read(socket);
        if self.driver_helper.is_some_and(|pid| self.helpers.contains(&pid)) {
            // One at a time; the next one looks at every device.
            self.devices_appeared |= news.overrun || !news.modaliases.is_empty();
            return;
        }
        if self.devices_appeared || news.overrun || news.modaliases.len() > 64 {
            self.devices_appeared = false;
            self.driver_helper = self.start_helper(&[helper::COLDPLUG]);
        } else if !news.modaliases.is_empty() {
            let mut args = vec![helper::MODALIAS];
            args.extend(news.modaliases.iter().map(String::as_str));
            self.driver_helper = self.start_helper(&args);
        }
    }

    fn take_requests(&mut self) {
        let mut requests = Vec::new();
        let Self { control, supervisor, shutdown, trial, .. } = self;
        control.serve(|request| {
            if request == Request::TrialPassed && trial.take().is_some() {
                report::notice("the system on trial proved good");
            }
            let (response, mut actions, down) = respond(supervisor, request);
            requests.append(&mut actions);
            if shutdown.is_none() {
                *shutdown = down;
            }
            response
        });
        self.act(requests);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Spawn { service, args, env } => {
                    let def = self.supervisor.def(service);
                    let result = self.streams(def).and_then(|streams| spawn::service(def, &args, &env, streams));
                    match &result {
                        Ok(pid) => report::notice(&format!("service {} running pid={pid}", def.name)),
                        Err(error) => report::warn(&format!("start {}: {error}", def.name)),
                    }
                    self.supervisor.spawned(service, result.map_err(|error| format!("start: {error}")), now());
                }
                Action::Terminate { pid, .. } => send_signal(pid, Signal::SIGTERM),
                Action::Kill { service, pid } => {
                    report::notice(&format!("service {} does not end, killed pid={pid}", self.supervisor.def(service).name));
                    send_signal(pid, Signal::SIGKILL);
                }
                Action::KillLeftovers { service } => spawn::kill_cgroup(self.supervisor.def(service).cgroup),
            }
        }
    }

    /// A service writes into its pipe; logd, which reads them, into the kernel log.
    fn streams(&mut self, def: &'static ServiceDef) -> io::Result<Streams> {
        if def.name == LOGD {
            let kmsg = fs::OpenOptions::new().write(true).open("/dev/kmsg")?;
            let error = Stdio::from(kmsg.try_clone()?);
            return Ok(Streams { input: Some(self.output.new_channel()?), output: kmsg.into(), error });
        }
        let writer = self.output.writer(def.name)?;
        let error = Stdio::from(writer.try_clone()?);
        Ok(Streams { input: None, output: writer.into(), error })
    }

    fn start_helper(&mut self, args: &[&str]) -> Option<i32> {
        match helper::start(args) {
            Ok(pid) => {
                self.helpers.push(pid);
                Some(pid)
            }
            Err(error) => {
                report::warn(&format!("start helper {}: {error}", args[0]));
                None
            }
        }
    }

    /// Runs a helper to its end, or leaves it running when its time is over.
    fn run_helper(&mut self, args: &[&str], timeout: Duration) {
        let Some(pid) = self.start_helper(args) else { return };
        if !self.turn_until(timeout, |this| !this.helpers.contains(&pid)) {
            report::warn(&format!("helper {} takes longer than {timeout:?}", args[0]));
        }
    }

    /// Says whether it happened in time.
    fn turn_until(&mut self, timeout: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let deadline = now() + timeout;
        while !done(self) {
            if now() >= deadline {
                return false;
            }
            self.turn(SHORT_WAIT);
            let actions = self.supervisor.due(now(), |_| false);
            // While the system is being prepared nothing is started yet; a kill that is due is still sent.
            self.act(actions.into_iter().filter(|action| matches!(action, Action::Kill { .. })).collect());
        }
        true
    }

    fn go_down(&mut self, kind: Kind, reason: &str) -> Result<Infallible, Box<dyn Error>> {
        report::notice(&format!("going down ({kind:?}): {reason}"));
        self.supervisor.begin_shutdown();
        for (step, deadline) in shutdown::plan() {
            let begun = now();
            let in_time = match &step {
                Step::StopService(name) => {
                    let actions = self.supervisor.stop(name, now()).unwrap_or_default();
                    self.act(actions);
                    self.turn_until(deadline, |this| !this.supervisor.has_process(name))
                }
                Step::StopCgroup(cgroup) => self.stop_cgroup(cgroup, deadline),
                Step::StopEverything => self.stop_everything(deadline),
                Step::Unmount => match self.start_helper(&[helper::UNMOUNT]) {
                    Some(pid) => self.turn_until(deadline, |this| !this.helpers.contains(&pid)),
                    None => false,
                },
            };
            let took = now().saturating_sub(begun);
            if !in_time {
                report::warn(&format!("{step:?} was not done after {took:?}"));
            } else if took > SHORT_WAIT {
                report::info(&format!("{step:?} took {took:?}"));
            }
        }
        report::notice(match kind {
            Kind::Reboot => "restarting",
            Kind::PowerOff => "power off",
        });
        console::flush();
        let command = match kind {
            Kind::Reboot => RebootCommand::Restart,
            Kind::PowerOff => {
                if let Some(watchdog) = self.watchdog.take() {
                    watchdog.disarm();
                }
                RebootCommand::PowerOff
            }
        };
        match rustix::system::reboot(command) {
            Ok(()) => loop {
                std::thread::sleep(LONGEST_WAIT);
            },
            Err(error) => Err(StageTwoError::Reboot(error).into()),
        }
    }

    fn stop_cgroup(&mut self, cgroup: &str, deadline: Duration) -> bool {
        for pid in spawn::cgroup_pids(cgroup) {
            send_signal(pid, Signal::SIGTERM);
        }
        let in_time = self.turn_until(deadline, |_| spawn::cgroup_pids(cgroup).is_empty());
        spawn::kill_cgroup(cgroup);
        in_time
    }

    fn stop_everything(&mut self, deadline: Duration) -> bool {
        let everything = |signal| {
            let _ = nix::sys::signal::kill(Pid::from_raw(-1), signal);
        };
        everything(Signal::SIGTERM);
        let half = deadline / 2;
        if self.turn_until(half, |_| no_children()) {
            return true;
        }
        everything(Signal::SIGKILL);
        self.turn_until(half, |_| no_children())
    }
}

/// What a request does to the services, and whether the machine goes down for it.
fn respond(supervisor: &mut Supervisor, request: Request) -> (Response, Vec<Action>, Option<(Kind, String)>) {
    let outcome = match request {
        Request::List => return (Response::Services { services: supervisor.statuses() }, Vec::new(), None),
        Request::BootInfo => return (boot_info(), Vec::new(), None),
        // The event loop keeps the time.
        Request::TrialPassed => return (Response::Done, Vec::new(), None),
        Request::SetConsole(status) => {
            console::set_status(status);
            Ok(Vec::new())
        }
        Request::Reboot { reason } => return (Response::Done, Vec::new(), Some((Kind::Reboot, reason))),
        Request::PowerOff { reason } => return (Response::Done, Vec::new(), Some((Kind::PowerOff, reason))),
        Request::Start { name, args, env } => supervisor.start(&name, args, env, now()),
        Request::Stop { name } => supervisor.stop(&name, now()),
        Request::Restart { name } => supervisor.restart(&name, now()),
    };
    match outcome {
        Ok(actions) => (Response::Done, actions, None),
        Err(refusal) => (Response::Error { code: refusal.code(), message: refusal.to_string() }, Vec::new(), None),
    }
}

fn read_boot_info() -> Result<BootInfo, String> {
    let bytes = fs::read(BOOT_INFO_FILE).map_err(|error| error.to_string())?;
    node_ipc::decode(&bytes).map_err(|error| error.to_string())
}

fn boot_info() -> Response {
    match read_boot_info() {
        Ok(info) => Response::BootInfo(info),
        Err(error) => Response::Error { code: node_ipc::init::ErrorCode::BadRequest, message: format!("read {BOOT_INFO_FILE}: {error}") },
    }
}

fn is_ready(def: &ServiceDef) -> bool {
    def.ready_file.is_none_or(|file| Path::new(file).exists())
}

/// kthreadd's children are not init's, so no child at all means that nothing but init runs. Reaps nothing.
fn no_children() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::All, look), Err(rustix::io::Errno::CHILD))
}

fn send_signal(pid: i32, signal: Signal) {
    // A pid of 0 or below would mean a group.
    if pid > 1 {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
    }
}

fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("code={code}"),
        Exit::Signal(signal) => format!("signal={signal}"),
        Exit::NotStarted => "not started".to_owned(),
    }
}

/// Time since boot: one clock for the supervisor, the watchdog and what clients are told.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn release() -> String {
    let text = fs::read(Path::new(setup::SHARE).join("release.json")).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let version = value.get("version").and_then(serde_json::Value::as_str).unwrap_or("of an unknown version");
    format!("init {version}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_ipc::init::ErrorCode;

    #[test]
    fn requests_reach_the_supervisor_and_refusals_the_client() {
        let mut supervisor = Supervisor::new(TABLE, Duration::ZERO);
        let start = |name: &str| Request::Start { name: name.into(), args: Vec::new(), env: Vec::new() };
        assert_eq!(respond(&mut supervisor, start("kubelet")).0, Response::Done);
        let (response, ..) = respond(&mut supervisor, start("sshd"));
        assert_eq!(response, Response::Error { code: ErrorCode::UnknownService, message: "no service named sshd".into() });
        let (response, ..) = respond(&mut supervisor, Request::List);
        assert!(matches!(response, Response::Services { services } if services.len() == TABLE.len()));
        let (_, _, down) = respond(&mut supervisor, Request::PowerOff { reason: "asked".into() });
        assert_eq!(down, Some((Kind::PowerOff, "asked".into())));
    }
}
