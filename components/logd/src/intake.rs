//! Everything that comes in, on one thread and with one poll: what init hands over on standard input (the journal socket, and
//! a pipe per service), the journal's datagrams, the services' lines, and the kernel log. Nothing here waits for a disk.
//!
//! Without init (standard input is no socket) it binds the journal socket itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use node_ipc::logd::{JOURNAL_SOCKET, KERNEL};
use node_ipc::stdio::Handover;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, bind, recvmsg,
    socket_with, sockopt,
};

use crate::journal::{self, MAX_ENTRY};
use crate::lines::Lines;
use crate::store::{Incoming, Store, boottime_us, log_name};
use crate::{kmsg, warn};

const MAX_SERVICES: usize = 32;
/// How much is taken from one source before the others have their turn.
const BATCH: usize = 64;
/// The log of senders that have no name.
const NAMELESS: &str = "journal";

struct Service {
    name: String,
    pipe: OwnedFd,
    lines: Lines,
}

/// The sources.
pub struct Intake {
    store: Arc<Store>,
    termination: SignalFd,
    channel: Option<OwnedFd>,
    journal: Option<OwnedFd>,
    kernel: Option<OwnedFd>,
    services: Vec<Service>,
    kernel_position: PathBuf,
    /// Kernel records up to this one are on disk already.
    kernel_seen: Option<u64>,
    bad_entries: u64,
}

/// What came with a packet.
struct Packet {
    size: usize,
    pid: Option<i32>,
    fd: Option<OwnedFd>,
}

impl Intake {
    pub fn open(store: Arc<Store>, termination: SignalFd, persistent: bool, run_state: &Path) -> anyhow::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned().context("duplicate standard input")?;
        let channel = sockopt::socket_type(&stdin).is_ok_and(|kind| kind == SocketType::SEQPACKET).then_some(stdin);
        let journal = if channel.is_none() { Some(bind_journal(Path::new(JOURNAL_SOCKET))?) } else { None };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let kernel = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).map_err(|error| warn(&format!("read /dev/kmsg: {error}"))).ok();
        fs::create_dir_all(run_state).context("create the directory of the run state")?;
        let kernel_position = run_state.join("kernel-position");
        let seen = fs::read_to_string(&kernel_position).ok().and_then(|text| text.parse().ok());
        Ok(Self {
            store,
            termination,
            channel,
            journal,
            kernel,
            services: Vec::new(),
            kernel_position,
            kernel_seen: seen.filter(|_| persistent),
            bad_entries: 0,
        })
    }

    /// Until SIGTERM, and then once more for what is there already.
    pub fn run(mut self) -> anyhow::Result<()> {
        let mut ending = false;
        while !ending {
            self.wait()?;
            ending = matches!(self.termination.read_signal(), Ok(Some(_)));
            self.take_handovers();
            self.take_journal();
            self.take_kernel();
            self.take_services();
        }
        Ok(())
    }

    fn wait(&self) -> anyhow::Result<()> {
        let mut fds: Vec<PollFd<'_>> = [&self.channel, &self.journal, &self.kernel]
            .into_iter()
            .flatten()
            .chain(self.services.iter().map(|service| &service.pipe))
            .map(AsFd::as_fd)
            .chain([self.termination.as_fd()])
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait for input"),
        }
    }

    fn take_handovers(&mut self) {
        let mut buffer = [0; 1024];
        while let Some(channel) = &self.channel {
            match receive(channel, &mut buffer) {
                Ok(Packet { size: 0, .. }) => {
                    // init is gone, and with it the machine.
                    self.channel = None;
                }
                Ok(Packet { size, fd: Some(fd), .. }) => match node_ipc::decode(&buffer[..size]) {
                    Ok(Handover::Journal) => self.journal = Some(fd),
                    Ok(Handover::Service { name }) => self.add_service(&name, fd),
                    Err(error) => warn(&format!("a handover that cannot be read: {error}")),
                },
                Ok(_) => warn("a handover without a descriptor"),
                Err(_) => return,
            }
        }
    }

    fn add_service(&mut self, name: &str, pipe: OwnedFd) {
        let Some(name) = log_name(name) else { return warn(&format!("{name:?} is no name of a log")) };
        if let Err(error) = rustix::io::ioctl_fionbio(&pipe, true) {
            return warn(&format!("the pipe of {name}: {error}"));
        }
        self.services.retain(|service| service.name != name);
        if self.services.len() < MAX_SERVICES {
            self.services.push(Service { name, pipe, lines: Lines::default() });
        }
    }

    fn take_journal(&mut self) {
        let Some(socket) = &self.journal else { return };
        let mut buffer = vec![0; 256 * 1024];
        for _ in 0..BATCH {
            let Ok(packet) = receive(socket, &mut buffer) else { return };
            let content = match &packet.fd {
                // Entries too large for a datagram come as a sealed memory file.
                Some(file) => match read_memfd(file) {
                    Ok(content) => content,
                    Err(error) => {
                        warn(&format!("an entry in a memory file: {error}"));
                        continue;
                    }
                },
                // tracing-journald asks with an empty datagram whether somebody is there.
                None if packet.size == 0 => continue,
                None => buffer[..packet.size].to_vec(),
            };
            match journal::parse(&content) {
                Ok(record) => {
                    let log = sender_log(packet.pid, record.identifier.as_deref());
                    let incoming = Incoming {
                        priority: record.priority,
                        pid: packet.pid,
                        message: record.message,
                        fields: record.fields,
                        age: Duration::ZERO,
                    };
                    self.store.add(&log, incoming);
                }
                Err(error) => {
                    self.bad_entries += 1;
                    // One line per power of two: a broken sender must not fill the log.
                    if self.bad_entries.is_power_of_two() {
                        let pid = packet.pid.unwrap_or_default();
                        warn(&format!("a journal entry of pid {pid} that cannot be read: {error} ({} so far)", self.bad_entries));
                    }
                }
            }
        }
    }

    fn take_kernel(&mut self) {
        let Some(kernel) = &self.kernel else { return };
        let mut buffer = [0; 8192];
        let mut newest = None;
        for _ in 0..BATCH {
            match rustix::io::read(kernel, &mut buffer) {
                Ok(size) => {
                    let Some(record) = kmsg::parse(&buffer[..size]) else { continue };
                    if self.kernel_seen.is_some_and(|seen| record.sequence <= seen) {
                        continue;
                    }
                    newest = Some(record.sequence);
                    let age = Duration::from_micros(boottime_us().saturating_sub(record.time_us));
                    let (priority, message) = (record.priority, record.message);
                    self.store.add(KERNEL, Incoming { priority, message, age, pid: None, fields: BTreeMap::new() });
                }
                // The ring of the kernel was faster.
                Err(Errno::PIPE) => self.store.lost(KERNEL, 1),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if let Some(sequence) = newest {
            self.kernel_seen = Some(sequence);
            let _ = fs::write(&self.kernel_position, sequence.to_string());
        }
    }

    fn take_services(&mut self) {
        let mut buffer = [0; 16 * 1024];
        let store = &self.store;
        self.services.retain_mut(|service| {
            for _ in 0..BATCH {
                match rustix::io::read(&service.pipe, &mut buffer) {
                    // init holds the writing end, so this is the end of init's interest in the service.
                    Ok(0) => return false,
                    Ok(size) => {
                        let Service { name, lines, .. } = service;
                        lines.push(&buffer[..size], |line| {
                            let incoming = Incoming { priority: line.priority, message: line.message, ..Incoming::default() };
                            store.add(name, incoming);
                        });
                    }
                    Err(Errno::AGAIN) => return true,
                    Err(Errno::INTR) => {}
                    Err(_) => return false,
                }
            }
            true
        });
    }
}

/// SIGTERM as something to poll. Blocks it for this thread and those it starts.
pub fn termination() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// One packet without waiting for it. A descriptor beyond the first is closed.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Packet, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let size = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?.bytes;
    let mut packet = Packet { size, pid: None, fd: None };
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(mut fds) => packet.fd = fds.next(),
            RecvAncillaryMessage::ScmCredentials(credentials) => packet.pid = Some(credentials.pid.as_raw_nonzero().get()),
            _ => {}
        }
    }
    Ok(packet)
}

/// Only what can neither change nor block: a memory file sealed against writing.
fn read_memfd(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let seals = rustix::fs::fcntl_get_seals(file)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not sealed"));
    }
    let size = usize::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(usize::MAX);
    if size > MAX_ENTRY {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{size} bytes are too many")));
    }
    let mut content = vec![0; size];
    let mut done = 0;
    while done < size {
        match rustix::io::pread(file, &mut content[done..], done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    content.truncate(done);
    Ok(content)
}

/// A host service is known by its cgroup, which it cannot choose; others by what they call themselves.
fn sender_log(pid: Option<i32>, identifier: Option<&str>) -> String {
    let cgroup = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    cgroup
        .as_deref()
        .and_then(service_of_cgroup)
        .or_else(|| identifier.and_then(log_name).filter(|name| name != KERNEL))
        .unwrap_or_else(|| NAMELESS.to_owned())
}

/// `0::/system/machined` → `machined` (cgroups(7), /proc/pid/cgroup).
fn service_of_cgroup(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let (slice, rest) = path.split_once('/')?;
    matches!(slice, "system" | "podruntime").then(|| rest.split('/').next()).flatten().and_then(log_name)
}

fn bind_journal(path: &Path) -> anyhow::Result<OwnedFd> {
    let bound = || -> io::Result<OwnedFd> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let _ = fs::remove_file(path);
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_passcred(&socket, true)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        Ok(socket)
    };
    bound().with_context(|| format!("bind {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, connect, send, sendmsg};
    use std::io::IoSlice;

    fn intake(journal: OwnedFd) -> Intake {
        Intake {
            store: Arc::new(Store::new("b".into())),
            termination: termination().unwrap(),
            channel: None,
            journal: Some(journal),
            kernel: None,
            services: Vec::new(),
            kernel_position: PathBuf::new(),
            kernel_seen: None,
            bad_entries: 0,
        }
    }

    fn memory_file(content: &[u8], seal: bool) -> OwnedFd {
        let file = memfd_create("entry", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, content).unwrap();
        if seal {
            fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
        }
        file
    }

    fn send_file(socket: &OwnedFd, file: &OwnedFd) {
        let fds = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(socket, &[IoSlice::new(b"")], &mut ancillary, SendFlags::empty()).unwrap();
    }

    #[test]
    fn datagrams_and_sealed_files_become_entries_with_the_senders_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal/socket");
        let mut intake = intake(bind_journal(&path).unwrap());
        let client = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        connect(&client, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        for datagram in
            [&b"MESSAGE=hello\nPRIORITY=4\nSYSLOG_IDENTIFIER=probe\n"[..], b"", b"broken", b"SYSLOG_IDENTIFIER=kernel\nMESSAGE=fake\n"]
        {
            send(&client, datagram, SendFlags::empty()).unwrap();
        }
        send_file(&client, &memory_file(b"MESSAGE=large\nSYSLOG_IDENTIFIER=probe\n", true));
        send_file(&client, &memory_file(b"MESSAGE=unsealed\nSYSLOG_IDENTIFIER=probe\n", false));
        intake.take_journal();

        let entries = intake.store.entries("probe");
        let seen: Vec<(&str, u8)> = entries.iter().map(|entry| (entry.message.as_str(), entry.priority)).collect();
        assert_eq!(seen, [("hello", 4), ("large", 6)]);
        assert_eq!(entries[0].pid, Some(std::process::id() as i32));
        assert!(intake.store.entries(KERNEL).is_empty(), "nobody but the kernel writes the kernel's log");
        assert_eq!(intake.bad_entries, 1);
    }

    #[test]
    fn pipes_become_lines_and_a_closed_one_is_forgotten() {
        let mut intake = intake(memory_file(b"", false));
        let (read, write) = rustix::pipe::pipe().unwrap();
        intake.add_service("kubelet", read);
        intake.add_service("../x", memory_file(b"", false));
        rustix::io::write(&write, b"one\n<3>two\npart").unwrap();
        intake.take_services();
        rustix::io::write(&write, b"ial\n").unwrap();
        intake.take_services();
        let seen: Vec<(u8, String)> = intake.store.entries("kubelet").iter().map(|e| (e.priority, e.message.clone())).collect();
        assert_eq!(seen, [(6, "one".into()), (3, "two".into()), (6, "partial".into())]);
        drop(write);
        intake.take_services();
        assert!(intake.services.is_empty());
    }

    #[test]
    fn a_service_is_named_by_its_cgroup() {
        for (text, expected) in [
            ("0::/system/machined\n", Some("machined")),
            ("1:name=x:/\n0::/podruntime/kubelet/child\n", Some("kubelet")),
            ("0::/kubepods/pod1/x\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(service_of_cgroup(text).as_deref(), expected, "{text:?}");
        }
    }
}
