//! The machines' network: the switch, and a gateway (QEMU's user-mode network in a process without a machine) that hands out
//! addresses, answers DNS and forwards ports of the host's loopback to machines. Both survive every machine.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use image::tools::Tools;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, FileContext};
use crate::qmp::Monitor;

/// The network of a test cluster.
pub const NETWORK: &str = "10.5.0.0/24";
/// The gateway's address.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 2);

/// A port of the host's loopback that leads to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// On the host's 127.0.0.1.
    pub host_port: u16,
    /// The machine's address.
    pub address: Ipv4Addr,
    /// The machine's port.
    pub port: u16,
}

impl Forward {
    fn rule(&self) -> String {
        format!("tcp:127.0.0.1:{}-{}:{}", self.host_port, self.address, self.port)
    }
}

/// Where the network's processes live.
#[derive(Clone, Debug)]
pub struct Network {
    dir: PathBuf,
    run: PathBuf,
}

impl Network {
    /// A network whose logs are in `dir` and whose sockets are in `run`.
    pub fn new(dir: &Path, run: &Path) -> Self {
        Self { dir: dir.to_owned(), run: run.to_owned() }
    }

    /// The switch's socket.
    pub fn switch(&self) -> PathBuf {
        self.run.join("switch")
    }

    /// Starts what is not running: the switch as a process of its own (`switch_command` is the caller's executable with what makes it
    /// serve the switch's socket), and the gateway with these forwards.
    pub fn start(&self, tools: &Tools, switch_command: Command, forwards: &[Forward]) -> Result<(), Error> {
        for dir in [&self.dir, &self.run] {
            std::fs::create_dir_all(dir).on("create", dir)?;
        }
        if self.pid("switch").is_none() {
            self.launch("switch", switch_command, &self.switch())?;
        }
        if self.pid("gateway").is_none() {
            let mut command = tools.qemu()?;
            command.args(gateway_arguments(&self.switch(), &self.gateway_socket(), forwards));
            self.launch("gateway", command, &self.gateway_socket())?;
        }
        Ok(())
    }

    /// Adds a forward to the running gateway.
    pub fn forward(&self, forward: &Forward) -> Result<(), Error> {
        self.gateway(&format!("hostfwd_add user {}", forward.rule()))
    }

    /// Removes a forward again.
    pub fn unforward(&self, forward: &Forward) -> Result<(), Error> {
        self.gateway(&format!("hostfwd_remove user tcp:127.0.0.1:{}", forward.host_port))
    }

    /// Ends the network's processes.
    pub fn stop(&self) -> Result<(), Error> {
        for name in ["gateway", "switch"] {
            if let Some(pid) = self.pid(name) {
                crate::machine::run(Command::new("kill").args(["-KILL", &pid.to_string()]))?;
            }
        }
        Ok(())
    }

    fn gateway(&self, line: &str) -> Result<(), Error> {
        let answer = Monitor::new("gateway", &self.gateway_socket()).human(line)?;
        let answer = answer.trim();
        if answer.is_empty() || answer.contains("removed") {
            return Ok(());
        }
        Err(Error::Monitor { machine: "gateway".into(), command: line.to_owned(), answer: answer.to_owned() })
    }

    fn gateway_socket(&self) -> PathBuf {
        self.run.join("gateway.qmp")
    }

    fn launch(&self, name: &str, mut command: Command, ready: &Path) -> Result<(), Error> {
        if ready.exists() {
            std::fs::remove_file(ready).on("remove", ready)?;
        }
        let output = self.dir.join(format!("{name}.log"));
        let log = File::create(&output).on("create", &output)?;
        let errors = log.try_clone().on("share", &output)?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let mut child = command.spawn().map_err(|source| Error::Spawn { program: name.to_owned(), source })?;
        let pid_file = self.dir.join(format!("{name}.pid"));
        std::fs::write(&pid_file, child.id().to_string()).on("write", &pid_file)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let ended = child.try_wait().on("wait for", &pid_file)?;
            if ready.exists() && ended.is_none() {
                std::thread::spawn(move || child.wait());
                return Ok(());
            }
            if ended.is_some() || Instant::now() > deadline {
                let text = std::fs::read_to_string(&output).unwrap_or_default();
                let status = ended.map_or_else(|| "not ready in 20 s".to_owned(), |status| status.to_string());
                return Err(Error::Program { program: name.to_owned(), status, output: text.trim().to_owned() });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The process of a part, if it is the one that was started here: its command line names its socket.
    fn pid(&self, name: &str) -> Option<u32> {
        let pid: u32 = std::fs::read_to_string(self.dir.join(format!("{name}.pid"))).ok()?.trim().parse().ok()?;
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let socket = if name == "switch" { self.switch() } else { self.gateway_socket() };
        String::from_utf8_lossy(&command_line).contains(&*socket.to_string_lossy()).then_some(pid)
    }
}

/// A port of the host's loopback that is free now.
pub fn free_port(preferred: u16) -> Result<u16, Error> {
    let listener = TcpListener::bind(("127.0.0.1", preferred)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    listener.and_then(|listener| listener.local_addr()).map(|address| address.port()).on("find a free port on", "127.0.0.1")
}

fn gateway_arguments(switch: &Path, monitor: &Path, forwards: &[Forward]) -> Vec<String> {
    let mut user = format!("user,id=user,net={NETWORK},host={GATEWAY},dns=10.5.0.3,dhcpstart=10.5.0.100,ipv6=off");
    for forward in forwards {
        user.push_str(",hostfwd=");
        user.push_str(&forward.rule());
    }
    let stream = format!("stream,id=switch,server=off,addr.type=unix,addr.path={},reconnect-ms=500", switch.display());
    let monitor = format!("unix:{},server=on,wait=off", monitor.display());
    let words = [
        "-machine",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-qmp",
        &monitor,
        "-netdev",
        &user,
        "-netdev",
        &stream,
        "-netdev",
        "hubport,id=port0,hubid=0,netdev=user",
        "-netdev",
        "hubport,id=port1,hubid=0,netdev=switch",
    ];
    words.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_forwards_only_from_loopback() {
        let forward = Forward { host_port: 6443, address: Ipv4Addr::new(10, 5, 0, 11), port: 6443 };
        let line = gateway_arguments(Path::new("/r/switch"), Path::new("/r/q"), &[forward]).join(" ");
        assert!(line.contains("dhcpstart=10.5.0.100,ipv6=off,hostfwd=tcp:127.0.0.1:6443-10.5.0.11:6443"), "{line}");
    }

    #[test]
    fn a_taken_port_is_replaced_by_a_free_one() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap().port();
        let port = free_port(taken).unwrap();
        assert_ne!(port, taken);
    }
}
