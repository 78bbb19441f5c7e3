//! Devices that appear: the kernel's uevents (netlink, NETLINK_KOBJECT_UEVENT), of which init only wants the modalias.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with, sockopt};

const KERNEL_GROUP: u32 = 1;

/// Subscribes to the kernel's uevents.
pub fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    let _ = sockopt::set_socket_recv_buffer_size(&socket, 1024 * 1024);
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

/// What came since the last call.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Modaliases of added devices.
    pub modaliases: Vec<String>,
    /// The kernel had to drop some: everything must be looked at.
    pub overrun: bool,
}

/// Reads what there is, at most a few hundred events per call.
pub fn read(socket: &OwnedFd) -> News {
    let mut news = News::default();
    let mut buffer = [0; 8 * 1024];
    for _ in 0..256 {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, size)) => news.modaliases.extend(modalias_of_added(&buffer[..size.min(8 * 1024)])),
            Err(rustix::io::Errno::NOBUFS) => news.overrun = true,
            Err(_) => break,
        }
    }
    news
}

/// A uevent is a header and `KEY=value` strings, each ended by a NUL.
fn modalias_of_added(message: &[u8]) -> Option<String> {
    let mut added = false;
    let mut modalias = None;
    for field in message.split(|&byte| byte == 0) {
        if field == b"ACTION=add" {
            added = true;
        } else if let Some(value) = field.strip_prefix(b"MODALIAS=") {
            modalias = String::from_utf8(value.to_vec()).ok();
        }
    }
    modalias.filter(|alias| added && !alias.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_added_devices_with_a_modalias_count() {
        let cases: &[(&[u8], Option<&str>)] = &[
            (b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0MODALIAS=virtio:d1v2\0SEQNUM=1\0", Some("virtio:d1v2")),
            (b"add@/devices/x\0MODALIAS=a\0ACTION=add\0", Some("a")),
            (b"remove@/devices/x\0ACTION=remove\0MODALIAS=a\0", None),
            (b"add@/devices/x\0ACTION=add\0SUBSYSTEM=block\0", None),
            (b"add@/devices/x\0ACTION=add\0MODALIAS=\0", None),
            (b"add@/devices/x\0ACTION=add\0MODALIAS=\xff\0", None),
            (b"", None),
        ];
        for (message, expected) in cases {
            assert_eq!(modalias_of_added(message).as_deref(), *expected);
        }
    }
}
