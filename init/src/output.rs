//! The output of services on its way to logd. init keeps both ends of every pipe and the journal socket, and hands them to
//! each new logd (see `node_ipc::stdio`). While no logd runs, a pipe that fills up is emptied, so that its service never blocks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use node_ipc::logd::JOURNAL_SOCKET;
use node_ipc::stdio::Handover;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, sendmsg,
    socket_with, socketpair, sockopt,
};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::report;

const PIPE_SIZE: usize = 256 * 1024;

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Every service's pipe, the journal socket, and the channel to the logd that runs.
#[derive(Default)]
pub struct Output {
    pipes: BTreeMap<&'static str, Pipe>,
    journal: Option<OwnedFd>,
    channel: Option<OwnedFd>,
}

impl Output {
    /// Binds the journal socket before any service runs, so that none finds it missing.
    pub fn new() -> Self {
        let journal = journal_socket(Path::new(JOURNAL_SOCKET));
        if let Err(error) = &journal {
            report::warn(&format!("bind {JOURNAL_SOCKET}: {error}"));
        }
        Self { journal: journal.ok(), ..Self::default() }
    }

    /// The writing end for a service's output; the same pipe for each of its runs.
    pub fn writer(&mut self, service: &'static str) -> io::Result<OwnedFd> {
        if !self.pipes.contains_key(service) {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
            rustix::io::ioctl_fionbio(&read, true)?;
            self.hand_over(&Handover::Service { name: service.to_owned() }, read.as_fd());
            self.pipes.insert(service, Pipe { read, write });
        }
        self.pipes[service].write.try_clone()
    }

    /// Standard input for a new logd, already holding everything it must serve.
    pub fn new_channel(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        self.channel = Some(ours);
        if let Some(journal) = &self.journal {
            self.hand_over(&Handover::Journal, journal.as_fd());
        }
        for (name, pipe) in &self.pipes {
            self.hand_over(&Handover::Service { name: (*name).to_owned() }, pipe.read.as_fd());
        }
        Ok(theirs)
    }

    fn hand_over(&self, handover: &Handover, fd: BorrowedFd<'_>) {
        let Some(channel) = &self.channel else { return };
        if let Err(error) = send_with_fd(channel, handover, fd) {
            // It is about to be replaced; the next one gets everything.
            report::info(&format!("hand {handover:?} to logd: {error}"));
        }
    }

    /// Empties the pipes that are nearly full. Only for when no logd reads them.
    pub fn drain(&self) {
        let mut buffer = [0; 16 * 1024];
        for (name, pipe) in &self.pipes {
            let waiting = rustix::io::ioctl_fionread(&pipe.read).unwrap_or(0);
            if waiting < (PIPE_SIZE as u64) * 3 / 4 {
                continue;
            }
            let mut lost = 0;
            while let Ok(size @ 1..) = rustix::io::read(&pipe.read, &mut buffer) {
                lost += size;
            }
            report::info(&format!("no logd: {lost} bytes of {name}'s output are lost"));
        }
    }
}

fn send_with_fd(channel: &OwnedFd, handover: &Handover, fd: BorrowedFd<'_>) -> io::Result<()> {
    let packet = node_ipc::encode_packet(handover).map_err(io::Error::other)?;
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(channel, &[IoSlice::new(&packet)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

fn journal_socket(path: &Path) -> io::Result<OwnedFd> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let _ = fs::remove_file(path);
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_passcred(&socket, true)?;
    let _ = sockopt::set_socket_recv_buffer_size(&socket, 8 * 1024 * 1024);
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{IoSliceMut, Read, Write};

    fn receive(channel: &OwnedFd) -> (Handover, OwnedFd) {
        let mut buffer = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
        let size = rustix::net::recvmsg(channel, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags).unwrap().bytes;
        let fd = ancillary.drain().find_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (node_ipc::decode(&buffer[..size]).unwrap(), fd.unwrap())
    }

    #[test]
    fn every_new_logd_gets_every_pipe_and_the_output_written_in_between() {
        let mut output = Output::default();
        let mut writer = fs::File::from(output.writer("kubelet").unwrap());
        let first = output.new_channel().unwrap();
        assert_eq!(receive(&first).0, Handover::Service { name: "kubelet".into() });
        drop(first);

        writer.write_all(b"while nobody reads\n").unwrap();
        let second = output.new_channel().unwrap();
        let (_, pipe) = receive(&second);
        output.writer("machined").unwrap();
        assert_eq!(receive(&second).0, Handover::Service { name: "machined".into() }, "a later service is handed over at once");
        let mut text = [0; 64];
        let size = fs::File::from(pipe).read(&mut text).unwrap();
        assert_eq!(&text[..size], b"while nobody reads\n");
    }

    #[test]
    fn a_pipe_nobody_reads_does_not_block_its_service() {
        let mut output = Output::default();
        let mut writer = fs::File::from(output.writer("noisy").unwrap());
        for _ in 0..100 {
            writer.write_all(&[b'x'; 32 * 1024]).unwrap();
            output.drain();
        }
    }
}
